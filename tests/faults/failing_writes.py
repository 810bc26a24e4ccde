"""A disk on which the n-th operation fails, or where the process is killed at it: SQLite's way to test every place.

Patched are `os` and the files that Python opens; what C writes by itself (a memory map, HDF5) is not reached, which
is why mmsurgery writes artifacts through Python's files alone.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from mmsurgery.artifacts import files

HOW = ("EIO", "ENOSPC", "kill")
"""The n-th operation fails, once; it and every later one that takes room does; the process is killed at it."""
_TAKES_ROOM = ("open", "write", "mkdir", "link")


class FailingDisk:
    """Inside, what changes files below a folder is counted, and fails as told.

    Args:
        nth: from 1; 0 for never.
        how: one of `HOW`.
    """

    def __init__(self, root: Path, nth: int = 0, how: str = "EIO") -> None:
        self.root, self.nth, self.how = os.path.realpath(root), nth, how
        self.done: list[str] = []
        """Operations so far: `fsync masks/default.safetensors`."""
        self.fired: str | None = None
        """The first operation that failed."""
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> FailingDisk:
        for name, kind in _OPERATIONS.items():
            self._patch(os, name, self._failing(getattr(os, name), kind))
        self._patch(os, "open", self._os_open(os.open))
        self._patch(files, "_exchange", self._failing(files._exchange, "rename"))
        opened = self._opened(io.open)
        self._patch(io, "open", opened)
        self._patch(builtins, "open", opened)
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    def _patch(self, where: Any, name: str, value: Any) -> None:
        self._patches.enter_context(mock.patch.object(where, name, value))

    def happens(self, kind: str, file: Any, half: Callable[[], object] | None = None) -> None:
        """Something is about to be done to a file, by path or handle.

        Args:
            half: does a part of it, which a full disk still takes.

        Raises:
            OSError: if it is this one that fails.
        """
        path = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else os.path.abspath(os.fsdecode(file))
        if not path.startswith(self.root + os.sep):
            return
        self.done.append(f"{kind} {path[len(self.root) + 1 :]}")
        number = len(self.done)
        hit = number == self.nth or (self.how == "ENOSPC" and 0 < self.nth < number and kind in _TAKES_ROOM)
        if not hit or (self.how == "ENOSPC" and kind not in _TAKES_ROOM):
            return
        if half is not None and self.how != "EIO":
            half()
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        self.fired = self.fired or self.done[-1]
        number = getattr(errno, self.how)
        raise OSError(number, os.strerror(number), path)

    def _failing(self, real: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def call(first: Any, *rest: Any, **named: Any) -> Any:
            # the target tells where a link, rename or exchange is made; of what is copied, the handle written to
            told = rest[0] if kind in ("rename", "link") and rest else first
            self.happens(kind, told)
            return real(first, *rest, **named)

        return call

    def _os_open(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not isinstance(path, int):
                self.happens("open", path)
            return real(path, flags, *rest, **named)

        return call

    def _opened(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
            if not set(mode) & set("wax+"):
                return real(file, mode, buffering, *rest, **named)
            if not isinstance(file, int) and "opener" not in named:
                self.happens("open", file)
            raw = _File(
                file, mode.replace("b", "").replace("t", ""), named.pop("closefd", True), named.pop("opener", None)
            )
            raw.disk = self
            if "b" in mode and buffering == 0:
                return raw
            size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
            buffered: Any = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw, size)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **named)

        return call


class _File(io.FileIO):
    disk: FailingDisk

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.disk.happens("write", self.fileno(), lambda: super(_File, self).write(view[: len(view) // 2]))
        return super().write(data)


_OPERATIONS = {
    "write": "write",
    "pwrite": "write",
    "sendfile": "write",
    "copy_file_range": "write",
    "fsync": "fsync",
    "fdatasync": "fsync",
    "rename": "rename",
    "replace": "rename",
    "mkdir": "mkdir",
    "link": "link",
}


def every_place(root: Path, how: str) -> Iterator[FailingDisk]:
    """Disks on which the first, second, ... operation fails, until one on which none did: that run went through."""
    for nth in itertools.count(1):
        disk = FailingDisk(root, nth, how)
        yield disk
        if len(disk.done) < nth:
            return
