"""What all commands share: the global options, the workspace they stand in, common option types."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mmsurgery.api import Workspace

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Do it again, replacing a different result of that name.")]
Name = Annotated[str | None, typer.Option("--name", help="Name of what is made.")]


class State:
    """The options given before the command."""

    workspace: str | None = None
    debug: bool = False

    def reset(self) -> None:
        self.workspace, self.debug = None, False


state = State()


def open_here() -> Workspace:
    """The workspace named by `--workspace`, else the one the current folder stands in."""
    from mmsurgery.api import open_workspace

    return open_workspace(Path(state.workspace) if state.workspace else Path.cwd())
