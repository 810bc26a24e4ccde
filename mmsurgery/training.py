"""`train`: the models that unlearning starts from or aims at, by the benchmark's recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmsurgery.errors import UsageError, unknown
from mmsurgery.workspace import SILENT, Progress, Workspace

TRAINABLE = {
    "vanilla": "fine-tuned on the full set: knows everyone by picture and text",
    "gold": "never saw the forget people's pictures but knows their text: what unlearning aims at",
    "reference": "fine-tuned on the retain set alone: NPO's oracle",
}


@dataclass(frozen=True)
class TrainResult:
    model: str
    path: Path
    up_to_date: bool
    model_sha256: str


def train(workspace: Workspace, which: str, *, force: bool = False, progress: Progress = SILENT) -> TrainResult:
    """Train one of `TRAINABLE` for the workspace's benchmark; resumable.

    Raises:
        UsageError: for another name, or a benchmark without a training recipe.
    """
    if which not in TRAINABLE:
        raise unknown("trainable model", which, TRAINABLE)
    if workspace.settings.benchmark.name != "portraits":
        raise UsageError(
            f"benchmark '{workspace.settings.benchmark.name}' has no training recipe yet",
            "give a trained model: mmsurgery init --vanilla PATH",
        )
    from mmsurgery.portraits.prepare import prepare_model

    return TrainResult(which, *prepare_model(workspace, which, force=force, progress=progress))
