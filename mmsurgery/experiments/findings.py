"""What an experiment shows, in sentences: made from its results alone, the same for every table, page and report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmsurgery.audit.judge import COLLAPSED
from mmsurgery.audit.probes import PROBES
from mmsurgery.audit.subjects import TRIO
from mmsurgery.figures.looks import fallen
from mmsurgery.names import GROUPS

Results = Mapping[str, Any]
COMPARISONS = {"matched": "At matched forgetting", "fixed": "At a fixed budget"}
FORGET = "forget_vqa"


def findings(results: Results) -> dict[str, list[str]]:
    """Panel -> sentences, the most telling first."""
    found = {
        panel["key"]: [*_compared(results, panel["key"]), *_failures(results, panel["key"])]
        for panel in results["panels"]
    }
    for panel, rows in results.get("deviations", {}).items():
        found[panel] = [*_patterns(results, rows)]
    for panel, audit in results.get("audit", {}).items():
        found[panel] = [*_audit(results, panel, audit)]
    for backbone in dict.fromkeys(panel["backbone"] for panel in results["panels"]):
        panels = [panel for panel in results["panels"] if panel["backbone"] == backbone]
        if len(panels) > 1:
            found[panels[-1]["key"]] += _trends(results, panels)
    return found


def label_of(results: Results, key: str) -> str:
    """What a row is called; vanilla and gold by these words."""
    return next((str(row["label"]) for row in results["rows"] if row["key"] == key), key)


def fallen_in(results: Results) -> str:
    """What runs are called that no longer answer what they should have kept."""
    return fallen(any(entry["outcomes"] for panel in results["summary"].values() for entry in panel.values()))


def unresolved(pair: Mapping[str, Any]) -> str:
    """Why a difference is not resolved: `not resolved at n = 126 (6 people)`, or that so few people cannot do it."""
    people = f"{pair['people']} {'person' if pair['people'] == 1 else 'people'}"
    if pair.get("resolvable", True):  # files of before say nothing of it
        return f"not resolved at n = {pair['n']:,} ({people})"
    return f"{people} cannot resolve this: more --seeds or --draws"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def _audit(results: Results, panel: str, audit: Mapping[str, Any]) -> Iterator[str]:
    """What each probe that proved itself tells apart from its reference, and how relearning orders the rows."""
    for probe, proved in audit["trio"].items():
        title, of = PROBES[probe].title, "vanilla" if probe == "collateral" else "gold"
        if not proved["reliable"] and any(proved[name] for name in TRIO):  # else it could not be told, without gold
            yield f"{title}: not reliable here, it proved itself in none of {proved['of']} workspaces."
            continue
        said = {key: found[probe] for key, found in audit["rows"].items() if probe in found}
        above = {key: each for key, each in said.items() if each["resolved"] and each["difference"] > 0}
        below = {key: each for key, each in said.items() if each["resolved"] and each["difference"] < 0}
        named = {
            where: ", ".join(
                f"{label_of(results, key)} ({_points(each['difference'])}{_fell(each)})" for key, each in found.items()
            )
            for where, found in (("above", above), ("below", below))
            if found
        }
        parts = [f"{where} {of}: {rows}" for where, rows in named.items()]
        doubt = ""
        if proved["reliable"] < proved["of"]:
            doubt = f" (proved itself in {proved['reliable']} of {proved['of']} workspaces)"
        yield f"{title}{doubt}: {'; '.join(parts) or f'no row is resolved from {of}'}."
    yield from _orders(results, panel, audit)


def _fell(said: Mapping[str, Any]) -> str:
    """A model that answers nothing has less come out than gold, and has not forgotten."""
    count = said["verdicts"].get(COLLAPSED, 0)
    return f", collapsed in {count} of {said['runs']} runs" if count else ""


def _orders(results: Results, panel: str, audit: Mapping[str, Any]) -> Iterator[str]:
    """How relearning orders the rows that did not collapse under it, beside utility at matched forgetting; nothing
    where it proved itself nowhere."""
    if not audit["trio"].get("relearning", {}).get("reliable"):
        return
    kept = {
        key: found["matched"]["columns"]["utility"]["mean"]
        for key, found in results["summary"][panel].items()
        if found["matched"] and "utility" in found["matched"]["columns"]
    }
    back = {
        key: found["relearning"]["difference"]
        for key, found in audit["rows"].items()
        if key in kept
        and found.get("relearning", {}).get("difference") is not None
        and not found["relearning"]["verdicts"].get(COLLAPSED)
    }
    if len(back) < 3:
        return
    by_utility = sorted(back, key=lambda key: -kept[key])
    by_relearning = sorted(back, key=lambda key: back[key])
    places = [[order.index(key) for key in back] for order in (by_utility, by_relearning)]
    rho = float(np.corrcoef(places[0], places[1])[0, 1])
    names = [", ".join(label_of(results, key) for key in order) for order in (by_utility, by_relearning)]
    yield f"By utility at matched forgetting, most first: {names[0]}."
    yield f"By what relearning brings back above gold, least first: {names[1]} (rank correlation {rho:+.2f})."


def _compared(results: Results, panel: str) -> Iterator[str]:
    """How the compared row stands against the others, in utility; at a fixed budget beside what was forgotten."""
    compared = results["compared"]
    name = label_of(results, compared)
    for comparison, begin in COMPARISONS.items():
        if comparison == "matched" and not results["summary"][panel][compared]["matched"]["reached"]:
            yield f"{begin}: no run of {name} gets there, so nothing can be said of what it keeps."
            continue
        pairs = [p for p in results["paired"] if (p["panel"], p["comparison"]) == (panel, comparison)]
        kept = [pair for pair in pairs if pair["quantity"] == "utility"]
        forgot = {pair["second"]: pair for pair in pairs if pair["quantity"] == FORGET}

        def named(entries: Sequence[Mapping[str, Any]], forgot: Mapping[str, Any] = forgot) -> str:
            said = []
            for entry in entries:
                beside = forgot.get(entry["second"])
                also = f", Forget VQA {_points(beside['difference'])}" if beside and beside["resolved"] else ""
                said.append(f"{label_of(results, entry['second'])} ({_points(entry['difference'])}{also})")
            return ", ".join(said)

        order = sorted(kept, key=lambda entry: -abs(entry["difference"]))
        more = [entry for entry in order if entry["resolved"] and entry["difference"] > 0]
        less = [entry for entry in order if entry["resolved"] and entry["difference"] < 0]
        same = [entry for entry in kept if not entry["resolved"]]
        parts = [f"keeps more than {named(more)}"] if more else []
        parts += [f"keeps less than {named(less)}"] if less else []
        for why in dict.fromkeys(unresolved(entry) for entry in same):
            alike = ", ".join(label_of(results, entry["second"]) for entry in same if unresolved(entry) == why)
            parts.append(f"against {alike}: {why}")
        if parts:
            yield f"{begin}, points of utility: {name} {'; '.join(parts)}."


def _failures(results: Results, panel: str) -> Iterator[str]:
    """Rows that collapsed, did not get to matched forgetting, or could not be trained."""
    for row in results["rows"]:
        found, label = results["summary"][panel][row["key"]], row["label"]
        cells = [c for c in results["cells"] if (c["panel"], c["row"]) == (panel, row["key"])]
        fell = [cell for cell in cells if cell.get("collapsed")]
        if fell:
            worst = max(fell, key=lambda cell: cell["severity"])["collapsed"]
            word = fallen_in(results)
            of = f"{'' if word == 'collapsed' else 'is '}{word} in {len(fell)} of {found['cells']} runs"
            yield f"{label} {of} at the fixed budget: {'in the worst ' if len(fell) > 1 else ''}{worst}."
        if failed := [cell["failed"] for cell in cells if "failed" in cell]:
            yield f"{label} failed in {len(failed)} of {len(cells)} runs: {failed[0]}."
        reached, runs = found["matched"]["reached"], found["cells"]
        if runs and reached < runs and row["key"] != results["compared"]:
            yield f"{label} gets to matched forgetting in {reached} of {runs} runs."


def _patterns(results: Results, rows: Mapping[str, Any]) -> Iterator[str]:
    """Where the weights that moved furthest lie, and how alike the rows' patterns are."""
    compared = results["compared"]
    for key, entry in rows.items():
        lies = ", ".join(
            f"{100 * entry['groups'][group]['top']:.0f} % in {group}" for group in GROUPS if group in entry["groups"]
        )
        yield (
            f"{label_of(results, key)}: of the {entry['n']:,} weights that moved furthest {lies}; "
            f"{100 * entry['changed']:.1f} % of all weights changed."
        )
    if compared in rows:
        alike = {key: correlation(rows[compared], entry) for key, entry in rows.items() if key != compared}
        said = ", ".join(f"{label_of(results, key)} {value:.2f}" for key, value in alike.items() if value is not None)
        yield f"Correlation of the pattern over layers and components with {label_of(results, compared)}'s: {said}."
    if "ga" in rows and "npo" in rows and (value := correlation(rows["ga"], rows["npo"])) is not None:
        yield f"Correlation of the patterns of GA and NPO with each other: {value:.2f}."


def correlation(one: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """Pearson's r of two share heatmaps over the cells that exist; None where one is flat."""
    sizes = np.asarray(one["sizes"], dtype=float) > 0
    first, second = (np.asarray(entry["share"], dtype=float)[sizes] for entry in (one, other))
    if first.std() == 0 or second.std() == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _trends(results: Results, panels: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How each row's utility at matched forgetting changes from the smallest to the largest forget ratio."""
    first, last = panels[0], panels[-1]
    said = []
    for row in results["rows"]:
        ends = [
            results["summary"][panel["key"]][row["key"]]["matched"]["columns"].get("utility") for panel in (first, last)
        ]
        if all(ends):
            said.append((ends[1]["mean"] - ends[0]["mean"], row["label"]))
    if said:
        changes = ", ".join(f"{label} {_points(change)}" for change, label in said)
        yield (
            f"From {first['forget']} to {last['forget']} % of the people, utility at matched forgetting changes by "
            f"(points): {changes}."
        )
