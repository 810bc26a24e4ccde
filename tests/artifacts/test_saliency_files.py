"""Saliency maps: sums that add up, the files' layout, and what is refused on reading."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from damage import flips, mutations
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsurgery.artifacts import hdf5, saliency_map
from mmsurgery.artifacts.hdf5_write import CHUNKED_FROM, to_bfloat16
from mmsurgery.artifacts.saliency_map import SaliencyMap, content_sha256, read_manifest, write_manifest
from mmsurgery.errors import InputRefused, Mismatch, MissingArtifact, MmsurgeryError, UnusableData, UsageError
from mmsurgery.provenance import sha256

SHAPES = {"a.weight": (3, 5), "b.bias": (), "c.weight": (0, 4), "d.weight": (2, 3, 4), "e": (17,)}


def saliency(seed: int = 0, *, dtype: Any = np.float32, **changes: Any) -> SaliencyMap:
    generator = np.random.default_rng(seed)
    values = {
        "part": "forget_vqa",
        "estimator": "sample",
        "batch_size": None,
        "units": 4,
        "model_type": "llava",
        "model_sha256": "m" * 64,
        "data_sha256": "d" * 64,
        "arrays": {n: np.asarray(generator.chisquare(1, s) * 1e-7, dtype) for n, s in SHAPES.items()},
        "no_gradient": {"z.weight": (4, 4)},
        "tied": {"head": "a.weight"},
        "provenance": {"inputs": {"template_sha256": "t" * 64}},
    }
    return SaliencyMap(**(values | changes))


def same(one: SaliencyMap, other: SaliencyMap) -> bool:
    fields = ("part", "estimator", "batch_size", "units", "model_type", "model_sha256", "data_sha256", "tied", "names")
    values = all(getattr(one, field) == getattr(other, field) for field in fields)
    return (
        values
        and set(one.arrays) == set(other.arrays)
        and all(np.array_equal(one.arrays[n], other.arrays[n]) for n in one.arrays)
    )


# values


def test_looking_into_it() -> None:
    one = saliency()
    assert one.names == ["a.weight", "b.bias", "c.weight", "d.weight", "e", "z.weight"]
    assert one.sum_of_squares("e") is one.arrays["e"]
    assert np.array_equal(one.saliency("e"), one.arrays["e"].astype(np.float64) / 4)
    assert (one.shape("e"), one.shape("z.weight")) == ((17,), (4, 4))
    for missing in ("z.weight", "nothing"):
        with pytest.raises(KeyError):
            one.sum_of_squares(missing)
    with pytest.raises(UsageError, match="sum_of_squares"):
        one.sum_of_gradients("e")
    signed = saliency(estimator="dataset")
    assert np.array_equal(signed.saliency("e"), (signed.arrays["e"].astype(np.float64) / 4) ** 2)
    with pytest.raises(UsageError, match="sum_of_gradients"):
        signed.sum_of_squares("e")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_shards_add_up(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    shards = [saliency(seed + i, dtype=np.float64, units=int(generator.integers(1, 9))) for i in range(count)]
    merged = SaliencyMap.merge(shards)
    assert merged.units == sum(shard.units for shard in shards)
    for name in SHAPES:
        expected = np.sum([shard.arrays[name] for shard in shards], axis=0)
        assert np.allclose(merged.arrays[name], expected, rtol=1e-12, atol=0)


def test_a_parameter_silent_in_one_shard_counts_there_as_zero() -> None:
    whole = saliency()
    arrays = {n: a for n, a in whole.arrays.items() if n != "e"}
    silent = replace(whole, arrays=arrays, no_gradient={**whole.no_gradient, "e": (17,)})
    for shards in ([whole, silent], [silent, whole]):
        merged = SaliencyMap.merge(shards)
        assert np.array_equal(merged.arrays["e"], whole.arrays["e"])
        assert set(merged.no_gradient) == {"z.weight"}
        assert merged.shape("z.weight") == (4, 4)


@pytest.mark.parametrize(
    "change",
    [
        {"part": "retain_qa"},
        {"data_sha256": "x" * 64},
        {"model_sha256": "x" * 64},
        {"estimator": "batch", "batch_size": 4},
        {"provenance": {"inputs": {"template_sha256": "x"}}},
        {"no_gradient": {}},
    ],
)
def test_what_does_not_belong_together_does_not_merge(change: dict[str, Any]) -> None:
    with pytest.raises(Mismatch) as caught:
        SaliencyMap.merge([saliency(), saliency(**change)])
    assert caught.value.code == 4


def test_batches_of_other_sizes_do_not_merge() -> None:
    one = saliency(estimator="batch", batch_size=4)
    with pytest.raises(Mismatch, match="batch_size: 4 and 2"):
        SaliencyMap.merge([one, replace(one, batch_size=2)])


def test_nothing_to_merge() -> None:
    with pytest.raises(UsageError):
        SaliencyMap.merge([])


# files


@pytest.mark.parametrize("estimator", ["sample", "batch", "dataset"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_saved_and_loaded_is_the_same(estimator: str, dtype: Any, tmp_path: Path) -> None:
    one = saliency(estimator=estimator, dtype=dtype, batch_size=4 if estimator == "batch" else None)
    one.save(tmp_path / "part")
    loaded = SaliencyMap.load(str(tmp_path / "part"))
    assert same(one, loaded)
    for name in SHAPES:
        assert loaded.arrays[name].dtype == dtype
        assert loaded.arrays[name].shape == loaded.shape(name) == SHAPES[name]
        assert np.array_equal(np.concatenate(list(loaded.blocks(name))), one.arrays[name].reshape(-1))
    assert loaded.no_gradient == {"z.weight": (4, 4)}
    assert loaded.template_sha256 == "t" * 64
    with pytest.raises(KeyError):
        loaded.arrays["z.weight"]


def test_asking_for_names_reads_no_tensor(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = SaliencyMap.load(part)
    monkeypatch.setattr(hdf5, "read", lambda dataset: pytest.fail("read"))
    assert "e" in loaded.arrays
    assert "z.weight" not in loaded.arrays
    assert loaded.names
    assert len(loaded.arrays) == 5
    loaded.same_kind(loaded)


def test_layout_is_what_the_contract_says(tmp_path: Path) -> None:
    saliency().save(tmp_path / "part")
    assert sorted(p.name for p in (tmp_path / "part").iterdir()) == ["manifest.json", "saliency.h5"]
    manifest = json.loads((tmp_path / "part" / "manifest.json").read_text())
    keys = "schema kind part estimator batch_size units model_type model_sha256 data_sha256 no_gradient tied files "
    keys += "provenance"
    assert sorted(manifest) == sorted(keys.split())
    data = (tmp_path / "part" / "saliency.h5").read_bytes()
    assert manifest["files"] == {"saliency.h5": {"bytes": len(data), "sha256": sha256(data)}}
    assert (manifest["kind"], manifest["no_gradient"], manifest["tied"]) == (
        "saliency",
        ["z.weight"],
        {"head": "a.weight"},
    )
    with h5py.File(tmp_path / "part" / "saliency.h5") as file:
        assert list(file) == ["sum_of_squares"]
        for name, shape in SHAPES.items():
            dataset = file["sum_of_squares"][name]
            assert (dataset.shape, dataset.dtype, dataset.chunks, dataset.compression) == (
                shape,
                np.dtype("<f4"),
                None,
                None,
            )
            assert not dataset.attrs


def test_large_datasets_are_chunked_and_small_ones_contiguous(tmp_path: Path) -> None:
    shapes = {"below": (1023, 1025), "at": (1024, 1024), "flat": (CHUNKED_FROM + 3,), "wide": (3, 500_001)}
    one = saliency(arrays={n: np.arange(math.prod(s), dtype=np.float32).reshape(s) for n, s in shapes.items()})
    one.save(tmp_path / "part")
    with h5py.File(tmp_path / "part" / "saliency.h5") as file:
        chunks = {name: file["sum_of_squares"][name].chunks for name in shapes}
    assert chunks["below"] is None
    assert all(chunks[name] for name in ("at", "flat", "wide"))
    assert all(math.prod(chunks[name]) <= CHUNKED_FROM for name in ("at", "flat", "wide"))
    loaded = SaliencyMap.load(tmp_path / "part")
    for name in shapes:
        assert np.array_equal(loaded.arrays[name], one.arrays[name])
        for size in (1 << 20, 70_001):
            blocks = [block.copy() for block in loaded.blocks(name, size)]
            assert [block.size for block in blocks] == [block.size for block in one.blocks(name, size)]
            assert np.array_equal(np.concatenate(blocks), one.arrays[name].reshape(-1))


def test_bfloat16_halves_the_file_and_rounds_to_nearest(tmp_path: Path) -> None:
    import torch

    values = np.random.default_rng(0).chisquare(1, 200_000).astype(np.float32)
    values[:4] = [0.0, 1.0, 1.00390625, 1.01171875]  # the last two lie halfway: to even, down and up
    one = saliency(arrays={"w": values, "s": values[7].copy()})
    one.save(tmp_path / "half", store="bfloat16")
    one.save(tmp_path / "full")
    loaded = SaliencyMap.load(tmp_path / "half")
    expected = torch.from_numpy(values.copy()).bfloat16().float().numpy()
    assert np.array_equal(loaded.arrays["w"], expected)
    assert loaded.arrays["w"][2:4].tolist() == [1.0, 1.015625]
    assert loaded.arrays["s"].shape == ()
    sizes = [(tmp_path / p / "saliency.h5").stat().st_size for p in ("half", "full")]
    assert sizes[0] < 2.1 * 200_001
    assert sizes[1] < 4.1 * 200_001
    with h5py.File(tmp_path / "half" / "saliency.h5") as file:
        assert file["sum_of_squares/w"].attrs["encoding"] == "bfloat16"
        assert file["sum_of_squares/w"].dtype == np.dtype("<u2")


@pytest.mark.parametrize("shape", [(), (0,), (3, 7), (1000, 600)])
def test_bfloat16_of_any_bits_in_any_shape_and_order(shape: tuple[int, ...]) -> None:
    """The last shape is encoded in blocks, the last of them shorter; NaN, infinity and overflow included."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, shape, np.uint32)
    wide = bits.astype(np.uint64)
    expected = (((wide + 0x7FFF + ((wide >> 16) & 1)) & 0xFFFFFFFF) >> 16).astype(np.uint16)
    for ordered in (bits, np.asarray(bits, order="F")):
        encoded = to_bfloat16(ordered.view(np.float32))
        assert (encoded.dtype, encoded.shape) == (np.uint16, shape)
        assert np.array_equal(encoded, expected)


def test_same_bytes_each_time(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        saliency().save(tmp_path / folder)
    for file in ("saliency.h5", "manifest.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_large_maps_take_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saliency_map, "FILE_BYTES", 100)
    one = saliency()
    one.save(tmp_path / "part")
    # 60 | 4 + 0 + 96 | 68 bytes
    assert sorted(p.name for p in (tmp_path / "part").glob("*.h5")) == [
        f"saliency-{i:05d}-of-00003.h5" for i in (1, 2, 3)
    ]
    assert same(one, SaliencyMap.load(tmp_path / "part"))


def test_an_existing_folder_is_kept_unless_replaced(tmp_path: Path) -> None:
    saliency(0).save(tmp_path / "part")
    with pytest.raises(Mismatch, match="exists"):
        saliency(1).save(tmp_path / "part")
    assert same(SaliencyMap.load(tmp_path / "part"), saliency(0))
    saliency(1).save(tmp_path / "part", replace=True)
    assert same(SaliencyMap.load(tmp_path / "part"), saliency(1))
    assert [p.name for p in tmp_path.iterdir()] == ["part"]


def test_no_array_at_all(tmp_path: Path) -> None:
    one = saliency(arrays={})
    one.save(tmp_path / "part")
    assert SaliencyMap.load(tmp_path / "part").names == ["z.weight"]


def test_content_is_independent_of_provenance(tmp_path: Path) -> None:
    saliency().save(tmp_path / "one")
    saliency(provenance={"versions": {"torch": "9"}}).save(tmp_path / "two")
    saliency(1).save(tmp_path / "three")
    one, two, three = (content_sha256(read_manifest(tmp_path / name)) for name in ("one", "two", "three"))
    assert one == two != three


# refusals


@pytest.fixture
def part(tmp_path: Path) -> Path:
    saliency().save(tmp_path / "part")
    return tmp_path / "part"


CHANGES: list[tuple[str, Any, int]] = [
    ("kind", "mask", 3),
    ("schema", 2, 4),
    ("units", 0, 5),
    ("units", -1, 3),
    ("units", 1.0, 3),
    ("units", True, 3),
    ("units", 10**400, 3),
    ("estimator", "exact", 3),
    ("estimator", ["sample"], 3),
    ("estimator", "batch", 3),
    ("batch_size", 0, 3),
    ("batch_size", "4", 3),
    ("no_gradient", {"z.weight": 1}, 3),
    ("no_gradient", [3], 3),
    ("no_gradient", ["z.weight", "z.weight"], 3),
    ("no_gradient", ["../../x"], 3),
    ("no_gradient", ["e"], 3),
    ("tied", {"head": 3}, 3),
    ("tied", {"": "a"}, 3),
    ("tied", [], 3),
    ("files", [], 3),
    ("files", {"saliency.h5": 3}, 3),
    ("files", {"saliency.h5": {"bytes": "1", "sha256": "x"}}, 3),
    ("files", {"../saliency.h5": {"bytes": 1, "sha256": "x"}}, 3),
    ("files", {"/etc/passwd": {"bytes": 1, "sha256": "x"}}, 3),
    ("files", {"other.h5": {"bytes": 1, "sha256": "x"}}, 3),
    ("files", {}, 3),
    ("model_sha256", None, 3),
    ("part", 3, 3),
    ("provenance", {"no_gradient_shapes": {"z.weight": "44"}}, 3),
    ("provenance", {"no_gradient_shapes": {"z.weight": [-1]}}, 3),
    ("provenance", {"no_gradient_shapes": []}, 3),
    ("provenance", [], 3),
    ("surplus", 1, 3),
    ("tied", ..., 3),
]


@pytest.mark.parametrize(("key", "new", "code"), CHANGES, ids=[f"{k}-{i}" for i, (k, _, _) in enumerate(CHANGES)])
def test_sealed_nonsense_is_refused(key: str, new: Any, code: int, part: Path) -> None:
    manifest = json.loads((part / "manifest.json").read_text())
    if new is ...:
        del manifest[key]
    else:
        manifest[key] = new
    if isinstance(manifest["provenance"], dict):
        write_manifest(part, manifest)
    else:
        (part / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MmsurgeryError) as caught:
        SaliencyMap.load(part)
    assert caught.value.code == code
    assert isinstance(caught.value, (InputRefused, Mismatch, UnusableData))


def test_template_of_odd_provenance() -> None:
    for odd in ({"inputs": 3}, {"inputs": None}, {}):
        assert saliency(provenance=odd).template_sha256 is None


def test_incomplete_folders(part: Path) -> None:
    with pytest.raises(MissingArtifact, match="mmsurgery saliency"):
        SaliencyMap.load(part.parent / "none")
    (part / "saliency.h5").rename(part / "away")
    with pytest.raises(InputRefused, match=r"saliency\.h5 is missing"):
        SaliencyMap.load(part)
    (part / "away").rename(part / "saliency.h5")
    (part / "other.h5").write_bytes(b"x")
    with pytest.raises(InputRefused, match=r"other\.h5, which its manifest does not name"):
        SaliencyMap.load(part)
    (part / "other.h5").unlink()
    (part / "manifest.json").unlink()
    with pytest.raises(InputRefused, match=r"holds no manifest\.json"):
        SaliencyMap.load(part)


def survives(part: Path, file: str, data: bytes) -> bool:
    """Whether a damaged file is refused, or leaves every value as it was."""
    (part / file).write_bytes(data)
    try:
        return same(saliency(), SaliencyMap.load(part))
    except InputRefused:
        return True
    except Mismatch as error:
        return "schema" in error.what
    except UnusableData as error:
        return "no unit" in error.what


@pytest.mark.parametrize(("file", "step"), [("saliency.h5", 7), ("manifest.json", 1)])
def test_no_flipped_bit_goes_unnoticed(file: str, step: int, part: Path) -> None:
    data = (part / file).read_bytes()
    bad = [i for i, variant in enumerate(flips(data, 0, step)) if not survives(part, file, variant)]
    assert bad == []


@pytest.mark.parametrize("file", ["saliency.h5", "manifest.json"])
def test_no_damage_goes_unnoticed(file: str, part: Path) -> None:
    data = (part / file).read_bytes()
    for index, variant in enumerate(mutations(data, 0, 100)):
        assert survives(part, file, variant), index


def test_a_flip_right_after_reading_is_seen(part: Path) -> None:
    # within one tick of the file system's clock size, times and inode stay what they were
    SaliencyMap.load(part)
    data = bytearray((part / "saliency.h5").read_bytes())
    data[-3] ^= 1
    with (part / "saliency.h5").open("r+b") as handle:
        handle.write(data)
    with pytest.raises(InputRefused, match="damaged"):
        SaliencyMap.load(part)


def test_damaged_hdf5_with_a_digest_that_fits_is_refused_or_read_but_never_breaks(
    part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 8."""
    monkeypatch.setattr(hdf5, "_SECONDS", 1)
    data, refused = (part / "saliency.h5").read_bytes(), 0
    for variant in mutations(data, 0, 100):
        (part / "saliency.h5").write_bytes(variant)
        manifest = json.loads((part / "manifest.json").read_text())
        manifest["files"]["saliency.h5"] = {"bytes": len(variant), "sha256": sha256(variant)}
        write_manifest(part, manifest)
        try:
            loaded = SaliencyMap.load(part)
            for name in loaded.arrays:
                loaded.arrays[name]
        except InputRefused:
            refused += 1
    assert refused > 50


def test_a_library_that_breaks_is_refused_as_the_file_is(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 9: one byte makes it go round for ever; nobody knows another that makes it crash."""
    monkeypatch.setattr(hdf5, "_SECONDS", 1)
    path = part.with_name("endless.h5")
    with h5py.File(path, "w") as file:
        file.create_group("sum_of_squares").create_dataset("a", data=np.ones(4, np.uint16)).attrs["encoding"] = (
            "bfloat16"
        )
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"GCOL") + 24] = 0  # size of the first object of the heap that holds the attribute's text
    path.write_bytes(whole)
    with pytest.raises(InputRefused, match=r"endless\.h5 cannot be read as HDF5: its reader took more than 1 s"):
        hdf5.datasets(path, "sum_of_squares")
    monkeypatch.setattr(hdf5, "_checked", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(InputRefused, match="its reader died: Killed"):
        SaliencyMap.load(part)
    monkeypatch.setattr(hdf5, "_checked", lambda *_: os.abort() if len(bytearray(2 << 30)) else None)
    with pytest.raises(InputRefused, match="MemoryError"):
        SaliencyMap.load(part)


# hostile HDF5


def hostile(path: Path, make: Any) -> Path:
    with h5py.File(path, "w") as file:
        make(file, file.create_group("sum_of_squares"))
    return path


def test_links_and_outside_storage_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.ones(4, np.float32)
    raw = tmp_path / "raw.bin"
    raw.write_bytes(b"\0" * 16)

    def virtual(file: Any, group: Any) -> None:
        layout = h5py.VirtualLayout((4,), np.float32)
        layout[:] = h5py.VirtualSource(str(secret), "x", (4,))
        group.create_virtual_dataset("v", layout)

    def live(file: Any, group: Any) -> None:
        group["b"] = np.ones(4, np.float32)
        group["a"] = h5py.SoftLink("/sum_of_squares/b")

    def cycle(file: Any, group: Any) -> None:
        group["again"] = group

    makers: dict[str, Any] = {
        "soft": lambda file, group: group.__setitem__("a", h5py.SoftLink("/sum_of_squares/b")),
        "external": lambda file, group: group.__setitem__("a", h5py.ExternalLink(str(secret), "/x")),
        "storage": lambda file, group: group.create_dataset("a", (4,), np.float32, external=[(str(raw), 0, 16)]),
        "virtual": virtual,
        "cycle": cycle,
        "live": live,
        "group": lambda file, group: group.create_group("a"),
        "type": lambda file, group: group.__setitem__("a", np.dtype("f4")),
        "gzip": lambda file, group: group.create_dataset("a", data=np.ones(100, np.float32), compression="gzip"),
        "checksum": lambda file, group: group.create_dataset("a", data=np.ones(100, np.float32), fletcher32=True),
        "int": lambda file, group: group.create_dataset("a", data=np.ones(4, np.int32)),
        "big-endian": lambda file, group: group.create_dataset("a", data=np.ones(4, ">f4")),
        "half": lambda file, group: group.create_dataset("a", data=np.ones(4, np.float16)),
        "uint16": lambda file, group: group.create_dataset("a", data=np.ones(4, np.uint16)),
        "text": lambda file, group: group.create_dataset("a", data="text"),
        "empty": lambda file, group: group.create_dataset("a", data=h5py.Empty("f4")),
        "bomb": lambda file, group: group.create_dataset("a", (1 << 40,), np.float32, chunks=(1 << 20,)),
        "name": lambda file, group: group.create_dataset("../x y", data=np.ones(4, np.float32)),
        "second": lambda file, group: file.create_group("other"),
        "compound": lambda file, group: group.create_dataset("a", data=np.zeros(2, [("x", "f4")])),
    }
    for why, make in makers.items():
        with pytest.raises(InputRefused):
            hdf5.datasets(hostile(tmp_path / f"{why}.h5", make), "sum_of_squares")


def test_a_linked_group_is_not_followed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["sum_of_squares"] = h5py.ExternalLink("b.h5", "/")
    with pytest.raises(InputRefused, match="one group"):
        hdf5.datasets(tmp_path / "a.h5", "sum_of_squares")


def test_files_that_are_no_hdf5(tmp_path: Path) -> None:
    for data in (b"", b"hello", b"\x89HDF\r\n\x1a\n" + b"\xff" * 200):
        (tmp_path / "x.h5").write_bytes(data)
        with pytest.raises(InputRefused):
            hdf5.datasets(tmp_path / "x.h5", "sum_of_squares")


def test_filter_plugins_are_never_loaded(part: Path) -> None:
    code = (
        "import os, sys; os.environ['HDF5_PLUGIN_PATH'] = '/tmp'\n"
        "from mmsurgery.artifacts.saliency_map import SaliencyMap\n"
        f"SaliencyMap.load({str(part)!r}).arrays['e']\n"
        "assert os.environ['HDF5_PLUGIN_PRELOAD'] == '::'\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_file_that_changes_after_loading_is_refused_or_right(part: Path) -> None:
    loaded = SaliencyMap.load(part)
    os.truncate(part / "saliency.h5", 500)
    for read in (lambda: loaded.arrays["e"], lambda: list(loaded.blocks("e"))):
        with pytest.raises(InputRefused, match="cannot be read"):
            read()


def test_a_path_may_be_text(tmp_path: Path) -> None:
    saliency().save(str(tmp_path / "part"))
    assert SaliencyMap.load(str(tmp_path / "part")).units == saliency().units
