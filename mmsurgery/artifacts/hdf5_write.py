"""Writing HDF5 files: one uncompressed dataset per array below one group."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmsurgery.artifacts.hdf5 import Array, library, spans
from mmsurgery.errors import InternalError

CHUNKED_FROM = 1 << 20
"""Datasets of at least this many elements are chunked, smaller ones contiguous."""

_ENCODED = 1 << 18
"""Elements that are encoded at a time: they stay in the cache, and their memory with the process."""
_BUFFER = 1 << 22
"""Bytes that are written at a time, where values come in smaller pieces."""
_PAGE = 1 << 12
"""Bytes of an outline that are kept together."""


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


def write(path: Path, group: str, arrays: Mapping[str, Array], names: Sequence[str], store: str) -> tuple[int, str]:
    """Write an HDF5 file with one dataset for each of some arrays below `/group`; returns its size and SHA-256.

    The library makes an outline in memory, a file without its values, and says where they belong; the file itself is
    written by Python. On a full disk the library dies, and a whole image would take as much memory as the values.

    Args:
        names: of the arrays that are written, in this order.
        store: `float32` (float64 stays), or `bfloat16`.

    Raises:
        OSError: if it cannot be written.
    """
    digest, outline = hashlib.sha256(), _Outline()
    runs = _laid_out(outline, group, arrays, names, store)
    with path.open("wb", buffering=_BUFFER) as file:
        for piece in _pieces(outline, runs, arrays, store):
            file.write(piece)
            digest.update(piece)
    return outline.size, digest.hexdigest()


class _Run(NamedTuple):
    """Values of a dataset that lie side by side in the file."""

    place: int
    name: str
    first: int
    number: int
    """Of elements."""


def _laid_out(
    outline: _Outline, group: str, arrays: Mapping[str, Array], names: Sequence[str], store: str
) -> list[_Run]:
    """Make the outline of a file; where its values belong, in the order of the file."""
    h5py = library()
    runs = []
    with h5py.File(outline, "w") as file:
        parent = file.create_group(group).id
        for name in names:
            array = arrays[name]
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_obj_track_times(False)
            # room is kept for the values, and nothing put there
            properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            if array.size >= CHUNKED_FROM:
                properties.set_chunk(_chunks(array.shape))
            kind = h5py.h5t.py_create(_encoded(array.reshape(-1)[:0], store).dtype)
            space = h5py.h5s.create_simple(array.shape)
            dataset = h5py.h5d.create(parent, name.encode(), kind, space, properties)
            if store == "bfloat16":
                h5py.Dataset(dataset).attrs["encoding"] = "bfloat16"
            first = 0
            for place, number in spans(dataset):
                runs.append(_Run(place, name, first, number))
                first += number
            if first != array.size:
                raise InternalError(f"{name} has {array.size:,} values, and a place for {first:,} in its file")
    return sorted(runs)


def _pieces(outline: _Outline, runs: Sequence[_Run], arrays: Mapping[str, Array], store: str) -> Iterator[Any]:
    """The bytes of the file, in order."""
    place, name, values = 0, "", np.empty(0)
    for run in runs:
        if run.name != name:
            name, values = run.name, arrays[run.name].reshape(-1)
        yield outline.part(place, run.place)
        encoded = _encoded(values[run.first : run.first + run.number], store)
        yield encoded.data
        place = run.place + encoded.nbytes
    yield outline.part(place, outline.size)


def _encoded(values: Array, store: str) -> Array:
    """As they are stored, little-endian."""
    if store == "bfloat16":
        values = to_bfloat16(values)
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<"))


class _Outline:
    """A file in memory for the library, in which what was not written takes no room."""

    def __init__(self) -> None:
        self.size, self._place = 0, 0
        self._pages: dict[int, bytearray] = {}

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        self._place = place + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def truncate(self, size: int) -> int:
        self.size = size
        return size

    def flush(self) -> None:
        pass

    def write(self, data: Any) -> int:
        given = memoryview(data).cast("B")
        for number, inside, begin in self._parts(self._place, self._place + len(given)):
            page = self._pages.setdefault(number, bytearray(_PAGE))
            page[inside] = given[begin : begin + inside.stop - inside.start]
        self._place += len(given)
        self.size = max(self.size, self._place)
        return len(given)

    def read(self, size: int = -1) -> bytes:
        stop = self.size if size < 0 else min(self._place + size, self.size)
        found = self.part(self._place, max(stop, self._place))
        self._place += len(found)
        return found

    def part(self, start: int, stop: int) -> bytes:
        """Bytes from one place to another; zeros where nothing was written."""
        empty = bytes(_PAGE)
        return b"".join(self._pages.get(number, empty)[inside] for number, inside, _ in self._parts(start, stop))

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, slice, int]]:
        """Page, places inside of it, and how much came before."""
        place = start
        while place < stop:
            number, begin = divmod(place, _PAGE)
            count = min(_PAGE - begin, stop - place)
            yield number, slice(begin, begin + count), place - start
            place += count


def _chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    chunks = list(shape)
    for axis in range(len(chunks)):
        rest = math.prod(chunks[axis + 1 :])
        chunks[axis] = max(1, min(chunks[axis], CHUNKED_FROM // max(rest, 1)))
        if math.prod(chunks) <= CHUNKED_FROM and chunks[axis] > 1:
            break
    return tuple(chunks)
