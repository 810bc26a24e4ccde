"""Paths as people write them, and where they lead."""

from __future__ import annotations

import os
from pathlib import Path

from mmsurgery.errors import UsageError


def real(path: Path) -> Path:
    """Where a path leads; of links that lead in a circle the path itself, which then cannot be read."""
    return Path(os.path.realpath(path))


def home_expanded(text: str) -> Path:
    """A path, `~` and `~user` in it taken for home folders.

    Raises:
        UsageError: for a user that there is not.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(f"no home folder for {text}", "write the path in full") from error
