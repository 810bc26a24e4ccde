"""One model in memory at a time, and what models with one processor share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsurgery.errors import InputRefused
from mmsurgery.evaluate.remembered import Remembered

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded


class Loader:
    """Loads models when they are needed, and tokenises once what several models with one processor are asked."""

    def __init__(self) -> None:
        self.cache: dict[Any, Any] = {}
        """For the processor of the model loaded last, see `Backbone.collate`."""
        self.remembered: Remembered | None = None
        """Of the model loaded last."""
        self._loaded: Loaded | None = None
        self._template: str | None = None

    def load(self, folder: Path, model_sha256: str, again: str) -> Loaded:
        """The model of a checkpoint folder.

        Args:
            again: the command to give if its weights are no longer those of the digest.

        Raises:
            InputRefused: if they are not, or it cannot be read.
        """
        from mmsurgery.backbones.loading import load

        if self._loaded is not None and self._loaded.path == folder:
            return self._loaded
        processor = None if self._loaded is None else self._loaded.processor
        self._loaded = self.remembered = None  # before the next is read: two models may not fit into memory
        loaded = load(folder)
        template = loaded.backbone.template_digest(loaded.processor)
        if template == self._template:
            loaded = dataclasses.replace(loaded, processor=processor)
        else:
            self.cache = {}
        if loaded.model_sha256 != model_sha256:
            raise InputRefused(f"{folder} changed while it was being scored", again)
        self._loaded, self._template, self.remembered = loaded, template, Remembered(loaded)
        return loaded
