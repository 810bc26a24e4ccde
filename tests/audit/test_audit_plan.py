"""`audit --plan`: what it counts is what an audit does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from audit_world import change, make

from mmsurgery.audit import collateral, one_by_one, paraphrase, quantisation, relearning
from mmsurgery.audit.run import audit
from mmsurgery.errors import MissingArtifact, UsageError
from mmsurgery.evaluate.scoring import score
from mmsurgery.plans import plan as terms
from mmsurgery.plans import plan_audit
from mmsurgery.plans.sizes import Sizes


def test_what_is_planned_is_done(
    tmp_path: Path, tiny_llava: Path, picture: Callable[..., bytes], loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make(tmp_path / "ws", tiny_llava, picture, ("vanilla", "gold", "npo", "base"))
    before = {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*")}
    plan = plan_audit(workspace)
    assert {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*")} == before
    assert plan.seconds is not None
    assert plan.seconds > 0
    count = Sizes.of("npo", workspace.model_dir("npo")).count()
    assert [plan.memory[term] for term in (terms.WEIGHTS, terms.GRADIENTS, terms.MOMENTS)] == [
        4 * count,
        4 * count,
        8 * count,
    ]
    scored: list[int] = []

    def counted(loaded: Any, items: Sequence[Any], **options: Any) -> Any:
        scored.append(len(items))
        return score(loaded, items, **options)

    for module in (collateral, one_by_one, paraphrase, quantisation, relearning):
        monkeypatch.setattr(module, "score", counted)
    loads.clear()
    audit(workspace)
    planned = next(int(note.split("loaded ")[1].split()[0]) for note in plan.notes if "loaded" in note)
    # npo was put there without a run, so nobody is forgotten one by one
    assert planned - 3 <= len(loads) <= planned
    assert plan.passes.backward >= 4 * 4 * relearning.STEPS * relearning.BATCH
    assert plan.passes.forward >= 2 * sum(scored)
    for name, held_out, error in (("base", None, UsageError), ("npo", tmp_path / "nowhere", MissingArtifact)):
        with pytest.raises(error):
            plan_audit(workspace, name, held_out=held_out)
    again = plan_audit(workspace)
    assert again.seconds is None
    assert "28 of 28 measurements are there" in again.notes
    assert (again.passes.forward, again.passes.backward) == (0, 0)
    change(workspace.model_dir("npo"), 1)  # measurements of other weights are no measurements of it
    assert "21 of 28 measurements are there" in plan_audit(workspace).notes
