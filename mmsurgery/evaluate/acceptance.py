"""Whether a vanilla model knows what it should before anything is unlearned: who knows nothing forgets nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmsurgery.data.benchmark import COLUMN_LABELS
from mmsurgery.errors import GateMissed, InputRefused, Mismatch, MissingArtifact, UsageError
from mmsurgery.evaluate import records
from mmsurgery.workspace import Workspace

if TYPE_CHECKING:
    from mmsurgery.evaluate.run import EvalResult

KNOWN = ("forget_vqa", "forget_qa", "retain_vqa", "retain_qa")
"""What it was trained on: what is to be forgotten, and what is to be kept. (What else it knows, its base knew.)"""


def unknown_columns(columns: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Column -> how it fails: those of `KNOWN` in which a choice is not above chance, by its 95 % interval and, since
    that is too narrow where people are few, by the score interval of as many independent questions."""
    found = {}
    for name in KNOWN:
        column = columns.get(name, {})
        chance = column.get("chance")
        if chance is not None and min(column["ci95"][0], _wilson(column["correct"], column["n"])) <= chance:
            low, high = (100 * bound for bound in column["ci95"])
            found[name] = (
                f"{COLUMN_LABELS[name]} {100 * column['accuracy']:.1f} % ({low:.0f}-{high:.0f}) is not above chance, "
                f"{100 * chance:.1f} %"
            )
    return found


def _wilson(correct: int, n: int) -> float:
    """Lower end of Wilson's 95 % score interval of a share."""
    z = 1.959964
    share = correct / n
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (share + z * z / (2 * n) - half) / (1 + z * z / n)


def accept(columns: Mapping[str, Mapping[str, Any]], model: str) -> None:
    """
    Raises:
        GateMissed: naming the columns that the model does not know.
        MissingArtifact: if none of them can be told.
    """
    if not any(columns.get(name, {}).get("chance") is not None for name in KNOWN):
        raise MissingArtifact(
            f"nothing says whether '{model}' knows anything: no column of choices was scored",
            "score it on a benchmark with columns of choices: mmsurgery eval",
        )
    if found := unknown_columns(columns):
        raise GateMissed(
            f"model '{model}' does not know what it should: {'; '.join(found.values())}",
            "train it longer, or check that it was trained on these people, before anything is unlearned",
        )


def accept_vanilla(results: Sequence[EvalResult]) -> str:
    """What to say of a vanilla model that knows enough; `accept` of it, as far as it is among the results.

    Raises:
        as `accept`; UsageError: if vanilla is not among the results.
    """
    for result in results:
        if result.model == "vanilla":
            accept(result.columns, result.model)
            return "vanilla knows what it was trained on: accepted"
    raise UsageError("--accept is about vanilla, and it is not among the models", "name vanilla, too")


def warning(workspace: Workspace) -> str | None:
    """What to say before unlearning: that vanilla was not scored, or does not know what is to be forgotten."""
    try:
        record = records.read_eval(workspace.eval_path("vanilla"))
    except MissingArtifact:
        return "vanilla was not scored: mmsurgery eval vanilla --accept says whether it knows what is to be forgotten"
    except (InputRefused, Mismatch) as problem:
        return str(problem)
    found = unknown_columns(record["columns"])
    return f"vanilla does not know what is to be forgotten: {found['forget_vqa']}" if "forget_vqa" in found else None
