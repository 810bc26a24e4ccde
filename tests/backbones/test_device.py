"""Where models are put."""

from __future__ import annotations

import os

import pytest
import torch

from mmsurgery.backbones import loading


def test_the_first_visible_accelerator_else_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert loading.device() == torch.device("cpu")
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading.device() == torch.device("cuda")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"  # what deterministic algorithms ask for
