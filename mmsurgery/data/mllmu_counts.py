"""What is known of MLLMU-Bench's published files, and where the files at hand differ from it.

The numbers are those of the dataset's page and of scores that users and authors reported; of one person of the
retain split the published files hold no classification questions (2,370 instead of 2,375 at 5 %).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

from mmsurgery.data.mllmu_items import count_questions
from mmsurgery.data.mllmu_splits import SPLIT_REPOSITORY, Splits
from mmsurgery.data.tables import row_count

ROWS = {
    "Full_Set": 500,
    "ft_Data": 500,
    "forget_5": 25,
    "forget_10": 50,
    "forget_15": 75,
    "retain_95": 475,
    "retain_90": 450,
    "retain_85": 425,
    "Test_Set": 500,
    "Retain_Set": 153,
}
"""Config -> rows, one a person."""
PER_PERSON = {"classification": 5, "cloze": 2}
"""Task -> questions per person and modality; of generation questions only that there are some is known."""
_MISSING = 5
"""Classification questions per modality that one person of retain_95 lacks; which person is not known."""
_SHORT = ("retain_95", "forget_10", "forget_15", "retain_90", "retain_85")
"""Configs that the person may belong to."""


def differences(splits: Splits) -> Iterator[str]:
    """A line for each count that is not the published one, in the order of the folders."""
    folder = splits.source.folder
    forget, retain = splits.config("forget"), splits.config("retain")
    repeated = [f"{SPLIT_REPOSITORY}/{config}" for config in (forget, retain)]
    for config in (forget, retain, "Full_Set", "ft_Data", "Test_Set", "Retain_Set", *repeated):
        published = ROWS.get(config.removeprefix(f"{SPLIT_REPOSITORY}/"))
        if published is not None and (folder / config).exists():
            rows = row_count(folder, config)
            if rows != published:
                yield f"{config}: {rows:,} rows, published {published}"
    for config in (forget, retain, "Test_Set", "Retain_Set"):
        if (folder / config).exists():
            yield from _question_lines(splits, config, splits.ids(forget) if config == "Test_Set" else None)


def mixed_people(splits: Splits) -> Iterator[str]:
    """A line for each way in which the splits are not complementary, or are trained on others than they score."""
    forget, retain = splits.config("forget"), splits.config("retain")
    together = {*splits.ids(forget), *splits.ids(retain)}
    if shared := [person for person in splits.ids(retain) if person in splits.ids(forget)]:
        yield f"{retain}: {_people(len(shared), 'is', 'are')} in {forget} too: {_some(shared)}"
    if (splits.source.folder / "Full_Set").exists():
        everybody = splits.ids("Full_Set")
        if left := [person for person in everybody if person not in together]:
            yield f"Full_Set: {_people(len(left), 'is', 'are')} neither in {forget} nor in {retain}: {_some(left)}"
        if others := sorted(together - set(everybody)):
            yield f"Full_Set: {_people(len(others), 'is', 'are')} missing that the splits hold: {_some(others)}"
    for config in (forget, retain):
        trained = dict.fromkeys(row.person for row in splits.training(config, pictures=False))
        root, place, _ = splits.training_place(config)
        name = (root / place).relative_to(splits.source.folder)
        if others := [person for person in trained if person not in splits.ids(config)]:
            yield f"{name}: trains {_people(len(others), 'who is', 'who are')} not in {config}: {_some(others)}"
        if left := [person for person in splits.ids(config) if person not in trained]:
            yield f"{name}: {_people(len(left), 'is', 'are')} missing that {config} holds: {_some(left)}"


def _question_lines(splits: Splits, config: str, wanted: Collection[str] | None) -> Iterator[str]:
    counted = count_questions(splits.source.folder, config, wanted, splits.report)
    like = config if wanted is None else splits.config("forget")
    for (task, modality), counts in counted.items():
        if wanted is not None and modality == "text":
            continue  # Test_Set is there for its pictures; its text questions are never asked
        each, kind = PER_PERSON.get(task), f"{modality} {task} questions"
        whole = (each or 0) * ROWS.get(like, len(counts))
        short = whole - _MISSING if task == "classification" and like in _SHORT else whole
        published = {"retain_95": {short}}.get(like, {whole, short})
        total = sum(counts.values())
        odd = sorted(n for n in set(counts.values()) if n != each and (each is not None or n == 0))
        if odd:
            known = total == short != whole
            yield f"{config}: {_groups(counts, each, odd, kind)}{' (as published)' if known else ''}"
        if each is not None and total not in published:
            yield f"{config}: {total:,} {kind}, published {' or '.join(f'{n:,}' for n in sorted(published))}"


def _groups(counts: Counter[str], usual: int | None, odd: Iterable[int], kind: str) -> str:
    """`474 people have 5 image cloze questions, 1 has 0: 233`."""
    lines: list[str] = []
    for number in (usual, *odd):
        people = [person for person, n in counts.items() if n == number]
        if not people:
            continue
        line = f"{len(people)} {'has' if len(people) == 1 else 'have'} {number}"
        if not lines:
            line = f"{_people(len(people), 'has', 'have')} {number} {kind}"
        lines.append(line if number == usual else f"{line}: {_some(people)}")
    return ", ".join(lines)


def _people(count: int, one: str, many: str) -> str:
    return f"1 person {one}" if count == 1 else f"{count} people {many}"


def _some(people: Sequence[str]) -> str:
    return ", ".join(people[:5]) + (f" and {len(people) - 5} more" if len(people) > 5 else "")
