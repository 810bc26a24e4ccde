"""Data part `anchor_vqa`: pictures of nobody in the benchmark, without facts, asked the benchmark's own questions.

A folder of PNG, JPEG or WebP files, of any names. Each is asked some of the questions about the forgotten people's
pictures, with the answers that are given there: they say at which words the model's distributions are looked at, not
what is right.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mmsurgery.artifacts.files import read_bytes
from mmsurgery.data.benchmark import TASKS, Benchmark, Source
from mmsurgery.data.remembered import recall, remembered
from mmsurgery.data.samples import Item, Sample, decode_image
from mmsurgery.errors import InputRefused, MissingArtifact, UnusableData

ANCHORS = "anchor_vqa"
FOLDER = "extra/anchors"
"""Where they lie in a benchmark's folder, if there."""
QUESTIONS = 7
"""That each picture is asked."""
LEAST = 8
"""Fewest pictures: a handful of strangers are no crowd."""
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
_LARGEST = 64 << 20


def parts_with_anchors(reader: Benchmark, source: Source) -> tuple[str, ...]:
    """The data parts of a benchmark, and its own anchors where it has some."""
    return (*reader.parts(source), *((ANCHORS,) if (source.folder / FOLDER).is_dir() else ()))


def part_samples(reader: Benchmark, source: Source, part: str) -> list[Sample]:
    """The samples of one of `parts_with_anchors`; raises as `Benchmark.samples` and `anchor_samples`."""
    return anchor_samples(reader, source) if part == ANCHORS else reader.samples(source, part)


def anchor_samples(reader: Benchmark, source: Source, folder: Path | None = None) -> list[Sample]:
    """The samples of the part, in order of file names.

    Args:
        folder: of the pictures; the benchmark's own where None.

    Raises:
        MissingArtifact: if there is no folder.
        InputRefused: for a picture that cannot be read, or whose name is not UTF-8.
        UnusableData: for fewer than 8 different pictures, or one that is to be forgotten, retained or scored, too.
    """
    folder = folder or source.folder / FOLDER
    if not folder.is_dir():
        raise no_anchors(folder, "pass --anchors FOLDER, of ")
    pictures, known = _pictures(folder), _known(reader, source)
    for each in pictures:
        if (what := known.get(each.pixels)) is not None:
            raise UnusableData(
                f"anchor picture {folder / each.name} is a picture of {what}",
                "take it out: anchors are of nobody there",
            )
    forget = reader.samples(source, "forget_vqa")
    asked = sorted({(sample.question, sample.answer) for sample in forget if sample.image_bytes is not None})
    return [
        Sample(
            f"anchor/{each.name}/{number}",
            f"anchor/{each.name}",
            question,
            answer=answer,
            part=ANCHORS,
            image_bytes=each.image_bytes,
        )
        for each in pictures
        for number, (question, answer) in enumerate(_chosen(each.name, asked))
    ]


def no_anchors(folder: Path, how: str = "put there ") -> MissingArtifact:
    """What is raised where there are none."""
    step = f"{how}pictures of people whom the benchmark does not know"
    return MissingArtifact(f"there are no anchor pictures in {folder}: no such folder", step)


def _chosen(name: str, asked: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted(asked, key=lambda pair: hashlib.sha256("\0".join((name, *pair)).encode()).digest())[:QUESTIONS]


@remembered
def _known(reader: Benchmark, source: Source) -> dict[bytes, str]:
    """Digest of the pixels -> what it is, of every picture that is trained or scored."""
    found: dict[bytes, str] = {}
    seen = set[str | None]()
    for where, each in _used(reader, source):
        if each.image_bytes is not None and each.image_sha256 not in seen:
            seen.add(each.image_sha256)
            what = f"{where} ({each.id})"
            found.setdefault(_pixels(each.image_bytes, what), what)
    return found


def _used(reader: Benchmark, source: Source) -> Iterator[tuple[str, Sample | Item]]:
    """Part or column, and what is in it."""
    for part in reader.parts(source):
        yield from ((part, each) for each in reader.samples(source, part))
    for column, task in itertools.product(reader.columns(source), TASKS):
        yield from ((column, each) for each in reader.items(source, column, task))


class _Picture(NamedTuple):
    pixels: bytes
    """Digest: the same pixels are the same picture, in whatever file. One that was scaled, or saved with losses, is
    another."""
    name: str
    image_bytes: bytes


def _pictures(folder: Path) -> list[_Picture]:
    """In order of file names; of files with the same pixels the first."""
    return recall((_pictures,), folder, lambda: _read_pictures(folder))


def _read_pictures(folder: Path) -> list[_Picture]:
    found: dict[bytes, _Picture] = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS):
        try:
            path.name.encode()
        except UnicodeEncodeError as error:
            raise InputRefused(f"{folder} holds {path.name!r}, whose name is not UTF-8", "rename it") from error
        data = read_bytes(path, _LARGEST)
        pixels = _pixels(data, str(path))
        found.setdefault(pixels, _Picture(pixels, path.name, data))
    if len(found) < LEAST:
        raise UnusableData(f"{folder} holds {len(found)} different pictures, at least {LEAST} are needed", "add some")
    return list(found.values())


def _pixels(data: bytes, where: str) -> bytes:
    image = decode_image(data, where)
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
