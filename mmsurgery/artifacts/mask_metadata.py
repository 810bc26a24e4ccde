"""What a mask's metadata must say, see `docs/schemas/mask.json`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from mmsurgery.errors import InputRefused, UsageError
from mmsurgery.names import Address, Selector

_MEND = "make or copy the mask again; of your own program: write it as docs/formats.md says"

Rule = tuple[Callable[[Any], bool], str]
"""Whether a value is what it must be, and that in words."""


def _is_selector(value: Any) -> bool:
    try:
        Selector(value)
    except (UsageError, AttributeError):
        return False
    return True


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_TEXT: Rule = _is_text, "text"
_TEXT_OR_NULL: Rule = lambda value: value is None or isinstance(value, str), "text or null"
_TABLE: Rule = lambda value: isinstance(value, dict), "a table"
_COUNT: Rule = _is_count, "a whole number"
_DIGEST: Rule = (
    lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None,
    "a SHA-256 of 64 digits",
)
_TOP: dict[str, Rule] = {
    "rule": _TEXT,
    "beta": (lambda value: value is None or type(value) in (int, float), "a number or null"),
    "estimator": _TEXT_OR_NULL,
    "mixture": _TEXT_OR_NULL,
    "modules": (_is_selector, "a selector such as lm.8-15,connector"),
    "parameters": _TABLE,
    "base": _TABLE,
    "parents": (lambda value: isinstance(value, list), "a list"),
    "counts": (
        lambda value: isinstance(value, dict) and all(map(_is_count, value.values())),
        "a table of whole numbers",
    ),
    "provenance": _TABLE,
}
KEYS = {"schema", "kind", *_TOP}
_BASE = {"model_type": _TEXT, "model_sha256": _TEXT}
_PARENTS: dict[Any, tuple[dict[str, Rule], dict[str, Rule]]] = {
    "mask": ({"rule": _TEXT, "content_sha256": _DIGEST}, {"modules": _TEXT, "name": _TEXT}),
    "saliency": (
        {"part": _TEXT},
        {
            "estimator": _TEXT,
            "batch_size": (lambda value: value is None or _is_count(value), "a whole number or null"),
            "units": _COUNT,
            "data_sha256": _DIGEST,
            "sha256": _DIGEST,
        },
    ),
    "file": ({"format": _TEXT, "sha256": _DIGEST}, {}),
}
"""Kind of a parent -> what it must have, and what it may have."""
_PROVENANCE: dict[str, Rule] = {
    "command": _TEXT,
    "settings": _TABLE,
    "inputs": _TABLE,
    "versions": (
        lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
        "a table of texts",
    ),
    "key": _DIGEST,
    "seal": _DIGEST,
}


def check_metadata(value: dict[str, Any], where: str) -> None:
    """
    Raises:
        InputRefused: naming the first field that is missing, unknown or not what it must be; also for a mask that
            says mmsurgery wrote it and has no seal.
    """
    _check_table(value, f"{where}: ", _TOP)
    _refuse_others(value, KEYS, where)
    _check_table(value["base"], f"{where}: base.", _BASE)
    _refuse_others(value["base"], set(_BASE), f"{where}: base")
    for place, parent in enumerate(value["parents"]):
        kind = parent.get("kind") if isinstance(parent, dict) else None
        if kind not in [*_PARENTS]:
            raise InputRefused(f"{where}: parents[{place}] is no table of kind {', '.join(_PARENTS)}", _MEND)
        _check_table(parent, f"{where}: parents[{place}].", *_PARENTS[kind])
    origin = value["provenance"]
    _check_table(origin, f"{where}: provenance.", {}, _PROVENANCE)


def check_modules(modules: str, addresses: Mapping[str, Address], selected: Mapping[str, int], where: str) -> None:
    """Check that a mask's modules are some of its model's, and all in which it selects weights.

    Args:
        addresses: of the model's parameters, by name.
        selected: number of ones, by name.

    Raises:
        InputRefused: naming the term that matches nothing, or the first parameter that is left out.
    """
    try:
        inside = Selector(modules).select(addresses)
    except UsageError as error:
        raise InputRefused(f"{where}: modules: {error.what}", _MEND) from error
    for name in sorted(addresses.keys() - inside):
        if selected[name]:
            what = f"modules '{modules}' leave out {name} ({addresses[name]}), where {selected[name]:,} bits are set"
            raise InputRefused(f"{where}: {what}", _MEND)


def _check_table(
    table: Mapping[str, Any], where: str, required: Mapping[str, Rule], optional: Mapping[str, Rule] | None = None
) -> None:
    for key in required:
        if key not in table:
            raise InputRefused(f"{where}{key} is missing", _MEND)
    for key, (holds, expected) in {**required, **(optional or {})}.items():
        if key in table and not holds(table[key]):
            raise InputRefused(f"{where}{key} is {_shown(table[key])}, {expected} expected", _MEND)


def _refuse_others(table: Mapping[str, Any], known: set[str], where: str) -> None:
    if others := sorted(table.keys() - known):
        raise InputRefused(f"{where} has unknown keys: {', '.join(key[:80] for key in others[:5])}", _MEND)


def _shown(value: Any) -> str:
    """A value of JSON, shortened."""
    kinds: dict[type, str] = {dict: "a table", list: "a list", bool: str(value).lower(), type(None): "null"}
    return kinds.get(type(value)) or (f"'{value[:40]}'" if isinstance(value, str) else str(value)[:40])
