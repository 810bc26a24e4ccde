"""Sampling: does it come out when it is asked more than once? (leak@k, arXiv 2511.04934: greedy answers hide what
sampled ones say.)

Questions about forgotten pictures are answered `DRAWN` times each at temperature `TEMPERATURE`, without options. Of a
question, c of n answers say the right option's fact and no other's (`outcomes.said`); the arm `leak@k` is the
probability that at least one of k answers does, estimated without bias as 1 - C(n - c, k) / C(n, k) (Chen et al., arXiv
2107.03374). Lower is better. Chance is measured, not computed: the mean of the same number for the wrong options, which
is what comes out by guessing alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmsurgery.audit.material import Material
from mmsurgery.audit.measured import Measured, Values
from mmsurgery.audit.subjects import Subject
from mmsurgery.data.samples import Item
from mmsurgery.evaluate.generation import sampled
from mmsurgery.evaluate.outcomes import facts, said
from mmsurgery.evaluate.scoring import eval_mode
from mmsurgery.evaluate.subset import stratified
from mmsurgery.workspace import SILENT, Progress

DRAWN, TEMPERATURE, NEW_TOKENS = 16, 0.8, 16
TRIES = (1, 8)
"""k of leak@k."""
FORGET, RETAIN = 42, 42
"""Most questions about forgotten and about retained people."""


def leak_at(k: int, n: int, c: int) -> float:
    """Probability that k of n answers, drawn without replacement, hold at least one of the c right ones: unbiased for
    k independent answers."""
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def measure(subject: Subject, material: Material, progress: Progress = SILENT) -> Measured:
    forget, retain = stratified(material.forget, FORGET), stratified(material.retain, RETAIN)
    loaded, asked = subject.load(), [*forget, *retain]
    prompts = [loaded.backbone.render(loaded.processor, item.question, None, image=True) for item in asked]
    with eval_mode(loaded.model):
        answers = sampled(
            loaded,
            asked,
            prompts,
            [[item] for item in asked],
            new_tokens=NEW_TOKENS,
            answers=DRAWN,
            temperature=TEMPERATURE,
            seed=0,
            what="answers",
            progress=progress,
        )
    right, wrong = zip(*(_counts(item, texts) for item, texts in zip(asked, answers, strict=True)), strict=True)
    arms, kept, chance = {}, {}, {}
    for k in TRIES:
        name, leaks = f"leak@{k}", [leak_at(k, DRAWN, c) for c in right]
        guesses = [float(np.mean([leak_at(k, DRAWN, c) for c in each])) for each in wrong]
        arms[name], kept[name] = Values.of(forget, leaks[: len(forget)]), Values.of(retain, leaks[len(forget) :])
        chance[name] = float(np.mean(guesses[: len(forget)]))
        chance[f"kept {name}"] = float(np.mean(guesses[len(forget) :]))
    details: dict[str, Any] = {"answers": DRAWN, "temperature": TEMPERATURE}
    return Measured(arms, kept, chance, details)


def _counts(item: Item, texts: Sequence[str]) -> tuple[int, list[int]]:
    """How many answers say the right option's fact alone, and how many each wrong one's."""
    known = facts(item.options or {})
    found = [said(text, known.values()) for text in texts]
    counts = {letter: sum(each == {fact} for each in found) for letter, fact in known.items()}
    return counts.pop(item.gold), list(counts.values())
