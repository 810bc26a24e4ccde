"""What methods that know anchors share: beside what they forget, nothing else may change what it is answered.

Anchors are pictures of nobody in the benchmark. What the vanilla model says of them, nonsense included, is what must go
on being said: forgetting that spreads shows there first, and no fact about anybody is needed to see it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmsurgery.methods.base import Beside, Method, Term
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


@dataclass(frozen=True, kw_only=True)
class Anchored(Method):
    """Something that forgets, + NLL(retain) + KL(anchors) + KL(text)."""

    equation = "docs/methods.md"

    anchors: int = 16
    """Anchor samples a step; 0 for none."""
    text: int = 8
    """Text pairs a step; 0 for none."""

    def beside(self) -> Mapping[Beside, int]:
        asked: Mapping[Beside, int] = {"anchor_vqa": self.anchors, "text": self.text}
        return {name: size for name, size in asked.items() if size}

    def terms(self, step: Step) -> Iterator[Term]:
        if step.forget is not None:
            yield Term("forget", self.forgetting(step, step.forget))
        if step.retain is not None:
            yield Term("retain", retain_loss(step.retain.answers().nll()))
        for name in ("anchor_vqa", "text"):
            if name in step.beside:
                yield Term("retain", unchanged(step.beside[name]))

    @abstractmethod
    def forgetting(self, step: Step, forget: Passage) -> torch.Tensor:
        """Scalar: the forget term."""
