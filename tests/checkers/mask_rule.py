"""Recompute a mask from the files alone (h5py and NumPy, nothing of mmsurgery) and compare every bit.

    python tests/checkers/mask_rule.py MASK FORGET_FOLDER PRESERVE_FOLDER...

The rule is written out once more, whole arrays at a time: selected = S_T > 0 and S_T >= beta * S_P.
Beta, mixture and modules are what the mask's metadata says.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np


def read_mask(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and booleans by name, read without any library of the format."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert set(metadata) == {"mmsurgery"}
    value = json.loads(metadata["mmsurgery"])
    masks = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        shape = value["parameters"][name]["shape"]
        numel = math.prod(shape)
        assert entry["dtype"] == "U8"
        assert entry["shape"] == [end - begin] == [(numel + 7) // 8]
        bits = [byte >> place & 1 for byte in data[begin:end] for place in range(8)]
        assert not any(bits[numel:]), f"pad bits of {name}"
        masks[name] = np.array(bits[:numel], bool).reshape(shape)
    return value, masks


def read_saliency(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Manifest and float64 sums by name."""
    manifest = json.loads((folder / "manifest.json").read_text())
    key = "sum_of_gradients" if manifest["estimator"] == "dataset" else "sum_of_squares"
    sums = {}
    for file in manifest["files"]:
        with h5py.File(folder / file, "r") as opened:
            for name, dataset in opened[key].items():
                values = dataset[()]
                if dataset.attrs.get("encoding") == "bfloat16":
                    values = (np.asarray(values, np.uint32) << 16).view(np.float32)
                sums[name] = np.asarray(values, np.float64)
    return manifest, sums


def inside(address: str, modules: str) -> bool:
    """Whether `group[.layer].component` is matched by a selector."""
    group, *rest = address.split(".")
    layer = int(rest.pop(0)) if rest[0].isdigit() else None
    for term in modules.split(","):
        first, *fields = term.split(".")
        low, high = None, None
        if fields and fields[0].replace("-", "").isdigit():
            low, _, high = fields.pop(0).partition("-")
        in_layers = low is None or (layer is not None and int(low) <= layer <= int(high or low))
        if first == group and in_layers and rest[: len(fields)] == fields:
            return True
    return False


def saliency(manifest: dict[str, Any], sums: np.ndarray) -> np.ndarray:
    mean = sums / manifest["units"]
    return mean**2 if manifest["estimator"] == "dataset" else mean


def recompute(
    forget: Path, preserve: list[Path], shape: dict[str, list[int]], beta: float, mixture: str
) -> dict[str, np.ndarray]:
    """The rule for every parameter of the model, all modules."""
    manifest, target_sums = read_saliency(forget)
    parts = [read_saliency(folder) for folder in preserve]
    masks = {}
    for name in shape:
        if name not in target_sums:
            masks[name] = np.zeros(shape[name], bool)
            continue
        target = saliency(manifest, target_sums[name])
        zero = np.zeros(shape[name])
        if mixture == "pooled":
            together = sum((sums.get(name, zero) for _, sums in parts), zero)
            kept = saliency({**manifest, "units": sum(m["units"] for m, _ in parts)}, together)
        else:
            kept = sum((saliency(m, sums.get(name, zero)) for m, sums in parts), zero) / len(parts)
        masks[name] = (target > 0) & (target >= beta * kept)
    return masks


def differing_bits(mask: Path, forget: Path, preserve: list[Path]) -> int:
    """Bits of a mask file that are not what the rule says."""
    value, found = read_mask(mask)
    shape = {name: entry["shape"] for name, entry in value["parameters"].items()}
    expected = recompute(forget, preserve, shape, value["beta"], value["mixture"])
    wrong = 0
    for name, entry in value["parameters"].items():
        truth = expected[name] if inside(entry["address"], value["modules"]) else np.zeros_like(expected[name])
        wrong += int((truth != found[name]).sum())
        assert entry["selected"] == int(found[name].sum()), name
    return wrong


if __name__ == "__main__":
    mask, forget, *preserve = map(Path, sys.argv[1:])
    wrong = differing_bits(mask, forget, preserve)
    print(f"{wrong} differing bits")
    sys.exit(bool(wrong))
