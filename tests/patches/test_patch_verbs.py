"""`patch create|apply|revert`: round trips bit for bit, in every dtype and layout, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pairs import copy_model, make_pair, nudge

from mmsurgery.artifacts.checkpoint import RUN_FILE, CheckpointFiles
from mmsurgery.artifacts.files import read_json, write_json
from mmsurgery.artifacts.tensors import read_header, read_tensor, write_safetensors_stream
from mmsurgery.backbones.discovery import backbone
from mmsurgery.errors import Mismatch, MissingArtifact, UnusableData, UsageError
from mmsurgery.patches import apply, create, describe, revert
from mmsurgery.provenance import seal
from mmsurgery.unlearn.record import sealed


def same_files(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files, byte for byte."""
    return {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in other.iterdir()}


def digest(folder: Path) -> str:
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    return CheckpointFiles(folder, backbone(model_type).canonical).digest()


def differing(one: Path, other: Path) -> int:
    """Weights whose bytes differ, counted from the files alone."""
    count = 0
    for file in sorted(one.glob("*.safetensors")):
        header = read_header(file)
        for info in header.tensors.values():
            bits = [read_tensor(each / file.name, info) for each in (one, other)]
            pattern = f"u{bits[0].itemsize}"
            count += int((bits[0].view(pattern) != bits[1].view(pattern)).sum())
    return count


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@pytest.mark.parametrize(("dtype", "shards"), [("F32", 1), ("BF16", 3), ("F16", 1)])
def test_round_trips_are_bit_exact(
    request: pytest.FixtureRequest, tmp_path: Path, family: str, dtype: str, shards: int
) -> None:
    ws = make_pair(tmp_path / "ws", request.getfixturevalue(f"tiny_{family}"), dtype, shards=shards)
    vanilla, after = ws.model_dir("vanilla"), ws.model_dir("after")
    made = create(ws, "after")
    assert made.changed == differing(vanilla, after) > 0
    assert made.bytes == made.path.stat().st_size
    assert made.share == made.bytes / made.checkpoint_bytes
    assert not apply(ws, "after", name="again").up_to_date
    assert same_files(ws.model_dir("again"), after)
    assert not revert(ws, "after", name="back").up_to_date
    assert same_files(ws.model_dir("back"), vanilla)
    assert revert(ws, "after", name="back").up_to_date
    assert apply(ws, "after").up_to_date
    assert create(ws, "after").up_to_date


def test_a_patch_applies_to_another_layout_of_its_base(tmp_path: Path, tiny_llava: Path) -> None:
    ws = make_pair(tmp_path / "ws", tiny_llava)
    create(ws, "after")
    family = backbone("llava")
    other = tmp_path / "other"
    shutil.copytree(ws.model_dir("vanilla"), other)
    file = other / "model.safetensors"
    tensors = {family.canonical(n): (i, read_tensor(file, i)) for n, i in read_header(file).tensors.items()}
    assert set(tensors) != set(read_header(file).tensors)
    layout = {name: (info.dtype, info.shape) for name, (info, _) in tensors.items()}
    write_safetensors_stream(file, layout, ((n, tensors[n][1]) for n in sorted(tensors)), {"format": "pt"})
    done = apply(ws, "after", to=str(other), name="relaid")
    assert set(read_header(done.path / "model.safetensors").tensors) == set(tensors)
    assert digest(done.path) == digest(ws.model_dir("after"))


def special(name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Signs of zeros, NaN and infinities: what equality of numbers would not see."""
    flat = values.reshape(-1).copy()
    flat[:3] = -flat[:3]
    flat[3:6] = [np.nan, np.inf, -np.inf][: flat[3:6].size]
    return flat.reshape(values.shape)


def test_bits_are_compared_not_numbers(tmp_path: Path, tiny_llava: Path) -> None:
    ws = make_pair(tmp_path / "ws", tiny_llava, change=special)
    create(ws, "after")
    apply(ws, "after", name="again")
    assert same_files(ws.model_dir("again"), ws.model_dir("after"))


def test_the_record_comes_along_and_names_the_new_model(tmp_path: Path, tiny_llava: Path) -> None:
    ws = make_pair(tmp_path / "ws", tiny_llava)
    folder = ws.model_dir("after")
    body = {"model": "after", "method": "npo", "claim": "none", "start": "vanilla", "model_type": "llava"}
    rest = {"steps": {}, "moved": {}, "provenance": {"settings": {}, "inputs": {}}}
    record = sealed({**body, **rest, "model_sha256": digest(folder)})
    write_json(folder / RUN_FILE, record)
    made = create(ws, "after")
    assert made.before == "vanilla"
    shutil.move(folder, tmp_path / "aside")
    apply(ws, "after")
    assert same_files(folder, tmp_path / "aside")
    apply(ws, "after", name="other")
    assert read_json(ws.model_dir("other") / RUN_FILE) == seal({**record, "model": "other"})
    digest(ws.model_dir("other"))
    assert not (revert(ws, "after", name="back").path / RUN_FILE).exists()


def test_other_models_are_refused_and_nothing_appears(tmp_path: Path, tiny_llava: Path, tiny_qwen2_vl: Path) -> None:
    ws = make_pair(tmp_path / "ws", tiny_llava)
    create(ws, "after")
    with pytest.raises(Mismatch, match="belongs to weights"):
        apply(ws, "after", to="after", name="x")
    with pytest.raises(Mismatch, match="belongs to weights"):
        revert(ws, "after", start="vanilla", name="x")
    with pytest.raises(Mismatch, match="is for llava"):
        apply(ws, "after", to=str(tiny_qwen2_vl), name="x")
    config = tmp_path / "config"
    shutil.copytree(ws.model_dir("vanilla"), config)
    (config / "generation_config.json").write_text('{"max_length": 7}')
    with pytest.raises(Mismatch, match="configuration or processor"):
        apply(ws, "after", to=str(config), name="x")
    with pytest.raises(MissingArtifact, match="did you mean 'after'"):
        apply(ws, "afte", name="x")
    assert ws.models() == ["vanilla", "after"]


def test_names_that_are_taken_need_force(tmp_path: Path, tiny_llava: Path) -> None:
    ws = make_pair(tmp_path / "ws", tiny_llava)
    made = create(ws, "after")
    copy_model(ws.model_dir("vanilla"), ws.model_dir("other"), change=lambda name, values: values + 1)
    with pytest.raises(Mismatch, match="made with other after"):
        create(ws, "other", name="after")
    with pytest.raises(Mismatch, match="exists, with other weights"):
        apply(ws, "after", name="other")
    assert not apply(ws, "after", name="other", force=True).up_to_date
    assert same_files(ws.model_dir("other"), ws.model_dir("after"))
    revert(ws, "after", name="after", force=True)
    assert same_files(ws.model_dir("after"), ws.model_dir("vanilla"))
    assert made.path.exists()


def test_what_cannot_be_a_patch_is_refused(tmp_path: Path, tiny_llava: Path) -> None:
    ws = make_pair(tmp_path / "ws", tiny_llava, change=lambda name, values: values)
    with pytest.raises(UnusableData, match="same weights"):
        create(ws, "after")
    with pytest.raises(UsageError, match="are both"):
        create(ws, "vanilla")
    with pytest.raises(MissingArtifact, match="no model was unlearned"):
        create(ws)
    copy_model(tiny_llava, ws.model_dir("half"), "F16")
    with pytest.raises(Mismatch, match="dtypes"):
        create(ws, "half")
    (ws.model_dir("after") / "generation_config.json").write_text('{"max_length": 7}')
    with pytest.raises(Mismatch, match="configuration or processor"):
        create(ws, "after")
    assert not ws.patches()


def test_description_counts_what_changed(tmp_path: Path, tiny_llava: Path) -> None:
    ws = make_pair(tmp_path / "ws", tiny_llava, change=lambda n, v: nudge(n, v) if "language_model" in n else v)
    made = create(ws, "after")
    found = describe(made.path)
    assert found["kind"] == "patch"
    assert found["before"]["model_sha256"] == digest(ws.model_dir("vanilla"))
    assert found["by_group"]["lm"]["changed"] == found["changed"] == made.changed
    assert found["by_group"]["vision"]["changed"] == 0 < found["by_group"]["vision"]["total"]
    for key in ("by_group", "by_layer", "by_component"):
        assert sum(entry["total"] for entry in found[key].values()) == made.total


def test_a_trained_model_is_not_replaced(tmp_path: Path, tiny_llava: Path) -> None:
    ws = make_pair(tmp_path / "ws", tiny_llava, "F32")
    create(ws, "after")
    before = (ws.model_dir("vanilla") / "model.safetensors").read_bytes()
    shutil.copytree(ws.model_dir("vanilla"), ws.model_dir("base"))
    for name in ("vanilla", "base"):
        with pytest.raises(UsageError, match="a patch does not replace it"):
            apply(ws, "after", name=name, force=True)
        assert (ws.model_dir(name) / "model.safetensors").read_bytes() == before


def test_a_named_source_is_checked_where_the_result_is_there(tmp_path: Path, tiny_llava: Path) -> None:
    ws = make_pair(tmp_path / "ws", tiny_llava, "F32")
    create(ws, "after")
    assert revert(ws, "after").up_to_date
    with pytest.raises(Mismatch, match="belongs to weights"):
        revert(ws, "after", start="vanilla")
    with pytest.raises(Mismatch, match="belongs to weights"):
        apply(ws, "after", to="after")


def test_models_of_two_families_share_no_patch(tmp_path: Path, tiny_llava: Path, tiny_qwen2_vl: Path) -> None:
    ws = make_pair(tmp_path / "ws", tiny_llava)
    with pytest.raises(Mismatch, match="'tiny-qwen2-vl' is a qwen2_vl model, 'after' a llava") as caught:
        create(ws, "after", before=str(tiny_qwen2_vl))
    assert caught.value.code == 4
    assert not list(ws.path("patches").glob("*"))
