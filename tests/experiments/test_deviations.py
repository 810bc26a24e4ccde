"""Where models differ most from vanilla, of one model and as a mean."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsurgery.artifacts.tensors import read_header, read_tensor, write_safetensors
from mmsurgery.diff import read_diff
from mmsurgery.errors import Mismatch, UsageError
from mmsurgery.experiments.deviations import deviation, mean_deviation
from mmsurgery.settings import Settings
from mmsurgery.workspace import Workspace

QUERY = "layers.1.self_attn.q_proj.weight"
PROJECTOR = "multi_modal_projector.linear_1.bias"


@pytest.fixture
def workspace(tmp_path: Path, tiny_llava: Path) -> Workspace:
    workspace = Workspace(tmp_path / "ws", Settings())
    shutil.copytree(tiny_llava, workspace.model_dir("vanilla"))
    return workspace


@pytest.fixture
def model(workspace: Workspace) -> Callable[[str, Mapping[str, int]], None]:
    """`model(name, {ending: count})`: vanilla with 1 added to the first weights of the tensors so named."""

    def make(name: str, changed: Mapping[str, int]) -> None:
        folder = workspace.model_dir(name)
        shutil.copytree(workspace.model_dir("vanilla"), folder)
        file = folder / "model.safetensors"
        header = read_header(file)
        arrays = {stored: read_tensor(file, info).copy() for stored, info in header.tensors.items()}
        for ending, count in changed.items():
            (stored,) = (each for each in arrays if each.endswith(ending) and "vision" not in each)
            arrays[stored].reshape(-1)[:count] += 1
        write_safetensors(file, arrays, header.metadata)

    return make


def cell(entry: Mapping[str, Any], layer: str, component: str, what: str) -> Any:
    return entry[what][entry["layers"].index(layer)][entry["components"].index(component)]


def test_one_model(workspace: Workspace, model: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    model("npo", {QUERY: 30, PROJECTOR: 10})
    entry = deviation(workspace, "npo", n=40)
    record = read_diff(workspace.diff_path("vanilla", "npo"))
    weights = {"vision": 0, "connector": 0, "lm": 0}
    for layer, sizes in zip(record["layers"], record["sizes"], strict=True):
        weights[layer.partition(".")[0]] += sum(sizes)
    assert (entry["n"], entry["models"]) == (40, 1)
    assert entry["changed"] == 40 / sum(weights.values())
    assert entry["groups"] == {
        "vision": {"top": 0, "changed": 0},
        "connector": {"top": 0.25, "changed": 10 / weights["connector"]},
        "lm": {"top": 0.75, "changed": 30 / weights["lm"]},
    }
    size = cell(entry, "lm.1", "attn.q", "sizes")
    assert size >= 1024
    assert cell(entry, "lm.1", "attn.q", "share") == 30 / size
    assert cell(entry, "lm.0", "attn.q", "share") == 0
    assert cell(entry, "lm.0", "head", "share") == 0  # there is no such cell
    assert cell(entry, "lm.0", "head", "relative") is None
    assert cell(entry, "lm.1", "attn.q", "relative") == cell(record, "lm.1", "attn.q", "relative") > 0
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    monkeypatch.setattr("mmsurgery.diff.run.compare", lambda *a, **k: pytest.fail("compared again"))
    assert deviation(workspace, "npo", n=40) == entry
    with pytest.raises(Mismatch, match="top 40 -> 41"):
        deviation(workspace, "npo", n=41)


def test_fewer_changes_than_n_and_none(workspace: Workspace, model: Callable[..., None]) -> None:
    """Parts of the top n are of those that changed; of none they are 0."""
    model("npo", {QUERY: 3, PROJECTOR: 1})
    entry = deviation(workspace, "npo", n=1000)
    assert (entry["n"], entry["groups"]["lm"]["top"], entry["groups"]["connector"]["top"]) == (1000, 0.75, 0.25)
    model("same", {})
    entry = deviation(workspace, "same", n=1000)
    assert entry["changed"] == 0
    assert {values["top"] for values in entry["groups"].values()} == {0}


def made(scale: float, n: int = 100) -> dict[str, Any]:
    return {
        "n": n,
        "changed": 0.5 * scale,
        "groups": {"lm": {"top": scale, "changed": 0.25 * scale}},
        "layers": ["lm.0", "lm"],
        "components": ["attn.q", "norm"],
        "sizes": [[10, 0], [0, 5]],
        "share": [[0.5 * scale, 0.0], [0.0, scale]],
        "relative": [[0.1 * scale, None], [None, 3 * scale]],
        "models": 1,
    }


def test_mean_over_models() -> None:
    entries = [made(1.0, 100), made(0.5, 103), made(0.0, 100)]
    before = copy.deepcopy(entries)
    mean = mean_deviation(entries)
    assert entries == before
    assert (mean["n"], mean["changed"], mean["models"]) == (101, 0.25, 3)
    assert mean["groups"] == {"lm": {"top": 0.5, "changed": 0.125}}
    assert mean["share"] == [[0.25, 0.0], [0.0, 0.5]]
    assert mean["relative"] == [[pytest.approx(0.05), None], [None, 1.5]]
    assert [mean[axis] for axis in ("layers", "components", "sizes")] == [
        entries[0][axis] for axis in ("layers", "components", "sizes")
    ]
    assert mean.keys() == entries[0].keys()
    several = [made(float(x)) for x in np.random.default_rng(0).random(9)]
    assert mean_deviation(several) == mean_deviation(several[::-1])
    assert mean_deviation([made(0.3)]) == made(0.3)


def test_a_cell_that_is_null_once_has_no_mean() -> None:
    other = made(1.0)
    other["relative"][1][1] = None
    assert mean_deviation([made(1.0), other])["relative"] == [[0.1, None], [None, None]]


@pytest.mark.parametrize(
    ("axis", "value"), [("layers", ["lm.1", "lm"]), ("components", ["attn.k", "norm"]), ("sizes", [[11, 0], [0, 5]])]
)
def test_models_of_different_shape_have_no_mean(axis: str, value: Any) -> None:
    with pytest.raises(Mismatch, match=f"different {axis}"):
        mean_deviation([made(1.0), made(1.0), {**made(1.0), axis: value}])


def test_there_is_no_mean_of_nothing() -> None:
    with pytest.raises(UsageError, match="no model"):
        mean_deviation([])
