"""Pictures of people for the page: found in a level's own data, made small, and embedded."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from mmsurgery.data.benchmark import benchmark, source_of
from mmsurgery.errors import InputRefused, MmsurgeryError
from mmsurgery.names import is_artifact_name
from mmsurgery.paths import real
from mmsurgery.settings import SETTINGS_FILE, Settings
from mmsurgery.workspace import Workspace

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 256
"""Pixels of a picture's longer side, at most."""
_PNG_BYTES = 30_000
"""Pictures that need more as PNG are embedded as JPEG."""


class Pictures:
    """Pictures of scored items, as `data:` addresses."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def of(self, folder: str, column: str, ids: Collection[str]) -> tuple[dict[str, Markup], str]:
        """The pictures of some items.

        Args:
            folder: the level's workspace, relative to the root.

        Returns:
            id -> address, of those that were found; and why the others were not, or nothing.
        """
        try:
            return self._found(folder, column, ids)
        except (MmsurgeryError, OSError) as error:
            what = error.what if isinstance(error, MmsurgeryError) else f"{folder}: {error.strerror}"
            # no absolute path belongs on a page that may be sent around
            return {}, what.replace(f"{self._root}/", "")

    def _found(self, folder: str, column: str, ids: Collection[str]) -> tuple[dict[str, Markup], str]:
        place = self._root / folder
        if not all(map(is_artifact_name, folder.split("/"))) or not _inside(place, self._root):
            raise InputRefused(f"'{folder}' is no folder of this workspace", "mmsurgery status lists what there is")
        workspace = Workspace(place, Settings.read(place / SETTINGS_FILE))
        items = benchmark(workspace.settings.benchmark.name).items(source_of(workspace), column)
        wanted = {item.id: item for item in items if item.id in ids and item.image_bytes is not None}
        missing = sorted(set(ids) - set(wanted))
        why = f"{folder}: {column} has no picture '{missing[0]}'" if missing else ""
        return {id: embedded(image) for id, item in wanted.items() if (image := item.image) is not None}, why


def _inside(place: Path, root: Path) -> bool:
    return real(place).is_relative_to(real(root))


def embedded(image: Image) -> Markup:
    """An RGB picture as a `data:` address: drawn anew from its pixels alone, its longer side at most `SIDE`."""
    from PIL import Image as pil

    small = pil.frombytes("RGB", image.size, image.tobytes())
    small.thumbnail((SIDE, SIDE))
    data = _encoded(small, "PNG")
    kind = "png"
    if len(data) > _PNG_BYTES:
        data, kind = _encoded(small, "JPEG"), "jpeg"
    return Markup(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")  # noqa: S704


def _encoded(image: Image, format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, optimize=True, **({"quality": 85} if format == "JPEG" else {}))
    return buffer.getvalue()
