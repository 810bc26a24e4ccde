"""The mask rule (paper Eq. 7): a weight may be updated where forget saliency dominates.

    selected = S_T > 0 and S_T >= beta * S_P

S = sum / units in float64 from the stored sums, S = (sum / units)^2 for estimator `dataset`. No
division by S_P and no epsilon: 0/0 is not selected, x/0 is, S_T = S_P is selected at beta = 1.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from mmsurgery.artifacts.mask import SCORED_TEXT, Bytes, Mask, MaskParameter
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.errors import Mismatch, UnusableData, UsageError, unknown
from mmsurgery.masks import top
from mmsurgery.names import GROUPS, Address, Selector
from mmsurgery.provenance import provenance, sha256_json

Float64 = np.ndarray[Any, np.dtype[np.float64]]

_NUMBER = re.compile(r"\+?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
MIXTURES = ("pooled", "equal")
SCOPES = ("overall", "tensor")
_BITS: dict[str, tuple[Any, int]] = {"<f4": ("<u4", 0xFF << 23), "<f8": ("<u8", 0x7FF << 52)}
"""Float dtype -> its bits as unsigned integers, and what infinity is as one."""
BLOCK = 1 << 18
"""Weights that are compared at a time; a multiple of 8."""


class Ratio:
    """Forget and preserve saliency of the same model side by side, read block by block.

    Args:
        forget: S_T.
        preserve: the parts of S_P; a part without gradient for a parameter counts as 0 there.
        mixture: `pooled` (sum of the sums over sum of the units) or `equal` (mean of the parts' S).

    Raises:
        Mismatch: if the maps differ in model, estimator, batch size, template, names or shapes.
        UsageError: for no preserve map or an unknown mixture.
    """

    def __init__(self, forget: SaliencyMap, preserve: Sequence[SaliencyMap], mixture: str = "pooled") -> None:
        if mixture not in MIXTURES:
            raise unknown("mixture", mixture, MIXTURES)
        if not preserve:
            raise UsageError("a mask needs preserve saliency", "name at least one preserve map")
        for other in preserve:
            forget.same_kind(other)
        self.forget, self.preserve, self.mixture = forget, tuple(preserve), mixture
        self.shapes = {name: self._shape(name) for name in forget.names}
        self._squared = forget.estimator == "dataset"
        self._units = sum(part.units for part in preserve)
        self._buffers = np.empty((3, BLOCK))

    def _shape(self, name: str) -> tuple[int, ...]:
        known = {shape for each in (self.forget, *self.preserve) if (shape := each.shape(name)) is not None}
        if len(known) != 1:
            what = "have different shapes for" if known else "do not say the shape of"
            raise Mismatch(f"the saliency maps {what} {name}", "measure all of them again with --force")
        return known.pop()

    def blocks(self, name: str) -> Iterator[tuple[Float64, Float64]]:
        """S_T and S_P of a parameter with forget gradient, flat, float64, at most `BLOCK` at a time;
        valid until the next pair is asked for.

        Raises:
            UnusableData: for NaN, infinity or negative saliency, naming part and parameter.
        """
        maps = [self.forget, *(part for part in self.preserve if name in part.arrays)]
        for slabs in zip(*(each.blocks(name) for each in maps), strict=True):
            for start in range(0, slabs[0].size, BLOCK):
                pieces = [slab[start : start + BLOCK] for slab in slabs]
                for each, values in zip(maps, pieces, strict=True):
                    self._check(values, each.part, name)
                target, kept = (buffer[: pieces[0].size] for buffer in self._buffers[:2])
                self._mean(pieces[0], self.forget.units, target)
                self._mix(pieces[1:], [each.units for each in maps[1:]], kept)
                yield target, kept

    def _check(self, values: Float64, part: str, name: str) -> None:
        bits, infinity = _BITS.get(values.dtype.str, (None, 0))
        if not self._squared and bits is not None and values.view(bits).max() < infinity:
            return  # as bits, non-negative finite values are those below infinity: one pass instead of two
        least = values.min()
        if not ((least > -math.inf if self._squared else least >= 0) and values.max() < math.inf):
            what = "NaN or infinite" if self._squared else "NaN, infinite or negative"
            raise UnusableData(f"saliency '{part}' of {name} holds {what} values", "measure it again with --force")

    def _mean(self, sums: Float64, units: int, out: Float64) -> None:
        if sums is not out:
            np.copyto(out, sums)
        np.divide(out, float(units), out=out)
        if self._squared:
            np.square(out, out=out)

    def _mix(self, pieces: Sequence[Float64], units: Sequence[int], out: Float64) -> None:
        if self.mixture == "pooled" and pieces:
            np.copyto(out, pieces[0])
            for sums in pieces[1:]:
                np.add(out, sums, out=out, dtype=np.float64)
            self._mean(out, self._units, out)
            return
        out.fill(0)
        mean = self._buffers[2, : out.size]
        for sums, count in zip(pieces, units, strict=True):
            self._mean(sums, count, mean)
            np.add(out, mean, out=out)
        np.divide(out, len(self.preserve), out=out)

    def keys(self, name: str, counts: dict[str, int] | None = None) -> Iterator[top.Keys]:
        """Keys that sort as S_T / S_P: infinite where S_P = 0, never (0) where S_T = 0.

        Args:
            counts: its `zero_over_zero` grows by the entries with S_T = S_P = 0.
        """
        for target, kept in self.blocks(name):
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.divide(target, kept, out=self._buffers[2, : target.size])
            if counts is not None:
                counts["zero_over_zero"] += int(np.count_nonzero(np.isnan(ratio)))
            yield np.where(target > 0, top.order(ratio), np.uint64(0))


@dataclass
class _Selection:
    """What a rule selects: packed bits by parameter, and counts of entries inside the modules."""

    bits: dict[str, Bytes]
    counts: dict[str, int]


def ratio_mask(
    forget: SaliencyMap,
    preserve: SaliencyMap | Sequence[SaliencyMap],
    *,
    beta: float | str = 1.0,
    mixture: str = "pooled",
    density: float | None = None,
    per: str = "overall",
    modules: str | None = None,
    address: Callable[[str], Address] | None = None,
) -> Mask:
    """The mask of Eq. 7, or the weights with the largest ratio S_T / S_P.

    Args:
        forget: saliency of the target set (Eq. 5).
        preserve: saliency of the preserve set (Eq. 6), one map per part.
        beta: threshold, above 0; not used where `density` is given.
        mixture: how parts make S_P, `pooled` over their units or `equal` weight per part.
        density: instead of beta, select this share (0 to 1] of the weights inside `modules`, or all
            with S_T > 0 where these are fewer; ties by name, then flat index.
        per: share of all weights together (`overall`) or of each `tensor`.
        modules: selector of what the mask is about; all groups of the model by default.
        address: parameter name -> address; by default the installed backbone of the map's model type.

    Returns:
        A mask that lists every parameter. Its `counts` hold, inside the modules, `zero_over_zero`
        (S_T = S_P = 0) and `no_gradient` (entries of parameters without forget gradient), by density
        also `wanted` (how many were to be selected).

    Raises:
        TypeError: for maps of another type.
        UsageError: for a wrong beta, density, mixture or selector.
        Mismatch: if the maps do not belong together.
        UnusableData: if nothing is selected, or saliency is not finite.
    """
    maps = [preserve] if isinstance(preserve, SaliencyMap) else list(preserve)
    for each in (forget, *maps):
        if not isinstance(each, SaliencyMap):
            raise TypeError(f"a {type(each).__name__} is no SaliencyMap - next: SaliencyMap.load(path)")
    threshold = check_beta(beta)
    if density is not None:
        check_density(density)
    if per not in SCOPES:
        raise unknown("scope of density", per, SCOPES)
    ratio = Ratio(forget, maps, mixture)
    if address is None:
        from mmsurgery.backbones.discovery import backbone

        address = backbone(forget.model_type).address
    addresses = {name: address(name) for name in forget.names}
    groups = {each.group for each in addresses.values()}
    selector = Selector(modules or ",".join(group for group in GROUPS if group in groups))
    names = sorted(selector.select(addresses))
    chosen = _by_beta(ratio, names, threshold) if density is None else _by_density(ratio, names, density, per)
    rule: dict[str, Any] = {"beta": threshold} if density is None else {"density": density, "per": per}
    return _mask(ratio, addresses, chosen, {**rule, "mixture": mixture, "modules": str(selector)})


def check_beta(text: str | float) -> float:
    """A threshold: a finite number above zero, written with a decimal point whatever the locale.

    Raises:
        UsageError: for anything else.
    """
    beta = math.nan if isinstance(text, str) and not _NUMBER.fullmatch(text) else float(text)
    if not (math.isfinite(beta) and beta > 0):
        raise UsageError(f"beta is '{text}', should be a number above 0", "pass --beta 1")
    return beta


def check_density(density: float) -> float:
    """A share of weights: above 0, at most 1.

    Raises:
        UsageError: for anything else.
    """
    if not 0 < density <= 1:
        raise UsageError(f"density is {density}, should be above 0 and at most 1", "pass --density 0.1")
    return density


def _by_beta(ratio: Ratio, names: Sequence[str], beta: float) -> _Selection:
    chosen = _Selection({}, {"zero_over_zero": 0, "no_gradient": 0})
    buffers = np.empty((2, BLOCK), np.bool_)  # fresh arrays would cost more than the arithmetic
    for name in names:
        if name not in ratio.forget.arrays:
            chosen.counts["no_gradient"] += math.prod(ratio.shapes[name])
            continue
        packed = []
        for target, kept in ratio.blocks(name):
            positive, enough = buffers[:, : target.size]
            np.greater(target, 0, out=positive)
            if not positive.all():
                chosen.counts["zero_over_zero"] += int(np.count_nonzero(kept[~positive] == 0))
            if beta != 1:
                np.multiply(kept, beta, out=kept)
            np.greater_equal(target, kept, out=enough)
            np.logical_and(positive, enough, out=enough)
            packed.append(np.packbits(enough, bitorder="little"))
        chosen.bits[name] = np.concatenate(packed) if packed else np.zeros(0, np.uint8)
    return chosen


def _by_density(ratio: Ratio, names: Sequence[str], density: float, per: str) -> _Selection:
    sizes = {name: math.prod(ratio.shapes[name]) for name in names}
    silent = sum(sizes[name] for name in names if name not in ratio.forget.arrays)
    chosen = _Selection({}, {"zero_over_zero": 0, "no_gradient": silent})
    moving = [name for name in names if name in ratio.forget.arrays and sizes[name]]
    if per == "overall":
        chosen.counts["wanted"] = round(density * sum(sizes.values()))
        everything = partial(_chained, ratio, moving)
        key, ties = top.threshold(everything, chosen.counts["wanted"])
    for name in moving:
        if per == "tensor":
            wanted = round(density * sizes[name])
            chosen.counts["wanted"] = chosen.counts.get("wanted", 0) + wanted
            key, ties = top.threshold(partial(ratio.keys, name), wanted)
        chosen.bits[name], ties = top.take(ratio.keys(name, chosen.counts), key, ties)
    return chosen


def _chained(ratio: Ratio, names: Sequence[str]) -> Iterator[top.Keys]:
    return itertools.chain.from_iterable(ratio.keys(name) for name in names)


def _mask(ratio: Ratio, addresses: dict[str, Address], chosen: _Selection, settings: dict[str, Any]) -> Mask:
    forget = ratio.forget
    empty = {name: np.zeros((math.prod(shape) + 7) // 8, np.uint8) for name, shape in ratio.shapes.items()}
    parameters = {
        name: MaskParameter(ratio.shapes[name], addresses[name], chosen.bits.get(name, empty[name]))
        for name in ratio.shapes
    }
    parents = tuple(_parent(each) for each in (forget, *ratio.preserve))
    mask = Mask(
        rule="ratio" if "beta" in settings else "density",
        beta=settings.get("beta"),
        estimator=forget.estimator,
        mixture=ratio.mixture,
        modules=settings["modules"],
        parameters=parameters,
        base={"model_type": forget.model_type, "model_sha256": forget.model_sha256},
        parents=parents,
        provenance={**provenance("mask", settings, {"saliency": sha256_json(parents)}), "tied": dict(forget.tied)},
    )
    inside = sum(parameters[name].numel for name in mask.in_modules())
    if not mask.selected:
        raise UnusableData(
            f"the mask selects 0 of {inside:,} weights in {mask.modules}",
            "pass a lower --beta" if "beta" in settings else "pass a higher --density",
        )
    counts = {"selected": mask.selected, "total": mask.total, **chosen.counts}
    if leaked := sum(int(each.provenance.get(SCORED_TEXT, 0)) for each in (forget, *ratio.preserve)):
        counts[SCORED_TEXT] = leaked
    return replace(mask, counts=counts)


def _parent(part: SaliencyMap) -> dict[str, Any]:
    return {
        "kind": "saliency",
        "part": part.part,
        "estimator": part.estimator,
        "batch_size": part.batch_size,
        "units": part.units,
        "data_sha256": part.data_sha256,
    }
