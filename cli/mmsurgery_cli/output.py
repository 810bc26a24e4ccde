"""What the command line prints: results on stdout, progress and notes on stderr, quiet when piped."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mmsurgery.errors import printable


class Output:
    """One command's output. With `as_json` stdout carries exactly one JSON document."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.out = Console(soft_wrap=not sys.stdout.isatty(), highlight=False)
        self.err = Console(stderr=True, soft_wrap=not sys.stderr.isatty(), highlight=False)
        self._shown: Progress | None = None

    def show(self, *renderables: RenderableType) -> None:
        """Print for people; nothing with `--json`."""
        if not self.as_json:
            for renderable in renderables:
                self.out.print(renderable)

    def document(self, value: Any) -> None:
        """Print the one JSON document; nothing without `--json`."""
        if self.as_json:
            escaped = "utf" not in str(sys.stdout.encoding).lower()
            sys.stdout.write(json.dumps(plain(value), indent=2, ensure_ascii=escaped, allow_nan=False) + "\n")
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """A line for people on stderr."""
        self.err.print(Text(printable(text), style="dim"))

    @contextlib.contextmanager
    def stage(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A progress bar with an estimate, below those of the stages around it; nothing where stderr is no terminal."""
        with self._bars() as bars:
            task = bars.add_task(printable(what), total=total)
            try:
                yield lambda amount: bars.advance(task, amount)
            finally:
                bars.remove_task(task)

    @contextlib.contextmanager
    def _bars(self) -> Iterator[Progress]:
        """The bars that are shown: one set at a time, the outermost stage's."""
        if self._shown is not None:
            yield self._shown
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.err, transient=True, disable=not self.err.is_terminal) as bars:
            self._shown = bars
            try:
                yield bars
            finally:
                self._shown = None


def plain(value: Any) -> Any:
    """Result objects as plain JSON values; paths as text, NaN as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.repr}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and value != value:
        return None
    if hasattr(value, "item") and callable(value.item):
        return value.item()
    return value


def table(*columns: str, title: str | None = None, numbers: int | None = None) -> Table:
    """A plain table; all but the first `numbers` columns are right-aligned (default 1)."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for index, column in enumerate(columns):
        left = index < (1 if numbers is None else numbers)
        made.add_column(column, justify="left" if left else "right", overflow="fold")
    return made


def percent(share: float | None, digits: int = 1) -> str:
    """`0.857` -> `85.7`."""
    return "-" if share is None else f"{100 * share:.{digits}f}"


def label(text: str) -> Text:
    """Foreign text made safe to print: no markup, no control characters."""
    return Text(printable(text))
