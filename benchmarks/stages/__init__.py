"""One module per stage: `run(setup)` yields figures, `TASKS` are what child processes
do for it, named by the stage and more words."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import models
import torch

SCRIPT = Path(__file__).parents[1] / "bench.py"
"""What child processes are started from."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a stage is asked for."""

    work: Path
    """Folder of models and files that are made once."""
    sizes: Sequence[str]
    families: Sequence[str] = models.FAMILIES
    rounds: int = 5
    tokens: int = models.TOKENS
    """Of a sample that is trained on or measured."""
    goals_from: float = models.GOALS_FROM
    """Weights from which figures are held against their limits."""
    options: dict[str, Any] = field(default_factory=dict)

    def models(self) -> Iterator[tuple[str, str, str]]:
        """Family, size and what both are called."""
        for size in self.sizes:
            for family in self.families:
                yield family, size, f"{family} {size}"

    def goal(self, weights: float, limit: float, stretch: float | None = None) -> dict[str, float | None]:
        """Limit and stretch of a figure of a model of so many weights; none where it is too small."""
        held = weights >= self.goals_from
        return {"limit": limit if held else None, "stretch": stretch if held else None}


def weights(loaded: Any) -> int:
    return sum(parameter.numel() for parameter in loaded.model.parameters())


@contextlib.contextmanager
def forwards(look: Callable[[Mapping[str, Any]], object]) -> Iterator[None]:
    """Inside, `look` gets the inputs of every forward pass through a whole model, whoever loaded it."""

    def after(module: torch.nn.Module, arguments: Any, inputs: Mapping[str, Any], output: Any) -> None:
        if type(module).__name__.endswith("ForConditionalGeneration"):
            look(inputs)

    hook = torch.nn.modules.module.register_module_forward_hook(after, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
