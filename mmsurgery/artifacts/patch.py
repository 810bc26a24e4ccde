"""Patches: a model as an exact, revertible change of another one of the same names, shapes and dtypes.

File: one safetensors file. Per parameter with changed weights two uint8 tensors: `NAME.changed`, the packed
bits of the weights that differ (as in a mask), and `NAME.xor`, the exclusive or of the bit patterns of those
weights before and after, in C order, little-endian. Either is stored raw or as a zlib stream, whichever is
smaller; values are split into byte planes first (all lowest bytes, then the next), because the high bytes of
a small change are nearly all zero. Metadata key `mmsurgery` holds the rest.
"""

from __future__ import annotations

import math
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.mask import Bytes, count_ones, pack, unpack
from mmsurgery.artifacts.tensors import (
    AGAIN,
    DTYPES,
    MAX_DIMENSIONS,
    MAX_HEADER,
    Header,
    read_header,
    read_metadata,
    read_tensor,
    write_safetensors_stream,
)
from mmsurgery.errors import InputRefused, UnusableData
from mmsurgery.names import Address, check_parameter_name
from mmsurgery.provenance import SCHEMA, canonical_json, parse_json, seal, sha256
from mmsurgery.workspace import SILENT, Progress

PARTS = ("changed", "xor")
RAW, ZLIB, PLANES = "raw", "zlib", "planes+zlib"
_ENCODINGS = {"changed": (RAW, ZLIB), "xor": (RAW, PLANES)}
_PATTERNS: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}
_KEYS = {"schema", "kind", "before", "after", "companions_sha256", "parameters", "sizes", "provenance"}
_SIDE = {"model", "model_type", "model_sha256", "record"}
_ENTRY = {"shape", "dtype", "address", "changed"}
_STORED = {"encoding", "sha256"}

Array = np.ndarray[Any, np.dtype[Any]]


def is_patch(path: Path) -> bool:
    """Whether a safetensors file says of itself that it is a patch; raises as `tensors.read_header`."""
    value = parse_json(read_header(path).metadata.get("mmsurgery", "{}").encode(), f"metadata of {path}")
    return isinstance(value, dict) and value.get("kind") == "patch"


@dataclass(frozen=True)
class PatchParameter:
    """What a patch says of one parameter."""

    shape: tuple[int, ...]
    dtype: str
    """safetensors code, e.g. `BF16`."""
    address: Address
    changed: int
    """Number of weights whose bits differ; without any, the file has no tensors of it."""
    encoding: Mapping[str, str] = field(default_factory=dict)
    """How `changed` and `xor` are stored: `raw`, `zlib`, `planes+zlib`."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Digests of both as stored."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Patch:
    """A patch file whose digests were checked; its tensors are read one at a time.

    `before` and `after` hold `model` (its name), `model_type`, `model_sha256` and `record`, the model's
    `mmsurgery-run.json` or None.
    """

    path: Path
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    companions_sha256: str
    """Of the configuration and processor files, which are the same before and after."""
    parameters: Mapping[str, PatchParameter] = field(repr=False)
    """Every parameter of the model, by canonical name."""
    sizes: Mapping[str, int]
    """`checkpoint`: bytes of all tensors of the model; `payload`: bytes of the patch's tensors; `changed` and
    `total`: weights."""
    provenance: Mapping[str, Any] = field(repr=False)
    _header: Header = field(repr=False)

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    @property
    def names(self) -> list[str]:
        """Parameters with changed weights, sorted."""
        return sorted(name for name, parameter in self.parameters.items() if parameter.changed)

    def changed(self, name: str) -> Bytes:
        """The packed bits of a parameter's changed weights, checked.

        Raises:
            InputRefused: if they are not as the patch says.
        """
        parameter = self.parameters[name]
        bits = self._stored(name, "changed", (parameter.numel + 7) // 8)
        if parameter.numel % 8 and bits[-1] >> (parameter.numel % 8):
            raise InputRefused(f"{self.path}: pad bits of {name} are not zero", AGAIN)
        if (found := count_ones(bits)) != parameter.changed:
            what = f"{self.path}: {name} marks {found:,} weights, its metadata says {parameter.changed:,}"
            raise InputRefused(what, AGAIN)
        return bits

    def xor(self, name: str) -> Array:
        """Exclusive or of the bit patterns of the changed weights, in C order, as unsigned integers.

        Raises:
            InputRefused: if it is not as the patch says.
        """
        parameter = self.parameters[name]
        pattern = _PATTERNS[DTYPES[parameter.dtype].itemsize]
        data = self._stored(name, "xor", parameter.changed * pattern.itemsize)
        if parameter.encoding["xor"] == PLANES:
            data = np.ascontiguousarray(data.reshape(pattern.itemsize, parameter.changed).T).reshape(-1)
        values = data.view(pattern)
        if not values.all():
            raise InputRefused(f"{self.path}: {name} marks weights as changed that do not change", AGAIN)
        return values

    def turned(self, name: str, array: Array) -> Array:
        """A parameter's values on the other side of the patch: after from before, and before from after.

        Args:
            array: the parameter's values in its shape and dtype; bfloat16 as 16-bit patterns.
        """
        parameter = self.parameters[name]
        flat = array.reshape(-1).view(_PATTERNS[array.dtype.itemsize]).copy()
        flat[unpack(self.changed(name), (parameter.numel,))] ^= self.xor(name)
        return flat.view(array.dtype).reshape(array.shape)

    def _stored(self, name: str, part: str, size: int) -> Bytes:
        data = self._read(name, part)
        where = f"{self.path}: {name}.{part}"
        if self.parameters[name].encoding[part] != RAW:
            return _inflate(data, size, where)
        if data.size != size:
            raise InputRefused(f"{where} holds {data.size:,} bytes, {size:,} expected", AGAIN)
        return data

    def _read(self, name: str, part: str) -> Bytes:
        tensor = f"{name}.{part}"
        data = read_tensor(self.path, self._header.tensors[tensor])
        if sha256(data.data) != self.parameters[name].sha256[part]:
            raise InputRefused(f"{self.path} is damaged: content digest of {tensor} differs", "make or copy it again")
        return data

    @classmethod
    def write(
        cls,
        path: Path,
        before: CheckpointFiles,
        after: CheckpointFiles,
        address: Callable[[str], Address],
        about: Mapping[str, Any],
        progress: Progress = SILENT,
    ) -> Patch:
        """Compare two checkpoints and write the patch between them, one parameter in memory at a time.

        Args:
            about: `before`, `after`, `companions_sha256` and `provenance` of the metadata.

        Raises:
            UnusableData: if the records of the models are too long for a header.
            MachineFault: if it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        entries: dict[str, dict[str, Any]] = {}
        layout: dict[str, tuple[str, tuple[int, ...]]] = {}
        with tempfile.TemporaryFile(dir=path.parent) as spool:
            places: dict[str, tuple[int, int]] = {}
            with progress.stage("comparing weights", len(before.names)) as advance:
                for name in before.names:
                    bits, xor = _difference(before.array(name), after.array(name))
                    entry: dict[str, Any] = {
                        "shape": list(before.shape(name)),
                        "dtype": before.dtype(name),
                        "address": str(address(name)),
                        "changed": xor.size,
                    }
                    entries[name] = entry
                    if xor.size:
                        entry.update(encoding={}, sha256={})
                        for part, (code, data) in _encoded(bits, xor).items():
                            entry["encoding"][part], entry["sha256"][part] = code, sha256(data)
                            layout[f"{name}.{part}"] = ("U8", (len(data),))
                            places[f"{name}.{part}"] = (spool.tell(), len(data))
                            spool.write(data)
                    advance(1)
            metadata = _metadata(entries, sum(size for _, size in places.values()), about)
            write_safetensors_stream(path, layout, _spooled(spool, places), {"mmsurgery": metadata})
        return cls.load(path)

    @classmethod
    def load(cls, path: Path | str) -> Patch:
        """Read what a patch says, and check it and the digests of its tensors.

        Raises:
            MissingArtifact: if the file does not exist.
            InputRefused: if it is no patch or is damaged.
            Mismatch: if it was written by another schema.
        """
        path = Path(path)
        header = read_header(path)
        value, where = read_metadata(header, "patch"), f"metadata of {path}"
        _check_metadata(value, where)
        parameters = {name: _parameter(path, name, entry) for name, entry in value["parameters"].items()}
        _check_tensors(path, header, parameters)
        _check_sizes(value["sizes"], header, parameters, where)
        patch = cls(
            path=path,
            before=value["before"],
            after=value["after"],
            companions_sha256=value["companions_sha256"],
            parameters=parameters,
            sizes=value["sizes"],
            provenance=value["provenance"],
            _header=header,
        )
        for name in patch.names:
            for part in PARTS:
                patch._read(name, part)
        return patch


def _difference(before: Array, after: Array) -> tuple[Bytes, Array]:
    """Packed bits of the elements that differ, and the exclusive or of their patterns."""
    pattern = _PATTERNS[before.dtype.itemsize]
    xor = before.reshape(-1).view(pattern) ^ after.reshape(-1).view(pattern)
    changed = xor != 0
    return pack(changed), xor[changed]


def _encoded(bits: Bytes, xor: Array) -> dict[str, tuple[str, bytes]]:
    """Part -> how it is stored, and its bytes."""
    planes = np.ascontiguousarray(xor.view(np.uint8).reshape(xor.size, xor.itemsize).T)
    return {
        "changed": _smaller(bits.tobytes(), ZLIB, _deflate(bits)),
        "xor": _smaller(xor.tobytes(), PLANES, _deflate(planes)),
    }


def _smaller(raw: bytes, code: str, packed: bytes) -> tuple[str, bytes]:
    return (code, packed) if len(packed) < len(raw) else (RAW, raw)


def _deflate(data: Bytes) -> bytes:
    """Runs and Huffman codes alone: noise has no longer repeats, and looking for them takes most of the time."""
    stream = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    return stream.compress(data.data) + stream.flush()


def _inflate(data: Bytes, size: int, where: str) -> Bytes:
    """A zlib stream of exactly `size` bytes; never more memory than that."""
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data.data, size + 1)
    except zlib.error as error:
        raise InputRefused(f"{where} cannot be decompressed", "make or copy it again") from error
    if len(found) != size or not stream.eof or stream.unused_data:
        raise InputRefused(f"{where} does not decompress to the {size:,} bytes expected", "make or copy it again")
    return np.frombuffer(found, np.uint8)


def _spooled(spool: IO[bytes], places: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, Bytes]]:
    for tensor in sorted(places):
        start, size = places[tensor]
        spool.seek(start)
        yield tensor, np.frombuffer(spool.read(size), np.uint8)


def _metadata(entries: Mapping[str, dict[str, Any]], payload: int, about: Mapping[str, Any]) -> str:
    sizes = _totals([(math.prod(e["shape"]), e["dtype"], e["changed"]) for e in entries.values()])
    value = {
        "schema": SCHEMA,
        "kind": "patch",
        **about,
        "parameters": dict(entries),
        "sizes": {**sizes, "payload": payload},
    }
    text = canonical_json(seal(value)).decode()
    if 2 * len(text) + 400 * len(entries) > MAX_HEADER:  # quotes are escaped in the header
        raise UnusableData("the records of the models are too long for a patch", "evaluate along the run less often")
    return text


def _totals(parameters: list[tuple[int, str, int]]) -> dict[str, int]:
    return {
        "checkpoint": sum(numel * DTYPES[dtype].itemsize for numel, dtype, _ in parameters),
        "changed": sum(changed for _, _, changed in parameters),
        "total": sum(numel for numel, _, _ in parameters),
    }


def _check_metadata(value: dict[str, Any], where: str) -> None:
    if set(value) != _KEYS:
        keys = ", ".join(key[:80] for key in sorted(set(value) ^ _KEYS)[:5])
        raise InputRefused(f"{where} has unknown or missing keys: {keys}", AGAIN)
    sides = [value["before"], value["after"]]
    sound = {
        "before and after": all(isinstance(side, dict) and set(side) == _SIDE for side in sides)
        and all(isinstance(side[key], str) for side in sides for key in _SIDE - {"record"})
        and all(side["record"] is None or isinstance(side["record"], dict) for side in sides)
        and sides[0]["model_type"] == sides[1]["model_type"],
        "companions_sha256": isinstance(value["companions_sha256"], str),
        "parameters": isinstance(value["parameters"], dict),
        "sizes": isinstance(value["sizes"], dict),
    }
    if faults := [key for key, good in sound.items() if not good]:
        raise InputRefused(f"{where}: {', '.join(faults)} cannot be read", AGAIN)


def _parameter(path: Path, name: str, entry: Any) -> PatchParameter:
    try:
        check_parameter_name(name)
        shape, dtype, changed = tuple(entry["shape"]), entry["dtype"], entry["changed"]
        if any(type(n) is not int or not 0 <= n < 1 << 48 for n in shape) or len(shape) > MAX_DIMENSIONS:
            raise ValueError("shape")
        if dtype not in DTYPES or type(changed) is not int or not 0 <= changed <= math.prod(shape):
            raise ValueError("dtype or changed")
        address = Address.parse(entry["address"])
        if set(entry) != (_ENTRY | _STORED if changed else _ENTRY):
            raise ValueError("keys")
        encoding, digests = entry.get("encoding", {}), entry.get("sha256", {})
        if changed and not all(
            set(table) == set(PARTS) and all(isinstance(v, str) for v in table.values())
            for table in (encoding, digests)
        ):
            raise ValueError("encoding")
        if any(code not in _ENCODINGS[part] for part, code in encoding.items()):
            raise ValueError("encoding")
    except (KeyError, TypeError, ValueError, AttributeError, InputRefused) as error:
        raise InputRefused(f"{path}: the metadata entry of {name[:200]} cannot be read", AGAIN) from error
    return PatchParameter(shape, dtype, address, changed, encoding, digests)


def _check_tensors(path: Path, header: Header, parameters: Mapping[str, PatchParameter]) -> None:
    """The tensors are those that the metadata names, none larger than what it holds unpacked."""
    expected = {f"{name}.{part}": (name, part) for name, p in parameters.items() if p.changed for part in PARTS}
    if set(expected) != set(header.tensors):
        difference = sorted(set(expected) ^ set(header.tensors))[:3]
        what = f"{path}: tensors and metadata name different parameters: {', '.join(difference)}"
        raise InputRefused(what, AGAIN)
    for tensor, info in header.tensors.items():
        name, part = expected[tensor]
        p = parameters[name]
        size = (p.numel + 7) // 8 if part == "changed" else p.changed * DTYPES[p.dtype].itemsize
        if info.dtype != "U8" or len(info.shape) != 1 or info.numel > size:
            what = f"{path}: tensor {tensor} is {info.dtype} {list(info.shape)}, at most {size:,} U8"
            raise InputRefused(what, AGAIN)


def _check_sizes(sizes: Any, header: Header, parameters: Mapping[str, PatchParameter], where: str) -> None:
    found = _totals([(p.numel, p.dtype, p.changed) for p in parameters.values()])
    found["payload"] = sum(info.numel for info in header.tensors.values())
    if sizes != found:
        raise InputRefused(f"{where}: sizes do not agree with its parameters", AGAIN)
