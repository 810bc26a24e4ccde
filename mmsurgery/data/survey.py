"""Everything a benchmark holds, read once: counted, checked for what must not be mixed, nothing of it kept."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mmsurgery.data.benchmark import TASKS, Benchmark, Source, notes_of
from mmsurgery.data.leakage import LEAKAGE, check_leakage, check_overlap, portrait_reuse
from mmsurgery.data.samples import Item, Sample
from mmsurgery.errors import UnusableData
from mmsurgery.workspace import SILENT, Progress

PICTURED = ("forget_vqa", "retain_vqa")
"""Parts without which nothing can be unlearned."""


@dataclass(frozen=True)
class Survey:
    """What is in a benchmark's files."""

    counts: dict[str, int]
    """Samples of each part and items of each column, by name: `forget_vqa`, `forget_vqa items`, and
    `forget_vqa cloze items` of the open tasks."""
    remarks: list[str]
    """Where the files are otherwise than published, and what the benchmark is known to do."""


def survey(reader: Benchmark, source: Source, progress: Progress = SILENT) -> Survey:
    """Read a benchmark's files and check them.

    Raises:
        InputRefused, UnusableData: as the reader; if text that saliency is measured on is scored, unless it is the
            official choice or allowed by name; if forget and retain samples share people or pictures; if there is
            nothing to forget or to keep.
    """
    parts, columns = reader.parts(source), reader.columns(source)
    counts: dict[str, int] = {}
    texts: dict[str, list[Sample]] = {}
    shown: dict[str, list[Sample]] = {}
    scored: list[Item] = []
    reused = 0
    with progress.stage("reading the benchmark", len(parts) + len(columns)) as advance:
        for part in parts:
            samples = reader.samples(source, part)
            counts[part] = len(samples)
            if part in PICTURED:
                shown[part] = [_unpictured(sample) for sample in samples]
            if part.endswith("_qa"):
                texts[part] = [sample for sample in samples if sample.image_bytes is None]
            advance(1)
        del samples  # with its pictures
        if missing := [part for part in PICTURED if not counts.get(part)]:
            raise UnusableData(
                f"{source.folder} has no samples for {' and '.join(missing)}: unlearning needs pictures to forget and "
                "to keep",
                "add pictured training rows",
            )
        trained = [sample for samples in shown.values() for sample in samples]
        for column in columns:
            for task in TASKS:
                items = reader.items(source, column, task)
                if task == TASKS[0]:
                    reused += portrait_reuse(trained, items)
                if items or task == TASKS[0]:
                    name = f"{column} items" if task == TASKS[0] else f"{column} {task} items"
                    counts[name] = len(items)
                scored += [item for item in items if item.image_bytes is None]
            if any(f"{column} {task} items" in counts for task in TASKS[1:]) and not counts[f"{column} items"]:
                del counts[f"{column} items"]
            advance(1)
    official = source.saliency_text == "official"
    leaked = check_leakage(texts, scored, allow=source.allow | ({LEAKAGE} if official else set()))
    check_overlap(shown["forget_vqa"], shown["retain_vqa"], allow=source.allow)
    return Survey(counts, [*_deviations(reader, source), *_remarks(reader, source, leaked, reused)])


def _deviations(reader: Any, source: Source) -> list[str]:
    return list(reader.report(source).deviations) if hasattr(reader, "report") else []


def _remarks(reader: Benchmark, source: Source, leaked: int, reused: int) -> list[str]:
    found = [f"{column}: {note}" for column, note in notes_of(reader, source).items()]
    if leaked:
        found.append(f"{leaked} text samples that saliency is measured on are scored, too")
    if reused:
        found.append(f"{reused} scored items show a picture that is trained on, as the benchmark has it")
    return found


def _unpictured(sample: Sample) -> Sample:
    """The sample without its picture, whose digest it still knows."""
    light = dataclasses.replace(sample, image_bytes=None)
    light.__dict__["image_sha256"] = sample.image_sha256
    return light
