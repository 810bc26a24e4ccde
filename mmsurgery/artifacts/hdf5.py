"""HDF5 with care: every dataset is checked before data is read, and nothing is followed out of a file."""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmsurgery.artifacts.apart import Died, apart
from mmsurgery.artifacts.digests import digest_cache, file_identity
from mmsurgery.artifacts.files import read_at
from mmsurgery.errors import InputRefused, MachineFault, MmsurgeryError
from mmsurgery.names import check_parameter_name
from mmsurgery.paths import real

Array = np.ndarray[Any, np.dtype[Any]]
Spans = Sequence[tuple[int, int]]
"""Place in the file and number of elements of each run, in C order of the dataset."""

MAX_DATASETS = 100_000

_SECONDS, _RATE = 4, 256 << 20
"""Processor time that the library may take for a file: so many seconds, and one more for so many bytes."""
_FILES = 64
"""Files whose datasets are remembered: in small models checking them takes half as long as a mask."""
_SLAB = 1 << 20
"""Elements that are read through the library at a time."""


@dataclass(frozen=True)
class Dataset:
    """One checked dataset of a file."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    """As stored: float32, float64, or uint16 for the bit patterns of bfloat16."""
    identity: tuple[int, ...] = field(repr=False)
    """Of the file when it was checked."""
    spans: Spans | None = field(repr=False)
    """Where its values lie; None where they do not lie in runs, so that the library has to find them."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def library() -> Any:
    """h5py, which is slow to import."""
    # Filter plugins are native code; the variable must be set before the library starts.
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"
    import h5py

    return h5py


def datasets(path: Path, group: str) -> dict[str, Dataset]:
    """The datasets below `/group`, each checked before any data is read, once in a process as long as the file stays
    the same.

    A damaged file can make the library crash or go round for ever, so it looks at a file in a process of its own first.

    Raises:
        InputRefused: for a file that cannot be opened or breaks the library, links of any kind, external or virtual
            storage, filters, other objects, dtypes, or more bytes declared than the file holds.
        MachineFault: if no process can be made.
    """
    library()  # which that process then need not import
    try:
        status = path.stat()
        identity = [group, *file_identity(path)]
        digest_cache.remember(f"hdf5:{real(path)}", identity, lambda: _looked_at_apart(path, group, status))
        return dict(_checked_once(path, group, tuple(identity)))
    except MmsurgeryError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def _looked_at_apart(path: Path, group: str, status: os.stat_result) -> str:
    try:
        refusal = apart(lambda: _looked_at(path, group, status), _SECONDS + status.st_size // _RATE)
    except Died as died:
        raise InputRefused(f"{path} cannot be read as HDF5: {died}", "make it again") from died
    except OSError as error:
        raise MachineFault(f"{path} cannot be looked at: {error.strerror or error}", "end other programs") from error
    if refusal:
        raise InputRefused(*refusal)
    return "sound"


def _looked_at(path: Path, group: str, status: os.stat_result) -> list[str | None] | None:
    """What a refusal says, as JSON values; where values lie in no runs, the library has read them all once, so that it
    is known to come to an end."""
    try:
        for dataset in _checked(path, group, status).values():
            if dataset.spans is None:
                for _ in _through_library(dataset, max(min(dataset.numel, _SLAB), 1)):
                    pass
    except InputRefused as error:
        return [error.what, error.next_step]
    except Exception as error:
        refusal = _unreadable(path, error)
        return [refusal.what, refusal.next_step]
    return None


@functools.lru_cache(maxsize=_FILES)
def _checked_once(path: Path, group: str, identity: tuple[Any, ...]) -> dict[str, Dataset]:
    return _checked(path, group, path.stat())


def _checked(path: Path, group: str, status: os.stat_result) -> dict[str, Dataset]:
    h5py = library()
    found: dict[str, Dataset] = {}
    with h5py.File(path, "r") as file:
        if list(file) != [group] or not isinstance(file.get(group, getlink=True), h5py.HardLink):
            raise InputRefused(f"{path} should hold one group '{group}'")
        checker = _Checker(h5py, path, group, file, status)
        names = list(file[group])
        if len(names) > MAX_DATASETS:
            raise InputRefused(f"{path} holds too many datasets")
        declared = 0
        for name in names:
            found[name] = checker.dataset(name)
            declared += found[name].numel * found[name].dtype.itemsize
            if declared > status.st_size:
                raise InputRefused(f"{path} declares {declared:,} bytes of data in a file of {status.st_size:,}")
    return found


class _Checker:
    """Checks the datasets of one open file by the library's own calls: h5py's objects take three times as long,
    which is longer than reading a small model's values."""

    def __init__(self, h5py: Any, path: Path, group: str, file: Any, status: os.stat_result) -> None:
        self._h5py, self._path, self._group = h5py, path, group
        self._parent = file[group].id
        self._links = self._parent.links
        self._identity = _identity(status)
        self._plain = file.id.get_create_plist().get_userblock() == 0
        self._float32 = h5py.h5t.IEEE_F32LE

    def dataset(self, name: str) -> Dataset:
        h5py, path, key = self._h5py, self._path, name.encode()
        check_parameter_name(name)
        if self._links.get_info(key).type != h5py.h5l.TYPE_HARD:
            raise InputRefused(f"{path}: '{name}' is a link, not a dataset", "copy the data itself into the file")
        try:
            found = h5py.h5d.open(self._parent, key)
        except KeyError as error:
            raise self._not_plain(name) from error
        properties = found.get_create_plist()
        if properties.get_external_count() or properties.get_layout() == h5py.h5d.VIRTUAL:
            raise self._not_plain(name)
        if properties.get_nfilters():
            raise InputRefused(
                f"{path}: '{name}' needs a filter; only unfiltered data is read", "write it without compression"
            )
        dtype, shape = self._dtype(name, found), found.get_space().shape
        where = _spans(h5py, found, shape, properties, dtype.itemsize) if self._plain else None
        return Dataset(path, f"/{self._group}/{name}", tuple(shape), dtype, self._identity, where)

    def _not_plain(self, name: str) -> InputRefused:
        return InputRefused(f"{self._path}: '{name}' is not a plain dataset in this file")

    def _dtype(self, name: str, found: Any) -> np.dtype[Any]:
        kind = found.get_type()
        if kind.equal(self._float32):
            return np.dtype("<f4")
        dtype: np.dtype[Any] = kind.dtype
        if dtype == np.dtype("<u2"):
            if self._h5py.Dataset(found).attrs.get("encoding") != "bfloat16":
                raise InputRefused(f"{self._path}: '{name}' is uint16 without encoding bfloat16")
        elif dtype != np.dtype("<f8"):
            raise InputRefused(f"{self._path}: '{name}' has dtype {dtype}, float32 expected")
        return dtype


def spans(dataset: Any) -> Spans:
    """Where the values of an open dataset lie in its file, by its identifier in the library; none where they do not
    lie in runs."""
    properties, shape = dataset.get_create_plist(), dataset.get_space().shape
    return _spans(library(), dataset, shape, properties, dataset.dtype.itemsize) or ()


def _spans(h5py: Any, found: Any, shape: Sequence[int], properties: Any, itemsize: int) -> Spans | None:
    layout = properties.get_layout()
    if layout == h5py.h5d.CONTIGUOUS:
        return _whole(found, math.prod(shape), itemsize)
    return _chunked(found, shape, properties.get_chunk(), itemsize) if layout == h5py.h5d.CHUNKED else None


def _whole(found: Any, numel: int, itemsize: int) -> Spans | None:
    """The one run of a contiguous dataset."""
    place = found.get_offset()
    if numel and (place is None or found.get_storage_size() != numel * itemsize):
        return None
    return [(place, numel)] if numel else []


def _chunked(found: Any, shape: Sequence[int], chunks: Sequence[int], itemsize: int) -> Spans | None:
    """The runs of a chunked dataset, where each chunk is one: cut along one axis, at single indices of those before."""
    axis = next((axis for axis, size in enumerate(chunks) if size > 1), len(chunks) - 1)
    if any(chunk != size for chunk, size in zip(chunks[axis + 1 :], shape[axis + 1 :], strict=True)):
        return None
    steps = [math.prod(shape[place + 1 :]) for place in range(len(shape))]
    stored: list[Any] = []
    found.chunk_iter(stored.append)
    runs = [
        (
            sum(index * step for index, step in zip(chunk.chunk_offset, steps, strict=True)),
            chunk.byte_offset,
            min(chunks[axis], shape[axis] - chunk.chunk_offset[axis]) * steps[axis],
        )
        for chunk in stored
        if chunk.filter_mask == 0 and chunk.size == math.prod(chunks) * itemsize
    ]
    ends = itertools.accumulate((count for _, _, count in runs), initial=0)
    if [*(first for first, _, _ in runs), math.prod(shape)] != [*ends]:
        return None
    return [(place, count) for _, place, count in runs]


def read(dataset: Dataset) -> Array:
    """The values of a dataset in its shape, float32 (float64 where stored so).

    Raises:
        InputRefused: if the file changed or cannot be read.
    """
    return next(blocks(dataset, max(dataset.numel, 1))).reshape(dataset.shape)


def blocks(dataset: Dataset, size: int) -> Iterator[Array]:
    """The values of a dataset in C order, flat, `size` at a time, float32 (float64 where stored so).

    A block is only valid until the next one is asked for: they share one buffer.

    Raises:
        InputRefused: if the file changed or cannot be read.
    """
    found = _through_library(dataset, size) if dataset.spans is None else _straight(dataset, size)
    try:
        yield from _decoded(found, min(size, dataset.numel)) if dataset.dtype == np.dtype("<u2") else found
    except Exception as error:
        raise _unreadable(dataset.path, error) from error


def _decoded(blocks: Iterator[Array], size: int) -> Iterator[Array]:
    """float32 of the bit patterns of bfloat16."""
    buffer = np.empty(size, np.uint32)
    for patterns in blocks:
        bits = buffer[: patterns.size]
        np.copyto(bits, patterns)
        np.left_shift(bits, 16, out=bits)
        yield bits.view(np.float32)


def _straight(dataset: Dataset, size: int) -> Iterator[Array]:
    """Blocks read from where they lie, without the library."""
    buffer = np.empty(min(size, dataset.numel), dataset.dtype)
    spans, itemsize = iter(dataset.spans or ()), dataset.dtype.itemsize
    handle = os.open(dataset.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _identity(os.fstat(handle)) != dataset.identity:
            raise ValueError("the file changed")
        place, left = 0, 0  # of the run that is being read
        for start in range(0, max(dataset.numel, 1), size):
            values = buffer[: dataset.numel - start]
            rest = memoryview(values.data).cast("B") if values.size else memoryview(b"")
            while rest:
                if not left:
                    place, left = next(spans)
                part = rest[: left * itemsize]
                read_at(handle, part, place)
                place, left, rest = place + len(part), left - len(part) // itemsize, rest[len(part) :]
            yield values
    finally:
        os.close(handle)


def _through_library(dataset: Dataset, size: int) -> Iterator[Array]:
    """Blocks cut from slabs of whole rows that the library reads."""
    shape, buffer, filled = dataset.shape, np.empty(min(size, dataset.numel), dataset.dtype), 0
    rows = max(_SLAB // max(math.prod(shape[1:]), 1), 1)
    # without the library's chunk cache, chunks are read straight into an array: three times as fast
    with library().File(dataset.path, "r", rdcc_nbytes=0) as file:
        source = file[dataset.key]
        if source.shape != shape or source.dtype != dataset.dtype:
            raise ValueError("the dataset changed")
        for first in range(0, shape[0] if shape else 1, rows):
            rest = np.asarray(source[first : first + rows] if shape else source[()]).reshape(-1)
            while rest.size:
                part = rest[: buffer.size - filled]
                buffer[filled : filled + part.size] = part
                filled, rest = filled + part.size, rest[part.size :]
                if filled == buffer.size:
                    yield buffer
                    filled = 0
    if filled or not buffer.size:
        yield buffer[:filled]


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def _unreadable(path: Path, error: Exception) -> InputRefused:
    """One refusal for the five classes of error that can come out of a damaged file."""
    return InputRefused(f"{path} cannot be read as HDF5 ({type(error).__name__})", "make it again")
