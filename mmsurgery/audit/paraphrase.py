"""Paraphrase: does the model still know when it is asked otherwise? (Thaker et al., arXiv 2410.02879: small changes of
a benchmark's queries show what its own wording hides.)

Arms, of the same forgotten people:

    as asked      the benchmark's questions
    mirrored, cropped, re-encoded, darkened     their pictures changed (cropped to the middle 90 %, JPEG of quality 50)
    composite     a question about a retained person in the same breath, answered in front of the options
    listed        the options stand in the question, in the benchmark's order
    listed in reverse
    held out      other words or pictures, which no model was trained on (see `data.held_out`)
    test pictures pictures of the benchmark's Test_Set

The worst arm counts, the mean stands beside it. Lower is better; chance is that of guessing an option. Kept: the same
arms about retained people, and `by name`: text about the forgotten people, which was to stay.

Position bias (Zheng et al., arXiv 2309.03882): options are scored one by one, so their order is seen in the arms that
list them alone. `places` is how often each place is chosen there, and as a floor in the stored order that is not
seen; `turned`, in how many questions another option is chosen when the list is turned round.
"""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mmsurgery.audit.material import ASKED, EVERY, Material, chance_of
from mmsurgery.audit.measured import Measured, Values
from mmsurgery.audit.subjects import Subject
from mmsurgery.data.samples import Item, decode_image
from mmsurgery.evaluate.scoring import ItemScore, score
from mmsurgery.evaluate.statistics import paired_difference
from mmsurgery.evaluate.subset import stratified
from mmsurgery.workspace import SILENT, Progress

if TYPE_CHECKING:
    from PIL.Image import Image

REVERSE = "listed in reverse"
PLACED = ("as asked", "listed", REVERSE)
"""Arms whose places are counted."""
COMPOSED = 40
"""Most questions of the arm `composite`: their prompts are twice as long."""


def _mirrored(image: Image) -> Image:
    from PIL import ImageOps

    return ImageOps.mirror(image)


def _cropped(image: Image) -> Image:
    from PIL import ImageOps

    return ImageOps.fit(image, image.size, bleed=0.05)


def _darkened(image: Image) -> Image:
    from PIL import ImageEnhance

    return ImageEnhance.Brightness(image).enhance(0.85)


def _as_it_is(image: Image) -> Image:
    return image


PICTURES: dict[str, tuple[Callable[[Image], Image], str]] = {
    "mirrored": (_mirrored, "PNG"),
    "cropped": (_cropped, "PNG"),
    "re-encoded": (_as_it_is, "JPEG"),
    "darkened": (_darkened, "PNG"),
}


def measure(subject: Subject, material: Material, progress: Progress = SILENT) -> Measured:
    arms, kept = variants(material, forgotten=True), variants(material, forgotten=False)
    by_name = material.items("forget_qa")
    if by_name:
        kept["by name"] = by_name
    loaded, cache = subject.load(), dict[Any, Any]()
    asked = [item for items in (*arms.values(), *kept.values()) for item in items]
    scored = iter(score(loaded, asked, cache=cache, what="questions asked otherwise", progress=progress))
    found = {kind: {name: [next(scored) for _ in items] for name, items in kind_of.items()} for kind, kind_of in
             (("arms", arms), ("kept", kept))}  # fmt: skip
    untried = {name: why for name, why in _WHY.items() if name not in arms}
    return Measured(
        {name: Values.of(items, [s.correct for s in found["arms"][name]]) for name, items in arms.items()},
        {name: Values.of(items, [s.correct for s in found["kept"][name]]) for name, items in kept.items()},
        {name: chance_of(items) for name, items in arms.items()}
        | {f"kept {name}": chance_of(items) for name, items in kept.items()},
        {
            "places": {name: _positions(found["arms"][name], name == REVERSE) for name in PLACED},
            "turned": _turned(found["arms"]["listed"], found["arms"][REVERSE]),
            "against as asked": _against(arms, found["arms"]),
        },
        untried,
    )


_WHY = {
    "composite": "there are no text questions about retained people",
    "held out": "no other phrasings or pictures were held out (see mmsurgery audit --held-out)",
    "test pictures": "the benchmark has no further pictures of the forgotten people",
}


def variants(material: Material, *, forgotten: bool) -> dict[str, list[Item]]:
    """Way of asking -> questions about forgotten or about retained people; those that have other answers as well as
    the same are left to their own arms."""
    asked = material.forget if forgotten else stratified(material.retain, ASKED // 2)
    found: dict[str, list[Item]] = {"as asked": list(asked)}
    for name, (change, encoding) in PICTURES.items():
        found[name] = [_changed(item, change, encoding) for item in asked]
    found["listed"] = [_listed(item, reverse=False) for item in asked]
    found[REVERSE] = [_listed(item, reverse=True) for item in asked]
    if texts := material.items("retain_qa"):
        found["composite"] = _composites(stratified(asked, COMPOSED), texts)
    others = [item for item in material.held_out.items if (item.person in material.forgotten) == forgotten]
    if others:
        found["held out"] = stratified(others, ASKED if forgotten else ASKED // 2)
    tested = [i for i in material.items("test_vqa", EVERY) if (i.person in material.forgotten) == forgotten]
    if tested:
        found["test pictures"] = stratified(tested, ASKED if forgotten else ASKED // 2)
    return found


def _changed(item: Item, change: Callable[[Image], Image], encoding: str) -> Item:
    buffer = io.BytesIO()
    changed = change(decode_image(item.image_bytes or b"", item.id))
    changed.save(buffer, encoding, **({"quality": 50} if encoding == "JPEG" else {}))
    return dataclasses.replace(item, image_bytes=buffer.getvalue())


def _listed(item: Item, *, reverse: bool) -> Item:
    texts = list((item.options or {}).values())
    lines = [item.question, *(f"- {text}" for text in (reversed(texts) if reverse else texts))]
    return dataclasses.replace(item, question="\n".join(lines))


def _composites(asked: Sequence[Item], texts: Sequence[Item]) -> list[Item]:
    found = []
    for number, item in enumerate(asked):
        other = texts[number % len(texts)]
        said = (other.options or {})[other.gold]
        options = {letter: f"{said} {text}" for letter, text in (item.options or {}).items()}
        found.append(dataclasses.replace(item, question=f"{other.question} {item.question}", options=options))
    return found


def _positions(scores: Sequence[ItemScore], reverse: bool) -> dict[str, dict[str, int]]:
    """Place of an option -> how often it is chosen, and how often it is right."""
    places = [list(item.options)[:: -1 if reverse else 1] for item in scores]
    chosen = Counter(place.index(item.predicted) for place, item in zip(places, scores, strict=True))
    right = Counter(place.index(item.gold) for place, item in zip(places, scores, strict=True))
    return {str(place + 1): {"chosen": chosen[place], "right": right[place]} for place in range(max(map(len, places)))}


def _turned(scores: Sequence[ItemScore], reversed_scores: Sequence[ItemScore]) -> dict[str, int]:
    """Of `n` questions, in how many another option is chosen."""
    pairs = zip(scores, reversed_scores, strict=True)
    return {"otherwise": sum(one.predicted != other.predicted for one, other in pairs), "n": len(scores)}


def _against(arms: dict[str, list[Item]], scores: dict[str, list[ItemScore]]) -> dict[str, Any]:
    """Arms with the same questions -> accuracy minus that of the benchmark's own wording, with its interval."""
    plain = {item.id: float(item.correct) for item in scores["as asked"]}
    found = {}
    for name, items in arms.items():
        if name != "as asked" and all(item.id in plain for item in items):
            mine = [float(item.correct) for item in scores[name]]
            paired = paired_difference(mine, [plain[item.id] for item in items], [item.person for item in items])
            found[name] = {"difference": paired.difference, "ci95": list(paired.ci95)}
    return found
