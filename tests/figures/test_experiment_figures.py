"""Figures of experiments: what they show, the same bytes each time, text that stays text."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from example_experiments import ablations, row, table
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from mmsurgery.errors import UsageError
from mmsurgery.figures import curves as curves_module
from mmsurgery.figures import outcomes as outcomes_module
from mmsurgery.figures import ratios as ratios_module
from mmsurgery.figures import sweeps as sweeps_module
from mmsurgery.figures import tradeoff as tradeoff_module
from mmsurgery.figures.canvas import collapsed, styles
from mmsurgery.figures.looks import FORGOTTEN, INK, KEPT, ROWS
from mmsurgery.figures.sweeps import Sweep, sweeps_of
from mmsurgery.figures.tradeoff import draw_figures, outcomes, ratios, sweeps, tradeoff

KEPT_COLOUR, FORGOTTEN_COLOUR = (ROWS[look.colour].light for look in (KEPT, FORGOTTEN))
RATIOS = [("llava", 15), ("llava", 5), ("llava", 10)]
DRAWN: Sequence[tuple[Callable[..., bytes], Callable[[], dict[str, Any]], str]] = [
    (tradeoff, table, "llava"),
    (ratios, lambda: table(RATIOS), "llava"),
    (sweeps, ablations, "llava"),
    (outcomes, table, "llava"),
]
each_figure = pytest.mark.parametrize(("draw", "make", "what"), DRAWN, ids=lambda v: getattr(v, "__name__", ""))


def words(picture: bytes) -> list[str]:
    root = ElementTree.fromstring(picture)
    return ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]


def lines(axes: Axes, **wanted: Any) -> list[Line2D]:
    """Lines of axes with these properties, colours as `#rrggbb`."""

    def value(line: Line2D, name: str) -> Any:
        found = getattr(line, f"get_{name}")()
        return to_hex(found) if name == "color" else found

    return [line for line in axes.get_lines() if all(value(line, name) == want for name, want in wanted.items())]


def points(line: Line2D) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]


@each_figure
def test_same_bytes_each_time_without_machine_or_time(
    draw: Callable[..., bytes], make: Callable[[], dict[str, Any]], what: str
) -> None:
    picture = draw(make(), what)
    assert draw(make(), what) == picture
    assert "Table 1: the five methods, llava" in words(picture)
    assert b"dc:date" not in picture
    assert b"Matplotlib" not in picture


@each_figure
def test_foreign_text_is_only_text(draw: Callable[..., bytes], make: Callable[[], dict[str, Any]], what: str) -> None:
    hostile = "<script>alert(1)</script> $\\frac{$ 山\x00"
    results = make()
    for each in [*results["rows"], *results["panels"], *results["columns"].values()]:
        each["label"] = f"{hostile} {each['label']}"
    picture = draw(results, what)
    assert any(word.startswith("<script>alert(1)</script> $\\frac{$ 山\\x00 ") for word in words(picture))
    assert not list(ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}script"))


def test_png_is_the_same_each_time_without_machine_or_time() -> None:
    picture = tradeoff(table(), "llava", "png")
    assert tradeoff(table(), "llava", "png") == picture
    assert set(Image.open(io.BytesIO(picture)).info) <= {"dpi"}


def test_settings_of_the_user_change_nothing() -> None:
    import matplotlib

    before = tradeoff(table(), "llava")
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 20, "svg.fonttype": "path"}):
        assert tradeoff(table(), "llava") == before
        assert matplotlib.rcParams["font.size"] == 20


def test_rows_are_told_apart_by_colour_and_by_marker() -> None:
    results = table()
    results["rows"] += [row(f"more-{number}", "more") for number in range(16)]
    looks = styles(results)
    assert len({(look.colour, look.marker) for look in looks.values()}) == len(looks)
    first = [looks[each["key"]] for each in results["rows"][:8]]
    assert len({look.colour for look in first}) == len({look.marker for look in first}) == 8
    assert looks["mmunlearner"].colour == INK.light
    assert not {"s", "D"} & {look.marker for look in looks.values()}


# trade-off


def tradeoff_axes(results: Mapping[str, Any], panel: str = "llava") -> Axes:
    figure = curves_module._figure(results, panel)
    assert len(figure.axes) == 1
    return figure.axes[0]


def test_each_run_is_thin_and_their_mean_thick() -> None:
    results = table()
    cells = [cell for cell in results["cells"] if cell["row"] == "ga"]
    cells[0]["curve"].append({**cells[0]["curve"][-1], "step": 72})  # searched for longer than the others
    axes, colour = tradeoff_axes(results), styles(results)["ga"].colour
    thin = lines(axes, color=colour, linewidth=0.5)
    assert [len(points(line)) for line in thin] == [9, 2, 9, 9]
    (mean,) = lines(axes, color=colour, linewidth=1.6)
    expected = [
        (
            100 * np.mean([cell["curve"][place]["columns"]["forget_vqa"] for cell in cells]),
            100 * np.mean([cell["curve"][place]["utility"] for cell in cells]),
        )
        for place in range(9)
    ]
    assert np.allclose(points(mean), expected)


def test_beyond_the_fixed_budget_lines_are_thin_and_dashed() -> None:
    results = table()
    for cell in (cell for cell in results["cells"] if cell["row"] == "npo"):
        cell["curve"] += [{**cell["curve"][-1], "step": step, "utility": 0.5} for step in (72, 80)]
    axes, look = tradeoff_axes(results), styles(results)["npo"]
    (within,) = lines(axes, color=look.colour, linewidth=1.6)
    (beyond,) = [line for line in lines(axes, color=look.colour, linewidth=0.9) if line.get_linestyle() == "--"]
    assert points(within)[-1] == points(beyond)[0]  # where the budget ends
    assert [y for _, y in points(beyond)[1:]] == [50, 50]
    fixed = results["summary"]["llava"]["npo"]["fixed"]
    (mark,) = lines(axes, marker=look.marker)
    assert np.allclose(points(mark), [(100 * fixed["forget_vqa"]["mean"], 100 * fixed["utility"]["mean"])])
    said = words(tradeoff(results, "llava"))
    assert {"searched on for matched forgetting", "markers: at the fixed budget"} <= set(said)
    assert "searched on for matched forgetting" not in words(tradeoff(table(), "llava"))


def test_without_open_answers_nothing_is_called_collapsed() -> None:
    results = table(collapsed=["ga"])
    for entry in results["summary"]["llava"].values():
        entry["outcomes"] = None
    said = words(tradeoff(results, "llava"))
    assert "GA (at chance in 3 of 3)" in said
    assert not [word for word in said if "collapsed" in word]


def test_ends_targets_and_budgets() -> None:
    results = table()
    axes = tradeoff_axes(results)
    for name, marker in (("vanilla", "s"), ("gold", "D"), ("ga", "^")):
        fixed = results["summary"]["llava"][name]["fixed"]
        (mark,) = lines(axes, marker=marker)
        assert np.allclose(points(mark), [(100 * fixed["forget_vqa"]["mean"], 100 * fixed["utility"]["mean"])])
    targets = [line.get_xdata()[0] for line in axes.get_lines() if line.get_xdata()[0] == line.get_xdata()[-1]][:3]
    assert np.allclose(targets, sorted(100 * level["target"] for level in results["levels"]))


def test_collapsed_rows_are_hollow_and_said() -> None:
    results = table(collapsed=["ga"])
    results["summary"]["llava"]["npo"]["collapsed"] = 1
    axes = tradeoff_axes(results)
    faces = {marker: lines(axes, marker=marker)[0].get_markerfacecolor() for marker in ("^", "P")}
    assert faces["^"] == "white"
    assert faces["P"] != "white"
    said = words(tradeoff(results, "llava"))
    assert {"GA (collapsed in 3 of 3)", "NPO (collapsed in 1 of 3)", "MMUnlearner"} <= set(said)


def test_failed_runs_are_left_out_and_said() -> None:
    results = table()
    for cell in results["cells"]:
        if cell["row"] == "ga" or (cell["row"], cell["seed"]) == ("npo", 0):
            for key in ("curve", "fixed", "matched", "samples", "steps"):
                del cell[key]
            cell["failed"] = "it diverged"
    results["summary"]["llava"]["ga"].update(fixed={}, matched={"reached": 0, "levels": 3, "step": None, "columns": {}})
    axes = tradeoff_axes(results)
    assert lines(axes, color=styles(results)["ga"].colour) == []
    assert len(lines(axes, color=styles(results)["npo"].colour, linewidth=0.5)) == 2
    assert "GA (failed)" in words(tradeoff(results, "llava"))


def test_only_the_panels_runs_are_drawn() -> None:
    results = table([("llava", 10), ("qwen2_vl", 10)])
    axes = tradeoff_axes(results, "qwen2_vl")
    assert len(lines(axes, color=styles(results)["ga"].colour, linewidth=0.5)) == 3


def test_groups_have_axes_of_their_own_with_the_compared_row() -> None:
    results = ablations()
    figure = curves_module._figure(results, "llava")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        f"llava: {group}" for group in ("beta", "density", "estimator", "forget weight", "retain batch")
    ]
    for axes, rows in zip(figure.axes, (5, 5, 3, 4, 3), strict=True):
        assert len(lines(axes, linewidth=1.6)) == rows
        assert len(lines(axes, color=INK.light, linewidth=1.6)) == 1


@pytest.mark.parametrize(("fallen", "cells", "hollow"), [(0, 0, False), (0, 3, False), (1, 3, False), (1, 2, True)])
def test_a_row_is_collapsed_where_half_of_its_runs_are(fallen: int, cells: int, hollow: bool) -> None:
    assert collapsed({"collapsed": fallen, "cells": cells}) is hollow


# forget ratios


def test_ratios_are_changes_from_the_ratios_own_vanilla() -> None:
    results = table(RATIOS)
    figure = ratios_module._figure(results, "llava")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Retain VQA", "Real-world VQA", "Forget QA", "Retain QA", "Real-world QA"]
    for axes, column in zip(figure.axes, ratios_module.KEPT, strict=True):
        (line,) = lines(axes, color=styles(results)["ga"].colour, linewidth=1.3)
        summaries = [results["summary"][f"llava.{forget}"] for forget in (5, 10, 15)]
        assert np.allclose(
            points(line),
            [
                (
                    100 * (each["ga"]["fixed"]["forget_vqa"]["mean"] - each["vanilla"]["fixed"]["forget_vqa"]["mean"]),
                    100 * each["ga"]["fixed"][column]["mean"],
                )
                for each in summaries
            ],
        )
        bars = [points(bar) for bar in lines(axes, color=styles(results)["ga"].colour, linewidth=1.0)]
        assert len(bars) == 6
        assert np.allclose([y for _, y in bars[0]], np.multiply(summaries[0]["ga"]["fixed"][column]["ci95"], 100))
        assert sorted(label.get_text() for label in axes.texts) == sorted(["5", "10", "15"] * 5)


def test_ratios_show_the_columns_that_there_are() -> None:
    results = table(RATIOS)
    for column in ("realworld_vqa", "realworld_qa"):
        del results["columns"][column]
    figure = ratios_module._figure(results, "llava")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Retain VQA", "Forget QA", "Retain QA"]


# sweeps


def test_sweeps_are_groups_that_differ_in_one_number() -> None:
    found = sweeps_of(ablations(), "llava")
    assert {sweep.name: list(sweep.values.values()) for sweep in found} == {
        "beta": [0.1, 0.5, 1.0, 2.0, 10.0],
        "density": [0.01, 0.05, 0.15, 0.3, 1.0],
        "forget weight": [0.2, 0.4, 0.7, 1.0],
        "retain batch": [4, 8, 16],
    }
    assert [sweep.log for sweep in found] == [True, True, False, False]
    assert list(found[0].values)[2] == "mmunlearner"


def test_two_numbers_that_differ_are_no_sweep() -> None:
    results = ablations()
    for number, each in enumerate(entry for entry in results["rows"] if entry["group"] == "forget weight"):
        each["retain_batch"] = 8 + number
    assert "forget weight" not in {sweep.name for sweep in sweeps_of(results, "llava")}


def test_two_methods_are_no_sweep() -> None:
    results = ablations()
    next(entry for entry in results["rows"] if entry["group"] == "forget weight")["method"] = "ga_diff"
    assert "forget weight" not in {sweep.name for sweep in sweeps_of(results, "llava")}


def test_a_learning_rate_that_is_the_recipes_is_what_the_runs_did() -> None:
    results = ablations()
    results["rows"] = [
        row("mmunlearner", "MMUnlearner", {"beta": 1.0}),
        row("slow", "slow", {"beta": 1.0}, group="learning rate", learning_rate=1e-4),
        row("fast", "fast", {"beta": 1.0}, group="learning rate", learning_rate=1e-2),
    ]
    (sweep,) = sweeps_of(results, "llava")
    assert dict(sweep.values) == pytest.approx({"slow": 1e-4, "mmunlearner": 1e-3, "fast": 1e-2})
    assert sweep.log


def test_what_runs_did_without_being_told_is_no_sweep() -> None:
    results = ablations()
    for cell in results["cells"]:
        if cell["row"] == "dataset":
            cell["density"] = 0.2
    assert "estimator" not in {sweep.name for sweep in sweeps_of(results, "llava")}


def test_a_row_with_the_compared_rows_value_stands_for_it() -> None:
    results = ablations()
    results["rows"].append(row("beta-again", "beta 1", {"beta": 1.0}, group="beta"))
    beta = next(sweep for sweep in sweeps_of(results, "llava") if sweep.name == "beta")
    assert [key for key, value in beta.values.items() if value == 1] == ["beta-again"]


@pytest.mark.parametrize(
    ("values", "log"), [((1, 10), False), ((1, 10.5), True), ((0, 100), False), ((-1, 100), False)]
)
def test_more_than_a_decade_is_drawn_by_its_logarithm(values: tuple[float, float], log: bool) -> None:
    assert Sweep("x", {"a": values[0], "b": values[1]}).log is log


def sweep_axes(figure: Figure, name: str) -> tuple[Axes, Axes]:
    place = next(i for i, axes in enumerate(figure.axes) if axes.get_title(loc="left") == name)
    return figure.axes[place], figure.axes[place + 1]


def test_sweeps_show_both_comparisons() -> None:
    results = ablations()
    summary = results["summary"]["llava"]
    fixed, matched = sweep_axes(sweeps_module._figure(results, "llava"), "beta")
    assert fixed.get_xscale() == matched.get_xscale() == "log"
    keys = ["beta-0.1", "beta-0.5", "mmunlearner", "beta-2", "beta-10"]
    for axes, colour, cells in (
        (fixed, KEPT_COLOUR, [summary[key]["fixed"]["utility"] for key in keys]),
        (fixed, FORGOTTEN_COLOUR, [summary[key]["fixed"]["forget_vqa"] for key in keys]),
        (matched, KEPT_COLOUR, [summary[key]["matched"]["columns"]["utility"] for key in keys]),
    ):
        (line,) = lines(axes, color=colour, linewidth=1.3, marker="None")
        expected = [(x, 100 * cell["mean"]) for x, cell in zip((0.1, 0.5, 1, 2, 10), cells, strict=True)]
        assert np.allclose(points(line), expected)
    assert lines(matched, color=FORGOTTEN_COLOUR) == []
    rings = [line for axes in (fixed, matched) for line in axes.get_lines() if line.get_markersize() == 9]
    assert [points(ring)[0][0] for ring in rings] == [1, 1, 1]


def test_sweeps_say_how_many_runs_reached_matched_forgetting() -> None:
    results = ablations()
    results["summary"]["llava"]["beta-2"]["matched"].update(reached=2)
    results["summary"]["llava"]["beta-10"]["matched"].update(reached=0, step=None, columns={})
    _, matched = sweep_axes(sweeps_module._figure(results, "llava"), "beta")
    assert [(text.get_text(), text.get_position()[0]) for text in matched.texts] == [("2/3", 2.0)]
    (cross,) = lines(matched, marker="x")
    assert points(cross)[0][0] == 10


# outcomes


def test_outcomes_are_stacked_to_100() -> None:
    results = table()
    figure = outcomes_module._figure(results, "llava")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Forget VQA", "Forget QA", "Retain VQA"]
    for axes, column in zip(figure.axes, ("forget_vqa", "forget_qa", "retain_vqa"), strict=True):
        bars = [patch for patch in axes.patches if patch.get_height() == pytest.approx(0.78)]
        assert len(bars) == 7 * 5
        shares = results["summary"]["llava"]["gold"]["outcomes"][column]
        mine = bars[5:10]
        assert np.allclose([bar.get_width() for bar in mine], [100 * share for share in shares.values()])
        assert np.allclose([bar.get_x() for bar in mine[1:]], np.cumsum([bar.get_width() for bar in mine])[:-1])
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["vanilla", "gold", "GA", "GA_Diff", "KL_Min", "NPO", "MMUnlearner"]
    assert figure.axes[0].yaxis_inverted()
    assert {"correct", "another person's fact", "wrong but fluent", "refusal", "gibberish"} <= set(
        words(outcomes(results, "llava"))
    )


def test_bars_of_collapsed_rows_have_an_outline() -> None:
    results = table(collapsed=["ga"])
    axes = outcomes_module._figure(results, "llava").axes[0]
    edges = [patch for patch in axes.patches if patch.get_height() == pytest.approx(0.88)]
    assert [(edge.get_y() + 0.44, edge.get_width()) for edge in edges] == [(pytest.approx(2), 100)]
    assert "outlined: collapsed" in words(outcomes(results, "llava"))
    assert "outlined: collapsed" not in words(outcomes(table(), "llava"))


# files


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("tradeoff", "sweeps", "ratios", "outcomes"):
        monkeypatch.setattr(tradeoff_module, kind, lambda results, what, format: what.encode())


def names(results: Mapping[str, Any], folder: Path) -> list[str]:
    paths = draw_figures(results, folder)
    assert sorted(paths) == sorted(folder.iterdir())
    return [path.name for path in paths if path.suffix == ".svg"]


def test_each_figure_is_svg_and_png(tmp_path: Path) -> None:
    results = table(seeds=1)
    png, svg = draw_figures(results, tmp_path)[:2]
    assert (png.name, svg.name) == ("tradeoff-llava.png", "tradeoff-llava.svg")
    assert png.read_bytes() == tradeoff(results, "llava", "png")
    assert svg.read_bytes() == tradeoff(results, "llava", "svg")


@pytest.mark.usefixtures("undrawn")
def test_figures_that_the_results_have(tmp_path: Path) -> None:
    several = table([("llava", 5), ("llava", 10)], seeds=1)
    for entry in several["summary"]["llava.5"].values():
        entry["outcomes"] = None
    assert names(several, tmp_path / "ratios") == [
        "tradeoff-llava.5.svg",
        "tradeoff-llava.10.svg",
        "outcomes-llava.10.svg",
        "ratios-llava.svg",
    ]
    assert names(ablations(seeds=1), tmp_path / "ablations") == [
        "tradeoff-llava.svg",
        "sweeps-llava.svg",
        "outcomes-llava.svg",
    ]


@pytest.mark.usefixtures("undrawn")
def test_one_forget_ratio_twice_is_not_two(tmp_path: Path) -> None:
    results = table(seeds=1)
    results["panels"].append({"key": "again", "label": "again", "backbone": "llava", "forget": 10})
    results["summary"]["again"] = results["summary"]["llava"]
    assert not [name for name in names(results, tmp_path) if name.startswith("ratios")]


@pytest.mark.usefixtures("undrawn")
def test_without_forget_vqa_there_is_no_tradeoff(tmp_path: Path) -> None:
    results = table(seeds=1)
    del results["columns"]["forget_vqa"]
    assert names(results, tmp_path) == ["outcomes-llava.svg"]


def test_a_panel_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    results = table(seeds=1)
    results["panels"][0]["key"] = "../x"
    results["summary"]["../x"] = results["summary"].pop("llava")
    with pytest.raises(UsageError, match="cannot name an artifact"):
        draw_figures(results, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_importing_figures_is_light() -> None:
    code = (
        "import sys; import mmsurgery.figures.tradeoff; assert not {'matplotlib', 'torch', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
