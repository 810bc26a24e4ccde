"""Masks: one bit per weight of a model, 1 = may be updated; packed in memory and on disk.

File: one safetensors file, per parameter a uint8 tensor of ceil(numel / 8) bytes, bit order little
(element i is bit i % 8 of byte i // 8), pad bits zero; metadata key `mmsurgery` holds the rest.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmsurgery.artifacts.files import given_path
from mmsurgery.artifacts.mask_metadata import check_metadata, check_modules
from mmsurgery.artifacts.tensors import (
    AGAIN,
    MAX_DIMENSIONS,
    read_header,
    read_metadata,
    read_tensor,
    write_safetensors,
)
from mmsurgery.errors import InputRefused, Mismatch, unknown
from mmsurgery.names import GROUPS, Address, Selector, model_order
from mmsurgery.provenance import SCHEMA, canonical_json, seal, sha256, sha256_json

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

SCORED_TEXT = "scored_text"
"""Count of the text samples behind a mask's saliency that are scored, too: the official, leaking choice."""
COMPOSED = "compose"
"""The rule of masks made from masks."""
_LONG = 400
"""Characters of an expression from which a composed mask stands in others by its digest."""


@dataclass(frozen=True, eq=False)
class MaskParameter:
    """One parameter of a mask."""

    shape: tuple[int, ...]
    address: Address
    bits: Bytes = field(repr=False)
    """ceil(numel / 8) bytes, bit order little, pad bits zero."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @functools.cached_property
    def selected(self) -> int:
        """Number of ones."""
        return count_ones(self.bits)

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of the packed bits."""
        return sha256(self.bits.data)


def pack(values: Bools) -> Bytes:
    """Pack booleans of any shape, C order, bit order little, pad bits zero."""
    return np.packbits(np.ascontiguousarray(values).reshape(-1), bitorder="little")


def unpack(bits: Bytes, shape: tuple[int, ...]) -> Bools:
    """The booleans of a shape from their packed bits."""
    return np.unpackbits(bits, count=math.prod(shape), bitorder="little").view(np.bool_).reshape(shape)


def count_ones(bits: Bytes) -> int:
    """Number of ones in packed bits."""
    whole = bits.size // 8 * 8
    words = int(np.bitwise_count(bits[:whole].view(np.uint64)).sum(dtype=np.int64)) if whole else 0
    return words + int(np.bitwise_count(bits[whole:]).sum(dtype=np.int64))


@dataclass(frozen=True, kw_only=True, eq=False)
class Mask:
    """A boolean per weight of one model. Immutable; operators make new masks on packed bits.

    Masks are equal that would do the same: same bits, shapes, modules and base, however they were made.
    """

    rule: str
    """How it was made: `ratio`, `random`, `inverse`, `magnitude`, `forget-only`, `compose`, ..."""
    beta: float | None
    estimator: str | None
    mixture: str | None
    modules: str
    """Selector of the modules it is about; parameters outside are frozen by `apply` in every scope."""
    parameters: Mapping[str, MaskParameter] = field(repr=False)
    """Every parameter of the model, by canonical name."""
    base: Mapping[str, str]
    """`model_type` and `model_sha256` of the model it belongs to."""
    parents: tuple[Mapping[str, Any], ...] = ()
    """What it was made from, each once: masks (`kind` mask, `rule`, `content_sha256`, `modules`; `name` where
    it had one) and the saliency they were made from (`kind` saliency, `part`, `units`, `data_sha256`, ...)."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """`selected`, `total`, and for ratio rules `zero_over_zero` and `no_gradient` entries."""
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    # looking into it

    def __getitem__(self, name: str) -> Bools:
        """The booleans of a parameter in its shape; KeyError for unknown names."""
        parameter = self.parameters[name]
        return unpack(parameter.bits, parameter.shape)

    def __iter__(self) -> Any:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    @property
    def names(self) -> list[str]:
        return sorted(self.parameters)

    @property
    def addresses(self) -> dict[str, Address]:
        return {name: parameter.address for name, parameter in self.parameters.items()}

    @property
    def selected(self) -> int:
        """Number of weights that may be updated."""
        return sum(parameter.selected for parameter in self.parameters.values())

    @property
    def total(self) -> int:
        return sum(parameter.numel for parameter in self.parameters.values())

    @property
    def content_sha256(self) -> str:
        """Identity of the bits: digest over names and packed bits."""
        return sha256_json({name: p.sha256 for name, p in self.parameters.items()})

    def _content(self) -> tuple[Any, ...]:
        shapes = tuple(sorted((name, parameter.shape) for name, parameter in self.parameters.items()))
        return shapes, self.content_sha256, self.modules, tuple(sorted(self.base.items()))

    def __eq__(self, other: object) -> bool:
        return self._content() == other._content() if isinstance(other, Mask) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._content())

    def in_modules(self) -> set[str]:
        """Names of the parameters inside `modules`."""
        return Selector(self.modules).select(self.addresses)

    def density(self, by: str | None = None) -> Any:
        """Selected share of weights: one float, or a dict by key.

        Args:
            by: None for the whole mask; `group` (`lm`), `layer` (`lm.8`; a parameter without a
                layer counts under its group), `component` (`lm.8.mlp.down`) or `parameter` (name).

        Raises:
            UsageError: for another `by`.
        """
        if by is None:
            return self.selected / self.total if self.total else 0.0
        return {key: (ones / total if total else 0.0) for key, (ones, total) in self.tally(by).items()}

    def tally(self, by: str) -> dict[str, tuple[int, int]]:
        """(selected, total) by key; see `density`."""
        keys: dict[str, Callable[[str, Address], str]] = {
            "group": lambda name, address: address.group,
            "layer": lambda name, address: address.layer_key,
            "component": lambda name, address: str(address),
            "parameter": lambda name, address: name,
        }
        if by not in keys:
            raise unknown("density key", by, keys)
        sums: dict[str, tuple[int, int]] = {}
        for name, parameter in sorted(self.parameters.items()):
            key = keys[by](name, parameter.address)
            ones, total = sums.get(key, (0, 0))
            sums[key] = (ones + parameter.selected, total + parameter.numel)
        return sums if by == "parameter" else {key: sums[key] for key in sorted(sums, key=model_order)}

    # algebra

    def __and__(self, other: Mask) -> Mask:
        return self._combine(other, "&", np.bitwise_and)

    def __or__(self, other: Mask) -> Mask:
        return self._combine(other, "|", np.bitwise_or)

    def __xor__(self, other: Mask) -> Mask:
        return self._combine(other, "^", np.bitwise_xor)

    def __sub__(self, other: Mask) -> Mask:
        return self._combine(other, "-", lambda a, b: np.bitwise_and(a, np.bitwise_not(b)))

    def __invert__(self) -> Mask:
        """Every bit of the model flipped; its modules are all groups, so restrict it before use."""
        changed = {
            name: replace(p, bits=_clear_pad(np.bitwise_not(p.bits), p.numel)) for name, p in self.parameters.items()
        }
        groups = {p.address.group for p in self.parameters.values()}
        modules = ",".join(group for group in GROUPS if group in groups)
        return self._derived(lambda names: f"~{names[0]}", changed, modules, (self,))

    def restrict(self, selector: str) -> Mask:
        """The mask inside the selected modules; everything else false. The modules are recorded.

        Raises:
            UsageError: if the selector cannot be read or matches nothing.
        """
        inside = Selector(selector).select(self.addresses)
        changed = {
            name: p if name in inside else replace(p, bits=np.zeros_like(p.bits)) for name, p in self.parameters.items()
        }
        return self._derived(lambda names: f"{names[0]} @ {selector}", changed, selector, (self,), keep_rule=True)

    def fits(self, other: Mask) -> None:
        """Check that two masks belong to the same model.

        Raises:
            Mismatch: naming both models, and up to three parameters that differ.
        """
        models = " and ".join(f"{m.base['model_type']} {m.base['model_sha256'][:12]}" for m in (self, other))
        step = "use masks of one model; mmsurgery inspect says which model a mask is of"
        mine = {name: p.shape for name, p in self.parameters.items()}
        theirs = {name: p.shape for name, p in other.parameters.items()}
        if mine != theirs:
            names = [n for n in sorted({*mine, *theirs}) if mine.get(n) != theirs.get(n)][:3]
            raise Mismatch(f"the masks belong to different models, {models}: they differ in {', '.join(names)}", step)
        if dict(self.base) != dict(other.base):
            raise Mismatch(f"the masks were built for models with different weights, {models}", step)

    def _combine(self, other: Mask, sign: str, operation: Callable[[Any, Any], Any]) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        self.fits(other)
        changed = {
            name: replace(p, bits=operation(p.bits, other.parameters[name].bits)) for name, p in self.parameters.items()
        }
        modules = self.modules if sign == "-" else self._modules_with(other, both=sign == "&")
        return self._derived(lambda names: f" {sign} ".join(names), changed, modules, (self, other))

    def _modules_with(self, other: Mask, *, both: bool) -> str:
        """The modules of either mask; with `both` those of both, so that `a & ~b` keeps the modules of `a`."""
        terms = list(dict.fromkeys([*self.modules.split(","), *other.modules.split(",")]))
        if both:
            shared = self.in_modules() & other.in_modules()
            within = [term for term in terms if Selector(term).select(self.addresses) <= shared]
            if within and Selector(",".join(within)).select(self.addresses) == shared:
                return ",".join(within)
        return ",".join(terms)

    def _derived(
        self,
        expression: Callable[[list[str]], str],
        parameters: Mapping[str, MaskParameter],
        modules: str,
        operands: tuple[Mask, ...],
        *,
        keep_rule: bool = False,
    ) -> Mask:
        parents: dict[str, Mapping[str, Any]] = {}
        for operand in operands:
            for parent in operand._as_parents():
                parents.setdefault(canonical_json(parent).decode(), parent)
        return Mask(
            rule=self.rule if keep_rule else COMPOSED,
            beta=self.beta if keep_rule else None,
            estimator=self.estimator if keep_rule else None,
            mixture=self.mixture if keep_rule else None,
            modules=modules,
            parameters=parameters,
            base=self.base,
            parents=tuple(parents.values()),
            counts={
                "selected": sum(p.selected for p in parameters.values()),
                "total": self.total,
                **scored_text(*operands),
            },
            provenance={
                "command": "compose",
                "settings": {"expression": expression([operand._as_operand() for operand in operands])},
            },
        )

    @property
    def expression(self) -> str | None:
        """How it was composed, where it was."""
        settings = self.provenance.get("settings")
        value = settings.get("expression") if isinstance(settings, Mapping) else None
        return value if isinstance(value, str) else None

    def _is_step(self) -> bool:
        """Whether it is a step of a composition that is going on, not a mask with a history of its own."""
        return self.rule == COMPOSED and self.expression is not None and len(self.expression) < _LONG

    def _as_operand(self) -> str:
        return f"({self.expression})" if self._is_step() else f"'{self.content_sha256[:12]}'"

    def _as_parents(self) -> tuple[Mapping[str, Any], ...]:
        if self._is_step():
            return self.parents
        own = {
            "kind": "mask",
            "rule": self.rule,
            "modules": self.modules,
            "content_sha256": self.content_sha256,
        }
        return own, *self.parents

    # files

    def save(self, path: Path | str) -> None:
        """Write the mask as one safetensors file, atomically; an existing file is replaced.

        Raises:
            UsageError: if its folder does not exist.
            MachineFault: if it cannot be written.
        """
        self.write(given_path(Path(path)))

    def write(self, path: Path) -> None:
        """`save` to a path of ours: its folder is made where it is missing."""
        write_safetensors(path, {n: p.bits for n, p in self.parameters.items()}, {"mmsurgery": self._metadata()})

    def _metadata(self) -> str:
        value = {
            "schema": SCHEMA,
            "kind": "mask",
            "rule": self.rule,
            "beta": self.beta,
            "estimator": self.estimator,
            "mixture": self.mixture,
            "modules": self.modules,
            "parameters": {
                name: {
                    "shape": list(p.shape),
                    "selected": p.selected,
                    "sha256": p.sha256,
                    "address": str(p.address),
                }
                for name, p in self.parameters.items()
            },
            "base": dict(self.base),
            "parents": [dict(parent) for parent in self.parents],
            "counts": dict(self.counts),
            "provenance": dict(self.provenance),
        }
        return canonical_json(seal(value)).decode()

    @classmethod
    def load(cls, path: Path | str) -> Mask:
        """Read a mask and check every digest, count, shape and pad bit.

        Raises:
            MissingArtifact: if the file does not exist.
            InputRefused: if it is no mask or is damaged.
            Mismatch: if it was written by another schema.
        """
        path = Path(path)
        header = read_header(path)
        value, where = read_metadata(header, "mask"), f"metadata of {path}"
        check_metadata(value, where)
        entries = value["parameters"]
        if set(entries) != set(header.tensors):
            difference = sorted(set(entries) ^ set(header.tensors))[:3]
            what = f"{path}: tensors and metadata name different parameters: {', '.join(difference)}"
            raise InputRefused(what, AGAIN)
        parameters = {}
        for name, info in header.tensors.items():
            if info.dtype != "U8" or len(info.shape) != 1:
                what = f"{path}: tensor {name} is {info.dtype} {list(info.shape)}, packed U8 expected"
                raise InputRefused(what, AGAIN)
            parameters[name] = _parameter(path, name, entries[name], read_tensor(path, info))
        addresses = {name: p.address for name, p in parameters.items()}
        check_modules(value["modules"], addresses, {name: p.selected for name, p in parameters.items()}, where)
        return cls(
            **{key: value[key] for key in ("rule", "beta", "estimator", "mixture", "modules", "base", "counts")},
            parameters=parameters,
            parents=tuple(value["parents"]),
            provenance=value["provenance"],
        )


def _parameter(path: Path, name: str, entry: Any, bits: Bytes) -> MaskParameter:
    try:
        shape = tuple(entry["shape"])
        address, selected, digest = Address.parse(entry["address"]), entry["selected"], entry["sha256"]
        if any(type(n) is not int or not 0 <= n < 1 << 48 for n in shape) or len(shape) > MAX_DIMENSIONS:
            raise ValueError("shape")
    except (KeyError, TypeError, ValueError, AttributeError, InputRefused) as error:
        raise InputRefused(f"{path}: the metadata entry of {name} cannot be read", AGAIN) from error
    numel = math.prod(shape)
    if bits.size != (numel + 7) // 8:
        what = f"{path}: {name} has {bits.size} bytes, {(numel + 7) // 8} expected for shape {list(shape)}"
        raise InputRefused(what, AGAIN)
    parameter = MaskParameter(shape, address, bits)
    if parameter.sha256 != digest:
        raise InputRefused(f"{path} is damaged: content digest of {name} differs", "make the mask again")
    if numel % 8 and bits[-1] >> (numel % 8):
        raise InputRefused(f"{path}: pad bits of {name} are not zero", AGAIN)
    if parameter.selected != selected:
        what = f"{path}: {name} selects {parameter.selected:,} weights, its metadata says {str(selected)[:40]}"
        raise InputRefused(what, AGAIN)
    return parameter


def _clear_pad(bits: Bytes, numel: int) -> Bytes:
    if numel % 8:
        bits[-1] &= (1 << (numel % 8)) - 1
    return bits


def scored_text(*masks: Mask) -> dict[str, int]:
    """`{SCORED_TEXT: n}` of what is made of masks of which one was measured on scored text, else nothing."""
    most = max((mask.counts.get(SCORED_TEXT, 0) for mask in masks), default=0)
    return {SCORED_TEXT: most} if most else {}
