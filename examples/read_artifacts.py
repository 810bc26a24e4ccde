"""Masks and patches of mmsurgery, read with the standard library and NumPy alone (docs/formats.md).

    python read_artifacts.py masks/default.safetensors                    density by parameter
    python read_artifacts.py patches/npo.safetensors                      share of changed weights by parameter
    python read_artifacts.py patches/npo.safetensors before.npz after.npz apply it to arrays by name, or undo it

bfloat16 arrays are given as uint16 bit patterns.
"""

import json
import math
import struct
import sys
import zlib
from pathlib import Path

import numpy as np


def read(path):
    """What a file says of itself, and its tensors as bytes."""
    data = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    about = json.loads(header.pop("__metadata__")["mmsurgery"])
    place = {name: [8 + length + offset for offset in entry["data_offsets"]] for name, entry in header.items()}
    return about, {name: data[begin:end] for name, (begin, end) in place.items()}


def bits(about, tensors, name):
    """Booleans of a parameter, flat: what a mask lets move, or what a patch changes."""
    entry, count = about["parameters"][name], math.prod(about["parameters"][name]["shape"])
    if about["kind"] == "patch" and not entry["changed"]:
        return np.zeros(count, bool)
    packed = tensors[name if about["kind"] == "mask" else f"{name}.changed"]
    if entry.get("encoding", {}).get("changed") == "zlib":
        packed = zlib.decompress(packed)
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=count, bitorder="little").astype(bool)


def patched(about, tensors, name, array):
    """The array on the other side of the patch."""
    entry, size = about["parameters"][name], array.itemsize
    flat = np.ascontiguousarray(array).reshape(-1).view(f"<u{size}").copy()
    if entry["changed"]:
        xor = tensors[f"{name}.xor"]
        if entry["encoding"]["xor"] == "planes+zlib":
            planes = np.frombuffer(zlib.decompress(xor), np.uint8).reshape(size, entry["changed"])
            xor = planes.T.tobytes()
        flat[bits(about, tensors, name)] ^= np.frombuffer(xor, f"<u{size}")
    return flat.view(array.dtype).reshape(array.shape)


if __name__ == "__main__":
    about, tensors = read(sys.argv[1])
    for name in sorted(about["parameters"]):
        chosen = bits(about, tensors, name)
        print(f"{chosen.sum() / max(chosen.size, 1):8.4f}  {about['parameters'][name]['address']:20}  {name}")
    if len(sys.argv) == 4:
        with np.load(sys.argv[2]) as arrays:
            np.savez(sys.argv[3], **{name: patched(about, tensors, name, arrays[name]) for name in arrays.files})
