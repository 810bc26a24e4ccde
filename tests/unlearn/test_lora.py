"""LoRA: nothing outside the mask moves, what is trained is what is saved, and without a mask it is stock peft."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.mask import Mask
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.backbones.discovery import backbone
from mmsurgery.backbones.loading import Loaded, load
from mmsurgery.errors import UnusableData, UsageError
from mmsurgery.unlearn import loop
from mmsurgery.unlearn.adapters import LowRankUpdate, _MaskedForward
from mmsurgery.unlearn.apply import apply
from mmsurgery.unlearn.lora import LoRA, lora_of, unreached
from mmsurgery.unlearn.verify import verify
from mmsurgery.workspace import Workspace

RANK = LoRA(rank=4)


def changed(ws: Workspace, name: str, family: str = "llava") -> dict[str, np.ndarray]:
    """Which weights' bits differ from vanilla, recomputed from the files."""
    files = [CheckpointFiles(ws.model_dir(model), backbone(family).canonical) for model in ("vanilla", name)]
    return {
        name: files[0].array(name).view(np.uint32) != files[1].array(name).view(np.uint32) for name in files[0].names
    }


@pytest.mark.parametrize("method", ["mmunlearner", "ga", "kl_min", "npo"])
@pytest.mark.parametrize("protocol", ["equations", "official"])
def test_nothing_outside_the_mask_differs_after_merging(ws: Workspace, method: str, protocol: str) -> None:
    result = apply(ws, method, mask="default", lora=RANK, protocol=protocol)
    assert (result.claim, result.record["scope"], result.record["protocol"]) == ("mask", "all", protocol)
    mask, moved = Mask.load(ws.mask_path("default")), changed(ws, result.model)
    assert not any((moved[name] & ~mask[name]).any() for name in moved)
    reached = [name for name in moved if moved[name].any()]
    assert verify(ws, result.model).ok
    # every linear layer of lm and connector but the head: 7 in each of the layers, and 2
    assert len(reached) == 7 * len({n for n in moved if re.search(r"language_model\.layers\.\d+\.mlp\.up", n)}) + 2
    assert all(name.endswith(("proj.weight", "linear_1.weight", "linear_2.weight")) for name in reached)
    inside = sum(int((moved[name] & mask[name]).sum()) for name in reached)
    assert inside > 0.9 * sum(int(mask[name].sum()) for name in reached)
    selected = sum(int(mask[name].sum()) for name in mask.names if name not in reached)
    assert result.record["lora"] == {"rank": 4, "layers": len(reached), "unreached": selected}
    assert unreached(mask, reached)[0] == selected > 0


@pytest.mark.parametrize("masked", [True, False])
def test_the_model_that_is_saved_is_the_one_that_was_trained(
    ws: Workspace, masked: bool, monkeypatch: pytest.MonkeyPatch, mixed_samples: list[Any]
) -> None:
    """Logits of the trained model, before its adapters are merged, against those of the saved one."""
    trained: dict[str, torch.Tensor] = {}
    merge = LowRankUpdate.trained

    def logits(loaded: Any) -> torch.Tensor:
        batch = loaded.backbone.collate(loaded.processor, mixed_samples)
        with torch.no_grad():
            return loaded.model(**{k: v for k, v in batch.items() if k != "labels"}).logits

    made: list[Any] = []
    original = LowRankUpdate.__init__

    def init(self: LowRankUpdate, model: Any, *arguments: Any, **options: Any) -> None:
        made.append(model)
        original(self, model, *arguments, **options)

    def merging(self: LowRankUpdate) -> Any:
        reference = load(ws.model_dir("vanilla"))
        trained["before"] = logits(reference)
        object.__setattr__(reference, "model", made[0])
        trained["unmerged"] = logits(reference)
        merged = merge(self)
        trained["merged"] = logits(reference)
        return merged

    monkeypatch.setattr(LowRankUpdate, "__init__", init)
    monkeypatch.setattr(LowRankUpdate, "trained", merging)
    result = apply(ws, "ga_diff", mask="default" if masked else None, lora=RANK)
    saved = logits(load(result.path))
    assert torch.equal(saved, trained["merged"])
    torch.testing.assert_close(saved, trained["unmerged"], atol=1e-5, rtol=1e-5)
    assert (saved - trained["before"]).abs().max() > 1e-2


def test_the_masked_layer_against_autograd() -> None:
    """Output and gradients against the same formula written with a dense mask; whole bits of 5 x 13 weights."""
    from mmsurgery.artifacts.mask import pack
    from mmsurgery.unlearn.masked import PackedBits

    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x, a, b, weight, bias = draw(2, 3, 13), draw(4, 13), draw(5, 4), draw(5, 13), draw(5)
    chosen = torch.rand(5, 13, generator=generator) < 0.5
    inputs = [t.clone().requires_grad_() for t in (x, a, b)]
    expected = torch.nn.functional.linear(inputs[0], weight + chosen * (0.5 * inputs[2] @ inputs[1]), bias)
    expected.square().sum().backward()

    layer = torch.nn.Module()
    layer.base_layer = torch.nn.Linear(13, 5)
    layer.base_layer.weight.data, layer.base_layer.bias.data = weight, bias
    layer.requires_grad_(False)
    layer.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(13, 4, bias=False)})
    layer.lora_B = torch.nn.ModuleDict({"default": torch.nn.Linear(4, 5, bias=False)})
    layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = a, b
    layer.scaling, layer.merged = {"default": 0.5}, False
    seen = x.clone().requires_grad_()
    bits = PackedBits(torch.from_numpy(pack(chosen.numpy())), 65)
    found = _MaskedForward(layer, bits)(seen)
    found.square().sum().backward()
    torch.testing.assert_close(found, expected)
    for got, wanted in zip((seen, layer.lora_A["default"].weight, layer.lora_B["default"].weight), inputs, strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks for it
def test_without_a_mask_it_is_stock_peft(ws: Workspace, tiny: Any) -> None:
    """The same run written with peft's own model, AdamW and merge: equal merged weights, all of them."""
    from peft import LoraConfig, get_peft_model

    from mmsurgery.methods.step import Answers
    from mmsurgery.unlearn.plan import equations

    result = apply(ws, "ga_diff", lora=LoRA(rank=4, modules="lm,connector"))
    loaded = load(ws.model_dir("vanilla"), torch.float32)
    torch.manual_seed(0)
    targets = "|".join(loaded.backbone.linear_targets(group) for group in ("lm", "connector"))
    config = LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets)
    model = get_peft_model(loaded.model, config).eval()
    forget, retain = tiny.sets["forget_vqa"], tiny.sets["retain_vqa"]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    with loop.deterministic(1):
        for step in equations(forget, retain, epochs=2, batch_size=2, retain_batch=2, seed=0):
            optimizer.zero_grad()
            for sign, places, samples in ((-1, step.forget, forget), (1, step.retain, retain)):
                batch = loaded.backbone.collate(loaded.processor, [samples[i] for i in places])
                (sign * Answers.of(model, batch).nll().mean()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    expected = dict(model.merge_and_unload().named_parameters())
    found = dict(load(result.path).model.named_parameters())
    assert expected.keys() == found.keys()
    for name, parameter in found.items():
        torch.testing.assert_close(parameter, expected[name], atol=1e-6, rtol=0)
    assert any(
        moved.any() for name, moved in changed(ws, result.model).items() if "connector" in name or "proj" in name
    )


def test_modules_choose_the_layers(ws: Workspace) -> None:
    result = apply(ws, "ga", lora=LoRA(rank=2, modules="vision.0-1,connector"))
    reached = {name for name, moved in changed(ws, result.model).items() if moved.any()}
    assert {load(result.path).addresses[name].group for name in reached} == {"vision", "connector"}
    assert result.record["lora"] == {"rank": 2, "layers": 2 * 6 + 2}
    assert result.claim == "none"


def test_a_killed_run_goes_on_to_the_same_bytes(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"mask": "default", "lora": RANK, "eval_every": 2}
    whole = apply(ws, "kl_min", name="whole", **options)

    class Killed(BaseException):
        pass

    clip, calls = loop._clip, iter(range(100))

    def dying(*arguments: Any) -> float:
        if next(calls) == 3:
            raise Killed
        return clip(*arguments)

    monkeypatch.setattr(Snapshots, "due", lambda self: True)
    monkeypatch.setattr(loop, "_clip", dying)
    with pytest.raises(Killed):
        apply(ws, "kl_min", name="cut", **options)
    monkeypatch.setattr(loop, "_clip", clip)
    torch.manual_seed(99)  # the adapters' beginning does not depend on it
    cut = apply(ws, "kl_min", name="cut", **options)
    assert (cut.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    for key in ("losses", "evaluations", "model_sha256"):
        assert cut.record[key] == whole.record[key]
    assert len(cut.record["losses"]) == 4


def test_what_is_refused(ws: Workspace, random_mask: Callable[..., Mask], loaded_llava: Loaded) -> None:
    with pytest.raises(UsageError, match=r"scope all - next: leave --scope out"):
        apply(ws, "ga_diff", mask="default", scope="forget", lora=RANK)
    with pytest.raises(UsageError, match="brings its own modules"):
        apply(ws, "ga_diff", mask="default", lora=LoRA(rank=4, modules="lm"))
    with pytest.raises(UsageError, match="rank is 0"):
        apply(ws, "ga_diff", lora=LoRA(rank=0))
    with pytest.raises(UsageError, match="no rank - next: pass --lora-rank"):
        lora_of(None, "lm")
    random_mask(loaded_llava, "lm.norm").write(ws.mask_path("norms"))
    with pytest.raises(UnusableData, match=r"LoRA has nothing to train: no weight of a linear layer in lm\.norm"):
        apply(ws, "ga_diff", mask="norms", lora=RANK)
    assert ws.models() == ["vanilla"]


def test_the_other_family(tiny_qwen2_vl: Path, random_mask: Callable[..., Mask], mixed_samples: list[Any]) -> None:
    """Fused vision qkv and a connector nested in the vision encoder."""
    loaded = load(tiny_qwen2_vl)
    before = copy.deepcopy(dict(loaded.model.named_parameters()))
    mask = random_mask(loaded, "vision,connector,lm")
    targets = RANK.targets(loaded.addresses, loaded.backbone, mask)
    assert {loaded.addresses[name].group for name in targets} == {"vision", "connector", "lm"}
    update = LowRankUpdate(loaded.model, RANK, targets, mask, seed=0)
    optimizer = torch.optim.AdamW(update.trainable.values(), lr=1e-2)
    batch = loaded.backbone.collate(loaded.processor, mixed_samples)
    for _ in range(3):
        optimizer.zero_grad()
        loaded.model(**batch).loss.backward()
        optimizer.step()
    merged = update.trained()
    assert set(merged) == set(targets)
    for name, parameter in merged.items():
        moved = (parameter != before[name]).numpy()
        assert not (moved & ~mask[name]).any()
        assert moved.sum() > 0.9 * mask[name].sum()
