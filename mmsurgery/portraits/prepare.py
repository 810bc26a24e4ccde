"""Making a portraits workspace complete: the world's files, the base and the vanilla model.

Weights of the default models lie in the package, beside the digest their training gives; a model whose
recipe is the shipped one is unpacked in a second, any other is trained on the spot (`train --force`
trains the shipped ones too).
"""

from __future__ import annotations

from mmsurgery.data.benchmark import source_of
from mmsurgery.data.portraits import RECORD, check_drawn_for, is_whole
from mmsurgery.errors import Mismatch
from mmsurgery.portraits.files import write_data
from mmsurgery.portraits.identity import check_made_for
from mmsurgery.portraits.training import Trained, train, train_base
from mmsurgery.settings import ModelSettings
from mmsurgery.workspace import SILENT, Progress, Workspace


def prepare(workspace: Workspace, *, progress: Progress = SILENT) -> None:
    """Write the data and make base and vanilla model, as far as they are missing; resumable.

    Data inside the workspace that was drawn for other settings is drawn anew.

    Raises:
        Mismatch: if something else lies where the data belongs, or the models were made for other settings.
        MachineFault: if the workspace is in use or cannot be written.
    """
    settings = workspace.settings
    folder = workspace.data_dir
    with workspace.lock():
        if folder.exists() and not (folder / RECORD).exists():
            raise Mismatch(f"{folder} exists and is no portraits data", "choose another folder")
        if stale := folder.exists() and _stale(workspace):
            progress.note(f"{stale}: drawing it anew")
        if stale or not folder.exists():
            progress.note("drawing the portraits")
            write_data(folder, settings.benchmark.world, settings.benchmark.draw, replace=bool(stale))
    for model in ("base", "vanilla"):
        check_made_for(workspace, model)
    if settings.models.vanilla != ModelSettings.vanilla:
        workspace.existing_model("vanilla")
    elif not (workspace.model_dir("vanilla") / "config.json").exists():
        prepare_model(workspace, "vanilla", progress=progress)


def _stale(workspace: Workspace) -> str | None:
    """Why the data inside the workspace is not that of its settings, or None.

    Raises:
        Mismatch: if it is not, and lies elsewhere.
    """
    try:
        check_drawn_for(source_of(workspace))
    except Mismatch as error:
        if workspace.data_dir.parent != workspace.root:
            raise
        return error.what
    ours = workspace.data_dir.parent == workspace.root
    return None if is_whole(workspace.data_dir) or not ours else "drawn by an earlier version, which drew less"


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
    elif force:
        try:
            check_made_for(workspace, "base")
        except Mismatch as error:
            progress.note(f"{error.what}: training it anew")
            train_base(workspace, force=True, progress=progress)
    return train(workspace, which, force=force, progress=progress)
