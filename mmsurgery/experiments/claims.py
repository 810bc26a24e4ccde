"""What the paper says, held against an experiment's results: holds, does not hold, or not resolved here.

A claim about differences holds where all of them are resolved in its sense, does not hold where one is resolved against
it, and is not resolved otherwise. What the paper shows without a test is compared by intervals or numbers, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmsurgery.experiments.findings import FORGET, correlation, label_of, unresolved

Results = Mapping[str, Any]
HOLDS, FAILS, UNRESOLVED = "holds", "does not hold", "not resolved"
NO_TEST = "no test"
"""In the evidence of a verdict by numbers alone, for which there is no test."""
_ALONE = "; one vanilla model, said of it alone"
_AT = {"fixed": "at the fixed budget", "matched": "at matched forgetting"}


def claims(results: Results) -> dict[str, list[dict[str, str]]]:
    """Panel -> `{claim, source, verdict, evidence}`, of the paper or of this tool's controls."""
    made: dict[str, Callable[[Results, str], Iterator[dict[str, str]]]] = {
        "table1": _table1,
        "table2": _table2,
        "controls": _controls,
        "figure4": _figure4,
        "figure5": _patterns,
        "figure6": _patterns,
        "ablations": _ablations,
        "beyond": _beyond,
        "beyond-equal": _beyond,
        "beyond-masks": _beyond_masks,
    }
    asked = made.get(str(results["name"]).removesuffix("-tuned"))
    found: dict[str, list[dict[str, str]]] = {}
    for panel in results["panels"]:
        key = panel["key"]
        alone = len({level["seed"] for level in results["levels"] if level["panel"] == key}) == 1
        found[key] = [
            {**each, "evidence": each["evidence"] + (_ALONE if alone else "")}
            for each in (asked(results, key) if asked else ())
        ]
    return found


def _claim(claim: str, source: str, verdict: str, evidence: str) -> dict[str, str]:
    return {"claim": claim, "source": source, "verdict": verdict, "evidence": evidence}


def _pairs(results: Results, panel: str, comparison: str, quantity: str, rows: Sequence[str]) -> list[Any]:
    found = {
        pair["second"]: pair
        for pair in results["paired"]
        if (pair["panel"], pair["comparison"], pair["quantity"]) == (panel, comparison, quantity)
    }
    return [found[row] for row in rows if row in found]


def _versus(
    results: Results,
    panel: str,
    claim: str,
    source: str,
    *,
    comparison: str,
    quantity: str = "utility",
    rows: Sequence[str] | None = None,
    sign: int = 1,
) -> Iterator[dict[str, str]]:
    """The compared row against others; `sign` 1 where the claim is that it has more."""
    others = [row["key"] for row in results["rows"] if row["key"] != results["compared"]] if rows is None else rows
    if quantity != "utility" and quantity not in results["columns"]:
        return
    pairs = _pairs(results, panel, comparison, quantity, others)
    if not pairs:
        yield _claim(f"{claim} {_AT[comparison]}", source, UNRESOLVED, "no run to compare got there")
        return
    ways = [sign * np.sign(pair["difference"]) if pair["resolved"] else 0 for pair in pairs]
    verdict = (
        FAILS if -1 in ways else HOLDS if all(way == 1 for way in ways) and len(pairs) == len(others) else UNRESOLVED
    )
    yield _claim(f"{claim} {_AT[comparison]}", source, verdict, _apart(results, quantity, pairs))


def _apart(results: Results, quantity: str, pairs: Sequence[Mapping[str, Any]]) -> str:
    """`Forget VQA higher (less forgotten) by 16.7 points than GA, 14.3 than NPO; lower ...`."""
    label = "utility" if quantity == "utility" else results["columns"][quantity]["label"]
    meanings = ("less forgotten", "more forgotten") if quantity == FORGET else ("more kept", "less kept")
    said = []
    for way, meaning, sign in zip(("higher", "lower"), meanings, (1, -1), strict=True):
        rows = [
            f"{abs(100 * pair['difference']):.1f}{'' if place else ' points'} than {label_of(results, pair['second'])}"
            for place, pair in enumerate(pair for pair in pairs if (1 if pair["difference"] >= 0 else -1) == sign)
        ]
        if rows:
            said.append(f"{way} ({meaning}) by {', '.join(rows)}")
    return f"{label} {'; '.join(said)}{_open(results, pairs)}"


def _open(results: Results, pairs: Sequence[Mapping[str, Any]]) -> str:
    """`; GA, NPO: not resolved at n = 126 (6 people)`, each reason once."""
    found: dict[str, list[str]] = {}
    for pair in pairs:
        if not pair["resolved"]:
            found.setdefault(unresolved(pair), []).append(label_of(results, pair["second"]))
    return "".join(f"; {', '.join(rows)}: {reason}" for reason, rows in found.items())


def _table1(results: Results, panel: str) -> Iterator[dict[str, str]]:
    at: dict[str, Any] = {"comparison": "fixed"}
    more = "MMUnlearner has forgotten more of the pictures than every other method"
    yield from _versus(results, panel, more, "Table 1, 4.2", quantity=FORGET, sign=-1, **at)
    text = "MMUnlearner keeps more text about the forgotten people than every other method"
    yield from _versus(results, panel, text, "Table 1, 4.2", quantity="forget_qa", **at)
    kept = "MMUnlearner keeps more than every other method"
    for comparison in ("fixed", "matched"):
        yield from _versus(results, panel, kept, "Table 1, 4.2", comparison=comparison)


def _table2(results: Results, panel: str) -> Iterator[dict[str, str]]:
    hurt = "updating the vision encoder alone hurts Real-world VQA more than LM + connector"
    for comparison in ("fixed", "matched"):
        yield from _versus(
            results, panel, hurt, "Table 2, 4.4", comparison=comparison, quantity="realworld_vqa", rows=["vision"]
        )
    mask = "within LM + connector the mask keeps more than every weight"
    yield from _versus(results, panel, mask, "control of Table 2", comparison="matched", rows=["lm-connector-every"])


def _controls(results: Results, panel: str) -> Iterator[dict[str, str]]:
    for row, claim in (
        ("random", "the choice of weights matters: the mask keeps more than random weights of its density"),
        ("no-mask", "a mask keeps more than none"),
        ("forget-only", "the preserve set matters: the mask keeps more than forget saliency alone"),
        ("gentle", "the mask keeps more than a gentler ascent without one (forget loss x 0.4)"),
        ("gentle-retain", "the mask keeps more than a gentler ascent with more retain data"),
    ):
        yield from _versus(results, panel, claim, "control", comparison="matched", rows=[row])


def _beyond(results: Results, panel: str) -> Iterator[dict[str, str]]:
    held = label_of(results, results["compared"])
    for row in ("anchored-ascent", "stranger", "robust"):
        claim = f"{label_of(results, row)} keeps more than {held}"
        yield from _versus(results, panel, claim, "docs/protocol.md", comparison="matched", rows=[row], sign=-1)


def _beyond_masks(results: Results, panel: str) -> Iterator[dict[str, str]]:
    for row, claim in (
        ("ascent-random", "the choice of weights matters: the paper's mask keeps more than a random one"),
        ("anchored-ascent", "the paper's mask keeps more than none"),
    ):
        yield from _versus(results, panel, claim, "docs/protocol.md", comparison="matched", rows=[row])


def _figure4(results: Results, panel: str) -> Iterator[dict[str, str]]:
    more = "MMUnlearner has forgotten more of the pictures than every other method"
    yield from _versus(results, panel, more, "Figure 4, 4.3", comparison="fixed", quantity=FORGET, sign=-1)
    backbone = next(each["backbone"] for each in results["panels"] if each["key"] == panel)
    panels = [each for each in results["panels"] if each["backbone"] == backbone]
    if panel != panels[-1]["key"]:
        return
    rows = [row["key"] for row in results["rows"]]
    if "retain_vqa" in results["columns"]:
        yield _trend(results, panels, "Retain VQA falls with the forget ratio for every method", "retain_vqa", rows, -1)
    for column in ("forget_qa", "retain_qa"):
        if column in results["columns"]:
            claim = f"MMUnlearner's {results['columns'][column]['label']} rises with the forget ratio"
            yield _trend(results, panels, claim, column, [results["compared"]], 1)


def _trend(
    results: Results, panels: Sequence[Mapping[str, Any]], claim: str, column: str, rows: Sequence[str], sign: int
) -> dict[str, str]:
    """From the smallest ratio to the largest, at the fixed budget; a change counts where both intervals are apart."""
    ways, said = [], []
    for row in rows:
        ends = [results["summary"][panel["key"]][row]["fixed"].get(column) for panel in (panels[0], panels[-1])]
        if not all(ends):
            continue
        first, last = ends
        apart = last["ci95"][0] > first["ci95"][1] or last["ci95"][1] < first["ci95"][0]
        ways.append(sign * np.sign(last["mean"] - first["mean"]) if apart else 0)
        change = f"{100 * first['mean']:.1f} to {100 * last['mean']:.1f}"
        said.append(f"{label_of(results, row)} {change}" + ("" if apart else " (intervals overlap)"))
    verdict = FAILS if -1 in ways else HOLDS if ways and all(way == 1 for way in ways) else UNRESOLVED
    return _claim(f"{claim} {_AT['fixed']}", "Figure 4, 4.3", verdict, "; ".join(said) or "nothing was run")


def _patterns(results: Results, panel: str) -> Iterator[dict[str, str]]:
    rows = results["deviations"][panel]
    if not {"ga", "npo", "mmunlearner"} <= rows.keys():
        return
    alike = correlation(rows["ga"], rows["npo"])
    apart = [correlation(rows[key], rows["mmunlearner"]) for key in ("ga", "npo")]
    if alike is None or any(value is None for value in apart):
        return
    yield _claim(
        "GA and NPO move the same layers and components, MMUnlearner others",
        "Figure 5, 4.6",
        _by_a_tenth(alike, max(value for value in apart if value is not None)),
        f"correlation of patterns: GA and NPO {alike:.2f}, MMUnlearner with them {apart[0]:.2f} and {apart[1]:.2f}; "
        f"{NO_TEST}, and its mask lies in LM + connector by choice",
    )
    spread = {key: _effective_cells(rows[key]) for key in ("ga", "npo", "mmunlearner")}
    yield _claim(
        "MMUnlearner's changes are more focused than those of GA and NPO",
        "Figure 5, 4.6",
        _by_a_tenth(min(spread["ga"], spread["npo"]), spread["mmunlearner"]),
        f"effective number of layer x component cells (exponential of the entropy) inside LM and connector: "
        f"MMUnlearner {spread['mmunlearner']:.1f}, GA {spread['ga']:.1f}, NPO {spread['npo']:.1f}; "
        f"{NO_TEST}, a tenth counts as a difference",
    )


def _by_a_tenth(more: float, less: float) -> str:
    """Whether one number is above another by a tenth of it: there is no test for these, and less is no pattern."""
    return HOLDS if more > less + 0.1 * abs(less) else FAILS if less > more + 0.1 * abs(more) else UNRESOLVED


def _effective_cells(entry: Mapping[str, Any]) -> float:
    """Over how many cells of the LM and the connector the weights that moved furthest are spread."""
    inside = [row.partition(".")[0] in ("lm", "connector") for row in entry["layers"]]
    counts = (np.asarray(entry["share"], dtype=float) * np.asarray(entry["sizes"], dtype=float))[inside].ravel()
    parts = counts[counts > 0] / counts.sum()
    return float(np.exp(-(parts * np.log(parts)).sum()))


def _ablations(results: Results, panel: str) -> Iterator[dict[str, str]]:
    groups: dict[str, list[str]] = {}
    for row in results["rows"]:
        if row["group"]:
            groups.setdefault(row["group"], []).append(row["key"])
    for group, rows in groups.items():
        pairs = _pairs(results, panel, "matched", "utility", rows)
        resolved = [pair for pair in pairs if pair["resolved"]]
        said = ", ".join(f"{label_of(results, pair['second'])} {-100 * pair['difference']:+.1f}" for pair in pairs)
        said += _open(results, pairs)
        missed = [row for row in rows if row not in {pair["second"] for pair in pairs}]
        said += f"; never got there: {', '.join(label_of(results, row) for row in missed)}" if missed else ""
        verdict = HOLDS if resolved else UNRESOLVED
        claim = f"{group}: one of the choices makes a difference in utility {_AT['matched']}"
        yield _claim(
            claim,
            "ablation",
            verdict,
            f"points of utility, the row minus the paper's choice (plus: it keeps more): {said}",
        )
