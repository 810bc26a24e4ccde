"""HDF5 with care: files are built in memory, and read without following anything out of them."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmsurgery.errors import InputRefused
from mmsurgery.names import check_parameter_name

Array = np.ndarray[Any, np.dtype[Any]]

CHUNKED_FROM = 1 << 20
"""Datasets of at least this many elements are chunked, smaller ones contiguous."""
MAX_DATASETS = 100_000

_ENCODED = 1 << 18
"""Elements that are encoded at a time: they stay in the cache, and their memory with the process."""


@dataclass(frozen=True)
class Dataset:
    """One checked dataset of a file."""

    path: Path
    key: str
    shape: tuple[int, ...]
    bfloat16: bool


def _h5py() -> Any:
    # Filter plugins are native code; the variable must be set before the library starts.
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"
    import h5py

    return h5py


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
    h5py = _h5py()
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


def datasets(path: Path, group: str) -> dict[str, Dataset]:
    """The datasets below `/group`, each checked before any data is read.

    Raises:
        InputRefused: for a file that cannot be opened, links of any kind, external or virtual
            storage, filters, other objects, dtypes, or more bytes declared than the file holds.
    """
    h5py = _h5py()
    size = path.stat().st_size
    found: dict[str, Dataset] = {}
    try:
        with h5py.File(path, "r") as file:
            if list(file) != [group] or not isinstance(file.get(group, getlink=True), h5py.HardLink):
                raise InputRefused(f"{path} should hold one group '{group}'")
            parent = file[group]
            if len(parent) > MAX_DATASETS:
                raise InputRefused(f"{path} holds too many datasets")
            declared = 0
            for name in parent:
                check_parameter_name(name)
                if not isinstance(parent.get(name, getlink=True), h5py.HardLink):
                    raise InputRefused(f"{path}: '{name}' is a link, not a dataset")
                dataset = parent[name]
                found[name] = _checked(h5py, path, group, name, dataset)
                declared += dataset.size * dataset.dtype.itemsize
                if declared > size:
                    raise InputRefused(f"{path} declares {declared:,} bytes of data in a file of {size:,}")
    except InputRefused:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error
    return found


def _checked(h5py: Any, path: Path, group: str, name: str, dataset: Any) -> Dataset:
    if not isinstance(dataset, h5py.Dataset) or dataset.external is not None or dataset.is_virtual:
        raise InputRefused(f"{path}: '{name}' is not a plain dataset in this file")
    if dataset.id.get_create_plist().get_nfilters():
        raise InputRefused(f"{path}: '{name}' needs a filter; only unfiltered data is read")
    bfloat16 = dataset.dtype == np.dtype("<u2")
    if bfloat16 and dataset.attrs.get("encoding") != "bfloat16":
        raise InputRefused(f"{path}: '{name}' is uint16 without encoding bfloat16")
    if not bfloat16 and dataset.dtype not in (np.dtype("<f4"), np.dtype("<f8")):
        raise InputRefused(f"{path}: '{name}' has dtype {dataset.dtype}, float32 expected")
    return Dataset(path, f"/{group}/{name}", tuple(dataset.shape), bfloat16)


def read(dataset: Dataset) -> Array:
    """The values of a dataset in its shape, float32 (float64 where stored so).

    Raises:
        InputRefused: if the file changed or cannot be read.
    """
    h5py = _h5py()
    try:
        with h5py.File(dataset.path, "r") as file:
            values = np.asarray(file[dataset.key][()])
            if values.shape != dataset.shape:
                raise ValueError("the shape changed")
    except Exception as error:
        raise _unreadable(dataset.path, error) from error
    return _decoded(values, dataset.bfloat16)


def blocks(dataset: Dataset) -> Iterator[Array]:
    """The values of a dataset in C order, one flat slab of `slab_rows` after the other.

    A slab is only valid until the next one is asked for: they share one buffer.

    Raises:
        InputRefused: if the file changed or cannot be read.
    """
    h5py = _h5py()
    rows = slab_rows(dataset.shape)
    try:
        # without the library's chunk cache, chunks are read straight into the buffer: three times as fast
        with h5py.File(dataset.path, "r", rdcc_nbytes=0) as file:
            source = file[dataset.key]
            if source.shape != dataset.shape:
                raise ValueError("the shape changed")
            if rows is None:
                yield _decoded(np.asarray(source[()]), dataset.bfloat16).reshape(-1)
                return
            buffer = np.empty((rows, *dataset.shape[1:]), source.dtype)
            for first in range(0, dataset.shape[0], rows):
                slab = buffer[: min(rows, dataset.shape[0] - first)]
                source.read_direct(slab, np.s_[first : first + rows])
                yield _decoded(slab, dataset.bfloat16).reshape(-1)
    except Exception as error:
        raise _unreadable(dataset.path, error) from error


def slab_rows(shape: tuple[int, ...]) -> int | None:
    """How many leading rows of an array to read at a time: about a chunk, and a multiple of 8
    elements so that packed bits of slabs join; None for an array that is one slab."""
    if math.prod(shape) <= CHUNKED_FROM:
        return None
    row = math.prod(shape[1:])
    step = 8 // math.gcd(row, 8)
    rows = max(step, CHUNKED_FROM // row // step * step)
    return rows if rows < shape[0] else None


def _decoded(values: Array, bfloat16: bool) -> Array:
    return np.asarray(values.astype(np.uint32) << 16).view(np.float32) if bfloat16 else values


def _unreadable(path: Path, error: Exception) -> InputRefused:
    """One refusal for the five classes of error that can come out of a damaged file."""
    return InputRefused(f"{path} cannot be read as HDF5 ({type(error).__name__})", "make it again")
