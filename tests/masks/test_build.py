"""`mask` on a workspace: what it checks, what it measures, what it leaves alone. No torch."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmsurgery.masks.build as build_module
import mmsurgery.masks.stale as stale_module
from mmsurgery.artifacts.checkpoint import CheckpointFiles, companions_sha256
from mmsurgery.artifacts.mask import Mask
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.artifacts.tensors import write_safetensors
from mmsurgery.backbones.discovery import backbone
from mmsurgery.data.samples import Sample, data_sha256
from mmsurgery.errors import InputRefused, MachineFault, Mismatch, MissingArtifact, UnusableData, UsageError
from mmsurgery.masks.build import MaskResult, build_mask
from mmsurgery.masks.compose import compose_masks
from mmsurgery.masks.stale import stale
from mmsurgery.settings import SETTINGS_FILE, ModelSettings, Settings
from mmsurgery.workspace import Workspace
from mmsurgery_cli.main import run

sys.path.insert(0, str(Path(__file__).parents[1] / "checkers"))
import mask_rule

NAMES = {
    "model.vision_tower.encoder.layers.0.self_attn.q_proj.weight": (4, 4),
    "model.vision_tower.post_layernorm.weight": (4,),
    "model.multi_modal_projector.linear_1.weight": (5, 4),
    "model.language_model.layers.0.mlp.up_proj.weight": (7, 5),
    "model.language_model.embed_tokens.weight": (9, 5),
    "lm_head.weight": (9, 5),
}
PARTS = ("forget_vqa", "forget_qa", "retain_vqa", "retain_qa")


class Fake:
    """A benchmark of one sample per part."""

    name = "fake"

    def __init__(self, parts: tuple[str, ...] = PARTS, answer: str = "lisbon") -> None:
        self._parts, self.answer = parts, answer

    def parts(self, source: Any) -> tuple[str, ...]:
        return self._parts

    def columns(self, source: Any) -> tuple[str, ...]:
        return ()

    def samples(self, source: Any, part: str) -> list[Sample]:
        return [Sample("1", "anna", f"what in {part} ?", answer=self.answer)]


class Notes:
    """Remembers what was noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def write_model(folder: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    tensors = {name: generator.normal(size=shape).astype(np.float32) for name, shape in NAMES.items()}
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": {}}))


def saliency(workspace: Workspace, part: str, seed: int, **changes: Any) -> SaliencyMap:
    digest = CheckpointFiles(workspace.model_dir("vanilla"), backbone("llava").canonical).digest()
    generator = np.random.default_rng(seed)
    silent = "model.vision_tower.post_layernorm.weight"
    values = {
        "part": part,
        "estimator": "sample",
        "batch_size": None,
        "units": seed + 2,
        "model_type": "llava",
        "model_sha256": digest,
        "data_sha256": data_sha256(Fake().samples(None, part)),
        "arrays": {n: generator.chisquare(1, s).astype(np.float32) for n, s in NAMES.items() if n != silent},
        "no_gradient": {silent: NAMES[silent]},
    }
    return SaliencyMap(**(values | changes))


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    for module in (build_module, stale_module):
        monkeypatch.setattr(module, "benchmark", lambda name: fake)
    return fake


@pytest.fixture
def workspace(tmp_path: Path, benchmark: Fake) -> Workspace:
    made = Workspace(tmp_path, Settings())
    write_model(made.model_dir("vanilla"), 0)
    for seed, part in enumerate(PARTS):
        saliency(made, part, seed).save(made.saliency_dir(part))
    return made


def made(workspace: Workspace, **options: Any) -> MaskResult:
    result = build_mask(workspace, **options)
    assert result.path == workspace.mask_path(result.name)
    assert Mask.load(result.path).content_sha256 == result.mask.content_sha256
    return result


def test_the_mask_is_the_rule_applied_to_the_files(workspace: Workspace) -> None:
    result = made(workspace, beta="0.9", modules="lm,connector")
    assert (result.name, result.up_to_date, result.measured) == ("default", False, [])
    folders = [workspace.saliency_dir(part) for part in PARTS]
    assert mask_rule.differing_bits(result.path, folders[0], folders[1:]) == 0
    value, _ = mask_rule.read_mask(result.path)
    assert set(value["parameters"]) == set(NAMES)
    assert (value["beta"], value["modules"], value["mixture"]) == (0.9, "lm,connector", "pooled")
    assert [parent["part"] for parent in value["parents"]] == list(PARTS)
    assert all(len(parent["sha256"]) == 64 for parent in value["parents"])
    assert value["provenance"]["inputs"]["model_sha256"] == value["base"]["model_sha256"]


def test_again_is_up_to_date_and_changes_nothing(workspace: Workspace) -> None:
    first = made(workspace)
    data, inode = first.path.read_bytes(), first.path.stat().st_ino
    again = made(workspace)
    assert again.up_to_date
    assert first.path.stat().st_ino == inode
    forced = made(workspace, force=True)
    assert not forced.up_to_date
    assert first.path.stat().st_ino != inode
    assert first.path.read_bytes() == data


def test_another_result_is_not_replaced_unless_forced(workspace: Workspace) -> None:
    first = made(workspace)
    before = first.path.read_bytes()
    with pytest.raises(Mismatch, match=r"beta 1.0 -> 2.0") as caught:
        build_mask(workspace, beta=2)
    assert "--force" in str(caught.value.next_step)
    with pytest.raises(Mismatch, match="made with other beta"):
        build_mask(workspace, density=0.2)
    saliency(workspace, "retain_qa", 9).save(workspace.saliency_dir("retain_qa"), replace=True)
    with pytest.raises(Mismatch, match="saliency"):
        build_mask(workspace)
    assert first.path.read_bytes() == before
    assert made(workspace, beta=2, force=True).mask.beta == 2
    assert made(workspace, name="other").mask.beta == 1


def test_a_damaged_mask_is_refused_and_can_be_forced_away(workspace: Workspace) -> None:
    path = made(workspace).path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputRefused):
        build_mask(workspace)
    assert made(workspace, force=True)


@pytest.mark.parametrize("control", ["random", "inverse", "magnitude", "forget-only"])
def test_controls_match_the_rule_tensor_by_tensor(workspace: Workspace, control: str) -> None:
    rule = made(workspace, modules="lm").mask
    result = made(workspace, modules="lm", control=control, name=control)
    assert result.mask.rule == control
    assert result.mask.tally("parameter") == rule.tally("parameter")
    assert result.mask.modules == "lm"
    assert result.mask.parents[0]["content_sha256"] == rule.content_sha256
    assert made(workspace, modules="lm", control=control, name=control).up_to_date


def test_the_random_control_depends_on_the_seed(workspace: Workspace) -> None:
    made(workspace, control="random", name="random", seed=1)
    with pytest.raises(Mismatch, match="seed 1 -> 2"):
        build_mask(workspace, control="random", name="random", seed=2)


def test_density(workspace: Workspace) -> None:
    mask = made(workspace, density=0.25, modules="lm").mask
    assert (mask.rule, mask.beta) == ("density", None)
    inside = 35 + 45 + 45
    assert mask.selected == round(0.25 * inside) == mask.counts["wanted"]


def test_missing_saliency_without_measuring_names_the_command(workspace: Workspace) -> None:
    for part in ("forget_qa", "retain_qa"):
        (workspace.saliency_dir(part) / "manifest.json").unlink()
        (workspace.saliency_dir(part) / "saliency.h5").unlink()
        workspace.saliency_dir(part).rmdir()
    with pytest.raises(MissingArtifact, match="forget_qa, retain_qa") as caught:
        build_mask(workspace, measure=False)
    assert (caught.value.code, caught.value.next_step) == (2, "mmsurgery saliency --set preserve")
    with pytest.raises(MissingArtifact) as caught:
        build_mask(workspace, measure=False, estimator="batch", batch_size=3)
    command = "mmsurgery saliency --set {} --estimator batch --batch-size 3"
    assert caught.value.next_step == command.format("forget,preserve")


def test_a_part_that_is_measured_in_shards_is_not_measured_whole(workspace: Workspace) -> None:
    folder = workspace.saliency_dir("retain_qa")
    folder.rename(folder.with_name("retain_qa.shard-2-of-3"))
    with pytest.raises(MissingArtifact, match="retain_qa is measured in shards: 1/3, 3/3 to be run") as caught:
        build_mask(workspace)
    assert caught.value.next_step == "mmsurgery saliency --set preserve --shard 1/3"


def test_missing_saliency_is_measured_and_said(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    calls = []

    def measure_parts(ws: Workspace, parts: list[str], **options: Any) -> None:
        calls.append((list(parts), options["estimator"]))
        for part in parts:
            saliency(ws, part, 5).save(ws.saliency_dir(part))

    parts = types.ModuleType("mmsurgery.saliency.parts")
    parts.measure_parts = measure_parts  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mmsurgery.saliency.parts", parts)
    kept = workspace.saliency_dir("retain_qa")
    kept.rename(workspace.path("saliency", "away"))
    progress: Any = Notes()
    result = made(workspace, progress=progress)
    assert result.measured == ["retain_qa"]
    assert calls == [(["retain_qa"], "sample")]
    assert "retain_qa" in progress.notes[0]


def test_a_real_model_is_measured_then_masked(
    tiny_llava: Path, mixed_samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mmsurgery.saliency.parts as parts_module

    class Real(Fake):
        def samples(self, source: Any, part: str) -> list[Sample]:
            texts = [sample for sample in mixed_samples if sample.image_bytes is None]
            return texts if part.endswith("_qa") else mixed_samples

    for module in (build_module, stale_module, parts_module):
        monkeypatch.setattr(module, "benchmark", lambda name: Real())
    workspace = Workspace(tmp_path, Settings(models=ModelSettings(vanilla=str(tiny_llava))))
    result = made(workspace, modules="lm,connector")
    assert result.measured == list(PARTS)
    folders = [workspace.saliency_dir(part) for part in PARTS]
    assert mask_rule.differing_bits(result.path, folders[0], folders[1:]) == 0
    assert set(result.mask.density("group")) == {"vision", "connector", "lm"}
    assert result.mask.density("group")["vision"] == 0
    assert 0 < result.mask.density("group")["lm"] < 1
    assert made(workspace, modules="lm,connector").up_to_date
    monkeypatch.setattr(Real, "parts", lambda self, source: (*PARTS, "retain_image_qa"))
    literal = made(workspace, name="literal", preserve="forget_qa,retain_vqa,retain_image_qa")
    assert literal.measured == ["retain_image_qa"]
    folders[-1] = workspace.saliency_dir("retain_image_qa")
    assert mask_rule.differing_bits(literal.path, folders[0], folders[1:]) == 0


def test_parts_that_the_benchmark_lacks_are_left_out(workspace: Workspace, benchmark: Fake) -> None:
    benchmark._parts = ("forget_vqa", "retain_vqa", "realworld_vqa")
    assert [parent["part"] for parent in made(workspace).mask.parents] == ["forget_vqa", "retain_vqa"]
    benchmark._parts = ("retain_vqa",)
    with pytest.raises(UsageError, match="no part to forget"):
        build_mask(workspace, name="other")


def test_the_preserve_parts_can_be_chosen(workspace: Workspace, benchmark: Fake) -> None:
    """Eq. 6 read literally; named in any order it is the same mask."""
    benchmark._parts = (*PARTS, "retain_image_qa")
    saliency(workspace, "retain_image_qa", 9).save(workspace.saliency_dir("retain_image_qa"))
    result = made(workspace, name="literal", preserve="retain_image_qa, forget_qa,retain_vqa,forget_qa")
    named = ("forget_vqa", "forget_qa", "retain_vqa", "retain_image_qa")
    folders = [workspace.saliency_dir(part) for part in named]
    assert mask_rule.differing_bits(result.path, folders[0], folders[1:]) == 0
    assert [parent["part"] for parent in result.mask.parents] == list(named)
    assert result.mask.provenance["settings"]["preserve"] == "forget_qa,retain_vqa,retain_image_qa"
    assert set(result.mask.provenance["inputs"]["saliency"]) == set(named)
    assert made(workspace, name="literal", preserve=["forget_qa", "retain_vqa", "retain_image_qa"]).up_to_date
    with pytest.raises(Mismatch, match="made with other preserve forget_qa,retain_vqa,retain_image_qa -> None"):
        build_mask(workspace, name="literal")
    assert made(workspace).mask.content_sha256 != result.mask.content_sha256
    assert made(workspace, name="control", control="forget-only", preserve="retain_qa").mask.rule == "forget-only"


def test_eq_6_by_name_is_the_default_and_leaves_no_trace(workspace: Workspace, benchmark: Fake) -> None:
    """What was made before the setting existed stays up to date, byte for byte."""
    first = made(workspace)
    assert sorted(first.mask.provenance["settings"]) == [
        "batch_size", "beta", "control", "estimator", "mixture", "modules", "seed",
    ]  # fmt: skip
    benchmark._parts = ("retain_image_qa", *reversed(PARTS))  # whatever the order of a benchmark's parts
    assert made(workspace, preserve="retain_qa,retain_vqa,forget_qa").up_to_date
    again = made(workspace, name="again", preserve="forget_qa,retain_qa,retain_vqa")
    assert again.path.read_bytes() == first.path.read_bytes()
    benchmark._parts = ("forget_vqa", "retain_vqa", "realworld_vqa")
    assert "preserve" not in made(workspace, name="fewer", preserve="retain_vqa").mask.provenance["settings"]


def test_parts_that_cannot_be_preserved(workspace: Workspace, benchmark: Fake) -> None:
    for wrong, message, hint in (
        ("forget_qa,retain_vqaa", "no part 'retain_vqaa'", "did you mean 'retain_vqa'"),
        ("forget_qa,", "no part ''", "known: forget_qa"),
        ("retain_image_qa", "benchmark 'portraits' has no part 'retain_image_qa'", f"it has {', '.join(PARTS)}"),
        ("retain_qa,forget_vqa", "forget_vqa is what is to be forgotten", "leave it out"),
        ([], "no part to preserve is named", "name some of"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            build_mask(workspace, preserve=wrong)
        assert hint in str(caught.value.next_step)
    benchmark._parts = ("forget_vqa", "realworld_vqa")
    with pytest.raises(UsageError, match="none to preserve"):
        build_mask(workspace)
    saliency(workspace, "realworld_vqa", 9).save(workspace.saliency_dir("realworld_vqa"))
    settings = made(workspace, preserve="realworld_vqa").mask.provenance["settings"]
    assert settings["preserve"] == "realworld_vqa"  # though the benchmark has no part of Eq. 6


def test_a_chosen_part_that_is_missing_is_measured_by_name(workspace: Workspace, benchmark: Fake) -> None:
    benchmark._parts = (*PARTS, "retain_image_qa")
    with pytest.raises(MissingArtifact, match="saliency of retain_image_qa has not been") as caught:
        build_mask(workspace, preserve="forget_qa,retain_image_qa", measure=False)
    assert caught.value.next_step == "mmsurgery saliency --set retain_image_qa"


def test_saliency_of_another_model(workspace: Workspace) -> None:
    write_model(workspace.model_dir("vanilla"), 1)
    with pytest.raises(Mismatch, match="'forget_vqa' was measured on model") as caught:
        build_mask(workspace)
    assert (caught.value.code, caught.value.next_step) == (4, "mmsurgery saliency --set forget,preserve --force")


def test_saliency_of_other_data(workspace: Workspace, benchmark: Fake) -> None:
    benchmark.answer = "oslo"
    with pytest.raises(Mismatch, match="other data"):
        build_mask(workspace)


def test_a_mask_measured_on_scored_text_says_so_and_so_does_what_is_made_of_it(workspace: Workspace) -> None:
    assert "scored_text" not in made(workspace).mask.counts
    for seed, (part, leaked) in enumerate(zip(PARTS, (0, 3, 0, 4), strict=True)):
        marked = {"scored_text": leaked} if leaked else {}
        saliency(workspace, part, seed, provenance=marked).save(workspace.saliency_dir(part), replace=True)
    mask = made(workspace, name="leaking").mask
    assert mask.counts["scored_text"] == 7
    assert made(workspace, name="control", control="random").mask.counts["scored_text"] == 7
    assert (mask & ~mask.restrict("lm")).counts["scored_text"] == 7
    assert compose_masks(workspace, "leaking @ lm", name="less").mask.counts["scored_text"] == 7


def test_what_a_change_leaves_behind_is_listed(workspace: Workspace, benchmark: Fake) -> None:
    made(workspace)
    workspace.data_dir.mkdir()
    assert stale(workspace) == []
    benchmark.answer = "oslo"
    (workspace.data_dir / "rows").write_text("another file")  # else the digests of the data are remembered
    (problem,) = stale(workspace)
    assert "saliency 'forget_qa' was measured on other data" in problem.what
    assert problem.next_step == "mmsurgery saliency --set forget,preserve --force"
    benchmark.answer = "lisbon"
    (workspace.data_dir / "rows").write_text("as it was")
    for seed, part in enumerate(PARTS):
        saliency(workspace, part, seed + 7).save(workspace.saliency_dir(part), replace=True)
    (problem,) = stale(workspace)
    assert "mask 'default' was made from saliency that is not there any more" in problem.what
    assert problem.next_step == "mmsurgery mask --beta 1 --modules vision,connector,lm --force"


@pytest.mark.parametrize(
    ("options", "command"),
    [
        ({"name": "a", "beta": 0.1 + 0.2, "modules": "lm"}, "--name a --beta 0.30000000000000004 --modules lm"),
        ({"density": 0.25, "modules": "connector,lm"}, "--density 0.25 --modules connector,lm"),
        (
            {"density": 0.5, "per": "tensor", "mixture": "equal"},
            "--density 0.5 --per tensor --modules {} --mixture equal",
        ),
        (
            {"preserve": "retain_image_qa,forget_qa", "mixture": "equal"},
            "--beta 1 --modules {} --mixture equal --preserve forget_qa,retain_image_qa",
        ),
        ({"control": "inverse"}, "--beta 1 --modules {} --control inverse"),
        ({"control": "random", "beta": "0.9"}, "--beta 0.9 --modules {} --control random --seed 0"),
        ({"control": "random", "seed": 7}, "--beta 1 --modules {} --control random --seed 7"),
        ({"estimator": "batch", "batch_size": 2}, "--beta 1 --modules {} --estimator batch --batch-size 2"),
    ],
)
def test_a_stale_mask_is_made_again_as_it_was(
    workspace: Workspace, benchmark: Fake, options: dict[str, Any], command: str
) -> None:
    """What is printed, run as a command line, makes the mask of the same settings."""
    benchmark._parts = parts = (*PARTS, "retain_image_qa")
    place = (options.get("estimator", "sample"), options.get("batch_size", 4))
    measured = {"estimator": place[0], "batch_size": options.get("batch_size")}
    for round_ in (0, 7):
        for seed, part in enumerate(parts):
            found = saliency(workspace, part, seed + round_, **measured)
            found.save(workspace.saliency_dir(part, *place), replace=True)
        if round_ == 0:
            before = made(workspace, **options).mask.provenance["settings"]
    (problem,) = stale(workspace)
    modules = "vision,connector,lm"
    assert problem.next_step == f"mmsurgery mask {command.format(modules)} --force"
    (workspace.root / SETTINGS_FILE).write_text(workspace.settings.to_toml())
    assert run(["-w", str(workspace.root), *shlex.split(problem.next_step)[1:]]) == 0
    assert Mask.load(workspace.mask_path(options.get("name", "default"))).provenance["settings"] == before
    assert stale(workspace) == []


def test_saliency_of_another_configuration(workspace: Workspace) -> None:
    folder = workspace.model_dir("vanilla")
    inputs = {"companions_sha256": companions_sha256(folder)}
    for seed, part in enumerate(PARTS):
        recorded = saliency(workspace, part, seed, provenance={"inputs": inputs})
        recorded.save(workspace.saliency_dir(part), replace=True)
    made(workspace)
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": {"rms_norm_eps": 1e-5}}))
    with pytest.raises(Mismatch, match="'forget_vqa' was measured with another configuration") as caught:
        build_mask(workspace, name="other")
    assert (caught.value.code, caught.value.next_step) == (4, "mmsurgery saliency --set forget,preserve --force")


def test_maps_of_different_configurations_do_not_meet(workspace: Workspace) -> None:
    one, other = (
        saliency(workspace, part, seed, provenance={"inputs": {"companions_sha256": digest}})
        for seed, (part, digest) in enumerate((("forget_vqa", "a"), ("retain_vqa", "b")))
    )
    with pytest.raises(Mismatch, match="companions_sha256"):
        one.same_kind(other)


def test_up_to_date_needs_no_lock(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    made(workspace)
    monkeypatch.setattr(Workspace, "lock", lambda self: pytest.fail("locked"))
    assert made(workspace).up_to_date


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beta": 1, "density": 0.5}, "not by both"),
        ({"per": "tensor"}, "without a density"),
        ({"seed": 0}, "only the control 'random'"),
        ({"seed": 0, "control": "inverse"}, "only the control 'random'"),
    ],
)
def test_arguments_without_effect_are_refused(workspace: Workspace, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        build_mask(workspace, name="other", **options)


def test_the_same_model_in_another_layout_is_the_same_model(workspace: Workspace) -> None:
    path = workspace.model_dir("vanilla") / "model.safetensors"
    files = CheckpointFiles(path.parent, backbone("llava").canonical)
    renamed = {
        n.replace("model.multi_modal", "module.model.multi_modal"): np.array(files.array(n)) for n in files.names
    }
    write_safetensors(path, renamed, {})
    assert made(workspace)


def test_no_vanilla_model(workspace: Workspace) -> None:
    (workspace.model_dir("vanilla") / "config.json").unlink()
    with pytest.raises(MissingArtifact, match="vanilla"):
        build_mask(workspace)


def test_damaged_saliency_is_refused(workspace: Workspace) -> None:
    path = workspace.saliency_dir("retain_vqa") / "saliency.h5"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputRefused, match="damaged"):
        build_mask(workspace)
    assert not workspace.mask_path("default").exists()


def test_nothing_selected_leaves_no_mask(workspace: Workspace) -> None:
    with pytest.raises(UnusableData, match="0 of"):
        build_mask(workspace, beta=1e12)
    assert workspace.masks() == []


@pytest.mark.parametrize(
    "options",
    [
        {"name": "../x"},
        {"beta": "0"},
        {"density": 2.0},
        {"density": 0.5, "per": "layer"},
        {"control": "shuffle"},
        {"estimator": "exact"},
        {"mixture": "pool"},
        {"modules": "language"},
        {"modules": "lm.77"},
    ],
)
def test_wrong_arguments(workspace: Workspace, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        build_mask(workspace, **options)
    assert workspace.masks() == []


def test_wrong_arguments_are_found_before_anything_is_measured(workspace: Workspace) -> None:
    workspace.saliency_dir("retain_qa").rename(workspace.path("saliency", "away"))
    with pytest.raises(UsageError, match="control"):
        build_mask(workspace, control="shuffle", measure=False)


def test_one_writer_at_a_time(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsurgery.workspace.LOCK_TIMEOUT", 0.05)
    with workspace.lock(), pytest.raises(MachineFault, match="in use by pid"):
        build_mask(workspace)


def test_the_journal_says_what_was_made(workspace: Workspace) -> None:
    result = made(workspace, name="mine")
    entry = workspace.journal_entries()[-1]
    assert (entry["event"], entry["name"], entry["selected"]) == ("mask", "mine", result.mask.selected)


def test_no_torch_when_all_parts_exist(workspace: Workspace) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_build import Fake, build_module, stale_module
from mmsurgery.settings import Settings
from mmsurgery.workspace import Workspace
from pathlib import Path
build_module.benchmark = stale_module.benchmark = lambda name: Fake()
result = build_module.build_mask(Workspace(Path({str(workspace.root)!r}), Settings()), control="magnitude")
assert result.mask.selected
heavy = {{"torch", "transformers", "peft", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_same_inputs_same_bytes_in_another_folder(
    workspace: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import shutil

    elsewhere = tmp_path_factory.mktemp("elsewhere") / "数据 é"
    shutil.copytree(workspace.root, elsewhere)
    other = build_mask(Workspace(elsewhere, replace(workspace.settings)))
    assert made(workspace).path.read_bytes() == other.path.read_bytes()
