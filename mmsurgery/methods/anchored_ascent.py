"""Anchored ascent: a gentle ascent, beside which nothing else may change what it is answered.

Anchors are pictures of nobody in the benchmark. What the vanilla model says of them, nonsense included, is what must go
on being said: forgetting that spreads shows there first, and no fact about anybody is needed to see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmsurgery.methods.base import Beside, Budget, Method, Term
from mmsurgery.methods.ga import ga_loss
from mmsurgery.methods.ga_diff import retain_loss
from mmsurgery.methods.kl_min import token_kl

if TYPE_CHECKING:
    import torch

    from mmsurgery.methods.step import Passage, Step


def unchanged(passage: Passage) -> torch.Tensor:
    """Scalar, nats: KL(vanilla || model), mean over each sample's answer tokens, then over samples."""
    answers = passage.answers()
    divergences = token_kl(answers.log_probabilities(), passage.vanilla_log_probabilities())
    return answers.per_sample_mean(divergences).mean()


def kept_terms(step: Step) -> Iterator[Term]:
    """The retain samples' answers, and what must be answered as before."""
    if step.retain is not None:
        yield Term("retain", retain_loss(step.retain.answers().nll()))
    for name in ("anchor_vqa", "text"):
        if name in step.beside:
            yield Term("retain", unchanged(step.beside[name]))


def kept_sets(anchors: int, text: int) -> Mapping[Beside, int]:
    """What `kept_terms` needs of so many samples a step."""
    asked: Mapping[Beside, int] = {"anchor_vqa": anchors, "text": text}
    return {name: size for name, size in asked.items() if size}


@dataclass(frozen=True)
class AnchoredAscent(Method):
    """-weight * NLL(forget) + NLL(retain) + KL(anchors) + KL(text), all at once; it has to be stopped."""

    name = "anchored_ascent"
    title = "Anchored ascent"
    equation = "docs/methods.md"
    budget = Budget(batch_size=12, retain_batch=16, epochs=7, rate=2 / 3)

    weight: float = 0.4
    """Of the ascent."""
    anchors: int = 16
    """Anchor samples a step; 0 for none."""
    text: int = 8
    """Text pairs a step; 0 for none."""

    def beside(self) -> Mapping[Beside, int]:
        return kept_sets(self.anchors, self.text)

    def terms(self, step: Step) -> Iterator[Term]:
        if step.forget is not None:
            yield Term("forget", self.weight * ga_loss(step.forget.answers().nll()))
        yield from kept_terms(step)
