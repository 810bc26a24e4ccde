"""Multiple choice by the likelihood of the options.

Protocol `likelihood`: the prompt is the backbone's rendering of the question with its picture, nothing
added, no options listed. Each option's text is put as the answer, followed by the family's end token;
its score is the mean log-probability, in nats per token, of answer and end token under teacher forcing
(the argmax of Eq. 9 over option strings, normalised by length). The option of the greatest score is
the prediction, the first in stored order among equal ones. Equal option texts are scored once.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmsurgery.data.samples import Item, Sample
from mmsurgery.errors import UnusableData
from mmsurgery.evaluate import prefix
from mmsurgery.evaluate.remembered import Remembered
from mmsurgery.methods.step import Answers
from mmsurgery.provenance import sha256_json
from mmsurgery.workspace import SILENT, Progress

if TYPE_CHECKING:
    import torch

    from mmsurgery.backbones.loading import Loaded

BUDGET = 4096
"""Tokens of one pass, prefixes included: what bounds memory."""
TOLERANCE = {4: 1e-4, 2: 5e-2}
"""Bytes of a weight -> largest difference, nats per token, that scores from shared prefixes may have."""


@dataclass(frozen=True)
class ItemScore:
    """One scored item."""

    id: str
    person: str
    column: str
    prompt_sha256: str
    """Digest of the rendered prompt and the picture."""
    options: dict[str, float]
    """Letter -> mean log-probability of the option, nats per token, in stored order."""
    gold: str
    """Letter of the right option."""

    @property
    def predicted(self) -> str:
        """Letter of the option of the greatest score, the first among equal ones."""
        return max(self.options, key=lambda letter: self.options[letter])

    @property
    def tied(self) -> bool:
        """Whether another option has the same score as the predicted one."""
        return list(self.options.values()).count(self.options[self.predicted]) > 1

    @property
    def correct(self) -> bool:
        return self.predicted == self.gold

    @property
    def value(self) -> float:
        """1 or 0 for right or wrong."""
        return float(self.correct)


def score(
    loaded: Loaded,
    items: Sequence[Item],
    *,
    budget: int = BUDGET,
    cache: dict[Any, Any] | None = None,
    remembered: Remembered | None = None,
    what: str = "scoring",
    progress: Progress = SILENT,
) -> list[ItemScore]:
    """Score multiple-choice items, in their order; the scores do not depend on `budget`.

    Prompts and pictures that items share are encoded once (`prefix`). On the first item of each kind
    this is compared with rows of their own; a family for which it does not hold is scored row by row.

    Args:
        budget: largest number of tokens of one pass.
        cache: a dictionary kept between calls with the same processor, see `Backbone.collate`.
        remembered: kept between calls with the same model.
        what: name of the stage that `progress` shows.

    Raises:
        UnusableData: naming the item, for a score that is not finite, an item without options or with
            another gold letter than they have, or an option that the backbone cannot encode.
    """
    import torch

    cache = {} if cache is None else cache
    remembered = remembered or Remembered(loaded)
    with eval_mode(loaded.model), torch.no_grad(), progress.stage(what, len(items)) as advance:
        choices = [prefix.encode(loaded, option_samples(item), cache) for item in items]
        scores: dict[int, list[float]] = {}
        common: dict[str, Any] = {"budget": budget, "cache": cache, "remembered": remembered}
        if prefixes_hold(loaded, choices, cache, remembered):
            scored = prefix.score(loaded, choices, **common)
        else:
            progress.note(f"{loaded.backbone.title} cannot continue from shared prefixes: scoring row by row")
            scored = row_scores(loaded, choices, **common)
        for place, values in scored:
            _check_finite(items[place], values)
            scores[place] = values
            advance(1)
    return [
        _item_score(item, choice, scores[place], prompt_sha256(loaded, item, cache))
        for place, (item, choice) in enumerate(zip(items, choices, strict=True))
    ]


def option_samples(item: Item) -> list[Sample]:
    """The item's question with each of its option texts as the answer, equal texts once.

    Raises:
        UnusableData: if it has no options, or its gold letter is none of theirs.
    """
    if not item.options or item.gold not in item.options:
        raise UnusableData(
            f"item {item.id} has no options with gold letter {item.gold!r}",
            "give the item options, one of them its gold letter",
        )
    return [
        Sample(item.id, item.person, item.question, image_bytes=item.image_bytes, answer=text)
        for text in dict.fromkeys(item.options.values())
    ]


def row_scores(
    loaded: Loaded,
    choices: Sequence[prefix.Choice],
    *,
    budget: int,
    cache: dict[Any, Any],
    remembered: Remembered | None = None,
) -> Iterator[tuple[int, list[float]]]:
    """As `prefix.score`, every option a whole row of its own; rows of similar length together."""
    remembered = remembered or Remembered(loaded)
    order = sorted(range(len(choices)), key=lambda place: max(len(row.ids) for row in choices[place].rows))
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and _tokens([choices[place] for place in order[start : stop + 1]]) <= budget:
            stop += 1
        places = order[start:stop]
        samples = [sample for place in places for sample in choices[place].samples]
        batch = loaded.backbone.collate(loaded.processor, samples, cache=cache)
        device = next(loaded.model.parameters()).device
        with remembered.pictures(samples, cache):
            answers = Answers.of(loaded.model, {name: value.to(device) for name, value in batch.items()}, samples)
        values = iter((-answers.nll()).tolist())
        yield from [(place, [next(values) for _ in choices[place].samples]) for place in places]
        start = stop


def _tokens(choices: Sequence[prefix.Choice]) -> int:
    rows = [row for choice in choices for row in choice.rows]
    return len(rows) * max(len(row.ids) for row in rows)


def look_at_prefixes(loaded: Loaded, items: Sequence[Item], cache: dict[Any, Any], remembered: Remembered) -> None:
    """Have it remembered whether prefixes may be shared, as `score` of these items does."""
    import torch

    places = [place for some in _probes([item.image_sha256 for item in items]).values() for place in some]
    choices = [prefix.encode(loaded, option_samples(items[place]), cache) for place in places]
    with eval_mode(loaded.model), torch.no_grad():
        prefixes_hold(loaded, choices, cache, remembered)


def prefixes_hold(
    loaded: Loaded,
    choices: Sequence[prefix.Choice],
    cache: dict[Any, Any],
    remembered: Remembered | None = None,
) -> bool:
    """Whether scores from shared prefixes equal those of whole rows, on the first picture asked about
    more than once (two questions of it), else the first picture, and on the first text question. What is remembered
    of the model is not compared again."""
    remembered = remembered or Remembered(loaded)
    probes = _probes([choice.samples[0].image_sha256 for choice in choices])
    for pictured, places in probes.items():
        if pictured not in remembered.prefixes_hold:
            chosen = [choices[place] for place in places]
            remembered.prefixes_hold[pictured] = _agree(loaded, chosen, cache, remembered)
    return all(remembered.prefixes_hold[pictured] for pictured in probes)


def _probes(pictures: Sequence[str | None]) -> dict[bool, list[int]]:
    """Whether with a picture -> places of the questions to look at, of questions with these pictures."""
    texts = [place for place, picture in enumerate(pictures) if picture is None]
    about: dict[str, list[int]] = {}
    for place, picture in enumerate(pictures):
        if picture is not None:
            about.setdefault(picture, []).append(place)
    pictured = max(about.values(), key=lambda places: min(len(places), 2), default=[])
    return {kind: places for kind, places in ((False, texts[:1]), (True, pictured[:2])) if places}


def _agree(loaded: Loaded, probes: Sequence[prefix.Choice], cache: dict[Any, Any], remembered: Remembered) -> bool:
    shared = dict(prefix.score(loaded, probes, budget=BUDGET, cache=cache, remembered=remembered))
    tolerance = TOLERANCE[min(4, next(loaded.model.parameters()).element_size())]
    rows = row_scores(loaded, probes, budget=BUDGET, cache=cache, remembered=remembered)
    return all(abs(a - b) <= tolerance for place, values in rows for a, b in zip(values, shared[place], strict=True))


@contextlib.contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout inside; the mode is put back after."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _check_finite(item: Item, values: Sequence[float]) -> None:
    if not all(math.isfinite(value) for value in values):
        raise UnusableData(
            f"item {item.id} of column {item.column}: the model's scores are not finite", "use another checkpoint"
        )


def prompt_sha256(loaded: Loaded, item: Item, cache: dict[Any, Any]) -> str:
    """Digest of an item's rendered prompt and its picture."""
    _, known = cache.setdefault((prompt_sha256, id(loaded.processor)), (loaded.processor, {}))
    key = (item.question, item.image_sha256)
    if key not in known:
        prompt = loaded.backbone.render(loaded.processor, item.question, None, image=key[1] is not None)
        known[key] = sha256_json([prompt, key[1]])
    return str(known[key])


def _item_score(item: Item, choice: prefix.Choice, values: Sequence[float], prompt: str) -> ItemScore:
    by_text = {sample.answer: value for sample, value in zip(choice.samples, values, strict=True)}
    options = {letter: by_text[text] for letter, text in (item.options or {}).items()}
    return ItemScore(item.id, item.person, item.column, prompt, options, item.gold)
