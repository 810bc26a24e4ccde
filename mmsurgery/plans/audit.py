"""What `audit` would need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmsurgery.audit import collateral, one_by_one, paraphrase, probing, relearning, sampling
from mmsurgery.audit.material import ASKED, Material
from mmsurgery.audit.probes import Probe, chosen
from mmsurgery.audit.run import audited_model, beside_of, material_of, measured_before, subjects_of
from mmsurgery.audit.subjects import TRIO, base
from mmsurgery.data.samples import Item, Sample
from mmsurgery.evaluate.generation import sampled
from mmsurgery.plans import plan as terms
from mmsurgery.plans.evaluate import scoring_terms
from mmsurgery.plans.plan import Passes, Plan, free_below
from mmsurgery.plans.probe import no_room, predicted
from mmsurgery.plans.sizes import Sizes
from mmsurgery.workspace import SILENT, Progress, Workspace

LINE = 120
"""Bytes of a value in a file of what was measured."""
TIMED = 3
"""Steps of fine-tuning that are run for their time; the first warms up."""
WRITTEN = 4
"""Questions that are answered for their time, `sampling.DRAWN` times each."""


@dataclass
class Work:
    """What a probe does with one model."""

    scored: int = 0
    """Questions whose options are scored."""
    passed: int = 0
    """Samples that pass forward alone."""
    trained: int = 0
    """Samples that pass forward and backward."""
    written: int = 0
    """Answers that are drawn."""
    loads: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def plan_audit(
    workspace: Workspace,
    model: str | None = None,
    *,
    probes: str | None = None,
    held_out: Path | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Plan:
    """What `audit` of the same arguments would need; nothing is written and no lock is taken.

    Memory is that of fine-tuning all weights in float32, gradients and moments beside them, or of the weights alone
    where there are too many (see `relearning.LARGEST`); with what scoring takes.

    Raises:
        as `audit`, as far as probes, models, options and data are concerned.
    """
    name, folder = audited_model(workspace, model)
    wanted, material = chosen(probes), material_of(workspace, held_out)
    sizes, notes = Sizes.of(name, folder), []
    subjects = subjects_of(workspace, name, folder, progress)
    beside = beside_of(workspace, subjects)
    work, tried = Work(), 0
    for each in subjects:
        for probe in wanted:
            again = force and each.name == name
            if again or measured_before(workspace, each, probe, material, beside) is None:
                work, tried = work + _work(probe, material, each.name), tried + 1
    if done := len(subjects) * len(wanted) - tried:
        notes.append(f"{done} of {len(subjects) * len(wanted)} measurements are there")
    count = sizes.count()
    trains = count <= relearning.LARGEST and any(probe.name == "relearning" for probe in wanted)
    memory = {terms.WEIGHTS: 4 * count}
    if trains:
        memory |= {terms.GRADIENTS: 4 * count, terms.MOMENTS: 8 * count}
    processor = sizes.family.load_processor(folder)
    memory |= scoring_terms(sizes, processor, material.forget, 4)
    seconds, how = _time(folder, material, work, 4 * count, workspace)
    notes.append(f"{len(subjects)} models, loaded {work.loads} times; {work.written} answers are drawn")
    asked = {"forget_vqa": len(material.forget), "retain_vqa": len(material.retain)}
    options = sum(len(item.options or {}) for item in material.forget) / len(material.forget)
    forward = round(work.scored * options) + work.passed + work.written + work.trained
    return Plan(
        verb="audit",
        model=sizes.size,
        samples=asked if tried else {},
        passes=Passes(forward=forward, backward=work.trained),
        memory={term: size for term, size in memory.items() if size},
        disk={"measurements": LINE * (work.scored + work.passed + work.written // sampling.DRAWN)} if tried else {},
        disk_free=free_below(workspace.path("audits")),
        seconds=seconds,
        notes=(*notes, how),
    )


def _work(probe: Probe, material: Material, name: str) -> Work:
    """What a probe does with one model of a name; see the probe's module."""
    forget, retain = len(material.forget), len(material.retain)
    if probe.name == "relearning":
        found = Work(scored=retain)
        evaluations = 1 + relearning.STEPS // relearning.EVERY
        for attack in relearning.attacks_of(material).values():
            if isinstance(attack, relearning.Attack):
                trained = relearning.STEPS * relearning.BATCH
                found += Work(scored=evaluations * len(attack.asked), trained=trained, loads=1)
        return found
    if probe.name == "quantisation":
        return Work(scored=3 * forget + 2 * retain, loads=3)
    if probe.name == "paraphrase":
        asked = [paraphrase.variants(material, forgotten=forgotten) for forgotten in (True, False)]
        scored = sum(len(items) for ways in asked for items in ways.values())
        return Work(scored=scored + len(material.items("forget_qa")), loads=1)
    if probe.name == "sampling":
        questions = min(sampling.FORGET, forget) + min(sampling.RETAIN, retain)
        return Work(written=sampling.DRAWN * questions, loads=1)
    if probe.name == "membership":
        members = sum(min(ASKED, len(material.samples(part))) for part in ("forget_vqa", "retain_vqa"))
        others, models = len(material.held_out.strangers), 1 + (base(material.workspace) is not None)
        return Work(passed=models * (members + others), loads=models) if others else Work()
    if probe.name == "probing":
        return Work(passed=forget + len(material.items("retain_vqa", probing.TAUGHT)), loads=1)
    columns = ("retain_vqa", "forget_perception", "forget_qa")
    found = Work(scored=sum(len(material.items(column, collateral.ASKED)) for column in columns), loads=2)
    if name in TRIO:
        return found
    samples, people = material.samples("forget_vqa"), min(one_by_one.MOST, len(material.forgotten))
    epochs = material.workspace.settings.recipe.epochs
    share = round(2 * epochs * len(samples) * people / max(1, len(material.forgotten)))  # one retain sample for each
    asked_each = forget + len(material.items("retain_vqa", one_by_one.ASKED))
    return found + Work(scored=(1 + people) * asked_each, trained=share, loads=1 + people)


def _time(folder: Path, material: Material, work: Work, weights: int, workspace: Workspace) -> tuple[float | None, str]:
    """Seconds, and what they are made of, or why there are none."""
    if not work.loads:
        return None, "no time: there is nothing to measure"
    if why := no_room(weights, 4 * weights):
        return None, why
    from mmsurgery.unlearn.loop import deterministic

    with deterministic(workspace.threads):
        return predicted(0.0, partial(_timed, folder, material, work))


def _timed(folder: Path, material: Material, work: Work) -> dict[str, float]:
    import torch

    from mmsurgery.backbones.loading import load
    from mmsurgery.plans.times.evaluate import along_time
    from mmsurgery.plans.times.watch import now

    begun = now()
    loaded = load(folder, torch.float32)
    found = {"loading": work.loads * (now() - begun)}
    asked = material.forget
    if work.scored + work.passed:
        again = along_time(loaded, asked, 2) / 2 / len(asked)
        found["scoring"] = (work.scored + work.passed) * again
    if work.written:
        begun = now()
        _write(loaded, asked[:WRITTEN])
        found["answers"] = work.written * (now() - begun) / (sampling.DRAWN * len(asked[:WRITTEN]))
    if work.trained:
        found["fine-tuning"] = work.trained * _train(loaded, material.samples("forget_vqa"))
    return found


def _write(loaded: Any, items: Sequence[Item]) -> None:
    prompts = [loaded.backbone.render(loaded.processor, item.question, None, image=True) for item in items]
    sampled(
        loaded,
        items,
        prompts,
        [[item] for item in items],
        new_tokens=sampling.NEW_TOKENS,
        answers=sampling.DRAWN,
        temperature=sampling.TEMPERATURE,
        seed=0,
    )


def _train(loaded: Any, samples: Sequence[Sample]) -> float:
    """Seconds of a sample in a step of fine-tuning; the model's weights are moved."""
    from mmsurgery.plans.times.watch import now
    from mmsurgery.unlearn.finetune import Constant, finetune

    size, times = min(relearning.BATCH, len(samples)), []

    def batches(step: int) -> Sequence[Sequence[Sample]]:
        times.append(now())
        return [samples[:size]]

    finetune(loaded, batches, [Constant(steps=TIMED, learning_rate=1e-6)], weight_decay=0.0, clip_norm=1.0)
    steps = sorted(times)
    return (now() - steps[1]) / ((TIMED - 1) * size)
