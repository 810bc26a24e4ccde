"""Methods in files of one's own: what they get wrong is said to be theirs, and other code is another run."""

from __future__ import annotations

from pathlib import Path

import pytest
from campaigns import small

METHOD = """
import sys, torch
from mmsurgery.methods.base import Method, Term
class Mine(Method):
    name, title, equation, uses_retain = "mine", "Mine", "-", False
    def terms(self, step):
        loss = step.forget.answers().nll().mean()
        BODY
"""
SOUND = 'yield Term("forget", -loss)'


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> small.Place:
    root = tmp_path_factory.mktemp("own")
    return small.place(root / "here", small.models(root / "models")["llava"])


def apply(place: small.Place, tmp_path: Path, body: str, *more: str) -> small.Ran:
    file = tmp_path / "own.py"
    file.write_text(METHOD.replace("BODY", body))
    return place.run("apply", "--method", f"{file}:Mine", "--steps", "1", *more)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.exit(0); yield", "SystemExit: 0 (line 8)"),
        ("raise ValueError('no'); yield", "ValueError: no (line 8)"),
        ("yield None", "yields None, should be Term"),
        ("yield Term('forget', 1.0)", "should be Term('forget' or 'retain', a loss of one number)"),
        ("yield Term('forget', torch.stack([loss, loss]))", "should be Term('forget' or 'retain', a loss of one"),
        ("yield Term('other', loss)", "should be Term('forget' or 'retain', a loss of one number)"),
        ("return 5", "'int' object is not iterable"),
    ],
)
def test_faults_of_the_method_are_its_own(place: small.Place, tmp_path: Path, body: str, message: str) -> None:
    ran = apply(place, tmp_path, body, "--name", "broken")
    assert ran.code == 2, ran.err
    last = ran.err.splitlines()[-1]
    assert last.startswith("error[2]: method mine of ")
    assert message in last
    assert not (place.root / "models" / "broken").exists()


def test_other_code_is_another_run(place: small.Place, tmp_path: Path) -> None:
    assert apply(place, tmp_path, SOUND).code == 0
    again = apply(place, tmp_path, SOUND)
    assert again.code == 0
    assert "up to date" in again.out + again.err
    other = apply(place, tmp_path, SOUND.replace("-loss", "loss"))
    assert other.code == 4
    assert "'mine' exists, made with other method " in other.err
