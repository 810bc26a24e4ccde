"""Reading and writing safetensors files with NumPy alone: bounded headers, no surprises, no torch.

Format: 8 bytes little-endian header length, JSON header, tensor bytes without gaps
(https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmsurgery.artifacts.files import atomic_file, regular_file, unreadable
from mmsurgery.errors import InputRefused
from mmsurgery.names import check_parameter_name
from mmsurgery.provenance import check_seal, parse_json

MAX_HEADER = 16 << 20
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 8

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""safetensors dtype -> NumPy dtype; bfloat16 is read as its 16-bit pattern."""

AGAIN = "make or copy it again"
"""What to do about a damaged artifact."""
_SAVE_AGAIN = f"{AGAIN}; of your own program: save it with the safetensors library"

_ENTRY = re.compile(rb'(?<!\\)"\s*:\s*\{')
"""A key of a header whose value is an object: quotes inside of its metadata are escaped."""
_CODES = {dtype: code for code, dtype in DTYPES.items() if code != "BF16"}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: dtype code, shape, and its bytes `[begin, end)` from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What the header of a safetensors file says; every claim checked against the file's size."""

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    bytes: int
    """Length of the JSON header in bytes."""


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file.

    Raises:
        MissingArtifact: if the file does not exist.
        InputRefused: if it is not a whole, well-formed safetensors file: truncated or with bytes
            left over, header over 16 MiB, duplicate or impossible names, unknown dtypes, more than
            8 dimensions, gaps or overlaps.
    """
    size = regular_file(path).st_size
    raw = _raw_header(path, size)
    if (entries := len(_ENTRY.findall(raw))) > MAX_TENSORS + 1:  # parsing them would take seconds
        raise _too_many(path, entries)
    value = _parsed(raw, f"header of {path}")
    if not isinstance(value, dict):
        raise InputRefused(f"header of {path} is not a JSON object", _SAVE_AGAIN)
    metadata = value.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(not isinstance(v, str) for v in metadata.values()):
        raise InputRefused(f"metadata of {path} is not a table of strings", _SAVE_AGAIN)
    if len(value) > MAX_TENSORS:
        raise _too_many(path, len(value))
    position = start = 8 + len(raw)
    tensors = {_checked_name(path, name): _tensor(path, name, entry, start) for name, entry in value.items()}
    for name, info in sorted(tensors.items(), key=lambda pair: (pair[1].begin, pair[1].end)):
        if info.begin != position:
            raise InputRefused(f"{path}: tensor {name} leaves a gap or overlaps another", _SAVE_AGAIN)
        position = info.end
    if position != size:
        what = "is cut" if size < position else "has bytes left over"
        raise InputRefused(f"{path} {what} ({position:,} bytes expected, {size:,} found)", AGAIN)
    return Header(path, tensors, metadata, len(raw))


def _too_many(path: Path, tensors: int) -> InputRefused:
    return InputRefused(f"{path} declares {tensors:,} tensors, more than {MAX_TENSORS:,}", "save them in several files")


def read_metadata(header: Header, kind: str) -> dict[str, Any]:
    """What an artifact of ours says of itself under its one metadata key `mmsurgery`; its seal is checked.

    Args:
        kind: what it must be: `mask` or `patch`.

    Raises:
        InputRefused: if it is another kind of file, or was changed after it was written.
        Mismatch: if it was written by another schema.
    """
    path, step = header.path, f"name a {kind}: mmsurgery status lists them"
    if set(header.metadata) != {"mmsurgery"}:
        raise InputRefused(f"{path} is a safetensors file but no {kind} of mmsurgery", step)
    where = f"metadata of {path}"
    value = _parsed(header.metadata["mmsurgery"].encode(), where)
    found = value.get("kind") if isinstance(value, dict) else None
    if found != kind:
        said = f"it says that it is a {found[:40]}" if isinstance(found, str) else "it does not say what it is"
        raise InputRefused(f"{path} is no {kind} of mmsurgery: {said}", step)
    if not isinstance(value.get("provenance"), dict):
        raise InputRefused(f"{where}: provenance is missing or no table", f"make or copy the {kind} again")
    return check_seal(value, where, kind=kind)


def _parsed(data: bytes, where: str) -> Any:
    try:
        return parse_json(data, where)
    except InputRefused as error:
        raise InputRefused(error.what, _SAVE_AGAIN) from error


def _raw_header(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as handle:
            prefix = handle.read(8)
            if len(prefix) < 8:
                raise InputRefused(f"{path} is cut ({size} bytes, no safetensors header)", AGAIN)
            (length,) = struct.unpack("<Q", prefix)
            if length > MAX_HEADER:
                what = f"{path} is no safetensors file: its header claims {length:,} bytes, over {MAX_HEADER:,}"
                raise InputRefused(what, "name a safetensors file, or copy it again")
            raw = handle.read(length)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(raw) < length:
        raise InputRefused(f"{path} is cut inside its header ({size:,} bytes)", AGAIN)
    return raw


def _checked_name(path: Path, name: str) -> str:
    try:
        return check_parameter_name(name)
    except InputRefused as error:
        raise InputRefused(f"{path}: {error.what}", "rename the tensor and save the file again") from error


def _tensor(path: Path, name: str, entry: Any, start: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        known = set(entry) == {"dtype", "shape", "data_offsets"}
        itemsize = DTYPES[dtype].itemsize
        integers = all(type(n) is int and 0 <= n < 1 << 48 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as error:
        raise InputRefused(f"{path}: the header entry of tensor {name} cannot be read", _SAVE_AGAIN) from error
    if not known or not integers or len(shape) > MAX_DIMENSIONS or math.prod(shape) * itemsize != end - begin:
        raise InputRefused(f"{path}: shape, dtype and size of tensor {name} do not agree", _SAVE_AGAIN)
    return TensorInfo(dtype, shape, start + begin, start + end)


def memory_map(path: Path, info: TensorInfo) -> np.ndarray[Any, np.dtype[Any]]:
    """A read-only view of one tensor of a file in its shape; bfloat16 as uint16 bit patterns.

    Raises:
        InputRefused: if it was cut since its header was read; later, the system ends a process that uses the view.
    """
    dtype = DTYPES[info.dtype]
    if info.numel == 0:
        return np.zeros(info.shape, dtype)
    try:
        flat = np.memmap(path, dtype=np.uint8, mode="r", offset=info.begin, shape=(info.end - info.begin,))
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise InputRefused(f"{path} was cut while it was read", AGAIN) from error
    return flat.view(dtype).reshape(info.shape)


def read_tensor(path: Path, info: TensorInfo) -> np.ndarray[Any, np.dtype[Any]]:
    """A copy of one tensor of a file in memory; safe against the file being cut while it is used.

    Raises:
        InputRefused: if it cannot be read whole.
    """
    try:
        with path.open("rb") as handle:
            handle.seek(info.begin)
            data = handle.read(info.end - info.begin)
    except OSError as error:
        raise unreadable(path, error) from error
    except MemoryError as error:
        what = f"{path} declares {info.end - info.begin:,} bytes, more than fits into memory"
        raise InputRefused(what, "free some memory, or copy the file again") from error
    if len(data) != info.end - info.begin:
        raise InputRefused(f"{path} was cut while it was read", AGAIN)
    return np.frombuffer(data, DTYPES[info.dtype]).reshape(info.shape)


def to_float32(array: np.ndarray[Any, np.dtype[Any]], dtype: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Values of a float tensor as float32 (float64 is rounded); `dtype` is its safetensors code."""
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(array, dtype=np.float32)


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray[Any, np.dtype[Any]]], metadata: Mapping[str, str]
) -> None:
    """Write tensors, sorted by name, and string metadata as one safetensors file, atomically.

    Raises:
        MachineFault: if it cannot be written.
    """
    write_safetensors_stream(
        path,
        {name: (_CODES[array.dtype.newbyteorder("<")], array.shape) for name, array in tensors.items()},
        ((name, tensors[name]) for name in sorted(tensors)),
        metadata,
    )


def write_safetensors_stream(
    path: Path,
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
    arrays: Iterable[tuple[str, np.ndarray[Any, np.dtype[Any]]]],
    metadata: Mapping[str, str],
) -> None:
    """As `write_safetensors`, taking the arrays one after the other, sorted by name.

    Args:
        layout: name -> (dtype code, shape), known before the first array.
        arrays: pairs in sorted order of names.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    names = sorted(layout)
    for name in names:
        code, shape = layout[name]
        size = math.prod(shape) * DTYPES[code].itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    with atomic_file(path) as temporary, temporary.open("wb") as handle:
        handle.write(struct.pack("<Q", len(raw)) + raw)
        for expected, (name, array) in zip(names, arrays, strict=True):
            if name != expected:
                raise ValueError(f"expected {expected}, got {name}")
            handle.write(np.ascontiguousarray(array).data if array.size else b"")
