"""The paper's tables and figures, the controls it lacks, its ablations, and the audit of its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmsurgery.experiments.rows import Experiment, Row

MODULES = "lm,connector"
"""Modules of the paper's masks (Table 2, first row)."""
RATIO: Mapping[str, Any] = {"beta": 1.0, "modules": MODULES}
"""The paper's mask (Eq. 7)."""

MMUNLEARNER = Row(key="mmunlearner", label="MMUnlearner", method="mmunlearner", mask=RATIO)
METHODS = (
    Row(key="ga", label="GA", method="ga"),
    Row(key="ga_diff", label="GA_Diff", method="ga_diff"),
    Row(key="kl_min", label="KL_Min", method="kl_min"),
    Row(key="npo", label="NPO", method="npo", settings={"reference": "reference"}),
    MMUNLEARNER,
)
"""The paper's five; NPO with the model fine-tuned on the retain set as its reference, as there."""

TABLE1 = Experiment(
    name="table1",
    title="Table 1: the five methods",
    question="Does MMUnlearner forget pictures and keep text better than the methods it was compared with?",
    rows=METHODS,
    compared="mmunlearner",
)


def masked(key: str, label: str, **mask: Any) -> Row:
    return Row(key=key, label=label, method="mmunlearner", mask={**RATIO, **mask})


def _every_weight(key: str, label: str, modules: str) -> Row:
    return Row(key=key, label=label, method="mmunlearner", mask={"density": 1.0, "modules": modules})


_PLACES = {
    "lm-connector": ("LM + connector", MODULES),
    "vision": ("vision encoder", "vision"),
    "all": ("all modules", "vision,connector,lm"),
}
TABLE2 = Experiment(
    name="table2",
    title="Table 2: which modules are updated",
    question="Where should the mask lie: in the language model and connector, in the vision encoder, or everywhere?",
    rows=(
        *(
            MMUNLEARNER if modules == MODULES else masked(key, f"{label}, masked", modules=modules)
            for key, (label, modules) in _PLACES.items()
        ),
        *(
            _every_weight(f"{key}-every", f"{label}, every weight", modules)
            for key, (label, modules) in _PLACES.items()
        ),
    ),
    compared="mmunlearner",
)

CONTROLS = Experiment(
    name="controls",
    title="Controls: does it matter which weights a mask selects?",
    question="Does the mask of Eq. 7 keep more than no mask, a random one of its density, or a gentler ascent?",
    rows=(
        MMUNLEARNER,
        Row(key="no-mask", label="no mask (GA_Diff)", method="ga_diff"),
        _every_weight("modules-only", "every weight of the mask's modules", MODULES),
        masked("random", "random weights", control="random"),
        masked("inverse", "inverse (lowest ratios)", control="inverse"),
        masked("magnitude", "largest weights", control="magnitude"),
        masked("forget-only", "forget saliency alone", control="forget-only"),
        Row(key="gentle", label="no mask, forget loss x 0.4", method="ga_diff", settings={"forget_weight": 0.4}),
        Row(
            key="gentle-retain",
            label="no mask, forget loss x 0.4, 16 retain samples",
            method="ga_diff",
            settings={"forget_weight": 0.4, "retain_batch": 16},
        ),
    ),
    compared="mmunlearner",
)

FIGURE4 = Experiment(
    name="figure4",
    title="Figure 4: forgetting against utility at three forget ratios",
    question="How does the trade-off change when more people are to be forgotten?",
    rows=METHODS,
    compared="mmunlearner",
    by_ratio=True,
    answers=False,
)

FIGURE5 = Experiment(
    name="figure5",
    title="Figure 5: where each method moves the weights furthest",
    question="Which layers and components hold the n weights that deviate most, n being the mask's count?",
    rows=METHODS,
    compared="mmunlearner",
    deviations=True,
    answers=False,
)
FIGURE6 = Experiment(
    name="figure6",
    title="Figure 6: where each method moves the weights furthest, on every backbone",
    question="Is the pattern of Figure 5 that of the method, or of the model?",
    rows=METHODS,
    compared="mmunlearner",
    every_backbone=True,
    deviations=True,
    answers=False,
)

CASES = Experiment(
    name="cases",
    title="Cases (Tables 3 and 6): the same question answered by every method",
    question="What do the models say, word by word, where it is hardest to forget and hardest to keep?",
    rows=METHODS,
    compared="mmunlearner",
    cases=True,
)

AUDIT = Experiment(
    name="audit",
    title="Audit: does it stay forgotten?",
    question="What do relearning, rounding, other questions, sampling and probes bring back, and what is lost?",
    rows=(*METHODS, *(row for row in CONTROLS.rows if row.key not in ("mmunlearner", "no-mask"))),
    compared="mmunlearner",
    answers=False,
    audit=True,
)


def _ablations() -> Iterator[Row]:
    def varied(group: str, key: str, label: str, mask: Mapping[str, Any] | None = None, **settings: Any) -> Row:
        made = dict(RATIO if mask is None else mask)
        return Row(key=key, label=label, method="mmunlearner", mask=made, settings=settings, group=group)

    yield MMUNLEARNER
    yield varied("estimator", "batch", "squared gradients of batches of 4", {**RATIO, "estimator": "batch"})
    yield varied("estimator", "dataset", "square of the mean gradient (Eq. 4)", {**RATIO, "estimator": "dataset"})
    yield varied("preserve set", "equal", "parts weigh the same", {**RATIO, "mixture": "equal"})
    for key, label, parts in (
        ("literal", "Eq. 6 read literally", "forget_qa,retain_vqa,retain_image_qa"),
        ("forget-text", "forget QA alone", "forget_qa"),
        ("retain-pictures", "retain VQA alone", "retain_vqa"),
    ):
        yield varied("preserve set", key, label, {**RATIO, "preserve": parts})
    for beta in (0.1, 0.3, 3.0, 10.0):
        yield varied("beta", f"beta-{beta:g}", f"beta {beta:g}", {**RATIO, "beta": beta})
    for density in (0.02, 0.05, 0.1, 0.2, 0.5):
        made = {"density": density, "modules": MODULES}
        yield varied("density", f"density-{density:g}", f"{100 * density:g} % of the modules", made)
    yield varied("scope", "scope-all", "nothing outside the mask moves", scope="all")
    yield varied("protocol", "official", "alternating steps (official code)", protocol="official")
    for size in (8, 16):
        yield varied("retain batch", f"retain-{size}", f"{size} retain samples a step", retain_batch=size)
    for weight in (0.2, 0.4, 2.0):
        yield varied("forget weight", f"weight-{weight:g}", f"forget loss x {weight:g}", forget_weight=weight)


ABLATIONS = Experiment(
    name="ablations",
    title="Ablations: estimator, preserve set, beta, density, scope, protocol, weights of the two terms",
    question="Which of the method's choices make a difference?",
    rows=tuple(_ablations()),
    compared="mmunlearner",
    answers=False,
)
