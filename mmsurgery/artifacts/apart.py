"""Work on files of others by a library that they may break: in a process of its own, with an end to time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEMORY = 1 << 30
"""Bytes that the process may take beyond what this one has."""
_PATIENCE = 60
"""Seconds that it may take without computing."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Died(Exception):
    """The process ended before it had said what it found; the text says how."""


def apart(work: Callable[[], Any], seconds: int) -> Any:
    """What a function returns, a JSON value, called in a process forked from this one.

    Args:
        seconds: of processor time that it may take.

    Raises:
        Died: if the process died, or took too much time.
        OSError: if no process can be made.
    """
    reading, writing = os.pipe()
    with open(reading, "rb") as found, open(writing, "wb") as told:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child uses none of their locks
            child = os.fork()
        if not child:
            _work(work, seconds, told.fileno())
        told.close()
        said = found.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGXCPU:
        raise Died(f"its reader took more than {seconds} s")
    if status:
        raise Died(f"its reader died: {signal.strsignal(-status) if status < 0 else status}")
    return json.loads(said)


def _work(work: Callable[[], Any], seconds: int, told: int) -> None:
    """Never returns: nothing that this process began is to be ended twice."""
    status = 1
    with contextlib.suppress(BaseException):
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # who started this process decides what they mean
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_PATIENCE + 10 * seconds)  # where it waits for a lock that a thread held which is not here
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        if (sizes := Path("/proc/self/statm")).exists():
            held = int(sizes.read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.RLIM_INFINITY))
        said = memoryview(json.dumps(work()).encode())
        while said:
            said = said[os.write(told, said) :]
        status = 0
    os._exit(status)
