"""Writing a trained model as a checkpoint that loads as the one it started from.

Weight files keep their names, tensor names, dtypes and metadata; only values change. Frozen tensors,
configuration and processor files are copied byte for byte, so no library version leaves traces.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mmsurgery.artifacts import files
from mmsurgery.artifacts.checkpoint import RUN_FILE, CheckpointFiles, companion_files, companions_sha256
from mmsurgery.artifacts.files import atomic_folder, write_json
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.artifacts.tensors import Header, read_header, read_tensor, write_safetensors_stream
from mmsurgery.errors import InputRefused, InternalError, UnusableData
from mmsurgery.unlearn.record import sealed
from mmsurgery.unlearn.verify import compare
from mmsurgery.workspace import SILENT, Progress

if TYPE_CHECKING:
    import numpy as np
    import torch

    from mmsurgery.artifacts.mask import Mask
    from mmsurgery.backbones.protocol import Backbone

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def check_space(start: CheckpointFiles, folder: Path) -> None:
    """Check that the disk has room for another model of this size, before hours of work.

    Raises:
        MachineFault: if it has not.
    """
    files.check_space(folder, sum(file.stat().st_size for file in start.files), "the model")


def commit(
    folder: Path,
    start: CheckpointFiles,
    family: Backbone,
    trained: Mapping[str, Trained],
    body: Mapping[str, Any],
    *,
    mask: Mask | None = None,
    claim: str = "none",
    replace: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Save a trained model with its record, after an audit of what was written; its snapshots are removed.

    Args:
        trained: as for `save_model`.
        body: the record without what is found here: claim, identity of the weights, what moved.
        mask, claim: what the audit holds the files against (`record.CLAIMS`).

    Returns:
        The sealed record.

    Raises:
        InputRefused: if the start is no longer what `body` says was trained.
        InternalError: if a weight moved that may not.
        UnusableData: if a value is not finite in the dtype it is saved in, or nothing inside the mask moved.
        Mismatch: if the folder exists and `replace` is false.
        MachineFault: if it cannot be written.
    """
    with atomic_folder(folder, replace=replace) as new:
        save_model(new, start, family, trained)
        after = CheckpointFiles(new, family.canonical)
        _check_unchanged(start, body["provenance"]["inputs"], folder.name)
        found = compare(start, after, mask, family.address, progress)
        if found.not_finite:
            name = found.not_finite[0]
            raise UnusableData(f"{name} is not finite as {after.dtype(name)}; nothing is kept", "train more gently")
        faults = found.faults(claim, mask)
        if faults == [found.unmoved(mask)]:
            raise UnusableData(f"{faults[0]}, as it is saved; nothing is kept", "raise --learning-rate")
        if faults:
            raise InternalError(f"the audit of '{folder.name}' failed, nothing is kept: {faults[0]}")
        moved = {group: dataclasses.asdict(counts) for group, counts in found.groups.items()}
        identity = {
            "model_type": family.model_type,
            "model_sha256": after.digest(),
            "companions_sha256": companions_sha256(new),
        }
        record = sealed({**body, **identity, "claim": claim, "moved": moved})
        write_json(new / RUN_FILE, record)
    Snapshots.discard_of(folder)
    return record


def _check_unchanged(start: CheckpointFiles, inputs: Mapping[str, Any], made: str) -> None:
    now = {"start": start.digest(), "processor": companions_sha256(start.path)}
    if any(inputs.get(key, digest) != digest for key, digest in now.items()):
        raise InputRefused(f"{start.path} changed while '{made}' was made of it", "run the command again")


def save_model(folder: Path, start: CheckpointFiles, backbone: Backbone, trained: Mapping[str, Trained]) -> None:
    """Fill an empty folder with the start checkpoint, trained parameters in place of its own.

    Args:
        trained: canonical name -> float32 parameter, or what its values become; written in the dtype the start
            has it in, rounded to nearest even.

    Raises:
        MachineFault: if it cannot be written.
    """

    def writer(value: Trained) -> Rewritten:
        import torch

        return (lambda _, dtype: as_stored(value, dtype)) if isinstance(value, torch.Tensor) else value

    rewrite(folder, start, backbone, {name: writer(value) for name, value in trained.items()})


Rewritten = Callable[["np.ndarray[Any, Any]", str], "np.ndarray[Any, Any]"]
"""Values of a tensor and its safetensors dtype code -> the values to be written, in the same dtype."""
Trained: TypeAlias = "torch.nn.Parameter | Rewritten"
"""What was trained of a tensor: all of it, or something that knows what becomes of its stored values."""


def rewrite(folder: Path, start: CheckpointFiles, backbone: Backbone, changed: Mapping[str, Rewritten]) -> None:
    """Fill an empty folder with a checkpoint, some parameters rewritten, one tensor in memory at a time.

    Args:
        changed: canonical name -> what its values become.

    Raises:
        MachineFault: if it cannot be written.
    """
    for path in companion_files(start.path):
        shutil.copyfile(path, folder / path.name)
    written: set[str] = set()
    for file in start.files:
        header = read_header(file)
        layout = {stored: (info.dtype, info.shape) for stored, info in header.tensors.items()}
        arrays = _arrays(header, start, backbone, changed, written)
        write_safetensors_stream(folder / file.name, layout, arrays, header.metadata)
    if lost := sorted(changed.keys() - written):
        raise InternalError(f"parameter {lost[0]} has no place in {start.path}")


def _arrays(
    header: Header, start: CheckpointFiles, backbone: Backbone, changed: Mapping[str, Rewritten], written: set[str]
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    for stored in sorted(header.tensors):
        name = backbone.canonical(stored)
        name = start.tied.get(name, name)
        info = header.tensors[stored]
        array = read_tensor(header.path, info)
        if name in changed:
            written.add(name)
            array = changed[name](array, info.dtype)
        yield stored, array


def as_stored(parameter: torch.Tensor, dtype: str) -> np.ndarray[Any, Any]:
    """The values in a safetensors dtype; bfloat16 as its 16-bit pattern."""
    import torch

    values = parameter.detach().cpu().to(getattr(torch, _DTYPES[dtype]))
    if dtype == "BF16":
        return values.view(torch.int16).numpy().view("<u2")
    return values.numpy()
