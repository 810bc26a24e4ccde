"""Heatmaps: what is in which cell, the same bytes each time, readable in grey and in a terminal."""

from __future__ import annotations

import io
import itertools
import math
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from mmsurgery.errors import MachineFault, UsageError
from mmsurgery.figures.heatmap import Heatmap, by_address, draw, render, scale, short
from mmsurgery.names import Address
from mmsurgery_cli import heatmap as terminal


def small(title: str = "lm") -> Heatmap:
    return Heatmap(
        title,
        ["0", "1", "none"],
        ["attn.q", "head"],
        np.array([[0.0, math.nan], [0.3, math.nan], [math.nan, 0.9]]),
        "share",
    )


def tall() -> Heatmap:
    values = np.linspace(0, 1, 30 * 3).reshape(30, 3)
    return Heatmap("lm", [str(i) for i in range(30)], ["attn.q", "mlp.up", "norm"], values, "share")


def test_cells_by_address() -> None:
    cells = {
        Address("lm", 10, "mlp.up"): 1.0,
        Address("lm", 2, "attn.q"): 2.0,
        Address("lm", None, "head"): 3.0,
        Address("connector", None, "proj"): 4.0,
        Address("vision", 0, "norm"): 5.0,
    }
    vision, connector, lm = by_address(cells, "weights")
    assert [h.title for h in (vision, connector, lm)] == ["vision", "connector", "lm"]
    assert (vision.rows, connector.rows, lm.rows) == (["0"], ["none"], ["2", "10", "none"])
    assert lm.columns == ["attn.q", "mlp.up", "head"]
    nan = math.nan
    assert np.array_equal(lm.values, [[2, nan, nan], [nan, 1, nan], [nan, nan, 3]], equal_nan=True)
    assert by_address({}, "weights") == []


def test_json_has_null_for_cells_that_do_not_exist() -> None:
    assert small().to_json() == {
        "title": "lm",
        "rows": ["0", "1", "none"],
        "columns": ["attn.q", "head"],
        "values": [[0.0, None], [0.3, None], [None, 0.9]],
        "unit": "share",
    }


def test_shape_must_fit() -> None:
    with pytest.raises(ValueError, match="3 rows"):
        Heatmap("x", ["0", "1", "2"], ["a"], np.zeros((1, 3)), "share")


def test_scale_is_shared_and_never_zero() -> None:
    assert scale([small(), tall()]) == 1.0
    assert scale([small()]) == 0.9
    assert scale([Heatmap("x", ["0"], ["a"], np.zeros((1, 1)), "")]) == 1.0
    assert scale([]) == 1.0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1"),
        (0.4849, "0.48"),
        (0.005, "0.01"),
        (0.0049, "5e-3"),
        (3e-12, "3e-12"),
        (9.994, "9.99"),
        (9.995, "10"),
        (12, "12"),
        (999, "999"),
        (999.4, "999"),
        (1000, "1.0k"),
        (1234, "1.2k"),
        (9949, "9.9k"),
        (9950, "10k"),
        (999_400, "999k"),
        (999_500, "1.0M"),
        (7_063_427_072, "7.1G"),
        (math.nan, ""),
    ],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text
    assert len(text) <= 5


@pytest.mark.parametrize("format", ["png", "svg"])
def test_same_bytes_each_time(format: str, tmp_path: Path) -> None:
    first, second = tmp_path / f"a.{format}", tmp_path / f"b.{format}"
    draw([small(), tall()], first)
    draw([small(), tall()], second)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != render([small(), small()], format)


def test_no_machine_or_time_in_the_pictures() -> None:
    image = Image.open(io.BytesIO(render([small()], "png")))
    assert set(image.info) <= {"dpi"}
    text = render([small()], "svg").decode()
    assert "dc:date" not in text
    assert "Matplotlib" not in text


def test_settings_of_the_user_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    before = render([small()], "svg")
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 20, "svg.fonttype": "path"}):
        assert render([small()], "svg") == before
        assert matplotlib.rcParams["font.size"] == 20


def test_svg_is_text_that_can_be_read(tmp_path: Path) -> None:
    small().svg(tmp_path / "heatmap.svg")
    root = ElementTree.parse(tmp_path / "heatmap.svg").getroot()
    words = ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"lm", "attn.q", "head", "0", "1", "none", "layer", "share", "0.30", "0.90"} <= set(words)


def test_layer_0_is_at_the_top() -> None:
    root = ElementTree.fromstring(render([tall()], "svg"))
    heights = {}
    for node in root.iter("{http://www.w3.org/2000/svg}text"):
        place = re.search(r"translate\(([\d.]+) ([\d.]+)\)", node.get("transform", "")) or re.search(
            r"translate\(([\d.]+) ([\d.]+)\)", node.get("style", "")
        )
        y = float(place[2]) if place else float(node.get("y", "nan"))
        heights.setdefault("".join(node.itertext()).strip(), y)
    assert heights["0"] < heights["29"]


def test_hostile_titles_are_only_text() -> None:
    title = "<script>alert(1)</script> $\\frac{$ &amp;"
    root = ElementTree.fromstring(render([small(title)], "svg"))
    assert title in {"".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))


def cell_grey(picture: Image.Image, heatmap: Heatmap) -> list[float]:
    """Brightness along the first column, from top to bottom."""
    pixels = np.asarray(picture.convert("L"), float)
    # the column of colour begins 0.65 inch from the left at 150 dpi, cells are 0.46 inch wide
    column = pixels[:, int((0.65 + 0.1) * 150)]
    top, cell = 0.35 * 150, 0.26 * 150
    return [float(column[int(top + cell * (i + 0.5))]) for i in range(len(heatmap.rows))]


def test_larger_values_are_brighter_in_grey() -> None:
    heatmap = Heatmap("lm", [str(i) for i in range(20)], ["attn.q"], np.linspace(0, 1, 20)[:, None], "share")
    wide = Heatmap("lm", heatmap.rows, [f"c{i}" for i in range(11)], np.repeat(heatmap.values, 11, axis=1), "share")
    picture = Image.open(io.BytesIO(render([wide], "png")))
    greys = cell_grey(picture, wide)
    assert (np.diff(greys) > 1).all()


def test_all_zero_and_empty_are_drawn() -> None:
    zero = Heatmap("lm", ["0"], ["attn.q"], np.zeros((1, 1)), "share")
    nothing = Heatmap("vision", ["0"], ["attn.q"], np.full((1, 1), math.nan), "share")
    assert render([zero, nothing], "png").startswith(b"\x89PNG")


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.png or \.svg"):
        draw([small()], tmp_path / "heatmap.pdf")
    with pytest.raises(UsageError, match="no heatmap"):
        draw([], tmp_path / "heatmap.png")
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(MachineFault):
        draw([small()], tmp_path / "taken.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken.png"]


def test_importing_figures_is_light() -> None:
    code = "import sys; import mmsurgery.figures.heatmap; assert not {'matplotlib', 'torch', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# stacks


def stack() -> dict[str, list[Heatmap]]:
    """Two lines of a tall and a small heatmap; the second line's values are half of the first's."""
    half = [Heatmap(h.title, h.rows, h.columns, h.values / 2, h.unit) for h in (tall(), small("connector"))]
    return {"GA": [tall(), small("connector")], "NPO $x$": half}


def places(picture: bytes) -> list[tuple[str, float, float]]:
    """The texts of an SVG with the places where they begin."""
    found = []
    for node in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text"):
        place = re.search(r"translate\(([\d.]+) ([\d.]+)\)", node.get("transform", ""))
        x, y = place.groups() if place else (node.get("x", "nan"), node.get("y", "nan"))
        found.append(("".join(node.itertext()).strip(), float(x), float(y)))
    return found


def drawn(monkeypatch: pytest.MonkeyPatch, stack: dict[str, list[Heatmap]]) -> Figure:
    """The figure that is rendered."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    render(stack, "png")
    figures[0].canvas.draw()
    return figures[0]


def test_a_stack_is_drawn_line_by_line(tmp_path: Path) -> None:
    """Labels in order from the top; of the layers, named once at the foot, so many that they have room."""
    draw(stack(), tmp_path / "stack.svg")
    assert (tmp_path / "stack.svg").read_bytes() == render(stack(), "svg")
    assert render(stack(), "png") == render(stack(), "png") != render(dict(reversed(stack().items())), "png")
    texts = places(render(stack(), "svg"))
    heights = {text: y for text, _, y in texts}
    assert heights["GA"] < heights["NPO $x$"]
    words = [text for text, _, _ in texts]
    assert [words.count(text) for text in ("lm", "mlp.up", "layer", "28", "29", "1")] == [2, 2, 2, 0, 1, 1]
    layers = sorted((x, int(text)) for text, x, y in texts if text.isdecimal() and x < 320)
    assert [layer for _, layer in layers] == [*range(0, 28, 2), 29]
    assert np.diff([x for x, _ in layers]).min() >= 72 * 0.16


def test_a_stack_has_layers_across_on_one_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(monkeypatch, stack())
    first, connector, second, _, bar = figure.axes
    meshes = [axes.collections[0] for axes in (first, connector, second)]
    assert np.array_equal(meshes[0].get_array().reshape(3, 30), tall().values.T)
    assert np.array_equal(meshes[2].get_array().reshape(3, 30), tall().values.T / 2)
    assert {(mesh.norm.vmin, mesh.norm.vmax) for mesh in meshes} == {(0, 1)}
    assert bar.get_ylabel() == "share"
    assert [label.get_text() for label in first.get_yticklabels()] == tall().columns
    # those of one place stand below each other, and nothing runs into its neighbour
    boxes = [axes.get_position() for axes in figure.axes]
    assert (boxes[0].x0, boxes[0].x1) == (boxes[2].x0, boxes[2].x1)
    assert boxes[0].x1 < boxes[1].x0 < boxes[1].x1 < boxes[4].x0
    assert boxes[2].y1 < boxes[0].y0


def test_no_text_of_a_stack_is_cut_off_or_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    long = {"a method of a long name that says what its mask is: " + "x" * 40: stack()["GA"], **stack()}
    figure = drawn(monkeypatch, long)
    page = figure.bbox
    boxes = [text.get_window_extent() for text in figure.texts]
    boxes += [axes.get_tightbbox() for axes in figure.axes]
    for box in boxes:
        assert page.x0 <= box.x0 < box.x1 <= page.x1
        assert page.y0 <= box.y0 < box.y1 <= page.y1
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)


def test_an_empty_stack_is_refused(tmp_path: Path) -> None:
    for empty in ({}, {"GA": []}):
        with pytest.raises(UsageError, match="no heatmap"):
            draw(empty, tmp_path / "stack.png")
    assert render({"GA": [], "NPO": [small()]}, "png").startswith(b"\x89PNG")
    assert render({"NPO": [small()], "GA": []}, "png").startswith(b"\x89PNG")


# terminal


def printed(*heatmaps: Heatmap, **options: object) -> str:
    console = Console(file=io.StringIO(), width=100, **options)  # type: ignore[arg-type]
    console.print(terminal.render(*heatmaps))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_digits_without_colours() -> None:
    lines = printed(small(), color_system=None).splitlines()
    assert lines[0] == "lm"
    assert lines[1].split() == ["attn", "head"]
    assert lines[2].split() == ["q"]
    assert [line.split() for line in lines[3:6]] == [["0", "0"], ["1", "3"], ["none", "9"]]
    assert lines[-1] == "share: 9 = 0.90, 0 = under a tenth of that"
    assert printed(small(), color_system=None).isascii()


def test_no_color_is_obeyed() -> None:
    assert "48;2" not in printed(small(), color_system="truecolor", force_terminal=True, no_color=True)


def test_colours_carry_the_values() -> None:
    text = printed(small(), color_system="truecolor", force_terminal=True)
    assert "\x1b[38;2;0;0;0;48;2;253;231;37m" in text
    assert "0.90" in text
    assert "0.30" in text


def test_tall_heatmaps_take_two_layers_a_line() -> None:
    text = printed(tall(), color_system="truecolor", force_terminal=True)
    rows = [line for line in text.splitlines() if "▀" in line]
    assert len(rows) == 15
    assert [row.split()[0] for row in rows] == [str(i) for i in range(0, 30, 2)]
    first = rows[0].split("▀")[0]
    # upper half: value 0; lower half: value 3/89 of the scale
    low, high = (68, 1, 84), (72, 22, 104)
    mixed = [round(a + (b - a) * 18 * 3 / 89) for a, b in zip(low, high, strict=True)]
    assert first.endswith(f"\x1b[38;2;68;1;84;48;2;{';'.join(map(str, mixed))}m")


def test_the_row_without_a_layer_stands_alone() -> None:
    heatmap = tall()
    last = Heatmap("lm", [*heatmap.rows[:13], "none"], heatmap.columns, heatmap.values[:14], "share")
    rows = [line for line in printed(last, color_system="truecolor", force_terminal=True).splitlines() if "▀" in line]
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", row).split()[0] for row in rows]
    assert plain == ["0", "2", "4", "6", "8", "10", "12", "none"]


def test_lines_fit_80_columns() -> None:
    columns = ["attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down", "norm", "embed", "head"]
    heatmap = Heatmap("lm", ["31", "none"], columns, np.ones((2, 10)), "share of weights selected")
    for options in ({"color_system": None}, {"color_system": "truecolor", "force_terminal": True}):
        for line in printed(heatmap, **options).splitlines():
            assert len(re.sub(r"\x1b\[[0-9;]*m", "", line)) <= 80


def test_terminal_colours_are_those_of_the_pictures() -> None:
    import matplotlib

    for share in np.linspace(0, 1, 101):
        expected = [round(255 * c) for c in matplotlib.colormaps["viridis"](float(share))[:3]]
        found = bytes.fromhex(terminal._colour(float(share))[1:])
        assert max(abs(a - b) for a, b in zip(expected, found, strict=True)) <= 5


@pytest.mark.parametrize("titles", [["vision 12%", "connector 33%", "lm 55%"], ["A TITLE WIDER THAN ITS CELL", "b"]])
def test_titles_do_not_run_into_each_other(titles: list[str], tmp_path: Path) -> None:
    namespace = "{http://www.w3.org/2000/svg}"
    path = tmp_path / "titles.svg"
    draw([Heatmap(title, ["none"], ["proj"], np.ones((1, 1)), "share") for title in titles], path)
    places = {}
    for text in ElementTree.fromstring(path.read_text()).iter(f"{namespace}text"):
        if text.text in titles:
            left = re.search(r"translate\(([0-9.]+)", text.get("transform", ""))
            places[text.text] = float(left[1]) if left else float(text.get("x", "nan"))
    lefts = [places[title] for title in titles]
    for title, left, following in zip(titles, lefts, lefts[1:], strict=False):
        # bold DejaVu Sans of 9.6 points, 0.69 em a letter, capitals 0.78; then the labels of the next one's rows
        assert following - left > 9.6 * (0.78 if title.isupper() else 0.69) * len(title) + 20
