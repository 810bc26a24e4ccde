"""What mmsurgery costs beside what it cannot be cheaper than, stage by stage, on models of random weights.

    python benchmarks/bench.py [saliency] [masks] [training] [diff] [evaluation]
                               [--sizes 1M,30M,190M,190M-wide] [--families llava,qwen2_vl] [--rounds 5] [--threads N]
                               [--tokens 56] [--out build/bench] [--json]
    python benchmarks/bench.py --markdown                 # tables of what was measured; nothing is run
    python benchmarks/bench.py --page docs/performance.md

Without a stage's name all are run. The sides of a ratio take turns in one process; a figure is the median over the
rounds with the least and greatest, by CPU time (beside it by the wall clock), on a GPU and for cold files by the wall
clock. `OUT/bench.json` keeps the last figures of every stage, model and device; `--page` puts them, and the points of
`growth.py`, into the JSON beside the page, where figures of other stages, models and devices stay, and writes the page
of all. Memory is that of child processes. Exit code 1 if a figure misses its limit.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import curves
import measure
import models
import page
import torch
from stages import Setup

from mmsurgery.settings import RecipeSettings

STAGES = ("saliency", "masks", "training", "diff", "evaluation")
SIZES = ("1M", "30M", "190M", "190M-wide")
OUT = Path(__file__).parents[1] / "build" / "bench"


def module(stage: str) -> Any:
    return importlib.import_module(f"stages.{stage}")


def run(stage: str, setup: Setup, store: Path) -> dict[str, Any]:
    """The stage's figures; written as they come, whole when it has ended."""
    begun, machine, figures = time.time(), measure.machine(), []
    taken = {
        "when": time.strftime("%Y-%m-%d", time.gmtime(begun)),
        "rounds": setup.rounds,
        "tokens": setup.tokens,
        "load": machine.pop("load"),
    }
    print(f"\n{stage}\n{page.LINE}", flush=True)
    for figure in module(stage).run(setup):
        figures.append({**figure.to_json(), **taken})
        print(page.line(figures[-1]), flush=True)
    found = {
        "stage": stage,
        "device": str(measure.device()),
        "machine": machine,
        "seconds": round(time.time() - begun, 1),
        "figures": figures,
    }
    keep(store, found)
    return found


def keep(store: Path, found: dict[str, Any]) -> None:
    """Put a stage's figures into the file, in place of those of the same stage, device and models."""
    same, models_now = (found["stage"], found["device"]), {figure["model"] for figure in found["figures"]}
    others = [each for each in recorded(store) if (each["stage"], each["device"]) != same]
    before = [each for each in recorded(store) if (each["stage"], each["device"]) == same]
    earlier = [figure for each in before for figure in each["figures"] if figure["model"] not in models_now]
    runs = sorted(
        [*others, {**found, "figures": [*earlier, *found["figures"]]}],
        key=lambda each: (each["device"], STAGES.index(each["stage"])),
    )
    partial = store.with_suffix(".partial")
    partial.write_text(json.dumps({"runs": runs}, indent=1))
    partial.replace(store)


def keep_points(store: Path, found: list[dict[str, Any]]) -> None:
    """Put points of `growth.py` into the file, in place of the same ones."""
    keys = ("device", "stage", "along", "family", "size", "samples")
    points = {tuple(each[key] for key in keys): each for each in (*page.points(store), *found)}
    if points:
        store.write_text("".join(json.dumps(each) + "\n" for each in points.values()))


def recorded(store: Path) -> list[dict[str, Any]]:
    return list(json.loads(store.read_text())["runs"]) if store.exists() else []


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        task = sys.argv[2]
        measure.child(module(task.split()[0]).TASKS, task)
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--sizes", default=",".join(SIZES), help=", ".join(models.SIZES))
    parser.add_argument("--families", default=",".join(models.FAMILIES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=models.TOKENS, help="of a sample; steps have four")
    parser.add_argument("--threads", type=int, default=RecipeSettings().threads, help="as the recipe has")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--json", action="store_true", help="print what was measured as JSON")
    parser.add_argument("--markdown", action="store_true", help="print what has been measured as Markdown")
    parser.add_argument("--page", type=Path, help="write what has been measured as a page of the documentation")
    given = parser.parse_args()
    store, growth = given.out / "bench.json", given.out / "growth.jsonl"
    if given.markdown:
        print(page.page(recorded(store), curves.markdown(page.points(growth))), end="")
        return 0
    if given.page:
        kept, grown = given.page.with_suffix(".json"), given.page.with_suffix(".growth.jsonl")
        for each in recorded(store):
            keep(kept, each)
        keep_points(grown, page.points(growth))
        given.page.write_text(page.page(recorded(kept), curves.markdown(page.points(grown))))
        return 0
    sizes, families = given.sizes.split(","), given.families.split(",")
    for kind, names, known in (
        ("stage", given.stages, STAGES), ("size", sizes, models.SIZES), ("family", families, models.FAMILIES)
    ):  # fmt: skip
        if odd := [name for name in names if name not in known]:
            parser.error(f"unknown {kind} {odd[0]}: {', '.join(known)}")
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    setup = Setup(work=given.out, sizes=sizes, families=families, rounds=given.rounds, tokens=given.tokens)
    found = [run(stage, setup, store) for stage in STAGES if not given.stages or stage in given.stages]
    if given.json:
        print(json.dumps({"runs": found}, indent=1))
    missed = [each["what"] for stage in found for each in stage["figures"] if each["verdict"] == "missed"]
    print(f"\n{len(missed)} figures miss their limit; all are in {store}")
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
