"""Protocol `official`: the benchmark's own evaluation. The model writes an answer, a parser reads it.

Greedy, 50 new tokens, asked in the benchmark's way (`asking`). Read as the original reads: the first
letter or digit of an answer is the chosen letter; a cloze answer is right if it holds the gold text;
an open answer is compared by ROUGE-L. Differences, on purpose: every picture of a `Test_Set` row is
asked about, not one drawn without a seed, and a letter that is no option is unparsed, not only wrong.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmsurgery.data.leakage import normalised
from mmsurgery.data.samples import Item
from mmsurgery.evaluate.asking import NEW_TOKENS, Asking
from mmsurgery.evaluate.generation import greedy
from mmsurgery.evaluate.remembered import Remembered
from mmsurgery.evaluate.rouge import RougeL, rouge_l
from mmsurgery.evaluate.scoring import eval_mode
from mmsurgery.provenance import sha256_json
from mmsurgery.workspace import SILENT, Progress

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded

BUDGET = 4096
"""Tokens of one batch, answers included: what bounds memory."""


@dataclass(frozen=True)
class Answer:
    """One generated answer."""

    id: str
    person: str
    column: str
    task: str
    """`classification`, `cloze` or `generation`."""
    prompt_sha256: str
    """Digest of the rendered prompt and the picture."""
    raw_output: str
    gold: str
    """The right option's letter, or the gold text."""
    letters: tuple[str, ...] | None = None
    """Letters of the options, for classification."""
    rouge: RougeL | None = None
    """For generation."""

    @property
    def parsed(self) -> str | None:
        """The letter read from the answer; None for none, and for open questions."""
        return None if self.letters is None else read_letter(self.raw_output, self.letters)

    @property
    def correct(self) -> bool | None:
        """Whether the answer counts as right; None for generation."""
        if self.task == "generation":
            return None
        if self.task == "cloze":
            return self.gold.lower() in self.raw_output.lower()
        return self.parsed == self.gold

    @property
    def value(self) -> float:
        """1 or 0 for right or wrong; for generation the F1 of ROUGE-L."""
        return float(bool(self.correct)) if self.rouge is None else self.rouge.f1

    @property
    def whole_words(self) -> bool:
        """Whether the gold text's words stand in the answer one after the other, none as part of a longer one."""
        return f" {normalised(self.gold)} " in f" {normalised(self.raw_output)} "

    @property
    def by_initial(self) -> bool:
        """Whether a letter was read that is only the first of a word: `Architect` counts as A."""
        first = re.match(r"[\W_]*([^\W_]+)", self.raw_output)
        return self.parsed is not None and first is not None and len(first[1]) > 1


def read_letter(output: str, letters: Sequence[str]) -> str | None:
    """The original's parser: the first of `[a-zA-Z0-9]`, in upper case, if it is an option's letter."""
    first = re.sub("[^a-zA-Z0-9]", "", output)[:1].upper()
    return first if first in tuple(letters) else None


def answers(
    loaded: Loaded,
    items: Sequence[Item],
    asking: Asking,
    *,
    demonstrations: Sequence[Item] = (),
    budget: int = BUDGET,
    cache: dict[Any, Any] | None = None,
    remembered: Remembered | None = None,
    what: str = "scoring",
    progress: Progress = SILENT,
) -> list[Answer]:
    """Have items answered and read the answers, in their order.

    Args:
        asking: the benchmark's way of asking.
        demonstrations: solved questions of the items' kind, which stand before each of them.
        budget: largest number of tokens of one batch, see `generation.greedy`.
        cache: a dictionary kept between calls with the same processor, see `Backbone.prompts`.
        remembered: kept between calls with the same model.
        what: name of the stage that `progress` shows.

    Raises:
        as `Asking.wording` and `generation.greedy`.
    """
    solved = [asking.solved(item) for item in demonstrations]
    asked = [dataclasses.replace(item, question=asking.wording(item)) for item in items]
    prompts = [asking.prompt(loaded, item, item.question, solved) for item in asked]
    shown = [[each for each in (*demonstrations, item) if each.image_bytes is not None] for item in asked]
    with eval_mode(loaded.model):
        written = greedy(
            loaded,
            asked,
            prompts,
            shown,
            new_tokens=NEW_TOKENS,
            budget=budget,
            cache={} if cache is None else cache,
            remembered=remembered,
            what=what,
            progress=progress,
        )
    pictures = [item.image_sha256 for item in demonstrations]
    return [
        _answer(item, sha256_json([prompt, item.image_sha256, *([pictures] if pictures else [])]), text)
        for item, prompt, text in zip(items, prompts, written, strict=True)
    ]


def _answer(item: Item, prompt: str, output: str) -> Answer:
    choice = item.task == "classification"
    return Answer(
        item.id,
        item.person,
        item.column,
        item.task,
        prompt,
        output,
        item.gold,
        letters=tuple(item.options or ()) if choice else None,
        rouge=rouge_l(item.gold, output) if item.task == "generation" else None,
    )
