"""`train`: the models that unlearning starts from or aims at, by the benchmark's recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmsurgery.errors import UsageError, unknown
from mmsurgery.workspace import SILENT, Progress, Workspace

if TYPE_CHECKING:
    from mmsurgery.portraits.training import Trained

TRAINABLE = {
    "vanilla": "fine-tuned on the full set: knows everyone by picture and text",
    "gold": "never saw the forget people's pictures but knows their text: what unlearning aims at",
    "reference": "fine-tuned on the retain set alone: NPO's oracle",
}


def train(workspace: Workspace, which: str, *, force: bool = False, progress: Progress = SILENT) -> Trained:
    """Train one of `TRAINABLE` for the workspace's benchmark; resumable.

    Raises:
        UsageError: for another name, or a benchmark without a training recipe.
        Mismatch: if a model of that name was trained in another way and `force` is not given.
    """
    if which not in TRAINABLE:
        raise unknown("trainable model", which, TRAINABLE)
    if workspace.settings.benchmark.name != "portraits":
        raise UsageError(
            f"benchmark '{workspace.settings.benchmark.name}' has no training recipe",
            "give a trained model: mmsurgery init --vanilla PATH",
        )
    from mmsurgery.portraits.prepare import prepare_model

    return prepare_model(workspace, which, force=force, progress=progress)
