"""The portraits world: what is drawn, what is asked, what is trained."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import mmsurgery.portraits.world as world_module
from mmsurgery.data.samples import decode_image
from mmsurgery.errors import UsageError
from mmsurgery.portraits import wording
from mmsurgery.portraits.drawing import BACKGROUND_COLOURS, JITTER, NOISE, png, render
from mmsurgery.portraits.world import HARD, TEST, TRAIN, World, generator, vocabulary


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


def pixels(world: World, place: int, rendering: str) -> np.ndarray:
    return np.asarray(decode_image(world.picture(world.people[place], rendering), rendering))


def test_population(world: World) -> None:
    assert (len(world.people), len(world.celebrities), len(world.strangers)) == (60, 20, 200)
    assert world.people[7].key == "person/007"
    assert world.celebrities[7].id == world.people[7].id == "007"
    named = (*world.people, *world.celebrities)
    assert len({p.name for p in named}) == 80
    # 80 people over 20 first and 20 last words: each word belongs to four people
    assert set(Counter(word for p in named for word in p.name.split()).values()) == {4}
    looks = [(p.face.skin, p.face.hair, p.face.style, p.face.shirt) for p in (*named, *world.strangers)]
    assert len(set(looks)) == 280


def test_attributes_are_seven_of_twelve_values(world: World) -> None:
    assert [len(set(values)) for values in wording.ATTRIBUTES.values()] == [12] * 7
    for person in world.people:
        assert list(person.attributes) == list(wording.ATTRIBUTES)
        assert all(value in wording.ATTRIBUTES[a] for a, value in person.attributes.items())
    # independent draws: every value of every attribute is somebody's (P(one value missing) = (11/12)^80 = 0.1 %)
    used = {(a, v) for p in (*world.people, *world.celebrities) for a, v in p.attributes.items()}
    assert len(used) >= 82


def test_no_word_stands_for_two_things() -> None:
    kinds = [*wording.ATTRIBUTES.values(), wording.FIRST_NAMES, wording.LAST_NAMES]
    kinds += [tuple(wording.HAIR_COLOURS), tuple(wording.BACKGROUND_COLOURS), tuple(wording.ATTRIBUTES)]
    words = [word for kind in kinds for word in kind]
    assert len(words) == len(set(words)) == 7 * 12 + 20 + 20 + 6 + 6 + 7


def test_pictures_are_48_pixels_of_the_named_background(world: World) -> None:
    for rendering in (*TRAIN, *TEST, *HARD):
        picture = pixels(world, 3, rendering)
        assert picture.shape == (48, 48, 3)
        corner = picture[0:3, 0:3].astype(float).mean(axis=(0, 1))
        nearest = min(BACKGROUND_COLOURS, key=lambda name: np.abs(corner - np.asarray(BACKGROUND_COLOURS[name])).sum())
        assert nearest == world.background(world.people[3], rendering)
        # mean of 9 noisy pixels: jitter, plus rounding and clipping, plus 6 standard errors of the noise
        distance = np.abs(corner - np.asarray(BACKGROUND_COLOURS[nearest])).max()
        assert distance <= JITTER + 1 + 6 * NOISE / 3


def test_the_background_tells_nothing_about_the_person(world: World) -> None:
    for person in world.people[:5]:
        assert len({world.background(person, rendering) for rendering in TRAIN}) > 1


def test_renderings_differ_and_show_the_same_person(world: World) -> None:
    pictures = {world.picture(world.people[0], r) for r in (*TRAIN, *TEST, *HARD)}
    assert len(pictures) == 16 + 3 + 2
    # the shirt, low in the middle: jitter moves each picture by at most JITTER
    shirts = np.stack([pixels(world, 0, r)[45:48, 20:28].mean(axis=(0, 1)) for r in TRAIN])
    assert np.ptp(shirts, axis=0).max() <= 2 * JITTER + 4


def test_hard_renderings_move_and_scale_further(world: World) -> None:
    person = world.people[5]
    for rendering, shift, scale in ((HARD[1], 4, (0.88, 1.10)), (TEST[1], 2, (1.0, 1.0)), (TRAIN[1], 2, (1.0, 1.0))):
        rng = generator(0, person.key, rendering)
        drawn = render(person.face, world.background(person, rendering), rng, shift=shift, scale=scale)
        assert world.picture(person, rendering) == png(drawn)


def test_png_is_lossless_and_the_same_on_every_machine() -> None:
    drawn = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    assert np.array_equal(np.asarray(decode_image(png(drawn), "x")), drawn)


def _fingerprint(world: World) -> str:
    digest = hashlib.sha256()
    for person in (*world.people[:3], *world.celebrities[:2], *world.strangers[:2]):
        digest.update(repr((person, person.face, dict(person.attributes))).encode())
        digest.update(world.picture(person, TEST[0]))
        digest.update(world.picture(person, HARD[1]))
    digest.update(repr([p.key for p in world.forget_people(15, 3)]).encode())
    return digest.hexdigest()


def test_another_process_draws_the_same_bytes(world: World) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_world import _fingerprint, World; print(_fingerprint(World(0)), _fingerprint(World(1)))"
    )
    root = Path(world_module.__file__).parents[2]
    environment = {"PYTHONHASHSEED": "77", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root, env=environment
    )
    same, other = done.stdout.split()
    assert same == _fingerprint(world)
    assert other != same


def test_order_of_asking_changes_nothing(world: World) -> None:
    fresh = World(0)
    assert fresh.picture(fresh.people[59], HARD[1]) == world.picture(world.people[59], HARD[1])


def test_forget_sets_are_nested_and_drawn(world: World) -> None:
    for draw in (0, 1, 2):
        five, ten, fifteen = ([p.key for p in world.forget_people(percent, draw)] for percent in (5, 10, 15))
        assert (len(five), len(ten), len(fifteen)) == (3, 6, 9)
        assert fifteen[:3] == five
        assert fifteen[:6] == ten
    assert [p.id for p in world.forget_people(5)] == ["000", "001", "002"]
    assert len({tuple(p.key for p in world.forget_people(10, draw)) for draw in range(6)}) == 6
    with pytest.raises(UsageError, match="no forget ratio of 20"):
        world.forget_people(20)


def test_pretraining_is_the_recipe(world: World) -> None:
    mixture = world.pretraining()
    assert sum(share for share, _ in mixture.values()) == pytest.approx(1.0)
    sizes = {kind: len(samples) for kind, (_, samples) in mixture.items()}
    assert sizes == {
        "celebrity_vqa": 20 * 16 * 7 * 3,
        "celebrity_name": 20 * 16 * 3,
        "celebrity_qa": 20 * 7 * 4,
        "perception": 200 * 2 * 3,
    }
    people = {s.person.split("/")[0] for _, samples in mixture.values() for s in samples}
    assert people == {"celebrity", "stranger"}


def test_finetuning_keeps_the_paraphrase_and_held_out_renderings_back(world: World) -> None:
    mixture = world.finetuning()
    assert sum(share for share, _ in mixture.values()) == pytest.approx(1.0)
    assert len(mixture["person_vqa"][1]) == 60 * 16 * 7 * 2
    assert len(mixture["person_qa"][1]) == 60 * 7 * 3
    questions = {s.question for _, samples in mixture.values() for s in samples}
    person = world.people[0]
    assert wording.image_question("city", 1) in questions
    assert wording.image_question("city", wording.PARAPHRASE) not in questions
    assert wording.text_question("city", person.name, wording.MEASURED) in questions
    assert wording.text_question("city", person.name, wording.PARAPHRASE) not in questions
    trained = {s.image_sha256 for _, samples in mixture.values() for s in samples}
    held_out = {hashlib.sha256(world.picture(p, r)).hexdigest() for p in world.people[:9] for r in (*TEST, *HARD)}
    assert not trained & held_out
    sample = mixture["person_vqa"][1][0]
    assert sample.image_bytes == world.picture(person, "train/0")
    assert sample.answer == f"The city is {person.attributes['city']} ."


def test_gold_keeps_text_and_reference_keeps_nothing_of_the_forgotten(world: World) -> None:
    forget = frozenset(p.key for p in world.forget_people(10))
    gold = world.finetuning(exclude_people_pictures=forget)
    assert not forget & {s.person for kind in ("person_vqa", "person_name") for s in gold[kind][1]}
    assert gold["person_qa"] == world.finetuning()["person_qa"]
    retain = frozenset(p.key for p in world.people) - forget
    reference = world.finetuning(only_people=retain)
    assert not forget & {s.person for _, samples in reference.values() for s in samples}
    assert len(reference["person_qa"][1]) == 54 * 7 * 3


def test_finetuning_refuses_people_it_does_not_know(world: World) -> None:
    with pytest.raises(UsageError, match="no fictitious person 'celebrity/000'"):
        world.finetuning(exclude_people_pictures=frozenset({"celebrity/000"}))
    with pytest.raises(UsageError, match="no person's pictures"):
        world.finetuning(only_people=frozenset({"person/000"}), exclude_people_pictures=frozenset({"person/000"}))


def test_vocabulary_covers_every_text(world: World) -> None:
    words = vocabulary()
    assert words == sorted(set(words))
    spoken: set[str] = set()
    for mixture in (world.pretraining(), world.finetuning()):
        for _, samples in mixture.values():
            for sample in samples:
                spoken.update(sample.question.split(), sample.answer.split())
    assert spoken <= set(words)
    # nothing idle: what training never says is a rare value or colour, or the blank of a cloze
    assert len(set(words) - spoken) <= 4
