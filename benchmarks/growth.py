"""How time and memory of every stage grow with the model and with the data.

    python benchmarks/growth.py [saliency] [masks] [training] [diff] [evaluation] [--quick] [--families llava,qwen2_vl]
                                [--out build/bench] [--threads N]

Each point is measured in a process of its own and added to `OUT/growth.jsonl` as it ends; points that are there are
not measured again, so that a stopped run goes on. Models from 1M to 1B see a few short samples, models of 1M and 30M
100 to 10,000 samples (with pictures). A point that would not fit into memory is left out, and says so. Ends with the
exponents of a power law through the points of each curve: 1 is linear, 0 does not grow.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import curves
import measure
import models
import torch

STAGES = ("saliency", "masks", "training", "diff", "evaluation")
SIZES = ("1M", "3M", "10M", "30M", "100M", "400M", "1B")
SHORT = 100
"""Samples that models of all sizes see, short ones."""
COUNTS = {"1M": (100, 300, 1000, 3000, 10_000), "30M": (100, 300, 1000, 3000, 10_000)}
"""Samples of one run, by size of the model; in `evaluation` questions, three about a picture."""
QUICK_SIZES, QUICK_COUNTS = ("1M", "3M", "10M"), {"1M": (32, 100, 320)}
BATCH = 4
NEEDED = {"saliency": 14, "masks": 5, "training": 18, "diff": 1, "evaluation": 6}
"""Bytes a weight that a run takes, at most: less free memory than that, and it is left out."""
LARGE = 5e7
"""Weights from which files of saliency and a second checkpoint are removed after use."""


@dataclass(frozen=True)
class Point:
    """One run to be measured."""

    stage: str
    along: str
    """`weights` or `samples`: what grows on its curve."""
    family: str
    size: str
    samples: int

    @property
    def name(self) -> str:
        return f"{self.stage} {self.family} {self.size}" + (f" {self.samples:,}" if self.along == "samples" else "")


def points(
    stages: Sequence[str], families: Sequence[str], sizes: Sequence[str], counts: Mapping[str, Sequence[int]]
) -> Iterator[Point]:
    """Cheap ones first within a curve."""
    for stage in stages:
        for family in families:
            yield from (Point(stage, "weights", family, size, SHORT) for size in sizes)
            if stage in ("masks", "diff"):  # no sample goes into them
                continue
            yield from (Point(stage, "samples", family, size, n) for size in counts for n in counts[size])


def measured(store: Path) -> list[dict[str, Any]]:
    """Points that are there; a last line that was cut off is not."""
    found = []
    for line in store.read_text().splitlines() if store.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def run(wanted: Sequence[Point], out: Path, show: Callable[[str], object] = print) -> list[dict[str, Any]]:
    """Measure what is missing; returns all points of the file.

    Args:
        show: gets a line about each point.
    """
    store = out / "growth.jsonl"
    there = measured(store)
    # what was cut off must not stand before the next line
    store.write_text("".join(json.dumps(each) + "\n" for each in there))
    device = str(measure.device())
    known = {(each["device"], *(each[key] for key in asdict(wanted[0]))) for each in there} if wanted else set()
    for place, point in enumerate(wanted):
        if (device, *asdict(point).values()) in known:
            continue
        found = {**asdict(point), "device": device, **one(point, out)}
        with store.open("a") as file:
            file.write(json.dumps(found) + "\n")
        there.append(found)
        shown = found.get("skipped") or f"{found['seconds']:.1f} s, {found['bytes'] / 1e6:.0f} MB"
        show(f"{place + 1} of {len(wanted)}  {point.name}: {shown}")
    return there


def one(point: Point, out: Path) -> dict[str, Any]:
    """Seconds, CPU seconds, and the peak of memory beyond what the process had when it was ready."""
    weights = _prepare(point, out)
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() and point.stage != "masks" else _free()
    if weights * NEEDED[point.stage] > free:
        return {"weights": weights, "skipped": f"{weights * NEEDED[point.stage] / 1e9:.0f} GB of memory are not free"}
    found = measure.peak(Path(__file__), point.stage, point=asdict(point), out=str(out))
    _tidy(point, weights, out)
    return {
        "weights": weights,
        "seconds": round(found.seconds, 4),
        "cpu_seconds": round(found.cpu_seconds, 4),
        "system_seconds": round(found.system_seconds, 4),
        "bytes": found.bytes,
        "machine": measure.machine(),
    }


def _tidy(point: Point, weights: int, out: Path) -> None:
    """Remove large files that no other stage needs: those of all sizes together would fill a disk."""
    if weights > LARGE and point.stage == "masks":
        shutil.rmtree(_maps(point, out))
    if weights > LARGE and point.stage == "diff":
        shutil.rmtree(out / "models" / f"{models.named(point.family, point.size)}-after")


def _maps(point: Point, out: Path) -> Path:
    return out / "saliency" / models.named(point.family, point.size)


def _free() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return 0


def _prepare(point: Point, out: Path) -> int:
    """Make the files that a point needs; returns how many weights its model has."""
    from stages import diff, masks

    from mmsurgery.artifacts.checkpoint import CheckpointFiles
    from mmsurgery.backbones.discovery import backbone

    files = CheckpointFiles(models.checkpoint(out, point.family, point.size), backbone(point.family).canonical)
    shapes = {name: files.shape(name) for name in files.names}
    if point.stage == "masks":
        masks.saliency(_maps(point, out), point.family, shapes)
    if point.stage == "diff":
        diff.pair(out, point.family, point.size)
    return sum(math.prod(shape) for shape in shapes.values())


# in the child


def _shown(point: Point) -> list[Any]:
    if point.along == "weights":
        return models.short_samples(point.size, point.samples)
    return models.samples(point.family, point.size, point.samples)


def _loaded(point: Point, out: Path) -> Any:
    from mmsurgery.backbones.loading import load

    return load(models.checkpoint(out, point.family, point.size))


def _saliency(point: Point, out: Path) -> Callable[[], Any]:
    """Exact, and saved."""
    from mmsurgery.saliency.measure import measure_saliency

    loaded, shown, folder = _loaded(point, out), _shown(point), out / "grown"

    def run() -> None:
        measure_saliency(loaded, shown, batch_size=BATCH).save(folder, replace=True)
        shutil.rmtree(folder)

    return run


def _masks(point: Point, out: Path) -> Callable[[], Any]:
    from stages.masks import PARTS

    from mmsurgery.artifacts.saliency_map import SaliencyMap
    from mmsurgery.masks.rule import ratio_mask

    root, path = _maps(point, out), out / "grown.safetensors"
    for part in PARTS:  # digests are known from here on
        SaliencyMap.load(root / part)

    def run() -> None:
        forget, *preserve = (SaliencyMap.load(root / part) for part in PARTS)
        ratio_mask(forget, preserve).save(path)
        path.unlink()

    return run


def _training(point: Point, out: Path) -> Callable[[], Any]:
    """Steps of `mmunlearner` in scope `forget`; half of the samples are to be forgotten."""
    from stages.training import CLIP, DECAY, RATE, mask_of

    from mmsurgery.methods.registry import method
    from mmsurgery.methods.step import References
    from mmsurgery.unlearn.loop import Optimisation, deterministic, train
    from mmsurgery.unlearn.masked import MaskedUpdate
    from mmsurgery.unlearn.objective import Unlearning
    from mmsurgery.unlearn.plan import StepPlan

    loaded, shown = _loaded(point, out), _shown(point)
    half = len(shown) // 2
    update = MaskedUpdate(loaded.model, mask_of(loaded))
    places = [tuple(range(start, min(start + BATCH, half))) for start in range(0, half, BATCH)]
    plan = [StepPlan(each, each) for each in places]
    terms = Unlearning(loaded, method("mmunlearner"), update, shown[:half], shown[half:], plan, References())
    optimisation = Optimisation(learning_rate=lambda step: RATE, weight_decay=DECAY, clip_norm=CLIP)

    def run() -> None:
        with deterministic(torch.get_num_threads()):
            train(update, terms, steps=len(plan), optimisation=optimisation)

    return run


def _diff(point: Point, out: Path) -> Callable[[], Any]:
    from stages.diff import compared, pair

    before, after = pair(out, point.family, point.size)
    measure.read([*before.glob("*.safetensors"), *after.glob("*.safetensors")])

    def run() -> None:
        compared(point.family, before, after)

    return run


def _evaluation(point: Point, out: Path) -> Callable[[], Any]:
    from mmsurgery.evaluate.scoring import score

    loaded = _loaded(point, out)
    tokens = {"tokens": 48} if point.along == "weights" else {}
    asked = models.items(point.family, point.size, -(-point.samples // 3), **tokens)[: point.samples]

    def run() -> None:
        score(loaded, asked)

    return run


RUNS = {"saliency": _saliency, "masks": _masks, "training": _training, "diff": _diff, "evaluation": _evaluation}


def task(point: Mapping[str, Any], out: str) -> Callable[[], Any]:
    made = Point(**point)
    return RUNS[made.stage](made, Path(out))


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        measure.child({sys.argv[2]: task}, sys.argv[2])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--quick", action="store_true", help="a few small models and counts, minutes instead of hours")
    parser.add_argument("--sizes", help=f"of the models that grow, by default {','.join(SIZES)}")
    parser.add_argument("--families", default=",".join(models.FAMILIES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "build" / "bench")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    sizes = given.sizes.split(",") if given.sizes else QUICK_SIZES if given.quick else SIZES
    families, stages = given.families.split(","), [each for each in STAGES if not given.stages or each in given.stages]
    for kind, names, known in (
        ("stage", given.stages, STAGES),
        ("size", sizes, models.SIZES),
        ("family", families, models.FAMILIES),
    ):
        if odd := [name for name in names if name not in known]:
            parser.error(f"unknown {kind} {odd[0]}: {', '.join(known)}")
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    wanted = list(points(stages, families, sizes, QUICK_COUNTS if given.quick else COUNTS))
    found = run(wanted, given.out, lambda line: print(line, flush=True))
    print(f"\n{curves.markdown(found)}", end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
