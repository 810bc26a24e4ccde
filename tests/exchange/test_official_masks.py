"""Official `.pt` masks: in, fail closed; out, as the official trainer uses them."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from notes import Notes

from mmsurgery.artifacts.mask import Mask
from mmsurgery.backbones.loading import Loaded
from mmsurgery.errors import InputRefused, Mismatch, MmsurgeryError, UnusableData, UsageError
from mmsurgery.exchange.export import export
from mmsurgery.exchange.masks import import_mask
from mmsurgery.settings import Settings
from mmsurgery.workspace import Workspace

LAYER = "model.language_model.layers.0."
DOWN, UP = LAYER + "mlp.down_proj.weight", LAYER + "mlp.up_proj.weight"


@pytest.fixture
def ws(tmp_path: Path, tiny_llava: Path) -> Workspace:
    workspace = Workspace(tmp_path / "ws", Settings())
    shutil.copytree(tiny_llava, workspace.model_dir("vanilla"))
    return workspace


@pytest.fixture
def drawn(loaded_llava: Loaded) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {n: torch.rand(p.shape, generator=generator) < 0.5 for n, p in loaded_llava.model.named_parameters()}


def saved(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


@pytest.mark.parametrize("layout", ["memory", "published", "module.", "base_model.model."])
def test_names_of_every_layout_become_the_same_mask(
    ws: Workspace, tmp_path: Path, drawn: dict[str, torch.Tensor], loaded_llava: Loaded, layout: str
) -> None:
    published = loaded_llava.backbone.published
    rename: Callable[[str], str] = {"memory": str, "published": published}.get(layout, lambda name: layout + name)
    table = {rename(name): bits for name, bits in drawn.items()}
    file = saved(tmp_path / "m.pt", {"weight": table, "forget_grad": {}, "preserve_grad": {}})
    mask = import_mask(ws, [file], name="theirs").mask
    assert set(mask) == set(drawn)
    assert all(np.array_equal(mask[name], bits.numpy()) for name, bits in drawn.items())
    assert Mask.load(ws.mask_path("theirs")) == mask
    assert (mask.rule, mask.modules) == ("imported", "vision,connector,lm")
    assert mask.base["model_sha256"] == loaded_llava.model_sha256
    assert import_mask(ws, [file], name="theirs").up_to_date


def test_the_integer_0_none_and_absent_names(ws: Workspace, tmp_path: Path, drawn: dict[str, torch.Tensor]) -> None:
    file = saved(tmp_path / "m.pt", {"weight": {DOWN: drawn[DOWN], UP: 0, "lm_head.weight": None}})
    notes = Notes()
    mask = import_mask(ws, [file], name="frozen", progress=notes).mask  # type: ignore[arg-type]
    assert any("integer 0" in line and UP in line for line in notes.texts)
    assert mask.selected == int(drawn[DOWN].sum()) == int(mask[DOWN].sum())
    assert mask.modules == "lm"
    assert mask.counts["absent"] == mask.total - drawn[DOWN].numel() - drawn[UP].numel()
    updated = import_mask(ws, [file], name="updated", absent="update").mask
    assert updated["lm_head.weight"].all()
    assert not updated[UP].any()
    assert updated.provenance["settings"]["absent"] == "update"
    with pytest.raises(Mismatch, match="absent"):
        import_mask(ws, [file], name="frozen", absent="update")
    with pytest.raises(UsageError, match="absent"):
        import_mask(ws, [file], name="other", absent="ignore")


def on_a_gpu(path: Path) -> Path:
    """The file as it is saved where its tensors lie on one."""
    made = path.with_name("gpu.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w") as new:
        for entry in old.namelist():
            data = old.read(entry)
            new.writestr(
                entry, data.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0") if entry.endswith(".pkl") else data
            )
    return made


@pytest.mark.parametrize(
    "how",
    [
        lambda bits: bits.to(torch.int8),
        lambda bits: bits.double().requires_grad_(),
        lambda bits: torch.nn.Parameter(bits.half()),
        lambda bits: bits.t().contiguous().t(),
        lambda bits: torch.cat([bits, bits])[: len(bits)],
    ],
    ids=["int8", "requires grad", "parameter", "transposed", "part of a larger one"],
)
@pytest.mark.parametrize("place", ["cpu", "gpu"])
def test_tensors_of_every_kind_with_the_gradients_beside_them(
    ws: Workspace, tmp_path: Path, drawn: dict[str, torch.Tensor], how: Callable[[torch.Tensor], Any], place: str
) -> None:
    """Cases 16 and 79."""
    grads = {"forget_grad": {DOWN: torch.randn(32, 64), UP: None}, "preserve_grad": {DOWN: torch.randn(32, 64)}}
    file = saved(tmp_path / "m.pt", {"weight": {DOWN: how(drawn[DOWN]), UP: 0}, **grads})
    mask = import_mask(ws, [on_a_gpu(file) if place == "gpu" else file], name="theirs").mask
    assert np.array_equal(mask[DOWN], drawn[DOWN].numpy())
    assert mask.selected == int(drawn[DOWN].sum())


def test_files_are_united_and_modules_restrict(ws: Workspace, tmp_path: Path, drawn: dict[str, torch.Tensor]) -> None:
    first = saved(tmp_path / "a.pt", {DOWN: drawn[DOWN]})
    second = saved(tmp_path / "b.pt", {DOWN: ~drawn[DOWN], UP: drawn[UP].to(torch.float32)})
    mask = import_mask(ws, [first, second], name="both").mask
    assert mask[DOWN].all()
    assert np.array_equal(mask[UP], drawn[UP].numpy())
    kept = import_mask(ws, [first, second], name="up", modules="lm.0.mlp.up").mask
    assert kept.selected == int(drawn[UP].sum())
    with pytest.raises(UnusableData, match="0 of"):
        import_mask(ws, [first], name="none", modules="vision")


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        ({DOWN: torch.full((32, 64), 0.3)}, InputRefused, "other than 0 and 1"),
        ({DOWN: torch.full((32, 64), float("nan"))}, InputRefused, "other than 0 and 1"),
        ({DOWN: torch.ones(64, 32, dtype=torch.bool)}, Mismatch, "shape"),
        ({DOWN: torch.ones(1, dtype=torch.bool).expand(1 << 20, 1 << 20)}, Mismatch, "shape"),
        ({DOWN + "s": torch.ones(32, 64, dtype=torch.bool)}, Mismatch, "1 of 1: .*nearest: " + DOWN),
        ({DOWN: 1}, InputRefused, "no tensor"),
        ({DOWN: torch.ones(32, 64), "module." + DOWN: torch.zeros(32, 64)}, InputRefused, "twice"),
        ({}, InputRefused, "no mask"),
        ([torch.ones(2)], InputRefused, "no mask"),
        ({"weight": {DOWN: 0}, "more": 1}, InputRefused, "beside 'weight'"),
        ({DOWN: torch.ones(32, 64).to_sparse()}, InputRefused, "contains code"),
        ({"model": {"weight": {DOWN: torch.ones(32, 64)}}}, Mismatch, "names parameters that the model does not have"),
    ],
)
def test_what_does_not_fit_is_refused(
    ws: Workspace, tmp_path: Path, value: Any, error: type[MmsurgeryError], match: str
) -> None:
    with pytest.raises(error, match=match):
        import_mask(ws, [saved(tmp_path / "m.pt", value)], name="bad")
    assert not ws.path("masks").exists() or not any(ws.path("masks").iterdir())


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("how", ["zip", "legacy", "raw", "protocol 4"])
def test_code_is_never_run(ws: Workspace, tmp_path: Path, how: str) -> None:
    file, marker = tmp_path / "m.pt", tmp_path / "marker"
    value = {"weight": {DOWN: Bomb(marker)}}
    if how == "raw":
        file.write_bytes(pickle.dumps(value))
    else:
        protocol = 4 if how == "protocol 4" else 2
        torch.save(value, file, _use_new_zipfile_serialization=how != "legacy", pickle_protocol=protocol)
    with pytest.raises(InputRefused) as caught:
        import_mask(ws, [file], name="bad")
    assert caught.value.code == 3
    assert not marker.exists()


def test_compressed_archives_and_large_files_are_refused(
    ws: Workspace, tmp_path: Path, drawn: dict[str, torch.Tensor]
) -> None:
    plain, packed = saved(tmp_path / "m.pt", {DOWN: drawn[DOWN]}), tmp_path / "packed.pt"
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
    with pytest.raises(InputRefused, match="compressed"):
        import_mask(ws, [packed], name="bad")
    with (tmp_path / "large.pt").open("wb") as handle:
        handle.write(b"PK")
        handle.truncate(1 << 30)
    with pytest.raises(InputRefused, match="larger"):
        import_mask(ws, [tmp_path / "large.pt"], name="bad")
    plain.write_bytes(plain.read_bytes()[:-100])
    with pytest.raises(InputRefused):
        import_mask(ws, [plain], name="bad")


@pytest.mark.parametrize("release", ["transformers 5", "before 4.52"])
def test_the_official_trainer_obeys_an_exported_mask(
    ws: Workspace, tmp_path: Path, drawn: dict[str, torch.Tensor], loaded_llava: Loaded, release: str
) -> None:
    file = saved(tmp_path / "m.pt", {DOWN: drawn[DOWN]})
    mask = import_mask(ws, [file], name="theirs").mask
    out = export(ws, "theirs", format="official")
    assert out.path == ws.path("exports", "theirs.pt")
    grad_mask = torch.load(out.path, weights_only=True)["weight"]
    # the trainer: drop names without these syllables, then multiply where the name is in the table
    grad_mask = {k: v for k, v in grad_mask.items() if any(s in k for s in ("proj", "fc", "linear", "mlp", "qkv"))}
    rename = str if release == "transformers 5" else loaded_llava.backbone.published
    obeyed = 0
    for name, parameter in loaded_llava.model.named_parameters():
        grad = torch.ones_like(parameter)
        if rename(name) in grad_mask:
            grad *= grad_mask[rename(name)]
            obeyed += 1
            assert np.array_equal(grad.numpy() != 0, mask[name])
    assert obeyed == sum(any(s in n for s in ("proj", "fc", "linear", "mlp", "qkv")) for n in drawn)
    back = import_mask(ws, [out.path], name="back", modules="lm").mask
    assert all(np.array_equal(back[name], mask[name]) for name in mask)
    assert out.path.stat().st_size < 1.2 * mask.total + 200_000  # both names share one tensor
    assert export(ws, "theirs", format="official").up_to_date
