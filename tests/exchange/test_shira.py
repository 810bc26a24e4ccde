"""SHiRA adapters, as stock PEFT loads them: equal logits, equal weights when merged, refusals by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pairs import make_pair

from mmsurgery.artifacts.mask import Mask, MaskParameter, pack
from mmsurgery.artifacts.tensors import read_header, read_tensor
from mmsurgery.backbones.discovery import backbone
from mmsurgery.data.samples import Sample
from mmsurgery.errors import Mismatch, MissingArtifact, UnusableData, UsageError
from mmsurgery.exchange.shira import export_shira
from mmsurgery.patches import create
from mmsurgery.workspace import Workspace

LINEAR = {
    "llava": ("_proj.weight", "gate_proj.weight", "linear_1.weight"),
    "qwen2_vl": ("_proj.weight", "attn.qkv.weight", "merger.mlp.0.weight"),
}


def sparse(*endings: str, density: float = 0.1, scale: float = 1e-2) -> Any:
    """A change of a share of the weights of some tensors."""

    def change(name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if not name.endswith(endings):
            return values
        rng = np.random.default_rng(sum(map(ord, name)))
        moved = rng.random(values.shape) < density
        return np.where(moved, values + rng.normal(0, scale, values.shape).astype(np.float32), values)

    return change


def peft_model(ws: Workspace, adapter: Path) -> Any:
    """Vanilla with the adapter, by stock PEFT."""
    peft = pytest.importorskip("peft")
    family = backbone(json.loads((ws.model_dir("vanilla") / "config.json").read_text())["model_type"])
    return peft.PeftModel.from_pretrained(family.load_model(ws.model_dir("vanilla")), str(adapter))


@pytest.mark.filterwarnings("ignore")  # PEFT's and torch's own, about sparse tensors
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_stock_peft_gives_the_model(
    request: pytest.FixtureRequest, tmp_path: Path, mixed_samples: list[Sample], family: str, dtype: str
) -> None:
    import torch

    source = request.getfixturevalue(f"tiny_{family}")
    ws = make_pair(tmp_path / "ws", source, dtype, change=sparse(*LINEAR[family]))
    made = create(ws, "after")
    done = export_shira(ws, "after", tmp_path / "adapter")
    assert done.base == "vanilla"
    assert done.entries == made.changed == done.exact
    assert done.slots >= done.entries
    found = backbone(family)
    wanted, loaded = found.load_model(ws.model_dir("after")), peft_model(ws, done.path)
    batch = found.collate(found.load_processor(source), mixed_samples)
    batch = {k: v.to(wanted.dtype) if torch.is_floating_point(v) else v for k, v in batch.items()}
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, wanted(**batch).logits)
    merged = dict(loaded.merge_and_unload().named_parameters())
    for name, parameter in wanted.named_parameters():
        assert torch.equal(merged[name], parameter), name


def test_files_hold_what_peft_expects(tmp_path: Path, tiny_llava: Path) -> None:
    ws = make_pair(tmp_path / "ws", tiny_llava, change=sparse("q_proj.weight", "gate_proj.weight", density=0.05))
    done = export_shira(ws, "after", tmp_path / "adapter")
    patch = create(ws, "after").patch
    config = json.loads((done.path / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == [name.removesuffix(".weight") for name in patch.names]
    header = read_header(done.path / "adapter_model.safetensors")
    assert len(header.tensors) == 2 * len(patch.names)
    slots = 0
    for name in patch.names:
        rows, columns = patch.parameters[name].shape
        key = f"base_model.model.{name.removesuffix('.weight')}.shira_"
        indices, values = (read_tensor(header.path, header.tensors[key + part]) for part in ("indices", "weight"))
        assert indices.shape == (2, config["r"] * (rows + columns))
        places = indices[0] * columns + indices[1]
        assert len(set(places.tolist())) == places.size == values.size
        assert np.count_nonzero(values) == patch.parameters[name].changed
        slots += values.size
    assert done.slots == slots
    assert str(tmp_path) not in (done.path / "adapter_config.json").read_text()


def test_sums_that_float32_cannot_give_are_counted(tmp_path: Path, tiny_llava: Path) -> None:
    """From 2^25 to a small odd number: the difference needs more bits than float32 has."""

    ws = make_pair(tmp_path / "ws", tiny_llava, change=lambda name, values: values)
    for model, value in (("vanilla", 2.0**25), ("after", 1.1)):
        file = ws.model_dir(model) / "model.safetensors"
        info = next(i for n, i in read_header(file).tensors.items() if n.endswith("q_proj.weight"))
        raw = bytearray(file.read_bytes())
        raw[info.begin : info.begin + 8] = np.array([value, 0.25], "<f4").tobytes()
        if model == "after":
            raw[info.begin + 4 : info.begin + 8] = np.array([0.5], "<f4").tobytes()
        file.write_bytes(raw)
    done = export_shira(ws, "after", tmp_path / "adapter")
    assert (done.entries, done.exact) == (2, 1)


@pytest.mark.parametrize(("endings", "others"), [(("q_proj.weight", "q_proj.bias"), 3), (("norm.weight",), None)])
def test_changes_elsewhere_are_refused_by_name(
    tmp_path: Path, tiny_llava: Path, endings: tuple[str, ...], others: int | None
) -> None:
    ws = make_pair(tmp_path / "ws", tiny_llava, change=sparse(*endings, density=0.5))
    names = [n for n in create(ws, "after").patch.names if not n.endswith("q_proj.weight")]
    assert others in (None, len(names))
    with pytest.raises(UsageError, match=f"{len(names)} tensors that are no weights of linear") as refused:
        export_shira(ws, "after", tmp_path / "adapter")
    assert all(name in str(refused.value) for name in names[:10])
    assert not (tmp_path / "adapter").exists()


def test_a_layer_too_dense_is_refused_by_name(tmp_path: Path, tiny_llava: Path) -> None:
    ws = make_pair(tmp_path / "ws", tiny_llava, change=sparse("layers.0.mlp.gate_proj.weight", density=1.0))
    with pytest.raises(UsageError, match=r"too many weights.*layers\.0\.mlp\.gate_proj\.weight"):
        export_shira(ws, "after", tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore")
def test_a_mask_gives_an_adapter_to_train(tmp_path: Path, tiny_llava: Path) -> None:
    ws = make_pair(tmp_path / "ws", tiny_llava, change=sparse("q_proj.weight"))
    patch = create(ws, "after").patch
    parameters = {}
    for name, p in patch.parameters.items():
        bits = patch.changed(name) if p.changed else pack(np.zeros(p.shape, np.bool_))
        parameters[name] = MaskParameter(p.shape, p.address, bits)
    base = {key: patch.before[key] for key in ("model_type", "model_sha256")}
    mask = Mask(
        rule="random", beta=None, estimator=None, mixture=None, modules="lm,vision", parameters=parameters, base=base
    )
    mask.write(ws.mask_path("chosen"))
    done = export_shira(ws, "chosen", tmp_path / "adapter")
    assert done.exact is None
    assert done.entries == mask.selected == patch.sizes["changed"]
    loaded = peft_model(ws, done.path)
    found = {n: p for n, p in loaded.named_parameters() if "shira_weight" in n}
    assert len(found) == done.layers
    assert all(not p.any() for p in found.values())


def test_what_is_not_there_or_fits_nothing(tmp_path: Path, tiny_llava: Path) -> None:
    ws = make_pair(tmp_path / "ws", tiny_llava, change=sparse("q_proj.weight"))
    with pytest.raises(MissingArtifact, match="no mask, patch or model 'nothing'"):
        export_shira(ws, "nothing", tmp_path / "adapter")
    with pytest.raises(UsageError):
        export_shira(ws, "vanilla", tmp_path / "adapter")
    export_shira(ws, "after", tmp_path / "adapter")
    with pytest.raises(Mismatch, match="exists already"):
        export_shira(ws, "after", tmp_path / "adapter")
    export_shira(ws, "after", tmp_path / "adapter", force=True)
    file = ws.model_dir("vanilla") / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(Mismatch, match="no model of"):
        export_shira(ws, str(ws.patch_path("after")), tmp_path / "other")


def test_an_empty_mask_is_refused(tmp_path: Path, tiny_llava: Path) -> None:
    ws = make_pair(tmp_path / "ws", tiny_llava, change=sparse("q_proj.weight"))
    patch = create(ws, "after").patch
    parameters = {
        name: MaskParameter(p.shape, p.address, pack(np.zeros(p.shape, np.bool_)))
        for name, p in patch.parameters.items()
    }
    base = {key: patch.before[key] for key in ("model_type", "model_sha256")}
    mask = Mask(
        rule="random", beta=None, estimator=None, mixture=None, modules="lm,vision", parameters=parameters, base=base
    )
    mask.write(ws.mask_path("none"))
    with pytest.raises(UnusableData, match="changes nothing"):
        export_shira(ws, "none", tmp_path / "adapter")
