"""What leaves when an artifact is shared: its files, a list of them with digests, a card, a heatmap; nothing else.

mmsurgery.json     kind, name, model, `files: {name: {bytes, sha256}}`, sealed
README.md          the card
heatmap.png        where the artifact has one
mask.safetensors | patch.safetensors | manifest.json and *.h5
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from mmsurgery import patches
from mmsurgery.artifacts.files import read_json, write_bytes, write_json
from mmsurgery.artifacts.find import Found
from mmsurgery.artifacts.mask import Mask
from mmsurgery.artifacts.patch import Patch
from mmsurgery.artifacts.saliency_map import MANIFEST, SaliencyMap, read_manifest
from mmsurgery.artifacts.tensors import read_header
from mmsurgery.errors import InputRefused, Mismatch
from mmsurgery.exchange.card import card
from mmsurgery.masks import inspect
from mmsurgery.names import check_artifact_name
from mmsurgery.provenance import SCHEMA, check_seal, parse_json, seal, sha256_file

LIST, CARD, PICTURE = "mmsurgery.json", "README.md", "heatmap.png"
_SINGLE = {"mask": "mask.safetensors", "patch": "patch.safetensors"}
KINDS = ("mask", "saliency", "patch")
_KEYS = {"schema", "kind", "artifact", "name", "model_type", "model_sha256", "files", "provenance"}
_FILE = re.compile(r"mask\.safetensors|patch\.safetensors|manifest\.json|saliency(-\d{5}-of-\d{5})?\.h5")


@dataclass(frozen=True)
class Parcel:
    """A folder that holds one artifact and what is said about it."""

    folder: Path
    kind: str
    """`mask`, `saliency` or `patch`."""
    name: str
    model_type: str
    model_sha256: str
    """Of the model it belongs to: the one it was made for; of a patch the one before."""
    files: Mapping[str, Mapping[str, Any]]
    """The artifact's own files: name -> `bytes`, `sha256`."""

    @property
    def everything(self) -> list[str]:
        """All files of the parcel, sorted."""
        beside = [name for name in (LIST, CARD, PICTURE) if (self.folder / name).exists()]
        return sorted([*self.files, *beside])


def pack_parcel(found: Found, folder: Path) -> Parcel:
    """Fill an empty folder with an artifact, which is verified first.

    Raises:
        InputRefused: if the artifact is damaged.
        Mismatch: if it holds an absolute path, which would say something about the machine it was made on.
    """
    model = _verified(found.kind, found.path)
    sources = {_SINGLE[found.kind]: found.path} if found.kind in _SINGLE else _saliency_files(found.path)
    for name, source in sources.items():
        shutil.copyfile(source, folder / name)
    _check_nothing_local(found, _records(folder, sources))
    files = {n: {"bytes": (folder / n).stat().st_size, "sha256": sha256_file(folder / n)} for n in sorted(sources)}
    if _verified(found.kind, folder / _SINGLE[found.kind] if found.kind in _SINGLE else folder) != model:
        raise InputRefused(f"{found.path} changed while it was read", "push it again")
    record = {
        "schema": SCHEMA,
        "kind": "parcel",
        "artifact": found.kind,
        "name": found.name,
        **model,
        "files": files,
        "provenance": {},
    }
    write_json(folder / LIST, seal(record))
    described = patches.describe(found.path) if found.kind == "patch" else inspect.describe(found.path)
    picture = _draw(described, folder / PICTURE)
    write_bytes(folder / CARD, card(found.kind, found.name, described, picture=PICTURE if picture else None).encode())
    return Parcel(folder, found.kind, found.name, model["model_type"], model["model_sha256"], files)


def read_list(path: Path) -> dict[str, Any]:
    """The checked list of a parcel.

    Raises:
        InputRefused: if it is none, or names files that no parcel has.
    """
    record = check_seal(read_json(path, 1 << 20), LIST, kind="parcel")
    files = record.get("files")
    sound = set(record) == _KEYS and record["artifact"] in KINDS and isinstance(files, dict) and bool(files)
    sound = sound and all(isinstance(record[key], str) for key in ("name", "model_type", "model_sha256"))
    if not sound or not all(_FILE.fullmatch(n) and isinstance(f, dict) for n, f in dict(files or {}).items()):
        raise InputRefused(f"{LIST} cannot be read", "ask for it to be pushed again")
    check_artifact_name(record["name"])
    return record


def open_parcel(folder: Path) -> Parcel:
    """A parcel that arrived, every file and the artifact itself verified.

    Raises:
        InputRefused: if anything is missing, damaged or not as the list says.
    """
    record = read_list(folder / LIST)
    for name, claim in record["files"].items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != claim.get("sha256"):
            raise InputRefused(f"{name} is missing or not as {LIST} says", "pull again; else ask for a new push")
    kind = record["artifact"]
    model = _verified(kind, folder / _SINGLE[kind] if kind in _SINGLE else folder)
    if model != {key: record[key] for key in model}:
        raise InputRefused(f"{LIST} names another model than the {kind} itself", "ask for it to be pushed again")
    return Parcel(folder, kind, record["name"], record["model_type"], record["model_sha256"], record["files"])


def unpack_parcel(parcel: Parcel, target: Path) -> None:
    """Copy the artifact's files into place: a file, or an empty folder."""
    if parcel.kind in _SINGLE:
        shutil.copyfile(parcel.folder / _SINGLE[parcel.kind], target)
        return
    for name in parcel.files:
        shutil.copyfile(parcel.folder / name, target / name)


def _verified(kind: str, path: Path) -> dict[str, str]:
    """The model an artifact belongs to, once all its digests are checked."""
    if kind == "mask":
        base = Mask.load(path).base
        return {"model_type": base["model_type"], "model_sha256": base["model_sha256"]}
    if kind == "patch":
        before = Patch.load(path).before
        return {"model_type": before["model_type"], "model_sha256": before["model_sha256"]}
    saliency = SaliencyMap.load(path)
    return {"model_type": saliency.model_type, "model_sha256": saliency.model_sha256}


def _saliency_files(folder: Path) -> dict[str, Path]:
    return {name: folder / name for name in (MANIFEST, *read_manifest(folder)["files"])}


def _records(folder: Path, names: Mapping[str, Path]) -> Iterator[Any]:
    for name in names:
        if name == MANIFEST:
            yield read_json(folder / name)
        elif name.endswith(".safetensors"):
            text = read_header(folder / name).metadata["mmsurgery"]
            yield parse_json(text.encode(), f"metadata of {name}")


def _check_nothing_local(found: Found, records: Iterator[Any]) -> None:
    for text in _texts(list(records)):
        if PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or text.startswith("~/"):
            raise Mismatch(f"{found.kind} '{found.name}' holds a path of this machine: {text}", "make it again by name")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield key
            yield from _texts(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _texts(entry)


def _draw(described: Mapping[str, Any], path: Path) -> bool:
    from mmsurgery.figures.heatmap import draw

    maps = inspect.heatmaps(dict(described))
    if maps:
        draw(maps, path)
    return bool(maps)
