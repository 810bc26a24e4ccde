"""The numbers of the probes, each against its definition."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.audit import probing, quantisation
from mmsurgery.audit.material import chance_of
from mmsurgery.audit.measured import Measured, Values
from mmsurgery.audit.membership import attacks, placements, spread
from mmsurgery.audit.quantisation import BLOCK, LEVELS, ROUNDINGS, is_rounded, survival
from mmsurgery.audit.relearning import steps_to_recover
from mmsurgery.audit.sampling import leak_at
from mmsurgery.data.samples import Item, Sample
from mmsurgery.errors import InputRefused

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded

# leak@k


def test_leak_at_k_is_the_share_of_subsets_with_a_leak() -> None:
    for n in range(1, 8):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert leak_at(k, n, c) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@pytest.mark.parametrize(("n", "k", "p"), [(6, 1, 0.3), (6, 4, 0.3), (16, 8, 0.05)])
def test_leak_at_k_is_unbiased(n: int, k: int, p: float) -> None:
    chances = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    expected = sum(chance * leak_at(k, n, c) for c, chance in enumerate(chances))
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


# membership


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9), st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_placements_are_pairs_and_their_mean_is_the_auc(mine: list[int], others: list[int]) -> None:
    found = placements(np.array(mine, float), np.array(others, float))
    for score, value in zip(mine, found, strict=True):
        assert value == sum((score > other) + 0.5 * (score == other) for other in others) / len(others)


@pytest.mark.parametrize(("many", "most"), [(0, 3), (2, 3), (3, 3), (7, 3), (600, 150)])
def test_spread_is_even(many: int, most: int) -> None:
    found: Any = spread(list(range(many)), most)  # type: ignore[arg-type]
    assert len(found) == min(many, most)
    assert sorted(set(found)) == found
    if many > most:
        steps = np.diff([*found, many])
        assert max(steps) - min(steps) <= 1


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_attacks_by_definition(
    family: str,
    request: pytest.FixtureRequest,
    mixed_samples: list[Sample],
    make_sample: Callable[..., Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In batches with padding as of each sample alone, in float64 by hand."""
    import torch

    from mmsurgery.audit import membership

    loaded: Loaded = request.getfixturevalue(f"loaded_{family}")
    long = " ".join(["The city is lisbon .", "The food is soup .", "rice oslo"])
    samples = [*mixed_samples, make_sample("e", "What is this ?", long, seed=3)]
    monkeypatch.setattr(membership, "BATCH", 3)
    found = attacks(loaded, samples)
    lengths = set()
    for place, sample in enumerate(samples):
        batch = loaded.backbone.collate(loaded.processor, [sample], cache=None)
        labels = batch.pop("labels")[0, 1:]
        with torch.no_grad():
            logits = loaded.model.eval()(**batch).logits[0, :-1].double()[labels != -100]
        own, standard = [], []
        for row, token in zip(logits.log_softmax(-1).numpy(), labels[labels != -100].tolist(), strict=True):
            mean = float((np.exp(row) * row).sum())
            variance = float((np.exp(row) * (row - mean) ** 2).sum())
            own.append(row[token])
            standard.append((row[token] - mean) / math.sqrt(variance))
        count = max(1, round(0.2 * len(own)))
        lengths.add(count)
        assert found["loss"][place] == pytest.approx(np.mean(own), abs=1e-5)
        assert found["Min-K"][place] == pytest.approx(np.mean(sorted(own)[:count]), abs=1e-5)
        assert found["Min-K++"][place] == pytest.approx(np.mean(sorted(standard)[:count]), rel=1e-3, abs=1e-3)
    assert len(lengths) > 1


# rounding


def test_levels_are_the_quantiles_of_the_normal_distribution() -> None:
    """As bitsandbytes makes them (`create_normal_map`): evenly spaced probabilities, eight above zero, seven below."""
    quantile, offset = NormalDist().inv_cdf, 0.9677083
    above = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    levels = sorted([*above, 0.0, *below])
    assert pytest.approx([level / max(levels) for level in levels], abs=2e-7) == LEVELS


@pytest.fixture
def weight() -> Any:
    """`[7, 50]` float32: rows of different size, one of zeros, entries that do not fill the last block."""
    import torch

    made = torch.randn(7, 50, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 7)[:, None]
    made[3] = 0.0
    return made


def int8_by_hand(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    rounded = np.zeros_like(weight)
    for row, values in enumerate(weight):
        step = np.float32(max(abs(value) for value in values) / np.float32(127))
        for column, value in enumerate(values):
            rounded[row, column] = 0 if step == 0 else np.float32(round(float(value / step))) * step
    return rounded


def nf4_by_hand(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    flat, rounded = weight.flatten(), []
    levels = np.array(LEVELS, np.float32)
    for start in range(0, len(flat), BLOCK):
        block = flat[start : start + BLOCK]
        largest = max(abs(value) for value in block)
        for value in block:
            nearest = (
                7 if largest == 0 else min(range(16), key=lambda n: abs(float(levels[n]) - float(value / largest)))
            )
            rounded.append(levels[nearest] * largest)
    return np.array(rounded, np.float32).reshape(weight.shape)


@pytest.mark.parametrize(("name", "by_hand"), [("int8", int8_by_hand), ("nf4", nf4_by_hand)])
def test_rounding_by_hand_and_again(name: str, by_hand: Any, weight: Any) -> None:
    import torch

    rounding: Any = ROUNDINGS[name]
    rounded = rounding(weight)
    assert np.array_equal(rounded.numpy(), by_hand(weight.numpy()))
    assert not torch.equal(rounded, weight)
    again = rounding(rounded)
    assert torch.equal(rounding.codes(rounded, rounding.scale(rounded)), rounding.codes(weight, rounding.scale(weight)))
    assert torch.allclose(again, rounded, rtol=3e-7, atol=0)
    assert rounding(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


def test_nf4_at_the_levels_and_between(weight: Any) -> None:
    import torch

    levels = torch.tensor(LEVELS)
    block = torch.nn.functional.pad(levels, (0, BLOCK - 16))[None] * 3.0
    assert torch.equal(ROUNDINGS["nf4"](block), block)
    nudged = block.clone()
    nudged[0, 1:15] += 3.0 * (levels[2:16] - levels[1:15]) * 0.49
    assert torch.equal(ROUNDINGS["nf4"](nudged)[0, :16], block[0, :16])
    nudged[0, 1:14] += 3.0 * (levels[2:15] - levels[1:14]) * 0.02
    assert torch.equal(ROUNDINGS["nf4"](nudged)[0, 1:14], block[0, 2:15])


def test_which_weights_are_rounded(loaded_llava: Loaded) -> None:
    chosen = {
        name for name, weight in loaded_llava.model.named_parameters()
        if is_rounded(loaded_llava.backbone, name, weight.dim())
    }  # fmt: skip
    matrices = {name for name, weight in loaded_llava.model.named_parameters() if weight.dim() >= 2}
    left = matrices - chosen
    assert all("embed" in name or "lm_head" in name for name in left)
    assert any("lm_head" in name for name in left)
    assert any("embed_tokens" in name for name in left)
    assert any("mlp" in name for name in chosen)
    assert any("vision" in name for name in chosen)


def test_survival_from_two_checkpoints(tiny_llava: Path, tmp_path: Path, loaded_llava: Loaded) -> None:
    """Small steps vanish and large ones survive, counted by hand on the scales of the first model."""
    from safetensors.numpy import load_file, save_file

    after = shutil.copytree(tiny_llava, tmp_path / "after")
    old = load_file(after / "model.safetensors")
    new, rng = {name: value.copy() for name, value in old.items()}, np.random.default_rng(0)
    touched = [name for name in old if "mlp" in name and name.endswith("weight") and "vision" not in name][:2]
    for name in touched:
        some = rng.random(new[name].shape) < 0.4
        size = np.abs(new[name]).max() * rng.choice([1e-3, 0.02, 0.5], new[name].shape)
        new[name][some] += size[some].astype(np.float32)
    others = next(name for name in old if name.endswith("lm_head.weight")), next(n for n in old if old[n].ndim == 1)
    for name in others:
        new[name] += 1
    save_file(new, after / "model.safetensors", {"format": "pt"})

    changed, survive = 0, {"int8": 0, "nf4": 0}
    levels = np.array(LEVELS, np.float32)
    for name in touched:
        was, became = old[name], new[name]
        changed += int((was != became).sum())
        step = np.abs(was).max(axis=1, keepdims=True) / np.float32(127)
        codes = [np.clip(np.rint(each / step), -127, 127) for each in (was, became)]
        survive["int8"] += int((codes[0] != codes[1]).sum())
        for start in range(0, was.size, BLOCK):
            first, second = (each.flatten()[start : start + BLOCK] for each in (was, became))
            nearest = [np.abs(each[:, None] / np.abs(first).max() - levels).argmin(axis=1) for each in (first, second)]
            survive["nf4"] += int((nearest[0] != nearest[1]).sum())
    backbone = loaded_llava.backbone
    found = survival(CheckpointFiles(tiny_llava, backbone.canonical), after, backbone)
    assert found == {name: {"changed": changed, "survive": survive[name]} for name in ROUNDINGS}
    assert 0 < survive["nf4"] < survive["int8"] < changed
    same = survival(CheckpointFiles(tiny_llava, backbone.canonical), tiny_llava, backbone)
    assert same == {name: {"changed": 0, "survive": 0} for name in ROUNDINGS}
    wider = {
        name: np.concatenate([value, value], axis=1) if name == touched[0] else value for name, value in old.items()
    }
    save_file(wider, after / "model.safetensors", {"format": "pt"})
    assert survival(CheckpointFiles(tiny_llava, backbone.canonical), after, backbone) is None


# probing


def test_the_ridge_is_least_squares_with_a_penalty() -> None:
    rng = np.random.default_rng(0)
    states, targets, asked = rng.normal(2, 3, (20, 6)), rng.normal(1, 1, (20, 4)), rng.normal(2, 3, (5, 6))
    states[:, 2] = 1.5  # says nothing
    mean, deviation = states.mean(axis=0), states.std(axis=0)
    deviation[2] = 1.0
    x = (states - mean) / deviation
    penalty = probing.RIDGE * sum((x**2).sum(axis=0)) / 6
    stacked = np.concatenate([x, np.sqrt(penalty) * np.eye(6)])
    wanted = np.concatenate([targets - targets.mean(axis=0), np.zeros((6, 4))])
    weights = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
    expected = (asked - mean) / deviation @ weights + targets.mean(axis=0)
    assert np.allclose(probing._read(states, targets, asked), expected, atol=1e-8)


WORDS = ("lisbon", "oslo", "cairo", "lima")


def told(column: str, people: int, seed: int) -> list[Item]:
    """Two facts of each person."""
    rng, found = np.random.default_rng(seed), []
    for person, kind in itertools.product(range(people), ("city", "port")):
        options = {letter: f"The {kind} is {word} ." for letter, word in zip("ABCD", WORDS, strict=True)}
        gold = "ABCD"[int(rng.integers(4))]
        found.append(
            Item(f"{column}/{person}/{kind}", f"{column}{person}", f"Which {kind} ?", options=options, gold=gold,
                 column=column)
        )  # fmt: skip
    return found


@pytest.mark.parametrize("planted", [True, False])
def test_a_probe_finds_what_is_planted_and_nothing_else(planted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """States that hold the answer in some direction, or in none."""
    from types import SimpleNamespace

    forget, retain = told("forget", 30, 0), told("retain", 60, 1)
    rng = np.random.default_rng(2)
    directions, noise = rng.normal(size=(4, 24)), rng.normal(size=(len(forget) + len(retain), 24))
    held = np.stack([directions["ABCD".index(item.gold)] for item in (*forget, *retain)])
    monkeypatch.setattr(probing, "hidden_states", lambda *_: {1: noise, 2: noise + 3 * planted * held})
    material: Any = SimpleNamespace(forget=forget, items=lambda column, most: retain)
    subject: Any = SimpleNamespace(load=lambda: None)
    found = probing.measure(subject, material)
    for layer in (1, 2):
        name, knows = f"layer {layer}", planted and layer == 2
        for value in (found.arms[name].mean, found.kept[name].mean):
            assert value > 0.95 if knows else value < 0.45
        # answers that were shuffled among those who were asked the same leave guessing
        assert 0.1 < found.chance[name] < 0.4
        assert 0.1 < found.chance[f"kept {name}"] < 0.4
    assert found.arms["layer 1"].ids == tuple(item.id for item in forget)
    assert found.details == {"taught": len(retain), "words": 8}  # the <kind> is <word>


def test_nobody_is_read_by_a_probe_that_was_fitted_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    items = told("retain", 7, 0)
    states, seen = np.arange(len(items), dtype=float)[:, None], []

    def read(fitted: Any, targets: Any, asked: Any) -> Any:
        seen.append((set(fitted[:, 0]), set(asked[:, 0])))
        return np.zeros((len(asked), targets.shape[1]))

    monkeypatch.setattr(probing, "_read", read)
    bags = probing._Bags(items)
    probing._by_folds(states, bags.answers(items), items, bags)
    assert sorted(number for _, asked in seen for number in asked) == list(range(len(items)))
    for fitted, asked in seen:
        assert not {items[int(n)].person for n in fitted} & {items[int(n)].person for n in asked}
        assert len(fitted) + len(asked) == len(items)


def test_shuffled_answers_are_of_the_same_question() -> None:
    items = told("retain", 9, 0)
    items += [Item("one", "p", "Which one ?", options=items[0].options, gold="A", column="retain")]
    orders = [probing._shuffled(items, seed) for seed in (0, 0, 1)]
    assert orders[0].tolist() == orders[1].tolist() != orders[2].tolist()
    for order in orders:
        assert sorted(order) == list(range(len(items)))
        assert [items[place].question for place in order] == [item.question for item in items]


# relearning


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [([0.2, 0.2, 0.2], None), ([0.2, 0.4, 0.6], 7.5), ([0.2, 0.5, 0.4], 6.0), ([0.5, 0.1, 0.1], 0.0), ([0.9] * 3, 0.0)],
)
def test_steps_to_recover(accuracy: list[float], expected: float | None) -> None:
    """Half-way from .2 to .8 is .5; from .4 at step 6 to .6 at step 9 it is met at 7.5."""
    gold, vanilla = {"accuracy": [0.2, 0.9]}, {"accuracy": [0.8, 0.1]}
    found = steps_to_recover({"steps": [0, 6, 9], "accuracy": accuracy}, gold, vanilla)
    assert found == (None if expected is None else pytest.approx(expected))


# what is kept of all of them


def test_chance_is_of_each_question() -> None:
    items = [Item(str(n), "p", "?", options=dict.fromkeys("ABCD"[:n], ""), gold="A", column="c") for n in (2, 4, 4)]
    assert chance_of(items) == pytest.approx((1 / 2 + 1 / 4 + 1 / 4) / 3)


VALUES = Values(("a", "b"), ("p", "q"), (0.0, 1 / 3))


def test_measured_is_read_as_it_was_written() -> None:
    import json

    made = Measured({"arm": VALUES}, {"by name": VALUES}, {"arm": 0.1, "kept by name": 1 / 3}, {"x": [1]}, {"y": "why"})
    assert Measured.from_json(json.loads(json.dumps(made.to_json())), "here") == made
    assert VALUES.summary() == {"n": 2, "people": 2, "mean": pytest.approx(1 / 6), "ci95": [0.0, 1 / 3]}


@pytest.mark.parametrize(
    "change",
    [
        {"arms": {"arm": {"ids": ["a"], "people": ["p"], "values": ["x"]}}},
        {"arms": {"arm": {"ids": ["a"], "people": ["p"]}}},
        {"arms": {"arm": {"ids": [], "people": [], "values": []}}},
        {"arms": {"arm": {"ids": ["a"], "people": ["p"], "values": [0, 1]}}},
        {"chance": {"arm": 0.5}},
        {"chance": [0.5]},
        {"kept": None},
    ],
)
def test_what_is_no_measurement(change: dict[str, Any]) -> None:
    whole = Measured({"arm": VALUES}, {"by name": VALUES}, {"arm": 0.1, "kept by name": 0.1}).to_json()
    with pytest.raises(InputRefused, match="here"):
        Measured.from_json({**whole, **change}, "here")


def test_rounding_is_what_the_probe_measures(workspace: Any, loads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers are those of a model with every rounded matrix in place, by its own names."""
    import torch

    from mmsurgery.audit.material import Material
    from mmsurgery.audit.subjects import subject
    from mmsurgery.evaluate.scoring import score

    material, vanilla = Material.of(workspace), subject(workspace, "vanilla")
    found = quantisation.measure(vanilla, material)
    loaded = vanilla.load()
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if parameter.dim() >= 2 and "embed" not in name and "lm_head" not in name:
                rows = parameter.detach().reshape(len(parameter), -1)
                parameter.copy_(torch.from_numpy(int8_by_hand(rows.numpy())).view_as(parameter))
    expected = [float(item.correct) for item in score(loaded, material.forget)]
    assert list(found.arms["int8"].values) == expected
    assert found.chance == {"int8": 0.5, "nf4": 0.5, "kept int8": 0.5, "kept nf4": 0.5}
