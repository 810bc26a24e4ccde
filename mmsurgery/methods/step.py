"""What a method sees of one training step: its batches on the current model, and reference outputs.

B samples, T tokens, N answer tokens of all samples of the batch in reading order, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmsurgery.data.samples import Sample
from mmsurgery.errors import UnusableData

if TYPE_CHECKING:
    import torch

    from mmsurgery.backbones.protocol import Answered, Batch

IGNORED = -100


@dataclass(frozen=True)
class Answers:
    """The model's predictions of the answer tokens of a batch, under teacher forcing."""

    logits: torch.Tensor
    """float32 or better `[N, V]`, of the positions that predict an answer token."""
    targets: torch.Tensor
    """int64 `[N]`, the answer tokens."""
    owners: torch.Tensor
    """int64 `[N]`, the sample each token belongs to, ascending."""
    counts: torch.Tensor
    """int64 `[B]`, answer tokens of each sample, end token included."""

    @classmethod
    def of(cls, model: Any, batch: Batch, samples: Sequence[Answered] = ()) -> Answers:
        """One forward pass; logits are computed from the first answer token of the batch on.

        Args:
            samples: what the rows of the batch are, so that one that is too long can be named.

        Raises:
            UnusableData: for a sample that has more tokens than the model has positions.
        """
        labels = batch["labels"]
        check_positions(model, labels.shape[1], lambda: _longest(labels, samples))
        first = int((labels != IGNORED).any(dim=0).int().argmax())
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        output = model(**inputs, logits_to_keep=labels.shape[1] - first + 1, use_cache=False)
        expected = labels[:, first:]
        answered = expected != IGNORED
        logits = output.logits[:, :-1][answered]
        if logits.dtype.itemsize < 4:
            logits = logits.float()
        return cls(logits, expected[answered], answered.nonzero()[:, 0], answered.sum(dim=1))

    def nll(self) -> torch.Tensor:
        """`[B]`, nats: mean over the answer tokens of their negative log-likelihood (Eq. 13)."""
        return -self.sequence_logprob() / self.counts

    def sequence_logprob(self) -> torch.Tensor:
        """`[B]`, nats: log-probability of the whole answer, summed over its tokens."""
        import torch

        losses = torch.nn.functional.cross_entropy(self.logits, self.targets, reduction="none")
        return -self.per_sample_sum(losses)

    def log_probabilities(self) -> torch.Tensor:
        """`[N, V]`, nats: log-probability of every token of the vocabulary at each answer token."""
        return self.logits.log_softmax(dim=-1)

    def per_sample_sum(self, values: torch.Tensor) -> torch.Tensor:
        """`[B]` sums over each sample's answer tokens of `[N]` values."""
        return values.new_zeros(len(self.counts)).index_add(0, self.owners, values)

    def per_sample_mean(self, values: torch.Tensor) -> torch.Tensor:
        """`[B]` means over each sample's answer tokens of `[N]` values."""
        return self.per_sample_sum(values) / self.counts


def _longest(labels: torch.Tensor, samples: Sequence[Answered]) -> str:
    """The sample whose answer ends last in `[B, T]` labels, in words."""
    row = int((labels != IGNORED).int().flip(1).argmax(1).argmin())
    return f"sample {samples[row].id}" if samples else "a batch"


def check_positions(model: Any, tokens: int, whose: Callable[[], str]) -> None:
    """Check that the model was made for so many tokens: beyond its positions it would go on and mean nothing.

    Raises:
        UnusableData: naming whose they are.
    """
    if model is None:  # a plan asks how long rows are without a model
        return
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and tokens > most:
        raise UnusableData(
            f"{whose()} has {tokens} tokens, the model has {most} positions",
            "shorten it, or take it out of the data",
        )


@dataclass(frozen=True)
class References:
    """Reference outputs by index of the sample in its set, at answer positions only."""

    forget_logprob: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """Index of a forget sample -> scalar."""
    retain_distribution: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """Index of a retain sample -> `[answer tokens, V]`."""
    twin: Any = None
    """The vanilla model, where these are too many to be kept: they are computed step by step."""
    vanilla: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Id of a forget, anchor or text sample -> `[answer tokens, V]`, float32, in main memory."""
    stranger: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Id of a forget sample -> the same, of anchor pictures in its picture's place."""


@dataclass(frozen=True)
class Passage:
    """One batch of a step."""

    model: Any
    batch: Batch
    samples: Sequence[Sample]
    indices: Sequence[int]
    """Place of each sample in its set."""
    references: References

    def answers(self) -> Answers:
        """A forward pass of the current model, with a graph of its own."""
        return Answers.of(self.model, self.batch, self.samples)

    def reference_logprob(self) -> torch.Tensor:
        """`[B]`, nats: sequence log-probability of the answers under the reference model."""
        import torch

        return torch.stack([self.references.forget_logprob[i] for i in self.indices])

    def reference_log_probabilities(self) -> torch.Tensor:
        """`[N, V]`, nats: as `Answers.log_probabilities`, under the vanilla model."""
        import torch

        if self.references.twin is not None:
            with torch.no_grad():
                return Answers.of(self.references.twin, self.batch, self.samples).log_probabilities()
        return torch.cat([self.references.retain_distribution[i] for i in self.indices])

    def vanilla_log_probabilities(self) -> torch.Tensor:
        """As `reference_log_probabilities`, of forget, anchor and text samples."""
        return self._kept(self.references.vanilla)

    def stranger_log_probabilities(self) -> torch.Tensor:
        """`[N, V]`, nats: log of the mean of the vanilla model's probabilities over anchor pictures, asked the same."""
        return self._kept(self.references.stranger)

    def _kept(self, known: Mapping[str, torch.Tensor]) -> torch.Tensor:
        import torch

        return torch.cat([known[sample.id] for sample in self.samples]).to(self.batch["labels"].device)


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    number: int
    """From 0."""
    model: Any
    forget: Passage | None
    retain: Passage | None
    beside: Mapping[str, Passage] = field(default_factory=dict)
    """What `Method.beside` asks for."""
    seed: int = 0

    def uniform(self, what: str, low: float, high: float) -> float:
        """A number that is the same whenever this step of this run is done."""
        return random.Random(f"{self.seed}/{self.number}/{what}").uniform(low, high)  # noqa: S311 - reproducible
