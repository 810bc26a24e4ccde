"""What all commands share: the global options, the workspace they stand in, common option types."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmsurgery.errors import NoWorkspace, UsageError
from mmsurgery.paths import home_expanded, real
from mmsurgery.settings import SETTINGS_FILE

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


def folder_to_make(given: Path | None) -> Path:
    """Where a workspace is to be made: in the folder that is given, or named by `--workspace`, else in the current one.

    Raises:
        UsageError: if two different ones are named.
    """
    named = None if state.workspace is None else home_expanded(state.workspace)
    if given is not None and named is not None and real(given) != real(named):
        raise UsageError(f"two folders for a workspace: {given}, and -w {named}", "name one of them")
    return (given or named or Path()).absolute()


def open_here() -> Workspace:
    """The workspace named by `--workspace`, else the one the current folder stands in.

    Raises:
        NoWorkspace: if there is none; a folder that was named is not looked for in its parents.
    """
    from mmsurgery.api import open_workspace

    if state.workspace is None:
        return open_workspace(Path.cwd())
    named = real(home_expanded(state.workspace))
    if not (named / SETTINGS_FILE).is_file():
        raise NoWorkspace(f"{named} is no workspace: it has no {SETTINGS_FILE}", "name another folder with -w")
    return open_workspace(named)
