"""Figures 5 and 6: what a line of heatmaps says of a method."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from mmsurgery.errors import UsageError
from mmsurgery.figures import deviations as figure
from mmsurgery.figures.deviations import draw_deviations
from mmsurgery.figures.heatmap import Heatmap


def entry(share: float) -> dict[str, Any]:
    """A model of one LM layer, a head and a connector without weights that were not 0."""
    return {
        "n": 10,
        "changed": 0.5,
        "groups": {"connector": {"top": 1 - share, "changed": 0.25}, "lm": {"top": share, "changed": 0.999}},
        "layers": ["connector", "lm.0", "lm"],
        "components": ["attn.q", "head", "proj"],
        "sizes": [[0, 0, 5], [10, 0, 0], [0, 20, 0]],
        "share": [[0.0, 0.0, 0.2], [share, 0.0, 0.0], [0.0, 0.1, 0.0]],
        "relative": [[None, None, None], [0.5, None, None], [None, 0.25, None]],
        "models": 3,
    }


@pytest.mark.parametrize(
    ("kind", "label", "unit"),
    [
        ("share", "GA: 40 % of the n in connector, 60 % in lm", "share of its weights in the top n"),
        ("relative", "GA: 25 % of the weights changed in connector, 100 % in lm", "||after - before|| / ||before||"),
    ],
)
@pytest.mark.parametrize("format", ["png", "svg"])
def test_what_is_drawn(tmp_path: Path, kind: str, label: str, unit: str, format: str) -> None:
    path, again = tmp_path / f"a.{format}", tmp_path / f"b.{format}"
    entries = {"GA": entry(0.6), "NPO": entry(0.3)}
    draw_deviations(entries, kind, path)
    draw_deviations(entries, kind, again)
    assert path.read_bytes() == again.read_bytes()
    if format == "svg":
        root = ElementTree.fromstring(path.read_text())
        words = ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]
        assert {label, unit, "connector", "lm", "attn.q", "head", "proj"} <= set(words)
        assert sum(word.startswith("NPO: ") for word in words) == 1


def test_cells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where there is no cell, or nothing to compare with, there is no colour."""
    drawn: list[dict[str, list[Heatmap]]] = []
    monkeypatch.setattr(figure, "draw", lambda stack, path, title: drawn.append(stack))
    for kind in ("share", "relative"):
        draw_deviations({"GA": entry(0.6)}, kind, tmp_path / "a.png")
    (shares,), (relatives,) = (stack.values() for stack in drawn)
    assert [(h.title, h.rows, h.columns) for h in shares] == [
        ("connector", ["none"], ["proj"]),
        ("lm", ["0", "none"], ["attn.q", "head"]),
    ]
    assert [h.to_json()["values"] for h in shares] == [[[0.2]], [[0.6, None], [None, 0.1]]]
    assert [h.to_json()["values"] for h in relatives] == [[[None]], [[0.5, None], [None, 0.25]]]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no kind of deviation 'shares'") as caught:
        draw_deviations({"GA": entry(0.6)}, "shares", tmp_path / "a.png")
    assert "did you mean 'share'" in str(caught.value.next_step)
    with pytest.raises(UsageError, match="no heatmap"):
        draw_deviations({}, "share", tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
