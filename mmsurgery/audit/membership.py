"""Membership: can it be told that the forgotten pictures were trained on? Population attacks, a lower bound of what an
attacker with shadow models can do (Hayes et al., arXiv 2403.01218).

The members are the forget samples, the others are people whom no model has seen (`data.held_out`). Arms, each a score
of a sample's answer under the model:

    loss         mean log-probability of its tokens (Yeom et al., arXiv 1709.01604)
    Min-K        mean of the fifth of its tokens that is least likely (Shi et al., arXiv 2310.16789)
    Min-K++      the same after each token's log-probability is standardised over the vocabulary (arXiv 2404.02936)
    calibrated   `loss` minus that of the base model, which has seen none of them (Watson et al., arXiv 2111.08440)

Value of a member: the share of others whose score is lower; the mean over members is the AUC, 0.5 where nothing can be
told. It is read on both sides: an AUC below gold's tells the forgotten people apart just as well, by what was done to
them. Kept: the same of retained samples, which should stay members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsurgery.audit.material import ASKED, Material
from mmsurgery.audit.measured import Measured, Values
from mmsurgery.audit.subjects import Subject, base
from mmsurgery.data.samples import Sample
from mmsurgery.errors import UnusableData
from mmsurgery.evaluate.scoring import eval_mode
from mmsurgery.methods.step import Answers
from mmsurgery.workspace import SILENT, Progress

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded

BATCH = 32
LEAST = 0.2
"""Share of an answer's tokens that Min-K takes."""
WHY = "no people are known whom no model has seen (see mmsurgery audit --held-out)"


def measure(subject_: Subject, material: Material, progress: Progress = SILENT) -> Measured:
    """
    Raises:
        UnusableData: if there is nobody whom no model has seen.
    """
    others = list(material.held_out.strangers)
    if not others:
        raise UnusableData(WHY, "name a folder of such people: mmsurgery audit --held-out FOLDER")
    forget, retain = spread(material.samples("forget_vqa"), ASKED), spread(material.samples("retain_vqa"), ASKED)
    asked = [*forget, *retain, *others]
    scores = attacks(subject_.load(), asked, progress)
    untried = {}
    if (untaught := base(material.workspace)) is not None:
        scores["calibrated"] = scores["loss"] - attacks(untaught.load(), asked, progress)["loss"]
    else:
        untried["calibrated"] = "there is no base model"
    arms, kept, details = {}, {}, dict[str, Any]()
    for name, found in scores.items():
        mine, theirs, unseen = np.split(found, [len(forget), len(forget) + len(retain)])
        arms[name] = Values.of(forget, placements(mine, unseen))
        kept[name] = Values.of(retain, placements(theirs, unseen))
    details["others"] = {"n": len(others), "people": len({sample.person for sample in others})}
    chance = dict.fromkeys([*arms, *(f"kept {name}" for name in kept)], 0.5)
    return Measured(arms, kept, chance, details, untried, two_sided=True)


def spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    """At most so many samples, evenly spaced in their order."""
    step = max(1.0, len(samples) / most)
    return [samples[int(place * step)] for place in range(min(most, len(samples)))]


def placements(members: np.ndarray[Any, Any], others: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`[M]` for each member's score the share of the others' `[N]` below it, equal ones by half; their mean is the
    AUC (Mann and Whitney)."""
    ordered = np.sort(others)
    below, upto = (np.searchsorted(ordered, members, side) for side in ("left", "right"))
    return np.asarray((below + upto) / (2 * len(ordered)))


def attacks(
    loaded: Loaded, samples: Sequence[Sample], progress: Progress = SILENT
) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """`[N]` score of every sample by `loss`, `Min-K` and `Min-K++`, nats or standard deviations; high: a member."""
    import torch

    found: dict[str, list[float]] = {"loss": [], "Min-K": [], "Min-K++": []}
    device, cache = next(loaded.model.parameters()).device, dict[Any, Any]()
    with eval_mode(loaded.model), torch.no_grad(), progress.stage("membership", len(samples)) as advance:
        for start in range(0, len(samples), BATCH):
            some = samples[start : start + BATCH]
            batch = loaded.backbone.collate(loaded.processor, some, cache=cache)
            answers = Answers.of(loaded.model, {name: value.to(device) for name, value in batch.items()}, some)
            logs = answers.log_probabilities()
            chances = logs.exp()
            mean = (chances * logs).sum(dim=1)
            deviation = ((chances * logs.square()).sum(dim=1) - mean.square()).clamp_min(0).sqrt()
            own = logs.gather(1, answers.targets[:, None])[:, 0]
            standard = (own - mean) / deviation.clamp_min(1e-6)
            for row in range(len(some)):
                mine = answers.owners == row
                count = max(1, round(LEAST * int(mine.sum())))
                found["loss"].append(float(own[mine].mean()))
                found["Min-K"].append(float(own[mine].topk(count, largest=False).values.mean()))
                found["Min-K++"].append(float(standard[mine].topk(count, largest=False).values.mean()))
            advance(len(some))
    return {name: np.array(values) for name, values in found.items()}
