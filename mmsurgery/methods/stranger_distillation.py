"""Stranger distillation: of a forgotten face the model learns to say what it says of a stranger's.

No ascent: the loss is bounded, has a minimum, and needs no stopping.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmsurgery.methods.anchored import Anchored
from mmsurgery.methods.attacks import picture_moved
from mmsurgery.methods.base import Budget
from mmsurgery.methods.kl_min import token_kl

if TYPE_CHECKING:
    import torch

    from mmsurgery.methods.step import Passage, Step


def stranger_target(stranger: torch.Tensor, vanilla: torch.Tensor, overshoot: float) -> torch.Tensor:
    """`[N, V]` log-probabilities: what is said of strangers, and away from what was said of the forgotten.

    Args:
        stranger, vanilla: `[N, V]`, log-probabilities in nats under the vanilla model, of anchor pictures asked the
            same, and of the forget picture itself.
        overshoot: 0 for what is said of strangers.
    """
    return (stranger - overshoot * (vanilla - stranger)).log_softmax(dim=-1)


def distillation(passage: Passage, overshoot: float) -> torch.Tensor:
    """Scalar, nats: KL(target || model) on forget samples, mean over each one's answer tokens, then over samples."""
    target = stranger_target(passage.stranger_log_probabilities(), passage.vanilla_log_probabilities(), overshoot)
    answers = passage.answers()
    return answers.per_sample_mean(token_kl(answers.log_probabilities(), target)).mean()


@dataclass(frozen=True)
class StrangerDistillation(Anchored):
    """KL(stranger || forget) + NLL(retain) + KL(anchors) + KL(text); the forget picture is moved first, towards the
    answer, so that its neighbourhood is forgotten with it."""

    name = "stranger_distillation"
    title = "Stranger distillation"
    references = frozenset({"forget_distribution", "stranger_distribution"})
    budget = Budget(batch_size=12, retain_batch=16, epochs=22, rate=2 / 3)

    overshoot: float = 0.3
    pixels: float = 0.1
    """Largest step in pixels; 0 for none."""

    def forgetting(self, step: Step, forget: Passage) -> torch.Tensor:
        if self.pixels:
            forget = picture_moved(forget, step.uniform("pixels", 0.0, self.pixels))
        return distillation(forget, self.overshoot)
