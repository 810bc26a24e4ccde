"""The training loop on a tiny model: masks hold whatever happens, interrupted runs end with the same bytes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from notes import Notes

from mmsurgery.artifacts.mask import Mask
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.backbones.loading import Loaded, load
from mmsurgery.errors import UnusableData, UsageError
from mmsurgery.memory import Store
from mmsurgery.methods.base import Method, Term
from mmsurgery.methods.registry import method
from mmsurgery.methods.step import References, Step
from mmsurgery.provenance import provenance
from mmsurgery.unlearn.loop import Evaluation, Optimisation, deterministic, train
from mmsurgery.unlearn.masked import MaskedUpdate
from mmsurgery.unlearn.objective import Unlearning
from mmsurgery.unlearn.plan import equations
from mmsurgery.unlearn.references import forget_logprob, retain_distribution
from mmsurgery.unlearn.resume import History
from mmsurgery.workspace import SILENT

if TYPE_CHECKING:
    from mmsurgery.data.samples import Sample

Weights = dict[str, np.ndarray]


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


@pytest.fixture(autouse=True)
def _snapshot_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Snapshots, "interval", 0.0)
    monkeypatch.setattr(Snapshots, "share", 0.0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with deterministic(1):
        yield


@pytest.fixture(scope="module")
def sets(make_sample: Callable[..., Sample]) -> tuple[list[Sample], list[Sample]]:
    """Six samples to forget and nine to retain, pictures and text."""
    answers = ["The city is lisbon .", "The city is oslo .", "The food is soup .", "rice"]

    def make(prefix: str, count: int) -> list[Sample]:
        return [
            make_sample(f"{prefix}{i}", "What is the city of this person ?", answers[i % 4], seed=i if i % 3 else None)
            for i in range(count)
        ]

    return make("forget", 6), make("retain", 9)


class Runner:
    """One run of a method over the sets on a fresh copy of the tiny model."""

    def __init__(self, folder: Path, sets: tuple[list[Sample], list[Sample]]) -> None:
        self.folder, self.sets = folder, sets

    def __call__(
        self,
        name: str | Method,
        mask: Mask | None = None,
        *,
        strict: bool = False,
        epochs: int = 2,
        weight_decay: float = 0.0,
        forget_weight: float = 1.0,
        steps: int | None = None,
        clip_norm: float = 1.0,
        snapshots: Snapshots | None = None,
        evaluation: Evaluation | None = None,
        wound: Callable[[int, Loaded], None] | None = None,
        spoil: Callable[[str, torch.Tensor], torch.Tensor] | None = None,
        store: Store | None = None,
        precise: bool = True,
    ) -> tuple[Weights, Weights, History]:
        """Weights before and after, and the history; `wound` is called before each step's gradient is used,
        `spoil` for the gradient of each weight."""
        loaded = load(self.folder)
        before = _weights(loaded)
        stored = None
        if not precise:
            kept = {name: torch.tensor(values) for name, values in before.items()}
            stored = kept.__getitem__
            loaded.model.to(torch.bfloat16)
        if spoil is not None:
            for each, parameter in loaded.model.named_parameters():
                parameter.register_hook(functools.partial(spoil, each))
        chosen = method(name) if isinstance(name, str) else name
        forget, retain = self.sets[0], self.sets[1] if chosen.uses_retain else []
        plan = equations(forget, retain, epochs=epochs, batch_size=4, retain_batch=3, seed=0)
        update = MaskedUpdate(loaded.model, mask, strict=strict, stored=stored, store=store)
        step = Unlearning(loaded, chosen, update, forget, retain, plan, self._references(loaded, chosen), forget_weight)

        def accumulate(number: int) -> dict[str, float]:
            losses = step(number)
            if wound is not None:
                wound(number, loaded)
            return losses

        history = train(
            update,
            accumulate,
            steps=len(plan) if steps is None else steps,
            optimisation=Optimisation(learning_rate=lambda _: 1e-2, weight_decay=weight_decay, clip_norm=clip_norm),
            store=store,
            snapshots=snapshots,
            evaluation=evaluation,
            batch_ids=step.ids,
        )
        return before, _weights(loaded), history

    def _references(self, loaded: Loaded, chosen: Method) -> References:
        forget, retain = self.sets
        options: dict[str, Any] = {"batch_size": 4, "progress": SILENT}
        return References(
            forget_logprob(loaded, forget, range(len(forget)), **options)
            if "forget_logprob" in chosen.references
            else {},
            retain_distribution(loaded, retain, range(len(retain)), **options)
            if "retain_distribution" in chosen.references
            else {},
        )


@pytest.fixture
def run(tiny_llava: Path, sets: tuple[list[Sample], list[Sample]]) -> Runner:
    return Runner(tiny_llava, sets)


def _weights(loaded: Loaded) -> Weights:
    return {name: p.detach().float().numpy().copy() for name, p in loaded.model.named_parameters()}


def moved(before: Weights, after: Weights, name: str) -> np.ndarray:
    """Which weights differ in their bits."""
    return before[name].view(np.int32) != after[name].view(np.int32)


def moved_outside(before: Weights, after: Weights, mask: Mask) -> int:
    return sum(int((moved(before, after, name) & ~mask[name]).sum()) for name in before)


def moved_inside(before: Weights, after: Weights, mask: Mask) -> int:
    return sum(int((moved(before, after, name) & mask[name]).sum()) for name in before)


def same(one: Weights, other: Weights) -> bool:
    return all(one[name].tobytes() == other[name].tobytes() for name in one)


@pytest.fixture
def mask(loaded_llava: Loaded, random_mask: Callable[..., Mask]) -> Mask:
    return random_mask(loaded_llava, "lm,connector")


@pytest.mark.parametrize("name", ["ga", "ga_diff", "kl_min", "npo", "mmunlearner"])
def test_scope_all_moves_nothing_outside_the_mask(run: Runner, mask: Mask, name: str) -> None:
    """With weight decay, momentum and retain terms, over many steps."""
    before, after, history = run(name, mask, strict=True, weight_decay=0.1, epochs=5)
    assert history.steps == 10
    assert moved_outside(before, after, mask) == 0
    assert moved_inside(before, after, mask) > 0.9 * mask.selected


def test_scope_all_holds_under_nan_gradients_outside_and_a_resume(run: Runner, mask: Mask, tmp_path: Path) -> None:
    def spoil(name: str, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.masked_fill(torch.from_numpy(~mask[name]), float("nan"))

    def kill(number: int, loaded: Loaded) -> None:
        if number == 5:
            raise Killed

    undisturbed = run("mmunlearner", mask, strict=True, weight_decay=0.1, epochs=5)
    snapshots = Snapshots(tmp_path / "resume", provenance("test", {}, {}))
    options: dict[str, Any] = {"strict": True, "weight_decay": 0.1, "epochs": 5, "snapshots": snapshots}
    with pytest.raises(Killed):
        run("mmunlearner", mask, **options, spoil=spoil, wound=kill)
    before, after, history = run("mmunlearner", mask, **options, spoil=spoil)
    assert moved_outside(before, after, mask) == 0
    assert same(after, undisturbed[1])
    assert history == undisturbed[2]


@pytest.mark.parametrize("name", ["ga", "npo"])
def test_scope_forget_without_a_retain_term_moves_nothing_outside(run: Runner, mask: Mask, name: str) -> None:
    """With weight decay, momentum and clipping (promise 7)."""
    before, after, _ = run(name, mask, weight_decay=0.1, epochs=5)
    assert moved_outside(before, after, mask) == 0
    assert moved_inside(before, after, mask) > 0.9 * mask.selected


def test_a_forget_step_moves_nothing_outside_by_momentum(tiny_llava: Path, mask: Mask) -> None:
    """Twenty retain steps, then a masked forget step: trap 28 of the published code. Then a retain step."""
    loaded = load(tiny_llava)
    update = MaskedUpdate(loaded.model, mask)
    optimizer = torch.optim.AdamW(update.trainable.values(), lr=1e-2, weight_decay=0.1)

    def step(forget: bool) -> tuple[Weights, Weights]:
        before = _weights(loaded)
        if forget:
            update.hold()
        for parameter in update.trainable.values():
            parameter.grad = torch.ones_like(parameter)
        if forget:
            update.mask_forget_gradient()
        optimizer.step()
        update.restore()
        return before, _weights(loaded)

    for _ in range(20):
        step(forget=False)
    before, after = step(forget=True)
    assert moved_outside(before, after, mask) == 0
    assert moved_inside(before, after, mask) == mask.selected
    assert moved_outside(*step(forget=False), mask) > 0


class RetainOnly(Method):
    """Gradient Difference without its ascent."""

    name, title, equation = "retain_only", "Retain only", "-"

    def terms(self, step: Step) -> Iterator[Term]:
        assert step.forget is not None
        assert step.retain is not None
        yield Term("forget", 0.0 * step.forget.answers().nll().mean())
        yield Term("retain", step.retain.answers().nll().mean())


def test_first_step_outside_the_mask_is_the_same_with_and_without_the_ascent(
    tiny_llava: Path, sets: tuple[list[Sample], list[Sample]], mask: Mask
) -> None:
    """Scope `forget`: the gradient outside the mask is the retain gradient, bit for bit."""
    gradients = []
    for chosen in (method("mmunlearner"), RetainOnly()):
        loaded = load(tiny_llava)
        plan = equations(*sets, epochs=1, batch_size=4, retain_batch=3, seed=0)
        update = MaskedUpdate(loaded.model, mask)
        Unlearning(loaded, chosen, update, *sets, plan, References())(0)
        gradients.append({name: p.grad.numpy() for name, p in update.trainable.items() if p.grad is not None})
    with_ascent, without = gradients
    assert with_ascent.keys() == without.keys()
    inside = 0
    for name in without:
        differ = with_ascent[name].view(np.int32) != without[name].view(np.int32)
        assert not (differ & ~mask[name]).any()
        assert without[name][~mask[name]].any() or not without[name].any()
        inside += int((differ & mask[name]).sum())
    assert inside > 0.5 * mask.selected


def test_first_step_moves_weights_outside_the_mask_as_without_the_ascent(run: Runner, mask: Mask) -> None:
    """Clipping, whose factor is one number over all weights, is switched off."""
    before, with_ascent, _ = run("mmunlearner", mask, steps=1, clip_norm=0.0)
    _, without, _ = run(RetainOnly(), mask, steps=1, clip_norm=0.0)
    assert not any((moved(with_ascent, without, name) & ~mask[name]).any() for name in before)
    assert moved_inside(with_ascent, without, mask) > 0.2 * mask.selected


def test_scope_forget_lets_the_retain_term_move_every_weight_of_the_modules(run: Runner, mask: Mask) -> None:
    before, after, _ = run("mmunlearner", mask)
    touched = [name for name in mask.in_modules() if moved(before, after, name).any()]
    outside = sum(int((~mask[name]).sum()) for name in touched)
    assert touched
    # rows of unused words have no gradient; everything else in the modules moves
    assert moved_outside(before, after, mask) > 0.5 * outside


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("modules", ["connector", "lm.1.attn", "vision.0"])
def test_modules_not_named_never_move(
    run: Runner, loaded_llava: Loaded, random_mask: Callable[..., Mask], modules: str, strict: bool
) -> None:
    mask = random_mask(loaded_llava, modules)
    before, after, _ = run("ga_diff", mask, strict=strict, weight_decay=0.1)
    assert not any(moved(before, after, name).any() for name in before if name not in mask.in_modules())
    assert any(moved(before, after, name).any() for name in mask.in_modules())


def test_without_a_mask_every_group_moves(run: Runner, loaded_llava: Loaded) -> None:
    before, after, _ = run("ga_diff")
    groups = {loaded_llava.addresses[name].group for name in before if moved(before, after, name).any()}
    assert groups == {"vision", "connector", "lm"}


def test_the_forget_loss_rises_and_the_retain_loss_stays(run: Runner) -> None:
    _, _, ascent = run("ga", epochs=4)
    assert ascent.losses[-1]["forget"] < ascent.losses[0]["forget"] - 0.5  # minus the NLL
    _, _, both = run("ga_diff", epochs=4, forget_weight=0.01)
    assert both.losses[-1]["retain"] < both.losses[0]["retain"]
    assert [set(losses) for losses in both.losses] == [{"forget", "retain", "norm"}] * 8


def test_kl_starts_at_zero_and_npo_at_two_ln_two_over_beta(run: Runner) -> None:
    _, _, kl = run("kl_min", epochs=1)
    assert kl.losses[0]["retain"] == pytest.approx(0.0, abs=1e-6)
    assert kl.losses[1]["retain"] > 1e-4
    _, _, npo = run("npo", epochs=1)
    assert npo.losses[0]["forget"] == pytest.approx(2 * np.log(2) / 0.4, rel=1e-4)


def test_forget_weight_scales_the_ascent_alone(run: Runner) -> None:
    full, tenth = (run("ga", epochs=1, forget_weight=w)[2].losses[0] for w in (1.0, 0.1))
    assert tenth["norm"] == pytest.approx(0.1 * full["norm"], rel=1e-4)
    assert tenth["forget"] == full["forget"]


def test_the_same_run_twice_gives_the_same_bytes(run: Runner, mask: Mask) -> None:
    first, second = run("kl_min", mask), run("kl_min", mask)
    assert same(first[1], second[1])
    assert first[2] == second[2]


@pytest.mark.parametrize("kill_at", [0, 1, 3])
def test_killed_and_run_again_ends_with_the_same_bytes(run: Runner, tmp_path: Path, kill_at: int) -> None:
    def kill(number: int, loaded: Loaded) -> None:
        if number == kill_at:
            raise Killed

    scores: Iterator[int] = iter(range(100))
    snapshots = Snapshots(tmp_path / "resume", provenance("test", {}, {}))

    def evaluation() -> Evaluation:
        return Evaluation(every=2, score=lambda: {"columns": {"x": 0.5}, "call": next(scores)})

    undisturbed = run("npo", weight_decay=0.1)
    with pytest.raises(Killed):
        run("npo", weight_decay=0.1, snapshots=snapshots, wound=kill, evaluation=evaluation())
    assert len(list(snapshots.folder.glob("*"))) == min(kill_at, 2)
    _, after, history = run("npo", weight_decay=0.1, snapshots=snapshots, evaluation=evaluation())
    assert same(after, undisturbed[1])
    assert history.losses == undisturbed[2].losses
    assert [entry["step"] for entry in history.evaluations] == [0, 2, 4]


STATES: dict[str, dict[str, Any]] = {
    "all": {"strict": True},
    "forget": {},
    "all in bf16": {"strict": True, "precise": False},
    "forget in bf16": {"precise": False},
}


@pytest.mark.parametrize("kind", STATES)
def test_state_in_files_gives_the_same_bytes_killed_or_not(run: Runner, mask: Mask, tmp_path: Path, kind: str) -> None:
    """What was begun with state in memory goes on with state in files, too."""

    def kill(number: int, loaded: Loaded) -> None:
        if number == 2:
            raise Killed

    options: dict[str, Any] = {**STATES[kind], "weight_decay": 0.1}
    undisturbed = run("ga_diff", mask, **options)
    assert same(run("ga_diff", mask, store=Store("disk", tmp_path), **options)[1], undisturbed[1])
    assert not list(tmp_path.iterdir())
    snapshots = Snapshots(tmp_path / "resume", provenance("test", {}, {}))
    with pytest.raises(Killed):
        run("ga_diff", mask, snapshots=snapshots, wound=kill, **options)
    _, after, history = run("ga_diff", mask, snapshots=snapshots, store=Store("disk", tmp_path), **options)
    assert history.losses == undisturbed[2].losses
    assert same(after, undisturbed[1])


def test_a_snapshot_of_whole_tensors_is_not_taken_for_one_of_selected_weights(
    run: Runner, mask: Mask, tmp_path: Path
) -> None:
    """As snapshots of scope all were before its optimizer moved the selected weights alone."""
    undisturbed = run("ga_diff", mask, strict=True)
    snapshots = Snapshots(tmp_path / "resume", provenance("test", {}, {}))
    run("ga_diff", mask, steps=2, snapshots=snapshots)
    assert same(run("ga_diff", mask, strict=True, snapshots=snapshots)[1], undisturbed[1])


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_snapshot_falls_back_to_the_one_before(run: Runner, tmp_path: Path, damage: str) -> None:
    def kill(number: int, loaded: Loaded) -> None:
        if number == 3:
            raise Killed

    snapshots = Snapshots(tmp_path / "resume", provenance("test", {}, {}))
    undisturbed = run("ga")
    with pytest.raises(Killed):
        run("ga", snapshots=snapshots, wound=kill)
    newest = max(snapshots.folder.glob("step-*"))
    data = bytearray(newest.read_bytes())
    if damage == "cut":
        del data[-5:]
    else:
        data[-5] ^= 1
    newest.write_bytes(data)
    notes = Notes()
    loaded = snapshots.load(notes)
    assert loaded is not None
    assert History(**loaded[0]).steps == 2
    assert any(newest.name in text for text in notes.texts)
    assert same(run("ga", snapshots=snapshots)[1], undisturbed[1])


def test_a_nan_gradient_inside_the_mask_ends_the_run(run: Runner, mask: Mask) -> None:
    name = next(n for n in mask.names if n.endswith("layers.1.mlp.up_proj.weight") and mask.parameters[n].selected)

    calls = itertools.count()

    def spoil(each: str, gradient: torch.Tensor) -> torch.Tensor:
        if each != name or next(calls) < 2:  # a step has two passes
            return gradient
        spoilt = gradient.clone()
        spoilt[tuple(np.argwhere(mask[name])[0])] = float("nan")
        return spoilt

    with pytest.raises(UnusableData, match=rf"step 2: the gradient of {name} is not finite .*forget\d.*retain\d"):
        run("mmunlearner", mask, strict=True, spoil=spoil)


def test_a_loss_that_is_not_finite_ends_the_run(run: Runner) -> None:
    def wound(number: int, loaded: Loaded) -> None:
        if number == 0:
            with torch.no_grad():
                loaded.model.lm_head.weight[5] = float("nan")

    with pytest.raises(UnusableData, match=r"step 2: the forget loss is nan; weight lm_head.weight is not finite"):
        run("ga", wound=wound)


def test_a_mask_that_the_data_cannot_reach_ends_the_run(
    tiny_llava: Path,
    make_sample: Callable[..., Sample],
    loaded_llava: Loaded,
    random_mask: Callable[..., Mask],
) -> None:
    text = [make_sample(f"t{i}", "Which food ?", "rice") for i in range(4)]
    with pytest.raises(UnusableData, match="no trainable weight influences the forget loss"):
        Runner(tiny_llava, (text, text))("ga", random_mask(loaded_llava, "vision"))


class Backwards(Method):
    name, title, equation = "backwards", "Retain first", "-"

    def terms(self, step: Step) -> Iterator[Term]:
        assert step.forget is not None
        assert step.retain is not None
        yield Term("retain", step.retain.answers().nll().mean())
        yield Term("forget", -step.forget.answers().nll().mean())


class Idle(Method):
    name, title, equation = "idle", "No forget term", "-"

    def terms(self, step: Step) -> Iterator[Term]:
        assert step.retain is not None
        yield Term("retain", step.retain.answers().nll().mean())


def test_methods_that_break_the_order_or_swallow_the_forget_step_are_refused(run: Runner) -> None:
    with pytest.raises(UsageError, match="forget term after a retain term"):
        run(Backwards())
    with pytest.raises(UsageError, match="no forget term for step 1"):
        run(Idle())
