"""What a patch is, where it comes from and what it changes, for `inspect`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.patch import Patch, PatchParameter
from mmsurgery.masks.origin import of_patch
from mmsurgery.names import GROUPS


def describe(path: Path) -> dict[str, Any]:
    """A JSON-ready description of a patch file.

    Raises:
        MissingArtifact, InputRefused, Mismatch: as `Patch.load`.
    """
    patch = Patch.load(path)
    sizes, size = patch.sizes, patch.bytes
    keys: dict[str, Callable[[PatchParameter], str]] = {
        "group": lambda p: p.address.group,
        "layer": lambda p: p.address.layer_key,
        "component": lambda p: str(p.address),
    }
    sides = {"before": patch.before, "after": patch.after}
    return {
        "kind": "patch",
        **{side: {k: v for k, v in about.items() if k != "record"} for side, about in sides.items()},
        "parameters": len(patch.parameters),
        "parameters_changed": len(patch.names),
        "changed": sizes["changed"],
        "total": sizes["total"],
        "density": sizes["changed"] / sizes["total"],
        "bytes": size,
        "checkpoint_bytes": sizes["checkpoint"],
        "share": size / sizes["checkpoint"],
        "bytes_per_changed_weight": size / sizes["changed"] if sizes["changed"] else None,
        **{f"by_{key}": _tally(patch, of) for key, of in keys.items()},
        "origin": of_patch(sides),
        "provenance": {k: v for k, v in patch.provenance.items() if k != "inputs"},
    }


def _tally(patch: Patch, key: Callable[[PatchParameter], str]) -> dict[str, dict[str, Any]]:
    sums: dict[str, list[int]] = {}
    ordered = sorted(patch.parameters.items(), key=lambda item: (GROUPS.index(item[1].address.group), item[0]))
    for _, parameter in ordered:
        entry = sums.setdefault(key(parameter), [0, 0])
        entry[0] += parameter.changed
        entry[1] += parameter.numel
    return {
        each: {"changed": changed, "total": total, "density": changed / total if total else 0.0}
        for each, (changed, total) in sums.items()
    }
