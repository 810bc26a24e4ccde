"""Settings of a method itself, the budget that it brings, and what it is refused with, before anything is read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mmsurgery.errors import UsageError
from mmsurgery.methods.base import Budget
from mmsurgery.methods.registry import method
from mmsurgery.settings import RecipeSettings, Settings
from mmsurgery.unlearn.method_settings import parsed_settings, recipe_of, with_settings
from mmsurgery.unlearn.request import Request
from mmsurgery.workspace import Workspace

RECIPE = RecipeSettings(learning_rate=3e-4, batch_size=5, epochs=9)
METHODS = ("anchored_ascent", "stranger_distillation", "robust_distillation")

OWN = """
from __future__ import annotations
from dataclasses import dataclass
from mmsurgery.methods.base import Budget, Method, Term

@dataclass(frozen=True)
class Odd(Method):
    name, title, equation = "odd", "Odd", "-"
    uses_retain = False
    budget = Budget(batch_size=3, retain_batch=7, epochs=2, rate=0.5)
    kind: str = "soft"
    often: bool = True
    cap: float | None = None
    margin: float = -1.0
    parts: int = 3

    def terms(self, step):
        yield Term("forget", -step.forget.answers().nll().mean())

class Asking(Odd):
    uses_retain = True
    references = frozenset({"forget_distribution"})

class Plain(Method):
    name, title, equation = "plain", "Plain", "-"

    def settings(self):
        return {"of its own": [1, 2]}

    def terms(self, step):
        yield Term("forget", -step.forget.answers().nll().mean())
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path, Settings(recipe=RECIPE))


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A file of methods, to be followed by a name."""
    (tmp_path / "own.py").write_text(OWN)
    return f"{tmp_path / 'own.py'}:"


def request(workspace: Workspace, name: str, **options: Any) -> Request:
    asked: dict[str, Any] = {
        **dict.fromkeys(("name", "mask", "scope", "lora", "steps", "anchors", "seed", "precision")),
        **dict.fromkeys(("learning_rate", "batch_size", "retain_batch", "epochs")),
        "protocol": "equations",
        "start": "vanilla",
        "reference": "vanilla",
        "forget_weight": 1.0,
        "eval_every": 0,
        "settings": {},
        **options,
    }
    return Request.of(workspace, name, **asked)


# settings


def test_settings_take_the_place_of_defaults() -> None:
    before = method("robust_distillation")
    made = with_settings(before, {"overshoot": 1, "attacked": 4, "pixels": 0.0})
    assert made.settings() == {**before.settings(), "overshoot": 1.0, "attacked": 4, "pixels": 0.0}
    assert [type(made.settings()[name]) for name in ("overshoot", "attacked", "pixels")] == [float, int, float]
    assert type(made) is type(before)
    assert before.settings() == method("robust_distillation").settings()
    assert with_settings(before, {}) == before
    assert with_settings(before, before.settings()) == before
    assert with_settings(method("ga"), {}).settings() == {}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("npo", {"bet": 0.1}, r"no setting of method npo 'bet' - next: did you mean 'beta'\? known: beta"),
    ("ga", {"beta": 0.1}, r"no setting of method ga 'beta' - next: known: none"),
    ("anchored_ascent", {"anchors": 2.0}, "anchored_ascent's anchors is 2.0, should be int - next: such as 16"),
    ("anchored_ascent", {"anchors": "2"}, "anchored_ascent's anchors is '2', should be int"),
    ("anchored_ascent", {"anchors": True}, "anchored_ascent's anchors is True, should be int"),
    ("anchored_ascent", {"weight": False}, "anchored_ascent's weight is False, should be float"),
    ("anchored_ascent", {"weight": None}, "anchored_ascent's weight is None, should be float"),
    (
        "anchored_ascent",
        {"weight": -0.1},
        "anchored_ascent's weight is -0.1, should be 0 or more, at most 1,000,000 - next: such as 0.4",
    ),
    ("anchored_ascent", {"text": -1}, "anchored_ascent's text is -1, should be 0 or more"),
    ("anchored_ascent", {"weight": float("nan")}, "weight is nan, should be 0 or more"),
    ("anchored_ascent", {"weight": float("inf")}, "weight is inf, should be 0 or more"),
]


@pytest.mark.parametrize(("name", "settings", "words"), REFUSED, ids=str)
def test_settings_that_mean_nothing(workspace: Workspace, name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        with_settings(method(name), settings)
    with pytest.raises(UsageError, match=words):
        request(workspace, name, settings=settings)


def test_settings_of_other_kinds_are_left_as_they_are(own: str) -> None:
    """As a record of a run has them, through JSON."""
    for name in ("Odd", "Plain"):
        found = method(own + name)
        assert with_settings(found, json.loads(json.dumps(found.settings()))) == found
    odd = method(f"{own}Odd")
    changed = with_settings(odd, {**odd.settings(), "parts": 5, "margin": 2})
    assert changed.settings() == {**odd.settings(), "parts": 5, "margin": 2.0}
    for settings in ({"kind": "hard"}, {"kind": 3}, {"often": False}, {"often": 0}, {"cap": 3}):
        with pytest.raises(UsageError, match=f"odd's {next(iter(settings))} is .*, should be"):
            with_settings(odd, settings)


def test_settings_as_they_are_written() -> None:
    assert parsed_settings([]) == {}
    found = parsed_settings(["beta=0.1", "text=8", " anchors = 16 ", "weight=1e-3", "shift=-2", "plus=+4"])
    assert found == {"beta": 0.1, "text": 8, "anchors": 16, "weight": 1e-3, "shift": -2, "plus": 4}
    assert [type(value) for value in found.values()] == [float, int, int, float, int, int]


@pytest.mark.parametrize(
    "text", ["beta", "beta=", "beta=x", "beta=1,2", "beta=0x10", "beta==1", "beta=\u00b2", "beta=+-1"]
)
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(UsageError, match=r"setting '.*' is not NAME=NUMBER - next: such as --setting beta=0.1"):
        parsed_settings(["weight=1", text])


@pytest.mark.parametrize("text", ["beta=nan", "beta=inf", "beta=-inf", "beta=1e999"])
def test_what_is_not_finite(text: str) -> None:
    with pytest.raises(UsageError, match=f"setting '{text}' is not finite"):
        parsed_settings([text])


@pytest.mark.parametrize("texts", [("beta=1", "beta=1"), ("beta=1", "beta =2"), ("beta =1", "beta=2")])
def test_a_setting_given_twice(texts: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=f"setting '{texts[1]}' is given twice"):
        parsed_settings(texts)


# budgets


@pytest.mark.parametrize("name", METHODS)
def test_a_budget_is_used_and_arguments_come_before_it(workspace: Workspace, name: str) -> None:
    best = method(name).budget
    assert best is not None
    found = request(workspace, name)
    assert (found.recipe.batch_size, found.recipe.epochs, found.retain_size) == (12, best.epochs, 16)
    assert found.recipe.learning_rate == pytest.approx(best.rate * RECIPE.learning_rate)
    kept = {"batch_size", "epochs", "learning_rate"}
    ours, theirs = (
        {key: value for key, value in dataclasses.asdict(recipe).items() if key not in kept}
        for recipe in (found.recipe, RECIPE)
    )
    assert ours == theirs
    given = request(workspace, name, batch_size=3, retain_batch=4, epochs=2, learning_rate=0.01, seed=8)
    assert dataclasses.asdict(given.recipe) == {
        **dataclasses.asdict(RECIPE),
        "batch_size": 3,
        "epochs": 2,
        "learning_rate": 0.01,
        "seed": 8,
    }
    assert given.retain_size == 4
    part = request(workspace, name, epochs=2)
    assert (part.recipe.epochs, part.recipe.batch_size, part.retain_size) == (2, 12, 16)


def test_without_a_budget_the_recipe_is_as_it_was(workspace: Workspace) -> None:
    for name in ("ga", "ga_diff", "kl_min", "npo", "mmunlearner"):
        found = request(workspace, name)
        assert found.recipe == RECIPE
        assert found.retain_size == RECIPE.batch_size
        assert found.retain_batch is None
    assert recipe_of(None, RECIPE) == RECIPE
    best = Budget(batch_size=2, retain_batch=3, epochs=4, rate=0.5)
    changed = dataclasses.replace(RECIPE, batch_size=2, epochs=4, learning_rate=1.5e-4)
    assert recipe_of(best, RECIPE) == changed


def test_a_budget_of_a_method_without_retain_data(workspace: Workspace, own: str) -> None:
    found = request(workspace, f"{own}Odd")
    assert (found.recipe.batch_size, found.retain_batch) == (3, None)
    with pytest.raises(UsageError, match="method odd takes no retain data"):
        request(workspace, f"{own}Odd", retain_batch=7)


# what has no meaning


@pytest.mark.parametrize("name", METHODS)
def test_all_terms_are_taken_in_one_step(workspace: Workspace, name: str) -> None:
    with pytest.raises(UsageError, match=f"method {name} takes all its terms in one step - next: leave --protocol out"):
        request(workspace, name, protocol="official")


@pytest.mark.parametrize(
    ("name", "settings"), [("ga", {}), ("mmunlearner", {}), ("npo", {}), ("anchored_ascent", {"anchors": 0})]
)
def test_anchors_for_a_method_that_takes_none(
    workspace: Workspace, tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=f"method {name} takes no anchor pictures - next: leave --anchors out"):
        request(workspace, name, anchors=tmp_path, settings=settings)


def test_what_a_run_depends_on(workspace: Workspace, own: str) -> None:
    """Vanilla's outputs are part of a run that looks at any of them; anchors also where strangers alone are."""
    looks = {
        name: (found.asks_vanilla, found.takes_anchors)
        for name, found in (
            (name, request(workspace, name)) for name in ("ga_diff", "npo", "kl_min", *METHODS, f"{own}Asking")
        )
    }
    assert looks == {
        "ga_diff": (False, False),
        "npo": (False, False),
        "kl_min": (True, False),
        **dict.fromkeys(METHODS, (True, True)),
        f"{own}Asking": (True, False),
    }
    nothing = {"anchors": 0, "text": 0}
    ascent, stranger = (request(workspace, name, settings=nothing) for name in METHODS[:2])
    assert (ascent.asks_vanilla, ascent.takes_anchors) == (False, False)
    assert (stranger.asks_vanilla, stranger.takes_anchors) == (True, True)


@pytest.mark.parametrize("name", METHODS)
def test_scopes_masks_and_names_are_as_for_any_method(workspace: Workspace, name: str) -> None:
    assert request(workspace, name).name == name
    assert request(workspace, name, mask="m").name == f"{name}.m"
    assert request(workspace, name, mask="m").claim == "modules"
    assert request(workspace, name, mask="m", scope="all").claim == "mask"
    with pytest.raises(UsageError, match="scope all is about a mask, and none is given"):
        request(workspace, name, scope="all")
    with pytest.raises(UsageError, match="takes no reference model"):
        request(workspace, name, reference="reference")


@pytest.mark.parametrize(("name", "settings"), [("npo", {"beta": 0}), ("anchored_ascent", {"weight": 1e30})])
def test_settings_out_of_bounds_are_refused(name: str, settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="at most 1,000,000"):
        with_settings(method(name), settings)


def test_a_number_that_no_float_holds_is_refused() -> None:
    with pytest.raises(UsageError, match="is not NAME=NUMBER"):
        parsed_settings([f"beta=1{'0' * 400}"])
