"""Masks of the official MMUnlearner code: `.pt` files in and out.

Its layout: `{"weight": {name: bool tensor, or the integer 0}, "forget_grad": ..., "preserve_grad": ...}`, saved
with `torch.save`; some forks save the inner table alone. Its trainer multiplies a gradient by the mask where
the parameter's name is in the table, so that a parameter which the file does not name is updated in full. Here
it is frozen, unless told otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.files import atomic_file
from mmsurgery.artifacts.mask import Mask, MaskParameter, pack
from mmsurgery.backbones.protocol import Backbone
from mmsurgery.errors import InputRefused, Mismatch, UsageError, nearest, printable, unknown
from mmsurgery.exchange.torch_file import read_torch_file
from mmsurgery.names import GROUPS, Address
from mmsurgery.workspace import SILENT, Progress

if TYPE_CHECKING:
    import torch

    from mmsurgery.artifacts.mask import Bytes

ABSENT = ("freeze", "update")
"""What a parameter that no file names becomes: frozen, or updated in full as the official trainer does."""

_SECTIONS = {"weight", "forget_grad", "preserve_grad"}
_PER_WEIGHT = 20
"""Bytes of a file per weight of the model at most: the mask and two gradients, up to float64."""
_SLACK = 64 << 20


@dataclass
class _Found:
    """What the files hold, by canonical name."""

    bits: dict[str, Bytes] = field(default_factory=dict)
    zero: list[str] = field(default_factory=list)
    """Parameters whose entry is the integer 0."""
    converted: list[str] = field(default_factory=list)
    """Parameters whose 0/1 values were no booleans."""


def read_official(
    paths: Sequence[Path], start: CheckpointFiles, family: Backbone, *, absent: str, progress: Progress = SILENT
) -> Mask:
    """The union of official masks, for the model of `start`.

    Names may be those of any layout: published (in memory, too, before transformers 4.52), re-saved, wrapped
    by DistributedDataParallel or PEFT. The modules are the groups that the files name.

    Args:
        absent: what parameters become that no file names, see `ABSENT`.

    Returns:
        A mask of rule `imported` without provenance.

    Raises:
        UsageError: for another `absent`.
        InputRefused: if a file is damaged, would run code or holds anything but 0 and 1.
        Mismatch: if it names parameters that the model does not have, or in other shapes.
    """
    if absent not in ABSENT:
        raise unknown("treatment of absent parameters", absent, ABSENT)
    if not paths:
        raise UsageError("no file to import", "name one or more .pt files")
    shapes = {name: start.shape(name) for name in start.names}
    total = sum(math.prod(shape) for shape in shapes.values())
    united: dict[str, Bytes] = {}
    for path in paths:
        value = read_torch_file(path, max_bytes=_PER_WEIGHT * total + _SLACK, max_entries=4 * len(shapes) + 64)
        found = _entries(path, _table(path, value), shapes, _resolver(start, family))
        for name, bits in found.bits.items():
            united[name] = bits | united[name] if name in united else bits
        _report(path, found, len(shapes), progress)
    fill = np.uint8(0xFF if absent == "update" else 0)
    parameters = {
        name: MaskParameter(shape, family.address(name), united[name] if name in united else _filled(shape, fill))
        for name, shape in shapes.items()
    }
    missing = sum(math.prod(shape) for name, shape in shapes.items() if name not in united)
    if missing:
        state = "frozen" if absent == "freeze" else "updated in full, as the official trainer does"
        progress.note(f"{len(shapes) - len(united)} parameters ({missing:,} weights) are in no file: {state}")
    named: set[Address] = {p.address for n, p in parameters.items() if absent == "update" or n in united}
    return Mask(
        rule="imported",
        beta=None,
        estimator=None,
        mixture=None,
        modules=",".join(group for group in GROUPS if any(address.group == group for address in named)),
        parameters=parameters,
        base={"model_type": family.model_type, "model_sha256": start.digest()},
        counts={"selected": sum(p.selected for p in parameters.values()), "total": total, "absent": missing},
    )


def _filled(shape: tuple[int, ...], byte: np.uint8) -> Bytes:
    return pack(np.full(math.prod(shape), bool(byte)))


def _resolver(start: CheckpointFiles, family: Backbone) -> Callable[[str], str]:
    """A name in a file -> the parameter's name; tied weights are one parameter."""

    def resolve(stored: str) -> str:
        name = family.canonical(stored)
        return start.tied.get(name, name)

    return resolve


def _table(path: Path, value: Any) -> Mapping[str, Any]:
    """The table of names in what a file holds."""
    table = value.get("weight") if isinstance(value, dict) and isinstance(value.get("weight"), dict) else value
    if table is not value and (other := sorted(str(key)[:40] for key in value if key not in _SECTIONS)):
        raise InputRefused(f"{path} holds '{printable(other[0])}' beside 'weight'", "save the mask alone")
    if not isinstance(table, dict) or not table or any(type(name) is not str for name in table):
        raise InputRefused(f"{path} is no mask: a table of names and tensors expected", "name a mask file")
    return table


def _entries(
    path: Path, table: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], resolve: Callable[[str], str]
) -> _Found:
    import torch

    names = {stored: resolve(stored) for stored, value in table.items() if value is not None}
    if strange := [stored for stored, name in names.items() if name not in shapes]:
        raise _strangers(path, strange, len(names), shapes)
    found = _Found()
    for stored, name in names.items():
        value, shape = table[stored], shapes[name]
        if type(value) is int and value == 0:
            bits = _filled(shape, np.uint8(0))
            found.zero.append(name)
        elif isinstance(value, torch.Tensor):
            bits = _packed(path, stored, value.detach(), shape)
            if value.dtype != torch.bool:
                found.converted.append(name)
        else:
            raise InputRefused(f"{path}: {printable(stored[:200])} is no tensor but {type(value).__name__}")
        if name in found.bits and not np.array_equal(found.bits[name], bits):
            raise InputRefused(f"{path} holds {name} twice, with different values")
        found.bits[name] = bits
    return found


def _packed(path: Path, stored: str, value: torch.Tensor, shape: tuple[int, ...]) -> Bytes:
    import torch

    if tuple(value.shape) != shape:
        raise Mismatch(
            f"{path}: {stored} has shape {list(value.shape)[:8]}, the model's has {list(shape)}",
            "import it where the model is that it was made for",
        )
    if value.dtype != torch.bool:
        if not bool(((value == 0) | (value == 1)).all()):
            raise InputRefused(f"{path}: {stored} holds values other than 0 and 1", "threshold it first")
        value = value == 1
    return pack(value.contiguous().numpy())


def _strangers(path: Path, strange: list[str], named: int, shapes: Mapping[str, Any]) -> Mismatch:
    shown = []
    for stored in strange[:3]:
        guess = nearest(stored, shapes)
        shown.append(printable(stored[:120]) + (f" (nearest: {guess})" if guess else ""))
    return Mismatch(
        f"{path} names parameters that the model does not have, {len(strange)} of {named}: {', '.join(shown)}",
        "import it where the model is that it was made for",
    )


def _report(path: Path, found: _Found, parameters: int, progress: Progress) -> None:
    progress.note(f"{path.name} names {len(found.bits)} of {parameters} parameters")
    if found.zero:
        shown = ", ".join(found.zero[:5]) + (", ..." if len(found.zero) > 5 else "")
        progress.note(f"warning: {len(found.zero)} entries are the integer 0, read as nothing selected: {shown}")
    if found.converted:
        progress.note(f"{len(found.converted)} entries held 0 and 1 as numbers, read as booleans")


def write_official(mask: Mask, path: Path, published: Callable[[str], str]) -> None:
    """Write a mask as the official code's `.pt` file.

    Every parameter stands in it, the frozen ones all false, for the official trainer updates in full what the
    file does not name. It stands there under its name in memory of transformers 5 and under that of releases
    before 4.52, for the trainer takes names at their word; both are one tensor, stored once.

    Args:
        published: canonical name -> name in memory before transformers 4.52.

    Raises:
        MachineFault: if it cannot be written.
    """
    import torch

    table: dict[str, torch.Tensor] = {}
    for name in mask.names:
        table[name] = table[published(name)] = torch.from_numpy(mask[name])
    with atomic_file(path) as temporary, temporary.open("wb") as handle:
        watched = _Watched(handle)
        try:
            torch.save({"weight": table, "forget_grad": {}, "preserve_grad": {}}, cast("IO[bytes]", watched))
        except RuntimeError as error:
            raise (watched.failure or error) from None


class _Watched:
    """A file that remembers why it could not be written: of that torch says only that positions do not fit."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._handle.write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise

    def flush(self) -> None:
        self._handle.flush()
