"""Promise 13 (case 34): what each schema's artifacts looked like is kept in `golden/`, and read by today's readers.

`PYTHONPATH=tests:tests/faults python tests/faults/test_golden.py` writes those that this schema lacks; what is there is
never written again.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsurgery.artifacts import distributions
from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.mask import Mask, MaskParameter, pack
from mmsurgery.artifacts.patch import Patch
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.artifacts.tensors import write_safetensors
from mmsurgery.audit.measured import Measured
from mmsurgery.audit.run import read_audit
from mmsurgery.diff.run import read_diff
from mmsurgery.evaluate.records import read_eval, read_items
from mmsurgery.exchange.export import export
from mmsurgery.exchange.masks import import_mask
from mmsurgery.experiments.run import read_results
from mmsurgery.names import Address
from mmsurgery.provenance import SCHEMA, check_seal, provenance, sha256_json
from mmsurgery.settings import SETTINGS_FILE, Settings
from mmsurgery.unlearn.record import read_record
from mmsurgery.workspace import Workspace

Arrays = dict[str, np.ndarray[Any, Any]]

GOLDEN = Path(__file__).parent / "golden"
SCHEMAS = sorted(folder.name for folder in GOLDEN.iterdir()) if GOLDEN.is_dir() else []
ADDRESSES = {
    "lm_head.weight": Address("lm", None, "head"),
    "model.language_model.layers.0.mlp.up_proj.weight": Address("lm", 0, "mlp.up"),
    "model.multi_modal_projector.linear_1.bias": Address("connector", None, "proj"),
}
SHAPES = {"lm_head.weight": (3, 5), "model.language_model.layers.0.mlp.up_proj.weight": (4, 4)}
SILENT = "model.multi_modal_projector.linear_1.bias"
TORCH_NAME = "model.language_model.norm.weight"
BASE = {"model_type": "llava", "model_sha256": "5" * 64}


def bits() -> Arrays:
    return {name: np.arange(np.prod(shape)).reshape(shape) % 3 == 0 for name, shape in SHAPES.items()}


def sums() -> Arrays:
    return {n: np.sqrt(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape) for n, shape in SHAPES.items()}


def weights(moved: float) -> Arrays:
    return {name: np.where(bits()[name], values + np.float32(moved), values) for name, values in sums().items()}


def torch_bits() -> np.ndarray[Any, Any]:
    return np.arange(32) % 5 == 0


# reading


def mask(folder: Path) -> None:
    read = Mask.load(folder / "mask.safetensors")
    assert all(np.array_equal(read[name], values) for name, values in bits().items())
    assert (read.rule, read.beta, read.modules, read.base) == ("ratio", 1.5, "lm", BASE)
    assert read.addresses == {name: ADDRESSES[name] for name in SHAPES}


def saliency(folder: Path) -> None:
    read = SaliencyMap.load(folder / "saliency")
    assert all(np.array_equal(read.sum_of_squares(name), values) for name, values in sums().items())
    assert (read.part, read.units, dict(read.no_gradient)) == ("forget_vqa", 7, {SILENT: (6,)})


def patch(folder: Path) -> None:
    read = Patch.load(folder / "patch.safetensors")
    before, after = weights(0.0), weights(0.5)
    assert read.names == sorted(SHAPES)
    for name, parameter in read.parameters.items():
        assert parameter.changed == int(bits()[name].sum())
        moved = before[name].view(np.uint32).reshape(-1)[bits()[name].reshape(-1)] ^ read.xor(name)
        assert np.array_equal(moved.view(np.float32), after[name][bits()[name]])


def settings(folder: Path) -> None:
    assert Settings.read(folder / SETTINGS_FILE).recipe.batch_size == 2


def run(folder: Path) -> None:
    assert read_record(folder)["method"] == "ga"


def evaluation(folder: Path) -> None:
    record = read_eval(folder / "ga.json")
    assert record["model"] == "ga"
    assert sum(map(len, read_items(folder / "ga.json").values())) == record["items"]["n"] == 4


def difference(folder: Path) -> None:
    record = read_diff(folder / "vanilla..ga.json")
    assert (record["before"], record["after"], record["n"]) == ("vanilla", "ga", 3)


def experiment(folder: Path) -> None:
    assert read_results(folder / "results.json")["name"] == "tried"


def stability(folder: Path) -> None:
    path = folder / "stability.json"
    assert check_seal(json.loads(path.read_text()), path.name, kind="stability")["mask"] == "default"


def request(folder: Path) -> None:
    path = folder / "request.json"
    people = check_seal(json.loads(path.read_text()), path.name, kind="request")["people"]
    assert people == [f"person/forget {i}" for i in range(3)]


def audited(folder: Path) -> None:
    record = read_audit(folder / "audit.json")
    assert (record["model"], list(record["probes"])) == ("ga", ["quantisation"])


def measured(folder: Path) -> None:
    path = folder / "measured.json"
    read = Measured.from_json(
        check_seal(json.loads(path.read_text()), path.name, kind="measured")["measured"], path.name
    )
    assert set(read.arms) == {"int8", "nf4"}


def references(folder: Path) -> None:
    read = distributions.read(folder / "references.safetensors", ["a", "b", "c"], provenance_key())
    assert read is not None
    assert [read[sample].tolist() for sample in "abc"] == [[[0.0, -1.0]], [[-2.0, -3.0], [-4.0, -5.0]], [[0.0, -1.0]]]


def provenance_key() -> str:
    return sha256_json({"settings": {}, "inputs": {}})


def journal(folder: Path) -> None:
    entries = Workspace(folder, Settings()).journal_entries()
    assert {entry["event"] for entry in entries} >= {"saliency", "mask", "apply", "eval", "diff"}


READERS: tuple[Callable[[Path], None], ...] = (
    mask,
    saliency,
    patch,
    settings,
    run,
    evaluation,
    difference,
    experiment,
    stability,
    request,
    audited,
    measured,
    references,
    journal,
)


@pytest.mark.parametrize("reads", READERS)
@pytest.mark.parametrize("schema", SCHEMAS)
def test_artifacts_of_every_schema_are_read(schema: str, reads: Callable[[Path], None]) -> None:
    reads(GOLDEN / schema)


def test_this_schema_has_its_golden_artifacts() -> None:
    assert f"schema-{SCHEMA}" in SCHEMAS


@pytest.mark.parametrize("schema", SCHEMAS)
def test_official_masks_go_there_and_back(schema: str, tmp_path: Path, tiny_llava: Path) -> None:
    """A converted `.pt` mask is exported as the same tensors."""
    import torch

    where = Workspace(tmp_path, Settings())
    shutil.copytree(tiny_llava, where.model_dir("vanilla"))
    read = import_mask(where, [GOLDEN / schema / "official.pt"], name="theirs").mask
    assert np.array_equal(read[TORCH_NAME], torch_bits())
    assert read.selected == torch_bits().sum()
    again = torch.load(export(where, "theirs", format="official").path, weights_only=True)["weight"]
    assert {name: values.dtype for name, values in again.items()} == dict.fromkeys(again, torch.bool)
    names = {TORCH_NAME, "language_model.model.norm.weight"}  # in memory, and as published
    assert {name for name, values in again.items() if values.any()} == names
    assert all(np.array_equal(again[name].numpy(), torch_bits()) for name in names)


# writing


def write(folder: Path) -> None:
    import torch
    from campaigns import verbs

    parameters = {n: MaskParameter(SHAPES[n], ADDRESSES[n], pack(values)) for n, values in bits().items()}
    made = {"rule": "ratio", "beta": 1.5, "estimator": "sample", "mixture": "pooled", "modules": "lm", "base": BASE}
    Mask(parameters=parameters, provenance=provenance("mask", {}, {}), **made).write(folder / "mask.safetensors")
    SaliencyMap(
        part="forget_vqa",
        estimator="sample",
        batch_size=None,
        units=7,
        data_sha256="6" * 64,
        arrays=sums(),
        no_gradient={SILENT: (6,)},
        provenance=provenance("saliency", {}, {}),
        **BASE,
    ).save(folder / "saliency")
    torch.save({"weight": {TORCH_NAME: torch.from_numpy(torch_bits())}}, folder / "official.pt")
    table = -np.arange(6, dtype=np.float32).reshape(3, 2)
    origin = {**provenance("apply", {}, {}), "key": provenance_key()}
    distributions.write(folder / "references.safetensors", table, np.array([1, 3]), np.array([0, 1, 0]), origin)
    with tempfile.TemporaryDirectory() as scratch:
        models = []
        for name, moved in (("before", 0.0), ("after", 0.5)):
            model = Path(scratch) / name
            model.mkdir()
            (model / "config.json").write_text('{"model_type": "llava"}')
            write_safetensors(model / "model.safetensors", weights(moved), {"format": "pt"})
            models.append(CheckpointFiles(model, str))
        sides = {
            f.path.name: {"model": f.path.name, **BASE, "model_sha256": f.digest(), "record": None} for f in models
        }
        about = {**sides, "companions_sha256": "7" * 64, "provenance": provenance("patch", {}, {})}
        Patch.write(folder / "patch.safetensors", *models, ADDRESSES.__getitem__, about)
        place = verbs.chain(Path(scratch) / "ws", "llava")
        verbs.command(place, "experiment")
        place.run("inspect", "default", "--stability")
        place.run("audit", "ga", "--probes", "quantisation")
        (asked,) = (place.root / "requests").iterdir()
        for source, name in (
            (SETTINGS_FILE, SETTINGS_FILE),
            ("models/ga/mmsurgery-run.json", "mmsurgery-run.json"),
            ("evals/ga.json", "ga.json"),
            ("evals/ga.items.jsonl", "ga.items.jsonl"),
            ("diffs/vanilla..ga.json", "vanilla..ga.json"),
            ("experiments/tried/results.json", "results.json"),
            ("stability/default.json", "stability.json"),
            (f"requests/{asked.name}", "request.json"),
            ("audits/ga.json", "audit.json"),
            ("audits/measured/ga.quantisation.json", "measured.json"),
            ("journal.jsonl", "journal.jsonl"),
        ):
            shutil.copy(place.root / source, folder / name)


if __name__ == "__main__":
    target = GOLDEN / f"schema-{SCHEMA}"
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        write(Path(made))
        for path in sorted(Path(made).iterdir()):
            if not (target / path.name).exists():
                shutil.move(path, target)
