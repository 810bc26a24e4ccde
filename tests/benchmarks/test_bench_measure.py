"""Ratios, verdicts, peaks, and what is kept of them."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import bench
import measure
import page
import pytest


@pytest.mark.parametrize(
    ("value", "limit", "stretch", "expected"),
    [
        (1.04, 1.15, 1.05, "stretch"),
        (1.05, 1.15, 1.05, "stretch"),
        (1.1, 1.15, 1.05, "kept"),
        (1.15, 1.15, None, "kept"),
        (1.16, 1.15, 1.05, "missed"),
        (math.nan, 1.15, 1.05, "missed"),
        (5.0, None, None, ""),
    ],
)
def test_verdict(value: float, limit: float | None, stretch: float | None, expected: str) -> None:
    assert measure.verdict(value, limit, stretch) == expected


def test_sides_take_turns_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []
    prepared: list[str] = []
    sides = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = measure.in_turn(sides, 3, before=prepared.append)
    assert order == prepared == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert len(times["a"].cpu) == len(times["b"].wall) == 3


def test_a_ratio_is_that_of_the_same_round() -> None:
    times = {
        "ours": measure.Times([2.0, 30.0, 6.0], [1.0, 1.0, 1.0]),
        "bare": measure.Times([1.0, 10.0, 4.0], [2.0, 2.0, 2.0]),
        "plain": measure.Times([4.0, 40.0, 16.0], [1.0, 1.0, 1.0]),
    }
    found = measure.ratio(
        times, "ours", "bare", baseline="plain", clock="cpu", model="m", what="w", limit=2.0, detail={"weights": 8}
    )
    assert (found.value, found.low, found.high) == (2.0, 1.5, 3.0)
    assert (found.wall, found.baseline, found.against, found.verdict) == (0.5, 4.0, "bare", "kept")
    assert found.detail == {"seconds": {"ours": 6.0, "bare": 4.0, "plain": 16.0}, "weights": 8}


def test_a_childs_peak_is_what_it_takes_beyond_its_start(tmp_path: Path) -> None:
    if not measure.can_watch():
        pytest.skip("this system does not tell how much memory a process has")
    script = tmp_path / "task.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(measure.__file__).parent)!r})\n"
        "import measure, time\n"
        "def take(megabytes):\n"
        "    kept = bytearray(300 << 20)\n"
        "    def run():\n"
        "        more = bytearray(megabytes << 20); time.sleep(0.05); return len(kept) + len(more)\n"
        "    return run\n"
        "measure.child({'take': take}, sys.argv[2])\n"
    )
    found = measure.peak(script, "take", megabytes=64)
    assert found.found == 364 << 20
    assert 60e6 < found.bytes < 80e6
    script.write_text("raise SystemExit(1)")
    with pytest.raises(RuntimeError, match="take did not get ready"):
        measure.peak(script, "take", megabytes=64)
    script.write_text("input(); print('ready', flush=True); input(); raise SystemExit(1)")
    with pytest.raises(RuntimeError, match="take failed"):
        measure.peak(script, "take", megabytes=64)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="this system does not tell what lies in memory")
def test_files_that_lie_in_memory_count_where_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(bytes(64 << 20))
    script = tmp_path / "task.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(measure.__file__).parent)!r})\n"
        "import measure, mmap, time\n"
        "def look(path):\n"
        "    def run():\n"
        "        with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:\n"
        "            seen = sum(mapped[::4096]); time.sleep(0.5); return seen\n"
        "    return run\n"
        "measure.child({'look': look}, sys.argv[2])\n"
    )
    for ending, least, most in ((".safetensors", 60e6, 80e6), (".npy", 0, 20e6), ("", 0, 20e6)):
        found = measure.peak(script, "look", mapped=ending, path=str(tmp_path / "x.safetensors"))
        assert least <= found.bytes < most


def test_reading_reads_every_byte(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "ab"]
    files[0].write_bytes(bytes(5 << 20))
    files[1].write_bytes(b"abc")
    assert measure.read(files) == (5 << 20) + 3
    measure.drop_from_cache(files)
    assert measure.read(files) == (5 << 20) + 3


def _figure(**changed: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"model": "llava 30M", "what": "saliency", "value": 1.234, "limit": 1.15, "stretch": 1.05}
    return measure.Figure(**(given | changed)).to_json()


def _run(stage: str, device: str = "cpu", **changed: Any) -> dict[str, Any]:
    return {
        "stage": stage,
        "device": device,
        "machine": {"processor": "P", "card": None},
        "figures": [{**_figure(**changed), "when": "2026-01-02", "rounds": 5, "tokens": 56, "load": 0.5}],
    }


def test_a_stages_figures_replace_those_of_the_same_device(tmp_path: Path) -> None:
    store = tmp_path / "bench.json"
    for run in (_run("diff"), _run("saliency"), _run("diff", "cuda"), _run("diff", value=9.0)):
        bench.keep(store, run)
    kept = [(each["device"], each["stage"], each["figures"][0]["value"]) for each in bench.recorded(store)]
    assert kept == [("cpu", "saliency", 1.234), ("cpu", "diff", 9.0), ("cuda", "diff", 1.234)]


def test_figures_of_other_models_stay(tmp_path: Path) -> None:
    store = tmp_path / "bench.json"
    for run in (_run("diff"), _run("diff", model="llava 190M"), _run("diff", value=9.0)):
        bench.keep(store, run)
    (kept,) = bench.recorded(store)
    assert [(each["model"], each["value"]) for each in kept["figures"]] == [("llava 190M", 1.234), ("llava 30M", 9.0)]


def test_a_page_keeps_what_was_measured_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = {"device": "cpu", "stage": "diff", "along": "weights", "family": "llava", "size": "1M", "samples": 100}
    paths = [tmp_path / name for name in ("one", "other")]
    for number, (path, model) in enumerate(zip(paths, ("llava 30M", "llava 190M"), strict=True)):
        path.mkdir()
        bench.keep(path / "bench.json", _run("diff", model=model))
        grown = {"weights": 1e6, "seconds": 1.0 + number, "bytes": 2e6}
        (path / "growth.jsonl").write_text(json.dumps({**point, **grown}) + "\n")
        monkeypatch.setattr(sys, "argv", ["bench.py", "--page", str(tmp_path / "page.md"), "--out", str(path)])
        assert bench.main() == 0
    text = (tmp_path / "page.md").read_text()
    assert text.index("| llava 30M |") < text.index("| llava 190M |")
    assert text.count("| llava | weights | 1M | 2 |") == 1


def test_the_page_says_what_was_missed_and_where_it_was_measured() -> None:
    text = page.page([_run("saliency", low=1.0, high=1.5, baseline=2.5)])
    assert "| llava 30M | saliency |  | 1.23 | 1 - 1.50 |  | 2.50 | 1.15 [1.05] | **missed** |" in text
    assert "processor P; saliency" not in text
    assert "processor P" in text
    assert "- saliency, 2026-01-02, 5 rounds, 56 tokens a sample, load 0.5: llava 30M\n" in text
    assert "No GPU was there" in text
    assert "No GPU was there" not in page.page([_run("saliency", "cuda")])


def test_the_page_says_why_a_figure_misses_its_limit() -> None:
    missed = _run("training", what="masked LoRA 16")
    assert page.WHY["masked LoRA"] in page.page([missed])
    kept = _run("training", what="masked LoRA 16", value=1.0)
    assert page.WHY["masked LoRA"] not in page.page([kept])


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.0, "1"), (0.05123, "0.0512"), (1.0512, "1.05"), (12.345, "12.3"), (1234.5, "1,234"), (0.0, "0"), (None, "")],
)
def test_numbers_have_three_digits(value: float | None, shown: str) -> None:
    assert page.number(value) == shown


def test_a_stage_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "module", lambda stage: _Stage)
    arguments = [
        "bench.py",
        "masks",
        "--sizes",
        "tiny",
        "--families",
        "llava",
        "--out",
        str(tmp_path),
        "--threads",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    assert bench.main() == 1
    found = json.loads((tmp_path / "bench.json").read_text())["runs"]
    assert [run["stage"] for run in found] == ["masks"]
    assert found[0]["figures"][0]["verdict"] == "missed"
    assert {"processor", "torch", "cpu_threads"} <= found[0]["machine"].keys()
    monkeypatch.setattr(sys, "argv", ["bench.py", "--page", str(tmp_path / "page.md"), "--out", str(tmp_path)])
    assert bench.main() == 0
    assert "### Masks" in (tmp_path / "page.md").read_text()
    monkeypatch.setattr(sys, "argv", ["bench.py", "mask"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "unknown stage mask" in capsys.readouterr().err


class _Stage:
    @staticmethod
    def run(setup: Any) -> Any:
        yield measure.Figure(model=setup.sizes[0], what="w", value=2.0, limit=1.0)
