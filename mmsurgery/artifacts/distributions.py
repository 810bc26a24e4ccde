"""Answer distributions of a set of samples under one model: a file that is computed once and mapped into memory.

    references/SET-KEY.safetensors
        log_probabilities   float32 [tokens, V], nats: of every word of the vocabulary at every answer token
        ends                int64 [rows]: the token after each row's last
        rows                int64 [samples]: the row of each sample

The metadata key `mmsurgery` holds kind `distributions`, provenance, and the digest of the three tensors. A file that is
cut, changed or of something else is made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsurgery.artifacts.tensors import Header, memory_map, read_header, read_metadata, write_safetensors
from mmsurgery.errors import InputRefused, Mismatch, MissingArtifact
from mmsurgery.provenance import SCHEMA, canonical_json, seal

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[Any]]
_TENSORS = {"log_probabilities": ("F32", 2), "ends": ("I64", 1), "rows": ("I64", 1)}


@dataclass(frozen=True)
class Distributions(Mapping[str, "torch.Tensor"]):
    """Id of a sample -> `[answer tokens, V]`, float32, nats, in main memory."""

    table: Array
    ends: Array
    places: Mapping[str, int]
    """Id -> row."""

    def __getitem__(self, sample: str) -> torch.Tensor:
        import torch

        row = self.places[sample]
        return torch.from_numpy(np.array(self.table[self.ends[row - 1] if row else 0 : self.ends[row]]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def write(path: Path, values: Array, ends: Array, rows: Array, provenance: Mapping[str, Any]) -> None:
    """
    Args:
        values, ends, rows: as the module says.

    Raises:
        MachineFault: if it cannot be written.
    """
    tensors = {"log_probabilities": values, "ends": ends, "rows": rows}
    digest = _digest(tensors)
    value = seal({"schema": SCHEMA, "kind": "distributions", "sha256": digest, "provenance": dict(provenance)})
    write_safetensors(path, tensors, {"mmsurgery": canonical_json(value).decode()})


def check(path: Path) -> None:
    """Check that a file is whole.

    Raises:
        InputRefused: if it is not.
        Mismatch: if it was written by another schema.
    """
    header = read_header(path)
    said = read_metadata(header, "distributions")
    if said.get("sha256") != _digest(_tensors(header)):
        raise InputRefused(f"{path} has changed since it was written", "remove it: it is made again where it is needed")


def read(path: Path, samples: Sequence[str], key: str) -> Distributions | None:
    """What is there of these samples, in their order; None where it has to be made: nothing is there, it is damaged, or
    it was made of something else.

    Args:
        key: of its provenance.
    """
    try:
        header = read_header(path)
        said = read_metadata(header, "distributions")
        found = _tensors(header)
    except (MissingArtifact, InputRefused, Mismatch):
        return None
    values, ends, rows = (found[name] for name in _TENSORS)
    sound = (
        said["provenance"].get("key") == key
        and said.get("sha256") == _digest(found)
        and len(rows) == len(samples)
        and len(ends) > 0
        and bool((np.diff(ends, prepend=0) > 0).all())
        and ends[-1] == len(values)
        and bool(((rows >= 0) & (rows < len(ends))).all())
    )
    return Distributions(values, ends, dict(zip(samples, rows.tolist(), strict=True))) if sound else None


def _tensors(header: Header) -> dict[str, Array]:
    kinds = {name: (info.dtype, len(info.shape)) for name, info in header.tensors.items()}
    if kinds != _TENSORS:
        raise InputRefused(f"{header.path} holds other tensors than distributions have", "remove it")
    return {name: memory_map(header.path, header.tensors[name]) for name in _TENSORS}


def _digest(tensors: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}{tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()
