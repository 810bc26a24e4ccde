"""The mask rule (paper Eq. 7): a weight may be updated where forget saliency dominates.

    selected = S_T > 0 and S_T >= beta * S_P

S = sum / units in float64 from the stored sums, S = (sum / units)^2 for estimator `dataset`. No
division by S_P and no epsilon: 0/0 is not selected, x/0 is, S_T = S_P is selected at beta = 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mmsurgery.artifacts.bits import Bytes, Layout, Packed
from mmsurgery.artifacts.mask import SCORED_TEXT, Mask
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.errors import UnusableData, UsageError, unknown
from mmsurgery.masks.compare import Comparison
from mmsurgery.masks.rank import Ranking
from mmsurgery.masks.ratio import Ratio
from mmsurgery.names import GROUPS, Address, Selector
from mmsurgery.provenance import provenance, sha256_json

_NUMBER = re.compile(r"\+?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
SCOPES = ("overall", "tensor")


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
    layout = Layout(ratio.shapes, addresses)
    words = np.zeros(layout.words, np.uint64)
    bits = {name: layout.of(words, name) for name in names if name in forget.arrays}
    silent = sum(math.prod(ratio.shapes[name]) for name in names if name not in bits)
    counts = {"zero_over_zero": 0, "no_gradient": silent}
    if density is None:
        rule: dict[str, Any] = {"beta": threshold}
        counts["zero_over_zero"] = _by_beta(ratio, bits, threshold)
    else:
        rule = {"density": density, "per": per}
        _by_density(ratio, names, bits, density, per, counts)
    settings = {**rule, "mixture": mixture, "modules": str(selector)}
    return _mask(ratio, Packed(layout, words), counts, settings)


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


def _by_beta(ratio: Ratio, bits: Mapping[str, Bytes], beta: float) -> int:
    """Write the bits of parameters; returns how many are 0 for S_T = S_P = 0."""
    comparison = Comparison(ratio, beta)
    for name, out in bits.items():
        comparison.write(name, out)
    return comparison.zero_over_zero


def _by_density(
    ratio: Ratio, names: Sequence[str], bits: Mapping[str, Bytes], density: float, per: str, counts: dict[str, int]
) -> None:
    """Write the bits of parameters, and what is counted on the way."""
    sizes = {name: math.prod(ratio.shapes[name]) for name in names}
    moving = [name for name in bits if sizes[name]]
    ranking = Ranking(ratio)
    if per == "overall":
        counts["wanted"] = round(density * sum(sizes.values()))
        cut = ranking.cut(moving, counts["wanted"])
    for name in moving:
        if per == "tensor":
            wanted = round(density * sizes[name])
            counts["wanted"] = counts.get("wanted", 0) + wanted
            cut = ranking.cut([name], wanted)
        cut = ranking.write(name, cut, bits[name])
    counts["zero_over_zero"] = ranking.zero_over_zero


def _mask(ratio: Ratio, parameters: Packed, found: Mapping[str, int], settings: dict[str, Any]) -> Mask:
    forget = ratio.forget
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
    if not mask.selected:
        inside = sum(parameters[name].numel for name in mask.in_modules())
        raise UnusableData(
            f"the mask selects 0 of {inside:,} weights in {mask.modules}",
            "pass a lower --beta" if "beta" in settings else "pass a higher --density",
        )
    counts = {"selected": mask.selected, "total": mask.total, **found}
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
