"""The rows of each experiment: which model a row is, whatever the level it is made on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmsurgery.errors import unknown
from mmsurgery.provenance import sha256_json

MODULES = "lm,connector"
"""Modules of the paper's masks (Table 2, first row)."""
RATIO: Mapping[str, Any] = {"beta": 1.0, "modules": MODULES}
"""The paper's mask (Eq. 7)."""

POINTS = 8
"""Evaluations along a run of the fixed budget, after the one at its start."""
FURTHER = 3
"""How many fixed budgets a run may take to reach matched forgetting."""


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

    def mask_name(self) -> str | None:
        """The mask's name, the same for all rows that use it."""
        if self.mask is None:
            return None
        kind = self.mask.get("control") or next(key for key in ("beta", "density") if key in self.mask)
        return f"{kind}-{sha256_json(dict(self.mask))[:8]}"

    def model_name(self, recipe: Mapping[str, Any]) -> str:
        """The model's name under a recipe; the same for rows of two experiments that are one run."""
        asked = {"method": self.method, "mask": self.mask and dict(self.mask), **self.settings, "recipe": dict(recipe)}
        return f"{self.method}-{sha256_json(asked)[:8]}"

    def describe(self) -> dict[str, Any]:
        """The row as plain JSON."""
        return {
            "key": self.key,
            "label": self.label,
            "method": self.method,
            "mask": None if self.mask is None else dict(self.mask),
            "scope": self.settings.get("scope", "forget"),
            "reference": self.settings.get("reference"),
            "forget_weight": self.settings.get("forget_weight", 1.0),
            "retain_batch": self.settings.get("retain_batch"),
        }


@dataclass(frozen=True)
class Experiment:
    """A table: its rows, and the row that the others are compared with."""

    name: str
    title: str
    rows: tuple[Row, ...]
    compared: str
    """Key of the row that every other is paired with."""

    @property
    def needs_reference(self) -> bool:
        """Whether a row needs the model fine-tuned on the retain set."""
        return any(row.settings.get("reference") == "reference" for row in self.rows)


MMUNLEARNER = Row(key="mmunlearner", label="MMUnlearner", method="mmunlearner", mask=RATIO)
GA_DIFF = Row(key="ga_diff", label="GA_Diff", method="ga_diff")

TABLE1 = Experiment(
    "table1",
    "Table 1: the five methods",
    (
        Row(key="ga", label="GA", method="ga"),
        GA_DIFF,
        Row(key="kl_min", label="KL_Min", method="kl_min"),
        Row(key="npo", label="NPO", method="npo", settings={"reference": "reference"}),
        MMUNLEARNER,
    ),
    "mmunlearner",
)


def _control(control: str, label: str) -> Row:
    return Row(key=control, label=label, method="mmunlearner", mask={**RATIO, "control": control})


CONTROLS = Experiment(
    "controls",
    "Controls: does it matter which weights a mask selects?",
    (
        MMUNLEARNER,
        Row(key="no-mask", label="no mask (GA_Diff)", method="ga_diff"),
        Row(
            key="modules-only",
            label="every weight of the mask's modules",
            method="mmunlearner",
            mask={"density": 1.0, "modules": MODULES},
        ),
        _control("random", "random weights"),
        _control("inverse", "inverse (lowest ratios)"),
        _control("magnitude", "largest weights"),
        _control("forget-only", "forget saliency alone"),
        Row(key="gentle", label="no mask, forget loss x 0.4", method="ga_diff", settings={"forget_weight": 0.4}),
        Row(
            key="gentle-retain",
            label="no mask, forget loss x 0.4, 16 retain samples",
            method="ga_diff",
            settings={"forget_weight": 0.4, "retain_batch": 16},
        ),
    ),
    "mmunlearner",
)

EXPERIMENTS = {experiment.name: experiment for experiment in (TABLE1, CONTROLS)}


def find(name: str) -> Experiment:
    """
    Raises:
        UsageError: if there is no experiment of that name.
    """
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    return EXPERIMENTS[name]
