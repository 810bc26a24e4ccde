"""What `inspect` says of masks, saliency maps, checkpoints and records."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsurgery.artifacts.files import write_json
from mmsurgery.artifacts.mask import Mask, MaskParameter, pack
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.artifacts.tensors import write_safetensors
from mmsurgery.errors import InputRefused, Mismatch, MissingArtifact, UnusableData, UsageError
from mmsurgery.look import Inspection
from mmsurgery.masks.inspect import describe, heatmaps, mask_heatmaps, overlap, saliency_summary
from mmsurgery.names import Address
from mmsurgery.provenance import SCHEMA, provenance, seal
from mmsurgery_cli.output import Output
from mmsurgery_cli.show.looking import inspected

BASE = {"model_type": "llava", "model_sha256": "m" * 64}


def mask_of(values: dict[str, np.ndarray], modules: str = "lm,connector", **changes: Any) -> Mask:
    """Names are `address_suffix`."""
    parameters = {n: MaskParameter(v.shape, Address.parse(n.partition("_")[0]), pack(v)) for n, v in values.items()}
    made = {"rule": "ratio", "beta": 1.0, "estimator": "sample", "mixture": "pooled", "base": BASE}
    return Mask(modules=modules, parameters=parameters, **(made | changes))


VALUES = {
    "lm.0.attn.q_w": np.array([[1, 1, 0, 0]], bool),
    "lm.0.attn.q_b": np.array([1, 1, 0, 1], bool),
    "lm.1.mlp.up_w": np.zeros(3, bool),
    "lm.embed_w": np.array([1, 0], bool),
    "connector.proj_w": np.array(True),
    "vision.0.norm_w": np.zeros(5, bool),
}


def test_mask(tmp_path: Path) -> None:
    mask = mask_of(
        VALUES,
        counts={"selected": 7, "total": 19, "zero_over_zero": 2},
        parents=({"kind": "saliency", "part": "forget_vqa"},),
    )
    mask.save(tmp_path / "one.safetensors")
    described = describe(tmp_path / "one.safetensors")
    assert described["kind"] == "mask"
    assert (described["selected"], described["total"], described["parameters"]) == (7, 19, 6)
    assert described["density"] == 7 / 19
    assert described["in_modules"] == {"total": 14, "density": 0.5}
    assert described["by_group"] == {
        "connector": {"selected": 1, "total": 1, "density": 1.0, "frozen": False},
        "lm": {"selected": 6, "total": 13, "density": 6 / 13, "frozen": False},
        "vision": {"selected": 0, "total": 5, "density": 0.0, "frozen": True},
    }
    assert list(described["by_group"]) == ["vision", "connector", "lm"]
    assert list(described["by_layer"]) == ["vision.0", "connector", "lm.0", "lm.1", "lm"]
    assert described["by_layer"]["lm.0"]["density"] == 5 / 8
    assert described["by_layer"]["lm"]["density"] == 0.5
    assert described["by_component"]["lm.0.attn.q"] == {"selected": 5, "total": 8, "density": 5 / 8, "frozen": False}
    assert described["counts"]["zero_over_zero"] == 2
    assert described["model_sha256"] == "m" * 64
    assert described["content_sha256"] == mask.content_sha256
    assert json.loads(json.dumps(described, allow_nan=False)) == described


def test_heatmaps_leave_out_what_is_outside_the_modules() -> None:
    connector, lm = mask_heatmaps(mask_of(VALUES))
    assert (connector.title, connector.rows, connector.columns) == ("connector", ["none"], ["proj"])
    assert (lm.rows, lm.columns) == (["0", "1", "none"], ["attn.q", "mlp.up", "embed"])
    nan = math.nan
    assert np.array_equal(lm.values, [[5 / 8, nan, nan], [nan, 0.0, nan], [nan, nan, 0.5]], equal_nan=True)
    assert [h.title for h in mask_heatmaps(mask_of(VALUES, modules="lm.0"))] == ["lm"]


def test_overlap_and_what_chance_gives(tmp_path: Path) -> None:
    # tensors of 4 and 8; shared 1 and 2. By chance: 2*2/4 + 4*4/8 = 3 of 12 - 3 = 9 weights
    one = {"lm.0.attn.q_w": np.array([1, 1, 0, 0], bool), "lm.1.attn.q_w": np.array([1, 1, 1, 1, 0, 0, 0, 0], bool)}
    two = {"lm.0.attn.q_w": np.array([0, 1, 1, 0], bool), "lm.1.attn.q_w": np.array([0, 0, 1, 1, 1, 1, 0, 0], bool)}
    a, b = mask_of(one, "lm"), mask_of(two, "lm")
    expected = {"both": 3, "either": 9, "iou": 3 / 9, "iou_by_chance": 3 / 9}
    assert overlap(a, b) == {**expected, "by_group": {"lm": expected}}
    assert overlap(a, a)["iou"] == 1.0
    assert overlap(a, mask_of({n: np.zeros_like(v) for n, v in one.items()}, "lm"))["iou"] == 0.0
    for name, mask in (("a", a), ("b", b), ("c", a)):
        mask.save(tmp_path / f"{name}.safetensors")
    others = [tmp_path / "b.safetensors", tmp_path / "c.safetensors"]
    found = describe(tmp_path / "a.safetensors", others=others)["overlaps"]
    assert [(each["with"], each["iou"]) for each in found] == [("b", 3 / 9), ("c", 1.0)]


def test_overlap_by_group_adds_up() -> None:
    flipped = mask_of({name: ~values for name, values in VALUES.items()}, "vision,connector,lm")
    both = mask_of(VALUES) | flipped
    found = overlap(mask_of(VALUES), both)
    assert list(found["by_group"]) == ["vision", "connector", "lm"]
    assert found["by_group"]["lm"]["both"] == 6
    assert found["by_group"]["vision"] == {"both": 0, "either": 5, "iou": 0.0, "iou_by_chance": 0.0}
    assert sum(entry["either"] for entry in found["by_group"].values()) == found["either"] == 19


def test_chance_is_what_random_masks_have() -> None:
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(400):
        one, two = (np.zeros(200, bool), np.zeros(200, bool))
        one[generator.permutation(200)[:60]] = True
        two[generator.permutation(200)[:90]] = True
        rows.append(overlap(mask_of({"lm.embed_w": one}, "lm"), mask_of({"lm.embed_w": two}, "lm")))
    mean = np.mean([row["iou"] for row in rows])
    # expected 27 shared of 123: 0.2195; the mean of 400 has a standard error of about 0.0015
    assert rows[0]["iou_by_chance"] == 27 / 123
    assert abs(mean - 27 / 123) < 0.007


def test_masks_of_different_models_have_no_overlap() -> None:
    with pytest.raises(Mismatch):
        overlap(mask_of(VALUES), mask_of(VALUES, base={**BASE, "model_sha256": "x" * 64}))


def saliency(arrays: dict[str, np.ndarray], **changes: Any) -> SaliencyMap:
    values = {"part": "forget_vqa", "estimator": "sample", "batch_size": None, "units": 4, "data_sha256": "d" * 64}
    return SaliencyMap(**(values | BASE | {"arrays": arrays, "no_gradient": {}} | changes))


def test_saliency(tmp_path: Path) -> None:
    arrays = {
        "model.language_model.layers.0.mlp.up_proj.weight": np.array([[0, 4], [8, 12]], np.float32),
        "model.vision_tower.encoder.layers.1.mlp.fc1.bias": np.array([16, 0, 0], np.float32),
    }
    saliency(arrays, no_gradient={"lm_head.weight": (2, 2)}).save(tmp_path / "forget_vqa")
    described = describe(tmp_path / "forget_vqa")
    assert described["kind"] == "saliency"
    assert (described["part"], described["units"], described["parameters"]) == ("forget_vqa", 4, 3)
    assert described["no_gradient"] == ["lm_head.weight"]
    assert set(described["groups"]) == {"lm", "vision"}
    lm = described["groups"]["lm"]
    assert (lm["weights"], lm["zeros"], lm["mean"], lm["no_gradient"]) == (4, 1, 1.5, 1)
    assert described["groups"]["vision"]["no_gradient"] == 0
    vision, language = heatmaps(described)
    assert (language.log, language.values.tolist(), vision.values.tolist()) == (True, [[1.5]], [[4 / 3]])
    assert [(step["what"], step["sha256"]) for step in described["origin"]] == [
        ("model", "m" * 64),
        ("data", "d" * 64),
    ]
    json.dumps(described, allow_nan=False)


@pytest.mark.parametrize("estimator", ["sample", "dataset"])
def test_quantiles_are_those_of_all_weights(estimator: str) -> None:
    generator = np.random.default_rng(0)
    sums = {
        f"p{i}": (generator.normal(size=999) * 10.0 ** generator.integers(-12, 3)).astype(np.float32) for i in range(4)
    }
    if estimator == "sample":
        sums = {name: np.abs(values) for name, values in sums.items()}
    sums["p0"][:50] = 0
    one = saliency(sums, estimator=estimator, units=7)
    everything = np.sort(np.concatenate([one.saliency(name) for name in sums]))
    summary = saliency_summary(one, sorted(sums))
    assert summary["weights"] == everything.size
    assert summary["zeros"] == 50
    assert summary["mean"] == pytest.approx(everything.mean(), rel=1e-9)
    for share, value in summary["quantiles"].items():
        exact = everything[math.ceil(float(share) * everything.size) - 1]
        assert value == pytest.approx(exact, rel=1 / 500), share
    assert summary["quantiles"]["0.01"] == 0.0


def test_values_that_are_no_saliency() -> None:
    for value in (math.nan, math.inf, -1.0):
        with pytest.raises(UnusableData, match="forget_vqa"):
            saliency_summary(saliency({"p": np.array([1.0, value], np.float32)}), ["p"])


def test_checkpoint(tmp_path: Path) -> None:
    tensors = {
        "lm_head.weight": np.zeros((3, 2), np.float32),
        "model.multi_modal_projector.linear_1.bias": np.ones(5, np.float32),
    }
    write_safetensors(tmp_path / "model.safetensors", tensors, {})
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    described = describe(tmp_path)
    assert described["kind"] == "checkpoint"
    assert (described["total"], described["parameters"], described["run"]) == (11, 2, None)
    assert described["counts"] == {"connector": 5, "lm": 6}
    run = seal(
        {
            "schema": SCHEMA,
            "kind": "run",
            "method": "npo",
            "model_sha256": described["model_sha256"],
            "provenance": provenance("apply", {}, {}),
        }
    )
    write_json(tmp_path / "mmsurgery-run.json", run)
    assert describe(tmp_path)["run"] == run
    write_json(tmp_path / "mmsurgery-run.json", {**run, "method": "ga"})
    with pytest.raises(InputRefused):
        describe(tmp_path)


def test_record(tmp_path: Path) -> None:
    record = seal({"schema": SCHEMA, "kind": "eval", "model": "x", "provenance": provenance("eval", {}, {})})
    write_json(tmp_path / "x.json", record)
    assert describe(tmp_path / "x.json") == {**record, "origin": []}
    write_json(tmp_path / "x.json", {**record, "model": "y"})
    with pytest.raises(InputRefused, match="changed"):
        describe(tmp_path / "x.json")


def test_nothing_of_ours(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact) as caught:
        describe(tmp_path / "none")
    assert caught.value.next_step
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputRefused):
        describe(tmp_path / "empty")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(InputRefused, match="nothing that mmsurgery writes"):
        describe(tmp_path / "list.json")
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(InputRefused):
        describe(tmp_path / "text.txt")
    mask_of(VALUES).save(tmp_path / "mask.safetensors")
    with pytest.raises(UsageError, match="no mask"):
        describe(tmp_path / "list.json", others=[tmp_path / "mask.safetensors"])
    with pytest.raises(UsageError, match=r"list\.json is no mask"):
        describe(tmp_path / "mask.safetensors", others=[tmp_path / "list.json"])


def test_a_mask_of_no_layer_group_is_described(tmp_path: Path) -> None:
    mask_of(VALUES).restrict("connector").save(tmp_path / "m.safetensors")
    assert describe(tmp_path / "m.safetensors")["in_modules"]["total"] == 1


def test_what_the_modules_leave_out_is_frozen_and_what_they_name_is_not(tmp_path: Path) -> None:
    mask_of(VALUES).restrict("lm.0-1").save(tmp_path / "m.safetensors")
    described = describe(tmp_path / "m.safetensors")
    frozen = {
        key: [name for name, entry in described[key].items() if entry["frozen"]] for key in ("by_group", "by_layer")
    }
    assert frozen == {"by_group": ["vision", "connector"], "by_layer": ["vision.0", "connector", "lm"]}
    assert described["by_layer"]["lm.1"] == {"selected": 0, "total": 3, "density": 0.0, "frozen": False}


def test_the_table_says_frozen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask_of(VALUES).save(tmp_path / "m.safetensors")
    path = tmp_path / "m.safetensors"
    Output().show(*inspected(Inspection(path, describe(path), [])))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["vision", "0", "5", "frozen"] in rows
    assert ["lm", "6", "13", "46.2"] in rows


def test_a_request_says_how_many_people_it_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "request.json"
    record = {"schema": SCHEMA, "kind": "request", "people": ["person-1", "person-2"], "provenance": {}}
    write_json(path, seal(record))
    described = describe(path)
    assert described["people_named"] == 2
    Output().show(*inspected(Inspection(path, described, [])))
    assert ["people_named", "2"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    for people in ([], "person-1", [1], None):
        write_json(path, seal({**record, "people": people}))
        with pytest.raises(InputRefused, match=r"request\.json: people"):
            describe(path)


@pytest.mark.parametrize("name", ["pipe", "pipe.json", "pipe.safetensors"])
def test_a_pipe_is_no_artifact(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    mask_of(VALUES).save(tmp_path / "mask.safetensors")
    for path, others in ((tmp_path / name, []), (tmp_path / "mask.safetensors", [tmp_path / name])):
        with pytest.raises(InputRefused, match="is a pipe, a device or a socket") as caught:
            describe(path, others=others)
        assert caught.value.next_step


def test_a_device_is_no_artifact() -> None:
    with pytest.raises(InputRefused, match="/dev/null is a pipe, a device or a socket"):
        describe(Path("/dev/null"))
