"""The methods that know anchors: losses against NumPy, and steps of an attacker in pixels and in weights."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from mmsurgery.methods import stranger_distillation
from mmsurgery.methods.anchored import unchanged
from mmsurgery.methods.anchored_ascent import AnchoredAscent
from mmsurgery.methods.attacks import PIXELS, picture_moved, weights_relearning
from mmsurgery.methods.base import Method
from mmsurgery.methods.registry import method
from mmsurgery.methods.robust_distillation import RobustDistillation
from mmsurgery.methods.step import Answers, Passage, References, Step
from mmsurgery.methods.stranger_distillation import StrangerDistillation, distillation, stranger_target

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.data.samples import Sample

Floats = np.ndarray[Any, np.dtype[np.float64]]
COUNTS = (1, 3)
"""Answer tokens of two samples."""


def drawn(seed: int, tokens: int = sum(COUNTS), words: int = 5) -> Floats:
    """Log-probabilities of any kind, some words all but impossible."""
    logits = np.random.default_rng(seed).normal(0, 4, (tokens, words))
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))


def kl(target: Floats, model: Floats) -> Floats:
    return np.asarray((np.exp(target) * (target - model)).sum(axis=-1))


def mean(divergences: Floats) -> float:
    """Over each sample's tokens, then over the two samples."""
    return float((divergences[:1].mean() + divergences[1:].mean()) / 2)


def shifted(stranger: Floats, vanilla: Floats, overshoot: float) -> Floats:
    """p_stranger^(1 + overshoot) / p_vanilla^overshoot, normalised."""
    weights = np.exp(stranger) ** (1 + overshoot) / np.exp(vanilla) ** overshoot
    return np.asarray(np.log(weights / weights.sum(axis=-1, keepdims=True)))


class Fixed:
    """A passage whose answers and references are given."""

    def __init__(self, model: Floats, vanilla: Floats, stranger: Floats | None = None) -> None:
        self.logits = torch.tensor(model, requires_grad=True)
        self.vanilla, self.stranger = vanilla, stranger

    def answers(self) -> Answers:
        owners = torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS))
        return Answers(self.logits, torch.zeros(sum(COUNTS), dtype=torch.int64), owners, torch.tensor(COUNTS))

    def vanilla_log_probabilities(self) -> torch.Tensor:
        return torch.tensor(self.vanilla)

    def stranger_log_probabilities(self) -> torch.Tensor:
        assert self.stranger is not None
        return torch.tensor(self.stranger)


def fixed(*given: Floats) -> Any:
    return Fixed(*given)


def test_what_is_unchanged_is_a_mean_over_samples_of_token_means() -> None:
    model, vanilla = drawn(0), drawn(1)
    expected = mean(kl(vanilla, model))
    assert float(unchanged(fixed(model, vanilla)).detach()) == pytest.approx(expected)
    assert abs(expected - float(kl(vanilla, model).mean())) > 0.01  # over all tokens at once
    assert abs(expected - mean(kl(model, vanilla))) > 0.01  # the other way round


@pytest.mark.parametrize("overshoot", [0.0, 0.6])
def test_the_target_is_a_strangers_and_away_from_what_was_known(overshoot: float) -> None:
    stranger, vanilla = drawn(2), drawn(3)
    target = stranger_target(torch.tensor(stranger), torch.tensor(vanilla), overshoot).numpy()
    np.testing.assert_allclose(target, shifted(stranger, vanilla, overshoot), rtol=1e-9)
    np.testing.assert_allclose(np.exp(target).sum(axis=-1), 1.0)
    if overshoot:
        known = vanilla > stranger + 1e-6  # what the vanilla model says of the forgotten alone gets less likely
        assert (target - stranger)[known].max() < (target - stranger)[~known].min()
    else:
        np.testing.assert_allclose(target, stranger, atol=1e-12)


@pytest.mark.parametrize("overshoot", [0.0, 0.6])
def test_distillation_by_hand(overshoot: float) -> None:
    model, vanilla, stranger = drawn(4), drawn(5), drawn(6)
    target = shifted(stranger, vanilla, overshoot)
    loss = distillation(fixed(model, vanilla, stranger), overshoot)
    assert float(loss.detach()) == pytest.approx(mean(kl(target, model)), rel=1e-9)


@pytest.mark.parametrize("overshoot", [0.0, 0.3, 2.0])
def test_no_loss_is_below_zero_and_none_where_the_model_says_the_target(overshoot: float) -> None:
    for seed in range(20):
        model, vanilla, stranger = drawn(seed), drawn(100 + seed), drawn(200 + seed)
        assert float(unchanged(fixed(model, vanilla)).detach()) > 0
        assert float(distillation(fixed(model, vanilla, stranger), overshoot).detach()) > 0
        there = fixed(shifted(stranger, vanilla, overshoot), vanilla, stranger)
        for loss, passage in (
            (distillation(there, overshoot), there),
            (unchanged(same := fixed(vanilla + 3.0, vanilla)), same),  # logits, whose common part means nothing
        ):
            assert float(loss.detach()) == pytest.approx(0.0, abs=1e-12)
            loss.backward()  # type: ignore[no-untyped-call]
            assert float(passage.logits.grad.abs().max()) < 1e-12


def test_the_gradient_of_distillation_is_bounded_where_ascent_has_no_end() -> None:
    """Softmax minus target: in every token, its entries' sizes add up to at most 2, over samples and tokens."""
    impossible = np.full((sum(COUNTS), 5), -200.0)
    impossible[:, 0] = 0.0
    passage = fixed(impossible, drawn(7), drawn(8))
    distillation(passage, 0.6).backward()  # type: ignore[no-untyped-call]
    shares = np.repeat([1 / (2 * count) for count in COUNTS], COUNTS)
    assert (passage.logits.grad.abs().sum(dim=-1).numpy() <= 2 * shares + 1e-12).all()


# terms


def step(chosen: Method, without: str = "", number: int = 0, seed: int = 0) -> Step:
    """Of given passages, all that the method asks for besides."""
    passages = {
        name: fixed(drawn(10 + place), drawn(20 + place), drawn(30 + place))
        for place, name in enumerate(("forget", "retain", *chosen.beside()))
        if name != without
    }
    forget, retain = passages.pop("forget", None), passages.pop("retain", None)
    return Step(number, torch.nn.Linear(2, 2), forget, retain, passages, seed)


def terms(chosen: Method, given: Step) -> list[tuple[str, float]]:
    return [(term.kind, float(term.loss.detach())) for term in chosen.terms(given)]


def nll(passage: Any) -> float:
    return float(passage.answers().nll().mean().detach())


def test_anchored_ascent_yields_the_ascent_then_all_that_is_kept() -> None:
    chosen = AnchoredAscent(weight=0.25)
    given: Any = step(chosen)
    kept = [mean(kl(passage.vanilla, passage.logits.detach().numpy())) for passage in given.beside.values()]
    assert list(given.beside) == ["anchor_vqa", "text"]
    found = terms(chosen, given)
    assert [kind for kind, _ in found] == ["forget", "retain", "retain", "retain"]
    expected = [-0.25 * nll(given.forget), nll(given.retain), *kept]
    assert [loss for _, loss in found] == pytest.approx(expected)


PLAIN: dict[str, Any] = {"pixels": 0.0}
CASES: dict[str, Method] = {
    "ascent": AnchoredAscent(),
    "stranger": StrangerDistillation(**PLAIN),
    "robust": RobustDistillation(**PLAIN, relearning=0.0, overshoot=0.6),
}


@pytest.mark.parametrize("case", CASES)
def test_forget_comes_before_retain_and_what_is_not_there_is_left_out(case: str) -> None:
    chosen = CASES[case]
    assert [kind for kind, _ in terms(chosen, step(chosen))] == ["forget", "retain", "retain", "retain"]
    assert [kind for kind, _ in terms(chosen, step(chosen, without="forget"))] == ["retain"] * 3
    assert [kind for kind, _ in terms(chosen, step(chosen, without="retain"))] == ["forget", "retain", "retain"]


@pytest.mark.parametrize("case", CASES)
def test_a_size_of_zero_leaves_its_term_out(case: str) -> None:
    chosen: Any = CASES[case]
    assert dict(chosen.beside()) == {"anchor_vqa": 16, "text": 8}
    whole = terms(chosen, step(chosen))
    for name, other in (("anchors", "text"), ("text", "anchor_vqa")):
        less = dataclasses.replace(chosen, **{name: 0})
        assert list(less.beside()) == [other]
        assert len(terms(less, step(less))) == len(whole) - 1
    nothing = dataclasses.replace(chosen, anchors=0, text=0)
    assert nothing.beside() == {}
    assert terms(nothing, step(nothing)) == whole[:2]


def test_distillation_methods_distil_with_their_overshoot() -> None:
    for chosen in (CASES["stranger"], CASES["robust"]):
        given = step(chosen)
        assert isinstance(chosen, StrangerDistillation)
        expected = float(distillation(given.forget, chosen.overshoot).detach())  # type: ignore[arg-type]
        assert terms(chosen, given)[0][1] == pytest.approx(expected)


def test_the_picture_is_moved_by_a_size_of_the_steps_own(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[float] = []

    def moved(passage: Any, size: float) -> Any:
        sizes.append(size)
        return passage

    monkeypatch.setattr(stranger_distillation, "picture_moved", moved)
    chosen = StrangerDistillation(pixels=0.2)
    for number in (0, 0, 1, 2):
        terms(chosen, step(chosen, number=number))
    terms(chosen, step(chosen, seed=1))
    assert sizes[0] == sizes[1]
    assert len(set(sizes)) == 4
    assert all(0 < size < 0.2 for size in sizes)
    terms(dataclasses.replace(chosen, pixels=0.0), step(chosen))
    assert len(sizes) == 5


@pytest.mark.parametrize("nothing", [{"relearning": 0.0}, {"attacked": 0}], ids=str)
def test_without_another_forget_batch_robust_distillation_is_that_of_strangers(nothing: dict[str, Any]) -> None:
    assert RobustDistillation(attacked=3).beside()["forget_vqa"] == 3
    chosen = RobustDistillation(**PLAIN, **nothing)
    assert "forget_vqa" not in chosen.beside()
    plain = StrangerDistillation(**PLAIN, overshoot=chosen.overshoot)
    assert terms(chosen, step(chosen)) == terms(plain, step(plain))


def test_numbers_of_a_step_are_the_same_whenever_it_is_done() -> None:
    def uniform(number: int, seed: int, what: str) -> float:
        return Step(number, None, None, None, seed=seed).uniform(what, 1.0, 3.0)

    found = {
        (number, seed, what): uniform(number, seed, what)
        for number in range(40)
        for seed in (0, 1)
        for what in ("pixels", "relearning")
    }
    assert found == {key: uniform(*key) for key in found}
    assert len(set(found.values())) == len(found) == 160
    assert 1.0 <= min(found.values()) < 1.2
    assert 2.8 < max(found.values()) <= 3.0
    assert float(np.mean(list(found.values()))) == pytest.approx(2.0, abs=0.2)
    assert uniform(0, 0, "pixels") == pytest.approx(2.93185265437889, rel=1e-12)  # on every machine
    assert Step(0, None, None, None).uniform("pixels", 0.0, 0.0) == 0.0


# attacks


@pytest.fixture(params=["loaded_llava", "loaded_qwen2_vl"])
def loaded(request: pytest.FixtureRequest) -> Loaded:
    """A model of each family that may be changed."""
    found: Loaded = request.getfixturevalue(request.param)
    return dataclasses.replace(found, model=copy.deepcopy(found.model))


@pytest.fixture
def pictured(make_sample: Callable[..., Sample]) -> list[Sample]:
    return [
        make_sample("a", "What is the city of this person ?", "The city is lisbon .", seed=1, width=56),
        make_sample("b", "Which food ?", "rice", seed=2, width=40),
    ]


@pytest.fixture
def passage(loaded: Loaded, pictured: list[Sample]) -> Passage:
    batch = loaded.backbone.collate(loaded.processor, pictured)
    return Passage(loaded.model, batch, pictured, (0, 1), References())


def loss(passage: Passage) -> float:
    with torch.no_grad():
        return float(passage.answers().nll().mean())


def bits(model: Any) -> dict[str, bytes]:
    return {name: weight.detach().clone().view(torch.uint8).numpy().tobytes() for name, weight in weights(model)}


def weights(model: Any) -> Iterator[tuple[str, Any]]:
    yield from model.named_parameters()


def leave_gradients(model: Any) -> dict[str, torch.Tensor]:
    """Something accumulated at every weight, as a term before leaves it."""
    for place, (_, weight) in enumerate(weights(model)):
        weight.grad = torch.full_like(weight, 1.0 + place)
    return {name: weight.grad.clone() for name, weight in weights(model)}


def test_a_picture_is_moved_towards_its_answer_and_nothing_else_is(passage: Passage) -> None:
    model, before = passage.model, loss(passage)
    kept = {name: value.clone() for name, value in passage.batch.items()}
    gradients, weights_before = leave_gradients(model), bits(model)
    moved = picture_moved(passage, 1e-3)
    assert loss(moved) < before
    assert loss(picture_moved(passage, -1e-3)) > before
    assert set(moved.batch) == set(passage.batch)
    for name, value in passage.batch.items():
        assert value.equal(kept[name]), name
        assert moved.batch[name].equal(value) == (name != PIXELS), name
        assert not value.requires_grad, name
    assert not moved.batch[PIXELS].requires_grad
    steps = (moved.batch[PIXELS] - passage.batch[PIXELS]).abs()
    torch.testing.assert_close(steps.max(), torch.tensor(1e-3), rtol=1e-3, atol=0.0)
    assert float((steps > 5e-4).float().mean()) > 0.5
    assert (moved.samples, moved.indices, moved.model) == (passage.samples, passage.indices, passage.model)
    assert bits(model) == weights_before
    assert all(weight.grad.equal(gradients[name]) for name, weight in weights(model))


def test_a_picture_is_moved_where_nothing_that_sees_it_is_trained(passage: Passage) -> None:
    """As with a mask of the language model alone."""
    expected = picture_moved(passage, 0.1).batch[PIXELS]
    passage.model.requires_grad_(False)
    assert picture_moved(passage, 0.1).batch[PIXELS].equal(expected)
    assert picture_moved(passage, 0.0).batch[PIXELS].equal(passage.batch[PIXELS])


def test_a_moved_picture_is_a_passage_to_learn_from(passage: Passage) -> None:
    picture_moved(passage, 0.1).answers().nll().mean().backward()  # type: ignore[no-untyped-call]
    assert any(weight.grad is not None and bool(weight.grad.any()) for _, weight in weights(passage.model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_relearn_inside_and_have_their_old_bits_after(passage: Passage, dtype: torch.dtype) -> None:
    model, size = passage.model.to(dtype), 1e-4 if dtype == torch.float32 else 2e-3
    gradients, before, known = leave_gradients(model), bits(model), loss(passage)
    old = {name: weight.detach().float().clone() for name, weight in weights(model)}
    with weights_relearning(model, passage, size):
        assert loss(passage) < known
        moved = {name: weight.detach().float() - old[name] for name, weight in weights(model)}
        assert sum(bool(each.any()) for each in moved.values()) > len(moved) / 2
        if dtype == torch.float32:
            assert max(float(each.abs().max()) for each in moved.values()) == pytest.approx(size, rel=1e-2)
        assert all(weight.grad.equal(gradients[name]) for name, weight in weights(model))
    assert bits(model) == before
    assert all(weight.grad.equal(gradients[name]) for name, weight in weights(model))
    assert loss(passage) == known


def test_weights_are_put_back_whatever_happens_inside(passage: Passage) -> None:
    before = bits(passage.model)

    def interrupted() -> None:
        with weights_relearning(passage.model, passage, 0.1):
            assert bits(passage.model) != before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert bits(passage.model) == before


def test_frozen_weights_and_those_that_play_no_part_stay(
    loaded: Loaded, passage: Passage, make_sample: Callable[..., Sample]
) -> None:
    text = [make_sample("t", "Which food ?", "rice")]
    spoken = Passage(loaded.model, loaded.backbone.collate(loaded.processor, text), text, (0,), References())
    groups = {name: address.group for name, address in loaded.addresses.items()}
    for name, weight in weights(loaded.model):
        weight.requires_grad_(groups[name] != "lm")
    before = dict(bits(loaded.model))
    with weights_relearning(loaded.model, passage, 0.01):
        moved = {groups[name] for name, each in bits(loaded.model).items() if each != before[name]}
    assert moved == {"vision", "connector"}
    loaded.model.requires_grad_(True)
    with weights_relearning(loaded.model, spoken, 0.01):
        moved = {groups[name] for name, each in bits(loaded.model).items() if each != before[name]}
    assert moved == {"lm"}
    assert bits(loaded.model) == before


# robust distillation on a model


@pytest.fixture
def robust(loaded: Loaded, passage: Passage, make_sample: Callable[..., Sample]) -> Step:
    """A forget batch, and two others to be relearnt from and kept."""
    words = int(loaded.model.get_output_embeddings().weight.shape[0])

    def distributions(seed: int, of: Passage) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        counts = of.answers().counts.tolist()
        drawn = (torch.randn(count, words, generator=generator).log_softmax(-1) for count in counts)
        return dict(zip((sample.id for sample in of.samples), drawn, strict=True))

    others = [
        make_sample("c", "Which city ?", "The city is oslo .", seed=3),
        make_sample("d", "Which ?", "soup", seed=4),
    ]
    learnt = Passage(loaded.model, loaded.backbone.collate(loaded.processor, others), others, (2, 3), References())
    known = References(vanilla=distributions(0, passage), stranger=distributions(1, passage))
    forget = dataclasses.replace(passage, references=known)
    return Step(4, loaded.model, forget, learnt, {"forget_vqa": learnt}, seed=7)


def test_the_forget_term_is_that_of_weights_which_have_begun_to_relearn(robust: Step) -> None:
    chosen = RobustDistillation(anchors=0, text=0, relearning=0.02)
    assert robust.forget is not None
    before = bits(robust.model)
    plain = next(iter(dataclasses.replace(chosen, relearning=0.0).terms(robust))).loss
    size = robust.uniform("relearning", 0.0, 0.02)
    with weights_relearning(robust.model, robust.beside["forget_vqa"], size):
        moved = picture_moved(robust.forget, robust.uniform("pixels", 0.0, chosen.pixels))
        expected = distillation(moved, chosen.overshoot)
        expected.backward()  # type: ignore[no-untyped-call]
        inside = bits(robust.model)
    gradients = {name: weight.grad.clone() for name, weight in weights(robust.model) if weight.grad is not None}
    robust.model.zero_grad()
    assert abs(float(expected.detach()) - float(plain.detach())) > 1e-4
    found = chosen.terms(robust)
    term = next(found)
    assert term.kind == "forget"
    assert torch.equal(term.loss, expected)
    assert bits(robust.model) == inside != before
    term.loss.backward()  # type: ignore[no-untyped-call]
    assert next(found).kind == "retain"
    assert bits(robust.model) == before
    assert gradients
    for name, weight in weights(robust.model):
        assert (weight.grad is None) == (name not in gradients)
        assert weight.grad is None or weight.grad.equal(gradients[name])


def test_terms_that_are_not_asked_for_to_the_end_leave_the_weights_as_they_were(robust: Step) -> None:
    before = bits(robust.model)
    found = RobustDistillation().terms(robust)
    next(found)
    assert bits(robust.model) != before
    found.close()  # type: ignore[attr-defined]
    assert bits(robust.model) == before


def test_what_the_methods_see_besides() -> None:
    kept = {"anchor_vqa": 16, "text": 8}
    named = {name: method(name) for name in ("anchored_ascent", "stranger_distillation", "robust_distillation")}
    assert [dict(found.beside()) for found in named.values()] == [kept, kept, {**kept, "forget_vqa": 12}]
    assert not any(found.shared() for found in named.values())
    assert all(math.isfinite(value) for found in named.values() for value in found.settings().values())
