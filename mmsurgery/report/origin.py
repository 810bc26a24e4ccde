"""Where a thing on the page comes from: what its record says of the command, settings, inputs and versions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmsurgery.report.fields import Fields

_LONG = 400


@dataclass(frozen=True)
class Origin:
    """The provenance of one artifact."""

    kind: str
    name: str
    command: str
    key: str
    facts: Sequence[tuple[str, str]]
    """Settings, then inputs and digests: name -> value."""
    versions: Mapping[str, str]

    @property
    def anchor(self) -> str:
        """Name of its place on the page; unique, as kind and name are."""
        safe = "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):x}_" for c in f"{self.kind}-{self.name}")
        return f"from-{safe}"


def origin(kind: str, name: str, record: Fields, *digests: str) -> Origin:
    """The provenance of a record.

    Args:
        digests: keys of the record itself that identify what it is.

    Raises:
        InputRefused: if it has none that can be read.
    """
    found = record.get("provenance")
    facts = [(key, record.get(key).text()) for key in digests if record.has(key)]
    facts += _flat(found.get("settings").mapping()) if found.has("settings") else []
    facts += _flat(found.get("inputs").mapping()) if found.has("inputs") else []
    versions = (
        {key: each.text() for key, each in found.get("versions").items().items()} if found.has("versions") else {}
    )
    command = found.get("command").text() if found.has("command") else ""
    return Origin(kind, name, command, found.get("key").text() if found.has("key") else "", facts, versions)


def _flat(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            facts += _flat(value, f"{prefix}{key}.")
        elif value is not None:
            said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            facts.append((prefix + key, said if len(said) <= _LONG else said[:_LONG] + " …"))
    return facts
