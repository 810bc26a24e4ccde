"""Masks and saliency maps as NumPy archives (`.npz`), for programs that know neither torch nor safetensors.

One array per parameter under its name, read one at a time by `np.load(path)[name]` without pickle; the entry
`mmsurgery` is a JSON text with what the artifact is. Entries are not compressed.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mmsurgery.artifacts.files import atomic_file
from mmsurgery.artifacts.mask import Mask
from mmsurgery.artifacts.saliency_map import SaliencyMap

ABOUT = "mmsurgery"
"""Entry with the description; no parameter has this name."""


def write_mask(mask: Mask, path: Path) -> None:
    """Booleans in each parameter's shape, a byte a weight.

    Raises:
        MachineFault: if it cannot be written.
    """
    about = {
        "kind": "mask",
        "rule": mask.rule,
        "modules": mask.modules,
        "base": dict(mask.base),
        "content_sha256": mask.content_sha256,
        "selected": mask.selected,
        "total": mask.total,
    }
    _write(path, about, ((name, mask[name]) for name in mask.names))


def write_saliency(saliency: SaliencyMap, path: Path) -> None:
    """The sums as they are stored, in each parameter's shape; parameters without gradient have no array.

    The saliency is `sum / units`, for the estimator `dataset` `(sum / units)^2`.

    Raises:
        MachineFault: if it cannot be written.
    """
    about = {
        "kind": "saliency",
        "quantity": "sum_of_gradients" if saliency.estimator == "dataset" else "sum_of_squares",
        "part": saliency.part,
        "estimator": saliency.estimator,
        "batch_size": saliency.batch_size,
        "units": saliency.units,
        "base": {"model_type": saliency.model_type, "model_sha256": saliency.model_sha256},
        "data_sha256": saliency.data_sha256,
        "no_gradient": sorted(saliency.no_gradient),
    }
    _write(path, about, ((name, saliency.arrays[name]) for name in sorted(saliency.arrays)))


def _write(path: Path, about: dict[str, Any], arrays: Iterable[tuple[str, np.ndarray[Any, Any]]]) -> None:
    text = np.array(json.dumps(about, sort_keys=True))
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in ((ABOUT, text), *arrays):
            entry = zipfile.ZipInfo(f"{name}.npy")  # its date is fixed: the same artifact gives the same bytes
            with archive.open(entry, "w", force_zip64=True) as stream:
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, np.asarray(array, order="C"), allow_pickle=False)
                stream.write(buffer.getbuffer())
