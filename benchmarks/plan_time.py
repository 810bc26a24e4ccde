"""How long plans say that a command takes, and how long it takes.

    python benchmarks/plan_time.py [--models portraits-llava,portraits-qwen2_vl,llava-30M,qwen2_vl-30M]
                                   [--cases saliency,apply,eval,train,diff] [--rounds 3]
                                   [--out build/plan_time] [--json]

A plan and the run that it speaks of take turns, each in a process of its own that begins with the interpreter and
its libraries loaded: what is counted on both sides is what comes after. A case is the name of a verb, or of one
run of it as in the table. Ratios are plan / run, the median of the rounds' pairs with the least and greatest.
`OUT/plan_time.json` keeps all pairs. Exit code 1 if the median of a case is off by more than 1.5 either way.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import models
import numpy as np
import torch
import transformers  # noqa: F401 - loaded before the processes are forked

from mmsurgery import plans
from mmsurgery.api import open_workspace
from mmsurgery.artifacts.checkpoint import CheckpointFiles, model_config
from mmsurgery.artifacts.mask import Mask, MaskParameter, pack
from mmsurgery.backbones.discovery import backbone
from mmsurgery.diff.run import diff
from mmsurgery.evaluate.run import evaluate
from mmsurgery.names import Selector
from mmsurgery.saliency.parts import measure_parts
from mmsurgery.start import initialise
from mmsurgery.training import train
from mmsurgery.unlearn.apply import apply
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.workspace import Workspace

OUT = Path(__file__).parents[1] / "build" / "plan_time"
MODELS = ("portraits-llava", "portraits-qwen2_vl", "llava-30M", "qwen2_vl-30M")
VERBS = ("saliency", "apply", "eval", "train", "diff")
LIMIT = 1.5
"""Largest factor between what a plan says and what is seen."""
DENSITY = 0.1
"""Of the mask's modules."""
PEOPLE = {"forget": 8, "retain": 16}
"""Of the benchmark of models of random weights."""
RECIPE = """epochs = 1
batch_size = 4
learning_rate = 1e-4
rank = 8
alpha = 16.0
modules = "lm,connector"
source = "benchmarks/plan_time.py"
"""
GENTLE = {"learning_rate": 1e-6, "force": True}
"""Of models that are written again and again and need not forget."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run, and the plan of it."""

    name: str
    plan: Callable[[], plans.Plan]
    run: Callable[[], object]


def cases(workspace: Workspace) -> Iterator[Case]:
    """What is compared in a workspace; `diff` is last, since it takes what `apply` has made."""
    parts = "forget,preserve"
    for estimator in ("sample", "batch"):
        settings: dict[str, Any] = {"estimator": estimator, "force": True}
        yield Case(
            name=f"saliency {estimator}",
            plan=lambda settings=settings: plans.plan_saliency(workspace, parts, **settings),
            run=lambda settings=settings: measure_parts(workspace, parts, **settings),
        )
    runs: dict[str, tuple[str, dict[str, Any]]] = {
        "ga_diff": ("ga_diff", {}),
        "npo": ("npo", {}),
        "mmunlearner": ("mmunlearner", {"mask": "default"}),
        "mmunlearner, scope all": ("mmunlearner", {"mask": "default", "scope": "all", "name": "all"}),
        "ga_diff, LoRA": ("ga_diff", {"lora": LoRA(rank=8), "name": "low"}),
    }
    for name, (method, options) in runs.items():
        yield Case(
            name=f"apply {name}",
            plan=lambda method=method, options=options: plans.plan_apply(workspace, method, **options, **GENTLE),
            run=lambda method=method, options=options: apply(workspace, method, **options, **GENTLE),
        )
    for protocol in ("likelihood", "open"):
        asked: dict[str, Any] = {"protocol": protocol, "force": True}
        yield Case(
            name=f"eval {protocol}",
            plan=lambda asked=asked: plans.plan_eval(workspace, ["vanilla"], **asked),
            run=lambda asked=asked: evaluate(workspace, ["vanilla"], **asked),
        )
    if workspace.settings.benchmark.name != "portraits":
        made: dict[str, Any] = {"recipe": str(workspace.root / "recipe.toml"), "force": True}
        yield Case(
            name="train gold",
            plan=lambda: plans.plan_train(workspace, "gold", **made),
            run=lambda: train(workspace, "gold", **made),
        )
    yield Case(
        name="diff",
        plan=lambda: plans.plan_diff(workspace, "vanilla", "ga_diff", force=True),
        run=lambda: diff(workspace, "vanilla", "ga_diff", force=True),
    )


def prepare(root: Path, model: str) -> None:
    """Make the workspace of a model at `root/workspace`, with a mask `default` and a model `ga_diff`."""
    kind, _, size = model.rpartition("-")
    if kind == "portraits":
        initialise(root / "workspace", backbone=size)
    else:
        models.workspace(root / "data", kind, size, **PEOPLE)
        vanilla = str(models.checkpoint(root, kind, size))
        shutil.rmtree(root / "data" / "workspace")
        initialise(
            root / "workspace", benchmark="folder", data=str(root / "data" / "data"), vanilla=vanilla, base=vanilla
        )
        (root / "workspace" / "recipe.toml").write_text(RECIPE)
    workspace = open_workspace(root / "workspace")
    _mask(workspace.existing_model("vanilla")).write(workspace.mask_path("default"))
    apply(workspace, "ga_diff", epochs=1, **GENTLE)


def _mask(folder: Path) -> Mask:
    """Every tenth weight of language model and connector."""
    family = backbone(model_config(folder)["model_type"])
    files = CheckpointFiles(folder, family.canonical)
    addresses = {name: family.address(name) for name in files.names}
    inside, rng = Selector("lm,connector").select(addresses), np.random.default_rng(0)
    parameters = {
        name: MaskParameter(
            files.shape(name), addresses[name], pack(rng.random(files.shape(name)) < DENSITY * (name in inside))
        )
        for name in files.names
    }
    base = {"model_type": family.model_type, "model_sha256": files.digest()}
    return Mask(
        rule="random", beta=None, estimator=None, mixture=None, modules="lm,connector", parameters=parameters, base=base
    )


# processes


def forked(work: Callable[[], object]) -> Any:
    """What `work` returns in a process of its own that has everything loaded that this one has."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, there))
    process.start()
    there.close()
    try:
        found = here.recv()
    except EOFError:
        raise SystemExit("a run failed, see above") from None
    process.join()
    return found


def _child(work: Callable[[], object], there: Any) -> None:
    there.send(work())


def pair(case: Case) -> dict[str, float]:
    """What the plan says, what it took to make it, and what the run takes, in seconds."""

    def planned() -> tuple[float, float | None, list[str]]:
        begun = time.perf_counter()
        plan = case.plan()
        return time.perf_counter() - begun, plan.seconds, list(plan.notes)

    def run() -> float:
        begun = time.perf_counter()
        case.run()
        return time.perf_counter() - begun

    planning, said, notes = forked(planned)
    if said is None:
        raise SystemExit(f"{case.name}: {'; '.join(notes)}")
    return {"planned": said, "planning": planning, "seen": forked(run)}


# figures


def figure(model: str, name: str, pairs: list[dict[str, float]]) -> dict[str, Any]:
    ratios = [each["planned"] / each["seen"] for each in pairs]
    return {
        "model": model,
        "case": name,
        **{kind: statistics.median(each[kind] for each in pairs) for kind in ("planned", "planning", "seen")},
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "greatest": max(ratios),
        "pairs": pairs,
    }


HEAD = """| model | run | planned, s | seen, s | ratio | least, greatest | to plan, s | |
|---|---|---:|---:|---:|---:|---:|---|"""


def line(found: Mapping[str, Any]) -> str:
    ratio = f"**{found['ratio']:.2f}** | {found['least']:.2f}, {found['greatest']:.2f}"
    seconds = f"{found['planned']:.1f} | {found['seen']:.1f}"
    verdict = "" if held(found) else "off"
    return f"| {found['model']} | {found['case']} | {seconds} | {ratio} | {found['planning']:.1f} | {verdict} |"


# of all comparisons of plans with runs


def options(document: str, out: Path, models: tuple[str, ...], verbs: tuple[str, ...]) -> argparse.ArgumentParser:
    """What a comparison is asked for, and otherwise takes.

    Args:
        document: what the command says of itself.
    """
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(models))
    parser.add_argument("--cases", default=",".join(verbs))
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--json", action="store_true", help="print what was measured as JSON")
    return parser


def chosen(given: argparse.Namespace) -> Iterator[tuple[str, Path, Case]]:
    """Model, workspace and case of all that is asked for, ready to be run."""
    wanted = given.cases.split(",")
    with tempfile.TemporaryDirectory() as folder:
        for model in given.models.split(","):
            root = Path(folder, model)
            forked(lambda root=root, model=model: prepare(root, model))
            time.sleep(2)  # files have an identity from then on
            for case in cases(open_workspace(root / "workspace")):
                if case.name in wanted or case.name.split()[0] in wanted:
                    yield model, root / "workspace", case


def conclude(given: argparse.Namespace, name: str, found: list[dict[str, Any]], limit: float) -> int:
    """Write the file `name` of all figures, say which are off; 1 if one is, the exit code."""
    given.out.mkdir(parents=True, exist_ok=True)
    document = {"cpu": os.cpu_count(), "torch": torch.__version__, "figures": found}
    (given.out / name).write_text(json.dumps(document, indent=1))
    if given.json:
        print(json.dumps(document, indent=1))
    missed = [f"{each['model']}: {each['case']}" for each in found if not held(each, limit)]
    print(f"\n{len(missed)} of {len(found)} are off by more than {limit}: {', '.join(missed) or '-'}")
    return int(bool(missed))


def held(found: Mapping[str, Any], limit: float = LIMIT) -> bool:
    return 1 / limit <= found["ratio"] <= limit


def main() -> int:
    parser = options(str(__doc__), OUT, MODELS, VERBS)
    parser.add_argument("--rounds", type=int, default=3)
    given, found = parser.parse_args(), []
    print(HEAD, flush=True)
    for model, _, case in chosen(given):
        found.append(figure(model, case.name, [pair(case) for _ in range(given.rounds)]))
        print(line(found[-1]), flush=True)
    return conclude(given, "plan_time.json", found, LIMIT)


if __name__ == "__main__":
    sys.exit(main())
