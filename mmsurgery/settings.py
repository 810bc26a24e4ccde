"""The settings of a workspace: what `mmsurgery.toml` may say, checked when it is read and before it is written."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmsurgery.errors import InputRefused, UsageError, nearest
from mmsurgery.provenance import SCHEMA, check_schema
from mmsurgery.recipes.recipe import PRECISIONS

SETTINGS_FILE = "mmsurgery.toml"
SEEDS = 1 << 32
"""How many seeds there are, from 0."""
_THREADS = 1 << 10
SALIENCY_TEXTS = ("held-out", "official")
"""Which text pairs the parts `forget_qa` and `retain_qa` hold: pairs that are never scored, or, as the official
code has it, the very text that is scored; results of the latter say so."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    name: str = "portraits"
    """`portraits`, `mllmu-bench` or an installed benchmark."""
    data: str = "data"
    """Folder of the benchmark's files, absolute or relative to the workspace."""
    forget: int = 10
    """Percentage of people to forget."""
    draw: int = 0
    """portraits: which people are forgotten; 0 takes the first ones."""
    world: int = 0
    """portraits: seed of the fictitious world."""
    saliency_text: str = "held-out"
    """What text saliency is measured on, see `SALIENCY_TEXTS`."""
    allow: tuple[str, ...] = ()
    """Faults of the data that are accepted by name."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    backbone: str = "llava"
    """portraits: the micro model's family; elsewhere the checkpoint's config says it."""
    base: str = "models/base"
    """What vanilla, reference and gold are fine-tuned from."""
    vanilla: str = "models/vanilla"
    """The model that knows everything; unlearning starts from it."""
    setting: str = "saturated"
    """portraits: `saturated` (all columns near 100) or `fragile` (text forgetting shows)."""
    seed: int = 0
    """Seed of the base's initialisation and of its training."""


@dataclass(frozen=True, kw_only=True)
class RecipeSettings:
    """How `apply` unlearns (paper Table 5; portraits: AdamW at 3e-4)."""

    learning_rate: float = 2e-5
    batch_size: int = 4
    epochs: int = 2
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    """Largest norm of the gradient, taken after masking; 0 switches clipping off."""
    seed: int = 0
    threads: int = 1
    """CPU threads; results are bit-identical only at the same number."""
    precision: str = "float32"
    """Of the weights in forward and backward pass, `float32` or `bf16`; what the optimizer moves is float32 in both."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    benchmark: BenchmarkSettings = field(default_factory=BenchmarkSettings)
    models: ModelSettings = field(default_factory=ModelSettings)
    recipe: RecipeSettings = field(default_factory=RecipeSettings)

    def to_toml(self) -> str:
        """The settings as the text of `mmsurgery.toml`."""
        lines = [f"schema = {SCHEMA}"]
        for section in dataclasses.fields(self):
            lines += ["", f"[{section.name}]"]
            for key, value in dataclasses.asdict(getattr(self, section.name)).items():
                lines.append(f"{key} = {_toml_value(value)}")
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str, where: str) -> Settings:
        """Settings from TOML; every key and type checked, all faults reported together.

        Raises:
            UsageError: for unknown keys (with the nearest known one), wrong types or values.
            Mismatch: if another version wrote it.
        """
        try:
            table = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # of numbers and brackets beyond what Python reads
            raise UsageError(f"{where} is not valid TOML: {error}", "mend the line") from error
        check_schema(table.pop("schema", SCHEMA), where)
        faults: list[str] = []
        sections: dict[str, Any] = {}
        kinds = {"benchmark": BenchmarkSettings, "models": ModelSettings, "recipe": RecipeSettings}
        for name, value in table.items():
            if name not in kinds or not isinstance(value, dict):
                faults.append(_unknown_key(name, kinds))
                continue
            sections[name] = _section(kinds[name], name, value, faults)
        made = cls(**sections)
        _refuse([*faults, *_value_faults(made)], where)
        return made

    @classmethod
    def read(cls, file: Path) -> Settings:
        """The settings in a file; raises as `from_toml`.

        Raises:
            InputRefused: if it cannot be read.
        """
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputRefused(
                f"{file} cannot be read: {error}", "mend the file, or start anew: mmsurgery init"
            ) from error
        return cls.from_toml(text, str(file))

    def check(self, where: str) -> None:
        """Check the values, all faults reported together.

        Raises:
            UsageError: if one makes no sense.
        """
        _refuse(_value_faults(self), where)


def check_seed(seed: int) -> None:
    """
    Raises:
        UsageError: for a seed that settings could not hold.
    """
    if not 0 <= seed < SEEDS:
        raise UsageError(f"seed is {seed}, should be 0 or more, below 2^32", "choose another one")


def _refuse(faults: list[str], where: str) -> None:
    if faults:
        shown = "; ".join(f"[{i}] {fault}" for i, fault in enumerate(faults, 1)) if len(faults) > 1 else faults[0]
        raise UsageError(f"{where}: {shown}", "mend the settings")


def _unknown_key(key: str, known: Any) -> str:
    guess = nearest(key, known)
    return f"unknown key '{key}'" + (f" (did you mean '{guess}'?)" if guess else "")


def _section(kind: type[Any], name: str, table: dict[str, Any], faults: list[str]) -> Any:
    known = {f.name: f for f in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            faults.append(_unknown_key(key, known) + f" in [{name}]")
            continue
        default = known[key].default
        if isinstance(default, tuple) and isinstance(value, list) and all(isinstance(v, str) for v in value):
            value = tuple(value)
        if isinstance(default, float) and type(value) is int and abs(value) < 1 << 53:
            value = float(value)
        if type(value) is not type(default):
            faults.append(f"{name}.{key} should be {_kind_name(default)}, is {value!r}")
            continue
        values[key] = value
    return kind(**values)


def _kind_name(default: object) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", tuple: "a list of texts"}
    return names[type(default)]


def _value_faults(settings: Settings) -> list[str]:
    recipe, faults = settings.recipe, []
    if not 0 < recipe.learning_rate < 1:
        faults.append(f"recipe.learning_rate is {recipe.learning_rate}, should be between 0 and 1")
    for key in ("batch_size", "epochs", "threads"):
        if getattr(recipe, key) < 1:
            faults.append(f"recipe.{key} is {getattr(recipe, key)}, should be 1 or more")
    for key in ("weight_decay", "clip_norm"):
        if not 0 <= getattr(recipe, key) < float("inf"):
            faults.append(f"recipe.{key} is {getattr(recipe, key)}, should be 0 or more")
    if recipe.threads > _THREADS:
        faults.append(f"recipe.threads is {recipe.threads}, should be at most {_THREADS:,}")
    for section, key in (("benchmark", "data"), ("models", "base"), ("models", "vanilla")):
        if "\0" in getattr(getattr(settings, section), key):
            faults.append(f"{section}.{key} holds a NUL character")
    if recipe.precision not in PRECISIONS:
        faults.append(f"recipe.precision is '{recipe.precision}', should be {' or '.join(PRECISIONS)}")
    for section, key in (("benchmark", "draw"), ("benchmark", "world"), ("models", "seed"), ("recipe", "seed")):
        value = getattr(getattr(settings, section), key)
        if not 0 <= value < SEEDS:
            faults.append(f"{section}.{key} is {value}, should be 0 or more, below 2^32")
    if not 0 < settings.benchmark.forget < 100:
        faults.append(f"benchmark.forget is {settings.benchmark.forget}, should be a percentage of people")
    if settings.benchmark.saliency_text not in SALIENCY_TEXTS:
        faults.append(
            f"benchmark.saliency_text is '{settings.benchmark.saliency_text}', should be held-out or official"
        )
    if settings.models.setting not in ("saturated", "fragile"):
        faults.append(f"models.setting is '{settings.models.setting}', should be saturated or fragile")
    return faults


def _toml_value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return repr(value)
