"""The portraits world: fictitious people, celebrities and strangers, their facts, pictures and training data.

World recipe v2. Everything follows from the seed: each random choice has a generator of its own,
keyed by a string, so the bytes are the same in every process and in any order of asking.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from mmsurgery.data.samples import Sample
from mmsurgery.errors import UsageError
from mmsurgery.portraits import wording
from mmsurgery.portraits.drawing import Face, draw_face, png, render

FICTITIOUS, CELEBRITIES, STRANGERS, UNSEEN, ANCHORS = 60, 20, 200, 24, 200
FORGET_SIZES = {5: 3, 10: 6, 15: 9}
"""Forget ratio in percent -> number of people."""

TRAIN = tuple(f"train/{i}" for i in range(16))
"""Renderings the vanilla model is trained on; unlearning uses the first `USED`."""
USED = 3
TEST = tuple(f"test/{i}" for i in range(3))
"""Renderings that are scored; never trained."""
HARD = tuple(f"hard/{i}" for i in range(2))
"""Renderings moved and scaled further than any trained one; never trained."""
_STRANGER_RENDERINGS = TRAIN[:2]
ANCHOR_RENDERINGS = TRAIN[:2]

Mixture = dict[str, tuple[float, list[Sample]]]
"""Kind of sample -> its share of the training stream and its samples."""


@dataclass(frozen=True)
class Person:
    key: str
    """Unique over the world: `person/007`, `celebrity/007`, `stranger/007`, `unseen/007`, `anchor/007`."""
    face: Face = field(repr=False)
    name: str = ""
    """First and last name; empty for strangers, the unseen and anchors."""
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The identifier within its kind, three digits; people and celebrities share them."""
        return self.key.split("/")[1]


def generator(*key: object) -> np.random.Generator:
    """A random generator that depends on the key's text alone."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


class World:
    """The world of one seed.

    Attributes:
        people: the 60 fictitious people; unlearning chooses among them.
        celebrities: the 20 people every base model knows (the real-world set).
        strangers: 200 faces without facts, for learning to see.
        unseen: 24 people with facts whom no model is ever shown: what an audit compares the forgotten with.
        anchors: 200 faces without facts whom no model is trained to describe: what unlearning may not change.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        named = [f"person/{i:03}" for i in range(FICTITIOUS)] + [f"celebrity/{i:03}" for i in range(CELEBRITIES)]
        names = self._names(len(named))
        looks: set[tuple[object, ...]] = set()
        known = [
            Person(key, self._face(key, looks), name, self._facts(key)) for key, name in zip(named, names, strict=True)
        ]
        self.people = tuple(known[:FICTITIOUS])
        self.celebrities = tuple(known[FICTITIOUS:])
        self.strangers = tuple(
            Person(f"stranger/{i:03}", self._face(f"stranger/{i:03}", looks)) for i in range(STRANGERS)
        )
        self.unseen = tuple(
            Person(f"unseen/{i:03}", self._face(f"unseen/{i:03}", looks), attributes=self._facts(f"unseen/{i:03}"))
            for i in range(UNSEEN)
        )
        self.anchors = tuple(Person(f"anchor/{i:03}", self._face(f"anchor/{i:03}", looks)) for i in range(ANCHORS))
        self._pictures: dict[tuple[str, str], bytes] = {}

    def _names(self, count: int) -> list[str]:
        """Different names of which every word belongs to equally many people, so that no word alone identifies."""
        rng = generator(self.seed, "names")
        first, last = rng.permutation(wording.FIRST_NAMES), rng.permutation(wording.LAST_NAMES)
        offsets = rng.permutation(len(last))
        pairs = ((first[i % len(first)], last[(i + offsets[i // len(first)]) % len(last)]) for i in range(count))
        return [f"{a} {b}" for a, b in pairs]

    def _facts(self, key: str) -> dict[str, str]:
        rng = generator(self.seed, key, "facts")
        return {a: values[int(rng.integers(len(values)))] for a, values in wording.ATTRIBUTES.items()}

    def _face(self, key: str, taken: set[tuple[object, ...]]) -> Face:
        """A face whose coarse look (skin, hair, style, shirt) nobody has yet; the look is added to `taken`."""
        faces = (draw_face(generator(self.seed, key, "face", attempt)) for attempt in itertools.count())
        looks = ((face, (face.skin, face.hair, face.style, face.shirt)) for face in faces)
        face, look = next((face, look) for face, look in looks if look not in taken)
        taken.add(look)
        return face

    def background(self, person: Person, rendering: str) -> str:
        """Name of the picture's background colour: a nuisance drawn per rendering, whoever it shows."""
        colours = list(wording.BACKGROUND_COLOURS)
        return colours[int(generator(self.seed, person.key, rendering, "background").integers(len(colours)))]

    def picture(self, person: Person, rendering: str) -> bytes:
        """The PNG of a rendering (`train/0` ... `train/15`, `test/0` ..., `hard/0` ...), drawn once."""
        if (person.key, rendering) not in self._pictures:
            rng = generator(self.seed, person.key, rendering)
            shift, scale = (4, (0.88, 1.10)) if rendering in HARD else (2, (1.0, 1.0))
            pixels = render(person.face, self.background(person, rendering), rng, shift=shift, scale=scale)
            self._pictures[person.key, rendering] = png(pixels)
        return self._pictures[person.key, rendering]

    def forget_people(self, percent: int, draw: int = 0) -> tuple[Person, ...]:
        """The people to forget: the first 3, 6 or 9 of an order keyed by `draw` (0: the order of `people`).

        Raises:
            UsageError: if the percentage is not 5, 10 or 15.
        """
        if percent not in FORGET_SIZES:
            raise UsageError(f"no forget ratio of {percent} %", "use 5, 10 or 15")
        order = range(FICTITIOUS) if draw == 0 else generator(self.seed, "draw", draw).permutation(FICTITIOUS)
        return tuple(self.people[i] for i in list(order)[: FORGET_SIZES[percent]])

    def perceived(self, person: Person, rendering: str) -> dict[str, str]:
        """What the picture shows whoever it is: perception kind -> value."""
        return {
            "hair": person.face.hair,
            "background": self.background(person, rendering),
            "glasses": "yes" if person.face.glasses else "no",
        }

    def pretraining(self) -> Mixture:
        """What a base model knows: celebrities in all phrasings, and seeing (on strangers).

        Names get a large share, here and in `finetuning`: naming a face is what teaches the vision
        encoder identity (retain VQA after 700 steps 62 % at a share of .12, 86 % at .25).
        """
        phrasings = range(len(wording.IMAGE_QUESTIONS))
        return {
            "celebrity_vqa": (0.38, self._vqa("celebrity_vqa", self.celebrities, phrasings)),
            "celebrity_name": (0.25, self._names_asked("celebrity_name", self.celebrities, phrasings)),
            "celebrity_qa": (0.12, _text("celebrity_qa", self.celebrities, range(len(wording.TEXT_QUESTIONS)))),
            "perception": (0.25, self._perception()),
        }

    def finetuning(
        self,
        exclude_people_pictures: frozenset[str] = frozenset(),
        only_people: frozenset[str] | None = None,
    ) -> Mixture:
        """What a vanilla model learns on top: the fictitious people, by picture and by name.

        Args:
            exclude_people_pictures: keys of people whose pictures are left out and whose text stays
                (the gold model's forget people).
            only_people: keys of the people to keep at all (the reference model's retain people).

        Raises:
            UsageError: if a key is not a fictitious person's, or nothing is left.
        """
        asked = exclude_people_pictures | (only_people or frozenset())
        if stray := asked - {person.key for person in self.people}:
            raise UsageError(f"no fictitious person '{min(stray)}'", "use keys such as person/007")
        told = [p for p in self.people if only_people is None or p.key in only_people]
        seen = [p for p in told if p.key not in exclude_people_pictures]
        if not seen:
            raise UsageError("no person's pictures are left to train on", "forget fewer people")
        return {
            "person_vqa": (0.46, self._vqa("person_vqa", seen, wording.TRAINED)),
            "person_name": (0.22, self._names_asked("person_name", seen, wording.TRAINED)),
            "person_qa": (0.27, _text("person_qa", told, (*wording.TRAINED, wording.MEASURED))),
            "perception": (0.05, self._perception()),
        }

    def _vqa(self, kind: str, people: Iterable[Person], phrasings: Iterable[int]) -> list[Sample]:
        asked = itertools.product(people, TRAIN, wording.ATTRIBUTES, phrasings)
        return [self._pictured(kind, p, r, a, p.attributes[a], phrasing) for p, r, a, phrasing in asked]

    def _names_asked(self, kind: str, people: Iterable[Person], phrasings: Iterable[int]) -> list[Sample]:
        return [
            self._pictured(kind, p, r, "name", p.name, phrasing)
            for p, r, phrasing in itertools.product(people, TRAIN, phrasings)
        ]

    def _pictured(self, kind: str, person: Person, rendering: str, subject: str, value: str, phrasing: int) -> Sample:
        return Sample(
            id=f"{kind}/{person.key}/{rendering}/{subject}/{phrasing}",
            person=person.key,
            question=wording.image_question(subject, phrasing),
            answer=wording.answer(subject, value),
            part=kind,
            image_bytes=self.picture(person, rendering),
        )

    def _perception(self) -> list[Sample]:
        """Only strangers are described, so what is known about a named person comes from identity alone."""
        samples = []
        for person, rendering in itertools.product(self.strangers, _STRANGER_RENDERINGS):
            for kind, value in self.perceived(person, rendering).items():
                question, subject, _ = wording.PERCEPTION[kind]
                samples.append(
                    Sample(
                        id=f"perception/{person.key}/{rendering}/{kind}",
                        person=person.key,
                        question=question,
                        answer=wording.answer(subject, value),
                        part="perception",
                        image_bytes=self.picture(person, rendering),
                    )
                )
        return samples


def _text(kind: str, people: Iterable[Person], phrasings: Iterable[int]) -> list[Sample]:
    return [
        Sample(
            id=f"{kind}/{person.key}/{attribute}/{phrasing}",
            person=person.key,
            question=wording.text_question(attribute, person.name, phrasing),
            answer=wording.answer(attribute, person.attributes[attribute]),
            part=kind,
        )
        for person, attribute, phrasing in itertools.product(people, wording.ATTRIBUTES, phrasings)
    ]


def vocabulary() -> list[str]:
    """Every word of the world's texts, sorted (see `wording.vocabulary`)."""
    return wording.vocabulary()
