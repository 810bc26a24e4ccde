"""Making a portraits workspace complete: the world's files, the base and the vanilla model.

Weights of the default models lie in the package, beside the digest their training gives; a model whose
recipe is the shipped one is unpacked in a second, any other is trained on the spot (`train --force`
trains the shipped ones too).
"""

from __future__ import annotations

from mmsurgery.data.mllmu import TEXT_PAIRS
from mmsurgery.errors import Mismatch
from mmsurgery.portraits.files import write_data
from mmsurgery.portraits.training import Trained, train, train_base
from mmsurgery.workspace import SILENT, Progress, Workspace


def prepare(workspace: Workspace, *, progress: Progress = SILENT) -> None:
    """Write the data and make base and vanilla model, as far as they are missing; resumable.

    Raises:
        Mismatch: if something else lies where the data belongs.
        MachineFault: if the workspace is in use or cannot be written.
    """
    settings = workspace.settings
    with workspace.lock():
        if not workspace.data_dir.exists():
            progress.note("drawing the portraits")
            write_data(workspace.data_dir, settings.benchmark.world, settings.benchmark.draw)
        elif not (workspace.data_dir / TEXT_PAIRS).exists():
            raise Mismatch(f"{workspace.data_dir} exists and is no portraits data", "choose another folder")
    if not (workspace.model_dir("vanilla") / "config.json").exists():
        prepare_model(workspace, "vanilla", progress=progress)


def prepare_model(
    workspace: Workspace, which: str, *, force: bool = False, lock: bool = True, progress: Progress = SILENT
) -> Trained:
    """Train `vanilla`, `gold` or `reference`, its base before it if that is missing.

    Args:
        lock: hold the workspace's lock; without it the caller sees to it that nobody else trains the
            same model.

    Raises:
        Mismatch: if a model of that name was trained in another way and `force` is not given.
    """
    if lock:
        with workspace.lock():
            return prepare_model(workspace, which, force=force, lock=False, progress=progress)
    if not (workspace.model_dir("base") / "config.json").exists():
        train_base(workspace, progress=progress)
    return train(workspace, which, force=force, progress=progress)
