"""What a mask costs: bytes per weight, and looking into it, composing and combining against reading its file.

    python benchmarks/masks.py [--weights 1.6e9] [--repeats 5] [--json]

Synthetic masks in LLaVA-1.5-7B's proportions (a quarter of its weights by default). Each row is a ratio, its two
sides measured in turn in this process, file in the page cache; median and range over the repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mmsurgery.artifacts.mask import Mask, MaskParameter, count_ones
from mmsurgery.artifacts.tensors import read_header
from mmsurgery.masks.compose import compose
from mmsurgery.masks.inspect import describe
from mmsurgery_llava import backbone


def synthetic(weights: int, seed: int) -> Mask:
    """Independent bits in tensors named and sized like LLaVA-1.5-7B's language model, scaled to `weights`."""
    rng = np.random.default_rng(seed)
    shapes = {"model.language_model.embed_tokens.weight": (32064, 4096)}
    per_layer = {
        **{f"self_attn.{p}_proj": (4096, 4096) for p in "qkvo"},
        "mlp.gate_proj": (11008, 4096), "mlp.up_proj": (11008, 4096), "mlp.down_proj": (4096, 11008),
    }  # fmt: skip
    layer = 0
    while sum(a * b for a, b in shapes.values()) < weights:
        shapes |= {f"model.language_model.layers.{layer}.{n}.weight": shape for n, shape in per_layer.items()}
        layer += 1
    parameters = {
        name: MaskParameter(shape, backbone.address(name), np.frombuffer(rng.bytes(shape[0] * shape[1] // 8), np.uint8))
        for name, shape in shapes.items()
    }
    base = {"model_type": "llava", "model_sha256": "0" * 64}
    rest: dict[str, Any] = {"rule": "ratio", "beta": 1.0, "estimator": "sample", "mixture": "pooled", "modules": "lm"}
    return Mask(parameters=parameters, base=base, **rest)


def read(*paths: Path) -> int:
    """Read files whole, in pieces of 4 MiB."""
    total = 0
    for path in paths:
        with path.open("rb", buffering=0) as handle:
            while chunk := handle.read(4 << 20):
                total += len(chunk)
    return total


def measure(work: Callable[[], object], limit: Callable[[], object], repeats: int) -> dict[str, Any]:
    """Seconds of both sides, in turn, and their ratios."""
    found: dict[str, list[float]] = {"seconds": [], "limit_seconds": []}
    for _ in range(repeats):
        for key, side in (("seconds", work), ("limit_seconds", limit)):
            begun = time.perf_counter()
            side()
            found[key].append(time.perf_counter() - begun)
    ratios = [a / b for a, b in zip(found["seconds"], found["limit_seconds"], strict=True)]
    return {
        **{key: statistics.median(values) for key, values in found.items()},
        "ratio": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
    }


def rows(weights: int, repeats: int) -> tuple[dict[str, Any], dict[str, Any]]:
    masks = [synthetic(weights, seed) for seed in (0, 1)]
    total = masks[0].total
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{name}.safetensors") for name in "ab"]
        for mask, path in zip(masks, paths, strict=True):
            mask.save(path)
        header = read_header(paths[0])
        size = {
            "weights": total,
            "bytes": paths[0].stat().st_size,
            "bytes_per_weight": paths[0].stat().st_size / total,
            "header_bytes_per_tensor": header.bytes / len(header.tensors),
        }
        loaded = {name: Mask.load(path) for name, path in zip("ab", paths, strict=True)}
        words = [np.concatenate([p.bits for p in mask.parameters.values()]) for mask in masks]
        out = np.empty_like(words[0])

        def composed() -> Mask:
            return compose("a & ~b", {name: Mask.load(path) for name, path in zip("ab", paths, strict=True)})

        def copied() -> None:
            read(paths[1])
            data = paths[0].read_bytes()
            with Path(folder, "d.safetensors").open("wb") as handle:
                handle.write(data)
                os.fsync(handle.fileno())

        measured = {
            "inspect (read, verify, count)": measure(lambda: describe(paths[0]), lambda: read(paths[0]), repeats),
            "compose 'a & ~b' (read 2, verify, combine)": measure(composed, lambda: read(*paths), repeats),
            "compose, save (against read 2, write 1)": measure(
                lambda: composed().save(Path(folder, "c.safetensors")), copied, repeats
            ),
            "operator & with its count": measure(
                lambda: loaded["a"] & loaded["b"], lambda: np.bitwise_and(words[0], words[1], out=out), repeats
            ),
            "count": measure(
                lambda: [count_ones(p.bits) for p in loaded["a"].parameters.values()],
                lambda: np.bitwise_and(words[0], words[0], out=out),
                repeats,
            ),
        }
    for entry in measured.values():
        entry["ns_per_weight"] = entry["seconds"] / total * 1e9
        entry["seconds_per_gb_of_masks"] = entry["seconds"] / size["bytes"] * 1e9
    return size, measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=float, default=1.6e9)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    size, measured = rows(int(options.weights), options.repeats)
    machine = {"python": platform.python_version(), "numpy": np.__version__, "cpus": os.cpu_count()}
    if options.json:
        print(json.dumps({"size": size, "rows": measured, "machine": machine}, indent=2))
        return
    print(
        f"{size['weights']:,} weights: {size['bytes']:,} bytes, {size['bytes_per_weight']:.5f} per weight, "
        f"{size['header_bytes_per_tensor']:.0f} bytes of header per tensor"
    )
    print(f"{'':44}{'s':>8}{'against':>9}{'ratio':>7}{'range':>13}{'ns/weight':>11}")
    for name, entry in measured.items():
        low, high = entry["range"]
        print(
            f"{name:44}{entry['seconds']:8.3f}{entry['limit_seconds']:9.3f}{entry['ratio']:7.2f}"
            f"{f'{low:.2f}-{high:.2f}':>13}{entry['ns_per_weight']:11.4f}"
        )


if __name__ == "__main__":
    main()
