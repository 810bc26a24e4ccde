"""`demo`: the whole chain on the embedded example, one engine call after the other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsurgery.api import Workspace, open_workspace
from mmsurgery.errors import MachineFault
from mmsurgery.start import initialise
from mmsurgery.workspace import SILENT, Progress


@dataclass(frozen=True)
class Step:
    """One command of the chain and what it gave."""

    command: str
    """As a person would type it in the demo's folder."""
    kind: str
    """Which printer shows `result`."""
    result: Any
    seconds: float


def run(root: Path, *, backbone: str | None = None, progress: Progress = SILENT) -> Iterator[Step]:
    """Run the chain in `root`, yielding after each command; finished steps are up to date when run again.

    The gold model is trained by a second one-thread process while the chain goes on.
    """
    yield _timed(f"mmsurgery init {root.name}", "init", lambda: initialise(root, backbone=backbone, progress=progress))
    workspace = open_workspace(root)
    with _gold_in_background(workspace) as gold:
        yield from _chain(workspace, progress)
        yield _timed("mmsurgery train gold", "train", lambda: _finish(gold, workspace, progress))
    from mmsurgery.evaluate import evaluate

    models = ["vanilla", "gold", "npo", "mmunlearner.default", "mmunlearner.random"]
    yield _timed(f"mmsurgery eval {' '.join(models)}", "eval", lambda: evaluate(workspace, models, progress=progress))


def _chain(workspace: Workspace, progress: Progress) -> Iterator[Step]:
    from mmsurgery.diff import diff
    from mmsurgery.look import inspect
    from mmsurgery.masks.build import build_mask
    from mmsurgery.saliency.parts import measure_parts
    from mmsurgery.unlearn.apply import apply
    from mmsurgery.unlearn.verify import verify

    modules = "lm,connector"
    yield _timed(
        "mmsurgery saliency --set forget", "saliency", lambda: measure_parts(workspace, "forget", progress=progress)
    )
    yield _timed(
        f"mmsurgery mask --beta 1 --modules {modules}",
        "mask",
        lambda: build_mask(workspace, beta=1.0, modules=modules, progress=progress),
    )
    yield _timed("mmsurgery inspect default", "inspect", lambda: inspect(lambda: workspace, "default"))
    yield _timed(
        f"mmsurgery mask --control random --modules {modules} --name random",
        "mask",
        lambda: build_mask(workspace, name="random", control="random", modules=modules, progress=progress),
    )
    yield _timed("mmsurgery apply --method npo", "apply", lambda: apply(workspace, "npo", progress=progress))
    for mask in ("random", "default"):
        yield _timed(
            f"mmsurgery apply --method mmunlearner --mask {mask} --scope all",
            "apply",
            lambda mask=mask: apply(workspace, "mmunlearner", mask=mask, scope="all", progress=progress),
        )
    yield _timed("mmsurgery verify mmunlearner.default", "verify", lambda: verify(workspace, "mmunlearner.default"))
    yield _timed(
        "mmsurgery diff vanilla mmunlearner.default",
        "diff",
        lambda: diff(workspace, "vanilla", "mmunlearner.default", progress=progress),
    )


def _timed(command: str, kind: str, call: Any) -> Step:
    begin = time.monotonic()
    result = call()
    return Step(command, kind, result, time.monotonic() - begin)


@contextmanager
def _gold_in_background(workspace: Workspace) -> Iterator[subprocess.Popen[bytes]]:
    code = "import sys; from mmsurgery.demo import train_gold; train_gold(sys.argv[1])"
    child = subprocess.Popen(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-P", "-c", code, str(workspace.root)],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()


def train_gold(root: str) -> None:
    """What the background process runs: train the gold model beside the chain."""
    from mmsurgery.portraits.prepare import prepare_model

    prepare_model(open_workspace(root), "gold", lock=False)


def _finish(gold: subprocess.Popen[bytes], workspace: Workspace, progress: Progress) -> Any:
    from mmsurgery.training import train

    progress.note("waiting for the gold model, which a second process trains")
    _, errors = gold.communicate()
    if gold.returncode:
        lines = errors.decode(errors="replace").strip().splitlines() or ["no message"]
        raise MachineFault(f"training the gold model failed: {lines[-1]}", "mmsurgery train gold")
    return train(workspace, "gold", progress=progress)
