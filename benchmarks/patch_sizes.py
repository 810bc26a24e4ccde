"""Sizes of patches and SHiRA adapters against the share of weights that change, and round trips.

    python benchmarks/patch_sizes.py [--layers 2] > patch_sizes.json

Linear layers in LLaVA-1.5-7B's proportions at a quarter of its width (12.8 M weights a layer), Gaussian of scale
0.02. A share of the weights, drawn anywhere, moves as a few AdamW steps of 1e-5 move them; in bfloat16, where
most of that rounds away, each at least by a unit in the last place. The table goes to stderr, JSON to stdout.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mmsurgery.artifacts.tensors import to_float32, write_safetensors_stream
from mmsurgery.errors import MmsurgeryError
from mmsurgery.exchange.shira import export_shira
from mmsurgery.patches import apply, create, revert
from mmsurgery.settings import Settings
from mmsurgery.workspace import Workspace

WIDTH, INNER = 1024, 2752
SHAPES = {
    **{f"self_attn.{part}_proj": (WIDTH, WIDTH) for part in "qkvo"},
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}
DENSITIES = (0.001, 0.01, 0.1, 0.5, 1.0)
Array = np.ndarray[Any, Any]


def bfloat16(values: Array) -> Array:
    pattern = values.view(np.uint32)
    return ((pattern + 0x7FFF + ((pattern >> 16) & 1)) >> 16).astype(np.uint16)


def moved(values: Array, dtype: str, density: float, rng: np.random.Generator) -> Array:
    """Values in a dtype, a share of them changed."""
    chosen = rng.random(values.shape, np.float32) < density
    new = np.where(chosen, values + 3e-5 * rng.standard_normal(values.shape, np.float32), values)
    if dtype == "F32":
        return new
    old, new = bfloat16(values), bfloat16(new)
    return np.where(chosen & (new == old), old + np.uint16(1), new)


def models(root: Path, layers: int, dtype: str, density: float) -> Workspace:
    names = sorted(f"model.language_model.layers.{i}.{name}.weight" for i in range(layers) for name in SHAPES)
    layout = {name: (dtype, SHAPES[name.removesuffix(".weight").split(".", 4)[4]]) for name in names}
    for model, share in (("vanilla", 0.0), ("after", density)):
        folder = root / "models" / model
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"model_type": "llava"}')

        def arrays(share: float = share) -> Any:
            for seed, name in enumerate(names):
                rng = np.random.default_rng(seed)
                values = np.float32(0.02) * rng.standard_normal(layout[name][1], np.float32)
                if dtype == "BF16":
                    values = to_float32(bfloat16(values), dtype)
                yield name, moved(values, dtype, share, rng)

        write_safetensors_stream(folder / "model.safetensors", layout, arrays(), {"format": "pt"})
    return Workspace(root, Settings())


def measure(layers: int, dtype: str, density: float) -> dict[str, Any]:
    root = Path(tempfile.mkdtemp())
    try:
        ws = models(root, layers, dtype, density)
        start = time.perf_counter()
        made = create(ws, "after", before="vanilla")
        seconds = {"create": time.perf_counter() - start}
        exact = 0
        for turn, wanted in ((apply, "after"), (revert, "vanilla")):
            start = time.perf_counter()
            done = turn(ws, "after", name=f"made-{wanted}")
            seconds[turn.__name__] = time.perf_counter() - start
            weights = [(f / "model.safetensors").read_bytes() for f in (done.path, ws.model_dir(wanted))]
            exact += weights[0] == weights[1]
        row = {
            "dtype": dtype,
            "density": made.density,
            "changed": made.changed,
            "checkpoint_bytes": made.checkpoint_bytes,
            "patch_bytes": made.bytes,
            "patch_share": made.share,
            "patch_bytes_per_changed": made.bytes / made.changed,
            "round_trips_exact": f"{exact} of 2",
            "seconds": seconds,
        }
        try:
            shira = export_shira(ws, "after", root / "adapter")
        except MmsurgeryError as error:
            return {**row, "shira": None, "shira_refused": str(error)[:120]}
        return {
            **row,
            "shira": {
                "bytes": shira.bytes,
                "share": shira.bytes / made.checkpoint_bytes,
                "bytes_per_changed": shira.bytes / made.changed,
                "rank": shira.rank,
                "exact": shira.exact,
            },
        }
    finally:
        shutil.rmtree(root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    layers = parser.parse_args().layers
    rows = []
    print("| dtype | changed % | patch % of model | bytes/changed | SHiRA % of model | bytes/changed | merged exactly "
          "| create s | apply s |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|", file=sys.stderr)  # fmt: skip
    for dtype in ("F32", "BF16"):
        for density in DENSITIES:
            rows.append(row := measure(layers, dtype, density))
            shira = row["shira"]
            adapter = "refused: too dense | - | -"
            if shira:
                exact = f"{shira['exact']:,} of {row['changed']:,}"
                adapter = f"{shira['share']:.2%} | {shira['bytes_per_changed']:.2f} | {exact}"
            print(
                f"| {dtype} | {row['density']:.2%} | {row['patch_share']:.2%} | {row['patch_bytes_per_changed']:.2f} "
                f"| {adapter} | {row['seconds']['create']:.1f} | {row['seconds']['apply']:.1f} |",
                file=sys.stderr,
            )
    exact = sum(int(row["round_trips_exact"][0]) for row in rows)
    print(f"round trips bit for bit: {exact} of {2 * len(rows)}", file=sys.stderr)
    print(json.dumps({"layers": layers, "rows": rows, "round_trips_exact": exact}, indent=2))


if __name__ == "__main__":
    main()
