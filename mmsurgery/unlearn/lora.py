"""What LoRA is asked for and which layers it reaches; the adapters are in `adapters`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmsurgery.errors import UnusableData, UsageError
from mmsurgery.names import GROUPS, Selector

if TYPE_CHECKING:
    from mmsurgery.artifacts.mask import Mask
    from mmsurgery.backbones.protocol import Backbone


_RANK = 1 << 16
"""That no matrix has."""


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters of scale 1 (alpha = rank, as the official code), A Gaussian, B zero, no dropout."""

    rank: int
    modules: str = ",".join(GROUPS)
    """Selector of the linear layers without a mask; by default all of them, as the official code's
    unlearning scripts. A mask's own modules take its place."""

    def check(self) -> None:
        """
        Raises:
            UsageError: for a rank below 1 or a selector that cannot be read.
        """
        if not 1 <= self.rank <= _RANK:
            raise UsageError(f"LoRA rank is {self.rank}, should be from 1 to {_RANK:,}", "pass --lora-rank 16")
        Selector(self.modules)

    def targets(self, names: Iterable[str], family: Backbone, mask: Mask | None) -> list[str]:
        """Names of the weights that get an adapter: of linear layers, and with a mask those it selects some of.

        Args:
            names: the model's parameters.

        Raises:
            UsageError: if the modules name no parameter.
            UnusableData: if there is no such layer.
        """
        addresses = {name: family.address(name) for name in names}
        modules = self.modules if mask is None else mask.modules
        inside = Selector(modules).select(addresses)
        patterns = {group: re.compile(family.linear_targets(group)) for group in GROUPS}
        found = [
            name
            for name, address in addresses.items()
            if name in inside
            and name.endswith(".weight")
            and patterns[address.group].fullmatch(name.removesuffix(".weight"))
            and (mask is None or mask.parameters[name].selected)
        ]
        if not found:
            what = f"linear layer in {modules}" if mask is None else f"weight of a linear layer in {modules} selected"
            raise UnusableData(f"LoRA has nothing to train: no {what}", "name other modules, or train without LoRA")
        return found


def lora_of(rank: int | None, modules: str | None) -> LoRA | None:
    """The adapters of a rank, on some modules; None without a rank.

    Raises:
        UsageError: for modules without a rank.
    """
    if rank is None:
        if modules is not None:
            raise UsageError("modules for LoRA are named, but no rank", "pass --lora-rank 16")
        return None
    return LoRA(rank=rank) if modules is None else LoRA(rank=rank, modules=modules)


def unreached(mask: Mask, targets: Iterable[str]) -> tuple[int, int]:
    """How many weights, in how many parameters, a mask selects and LoRA leaves as they are."""
    reached = set(targets)
    counts = [p.selected for name, p in mask.parameters.items() if name not in reached and p.selected]
    return sum(counts), len(counts)
