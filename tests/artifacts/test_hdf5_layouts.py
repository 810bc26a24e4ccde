"""Values read straight from where they lie in an HDF5 file, or by the library where they lie otherwise."""

from __future__ import annotations

import hashlib
import io
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mmsurgery.artifacts import hdf5, hdf5_write
from mmsurgery.errors import InputRefused

VALUES = np.random.default_rng(0).chisquare(1, (60, 7, 9)).astype(np.float32)
LAYOUTS: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "contiguous": (lambda g: g.create_dataset("a", data=VALUES), True),
    "float64": (lambda g: g.create_dataset("a", data=VALUES.astype(np.float64) / 3), True),
    "rows": (lambda g: g.create_dataset("a", data=VALUES, chunks=(13, 7, 9)), True),
    "single rows": (lambda g: g.create_dataset("a", data=VALUES, chunks=(1, 7, 9)), True),
    "cut rows": (lambda g: g.create_dataset("a", data=VALUES, chunks=(1, 3, 9)), True),
    "cut columns": (lambda g: g.create_dataset("a", data=VALUES, chunks=(1, 1, 4)), True),
    "single values": (lambda g: g.create_dataset("a", data=VALUES[:3], chunks=(1, 1, 1)), True),
    "one larger chunk": (lambda g: g.create_dataset("a", data=VALUES, maxshape=(None, 7, 9), chunks=(64, 7, 9)), True),
    "padded rows": (lambda g: g.create_dataset("a", data=VALUES, maxshape=(60, 7, 12), chunks=(60, 7, 12)), False),
    "tiles": (lambda g: g.create_dataset("a", data=VALUES, chunks=(8, 3, 9)), False),
    "tall tiles": (lambda g: g.create_dataset("a", data=VALUES, chunks=(60, 7, 4)), False),
    "never written": (lambda g: g.create_dataset("a", (5, 6), np.float32, fillvalue=2.5), False),
    "never written chunks": (
        lambda g: g.create_dataset("a", (50, 6), np.float32, fillvalue=2.5, chunks=(10, 6)),
        False,
    ),
    "scalar": (lambda g: g.create_dataset("a", data=np.float32(3)), True),
    "empty": (lambda g: g.create_dataset("a", data=VALUES[:0]), True),
    "no chunk": (lambda g: g.create_dataset("a", data=VALUES[:0], maxshape=(None, 7, 9), chunks=(4, 7, 9)), True),
}


def made(path: Path, make: Callable[[Any], Any], **options: Any) -> np.ndarray:
    """The values that the library reads from the file that it made."""
    with h5py.File(path, "w", **options) as file:
        group = file.create_group("sum_of_squares")
        group.create_dataset("0", data=np.arange(5, dtype=np.float32))
        make(group)
        group.create_dataset("z", data=np.full(1000, 7, np.float32))
    with h5py.File(path) as file:
        return np.asarray(file["sum_of_squares/a"][()])


def joined(dataset: hdf5.Dataset, size: int) -> np.ndarray:
    blocks = [block.copy() for block in hdf5.blocks(dataset, size)]
    assert all(block.size == size for block in blocks[:-1])
    return np.concatenate(blocks)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("slab", [1, 100, 1 << 20])
def test_every_layout_reads_as_the_library_reads_it(
    layout: str, slab: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, straight = LAYOUTS[layout]
    expected = made(tmp_path / "a.h5", make)
    dataset = hdf5.datasets(tmp_path / "a.h5", "sum_of_squares")["a"]
    assert (dataset.spans is not None) == straight
    monkeypatch.setattr(hdf5, "_SLAB", slab)
    if straight:
        monkeypatch.setattr(hdf5, "library", lambda: pytest.fail("read by the library"))
    found = hdf5.read(dataset)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert np.array_equal(found, expected)
    for size in (1, 8, 64, 1000, 1 << 20):
        assert np.array_equal(joined(dataset, size), expected.reshape(-1))


@pytest.mark.parametrize("layout", ["rows", "contiguous", "empty"])
def test_values_behind_a_user_block(layout: str, tmp_path: Path) -> None:
    expected = made(tmp_path / "a.h5", LAYOUTS[layout][0], userblock_size=1024)
    dataset = hdf5.datasets(tmp_path / "a.h5", "sum_of_squares")["a"]
    assert dataset.spans is None
    assert np.array_equal(joined(dataset, 100), expected.reshape(-1))


def test_chunks_written_in_another_order(tmp_path: Path) -> None:
    def backwards(group: Any) -> None:
        dataset = group.create_dataset("a", (60, 7, 9), np.float32, chunks=(7, 7, 9))
        for first in range(56, -1, -7):
            dataset[first : first + 7] = VALUES[first : first + 7]

    made(tmp_path / "a.h5", backwards)
    dataset = hdf5.datasets(tmp_path / "a.h5", "sum_of_squares")["a"]
    assert dataset.spans is not None
    assert [place for place, _ in dataset.spans] != sorted(place for place, _ in dataset.spans)
    assert np.array_equal(joined(dataset, 50), VALUES.reshape(-1))


def test_a_chunk_that_was_never_written(tmp_path: Path) -> None:
    def some(group: Any) -> None:
        dataset = group.create_dataset("a", (60, 7, 9), np.float32, chunks=(20, 7, 9), fillvalue=0.5)
        dataset[20:] = VALUES[20:]

    expected = made(tmp_path / "a.h5", some)
    assert expected[0, 0, 0] == 0.5
    assert np.array_equal(joined(hdf5.datasets(tmp_path / "a.h5", "sum_of_squares")["a"], 64), expected.reshape(-1))


@pytest.mark.parametrize("store", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (0, 4), (700,), (64, 33), (3, 2, 50), (1, 1, 300), (2, 700)])
def test_what_is_written_here_needs_no_library(
    store: str, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5_write, "CHUNKED_FROM", 256)
    values = np.random.default_rng(1).chisquare(1, shape)
    array = np.asarray(values, np.float32)
    hdf5_write.write(tmp_path / "a.h5", "sum_of_squares", {"a": array}, ["a"], store)
    dataset = hdf5.datasets(tmp_path / "a.h5", "sum_of_squares")["a"]
    assert dataset.spans is not None
    monkeypatch.setattr(hdf5, "library", lambda: pytest.fail("read by the library"))
    bits = np.asarray(hdf5_write.to_bfloat16(array), np.uint32) << 16
    expected = array if store == "float32" else np.asarray(bits).view(np.float32)
    assert np.array_equal(hdf5.read(dataset), expected)
    assert hdf5.read(dataset).dtype == np.float32
    assert np.array_equal(joined(dataset, 40), expected.reshape(-1))


def replaced(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


def rewritten(path: Path) -> None:
    status = path.stat()
    with path.open("r+b") as handle:
        handle.write(b"\x89")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize("change", [replaced, rewritten, lambda path: os.truncate(path, 3000), os.unlink])
def test_a_file_that_is_another_one_now_is_not_read(change: Callable[[Path], None], tmp_path: Path) -> None:
    made(tmp_path / "a.h5", LAYOUTS["contiguous"][0])
    keep = (tmp_path / "a.h5").open("rb")  # or its inode may be used again
    dataset = hdf5.datasets(tmp_path / "a.h5", "sum_of_squares")["a"]
    change(tmp_path / "a.h5")
    with keep, pytest.raises(InputRefused, match="cannot be read as HDF5"):
        next(hdf5.blocks(dataset, 8))


def test_datasets_are_checked_again_when_the_file_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsurgery.artifacts.digests._RACY", -(10**18))
    path, opened = tmp_path / "a.h5", []
    real = hdf5._checked
    monkeypatch.setattr(hdf5, "_checked", lambda *given: opened.append(os.getpid()) or real(*given))
    made(path, lambda group: group.create_dataset("a", data=VALUES))
    first = hdf5.datasets(path, "sum_of_squares")
    first.pop("a")  # what is handed out may be changed
    assert hdf5.datasets(path, "sum_of_squares")["a"].shape == VALUES.shape
    assert opened == [os.getpid()]
    made(path, lambda group: group.create_dataset("a", data=VALUES[1:]))
    assert hdf5.datasets(path, "sum_of_squares")["a"].shape == VALUES[1:].shape
    assert opened == [os.getpid()] * 2


@pytest.mark.parametrize("store", ["float32", "bfloat16"])
def test_writing_takes_no_memory_for_the_values(store: str, tmp_path: Path) -> None:
    arrays = {f"a{number}": np.full((1 << 11, 1 << 10), number, np.float32) for number in range(4)}
    tracemalloc.start()
    try:
        size, digest = hdf5_write.write(tmp_path / "a.h5", "sum_of_squares", arrays, list(arrays), store)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == (tmp_path / "a.h5").stat().st_size > 8 << 20
    assert digest == hashlib.sha256((tmp_path / "a.h5").read_bytes()).hexdigest()
    assert peak < 12 << 20


def test_an_outline_is_a_file() -> None:
    outline, real = hdf5_write._Outline(), io.BytesIO()
    for file in (outline, real):
        file.seek(5000)
        file.write(b"here")
        file.seek(-2, os.SEEK_END)
        file.write(b"across the end of a page" * 200)
        file.seek(0)
        assert file.read(3) == bytes(3)
        assert file.tell() == 3
        file.truncate(9000)
    assert outline.part(0, outline.size) == real.getvalue()
    outline.seek(8998)
    assert outline.read(10) == real.getvalue()[8998:]
    assert outline.read() == b""
