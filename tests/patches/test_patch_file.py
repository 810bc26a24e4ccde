"""Patch files: written by the format alone, damaged in every byte, and built to mislead."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pairs import make_pair

from mmsurgery.artifacts.patch import Patch
from mmsurgery.artifacts.tensors import read_header, read_tensor, write_safetensors
from mmsurgery.errors import InputRefused, MissingArtifact, MmsurgeryError
from mmsurgery.patches import apply, create
from mmsurgery.provenance import canonical_json, seal, sha256
from mmsurgery.workspace import Workspace

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory, tiny_llava: Path) -> Workspace:
    made = make_pair(tmp_path_factory.mktemp("pairs") / "ws", tiny_llava, "BF16")
    create(made, "after")
    return made


def rebuilt(path: Path, target: Path, change: Callable[[dict[str, Any], dict[str, Array]], None]) -> Path:
    """A patch file changed in metadata and tensors, all seals and digests made right again."""
    header = read_header(path)
    tensors = {name: read_tensor(path, info) for name, info in header.tensors.items()}
    value = json.loads(header.metadata["mmsurgery"])
    change(value, tensors)
    for name, entry in value["parameters"].items():
        if "sha256" in entry:
            entry["sha256"] = {p: sha256(tensors[f"{name}.{p}"].tobytes()) for p in entry["sha256"]}
    value["sizes"]["payload"] = sum(array.size for array in tensors.values())
    write_safetensors(target, tensors, {"mmsurgery": canonical_json(seal(value)).decode()})
    return target


def test_the_format_read_without_our_code(ws: Workspace) -> None:
    """zlib, planes and packed bits as `docs/formats.md` says."""
    path = ws.patch_path("after")
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    about = json.loads(header["__metadata__"]["mmsurgery"])
    patch = Patch.load(path)
    seen = set()
    for name, entry in about["parameters"].items():
        if not entry["changed"]:
            continue
        parts = {}
        for part in ("changed", "xor"):
            begin, end = header[f"{name}.{part}"]["data_offsets"]
            data = raw[8 + length :][begin:end]
            code = entry["encoding"][part]
            seen.add((part, code))
            parts[part] = data if code == "raw" else zlib.decompress(data)
        bits = np.unpackbits(np.frombuffer(parts["changed"], np.uint8), bitorder="little")
        assert int(bits.sum()) == entry["changed"]
        xor = np.frombuffer(parts["xor"], np.uint8)
        if entry["encoding"]["xor"] != "raw":
            xor = np.ascontiguousarray(xor.reshape(2, -1).T).reshape(-1)
        assert np.array_equal(xor.view("<u2"), patch.xor(name))
    assert ("xor", "planes+zlib") in seen
    assert ("changed", "raw") in seen


@pytest.mark.parametrize("seed", range(3))
def test_no_flipped_byte_goes_unnoticed(ws: Workspace, tmp_path: Path, seed: int) -> None:
    data = ws.patch_path("after").read_bytes()
    rng = np.random.default_rng(seed)
    for place in rng.integers(0, len(data), 40):
        broken = bytearray(data)
        broken[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "p.safetensors").write_bytes(broken)
        with pytest.raises(MmsurgeryError):
            Patch.load(tmp_path / "p.safetensors")


def test_cut_empty_missing_and_foreign_files(ws: Workspace, tmp_path: Path) -> None:
    data, path = ws.patch_path("after").read_bytes(), tmp_path / "p.safetensors"
    for size in (0, 7, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(InputRefused):
            Patch.load(path)
    write_safetensors(path, {"a": np.zeros(3, np.float32)}, {"format": "pt"})
    with pytest.raises(InputRefused, match="no patch") as caught:
        Patch.load(path)
    assert caught.value.next_step == "name a patch: mmsurgery status lists them"
    with pytest.raises(MissingArtifact):
        Patch.load(tmp_path / "none.safetensors")


def of_encoding(value: dict[str, Any], part: str, code: str) -> str:
    """A parameter stored that way; the largest."""
    found = [n for n, e in value["parameters"].items() if e.get("encoding", {}).get(part) == code]
    return max(found, key=lambda n: int(np.prod(value["parameters"][n]["shape"])))


def bomb(value: dict[str, Any], tensors: dict[str, Array]) -> None:
    name = of_encoding(value, "xor", "planes+zlib")
    packed = zlib.compress(bytes(1 << 22), 9)
    assert len(packed) > 4000
    tensors[f"{name}.xor"] = np.frombuffer(packed[: tensors[f"{name}.xor"].size], np.uint8)


def small_bomb(value: dict[str, Any], tensors: dict[str, Array]) -> None:
    name = of_encoding(value, "xor", "planes+zlib")
    size = 2 * value["parameters"][name]["changed"]
    tensors[f"{name}.xor"] = np.frombuffer(zlib.compress(b"\1" * (size + 1)), np.uint8)


def trailing(value: dict[str, Any], tensors: dict[str, Array]) -> None:
    name = of_encoding(value, "xor", "planes+zlib")
    size = 2 * value["parameters"][name]["changed"]
    tensors[f"{name}.xor"] = np.frombuffer(zlib.compress(b"\1" * size) + b"more", np.uint8)


def pad_bits(value: dict[str, Any], tensors: dict[str, Array]) -> None:
    name = of_encoding(value, "changed", "raw")
    entry = value["parameters"][name]
    entry["shape"] = [int(np.prod(entry["shape"])) - 1]
    last = tensors[f"{name}.changed"].copy()
    last[-1] |= 0x80
    tensors[f"{name}.changed"] = last
    value["sizes"]["total"] -= 1
    value["sizes"]["checkpoint"] -= 2


def other_count(value: dict[str, Any], tensors: dict[str, Array]) -> None:
    name = of_encoding(value, "changed", "raw")
    tensors[f"{name}.changed"] = np.zeros_like(tensors[f"{name}.changed"])


def no_change(value: dict[str, Any], tensors: dict[str, Array]) -> None:
    name = of_encoding(value, "xor", "planes+zlib")
    size = 2 * value["parameters"][name]["changed"]
    tensors[f"{name}.xor"] = np.frombuffer(zlib.compress(bytes(size)), np.uint8)


def other_values(value: dict[str, Any], tensors: dict[str, Array]) -> None:
    name = of_encoding(value, "xor", "planes+zlib")
    size = 2 * value["parameters"][name]["changed"]
    tensors[f"{name}.xor"] = np.frombuffer(zlib.compress(b"\1" * size), np.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (bomb, "decompress"),
        (small_bomb, "does not decompress to"),
        (trailing, "does not decompress to"),
        (no_change, "do not change"),
        (other_values, "does not give the weights"),
    ],
)
def test_well_sealed_patches_that_mislead(
    ws: Workspace, tmp_path: Path, change: Callable[..., None], message: str
) -> None:
    path = rebuilt(ws.patch_path("after"), tmp_path / "p.safetensors", change)
    Patch.load(path)
    with pytest.raises(InputRefused, match=message):
        apply(ws, str(path), name="x")
    assert ws.models() == ["vanilla", "after"]


@pytest.mark.parametrize(("change", "message"), [(pad_bits, "pad bits"), (other_count, "marks 0 weights")])
def test_bits_that_mislead(ws: Workspace, tmp_path: Path, change: Callable[..., None], message: str) -> None:
    patch = Patch.load(rebuilt(ws.patch_path("after"), tmp_path / "p.safetensors", change))
    with pytest.raises(InputRefused, match=message) as caught:
        list(map(patch.changed, patch.names))
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("key", "entry"),
    [
        ("changed", 1 << 40),
        ("changed", -1),
        ("changed", True),
        ("dtype", "F4"),
        ("shape", [-1]),
        ("address", "nowhere"),
        ("encoding", {"changed": "raw", "xor": "zstd"}),
        ("sha256", None),
    ],
)
def test_impossible_entries(ws: Workspace, tmp_path: Path, key: str, entry: Any) -> None:
    def change(value: dict[str, Any], tensors: dict[str, Array]) -> None:
        name = of_encoding(value, "changed", "raw")
        value["parameters"][name] = {**value["parameters"][name], key: entry}
        if entry is None:
            del value["parameters"][name]["sha256"]

    path = rebuilt(ws.patch_path("after"), tmp_path / "p.safetensors", change)
    with pytest.raises(InputRefused, match="cannot be read") as caught:
        Patch.load(path)
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("extra", "unknown or missing keys: extra"),
        ("sizes", "sizes do not agree"),
        ("before", "before and after cannot"),
    ],
)
def test_metadata_that_is_refused_says_what_to_do(ws: Workspace, tmp_path: Path, key: str, message: str) -> None:
    def change(value: dict[str, Any], tensors: dict[str, Array]) -> None:
        value[key] = {"payload": 0}

    with pytest.raises(InputRefused, match=message) as caught:
        Patch.load(rebuilt(ws.patch_path("after"), tmp_path / "p.safetensors", change))
    assert caught.value.next_step
