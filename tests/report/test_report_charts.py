"""Numbers and pictures of the page say what they were given."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest

from mmsurgery.errors import InputRefused
from mmsurgery.figures.heatmap import Heatmap
from mmsurgery.figures.looks import COMPARED
from mmsurgery.names import Address
from mmsurgery.report import charts, heat, numbers
from mmsurgery.report.curves import Along, Chart, Point, Series, draw, free_place
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
    svg = draw(Chart("x", [Series("npo", COMPARED, Along(run))], targets=[0.4]))
    dots = positions(svg, "dot")
    assert len(dots) == 3
    # a tick and the value it names stand at one place
    ticks = {float(v): float(x) for x, v in re.findall(r'x="([\d.]+)" y="307" text-anchor="middle"[^>]*>(\d+)<', svg)}
    assert dots[1][0] + 2.2 == pytest.approx(ticks[60], abs=0.1)
    (target,) = re.findall(r'd="M([\d.]+) [\d.]+L\1 [\d.]+" class="target"', svg)
    assert float(target) == pytest.approx(ticks[40], abs=0.1)
    assert dots[0][0] > dots[1][0]
    assert dots[0][1] < dots[1][1]  # kept more is higher up
    assert "<title>end &amp; &lt;last&gt;</title>" in svg


def test_the_marker_stands_where_the_budget_ends_and_the_search_goes_on_dashed() -> None:
    within, beyond = [Point(1.0, 0.9), Point(0.6, 0.8)], [Point(0.4, 0.7), Point(0.2, 0.4)]
    chart = Chart("x", [Series("npo", COMPARED, Along(within, beyond))])
    svg = draw(chart)
    ((x, y),) = positions(svg, "end")
    first, second = re.findall(r'd="M([^"]+)" class="mean ([^"]+)"', svg)
    assert (first[1], second[1]) == ("s0 d0", "beyond s0")
    assert first[0].split("L")[-1] == second[0].split("L")[0]
    ends = [float(each) for each in second[0].split("L")[0].split()]
    assert (x + 4.6, y) == pytest.approx(ends, abs=0.1)
    assert chart.continued
    assert not Chart("x", [Series("npo", COMPARED, Along(within))]).continued
    moved = draw(Chart("x", [Series("npo", COMPARED, Along(within, beyond), end=Point(0.2, 0.4, "told"))]))
    assert positions(moved, "end")[0] == pytest.approx((positions(svg, "dot")[3][0] - 2.4, positions(svg, "dot")[3][1]))


@pytest.mark.parametrize(
    ("taken", "place"),
    [
        ([], (180, 191)),  # above
        ([(200, 185)], (209, 204)),  # right
        ([(200, 185), (220, 200)], (151, 204)),  # left
        ([(200, 185), (220, 200), (180, 200)], (180, 218)),  # below
    ],
)
def test_a_name_stands_where_no_line_is(taken: list[tuple[float, float]], place: tuple[float, float]) -> None:
    assert free_place(200, 200, 40, taken) == place


def test_a_name_does_not_leave_the_chart() -> None:
    assert free_place(405, 200, 40, []) == (356, 204)


@pytest.mark.parametrize("values", [[0.5], [0.0, 1.0], [0.999, 1.0], [0.0], [1.0], [0.301, 0.302, 0.31]])
def test_curves_keep_points_inside(values: list[float]) -> None:
    svg = draw(Chart("x", [Series("s", COMPARED, Along([Point(v, v) for v in values]))]))
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
        ("h18", "lm.0, attn.q: 50.0 % of 1,024 weights"),
        ("h9", "lm, attn.q: 25.0 % of 8 weights"),
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
