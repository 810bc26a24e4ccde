"""No secret in any output, artifact or crash file, whatever goes wrong (case 71); a bug leaves a file to report."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from mmsurgery.errors import InternalError
from mmsurgery_cli import crash

TOKEN = "hf_canaryCANARYcanary123"
PASSWORD = "canary-of-another-kind"
LOUD = f"401 for https://me:{PASSWORD}@example.org/x?token={TOKEN} (authorization: Bearer {TOKEN}) {PASSWORD}"


def _unauthorised(*_: Any, **__: Any) -> Any:
    response = SimpleNamespace(status_code=401, headers={}, request=SimpleNamespace(url=LOUD, headers={"auth": LOUD}))
    raise HfHubHTTPError(LOUD, response=response)  # type: ignore[arg-type] - of the client's transport, whichever


def _raises(error: BaseException) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


MODES: dict[str, tuple[int, tuple[str, ...], Callable[..., Any] | None]] = {
    "success": (0, ("status",), None),
    "usage": (2, ("status", "--nothing"), None),
    "missing": (2, ("inspect", "nothing"), None),
    "bug": (70, ("status",), _raises(RuntimeError(LOUD))),
    "bug with the traceback": (70, ("--debug", "status"), _raises(RuntimeError(LOUD))),
    "bug that we saw": (70, ("--debug", "status"), _raises(InternalError(LOUD))),
    "interrupted": (130, ("status",), _raises(KeyboardInterrupt())),
    "memory": (6, ("--debug", "status"), _raises(MemoryError(LOUD))),
    "disk full": (6, ("--debug", "status"), _raises(OSError(errno.ENOSPC, LOUD, LOUD))),
    "unauthorised": (7, ("pull", "me/mask"), _unauthorised),
    "unauthorised, with the traceback": (7, ("--debug", "pull", "me/mask"), _unauthorised),
    "no network": (7, ("--debug", "pull", "me/mask"), _raises(LocalEntryNotFoundError(LOUD))),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_canary_is_seen_nowhere(
    command: Callable[..., Any], portraits: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str
) -> None:
    code, arguments, call = MODES[mode]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("TRACKER_API_KEY", PASSWORD)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if call:
        monkeypatch.setattr("mmsurgery.status.status", call)
        monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", call)
    ran = command(*arguments)
    assert ran.code == code
    written = [path for folder in (tmp_path, portraits) for path in folder.rglob("*") if path.is_file()]
    for said in (ran.out.encode(), ran.err.encode(), *(path.read_bytes() for path in written)):
        assert TOKEN.encode() not in said
        assert PASSWORD.encode() not in said
    crashes = [path for path in written if path.parent.name == "crashes"]
    assert len(crashes) == (code == 70)
    if crashes:
        assert str(crashes[0]) in ran.err
        assert crashes[0].stat().st_mode & 0o777 == 0o600
        assert "Traceback" in crashes[0].read_text()


def test_a_bug_is_one_line_that_names_its_file(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("mmsurgery.status.status", _raises(ValueError("a\nb")))
    ran = command("status")
    (path,) = (tmp_path / "mmsurgery/crashes").iterdir()
    assert ran.err == f"error[70]: ValueError: a\\nb - next: report it with {path}\n"
    assert "arguments: ['status']" in path.read_text()
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))  # a file: nothing can be kept below it
    assert command("status").err == "error[70]: ValueError: a\\nb - next: run again with --debug and report it\n"


def test_harmless_text_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT_TOKEN", "the")
    monkeypatch.setenv("MONKEY", "the whole text of a variable")
    text = "the whole text of a variable, https://example.org/a@b and a key"
    assert crash.redacted(text) == text


def test_the_current_folder_is_not_imported_from(portraits: Path, tmp_path: Path) -> None:
    """Case 74: what lies beside the data is not taken for a library."""
    for name in ("mmsurgery", "mmsurgery_cli", "mmsurgery_llava", "typer", "rich", "numpy", "torch"):
        (tmp_path / f"{name}.py").write_text("open('marker', 'w').close()")
    command = [Path(sys.executable).with_name("mmsurgery"), "-w", portraits, "status"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert not (tmp_path / "marker").exists()


def test_a_link_planted_at_an_output_leads_nowhere(
    command: Callable[..., Any], portraits: Path, tmp_path: Path
) -> None:
    """Case 68: the link is replaced, what it points to stays as it is."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    report = portraits / "report/index.html"
    report.parent.mkdir(exist_ok=True)
    report.unlink(missing_ok=True)
    report.symlink_to(victim)
    assert command("report").code == 0
    assert victim.read_text() == "precious"
    assert not report.is_symlink()
    assert report.stat().st_size > 1000
