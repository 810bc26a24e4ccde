"""The library's front door: a workspace whose samples, items and models can be asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmsurgery import workspace as folders
from mmsurgery.data.anchors import part_samples
from mmsurgery.data.benchmark import Benchmark, Source, benchmark, source_of
from mmsurgery.data.samples import Item, Sample

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded


class Workspace(folders.Workspace):
    """A workspace folder with its data and models (see `mmsurgery.workspace` for what lies where)."""

    @property
    def benchmark(self) -> Benchmark:
        """The benchmark named in the settings."""
        return benchmark(self.settings.benchmark.name)

    @property
    def source(self) -> Source:
        """Where the benchmark's files are, and which people are to be forgotten."""
        return source_of(self)

    def samples(self, part: str) -> list[Sample]:
        """The training samples of a data part, in order.

        Raises:
            UsageError: if the benchmark has no such part.
            InputRefused, UnusableData: naming file, column and row, if the data is broken.
        """
        return part_samples(self.benchmark, self.source, part)

    def items(self, column: str) -> list[Item]:
        """The scored items of a column, in order; raises as `samples`."""
        return self.benchmark.items(self.source, column)

    def existing_model(self, name: str) -> Path:
        """The checkpoint folder of a model that exists and was made for the settings as they are.

        Raises:
            MissingArtifact: naming the nearest model, or the command that makes it.
            Mismatch: if it was trained here for other settings.
        """
        from mmsurgery.portraits.identity import check_made_for

        folder = super().existing_model(name)
        check_made_for(self, name)
        return folder

    def load_model(self, name: str = "vanilla") -> Loaded:
        """The model, processor and backbone of a model of the workspace.

        Raises:
            MissingArtifact: if there is no such model.
            Mismatch: if it was trained here for other settings.
            InputRefused: if its files are damaged or incomplete.
        """
        from mmsurgery.backbones.loading import load

        return load(self.existing_model(name))


def open_workspace(path: Path | str = ".") -> Workspace:
    """The workspace that `path` stands in: this folder or the nearest parent with a `mmsurgery.toml`.

    Raises:
        NoWorkspace: if there is none.
        UsageError: if its settings are wrong.
    """
    found = folders.find_workspace(Path(path))
    return Workspace(found.root, found.settings)
