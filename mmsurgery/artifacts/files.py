"""Atomic writing and careful reading of files.

A file or folder appears under its final name whole or not at all: it is written beside it under a
dot-name, flushed to disk, then renamed. Leftovers of a killed run are removed by the next writer.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmsurgery.errors import InputRefused, MachineFault, Mismatch, MissingArtifact, UsageError
from mmsurgery.provenance import canonical_json, parse_json

_TEMPORARY = ".partial-"
MAX_JSON = 256 << 20
_SMALL, _MAX_RATIO = 1 << 30, 100
"""Bytes of a file that may be mostly holes, and of a larger one how many for each that is on the disk: file systems
that compress make no more of weights and pictures."""


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def machine_fault(error: OSError, path: Path) -> MachineFault:
    """What an operating-system error on `path` means to a person."""
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ELOOP):
        for place in (*reversed(path.parents), path):
            if (place.exists() or place.is_symlink()) and not place.is_dir():
                return MachineFault(f"cannot write {path}: {place} is no folder", "move it away")
    reason = error.strerror or str(error)
    hints = {
        errno.ENOSPC: "free some disk space and run the command again",
        errno.EDQUOT: "free some of your quota and run the command again",
        errno.EFBIG: "raise the file size limit (ulimit -f)",
        errno.EROFS: "choose a folder that can be written",
        errno.EACCES: "check the permissions of the folder",
        errno.EPERM: "check the permissions of the folder",
    }
    return MachineFault(f"cannot write {path}: {reason}", hints.get(error.errno or 0, "check the disk and try again"))


def remove_leftovers(folder: Path, name: str) -> None:
    """Remove what killed runs left beside `folder / name`; safe under the workspace lock."""
    ours = re.compile(re.escape(f"{_TEMPORARY}{name}-") + "[a-z0-9_]{8}")  # as tempfile ends its names
    for leftover in [path for path in folder.iterdir() if ours.fullmatch(path.name)]:
        _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it becomes `path`, on any error `path` is as it was.

    Raises:
        MachineFault: if the folder cannot be written or the disk is full.
    """
    with atomic_files(path) as (temporary,):
        yield temporary


@contextlib.contextmanager
def atomic_files(*paths: Path) -> Iterator[list[Path]]:
    """Yield temporary paths of files that belong together; on success they become `paths`, one after the other, on
    any error all are as they were.

    Raises:
        MachineFault: if a folder cannot be written or the disk is full.
    """
    temporaries: list[Path] = []
    renamed: list[tuple[Path, Path | None]] = []
    path = paths[0]
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir() and not path.is_symlink():
                raise MachineFault(f"{path} is a folder, a file was to be written", "move it away")
            remove_leftovers(path.parent, path.name)
            handle, name = tempfile.mkstemp(prefix=f"{_TEMPORARY}{path.name}-", dir=path.parent)
            temporaries.append(Path(name))
            os.close(handle)
        yield list(temporaries)
        for temporary in temporaries:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o666 & ~_umask())
        for path, temporary in zip(paths, list(temporaries), strict=True):
            before = _linked(path)
            temporaries += [before] if before not in (None, path) else []
            renamed.append((path, before))
            os.replace(temporary, path)
        for path in paths:
            fsync_folder(path.parent)
    except BaseException as error:
        for changed, before in reversed(renamed):
            _put_back(changed, before)
        if isinstance(error, OSError):
            raise machine_fault(error, path) from error
        raise
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _linked(path: Path) -> Path | None:
    """Another name for what lies at a path, None for nothing; where a file system has no links, what is replaced
    cannot be put back."""
    name = path.with_name(f"{_TEMPORARY}{path.name}-{secrets.token_hex(4)}")
    try:
        os.link(path, name, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        return path
    return name


def _put_back(path: Path, before: Path | None) -> None:
    with contextlib.suppress(OSError):  # of a disk that fails twice, the first failure is told
        if before is None:
            path.unlink(missing_ok=True)
        elif before != path:
            os.replace(before, path)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder; on success it becomes `path`, on any error `path` is as it was.

    Args:
        replace: an existing folder is exchanged for the new one, then removed.

    Raises:
        Mismatch: if `path` exists and `replace` is false.
        MachineFault: if the folder cannot be written or the disk is full.
    """
    if not replace and path.exists():
        raise Mismatch(f"{path} exists already", "pass --force to replace it, or another --name")
    with temporary_folder(path) as temporary:
        yield temporary
        umask = _umask()
        for folder, _, names in os.walk(temporary):
            for name in names:
                file = Path(folder, name)
                file.chmod(0o666 & ~umask)
                with file.open("rb") as written:
                    os.fsync(written.fileno())
            Path(folder).chmod(0o777 & ~umask)
            fsync_folder(Path(folder))
        put(temporary, path)


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside a path in which it is made, and that is removed; what a killed run left there is, too.

    Raises:
        MachineFault: if it cannot be written or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, path.name)
        temporary = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{path.name}-", dir=path.parent))
        yield temporary
    except OSError as error:
        raise machine_fault(error, path) from error
    finally:
        if temporary is not None:
            _remove(temporary)


def put(new: Path, path: Path) -> None:
    """Give a path to what lies beside it under a temporary name, and that name to what had it, for the caller to
    remove; on an error both are as they were.

    Raises:
        OSError: if they cannot be renamed.
    """
    replaced = path.exists()

    def swap() -> None:
        _exchange(new, path) if replaced else os.rename(new, path)

    swap()
    try:
        fsync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            _exchange(new, path) if replaced else os.rename(path, new)
        raise


def _exchange(new: Path, path: Path) -> None:
    """Swap two paths: in one step where the system can, so that no kill leaves nothing under `path`."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if swap is not None and swap(here, os.fsencode(new), here, os.fsencode(path), exchange) == 0:
        return
    aside = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{path.name}-", dir=path.parent))
    renamed: list[tuple[Path, Path]] = []
    try:
        for source, target in ((path, aside / "old"), (new, path), (aside / "old", new)):
            os.rename(source, target)
            renamed.append((source, target))
    except OSError:
        for source, target in reversed(renamed):
            os.rename(target, source)
        raise
    finally:
        with contextlib.suppress(OSError):  # kept where it still holds the old content
            aside.rmdir()


def given_path(path: Path, over: tuple[bytes, ...] = ()) -> Path:
    """A path that a person named to be written: its folder must be there, for a mistyped one is not made.

    Args:
        over: how a file may begin that is written over; any may where none is given.

    Raises:
        UsageError: if it is not, or something else is there.
    """
    if not path.parent.is_dir():
        raise UsageError(f"no folder {path.parent} to write {path.name} into", "make it, or name another one")
    if over and path.is_file() and not read_start(path).lstrip().lower().startswith(over):
        raise UsageError(f"{path} is there, and is something else", "name another file, or move it away")
    return path


def read_start(path: Path) -> bytes:
    """The first 64 bytes of a file.

    Raises:
        InputRefused: if it cannot be read.
    """
    try:
        with path.open("rb") as handle:
            return handle.read(64)
    except OSError as error:
        raise unreadable(path, error) from error


_PROBES = 50
"""How often a folder is tried that others try at the same time."""


def check_space(folder: Path, needed: int, what: str) -> None:
    """Check that the disk has room below a folder, which is made, and that files can be made there, before hours of
    work.

    Raises:
        MachineFault: if it has not, or they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        for left in reversed(range(_PROBES)):
            try:
                _probe(folder)
                break
            except FileNotFoundError:  # ranks and shards share a folder: one took another's probe for a leftover
                if not left:
                    raise
    except OSError as error:
        raise machine_fault(error, folder) from error
    if free < needed:
        raise MachineFault(f"{folder} needs {needed:,} bytes for {what}, {free:,} are free", "free some disk space")


def _probe(folder: Path) -> None:
    """Make, rename and flush a file below a folder, without a trace."""
    remove_leftovers(folder, "probe")
    with tempfile.TemporaryDirectory(prefix=f"{_TEMPORARY}probe-", dir=folder) as probe:
        Path(probe, "written").touch()
        os.rename(Path(probe, "written"), Path(probe, "renamed"))
        fsync_folder(Path(probe))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write canonical JSON with a final newline, atomically."""
    write_bytes(path, canonical_json(value) + b"\n")


def write_pretty_json(path: Path, value: Any) -> None:
    """Write JSON indented for people, keys in the given order, atomically."""
    write_bytes(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False).encode() + b"\n")


def unreadable(path: Path, error: OSError) -> InputRefused:
    """A refusal that says what the operating system says of reading `path`."""
    return InputRefused(f"{path} cannot be read: {error.strerror or error}", "check the file and its permissions")


def regular_file(path: Path) -> os.stat_result:
    """The status of a regular file.

    Raises:
        MissingArtifact: if nothing is there.
        InputRefused: for folders, pipes, devices, empty files, large ones that are nothing but holes, Git LFS
            pointers and HTML pages.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingArtifact(f"{path} does not exist", "check its name") from error
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise InputRefused(f"{path} is not a regular file", "name a file")
    if status.st_size == 0:
        raise InputRefused(f"{path} is empty", "make or copy it again")
    held = 512 * status.st_blocks  # 0 where a file system does not say
    if status.st_size > max(_SMALL, _MAX_RATIO * held) and held:
        what = f"{path} claims {status.st_size:,} bytes, of which {held:,} are on the disk: the rest are holes"
        raise InputRefused(what, "make or copy it again")
    head = read_start(path)
    if head.startswith(b"version https://git-lfs"):
        raise InputRefused(f"{path} is a Git LFS pointer, not the file itself", "git lfs pull")
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise InputRefused(f"{path} is an HTML page, not the file itself", "download it again")
    return status


def read_bytes(path: Path, limit: int = MAX_JSON) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    Raises:
        MissingArtifact, InputRefused: see `regular_file`; also if it is larger than `limit`.
    """
    if regular_file(path).st_size > limit:
        raise InputRefused(f"{path} is larger than {limit:,} bytes")
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def read_json(path: Path, limit: int = MAX_JSON) -> Any:
    """Parse a JSON file strictly (see `provenance.parse_json`)."""
    return parse_json(read_bytes(path, limit), str(path))


def read_at(handle: int, buffer: memoryview, place: int) -> None:
    """Fill bytes from an open file; the system may give them in several goes.

    Raises:
        ValueError: if the file ends before.
        OSError: if it cannot be read.
    """
    while buffer:
        count = os.preadv(handle, [buffer], place)
        if not count:
            raise ValueError("the file was cut")
        buffer, place = buffer[count:], place + count
