"""Stopping on a signal where something can be kept.

The engine installs no signal handler; a command line's handler calls `interrupt`. Inside `deferred`, which a
loop that takes snapshots enters, that only leaves a note, and the loop stops after its next snapshot;
elsewhere it stops at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class Interrupted(BaseException):
    """A signal asked to stop.

    Args:
        number: the signal's.
        saved: whether a snapshot of what was being done was taken.
    """

    def __init__(self, number: int, *, saved: bool = False) -> None:
        self.number, self.saved = number, saved
        super().__init__(number)


_depth = 0
_asked: int | None = None


def interrupt(number: int) -> None:
    """A signal came: return if a snapshot will be taken first, else raise.

    Raises:
        Interrupted: where nothing can be kept.
    """
    global _asked
    if not _depth:
        raise Interrupted(number)
    _asked = number


def asked() -> bool:
    """Whether a signal waits for the next snapshot."""
    return _asked is not None


def stop_if_asked() -> None:
    """After a snapshot.

    Raises:
        Interrupted: if a signal came meanwhile.
    """
    global _asked
    if _asked is not None:
        number, _asked = _asked, None
        raise Interrupted(number, saved=True)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Inside, `interrupt` waits for a snapshot; one that found none is obeyed at the end."""
    global _depth, _asked
    _depth += 1
    try:
        yield
        if _asked is not None and _depth == 1:
            raise Interrupted(_asked)
    finally:
        _depth -= 1
        if not _depth:
            _asked = None
