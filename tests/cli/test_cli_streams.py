"""Where the output cannot go: a full device, a closed pipe, closed streams."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = f"{sys.executable} -c 'from mmsurgery_cli.main import main; main()'"


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    script = f"set -o pipefail; {line.replace('mmsurgery', COMMAND)}"
    return subprocess.run(["bash", "-c", script], cwd=cwd, capture_output=True, text=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", ["backbones", "backbones --json", "--version"])
def test_a_full_device_is_exit_6_with_one_line(arguments: str, tmp_path: Path) -> None:
    ran = shell(f"mmsurgery {arguments} >/dev/full", tmp_path)
    assert ran.returncode == 6
    assert len(ran.stderr.splitlines()) == 1, ran.stderr
    assert ran.stderr.startswith("error[6]: ")
    assert "No space left" in ran.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_nowhere_to_say_it(tmp_path: Path) -> None:
    assert shell("mmsurgery status 2>/dev/full", tmp_path).returncode == 2


@pytest.mark.parametrize("closed", [">&-", "2>&-", pytest.param(">&- 2>&-", marks=pytest.mark.slow), "<&- >&- 2>&-"])
def test_closed_streams_change_no_exit_code(closed: str, tmp_path: Path) -> None:
    for arguments, code in (("backbones", 0), ("backbones --json", 0), ("status", 2)):
        ran = shell(f"mmsurgery {arguments} {closed}", tmp_path)
        assert ran.returncode == code, ran
        assert "Traceback" not in ran.stderr + ran.stdout


@pytest.mark.parametrize("arguments", ["inspect model", "inspect model --json"])
def test_a_closed_pipe_is_quiet_and_no_missed_gate(arguments: str, tmp_path: Path, tiny_llava: Path) -> None:
    shutil.copytree(tiny_llava, tmp_path / "model")
    ran = shell(f"mmsurgery {arguments} | true", tmp_path)
    assert (ran.returncode, ran.stderr) == (141, "")
