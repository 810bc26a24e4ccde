"""Every error a person can cause or meet, as one tree; the class carries the exit code.

    MmsurgeryError
    |- GateMissed            1   a gate that was asked for was missed (`verify`, `eval --fail-under`, `--fail-over`)
    |- UsageError            2   a wrong argument, name, selector or setting
    |  |- NoWorkspace            no mmsurgery.toml here or above
    |  `- MissingArtifact        a named thing that has not been made yet
    |- InputRefused          3   a broken, damaged or hostile file
    |- Mismatch              4   things that do not belong together
    |- UnusableData          5   numbers or data that cannot be used (NaN, empty set, lost answer)
    |- MachineFault          6   disk, memory, permission, lock
    |- RemoteFault           7   hub, network, authentication
    `- InternalError        70   our own bug

Printed as one line: `error[CODE]: what - next: what to do`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MmsurgeryError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: what is wrong and where (file, tensor, row, value), without a trailing full stop.
        next_step: the command or setting that helps; the class's `usual_step` where it is left out.
    """

    code = 70
    usual_step: str | None = None

    def __init__(self, what: str, next_step: str | None = None) -> None:
        self.what = what
        self.next_step = next_step or self.usual_step
        super().__init__(what)

    def __str__(self) -> str:
        return self.what if self.next_step is None else f"{self.what} - next: {self.next_step}"

    def line(self) -> str:
        """The one printable line; control characters of foreign text are shown escaped."""
        return printable(f"error[{self.code}]: {self}")


class GateMissed(MmsurgeryError):
    code = 1


class UsageError(MmsurgeryError):
    code = 2


class NoWorkspace(UsageError):
    pass


class MissingArtifact(UsageError):
    pass


class InputRefused(MmsurgeryError):
    code = 3
    usual_step = "make or copy it again"


class Mismatch(MmsurgeryError):
    code = 4


class UnusableData(MmsurgeryError):
    code = 5


class MachineFault(MmsurgeryError):
    code = 6


class RemoteFault(MmsurgeryError):
    code = 7


class InternalError(MmsurgeryError):
    code = 70
    usual_step = "report it"


def printable(text: str) -> str:
    """`text` with control characters, line breaks and bidirectional overrides escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, or None where nothing is close."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return matches[0] if matches else None


def unknown(kind: str, word: str, known: Iterable[str]) -> UsageError:
    """A `UsageError` for a name that is not known, with the nearest and the known ones."""
    names = sorted(known)
    guess = nearest(word, names)
    hint = f"did you mean '{guess}'? " if guess else ""
    shown = ", ".join(names[:20]) or "none"
    return UsageError(f"no {kind} '{word}'", f"{hint}known: {shown}")
