"""Experiments' tables for the page: fixed budget and matched forgetting side by side, differences with verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from mmsurgery.artifacts.files import read_json
from mmsurgery.errors import InputRefused
from mmsurgery.provenance import check_seal
from mmsurgery.report import numbers, words
from mmsurgery.report.charts import whisker
from mmsurgery.report.curves import Chart, Point, Series, mean_point, spoken
from mmsurgery.report.fields import Fields
from mmsurgery.report.origin import Origin, origin

UTILITY, FORGET = "utility", "forget_vqa"
COMPARISONS = {"fixed": "Fixed budget", "matched": "Matched forgetting"}
ANCHORS = {"vanilla": "vanilla", "gold": "gold"}


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
    resolved: bool = False
    title: str = ""


@dataclass(frozen=True)
class Row:
    """A line of a backbone's table."""

    key: str
    label: str
    detail: str
    anchor: bool
    samples: str
    ratio: str
    density: str
    reached: str
    """`3 of 3` levels reached matched forgetting; empty for anchors."""
    step: str
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
    resolved: bool


@dataclass(frozen=True)
class Run:
    """A row on one level."""

    level: str
    label: str
    model: str
    digest: str
    steps: str
    samples: str
    forget: float | None
    utility: float | None
    matched: str
    remarks: str


@dataclass(frozen=True)
class Backbone:
    """All of one backbone."""

    name: str
    levels: int
    rows: Sequence[Row]
    quantities: Sequence[tuple[str, str]]
    """(key, label), Forget VQA first, utility second, then the other columns."""
    findings: Sequence[str]
    chart: Chart
    pairs: Sequence[Pair]
    runs: Sequence[Run]
    compared: str


@dataclass(frozen=True)
class Experiment:
    name: str
    title: str
    backbones: Sequence[Backbone]
    origin: Origin


def read_experiment(path: Path) -> Experiment:
    """`experiments/NAME/results.json` as the page shows it.

    Raises:
        InputRefused: if it is damaged, or lacks something or holds something else than it should.
        Mismatch: if it was written by another schema.
    """
    found = Fields(check_seal(read_json(path), str(path), kind="experiment"), str(path))
    name = found.get("name").text()
    reader = _Reader(found)
    return Experiment(
        name,
        found.get("title").text() if found.has("title") else name,
        [reader.backbone(backbone) for backbone in found.get("summary").items()],
        origin("experiment", name, found),
    )


class _Reader:
    def __init__(self, found: Fields) -> None:
        self.found = found
        self.rows = {row.get("key").text(): row for row in found.get("rows").entries()}
        self.columns = {key: column.get("label").text() for key, column in found.get("columns").items().items()}
        self.chances = {key: column.get("chance").share() for key, column in found.get("columns").items().items()}
        self.labels = {**ANCHORS, **{key: row.get("label").text() for key, row in self.rows.items()}}
        self.pairs = found.get("paired").entries()
        self.compared = found.get("compared").text() if found.has("compared") else self._most_compared()

    def _most_compared(self) -> str:
        firsts = [pair.get("first").text() for pair in self.pairs]
        return max(sorted(set(firsts)), key=firsts.count, default="")

    def _label(self, key: Fields) -> str:
        if key.text() not in self.labels:
            raise InputRefused(f"{key.where}: there is no row '{key.text()}'", "make it again")
        return self.labels[key.text()]

    def _quantity(self, name: str) -> str:
        return self.columns.get(name) or words.column(name)

    def backbone(self, name: str) -> Backbone:
        summary = self.found.get("summary").get(name).items()
        levels = [level for level in self.found.get("levels").entries() if level.get("backbone").text() == name]
        cells = [cell for cell in self.found.get("cells").entries() if cell.get("backbone").text() == name]
        pairs = [pair for pair in self.pairs if pair.get("backbone").text() == name]
        order = [*(key for key in ANCHORS if key in summary), *(key for key in self.rows if key in summary)]
        paired = [self._pair(pair) for pair in pairs]
        rows = [self._row(key, summary[key], cells, pairs) for key in order]
        compared = self.labels.get(self.compared, self.compared)
        return Backbone(
            name=name,
            levels=len(levels),
            rows=rows,
            quantities=[
                (key, self._quantity(key)) for key in (FORGET, UTILITY, *(c for c in self.columns if c != FORGET))
            ],
            findings=[found for each in ("matched", "fixed") if (found := _finding(each, compared, rows, paired))],
            chart=self._chart(name, levels, cells),
            pairs=paired,
            runs=[self._run(cell) for cell in cells],
            compared=compared,
        )

    def _row(self, key: str, row: Fields, cells: Sequence[Fields], pairs: Sequence[Fields]) -> Row:
        anchor = key in ANCHORS
        mine = [cell for cell in cells if cell.get("row").text() == key and not cell.has("failed")]
        forget = [cell.get("samples").get("forget").whole() for cell in mine]
        retain = [cell.get("samples").get("retain").whole() for cell in mine]
        density = [cell.get("density").share() for cell in mine if cell.has("density")]
        found: dict[str, Mapping[str, Number]] = {"fixed": self._numbers(key, "fixed", row.get("fixed"), pairs)}
        reached, step = "", ""
        if row.has("matched"):
            matched = row.get("matched")
            reached = f"{matched.get('reached').whole()} of {matched.get('levels').whole()}"
            step = numbers.quantity(matched.get("step").number()) if matched.has("step") else "–"
            found["matched"] = self._numbers(key, "matched", matched.get("columns"), pairs)
        return Row(
            key=key,
            label=self.labels[key],
            detail=words.PLAIN_MODELS[key] if anchor else _detail(self.rows[key]),
            anchor=anchor,
            samples=f"{_mean(forget)} : {_mean(retain)}" if mine else "–",
            ratio=numbers.ratio(sum(retain), sum(forget)) if mine else "–",
            density=numbers.percent(sum(density) / len(density)) if density else "–",
            reached=reached,
            step=step,
            numbers=found,
        )

    def _numbers(self, key: str, comparison: str, columns: Fields, pairs: Sequence[Fields]) -> dict[str, Number]:
        return {
            quantity: self._number(cell, quantity, self._verdict(key, comparison, quantity, pairs))
            for quantity, cell in columns.items().items()
        }

    def _number(self, cell: Fields, quantity: str, verdict: tuple[str, bool, str]) -> Number:
        mean, (low, high) = cell.get("mean").share(), cell.get("ci95").interval()
        n = f"{numbers.count(cell.get('n').whole())} answers, {cell.get('levels').whole()} levels"
        picture = whisker(mean, low, high, self.chances.get(quantity))
        return Number(mean, numbers.percent(mean), numbers.interval(low, high), picture, n, *verdict)

    def _verdict(self, key: str, comparison: str, quantity: str, pairs: Sequence[Fields]) -> tuple[str, bool, str]:
        """How a row differs from the compared one: text, whether it is resolved, and the whole of it."""
        for pair in pairs:
            ends = pair.get("first").text(), pair.get("second").text()
            if pair.get("comparison").text() != comparison or pair.get("quantity").text() != quantity:
                continue
            if set(ends) != {key, self.compared} or key == self.compared:
                continue
            sign = 1 if ends[0] == key else -1
            difference = sign * pair.get("difference").share(-1)
            low, high = pair.get("ci95").interval(-1)
            low, high = (low, high) if sign == 1 else (-high, -low)
            span = f"{numbers.points(difference)} points, 95 % interval {numbers.points(low)} to {numbers.points(high)}"
            p_value = pair.get("p_adjusted" if pair.has("p_adjusted") else "p_value").share()
            said = f"{span}, p = {p_value:.3f}, {pair.get('levels').whole()} levels"
            said += f", {pair.get('people').whole()} people" if pair.has("people") else ""
            resolved = pair.get("resolved").flag()
            return (numbers.points(difference) if resolved else "not resolved"), resolved, said
        return "", False, ""

    def _pair(self, pair: Fields) -> Pair:
        low, high = pair.get("ci95").interval(-1)
        difference = pair.get("difference").share(-1)
        return Pair(
            comparison=pair.get("comparison").text(),
            quantity=self._quantity(pair.get("quantity").text()),
            first=self._label(pair.get("first")),
            second=self._label(pair.get("second")),
            difference=difference,
            text=numbers.points(difference),
            interval=f"{numbers.points(low)} to {numbers.points(high)}",
            p_value=pair.get("p_adjusted" if pair.has("p_adjusted") else "p_value").share(),
            agreeing=f"{pair.get('same_sign').whole()} of {pair.get('levels').whole()}",
            resolved=pair.get("resolved").flag(),
        )

    def _chart(self, name: str, levels: Sequence[Fields], cells: Sequence[Fields]) -> Chart:
        anchors = {
            anchor: [
                _point(level.get(anchor), f"{anchor}, seed {level.get('seed').whole()}")
                for level in levels
                if level.has(anchor)
            ]
            for anchor in ANCHORS
        }
        series = []
        for style, key in enumerate(self.rows):
            mine = [cell for cell in cells if cell.get("row").text() == key and not cell.has("failed")]
            if mine:
                series.append(self._series(self.labels[key], style, mine))
        return Chart(
            title=name,
            series=series,
            vanilla=anchors["vanilla"],
            gold=anchors["gold"],
            targets=[level.get("target").share() for level in levels],
        )

    def _series(self, label: str, style: int, cells: Sequence[Fields]) -> Series:
        runs = []
        for cell in cells:
            seed = cell.get("seed").whole()
            runs.append(
                {
                    entry.get("step").whole(): _point(entry, f"{label}, seed {seed}, step {entry.get('step').whole()}")
                    for entry in cell.get("curve").entries()
                }
            )
        # where runs were searched for differently long, the mean ends with the shortest
        shared = sorted(set.intersection(*(set(run) for run in runs)))
        mean = [
            mean_point([run[step] for run in runs], f"{label}, step {step}, mean of {len(runs)}") for step in shared
        ]
        if len(runs) == 1:
            return Series(label, style, list(runs[0].values()))
        return Series(label, style, mean, [list(run.values()) for run in runs])

    def _run(self, cell: Fields) -> Run:
        level = f"seed {cell.get('seed').whole()}"
        if cell.has("draw"):
            level += f", draw {cell.get('draw').whole()}"
        label = self._label(cell.get("row"))
        if cell.has("failed"):
            return Run(level, label, "–", "–", "–", "–", None, None, "–", f"failed: {cell.get('failed').text()}")
        fixed, matched = cell.get("fixed"), "not reached"
        if cell.has("matched"):
            point = cell.get("matched")
            step = numbers.quantity(point.get("step").number())
            matched = f"{numbers.percent(point.get('utility').share())} at step {step}"
        elif cell.has("searched"):
            matched = f"not reached in {cell.get('searched').whole()} steps"
        samples = cell.get("samples")
        return Run(
            level=level,
            label=label,
            model=cell.get("model").text(),
            digest=numbers.digest(cell.get("model_sha256").text()),
            steps=numbers.count(cell.get("steps").whole()),
            samples=f"{samples.get('forget').whole()} : {samples.get('retain').whole()}",
            forget=fixed.get("columns").get(FORGET).share(),
            utility=fixed.get("utility").share(),
            matched=matched,
            remarks=_remarks(cell.get("remarks")),
        )


def _finding(comparison: str, compared: str, rows: Sequence[Row], pairs: Sequence[Pair]) -> str:
    """One sentence on what the compared row keeps against every other, largest resolved difference first.

    At a fixed budget rows forget differently much, so the difference in Forget VQA stands beside.
    """
    label = COMPARISONS[comparison]
    missed = [row.label for row in rows if row.reached.startswith("0 of ")] if comparison == "matched" else []
    if compared in missed:
        return f"{label}: {compared} did not reach it, so nothing can be said of what it keeps there."
    differences: dict[str, dict[str, tuple[float, bool]]] = {}
    for pair in pairs:
        if pair.comparison == comparison and compared in (pair.first, pair.second):
            sign, other = (1, pair.second) if pair.first == compared else (-1, pair.first)
            differences.setdefault(pair.quantity, {})[other] = (sign * pair.difference, pair.resolved)
    kept, forgot = differences.get(words.column(UTILITY), {}), differences.get(words.column(FORGET), {})

    def named(others: Sequence[str]) -> str:
        beside = {other: f"; Forget VQA {numbers.points(forgot[other][0])}" for other in others if other in forgot}
        return ", ".join(
            f"{other} ({numbers.points(kept[other][0])} points{beside.get(other, '')})" for other in others
        )

    resolved = sorted((other for other in kept if kept[other][1]), key=lambda other: -abs(kept[other][0]))
    more, less = ([o for o in resolved if (kept[o][0] > 0) == up] for up in (True, False))
    parts = [f"keeps more than {named(more)}"] if more else []
    parts += [f"keeps less than {named(less)}"] if less else []
    unresolved = [other for other in kept if not kept[other][1]]
    parts += [f"is not resolved from {', '.join(unresolved)}"] if unresolved else []
    if not parts:
        return ""
    return f"{label}: {compared} {'; it '.join(parts)}." + (f" Not reached by {', '.join(missed)}." if missed else "")


def _detail(row: Fields) -> str:
    """What a row's settings are, where they differ from the plain ones."""
    parts = []
    if row.has("mask"):
        mask = row.get("mask").mapping()
        parts.append("mask: " + ", ".join(f"{key} {value}" for key, value in sorted(mask.items()) if value is not None))
    else:
        parts.append("no mask")
    if row.has("scope") and row.get("scope").text() != "forget":
        parts.append(f"scope {row.get('scope').text()}")
    if row.has("reference"):
        parts.append(f"reference model: {row.get('reference').text()}")
    if row.has("forget_weight") and row.get("forget_weight").number() != 1:
        parts.append(f"forget weight {row.get('forget_weight').number():g}")
    if row.has("retain_batch"):
        parts.append(f"{row.get('retain_batch').whole()} retain samples a step")
    return "; ".join(parts)


def _point(entry: Fields, title: str) -> Point:
    x, y = entry.get("columns").get(FORGET).share(), entry.get("utility").share()
    return Point(x, y, f"{title}: {spoken(x, y)}")


def _mean(counts: Sequence[int]) -> str:
    return numbers.quantity(sum(counts) / len(counts))


def _remarks(found: Fields) -> str:
    """Remarks as a list, or by column."""
    if isinstance(found.value, dict):
        return "; ".join(f"{words.column(key)}: {', '.join(each.texts())}" for key, each in found.items().items())
    return "; ".join(found.texts())
