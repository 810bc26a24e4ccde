"""Gates: what a column's number must reach, or must not exceed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmsurgery.errors import GateMissed, UsageError, unknown
from mmsurgery.evaluate import columns as tables

if TYPE_CHECKING:
    from mmsurgery.evaluate.run import EvalResult


def gate(results: Sequence[EvalResult], expression: str, *, over: bool = False) -> None:
    """Check `COLUMN=VALUE`: every model's number in the column (accuracy; see `columns.score_of`) is at least
    VALUE, in 0-1; with `over` at most VALUE.

    Raises:
        UsageError: if the expression cannot be read or a model has no such column.
        GateMissed: naming the models below, or above.
    """
    column, limit = read_gate(expression)
    for result in results:
        check_column(column, result.columns)
    reached = {result.model: tables.score_of(result.columns[column]) for result in results}
    missed = {model: value for model, value in reached.items() if (value > limit if over else value < limit)}
    if missed:
        named = ", ".join(f"{model} {value:.3f}" for model, value in missed.items())
        raise GateMissed(
            f"{column} is {'above' if over else 'below'} {limit:g}: {named}",
            "train or unlearn further, or ask for another limit",
        )


def read_gate(expression: str) -> tuple[str, float]:
    """Column and limit.

    Raises:
        UsageError: if it cannot be read.
    """
    column, _, text = expression.partition("=")
    try:
        least = float(text)
    except ValueError:
        least = -1.0
    if not 0 <= least <= 1:
        raise UsageError(f"'{expression}' is no gate", "write COLUMN=VALUE with a value in 0-1, such as retain_vqa=0.9")
    return column, least


def check_column(column: str, known: Mapping[str, Any]) -> None:
    """
    Raises:
        UsageError: if it is none of those known.
    """
    if column not in known:
        raise unknown("column", column, known)
