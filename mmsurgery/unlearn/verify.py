"""What moved between two checkpoints, bit by bit, and whether a run kept its claim; no torch, no model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.mask import Mask, count_ones, pack
from mmsurgery.backbones.discovery import backbone
from mmsurgery.errors import Mismatch, MissingArtifact, UsageError
from mmsurgery.names import Address
from mmsurgery.unlearn.record import CLAIMS, SCRATCH, mask_identity, read_record
from mmsurgery.workspace import SILENT, Progress, Workspace

BLOCK = 1 << 18
"""Weights compared at a time; a multiple of 8."""

_PATTERNS = {2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}
_EXPONENTS = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000, "F64": 0x7FF0000000000000}
"""Bits that are all set in NaN and infinity, and in nothing else."""


@dataclass
class Moved:
    """Weights of a group or parameter whose bits differ, and how many there are, inside and outside the
    mask; without a mask all are inside."""

    inside: int = 0
    inside_total: int = 0
    outside: int = 0
    outside_total: int = 0

    def __iadd__(self, other: Moved) -> Moved:
        for key, value in dataclasses.asdict(other).items():
            setattr(self, key, getattr(self, key) + value)
        return self

    @property
    def changed(self) -> int:
        return self.inside + self.outside


@dataclass
class Comparison:
    """Two checkpoints of the same names, shapes and dtypes, compared as bit patterns."""

    groups: dict[str, Moved] = field(default_factory=dict)
    parameters: dict[str, Moved] = field(default_factory=dict)
    not_finite: list[str] = field(default_factory=list)
    """Parameters of the later checkpoint that hold NaN or infinity."""

    @property
    def moved(self) -> bool:
        """Whether any weight moved that was to move."""
        return any(counts.inside for counts in self.groups.values())

    def unmoved(self, mask: Mask | None) -> str:
        """What is wrong where nothing moved, in words."""
        total = sum(counts.inside_total for counts in self.groups.values())
        return f"none of the {total:,} weights {'inside the mask' if mask is not None else 'of the model'} moved"

    def faults(self, claim: str, mask: Mask | None) -> list[str]:
        """What contradicts a claim (see `record.CLAIMS`); a value that is not finite contradicts any, and so does
        a model in which nothing moved that was to move."""
        found = [f"{name} holds NaN or infinite values" for name in self.not_finite]
        named = set(self.parameters) if mask is None or claim == "none" else mask.in_modules()
        for name, moved in self.parameters.items():
            stray = moved.changed if name not in named else moved.outside if claim == "mask" else 0
            if stray:
                where = "outside the mask" if name in named else "of a frozen parameter"
                found.append(f"{name}: {stray:,} weights {where} moved")
        return found if self.moved else [*found, self.unmoved(mask)]


def compare(
    before: CheckpointFiles,
    after: CheckpointFiles,
    mask: Mask | None,
    address: Callable[[str], Address],
    progress: Progress = SILENT,
) -> Comparison:
    """Compare every parameter, streaming from the files.

    Raises:
        Mismatch: if names, shapes or dtypes differ.
    """
    check_same_layout(before, after)
    result = Comparison()
    with progress.stage("comparing weights", len(before.names)) as advance:
        for name in before.names:
            moved, finite = _compare_one(name, before, after, mask)
            result.parameters[name] = moved
            group = result.groups.setdefault(address(name).group, Moved())
            group += moved
            if not finite:
                result.not_finite.append(name)
            advance(1)
    return result


def check_same_layout(before: CheckpointFiles, after: CheckpointFiles) -> None:
    """
    Raises:
        Mismatch: if names, shapes or dtypes differ.
    """
    layouts = [{name: (files.dtype(name), files.shape(name)) for name in files.names} for files in (before, after)]
    differing = [n for n in sorted({*layouts[0], *layouts[1]}) if layouts[0].get(n) != layouts[1].get(n)]
    if differing:
        shown = ", ".join(differing[:3])
        raise Mismatch(
            f"{before.path} and {after.path} differ in names, shapes or dtypes of {shown}",
            "compare models of one architecture",
        )


def _compare_one(name: str, before: CheckpointFiles, after: CheckpointFiles, mask: Mask | None) -> tuple[Moved, bool]:
    numel = int(np.prod(before.shape(name), dtype=np.int64))
    bits = None if mask is None else mask.parameters[name].bits
    selected = numel if mask is None else mask.parameters[name].selected
    moved, finite = Moved(inside_total=selected, outside_total=numel - selected), True
    exponent = _EXPONENTS.get(after.dtype(name))
    for start, old, new in _blocks(before.array(name), after.array(name)):
        changed = pack(old != new)
        inside = changed if bits is None else changed & bits[start // 8 : start // 8 + changed.size]
        moved.inside += count_ones(inside)
        moved.outside += count_ones(changed) - count_ones(inside)
        finite = finite and (exponent is None or not bool(((new & exponent) == exponent).any()))
    return moved, finite


def _blocks(
    old: np.ndarray[Any, Any], new: np.ndarray[Any, Any]
) -> Iterator[tuple[int, np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Start and unsigned bit patterns of both, block by block."""
    pattern = _PATTERNS.get(old.dtype.itemsize, np.dtype("u1"))
    flat = [array.reshape(-1).view(pattern) for array in (old, new)]
    for start in range(0, flat[0].size, BLOCK):
        yield start, flat[0][start : start + BLOCK], flat[1][start : start + BLOCK]


@dataclass(frozen=True)
class VerifyResult:
    """What the files prove about a model."""

    model: str
    start: str
    mask: str | None
    scope: str | None
    claim: str
    """What the run promised, in words."""
    ok: bool
    faults: list[str]
    """What contradicts the claim; empty if `ok`."""
    groups: dict[str, Moved]
    """Group -> weights moved inside and outside the mask."""


def verify(workspace: Workspace, model: str, *, progress: Progress = SILENT) -> VerifyResult:
    """Prove from the files alone what an unlearned or fine-tuned model changed.

    Raises:
        MissingArtifact: if model, start or mask do not exist.
        UsageError: if the model was trained from random weights.
        InputRefused: if the weights are not those the run wrote.
        Mismatch: if start or mask were changed since the run.
    """
    folder = workspace.existing_model(model)
    record = read_record(folder)
    family = backbone(record["model_type"])
    after = CheckpointFiles(folder, family.canonical)
    after.digest()  # refuses what is not as its run wrote it
    if record["start"] == SCRATCH:
        raise UsageError(
            f"model '{model}' was trained from random weights: there is no parent to verify it against",
            "verify a model that was made from it",
        )
    before = CheckpointFiles(workspace.existing_model(record["start"]), family.canonical)
    inputs = record["provenance"]["inputs"]
    if before.digest() != inputs.get("start"):
        raise Mismatch(
            f"model '{record['start']}' has changed since '{model}' was made from it", "apply again with --force"
        )
    mask = None
    if record["mask"] is not None:
        path = workspace.mask_path(record["mask"])
        if not path.exists():
            raise MissingArtifact(
                f"mask '{record['mask']}', which '{model}' was made with, is gone", "make it again: mmsurgery mask"
            )
        mask = Mask.load(path)
        if mask_identity(mask) != inputs.get("mask"):
            raise Mismatch(
                f"mask '{record['mask']}' has changed since '{model}' was made with it", "apply again with --force"
            )
    found = compare(before, after, mask, family.address, progress)
    faults = found.faults(record["claim"], mask)
    faults += _faults_of_record(record)
    return VerifyResult(
        model=model,
        start=record["start"],
        mask=record["mask"],
        scope=record["scope"],
        claim=CLAIMS[record["claim"]],
        ok=not faults,
        faults=faults,
        groups=found.groups,
    )


def _faults_of_record(record: dict[str, Any]) -> list[str]:
    """What a run's record says against the run."""
    steps, found = record["steps"], []
    if steps["done"] != steps["planned"]:
        found.append(f"{steps['done']} of {steps['planned']} planned steps were done")
    if steps.get("forget") == 0:
        found.append("no forget step was done")
    least = {"none"} if record["mask"] is None else {"mask"} if record.get("scope") == "all" else {"mask", "modules"}
    if record["claim"] not in least:
        found.append(f"the record claims less than scope {record.get('scope')} under a mask: '{record['claim']}'")
    return found
