"""The benchmark protocol, discovery by entry points, and the sets that the method's equations name.

A benchmark is an object behind an entry point of group `mmsurgery.benchmarks`. It reads the files of
a `Source`; it never writes, and never opens anything outside the source's folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mmsurgery.backbones.discovery import entry_points
from mmsurgery.data.samples import Item, Sample
from mmsurgery.errors import UsageError, unknown
from mmsurgery.settings import SALIENCY_TEXTS

if TYPE_CHECKING:
    from mmsurgery.workspace import Workspace

GROUP = "mmsurgery.benchmarks"

SETS: dict[str, tuple[str, ...]] = {
    "forget": ("forget_vqa",),
    "preserve": ("forget_qa", "retain_vqa", "retain_qa"),
}
"""The target set of Eq. 5 and the preserve set of Eq. 6, as the parts they are measured by."""

COLUMN_LABELS = {
    "forget_vqa": "Forget VQA",
    "forget_qa": "Forget QA",
    "retain_vqa": "Retain VQA",
    "retain_qa": "Retain QA",
    "realworld_vqa": "Real-world VQA",
    "realworld_qa": "Real-world QA",
    "test_vqa": "Test VQA",
    "realface_vqa": "Real-face VQA",
    "forget_caption": "Forget caption",
    "retain_caption": "Retain caption",
    "forget_perception": "Perception",
}
"""Columns as tables print them; a column of another name is printed by it."""

UTILITY = ("forget_qa", "retain_vqa", "retain_qa", "realworld_vqa", "realworld_qa")
"""Columns whose mean is the utility; those of them that the benchmark has."""

TASKS = ("classification", "cloze", "generation", "truth")
"""`truth`: the true answer, a paraphrase where there is one, and wrong answers, all scored by likelihood."""


@dataclass(frozen=True)
class Source:
    """Which files to read, and how."""

    folder: Path
    forget: int
    """Percentage of people to forget."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """`allow`: names of faults that are accepted (what has them is left out and counted); `saliency_text`:
    see `SALIENCY_TEXTS`; `people`: keys of those whom columns about nobody but the forget people ask about instead,
    where the files have them; `world` and `draw`, for portraits: what the files should be of."""

    @property
    def allow(self) -> frozenset[str]:
        return frozenset(self.options.get("allow", ()))

    @property
    def people(self) -> frozenset[str] | None:
        """Whom columns about forget people ask about, None for those of the split."""
        return self.options.get("people")

    @property
    def saliency_text(self) -> str:
        """One of `SALIENCY_TEXTS`."""
        return str(self.options.get("saliency_text", SALIENCY_TEXTS[0]))


@runtime_checkable
class Benchmark(Protocol):
    """Where samples and items come from.

    A benchmark may also have `asking`, the name of its way of asking for written answers (see
    `mmsurgery.evaluate.asking`), `of_files_alone = True` where what it says depends on the source and its files and on
    nothing else, so that it may be remembered (see `mmsurgery.data.remembered`), and methods `notes(source)` (see
    `notes_of`), `report(source)` (a `mmsurgery.data.faults.Report`) and `training(source, which)` (see
    `training_parts`).
    """

    name: str

    def parts(self, source: Source) -> tuple[str, ...]:
        """The data parts that can be trained and measured."""
        ...

    def columns(self, source: Source) -> tuple[str, ...]:
        """The columns that can be scored, in the order of the result table."""
        ...

    def samples(self, source: Source, part: str) -> list[Sample]:
        """The samples of a part, in a fixed order, ids unique.

        Raises:
            UsageError: for an unknown part.
            InputRefused: naming file, column and first bad row.
            UnusableData: if there is nothing to train on.
        """
        ...

    def items(self, source: Source, column: str, task: str = "classification") -> list[Item]:
        """The items of a column, in a fixed order, ids unique.

        Args:
            task: `classification` (options and gold letter), `cloze` or `generation` (gold text), `truth` (options
                `true`, `paraphrase` where there is one, `wrong1`, ...); a column may have none of a task.

        Raises:
            as `samples`.
        """
        ...


def notes_of(reader: Any, source: Source) -> dict[str, str]:
    """Column -> what a reader of its numbers must know; of a benchmark with a method `notes(source)`."""
    return dict(reader.notes(source)) if hasattr(reader, "notes") else {}


def installed() -> dict[str, metadata.EntryPoint]:
    """Benchmarks by name, without importing any.

    Raises:
        UsageError: if two distributions offer different objects under one name.
    """
    found: dict[str, metadata.EntryPoint] = {}
    for entry in entry_points(GROUP):
        # a checkout's own metadata and the installed one list the same entry twice
        if found.setdefault(entry.name, entry).value != entry.value:
            raise UsageError(
                f"benchmark '{entry.name}' is offered as {found[entry.name].value} and as {entry.value}",
                "uninstall one of the two packages",
            )
    return found


def benchmark(name: str) -> Benchmark:
    """The installed benchmark of that name.

    Raises:
        UsageError: if there is none, or it cannot be imported or is none.
    """
    entries = installed()
    if name not in entries:
        raise unknown("benchmark", name, entries)
    try:
        found = entries[name].load()
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"benchmark '{name}' ({entries[name].value}) cannot be loaded: {error}",
            "reinstall or remove the package that it comes from",
        ) from error
    if not isinstance(found, Benchmark):
        raise UsageError(
            f"benchmark '{name}' ({entries[name].value}) lacks methods of the benchmark protocol",
            "see mmsurgery.data.benchmark.Benchmark for what it needs",
        )
    return found


def source_of(workspace: Workspace) -> Source:
    """The source that a workspace's settings name."""
    settings = workspace.settings.benchmark
    options = {
        "allow": settings.allow,
        "saliency_text": settings.saliency_text,
        "world": settings.world,
        "draw": settings.draw,
    }
    return Source(workspace.data_dir, settings.forget, options)


def training_parts(reader: Benchmark, source: Source, which: str) -> tuple[Source, tuple[str, ...]]:
    """The parts that `vanilla`, `gold` or `reference` is trained on, and the source to read them from.

    A benchmark may say so itself, by a method `training(source, which)` that returns the same. Where it
    does not: vanilla learns every part, reference those of the retain people, gold all but the forget
    people's pictures.
    """
    if (own := getattr(reader, "training", None)) is not None:
        where, parts = own(source, which)
        return where, tuple(parts)
    parts = reader.parts(source)
    kept = {
        "vanilla": parts,
        "gold": [part for part in parts if part != "forget_vqa"],
        "reference": [part for part in parts if part.startswith("retain_")],
    }
    return source, tuple(kept[which])


def in_order(columns: Iterable[str]) -> list[str]:
    """Columns as tables show them: in the order of `COLUMN_LABELS`, others after them by name."""
    known = list(COLUMN_LABELS)
    return sorted(columns, key=lambda column: (known.index(column) if column in known else len(known), column))


def parts_of(name: str) -> tuple[str, ...]:
    """The parts of a set (`forget`, `preserve`), or the part itself."""
    return SETS.get(name, (name,))
