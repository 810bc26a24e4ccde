"""The embedded benchmark `portraits`: MLLMU-Bench's files and reader, with a held-out phrasing for text saliency."""

from __future__ import annotations

from pathlib import Path

from mmsurgery.artifacts.files import read_json
from mmsurgery.data.anchors import FOLDER as ANCHORS
from mmsurgery.data.benchmark import Source
from mmsurgery.data.held_out import HELD_OUT
from mmsurgery.data.mllmu import PERCEPTION, TEXT_PAIRS, MLLMUBench
from mmsurgery.data.samples import Item, Sample
from mmsurgery.errors import InputRefused, Mismatch
from mmsurgery.provenance import check_seal

RECORD = "extra/portraits.json"
"""Which world and draw the files are of; written with them."""
SETTINGS = ("world", "draw")
"""What the files depend on; every forget ratio is among them."""


def is_whole(folder: Path) -> bool:
    """Whether everything is there that is drawn today: earlier versions drew less, the rest to the same bytes."""
    return all((folder / each).is_dir() for each in (HELD_OUT, ANCHORS))


class Portraits(MLLMUBench):
    """Reads what `mmsurgery.portraits.files.write_data` wrote."""

    name = "portraits"
    published = False

    def samples(self, source: Source, part: str) -> list[Sample]:
        check_drawn_for(source)
        return super().samples(source, part)

    def items(self, source: Source, column: str, task: str = "classification") -> list[Item]:
        check_drawn_for(source)
        return super().items(source, column, task)


def check_drawn_for(source: Source) -> None:
    """Check that the files are those of the world and draw that the source's options name, if they do.

    Raises:
        InputRefused: if they are no portraits data.
        Mismatch: if they are of another world or draw.
    """
    for name in (TEXT_PAIRS, PERCEPTION, RECORD):
        if not (source.folder / name).exists():
            raise InputRefused(f"{source.folder} is no portraits data: {name} is missing", "mmsurgery init")
    record = check_seal(read_json(source.folder / RECORD), str(source.folder / RECORD), kind="portraits")
    for key in SETTINGS:
        there, here = record.get(key), source.options.get(key, record.get(key))
        if there != here:
            raise Mismatch(
                f"{source.folder} was drawn for {key} {there}, the settings say benchmark.{key} = {here}",
                f"mmsurgery init, which draws it anew, or set benchmark.{key} = {there}",
            )


benchmark = Portraits()
