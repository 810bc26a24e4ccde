"""The workspace's own models for the page: how each was made, and what it scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mmsurgery.data.benchmark import UTILITY as KEPT
from mmsurgery.evaluate.records import read_eval
from mmsurgery.evaluate.statistics import forgetting_target
from mmsurgery.figures.looks import row_looks
from mmsurgery.report import numbers, words
from mmsurgery.report.charts import whisker
from mmsurgery.report.curves import Along, Chart, Point, Series, spoken
from mmsurgery.report.fields import Fields
from mmsurgery.report.origin import Origin, origin
from mmsurgery.report.results import ANCHORS, FORGET, UTILITY
from mmsurgery.report.tables import Number
from mmsurgery.report.texts import NAME, cut
from mmsurgery.unlearn.record import read_record

GENERATED = "official"
"""Folder below `evals/` of answers that were generated."""


@dataclass(frozen=True)
class Model:
    """What a model's run record says."""

    name: str
    method: str
    about: str
    mask: str
    start: str
    claim: str
    steps: int
    samples: str
    ratio: str
    moved: Sequence[tuple[int, int, int, int]]
    """Per module group: changed inside the mask, weights inside, changed outside, weights outside."""
    model_sha256: str
    points: Sequence[Point]
    """Where it was along its run, if it was scored there."""
    origin: Origin
    patched: str = ""
    """`by patch revert of NAME, ...` where its record is that of the model that the patch gave back."""

    @property
    def digest(self) -> str:
        return numbers.digest(self.model_sha256)

    @property
    def masked(self) -> bool:
        return self.mask != "–"

    @property
    def inside(self) -> str:
        """Share of the mask's weights (of all weights without a mask) that changed."""
        return self._share(0)

    @property
    def outside(self) -> str:
        return self._share(2) if self.masked else "–"

    def _share(self, place: int) -> str:
        changed, total = (sum(group[k] for group in self.moved) for k in (place, place + 1))
        return numbers.percent(changed / total) if total else "–"


@dataclass(frozen=True)
class Score:
    """What a model scored."""

    name: str
    numbers: Mapping[str, Number]
    remarks: Sequence[str]
    model_sha256: str
    point: Point | None
    """Forget VQA against utility, where it has both."""
    chance: float | None
    """Of Forget VQA."""
    origin: Origin


def read_model(folder: Path) -> Model:
    """A model's run record.

    Raises:
        InputRefused, Mismatch: as `unlearn.record.read_record`, or if a field is not what it should be.
    """
    record = Fields(read_record(folder), str(folder / "mmsurgery-run.json"))
    name, method = folder.name, record.get("method").text()
    samples = (
        {key: each.whole() for key, each in record.get("samples").items().items()} if record.has("samples") else {}
    )
    settings = record.get("provenance").get("settings")
    pair = [samples.get("forget", 0), samples.get("retain", 0)]
    about = words.PLAIN_MODELS.get(name) or words.METHODS.get(method, ("", ""))[1]
    if settings.has("forget_weight") and settings.get("forget_weight").number() != 1:
        about += f"; forget weight {settings.get('forget_weight').number():g}"
    return Model(
        name=name,
        method=words.method(method),
        about=about,
        mask=record.get("mask").text() if record.has("mask") else "–",
        start=record.get("start").text(),
        claim=words.CLAIMS[record.get("claim").text()],
        steps=record.get("steps").get("done").whole(),
        samples=" : ".join(map(numbers.count, pair)) if any(pair) else numbers.count(sum(samples.values())),
        ratio=numbers.ratio(pair[1], pair[0]),
        moved=[
            (
                each.get("inside").whole(),
                each.get("inside_total").whole(),
                each.get("outside").whole(),
                each.get("outside_total").whole(),
            )
            for each in record.get("moved").items().values()
        ],
        model_sha256=record.get("model_sha256").text(),
        points=_points(name, record),
        origin=origin("model", name, record, "model_sha256"),
    )


def with_patches(models: Sequence[Model], journal: Sequence[Mapping[str, Any]]) -> list[Model]:
    """Models that a patch made say so: their record is the one of the model that the patch leads to.

    Args:
        journal: what was done in the workspace, in order.
    """
    last = {entry.get("model"): entry for entry in journal if str(entry.get("event")) in _MAKING}
    found = []
    for model in models:
        entry = last.get(model.name, {})
        event, patch = str(entry.get("event", "")), str(entry.get("patch", ""))
        if event.startswith("patch"):
            others = [each for each in models if each.model_sha256 == model.model_sha256 and each.name != model.name]
            whose = f"of {others[0].name}" if others else "of the model it leads to"
            made = f"by {event} of {cut(patch, NAME)}: weights and record are those {whose}"
            model = replace(model, patched=made)
        found.append(model)
    return found


_MAKING = ("train", "apply", "patch apply", "patch revert")
"""Events of the journal that make a model."""


def _points(name: str, record: Fields) -> list[Point]:
    found = []
    for entry in record.get("evaluations").entries() if record.has("evaluations") else []:
        columns = {key: each.share() for key, each in entry.get("columns").items().items()}
        kept = [columns[column] for column in KEPT if column in columns]
        if FORGET in columns and kept:
            x, y = columns[FORGET], sum(kept) / len(kept)
            found.append(Point(x, y, f"{name}, step {entry.get('step').whole()}: {spoken(x, y)}"))
    return found


def read_score(path: Path) -> Score:
    """A model's scores.

    Raises:
        InputRefused, Mismatch: as `evaluate.records.read_eval`, or if a field is not what it should be.
    """
    record = Fields(read_eval(path), str(path))
    columns = record.get("columns").items()
    found = {column: _number(cell) for column, cell in columns.items()}
    kept = [found[column].value for column in KEPT if column in found]
    point = None
    if kept:
        mean = sum(kept) / len(kept)
        found[UTILITY] = Number(mean, numbers.percent(mean), "", Markup(""), f"mean of {len(kept)}")
        if FORGET in found:
            point = Point(found[FORGET].value, mean, f"{path.stem}: {spoken(found[FORGET].value, mean)}")
    remarks = []
    if record.has("remarks"):
        for column, said in record.get("remarks").items().items():
            remarks += [f"{words.column(column)}: {text}" for text in said.texts()]
    return Score(
        name=path.stem,
        numbers=found,
        remarks=remarks,
        model_sha256=record.get("provenance").get("inputs").get("model_sha256").text(),
        point=point,
        chance=columns[FORGET].get("chance").share() if FORGET in columns and columns[FORGET].has("chance") else None,
        origin=origin("generated" if path.parent.name == GENERATED else "scores", path.stem, record),
    )


_SCORES = ("probability", "accuracy")


def _number(cell: Fields) -> Number:
    measured = (
        cell.get("rouge_l").get("f1") if cell.has("rouge_l") else cell.get(next(filter(cell.has, _SCORES), "accuracy"))
    )
    value = measured.share()
    low, high = cell.get("ci95").interval()
    chance = cell.get("chance").share() if cell.has("chance") else None
    picture = whisker(value, low, high, chance)
    n = f"n = {numbers.count(cell.get('n').whole())}"
    guessing = "F1 of ROUGE-L" if cell.has("rouge_l") else "nothing to guess"
    if cell.has("probability"):
        guessing = f"probability of the truth, truth ratio {numbers.percent(cell.get('truth_ratio').share())}"
    title = f"{n}, {guessing if chance is None else f'guessing gives {numbers.percent(chance)}'}"
    return Number(value, numbers.percent(value), numbers.interval(low, high), picture, n, title=title)


def remarks_of(scores: Sequence[Score]) -> list[tuple[str, Sequence[str]]]:
    """(models, what is said of their scores), once for those of which the same is said."""
    found: dict[tuple[str, ...], list[str]] = {}
    for score in scores:
        if score.remarks:
            found.setdefault(tuple(score.remarks), []).append(score.name)
    return [(", ".join(names), list(remarks)) for remarks, names in found.items()]


def columns_of(scores: Sequence[Score]) -> list[str]:
    """Columns of the table: Forget VQA, utility, then the rest in a fixed order, unknown ones last."""
    found = {column for score in scores for column in score.numbers}
    first = [column for column in (FORGET, UTILITY, *words.COLUMNS) if column in found]
    return list(dict.fromkeys([*first, *sorted(found)]))


def sizes_of(scores: Sequence[Score], columns: Sequence[str]) -> dict[str, str]:
    """Per column `n = 126` where it is the same for every model, else empty."""
    sizes = {column: {score.numbers[column].n for score in scores if column in score.numbers} for column in columns}
    return {column: next(iter(found)) if len(found) == 1 else "" for column, found in sizes.items()}


def own_chart(models: Sequence[Model], scores: Sequence[Score]) -> Chart | None:
    """The workspace's models between vanilla and gold; None where none has both numbers."""
    ends = {score.name: score for score in scores if score.point is not None}
    runs = {model.name: model.points for model in models}
    names = [name for name in ends if name not in (*ANCHORS, "base", "reference")]
    if not names:
        return None
    series = []
    for name, look in row_looks(sorted(names), "").items():
        last = ends[name].point
        along = [point for point in runs.get(name, ()) if last is not None]
        series.append(Series(name, look, Along([*along[:-1], last] if last is not None else along)))
    anchors = {name: [point] if name in ends and (point := ends[name].point) else [] for name in ANCHORS}
    chance = next((score.chance for score in ends.values() if score.chance is not None), 0.0)
    gold = anchors["gold"][0].x if anchors["gold"] else None
    target = min(forgetting_target(gold=gold, chance=chance), 1.0)
    return Chart("this workspace", series, anchors["vanilla"], anchors["gold"], [target])
