"""Workspaces that several commands work on at the same time: whoever comes second waits, nobody is ended."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mmsurgery.api import Workspace
from mmsurgery.settings import Settings
from mmsurgery.workspace import InUse


class PatientWorkspace(Workspace):
    """A workspace whose lock is waited for as long as another process holds it.

    Args:
        tell: told once, before the first wait, who holds it.
    """

    def __init__(self, root: Path, settings: Settings, tell: Callable[[str], None]) -> None:
        super().__init__(root, settings)
        self._tell: Callable[[str], None] | None = tell

    @contextlib.contextmanager
    def lock(self, timeout: float | None = None) -> Iterator[None]:
        """Hold the one writer's lock.

        Raises:
            MachineFault: if journal or lock cannot be written.
            InUse: if this very process holds it.
        """
        with contextlib.ExitStack() as held:
            while True:
                try:
                    held.enter_context(super().lock(timeout))
                    break
                except InUse as fault:
                    if fault.pid == os.getpid():
                        raise
                    if self._tell is not None:
                        self._tell(f"{fault.what}: waiting, what it has made by then is found")
                        self._tell = None
            yield
