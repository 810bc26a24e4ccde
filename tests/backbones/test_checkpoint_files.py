"""Checkpoint folders read without torch: one digest for one set of weights, and every fault refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmsurgery.artifacts.checkpoint import INDEX, SINGLE, CheckpointFiles
from mmsurgery.errors import InputRefused, Mismatch, MissingArtifact
from mmsurgery_llava import backbone, names

EMBED, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
Weights = dict[str, Any]


@pytest.fixture(scope="module")
def weights(tiny_llava: Path) -> Weights:
    """Canonical name -> array, read by safetensors itself."""
    return {names.canonical(name): array for name, array in load_file(tiny_llava / SINGLE).items()}


@pytest.fixture
def folder(tmp_path: Path, tiny_llava: Path, weights: Weights) -> Callable[..., Path]:
    """`folder(layout="published", shards=1, weights=..., config={}, name="model")`: a checkpoint folder."""

    def make(
        layout: str = "published",
        shards: int = 1,
        weights: Weights = weights,
        config: dict[str, Any] | None = None,
        name: str = "model",
    ) -> Path:
        path = tmp_path / name
        path.mkdir()
        written = json.loads((tiny_llava / "config.json").read_text()) | (config or {})
        (path / "config.json").write_text(json.dumps(written))
        stored = {names.on_disk(n, layout): array for n, array in weights.items()}
        if shards == 1:
            save_file(stored, path / SINGLE)
            return path
        weight_map = {n: f"model-{i % shards:05d}.safetensors" for i, n in enumerate(sorted(stored))}
        for file in set(weight_map.values()):
            save_file({n: stored[n] for n, f in weight_map.items() if f == file}, path / file)
        write_index(path, weight_map)
        return path

    return make


def write_index(path: Path, weight_map: dict[str, str], **metadata: Any) -> None:
    (path / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))


def read_index(path: Path) -> dict[str, str]:
    weight_map: dict[str, str] = json.loads((path / INDEX).read_text())["weight_map"]
    return weight_map


def digest(path: Path) -> str:
    return CheckpointFiles(path, backbone.canonical).digest()


def test_digest_is_what_it_says(tiny_llava: Path, weights: Weights) -> None:
    entries = [
        [n, "F32", list(weights[n].shape), hashlib.sha256(weights[n].tobytes()).hexdigest()] for n in sorted(weights)
    ]
    expected = hashlib.sha256(json.dumps(entries, separators=(",", ":")).encode()).hexdigest()
    assert digest(tiny_llava) == expected


@pytest.mark.parametrize("layout", names.LAYOUTS)
@pytest.mark.parametrize("shards", [1, 3])
def test_one_digest_whatever_the_layout(
    folder: Callable[..., Path], layout: str, shards: int, tiny_llava: Path, weights: Weights
) -> None:
    path = folder(layout, shards)
    assert digest(path) == digest(tiny_llava)
    files = CheckpointFiles(path, backbone.canonical)
    assert files.names == tuple(sorted(weights))
    for name in files.names:
        assert files.shape(name) == weights[name].shape
        assert np.array_equal(files.array(name), weights[name])


def test_any_bit_name_dtype_or_shape_changes_the_digest(folder: Callable[..., Path], weights: Weights) -> None:
    norm = "model.language_model.norm.weight"
    flipped = weights[norm].copy()
    flipped.view(np.uint32)[7] ^= 1
    other = {
        "bit": weights | {norm: flipped},
        "dtype": weights | {norm: weights[norm].astype(np.float64)},
        "shape": weights | {norm: weights[norm].reshape(1, -1)},
        "name": {(norm.replace("norm", "morn") if n == norm else n): array for n, array in weights.items()},
    }
    digests = {digest(folder(name="same"))} | {digest(folder(weights=w, name=n)) for n, w in other.items()}
    assert len(digests) == 5


def test_digest_is_remembered_until_a_file_changes(
    folder: Callable[..., Path], weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder()
    monkeypatch.setattr("mmsurgery.artifacts.digests._RACY", 0)
    first = digest(path)
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFiles, "_sha256", lambda self, name: pytest.fail("hashed again"))
        assert digest(path) == first
    save_file({names.on_disk(n, "published"): a + np.float32(n == HEAD) for n, a in weights.items()}, path / SINGLE)
    assert digest(path) != first


def test_values_as_float32(folder: Callable[..., Path], weights: Weights) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    path = folder()
    half = {n: torch.from_numpy(a.copy()).bfloat16() for n, a in weights.items()}
    save_torch({names.on_disk(n, "published"): t for n, t in half.items()}, path / SINGLE)
    files = CheckpointFiles(path, backbone.canonical)
    assert files.dtype(EMBED) == "BF16"
    assert np.array_equal(files.float32(EMBED), half[EMBED].float().numpy())
    with pytest.raises(InputRefused, match="has no parameter nothing"):
        files.array("nothing")


def test_buffers_that_are_recomputed_are_no_weights(folder: Callable[..., Path], weights: Weights) -> None:
    path = folder()
    stored = load_file(path / SINGLE)
    stored["vision_tower.vision_model.embeddings.position_ids"] = np.arange(5).reshape(1, 5)
    save_file(stored, path / SINGLE)
    assert digest(path) == digest(folder(name="without"))


def test_tied_head_is_one_parameter(folder: Callable[..., Path], weights: Weights) -> None:
    tied = {"tie_word_embeddings": True}
    once = {n: array for n, array in weights.items() if n != HEAD}
    head_only = {n: array for n, array in once.items() if n != EMBED} | {HEAD: weights[EMBED]}
    plain = folder(weights=once, config=tied)
    files = CheckpointFiles(plain, backbone.canonical)
    assert files.tied == {HEAD: EMBED}
    assert HEAD not in files
    assert digest(folder(weights=once | {HEAD: weights[EMBED]}, config=tied, name="twice")) == files.digest()
    assert digest(folder(weights=head_only, config=tied, name="head")) == files.digest()
    with pytest.raises(InputRefused, match=r"ties lm_head\.weight .* different values"):
        CheckpointFiles(folder(config=tied, name="differ"), backbone.canonical)
    assert CheckpointFiles(folder(name="untied"), backbone.canonical).tied == {}


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact, match="no model folder"):
        CheckpointFiles(tmp_path / "nothing", backbone.canonical)


def escape(path: Path, target: str) -> None:
    weight_map = read_index(path)
    write_index(path, weight_map | {min(weight_map): target})


def outside_link(path: Path) -> None:
    shard = path / min(read_index(path).values())
    shutil.move(shard, path.parent / "outside.safetensors")
    shard.symlink_to(path.parent / "outside.safetensors")


def in_two_shards(path: Path) -> None:
    first, second, *_ = sorted(set(read_index(path).values()))
    name, array = next(iter(load_file(path / first).items()))
    save_file(load_file(path / second) | {name: array}, path / second)


def not_listed(path: Path) -> None:
    weight_map = read_index(path)
    del weight_map[min(weight_map)]
    write_index(path, weight_map)


def rotate(path: Path) -> None:
    weight_map = read_index(path)
    files = [*weight_map.values()]
    write_index(path, dict(zip(weight_map, [*files[1:], files[0]], strict=True)))


def truncate(path: Path) -> None:
    file = path / max(read_index(path).values())
    file.write_bytes(file.read_bytes()[:-4])


INDEX_FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "parent": (lambda p: escape(p, "../x.safetensors"), "is not the name of a weight file"),
    "absolute": (lambda p: escape(p, "/etc/x.safetensors"), "is not the name of a weight file"),
    "other kind": (lambda p: escape(p, "config.json"), "is not the name of a weight file"),
    "zero byte": (lambda p: escape(p, "x\0.safetensors"), "is not the name of a weight file"),
    "link outside": (outside_link, "leads out of the checkpoint"),
    "missing shard": (lambda p: (p / min(read_index(p).values())).unlink(), "is missing"),
    "in two shards": (in_two_shards, "is in model-00000.safetensors and in model-00001.safetensors"),
    "not listed": (not_listed, "says tensor .* is in None, found in"),
    "wrong shard": (rotate, "says tensor .* is in model-.*, found in model-"),
    "total size": (lambda p: write_index(p, read_index(p), total_size=17), "says 17 bytes of tensors"),
    "cut shard": (truncate, "is cut"),
    "empty map": (lambda p: write_index(p, {}), "has no table of tensors"),
    "list": (lambda p: (p / INDEX).write_text("[]"), "has no table of tensors"),
    "not JSON": (lambda p: (p / INDEX).write_text("{"), "is not valid JSON"),
    "a number": (lambda p: write_index(p, {"x": 3}), "has no table of tensors"),  # type: ignore[dict-item]
    "both kinds": (lambda p: save_file({"x": np.zeros(1)}, p / SINGLE), "holds both"),
}


@pytest.mark.parametrize("fault", INDEX_FAULTS)
def test_bad_index_is_refused(folder: Callable[..., Path], fault: str) -> None:
    path = folder(shards=3)
    total = sum(f.nbytes for f in load_all(path).values())
    write_index(path, read_index(path), total_size=total)
    CheckpointFiles(path, backbone.canonical)
    damage, message = INDEX_FAULTS[fault]
    damage(path)
    with pytest.raises(InputRefused, match=message):
        CheckpointFiles(path, backbone.canonical)
    with pytest.raises(InputRefused, match=message):
        backbone.load_model(path)


def load_all(path: Path) -> Weights:
    return {n: a for file in set(read_index(path).values()) for n, a in load_file(path / file).items()}


def test_hub_cache_links_are_followed(folder: Callable[..., Path], tmp_path: Path, tiny_llava: Path) -> None:
    """models--org--name/snapshots/<commit>/file -> ../../blobs/<digest>, as the hub's cache is laid out."""
    source, cache = folder(shards=2), tmp_path / "models--org--name"
    snapshot, blobs = cache / "snapshots" / "0a1b", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(source.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    assert digest(snapshot) == digest(tiny_llava)
    backbone.load_model(snapshot)


def write(name: str, value: str) -> Callable[[Path], Any]:
    return lambda path: (path / name).write_text(value)


FOLDER_FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "remote code": (
        lambda p: rewrite(p, auto_map={"AutoModel": "modeling_x.X"}),
        "needs remote code; mmsurgery never runs it",
    ),
    "remote processor": (write("processor_config.json", '{"auto_map": {"AutoProcessor": "x.X"}}'), "needs remote code"),
    "remote tokenizer": (write("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["x.X"]}}'), "needs remote"),
    "quantised": (lambda p: rewrite(p, quantization_config={"bits": 4}), "holds quantised weights"),
    "no type": (lambda p: rewrite(p, model_type=None), "names no model_type"),
    "no config": (lambda p: (p / "config.json").unlink(), "config.json is missing"),
    "generation settings": (write("generation_config.json", '{"eos_token_id": 2'), "is not valid JSON"),
    "pictures as large as memory": (
        write("processor_config.json", '{"image_processor": {"size": {"shortest_edge": 4294967295}}}'),
        "says shortest_edge = 4,294,967,295, at most 131,072 is possible",
    ),
    "config list": (write("config.json", "[1]"), "is not a JSON object"),
    "double key": (write("config.json", '{"model_type": "llava", "model_type": "llava"}'), "a key stands twice"),
    "adapter": (write("adapter_config.json", "{}"), "holds a PEFT adapter"),
    "pickled": (lambda p: (p / SINGLE).rename(p / "pytorch_model.bin"), "may run code when read"),
    "no weights": (lambda p: (p / SINGLE).unlink(), "holds no weights"),
    "dangling link": (
        lambda p: ((p / SINGLE).unlink(), (p / SINGLE).symlink_to("nowhere.safetensors")),
        "is missing",
    ),
    "LFS pointer": (write(SINGLE, "version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
}


def rewrite(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_bad_folder_is_refused(folder: Callable[..., Path], fault: str) -> None:
    path = folder()
    damage, message = FOLDER_FAULTS[fault]
    damage(path)
    other = Mismatch if fault in ("quantised", "adapter") else InputRefused
    with pytest.raises(other, match=message):
        CheckpointFiles(path, backbone.canonical)


def test_one_parameter_under_two_names_is_refused(folder: Callable[..., Path]) -> None:
    path = folder()
    stored = load_file(path / SINGLE)
    stored["model.vision_tower.pre_layrnorm.weight"] = stored["vision_tower.vision_model.pre_layrnorm.weight"]
    save_file(stored, path / SINGLE)
    with pytest.raises(InputRefused, match=r"stores model\.vision_tower\.pre_layrnorm\.weight twice"):
        CheckpointFiles(path, backbone.canonical)


def test_no_torch_is_needed(tiny_llava: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from mmsurgery_llava import backbone\n"
        "from mmsurgery.artifacts.checkpoint import CheckpointFiles\n"
        "print(CheckpointFiles(Path(sys.argv[1]), backbone.canonical).digest(), 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tiny_llava)], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [digest(tiny_llava), "False"]
