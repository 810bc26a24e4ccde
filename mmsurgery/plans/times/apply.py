"""How long unlearning takes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmsurgery.data.samples import Item
from mmsurgery.memory import Layout, Store
from mmsurgery.plans.times.beside import stand_in, vanilla_seconds
from mmsurgery.plans.times.evaluate import along_time
from mmsurgery.plans.times.files import saving_model, snapshots
from mmsurgery.plans.times.saliency import length
from mmsurgery.plans.times.watch import BOX, LEAST, Watch, in_turn, now, watched
from mmsurgery.unlearn.beside import Beside
from mmsurgery.unlearn.plan import StepPlan
from mmsurgery.unlearn.request import FORGET, Request, Run, gather
from mmsurgery.unlearn.train_run import update_of
from mmsurgery.workspace import SILENT, Workspace

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.methods.step import References

FEW = 3
"""Steps that reference outputs are computed for at least, whatever it takes."""


def apply_time(
    workspace: Workspace,
    request: Request,
    *,
    layout: Layout,
    twin: bool,
    snapshot: int,
    scored: Sequence[Item],
    scorings: int,
) -> dict[str, float]:
    """Seconds by what is done: the model is loaded and its weights summed up, some reference outputs are computed,
    some steps of each kind run at learning rate 0, and what a part of the weights became is written and compared.

    Args:
        twin: whether the vanilla model stays, to be asked in every step.
        snapshot: bytes.
        scored: items that are scored along the run.
        scorings: how often.

    Raises:
        as `apply`.
    """
    import torch

    from mmsurgery.backbones.loading import bit_sums, load
    from mmsurgery.unlearn.loop import deterministic

    run = gather(workspace, request)
    dtype = torch.bfloat16 if request.low else torch.float32
    begun = now()
    with deterministic(request.recipe.threads):
        loaded = load(run.files.path, dtype)
        found = {"loading": now() - begun}
        begun = now()
        bit_sums(loaded.model)
        found["loading"] += 2 * (now() - begun)
        if models := _others(run):
            begun = now()
            load(run.files.path, dtype)  # and is dropped
            found["loading"] += models * (now() - begun)
        others = stand_in(run, loaded)
        training = _Training(run, loaded, others.planned(run.plan(), run), layout, twin, others)
        kinds = training.kinds()
        along = [training.seconds(steps, BOX / len(kinds)) for steps in kinds]
        if training.asked:
            found["references"] = training.references_seconds
        if run.beside:
            found["references"] = found.get("references", 0.0) + vanilla_seconds(run, loaded)
        found["steps"] = sum(along)
        if scorings:
            found["scoring"] = along_time(loaded, scored, scorings)
        found["saving"] = saving_model(run.files, run.family, training.update.trained(), run.mask)
    size = sum(run.files.array(name).nbytes for name in run.files.names)
    found["steps"] += snapshots(found["steps"], snapshot, found["saving"] / max(size, 1))
    return found


def _others(run: Run) -> int:
    """Models that are loaded beside the start."""
    request, asked = run.request, []
    if request.takes_reference:
        asked.append(request.reference)
    if request.needs_vanilla:
        asked.append("vanilla")
    return sum(run.workspace.existing_model(name) != run.files.path for name in asked)


@dataclass
class _Training:
    """Steps of a run, a few at a time."""

    run: Run
    loaded: Loaded
    plan: Sequence[StepPlan]
    layout: Layout
    twin: bool
    others: Beside

    def __post_init__(self) -> None:
        self.store = Store(self.layout.state)
        self.update = update_of(self.run, self.loaded, None, self.store)
        self.asked: dict[str, list[tuple[float, int]]] = {}
        """Set -> seconds and samples of each time that references were computed."""

    def kinds(self) -> list[list[int]]:
        """Numbers of the steps: those with forget and retain samples, those with forget samples alone, and so on."""
        found: dict[tuple[bool, bool], list[int]] = {}
        for number, step in enumerate(self.plan):
            found.setdefault((bool(step.forget), bool(step.retain)), []).append(number)
        return list(found.values())

    def seconds(self, steps: Sequence[int], box: float) -> float:
        """Of all these steps, from some of them."""
        from mmsurgery.backbones.checkpointing import activations_checkpointed
        from mmsurgery.unlearn.loop import Optimisation, train
        from mmsurgery.unlearn.objective import Unlearning

        run, recipe = self.run, self.run.request.recipe
        chosen = in_turn(steps, self._length)[: 1 + LEAST]
        references, chosen = self._references(chosen, box)
        unlearning = Unlearning(
            self.loaded,
            run.request.method,
            self.update,
            run.forget,
            run.retain,
            self.plan,
            dataclasses.replace(references, vanilla=self.others.vanilla, stranger=self.others.stranger),
            run.request.forget_weight,
            {**self.others.sets, FORGET: run.forget},
            run.request.recipe.seed,
            witness=None if run.request.strict else run.mask,
        )

        def accumulate(place: int) -> dict[str, float]:
            twice = activations_checkpointed(self.loaded.model) if self.layout.checkpointing else None
            with twice or contextlib.nullcontext():
                return unlearning(chosen[place])

        def some(watch: Watch) -> None:
            train(
                self.update,
                accumulate,
                steps=len(chosen),
                optimisation=Optimisation(
                    learning_rate=lambda _: 0.0, weight_decay=recipe.weight_decay, clip_norm=recipe.clip_norm
                ),
                store=self.store,
                progress=watch,
            )

        return watched(some, work=len(steps), box=box).seconds

    def _length(self, number: int) -> float:
        step = self.plan[number]
        forget, retain = self.run.forget, self.run.retain
        return length([forget[place] for place in step.forget]) + length([retain[place] for place in step.retain])

    def _references(self, steps: list[int], box: float) -> tuple[References, list[int]]:
        """Reference outputs, of the start in place of the reference, for as many of these steps as the time allows;
        and these steps."""
        from mmsurgery.methods.step import References
        from mmsurgery.unlearn.references import forget_logprob, retain_distribution

        request, forgotten, kept = self.run.request, dict[int, Any](), dict[int, Any]()
        common: dict[str, Any] = {"batch_size": request.recipe.batch_size, "progress": SILENT}
        done: list[int] = []
        begun = now()
        for number in steps:
            step = self.plan[number]
            if request.takes_reference:
                forgotten |= self._ask("forget", step.forget, forgotten, lambda places: forget_logprob(
                    self.loaded, self.run.forget, places, **common
                ))  # fmt: skip
            if request.needs_vanilla and not self.twin:
                kept |= self._ask("retain", step.retain, kept, lambda places: retain_distribution(
                    self.loaded, self.run.retain, places, **common
                ))  # fmt: skip
            done.append(number)
            if len(done) >= FEW and now() - begun > box:
                break
        return References(forgotten, kept, twin=self.loaded.model if self.twin else None), done

    def _ask(
        self, which: str, places: Sequence[int], known: Mapping[int, Any], ask: Callable[[list[int]], dict[int, Any]]
    ) -> dict[int, Any]:
        new = [place for place in places if place not in known]
        if not new:
            return {}
        begun = now()
        found = ask(new)
        self.asked.setdefault(which, []).append((now() - begun, len(new)))
        return found

    @property
    def references_seconds(self) -> float:
        """Of all reference outputs that are computed before the first step."""
        places = {
            "forget": {place for step in self.plan for place in step.forget},
            "retain": {place for step in self.plan for place in step.retain},
        }
        total = 0.0
        for which, times in self.asked.items():
            watch = Watch(len(places[which]), BOX, [one for one, _ in times], [count for _, count in times])
            total += watch.seconds
        return total
