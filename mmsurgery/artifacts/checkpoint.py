"""The weights of a Hugging Face folder, read tensor by tensor under canonical names, without torch.

The same weights have one digest whatever their layout on disk: sharded or not, published names or
in-memory names, a tied head stored twice or once.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmsurgery.artifacts.digests import digest_cache, file_identity
from mmsurgery.artifacts.files import read_at, read_json, unreadable
from mmsurgery.artifacts.tensors import Header, TensorInfo, memory_map, read_header, to_float32
from mmsurgery.errors import InputRefused, Mismatch, MissingArtifact
from mmsurgery.hub_models import CONVERT
from mmsurgery.paths import real
from mmsurgery.provenance import check_seal, sha256_file, sha256_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_TIED_HEAD = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
_RECOMPUTED = ("position_ids", "inv_freq", "original_inv_freq")
"""Buffers that older releases stored and every release recomputes; they are no weights."""
_CONFIGS = tuple(f"{what}config.json" for what in ("", "generation_", "processor_", "preprocessor_", "tokenizer_"))
_WEIGHT_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,200}\.safetensors")
_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "depth")
_GEOMETRY = {
    **dict.fromkeys(("height", "width", "patch_size", "num_additional_image_tokens"), 1 << 14),
    "shortest_edge": 1 << 17,
    "longest_edge": 1 << 26,
}
"""Numbers of processors, by which they would fill any memory, and what they are at most (edges may count pixels)."""
_CHUNK = 4 << 20
_COPIED = (".json", ".jinja", ".model", ".txt")

RUN_FILE = "mmsurgery-run.json"
"""The record beside the weights of a model that mmsurgery made."""
FURTHER_TEMPLATES = "additional_chat_templates"
"""A folder of chat templates by name, which transformers reads; no part of a model here."""


def model_config(path: Path) -> dict[str, Any]:
    """The `config.json` of a local checkpoint folder.

    Raises:
        MissingArtifact: if the folder does not exist.
        InputRefused: if it holds no model, one that needs remote code, or links that lead out of it.
        Mismatch: if it holds an adapter of a model.
    """
    if not path.is_dir():
        raise MissingArtifact(
            f"no model folder {path}", "name a model that mmsurgery status lists, or a checkpoint folder"
        )
    if (path / "adapter_config.json").exists():
        raise Mismatch(
            f"{path} holds a PEFT adapter, not a model of its own", f"mmsurgery import {path} --name NAME merges it"
        )
    if not (path / "config.json").exists():
        raise InputRefused(
            f"{path} is no model folder: config.json is missing", "name a Hugging Face checkpoint folder"
        )
    companion_files(path)
    _check_further_templates(path)
    for name in _CONFIGS:
        if (path / name).exists():
            value = read_json(path / name)
            if not isinstance(value, dict):
                raise InputRefused(f"{path / name} is not a JSON object")
            if value.get("auto_map"):
                raise InputRefused(
                    f"{path / name} needs remote code; mmsurgery never runs it",
                    "use a checkpoint that transformers loads without code of its own",
                )
            _check_geometry(path / name, value)
    config: dict[str, Any] = read_json(path / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise InputRefused(f"{path / 'config.json'} names no model_type")
    return config


def companion_files(folder: Path) -> list[Path]:
    """The files beside the weights that a model needs: configuration, tokenizer, processor, shard index.

    Raises:
        InputRefused: if one is a link that leads out of the checkpoint.
    """
    found = []
    for path in sorted(folder.iterdir()):
        wanted = path.suffix in _COPIED and not path.name.startswith((".", "mmsurgery"))
        if wanted and ".bin." not in path.name and path.is_file():
            _check_inside(folder, path)
            found.append(path)
    return found


def _check_further_templates(folder: Path) -> None:
    """Check that what other programs read as a part of the checkpoint is one."""
    templates = folder / FURTHER_TEMPLATES
    _check_inside(folder, templates)
    if templates.is_dir():
        for path in sorted(templates.iterdir()):
            _check_inside(folder, path)


def _check_inside(folder: Path, path: Path) -> None:
    target, home = real(path), real(folder)
    if target.parent not in (home, home / FURTHER_TEMPLATES) and not (
        home.parent.name == "snapshots" and target.is_relative_to(home.parent.parent)
    ):
        raise InputRefused(f"{path} leads out of the checkpoint, to {target}", "copy the file itself")


def companions_sha256(folder: Path) -> str:
    """Digest of the companion files: what turns samples into tokens, and the model's architecture."""
    return sha256_json([[path.name, sha256_file(path)] for path in companion_files(folder) if path.name != INDEX])


class CheckpointFiles:
    """The tensors of a checkpoint folder by canonical name, single file or sharded safetensors.

    Args:
        path: a Hugging Face checkpoint folder.
        canonical: stored name -> canonical name, see `backbones.protocol.Backbone.canonical`.
        tied: alias -> name of the parameters that are one where the config ties word embeddings.

    Raises:
        MissingArtifact: if the folder does not exist.
        InputRefused: for missing, damaged or pickled weights, remote code, an index that leaves the folder
            or disagrees with its shards, one parameter stored twice, a config of more layers than tensors.
        Mismatch: for quantised weights, or an adapter.
    """

    def __init__(self, path: Path, canonical: Callable[[str], str], tied: Mapping[str, str] = _TIED_HEAD) -> None:
        self.path = path
        self.config = model_config(path)
        if self.config.get("quantization_config"):
            raise Mismatch(f"{path} holds quantised weights", "name the checkpoint it was quantised from")
        headers = _headers(path)
        self.files = tuple(header.path for header in headers)
        """The weight files, sorted by name."""
        self._tensors: dict[str, tuple[Path, TensorInfo]] = {}
        stored_as: dict[str, str] = {}
        for header in headers:
            for stored, info in header.tensors.items():
                name = canonical(stored)
                if name.rpartition(".")[2] in _RECOMPUTED:
                    continue
                if name in stored_as:
                    raise InputRefused(f"{path} stores {name} twice, as {stored_as[name]} and {stored}")
                stored_as[name] = stored
                self._tensors[name] = (header.path, info)
        _check_layers(path, self.config, len(self._tensors))
        self.tied = self._drop_aliases(tied) if _ties(self.config) else {}
        """Alias -> name of parameters that are one; the alias is not among `names`."""

    def _drop_aliases(self, tied: Mapping[str, str]) -> dict[str, str]:
        """Keep each tied parameter once, under its name; transformers ties either way round."""
        kept = {}
        for alias, name in tied.items():
            if alias in self._tensors and name in self._tensors:
                if self.dtype(alias) != self.dtype(name) or self._sha256(alias) != self._sha256(name):
                    raise InputRefused(f"{self.path} ties {alias} to {name} but stores different values for them")
                del self._tensors[alias]
            elif alias in self._tensors:
                self._tensors[name] = self._tensors.pop(alias)
            if name in self._tensors:
                kept[alias] = name
        return kept

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Canonical names, sorted."""
        return tuple(sorted(self._tensors))

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def _entry(self, name: str) -> tuple[Path, TensorInfo]:
        try:
            return self._tensors[name]
        except KeyError:
            raise InputRefused(f"{self.path} has no parameter {name}") from None

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name)[1].shape

    def dtype(self, name: str) -> str:
        """The safetensors dtype code, e.g. `F32` or `BF16`."""
        return self._entry(name)[1].dtype

    def array(self, name: str) -> np.ndarray[Any, np.dtype[Any]]:
        """A read-only memory map of a tensor in its shape; bfloat16 as uint16 bit patterns."""
        return memory_map(*self._entry(name))

    def float32(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """A tensor's values as float32, in its shape."""
        return to_float32(self.array(name), self.dtype(name))

    def digest(self) -> str:
        """The model's identity `model_sha256`: SHA-256 of the canonical JSON of the sorted list of
        `[name, dtype, shape, sha256 of the little-endian bytes]`; remembered while the files are
        the same.

        Raises:
            InputRefused: if the folder holds the record of a run, and weights, configuration or
                processor files are not those that it wrote.
        """
        entries = [(name, *self._entry(name)) for name in self.names]
        layout = sha256_json([[name, file.name, info.begin] for name, file, info in entries])
        identity: list[Any] = [layout, *([file.name, *file_identity(file)] for file in self.files)]
        digest = digest_cache.remember(f"model:{real(self.path)}", identity, self._digest)
        self._check_record(digest)
        return digest

    def _check_record(self, digest: str) -> None:
        path = self.path / RUN_FILE
        if not path.exists():
            return
        record = check_seal(read_json(path), str(path), kind="run")
        name, again = self.path.name, _made_again_by(record)
        if record.get("model_sha256") != digest:
            raise InputRefused(f"the weights of model '{name}' are not those its run wrote", again)
        if record.get("companions_sha256", companions := companions_sha256(self.path)) != companions:
            raise InputRefused(f"configuration or processor of model '{name}' are not those its run wrote", again)

    def _digest(self) -> str:
        return sha256_json([[n, self.dtype(n), list(self.shape(n)), self._sha256(n)] for n in self.names])

    def _sha256(self, name: str) -> str:
        """Digest of a tensor's bytes, by reading: a file that is cut meanwhile must not kill the process."""
        path, info = self._entry(name)
        digest, left = hashlib.sha256(), info.end - info.begin
        try:
            with path.open("rb") as handle:
                handle.seek(info.begin)
                while left:
                    chunk = handle.read(min(left, _CHUNK))
                    if not chunk:
                        raise InputRefused(f"{path} was cut while it was read", "make or copy it again")
                    digest.update(chunk)
                    left -= len(chunk)
        except OSError as error:
            raise InputRefused(f"{path} cannot be read: {error.strerror}", "copy the checkpoint again") from error
        return digest.hexdigest()


class WeightReader:
    """Reads parts of a checkpoint's tensors into memory of the caller's, from several threads if need be. Unlike a
    memory map, it survives that a file is cut meanwhile.

    Raises:
        InputRefused: if a file cannot be opened.
    """

    def __init__(self, files: CheckpointFiles) -> None:
        self._files = files
        self._handles: dict[Path, int] = {}
        try:
            for path in files.files:
                self._handles[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(self._handles[path], 0, 0, os.POSIX_FADV_SEQUENTIAL)
        except OSError as error:
            self.close()
            raise unreadable(Path(error.filename), error) from error

    def read(self, name: str, start: int, out: np.ndarray[Any, np.dtype[Any]]) -> None:
        """Fill `out`, of the dtype as stored, with the weights from the flat index `start` on.

        Raises:
            InputRefused: if they cannot be read whole.
        """
        path, info = self._files._entry(name)
        try:
            read_at(self._handles[path], memoryview(out.data).cast("B"), info.begin + start * out.itemsize)
        except ValueError as error:
            raise InputRefused(f"{path} was cut while it was read", "make or copy it again") from error
        except OSError as error:
            raise unreadable(path, error) from error

    def close(self) -> None:
        for handle in self._handles.values():
            os.close(handle)
        self._handles = {}


def _check_layers(path: Path, config: Any, tensors: int) -> None:
    """Refuse a config of more layers than there are tensors: building them would take for ever."""
    for key, value in config.items():
        if isinstance(value, dict):
            _check_layers(path, value, tensors)
        elif key in _LAYERS and type(value) is int and value > tensors:
            raise InputRefused(f"{path / 'config.json'} says {key} = {value:,}, the files hold {tensors} tensors")


def _check_geometry(path: Path, settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if isinstance(value, dict):
            _check_geometry(path, value)
        elif key in _GEOMETRY and isinstance(value, int) and not 0 <= value <= _GEOMETRY[key]:
            raise InputRefused(f"{path} says {key} = {value:,}, at most {_GEOMETRY[key]:,} is possible")


def _ties(config: Mapping[str, Any]) -> bool:
    text = config.get("text_config")
    return any(isinstance(c, dict) and c.get("tie_word_embeddings") is True for c in (config, text))


def _headers(path: Path) -> list[Header]:
    single, index = path / SINGLE, path / INDEX
    if single.exists() and index.exists():
        raise InputRefused(f"{path} holds both {SINGLE} and {INDEX}", "remove the one that is stale")
    if single.exists() or single.is_symlink():
        return [_header(path, SINGLE)]
    if index.exists():
        return _sharded_headers(path, index)
    for name in _PICKLED:
        if (path / name).exists():
            raise InputRefused(f"{path / name} may run code when read", CONVERT)
    raise InputRefused(f"{path} holds no weights ({SINGLE} or {INDEX})", "make or copy it again")


def _sharded_headers(path: Path, index: Path) -> list[Header]:
    value = read_json(index)
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or any(type(f) is not str for f in weight_map.values()):
        raise InputRefused(f"{index} has no table of tensors (weight_map)")
    headers = [_header(path, name) for name in sorted(set(weight_map.values()))]
    found: dict[str, str] = {}
    for header in headers:
        for tensor in header.tensors:
            if tensor in found:
                raise InputRefused(f"{path}: tensor {tensor} is in {found[tensor]} and in {header.path.name}")
            found[tensor] = header.path.name
    if found != weight_map:
        odd = next(n for n in sorted(found.keys() | weight_map.keys()) if found.get(n) != weight_map.get(n))
        raise InputRefused(
            f"{index} says tensor {odd[:200]} is in {weight_map.get(odd)}, found in {found.get(odd)}",
            "copy the whole checkpoint again",
        )
    _check_total(index, value.get("metadata"), headers)
    return headers


def _check_total(index: Path, metadata: Any, headers: list[Header]) -> None:
    claimed = metadata.get("total_size") if isinstance(metadata, dict) else None
    total = sum(info.end - info.begin for header in headers for info in header.tensors.values())
    if claimed is not None and claimed != total:
        raise InputRefused(f"{index} says {claimed} bytes of tensors, its shards hold {total:,}")


def _header(folder: Path, name: str) -> Header:
    """The header of a weight file, checked to stay inside the folder, or inside the blobs of the hub
    cache that the folder is a snapshot of."""
    if not _WEIGHT_FILE.fullmatch(name):
        raise InputRefused(f"{folder}: '{name[:200]}' is not the name of a weight file in this folder")
    target, home = real(folder / name), real(folder)
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if target.parent not in allowed:
        raise InputRefused(f"{folder / name} leads out of the checkpoint, to {target}", "copy the file itself")
    if not target.exists():
        raise InputRefused(f"{folder / name} is missing", "copy the whole checkpoint again")
    return read_header(folder / name)


def _made_again_by(record: Mapping[str, Any]) -> str:
    """The next step for a model that is not as its run wrote it."""
    model, method = record.get("model"), record.get("method")
    if method == "import":
        return f"mmsurgery import ADAPTER --name {model} --force"
    if method != "finetune":
        return f"run mmsurgery apply --method {method} with its options again, and --force"
    if model == "base":
        return "remove the folder, then mmsurgery train vanilla --force"
    return f"mmsurgery train {model} --force"
