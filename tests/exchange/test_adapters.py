"""LoRA adapters: merged as stock peft does, refused where a layer does not match."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from mmsurgery.backbones.loading import Loaded, load
from mmsurgery.errors import InputRefused, Mismatch, UnusableData, UsageError
from mmsurgery.exchange.adapters import import_adapter
from mmsurgery.settings import Settings
from mmsurgery.unlearn.verify import verify
from mmsurgery.workspace import Workspace

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def ws(tmp_path: Path, tiny_llava: Path) -> Workspace:
    workspace = Workspace(tmp_path / "ws", Settings())
    shutil.copytree(tiny_llava, workspace.model_dir("vanilla"))
    return workspace


@pytest.fixture
def adapter(tmp_path: Path, tiny_llava: Path) -> Callable[..., Path]:
    """A folder that stock peft saved, its B filled with noise."""

    def make(**options: Any) -> Path:
        settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj", "linear_1"], **options}
        model = get_peft_model(load(tiny_llava).model, LoraConfig(**settings))
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(str(tmp_path / "adapter"))
        return tmp_path / "adapter"

    return make


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"down_proj": 16}},
    ],
)
def test_merged_as_stock_peft_merges(
    ws: Workspace,
    adapter: Callable[..., Path],
    tiny_llava: Path,
    loaded_llava: Loaded,
    mixed_samples: list[Any],
    options: dict[str, Any],
) -> None:
    folder = adapter(**options)
    result = import_adapter(ws, folder, name="theirs")
    stock = PeftModel.from_pretrained(load(tiny_llava).model, str(folder)).merge_and_unload()
    ours = load(ws.model_dir("theirs")).model
    # 3 + 2 q_proj, 2 down_proj, 1 linear_1
    assert result.layers == 8
    for (name, mine), (_, theirs) in zip(ours.named_parameters(), stock.named_parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    batch = loaded_llava.backbone.collate(loaded_llava.processor, mixed_samples)
    with torch.no_grad():
        assert torch.equal(ours(**batch).logits, stock(**batch).logits)
    found = verify(ws, "theirs")
    assert found.ok
    assert sum(each.changed for each in found.groups.values()) > 0
    assert import_adapter(ws, folder, name="theirs").up_to_date


def renamed(folder: Path, rename: Callable[[str], str], **config: Any) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({rename(name): tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    there = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**there, **config}))


def test_names_of_old_layouts_with_their_patterns(ws: Workspace, adapter: Callable[..., Path]) -> None:
    name = "model.language_model.layers.0.mlp.down_proj"
    folder = adapter(target_modules=[name], rank_pattern={name: 2}, alpha_pattern={name: 16})
    import_adapter(ws, folder, name="new")
    old = "language_model.model.layers.0.mlp.down_proj"
    renamed(
        folder,
        lambda stored: stored.replace(name, old),
        target_modules=[old],
        rank_pattern={old: 2},
        alpha_pattern={old: 16},
    )
    import_adapter(ws, folder, name="old")
    new, old_model = (load(ws.model_dir(model)).model for model in ("new", "old"))
    for mine, theirs in zip(new.parameters(), old_model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_layers_that_match_nothing_are_refused(ws: Workspace, adapter: Callable[..., Path]) -> None:
    folder = adapter()
    renamed(folder, lambda stored: stored.replace("language_model.layers.1.", "language_model.layers.9."))
    with pytest.raises(Mismatch, match="6 of the adapter's 8 layers match"):
        import_adapter(ws, folder, name="bad")
    renamed(folder, lambda stored: stored.replace("model.model.", "model.other."))
    with pytest.raises(Mismatch, match="0 of the adapter's 8 layers match"):
        import_adapter(ws, folder, name="bad")
    assert not ws.model_dir("bad").exists()


def test_an_adapter_that_adds_nothing_is_refused(ws: Workspace, adapter: Callable[..., Path]) -> None:
    folder = adapter()
    tensors = load_file(folder / "adapter_model.safetensors")
    zeroed = {name: t * 0 if "lora_B" in name else t for name, t in tensors.items()}
    save_file(zeroed, folder / "adapter_model.safetensors")
    with pytest.raises(UnusableData, match="8 of its 8 layers match"):
        import_adapter(ws, folder, name="bad")
    assert not ws.model_dir("bad").exists()


def test_hostile_and_foreign_adapters_are_refused(ws: Workspace, adapter: Callable[..., Path]) -> None:
    folder = adapter()
    with pytest.raises(UsageError, match="trained here"):
        import_adapter(ws, folder, name="vanilla")
    base = json.dumps({"base": {"model_sha256": "0" * 64}})
    save_file(
        load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.safetensors", {"mmsurgery": base}
    )
    with pytest.raises(Mismatch, match="belongs to model 000000000000"):
        import_adapter(ws, folder, name="bad")
    renamed(folder, str, megatron_config={"a": 1})
    with pytest.raises(InputRefused, match="megatron_config"):
        import_adapter(ws, folder, name="bad")
    renamed(folder, str, peft_type="IA3")
    with pytest.raises(InputRefused, match="IA3"):
        import_adapter(ws, folder, name="bad")
    renamed(folder, str, peft_type="LORA", megatron_config=None)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InputRefused, match="may run code"):
        import_adapter(ws, folder, name="bad")
