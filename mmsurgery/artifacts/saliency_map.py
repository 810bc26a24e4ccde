"""Saliency maps: sums of squared gradients per parameter, in memory and as a folder of HDF5 files."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmsurgery.artifacts import hdf5, hdf5_write
from mmsurgery.artifacts.digests import cached_sha256
from mmsurgery.artifacts.files import atomic_folder, read_json, write_bytes
from mmsurgery.errors import InputRefused, Mismatch, MissingArtifact, UnusableData, UsageError
from mmsurgery.names import check_parameter_name
from mmsurgery.provenance import SCHEMA, canonical_json, check_seal, seal, sha256_json
from mmsurgery.workspace import ESTIMATORS

Array = np.ndarray[Any, np.dtype[Any]]

MANIFEST = "manifest.json"
FILE_BYTES = 1 << 30
"""Largest size of one HDF5 file, unless a single tensor is larger."""

_RECORDED = ("template_sha256", "companions_sha256")
"""Inputs that a map of another maker need not record."""

_KEYS = {
    "schema",
    "kind",
    "part",
    "estimator",
    "batch_size",
    "units",
    "model_type",
    "model_sha256",
    "data_sha256",
    "no_gradient",
    "tied",
    "files",
    "provenance",
}


@dataclass(frozen=True, kw_only=True)
class SaliencyMap:
    """What a data part needs of each weight: sums over units of squared gradients (Eq. 4).

    A unit is a sample (estimator `sample`), a batch (`batch`); estimator `dataset` keeps the signed
    sum of gradients over samples instead. The loss is the unit's mean answer NLL in nats; sums are
    nats^2 per unit of weight^2, float32 (float64 where the model is float64).
    """

    part: str
    estimator: str
    batch_size: int | None
    """Samples per unit for `batch`, else None."""
    units: int
    model_type: str
    model_sha256: str
    data_sha256: str
    """Digest of the whole part's samples, the same for each of its shards."""
    arrays: Mapping[str, Array] = field(repr=False)
    """Parameter name -> sums in the parameter's shape; read from the file at each access if loaded."""
    no_gradient: Mapping[str, tuple[int, ...] | None] = field(repr=False)
    """Parameters without gradient -> shape (None where a foreign manifest does not say)."""
    tied: Mapping[str, str] = field(default_factory=dict, repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def names(self) -> list[str]:
        """All parameters, with and without gradient, sorted."""
        return sorted([*self.arrays, *self.no_gradient])

    def sum_of_squares(self, name: str) -> Array:
        """Sum over units of squared gradients, in the parameter's shape.

        Raises:
            KeyError: for a parameter without gradient, and for unknown names.
            UsageError: for the `dataset` estimator, which has no sum of squares.
        """
        if self.estimator == "dataset":
            raise UsageError("estimator 'dataset' keeps sums of gradients, not of squares", "use sum_of_gradients")
        return self.arrays[name]

    def sum_of_gradients(self, name: str) -> Array:
        """Signed sum over samples of gradients (estimator `dataset` only); raises as `sum_of_squares`."""
        if self.estimator != "dataset":
            raise UsageError(f"estimator '{self.estimator}' keeps sums of squares", "use sum_of_squares")
        return self.arrays[name]

    def saliency(self, name: str) -> Array:
        """S in float64: `sum / units`, or `(sum / units)^2` for `dataset`. Raises KeyError as above."""
        mean = self.arrays[name].astype(np.float64) / self.units
        return mean * mean if self.estimator == "dataset" else mean

    def blocks(self, name: str, size: int = 1 << 20) -> Iterator[Array]:
        """The stored sums of a parameter in C order, flat, `size` at a time, each block valid until the next
        is asked for; an empty parameter is one empty block. Raises KeyError as above."""
        if isinstance(self.arrays, _Stored):
            yield from self.arrays.blocks(name, size)
            return
        flat = self.arrays[name].reshape(-1)
        yield from (flat[start : start + size] for start in range(0, max(flat.size, 1), size))

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The parameter's shape; None for one without gradient whose shape is not recorded."""
        if name in self.no_gradient:
            return self.no_gradient[name]
        return self.arrays.shape(name) if isinstance(self.arrays, _Stored) else self.arrays[name].shape

    @property
    def template_sha256(self) -> str | None:
        """Digest of what turned samples into tokens, where recorded."""
        return recorded(self.provenance, "template_sha256")

    @property
    def companions_sha256(self) -> str | None:
        """Digest of the model's configuration and processor files, where recorded."""
        return recorded(self.provenance, "companions_sha256")

    def same_kind(self, other: SaliencyMap) -> None:
        """Check that two maps may meet in one mask or sum: same model, estimator, batch size, template
        and configuration.

        Raises:
            Mismatch: naming what differs.
        """
        for what in ("model_type", "model_sha256", "estimator", "batch_size", *_RECORDED):
            mine, theirs = getattr(self, what), getattr(other, what)
            if mine != theirs and not (what in _RECORDED and None in (mine, theirs)):
                both = f"saliency of '{self.part}' and '{other.part}'"
                raise Mismatch(
                    f"{both} differ in {what}: {_short(mine)} and {_short(theirs)}",
                    "measure both with the same model, estimator and settings",
                )
        if self.names != other.names:
            difference = sorted(set(self.names) ^ set(other.names))[:3]
            raise Mismatch(
                f"saliency of '{self.part}' and '{other.part}' differ in parameters: {', '.join(difference)}",
                "measure both on one model",
            )

    @classmethod
    def merge(cls, maps: Sequence[SaliencyMap]) -> SaliencyMap:
        """The sum of the shards of one part (sums and units are additive).

        Raises:
            Mismatch: if they differ in part, data, model, estimator, batch size or template.
            UsageError: if there are none.
        """
        if not maps:
            raise UsageError("nothing to merge", "name at least one saliency map")
        first = maps[0]
        for other in maps[1:]:
            first.same_kind(other)
            if (first.part, first.data_sha256) != (other.part, other.data_sha256):
                raise Mismatch(
                    f"'{first.part}' and '{other.part}' are shards of different data", "merge shards of one data part"
                )
        with_gradient = sorted({name for one in maps for name in one.arrays})
        arrays: dict[str, Array] = {}
        for name in with_gradient:
            total = sum(one.arrays[name].astype(np.float64) for one in maps if name in one.arrays)
            kept = next(one.arrays[name] for one in maps if name in one.arrays)
            arrays[name] = np.asarray(total, dtype=kept.dtype)
        silent = {name: shape for name, shape in first.no_gradient.items() if name not in arrays}
        units = sum(one.units for one in maps)
        return replace(first, arrays=arrays, no_gradient=silent, units=units)

    # files

    def save(self, folder: Path | str, *, replace: bool = False, store: str = "float32") -> None:
        """Write the map as a folder: HDF5 files, then the manifest; whole or not at all.

        Args:
            replace: replace an existing folder.
            store: `float32`, or `bfloat16` for half the size (rounded to nearest).

        Raises:
            Mismatch: if the folder exists and `replace` is false.
            MachineFault: if it cannot be written.
        """
        group = "sum_of_gradients" if self.estimator == "dataset" else "sum_of_squares"
        with atomic_folder(Path(folder), replace=replace) as temporary:
            files = {}
            blocks = list(self._blocks())
            for index, names in enumerate(blocks):
                file = "saliency.h5" if len(blocks) == 1 else f"saliency-{index + 1:05d}-of-{len(blocks):05d}.h5"
                size, digest = hdf5_write.write(temporary / file, group, self.arrays, names, store)
                files[file] = {"bytes": size, "sha256": digest}
            (temporary / MANIFEST).write_bytes(canonical_json(self._manifest(files)) + b"\n")

    def _blocks(self) -> Iterator[list[str]]:
        block: list[str] = []
        size = 0
        for name in sorted(self.arrays):
            needed = math.prod(self.shape(name) or ()) * 4
            if block and size + needed > FILE_BYTES:
                yield block
                block, size = [], 0
            block.append(name)
            size += needed
        yield block

    def _manifest(self, files: Mapping[str, Any]) -> dict[str, Any]:
        shapes = {name: list(shape) for name, shape in self.no_gradient.items() if shape is not None}
        return seal(
            {
                "schema": SCHEMA,
                "kind": "saliency",
                "part": self.part,
                "estimator": self.estimator,
                "batch_size": self.batch_size,
                "units": self.units,
                "model_type": self.model_type,
                "model_sha256": self.model_sha256,
                "data_sha256": self.data_sha256,
                "no_gradient": sorted(self.no_gradient),
                "tied": dict(self.tied),
                "files": dict(files),
                "provenance": {**self.provenance, "no_gradient_shapes": shapes},
            }
        )

    @classmethod
    def load(cls, folder: Path | str) -> SaliencyMap:
        """Read a map; every file's digest is checked, tensors are read when asked for.

        Raises:
            MissingArtifact: if the folder or its manifest is not there.
            InputRefused: if anything is damaged, missing, surplus or not as the manifest says.
            Mismatch: if it was written by another schema.
        """
        folder = Path(folder)
        value = read_manifest(folder)
        group = "sum_of_gradients" if value["estimator"] == "dataset" else "sum_of_squares"
        where: dict[str, hdf5.Dataset] = {}
        for file, claim in value["files"].items():
            path = folder / file
            if not path.is_file():
                raise InputRefused(f"{folder} is incomplete: {file} is missing", "measure it again")
            if path.stat().st_size != claim["bytes"] or cached_sha256(path) != claim["sha256"]:
                raise InputRefused(f"{path} is damaged: content digest differs", "measure it again with --force")
            for name, dataset in hdf5.datasets(path, group).items():
                if name in where or name in value["no_gradient"]:
                    raise InputRefused(f"{path}: parameter {name} stands twice")
                where[name] = dataset
        provenance = dict(value["provenance"])
        shapes = provenance.pop("no_gradient_shapes", {})
        return cls(
            **{key: value[key] for key in _KEYS - {"schema", "kind", "files", "no_gradient", "provenance"}},
            arrays=_Stored(where),
            no_gradient={name: tuple(shapes[name]) if name in shapes else None for name in value["no_gradient"]},
            provenance=provenance,
        )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The checked manifest of a saliency folder; raises as `SaliencyMap.load`."""
    if not folder.is_dir():
        raise MissingArtifact(f"{folder} does not exist", "mmsurgery saliency --set SET")
    where = str(folder / MANIFEST)
    if not (folder / MANIFEST).exists():
        raise InputRefused(f"{folder} holds no {MANIFEST}: it is no whole saliency map", "measure it again")
    value = check_seal(read_json(folder / MANIFEST), where, kind="saliency")
    if set(value) != _KEYS:
        raise InputRefused(
            f"{where} has unknown or missing keys: {', '.join(sorted(set(value) ^ _KEYS))}", "measure it again"
        )
    faults = [key for key, sound in _CHECKS.items() if not sound(value[key])]
    if value["estimator"] == "batch" and value["batch_size"] is None:
        faults.append("batch_size")
    if faults:
        raise InputRefused(f"{where}: {', '.join(faults)} cannot be read", "measure it again")
    if value["units"] == 0:
        raise UnusableData(f"{where}: saliency of no unit", "measure a part that has samples")
    for name in [*value["no_gradient"], *value["tied"], *value["tied"].values()]:
        check_parameter_name(name)
    surplus = sorted(path.name for path in folder.glob("[!.]*.h5") if path.name not in value["files"])
    if surplus:
        raise InputRefused(
            f"{folder} holds {surplus[0]}, which its manifest does not name", "measure it again with --force"
        )
    return value


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value) and len(set(value)) == len(value)


def _is_claim(file: str, claim: Any) -> bool:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\.h5", file) or not isinstance(claim, dict):
        return False
    return set(claim) == {"bytes", "sha256"} and _count(claim["bytes"]) and isinstance(claim["sha256"], str)


def _has_shapes(provenance: Any) -> bool:
    shapes = provenance.get("no_gradient_shapes", {})
    return isinstance(shapes, dict) and all(isinstance(s, list) and all(map(_count, s)) for s in shapes.values())


_CHECKS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("part", "model_type", "model_sha256", "data_sha256"), lambda value: isinstance(value, str)),
    "estimator": lambda value: value in ESTIMATORS,
    "units": _count,
    "batch_size": lambda value: value is None or (_count(value) and value > 0),
    "no_gradient": _texts,
    "tied": lambda value: isinstance(value, dict) and all(isinstance(each, str) for each in value.values()),
    "files": lambda value: isinstance(value, dict) and all(_is_claim(*item) for item in value.items()),
    "provenance": _has_shapes,
}


def recorded(provenance: Mapping[str, Any], key: str) -> str | None:
    """A digest among the inputs of a provenance, None where it is not recorded."""
    inputs = provenance.get("inputs")
    value = inputs.get(key) if isinstance(inputs, Mapping) else None
    return None if value is None else str(value)


def content_sha256(manifest: Mapping[str, Any]) -> str:
    """Identity of a map on disk: digest of its manifest, files included, without its provenance."""
    return sha256_json({key: value for key, value in manifest.items() if key != "provenance"})


def write_manifest(folder: Path, value: dict[str, Any]) -> None:
    """Write a manifest on its own (tests and converters)."""
    write_bytes(folder / MANIFEST, canonical_json(seal(value)) + b"\n")


class _Stored(Mapping[str, Array]):
    """Arrays read from their HDF5 files at each access."""

    def __init__(self, where: Mapping[str, hdf5.Dataset]) -> None:
        self._where = where

    def __getitem__(self, name: str) -> Array:
        return hdf5.read(self._where[name])

    def blocks(self, name: str, size: int) -> Iterator[Array]:
        return hdf5.blocks(self._where[name], size)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __contains__(self, name: object) -> bool:
        return name in self._where  # the mixin's would read the whole tensor

    def __len__(self) -> int:
        return len(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._where[name].shape


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
