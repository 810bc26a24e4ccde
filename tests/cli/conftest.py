from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mmsurgery.start import initialise
from mmsurgery_cli.main import run


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="session")
def portraits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace as `mmsurgery init` leaves it; tests that write use names of their own."""
    root = tmp_path_factory.mktemp("portraits")
    initialise(root)
    return root


@pytest.fixture
def command(portraits: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command in the workspace, in this process."""
    monkeypatch.chdir(portraits)

    def call(*arguments: str) -> Ran:
        code = run(arguments)
        captured = capfd.readouterr()
        return Ran(code, captured.out, captured.err)

    return call
