"""Hostile masks, saliency, patches and masks of others."""

from __future__ import annotations

import json
import math
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from campaigns.scene import IMPORT, INSPECT, MEASURE, Bomb, Plant, Scene, special, text

from mmsurgery.artifacts.checkpoint import companions_sha256
from mmsurgery.artifacts.mask import pack
from mmsurgery.artifacts.patch import PLANES, RAW
from mmsurgery.artifacts.saliency_map import MANIFEST, write_manifest
from mmsurgery.artifacts.tensors import write_safetensors
from mmsurgery.provenance import canonical_json, seal, sha256, sha256_file

TERABYTE = 1 << 40


# safetensors


def _headed(header: Callable[[], bytes], size: int = 0) -> Plant:
    """A mask of a header, and of so many bytes of tensors, which are a hole."""

    def plant(scene: Scene) -> tuple[str, ...]:
        with scene.mask.open("wb") as handle:
            made = header()
            handle.write(struct.pack("<Q", len(made)) + made)
            handle.truncate(8 + len(made) + size)
        return INSPECT

    return plant


def _tensor(name: str = "x", size: int = 4, **other: Any) -> bytes:
    return json.dumps({name: {"dtype": "U8", "shape": [size], "data_offsets": [0, size], **other}}).encode()


def _renamed(to: str) -> Plant:
    """The workspace's mask with one parameter renamed."""

    def plant(scene: Scene) -> tuple[str, ...]:
        whole = scene.mask.read_bytes()
        (length,) = struct.unpack("<Q", whole[:8])
        header = json.loads(whole[8 : 8 + length])
        header[to] = header.pop(next(name for name in header if name != "__metadata__"))
        raw = json.dumps(header).encode()
        scene.mask.write_bytes(struct.pack("<Q", len(raw)) + raw + whole[8 + length :])
        return INSPECT

    return plant


def _hole_in_weights(scene: Scene) -> tuple[str, ...]:
    """Vanilla with one more tensor, of a terabyte that is a hole."""
    path = scene.place.vanilla / "model.safetensors"
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header, end = json.loads(whole[8 : 8 + length]), len(whole) - 8 - length
    header["language_model.model.more.weight"] = {"dtype": "U8", "shape": [TERABYTE]}
    header["language_model.model.more.weight"]["data_offsets"] = [end, end + TERABYTE]
    raw = json.dumps(header).encode()
    with path.open("wb") as handle:
        handle.write(struct.pack("<Q", len(raw)) + raw + whole[8 + length :])
        handle.truncate(8 + len(raw) + end + TERABYTE)
    return MEASURE


def _hole_in_mask(scene: Scene) -> tuple[str, ...]:
    """A mask, sealed, of one parameter that fills a terabyte with holes."""
    whole = scene.mask.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    value = json.loads(json.loads(whole[8 : 8 + length])["__metadata__"]["mmsurgery"])
    name = "lm_head.weight"
    value["parameters"] = {name: {**value["parameters"][name], "shape": [8 * TERABYTE]}}
    metadata = {"mmsurgery": canonical_json(seal(value)).decode()}
    header = {"__metadata__": metadata, name: {"dtype": "U8", "shape": [TERABYTE], "data_offsets": [0, TERABYTE]}}
    return _headed(lambda: json.dumps(header).encode(), TERABYTE)(scene)


# what is no file, or another one


def _zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


# HDF5


def _hdf5(make: Callable[[Any, Any, Scene], object]) -> Plant:
    """Saliency whose file is made by a function of file, group and scene, and whose digests fit."""

    def plant(scene: Scene) -> tuple[str, ...]:
        import h5py

        path = scene.part / "saliency.h5"
        path.unlink()
        with h5py.File(path, "w") as file:
            make(file, file.create_group("sum_of_squares"), scene)
        manifest = json.loads((scene.part / MANIFEST).read_text())
        manifest["files"] = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}}
        write_manifest(scene.part, manifest)
        return ("inspect", "theirs")

    return plant


def _virtual(file: Any, group: Any, scene: Scene) -> None:
    import h5py

    layout = h5py.VirtualLayout((4,), np.float32)
    layout[:] = h5py.VirtualSource(str(scene.baits / "secret.h5"), "x", (4,))
    group.create_virtual_dataset("x", layout)


def _linked(link: Callable[[Any, Scene], Any]) -> Plant:
    def make(file: Any, group: Any, scene: Scene) -> None:
        import h5py

        group["x"] = link(h5py, scene)

    return _hdf5(make)


def _filtered(file: Any, group: Any, scene: Scene) -> None:
    """A filter that only a plugin has; where plugins lie, a library is planted."""
    import h5py

    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((4,))
    properties.set_filter(32000, h5py.h5z.FLAG_OPTIONAL)
    h5py.h5d.create(group.id, b"x", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((4,)), properties)
    os.environ["HDF5_PLUGIN_PATH"] = str(scene.baits)


# pickles


def _pickled(how: str) -> Plant:
    def plant(scene: Scene) -> tuple[str, ...]:
        import torch

        path, value = scene.root / "theirs.pt", {"weight": {"x": Bomb(scene.marker)}}
        if how == "raw":
            path.write_bytes(pickle.dumps(value))
        else:
            protocol = 4 if how == "protocol 4" else 2
            torch.save(value, path, _use_new_zipfile_serialization=how != "legacy", pickle_protocol=protocol)
        return IMPORT

    return plant


def _archive(data: Callable[[Scene], bytes], kind: int = zipfile.ZIP_STORED, more: int = 0) -> Plant:
    """A `.pt` file around a pickle, with one storage of `more` zeros."""

    def plant(scene: Scene) -> tuple[str, ...]:
        with zipfile.ZipFile(scene.root / "theirs.pt", "w", kind) as archive:
            archive.writestr("theirs/data.pkl", data(scene))
            archive.writestr("theirs/version", "3\n")
            archive.writestr("theirs/data/0", bytes(more))
        return IMPORT

    return plant


def _doubling(scene: Scene) -> bytes:
    """A tuple of two of a tuple of two of ...: a few hundred bytes, never to be shown or walked."""
    return b"\x80\x02)" + b"".join(b"q%c2\x86" % n for n in range(250)) + b"."


def _storage(numel: int) -> Callable[[Scene], bytes]:
    """A mask whose one tensor says that its storage has `numel` elements."""

    def data(scene: Scene) -> bytes:
        import io

        import torch

        made = io.BytesIO()
        torch.save({"lm_head.weight": torch.zeros(3, dtype=torch.bool)}, made)
        with zipfile.ZipFile(made) as archive:
            whole = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        return whole.replace(b"K\x03", b"\x8a\x06" + numel.to_bytes(6, "little"))

    return data


def _inflating(scene: Scene) -> tuple[str, ...]:
    """A patch, sealed, of one parameter whose bytes decompress to ten times too many."""
    files, name = scene.place.files, "lm_head.weight"
    numel = math.prod(files.shape(name))
    bomb = zlib.compress(bytes(40 * numel), 9)
    stored = {"changed": pack(np.ones(numel, bool)).tobytes(), "xor": bomb}
    entry = {"shape": files.shape(name), "dtype": "F32", "address": "lm.head", "changed": numel}
    entry["encoding"] = {"changed": RAW, "xor": PLANES}
    entry["sha256"] = {part: sha256(data) for part, data in stored.items()}
    payload = sum(map(len, stored.values()))
    sizes = {"checkpoint": 4 * numel, "changed": numel, "total": numel, "payload": payload}
    side = {"model": "vanilla", "model_type": "llava", "model_sha256": files.digest(), "record": None}
    sides = {"before": side, "after": {**side, "model": "made", "model_sha256": "0" * 64}}
    value = {"schema": 1, "kind": "patch", **sides, "companions_sha256": companions_sha256(files.path)}
    value |= {"parameters": {name: entry}, "sizes": sizes, "provenance": {}}
    arrays = {f"{name}.{part}": np.frombuffer(data, np.uint8) for part, data in stored.items()}
    path = scene.root / "patches" / "inflates.safetensors"
    write_safetensors(path, arrays, {"mmsurgery": canonical_json(seal(value)).decode()})
    return ("patch", "apply", "inflates", "--name", "made")


ARTIFACTS: dict[str, tuple[int, Plant]] = {
    # name -> case, what is planted
    "tensor named as a path": (3, _renamed("../../../../x")),
    "tensor without a name": (3, _renamed("")),
    "tensor with a null in its name": (3, _renamed("a\0b")),
    "name that stands twice": (4, _headed(lambda: _tensor()[:-1] + b"," + _tensor()[1:], 4)),
    "header of 99 MB": (5, _headed(lambda: b"{" + b" " * 99_000_000 + b"}")),
    "header of 700,000 tensors": (5, _headed(lambda: b"{" + b",".join(b'"%d":{}' % n for n in range(700_000)) + b"}")),
    "tensor of a million dimensions": (5, _headed(lambda: _tensor(shape=[1] * 1_000_000), 4)),
    "header of millions of brackets": (5, _headed(lambda: b"[" * (16 << 20))),
    "header that is longer than the file": (5, lambda s: (s.mask.write_bytes(b"\xff" * 7 + b"\0{}"), INSPECT)[1]),
    "mask of a terabyte in a hole": (6, _hole_in_mask),
    "weights of a terabyte in a hole": (6, _hole_in_weights),
    "outside storage": (
        10,
        _hdf5(lambda f, g, s: g.create_dataset("x", (4,), np.float32, external=[(str(s.baits / "secret.bin"), 0, 16)])),
    ),
    "link to another file": (10, _linked(lambda h5py, s: h5py.ExternalLink(str(s.baits / "secret.h5"), "/x"))),
    "link inside the file": (10, _linked(lambda h5py, s: h5py.SoftLink("/sum_of_squares"))),
    "virtual dataset of another file": (10, _hdf5(_virtual)),
    "group inside itself": (11, _hdf5(lambda f, g, s: g.__setitem__("x", g))),
    "four terabytes declared": (12, _hdf5(lambda f, g, s: g.create_dataset("x", (1 << 40,), np.float32, chunks=(64,)))),
    "gzip of 64 MiB": (
        12,
        _hdf5(
            lambda f, g, s: g.create_dataset(
                "x", data=np.zeros(1 << 24, np.float32), chunks=(1 << 22,), compression="gzip", compression_opts=1
            )
        ),
    ),
    "filter of a plugin": (13, _hdf5(_filtered)),
    "pickle in a zip": (14, _pickled("zip")),
    "pickle of protocol 4": (14, _pickled("protocol 4")),
    "legacy pickle": (14, _pickled("legacy")),
    "bare pickle": (14, _pickled("raw")),
    "deflated storage": (15, _archive(lambda s: b"\x80\x02}.", zipfile.ZIP_DEFLATED, 1 << 26)),
    "tuple of tuples of tuples": (15, _archive(_doubling)),
    "storage of a hundred terabytes": (15, _archive(_storage(1 << 46), more=3)),
    "patch that inflates": (15, _inflating),
    "mask that is a pipe": (21, special("masks/default.safetensors", os.mkfifo, INSPECT)),
    "mask of endless zeros": (21, special("masks/default.safetensors", _zeros, INSPECT)),
    "mask that is a folder": (21, special("masks/default.safetensors", Path.mkdir, INSPECT)),
    "mask that is empty": (21, special("masks/default.safetensors", Path.touch, INSPECT)),
    "mask that is a page": (21, special("masks/default.safetensors", text("<!DOCTYPE html><p>404"), INSPECT)),
    "mask that is a pointer": (
        21,
        special("masks/default.safetensors", text("version https://git-lfs.github.com/spec/v1\n"), INSPECT),
    ),
    "manifest that is a pipe": (
        21,
        special("saliency/theirs/manifest.json", os.mkfifo, ("inspect", "theirs")),
    ),
}
"""Name -> case, what is planted."""
