"""Reading `.pt` files of others: bounded, tensors only, nothing executed.

What is read: the zip archive that `torch.save` has written since torch 1.6, with uncompressed entries whose checksums
are right, and a pickle that builds nothing but dictionaries and plain tensors. The pickle is looked through before
torch reads it, and torch reads it with `weights_only=True`, memory-mapped.
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.files import regular_file, unreadable
from mmsurgery.errors import InputRefused, printable

MAX_PICKLE = 8 << 20
"""Bytes of an archive's pickle, which holds names and shapes; those of 700 tensors take 0.1 MB."""

_STORAGES = ("Bool", "Byte", "Char", "Short", "Int", "Long", "Half", "BFloat16", "Float", "Double")
_HARMLESS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {storage}Storage" for storage in _STORAGES),
}
_SAVE_AGAIN = "save it again: torch.save(torch.load(FILE, weights_only=True), FILE)"


def read_torch_file(path: Path, *, max_bytes: int, max_entries: int) -> Any:
    """What a `.pt` file holds; its tensors are views of the file.

    Args:
        max_bytes: of the file.
        max_entries: of the archive, one for each tensor and a few more.

    Raises:
        MissingArtifact: if it does not exist.
        InputRefused: if it is larger than allowed, no such archive, damaged, or would run code.
    """
    size = regular_file(path).st_size
    if size > max_bytes:
        raise InputRefused(
            f"{path} is larger than a mask of this model can be ({size:,} bytes, {max_bytes:,} at most)",
            "name a mask that was made for this model",
        )
    _check_pickle(path, _pickle(path, size, max_entries))
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, KeyError, IndexError, EOFError) as error:
        raise InputRefused(f"{path} cannot be read as tensors: {type(error).__name__}", _SAVE_AGAIN) from error
    except (AttributeError, AssertionError, NotImplementedError, OverflowError, RecursionError) as error:
        raise InputRefused(f"{path} cannot be read as tensors: {type(error).__name__}", _SAVE_AGAIN) from error


def _pickle(path: Path, size: int, max_entries: int) -> bytes:
    """The pickle of an archive whose entries are checked."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if len(entries) > max_entries or len(set(names)) != len(names):
                raise InputRefused(f"{path} holds {len(entries):,} entries, {max_entries:,} at most, each once")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise InputRefused(f"{path} is compressed, which torch.save never does", _SAVE_AGAIN)
            if sum(entry.file_size for entry in entries) > size:
                raise InputRefused(f"{path} declares more bytes than it has")
            pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE:
                raise InputRefused(f"{path} is no archive of torch.save", _SAVE_AGAIN)
            if damaged := archive.testzip():
                raise InputRefused(f"{path} is damaged: the checksum of {printable(damaged)[:80]} differs", _SAVE_AGAIN)
            return archive.read(pickles[0])
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise InputRefused(
            f"{path} is no archive of torch.save (a bare or legacy pickle is never read: it may run code)", _SAVE_AGAIN
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _check_pickle(path: Path, data: bytes) -> None:
    """Refuse a pickle that names anything but plain tensors and their storages, without running it."""
    try:
        for code, argument, _ in pickletools.genops(data):
            if code.name in ("GLOBAL", "INST") and argument not in _HARMLESS:
                what = str(argument).replace(" ", ".")[:80]
                raise InputRefused(f"{path} contains code ({what}); only plain tensors are read", "do not trust it")
            if code.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
                raise InputRefused(
                    f"{path} contains code that its pickle hides; only plain tensors are read",
                    "save plain tensors: torch.save({name: tensor})",
                )
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError) as error:
        raise InputRefused(f"{path} is damaged: its pickle cannot be read", "copy it again") from error
