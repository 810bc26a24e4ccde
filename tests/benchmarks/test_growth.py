"""Growth: which points, going on where it was stopped, exponents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import curves
import growth
import page
import pytest


def _points(along: str = "weights", power: float = 1.0, **rest: Any) -> list[dict[str, Any]]:
    sizes = {"1M": 10**6, "10M": 10**7, "100M": 10**8}
    return [
        {
            "stage": "saliency", "along": along, "family": "llava", "device": "cpu", "size": size, "samples": 32,
            "weights": weights, "seconds": 2e-6 * weights**power, "bytes": 5_000_000, **rest,
        }
        for size, weights in sizes.items()
    ]  # fmt: skip


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5])
def test_exponents_are_those_of_the_points(power: float) -> None:
    (curve,) = curves.grouped(reversed(_points(power=power)))  # type: ignore[arg-type]
    assert [each["size"] for each in curve.points] == ["1M", "10M", "100M"]
    assert curve.exponent("seconds") == pytest.approx(power)
    assert curve.last("seconds") == pytest.approx(power)
    assert curve.exponent("bytes") == pytest.approx(0, abs=1e-9)


def test_the_last_exponent_is_that_of_the_two_largest() -> None:
    found = _points()
    found[2]["bytes"] *= 10
    assert curves.grouped(found)[0].last("bytes") == pytest.approx(1)
    assert curves.grouped(found)[0].exponent("bytes") == pytest.approx(0.5)


def test_a_curve_has_one_model_where_samples_grow() -> None:
    found = [
        {**each, "along": "samples", "size": size, "samples": count}
        for size in ("1M", "30M")
        for count, each in zip((100, 1000, 10_000), _points(), strict=True)
    ]
    assert [(curve.size, [each["samples"] for each in curve.points]) for curve in curves.grouped(found)] == [
        ("1M", [100, 1000, 10_000]),
        ("30M", [100, 1000, 10_000]),
    ]


def test_the_systems_part_of_the_time_is_shown_where_it_was_kept() -> None:
    found = _points(cpu_seconds=4.0)
    assert "system, %" in curves.markdown(found)
    assert "| 1.00, 1.00 |  |" in curves.markdown(found)
    found[2]["system_seconds"] = 1.0
    assert "| 1.00, 1.00 | - - 25 |" in curves.markdown(found)


def test_points_that_were_left_out_are_named_and_not_counted() -> None:
    found = _points()
    found[2] = {key: value for key, value in found[2].items() if key not in ("seconds", "bytes")}
    found[2]["skipped"] = "9 GB of memory are not free"
    text = curves.markdown(found)
    assert "| llava | weights | 1M 10M 100M: 9 GB of memory are not free | 2 20 | -, 1.00 |  | 5 5 | -, 0.00 |" in text


def test_samples_do_not_grow_where_none_are_read() -> None:
    found = list(growth.points(("masks", "saliency"), ("llava",), ("1M", "3M"), {"1M": (10, 20)}))
    assert [point.name for point in found] == [
        "masks llava 1M", "masks llava 3M",
        "saliency llava 1M", "saliency llava 3M", "saliency llava 1M 10", "saliency llava 1M 20",
    ]  # fmt: skip


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = list(growth.points(("saliency",), ("llava",), ("1M", "3M", "10M"), {}))
    asked: list[str] = []

    def one(point: growth.Point, out: Path) -> dict[str, Any]:
        asked.append(point.size)
        if point.size == "10M" and len(asked) == 3:
            raise KeyboardInterrupt
        return {"weights": 1, "seconds": 1.0, "bytes": 1}

    monkeypatch.setattr(growth, "one", one)
    with pytest.raises(KeyboardInterrupt):
        growth.run(wanted, tmp_path, asked.count)
    store = tmp_path / "growth.jsonl"
    store.write_text(store.read_text() + '{"stage": "sal')
    found = growth.run(wanted, tmp_path, asked.count)
    assert asked == ["1M", "3M", "10M", "10M"]
    assert [each["size"] for each in found] == ["1M", "3M", "10M"]
    assert [json.loads(line) for line in store.read_text().splitlines()] == page.points(store) == found


@pytest.mark.parametrize("stage", ["saliency", "masks", "training", "diff", "evaluation"])
def test_what_a_point_runs(work: Path, stage: str) -> None:
    point = growth.Point(stage, "weights", "llava", "tiny", 6)
    assert growth._prepare(point, work) == 71_776
    growth.RUNS[stage](point, work)()
    assert not (work / "grown").exists()
    assert not (work / "grown.safetensors").exists()


def test_what_does_not_fit_is_left_out(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "_free", lambda: 10**6)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = growth.one(growth.Point("training", "weights", "llava", "tiny", 6), work)
    assert found == {"weights": 71_776, "skipped": "0 GB of memory are not free"}
