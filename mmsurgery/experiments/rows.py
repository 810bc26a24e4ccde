"""What a table consists of: its rows, and what is asked of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmsurgery.methods.base import Budget
from mmsurgery.methods.registry import method as find_method
from mmsurgery.provenance import sha256_json
from mmsurgery.settings import RecipeSettings
from mmsurgery.unlearn.method_settings import recipe_of

POINTS = 8
"""Evaluations along a run of the fixed budget, after the one at its start."""
FURTHER = 3
"""How many fixed budgets a run may take to reach matched forgetting."""
_LATER = {"precision": "float32"}
"""Settings of a recipe that there were not always, as they were then: they are in no model's name."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table: a method with its settings and its mask."""

    key: str
    """Names the row in commands and files."""
    label: str
    """For people."""
    method: str
    mask: Mapping[str, Any] | None = None
    """Keywords of `masks.build.build_mask`; None for no mask."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further keywords of `unlearn.apply.apply`."""
    budget: Budget | None = None
    """Instead of the method's own, or of the recipe."""
    anchors: str | None = None
    """Kind of anchor pictures (see `anchor_pictures`); the benchmark's own where None."""
    group: str | None = None
    """What is varied, where a table varies several things."""

    def mask_name(self) -> str | None:
        """The mask's name, the same for all rows that use it."""
        if self.mask is None:
            return None
        kind = self.mask.get("control") or next(key for key in ("beta", "density") if key in self.mask)
        return f"{kind}-{sha256_json(dict(self.mask))[:8]}"

    def recipe(self, chosen: RecipeSettings) -> RecipeSettings:
        """A workspace's recipe as the row's budget has it."""
        return recipe_of(self.budget or find_method(self.method).budget, chosen)

    @property
    def retain_batch(self) -> int | None:
        """Retain samples a step, None for the method's own or the batch size."""
        given: int | None = self.settings.get("retain_batch")
        return self.budget.retain_batch if given is None and self.budget is not None else given

    def model_name(self, recipe: Mapping[str, Any]) -> str:
        """The model's name under a recipe; the same for rows of two experiments that are one run."""
        named = {key: value for key, value in recipe.items() if _LATER.get(key) != value}
        asked = {"method": self.method, "mask": self.mask and dict(self.mask), **self.settings, "recipe": named}
        if self.retain_batch != self.settings.get("retain_batch"):
            asked["retain_batch"] = self.retain_batch
        if self.anchors is not None:
            asked["anchors"] = self.anchors
        return f"{self.method}-{sha256_json(asked)[:8]}"

    def at(self, learning_rate: float) -> Row:
        """The row with another learning rate than the recipe's."""
        return dataclasses.replace(self, settings={**self.settings, "learning_rate": learning_rate})

    def describe(self) -> dict[str, Any]:
        """The row as plain JSON."""
        return {
            "key": self.key,
            "label": self.label,
            "group": self.group,
            "method": self.method,
            "mask": None if self.mask is None else dict(self.mask),
            "scope": self.settings.get("scope", "forget"),
            "protocol": self.settings.get("protocol", "equations"),
            "reference": self.settings.get("reference"),
            "forget_weight": self.settings.get("forget_weight", 1.0),
            "retain_batch": self.retain_batch,
            "batch_size": None if self.budget is None else self.budget.batch_size,
            "settings": dict(self.settings.get("settings", {})),
            "anchors": self.anchors,
            "learning_rate": self.settings.get("learning_rate"),
        }


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A table or figure: its rows, the row that the others are compared with, and what is looked at besides scores."""

    name: str
    title: str
    question: str
    """The one sentence that it answers."""
    rows: tuple[Row, ...]
    compared: str
    """Key of the row that every other is paired with."""
    by_ratio: bool = False
    """Whether it is made at every forget ratio that the benchmark has, instead of the workspace's alone."""
    every_backbone: bool = False
    """Whether it is made for all families of micro models unless some are chosen (portraits)."""
    deviations: bool = False
    """Whether it counts where each row's weights moved furthest (Figures 5 and 6)."""
    answers: bool = True
    """Whether every row also answers in its own words, so that outcomes can be told apart."""
    cases: bool = False
    """Whether it shows single answers (Tables 3 and 6)."""
    audit: bool = False
    """Whether every row is audited where it is at matched forgetting."""
    first: int = 0
    """Seed of the first vanilla model; another one for judging what was tuned on the usual ones (portraits)."""
    worlds: bool = False
    """Whether every vanilla model is of a world of its own: other people, other faces (portraits)."""

    @property
    def needs_reference(self) -> bool:
        """Whether a row needs the model fine-tuned on the retain set."""
        return any(row.settings.get("reference") == "reference" for row in self.rows)

    def row(self, key: str) -> Row:
        return next(row for row in self.rows if row.key == key)
