"""A method's own settings, and the budget that it runs best with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmsurgery.errors import UsageError, unknown
from mmsurgery.methods.base import Budget, Method
from mmsurgery.settings import RecipeSettings

LARGEST_SETTING = 1_000_000


def with_settings(method: Method, settings: Mapping[str, Any]) -> Method:
    """A method with settings of its own instead of their defaults.

    Raises:
        UsageError: for a setting that it does not have, or a value of another type.
    """
    known = method.settings()
    for name, value in settings.items():
        if name not in known:
            raise unknown(f"setting of method {method.name}", name, known)
        kind = type(known[name])
        if value == known[name] and isinstance(value, kind):  # of any kind, as a record of a run has it
            continue
        if kind not in (int, float) or isinstance(value, bool) or not isinstance(value, (int, kind)):
            raise UsageError(
                f"{method.name}'s {name} is {value!r}, should be {kind.__name__}", f"such as {known[name]}"
            )
        if not 0 <= value <= LARGEST_SETTING or (name in method.positive and not value):
            least = "above 0" if name in method.positive else "0 or more"
            what = f"{method.name}'s {name} is {value}, should be {least}, at most {LARGEST_SETTING:,}"
            raise UsageError(what, f"such as {known[name]}")
    made = {name: type(known[name])(value) for name, value in settings.items() if value != known[name]}
    return dataclasses.replace(method, **made) if made else method  # type: ignore[type-var]


def parsed_settings(texts: Sequence[str]) -> dict[str, float | int]:
    """Settings as they are written, `NAME=VALUE`.

    Raises:
        UsageError: for one that is no number, or named twice.
    """
    found: dict[str, float | int] = {}
    for text in texts:
        name, _, value = (part.strip() for part in text.partition("="))
        try:
            number = int(value) if value.lstrip("+-").isdigit() else float(value)
            float(number)  # integers know no end, floats do
        except (ValueError, OverflowError) as error:
            raise UsageError(f"setting '{text}' is not NAME=NUMBER", "such as --setting beta=0.1") from error
        if name in found or not math.isfinite(number):
            raise UsageError(f"setting '{text}' {'is given twice' if name in found else 'is not finite'}", "change it")
        found[name] = number
    return found


def recipe_of(best: Budget | None, recipe: RecipeSettings) -> RecipeSettings:
    """A workspace's recipe with what a method runs best with."""
    if best is None:
        return recipe
    rate = best.rate * recipe.learning_rate
    return dataclasses.replace(recipe, batch_size=best.batch_size, epochs=best.epochs, learning_rate=rate)
