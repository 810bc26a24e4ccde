"""`apply` and `verify` on a workspace with a tiny model: what is written, refused, resumed, and proved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.mask import Mask, MaskParameter, pack
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.artifacts.tensors import read_header, read_tensor, write_safetensors
from mmsurgery.backbones.discovery import backbone
from mmsurgery.backbones.loading import Loaded, load
from mmsurgery.data.samples import data_sha256
from mmsurgery.errors import (
    InputRefused,
    InternalError,
    MachineFault,
    Mismatch,
    MissingArtifact,
    UnusableData,
    UsageError,
)
from mmsurgery.evaluate.scoring import score
from mmsurgery.unlearn import loop, save
from mmsurgery.unlearn.apply import apply
from mmsurgery.unlearn.masked import MaskedUpdate
from mmsurgery.unlearn.masters import Selection
from mmsurgery.unlearn.references import distribution_bytes, retain_distribution
from mmsurgery.unlearn.verify import compare, verify
from mmsurgery.workspace import SILENT, Workspace


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def changed(ws: Workspace, before: str, after: str) -> dict[str, np.ndarray]:
    """Which weights' bits differ, recomputed from the files."""
    one, two = (CheckpointFiles(ws.model_dir(name), backbone("llava").canonical) for name in (before, after))
    return {name: one.array(name).view(np.uint32) != two.array(name).view(np.uint32) for name in one.names}


def test_masked_run_leaves_a_model_its_record_and_nothing_else(ws: Workspace) -> None:
    result = apply(ws, "mmunlearner")
    assert result.model == "mmunlearner.default"
    assert not result.up_to_date
    folder, vanilla = ws.model_dir(result.model), ws.model_dir("vanilla")
    assert set(contents(folder)) == {*contents(vanilla), "mmsurgery-run.json"}
    for name, data in contents(vanilla).items():
        assert (contents(folder)[name] == data) == (name != "model.safetensors")
    headers = [read_header(path / "model.safetensors") for path in (folder, vanilla)]
    assert [h.metadata for h in headers] == [{"format": "pt"}] * 2
    layouts = [{name: (info.dtype, info.shape) for name, info in header.tensors.items()} for header in headers]
    assert layouts[0] == layouts[1]
    assert load(folder).model_sha256 == result.record["model_sha256"] != load(vanilla).model_sha256
    assert not list(ws.path("models").glob(".*"))
    assert ws.journal_entries()[-1]["model"] == "mmunlearner.default"


def test_record_counts_what_moved_as_the_files_say(ws: Workspace) -> None:
    result = apply(ws, "mmunlearner")
    mask, bits = Mask.load(ws.mask_path("default")), changed(ws, "vanilla", result.model)
    for group, moved in result.moved.items():
        names = [name for name in mask.names if mask.addresses[name].group == group]
        assert moved.inside == sum(int((bits[name] & mask[name]).sum()) for name in names)
        assert moved.outside == sum(int((bits[name] & ~mask[name]).sum()) for name in names)
        assert moved.inside_total == sum(int(mask[name].sum()) for name in names)
        assert moved.inside_total + moved.outside_total == sum(mask[name].size for name in names)
    assert result.moved["vision"].changed == 0
    assert min(result.moved[group].inside for group in ("lm", "connector")) > 0
    record = result.record
    # 4 forget samples in batches of 2, twice; one retain batch of 2 a step
    assert record["steps"] == {"planned": 4, "done": 4, "forget": 4, "retain": 4}
    assert record["samples"] == {"forget": 8, "retain": 8}
    assert [set(losses) for losses in record["losses"]] == [{"forget", "retain", "norm"}] * 4
    assert record["provenance"]["inputs"]["mask"]["content_sha256"] == mask.content_sha256
    assert "time" not in json.dumps(record)


@pytest.mark.parametrize(
    ("method", "options", "claim"),
    [
        ("mmunlearner", {"scope": "all"}, "mask"),
        ("mmunlearner", {"scope": "forget"}, "modules"),
        ("ga", {"mask": "default"}, "mask"),
        ("npo", {"mask": "default", "scope": "all"}, "mask"),
        ("ga_diff", {}, "none"),
    ],
)
def test_claims_by_scope(ws: Workspace, method: str, options: dict[str, Any], claim: str) -> None:
    result = apply(ws, method, **options)
    assert result.claim == claim
    proof = verify(ws, result.model)
    assert proof.ok
    assert proof.groups == result.moved
    outside = sum(moved.outside for moved in proof.groups.values())
    assert (outside == 0) == (claim != "modules")
    if claim == "none":
        assert all(moved.inside > 0 for moved in proof.groups.values())


def test_the_same_command_gives_the_same_bytes_and_is_up_to_date(ws: Workspace) -> None:
    first = apply(ws, "kl_min", mask="default")
    before = contents(first.path)
    with ws.lock():  # what is there is found while another command works on the workspace
        again = apply(ws, "kl_min", mask="default")
    assert again.up_to_date
    assert again.moved == first.moved
    assert apply(ws, "kl_min", mask="default", force=True).up_to_date is False
    assert contents(first.path) == before


def test_another_result_under_the_name_needs_force(ws: Workspace) -> None:
    apply(ws, "ga")
    with pytest.raises(Mismatch, match=r"'ga' exists, made with other learning_rate .*--force"):
        apply(ws, "ga", learning_rate=1e-3)
    assert apply(ws, "ga", learning_rate=1e-3, force=True).record["provenance"]["settings"]["learning_rate"] == 1e-3


def test_a_killed_run_goes_on_to_the_same_bytes(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = contents(apply(ws, "npo", mask="default", name="whole").path)

    class Killed(BaseException):
        pass

    def due(self: Snapshots) -> bool:
        return True

    clip, calls = loop._clip, iter(range(100))

    def dying(*arguments: Any) -> float:
        if next(calls) == 2:
            raise Killed
        return clip(*arguments)

    monkeypatch.setattr(Snapshots, "due", due)
    monkeypatch.setattr(loop, "_clip", dying)
    with pytest.raises(Killed):
        apply(ws, "npo", mask="default", name="cut")
    assert not ws.model_dir("cut").exists()
    assert len(list(ws.path("models").glob(".resume-cut/step-*"))) == 2
    with pytest.raises(
        Mismatch, match=r"\.resume-cut holds an interrupted run with other seed 0 -> 1 - next"
    ):  # case 66
        apply(ws, "npo", mask="default", name="cut", seed=1)
    monkeypatch.setattr(loop, "_clip", clip)
    resumed = contents(apply(ws, "npo", mask="default", name="cut").path)
    assert resumed["model.safetensors"] == undisturbed["model.safetensors"]
    records = [json.loads(files["mmsurgery-run.json"]) for files in (resumed, undisturbed)]
    assert records[0]["losses"] == records[1]["losses"]
    assert not list(ws.path("models").glob(".resume-*"))


def test_scores_along_the_run(ws: Workspace, tiny: Any) -> None:
    curve = apply(ws, "ga", eval_every=3).record["evaluations"]
    assert [point["step"] for point in curve] == [0, 3, 4]
    scored = score(load(ws.model_dir("ga")), tiny.items(None, "forget_vqa"))
    assert all(list(point["columns"]) == list(point["correct"]) == ["forget_vqa"] for point in curve)
    for point in curve:
        assert point["columns"]["forget_vqa"] == bin(int(point["correct"]["forget_vqa"], 16)).count("1") / 2
    # two items: the low bit is the first
    assert int(curve[-1]["correct"]["forget_vqa"], 16) == scored[0].correct + 2 * scored[1].correct
    plain = apply(ws, "ga", name="plain")
    assert plain.record["losses"] == json.loads((ws.model_dir("ga") / "mmsurgery-run.json").read_text())["losses"]
    assert plain.record["model_sha256"] == load(ws.model_dir("ga")).model_sha256


def test_npo_takes_another_reference_and_kl_does_not(ws: Workspace) -> None:
    apply(ws, "ga", name="other")
    shutil.copytree(ws.model_dir("other"), ws.model_dir("reference"))
    vanilla, oracle = (apply(ws, "npo", reference=r, name=f"npo-{r}").record for r in ("vanilla", "reference"))
    assert oracle["losses"][0]["forget"] != vanilla["losses"][0]["forget"]
    assert (vanilla["reference"], oracle["reference"]) == ("vanilla", "reference")
    with pytest.raises(UsageError, match="kl_min takes no reference model"):
        apply(ws, "kl_min", reference="reference")


def test_starting_from_another_model_kl_still_refers_to_vanilla(ws: Workspace) -> None:
    apply(ws, "ga", mask="default", name="first")
    second = apply(ws, "kl_min", mask="default", start="first", name="second")
    assert second.record["losses"][0]["retain"] > 1e-3
    assert second.record["start"] == "first"
    assert verify(ws, "second").ok


def test_what_verify_cannot_do_has_a_next_step(ws: Workspace) -> None:
    with pytest.raises(MissingArtifact, match=r"mmsurgery did not make this model - next: "):
        verify(ws, "vanilla")
    apply(ws, "mmunlearner")
    ws.mask_path("default").unlink()
    with pytest.raises(MissingArtifact, match=r"mask 'default', .* is gone - next: make it again: mmsurgery mask"):
        verify(ws, "mmunlearner.default")


@pytest.mark.parametrize(("scope", "strict"), [("forget", False), ("all", True)])
def test_official_protocol_under_a_mask(
    ws: Workspace, scope: str, strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 forget and 5 retain samples in batches of 2: 2 and 3 batches, so one forget step before each of the
    first two retain steps."""
    held, hold = [], MaskedUpdate.hold

    def holding(self: MaskedUpdate) -> None:
        held.append(self)
        hold(self)

    monkeypatch.setattr(MaskedUpdate, "hold", holding)
    result = apply(ws, "ga_diff", mask="default", scope=scope, protocol="official")
    assert len(held) == 4  # each forget step
    assert [sorted(losses.keys() - {"norm"}) for losses in result.record["losses"]] == [
        [kind] for kind in ["forget", "retain"] * 2 + ["retain"]
    ] * 2
    assert result.record["steps"] == {"planned": 10, "done": 10, "forget": 4, "retain": 6}
    assert result.record["samples"] == {"forget": 8, "retain": 10}
    assert result.record["provenance"]["settings"]["protocol"] == result.record["protocol"] == "official"
    assert result.claim == ("mask" if strict else "modules")
    assert (sum(moved.outside for moved in result.moved.values()) == 0) == strict
    assert verify(ws, result.model).ok
    with pytest.raises(Mismatch, match="made with other protocol"):
        apply(ws, "ga_diff", mask="default", scope=scope)


def test_distributions_too_large_to_keep_are_computed_along_the_run(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"mask": "default", "start": "first"}
    apply(ws, "ga", name="first")
    kept = apply(ws, "kl_min", name="kept", **options).record["losses"]
    monkeypatch.setattr("mmsurgery.unlearn.references.CACHE", 0)
    live = apply(ws, "kl_min", name="live", **options).record["losses"]
    assert kept[0]["retain"] > 1e-3
    for one, other in zip(kept, live, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_the_size_of_the_distributions(ws: Workspace, tiny: Any) -> None:
    """4 bytes for each word of the vocabulary and each answer token, two repeated samples counted once."""
    loaded, samples = load(ws.model_dir("vanilla")), tiny.sets["retain_vqa"]
    kept = retain_distribution(loaded, samples, [3, 0, 3], batch_size=2, progress=SILENT)
    assert distribution_bytes(loaded, samples, [3, 0, 3]) == sum(t.numel() * 4 for t in kept.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ga_dif"}, "did you mean 'ga_diff'"),
        ({"scope": "some"}, "no scope 'some'"),
        ({"mask": "defalt"}, "did you mean 'default'"),
        ({"start": "vanila"}, "did you mean 'vanilla'"),
        ({"reference": "gold"}, "no reference model 'gold'"),
        ({"name": "vanilla"}, "cannot be named 'vanilla'"),
        ({"name": "../x"}, "cannot name an artifact"),
        ({"forget_weight": 0.0}, "forget weight is 0.0"),
        ({"forget_weight": float("nan")}, "forget weight is nan"),
        ({"retain_batch": 0}, "retain batch is 0"),
        ({"learning_rate": -1.0}, "learning rate is -1.0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"eval_every": -1}, "eval every is -1"),
        ({"epochs": 10**9}, "1,000,000,000 epochs are 2,000,000,000 steps"),
        ({"protocol": "offical"}, "did you mean 'official'"),
        ({"method": "ga", "retain_batch": 4}, "ga takes no retain data - next: leave --retain-batch out"),
        ({"scope": "all"}, "none is given - next: pass --mask, or leave --scope out"),
    ],
)
def test_wrong_arguments(ws: Workspace, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        apply(ws, **{"method": "ga_diff", **options})
    assert caught.value.next_step
    assert ws.models() == ["vanilla"]


def test_without_a_mask_to_take(ws: Workspace) -> None:
    ws.mask_path("default").unlink()
    with pytest.raises(MissingArtifact, match=r"no mask 'default' .*mmsurgery mask --beta 1"):
        apply(ws, "mmunlearner")


def test_data_that_cannot_be_used(ws: Workspace, tiny: Any) -> None:
    whole = dict(tiny.sets)
    tiny.sets["forget_vqa"] = []
    with pytest.raises(UnusableData, match="forget_vqa is empty"):
        apply(ws, "ga")
    tiny.sets = {**whole, "retain_vqa": whole["retain_vqa"][:1]}
    with pytest.raises(UnusableData, match="retain set has 1 samples, a batch takes 2"):
        apply(ws, "ga_diff")
    tiny.sets = {**whole, "retain_vqa": [*whole["retain_vqa"], whole["forget_vqa"][0]]}
    with pytest.raises(UnusableData, match="1 retain samples are of forget people or pictures, such as "):
        apply(ws, "ga_diff")
    assert ws.models() == ["vanilla"]


def test_masks_of_other_models_are_refused_before_weights_are_loaded(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_nothing(*arguments: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("mmsurgery.backbones.loading.load", load_nothing)
    mask = Mask.load(ws.mask_path("default"))
    base = {"model_type": "llava", "model_sha256": "0" * 64}
    empty = {n: replace(p, bits=np.zeros_like(p.bits)) for n, p in mask.parameters.items()}
    name = mask.names[0]
    other = MaskParameter((3,), mask.addresses[name], pack(np.ones(3, bool)))
    for bad, error, message in (
        (replace(mask, base=base), Mismatch, "built for weights 00000000, model 'vanilla' has"),
        (replace(mask, parameters={**mask.parameters, name: other}), Mismatch, rf"{name}: mask \[3\]"),
        (replace(mask, parameters=empty), UnusableData, "selects 0 of"),
    ):
        bad.write(ws.mask_path("bad"))
        with pytest.raises(error, match=message):
            apply(ws, "ga", mask="bad")


def test_a_mask_built_for_vanilla_fits_what_was_made_from_it_and_one_of_that_model_too(ws: Workspace) -> None:
    apply(ws, "ga", mask="default", name="first")
    mask = Mask.load(ws.mask_path("default"))
    base = {"model_type": "llava", "model_sha256": load(ws.model_dir("first")).model_sha256}
    replace(mask, base=base).write(ws.mask_path("own"))
    assert apply(ws, "ga", mask="own", start="first", name="second").claim == "mask"
    with pytest.raises(Mismatch, match="built for weights"):
        apply(ws, "ga", mask="own")


def test_divergence_saves_nothing(ws: Workspace) -> None:
    edit(ws.model_dir("vanilla") / "model.safetensors", "lm_head.weight", lambda values: values.fill(3e38))
    with pytest.raises(UnusableData, match=r"step 1: the forget loss is .*\(samples forget\d, forget\d\)"):
        apply(ws, "ga")
    assert ws.models() == ["vanilla"]


def test_a_full_disk_is_noticed_before_training(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(MachineFault, match="1 are free"):
        apply(ws, "ga")


def test_half_precision_checkpoints_are_trained_in_float32_and_saved_in_their_dtype(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ws.model_dir("vanilla") / "model.safetensors"
    header = read_header(path)
    halves = {name: read_tensor(path, info).astype("<f2") for name, info in header.tensors.items()}
    write_safetensors(path, halves, header.metadata)
    config = json.loads((path.parent / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float16"
    (path.parent / "config.json").write_text(json.dumps(config))
    result = apply(ws, "ga")
    saved = read_header(result.path / "model.safetensors")
    assert {info.dtype for info in saved.tensors.values()} == {"F16"}
    assert all(moved.inside > 0 for moved in result.moved.values())
    restore = MaskedUpdate.restore

    def too_large_for_float16(update: MaskedUpdate) -> None:
        restore(update)
        update.trainable["lm_head.weight"].data[0, 0] = 1e5

    monkeypatch.setattr(MaskedUpdate, "restore", too_large_for_float16)
    with pytest.raises(UnusableData, match=r"lm_head\.weight is not finite as F16; nothing is kept"):
        apply(ws, "ga", name="large")
    assert "large" not in ws.models()


def edit(path: Path, name_ends: str, change: Callable[[np.ndarray], None]) -> None:
    """Change one tensor of a file in place."""
    header = read_header(path)
    tensors = {name: read_tensor(path, info).copy() for name, info in header.tensors.items()}
    change(next(values for name, values in tensors.items() if name.endswith(name_ends)))
    write_safetensors(path, tensors, header.metadata)


def flip(path: Path, name_ends: str, index: int) -> None:
    """Flip the lowest bit of one weight of a file."""

    def change(values: np.ndarray) -> None:
        values.reshape(-1).view(np.uint32)[index] ^= 1

    edit(path, name_ends, change)


def test_verify_refuses_weights_that_the_run_did_not_write(ws: Workspace) -> None:
    result = apply(ws, "ga", mask="default")
    flip(result.path / "model.safetensors", "lm_head.weight", 5)
    with pytest.raises(InputRefused, match="not those its run wrote"):
        verify(ws, result.model)
    with pytest.raises(InputRefused, match="not those its run wrote"):
        apply(ws, "ga", mask="default")


def test_verify_refuses_a_record_or_an_origin_that_changed(ws: Workspace) -> None:
    result = apply(ws, "ga", mask="default")
    record = result.path / "mmsurgery-run.json"
    original = record.read_bytes()
    record.write_bytes(original.replace(b'"claim":"mask"', b'"claim":"none"'))
    with pytest.raises(InputRefused, match="changed or damaged"):
        verify(ws, result.model)
    record.write_bytes(original)
    mask = Mask.load(ws.mask_path("default"))
    (~mask).restrict("lm,connector").write(ws.mask_path("default"))
    with pytest.raises(Mismatch, match="mask 'default' has changed"):
        verify(ws, result.model)
    mask.write(ws.mask_path("default"))
    assert verify(ws, result.model).ok
    flip(ws.model_dir("vanilla") / "model.safetensors", "lm_head.weight", 5)
    with pytest.raises(Mismatch, match="'vanilla' has changed"):
        verify(ws, result.model)
    with pytest.raises(MissingArtifact, match=r"has no mmsurgery-run\.json"):
        verify(ws, "vanilla")


@pytest.mark.parametrize("where", ["outside", "frozen", "nan"])
def test_a_broken_claim_is_found_in_the_files(ws: Workspace, where: str) -> None:
    """One bit in one weight is enough; the comparison works on any block size."""
    result = apply(ws, "ga", mask="default")
    family, mask = backbone("llava"), Mask.load(ws.mask_path("default"))
    path = result.path / "model.safetensors"
    before = CheckpointFiles(ws.model_dir("vanilla"), family.canonical)
    if where == "nan":
        edit(path, "lm_head.weight", lambda values: np.place(values, mask["lm_head.weight"], np.nan))
    else:
        name = "lm_head.weight" if where == "outside" else "embeddings.patch_embedding.weight"
        outside = np.flatnonzero(~mask["lm_head.weight"]) if where == "outside" else [7]
        flip(path, name, int(outside[-1]))
    found = compare(before, CheckpointFiles(result.path, family.canonical), mask, family.address)
    faults = found.faults("mask", mask)
    expected = {"outside": "1 weights outside the mask moved", "frozen": "1 weights of a frozen", "nan": "holds NaN"}
    assert len(faults) == 1
    assert expected[where] in faults[0]
    assert bool(found.faults("modules", mask)) == (where != "outside")
    assert bool(found.faults("none", mask)) == (where == "nan")


def test_comparison_does_not_depend_on_the_block_size(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    result = apply(ws, "mmunlearner")
    monkeypatch.setattr("mmsurgery.unlearn.verify.BLOCK", 64)
    assert verify(ws, result.model).groups == result.moved


def test_a_model_that_fails_its_audit_is_not_kept(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop whose masking does nothing: the files are held against the mask, not the loop against itself."""
    select = Selection.__init__
    monkeypatch.setattr(Selection, "__init__", lambda self, bits, *rest: select(self, np.roll(bits, 1), *rest))
    with pytest.raises(InternalError, match=r"audit of 'ga\.default' failed"):
        apply(ws, "ga", mask="default")
    assert ws.models() == ["vanilla"]


def test_sharded_checkpoints_keep_their_shards(ws: Workspace) -> None:
    folder = ws.model_dir("vanilla")
    whole = apply(ws, "ga", mask="default", name="whole")
    header = read_header(folder / "model.safetensors")
    names = sorted(header.tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, inside in shards.items():
        tensors = {name: read_tensor(folder / "model.safetensors", header.tensors[name]) for name in inside}
        write_safetensors(folder / file, tensors, header.metadata)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {name: file for file, inside in shards.items() for name in inside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = apply(ws, "ga", mask="default", name="sharded")
    assert {path.name for path in sharded.path.glob("*.safetensors*")} == {*shards, "model.safetensors.index.json"}
    assert sharded.record["model_sha256"] == whole.record["model_sha256"]


def test_a_link_out_of_the_checkpoint_is_not_copied(ws: Workspace, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    (ws.model_dir("vanilla") / "merges.txt").symlink_to(secret)
    with pytest.raises(InputRefused, match="leads out of the checkpoint"):
        apply(ws, "ga")


def test_mask_of_another_forget_set(
    ws: Workspace, tiny: Any, random_mask: Callable[..., Mask], loaded_llava: Loaded
) -> None:
    """A mask says what was forgotten when it was measured; one measured on other people is refused (case 29)."""
    now, before = (data_sha256(tiny.sets[part]) for part in ("forget_vqa", "retain_vqa"))
    for digest, name in ((now, "now"), (before, "before")):
        parent = {"kind": "saliency", "part": "forget_vqa", "data_sha256": digest}
        random_mask(loaded_llava, "lm", parents=(parent,)).save(ws.mask_path(name))
    apply(ws, "ga", mask="now")
    with pytest.raises(Mismatch, match=f"another forget set, {before[:8]}, than .* now, {now[:8]}"):
        apply(ws, "ga", mask="before")


def test_a_mask_measured_on_scored_text_marks_the_model_and_what_follows(
    ws: Workspace, random_mask: Callable[..., Mask], loaded_llava: Loaded
) -> None:
    random_mask(loaded_llava, "lm", counts={"scored_text": 5}).save(ws.mask_path("leaking"))
    random_mask(loaded_llava, "lm").save(ws.mask_path("clean"))
    assert apply(ws, "ga", mask="leaking", name="first").record["scored_text"] == 5
    assert "scored_text" not in apply(ws, "ga", mask="clean").record
    assert apply(ws, "ga", start="first", name="second").record["scored_text"] == 5


def test_a_run_that_ends_early_has_what_the_longer_one_had_there(ws: Workspace) -> None:
    whole = apply(ws, "ga_diff", name="whole", eval_every=1)
    steps = whole.record["steps"]["done"]
    assert steps > 2
    early = apply(ws, "ga_diff", name="early", eval_every=1, steps=2)
    assert early.record["steps"] == {**whole.record["steps"], "planned": 2, "done": 2, "forget": 2, "retain": 2}
    assert early.record["losses"] == whole.record["losses"][:2]
    assert early.record["evaluations"] == whole.record["evaluations"][:3]
    assert verify(ws, "early").ok
    all_of_them = apply(ws, "ga_diff", name="all-of-them", eval_every=1, steps=steps)
    assert contents(all_of_them.path)["model.safetensors"] == contents(whole.path)["model.safetensors"]
    with pytest.raises(Mismatch, match="steps"):
        apply(ws, "ga_diff", name="early", eval_every=1, steps=1)
    with pytest.raises(UsageError, match=f"{steps + 1} steps are asked for"):
        apply(ws, "ga_diff", name="too-long", steps=steps + 1)
    with pytest.raises(UsageError, match="steps is 0"):
        apply(ws, "ga_diff", name="none", steps=0)
