"""Reading JSON records field by field: what a page shows has the type and range it should have, or is refused."""

from __future__ import annotations

import math
from typing import Any

from mmsurgery.errors import InputRefused


class Fields:
    """A JSON value and where it stands; every getter raises InputRefused naming the place."""

    def __init__(self, value: Any, where: str) -> None:
        self.value = value
        self.where = where

    def _refuse(self, what: str) -> InputRefused:
        return InputRefused(f"{self.where} is no {what}", "make it again")

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.mapping().get(key) is not None

    def get(self, key: str) -> Fields:
        found = self.mapping()
        if key not in found:
            raise InputRefused(f"{self.where} lacks '{key}'", "make it again")
        return Fields(found[key], f"{self.where}, {key}")

    def mapping(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise self._refuse("object")
        return self.value

    def items(self) -> dict[str, Fields]:
        """The entries of an object, in their order."""
        return {key: self.get(key) for key in self.mapping()}

    def entries(self) -> list[Fields]:
        if not isinstance(self.value, list):
            raise self._refuse("list")
        return [Fields(entry, f"{self.where}, entry {place}") for place, entry in enumerate(self.value, 1)]

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self._refuse("text")
        return self.value

    def texts(self) -> list[str]:
        return [entry.text() for entry in self.entries()]

    def whole(self) -> int:
        """A whole number, not negative."""
        if type(self.value) is not int or self.value < 0:
            raise self._refuse("count")
        return self.value

    def number(self) -> float:
        if type(self.value) not in (int, float) or not math.isfinite(self.value):
            raise self._refuse("number")
        return float(self.value)

    def share(self, low: float = 0.0) -> float:
        """A number from `low` to 1."""
        value = self.number()
        if not low <= value <= 1:
            raise self._refuse(f"number from {low:g} to 1")
        return value

    def interval(self, low: float = 0.0) -> tuple[float, float]:
        """Two numbers from `low` to 1, in order."""
        ends = [entry.share(low) for entry in self.entries()]
        if len(ends) != 2 or ends[0] > ends[1]:
            raise self._refuse("interval")
        return ends[0], ends[1]

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self._refuse("truth value")
        return self.value
