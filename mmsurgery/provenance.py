"""Identity of things: canonical JSON, digests, and what produced an artifact."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mmsurgery.errors import InputRefused, InternalError, Mismatch

SCHEMA = 1
"""Schema version written into every artifact; readers refuse others."""

_MEND = "mend it, or make or copy it again"
_LIBRARIES = ("mmsurgery", "torch", "transformers", "numpy", "safetensors", "h5py")


def canonical_json(value: Any) -> bytes:
    """The one UTF-8 encoding of a JSON value: sorted keys, no blanks, no NaN or infinity.

    Raises:
        InternalError: if the value is not plain JSON.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise InternalError(f"not canonical JSON: {error}") from error


def parse_json(data: bytes, where: str) -> Any:
    """Parse JSON strictly: UTF-8, no duplicate keys, no NaN or infinity.

    Raises:
        InputRefused: naming `where` and what is wrong.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key stands twice")
        return result

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{text} is not a finite number")
        return value

    def refuse(text: str) -> Any:
        raise ValueError(f"{text} is not JSON")

    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=unique, parse_float=number, parse_constant=refuse)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            canonical_json(value).decode()  # half of a surrogate pair is no text
        return value
    except InternalError as error:
        raise InputRefused(f"{where} is not valid JSON: it holds text that cannot be encoded", _MEND) from error
    except (ValueError, RecursionError) as error:
        raise InputRefused(f"{where} is not valid JSON: {str(error)[:200]}", _MEND) from error


def sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """Digest of the canonical JSON of a value."""
    return sha256(canonical_json(value))


def sha256_file(path: Path) -> str:
    """Digest of a file's bytes.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Installed versions of what can change an artifact's numbers, without importing any of it."""
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def provenance(command: str, settings: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What an artifact's `provenance` holds: command, settings, inputs, versions and a key over them.

    `key` identifies the result: same command, settings and inputs, whatever the library versions.
    No wall-clock time and no absolute path belongs in any of them.
    """
    key = sha256_json({"command": command, "settings": dict(settings), "inputs": dict(inputs)})
    return {
        "command": command,
        "settings": dict(settings),
        "inputs": dict(inputs),
        "versions": versions(),
        "key": key,
    }


_SPREAD = ("method_settings", "beside")
"""Mappings of which single entries are named: a method's own settings, and data by its parts."""


def differences(
    there: Mapping[str, Any], here: Mapping[str, Any], parts: Sequence[str] = ("settings", "inputs")
) -> str:
    """The settings and inputs in which two provenances differ, for people: `beta 1.0 -> 2.0, saliency`."""
    before, now = (
        {k: v for part in parts if isinstance(each.get(part), Mapping) for k, v in each[part].items()}
        for each in (there, here)
    )
    for key in _SPREAD:
        if isinstance(before.get(key), Mapping) and isinstance(now.get(key), Mapping):
            for each in (before, now):
                each |= {f"{key}.{name}" if name in each else name: v for name, v in each.pop(key).items()}
    found = []
    for key in sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k)):
        values = [before.get(key), now.get(key)]
        plain = not any(isinstance(value, (Mapping, list, tuple)) for value in values)
        found.append(f"{key} {' -> '.join(map(_short, values))}" if plain else key)
    return ", ".join(found) or "command"


def run_key(origin: Mapping[str, Any]) -> str:
    """What two runs share of which one may go on where the other stopped: settings, inputs, library versions."""
    return sha256_json([origin["key"], origin["versions"]])


def check_same_run(there: Mapping[str, Any], here: Mapping[str, Any], where: Path, next_step: str) -> None:
    """Check that an interrupted run is the one that is asked for now.

    Raises:
        Mismatch: naming the settings, inputs and versions in which they differ.
    """
    if "key" in there and "versions" in there and run_key(there) == run_key(here):
        return
    other = differences(there, here, ("settings", "inputs", "versions"))
    raise Mismatch(f"{where} holds an interrupted run with other {other}", next_step)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12]


OF_OTHERS = ("mask", "patch", "saliency")
"""Kinds of records that other programs may write, without a seal."""
_UNSEALED = "make or copy it again; of your own program: leave mmsurgery out of provenance.versions"


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """`value` with a digest of itself in its `provenance`, so that a changed byte is noticed."""
    body = {**value, "provenance": {k: v for k, v in value["provenance"].items() if k != "seal"}}
    return {**body, "provenance": {**body["provenance"], "seal": sha256_json(body)}}


def check_schema(found: Any, where: str) -> None:
    """Check that a file was written by a version whose files this one reads.

    Raises:
        Mismatch: if it was not.
    """
    if found != SCHEMA:
        raise Mismatch(f"{where} has schema {found}, this version reads {SCHEMA}", "pip install -U mmsurgery")


def check_seal(value: Any, where: str, *, kind: str) -> dict[str, Any]:
    """Check what every JSON record of ours carries: schema, kind and its digest, which only what other programs may
    write can do without, see `OF_OTHERS`.

    Raises:
        InputRefused: if it is no such record, or was changed after it was written.
        Mismatch: if it was written by a newer schema.
    """
    if not isinstance(value, dict) or value.get("kind") != kind or not isinstance(value.get("provenance"), dict):
        raise InputRefused(f"{where} is no {kind} of mmsurgery", f"name a {kind}, or make it again")
    check_schema(value.get("schema"), where)
    try:
        sealed = seal(value)
    except (InternalError, RecursionError) as error:
        raise InputRefused(f"{where} cannot be written as canonical JSON", "make it again") from error
    origin = value["provenance"]
    ours = kind not in OF_OTHERS or (isinstance(origin.get("versions"), dict) and "mmsurgery" in origin["versions"])
    if ours and "seal" not in origin:
        step = "make it again" if kind not in OF_OTHERS else _UNSEALED
        raise InputRefused(f"{where} was changed or damaged after it was written: provenance.seal is missing", step)
    if "seal" in origin and sealed["provenance"]["seal"] != origin["seal"]:
        raise InputRefused(f"{where} was changed or damaged after it was written", "make it again")
    return value
