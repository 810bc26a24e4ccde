"""A `Progress` that remembers its notes."""

from __future__ import annotations

from mmsurgery.workspace import SILENT


class Notes:
    """Shows nothing."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.stage = SILENT.stage

    def note(self, text: str) -> None:
        self.texts.append(text)
