"""`inspect --stability`: the mask again from other measurements, and how much of it comes back.

    halves      measured on either half of the people (of the samples where there are too few people)
    estimators  measured by `sample`, `batch` and `dataset`, whatever the mask itself was measured by
    shuffled    forget samples with each other's answers, against the mask itself

Each pair is compared by intersection over union (IoU), beside the IoU that chance gives masks with the
same counts in every tensor. A beta selects very different numbers of weights where the scale of S differs
(fewer people, wrong answers), and IoU then tells of the numbers: `same_count` compares the weights with the
largest ratios, as many from each measurement as the mask has. The result is kept in `stability/MASK.json`.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsurgery.artifacts.checkpoint import CheckpointFiles, model_config
from mmsurgery.artifacts.files import read_json, write_json
from mmsurgery.artifacts.mask import Mask
from mmsurgery.backbones.discovery import backbone
from mmsurgery.data.benchmark import benchmark, source_of
from mmsurgery.data.samples import Sample, data_sha256
from mmsurgery.errors import InputRefused, Mismatch, UnusableData, UsageError
from mmsurgery.masks.inspect import overlap
from mmsurgery.masks.rule import ratio_mask
from mmsurgery.provenance import SCHEMA, check_seal, provenance, seal
from mmsurgery.workspace import ESTIMATORS, SILENT, Progress, Workspace

if TYPE_CHECKING:
    from mmsurgery.artifacts.saliency_map import SaliencyMap
    from mmsurgery.backbones.loading import Loaded

SEED = 0
"""Of the shuffled answers."""
BATCH = 4
"""Samples per unit of estimator `batch`, where the mask was measured by another."""


@dataclass(frozen=True)
class StabilityResult:
    path: Path
    record: dict[str, Any] = field(repr=False)
    up_to_date: bool


def measure_stability(workspace: Workspace, mask_path: Path, *, progress: Progress = SILENT) -> StabilityResult:
    """Rebuild a mask by its own rule from other measurements, and compare.

    Args:
        mask_path: a mask made by `mmsurgery mask` in this workspace, by beta or density.

    Raises:
        UsageError: for a mask of another rule.
        Mismatch: if vanilla or the data are not what the mask was made from.
        UnusableData: if a part has a single sample, or a rebuilt mask selects nothing.
        InputRefused: if mask or model is damaged; a damaged result is made again.
        MachineFault: if memory runs out or the result cannot be written.
    """
    mask = Mask.load(mask_path)
    settings, parts = _rule(mask, mask_path.stem)
    samples = _samples(workspace, mask, parts)
    folder = _vanilla(workspace, mask)
    inputs = {
        "mask": {"content_sha256": mask.content_sha256, "modules": mask.modules},
        "model_sha256": mask.base["model_sha256"],
        "data": {part: data_sha256(found) for part, found in samples.items()},
    }
    origin = provenance("stability", {**settings, "seed": SEED, "threads": workspace.threads}, inputs)
    path = workspace.path("stability", f"{mask_path.stem}.json")
    if path.exists():
        try:
            found = check_seal(read_json(path), str(path), kind="stability")
        except InputRefused as error:
            progress.note(f"{error.what}: measuring again")
        else:
            if found["provenance"].get("key") == origin["key"]:
                return StabilityResult(path, found, True)
            progress.note(f"{path.name} is about another mask of that name: measuring again")
    from mmsurgery.backbones.loading import load
    from mmsurgery.saliency.measure import cpu_threads

    with workspace.lock(), cpu_threads(workspace.threads):
        body = _Stability(load(folder), mask, settings, samples, progress).body()
        record = seal({"schema": SCHEMA, "kind": "stability", "mask": mask_path.stem, **body, "provenance": origin})
        write_json(path, record)
        workspace.journal("stability", mask=mask_path.stem)
    return StabilityResult(path, record, False)


def _rule(mask: Mask, name: str) -> tuple[dict[str, Any], list[str]]:
    """The settings of the mask's rule, and its parts: forget first."""
    recorded = mask.provenance.get("settings")
    settings = recorded if isinstance(recorded, Mapping) else {}
    parts = [str(parent["part"]) for parent in mask.parents if parent.get("kind") == "saliency" and "part" in parent]
    made = mask.provenance.get("command") == "mask" and "control" in settings
    if not (made and mask.rule in ("ratio", "density") and settings["control"] is None and len(parts) > 1):
        raise UsageError(
            f"mask '{name}' (rule {mask.rule}) was not made by beta or density, so it cannot be made again",
            "name a mask that `mmsurgery mask` made; a composed one through its parents",
        )
    keys = ("beta", "density", "per", "mixture", "modules", "estimator", "batch_size")
    return {key: settings[key] for key in keys if key in settings}, parts


def _samples(workspace: Workspace, mask: Mask, parts: Sequence[str]) -> dict[str, list[Sample]]:
    offered, source = benchmark(workspace.settings.benchmark.name), source_of(workspace)
    known = {parent.get("part"): parent.get("data_sha256") for parent in mask.parents}
    samples = {part: offered.samples(source, part) for part in parts}
    for part, found in samples.items():
        if data_sha256(found) != known[part]:
            raise Mismatch(f"the mask was made from other data of {part} than the workspace has", "make the mask again")
        if len(found) < 2:
            raise UnusableData(f"{part} has {len(found)} sample, halves need two", "use a larger part")
    return samples


def _vanilla(workspace: Workspace, mask: Mask) -> Path:
    folder = workspace.existing_model("vanilla")
    digest = CheckpointFiles(folder, backbone(model_config(folder)["model_type"]).canonical).digest()
    if digest != mask.base["model_sha256"]:
        raise Mismatch(
            f"the mask belongs to model {mask.base['model_sha256'][:12]}, vanilla is {digest[:12]}",
            "inspect it in the workspace it was made in",
        )
    return folder


@dataclass
class _Stability:
    loaded: Loaded
    mask: Mask
    settings: dict[str, Any]
    samples: dict[str, list[Sample]]
    progress: Progress

    def body(self) -> dict[str, Any]:
        """The record without what identifies it."""
        own = self._whole(self.settings["estimator"], self.settings["batch_size"])
        built = self._mask(own)
        if built.content_sha256 != self.mask.content_sha256:
            # the same measurement must give the same mask, else differences below would not be those asked about
            self.progress.note("measured here, the mask itself differs in some weights from the file")
        halves, by = self._halves()
        measured = [self._measured(half) for half in halves]
        pairs = [self._pair("halves", "even", "odd", *measured)]
        pairs += self._estimators(own)
        forget, *_ = self.samples
        shuffled = shuffled_answers(self.samples[forget])
        if shuffled is None:
            self.progress.note("most forget samples are of one person: answers cannot be exchanged between people")
        else:
            other = self._measured({forget: shuffled})[forget]
            pairs.append(self._pair("shuffled", "answers", "shuffled", own, {**own, forget: other}))
        return {
            **self.mask.base,
            "split": by,
            "samples": {part: len(found) for part, found in self.samples.items()},
            "rebuilt_iou": overlap(self.mask, built)["iou"],
            "comparisons": pairs,
        }

    def _estimators(self, own: Mapping[str, SaliencyMap]) -> list[dict[str, Any]]:
        measured = {
            estimator: own if estimator == self.settings["estimator"] else self._whole(estimator, BATCH)
            for estimator in ESTIMATORS
        }
        return [
            self._pair("estimators", first, second, measured[first], measured[second])
            for first, second in itertools.combinations(measured, 2)
        ]

    def _pair(
        self, comparison: str, first: str, second: str, one: Mapping[str, SaliencyMap], two: Mapping[str, SaliencyMap]
    ) -> dict[str, Any]:
        masks = [self._mask(maps) for maps in (one, two)]
        inside = sum(self.mask.parameters[name].numel for name in self.mask.in_modules())
        density = self.mask.selected / inside
        equal = [self._mask(maps, density=density) for maps in (one, two)]
        return {
            "comparison": comparison,
            "first": first,
            "second": second,
            "selected": [mask.selected for mask in masks],
            **overlap(*masks),
            "same_count": {"selected": [mask.selected for mask in equal], **overlap(*equal)},
        }

    def _mask(self, maps: Mapping[str, SaliencyMap], density: float | None = None) -> Mask:
        """By the mask's own rule; with a density the largest ratios overall."""
        forget, *preserve = (maps[part] for part in self.samples)
        keys = ("mixture", "modules") if density is not None else ("beta", "density", "per", "mixture", "modules")
        rule: dict[str, Any] = {key: self.settings[key] for key in keys if key in self.settings}
        if density is not None:
            rule["density"] = density
        return ratio_mask(forget, preserve, **rule)

    def _whole(self, estimator: str, batch_size: int | None) -> dict[str, SaliencyMap]:
        return self._measured(self.samples, estimator, batch_size)

    def _measured(
        self, samples: Mapping[str, Sequence[Sample]], estimator: str | None = None, batch_size: int | None = None
    ) -> dict[str, SaliencyMap]:
        from mmsurgery.saliency.measure import measure_saliency

        how = estimator or self.settings["estimator"]
        size = (batch_size if estimator else self.settings["batch_size"]) or BATCH
        return {
            part: measure_saliency(
                self.loaded, found, estimator=how, batch_size=size, part=part, progress=self.progress
            )
            for part, found in samples.items()
        }

    def _halves(self) -> tuple[list[dict[str, list[Sample]]], str]:
        """Even and odd people in their order of appearance; samples where a half of a part would be empty."""
        everyone = list(dict.fromkeys(sample.person for found in self.samples.values() for sample in found))
        place = {person: index for index, person in enumerate(everyone)}
        by_person = [
            {part: [s for s in found if place[s.person] % 2 == odd] for part, found in self.samples.items()}
            for odd in range(2)
        ]
        if all(found for half in by_person for found in half.values()):
            return by_person, "person"
        return [{part: found[odd::2] for part, found in self.samples.items()} for odd in range(2)], "sample"


def shuffled_answers(samples: Sequence[Sample]) -> list[Sample] | None:
    """The samples, each with the answer of another person's sample, drawn by `SEED`; None where one person has
    more than half of them, so that it cannot be.

    A random order of the people, their samples together, turned by the largest number of samples of one person:
    nobody is left with an answer of their own.
    """
    count = Counter(sample.person for sample in samples)
    turn = max(count.values(), default=0)
    if 2 * turn > len(samples):
        return None
    draw = random.Random(SEED)  # noqa: S311
    people = sorted(count)
    draw.shuffle(people)
    order = sorted(range(len(samples)), key=lambda i: (people.index(samples[i].person), draw.random()))
    answers = {i: samples[order[(place + turn) % len(order)]].answer for place, i in enumerate(order)}
    return [replace(sample, answer=answers[i]) for i, sample in enumerate(samples)]
