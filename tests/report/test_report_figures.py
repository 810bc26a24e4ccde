"""Figures of experiments: outcomes of open answers, forget ratios, sweeps, deviations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from example_extras import deviations
from example_results import TABLE1, ablations, results, row

from mmsurgery.artifacts.files import write_json
from mmsurgery.errors import InputRefused
from mmsurgery.provenance import seal
from mmsurgery.report.axes import Scale
from mmsurgery.report.experiments import Experiment, Panel, read_experiment


def read(folder: Path, record: dict[str, Any]) -> Experiment:
    write_json(folder / "results.json", seal(record))
    return read_experiment(folder / "results.json")


def panel_of(folder: Path, *arguments: Any, **more: Any) -> Panel:
    return read(folder, results(*arguments, **{"backbones": ("llava",), "seeds": 1, **more})).panels[0]


def test_outcomes_are_bars_whose_parts_are_their_shares(tmp_path: Path) -> None:
    record = results(backbones=("llava",), seeds=1)
    shares = {"correct": 0.5, "other_person": 0.25, "wrong": 0.0, "refusal": 0.15, "gibberish": 0.1}
    record["summary"]["llava"]["ga"]["outcomes"]["forget_vqa"] = shares
    found = read(tmp_path, record).panels[0].outcomes
    assert found is not None
    assert found.columns == [("forget_vqa", "Forget VQA"), ("retain_vqa", "Retain VQA")]
    # NPO has no open answers
    assert [each.label for each in found.rows] == ["vanilla", "gold", "GA", "GA_Diff", "KL_Min", "MMUnlearner"]
    picture = found.rows[2].bars["forget_vqa"]
    parts = re.findall(r'<rect class="o-(\w+)" x="([\d.]+)%" width="([\d.]+)%" [^>]+><title>([^<]+)', picture)
    assert [(kind, title) for kind, *_, title in parts] == [
        ("correct", "correct: 50.0 %"),
        ("other_person", "another person&#39;s fact: 25.0 %"),
        ("refusal", "refusal: 15.0 %"),
        ("gibberish", "gibberish: 10.0 %"),
    ]
    assert [float(x) for _, x, *_ in parts] == pytest.approx([0, 50, 75, 90])
    assert [float(width) for *_, width, _ in parts] == pytest.approx([50, 25, 15, 10])
    # numbers stand in the middle of their parts; a wide cell shows small ones too
    numbers = re.findall(r'<text class="on-(\w+)( small)?" x="([\d.]+)%"[^>]*>(\d+)<', picture)
    assert numbers == [
        ("correct", "", "25.00", "50"),
        ("other_person", "", "62.50", "25"),
        ("refusal", " small", "82.50", "15"),
        ("gibberish", " small", "95.00", "10"),
    ]
    assert 'aria-label="GA, Forget VQA: correct 50.0 %, another person&#39;s fact 25.0 %, refusal 15.0 %' in picture
    # it collapsed in its only run
    assert (found.rows[2].remark, found.rows[2].hollow) == ("collapsed", True)
    assert 'class="outcome hollow"' in picture
    assert 'class="outcome"' in found.rows[3].bars["forget_vqa"]


def test_outcomes_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    record = results(backbones=("llava",), seeds=1)
    record["summary"]["llava"]["ga_diff"]["outcomes"]["forget_vqa"]["wrong"] += 0.05
    with pytest.raises(InputRefused, match="do not add up to 1"):
        read(tmp_path, record)


def test_without_open_answers_there_is_no_figure(tmp_path: Path) -> None:
    record = results(backbones=("llava",), seeds=1)
    for each in record["summary"]["llava"].values():
        each["outcomes"] = None
    assert read(tmp_path, record).panels[0].outcomes is None


def ticks(picture: str, y: str) -> dict[float, float]:
    """Value -> x of the labels along a horizontal line."""
    found = re.findall(rf'<text x="([\d.]+)" y="{y}" text-anchor="middle" class="c-label">([^<]+)<', picture)
    return {float(value.replace("−", "-")): float(x) for x, value in found}


def test_forget_ratios_are_lines_against_the_change_of_forget_vqa(tmp_path: Path) -> None:
    record = results("figure4", ("llava", "qwen2_vl"), 1, TABLE1[3:], (5, 10, 15))
    for ratio, forget, kept in ((5, 0.8, 0.9), (10, 0.6, 0.7), (15, 0.4, 0.5)):
        summary = record["summary"][f"llava.{ratio}"]
        summary["vanilla"]["fixed"]["forget_vqa"]["mean"] = 1.0
        summary["npo"]["fixed"]["forget_vqa"] |= {"mean": forget}
        summary["npo"]["fixed"]["retain_vqa"] |= {"mean": kept, "ci95": [kept - 0.1, kept + 0.1]}
    figures = read(tmp_path, record).ratios
    assert [figure.backbone for figure in figures] == ["llava", "qwen2_vl"]
    pictures = figures[0].pictures
    order = ["Retain VQA", "Real-world VQA", "Forget QA", "Retain QA", "Real-world QA"]
    assert [re.search(r">([\w -]+), %<", each).group(1) for each in pictures] == order  # type: ignore[union-attr]
    # its marker is the row's own, as in every other figure
    marks = re.findall(r'd="M([\d.]+) ([\d.]+)[^"]*" class="end s1[^"]*"><title>([^<]+)<', pictures[0])
    assert [title for *_, title in marks] == [
        "NPO, forget 5 %: Forget VQA −20.0 points, Retain VQA 90.0 %, 95 % interval 80.0–100.0",
        "NPO, forget 10 %: Forget VQA −40.0 points, Retain VQA 70.0 %, 95 % interval 60.0–80.0",
        "NPO, forget 15 %: Forget VQA −60.0 points, Retain VQA 50.0 %, 95 % interval 40.0–60.0",
    ]
    (line,) = re.findall(r'd="M([^"]+)" class="mean thin s1', pictures[0])
    xs = [float(point.split()[0]) for point in line.split("L")]
    at = ticks(pictures[0], "205")
    assert [xs[0], xs[1], xs[2]] == pytest.approx([at[-20], at[-40], at[-60]], abs=0.2)
    labels = re.findall(r'class="c-tag halo s1 d0">(\d+)<', pictures[0])
    assert labels == ["5", "10", "15"]
    assert figures[0].ratios == [5, 10, 15]
    assert figures[0].gold
    assert pictures[0].count('class="anchor gold"') == 3
    assert pictures[0].count('class="level-of"') == 1  # vanilla


def test_one_forget_ratio_makes_no_figure(tmp_path: Path) -> None:
    assert not read(tmp_path, results(backbones=("llava", "qwen2_vl"), seeds=1)).ratios


def test_groups_that_vary_one_number_are_charts(tmp_path: Path) -> None:
    panel = panel_of(tmp_path, "ablations", rows=ablations())
    found = {sweep.group: sweep for sweep in panel.sweeps}
    assert {group: sweep.number for group, sweep in found.items()} == {
        "beta": "beta",
        "density": "density",
        "forget weight": "forget weight",
        "retain batch": "retain samples a step",
    }
    beta = found["beta"].picture
    # the compared row is a point of its own: beta 1
    at = ticks(beta, "166")
    assert list(at) == [0.25, 0.5, 1, 2, 4, 8]
    assert at[2] - at[1] == pytest.approx(at[8] - at[4], abs=0.1)
    assert "beta, logarithmic" in beta
    assert len(re.findall(r"<title>[^<]+: utility [\d.]+ %, ", beta)) == 6
    assert len(re.findall(r"<title>[^<]+: Forget VQA [\d.]+ %, ", beta)) == 6
    # 8 to 16 is no decade, and the recipe's own number is not known
    assert "logarithmic" not in found["retain batch"].picture


def test_a_group_that_varies_two_numbers_is_no_sweep(tmp_path: Path) -> None:
    mask = {"beta": 1.0}
    rows = [
        row("a", "a", 1.0, 0.1, group="g", mask=mask, forget_weight=0.5, retain_batch=8),
        row("b", "b", 1.0, 0.1, group="g", mask=mask, forget_weight=0.2, retain_batch=16),
        TABLE1[-1],
    ]
    assert not panel_of(tmp_path, rows=rows).sweeps


def test_a_scale_is_logarithmic_beyond_a_decade_alone() -> None:
    assert Scale([0.1, 1.01], 0, 100).log
    assert not Scale([0.1, 1.0], 0, 100).log
    assert not Scale([0.0, 1.0], 0, 100).log
    assert Scale([3.0], 0, 100)(3.0) == 50


def cells_of(pictures: Any) -> dict[str, str]:
    """What a cell says -> its colour."""
    return {said: colour for colour, said in re.findall(r'class="(h\d+)"><title>([^<]+)<', "".join(pictures))}


def test_deviations_share_one_colour_scale(tmp_path: Path) -> None:
    record = results(backbones=("llava",), seeds=1, deviations=deviations(["llava"], ["npo", "mmunlearner"]))
    entries = record["deviations"]["llava"]
    for key, brightest in (("npo", 0.8), ("mmunlearner", 0.2)):
        for what, value in (("share", brightest), ("relative", brightest)):
            entries[key][what][3] = [value if size else (None if what == "relative" else 0.0)
                                     for size in entries[key]["sizes"][3]]  # fmt: skip
    found = read(tmp_path, record).panels[0].deviations
    assert found is not None
    npo, mine = found.rows
    assert cells_of(npo.share)["lm.0, attn.q: 80.0 % of 18,432 weights"] == "h18"
    assert cells_of(mine.share)["lm.0, attn.q: 20.0 % of 18,432 weights"] == "h4"  # a quarter of the other's
    assert "from 0 % to 80.0 %" in found.share_scale
    # logarithmic: a quarter of the largest is 4/5 along three decades
    by_length = cells_of([*npo.relative, *mine.relative])
    assert by_length["lm.0, attn.q: changed by 80.0 % of its length, 18,432 weights"] == "h18"
    assert by_length["lm.0, attn.q: changed by 20.0 % of its length, 18,432 weights"] == "h14"
    assert (mine.changed, mine.n, mine.models) == ("14.0 %", "120,000", 3)
    assert mine.groups["lm"] == ("90.0 %", "20.0 %")
    assert "lm 90 %" in "".join(mine.share)
    assert not [said for said in cells_of(npo.share) if "connector, attn.q" in said]  # a cell of no weights


@pytest.mark.parametrize("what", ["share", "relative", "sizes"])
def test_deviations_of_another_shape_are_refused(tmp_path: Path, what: str) -> None:
    record = results(backbones=("llava",), seeds=1, deviations=deviations(["llava"], ["npo"]))
    record["deviations"]["llava"]["npo"][what][2].pop()
    with pytest.raises(InputRefused, match=f"{what} does not fit"):
        read(tmp_path, record)


def test_deviations_of_an_unknown_row_are_refused(tmp_path: Path) -> None:
    record = results(backbones=("llava",), seeds=1, deviations=deviations(["llava"], ["other"]))
    with pytest.raises(InputRefused, match="a row that is not there"):
        read(tmp_path, record)
