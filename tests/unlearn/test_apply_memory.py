"""`apply` in bfloat16, with state in files and with activations computed twice: what it may change, and what not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.mask import Mask
from mmsurgery.backbones.discovery import backbone
from mmsurgery.errors import UsageError
from mmsurgery.memory import Layout
from mmsurgery.unlearn.apply import ApplyResult, apply
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.unlearn.verify import verify
from mmsurgery.workspace import Workspace

KINDS: dict[str, dict[str, Any]] = {
    "all": {"mask": "default", "scope": "all"},
    "forget": {"mask": "default"},
    "no mask": {},
    "lora": {"mask": "default", "lora": LoRA(rank=4)},
    "lora without mask": {"lora": LoRA(rank=4)},
}


def weights(ws: Workspace, model: str) -> dict[str, np.ndarray]:
    files = CheckpointFiles(ws.model_dir(model), backbone("llava").canonical)
    return {name: files.float32(name) for name in files.names}


def distance(ws: Workspace, one: ApplyResult, other: ApplyResult) -> float:
    """Norm of the difference of two models' weights, over that of what the first one moved."""
    start, first, second = (weights(ws, model) for model in ("vanilla", one.model, other.model))
    between = sum(float(np.square(first[name] - second[name]).sum()) for name in start)
    return (between / sum(float(np.square(first[name] - start[name]).sum()) for name in start)) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_keeps_its_claim_and_moves_as_float32_does(ws: Workspace, kind: str) -> None:
    """The start is float32: weights outside the mask keep the bits that bfloat16 has no room for."""
    plain = apply(ws, "mmunlearner" if "mask" in KINDS[kind] else "ga_diff", **KINDS[kind])
    low = apply(ws, "mmunlearner" if "mask" in KINDS[kind] else "ga_diff", **KINDS[kind], precision="bf16", name="low")
    assert verify(ws, "low").ok
    assert low.claim == plain.claim
    before, after = weights(ws, "vanilla"), weights(ws, "low")
    moved = {name: before[name].view(np.uint32) != after[name].view(np.uint32) for name in before}
    if low.claim == "mask":
        mask = Mask.load(ws.mask_path("default"))
        assert not any((moved[name] & ~mask[name]).any() for name in moved)
    assert 0.9 < sum(int(m.sum()) for m in moved.values()) / sum(m.changed for m in plain.moved.values()) < 1.1
    assert 0 < distance(ws, plain, low) < 0.6
    settings = [made.record["provenance"]["settings"] for made in (plain, low)]
    assert "precision" not in settings[0]
    assert settings[1] == {**settings[0], "precision": "bf16"}


LATER = ("forget", "lora without mask")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind in LATER else ()) for kind in KINDS]
)
def test_layouts_are_no_part_of_what_a_run_is(ws: Workspace, kind: str) -> None:
    options: dict[str, Any] = {**KINDS[kind], "eval_every": 2}
    plain = apply(ws, "ga_diff", name="made", **options)
    made = {
        layout: apply(ws, "ga_diff", name="made", layout=layout, force=True, **options)
        for layout in (Layout(state="disk"), Layout(checkpointing=True))
    }
    in_files, twice = made.values()
    assert in_files.record["model_sha256"] == plain.record["model_sha256"]
    assert twice.record["evaluations"][0] == plain.record["evaluations"][0]
    assert distance(ws, plain, twice) < 1e-3
    origins = {layout: found.record["provenance"] for layout, found in made.items()}
    assert "layout" not in plain.record["provenance"]
    for layout, origin in origins.items():
        assert origin["key"] == plain.record["provenance"]["key"]
        assert origin["layout"] == {"checkpointing": layout.checkpointing, "state": layout.state}
    assert apply(ws, "ga_diff", name="made", **options).up_to_date
    assert not list(ws.path("models").glob(".state-*"))


def test_checkpointing_is_on_in_passes_alone(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores need keys and values, which layers do not keep while they compute activations twice."""
    from mmsurgery.unlearn import train_run as applying
    from mmsurgery.unlearn.objective import Unlearning

    seen: dict[str, set[bool]] = {"pass": set(), "scores": set()}
    backward, evaluation = Unlearning._backward, applying._evaluation

    def on(model: Any) -> bool:
        return any(module.training and getattr(module, "gradient_checkpointing", False) for module in model.modules())

    def passing(self: Unlearning, term: Any, number: int) -> float:
        seen["pass"].add(on(self.loaded.model))
        return backward(self, term, number)

    def scored(run: Any, loaded: Any, shards: Any) -> Any:
        found = evaluation(run, loaded, shards)

        def score() -> dict[str, Any]:
            seen["scores"].add(on(loaded.model))
            return dict(found.score())

        return replace(found, score=score)

    monkeypatch.setattr(Unlearning, "_backward", passing)
    monkeypatch.setattr(applying, "_evaluation", scored)
    apply(ws, "ga", layout=Layout(checkpointing=True), eval_every=1)
    assert seen == {"pass": {True}, "scores": {False}}


def test_another_precision_is_refused(ws: Workspace) -> None:
    with pytest.raises(UsageError, match=r"no precision 'fp16'.*known: bf16, float32"):
        apply(ws, "ga", precision="fp16")
