"""Workspaces of random models, and probes made small."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from audit_world import make

from mmsurgery.api import Workspace
from mmsurgery.audit import relearning, sampling
from mmsurgery.backbones import loading

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded


@pytest.fixture
def workspace(tmp_path: Path, tiny_llava: Path, picture: Callable[..., bytes]) -> Workspace:
    """With vanilla alone."""
    return make(tmp_path / "ws", tiny_llava, picture, ("vanilla",))


@pytest.fixture(scope="module")
def loads() -> Iterator[list[str]]:
    """Probes made small; names of the models' folders in the order they are loaded, each from disk once."""
    known: dict[bytes, Loaded] = {}
    found: list[str] = []
    load = loading.load

    def once(folder: Path, *arguments: Any) -> Loaded:
        found.append(folder.name)
        weights = hashlib.sha256((folder / "model.safetensors").read_bytes() + str(arguments).encode()).digest()
        if weights not in known:
            known[weights] = load(folder, *arguments)
        return dataclasses.replace(known[weights], model=copy.deepcopy(known[weights].model))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load", once)
        for module, name, value in (
            (relearning, "STEPS", 2),
            (relearning, "EVERY", 2),
            (relearning, "BATCH", 2),
            (sampling, "DRAWN", 3),
            (sampling, "TRIES", (1, 2)),
            (sampling, "NEW_TOKENS", 2),
        ):
            patch.setattr(module, name, value)
        yield found
