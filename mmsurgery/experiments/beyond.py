"""What goes beyond the paper, and how it is judged (docs/protocol.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from mmsurgery.experiments.paper import MMUNLEARNER, RATIO, masked
from mmsurgery.experiments.rows import Experiment, Row
from mmsurgery.methods.base import Budget

_EQUAL = Budget(batch_size=12, retain_batch=40, epochs=7, rate=2 / 3)
"""The samples and steps of anchored ascent, for methods that know forget and retain samples alone."""
_ANCHORED = Row(key="anchored-ascent", label="anchored ascent", method="anchored_ascent")
_STRANGER = Row(key="stranger", label="stranger distillation", method="stranger_distillation")
_ROBUST = Row(key="robust", label="robust distillation", method="robust_distillation")


def _equal(key: str, label: str, weight: float, mask: Mapping[str, Any] | None = None, pace: float = 1) -> Row:
    """`pace`: learning rate, times that of equal compute; the number of steps is divided by it."""
    method = "ga_diff" if mask is None else "mmunlearner"
    budget = dataclasses.replace(_EQUAL, epochs=round(_EQUAL.epochs / pace), rate=_EQUAL.rate * pace)
    return Row(key=key, label=label, method=method, mask=mask, settings={"forget_weight": weight}, budget=budget)


def _set(row: Row, key: str, label: str, group: str | None = None, **settings: float) -> Row:
    return dataclasses.replace(row, key=key, label=label, group=group, settings={"settings": settings})


def _anchors(row: Row, key: str, label: str, kind: str) -> Row:
    return dataclasses.replace(row, key=key, label=label, group="anchors", anchors=kind)


def _tried() -> Iterator[Row]:
    """What was looked at before anything was judged."""
    yield MMUNLEARNER
    for weight in (0.1, 0.2, 0.4, 1.0, 2.0):
        yield _equal(f"ga-diff-{weight:g}", f"GA_Diff, equal compute, forget loss x {weight:g}", weight)
        yield _equal(f"mmunlearner-{weight:g}", f"MMUnlearner, equal compute, forget loss x {weight:g}", weight, RATIO)
    for pace, words in ((0.5, "half"), (2.0, "twice")):
        yield _equal(f"ga-diff-{words}", f"GA_Diff, forget loss x 0.2, {words} the learning rate", 0.2, None, pace)
        yield _equal(f"mmunlearner-{words}", f"MMUnlearner, forget loss x 1, {words} the learning rate", 1, RATIO, pace)
    for weight in (0.2, 0.4, 0.8):
        yield _set(_ANCHORED, f"anchored-{weight:g}", f"anchored ascent, weight {weight:g}", weight=weight)
    for anchors in (16, 32):
        for shift in (0.3, 0.6):
            label = f"stranger distillation, overshoot {shift:g}, {anchors} anchors"
            yield _set(_STRANGER, f"stranger-{shift:g}-{anchors}", label, overshoot=shift, anchors=anchors)
            label = f"robust distillation, overshoot {shift:g}, {anchors} anchors"
            yield _set(_ROBUST, f"robust-{shift:g}-{anchors}", label, overshoot=shift, anchors=anchors)


TRIED = Experiment(
    name="beyond-tuning",
    title="Beyond the paper: what was tried, on worlds that judge nothing",
    question="With which settings are methods and controls to be compared?",
    rows=tuple(_tried()),
    compared="mmunlearner",
    answers=False,
    first=1000,
    worlds=True,
)


def _masked_ascent(key: str, label: str, **mask: Any) -> Row:
    return dataclasses.replace(_ANCHORED, key=key, label=label, mask={**RATIO, **mask}, settings={"scope": "all"})


BEYOND = Experiment(
    name="beyond",
    title="Beyond the paper: methods that know anchors",
    question="Does a method beat MMUnlearner, also at equal compute, and does its mask matter?",
    rows=(
        MMUNLEARNER,
        masked("random", "random weights", control="random"),
        Row(key="ga_diff", label="GA_Diff", method="ga_diff"),
        _equal("mmunlearner-equal", "MMUnlearner, equal compute", 1.0, RATIO),
        _equal("ga-diff-equal", "GA_Diff, equal compute", 0.1),
        _ANCHORED,
        _set(_ANCHORED, "no-anchors", "anchored ascent without anchors", anchors=0),
        _masked_ascent("ascent-masked", "anchored ascent, paper's mask"),
        _masked_ascent("ascent-random", "anchored ascent, random mask", control="random"),
        _STRANGER,
        _ROBUST,
    ),
    compared="mmunlearner",
    answers=False,
    audit=True,
    first=2000,
    worlds=True,
)
"""See docs/protocol.md."""


def _again(name: str, title: str, question: str, *rows: Row) -> Experiment:
    """Rows of `BEYOND`, whose runs are found, and others, held against the first."""
    return dataclasses.replace(
        BEYOND, name=name, title=title, question=question, rows=rows, compared=rows[0].key, audit=False
    )


BEYOND_EQUAL = _again(
    "beyond-equal",
    "Beyond the paper: against the best that was found for the paper's methods",
    "Is it the method that gains, or more data, gentler and more steps?",
    _equal("mmunlearner-slow", "MMUnlearner, equal samples a step, half the rate", 1.0, RATIO, 0.5),
    BEYOND.row("mmunlearner-equal"),
    _equal("ga-diff-0.2", "GA_Diff, equal compute, forget loss x 0.2", 0.2),
    _equal("ga-diff-slow", "GA_Diff, equal samples a step, half the rate", 0.2, None, 0.5),
    *map(BEYOND.row, ("ga-diff-equal", "anchored-ascent", "no-anchors", "stranger", "robust")),
)
BEYOND_MASKS = _again(
    "beyond-masks",
    "Beyond the paper: does anchored ascent need its mask?",
    "Does the paper's mask keep more than a random one, or than none?",
    *map(BEYOND.row, ("ascent-masked", "ascent-random", "anchored-ascent")),
)


def _parts() -> Iterator[Row]:
    yield _ROBUST
    for key in ("mmunlearner-slow", "ga-diff-slow"):
        yield dataclasses.replace(BEYOND_EQUAL.row(key), group="equal samples")
    for kind, label in (("other-world", "faces of another world"), ("few", "a tenth of the faces")):
        yield _anchors(_ROBUST, kind, f"anchors: {label}", kind)
    yield _anchors(_ROBUST, "unrelated", "anchors: pictures without faces", "unrelated")
    yield _set(_ROBUST, "no-anchors", "no anchor term", "terms", anchors=0)
    yield _set(_ROBUST, "no-text", "no text term", "terms", text=0)
    yield dataclasses.replace(
        _ROBUST, key="retain-4", label="4 retain samples a step", group="terms", settings={"retain_batch": 4}
    )
    for shift in (0.0, 0.6):
        yield _set(_ROBUST, f"overshoot-{shift:g}", f"overshoot {shift:g}", "attacks", overshoot=shift)
    yield _set(_ROBUST, "no-pixels", "no step in pixels", "attacks", pixels=0)
    yield _set(_ROBUST, "no-relearning", "no step in weights", "attacks", relearning=0)
    yield _set(_ROBUST, "neither", "neither step", "attacks", pixels=0, relearning=0)


BEYOND_ABLATIONS = Experiment(
    name="beyond-ablations",
    title="Beyond the paper: what each part of robust distillation does",
    question="Which of anchors, text, retain samples, overshoot and the two attacks make the difference?",
    rows=tuple(_parts()),
    compared="robust",
    answers=False,
    audit=True,
    first=2000,
    worlds=True,
)
