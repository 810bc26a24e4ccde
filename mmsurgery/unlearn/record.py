"""`mmsurgery-run.json`: what made a model, sealed, beside its weights.

    method, equation, protocol, scope, claim     what was run, and what `verify` has to find
    lora                                         rank, layers, selected weights it cannot reach; where used
    mask, start, reference                       names; their digests stand in `provenance.inputs`
    request                                      digest of the people that are forgotten, see `deletions`
    model_type, model_sha256                     identity of the weights beside it
    steps, samples                               planned and done; samples seen by set
    losses, evaluations                          curves, see `History`
    moved                                        changed weights by group, inside and outside the mask

No wall-clock time: the same command gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmsurgery.artifacts.checkpoint import RUN_FILE
from mmsurgery.artifacts.files import read_json
from mmsurgery.artifacts.mask import Mask
from mmsurgery.errors import InputRefused, MissingArtifact
from mmsurgery.provenance import SCHEMA, check_seal, seal

CLAIMS = {
    "mask": "no weight outside the mask moved",
    "modules": "no weight outside the mask's modules moved",
    "none": "every weight may have moved: there was no mask",
}
"""What a run promises: scope `all` and methods without a retain term the first, scope `forget` the second."""

SCRATCH = "micro"
"""The start that a model's record names which was trained from random weights; there is no such folder."""

_KEYS = {
    "model": str,
    "method": str,
    "claim": str,
    "start": str,
    "model_type": str,
    "model_sha256": str,
    "steps": dict,
    "moved": dict,
}


def mask_identity(mask: Mask) -> dict[str, str]:
    """What a run depends on of a mask."""
    return {"content_sha256": mask.content_sha256, "modules": mask.modules}


def sealed(body: dict[str, Any]) -> dict[str, Any]:
    """The record of a body, which includes `provenance`."""
    return seal({"schema": SCHEMA, "kind": "run", **body})


def read_record(folder: Path) -> dict[str, Any]:
    """The checked record of a model folder.

    Raises:
        MissingArtifact: if the folder has none.
        InputRefused: if it was changed after it was written.
    """
    path = folder / RUN_FILE
    if not path.exists():
        raise MissingArtifact(
            f"{folder} has no {RUN_FILE}: mmsurgery did not make this model", "name one that it trained or unlearned"
        )
    record = check_seal(read_json(path), str(path), kind="run")
    for key, kind in _KEYS.items():
        if not isinstance(record.get(key), kind):
            raise InputRefused(f"{path}: {key} cannot be read", "make the model again")
    if record["claim"] not in CLAIMS or any(
        not isinstance(record["provenance"].get(key), dict) for key in ("settings", "inputs")
    ):
        raise InputRefused(f"{path} cannot be read", "make the model again")
    return record
