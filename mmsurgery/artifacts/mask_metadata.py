"""What a mask's metadata must say, see `docs/schemas/mask.json`."""

from __future__ import annotations

from typing import Any

from mmsurgery.errors import InputRefused, UsageError
from mmsurgery.names import Selector

KEYS = {
    "schema",
    "kind",
    "rule",
    "beta",
    "estimator",
    "mixture",
    "modules",
    "parameters",
    "base",
    "parents",
    "counts",
    "provenance",
}


def check_metadata(value: dict[str, Any], where: str) -> None:
    """
    Raises:
        InputRefused: naming unknown or missing keys, or those whose values are not what they must be.
    """
    if set(value) != KEYS:
        raise InputRefused(f"{where} has unknown or missing keys: {', '.join(sorted(set(value) ^ KEYS))}")
    kinds: dict[str, type | tuple[type, ...]] = {
        "rule": str,
        "beta": (int, float, type(None)),
        "estimator": (str, type(None)),
        "mixture": (str, type(None)),
        "modules": str,
        "parameters": dict,
        "base": dict,
        "parents": list,
        "counts": dict,
    }
    faults = [key for key, kind in kinds.items() if not isinstance(value[key], kind)]
    if not faults:
        base = value["base"]
        sound = {
            "base": set(base) == {"model_type", "model_sha256"} and all(isinstance(v, str) for v in base.values()),
            "parents": all(isinstance(parent, dict) for parent in value["parents"]),
            "counts": all(type(count) is int for count in value["counts"].values()),
            "modules": _is_selector(value["modules"]),
        }
        faults = [key for key, good in sound.items() if not good]
    if faults:
        raise InputRefused(f"{where}: {', '.join(faults)} cannot be read")


def _is_selector(text: str) -> bool:
    try:
        Selector(text)
    except UsageError:
        return False
    return True
