"""What an unlearning method is.

Wider than a loss: a method says what it needs (a mask, retain data, reference outputs) and yields its
terms one after the other. Each term is backpropagated before the next is asked for, so that one graph
is in memory at a time; between the forget and the retain terms the training loop masks the gradient.
Everything is minimised: gradient ascent is a term with a minus sign.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

if TYPE_CHECKING:
    import torch

    from mmsurgery.methods.step import Step

Kind = Literal["forget", "retain"]
Reference = Literal["forget_logprob", "retain_distribution", "forget_distribution", "stranger_distribution"]
Beside = Literal["anchor_vqa", "text", "forget_vqa"]


class Term(NamedTuple):
    """A part of what is minimised in one step."""

    kind: Kind
    """`forget`: its gradient is masked in every scope, and weighted by `--forget-weight`; `retain`: in scope
    `all` only."""
    loss: torch.Tensor
    """Scalar, nats."""


@dataclass(frozen=True)
class Budget:
    """What a method runs best with, where nothing else is asked for."""

    batch_size: int
    """Forget samples a step."""
    retain_batch: int
    epochs: int
    """Times that the forget set is gone through."""
    rate: float
    """Learning rate, times that of the recipe."""


class Method(ABC):
    """Subclass it (as a dataclass where it has settings) and name the class in the entry point group
    `mmsurgery.methods`, or on the command line as `path.py:Name`."""

    name: ClassVar[str]
    title: ClassVar[str]
    equation: ClassVar[str]
    """Where it is defined, e.g. `Eq. 15`."""
    requires_mask: ClassVar[bool] = False
    """Whether it means nothing without a mask; it then takes mask `default` unless another is named."""
    uses_retain: ClassVar[bool] = True
    """Whether a step also gets a retain batch."""
    references: ClassVar[frozenset[Reference]] = frozenset()
    """Outputs of reference models it needs, computed before the first step: `forget_logprob` (sequence
    log-probabilities of the forget answers under the model of `--reference`), `retain_distribution`
    (log-probabilities of every token at the retain answers' positions under the vanilla model),
    `forget_distribution` (the same of the forget answers), `stranger_distribution` (the log of the mean of the
    vanilla model's probabilities there when anchor pictures stand in the forget picture's place)."""
    budget: ClassVar[Budget | None] = None
    """None: the recipe's as it is."""

    code: ClassVar[str | None] = None
    """Of a method that mmsurgery does not bring, what tells its code apart: its file's SHA-256, or the distribution
    and version it is from. Set when it is found."""
    positive: ClassVar[frozenset[str]] = frozenset()
    """Settings that cannot be 0."""
    mean_of_samples: ClassVar[bool] = False
    """Whether each term is the mean over its batch's samples of something that looks at no other sample, and the order
    of terms and of what they ask of the model is the same whatever the samples: several processes then each do a share
    of a batch."""

    @abstractmethod
    def terms(self, step: Step) -> Iterator[Term]:
        """The step's terms, forget terms first. `step.forget` or `step.retain` is None in a step without it."""

    def beside(self) -> Mapping[Beside, int]:
        """Further data that a step sees -> how many samples of it: `anchor_vqa`, `text` (the text pairs of forget and
        of retain people), `forget_vqa` (another batch of what is to be forgotten). Of the first two the vanilla
        model's distributions at the answer positions are there, too."""
        return {}

    def shared(self) -> bool:
        """Whether several processes may do a share of each batch: whoever overrides `terms` says so anew."""
        for cls in type(self).__mro__:
            if "mean_of_samples" in vars(cls):
                return bool(vars(cls)["mean_of_samples"])
            if "terms" in vars(cls):
                break
        return False

    def settings(self) -> dict[str, Any]:
        """Hyper-parameters of the method's own, as plain JSON; the fields of a dataclass."""
        return dataclasses.asdict(self) if dataclasses.is_dataclass(self) else {}
