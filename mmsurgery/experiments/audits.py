"""The audit of every row of a table, at matched forgetting: what each probe says of it over all levels.

A row that got to matched forgetting is made again up to the first evaluated step there, and that model is audited; of a
row that did not, the model at the end of its longest run. Each probe's worst arm is held against gold's same arm, item
by item (see `audit.judge`), over vanilla models, people and items as everywhere in a grid; the test knows that the arm
was chosen (see `audit.choice`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsurgery.artifacts.files import read_json
from mmsurgery.audit import choice
from mmsurgery.audit.judge import VERDICTS
from mmsurgery.audit.measured import Measured
from mmsurgery.audit.probes import PROBES
from mmsurgery.audit.run import MEASURED, audit
from mmsurgery.evaluate.statistics import LEVEL, holm
from mmsurgery.experiments import statistics
from mmsurgery.experiments.resampling import Asked
from mmsurgery.experiments.scores import Values
from mmsurgery.provenance import check_seal

if TYPE_CHECKING:
    from mmsurgery.api import Workspace
    from mmsurgery.experiments.level_runs import LevelRuns
    from mmsurgery.experiments.rows import Experiment
    from mmsurgery.workspace import Progress

_VALUES = "probed"
"""The one column of a probe's values."""


def audited(workspace: Workspace, model: str, progress: Progress) -> dict[str, Any]:
    """What the audit says of one model, as plain JSON for `summary`: probe -> verdict, trio, and item by item every way
    of asking of the model and of its reference (`ways`, see `choice`; None where they cannot be compared); of
    relearning what came back after how many steps, of the model and of gold (`curves`)."""
    record = audit(workspace, model, progress=progress).record
    found = {}
    for probe, said in record["probes"].items():
        judged, kept = said["models"][model], not said["arms"]
        mine, theirs = (_measured(workspace, name, probe) for name in (model, "vanilla" if kept else "gold"))
        found[probe] = {
            "verdict": judged["verdict"],
            "trio": said["trio"],
            "arm": judged["arm"],
            "kept": {name: values["mean"] for name, values in judged["kept"].items()},
            "ways": None if mine is None or theirs is None else choice.ways(mine, theirs),
            "curves": [said["details"].get(name, {}).get("curves") for name in (model, "gold")],
        }
    return {"model": model, "probes": found}


def _measured(workspace: Workspace, model: str, probe: str) -> Measured | None:
    path = workspace.path("audits", MEASURED, f"{model}.{probe}.json")
    if not path.exists():
        return None
    return Measured.from_json(check_seal(read_json(path), str(path), kind="measured")["measured"], str(path))


def summary(levels: Sequence[LevelRuns], experiment: Experiment) -> dict[str, Any]:
    """Of one panel: `trio`, how often each probe proved itself, and `rows`: row -> probe -> means, difference to the
    reference with its interval and p adjusted for the number of rows, verdicts counted."""
    rows: dict[str, dict[str, Any]] = {row.key: {} for row in experiment.rows}
    trio: dict[str, Any] = {}
    for probe in PROBES:
        for row in experiment.rows:
            cells = [(level, seed, found) for level in levels for seed, found in level.audits(row.key, probe)]
            if cells:
                rows[row.key][probe] = _row(cells)
                trio.setdefault(probe, _proved([found for _, _, found in cells]))
        tested = [found[probe] for found in rows.values() if probe in found and found[probe]["p_value"] is not None]
        adjusted = holm([each["p_value"] for each in tested])
        for each, p_adjusted in zip(tested, adjusted, strict=True):
            low, high = each["ci95"]
            each |= {"p_adjusted": p_adjusted, "resolved": p_adjusted < LEVEL and not low <= 0 <= high}
    return {"trio": trio, "rows": {key: found for key, found in rows.items() if found}}


def _proved(cells: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Models whose trio came out as it must, of how many; and which of the three did not."""
    return {
        "of": len(cells),
        "reliable": sum(cell["trio"]["reliable"] is True for cell in cells),
        **{name: sum(cell["trio"][name] is False for cell in cells) for name in ("vanilla", "gold", "destroyed")},
    }


def _row(cells: Sequence[tuple[LevelRuns, int, Mapping[str, Any]]]) -> dict[str, Any]:
    counted = Counter(found["verdict"] for _, _, found in cells)
    made: dict[str, Any] = {
        "verdicts": {verdict: counted[verdict] for verdict in VERDICTS if counted[verdict]},
        "runs": len(cells),
        "kept": float(np.mean([np.mean(list(found["kept"].values())) for _, _, found in cells])),
        "difference": None,
        "ci95": None,
        "p_value": None,
        "resolved": None,
    }
    if strengths := _strengths([found.get("curves", []) for _, _, found in cells]):
        made["strengths"] = strengths
    asked = [each for each in cells if each[2]["ways"] is not None and each[2]["arm"] in each[2]["ways"]["arms"]]
    mine, theirs = _values(asked, "values"), _values(asked, "reference")
    compared = statistics.compare(mine, theirs) if mine else None
    if compared is None:
        return made
    runs = [(level.asked.vanilla, found["ways"]) for level, _, found in asked]
    chances = [found["ways"]["chance"][found["arm"]] for _, _, found in asked]
    return made | {
        "leak": statistics.mean(mine),
        "leak_ci95": list(statistics.interval(mine)),
        "reference": statistics.mean(theirs),
        "chance": float(np.mean(chances)),
        "difference": compared.difference,
        "ci95": list(compared.ci95),
        "p_value": choice.p_value(runs),
        "levels": compared.levels,
        "people": compared.people,
        "n": compared.n,
    }


def _strengths(curves: Sequence[Sequence[Mapping[str, Any] | None]]) -> dict[str, Any] | None:
    """What came back above gold by number of steps: of runs whose attacks went through the same ones, the mean and the
    lowest and highest of them (0-1), over attacks (`above`) and of each attack (`attacks`)."""
    attacks: dict[str, list[list[float]]] = {}
    overall, steps = list[list[float]](), None
    for mine, gold in (pair for pair in curves if len(pair) == 2 and all(pair)):
        assert mine is not None
        assert gold is not None
        shared = {name: each for name, each in mine.items() if name in gold and each["steps"] == gold[name]["steps"]}
        steps = steps or next((each["steps"] for each in shared.values()), None)
        above = {
            name: [a - b for a, b in zip(each["accuracy"], gold[name]["accuracy"], strict=True)]
            for name, each in shared.items()
            if each["steps"] == steps
        }
        for name, values in above.items():
            attacks.setdefault(name, []).append(values)
        if above:
            overall.append(np.mean(list(above.values()), axis=0).tolist())
    if not overall:
        return None
    return {
        "steps": steps,
        "above": _over_runs(overall),
        "attacks": {name: {"runs": len(each), "above": _over_runs(each)} for name, each in attacks.items()},
    }


def _over_runs(values: Sequence[Sequence[float]]) -> list[dict[str, float]]:
    return [{"mean": float(np.mean(each)), "low": min(each), "high": max(each)} for each in zip(*values, strict=True)]


def _values(cells: Sequence[tuple[LevelRuns, int, Mapping[str, Any]]], which: str) -> list[Values]:
    """One for each run: runs of a level may have different worst arms, which ask other items."""
    found = []
    for level, seed, cell in cells:
        worst = cell["ways"]["arms"][cell["arm"]]
        asked = Asked(level.asked.vanilla, {_VALUES: tuple(worst["people"])})
        found.append(Values(asked, (_VALUES,), {seed: (np.asarray(worst[which], dtype=np.float64),)}))
    return found
