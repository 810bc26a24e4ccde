"""Top-n deviated parameters recomputed by one full stable sort; whole arrays in memory, no streaming.

python tests/checkers/topn.py DIFF.json BEFORE.safetensors AFTER.safetensors

checks a diff of single-file checkpoints whose stored names sort as the canonical ones; prints what differs.
"""

from __future__ import annotations

import json
import struct
import sys
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np


def top_entries(before: Mapping[str, Any], after: Mapping[str, Any], n: int) -> list[tuple[str, int, float]]:
    """(name, flat index, after - before) of the n largest differences that are not zero, float32."""
    owners, indices, deltas = [], [], []
    for name in sorted(before):
        delta = np.float32(after[name]).ravel() - np.float32(before[name]).ravel()
        owners += [name] * delta.size
        indices += range(delta.size)
        deltas.append(delta)
    flat = np.concatenate(deltas)
    order = np.argsort(-np.abs(flat), kind="stable")[:n]
    return [(owners[place], indices[place], float(flat[place])) for place in order.tolist() if flat[place]]


def cell_counts(
    before: Mapping[str, Any], after: Mapping[str, Any], n: int, cells: Mapping[str, Any]
) -> tuple[float, dict[Any, Fraction]]:
    """The n-th largest |difference| (0 if fewer than n differ), and exact shares of n by cell."""
    sizes = sorted(
        (
            (float(value), cells[name])
            for name in before
            for value in np.abs(np.float32(after[name]).ravel() - np.float32(before[name]).ravel())
            if value
        ),
        key=lambda pair: -pair[0],
    )
    threshold = sizes[n - 1][0] if n <= len(sizes) else 0.0
    above = Counter(cell for value, cell in sizes if value > threshold)
    ties = Counter(cell for value, cell in sizes if value == threshold)
    left = n - above.total() if threshold else 0
    return threshold, {
        cell: above[cell] + (Fraction(left * ties[cell], ties.total()) if left else 0) for cell in set(cells.values())
    }


def read(path: Path) -> dict[str, np.ndarray]:
    """The float32 and bfloat16 tensors of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            raw = data[begin:end]
            if entry["dtype"] == "BF16":
                found[name] = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
            else:
                found[name] = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[entry["dtype"]])
    return found


def main(record: Path, before: Path, after: Path) -> int:
    value, old, new = json.loads(record.read_text()), read(before), read(after)
    expected = top_entries(old, new, value["n"])
    faults = []
    # stored names are older layouts of the canonical ones: places are compared by value
    if [entry["delta"] for entry in value["top"]] != [delta for _, _, delta in expected[: len(value["top"])]]:
        faults.append("the listed differences are not the largest ones in order")
    threshold = abs(expected[value["n"] - 1][2]) if len(expected) >= value["n"] else 0.0
    if threshold != value["threshold"]:
        faults.append(f"the threshold is {threshold}, the record says {value['threshold']}")
    counted = sum(map(sum, value["heatmap"]))
    if abs(counted - len(expected)) > 1e-6 * len(expected):
        faults.append(f"{len(expected)} differences, the heatmap counts {counted}")
    changed = 0
    for name, array in old.items():
        bits = array.view(np.uint8) != new[name].view(np.uint8)
        changed += int(bits.reshape(array.size, -1).any(axis=1).sum())
    if changed != value["changed"]:
        faults.append(f"{changed} weights differ in bits, the record says {value['changed']}")
    print("\n".join(faults) or "agrees")
    return len(faults)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
