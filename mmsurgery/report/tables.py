"""Tables of an experiment: what each row did, and whether it differs from the row that others are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mmsurgery.report import numbers, words
from mmsurgery.report.charts import whisker
from mmsurgery.report.fields import Fields
from mmsurgery.report.results import ANCHORS, FORGET, UTILITY, Results
from mmsurgery.report.texts import NAME, SENTENCE, cut


@dataclass(frozen=True)
class Number:
    """A cell of a table: accuracy, its interval, and how it differs from the compared row's."""

    value: float
    text: str
    interval: str
    picture: Markup
    n: str
    verdict: str = ""
    """`+3.2`, or `not resolved`; empty for anchors, the compared row and quantities that were not compared."""
    at: str = ""
    """`at n = 1,890` beside what is not resolved."""
    resolved: bool = False
    title: str = ""


@dataclass(frozen=True)
class Row:
    """A line of a panel's table."""

    key: str
    label: str
    detail: str
    anchor: bool
    learning_rate: str
    samples: str
    ratio: str
    density: str
    reached: str
    """`3 of 3` levels reached matched forgetting; empty for anchors."""
    step: str
    remarks: Sequence[str]
    """What collapsed and what failed."""
    numbers: Mapping[str, Mapping[str, Number]]
    """Comparison -> quantity -> number."""


@dataclass(frozen=True)
class Pair:
    """A paired comparison, sign as first minus second."""

    comparison: str
    quantity: str
    first: str
    second: str
    difference: float
    text: str
    interval: str
    p_value: float
    agreeing: str
    n: int
    resolved: bool


@dataclass(frozen=True)
class Group:
    """Rows under one sub-heading; those of no group come first, without one."""

    title: str
    rows: Sequence[Row]


def quantities(results: Results) -> list[tuple[str, str]]:
    """(key, label): Forget VQA first, utility second, then the other columns."""
    order = (FORGET, UTILITY, *(column for column in results.columns if column != FORGET))
    return [(key, results.quantity(key)) for key in order]


def groups(results: Results, panel: str) -> list[Group]:
    """The rows of a panel's table, group by group."""
    verdicts = _verdicts(results, panel)
    found: dict[str, list[Row]] = {"": []}
    for key, summary in results.summary(panel).items():
        found.setdefault(results.groups.get(key, ""), []).append(_row(results, panel, key, summary, verdicts))
    return [Group(title, rows) for title, rows in found.items() if rows]


def pairs(results: Results, panel: str) -> list[Pair]:
    return [_pair(results, pair) for pair in results.paired(panel)]


Verdicts = Mapping[tuple[str, str, str], tuple[str, str, bool, str]]
"""(comparison, quantity, row) -> verdict, what it stands at, whether it is resolved, and the whole of it."""


def _verdicts(results: Results, panel: str) -> Verdicts:
    """How rows differ from the compared one."""
    found: dict[tuple[str, str, str], tuple[str, str, bool, str]] = {}
    for pair in results.paired(panel):
        first, second = results.row(pair.get("first")), results.row(pair.get("second"))
        if results.compared not in (first, second) or first == second:
            continue
        row, sign = (second, 1) if first == results.compared else (first, -1)
        difference = sign * pair.get("difference").share(-1)
        low, high = pair.get("ci95").interval(-1)
        low, high = (low, high) if sign == 1 else (-high, -low)
        n = f"n = {numbers.count(pair.get('n').whole())}"
        said = (
            f"{numbers.points(difference)} points, 95 % interval {numbers.points(low)} to {numbers.points(high)}, "
            f"p = {pair.get('p_adjusted').share():.3f}, {n}, {pair.get('levels').whole()} levels, "
            f"{pair.get('people').whole()} people"
        )
        resolved = pair.get("resolved").flag()
        people = pair.get("people").whole()
        verdict = ("not resolved", f"at {n} ({people} people)")
        if resolved:
            verdict = (numbers.points(difference), "")
        elif pair.has("resolvable") and not pair.get("resolvable").flag():  # files of before say nothing of it
            verdict = ("cannot be resolved", f"with {people} people")
        found[pair.get("comparison").text(), pair.get("quantity").text(), row] = (*verdict, resolved, said)
    return found


def _row(results: Results, panel: str, key: str, summary: Fields, verdicts: Verdicts) -> Row:
    anchor = key in ANCHORS
    mine = results.runs(panel, key)
    forget = [cell.get("samples").get("forget").whole() for cell in mine]
    retain = [cell.get("samples").get("retain").whole() for cell in mine]
    density = [cell.get("density").share() for cell in mine if cell.has("density")]
    rates = sorted({cell.get("learning_rate").number() for cell in mine})
    found = {"fixed": _numbers(results, key, "fixed", summary.get("fixed"), verdicts)}
    reached, step = "", ""
    if summary.has("matched"):
        matched = summary.get("matched")
        reached = f"{matched.get('reached').whole()} of {matched.get('levels').whole()}"
        step = numbers.quantity(matched.get("step").number()) if matched.has("step") else "–"
        found["matched"] = _numbers(results, key, "matched", matched.get("columns"), verdicts)
    return Row(
        key=key,
        label=results.labels[key],
        detail=words.PLAIN_MODELS[key] if anchor else _detail(results.rows[key]),
        anchor=anchor,
        learning_rate=" to ".join(numbers.rate(rate) for rate in dict.fromkeys([*rates[:1], *rates[-1:]])) or "–",
        samples=f"{_mean(forget)} : {_mean(retain)}" if mine else "–",
        ratio=numbers.ratio(sum(retain), sum(forget)) if mine else "–",
        density=numbers.percent(sum(density) / len(density)) if density else "–",
        reached=reached,
        step=step,
        remarks=_remarks(results, panel, key, summary),
        numbers=found,
    )


def _remarks(results: Results, panel: str, key: str, summary: Fields) -> list[str]:
    """`collapsed: Retain VQA is at chance`, with the number of runs where it was not in all of them."""
    if key in ANCHORS:
        return []
    cells = [cell for cell in results.cells(panel) if cell.get("row").text() == key]
    counts = {
        "collapsed": (summary.get("collapsed").whole(), summary.get("cells").whole()),
        "failed": (sum(cell.has("failed") for cell in cells), len(cells)),
    }
    found = []
    for what, (count, total) in counts.items():
        if count:
            reasons = list(dict.fromkeys(cell.get(what).text() for cell in cells if cell.has(what)))
            more = f" and {len(reasons) - 2} more" if len(reasons) > 2 else ""
            share = f" in {count} of {total} runs" if count < total else ""
            said = results.fallen if what == "collapsed" else what
            shown = [cut(reason.replace(f" is {said}", "", 1), NAME) for reason in reasons[:2]]
            found.append(f"{said}{share}: {'; '.join(shown)}{more}")
    return found


def _numbers(results: Results, key: str, comparison: str, columns: Fields, verdicts: Verdicts) -> dict[str, Number]:
    found = {}
    for quantity, cell in columns.items().items():
        mean, (low, high) = cell.get("mean").share(), cell.get("ci95").interval()
        n = f"{numbers.count(cell.get('n').whole())} answers, {cell.get('levels').whole()} levels"
        picture = whisker(mean, low, high, results.chances.get(quantity))
        verdict = verdicts.get((comparison, quantity, key), ("", "", False, ""))
        found[quantity] = Number(mean, numbers.percent(mean), numbers.interval(low, high), picture, n, *verdict)
    return found


def _pair(results: Results, pair: Fields) -> Pair:
    low, high = pair.get("ci95").interval(-1)
    difference = pair.get("difference").share(-1)
    return Pair(
        comparison=pair.get("comparison").text(),
        quantity=results.quantity(pair.get("quantity").text()),
        first=results.label(pair.get("first")),
        second=results.label(pair.get("second")),
        difference=difference,
        text=numbers.points(difference),
        interval=f"{numbers.points(low)} to {numbers.points(high)}",
        p_value=pair.get("p_adjusted").share(),
        agreeing=f"{pair.get('same_sign').whole()} of {pair.get('levels').whole()}",
        n=pair.get("n").whole(),
        resolved=pair.get("resolved").flag(),
    )


def _detail(row: Fields) -> str:
    """What a row's settings are, where they differ from the plain ones."""
    parts = []
    if row.has("mask"):
        mask = {key: value for key, value in sorted(row.get("mask").mapping().items()) if value is not None}
        said = [f"{key} {f'{value:g}' if isinstance(value, float) else value}" for key, value in mask.items()]
        parts.append("mask: " + ", ".join(said))
    else:
        parts.append("no mask")
    if row.get("scope").text() != "forget":
        parts.append(f"scope {row.get('scope').text()}")
    if row.get("protocol").text() != "equations":
        parts.append(f"protocol {row.get('protocol').text()}")
    if row.has("reference"):
        parts.append(f"reference model: {row.get('reference').text()}")
    if row.get("forget_weight").number() != 1:
        parts.append(f"forget weight {row.get('forget_weight').number():g}")
    if row.has("retain_batch"):
        parts.append(f"{row.get('retain_batch').whole()} retain samples a step")
    return cut("; ".join(parts), SENTENCE)


def _mean(counts: Sequence[int]) -> str:
    return numbers.quantity(sum(counts) / len(counts))
