"""docs/schemas against artifacts as written and against broken ones; examples/read_artifacts.py against ours."""

from __future__ import annotations

import copy
import json
import runpy
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from mmsurgery.artifacts import mask_metadata, saliency_map
from mmsurgery.artifacts import patch as patch_module
from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.mask import Mask, MaskParameter, pack
from mmsurgery.backbones.discovery import backbone
from mmsurgery.backbones.loading import device_name, load
from mmsurgery.diff import diff
from mmsurgery.evaluate import asked as evaluating
from mmsurgery.evaluate import evaluate
from mmsurgery.masks.rule import ratio_mask
from mmsurgery.names import Address
from mmsurgery.patches.make import create
from mmsurgery.portraits import shipped
from mmsurgery.provenance import sha256_json
from mmsurgery.saliency.measure import measure_saliency
from mmsurgery.settings import Settings
from mmsurgery.unlearn import request as requesting
from mmsurgery.unlearn import train_run as applying
from mmsurgery.unlearn.apply import apply
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.workspace import Workspace

ROOT = Path(__file__).parents[2]
READER = ROOT / "examples/read_artifacts.py"
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "docs/schemas").glob("*.json"))}
SCHEMAS.pop("stability")  # whose record takes a second: tests/unlearn/test_stability.py
SCHEMAS.pop("audit")  # tests/audit
SCHEMAS.pop("experiment")  # tests/experiments/test_experiment_results.py
ITEM = {"$ref": "#/$defs/item", "$defs": SCHEMAS["eval"]["$defs"]}


def metadata(path: Path) -> Any:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["mmsurgery"])


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory, tiny_qwen2_vl: Path, make_benchmark: Callable[[], Any]) -> Workspace:
    """A workspace with one of everything, tied head and parameters without gradient included."""
    tiny = make_benchmark()
    ws = Workspace(tmp_path_factory.mktemp("formats"), Settings(recipe=tiny.recipe))
    shutil.copytree(tiny_qwen2_vl, ws.model_dir("vanilla"))
    loaded = load(ws.model_dir("vanilla"))
    maps = {part: measure_saliency(loaded, tiny.sets[part], part=part) for part in tiny.sets}
    maps["batches"] = measure_saliency(loaded, tiny.sets["forget_vqa"], part="batches", estimator="batch", batch_size=2)
    for part, found in maps.items():
        found.save(ws.saliency_dir(part))
    mask = ratio_mask(maps["forget_vqa"], maps["retain_vqa"], modules="lm,connector", address=loaded.backbone.address)
    mask.write(ws.mask_path("default"))
    (mask & ~mask.restrict("lm.0")).write(ws.mask_path("upper"))
    with pytest.MonkeyPatch.context() as patch:
        for module in (requesting, applying, evaluating):
            patch.setattr(module, "benchmark", lambda name: tiny)
        apply(ws, "mmunlearner", eval_every=2)
        apply(ws, "npo", mask="upper", lora=LoRA(rank=2))
        apply(ws, "ga_diff", protocol="official")
        evaluate(ws, ["npo.upper"])
    diff(ws, "vanilla", "npo.upper")
    diff(ws, "vanilla", "ga_diff", list_=5)
    create(ws, "npo.upper")
    create(ws, "mmunlearner.default")
    return ws


def found(ws: Workspace, kind: str) -> list[Any]:
    """The records of a kind, as JSON."""
    if kind in ("mask", "patch"):
        return [metadata(path) for path in ws.path(f"{kind}s" if kind == "mask" else "patches").glob("*.safetensors")]
    places = {"saliency": "saliency/*/manifest.json", "run": "models/*/mmsurgery-run.json"}
    paths = list(ws.root.glob(places.get(kind, f"{kind}s/*.json")))
    if kind == "run":
        paths += shipped.WEIGHTS.glob("*/*/mmsurgery-run.json")
    return [json.loads(path.read_text()) for path in paths]


COUNTS = {"saliency": 3, "mask": 2, "run": 3, "eval": 1, "diff": 2, "patch": 2, "request": 1}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_what_is_written_fits_its_schema(ws: Workspace, kind: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[kind])
    records = found(ws, kind)
    assert len(records) >= COUNTS[kind]
    for record in records:
        faults = [f"{e.json_path}: {e.message[:200]}" for e in Draft202012Validator(SCHEMAS[kind]).iter_errors(record)]
        assert not faults


@pytest.mark.parametrize("kind", ["saliency", "run", "eval"])
def test_records_say_on_what_device_they_were_made(ws: Workspace, kind: str) -> None:
    """Beside the key, which is the digest of three other things."""
    mine = [record for record in found(ws, kind) if record.get("method") != "finetune"]  # what is shipped is older
    for record in mine:
        origin = record["provenance"]
        assert origin["device"] == device_name()
        assert origin["key"] == sha256_json({each: origin[each] for each in ("command", "settings", "inputs")})


def test_items_fit(ws: Workspace) -> None:
    lines = ws.path("evals", "npo.upper.items.jsonl").read_text().splitlines()
    assert len(lines) == 2
    for line in lines:
        Draft202012Validator(ITEM).validate(json.loads(line))
        assert not Draft202012Validator(ITEM).is_valid({**json.loads(line), "gold": None})


@pytest.mark.parametrize("kind", SCHEMAS)
def test_no_key_may_miss_or_be_added(ws: Workspace, kind: str) -> None:
    schema = Draft202012Validator(SCHEMAS[kind])
    record = found(ws, kind)[0]
    for key in SCHEMAS[kind]["required"]:
        assert not schema.is_valid({k: v for k, v in record.items() if k != key}), key
    assert not schema.is_valid({**record, "extra": 1})
    assert not schema.is_valid({**record, "schema": 2})
    assert not schema.is_valid({**record, "kind": "other"})


def test_schemas_name_the_keys_that_the_readers_demand() -> None:
    demanded = {"mask": mask_metadata.KEYS, "saliency": saliency_map._KEYS, "patch": patch_module._KEYS}
    for kind, keys in demanded.items():
        assert set(SCHEMAS[kind]["properties"]) == set(SCHEMAS[kind]["required"]) == keys


def at(record: Any, path: str, value: Any) -> Any:
    """A copy with one value changed; `*` stands for the first key."""
    changed = copy.deepcopy(record)
    place, *_, last = [changed, *path.split("/")]
    for key in path.split("/")[:-1]:
        place = place[int(key) if isinstance(place, list) else sorted(place)[0] if key == "*" else key]
    place[int(last) if isinstance(place, list) else last] = value
    return changed


BROKEN = [
    ("saliency", "units", 0),
    ("saliency", "model_sha256", "0" * 63),
    ("saliency", "estimator", "mean"),
    ("saliency", "batch_size", 0),
    ("saliency", "files/*/bytes", -1),
    ("saliency", "files", {"../x.h5": {"bytes": 1, "sha256": "0" * 64}}),
    ("saliency", "no_gradient", ["a", "a"]),
    ("saliency", "provenance/device", ""),
    ("mask", "beta", "1"),
    ("mask", "parameters", {}),
    ("mask", "parameters/*/shape", [-1]),
    ("mask", "parameters/*/address", "decoder.0.norm"),
    ("mask", "parameters/*/selected", 0.5),
    ("mask", "base/name", "x"),
    ("mask", "parents/0/kind", "model"),
    ("run", "claim", "all"),
    ("run", "losses/0", {"forget": 1.0}),
    ("run", "moved/head", {"inside": 0, "inside_total": 0, "outside": 0, "outside_total": 0}),
    ("run", "moved/lm", {"inside": 0}),
    ("run", "provenance/key", "x"),
    ("run", "provenance/device", None),
    ("eval", "columns/*/accuracy", 1.5),
    ("eval", "columns/*/ci95", [0.1]),
    ("eval", "columns/*/protocol", "guess"),
    ("eval", "items/n", -1),
    ("eval", "provenance/device", 0),
    ("diff", "n", 0),
    ("diff", "threshold", -1.0),
    ("diff", "heatmap/0", [-1]),
    ("diff", "top/0/index", -1),
    ("patch", "before/model_sha256", None),
    ("patch", "parameters/*/changed", -1),
    ("patch", "sizes/payload", None),
]


@pytest.mark.parametrize(("kind", "path", "value"), BROKEN, ids=[f"{kind}-{path}" for kind, path, _ in BROKEN])
def test_a_broken_record_does_not_fit(ws: Workspace, kind: str, path: str, value: Any) -> None:
    schema, record = Draft202012Validator(SCHEMAS[kind]), found(ws, kind)[0]
    assert schema.is_valid(record)
    assert not schema.is_valid(at(record, path, value))


def test_a_heatmap_may_share_one_weight_between_cells(ws: Workspace) -> None:
    """Where several changed as much as the last that is counted."""
    record = found(ws, "diff")[0]
    assert Draft202012Validator(SCHEMAS["diff"]).is_valid(at(record, "heatmap/0", [3.6, 0]))


def test_rules_that_hold_between_keys(ws: Workspace) -> None:
    """A masked run claims something, scope all the most; a batch map has its batch size."""
    run, saliency = (Draft202012Validator(SCHEMAS[kind]) for kind in ("run", "saliency"))
    records = {record["model"]: record for record in found(ws, "run") if record["method"] != "finetune"}
    assert not run.is_valid({**records["mmunlearner.default"], "claim": "none"})
    assert not run.is_valid({**records["npo.upper"], "claim": "modules"})
    assert not run.is_valid({**records["ga_diff"], "claim": "mask"})
    assert not run.is_valid({k: v for k, v in records["ga_diff"].items() if k != "request"})
    batches = next(each for each in found(ws, "saliency") if each["estimator"] == "batch")
    assert not saliency.is_valid({**batches, "batch_size": None})


def read(*arguments: object) -> list[list[str]]:
    """Run the reader where nothing of ours can be imported; its lines, split."""
    command = [sys.executable, "-I", str(READER), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


def test_the_reader_uses_the_standard_library_and_numpy() -> None:
    code = (
        f"import runpy, sys; runpy.run_path({str(READER)!r});"
        "print([m for m in ('torch', 'h5py', 'safetensors', 'mmsurgery') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    body = READER.read_text().split('"""', 2)[2]
    assert sum(bool(line.strip()) for line in body.splitlines()) < 60


def test_the_reader_agrees_on_masks(ws: Workspace, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"a.weight": (5, 7), "b.bias": (3,), "c.weight": (2, 0), "d": ()}
    parameters = {n: MaskParameter(s, Address("lm", 0, "norm"), pack(rng.random(s) > 0.5)) for n, s in shapes.items()}
    base = {"model_type": "llava", "model_sha256": "0" * 64}
    odd = tmp_path / "odd.safetensors"
    Mask(rule="x", beta=None, estimator=None, mixture=None, modules="lm", parameters=parameters, base=base).save(odd)
    space = functions()
    for path in (odd, ws.mask_path("default"), ws.mask_path("upper")):
        ours, lines = Mask.load(path), read(path)
        densities = ours.density(by="parameter")
        assert lines == [[f"{densities[n]:.4f}", str(ours.addresses[n]), n] for n in ours.names]
        about, tensors = space["read"](path)
        assert all(np.array_equal(space["bits"](about, tensors, n).reshape(ours[n].shape), ours[n]) for n in ours.names)


def functions() -> dict[str, Any]:
    return runpy.run_path(str(READER))


@pytest.mark.parametrize("after", ["npo.upper", "mmunlearner.default"])
def test_the_reader_applies_and_undoes_patches(ws: Workspace, tmp_path: Path, after: str) -> None:
    files = [CheckpointFiles(ws.model_dir(name), backbone("qwen2_vl").canonical) for name in ("vanilla", after)]
    arrays = [{name: each.array(name) for name in each.names} for each in files]
    for number, each in enumerate(arrays):
        np.savez(tmp_path / f"{number}.npz", **each)
    patch = ws.path("patches", f"{after}.safetensors")
    lines = read(patch, tmp_path / "0.npz", tmp_path / "applied.npz")
    read(patch, tmp_path / "1.npz", tmp_path / "undone.npz")
    for result, expected in (("applied", arrays[1]), ("undone", arrays[0])):
        with np.load(tmp_path / f"{result}.npz") as out:
            assert set(out.files) == set(expected)
            assert all(out[name].tobytes() == expected[name].tobytes() for name in expected)
    shares = {name: float(np.mean(arrays[0][name] != arrays[1][name])) for name in arrays[0]}
    assert {line[2]: line[0] for line in lines} == {name: f"{share:.4f}" for name, share in shares.items()}
    assert any(shares.values())
