"""Collateral: who else was forgotten? (The collateral forgetting of arXiv 2511.11299, and the near neighbours of arXiv
2511.20196.)

A probe of what is kept alone. Kept arms, each right or not:

    near in looks, near in facts   retained people of whom a forgotten one is among the likest quarter
    far                            the others
    perception                     what the forgotten pictures show whoever it is: a model gone blind is seen here
    text                           text about the forgotten people

Likeness in looks is the cosine between the vanilla model's features of two people's pictures, means over tokens and
pictures; likeness in facts the share of equal answers to equal questions. The details hold for each retained person the
likest forgotten one and both likenesses, and of a model that was unlearned here the person x person drop matrix (see
`one_by_one`). Higher is better; gold's is the goal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsurgery.audit import one_by_one
from mmsurgery.audit.material import EVERY, Material, chance_of
from mmsurgery.audit.measured import Measured, Values
from mmsurgery.audit.subjects import TRIO, Subject, subject
from mmsurgery.data.leakage import normalised
from mmsurgery.data.samples import Item, Sample
from mmsurgery.errors import UnusableData
from mmsurgery.evaluate.features import picture_features
from mmsurgery.evaluate.scoring import score
from mmsurgery.workspace import SILENT, Progress

if TYPE_CHECKING:
    import torch

NEAR = 0.25
"""Share of the retained people who are near."""
ASKED = 400


def measure(subject_: Subject, material: Material, progress: Progress = SILENT) -> Measured:
    retain = material.items("retain_vqa", ASKED)
    people = sorted({item.person for item in retain})
    forgotten = sorted(material.forgotten)
    likeness = {
        "looks": _looks(material, forgotten, people),
        "facts": _facts(material, forgotten, people),
    }
    asked: dict[str, list[Item]] = {}
    near_any: set[str] = set()
    for kind, matrix in likeness.items():
        if matrix is None:
            continue
        order = np.argsort(-matrix.max(axis=0), kind="stable")
        near = {people[place] for place in order[: max(1, round(NEAR * len(people)))]}
        near_any |= near
        asked[f"near in {kind}"] = [item for item in retain if item.person in near]
    asked["far"] = [item for item in retain if item.person not in near_any]
    asked["perception"] = material.items("forget_perception")
    asked["text"] = material.items("forget_qa")
    asked = {name: items for name, items in asked.items() if items}
    every = [item for items in asked.values() for item in items]
    scores = score(subject_.load(), every, what="questions about others", progress=progress)
    scored = iter([item.correct for item in scores])
    kept = {name: Values.of(items, [next(scored) for _ in items]) for name, items in asked.items()}
    right: dict[str, list[bool]] = {}
    for item, each in zip(every, scores, strict=True):
        if item.column == "retain_vqa":
            right.setdefault(item.person, []).append(each.correct)
    details: dict[str, Any] = {
        "people": {
            person: {
                "accuracy": float(np.mean(right[person])),
                **{
                    kind: {
                        "likest": forgotten[int(matrix[:, place].argmax())],
                        "likeness": round(float(matrix[:, place].max()), 4),
                    }
                    for kind, matrix in likeness.items()
                    if matrix is not None
                },
            }
            for place, person in enumerate(people)
        },
        "forgotten": forgotten,
        "likeness": {kind: np.round(matrix, 4).tolist() for kind, matrix in likeness.items() if matrix is not None},
    }
    if subject_.name not in TRIO:
        try:
            details["one by one"] = one_by_one.drops(subject_, material, progress)
        except UnusableData as error:
            details["one by one"] = {"why not": error.what}
    untried = {f"near in {kind}": _WHY[kind] for kind, matrix in likeness.items() if matrix is None}
    return Measured({}, kept, {f"kept {name}": chance_of(items) for name, items in asked.items()}, details, untried)


_WHY = {"looks": "not everybody has a picture to compare", "facts": "no two people were asked the same"}


def _looks(material: Material, forgotten: Sequence[str], people: Sequence[str]) -> np.ndarray[Any, Any] | None:
    """`[F, R]` cosine between people's mean picture features under the vanilla model, around the mean of all."""
    samples = [*material.samples("forget_vqa"), *material.samples("retain_vqa")]
    features = _by_person(picture_features(subject(material.workspace, "vanilla").load(), samples), samples)
    if not {*forgotten, *people} <= features.keys():
        return None
    mean = np.mean(list(features.values()), axis=0)
    units = {person: _unit(vector - mean) for person, vector in features.items()}
    return np.asarray(np.stack([units[p] for p in forgotten]) @ np.stack([units[p] for p in people]).T)


def _unit(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(vector / (np.linalg.norm(vector) or 1.0))


def _by_person(
    features: Mapping[str, torch.Tensor], samples: Sequence[Sample]
) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Person -> `[width]` mean over their pictures."""
    import torch

    pictures: dict[str, dict[str, torch.Tensor]] = {}
    for sample in samples:
        if (key := str(sample.image_sha256)) in features:
            pictures.setdefault(sample.person, {})[key] = features[key]
    return {person: torch.stack(list(each.values())).mean(dim=0).double().numpy() for person, each in pictures.items()}


def _facts(material: Material, forgotten: Sequence[str], people: Sequence[str]) -> np.ndarray[Any, Any] | None:
    """`[F, R]` share of equal answers to the questions that two people are both asked; None where none are."""
    told: dict[str, dict[str, str]] = {}
    for column in ("forget_vqa", "retain_vqa"):
        for item in material.items(column, EVERY):
            told.setdefault(item.person, {})[item.question] = normalised((item.options or {})[item.gold])
    found = np.array([[_agreement(told.get(f, {}), told.get(r, {})) for r in people] for f in forgotten], dtype=float)
    return None if np.isnan(found).all() else np.nan_to_num(found)


def _agreement(first: Mapping[str, str], second: Mapping[str, str]) -> float:
    both = first.keys() & second.keys()
    return sum(first[question] == second[question] for question in both) / len(both) if both else float("nan")
