"""What plans count, that they write nothing, and where they stop."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from mmsurgery.errors import MachineFault, Mismatch, MissingArtifact, UsageError
from mmsurgery.plans import Passes, Plan, plan_apply, plan_diff, plan_eval, plan_saliency, probe
from mmsurgery.plans import plan as terms
from mmsurgery.plans.sizes import Rows, Sizes
from mmsurgery.saliency.parts import measure_parts
from mmsurgery.unlearn.apply import apply
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.workspace import Workspace


def everything(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in root.rglob("*")
        if path.is_file()
    }


def every_plan(ws: Workspace) -> list[Plan]:
    return [
        plan_saliency(ws, "forget_vqa,retain_qa"),
        plan_apply(ws, "ga_diff", mask="default", scope="all"),
        plan_apply(ws, "npo", lora=LoRA(rank=2), eval_every=2),
        plan_eval(ws),
        plan_diff(ws, "vanilla", "reference"),
    ]


def test_plans_write_nothing_and_take_no_lock(ws: Workspace) -> None:
    with ws.lock():
        before = everything(ws.root)
        plans = every_plan(ws)
        assert everything(ws.root) == before
    for plan in plans:
        assert plan.seconds is not None
        assert plan.seconds > 0
        assert all(size > 0 for size in plan.memory.values())
        assert plan.disk_total > 0


def test_models_that_do_not_fit_are_not_loaded(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "free_memory", lambda: 2_000_000)

    def load(*arguments: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("mmsurgery.backbones.loading.load", load)
    for plan in (plan_saliency(ws, "forget_vqa"), plan_apply(ws, "npo"), plan_eval(ws)):
        assert plan.seconds is None
        assert any("no time: the weights take" in note for note in plan.notes)


def test_weights_of_a_third_of_the_free_memory_are_loaded(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Sizes.of("vanilla", ws.model_dir("vanilla")).loaded
    for free, timed in ((3 * weights, True), (3 * weights - 1, False)):
        monkeypatch.setattr(probe, "free_memory", lambda free=free: free)
        assert (plan_saliency(ws, "retain_qa").seconds is not None) is timed


def test_passes_of_saliency(ws: Workspace, untimed: None) -> None:
    plan = plan_saliency(ws, "forget_vqa,retain_qa")
    assert plan.samples == {"forget_vqa": 6, "retain_qa": 6}
    assert (plan.passes.forward, plan.passes.backward) == (12, 12)
    assert plan_saliency(ws, "forget_vqa", shard="1/3").samples == {"forget_vqa": 2}
    text = plan_saliency(ws, "retain_qa").passes.tokens
    pictured = plan_saliency(ws, "forget_vqa").passes.tokens
    assert text is not None
    assert pictured is not None
    assert pictured - text >= 6 * 16  # a picture is 16 tokens


def test_passes_of_apply(ws: Workspace, untimed: None) -> None:
    joint = plan_apply(ws, "ga_diff", epochs=3)
    assert (joint.passes.forward, joint.passes.backward) == (36, 36)
    referenced = plan_apply(ws, "npo", epochs=3)
    assert (referenced.passes.forward, referenced.passes.backward) == (18 + 6, 18)
    # three steps: scored before the first, after the second, and at the end
    assert plan_apply(ws, "npo", eval_every=2).passes.forward == 6 + 6 + 3 * 4


def test_passes_of_eval_are_rows_of_different_options(ws: Workspace, untimed: None) -> None:
    plan = plan_eval(ws, ["vanilla", "reference"])
    assert plan.samples == {"forget_vqa": 4}
    assert plan.passes.forward == 2 * 4 * 2  # two of the three options read the same
    path = ws.eval_path("vanilla")
    path.parent.mkdir()
    path.write_text("{}")
    once = plan_eval(ws, ["vanilla", "reference"])
    assert once.passes.forward == 4 * 2
    assert any("'vanilla' has scores" in note for note in once.notes)
    assert plan_eval(ws, ["vanilla", "reference"], force=True).passes.forward == 16


def test_open_answers_are_passed_once_more_under_vanilla(ws: Workspace) -> None:
    with ws.lock():
        before = everything(ws.root)
        plan = plan_eval(ws, ["reference"], protocol="open")
        assert everything(ws.root) == before
    assert plan.passes == Passes(forward=2 * 4, backward=0)
    assert plan.seconds is not None
    assert any(note.endswith("and once more what was written, under vanilla") for note in plan.notes)
    shutil.copytree(ws.model_dir("reference"), ws.model_dir("half"))
    halve(ws.model_dir("half"))
    weights = plan_eval(ws, ["half"]).memory[terms.WEIGHTS]
    assert plan_eval(ws, ["half"], protocol="open").memory[terms.WEIGHTS] == 2 * weights
    shutil.rmtree(ws.model_dir("vanilla"))
    with pytest.raises(MissingArtifact, match="no model 'vanilla'"):
        plan_eval(ws, ["reference"], protocol="open")


def halve(folder: Path) -> None:
    """Store a model's weights in 16 bits."""
    import torch
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    save_file({k: v.to(torch.bfloat16) for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))


def test_disk_has_the_snapshots_in_it(ws: Workspace, untimed: None) -> None:
    weights = Sizes.of("vanilla", ws.model_dir("vanilla")).count()
    assert plan_saliency(ws, "forget_vqa,retain_qa").disk == {"maps": 8 * weights, "snapshots": 12 * weights}
    assert plan_saliency(ws, "forget_vqa", store="bfloat16").disk["maps"] == 2 * weights
    assert plan_apply(ws, "npo").disk == {"model": 4 * weights, "snapshots": 36 * weights}


def test_a_selection_stands_for_a_mask_that_is_not_made(ws: Workspace) -> None:
    ws.mask_path("default").unlink()
    with pytest.raises(MissingArtifact, match="no mask 'default'"):
        plan_apply(ws, "mmunlearner")
    sizes = Sizes.of("vanilla", ws.model_dir("vanilla"))
    plan = plan_apply(ws, "mmunlearner", scope="all", selection=dict.fromkeys(sizes.within("connector"), 1))
    count = len(sizes.within("connector"))
    assert [plan.memory[each] for each in (terms.MOMENTS, terms.MASTERS, terms.PLACES)] == [
        8 * count,
        4 * count,
        4 * count,
    ]


def test_activations_grow_with_tokens_and_shrink_with_checkpointing(ws: Workspace) -> None:
    sizes = Sizes.of("vanilla", ws.model_dir("vanilla"))
    text = Rows(tokens=100, positions=0, answers=0)
    # 3 layers of hidden size 96 and inner size 192: inputs and outputs of 7 linear layers each, five quarters of them
    assert sizes.kept(text, 4) == 3 * 1.25 * 100 * 4 * (11 * 96 + 3 * 192)
    assert sizes.kept(text, 4, checkpointing=True) == 1.25 * 100 * 4 * (11 * 96 + 3 * 192) + 3 * 100 * 4 * 96
    assert sizes.kept(Rows(tokens=100, positions=10, answers=0), 4) > sizes.kept(text, 4)
    assert sizes.per_token(2) == 3 * 2 * 2 * 96


def test_a_model_is_as_large_in_memory_as_its_config_says(ws: Workspace) -> None:
    file = ws.model_dir("vanilla") / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "dtype": "bfloat16"}))
    sizes = Sizes.of("vanilla", ws.model_dir("vanilla"))
    assert (sizes.loaded, sizes.stored) == (2 * sizes.count(), 4 * sizes.count())


@pytest.mark.parametrize(
    ("said", "plan"),
    [
        ("no estimator 'sampel'", lambda ws: plan_saliency(ws, "forget_vqa", estimator="sampel")),
        ("no set or part 'forget_vqq'", lambda ws: plan_saliency(ws, "forget_vqq")),
        ("scope all is about a mask", lambda ws: plan_apply(ws, "npo", scope="all")),
        ("top 0", lambda ws: plan_diff(ws, "vanilla", "reference", top=0)),
        ("a subset of 0", lambda ws: plan_eval(ws, subset=0)),
    ],
)
def test_what_the_verb_refuses_its_plan_refuses(ws: Workspace, said: str, plan: Any) -> None:
    with pytest.raises(UsageError, match=said):
        plan(ws)


def test_what_is_there_and_is_something_else_is_refused(ws: Workspace) -> None:
    measure_parts(ws, "forget_vqa")
    assert "forget_vqa is there: it is not measured again without --force" in plan_saliency(ws, "forget_vqa").notes
    with pytest.raises(Mismatch, match="holds another measurement: store float32 -> bfloat16"):
        plan_saliency(ws, "forget_vqa", store="bfloat16")
    assert plan_saliency(ws, "forget_vqa", store="bfloat16", force=True).samples
    measure_parts(ws, "retain_qa", shard="1/2")
    assert "retain_qa.shard-1-of-2 is there" in str(plan_saliency(ws, "retain_qa", shard="1/2").notes)
    assert plan_saliency(ws, "retain_qa", shard="2/2").samples

    apply(ws, "npo", steps=1)
    assert any("nothing is done without --force" in note for note in plan_apply(ws, "npo", steps=1).notes)
    with pytest.raises(Mismatch, match="model 'npo' exists, made with other learning_rate"):
        plan_apply(ws, "npo", steps=1, learning_rate=1e-4)
    assert plan_apply(ws, "npo", steps=1, learning_rate=1e-4, force=True).passes.forward


@pytest.mark.parametrize("error", [MachineFault("cannot write x: no space", "free some"), OSError(28, "no space")])
def test_without_room_for_temporary_files_there_is_no_time(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def folder() -> None:
        raise error

    monkeypatch.setattr(tempfile, "TemporaryDirectory", folder)
    for plan in (plan_saliency(ws, "forget_vqa"), plan_apply(ws, "npo"), plan_diff(ws, "vanilla", "reference")):
        assert plan.seconds is None
        assert plan.memory
        assert any(note in ("no time: cannot write x: no space", "no time: no space") for note in plan.notes)
