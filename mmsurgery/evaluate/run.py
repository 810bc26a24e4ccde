"""`eval`: score models of a workspace on every column of its benchmark."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsurgery.artifacts.checkpoint import RUN_FILE, CheckpointFiles, companions_sha256, model_config
from mmsurgery.artifacts.files import read_json, write_json
from mmsurgery.artifacts.mask import SCORED_TEXT
from mmsurgery.backbones.discovery import backbone
from mmsurgery.data.samples import Item, data_sha256
from mmsurgery.errors import GateMissed, InputRefused, Mismatch, UsageError, unknown
from mmsurgery.evaluate import columns as tables
from mmsurgery.evaluate import official, records, truth
from mmsurgery.evaluate.asked import Asked, what_is_asked
from mmsurgery.evaluate.protocols import LIKELIHOOD, Protocol
from mmsurgery.evaluate.scoring import score
from mmsurgery.provenance import differences, provenance, sha256_json
from mmsurgery.unlearn.trained_models import check_trained
from mmsurgery.workspace import SILENT, Progress, Workspace

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded

UNFINISHED = ".scoring"
"""Folder below `evals/` of the columns that an interrupted run has finished."""


@dataclass(frozen=True)
class EvalResult:
    """The scores of one model."""

    model: str
    path: Path
    columns: dict[str, dict[str, Any]]
    """See `columns.summary`; in the benchmark's order."""
    remarks: dict[str, list[str]]
    """What a reader of a column must know, see `columns.remarks`."""
    up_to_date: bool
    metrics: dict[str, float | None] = field(default_factory=dict)
    """CLEAR's, where the benchmark has columns for them; see `truth.metrics`."""


@dataclass(frozen=True)
class _Plan:
    asked: Asked
    name: str
    folder: Path
    path: Path
    provenance: dict[str, Any]
    finished: EvalResult | None


def evaluate(
    workspace: Workspace,
    models: Sequence[str] | None = None,
    *,
    protocol: str = LIKELIHOOD,
    shots: int = 0,
    demonstrations: str = "retain",
    subset: int | None = None,
    request: str | None = None,
    gates: Sequence[str] = (),
    force: bool = False,
    progress: Progress = SILENT,
) -> list[EvalResult]:
    """Score models and write `evals/MODEL.json` and `evals/MODEL.items.jsonl`.

    A model that was scored already is returned as it is, without a lock. An interrupted run goes on with
    the column it was at.

    Args:
        models: names, or paths of checkpoint folders; by default every model of the workspace but `base`.
        protocol: `likelihood` scores options (see `scoring`), and answers that are true or not as columns
            `COLUMN.truth` where the benchmark has such (see `truth`); `official` has answers generated (see
            `official`), of cloze and open questions too, as columns `COLUMN.cloze` and
            `COLUMN.generation`, and writes into `evals/official/`.
        shots, demonstrations: of protocol `official`, see `Protocol`.
        subset: ask at most so many questions of each column, spread evenly over its people.
        request: an unlearned model: the forget columns ask about the people whom that model was made to forget,
            instead of those whom the settings name (see `request.Requested`); written below `requests/REQUEST/`.
        gates: what `gate` is to check of the results; one that makes no sense is refused before scoring.
        force: score again, and replace scores of another model or of other items.

    Raises:
        UsageError: for an unknown protocol, a gate that cannot be read or names no column, or two models
            of one name.
        MissingArtifact: if a model does not exist.
        InputRefused: if a model, the benchmark's files or earlier scores are damaged.
        Mismatch: if the name holds scores of another model or of other items.
        UnusableData: if the benchmark has nothing to score, or a model's scores are not finite.
    """
    chosen_protocol = Protocol(protocol, shots, demonstrations)
    if subset is not None and subset < 1:
        raise UsageError(f"a subset of {subset} items is impossible", "use 1 or more")
    wanted = [_read_gate(expression)[0] for expression in gates]
    names = list(models or ["vanilla", *(name for name in workspace.models() if name not in ("vanilla", "base"))])
    found: dict[str, Path] = {}
    for name, folder in map(workspace.find_model, names):
        if found.setdefault(name, folder).resolve() != folder.resolve():
            raise UsageError(f"two models are called '{name}': {found[name]} and {folder}", "rename a folder")
    check_trained(workspace, *found)
    asked = what_is_asked(workspace, chosen_protocol, request, subset, progress)
    for column in wanted:
        _check_column(column, asked.columns)

    def plans() -> list[_Plan]:
        made = [_plan(workspace, asked, name, folder) for name, folder in found.items()]
        return made if force else _finished(made)

    looked_up = plans()
    _note_others(looked_up, progress)
    if all(plan.finished for plan in looked_up):
        return _with_metrics(workspace, [plan.finished for plan in looked_up if plan.finished], progress)
    with workspace.lock():
        loader = _Loader()
        # again: another process may have scored them meanwhile
        results = [plan.finished or _score_model(workspace, plan, loader, progress) for plan in plans()]
    return _with_metrics(workspace, results, progress)


def gate(results: Sequence[EvalResult], expression: str, *, over: bool = False) -> None:
    """Check `COLUMN=VALUE`: every model's number in the column (accuracy; see `columns.score_of`) is at least
    VALUE, in 0-1; with `over` at most VALUE.

    Raises:
        UsageError: if the expression cannot be read or a model has no such column.
        GateMissed: naming the models below, or above.
    """
    column, limit = _read_gate(expression)
    for result in results:
        _check_column(column, result.columns)
    reached = {result.model: tables.score_of(result.columns[column]) for result in results}
    missed = {model: value for model, value in reached.items() if (value > limit if over else value < limit)}
    if missed:
        named = ", ".join(f"{model} {value:.3f}" for model, value in missed.items())
        raise GateMissed(f"{column} is {'above' if over else 'below'} {limit:g}: {named}")


def _read_gate(expression: str) -> tuple[str, float]:
    column, _, text = expression.partition("=")
    try:
        least = float(text)
    except ValueError:
        least = -1.0
    if not 0 <= least <= 1:
        raise UsageError(f"'{expression}' is no gate", "write COLUMN=VALUE with a value in 0-1, such as retain_vqa=0.9")
    return column, least


def _check_column(column: str, known: Mapping[str, Any]) -> None:
    if column not in known:
        raise unknown("column", column, known)


def _plan(workspace: Workspace, asked: Asked, name: str, folder: Path) -> _Plan:
    """What is to be scored."""
    path = workspace.eval_path(name, asked.protocol.id, asked.request, asked.subset)
    config = model_config(folder)
    inputs = {
        "model_sha256": CheckpointFiles(folder, backbone(config["model_type"]).canonical).digest(),
        "companions_sha256": companions_sha256(folder),
        "items": {column: data_sha256(items) for column, items in asked.columns.items()},
    }
    return _Plan(asked, name, folder, path, provenance("eval", asked.settings(workspace.threads), inputs), None)


def _finished(plans: Sequence[_Plan]) -> list[_Plan]:
    """The plans, with the scores of those that are there already.

    Raises:
        Mismatch: naming those whose scores have other inputs.
    """
    found, others = [], []
    for plan in plans:
        record = records.read_eval(plan.path) if plan.path.exists() else None
        if record is not None and record["provenance"].get("key") != plan.provenance["key"]:
            others.append((plan, differences(record["provenance"], plan.provenance)))
        elif record is not None:
            plan = dataclasses.replace(plan, finished=_result(plan, record, up_to_date=True))
        found.append(plan)
    if others:
        (first, why), *rest = others
        more = f"; so do those of {', '.join(plan.name for plan, _ in rest)}" if rest else ""
        again = _command(*(plan for plan, _ in others))
        raise Mismatch(f"{first.path} holds scores with other inputs ({why}){more}", again)
    return found


def _note_others(plans: Sequence[_Plan], progress: Progress) -> None:
    """Say which other models' scores beside these are about other items: their numbers do not compare."""
    ours = {plan.path for plan in plans}
    for path in sorted(plans[0].path.parent.glob("[!.]*.json")) if plans else ():
        if path not in ours:
            try:
                inputs = records.read_eval(path)["provenance"].get("inputs")
            except (InputRefused, Mismatch) as problem:
                progress.note(str(problem))
                continue
            if not isinstance(inputs, dict) or inputs.get("items") != plans[0].provenance["inputs"]["items"]:
                progress.note(f"the scores of '{path.stem}' are about other items, they do not compare with these")


def _command(*plans: _Plan) -> str:
    """The command that scores them again."""
    return f"mmsurgery eval {' '.join(plan.name for plan in plans)}{plans[0].asked.options} --force"


def _result(plan: _Plan, record: Mapping[str, Any], *, up_to_date: bool) -> EvalResult:
    order = [*plan.provenance["inputs"]["items"]]
    columns = {column: record["columns"][column] for column in order}
    return EvalResult(plan.name, plan.path, columns, record["remarks"], up_to_date)


def _score_model(workspace: Workspace, plan: _Plan, loader: _Loader, progress: Progress) -> EvalResult:
    finished = plan.path.parent / UNFINISHED / plan.name / plan.provenance["key"][:16]
    for stale in finished.parent.glob("*"):
        if stale != finished:
            shutil.rmtree(stale, ignore_errors=True)
    scores: dict[str, list[Any]] = {}
    for column, items in plan.asked.columns.items():
        file = finished / f"{column}.json"
        scores[column] = _read_finished(file) or loader.score(workspace, plan, column, items, progress)
        if not file.exists():
            lines = [records.line(item) for item in scores[column]]
            write_json(file, {"lines": lines, "sha256": sha256_json(lines)})
    leaked = read_json(plan.folder / RUN_FILE).get(SCORED_TEXT) if (plan.folder / RUN_FILE).exists() else None
    body = {
        "model": plan.name,
        "columns": {column: tables.summary(each, plan.asked.protocol.id) for column, each in scores.items()},
        "remarks": {
            column: found for column, each in scores.items() if (found := _remarks(plan, leaked, column, each))
        },
        "provenance": plan.provenance,
    }
    record = records.write_eval(plan.path, body, [item for each in scores.values() for item in each])
    shutil.rmtree(finished.parent, ignore_errors=True)
    with contextlib.suppress(OSError):  # another model's columns may be in it
        finished.parent.parent.rmdir()
    workspace.journal("eval", model=plan.name, protocol=plan.asked.protocol.id)
    return _result(plan, record, up_to_date=False)


def _remarks(plan: _Plan, leaked: int | None, column: str, scores: Sequence[Any]) -> list[str]:
    """What a reader of a column of this model must know; `leaked` text samples behind it are scored."""
    asked, name = plan.asked, column.partition(".")[0]
    found = [asked.notes[name]] if name in asked.notes else []
    if name.endswith("_qa") and leaked:
        found.append(f"the saliency behind this model was measured on {leaked} text samples that are scored")
    if asked.protocol.shots and column not in asked.demonstrations.people:
        found.append("asked without demonstrations, as in the original")
    return [*found, *tables.remarks(scores)]


def _with_metrics(workspace: Workspace, results: Sequence[EvalResult], progress: Progress) -> list[EvalResult]:
    """The results with CLEAR's metrics, where there are columns for them; against the gold model that was scored
    beside them, if one was and still is what the settings ask for."""
    if not results or not any(name.endswith(f".{truth.TASK}") for name in results[0].columns):
        return list(results)
    asked = [(each, records.read_items(each.path)) for each in results]
    beside = results[0].path.with_name("gold.json")
    if not beside.exists():
        progress.note("no gold model was scored: Forget Quality is left out (mmsurgery train gold, then eval)")
        return [dataclasses.replace(each, metrics=truth.metrics(each.columns, items, None)) for each, items in asked]
    try:
        check_trained(workspace, "gold")
        gold = records.read_items(beside)
        return [dataclasses.replace(each, metrics=truth.metrics(each.columns, items, gold)) for each, items in asked]
    except (InputRefused, Mismatch) as problem:
        progress.note(f"Forget Quality is left out: {problem}")
        return [dataclasses.replace(each, metrics=truth.metrics(each.columns, items, None)) for each, items in asked]


def _read_finished(file: Path) -> list[Any] | None:
    """The scores of a column that an interrupted run finished, if they are whole."""
    if not file.exists():
        return None
    try:
        value = read_json(file)
        if value["sha256"] != sha256_json(value["lines"]):
            raise InputRefused(f"{file} is damaged")
        return [records.from_line(entry, str(file)) for entry in value["lines"]]
    except (InputRefused, KeyError, TypeError):
        file.unlink()
        return None


class _Loader:
    """Loads models when they are needed, and tokenises once what several models with one processor are asked."""

    def __init__(self) -> None:
        self._loaded: Loaded | None = None
        self._template: str | None = None
        self._cache: dict[Any, Any] = {}

    def score(
        self, workspace: Workspace, plan: _Plan, column: str, items: Sequence[Item], progress: Progress
    ) -> list[Any]:
        from mmsurgery.unlearn.loop import deterministic

        with deterministic(workspace.threads):
            loaded = self._load(plan)
            common: dict[str, Any] = {"cache": self._cache, "what": f"{plan.name}: {column}", "progress": progress}
            if plan.asked.protocol.name == LIKELIHOOD:
                return list(score(loaded, items, **common))
            shown = plan.asked.demonstrations.items.get(column, ())
            return list(official.answers(loaded, items, plan.asked.asking, demonstrations=shown, **common))

    def _load(self, plan: _Plan) -> Loaded:
        from mmsurgery.backbones.loading import load

        if self._loaded is not None and self._loaded.path == plan.folder:
            return self._loaded
        processor = None if self._loaded is None else self._loaded.processor
        self._loaded = None  # before the next is read: two models may not fit into memory
        loaded = load(plan.folder)
        template = loaded.backbone.template_digest(loaded.processor)
        if template == self._template:
            loaded = dataclasses.replace(loaded, processor=processor)
        else:
            self._cache = {}
        if loaded.model_sha256 != plan.provenance["inputs"]["model_sha256"]:
            raise InputRefused(f"{plan.folder} changed while it was being scored", _command(plan))
        self._loaded, self._template = loaded, template
        return loaded
