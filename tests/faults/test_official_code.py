"""What the official code does silently: cases 80 to 90, as far as no other test of theirs is there (see README.md)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from campaigns.small import RECIPE, Place, place, rows


@pytest.fixture
def where(tmp_path: Path, tiny_llava: Path) -> Place:
    return place(tmp_path / "ws", tiny_llava, replace(RECIPE, batch_size=1))


@pytest.mark.parametrize("protocol", ["official", "equations"])
def test_fewer_retain_than_forget_samples_and_two_epochs(where: Place, protocol: str) -> None:
    """Cases 81 and 90: there a division by zero, and an iterator that ends in the second epoch; here every sample to
    be forgotten is seen in each epoch, and the retain set goes round."""
    where.write_rows(rows(forget=3, retain=1))
    ran = where.run("apply", "--method", "ga_diff", "--protocol", protocol, "--epochs", "2", "--name", "made")
    assert ran.code == 0, ran.err
    record = json.loads((where.root / "models" / "made" / "mmsurgery-run.json").read_text())
    steps = record["steps"]
    assert steps["done"] == steps["planned"]
    assert steps["forget"] == steps["retain"] == 2 * 3
    assert f"{steps['done']} of {steps['planned']} steps done" in ran.out


def test_a_forget_step_that_fails_ends_the_run(where: Place) -> None:
    """Case 80: there it is swallowed, with whatever went wrong in it."""
    broken = torch.OutOfMemoryError("CUDA out of memory")
    with mock.patch("mmsurgery.methods.ga_diff.ga_loss", side_effect=broken):
        ran = where.run("apply", "--method", "ga_diff", "--name", "made")
    assert ran.code == 6
    assert "memory" in ran.err
    assert not (where.root / "models" / "made").exists()


def test_a_pattern_that_names_nothing_is_refused(where: Place) -> None:
    """Case 83: `visual`, by which the official code picks modules, is in no name of LLaVA."""
    assert where.run("saliency", "--set", "forget,preserve").code == 0
    ran = where.run("mask", "--modules", "visual")
    assert ran.code == 2
    assert "vision" in ran.err
