"""safetensors files read and written with NumPy: as the library does, and nothing hostile."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import flips, mutations
from safetensors.numpy import load_file, save_file

from mmsurgery.artifacts.tensors import (
    MAX_HEADER,
    memory_map,
    read_header,
    read_tensor,
    to_float32,
    write_safetensors,
    write_safetensors_stream,
)
from mmsurgery.errors import InputRefused, MissingArtifact

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array(3.5, np.float64),
    "c": np.zeros((0, 4), np.float16),
    "d": np.array([True, False]),
    "e": np.arange(-3, 3, dtype=np.int64),
    "f": np.arange(7, dtype=np.uint8),
}


def raw(header: Any, payload: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", TENSORS, {"key": "värde"})
    found = load_file(tmp_path / "x.safetensors")
    assert set(found) == set(TENSORS)
    for name, array in TENSORS.items():
        assert np.array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert read_header(tmp_path / "x.safetensors").metadata == {"key": "värde"}


def test_what_the_library_wrote_is_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", {"key": "value"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.metadata == {"key": "value"}
    for name, array in TENSORS.items():
        info = header.tensors[name]
        assert info.numel == array.size
        for read in (read_tensor, memory_map):
            found = read(header.path, info)
            assert found.dtype == array.dtype
            assert found.shape == array.shape
            assert np.array_equal(found, array)


def test_bfloat16_is_read_as_bits_and_as_values(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    values = torch.randn(5, 3).bfloat16()
    save_torch({"w": values}, tmp_path / "x.safetensors")
    header = read_header(tmp_path / "x.safetensors")
    found = memory_map(header.path, header.tensors["w"])
    assert found.dtype == np.uint16
    assert np.array_equal(to_float32(found, "BF16"), values.float().numpy())


def test_memory_maps_cannot_change_the_file(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", TENSORS, {})
    header = read_header(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="read-only"):
        memory_map(header.path, header.tensors["e"])[0] = 1


def test_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", TENSORS, {})
    write_safetensors(tmp_path / "b.safetensors", dict(reversed(TENSORS.items())), {})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_stream_out_of_order_or_too_short_leaves_nothing(tmp_path: Path) -> None:
    layout = {"a": ("U8", (1,)), "b": ("U8", (1,))}
    one = np.zeros(1, np.uint8)
    for arrays in ([("b", one), ("a", one)], [("a", one)], [("a", one), ("b", one), ("c", one)]):
        with pytest.raises(ValueError, match=r"expected|argument"):
            write_safetensors_stream(tmp_path / "x", layout, iter(arrays), {})
    assert list(tmp_path.iterdir()) == []


HEADERS: dict[str, bytes] = {
    "empty": b"",
    "seven": b"1234567",
    "cut": raw({"a": entry()}, b"\0" * 4)[:20],
    "length": struct.pack("<Q", 2**63) + b"{}",
    "over 16 MiB": struct.pack("<Q", MAX_HEADER + 1) + b"{}",
    "no json": raw(b"hello"),
    "no object": raw([1]),
    "not utf-8": raw(b'{"\xff": 1}'),
    "nan": raw(b'{"a": NaN}'),
    "nested": raw(b"[" * 100_000),
    "twice": raw(
        b'{"a": {"dtype":"U8","shape":[1],"data_offsets":[0,1]}, "a": {"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"\0",
    ),
    "entry": raw({"a": 3}),
    "missing key": raw({"a": {"dtype": "F32", "shape": [1]}}),
    "more keys": raw({"a": entry(more=1)}, b"\0" * 4),
    "dtype": raw({"a": entry("F8")}, b"\0" * 4),
    "dtype list": raw({"a": entry(["F32"])}, b"\0" * 4),
    "shape": raw({"a": entry(shape=(2,))}, b"\0" * 4),
    "shape text": raw({"a": entry(shape="1")}, b"\0" * 4),
    "negative": raw({"a": entry(shape=(-1,), offsets=(4, 0))}, b"\0" * 4),
    "bool": raw({"a": entry(shape=(True,))}, b"\0" * 4),
    "float": raw({"a": entry(shape=(1.0,))}, b"\0" * 4),
    "dimensions": raw({"a": entry(shape=(1,) * 9)}, b"\0" * 4),
    "huge": raw({"a": entry(shape=(1 << 50,), offsets=(0, 1 << 52))}, b"\0" * 4),
    "overflow": raw({"a": entry(shape=(0, 10**300))}),
    "three offsets": raw({"a": entry(offsets=(0, 4, 4))}, b"\0" * 4),
    "overlap": raw({"a": entry(), "b": entry()}, b"\0" * 4),
    "gap": raw({"a": entry(), "b": entry(offsets=(8, 12))}, b"\0" * 12),
    "begins late": raw({"a": entry(offsets=(4, 8))}, b"\0" * 8),
    "left over": raw({"a": entry()}, b"\0" * 5),
    "too short": raw({"a": entry()}, b"\0" * 3),
    "name path": raw({"../../../x": entry()}, b"\0" * 4),
    "name empty": raw({"": entry()}, b"\0" * 4),
    "name nul": raw({"a\0": entry()}, b"\0" * 4),
    "name line": raw({"a\n": entry()}, b"\0" * 4),
    "name long": raw({"a" * 513: entry()}, b"\0" * 4),
    "metadata": raw({"__metadata__": {"a": 1}}),
    "metadata list": raw({"__metadata__": []}),
    "surrogate": raw(b'{"__metadata__": {"a": "\\ud800"}}'),
    "many": raw({f"t{i}": entry(shape=(0,), offsets=(0, 0)) for i in range(100_001)}),
}


@pytest.mark.parametrize("why", HEADERS)
def test_hostile_headers(why: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(HEADERS[why])
    begin = time.perf_counter()
    with pytest.raises(InputRefused) as caught:
        read_header(path)
    assert str(path) in caught.value.what
    assert caught.value.next_step
    assert len(caught.value.line()) < 1000
    assert time.perf_counter() - begin < 5


def test_limits_are_where_they_are_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw({"a" * 512: entry(shape=(1,) * 8)}, b"\0" * 4))
    assert read_header(path).tensors["a" * 512].numel == 1
    path.write_bytes(raw({}))
    assert read_header(path).tensors == {}
    text = b"{}".ljust(MAX_HEADER)
    path.write_bytes(raw(text))
    assert read_header(path).bytes == MAX_HEADER


def test_missing_and_other_things(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact):
        read_header(tmp_path / "x")
    with pytest.raises(InputRefused):
        read_header(tmp_path)


def test_damage_is_refused_or_shows_in_values_alone(tmp_path: Path) -> None:
    # the format has no digest: whoever reads it must bring one; no other error may come out
    write_safetensors(tmp_path / "x.safetensors", TENSORS, {"key": "value"})
    data = (tmp_path / "x.safetensors").read_bytes()
    refused = 0
    for variant in [*flips(data, 0, 3), *mutations(data, 0, 400)]:
        (tmp_path / "x.safetensors").write_bytes(variant)
        try:
            header = read_header(tmp_path / "x.safetensors")
        except InputRefused:
            refused += 1
            continue
        for info in header.tensors.values():
            assert read_tensor(header.path, info).shape == info.shape
    assert refused > 300


def test_a_file_that_is_cut_while_it_is_used(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", TENSORS, {})
    header = read_header(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"short")
    with pytest.raises(InputRefused, match="cut"):
        read_tensor(header.path, header.tensors["f"])
    (tmp_path / "x.safetensors").unlink()
    with pytest.raises(InputRefused, match="cannot be read"):
        read_tensor(header.path, header.tensors["f"])


def test_no_torch() -> None:
    code = (
        "import sys, mmsurgery.artifacts.tensors, mmsurgery.artifacts.mask\n"
        "assert not {'torch', 'h5py', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
