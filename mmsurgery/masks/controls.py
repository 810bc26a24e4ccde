"""Masks that a saliency mask is compared with: as many weights in every tensor, chosen otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from mmsurgery.artifacts.mask import Mask, MaskParameter, scored_text
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.errors import Mismatch, UnusableData
from mmsurgery.masks import top
from mmsurgery.masks.ratio import BLOCK, Ratio
from mmsurgery.provenance import provenance

CONTROLS = ("random", "inverse", "magnitude", "forget-only")

Array = np.ndarray[Any, np.dtype[Any]]


def random_mask(mask: Mask, seed: int = 0) -> Mask:
    """As many weights in each tensor as `mask`, drawn uniformly without replacement.

    A tensor's draw depends on `seed` and its name alone (PCG64 seeded by SHA-256 of both).
    """

    def keys(name: str) -> Iterator[top.Keys]:
        digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
        generator = np.random.PCG64(int.from_bytes(digest, "little"))
        for _, size in _spans(mask.parameters[name].numel):
            yield np.maximum(generator.random_raw(size), np.uint64(1))

    return _control(mask, "random", keys, {"seed": seed})


def inverse_mask(mask: Mask, ratio: Ratio) -> Mask:
    """As many weights in each tensor as `mask`, those with the lowest S_T / S_P; 0/0 comes last.

    Raises:
        Mismatch: if the saliency is of another model, or knows no gradient where `mask` selects.
    """

    def keys(name: str) -> Iterator[top.Keys]:
        for target, kept in ratio.blocks(name):
            with np.errstate(divide="ignore", invalid="ignore"):
                quotient = np.divide(target, kept)
            yield np.where(np.isnan(quotient), np.uint64(1), ~top.order(quotient))

    _same_model(mask, ratio.forget)
    return _control(mask, "inverse", keys, {})


def magnitude_mask(mask: Mask, weights: Callable[[str], Array]) -> Mask:
    """As many weights in each tensor as `mask`, the largest in absolute value.

    Args:
        weights: parameter name -> its values, floating point, in the parameter's shape.

    Raises:
        Mismatch: if a shape differs.
        UnusableData: for NaN weights.
    """

    def keys(name: str) -> Iterator[top.Keys]:
        values, shape = weights(name), mask.parameters[name].shape
        if values.shape != shape:
            raise Mismatch(
                f"{name} has shape {list(values.shape)} in the model and {list(shape)} in the mask",
                "name the model that the mask was made for",
            )
        flat = values.reshape(-1)
        for start, size in _spans(flat.size):
            absolute = np.abs(flat[start : start + size], dtype=np.float64)
            if np.isnan(absolute).any():
                raise UnusableData(f"{name} of the model holds NaN", "use a sound checkpoint")
            yield top.order(absolute)

    return _control(mask, "magnitude", keys, {})


def forget_only_mask(mask: Mask, forget: SaliencyMap) -> Mask:
    """As many weights in each tensor as `mask`, those with the largest S_T.

    Raises:
        Mismatch: if the saliency is of another model, or knows no gradient where `mask` selects.
    """
    # the mean changes no order, and the ratio's reader checks and squares what has to be
    ratio = Ratio(forget, [forget])

    def keys(name: str) -> Iterator[top.Keys]:
        for target, _ in ratio.blocks(name):
            yield top.order(target)

    _same_model(mask, forget)
    return _control(mask, "forget-only", keys, {})


def _spans(numel: int) -> Iterator[tuple[int, int]]:
    for start in range(0, numel, BLOCK):
        yield start, min(BLOCK, numel - start)


def _same_model(mask: Mask, saliency: SaliencyMap) -> None:
    theirs = {"model_type": saliency.model_type, "model_sha256": saliency.model_sha256}
    if dict(mask.base) != theirs or mask.names != saliency.names:
        raise Mismatch(
            f"the mask belongs to model {mask.base['model_sha256'][:12]}, saliency '{saliency.part}' to "
            f"{saliency.model_sha256[:12]}",
            "measure saliency of the mask's model",
        )
    for name in saliency.no_gradient:
        if mask.parameters[name].selected:
            raise Mismatch(
                f"the mask selects weights of {name}, which has no gradient in '{saliency.part}'", "make the mask again"
            )


def _control(mask: Mask, rule: str, keys: Callable[[str], Iterator[top.Keys]], settings: dict[str, Any]) -> Mask:
    parameters = {name: _chosen(p, partial(keys, name)) for name, p in mask.parameters.items()}
    content = mask.content_sha256
    return replace(
        mask,
        rule=rule,
        parameters=parameters,
        parents=(
            {"kind": "mask", "rule": mask.rule, "modules": mask.modules, "content_sha256": content},
            *mask.parents,
        ),
        counts={"selected": mask.selected, "total": mask.total, **scored_text(mask)},
        provenance=provenance("mask", {"control": rule, **settings}, {"mask": content}),
    )


def _chosen(parameter: MaskParameter, keys: Callable[[], Iterator[top.Keys]]) -> MaskParameter:
    return replace(parameter, bits=top.largest(keys, parameter.selected)) if parameter.selected else parameter
