"""Digests of files, remembered as long as path, size, times and inode stay the same."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.files import regular_file, unreadable
from mmsurgery.paths import real
from mmsurgery.provenance import sha256_file

_RACY = 2_000_000_000
"""Nanoseconds within which two changes of a file may carry one time stamp."""


def file_identity(path: Path) -> list[int]:
    """Size, times of modification and change (ns) and inode of a regular file: equal as long as its bytes
    are. A file written a moment ago has no lasting identity: its next change may carry the same times."""
    status = regular_file(path)
    identity = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    now = time.time_ns()
    return [*identity, now] if now - max(status.st_mtime_ns, status.st_ctime_ns) < _RACY else identity


def cache_folder() -> Path:
    """The user's folder for what may be lost, as the XDG base directory specification says; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base, "mmsurgery")


class DigestCache:
    """Digests of files already hashed, keyed by path, size, times and inode.

    Kept in one JSON file below the user's cache folder, owned and readable by the user alone; a
    cache that cannot be read or written costs time, never correctness.
    """

    def __init__(self) -> None:
        self._path = cache_folder() / "digests.json"
        self._entries: dict[str, list[Any]] | None = None
        self._believed = True

    @contextlib.contextmanager
    def afresh(self) -> Iterator[None]:
        """Believe nothing that was remembered: files are read again, as a disk may have changed them silently."""
        self._believed = False
        try:
            yield
        finally:
            self._believed = True

    def _load(self) -> dict[str, list[Any]]:
        if self._entries is None:
            self._entries = {}
            try:
                status = self._path.stat()
                ours = status.st_uid == os.getuid() and not status.st_mode & 0o022
                if ours and stat.S_ISREG(status.st_mode):
                    value = json.loads(self._path.read_bytes())
                    if isinstance(value, dict):
                        self._entries = {k: v for k, v in value.items() if isinstance(v, list) and len(v) == 2}
            except (OSError, ValueError, RecursionError):
                self._entries = {}
        return self._entries

    def remember(self, key: str, identity: list[Any], compute: Callable[[], str]) -> str:
        """What `compute` returned when last called for this `key` and `identity` (a JSON value that
        changes whenever the result may)."""
        entries = self._load()
        entry = entries.get(key)
        if self._believed and entry is not None and entry[0] == identity:
            return str(entry[1])
        value = compute()
        entries[key] = [identity, value]
        self._save()
        return value

    def sha256(self, path: Path) -> str:
        """Digest of a regular file, hashed again only if the file changed."""

        def compute() -> str:
            try:
                return sha256_file(path)
            except OSError as error:
                raise unreadable(path, error) from error

        return self.remember(str(real(path)), file_identity(path), compute)

    def _save(self) -> None:
        entries = self._load()
        if len(entries) > 4096:
            for old in list(entries)[: len(entries) - 2048]:
                del entries[old]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, name = tempfile.mkstemp(dir=self._path.parent)
            with os.fdopen(handle, "w") as stream:
                stream.write(json.dumps(entries))  # `dump` is many times slower
            os.replace(name, self._path)
        except OSError:
            return


digest_cache = DigestCache()


def cached_sha256(path: Path) -> str:
    """Digest of a file, remembered as long as path, size, times and inode stay the same."""
    return digest_cache.sha256(path)
