"""The person x person drop matrix: what it costs everybody else to forget one person (the collateral matrix of arXiv
2511.11299).

A model that was made to forget several people at once does not tell who paid for whom. So the run that made it is done
again for single people: same start, method, mask and settings, their samples alone, as many steps as are theirs.
Nothing is saved. F people forgotten one by one, P people asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmsurgery.artifacts.checkpoint import RUN_FILE
from mmsurgery.audit.material import Material
from mmsurgery.audit.subjects import Subject
from mmsurgery.data.samples import Item
from mmsurgery.errors import MmsurgeryError, UnusableData
from mmsurgery.evaluate.scoring import score
from mmsurgery.methods.registry import method as find_method
from mmsurgery.provenance import differences
from mmsurgery.settings import RecipeSettings
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.unlearn.method_settings import with_settings
from mmsurgery.unlearn.record import read_record
from mmsurgery.unlearn.request import Request, Run, gather
from mmsurgery.unlearn.train_run import unlearned_in_memory
from mmsurgery.workspace import SILENT, Progress

MOST = 6
"""People who are forgotten one by one, at most."""
ASKED = 240
"""Most questions about retained people."""


def drops(subject: Subject, material: Material, progress: Progress = SILENT) -> dict[str, Any]:
    """`{forgotten [F], people [P], drops [F][P]}`, drops in accuracy from the run's start, 0-1.

    Raises:
        UnusableData: if the model was not unlearned here from what is still there.
    """
    run = _again(subject, material)
    forgotten = sorted({sample.person for sample in run.forget})
    chosen = (
        [forgotten[place * len(forgotten) // MOST] for place in range(MOST)] if len(forgotten) > MOST else forgotten
    )
    asked = [*material.forget, *material.items("retain_vqa", ASKED)]
    people = [*forgotten, *sorted({item.person for item in asked} - set(forgotten))]
    people = [person for person in people if any(item.person == person for item in asked)]
    cache: dict[Any, Any] = {}
    from mmsurgery.backbones.loading import load

    before = _accuracy(load(run.files.path), asked, cache)
    rows = []
    for person in chosen:
        mine = [sample for sample in run.forget if sample.person == person]
        steps = run.request.steps and max(1, round(run.request.steps * len(mine) / len(run.forget)))
        # somebody may have fewer samples than a batch
        recipe = dataclasses.replace(run.request.recipe, batch_size=min(run.request.recipe.batch_size, len(mine)))
        request = dataclasses.replace(run.request, steps=steps, recipe=recipe, retain_batch=run.request.retain_size)
        loaded = unlearned_in_memory(dataclasses.replace(run, forget=mine, request=request), progress)
        after = _accuracy(loaded, asked, cache)
        rows.append([before[other] - after[other] for other in people])
    return {"forgotten": chosen, "people": people, "drops": np.round(rows, 4).tolist()}


def _accuracy(loaded: Any, items: Sequence[Item], cache: dict[Any, Any]) -> dict[str, float]:
    right: dict[str, list[bool]] = {}
    for item, scored in zip(items, score(loaded, items, cache=cache), strict=True):
        right.setdefault(item.person, []).append(scored.correct)
    return {person: float(np.mean(each)) for person, each in right.items()}


def _again(subject: Subject, material: Material) -> Run:
    """The run that made a model, from its record.

    Raises:
        UnusableData: if it cannot be done again.
    """
    if not (subject.folder / RUN_FILE).exists():
        raise UnusableData(f"'{subject.name}' has no record of a run", "audit a model that mmsurgery apply made")
    record = read_record(subject.folder)
    made = record["provenance"]
    if made.get("command") != "apply":
        raise UnusableData(f"'{subject.name}' was not unlearned", "audit a model that mmsurgery apply made")
    try:
        run = gather(material.workspace, _request(record, made["settings"]))
    except (MmsurgeryError, KeyError, TypeError) as error:
        what = error.what if isinstance(error, MmsurgeryError) else "its record is of another version"
        raise UnusableData(f"the run of '{subject.name}' cannot be done again: {what}", "apply it again") from error
    if run.provenance()["inputs"] != made["inputs"]:
        other = differences(made, run.provenance(), ("inputs",))
        raise UnusableData(
            f"the run of '{subject.name}' cannot be done again, other inputs are there now: {other}", "apply it again"
        )
    return run


def _request(record: Mapping[str, Any], settings: Mapping[str, Any]) -> Request:
    recipe = {
        field.name: settings[field.name] for field in dataclasses.fields(RecipeSettings) if field.name in settings
    }
    return Request(
        name=str(record["model"]),
        method=with_settings(find_method(settings["method"]), settings["method_settings"]),
        mask=record["mask"],
        scope=settings["scope"],
        protocol=settings["protocol"],
        lora=None if settings.get("lora") is None else LoRA(**settings["lora"]),
        start=settings["start"],
        reference=settings["reference"] or "vanilla",
        forget_weight=settings["forget_weight"],
        retain_batch=settings["retain_batch"],
        eval_every=0,
        steps=settings.get("steps"),
        recipe=RecipeSettings(**recipe),
    )
