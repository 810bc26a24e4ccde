"""What plans say of memory, against the tensors that are alive in the run itself."""

from __future__ import annotations

from typing import Any

import pytest

from mmsurgery.backbones.loading import load
from mmsurgery.errors import MachineFault
from mmsurgery.evaluate import prefix
from mmsurgery.evaluate.asked import what_is_asked
from mmsurgery.evaluate.protocols import LIKELIHOOD, Protocol
from mmsurgery.evaluate.scoring import score
from mmsurgery.memory import Layout, Store, gigabytes
from mmsurgery.plans import Plan, apply_layout, plan_apply, plan_eval, plan_saliency
from mmsurgery.plans import plan as terms
from mmsurgery.plans.sizes import Sizes
from mmsurgery.plans.unlearned import Unlearned
from mmsurgery.saliency.parts import measure_parts
from mmsurgery.unlearn.apply import apply
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.unlearn.masked import MaskedUpdate
from mmsurgery.workspace import SILENT, Workspace


@pytest.fixture(autouse=True)
def _what_is_no_estimate(untimed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations are gone when a unit is done."""
    monkeypatch.setattr(Sizes, "kept", lambda *arguments, **options: 0)


def close(plan: Plan, census: Any) -> None:
    said = sum(size for term, size in plan.memory.items() if term != terms.SAMPLES)
    assert said == pytest.approx(census.most, rel=0.15), plan.memory


@pytest.mark.parametrize("estimator", ["sample", "batch", "dataset"])
def test_saliency(ws: Workspace, census: Any, estimator: str) -> None:
    plan = plan_saliency(ws, "forget_vqa", estimator=estimator)
    measure_parts(ws, "forget_vqa", estimator=estimator, progress=census)
    close(plan, census)


def test_saliency_of_text_reaches_the_language_model_alone(ws: Workspace, census: Any) -> None:
    plan = plan_saliency(ws, "retain_qa")
    measure_parts(ws, "retain_qa", progress=census)
    close(plan, census)
    assert plan.memory[terms.ACCUMULATORS] < 0.8 * plan.memory[terms.WEIGHTS]


ASKED: dict[str, Any] = {
    **dict.fromkeys(("mask", "scope", "lora", "name", "learning_rate", "epochs", "seed", "precision", "anchors")),
    **dict.fromkeys(("batch_size", "retain_batch", "steps")),
    "settings": {},
    "protocol": "equations",
    "start": "vanilla",
    "reference": "vanilla",
    "forget_weight": 1.0,
    "eval_every": 0,
}
"""Options of `apply` by their defaults."""
APPLIED = {
    "full": ("npo", {}),
    "full masked forget": ("ga_diff", {"mask": "default"}),
    "full masked all": ("ga_diff", {"mask": "default", "scope": "all"}),
    "lora": ("ga_diff", {"lora": LoRA(rank=8)}),
    "lora masked": ("ga_diff", {"mask": "default", "lora": LoRA(rank=8)}),
    "kept outputs": ("kl_min", {}),
    "another reference": ("npo", {"reference": "reference", "lora": LoRA(rank=4)}),
    "full in bf16": ("npo", {"precision": "bf16"}),
    "full masked forget in bf16": ("ga_diff", {"mask": "default", "precision": "bf16"}),
    "full masked all in bf16": ("ga_diff", {"mask": "default", "scope": "all", "precision": "bf16"}),
    "lora masked in bf16": ("ga_diff", {"mask": "default", "lora": LoRA(rank=8), "precision": "bf16"}),
    "kept outputs in bf16": ("kl_min", {"precision": "bf16"}),
}


LATER = {"full masked forget in bf16", "lora masked in bf16", "kept outputs in bf16"}
"""What both its parts, alone, are looked at for already."""


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case in LATER else ()) for case in APPLIED]
)
def test_apply(ws: Workspace, census: Any, case: str) -> None:
    method, options = APPLIED[case]
    plan = plan_apply(ws, method, **options)
    apply(ws, method, **options, progress=census)
    close(plan, census)


@pytest.mark.parametrize(
    "case",
    ["full", pytest.param("full masked forget", marks=pytest.mark.slow), "full masked all", "full in bf16"],
)
def test_state_in_files(ws: Workspace, census: Any, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is mapped is what is said to lie elsewhere; all else is what is said to be in memory."""
    method, options = APPLIED[case]
    layout, mapped = Layout(state="disk"), []
    make = Store._mapped

    def mapping(self: Store, count: int, dtype: Any) -> Any:
        mapped.append(count * dtype.itemsize)
        return make(self, count, dtype)

    monkeypatch.setattr(Store, "_mapped", mapping)
    plan = plan_apply(ws, method, layout=layout, **options)
    apply(ws, method, layout=layout, **options, progress=census)
    census.most -= sum(mapped)
    close(plan, census)
    known = Unlearned.of(ws, method, selection=None, device="cpu", **{**ASKED, **options})
    assert known.moments(layout)[1] == pytest.approx(sum(mapped), rel=0.05)  # some tensors get no gradient
    assert plan.memory_total == plan.layouts[str(layout)]
    with pytest.raises(MachineFault, match="this needs at least"):
        apply_layout(ws, method, plan.memory_total // 2, **{**ASKED, **options})
    assert apply_layout(ws, method, plan.memory_total, **{**ASKED, **options}) == layout


def test_beside_a_gpu_there_are_weights_places_and_one_gradient(ws: Workspace) -> None:
    options: dict[str, Any] = {"mask": "default", "scope": "all", "precision": "bf16", "device": "cuda"}
    with_model = plan_apply(ws, "ga_diff", **options)
    beside = plan_apply(ws, "ga_diff", layout=Layout(state="host"), **options)
    gone = with_model.memory.keys() - beside.memory.keys()
    assert gone == {terms.MASTERS, terms.MOMENTS, terms.GRADIENTS}
    assert {**with_model.memory, **dict.fromkeys(gone, 0)} == {**beside.memory, **dict.fromkeys(gone, 0)}
    size = with_model.memory_total - beside.memory_total
    assert f"{gigabytes(size)} of state lie elsewhere (main memory)" in beside.notes
    assert beside.memory[terms.WEIGHTS] == 2 * Sizes.of("vanilla", ws.model_dir("vanilla")).count()
    assert list(beside.layouts.values())[::2] == [with_model.memory_total, *2 * [beside.memory_total]]
    budgeted = plan_apply(ws, "ga_diff", memory=with_model.memory_total - 1, **options)
    assert budgeted.memory == beside.memory


def test_weights_held_in_steps_without_retain_terms(
    ws: Workspace, census: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"mask": "default", "protocol": "official"}
    plan = plan_apply(ws, "ga_diff", **options)
    put_back = MaskedUpdate.restore

    def restore(self: MaskedUpdate) -> None:
        census.count()
        put_back(self)

    monkeypatch.setattr(MaskedUpdate, "restore", restore)
    apply(ws, "ga_diff", **options, progress=census)
    close(plan, census)
    assert plan.memory[terms.HELD]


def test_a_twin_stays_where_outputs_are_too_large(ws: Workspace, census: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsurgery.unlearn.references.CACHE", 0)
    plan = plan_apply(ws, "kl_min")
    apply(ws, "kl_min", progress=census)
    close(plan, census)
    assert plan.memory[terms.REFERENCE] == plan.memory[terms.WEIGHTS]
    assert terms.OUTPUTS not in plan.memory


def test_outputs_that_are_kept_are_four_bytes_a_word_and_answer_token(ws: Workspace) -> None:
    plan = plan_apply(ws, "kl_min")
    words = Sizes.of("vanilla", ws.model_dir("vanilla")).vocabulary
    assert plan.memory[terms.OUTPUTS] == 4 * words * 6 * 6  # five words and the end token of six samples


def test_keys_and_values_of_options_are_no_more_than_a_columns_items_make(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    most, finish = 0, prefix._Prefix.finish

    def looked_at(self: Any, model: Any, ids: Any) -> Any:
        nonlocal most
        most = max(most, len(ids) * (self.length + ids.shape[1]))
        return finish(self, model, ids)

    monkeypatch.setattr(prefix._Prefix, "finish", looked_at)
    items = what_is_asked(ws, Protocol(LIKELIHOOD), None, None, SILENT).columns["forget_vqa"]
    folder = ws.model_dir("vanilla")
    score(load(folder), items)
    token = Sizes.of("vanilla", folder).per_token(4)
    planned = plan_eval(ws, ["vanilla"])
    # four pictures, a question each, two different options each
    assert planned.memory[terms.CACHE] == pytest.approx(token * most * (4 + 4 + 8) / 8, rel=0.15)
    monkeypatch.setattr("mmsurgery.evaluate.scoring.BUDGET", most // 2)
    assert plan_eval(ws, ["vanilla"]).memory[terms.CACHE] == pytest.approx(token * most * (4 + 4 + 4) / 8, rel=0.15)
    assert plan_eval(ws, ["vanilla"]).memory[terms.ACTIVATIONS] < planned.memory[terms.ACTIVATIONS]
