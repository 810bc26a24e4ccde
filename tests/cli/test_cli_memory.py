"""Memory that runs out: a fault of the machine with a next step, not a bug of ours."""

from __future__ import annotations

import pytest
import torch

from mmsurgery_cli import main


class OutOfMemoryError(RuntimeError):
    """As torch has it."""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), 6, "not enough memory on the GPU - next: "),
        (MemoryError(), 6, "not enough memory - next: "),
        (RuntimeError("CUDA out of memory"), 70, "RuntimeError: CUDA out of memory - next: "),
    ],
)
def test_memory_that_runs_out_is_the_machines_fault(
    error: Exception, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def command(args: object) -> None:
        raise error

    monkeypatch.setattr(main, "app", command)
    assert main.run(["apply"]) == code
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error[{code}]: {said}")


def test_main_memory_that_torch_does_not_get(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Case 55."""
    monkeypatch.setattr(main, "app", lambda args: torch.empty(1 << 50, dtype=torch.uint8))
    assert main.run(["apply"]) == 6
    assert capfd.readouterr().err == (
        "error[6]: not enough memory - next: use a smaller batch; --plan says what a command needs\n"
    )


def test_the_name_is_torchs() -> None:
    assert torch.OutOfMemoryError.__name__ == torch.cuda.OutOfMemoryError.__name__ == OutOfMemoryError.__name__
    assert not issubclass(torch.OutOfMemoryError, MemoryError)
