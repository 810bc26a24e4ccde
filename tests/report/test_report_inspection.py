"""The page of `inspect --html`."""

from __future__ import annotations

import html
import math
import re
from pathlib import Path

import numpy as np

from mmsurgery.figures.heatmap import Heatmap
from mmsurgery.report.inspection import write_inspection


def test_foreign_text_stays_text_and_nothing_is_asked_for(tmp_path: Path) -> None:
    payload = "<script src='https://example.org/x.js'></script>\u202e"
    described = {
        "kind": "mask",
        "rule": payload,
        "origin": [{"what": "model", "name": payload, "about": payload, "sha256": payload}],
        "by_group": {payload: {"selected": 1, "total": 4, "density": 0.25}},
        "overlaps": [{"with": payload, "both": 1, "either": 2, "iou": 0.5, "iou_by_chance": 0.25, "by_group": {}}],
    }
    heatmap = Heatmap(payload, ["0", "none"], [payload, "norm"], np.array([[0.0, 1.0], [math.nan, 0.5]]), payload)
    path = tmp_path / "page.html"
    write_inspection(path, payload, described, [heatmap])
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "\u202e" not in page
    assert page.count("&lt;script") == 11  # title, heading, fact, 3 of origin, 2 of caption, column, 2 row heads
    assert not re.search(r"(src|href|action)=[\"']|url\(|@import", page)
    assert "default-src 'none'; style-src 'sha256-" in html.unescape(page)
    assert "script-src" not in page
    cells = re.findall(r'<td class="(\w+)">([^<]*)</td>', page)
    assert cells == [("h0", "0"), ("h18", "1"), ("none", ""), ("h9", "0.50")]
    before = path.read_bytes()
    write_inspection(path, payload, described, [heatmap])
    assert path.read_bytes() == before
