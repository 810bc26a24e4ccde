"""Claims of the paper held against made-up results."""

from __future__ import annotations

from typing import Any

import pytest

from mmsurgery.experiments.claims import FAILS, HOLDS, UNRESOLVED, claims

ROWS = [{"key": key, "label": key.upper(), "group": None} for key in ("ga", "npo", "mmunlearner")]


def pair(second: str, difference: float, *, resolved: bool = True, **other: Any) -> dict[str, Any]:
    base = {"panel": "llava", "comparison": "fixed", "quantity": "forget_vqa", "first": "mmunlearner", "n": 9}
    base |= {"people": 9, "resolvable": True}
    return {**base, "second": second, "difference": difference, "resolved": resolved, **other}


def results(name: str, paired: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    panels = [{"key": "llava", "label": "llava", "backbone": "llava", "forget": 10}]
    columns = {column: {"label": column} for column in ("forget_vqa", "forget_qa", "retain_vqa", "retain_qa")}
    levels = [{"panel": key, "seed": seed} for key in ("llava", "llava.5", "llava.15") for seed in (0, 1)]
    base = {"name": name, "rows": ROWS, "compared": "mmunlearner", "columns": columns, "levels": levels}
    return {**base, "panels": panels, "paired": paired, **more}


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([(-0.1, True), (-0.2, True)], HOLDS),
        ([(-0.1, True), (-0.2, False)], UNRESOLVED),
        ([(-0.1, True), (0.2, True)], FAILS),
        ([(-0.1, False), (0.2, False)], UNRESOLVED),
        ([(-0.1, True)], UNRESOLVED),  # of the other row nothing is known
    ],
)
def test_forgotten_more_than_every_other(differences: list[tuple[float, bool]], verdict: str) -> None:
    pairs = [pair(row, value, resolved=sure) for row, (value, sure) in zip(("ga", "npo"), differences, strict=False)]
    first = claims(results("table1", pairs))["llava"][0]
    assert first["verdict"] == verdict
    assert first["claim"].endswith("than every other method at the fixed budget")
    assert "lower (more forgotten) by 10.0 points than GA" in first["evidence"]
    if differences[-1] == (0.2, True):
        assert first["evidence"].startswith("forget_vqa higher (less forgotten) by 20.0 points than NPO; lower")


def test_one_vanilla_model_is_said_to_be_one() -> None:
    made = results("table1", [pair("ga", -0.1), pair("npo", -0.1)])
    assert not claims(made)["llava"][0]["evidence"].endswith("said of it alone")
    made["levels"] = made["levels"][:1]
    assert claims(made)["llava"][0]["evidence"].endswith("; one vanilla model, said of it alone")


def test_the_sense_of_what_is_kept() -> None:
    pairs = [pair(row, 0.1, quantity="utility", comparison="matched") for row in ("ga", "npo")]
    found = {each["claim"]: each["verdict"] for each in claims(results("table1-tuned", pairs))["llava"]}
    assert found["MMUnlearner keeps more than every other method at matched forgetting"] == HOLDS
    assert found["MMUnlearner keeps more than every other method at the fixed budget"] == UNRESOLVED


def _figure4(first: tuple[float, float, float], last: tuple[float, float, float]) -> dict[str, Any]:
    panels = [{"key": f"llava.{f}", "label": f"llava {f}", "backbone": "llava", "forget": f} for f in (5, 15)]

    def summary(ends: tuple[float, float, float]) -> dict[str, Any]:
        mean, low, high = ends
        columns = {c: {"mean": mean, "ci95": [low, high]} for c in ("retain_vqa", "forget_qa", "retain_qa")}
        return {row["key"]: {"fixed": columns} for row in ROWS}

    made = results("figure4", [], summary={"llava.5": summary(first), "llava.15": summary(last)})
    return {**made, "panels": panels}


def test_trends_need_intervals_apart() -> None:
    falls = claims(_figure4((0.8, 0.75, 0.85), (0.6, 0.55, 0.65)))
    assert [each["verdict"] for each in falls["llava.15"][1:]] == [HOLDS, FAILS, FAILS]
    assert len(falls["llava.5"]) == 1
    overlapping = claims(_figure4((0.8, 0.75, 0.85), (0.74, 0.7, 0.78)))["llava.15"][1:]
    assert [each["verdict"] for each in overlapping] == [UNRESOLVED] * 3
    assert "GA 80.0 to 74.0 (intervals overlap)" in overlapping[0]["evidence"]


def test_patterns() -> None:
    layers, components = ["vision.0", "lm.0", "lm.1"], ["attn.q", "mlp.up"]
    sizes = [[10, 10]] * 3

    def entry(*share: list[float]) -> dict[str, Any]:
        return {"layers": layers, "components": components, "sizes": sizes, "share": list(share)}

    spread, other = entry([0.9, 0.8], [0.5, 0.4], [0.3, 0.2]), entry([0.9, 0.7], [0.5, 0.5], [0.3, 0.2])
    focused = entry([0.0, 0.0], [0.0, 0.9], [0.0, 0.1])
    made = {"llava": {"ga": spread, "npo": other, "mmunlearner": focused}}
    alike, focus = claims(results("figure5", [], deviations=made))["llava"]
    assert (alike["verdict"], focus["verdict"]) == (HOLDS, HOLDS)
    # 0.9 and 0.1 of the changes in two cells: exp(entropy) = 1.38; vision is left out
    assert "MMUnlearner 1.4" in focus["evidence"]
    swapped = {"llava": {"ga": spread, "npo": focused, "mmunlearner": other}}
    assert [each["verdict"] for each in claims(results("figure5", [], deviations=swapped))["llava"]] == [FAILS, FAILS]


def test_ablations_by_group() -> None:
    rows = [*ROWS[2:], *({"key": key, "label": key, "group": "beta"} for key in ("low", "high"))]
    matched = {"comparison": "matched", "quantity": "utility"}
    made = results("ablations", [pair("low", 0.05, resolved=False, **matched)])
    (found,) = claims({**made, "rows": rows})["llava"]
    assert found["verdict"] == UNRESOLVED
    assert found["evidence"] == (
        "points of utility, the row minus the paper's choice (plus: it keeps more): "
        "low -5.0; low: not resolved at n = 9 (9 people); never got there: high"
    )
    made = results("ablations", [pair("low", 0.05, **matched), pair("high", 0.0, resolved=False, **matched)])
    assert claims({**made, "rows": rows})["llava"][0]["verdict"] == HOLDS


def test_no_claims_about_columns_that_are_not_there() -> None:
    made = results("table1", [pair("ga", -0.1), pair("npo", -0.1)])
    assert any("text about the forgotten people" in each["claim"] for each in claims(made)["llava"])
    del made["columns"]["forget_qa"]
    assert not any("text about the forgotten people" in each["claim"] for each in claims(made)["llava"])


def test_no_claims_about_others() -> None:
    assert claims(results("cases", [])) == {"llava": []}


def test_a_method_beats_the_paper_where_it_keeps_more() -> None:
    keys = ("mmunlearner", "anchored-ascent", "stranger", "robust")
    rows = [{"key": key, "label": key, "group": None} for key in keys]
    matched = {"comparison": "matched", "quantity": "utility"}
    pairs = [pair("anchored-ascent", -0.1, **matched), pair("stranger", 0.1, **matched)]
    for name in ("beyond", "beyond-equal"):
        found = claims({**results(name, pairs), "rows": rows})["llava"]
        assert [each["verdict"] for each in found] == [HOLDS, FAILS, UNRESOLVED]
        assert found[0]["claim"] == "anchored-ascent keeps more than mmunlearner at matched forgetting"
        assert "lower (less kept) by 10.0 points than anchored-ascent" in found[0]["evidence"]


def test_a_mask_matters_where_it_keeps_more_than_a_random_one() -> None:
    rows = [{"key": key, "label": key, "group": None} for key in ("mmunlearner", "ascent-random", "anchored-ascent")]
    matched = {"comparison": "matched", "quantity": "utility"}
    pairs = [pair("ascent-random", 0.1, **matched), pair("anchored-ascent", -0.1, **matched)]
    found = claims({**results("beyond-masks", pairs), "rows": rows})["llava"]
    assert [each["verdict"] for each in found] == [HOLDS, FAILS]
