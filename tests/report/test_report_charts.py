"""Numbers and pictures of the page say what they were given."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest

from mmsurgery.errors import InputRefused
from mmsurgery.figures.heatmap import Heatmap
from mmsurgery.names import Address
from mmsurgery.report import charts, heat, numbers
from mmsurgery.report.curves import Chart, Point, Series, draw
from mmsurgery.report.fields import Fields


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (numbers.percent(0.857), "85.7 %"),
        (numbers.percent(0.0), "0.0 %"),
        (numbers.percent(0.0004), "< 0.1 %"),
        (numbers.percent(0.9996), "> 99.9 %"),
        (numbers.percent(1.0), "100.0 %"),
        (numbers.points(0.032), "+3.2"),
        (numbers.points(-0.032), "−3.2"),
        (numbers.points(-0.0001), "0.0"),
        (numbers.interval(0.1, 0.25), "10.0–25.0"),
        (numbers.ratio(256, 252), "1.0"),
        (numbers.ratio(0, 0), "–"),
        (numbers.quantity(44.0), "44"),
        (numbers.quantity(44.25), "44.2"),
        (numbers.scientific(1.83e-6), "1.8 × 10⁻⁶"),
        (numbers.scientific(0.0), "0"),
        (numbers.rate(0.0003), "3 × 10⁻⁴"),
        (numbers.rate(0.000025), "2.5 × 10⁻⁵"),
        (numbers.rate(0.0), "0"),
    ],
)
def test_number_formats(said: str, expected: str) -> None:
    assert said == expected


@pytest.mark.parametrize(
    ("value", "get"),
    [
        (1.5, Fields.share),
        (-0.1, Fields.share),
        (True, Fields.number),
        ("0.5", Fields.share),
        (-1, Fields.whole),
        (2.0, Fields.whole),
        ([0.5, 0.25], Fields.interval),
        ([0.5], Fields.interval),
        (1, Fields.flag),
        (None, Fields.text),
        ({}, Fields.entries),
        ([], Fields.mapping),
    ],
)
def test_fields_of_another_kind_are_refused(value: object, get: Callable[[Fields], object]) -> None:
    with pytest.raises(InputRefused, match=r"results\.json, mean"):
        get(Fields({"mean": value}, "results.json").get("mean"))


def positions(svg: str, class_: str) -> list[tuple[float, float]]:
    """Where the circles of a class begin: their left ends."""
    found = re.findall(rf'd="M([\d.]+) ([\d.]+)a[^"]*" class="{class_}', svg)
    return [(float(x), float(y)) for x, y in found]


def test_curves_put_points_where_they_belong() -> None:
    run = [Point(1.0, 0.9, "start"), Point(0.6, 0.8, "middle"), Point(0.2, 0.4, "end & <last>")]
    svg = draw(Chart("x", [Series("npo", 0, run)], targets=[0.4]))
    dots = positions(svg, "dot")
    assert len(dots) == 2
    # a tick and the value it names stand at one place
    ticks = {float(v): float(x) for x, v in re.findall(r'x="([\d.]+)" y="307" text-anchor="middle"[^>]*>(\d+)<', svg)}
    assert dots[1][0] + 2.2 == pytest.approx(ticks[60], abs=0.1)
    (target,) = re.findall(r'd="M([\d.]+) [\d.]+L\1 [\d.]+" class="target"', svg)
    assert float(target) == pytest.approx(ticks[40], abs=0.1)
    assert dots[0][0] > dots[1][0]
    assert dots[0][1] < dots[1][1]  # kept more is higher up
    assert "<title>end &amp; &lt;last&gt;</title>" in svg


@pytest.mark.parametrize("values", [[0.5], [0.0, 1.0], [0.999, 1.0], [0.0], [1.0], [0.301, 0.302, 0.31]])
def test_curves_keep_points_inside(values: list[float]) -> None:
    svg = draw(Chart("x", [Series("s", 0, [Point(v, v) for v in values])]))
    numbers_in = [float(n) for n in re.findall(r'd="M(-?[\d.]+) (?:-?[\d.]+)[aLh l]', svg)]
    assert all(math.isfinite(n) and 0 <= n <= 420 for n in numbers_in)
    labels = [float(t) for t in re.findall(r">(\d+)</text>", svg)]
    assert min(labels) <= 100 * min(values) <= 100 * max(values) <= max(labels)


def test_heatmap_cells_have_colours_titles_and_holes() -> None:
    heatmap = Heatmap("lm", ["0", "none"], ["attn.q", "head"], np.array([[0.5, math.nan], [0.25, 0.0]]), "share")
    sizes = {Address("lm", 0, "attn.q"): 1024, Address("lm", None, "attn.q"): 8, Address("lm", None, "head"): 64}
    picture, legend = heat.heatmaps([heatmap], sizes)
    cells = re.findall(r'<rect [^>]*class="(h\d+)"><title>([^<]*)</title>', picture)
    assert cells == [
        ("h20", "lm.0, attn.q: 50.0 % of 1,024 weights"),
        ("h10", "lm, attn.q: 25.0 % of 8 weights"),
        ("h0", "lm, head: 0.0 % of 64 weights"),
    ]
    assert "50.0 %" in legend


def test_profile_orders_layers_as_the_model_does() -> None:
    layers = {"lm": (1, 10), "lm.10": (5, 10), "lm.2": (2, 10), "vision.0": (0, 10), "connector": (1, 4)}
    bars = re.findall(r'height="([\d.]+)" class="g-\w+"><title>([^:]+): ([\d.]+ %)', charts.profile(layers))
    assert [name for _, name, _ in bars] == ["vision.0", "connector, no layer", "lm.2", "lm.10", "lm, no layer"]
    heights = {name: float(height) for height, name, _ in bars}
    assert heights["lm.10"] == pytest.approx(2.5 * heights["lm.2"], abs=0.1)


def test_ranges_are_logarithmic_and_hold_zeros() -> None:
    quantiles = {"0.01": 0.0, "0.25": 1e-6, "0.5": 1e-5, "0.75": 1e-4, "0.99": 1e-3}
    svg = charts.ranges([("forget_vqa", "lm", quantiles)])
    (box,) = re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="8"', svg)
    (median,) = re.findall(r'd="M([\d.]+) [\d.]+L[\d. ]+" class="r-median"', svg)
    assert float(median) == pytest.approx(float(box[0]) + float(box[1]) / 2, abs=0.1)
    assert "1 % 0, 25 % 1.0 × 10⁻⁶" in svg
