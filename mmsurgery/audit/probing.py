"""Probing: do hidden states still hold what the model no longer says? (Lucki et al., arXiv 2409.18025; arXiv
2604.08271: a linear probe finds nearly all of it.)

A ridge regression reads answers off the hidden state at the last position that all options of a question share, layer
by layer (every k-th, at most `LAYERS`, the last among them). Its target is the answer as a bag of words, so it needs no
classes and works for any text; it chooses the option that its prediction is closest to. It is fitted on retained people
alone and asked about the forgotten ones; the kept arms are retained people, each asked of a probe that was fitted
without them (`FOLDS` folds of people). Arms: the layers. Lower is better; chance is a floor that is measured: probes
fitted on answers that were shuffled among people who were asked the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsurgery.audit.material import Material
from mmsurgery.audit.measured import Measured, Values
from mmsurgery.audit.subjects import Subject
from mmsurgery.data.leakage import normalised
from mmsurgery.data.samples import Item
from mmsurgery.evaluate import prefix
from mmsurgery.evaluate.scoring import eval_mode, option_samples
from mmsurgery.workspace import SILENT, Progress

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded

Array = np.ndarray[Any, np.dtype[np.float64]]

LAYERS, FOLDS, BATCH, TAUGHT = 8, 5, 32, 400
SHUFFLES = 3
LAYER = "layer "
"""How arms begin, before the number of states: 0 is the embedding."""
RIDGE = 0.1
"""Times the mean eigenvalue of the standardised states' second moments."""


def measure(subject: Subject, material: Material, progress: Progress = SILENT) -> Measured:
    forget, retain = material.forget, material.items("retain_vqa", TAUGHT)
    loaded = subject.load()
    states = hidden_states(loaded, [*forget, *retain], progress)
    texts = _Bags([*forget, *retain])
    shuffled = [_shuffled(retain, seed) for seed in range(SHUFFLES)]
    arms, kept, chance = {}, {}, {}
    for layer, found in states.items():
        name = f"{LAYER}{layer}"
        asked, taught = found[: len(forget)], found[len(forget) :]
        arms[name] = Values.of(forget, texts.right(forget, _read(taught, texts.answers(retain), asked)))
        kept[name] = Values.of(retain, _by_folds(taught, texts.answers(retain), retain, texts))
        wrong = [texts.answers(retain)[order] for order in shuffled]
        chance[name] = float(np.mean([texts.right(forget, _read(taught, each, asked)) for each in wrong]))
        chance[f"kept {name}"] = float(np.mean([_by_folds(taught, each, retain, texts) for each in wrong]))
    return Measured(arms, kept, chance, {"taught": len(retain), "words": len(texts.words)})


def hidden_states(loaded: Loaded, items: Sequence[Item], progress: Progress = SILENT) -> dict[int, Array]:
    """Layer -> `[N, hidden]` state of each item at the last token that all its options share."""
    import torch

    cache: dict[Any, Any] = {}
    choices = [prefix.encode(loaded, option_samples(item), cache) for item in items]
    device, rows = next(loaded.model.parameters()).device, dict[int, list[Array]]()
    with eval_mode(loaded.model), torch.no_grad(), progress.stage("hidden states", len(items)) as advance:
        for start in range(0, len(items), BATCH):
            some = choices[start : start + BATCH]
            batch = loaded.backbone.collate(loaded.processor, [c.samples[0] for c in some], cache=cache)
            mask = batch["attention_mask"]
            # the place of the shared-th token among those that are no padding
            places = ((mask.cumsum(dim=1) == torch.tensor([c.shared for c in some])[:, None]) & (mask > 0)).int()
            inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
            output = loaded.model(**inputs, output_hidden_states=True, use_cache=False, logits_to_keep=1)
            where = torch.arange(len(some)), places.argmax(dim=1)
            last = len(output.hidden_states) - 1  # 0 is the embedding, which has seen no picture
            for layer in range(last, 0, -max(1, -(-last // LAYERS))):
                state = output.hidden_states[layer].cpu()[where].double().numpy()
                rows.setdefault(layer, []).append(state)
            advance(len(some))
    return {layer: np.concatenate(rows[layer]) for layer in sorted(rows)}


class _Bags:
    """Answers as bags of words: counts, over the words of all options."""

    def __init__(self, items: Sequence[Item]) -> None:
        known = sorted({word for item in items for text in (item.options or {}).values() for word in _words(text)})
        self.words = {word: place for place, word in enumerate(known)}
        self._mean = self.answers(items).mean(axis=0)

    def _bag(self, text: str) -> Array:
        bag = np.zeros(len(self.words))
        for word in _words(text):
            bag[self.words[word]] += 1
        return bag

    def answers(self, items: Sequence[Item]) -> Array:
        """`[N, words]` of the right options."""
        return np.stack([self._bag((item.options or {})[item.gold]) for item in items])

    def right(self, items: Sequence[Item], predicted: Array) -> list[float]:
        """Whether the option closest to `[N, words]` predicted bags, by cosine around the mean answer, is right."""
        found = []
        for item, bag in zip(items, predicted - self._mean, strict=True):
            options = {letter: self._bag(text) - self._mean for letter, text in (item.options or {}).items()}
            closeness = {letter: float(bag @ o) / (float(np.linalg.norm(o)) or 1.0) for letter, o in options.items()}
            found.append(float(max(closeness, key=lambda letter: closeness[letter]) == item.gold))
        return found


def _words(text: str) -> list[str]:
    return normalised(text).split()


def _read(states: Array, targets: Array, asked: Array) -> Array:
    """`[M, words]` what a ridge regression from `[N, hidden]` states to `[N, words]` targets says of `[M, hidden]`."""
    mean, deviation = states.mean(axis=0), states.std(axis=0)
    deviation[deviation < 1e-12] = 1.0
    x, y = (states - mean) / deviation, targets - targets.mean(axis=0)
    moments = x.T @ x
    moments[np.diag_indices_from(moments)] += RIDGE * np.trace(moments) / len(moments) + 1e-9
    weights = np.linalg.solve(moments, x.T @ y)
    return np.asarray((asked - mean) / deviation @ weights + targets.mean(axis=0))


def _by_folds(states: Array, targets: Array, items: Sequence[Item], texts: _Bags) -> list[float]:
    """Whether each item is read right by a probe that was fitted to other people's targets."""
    people = sorted({item.person for item in items})
    fold = np.array([people.index(item.person) % FOLDS for item in items])
    predicted = np.zeros((len(items), len(texts.words)))
    for number in range(FOLDS):
        mine = fold == number
        if mine.any() and not mine.all():
            predicted[mine] = _read(states[~mine], targets[~mine], states[mine])
    return texts.right(items, predicted)


def _shuffled(items: Sequence[Item], seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """`[N]` an order that exchanges items that ask the same."""
    rng, order = np.random.default_rng(seed), np.arange(len(items), dtype=np.int64)
    by_question: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        by_question.setdefault(item.question, []).append(place)
    groups = [places for places in by_question.values() if len(places) > 1]
    groups.append([places[0] for places in by_question.values() if len(places) == 1])
    for places in groups:
        order[places] = rng.permutation(places) if places else places
    return order
