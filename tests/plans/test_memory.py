"""What plans say of memory, against the tensors that are alive in the run itself."""

from __future__ import annotations

from typing import Any

import pytest

from mmsurgery.plans import Plan, plan_apply, plan_saliency
from mmsurgery.plans import plan as terms
from mmsurgery.plans.sizes import Sizes
from mmsurgery.saliency.parts import measure_parts
from mmsurgery.unlearn.apply import apply
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.unlearn.masked import MaskedUpdate
from mmsurgery.workspace import Workspace


@pytest.fixture(autouse=True)
def _what_is_no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations are gone when a unit is done, and files that are being written are no tensors."""
    monkeypatch.setattr(Sizes, "kept", lambda *arguments: 0)
    monkeypatch.setattr("mmsurgery.plans.saliency.FILE_BYTES", 0)


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


APPLIED = {
    "full": ("npo", {}),
    "full masked forget": ("ga_diff", {"mask": "default"}),
    "full masked all": ("ga_diff", {"mask": "default", "scope": "all"}),
    "lora": ("ga_diff", {"lora": LoRA(rank=8)}),
    "lora masked": ("ga_diff", {"mask": "default", "lora": LoRA(rank=8)}),
    "kept outputs": ("kl_min", {}),
    "another reference": ("npo", {"reference": "reference", "lora": LoRA(rank=4)}),
}


@pytest.mark.parametrize("case", APPLIED)
def test_apply(ws: Workspace, census: Any, case: str) -> None:
    method, options = APPLIED[case]
    plan = plan_apply(ws, method, **options)
    apply(ws, method, **options, progress=census)
    close(plan, census)


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
