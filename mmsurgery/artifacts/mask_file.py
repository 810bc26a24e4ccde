"""The file of a mask: one safetensors file, per parameter a uint8 tensor of its packed bits (see `bits`).

The metadata key `mmsurgery` holds the rest, see `docs/schemas/mask.json`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmsurgery.artifacts.bits import Bytes, Layout, MaskParameter, Packed
from mmsurgery.artifacts.files import unreadable
from mmsurgery.artifacts.mask_metadata import check_metadata, check_modules
from mmsurgery.artifacts.tensors import (
    AGAIN,
    MAX_DIMENSIONS,
    Header,
    read_header,
    read_metadata,
    write_safetensors,
)
from mmsurgery.errors import InputRefused
from mmsurgery.names import Address
from mmsurgery.provenance import SCHEMA, canonical_json, seal

FIELDS = ("rule", "beta", "estimator", "mixture", "modules", "base", "parents", "counts", "provenance")
"""What the metadata says beside `parameters`, `schema` and `kind`."""


def write(path: Path, parameters: Mapping[str, MaskParameter], fields: Mapping[str, Any]) -> None:
    """Write a mask atomically; an existing file is replaced.

    Args:
        fields: values of `FIELDS`.

    Raises:
        MachineFault: if it cannot be written.
    """
    value = {
        "schema": SCHEMA,
        "kind": "mask",
        **fields,
        "base": dict(fields["base"]),
        "parents": [dict(parent) for parent in fields["parents"]],
        "counts": dict(fields["counts"]),
        "provenance": dict(fields["provenance"]),
        "parameters": {
            name: {"shape": list(p.shape), "selected": p.selected, "sha256": p.sha256, "address": str(p.address)}
            for name, p in parameters.items()
        },
    }
    metadata = {"mmsurgery": canonical_json(seal(value)).decode()}
    write_safetensors(path, {name: p.bits for name, p in parameters.items()}, metadata)


def read(path: Path) -> tuple[Packed, dict[str, Any]]:
    """The parameters of a mask file and the values of `FIELDS`; raises as `Mask.load`."""
    header = read_header(path)
    value, where = read_metadata(header, "mask"), f"metadata of {path}"
    check_metadata(value, where)
    entries = value["parameters"]
    if set(entries) != set(header.tensors):
        difference = sorted(set(entries) ^ set(header.tensors))[:3]
        what = f"{path}: tensors and metadata name different parameters: {', '.join(difference)}"
        raise InputRefused(what, AGAIN)
    layout = _layout(header, entries)
    parameters = Packed(layout, _words(header, layout))
    for name, entry in entries.items():
        _check(path, name, entry, parameters[name])
    selected = {name: parameter.selected for name, parameter in parameters.items()}
    check_modules(value["modules"], layout.addresses, selected, where)
    return parameters, {key: tuple(value[key]) if key == "parents" else value[key] for key in FIELDS}


def _layout(header: Header, entries: Mapping[str, Any]) -> Layout:
    shapes: dict[str, tuple[int, ...]] = {}
    addresses: dict[str, Address] = {}
    for name, info in header.tensors.items():
        if info.dtype != "U8" or len(info.shape) != 1:
            what = f"{header.path}: tensor {name} is {info.dtype} {list(info.shape)}, packed U8 expected"
            raise InputRefused(what, AGAIN)
        shapes[name], addresses[name] = _entry(header.path, name, entries[name])
        numel = math.prod(shapes[name])
        if info.numel != (numel + 7) // 8:
            found, expected = f"{info.numel} bytes, {(numel + 7) // 8} expected", f"shape {list(shapes[name])}"
            raise InputRefused(f"{header.path}: {name} has {found} for {expected}", AGAIN)
    return Layout(shapes, addresses)


def _entry(path: Path, name: str, entry: Any) -> tuple[tuple[int, ...], Address]:
    """Shape and address of a parameter, from its entry in the metadata."""
    try:
        shape, address = tuple(entry["shape"]), Address.parse(entry["address"])
        if any(type(n) is not int or not 0 <= n < 1 << 48 for n in shape) or len(shape) > MAX_DIMENSIONS:
            raise ValueError("shape")
        if not {"selected", "sha256"} <= set(entry):
            raise KeyError
    except (KeyError, TypeError, ValueError, AttributeError, InputRefused) as error:
        raise InputRefused(f"{path}: the metadata entry of {name} cannot be read", AGAIN) from error
    return shape, address


def _words(header: Header, layout: Layout) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The bits of a file in one buffer."""
    path = header.path
    try:
        words = np.zeros(layout.words, np.uint64)
        with path.open("rb", buffering=0) as handle:
            for name, info in header.tensors.items():
                handle.seek(info.begin)
                if not _filled(handle, layout.of(words, name)):
                    raise InputRefused(f"{path} was cut while it was read", AGAIN)
    except OSError as error:
        raise unreadable(path, error) from error
    except MemoryError as error:
        what = f"{path} declares {8 * layout.words:,} bytes, more than fits into memory"
        raise InputRefused(what, "free some memory, or copy the file again") from error
    return words


def _filled(handle: Any, bits: Bytes) -> bool:
    """Whether an unbuffered file had as many bytes as were to be read; one read is at most 2 GiB."""
    rest = memoryview(bits.data)
    while rest.nbytes:
        count = handle.readinto(rest)
        if not count:
            return False
        rest = rest[count:]
    return True


def _check(path: Path, name: str, entry: Any, parameter: MaskParameter) -> None:
    if parameter.sha256 != entry["sha256"]:
        raise InputRefused(f"{path} is damaged: content digest of {name} differs", "make the mask again")
    if parameter.numel % 8 and parameter.bits[-1] >> (parameter.numel % 8):
        raise InputRefused(f"{path}: pad bits of {name} are not zero", AGAIN)
    if parameter.selected != entry["selected"]:
        what = f"{path}: {name} selects {parameter.selected:,} weights, its metadata says {str(entry['selected'])[:40]}"
        raise InputRefused(what, AGAIN)
