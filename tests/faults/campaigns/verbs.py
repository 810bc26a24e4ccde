"""Every verb that writes, on the smallest models; what a workspace holds; processes forked from this warm one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from campaigns import small

from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.backbones.discovery import backbone
from mmsurgery.experiments import catalogue, cells, paper, rows
from mmsurgery.provenance import sha256
from mmsurgery.recipes import Recipe

FAMILIES = ("llava", "qwen2_vl")
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "saliency": ("saliency", "--set", "forget,preserve", "--batch-size", "1", "--force"),
    "train": ("train", "gold", "--recipe", "recipe.toml", "--force"),
    "apply": ("apply", "--method", "npo", "--mask", "default", "--name", "npo", "--epochs", "2", "--force"),
    "eval": ("eval", "vanilla", "ga", "--force"),
    "experiment": ("experiment", "tried", "--seeds", "1", "--jobs", "1"),
    "mask": ("mask", "--beta", "1", "--modules", "lm", "--force"),
    "patch": ("patch", "create", "ga", "--name", "change", "--force"),
    "diff": ("diff", "vanilla", "ga", "--force"),
    "report": ("report",),
    "export": ("export", "default", "--format", "official", "--force"),
}
"""The first five are those that may take hours. Each replaces what an earlier one made."""
LONG = tuple(COMMANDS)[:5]
_RECIPE = Recipe(
    epochs=1,
    batch_size=2,
    accumulation=2,
    learning_rate=1e-3,
    schedule="linear",
    weight_decay=0.0,
    clip_norm=1.0,
    betas=(0.9, 0.999),
    adapter="full",
    modules="lm,connector",
    precision="float32",
    checkpointing=False,
    seed=0,
    source="none: made for tests",
)
_FOLDER = tempfile.TemporaryDirectory(prefix="mmsurgery-verbs-")
_CHAINS: dict[str, small.Place] = {}
"""Made once a process."""
_ROWS = tuple(paper.TABLE1.row(key) for key in ("ga_diff", "ga"))
EXPERIMENT = rows.Experiment(name="tried", title="Tried", question="?", rows=_ROWS, compared="ga_diff", answers=False)


@contextlib.contextmanager
def short() -> Iterator[None]:
    """Inside, snapshots are taken after every step, the experiment has two rows, and pictures are not drawn (which
    takes matplotlib seconds, and is written as any other file)."""
    with contextlib.ExitStack() as patches:
        for where, name, value in (
            (Snapshots, "interval", 0.0),
            (Snapshots, "share", 0.0),
            (catalogue, "EXPERIMENTS", {"tried": EXPERIMENT}),
            (cells, "POINTS", 1),
        ):
            patches.enter_context(mock.patch.object(where, name, value))
        for name in ("heatmap.render", "tradeoff.tradeoff", "tradeoff.outcomes", "tradeoff.sweeps"):
            patches.enter_context(mock.patch(f"mmsurgery.figures.{name}", return_value=b"picture"))
        yield


def chain(root: Path, family: str) -> small.Place:
    """A workspace in which each of `COMMANDS` has been run, by other settings where it has some."""
    if family not in _CHAINS:
        _CHAINS[family] = _chain(Path(_FOLDER.name, family), family)
    return _CHAINS[family].copy(root)


def _chain(root: Path, family: str) -> small.Place:
    model = root.with_name(f"{root.name}-model")
    backbone(family).micro(model, small.WORDS, seed=0, size="tiny")
    place = small.place(root, model)
    shutil.copytree(model, root / "models" / "base")
    asked = [
        {"role": role, "use": "test", "person": f"{role} {i}", "answer": "soup", "options": ["soup", "rice"]}
        | {"question": small.QUESTIONS[1], "image": f"{role}-{i}.png"}
        for role in ("forget", "retain")
        for i in range(2)
    ]
    place.write_rows([*small.rows(), *asked])
    write_recipe(root, epochs=2)
    with short():
        for command in (
            ("saliency", "--set", "forget,preserve", "--store", "bfloat16"),
            ("mask", "--beta", "4"),
            ("export", "default", "--format", "official"),
            ("mask", "--beta", "2", "--force"),
            ("apply", "--method", "ga", "--name", "ga"),
            ("apply", "--method", "npo", "--mask", "default", "--name", "npo", "--learning-rate", "2e-3"),
            ("train", "gold", "--recipe", str(root / "recipe.toml")),
            ("eval", "vanilla", "ga"),
            ("patch", "create", "ga", "--name", "change"),
            ("diff", "vanilla", "ga", "--top", "3"),
            ("apply", "--method", "ga", "--name", "ga", "--force", "--learning-rate", "2e-3"),
        ):
            ran = place.run(*command)
            assert ran.code == 0, (command, ran.err)
    write_recipe(root, epochs=1)
    return place


def write_recipe(root: Path, **changes: Any) -> None:
    recipe = dataclasses.replace(_RECIPE, **changes)
    values = {key: value for key, value in dataclasses.asdict(recipe).items() if value is not None}
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
    (root / "recipe.toml").write_text(text)


def command(place: small.Place, verb: str, *, force: bool = True) -> small.Ran:
    """Run one of `COMMANDS`.

    Args:
        force: as they are; without it what was begun by other settings is no longer given up.
    """
    words = [str(place.root / word) if word == "recipe.toml" else word for word in COMMANDS[verb]]
    with short():
        return place.run(*(word for word in words if force or word != "--force"))


def work(place: small.Place, verb: str) -> int:
    """`command`, for a process of its own: what it says is printed."""
    ran = command(place, verb)
    print(ran.err, flush=True)
    return ran.code


def state(root: Path) -> dict[str, str]:
    """What a workspace holds: path -> digest of every file that stands under a final name. Journals and metrics, which
    hold times, are left out, and a level's settings, which hold the path of the workspace."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        timed = path.name in ("journal.jsonl", "metrics.jsonl") or path.match("levels/*/mmsurgery.toml")
        if path.is_file() and not timed and not any(part.startswith(".") for part in name.parts):
            found[str(name)] = sha256(path.read_bytes())
    return found


def leftovers(root: Path) -> list[str]:
    """What no command that ended well leaves: temporary files, snapshots, columns of scores, the lock's holder."""
    hidden = [path for path in root.rglob(".*") if path.name != ".lock"]
    return sorted(str(path.relative_to(root)) for path in hidden)


def together(name: str) -> str:
    """What a file is part of, that is whole only with all its files: a model, a map, scores, a diff."""
    parts = Path(name).parts
    home = parts[:3] if parts[:2] == ("experiments", "levels") else ()
    parts = parts[len(home) :]
    if parts[0] in ("models", "saliency", "exports"):
        parts = parts[:2]
    elif parts[0] == "diffs":
        parts = ("diffs", Path(name).stem)
    elif parts[0] == "evals":
        parts = (*parts[:-1], parts[-1].partition(".")[0])
    return "/".join([*home, *parts])


def mixed(now: Mapping[str, str], before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """What is neither as it was nor as it is to be."""

    def grouped(files: Mapping[str, str]) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for name, digest in files.items():
            found.setdefault(together(name), {})[name] = digest
        return found

    mine, old, new = grouped(now), grouped(before), grouped(after)
    return sorted(
        name for name in mine.keys() | old.keys() if mine.get(name) not in (old.get(name, {}) or None, new.get(name))
    )


def fork(action: Callable[[], int], said: Path | None = None) -> int:
    """Run something in a process of its own, which has everything imported; returns its id.

    Args:
        action: returns the exit status.
        said: where the standard streams go; nowhere if None.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which do nothing meanwhile
        process = os.fork()
    if process:
        return process
    code = 70
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        handle = os.open(said or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        sys.stdout = sys.stderr = os.fdopen(handle, "w", encoding="utf-8")
        code = action()
    finally:
        os._exit(code)


def ended(process: int) -> int:
    """Wait for a process; its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def killed_within(process: int, seconds: float) -> bool:
    """Kill a process after so long; whether it was still there."""
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return ended(process) == -signal.SIGKILL
