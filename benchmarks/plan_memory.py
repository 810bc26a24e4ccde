"""How much memory plans say that a command takes, and how much it takes.

    python benchmarks/plan_memory.py [--models llava-100M,qwen2_vl-100M] [--cases saliency,apply,eval,train]
                                     [--out build/plan_memory] [--json]

Cases are those of `plan_time.py`. Each run is a process of its own, once as it is and once with
`MALLOC_MMAP_THRESHOLD_=65536`, by which glibc gives large blocks back to the system as soon as they are freed. What
is seen is the largest resident memory, weights that lie in memory as files included, beyond what the process had when
its libraries were loaded; on a GPU the memory of the GPU. Ratios are seen / planned. Exit code 1 if a ratio, large
blocks given back, is off by more than 1.2 either way.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import plan_time
import torch

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
    import transformers.models.llava
    import transformers.models.qwen2_vl  # noqa: F401 - what the interpreter takes is not what the run takes

    workspace = open_workspace(Path(root))
    found = next(each for each in plan_time.cases(workspace) if each.name == case)

    def whole() -> None:
        found.run()

    return whole


def figure(model: str, root: Path, case: plan_time.Case) -> dict[str, Any]:
    planned = plan_time.forked(lambda: case.plan().memory_total)
    seen = {}
    for name, environment in (("given_back", GIVEN_BACK), ("as_it_is", {})):
        os.environ.update(environment)
        seen[name] = measure.peak(SCRIPT, "run", mapped=True, root=str(root), case=case.name).bytes
        for each in environment:
            del os.environ[each]
    return {"model": model, "case": case.name, "planned": planned, **seen}


def held(found: dict[str, Any]) -> bool:
    return 1 / LIMIT <= found["given_back"] / found["planned"] <= LIMIT


def line(found: dict[str, Any]) -> str:
    ratio, as_it_is = (found[each] / found["planned"] for each in ("given_back", "as_it_is"))
    sizes = f"{found['planned'] / 1e6:,.0f} | {found['given_back'] / 1e6:,.0f}"
    verdict = "" if held(found) else "off"
    return f"| {found['model']} | {found['case']} | {sizes} | **{ratio:.2f}** | {as_it_is:.2f} | {verdict} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--cases", default=",".join(VERBS))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--json", action="store_true", help="print what was measured as JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        measure.child({"run": run}, given.child)
        return 0
    wanted, found = given.cases.split(","), []
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for model in given.models.split(","):
            root = Path(folder, model)
            plan_time.forked(lambda root=root, model=model: plan_time.prepare(root, model))
            time.sleep(2)  # files have an identity from then on
            for case in plan_time.cases(open_workspace(root / "workspace")):
                if case.name in wanted or case.name.split()[0] in wanted:
                    found.append(figure(model, root / "workspace", case))
                    print(line(found[-1]), flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    document = {"torch": torch.__version__, "figures": found}
    (given.out / "plan_memory.json").write_text(json.dumps(document, indent=1))
    if given.json:
        print(json.dumps(document, indent=1))
    missed = [f"{each['model']}: {each['case']}" for each in found if not held(each)]
    print(f"\n{len(missed)} of {len(found)} are off by more than {LIMIT}: {', '.join(missed) or '-'}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
