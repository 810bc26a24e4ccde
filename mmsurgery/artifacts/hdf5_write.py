"""HDF5 files built in memory: one uncompressed dataset per array below one group."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from mmsurgery.artifacts.hdf5 import Array, library

CHUNKED_FROM = 1 << 20
"""Datasets of at least this many elements are chunked, smaller ones contiguous."""

_ENCODED = 1 << 18
"""Elements that are encoded at a time: they stay in the cache, and their memory with the process."""


def to_bfloat16(values: Array) -> Array:
    """Bit patterns of float values rounded to the nearest bfloat16 (ties to even), uint16."""
    bits = np.asarray(values, np.float32).reshape(-1).view(np.uint32)
    encoded = np.empty(bits.shape, np.uint16)
    for start in range(0, bits.size, _ENCODED):
        block = slice(start, start + _ENCODED)
        rounded = bits[block] >> 16
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits[block]
        rounded >>= 16
        encoded[block] = rounded
    return encoded.reshape(np.shape(values))


def image(group: str, arrays: Iterable[tuple[str, Array]], store: str) -> bytes:
    """The bytes of an HDF5 file with one dataset per array below `/group`.

    Built in memory: the C library dies on a full disk, and the atomic writer does not.
    """
    h5py = library()
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        parent = file.create_group(group)
        for name, array in arrays:
            values = to_bfloat16(array) if store == "bfloat16" else np.asarray(array)
            values = values.astype(values.dtype.newbyteorder("<"))
            options: dict[str, Any] = {"track_times": False}
            if array.size >= CHUNKED_FROM:
                options["chunks"] = _chunks(array.shape)
            dataset = parent.create_dataset(name, data=values, **options)
            if store == "bfloat16":
                dataset.attrs["encoding"] = "bfloat16"
    return buffer.getvalue()


def _chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    chunks = list(shape)
    for axis in range(len(chunks)):
        rest = math.prod(chunks[axis + 1 :])
        chunks[axis] = max(1, min(chunks[axis], CHUNKED_FROM // max(rest, 1)))
        if math.prod(chunks) <= CHUNKED_FROM and chunks[axis] > 1:
            break
    return tuple(chunks)
