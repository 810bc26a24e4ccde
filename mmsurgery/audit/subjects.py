"""The models that a probe is tried on: the one to be judged, and those that prove the probe itself.

vanilla knows everything and must fail, gold never saw the forgotten pictures and must pass, destroyed is vanilla with
the entries of every weight shuffled: it answers nothing, and must be seen to have collapsed instead of passing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmsurgery.artifacts.checkpoint import CheckpointFiles, companions_sha256, model_config
from mmsurgery.backbones.discovery import backbone
from mmsurgery.errors import MissingArtifact
from mmsurgery.workspace import Workspace

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded

DESTROYED = "destroyed"
TRIO = ("vanilla", "gold", DESTROYED)


@dataclass(frozen=True)
class Subject:
    """One model, which each probe loads for itself: some change it."""

    name: str
    folder: Path
    sha256: str
    """Of its weights; of the destroyed model those it is made from."""
    companions: str

    def load(self) -> Loaded:
        """The model in float32, every time anew."""
        import torch

        from mmsurgery.backbones.loading import load

        loaded = load(self.folder, torch.float32)
        if self.name == DESTROYED:
            _shuffle(loaded)
        return loaded


def subject(workspace: Workspace, name: str, folder: Path | None = None) -> Subject:
    """A model of the workspace, or `destroyed`; raises as `Workspace.existing_model`."""
    folder = folder or workspace.existing_model("vanilla" if name == DESTROYED else name)
    files = CheckpointFiles(folder, backbone(model_config(folder)["model_type"]).canonical)
    return Subject(name, folder, files.digest(), companions_sha256(folder))


def base(workspace: Workspace) -> Subject | None:
    """The model that was taught nobody's pictures, where the workspace has it."""
    try:
        return subject(workspace, "base")
    except MissingArtifact:
        return None


def _shuffle(loaded: Loaded) -> None:
    """Shuffle the entries of every weight, each by a seed of its name."""
    import torch

    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
            order = torch.randperm(parameter.numel(), generator=torch.Generator().manual_seed(seed))
            parameter.copy_(parameter.flatten()[order.to(parameter.device)].view_as(parameter))
