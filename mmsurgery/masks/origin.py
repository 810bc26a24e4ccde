"""Where an artifact comes from, traced back to digests of models and data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.checkpoint import RUN_FILE
from mmsurgery.artifacts.files import read_json
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.names import check_artifact_name
from mmsurgery.provenance import check_seal

Step = dict[str, str]
"""`what` it is (model, data, saliency, mask, ...), its `name`, `about` it in words, its whole `sha256`."""

_LONGEST = 100
"""Models of a chain that are followed."""


def step(what: str, name: str, sha256: Any, about: str = "") -> Step:
    return {"what": what, "name": name, "about": about, "sha256": sha256 if isinstance(sha256, str) else ""}


def of_mask(base: Mapping[str, str], parents: Sequence[Mapping[str, Any]]) -> list[Step]:
    """The model a mask belongs to, the masks it was composed of, the saliency and data they were made from."""
    steps = [step("model", "measured", base.get("model_sha256"), base.get("model_type", ""))]
    for parent in parents:
        if parent.get("kind") == "saliency":
            part = str(parent.get("part", ""))
            steps.append(step("saliency", part, parent.get("sha256"), _measured(parent)))
            steps.append(step("data", part, parent.get("data_sha256")))
        else:
            modules = f"modules {parent['modules']}" if parent.get("modules") else ""
            about = ", ".join(each for each in (str(parent.get("rule", "")), modules) if each)
            steps.append(step("mask", str(parent.get("name", "")), parent.get("content_sha256"), about))
    return [each for place, each in enumerate(steps) if each not in steps[:place]]


def of_saliency(saliency: SaliencyMap) -> list[Step]:
    """The model and the data that were measured."""
    return [
        step("model", "measured", saliency.model_sha256, saliency.model_type),
        step("data", saliency.part, saliency.data_sha256, _units(saliency.estimator, saliency.units)),
    ]


def of_model(path: Path, run: Mapping[str, Any] | None) -> list[Step]:
    """A model's run, and the runs of the models it started from as far as their folders lie beside it."""
    steps: list[Step] = []
    for _ in range(_LONGEST):
        inputs = {} if run is None else _table(_table(run.get("provenance")).get("inputs"))
        if run is None or not isinstance(run.get("start"), str):
            break
        method = f"{run.get('method', '')}, from {run['start']}"
        steps.append(step("model", path.name, run.get("model_sha256"), method))
        steps += _inputs(inputs, mask=str(run.get("mask") or ""))
        path = path.parent / check_artifact_name(run["start"])
        steps.append(step("model", path.name, inputs.get("start"), "start"))
        record = path / RUN_FILE
        run = check_seal(read_json(record), str(record), kind="run") if record.is_file() else None
        if run is not None and run.get("model_sha256") != inputs.get("start"):
            break  # another model has that name now
        if run is not None:
            steps.pop()  # its own entry says more
    return steps


def of_patch(sides: Mapping[str, Any]) -> list[Step]:
    """`before` and `after`: the two models between which a patch leads, each with what its run was made from."""
    steps: list[Step] = []
    for side in ("before", "after"):
        about = _table(sides.get(side))
        record = _table(about.get("record"))
        steps.append(step("model", str(about.get("model", side)), about.get("model_sha256"), side))
        steps += _inputs(_table(_table(record.get("provenance")).get("inputs")), mask=str(record.get("mask") or ""))
    return [each for place, each in enumerate(steps) if each not in steps[:place]]


def of_record(record: Mapping[str, Any]) -> list[Step]:
    """The digests among a record's inputs."""
    return _inputs(_table(_table(record.get("provenance")).get("inputs")))


def _inputs(inputs: Mapping[str, Any], *, mask: str = "", prefix: str = "") -> list[Step]:
    steps = []
    for key, value in inputs.items():
        if isinstance(value, Mapping):
            content = value.get("content_sha256")
            if isinstance(content, str):
                about = f"modules {value['modules']}" if "modules" in value else ""
                steps.append(step("mask", mask or key, content, about))
            else:
                steps += _inputs(value, prefix=f"{prefix}{key}.")
        elif isinstance(value, str) and len(value) == 64 and not (key == "start" and not prefix):
            what = "data" if key in ("forget", "retain") or key.startswith("data") else "input"
            steps.append(step(what, prefix + key, value))
    return steps


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _measured(parent: Mapping[str, Any]) -> str:
    estimator, size = parent.get("estimator", ""), parent.get("batch_size")
    named = f"{estimator} of {size}" if size else str(estimator)
    return f"{named}, {_units(named, parent.get('units'))}"


def _units(estimator: str, units: Any) -> str:
    return f"{units} {'batches' if estimator.startswith('batch') else 'samples'}"
