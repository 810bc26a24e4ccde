"""Weights that come with the package: the default models of `portraits`, with the records of their training.

`weights/BACKBONE/MODEL/` holds the weight file and the run record that `benchmarks/ship_weights.py`
copied from a workspace. They are used only where the record's key is that of the training asked for, so
a changed recipe, world, seed or processor trains on the spot; `train --force` always does.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.checkpoint import RUN_FILE, SINGLE, CheckpointFiles, companion_files, companions_sha256
from mmsurgery.artifacts.files import atomic_folder, write_json
from mmsurgery.backbones.protocol import Backbone
from mmsurgery.errors import InputRefused
from mmsurgery.provenance import seal
from mmsurgery.unlearn.record import read_record

WEIGHTS = Path(__file__).with_name("weights")


def unpack(
    folder: Path, start: CheckpointFiles, family: Backbone, key: str, made_for: dict[str, Any]
) -> dict[str, Any] | None:
    """Make `folder` from the shipped weights of its name, if they were trained by the recipe of `key`.

    Args:
        start: the model that training would start from; its configuration and processor files are copied.
        made_for: the settings it is made for, for its record.

    Returns:
        The record of the training, or None if no such weights are shipped.

    Raises:
        InputRefused: if the shipped weights are not those their record names.
    """
    source = WEIGHTS / family.model_type / folder.name
    if not (source / RUN_FILE).is_file():
        return None
    record = read_record(source)
    if record["provenance"].get("key") != key:
        return None
    with atomic_folder(folder) as new:
        for path in [*companion_files(start.path), source / SINGLE]:
            shutil.copyfile(path, new / path.name)
        if CheckpointFiles(new, family.canonical).digest() != record["model_sha256"]:
            raise InputRefused(f"{source / SINGLE} is not what its record names", "install mmsurgery again")
        # the configuration is written here, by this version of transformers
        record = seal({**record, "made_for": made_for, "companions_sha256": companions_sha256(new)})
        write_json(new / RUN_FILE, record)
    return record
