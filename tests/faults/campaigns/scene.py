"""Workspaces in which something hostile is planted, and what lies outside of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from campaigns.fits import fitting, write
from campaigns.small import WORDS, Place, place

from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.backbones.discovery import backbone


@dataclass(frozen=True)
class Scene:
    """A workspace of its own, and what lies outside of it."""

    place: Place
    baits: Path
    """`secret.h5`, `secret.png`, `secret.bin` and a model's file; nothing may touch them."""

    @property
    def root(self) -> Path:
        return self.place.root

    @property
    def marker(self) -> Path:
        return self.baits.with_name("marker")

    @property
    def mask(self) -> Path:
        return self.root / "masks" / "default.safetensors"

    @property
    def part(self) -> Path:
        return self.root / "saliency" / "theirs"


Plant = Callable[[Scene], tuple[str, ...]]
"""Plants something hostile; returns the command that meets it."""
INSPECT, MEASURE = ("inspect", "default"), ("saliency", "--set", "forget,preserve", "--force")
IMPORT = ("import", "theirs.pt", "--name", "theirs")


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def special(where: str, make: Callable[[Path], object], command: tuple[str, ...]) -> Plant:
    """What a function makes of a path in the workspace."""

    def plant(scene: Scene) -> tuple[str, ...]:
        path = scene.root / where
        path.unlink(missing_ok=True)
        make(path)
        return command

    return plant


def text(content: str | bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def scenes(folder: Path) -> Callable[[str], Scene]:
    """What makes a scene, in a folder of its own."""
    model = folder / "model"
    backbone("llava").micro(model, WORDS, seed=0, size="tiny")
    sound = place(folder / "sound", model)
    (sound.root / "masks").mkdir()
    write(sound, fitting(sound))
    arrays = {name: sound.files.float32(name) ** 2 for name in sound.files.names}
    of = {"model_type": "llava", "model_sha256": sound.files.digest(), "data_sha256": "0" * 64}
    about = {"part": "forget_vqa", "estimator": "sample", "batch_size": None, "units": 3, **of}
    SaliencyMap(arrays=arrays, no_gradient={}, **about).save(sound.root / "saliency" / "theirs")
    for command in (INSPECT, ("inspect", "theirs"), MEASURE):  # so that every scene's process has everything imported
        assert sound.copy(folder / command[-1]).run(*command).code == 0

    def scene(name: str) -> Scene:
        import h5py
        from PIL import Image

        made = Scene(sound.copy(folder / name / "work"), folder / name / "baits")
        made.baits.mkdir()
        with h5py.File(made.baits / "secret.h5", "w") as file:
            file["x"] = np.ones(4, np.float32)
        (made.baits / "secret.bin").write_bytes(bytes(16))
        Image.new("RGB", (28, 28)).save(made.baits / "secret.png")
        shutil.copy(model / "model.safetensors", made.baits / "x.safetensors")
        return made

    return scene
