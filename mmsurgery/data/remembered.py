"""What was read from a folder, remembered as long as its files stay as they are.

One command asks for the same samples and items several times, an experiment hundreds of times: reading them anew took
most of the time of a command that had nothing to do.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from mmsurgery.data.benchmark import Source

KEPT = 64 << 20
"""Bytes that are remembered together, by and large."""
_SHARE = 1 << 10
"""Bytes that a sample, item or digest counts beside its picture."""
_MOST_FILES = 10_000
"""A folder of more is not looked through: that would take longer than to read what is asked for."""
_SETTLED = 2.0
"""Seconds for which a file must have been left alone: clocks of file systems are coarse, so that a change may leave no
trace in a younger one."""

Answer = TypeVar("Answer", bound=Collection[Any])
Question = TypeVar("Question", bound=Callable[..., Any])
_State = frozenset[tuple[str, int, int, int, int]]
"""Path, size, times of change of content and entry, and number of every file and folder."""


@dataclass(frozen=True)
class _Remembered:
    state: _State
    answer: Any
    size: int


_answers: OrderedDict[tuple[Any, ...], _Remembered] = OrderedDict()
"""The one asked for last at the end."""


def remembered(question: Question) -> Question:
    """A function `(reader, source, ...)`, or a reader's method `(source, ...)`, that is asked again only if a file of
    the source's folder, or the question, has changed; always of a reader without `of_files_alone` (see
    `mmsurgery.data.benchmark.Benchmark`). A list is the caller's own, what is in it is shared."""

    @functools.wraps(question)
    def ask(reader: Any, source: Source, *args: Any, **kwargs: Any) -> Any:
        def answer() -> Any:
            return question(reader, source, *args, **kwargs)

        if not getattr(reader, "of_files_alone", False):
            return answer()
        options = json.dumps(dict(source.options), sort_keys=True, default=sorted)
        return recall((question, reader, source.forget, options, args, *sorted(kwargs.items())), source.folder, answer)

    return cast(Question, ask)


def recall(key: tuple[Any, ...], folder: Path, read: Callable[[], Answer]) -> Answer:
    """What `read` gives, remembered by key and folder; of lists a copy.

    Raises:
        as `read` does, which is then not remembered.
    """
    state, key = _state(folder), (folder.absolute(), *key)
    known = _answers.get(key)
    if known is None or known.state != state:
        found = read()
        known = _Remembered(state or frozenset(), found, _size(found))
        _answers.pop(key, None)
        if state is not None and known.size <= KEPT:
            _answers[key] = known
            while sum(each.size for each in _answers.values()) > KEPT:
                _answers.popitem(last=False)
    else:
        _answers.move_to_end(key)
    return cast(Answer, list(known.answer)) if isinstance(known.answer, list) else known.answer


def _size(found: Collection[Any]) -> int:
    pictures = {id(data): len(data) for each in found if (data := getattr(each, "image_bytes", None)) is not None}
    return sum(pictures.values()) + _SHARE * (len(found) + 1)


def _state(folder: Path) -> _State | None:
    """None where nothing may be remembered: of a folder that was changed just now, is too large, or not to be read."""
    found: list[tuple[str, int, int, int, int]] = []
    latest = (time.time() - _SETTLED) * 1e9
    try:
        for path, status in _files(os.fspath(folder), frozenset()):
            if len(found) == _MOST_FILES or status.st_mtime_ns > latest or status.st_ctime_ns > latest:
                return None
            found.append((path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
    except OSError:  # said by who reads it
        return None
    return frozenset(found)


def _files(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, os.stat_result]]:
    """Files and folders below, links followed."""
    status = os.stat(folder)
    if (place := (status.st_dev, status.st_ino)) in above:
        return
    yield folder, status
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files(entry.path, above | {place})
            else:
                yield entry.path, entry.stat()
