"""`import` of LoRA adapters: a PEFT folder is merged into its base and becomes `models/NAME`."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsurgery.artifacts.checkpoint import CheckpointFiles, companions_sha256, model_config
from mmsurgery.artifacts.files import read_json, write_json
from mmsurgery.artifacts.tensors import Header, read_header
from mmsurgery.backbones.discovery import backbone
from mmsurgery.backbones.protocol import Backbone
from mmsurgery.errors import InputRefused, Mismatch, UnusableData, UsageError
from mmsurgery.names import check_artifact_name
from mmsurgery.provenance import differences, parse_json, provenance, sha256_file
from mmsurgery.unlearn.record import read_record
from mmsurgery.unlearn.request import TRAINED
from mmsurgery.unlearn.save import as_stored, check_space, commit
from mmsurgery.unlearn.verify import Moved
from mmsurgery.workspace import SILENT, Progress, Workspace

if TYPE_CHECKING:
    import torch

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
_LAYER = re.compile(r"(?P<module>.+)\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(\.weight)?")
_BEYOND = ("megatron_config", "target_parameters", "layer_replication", "auto_mapping_code")
"""Settings that import other code or change what layers there are."""


@dataclass(frozen=True)
class AdapterImport:
    """What `import_adapter` made or found."""

    model: str
    path: Path
    base: str
    layers: int
    """Layers of the adapter, each of which is one of the model's."""
    moved: dict[str, Moved]
    """By module group."""
    up_to_date: bool


@dataclass(frozen=True)
class _Adapter:
    """An adapter folder whose files are checked."""

    folder: Path
    config: dict[str, Any]
    header: Header

    @property
    def layers(self) -> dict[str, int]:
        """Layer as it is named in the file -> rank."""
        found: dict[str, int] = {}
        for name, info in self.header.tensors.items():
            match = _LAYER.fullmatch(name)
            if match:
                module = match["module"].removeprefix("base_model.model.")
                rank = info.shape[0] if match[2] in ("A", "embedding_A") else 0
                found[module] = max(found.get(module, 0), rank)
        return found


def import_adapter(
    workspace: Workspace,
    folder: Path,
    *,
    name: str,
    base: str = "vanilla",
    force: bool = False,
    progress: Progress = SILENT,
) -> AdapterImport:
    """Merge a PEFT LoRA adapter into a model of the workspace and save it as `models/NAME`, with a record.

    peft merges, in float32 and checked to be finite; the model is saved in the base's dtype. Every layer
    of the adapter must be one of the model's, under a name of any of the family's layouts.

    Args:
        base: the model that the adapter was trained on.

    Raises:
        UsageError: for a name that is taken by a model of its own kind; MissingArtifact: if folder or base
            do not exist.
        InputRefused: if the adapter is no LoRA, damaged, pickled or asks for other code.
        Mismatch: if layers of it match none of the model's, it says that it belongs to another base, or
            another model has the name.
        UnusableData: if it changes nothing, or a merged value is not finite.
        MachineFault: if it cannot be written.
    """
    if check_artifact_name(name) in TRAINED:
        raise UsageError(f"'{name}' is the name of a model that is trained here", "choose another --name")
    adapter = _read(folder)
    start_folder, path = workspace.existing_model(base), workspace.model_dir(name)
    family = backbone(model_config(start_folder)["model_type"])
    start = CheckpointFiles(start_folder, family.canonical)
    _check_base(adapter, start, base)
    modules = _modules(adapter, start, family)
    inputs = {
        "start": start.digest(),
        "processor": companions_sha256(start_folder),
        "adapter": {file: sha256_file(folder / file) for file in (CONFIG, WEIGHTS)},
    }
    origin = provenance("import", {"model": name, "start": base, "format": "peft"}, inputs)
    with workspace.lock():
        if path.exists() and not force:
            record = read_record(path)
            if record["provenance"].get("key") != origin["key"]:
                other = differences(record["provenance"], origin)
                raise Mismatch(f"model '{name}' exists, made with other {other}", "pass --force, or another --name")
            CheckpointFiles(path, family.canonical).digest()  # refuses what is not as its run wrote it
            return _result(path, record, up_to_date=True)
        check_space(start, path.parent)
        changed = _merged(adapter, modules, start)
        progress.note(f"{len(modules)} of {len(modules)} layers of the adapter match, {len(changed)} tensors change")
        ranks = sorted(set(adapter.layers.values()))
        body: dict[str, Any] = {
            "model": name,
            "method": "import",
            "equation": None,
            "protocol": None,
            "scope": None,
            "mask": None,
            "start": base,
            "reference": None,
            "lora": {"rank": ranks[-1], "layers": len(modules)},
            "steps": {"planned": 0, "done": 0},
            "samples": {},
            "losses": [],
            "evaluations": [],
            "provenance": origin,
        }
        record = commit(path, start, family, changed, body, replace=force, progress=progress)
        workspace.journal("import", model=name, start=base)
    return _result(path, record, up_to_date=False)


def _result(path: Path, record: Mapping[str, Any], *, up_to_date: bool) -> AdapterImport:
    moved = {group: Moved(**counts) for group, counts in record["moved"].items()}
    return AdapterImport(record["model"], path, record["start"], record["lora"]["layers"], moved, up_to_date)


def _read(folder: Path) -> _Adapter:
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise InputRefused(f"{folder} holds an adapter of type {str(kind)[:40]}, not LORA", "merge it with peft first")
    if beyond := [key for key in _BEYOND if config.get(key)]:
        raise InputRefused(f"{folder / CONFIG} asks for {beyond[0]}, which is not read", "merge it with peft first")
    if not (folder / WEIGHTS).exists() and (folder / _PICKLED).exists():
        raise InputRefused(f"{folder / _PICKLED} may run code when read", "save the adapter as safetensors")
    return _Adapter(folder, config, read_header(folder / WEIGHTS))


def _check_base(adapter: _Adapter, start: CheckpointFiles, base: str) -> None:
    """Hold the base that the adapter may name by digest, as mmsurgery writes it, against the model's."""
    text = adapter.header.metadata.get("mmsurgery")
    about = parse_json(text.encode(), f"metadata of {adapter.folder / WEIGHTS}") if text else {}
    said = about.get("base") if isinstance(about, dict) else None
    digest = said.get("model_sha256") if isinstance(said, dict) else None
    if digest is not None and digest != start.digest():
        raise Mismatch(
            f"the adapter belongs to model {str(digest)[:12]}, '{base}' is {start.digest()[:12]}", "name its --base"
        )


def _modules(adapter: _Adapter, start: CheckpointFiles, family: Backbone) -> dict[str, str]:
    """Layer as it is named in the file -> the model's module.

    Raises:
        Mismatch: naming how many of its layers match, if not all do.
    """
    found = {layer: family.canonical(f"{layer}.weight").removesuffix(".weight") for layer in adapter.layers}
    matched = [layer for layer, module in found.items() if f"{module}.weight" in start]
    if not found or len(matched) < len(found):
        strange = sorted(found.keys() - set(matched))[:3]
        listed = f"; not in the model: {', '.join(strange)}" if strange else ""
        raise Mismatch(
            f"{len(matched)} of the adapter's {len(found)} layers match '{start.path.name}'{listed}",
            "name the --base that it was trained on",
        )
    if len(set(found.values())) < len(found):
        raise InputRefused(f"{adapter.folder / WEIGHTS} holds a layer under two names", "keep one of them")
    return found


def _merged(adapter: _Adapter, modules: Mapping[str, str], start: CheckpointFiles) -> dict[str, torch.nn.Parameter]:
    """The parameters that differ from the base in its dtype once peft has merged the adapter, by name."""
    import torch

    from mmsurgery.backbones.loading import load

    model = load(start.path, torch.float32).model
    with tempfile.TemporaryDirectory() as folder:
        _rename(adapter, modules, Path(folder))
        merged = _merge(model, adapter, Path(folder))
    changed = dict(_changed(merged, start))
    if not changed:
        raise UnusableData(
            f"the adapter changes no weight: {len(modules)} of its {len(modules)} layers match, "
            f"and what it adds is nothing in the dtype of '{start.path.name}'",
            "check that it was trained",
        )
    return changed


def _rename(adapter: _Adapter, modules: Mapping[str, str], folder: Path) -> None:
    """The adapter under the model's names of today; each layer with its own rank and scale.

    peft looks layers up by patterns over names, and a pattern of old names would silently match nothing.
    """
    from peft.utils.other import get_pattern_key
    from safetensors.torch import load_file, save_file

    config, layers = adapter.config, adapter.layers
    alphas = config.get("alpha_pattern") or {}
    config = {
        **config,
        "target_modules": sorted(modules.values()),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {f"^{re.escape(modules[layer])}$": rank for layer, rank in layers.items() if rank},
        "alpha_pattern": {
            f"^{re.escape(module)}$": alphas.get(get_pattern_key(alphas, layer), config.get("lora_alpha"))
            for layer, module in modules.items()
        },
        "inference_mode": True,
    }
    write_json(folder / CONFIG, config)
    tensors = {}
    for name, tensor in load_file(adapter.folder / WEIGHTS).items():
        match = _LAYER.fullmatch(name)
        if match:
            layer = match["module"].removeprefix("base_model.model.")
            name = f"base_model.model.{modules[layer]}{name[len(match['module']) :]}"
        tensors[name] = tensor
    save_file(tensors, folder / WEIGHTS)


def _merge(model: Any, adapter: _Adapter, folder: Path) -> torch.nn.Module:
    from peft import LoraConfig, PeftModel

    try:
        with warnings.catch_warnings():  # of transformers, about what peft asks it
            warnings.simplefilter("ignore", FutureWarning)
            wrapped = PeftModel(model, LoraConfig.from_pretrained(folder), "default")
        result = wrapped.load_adapter(str(folder), "default", torch_device="cpu")
        faults = [*result.missing_keys, *result.unexpected_keys]
        if faults:
            raise Mismatch(
                f"{len(faults)} tensors of the adapter have no place in the model, or the other way round: "
                f"{', '.join(sorted(faults)[:3])}",
                "name the --base that it was trained on",
            )
        merged: torch.nn.Module = wrapped.merge_and_unload(safe_merge=True)
    except Mismatch:
        raise
    except Exception as error:  # peft checks its settings by whatever its layers raise
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputRefused(f"peft cannot merge {adapter.folder}: {reason}", "merge it with peft yourself") from error
    return merged


def _changed(model: torch.nn.Module, start: CheckpointFiles) -> Iterator[tuple[str, torch.nn.Parameter]]:
    names = set(start.names)
    for name, parameter in model.named_parameters():
        if name not in names:
            raise InputRefused(
                f"the adapter adds parameter {name}, which the model's files have no place for",
                "merge the adapter with peft instead",
            )
        if not np.array_equal(as_stored(parameter, start.dtype(name)), start.array(name)):
            yield name, parameter
