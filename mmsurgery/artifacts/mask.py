"""Masks: one bit per weight of a model, 1 = may be updated; packed in memory and on disk (see `mask_file`)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmsurgery.artifacts import mask_file
from mmsurgery.artifacts.bits import (
    Bools,
    Bytes,
    MaskParameter,
    Operation,
    Packed,
    count_ones,
    pack,
    tally,
    unpack,
    without,
)
from mmsurgery.artifacts.files import given_path
from mmsurgery.errors import Mismatch
from mmsurgery.names import GROUPS, Address, Selector
from mmsurgery.provenance import canonical_json, sha256_json

__all__ = [
    "COMPOSED",
    "SCORED_TEXT",
    "Bools",
    "Bytes",
    "Mask",
    "MaskParameter",
    "count_ones",
    "pack",
    "scored_text",
    "unpack",
]

SCORED_TEXT = "scored_text"
"""Count of the text samples behind a mask's saliency that are scored, too: the official, leaking choice."""
COMPOSED = "compose"
"""The rule of masks made from masks."""
_LONG = 400
"""Characters of an expression from which a composed mask stands in others by its digest."""


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

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    @property
    def names(self) -> list[str]:
        return sorted(self.parameters)

    @functools.cached_property
    def addresses(self) -> Mapping[str, Address]:
        if isinstance(self.parameters, Packed):
            return self.parameters.layout.addresses
        return {name: parameter.address for name, parameter in self.parameters.items()}

    @functools.cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """By canonical name."""
        if isinstance(self.parameters, Packed):
            return self.parameters.layout.shapes
        return {name: parameter.shape for name, parameter in self.parameters.items()}

    @functools.cached_property
    def selected(self) -> int:
        """Number of weights that may be updated."""
        if isinstance(self.parameters, Packed):
            return self.parameters.selected
        return sum(parameter.selected for parameter in self.parameters.values())

    @functools.cached_property
    def total(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    @functools.cached_property
    def content_sha256(self) -> str:
        """Identity of the bits: digest over names and packed bits."""
        return sha256_json({name: p.sha256 for name, p in self.parameters.items()})

    def _content(self) -> tuple[Any, ...]:
        return tuple(sorted(self.shapes.items())), self.content_sha256, self.modules, tuple(sorted(self.base.items()))

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
        return tally(self.parameters, by)

    # algebra

    def __and__(self, other: Mask) -> Mask:
        return self._combine(other, "&", np.bitwise_and)

    def __or__(self, other: Mask) -> Mask:
        return self._combine(other, "|", np.bitwise_or)

    def __xor__(self, other: Mask) -> Mask:
        return self._combine(other, "^", np.bitwise_xor)

    def __sub__(self, other: Mask) -> Mask:
        return self._combine(other, "-", without)

    @functools.cached_property
    def _packed(self) -> Packed:
        return Packed.of(self.parameters)

    def __invert__(self) -> Mask:
        """Every bit of the model flipped; its modules are all groups, so restrict it before use."""
        groups = {address.group for address in self.addresses.values()}
        modules = ",".join(group for group in GROUPS if group in groups)
        return self._derived(lambda names: f"~{names[0]}", self._packed.flipped(), modules, (self,))

    def restrict(self, selector: str) -> Mask:
        """The mask inside the selected modules; everything else false. The modules are recorded.

        Raises:
            UsageError: if the selector cannot be read or matches nothing.
        """
        inside = Selector(selector).select(self.addresses)
        changed = self._packed.only(inside)
        return self._derived(lambda names: f"{names[0]} @ {selector}", changed, selector, (self,), keep_rule=True)

    def fits(self, other: Mask) -> None:
        """Check that two masks belong to the same model.

        Raises:
            Mismatch: naming both models, and up to three parameters that differ.
        """
        models = " and ".join(f"{m.base['model_type']} {m.base['model_sha256'][:12]}" for m in (self, other))
        step = "use masks of one model; mmsurgery inspect says which model a mask is of"
        mine, theirs = self.shapes, other.shapes
        if mine != theirs:
            names = [n for n in sorted({*mine, *theirs}) if mine.get(n) != theirs.get(n)][:3]
            raise Mismatch(f"the masks belong to different models, {models}: they differ in {', '.join(names)}", step)
        if dict(self.base) != dict(other.base):
            raise Mismatch(f"the masks were built for models with different weights, {models}", step)

    def _combine(self, other: Mask, sign: str, operation: Operation) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        self.fits(other)
        changed = self._packed.with_(other._packed, operation)
        modules = self.modules if sign == "-" else self._modules_with(other, both=sign == "&")
        return self._derived(lambda names: f" {sign} ".join(names), changed, modules, (self, other))

    def _modules_with(self, other: Mask, *, both: bool) -> str:
        """The modules of either mask; with `both` those of both, so that `a & ~b` keeps the modules of `a`."""
        terms = list(dict.fromkeys([*self.modules.split(","), *other.modules.split(",")]))
        if both and self.modules != other.modules:
            shared = self.in_modules() & other.in_modules()
            within = [term for term in terms if Selector(term).select(self.addresses) <= shared]
            if within and Selector(",".join(within)).select(self.addresses) == shared:
                return ",".join(within)
        return ",".join(terms)

    def _derived(
        self,
        expression: Callable[[list[str]], str],
        parameters: Packed,
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
                "selected": parameters.selected,
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
        mask_file.write(path, self.parameters, {key: getattr(self, key) for key in mask_file.FIELDS})

    @classmethod
    def load(cls, path: Path | str) -> Mask:
        """Read a mask and check every digest, count, shape and pad bit.

        Raises:
            MissingArtifact: if the file does not exist.
            InputRefused: if it is no mask or is damaged.
            Mismatch: if it was written by another schema.
        """
        parameters, fields = mask_file.read(Path(path))
        return cls(parameters=parameters, **fields)


def scored_text(*masks: Mask) -> dict[str, int]:
    """`{SCORED_TEXT: n}` of what is made of masks of which one was measured on scored text, else nothing."""
    most = max((mask.counts.get(SCORED_TEXT, 0) for mask in masks), default=0)
    return {SCORED_TEXT: most} if most else {}
