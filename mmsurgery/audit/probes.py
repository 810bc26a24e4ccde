"""The probes by name, in the order of the card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mmsurgery.audit import collateral, membership, paraphrase, probing, quantisation, relearning, sampling
from mmsurgery.audit.material import Material
from mmsurgery.audit.measured import Measured
from mmsurgery.audit.subjects import Subject
from mmsurgery.errors import unknown
from mmsurgery.workspace import Progress


@dataclass(frozen=True)
class Probe:
    name: str
    title: str
    asks: str
    """Its question, in a line."""
    measure: Callable[[Subject, Material, Progress], Measured]
    version: int = 1
    """Raised when its numbers change, so that earlier ones are measured anew."""
    beside: tuple[str, ...] = ()
    """What its numbers depend on besides the model and the data: `learning_rate` of the recipe, another model."""


PROBES = {
    probe.name: probe
    for probe in (
        Probe(
            "relearning",
            "Relearning",
            "Does a little fine-tuning bring it back?",
            relearning.measure,
            beside=("learning_rate",),
        ),
        Probe(
            "quantisation", "Quantisation", "Does rounding the weights bring it back?", quantisation.measure, version=2
        ),
        Probe("paraphrase", "Paraphrase", "Is it still known when asked otherwise?", paraphrase.measure, version=2),
        Probe("sampling", "Sampling", "Does it come out when asked more than once?", sampling.measure),
        Probe(
            "membership", "Membership", "Can it be told that it was trained on?", membership.measure, beside=("base",)
        ),
        Probe("probing", "Probing", "Do hidden states still hold it?", probing.measure),
        Probe("collateral", "Collateral", "Who else was forgotten?", collateral.measure, beside=("vanilla",)),
    )
}


def chosen(names: str | None) -> list[Probe]:
    """The probes of a comma-separated list, in the card's order; all of them where there is none.

    Raises:
        UsageError: for an unknown one.
    """
    if names is None:
        return list(PROBES.values())
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in PROBES:
            raise unknown("probe", name, PROBES)
    return [probe for probe in PROBES.values() if probe.name in wanted]
