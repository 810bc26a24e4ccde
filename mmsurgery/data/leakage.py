"""What must not be mixed: text that is measured with items that are scored, forget with retain people."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from mmsurgery.data.benchmark import TASKS, Benchmark, Source
from mmsurgery.data.remembered import remembered
from mmsurgery.data.samples import Item, Sample
from mmsurgery.errors import UnusableData

LEAKAGE = "text_leakage"
OVERLAP = "forget_retain_overlap"
"""Names under which the two faults can be allowed."""


def allowing(fault: str) -> str:
    """How a fault is accepted by its name, for messages."""
    return f"add '{fault}' to allow in [benchmark] of mmsurgery.toml (init --allow {fault})"


def normalised(text: str) -> str:
    """Lower-case words and digits of a text, single blanks between."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _gold(item: Item) -> str:
    return item.options[item.gold] if item.options is not None else item.gold


def check_leakage(parts: Mapping[str, Sequence[Sample]], items: Sequence[Item], *, allow: Collection[str] = ()) -> int:
    """Refuse text samples that are scored items: same person, normalised question and answer.

    Args:
        parts: part name -> its samples; those with pictures are left out.

    Returns:
        How many samples are scored too (0 unless `text_leakage` is allowed).

    Raises:
        UnusableData: with their number and three ids.
    """
    return _refuse_scored(parts, _text(items), allow)


def _text(items: Iterable[Item]) -> frozenset[tuple[str, str, str]]:
    """Person, normalised question and gold answer of items without a picture."""
    return frozenset((i.person, normalised(i.question), normalised(_gold(i))) for i in items if i.image_bytes is None)


@remembered
def _scored_text(reader: Benchmark, source: Source) -> frozenset[tuple[str, str, str]]:
    """Of all columns, open questions too."""
    asked = itertools.product(reader.columns(source), TASKS)
    return _text(item for column, task in asked for item in reader.items(source, column, task))


def _refuse_scored(
    parts: Mapping[str, Sequence[Sample]], scored: Collection[tuple[str, str, str]], allow: Collection[str]
) -> int:
    leaked = [
        sample.id
        for samples in parts.values()
        for sample in samples
        if sample.image_bytes is None
        and (sample.person, normalised(sample.question), normalised(sample.answer)) in scored
    ]
    if leaked and LEAKAGE not in allow:
        raise UnusableData(
            f"{len(leaked)} text pairs of {', '.join(parts)} are scored items, such as {', '.join(leaked[:3])}",
            f"measure text on other questions, or {allowing(LEAKAGE)}",
        )
    return len(leaked)


def check_text(reader: Benchmark, source: Source, part: str, samples: Sequence[Sample]) -> int:
    """`check_leakage` of one part against every scored text item of a benchmark, open questions too; free for
    pictured parts, and counted only where the settings chose the official text, which is scored."""
    if all(sample.image_bytes is not None for sample in samples):
        return 0
    official = {LEAKAGE} if source.saliency_text == "official" else set()
    return _refuse_scored({part: samples}, _scored_text(reader, source), source.allow | official)


def check_overlap(forget: Sequence[Sample], retain: Sequence[Sample], *, allow: Collection[str] = ()) -> int:
    """Refuse retain samples of a forget person, or with a forget person's very picture.

    Returns:
        How many retain samples overlap (0 unless `forget_retain_overlap` is allowed).

    Raises:
        UnusableData: with their number and three ids.
    """
    people = {sample.person for sample in forget}
    pictures = {sample.image_sha256 for sample in forget} - {None}
    shared = [s.id for s in retain if s.person in people or s.image_sha256 in pictures]
    if shared and OVERLAP not in allow:
        raise UnusableData(
            f"{len(shared)} retain samples are of forget people or pictures, such as {', '.join(shared[:3])}",
            f"use complementary sets, or {allowing(OVERLAP)}",
        )
    return len(shared)


def portrait_reuse(samples: Sequence[Sample], items: Sequence[Item]) -> int:
    """How many items show a picture that is trained on: what MLLMU-Bench does, to be reported."""
    trained = {sample.image_sha256 for sample in samples} - {None}
    return sum(item.image_sha256 in trained for item in items)
