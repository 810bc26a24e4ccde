"""The palette that page and pictures share: told apart, readable by day and in the dark, and really shared."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from example_experiments import row, table

from mmsurgery.figures import looks
from mmsurgery.figures.canvas import _CODES, end_point, style_of, styles
from mmsurgery.report import palette

RAISED = {"light": "#ffffff", "dark": "#1b1f24"}
SEEN = {
    "all": np.eye(3),
    "no red": np.array([[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]),
    "no green": np.array([[0.3673, 0.8607, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]),
    "no blue": np.array([[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]]),
}
"""What eyes that lack a cone see of linear RGB (Machado, Oliveira and Fernandes 2009, severity 1)."""


def linear(colour: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    parts = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    bright, dark = sorted((float(linear(each) @ [0.2126, 0.7152, 0.0722]) for each in (one, other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def oklab(seen: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    cones = [[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]]
    mixed = [[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]]
    found: np.ndarray[tuple[int], np.dtype[np.float64]] = np.array(mixed) @ np.cbrt(np.array(cones) @ seen.clip(0, 1))
    return found


def apart(colours: list[str]) -> float:
    """The least distance of two of them, whoever looks."""
    return min(
        float(np.linalg.norm(oklab(eye @ linear(a)) - oklab(eye @ linear(b))))
        for a, b in itertools.combinations(colours, 2)
        for eye in SEEN.values()
    )


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_rows_stand_out_and_are_told_apart_without_a_cone(mode: str) -> None:
    colours = [getattr(each, mode) for each in looks.ROWS]
    for paper in (getattr(looks.PAPER, mode), RAISED[mode]):
        assert min(contrast(each, paper) for each in colours) >= 2.95
    assert apart(colours) >= 0.07
    assert apart(colours[:5]) >= 0.095  # the paper's five methods


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_outcomes_are_told_apart_and_their_numbers_read(mode: str) -> None:
    fills = [getattr(each.fill, mode) for each in looks.OUTCOMES.values()]
    assert apart(fills) >= 0.07
    for each in looks.OUTCOMES.values():
        assert contrast(getattr(each.fill, mode), getattr(each.on, mode)) >= 4.5, each.name


def test_heat_is_viridis_and_grows_brighter() -> None:
    import matplotlib

    bright = [float(linear(each) @ [0.2126, 0.7152, 0.0722]) for each in looks.HEAT]
    assert (np.diff(bright) > 0).all()
    for place, colour in enumerate(looks.HEAT):
        expected = matplotlib.colormaps["viridis"](place / (len(looks.HEAT) - 1))[:3]
        found = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        assert np.allclose(found, expected, atol=0.02)


def test_the_page_and_the_pictures_draw_from_one_palette() -> None:
    style = palette.style()
    results = table()
    results["rows"] += [row(f"more-{number}", "more") for number in range(9)]
    found = looks.row_looks([each["key"] for each in results["rows"]], results["compared"])
    for key, drawn in styles(results).items():
        look = found[key]
        assert f"--s{look.colour}: {drawn.colour};" in style
        assert drawn == style_of(look)
    for name in looks.ENDS:
        assert f"--{name}: {end_point(name)['markerfacecolor']};" in style
    for key, outcome in looks.OUTCOMES.items():
        assert f"--{key}: {outcome.fill.light};" in style
    assert set(_CODES) == set(looks.CORNERS)
    assert {each.marker for each in found.values()} <= set(_CODES) - {"square", "diamond"}


def test_markers_are_those_of_matplotlib() -> None:
    from matplotlib.markers import MarkerStyle

    for name, corners in looks.CORNERS.items():
        if corners:
            mark = MarkerStyle(_CODES[name])
            drawn = mark.get_path().transformed(mark.get_transform()).vertices
            for corner in corners:
                assert np.abs(2 * np.asarray(drawn) - corner).max(axis=1).min() < 0.01, name
