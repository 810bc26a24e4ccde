"""What a recipe may say: a TOML file, every key checked when it is read.

epochs, batch_size, accumulation   optimizer steps, see `Recipe`
learning_rate, schedule, weight_decay, clip_norm, betas
adapter, rank, alpha               low-rank adapters, or the weights themselves
modules                            what is trained
precision, checkpointing           how it fits into memory
seed                               of the order of the samples and of the adapters
source                             where the numbers are from
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from mmsurgery.errors import InputRefused, MissingArtifact, UsageError, nearest, unknown
from mmsurgery.names import GROUPS, Selector
from mmsurgery.paths import home_expanded

SUFFIX = ".toml"
SCHEDULES = ("linear", "constant")
ADAPTERS = ("lora", "full")
PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is fine-tuned, see docs/training.md."""

    epochs: int
    batch_size: int
    """Samples of one forward and backward pass."""
    accumulation: int = 1
    """Batches whose gradients make one optimizer step."""
    learning_rate: float
    schedule: str = "linear"
    """`linear`: down to zero over all steps, without warm-up; `constant`."""
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    """Largest norm of a step's gradient; 0 switches clipping off."""
    betas: tuple[float, float] = (0.9, 0.999)
    adapter: str = "lora"
    """`lora`: low-rank adapters on the linear layers, merged in the end; `full`: the weights themselves."""
    rank: int | None = None
    alpha: float | None = None
    """LoRA's scale is alpha / rank."""
    modules: str = ",".join(GROUPS)
    """Selector of what is trained."""
    precision: str = "float32"
    """Of the weights in forward and backward pass; what the optimizer moves is float32 in both."""
    checkpointing: bool = False
    """Whether activations are computed a second time in the backward pass, in place of being kept."""
    seed: int = 0
    source: str

    def numbers(self) -> dict[str, Any]:
        """What decides the trained model, as plain JSON: all but `source`."""
        values = dataclasses.asdict(self)
        del values["source"]
        return {**values, "betas": list(self.betas)}

    @classmethod
    def from_toml(cls, text: str, where: str) -> Recipe:
        """A recipe from TOML, all faults reported together.

        Raises:
            UsageError: for unknown keys (with the nearest known one), missing keys, wrong types or values.
        """
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{where} is not valid TOML: {error}", "mend the line") from error
        fields = {field.name: field for field in dataclasses.fields(cls)}
        faults = [_unknown_key(key, fields) for key in table if key not in fields]
        values: dict[str, Any] = {}
        for key, field in fields.items():
            if key in table:
                values[key] = _typed(key, table[key], str(field.type), faults)
            elif field.default is dataclasses.MISSING:
                faults.append(f"key '{key}' is missing")
        _refuse(faults, where)
        recipe = cls(**values)
        _refuse(recipe._value_faults(), where)
        return recipe

    def _value_faults(self) -> list[str]:
        faults = [
            f"{key} is {getattr(self, key)}, should be 1 or more"
            for key in ("epochs", "batch_size", "accumulation")
            if getattr(self, key) < 1
        ]
        if not 0 < self.learning_rate < 1:
            faults.append(f"learning_rate is {self.learning_rate}, should be between 0 and 1")
        faults += [
            f"{key} is {getattr(self, key)}, should be 0 or more"
            for key in ("weight_decay", "clip_norm")
            if not 0 <= getattr(self, key) < float("inf")
        ]
        if not all(0 <= beta < 1 for beta in self.betas):
            faults.append(f"betas are {list(self.betas)}, should be from 0 to below 1")
        if not 0 <= self.seed < 1 << 32:
            faults.append(f"seed is {self.seed}, should be 0 or more, below 2^32")
        for key, known in (("schedule", SCHEDULES), ("adapter", ADAPTERS), ("precision", PRECISIONS)):
            if getattr(self, key) not in known:
                faults.append(f"{key} is '{getattr(self, key)}', should be {' or '.join(known)}")
        try:
            Selector(self.modules)
        except UsageError as error:
            faults.append(f"modules: {error.what}")
        return faults + self._adapter_faults()

    def _adapter_faults(self) -> list[str]:
        sizes = {"rank": self.rank, "alpha": self.alpha}
        if self.adapter == "full":
            return [f"{key} is about LoRA, and adapter is full" for key, value in sizes.items() if value is not None]
        faults = [f"key '{key}' is missing, LoRA needs it" for key, value in sizes.items() if value is None]
        if self.rank is not None and self.rank < 1:
            faults.append(f"rank is {self.rank}, should be 1 or more")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            faults.append(f"alpha is {self.alpha}, should be above 0")
        return faults


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    return sorted(file.name.removesuffix(SUFFIX) for file in _folder().iterdir() if file.name.endswith(SUFFIX))


def find_recipe(text: str) -> tuple[str, Recipe]:
    """Name and recipe of a shipped recipe, or of a file (a path, or what ends in `.toml`).

    Raises:
        UsageError: naming the shipped ones, if it is none of them; or as `Recipe.from_toml`.
        MissingArtifact: if there is no such file.
        InputRefused: if it cannot be read.
    """
    if "/" not in text and not text.endswith(SUFFIX):
        if text not in shipped_recipes():
            raise unknown("recipe", text, shipped_recipes())
        return text, Recipe.from_toml((_folder() / f"{text}{SUFFIX}").read_text(encoding="utf-8"), f"recipe {text}")
    file = home_expanded(text)
    if not file.is_file():
        raise MissingArtifact(f"no recipe file {file}", f"name a file, or one of {', '.join(shipped_recipes())}")
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputRefused(f"{file} cannot be read: {error}", "mend the file") from error
    return file.name.removesuffix(SUFFIX), Recipe.from_toml(content, str(file))


def _folder() -> Any:
    return resources.files("mmsurgery.recipes")


def _unknown_key(key: str, known: Mapping[str, Any]) -> str:
    guess = nearest(key, known)
    return f"unknown key '{key}'" + (f" (did you mean '{guess}'?)" if guess else "")


_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


def _typed(key: str, value: Any, annotation: str, faults: list[str]) -> Any:
    """The value in its field's type; a fault, and the value as it is, where it has another."""
    if annotation.startswith("tuple"):
        if isinstance(value, list) and len(value) == 2 and all(type(v) in (int, float) for v in value):
            return float(value[0]), float(value[1])
        faults.append(f"{key} should be two numbers, is {value!r}")
        return value
    kind = annotation.removesuffix(" | None")
    if kind == "float" and type(value) is int and abs(value) < 1 << 53:
        value = float(value)
    if type(value).__name__ != kind:
        faults.append(f"{key} should be {_KINDS[kind]}, is {value!r}")
    return value


def _refuse(faults: list[str], where: str) -> None:
    if faults:
        shown = "; ".join(f"[{i}] {fault}" for i, fault in enumerate(faults, 1)) if len(faults) > 1 else faults[0]
        raise UsageError(f"{where}: {shown}", "mend the recipe")
