"""The embedded benchmark `portraits`: MLLMU-Bench's files and reader, with a held-out phrasing for text saliency."""

from __future__ import annotations

from mmsurgery.data.benchmark import Source
from mmsurgery.data.mllmu import PERCEPTION, TEXT_PAIRS, MLLMUBench
from mmsurgery.data.samples import Sample
from mmsurgery.errors import InputRefused


class Portraits(MLLMUBench):
    """Reads what `mmsurgery.portraits.files.write_data` wrote."""

    name = "portraits"

    def samples(self, source: Source, part: str) -> list[Sample]:
        for name in (TEXT_PAIRS, PERCEPTION):
            if not (source.folder / name).exists():
                raise InputRefused(f"{source.folder} is no portraits data: {name} is missing", "mmsurgery init")
        return super().samples(source, part)


benchmark = Portraits()
