from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from mmsurgery.data import benchmark as discovery
from mmsurgery.data.benchmark import SETS, Benchmark, benchmark, installed, parts_of
from mmsurgery.errors import UsageError


def test_both_benchmarks_are_found_and_keep_the_protocol() -> None:
    for name in ("portraits", "mllmu-bench"):
        found = benchmark(name)
        assert isinstance(found, Benchmark)
        assert found.name == name


def test_an_unknown_benchmark_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no benchmark 'portrait'.*did you mean 'portraits'"):
        benchmark("portrait")


def _entries(*values: str) -> list[metadata.EntryPoint]:
    return [metadata.EntryPoint("x", value, discovery.GROUP) for value in values]


def test_one_name_for_two_objects_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda group: _entries("a:b", "a:b"))
    assert list(installed()) == ["x"]
    monkeypatch.setattr(metadata, "entry_points", lambda group: _entries("a:b", "c:d"))
    with pytest.raises(UsageError, match="a:b and as c:d"):
        installed()


@pytest.mark.parametrize(
    "value", ["no.such.module:x", "mmsurgery.data.benchmark:nothing", "mmsurgery.data.benchmark:SETS"]
)
def test_what_is_no_benchmark_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda group: _entries(value))
    with pytest.raises(UsageError, match="benchmark 'x'"):
        benchmark("x")


def test_sets_are_the_parts_of_equations_5_and_6() -> None:
    assert parts_of("forget") == ("forget_vqa",)
    assert parts_of("preserve") == ("forget_qa", "retain_vqa", "retain_qa") == SETS["preserve"]
    assert parts_of("retain_vqa") == ("retain_vqa",)


def test_the_data_room_is_light() -> None:
    heavy = ("torch", "transformers", "pyarrow", "PIL", "numpy")
    code = (
        "import sys; import mmsurgery.data.portraits, mmsurgery.data.leakage; "
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    root = Path(discovery.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
