"""How fast this machine writes, reads again, compares and hashes weights: a share of them, in a temporary folder."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.artifacts.tensors import write_safetensors_stream
from mmsurgery.backbones.protocol import Backbone
from mmsurgery.plans.sizes import Sizes
from mmsurgery.plans.times.watch import now
from mmsurgery.provenance import sha256

if TYPE_CHECKING:
    from mmsurgery.artifacts.mask import Mask
    from mmsurgery.artifacts.saliency_map import SaliencyMap
    from mmsurgery.unlearn.save import Trained

TRIED = 32 << 20
"""Bytes that are written for the time, at most; of one tensor at least."""
HASHED = 16 << 20
"""Bytes that are hashed for the time, at most."""


class Few:
    """Some tensors of a checkpoint, as `CheckpointFiles`."""

    def __init__(self, files: CheckpointFiles, names: Iterable[str]) -> None:
        self._files, self.names = files, tuple(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    @classmethod
    def of(cls, files: CheckpointFiles, names: Iterable[str]) -> CheckpointFiles:
        return cast(CheckpointFiles, cls(files, names))


def some(sizes: Mapping[str, int], most: int) -> list[str]:
    """Names of about `most` bytes, spread evenly: layers repeat. All where they are no more; at least one."""
    names = sorted(sizes)
    step = max(1, -(-sum(sizes.values()) // max(most, 1)))
    return names[step // 2 :: step] or names[:1]


def saving_model(
    start: CheckpointFiles, family: Backbone, trained: Mapping[str, Trained], mask: Mask | None = None
) -> float:
    """Seconds to write a model that started from a checkpoint, hold it against it, and hash it, as `save.commit`."""
    import torch

    from mmsurgery.unlearn.save import as_stored
    from mmsurgery.unlearn.verify import compare

    sizes = {name: start.array(name).nbytes for name in start.names}
    names = some(sizes, TRIED)

    def value(name: str) -> np.ndarray[Any, Any]:
        stored, moved = start.array(name), trained.get(name)
        if moved is None:
            return stored
        code = start.dtype(name)
        return as_stored(moved, code) if isinstance(moved, torch.Tensor) else moved(stored, code)

    with tempfile.TemporaryDirectory() as folder:
        path, begun = Path(folder, "model.safetensors"), now()
        layout = {name: (start.dtype(name), start.shape(name)) for name in names}
        write_safetensors_stream(path, layout, ((name, value(name)) for name in names), {})
        few = Few.of(start, names)
        compare(few, few, mask, family.address)
        sha256(path.read_bytes())
        taken = now() - begun
    return taken * sum(sizes.values()) / max(sum(sizes[name] for name in names), 1)


def saving_map(measured: SaliencyMap, store: str) -> float:
    """Seconds to save a saliency map, by byte of its sums."""
    sizes = {name: array.nbytes for name, array in measured.arrays.items()}
    few = dataclasses.replace(measured, arrays={name: measured.arrays[name] for name in some(sizes, TRIED)})
    with tempfile.TemporaryDirectory() as folder:
        begun = now()
        few.save(Path(folder, "map"), store=store)
        taken = now() - begun
    return taken / max(sum(array.nbytes for array in few.arrays.values()), 1)


def snapshots(seconds: float, size: int, speed: float) -> float:
    """Seconds that snapshots take along a loop.

    Args:
        seconds: of the loop.
        size: bytes of a snapshot.
        speed: seconds a byte to write and hash.
    """
    one = size * speed
    return one * int(seconds / (max(Snapshots.interval, Snapshots.share * one) + one))


class _NotRemembered(Exception):
    pass


class _Looked(CheckpointFiles):
    """A checkpoint whose digest is looked up, never computed."""

    def _digest(self) -> str:
        raise _NotRemembered


def hashing(models: Iterable[tuple[Sizes, Path]]) -> float:
    """Seconds to hash those of some checkpoint folders whose digest is not remembered; each is hashed once."""
    size = 0
    for each, folder in models:
        try:
            _Looked(folder, each.family.canonical).digest()
        except _NotRemembered:
            size += each.stored
    if not size:
        return 0.0
    block = bytes(min(size, HASHED))
    begun = now()
    sha256(block)
    return (now() - begun) * size / len(block)
