"""What a step of each unlearning method costs, beside one of GA_Diff with the paper's four samples of each set.

    OMP_NUM_THREADS=1 python benchmarks/method_cost.py WORKSPACE [--mask default] [--rounds 5]

CPU seconds of a step: those of LONG steps less those of SHORT, methods in turn in one process; and of asking the
vanilla model what it says of anchors, text and forget samples, once for all runs. WORKSPACE has a vanilla model and a
mask, as a level of `experiment beyond` has; it is left as it is.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from measure import in_turn

import mmsurgery
from mmsurgery.api import Workspace
from mmsurgery.backbones.loading import load
from mmsurgery.methods.registry import method as find_method
from mmsurgery.settings import SETTINGS_FILE
from mmsurgery.unlearn.beside import beside
from mmsurgery.unlearn.request import Request, Run, gather
from mmsurgery.unlearn.train_run import unlearned_in_memory
from mmsurgery.workspace import SILENT

SHORT, LONG = 2, 14
NONE: Mapping[str, Any] = dict.fromkeys(
    ("mask", "learning_rate", "batch_size", "retain_batch", "epochs", "seed", "precision", "scope", "lora", "name")
)
METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ga_diff": ("GA_Diff", {}),
    "mmunlearner": ("MMUnlearner", {}),
    "ga_diff, more samples": ("GA_Diff, 12 and 40 samples", {"batch_size": 12, "retain_batch": 40}),
    **{name: (find_method(name).title, {}) for name in ("anchored_ascent", "stranger_distillation")},
    "robust_distillation": (find_method("robust_distillation").title, {}),
}


def _run(space: Workspace, name: str, mask: str, steps: int) -> Run:
    method = name.partition(",")[0]
    asked = {**NONE, **METHODS[name][1], **({"mask": mask} if method == "mmunlearner" else {})}
    request = Request.of(
        space, method, forget_weight=1.0, settings={}, protocol="equations", start="vanilla", reference="vanilla",
        eval_every=0, steps=steps, **asked,
    )  # fmt: skip
    return gather(space, request)


def measured(space: Workspace, mask: str, rounds: int) -> Iterator[str]:
    """The table in Markdown."""
    runs = {(name, steps): _run(space, name, mask, steps) for name in METHODS for steps in (SHORT, LONG)}
    vanilla, asked = load(space.model_dir("vanilla")), dict[str, float]()
    for name in METHODS:
        shutil.rmtree(space.path("references"), ignore_errors=True)
        begun = time.process_time()
        beside(runs[name, LONG], lambda: vanilla, SILENT)
        asked[name] = time.process_time() - begun
    sides = {f"{n} {steps}": functools.partial(unlearned_in_memory, run, SILENT) for (n, steps), run in runs.items()}
    times = in_turn(sides, rounds)
    per = {
        name: [
            (long - short) / (LONG - SHORT)
            for short, long in zip(times[f"{name} {SHORT}"].cpu, times[f"{name} {LONG}"].cpu, strict=True)
        ]
        for name in METHODS
    }
    yield "| method | samples a step: forget, retain, others | CPU ms a step | beside GA_Diff | vanilla asked, CPU s |"
    yield "|---|---|---:|---:|---:|"
    for name, (words, _) in METHODS.items():
        request = runs[name, LONG].request
        others = sum(size for kind, size in request.method.beside().items())
        seconds = statistics.median(per[name])
        ratio = statistics.median(mine / base for mine, base in zip(per[name], per["ga_diff"], strict=True))
        said = f"{asked[name]:.1f}" if request.asks_vanilla else "-"
        sizes = f"{request.recipe.batch_size}, {request.retain_size}, {others}"
        yield f"| {words} | {sizes} | {1000 * seconds:.0f} | {ratio:.2f} | {said} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--mask", default="default", help="of MMUnlearner")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder) / "workspace"
        for part in ("data", "models/vanilla", "masks"):
            shutil.copytree(chosen.workspace / part, there / part)
        shutil.copy(chosen.workspace / SETTINGS_FILE, there)
        space = mmsurgery.open_workspace(there)
        with space.lock():
            sys.stdout.writelines(f"{line}\n" for line in measured(space, chosen.mask, chosen.rounds))


if __name__ == "__main__":
    main()
