"""How much memory plans say that a command takes, and how much it takes.

    python benchmarks/plan_memory.py [--models llava-100M,qwen2_vl-100M] [--cases saliency,apply,eval,train]
                                     [--out build/plan_memory] [--json]

Cases are those of `plan_time.py`. Each run is a process of its own, once as it is and once with
`MALLOC_MMAP_THRESHOLD_=65536`, by which glibc gives large blocks back to the system as soon as they are freed. What
is seen is the largest resident memory beyond what the process began with, of files the weights alone and no library;
on a GPU the memory of the GPU. Ratios are seen / planned. Exit code 1 if a ratio, large
blocks given back, is off by more than 1.2 either way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import measure
import plan_time

from mmsurgery.api import open_workspace

SCRIPT = Path(__file__)
OUT = SCRIPT.parents[1] / "build" / "plan_memory"
MODELS = ("llava-100M", "qwen2_vl-100M")
VERBS = ("saliency", "apply", "eval", "train")
LIMIT = 1.2
"""Largest factor between what a plan says and what is seen."""
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
HEAD = """| model | run | planned, MB | seen, MB | seen / planned | with glibc's defaults | |
|---|---|---:|---:|---:|---:|---|"""


def run(root: str, case: str) -> Callable[[], None]:
    """A case of a workspace, ready to be run."""
    found = next(each for each in plan_time.cases(open_workspace(Path(root))) if each.name == case)

    def whole() -> None:
        found.run()  # what a run returns is not for the parent process

    return whole


def figure(model: str, root: Path, case: plan_time.Case) -> dict[str, Any]:
    """Bytes planned and seen, and ratios."""
    planned = plan_time.forked(lambda: case.plan().memory_total)
    seen = []
    for environment in (GIVEN_BACK, {}):
        with mock.patch.dict(os.environ, environment):
            seen.append(measure.peak(SCRIPT, "run", mapped=".safetensors", root=str(root), case=case.name).bytes)
    found = {"model": model, "case": case.name, "planned": planned, "seen": seen[0], "by_default": seen[1]}
    return {**found, "ratio": seen[0] / planned}


def line(found: Mapping[str, Any]) -> str:
    sizes = f"{found['planned'] / 1e6:,.0f} | {found['seen'] / 1e6:,.0f}"
    ratios = f"**{found['ratio']:.2f}** | {found['by_default'] / found['planned']:.2f}"
    verdict = "" if plan_time.held(found, LIMIT) else "off"
    return f"| {found['model']} | {found['case']} | {sizes} | {ratios} | {verdict} |"


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        measure.child({sys.argv[2]: run}, sys.argv[2])
        return 0
    given, found = plan_time.options(str(__doc__), OUT, MODELS, VERBS).parse_args(), []
    print(HEAD, flush=True)
    for model, root, case in plan_time.chosen(given):
        found.append(figure(model, root, case))
        print(line(found[-1]), flush=True)
    return plan_time.conclude(given, "plan_memory.json", found, LIMIT)


if __name__ == "__main__":
    sys.exit(main())
