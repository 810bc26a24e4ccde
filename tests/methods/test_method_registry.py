"""Methods by entry point, by file, and the ways in which either is refused."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from mmsurgery.errors import UsageError
from mmsurgery.methods.registry import installed, method

BUILT_IN = (
    *("ga", "ga_diff", "kl_min", "mmunlearner", "npo"),
    *("anchored_ascent", "stranger_distillation", "robust_distillation"),
)


def test_built_in_methods_say_what_they_need() -> None:
    assert set(BUILT_IN) <= {each.name for each in installed()}
    needs = {
        name: (found.requires_mask, found.uses_retain, set(found.references))
        for name, found in ((name, method(name)) for name in BUILT_IN)
    }
    assert needs == {
        "ga": (False, False, set()),
        "ga_diff": (False, True, set()),
        "kl_min": (False, True, {"retain_distribution"}),
        "mmunlearner": (True, True, set()),
        "npo": (False, False, {"forget_logprob"}),
        "anchored_ascent": (False, True, set()),
        "stranger_distillation": (False, True, {"forget_distribution", "stranger_distribution"}),
        "robust_distillation": (False, True, {"forget_distribution", "stranger_distribution"}),
    }
    assert all(type(method(name.replace("_", "-"))) is type(method(name)) for name in BUILT_IN)
    assert method("npo").settings() == {"beta": 0.4}
    assert method("ga").settings() == {}


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no method 'ga_dif' - next: did you mean 'ga_diff'\?"):
        method("ga_dif")


def test_two_distributions_with_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.entry_points

    class Distribution:
        name = "imposter"
        version = "1"

    class Point:
        name = "npo"
        value = "imposter:NPO"
        dist = Distribution()

    def entry_points(**selection: Any) -> list[Any]:
        return [*real(**selection), Point()]

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    with pytest.raises(UsageError, match=r"npo.*imposter.*mmsurgery"):
        method("npo")


OWN = """
from __future__ import annotations
from dataclasses import dataclass
from mmsurgery.methods.base import Method, Term

@dataclass(frozen=True)
class Half(Method):
    name = "half"
    title = "Half an ascent"
    equation = "-"
    uses_retain = False
    factor: float = 0.5

    def terms(self, step):
        yield Term("forget", -self.factor * step.forget.answers().nll().mean())

class Nameless(Method):
    def terms(self, step):
        yield from ()

@dataclass(frozen=True)
class Needy(Method):
    factor: float
    name = "needy"
    title = "t"
    equation = "-"
    def terms(self, step):
        yield from ()

class Greedy(Half):
    references = frozenset({"the_future"})

class Listed(Half):
    references = ["x"]

class Rich(Half):
    budget = 3

class Curious(Half):
    def beside(self):
        return {"zzz": 3}

class Odd(Half):
    def settings(self):
        return {"a": {1, 2}}

class Raising(Half):
    def __init__(self):
        raise ValueError("no")

class Imposter(Half):
    name = "ga"
"""


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def test_method_from_a_file(own_file: Path) -> None:
    found = method(f"{own_file}:Half")
    assert (found.name, found.settings()) == ("half", {"factor": 0.5})


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("Hal", "did you mean 'Half'"),
        ("Nameless", "lacks name, title, equation"),
        ("Needy", "give every setting a default"),
        ("Greedy", "asks for reference 'the_future'"),
        ("dataclass", "no method class"),
        ("Listed", r"has references \['x'\]"),
        ("Rich", "has budget 3"),
        ("Curious", "asks for data 'zzz'"),
        ("Odd", "of plain JSON"),
        ("Raising", "cannot be made: ValueError: no"),
        ("Imposter", "is named 'ga', as a method of mmsurgery is - next: give it a name of its own"),
    ],
)
def test_what_is_no_method_is_refused(own_file: Path, attribute: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        method(f"{own_file}:{attribute}")


def test_files_that_cannot_be_imported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file .*missing\.py"):
        method(f"{tmp_path}/missing.py:X")
    (tmp_path / "exits.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(UsageError, match="cannot be imported: SystemExit"):
        method(f"{tmp_path}/exits.py:X")
    (tmp_path / "odd.py").write_text("\nclass Odd(BaseException): pass\nraise Odd\n")
    with pytest.raises(UsageError, match=r"cannot be imported: Odd \(line 3\)"):
        method(f"{tmp_path}/odd.py:X")


def test_code_of_ones_own_is_told_apart(own_file: Path) -> None:
    before = method(f"{own_file}:Half").code
    own_file.write_text(OWN.replace("-self.factor", "self.factor"))
    assert before not in (None, method(f"{own_file}:Half").code)
    assert method("npo").code is None
