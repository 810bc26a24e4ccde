"""The pure loss functions against closed forms worked out here, and the answers' likelihoods against plain torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from mmsurgery.methods.ga import ga_loss
from mmsurgery.methods.ga_diff import retain_loss
from mmsurgery.methods.kl_min import KLMin, token_kl
from mmsurgery.methods.npo import npo_loss
from mmsurgery.methods.step import Answers, Step

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.data.samples import Sample


def two_answers() -> Answers:
    """Sample 0 has one answer token of probability 1/4, sample 1 two, of probability 1/2 each; V = 2."""
    probabilities = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.5, 0.5]])
    return Answers(
        probabilities.log(), torch.tensor([0, 0, 1]), owners=torch.tensor([0, 1, 1]), counts=torch.tensor([1, 2])
    )


def test_likelihoods_of_two_answers() -> None:
    answers = two_answers()
    assert answers.sequence_logprob().tolist() == pytest.approx([-math.log(4), -2 * math.log(2)])
    # per sample first: (ln 4, ln 2); a mean over tokens would give (ln 4 + 2 ln 2) / 3
    assert answers.nll().tolist() == pytest.approx([math.log(4), math.log(2)])


def test_ascent_and_descent_have_opposite_signs() -> None:
    nll = two_answers().nll()
    expected = (math.log(4) + math.log(2)) / 2
    assert float(ga_loss(nll)) == pytest.approx(-expected)
    assert float(retain_loss(nll)) == pytest.approx(expected)


def test_a_step_of_gradient_ascent_raises_the_loss() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)

    def nll() -> torch.Tensor:
        return Answers(logits, torch.tensor([1]), torch.tensor([0]), torch.tensor([1])).nll()

    before = nll()
    ga_loss(before).backward()
    with torch.no_grad():
        logits -= 0.1 * logits.grad
    assert float(nll().detach()) > float(before.detach())


def test_kl_is_from_the_reference_to_the_current_model() -> None:
    current, reference = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]]).log()
    forward = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert token_kl(current, reference).tolist() == pytest.approx([forward])
    backward = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert abs(forward - backward) > 0.01
    assert token_kl(current, current).tolist() == [0.0]


def test_kl_weighs_samples_equally_whatever_their_length() -> None:
    divergences = torch.tensor([3.0, 1.0, 2.0])
    assert two_answers().per_sample_mean(divergences).tolist() == [3.0, 1.5]


class Fixed:
    """A passage whose answers and references are given."""

    def __init__(self, reference: torch.Tensor) -> None:
        self.reference = reference

    def answers(self) -> Answers:
        return two_answers()

    def reference_log_probabilities(self) -> torch.Tensor:
        return self.reference


def test_kl_min_yields_the_ascent_then_the_mean_over_samples_of_token_means() -> None:
    reference = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.25, 0.75]]).log()
    passage: Any = Fixed(reference)
    forget, retain = KLMin().terms(Step(0, None, passage, passage))
    assert (forget.kind, retain.kind) == ("forget", "retain")
    assert float(forget.loss) == pytest.approx(-(math.log(4) + math.log(2)) / 2)
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    third = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert float(retain.loss) == pytest.approx((first + (0.0 + third) / 2) / 2, rel=1e-5)


def test_npo_is_a_mean_over_samples_of_sequence_ratios() -> None:
    current, reference = torch.tensor([-1.0, -6.0]), torch.tensor([-2.0, -3.0])
    ratios = [math.exp(1.0), math.exp(-3.0)]
    expected = sum(2 / 0.4 * math.log(1 + ratio**0.4) for ratio in ratios) / 2
    assert float(npo_loss(current, reference, beta=0.4)) == pytest.approx(expected)
    on_the_batch = 2 / 0.4 * math.log(1 + math.exp(-1.0) ** 0.4)  # the published code: the ratio of batch means
    assert abs(expected - on_the_batch) > 0.01


def test_npo_starts_at_two_ln_two_over_beta_and_its_gradient_is_bounded() -> None:
    same = torch.tensor([-5.0, -7.0], requires_grad=True)
    loss = npo_loss(same, same.detach(), beta=0.4)
    assert float(loss.detach()) == pytest.approx(2 * math.log(2) / 0.4)
    loss.backward()
    # d/dc of 2/beta softplus(beta (c - r)) is 2 sigmoid(0) = 1, over two samples
    assert same.grad is not None
    assert same.grad.tolist() == pytest.approx([0.5, 0.5])
    impossible = npo_loss(torch.tensor([-1000.0]), torch.tensor([0.0]), beta=0.4)
    assert float(impossible) == pytest.approx(0.0, abs=1e-30)


def test_answers_of_a_mixed_batch(loaded_llava: Loaded, mixed_samples: list[Sample]) -> None:
    """Against log-softmax over all positions of the whole logits, sample by sample."""
    batch = loaded_llava.backbone.collate(loaded_llava.processor, mixed_samples)
    with torch.no_grad():
        answers = Answers.of(loaded_llava.model, batch)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logprobs = loaded_llava.model(**inputs).logits[:, :-1].log_softmax(-1)
    for i, row in enumerate(batch["labels"][:, 1:]):
        places = (row != -100).nonzero()[:, 0]
        expected = logprobs[i, places, row[places]]
        assert float(answers.sequence_logprob()[i]) == pytest.approx(float(expected.sum()), rel=1e-5)
        assert float(answers.nll()[i]) == pytest.approx(-float(expected.mean()), rel=1e-5)
        torch.testing.assert_close(answers.log_probabilities()[answers.owners == i], logprobs[i, places])


def test_likelihood_and_kl_do_not_depend_on_padding(loaded_llava: Loaded, mixed_samples: list[Sample]) -> None:
    """The shortest sample alone and beside longer ones."""
    together, alone = (
        Answers.of(loaded_llava.model, loaded_llava.backbone.collate(loaded_llava.processor, samples))
        for samples in (mixed_samples, mixed_samples[2:3])
    )
    assert float(together.nll()[2].detach()) == pytest.approx(float(alone.nll()[0].detach()), rel=1e-5)
    shared = together.log_probabilities()[together.owners == 2].detach()
    uniform = torch.full_like(shared, -math.log(shared.shape[1]))
    torch.testing.assert_close(token_kl(shared, uniform), token_kl(alone.log_probabilities().detach(), uniform))
