"""Squared gradients of every sample, or of whole batches, in one backward pass per batch, by hooks.

A linear layer keeps its input a (or has it computed again, where activations are checkpointed); when the
gradient g of its output arrives, the weight gradient of sample i is g_i^T a_i over the sample's rows alone,
that of the batch g^T a over all rows. It is made, squared and added some rows of the weight at a time: no
gradient of a vocabulary's size is ever in memory. The layers' own weight gradients are switched off, so this
is the work of one plain backward pass plus one squared addition per unit and parameter.
The result is that of one backward pass per unit, up to rounding. Whatever is not understood raises
`NotUnderstood`, so that nothing is left out: the caller then measures by plain backward passes.

B samples, R leading rows of an activation, T tokens, H hidden size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmsurgery.saliency.modules import KINDS, NotUnderstood, check_kind, check_norm, uses_of
from mmsurgery.saliency.sums import Sums, sum_dtype
from mmsurgery.saliency.tap import tapped
from mmsurgery.saliency.uses import Owners, RowsUse, Use, add_squares_of
from mmsurgery.saliency.watch import Watch

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.backbones.protocol import Batch, SampleGradient


@dataclass(eq=False)
class _Site:
    """A module that holds parameters, or whose parameters the backbone has a rule for."""

    name: str
    module: nn.Module
    own: dict[str, nn.Parameter]
    in_language_model: bool
    rule: SampleGradient | None
    checked: bool = False
    """Norms: whether a call was compared with weight * xhat + bias."""


@dataclass
class _Pass:
    """One batch on its way through the model."""

    batch: Batch = field(default_factory=dict)
    calls: Counter[_Site] = field(default_factory=Counter)
    forward: bool = True
    """Modules that are called later are computed again, for a backward pass that lacks their activations."""
    waiting: dict[nn.Parameter, list[Use]] = field(default_factory=dict)
    """Parameters used several times, some of whose gradients are still to come."""
    owners: dict[tuple[int, ...] | None, Owners] = field(default_factory=dict)
    """Those met in this batch, by the sample of each row; None where row i is sample i."""


class Hooked:
    """Adds squared gradients to `sums`; a context manager that holds the hooks.

    Args:
        unit: whose gradient is squared: `sample`, each sample's loss, or `batch`, the mean loss of the batch.

    Raises:
        NotUnderstood: for a module whose parameters cannot be followed.
    """

    def __init__(self, loaded: Loaded, sums: Sums, unit: str = "sample") -> None:
        self.model, self.backbone, self.sums, self.unit = loaded.model, loaded.backbone, sums, unit
        self._sites: list[_Site] = []
        self._holders: dict[nn.Parameter, list[_Site]] = {}
        """Parameter -> the sites that its gradient is read at."""
        rules = self.backbone.sample_gradients()
        for name, module in self.model.named_modules():
            rule = rules.get(type(module).__name__)
            own = dict(module.named_parameters(recurse=False))
            if rule is None and own:
                check_kind(name, module)
            first = next((parameter for parameter, _ in module.named_parameters()), None)
            if first is None or not (own or rule):
                continue
            in_language_model = self.backbone.address(f"{name}.{first}").group == "lm"
            site = _Site(name, module, own, in_language_model, rule)
            self._sites.append(site)
            for parameter in own.values():
                self._holders.setdefault(parameter, []).append(site)
        self._pass = _Pass()
        self._watched: set[frozenset[str]] = set()
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Hooked:
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for site in self._sites:
            self._handles.append(site.module.register_forward_hook(self._follow(site), prepend=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._pass = _Pass()

    def step(self, batch: Batch, losses: Callable[[], torch.Tensor], scale: float) -> None:
        """Measure one batch.

        Args:
            batch: model inputs with labels, on the host.
            losses: runs the model on that batch, once: `[B]` losses of the samples.
            scale: what the losses are multiplied by before the backward pass.
        """
        self._pass = _Pass(batch)
        reduction = torch.mean if self.unit == "batch" else torch.sum
        kind = frozenset(batch)
        if kind in self._watched:
            total = reduction(losses())
        else:
            with Watch({p: [site.module for site in sites] for p, sites in self._holders.items()}):
                total = reduction(losses())
            self._watched.add(kind)
        self._pass.forward = False
        (total * scale).backward()  # type: ignore[no-untyped-call]
        for parameter, uses in self._pass.waiting.items():
            add_squares_of(uses, parameter, self.sums)
        self._pass = _Pass()

    def _follow(self, site: _Site) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        def arrive(inputs: tuple[Any, ...], gradient: torch.Tensor) -> None:
            self._arrive(site, inputs, gradient)

        def after_forward(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            if not torch.is_grad_enabled():
                return None
            if not inputs or not isinstance(output, torch.Tensor) or (site.rule is None and len(inputs) != 1):
                raise NotUnderstood(f"{site.name} is called in an unusual way")
            if site.rule is None and type(module) not in KINDS and not site.checked:
                check_norm(site.name, module, inputs[0], output)
                site.checked = True
            self._pass.calls[site] += self._pass.forward
            return tapped(output, inputs, arrive, site.name)

        return after_forward

    def _arrive(self, site: _Site, inputs: tuple[Any, ...], gradient: torch.Tensor) -> None:
        """Read the gradients of the site's parameters from the gradient of its output."""
        if site.rule is not None:
            found = self._by_rule(site, site.rule, inputs, gradient)
        else:
            mine = {name: parameter for name, parameter in site.own.items() if site in self._holders[parameter]}
            if not mine:
                return
            owners = self._owners(site, len(gradient))
            dtype = sum_dtype(gradient)
            uses = uses_of(site.name, site.module, inputs[0], gradient, owners, dtype)
            found = [(parameter, uses[name]) for name, parameter in mine.items()]
        for parameter, use in found:
            waiting = self._pass.waiting.setdefault(parameter, [])
            waiting.append(use)
            if len(waiting) == sum(self._pass.calls[holder] for holder in self._holders[parameter]):
                del self._pass.waiting[parameter]
                add_squares_of(waiting, parameter, self.sums)

    def _by_rule(
        self, site: _Site, rule: SampleGradient, inputs: tuple[Any, ...], gradient: torch.Tensor
    ) -> list[tuple[nn.Parameter, Use]]:
        """What the backbone's rule says. Parameters of children that it covers are not read at the
        children: the gradient of the parent's output arrives before theirs."""
        rows = rule(site.module, inputs, gradient)
        missing = [name for name in site.own if name not in rows]
        if missing:
            raise NotUnderstood(f"the rule for {type(site.module).__name__} leaves out {', '.join(missing)}")
        owners = self._owners(site, len(gradient))
        found: list[tuple[nn.Parameter, Use]] = []
        for name, values in rows.items():
            parameter = site.module.get_parameter(name)
            self._holders[parameter] = [site]
            found.append((parameter, RowsUse(values.to(sum_dtype(gradient)), owners)))
        return found

    def _owners(self, site: _Site, rows: int) -> Owners:
        if self.unit == "batch":
            return Owners(torch.zeros(rows, dtype=torch.int64), 1)
        samples, key, of_row = len(self._pass.batch["labels"]), None, None
        if not site.in_language_model:
            of_row = self.backbone.row_owners(self.model.config, self._pass.batch, site.name, rows)
            key = tuple(of_row.tolist())
        elif rows != samples:
            raise NotUnderstood(f"{site.name} has {rows} rows for {samples} samples")
        if key not in self._pass.owners:
            self._pass.owners[key] = Owners(of_row, samples)
        return self._pass.owners[key]
