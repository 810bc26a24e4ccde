"""`mmsurgery patch` as a person and as a program sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pairs import make_pair

from mmsurgery_cli.main import run


@pytest.fixture
def call(
    tmp_path: Path, tiny_llava: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    make_pair(tmp_path / "ws", tiny_llava)
    monkeypatch.chdir(tmp_path / "ws")

    def made(*arguments: str) -> tuple[int, str, str]:
        code = run(["patch", *arguments])
        return code, *capfd.readouterr()

    return made


def test_create_apply_revert(call: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, out, err = call("create", "after", "--json")
    result = json.loads(out)
    assert (code, err) == (0, "")
    assert result["bytes"] == Path(result["path"]).stat().st_size
    assert result["density"] == result["changed"] / result["total"]
    code, out, _ = call("create", "after")
    assert code == 0
    assert "up to date" in out
    assert f"{result['bytes']:,} bytes, {100 * result['share']:.1f} % of the {result['checkpoint_bytes']:,}" in out
    assert f"{result['changed']:,} of {result['total']:,} weights differ" in out
    code, out, _ = call("revert", "after", "--name", "back")
    assert code == 0
    assert "proved by digest" in out
    weights = [tmp_path / "ws" / "models" / name / "model.safetensors" for name in ("back", "vanilla")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    code, out, _ = call("apply", "after", "--name", "again", "--to", "back", "--json")
    assert code == 0
    assert json.loads(out)["source"] == "back"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("apply", "after", "--to", "after", "--name", "x"), 4, "belongs to weights"),
        (("apply", "aftr"), 2, "did you mean 'after'"),
        (("revert", "none.safetensors"), 2, "does not exist"),
        (("create", "nobody"), 2, "no model 'nobody'"),
        (("apply", "after", "--name", "vanilla"), 4, "exists, with other weights"),
    ],
)
def test_refusals(
    call: Callable[..., tuple[int, str, str]], arguments: tuple[str, ...], code: int, message: str
) -> None:
    assert call("create", "after")[0] == 0
    found = call(*arguments)
    assert found[0] == code
    assert message in found[2]
    assert found[1] == ""
