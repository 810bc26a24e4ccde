"""What is kept of an error of our own: a file for a report, without secrets."""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import mmsurgery
from mmsurgery.artifacts.digests import cache_folder
from mmsurgery.errors import InternalError

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|(^|_)(API_?)?KEY$", re.IGNORECASE)
_SHORTEST = 8
"""Characters of a value that is taken for a secret: shorter ones would black out harmless text."""
_SECRETS = re.compile(r"hf_[A-Za-z0-9]{8,}|(?<=://)[^/\s@]+(?=@)|(?<=[Bb]earer )\S+")
_HIDDEN = "[hidden]"


def redacted(text: str) -> str:
    """`text` without values of environment variables that are named like secrets, tokens of the hub and names and
    passwords in addresses."""
    values = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= _SHORTEST}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, _HIDDEN)
    return _SECRETS.sub(_HIDDEN, text)


def keep(error: BaseException, arguments: Sequence[str]) -> Path | None:
    """Write what happened into the user's cache folder, readable by the user alone; None where that fails."""
    text = "\n".join(
        [
            f"mmsurgery {mmsurgery.__version__}, Python {platform.python_version()}, {platform.platform()}",
            f"arguments: {list(arguments)}",
            "".join(traceback.format_exception(error)),
        ]
    )
    folder = cache_folder() / "crashes"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        stamp = time.strftime("%Y%m%d-%H%M%S-", time.gmtime())
        handle, name = tempfile.mkstemp(prefix=stamp, suffix=".txt", dir=folder)
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(redacted(text))
    except OSError:
        return None
    return Path(name)


def line(error: BaseException, arguments: Sequence[str] | None) -> str:
    """The one line of an error of our own, which says where more is kept."""
    path = keep(error, sys.argv[1:] if arguments is None else arguments)
    told = error.what if isinstance(error, InternalError) else f"{type(error).__name__}: {error}"
    step = f"report it with {path}" if path else "run again with --debug and report it"
    return f"error[70]: {told} - next: {step}"
