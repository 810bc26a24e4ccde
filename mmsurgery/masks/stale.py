"""Saliency and masks that a changed setting, model or data set has left behind."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmsurgery.artifacts.checkpoint import CheckpointFiles, companions_sha256, model_config
from mmsurgery.artifacts.digests import digest_cache, file_identity
from mmsurgery.artifacts.saliency_map import MANIFEST, content_sha256, read_manifest, recorded
from mmsurgery.artifacts.tensors import read_header
from mmsurgery.backbones.discovery import backbone
from mmsurgery.data.anchors import part_samples
from mmsurgery.data.benchmark import SETS, Source, benchmark, source_of
from mmsurgery.data.samples import data_sha256
from mmsurgery.errors import Mismatch, MmsurgeryError
from mmsurgery.masks.ratio import MIXTURES
from mmsurgery.masks.rule import SCOPES
from mmsurgery.paths import real
from mmsurgery.provenance import parse_json, sha256_json, versions
from mmsurgery.workspace import ESTIMATORS

if TYPE_CHECKING:
    from mmsurgery.workspace import Workspace

_DEFAULTS = {"per": SCOPES[0], "mixture": MIXTURES[0], "estimator": ESTIMATORS[0]}
"""Options of `mask` that its command need not name."""


def vanilla_files(workspace: Workspace) -> CheckpointFiles:
    """The files of the workspace's vanilla model."""
    folder = workspace.existing_model("vanilla")
    return CheckpointFiles(folder, backbone(model_config(folder)["model_type"]).canonical)


def saliency_command(parts: Sequence[str], estimator: str, batch_size: int | None, *, force: bool = False) -> str:
    """The command that measures parts."""
    sets = [name for name, members in SETS.items() if set(members) & set(parts)]
    sets += [part for part in parts if not any(part in members for members in SETS.values())]
    options = "" if estimator == "sample" else f" --estimator {estimator}"
    options += f" --batch-size {batch_size}" if estimator == "batch" else ""
    options += " --force" if force else ""
    return f"mmsurgery saliency --set {','.join(sets)}{options}"


def check_fresh(workspace: Workspace, manifests: Sequence[Mapping[str, Any]], *, remembered: bool = False) -> None:
    """Check that saliency maps of one estimator are of the vanilla model and of the data as they are now.

    Args:
        manifests: of the parts.
        remembered: take the data's digests from when its files were last read, if they have not changed.

    Raises:
        Mismatch: naming those that are not, and why the first is not.
    """
    vanilla = vanilla_files(workspace)
    model, beside = vanilla.digest(), companions_sha256(vanilla.path)
    faults: dict[str, str] = {}
    for manifest in manifests:
        part = manifest["part"]
        if manifest["model_sha256"] != model:
            faults[part] = f"was measured on model {manifest['model_sha256'][:12]}, vanilla is {model[:12]}"
        elif recorded(manifest["provenance"], "companions_sha256") not in (None, beside):
            faults[part] = "was measured with another configuration or processor of vanilla"
        elif manifest["data_sha256"] != (now := part_sha256(workspace, part, remembered=remembered)):
            faults[part] = f"was measured on other data, {manifest['data_sha256'][:8]}, than are there now, {now[:8]}"
    if faults:
        first, *others = faults
        more = f", and so are {', '.join(others)}" if others else ""
        estimator, batch_size = manifests[0]["estimator"], manifests[0]["batch_size"]
        again = saliency_command([*faults], estimator, batch_size, force=True)
        raise Mismatch(f"saliency '{first}' {faults[first]}{more}", again)


def part_sha256(workspace: Workspace, part: str, *, source: Source | None = None, remembered: bool = False) -> str:
    """Digest of the samples that a part has now.

    Args:
        source: where to read it from; what the settings name where None.
        remembered: take it from when the files were last read, if they have not changed.

    Raises:
        as `Benchmark.samples`.
    """
    reader, source = benchmark(workspace.settings.benchmark.name), source or source_of(workspace)

    def read() -> str:
        return data_sha256(part_samples(reader, source, part))

    if not remembered:
        return read()
    files = sorted(path for path in source.folder.rglob("*") if path.is_file())
    chosen = [
        reader.name,
        source.forget,
        {key: list(v) if isinstance(v, tuple) else v for key, v in source.options.items()},
    ]
    identity = [versions().get("mmsurgery"), sha256_json([[os.fsencode(p).hex(), *file_identity(p)] for p in files])]
    return digest_cache.remember(f"part:{real(source.folder)}:{part}:{sha256_json(chosen)}", identity, read)


def stale(workspace: Workspace) -> list[MmsurgeryError]:
    """What of a workspace's saliency and masks no longer fits it, each with the command that mends it; what
    cannot be read for this, too."""
    found: list[MmsurgeryError] = []
    measured: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
    digests = set()
    for path in sorted(workspace.path("saliency").glob(f"[!.]*/{MANIFEST}")):
        try:
            manifest = read_manifest(path.parent)
        except MmsurgeryError as problem:
            found.append(problem)
            continue
        digests.add(content_sha256(manifest))
        if ".shard-" not in path.parent.name:
            measured.setdefault((manifest["estimator"], manifest["batch_size"]), []).append(manifest)
    if measured:
        for manifests in measured.values():
            try:
                check_fresh(workspace, manifests, remembered=True)
            except MmsurgeryError as problem:
                found.append(problem)
    for name in workspace.masks():
        try:
            origin = _origin_of(workspace, name)
        except MmsurgeryError as problem:
            found.append(problem)
            continue
        if not _saliency_of(origin) <= digests:
            what = f"mask '{name}' was made from saliency that is not there any more"
            found.append(Mismatch(what, mask_command(name, origin)))
    return found


def mask_command(name: str, origin: Mapping[str, Any]) -> str:
    """The command that makes a mask again with the settings that its provenance names."""
    there = origin.get("settings")
    settings = there if isinstance(there, Mapping) else {}
    options = [] if name == "default" else ["--name", name]
    shown = ("beta", "density", "per", "modules", "control", "seed", "mixture", "preserve", "estimator", "batch_size")
    for key in shown:
        if (value := settings.get(key)) is not None and _DEFAULTS.get(key) != value:
            options += [f"--{key.replace('_', '-')}", _number(value) if isinstance(value, float) else str(value)]
    return shlex.join(["mmsurgery", "mask", *options, "--force"])


def _number(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _origin_of(workspace: Workspace, mask: str) -> dict[str, Any]:
    """The provenance of a mask; empty where it has none."""
    path = workspace.mask_path(mask)
    text = read_header(path).metadata.get("mmsurgery")
    value = parse_json(text.encode(), f"metadata of {path}") if text else None
    origin = value.get("provenance") if isinstance(value, dict) else None
    return origin if isinstance(origin, dict) else {}


def _saliency_of(origin: Mapping[str, Any]) -> set[str]:
    """Digests of the saliency that a mask was made from; none for an imported or composed one."""
    inputs = origin.get("inputs")
    used = inputs.get("saliency") if isinstance(inputs, dict) else None
    return set(used.values()) if isinstance(used, dict) else set()
