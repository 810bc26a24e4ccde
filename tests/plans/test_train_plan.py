"""What `train` would take, by recipe, against the tensors that are alive in the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mmsurgery.errors import UsageError
from mmsurgery.plans import plan as terms
from mmsurgery.plans import plan_train
from mmsurgery.plans.sizes import Sizes
from mmsurgery.training import train
from mmsurgery.workspace import Workspace

FULL = 'adapter = "full"\n'
LORA = "rank = 8\nalpha = 8.0\n"
BF16 = 'precision = "bf16"\n'


@pytest.mark.parametrize("text", [FULL, FULL + BF16, FULL + 'modules = "lm"\n', LORA, LORA + BF16])
def test_memory(
    trainable: Workspace,
    untimed: None,
    census: Any,
    recipe: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
) -> None:
    monkeypatch.setattr(Sizes, "kept", lambda *arguments, **options: 0)
    plan = plan_train(trainable, "gold", recipe=recipe(text))
    train(trainable, "gold", recipe=recipe(text), progress=census)
    said = sum(size for term, size in plan.memory.items() if term != terms.SAMPLES)
    assert said == pytest.approx(census.most, rel=0.15), plan.memory


def test_passes(trainable: Workspace, recipe: Callable[[str], str]) -> None:
    kept = plan_train(trainable, "gold", recipe=recipe(LORA))
    assert kept.samples == {"retain_vqa": 6, "retain_qa": 6}
    assert (kept.passes.forward, kept.passes.backward) == (24, 24)
    again = plan_train(trainable, "gold", recipe=recipe(LORA + "checkpointing = true\n"))
    assert (again.passes.forward, again.passes.backward) == (48, 24)
    assert not (trainable.root / "models" / "gold").exists()


def test_portraits_are_too_small_for_a_plan(ws: Workspace) -> None:
    with pytest.raises(UsageError, match="too small for a plan"):
        plan_train(ws, "gold")
