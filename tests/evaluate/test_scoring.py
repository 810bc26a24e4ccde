"""Option likelihoods against an independent recomputation, and the laws that scoring keeps."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from notes import Notes

from mmsurgery.data.samples import Item
from mmsurgery.errors import UnusableData
from mmsurgery.evaluate import prefix, scoring
from mmsurgery.evaluate.scoring import ItemScore, option_samples, prefixes_hold, row_scores, score

sys.path.insert(0, str(Path(__file__).parents[1] / "checkers"))

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded

FOUR = {"A": "The city is oslo .", "B": "The city is lisbon .", "C": "oslo", "D": "The city is Anna Berg soup rice ."}


@pytest.fixture(scope="session")
def items(picture: Callable[..., bytes]) -> list[Item]:
    """Pictures asked about once, twice and three times, text questions, options of different length and number."""
    one, two = picture(1), picture(2)

    def item(place: int, question: str, options: dict[str, str], image: bytes | None = None) -> Item:
        return Item(f"i{place}", f"p{place % 3}", question, column="c", options=options, gold="A", image_bytes=image)

    return [
        item(0, "What is the city of this person ?", FOUR, one),
        item(1, "What is the city of Anna Berg ?", FOUR),
        item(2, "Which food ?", {"A": "soup", "B": "rice"}, one),
        # the same question of the same picture: rows share words of the answer across items
        item(3, "What is this ?", {"A": "The city is oslo .", "B": "The city is lisbon ."}, two),
        item(4, "What is this ?", {"A": "The city is soup .", "B": "The city is rice ."}, two),
        # one option is the beginning of another
        item(5, "What is this ?", {"A": "The city", "B": "The city is oslo", "C": "The"}, one),
        item(6, "Which ?", {"A": "oslo"}),
        item(7, "What is this ?", FOUR, picture(3)),
    ]


def scores_of(choices: Iterator[tuple[int, list[float]]]) -> list[list[float]]:
    found = dict(choices)
    return [found[place] for place in sorted(found)]


def encoded(loaded: Loaded, items: list[Item]) -> list[prefix.Choice]:
    return [prefix.encode(loaded, option_samples(item), {}) for item in items]


def test_scores_are_mean_log_probabilities_of_answer_and_end_token(loaded_llava: Loaded, items: list[Item]) -> None:
    from likelihood import option_scores

    for item, scored in zip(items, score(loaded_llava, items), strict=True):
        expected = option_scores(
            loaded_llava.model, loaded_llava.processor, item.question, item.options or {}, item.image
        )
        assert scored.options == pytest.approx(expected, abs=1e-5)
        assert scored.predicted == max(expected, key=expected.__getitem__)
        assert (scored.id, scored.person, scored.gold) == (item.id, item.person, "A")


def test_shared_prefixes_equal_rows_of_their_own(loaded_llava: Loaded, items: list[Item]) -> None:
    import torch

    choices = encoded(loaded_llava, items)
    with torch.no_grad():
        shared = scores_of(prefix.score(loaded_llava, choices, budget=4096, cache={}))
        rows = scores_of(row_scores(loaded_llava, choices, budget=4096, cache={}))
    for one, other in zip(shared, rows, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("budget", [1, 40, 100, 100_000])
def test_scores_do_not_depend_on_the_budget(loaded_llava: Loaded, items: list[Item], budget: int) -> None:
    import torch

    reference = score(loaded_llava, items)
    for one, other in zip(score(loaded_llava, items, budget=budget), reference, strict=True):
        assert one.options == pytest.approx(other.options, abs=1e-5)
        assert (one.predicted, one.prompt_sha256) == (other.predicted, other.prompt_sha256)
    with torch.no_grad():
        rows = scores_of(row_scores(loaded_llava, encoded(loaded_llava, items), budget=budget, cache={}))
    assert [list(item.options.values()) for item in reference] == [pytest.approx(row, abs=1e-5) for row in rows]


def test_scores_do_not_depend_on_order_or_company(loaded_llava: Loaded, items: list[Item]) -> None:
    reference = {item.id: item for item in score(loaded_llava, items)}
    for some in (items[::-1], items[2:5], [items[7]]):
        for item, scored in zip(some, score(loaded_llava, some), strict=True):
            assert scored.id == item.id
            assert scored.options == pytest.approx(reference[item.id].options, abs=1e-5)


def test_a_picture_is_encoded_once(loaded_llava: Loaded, items: list[Item]) -> None:
    import torch

    pictures: list[int] = []
    vision = loaded_llava.model.model.vision_tower
    hook = vision.register_forward_pre_hook(
        lambda module, args, kwargs: pictures.append(len(args[0] if args else kwargs["pixel_values"])),
        with_kwargs=True,
    )
    try:
        with torch.no_grad():
            scores_of(prefix.score(loaded_llava, encoded(loaded_llava, items), budget=4096, cache={}))
    finally:
        hook.remove()
    assert sum(pictures) == 3


def test_words_that_options_share_are_encoded_once(loaded_llava: Loaded, items: list[Item]) -> None:
    """Tokens through the language model: the prompt of 14 with `The city is` once, then `oslo .` and `lisbon .`;
    the end tokens are only predicted. With rows of their own it would be 2 x 20."""
    import torch

    item = dataclasses.replace(items[1], options={"A": "The city is oslo .", "B": "The city is lisbon ."})
    (choice,) = encoded(loaded_llava, [item])
    prompt = ["USER:", "What", "is", "the", "city", "of", "Anna", "Berg", "?", "ASSISTANT:"]
    assert choice.shared == len(prompt) + 3
    assert [len(row.ids) for row in choice.rows] == [len(prompt) + 6] * 2
    seen: list[int] = []
    hook = loaded_llava.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    try:
        with torch.no_grad():
            scores_of(prefix.score(loaded_llava, [choice], budget=4096, cache={}))
    finally:
        hook.remove()
    assert seen == [len(prompt) + 3, 2 * 2]


def test_only_the_tokens_that_are_asked_for_are_predicted(loaded_llava: Loaded, items: list[Item]) -> None:
    """Of a picture what comes next; of the shorter question, whose options begin alike, their first word and what
    comes next, then of both options the end token; of the other question what comes next, then two more tokens each."""
    import torch

    asked = [
        dataclasses.replace(items[0], options={"A": "oslo .", "B": "lisbon ."}),
        dataclasses.replace(items[2], options={"A": "The soup", "B": "The rice"}),
    ]
    seen: list[int] = []
    hook = loaded_llava.model.lm_head.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].shape[:2].numel())
    )
    try:
        with torch.no_grad():
            scores_of(prefix.score(loaded_llava, encoded(loaded_llava, asked), budget=4096, cache={}))
    finally:
        hook.remove()
    assert seen == [1, 2, 2 * 1, 1, 2 * 2]


def test_answers_that_begin_in_the_picture_pass_equal_rows_of_their_own(
    loaded_llava: Loaded, items: list[Item]
) -> None:
    """All options about one picture begin with one word, those of one of its questions with three: the first is
    predicted in the pass of the picture, the others in that of the question. Another picture's rows have as many tokens
    in common, all of the question: what was predicted there is no answer."""
    import torch

    one, two = items[0], items[3]
    asked = [
        dataclasses.replace(two, options={"A": "The city is oslo .", "B": "The city is lisbon ."}),
        dataclasses.replace(two, options={"A": "The soup", "B": "The rice"}),
        dataclasses.replace(
            one, question="What is the city of Anna Berg ?", options={"A": "The city", "B": "The food"}
        ),
        dataclasses.replace(one, question="What is the city of Anna soup ?", options={"A": "oslo", "B": "lisbon"}),
    ]
    choices = encoded(loaded_llava, asked)
    ((length, groups),) = prefix._chunks(loaded_llava, choices, 4096)
    assert (groups, [choice.shared - length for choice in choices]) == ([[0, 1], [2, 3]], [2, 0, 4, 3])
    assert [length - choice.first_answer for choice in choices] == [1, 1, -3, -3]
    with torch.no_grad():
        shared = scores_of(prefix.score(loaded_llava, choices, budget=4096, cache={}))
        rows = scores_of(row_scores(loaded_llava, choices, budget=4096, cache={}))
    for one_by_one, other in zip(rows, shared, strict=True):
        assert one_by_one == pytest.approx(other, abs=1e-5)


def test_equal_option_texts_tie_and_the_first_is_taken(loaded_llava: Loaded, items: list[Item]) -> None:
    item = dataclasses.replace(items[1], options={"D": "oslo", "B": "oslo"}, gold="B")
    (scored,) = score(loaded_llava, [item])
    assert scored.options["D"] == scored.options["B"]
    assert (scored.predicted, scored.tied, scored.correct) == ("D", True, False)


def test_ties_below_the_best_are_no_ties() -> None:
    assert not ItemScore("i", "p", "c", "", {"A": -2.0, "B": -2.0, "C": -1.0}, "A").tied


def test_scores_that_are_not_finite_are_never_scored(loaded_llava: Loaded, items: list[Item]) -> None:
    import torch

    broken = copy.deepcopy(loaded_llava.model)
    with torch.no_grad():
        broken.lm_head.weight[3, 0] = float("nan")
    with pytest.raises(UnusableData, match="item i1 of column c"):
        score(dataclasses.replace(loaded_llava, model=broken), [items[1]])


def test_a_gold_letter_without_option_is_refused(loaded_llava: Loaded, items: list[Item]) -> None:
    with pytest.raises(UnusableData, match=r"item i0 .* 'E'"):
        score(loaded_llava, [dataclasses.replace(items[0], gold="E")])
    with pytest.raises(UnusableData, match="item i0"):
        score(loaded_llava, [dataclasses.replace(items[0], options=None)])


@pytest.mark.parametrize("first", [0, 1], ids=["picture", "text"])
def test_a_family_that_cannot_continue_is_scored_row_by_row(
    loaded_llava: Loaded, items: list[Item], first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong positions after the prefix, as in a family that counts them in its own way."""
    import torch

    some = items[first : first + 1]
    reference, notes = score(loaded_llava, some), Notes()
    extend = prefix._Prefix.extend

    def shifted(self: Any, model: Any, ids: Any, wanted: int) -> Any:
        self.offsets = self.offsets + 5
        return extend(self, model, ids, wanted)

    monkeypatch.setattr(prefix._Prefix, "extend", shifted)
    with torch.no_grad():
        assert not prefixes_hold(loaded_llava, encoded(loaded_llava, some), {})
    (scored,) = score(loaded_llava, some, progress=notes)
    assert scored.options == pytest.approx(reference[0].options, abs=1e-5)
    assert notes.texts == ["LLaVA-1.5 cannot continue from shared prefixes: scoring row by row"]


def test_scoring_leaves_the_model_as_it_was(loaded_llava: Loaded, items: list[Item]) -> None:
    model = copy.deepcopy(loaded_llava.model).train()
    score(dataclasses.replace(loaded_llava, model=model), items[:1])
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_prompt_digests_tell_questions_and_pictures_apart(loaded_llava: Loaded, items: list[Item]) -> None:
    digests = [item.prompt_sha256 for item in score(loaded_llava, items)]
    assert digests[3] == digests[4]
    assert len(set(digests)) == len(digests) - 1


def test_a_cache_of_another_processor_is_not_used(loaded_llava: Loaded, items: list[Item]) -> None:
    """A processor whose template says another word before the answer gives other prompts."""
    cache: dict[Any, Any] = {}
    first = score(loaded_llava, items[:2], cache=cache)
    other = copy.deepcopy(loaded_llava.processor)
    other.chat_template = other.chat_template.replace("'ASSISTANT:'", "'person ASSISTANT:'").replace(
        "{{ message['role'].upper() + ': ' }}",
        "{{ ('person ' if message['role'] == 'assistant' else '') + message['role'].upper() + ': ' }}",
    )
    changed = dataclasses.replace(loaded_llava, processor=other)
    again = score(changed, items[:2], cache=cache)
    assert again == score(changed, items[:2])
    for one, two in zip(first, again, strict=True):
        assert one.prompt_sha256 != two.prompt_sha256
        assert one.options != two.options
    assert score(loaded_llava, items[:2], cache=cache) == first


def test_the_budget_bounds_a_pass(loaded_llava: Loaded, items: list[Item]) -> None:
    import torch

    seen: list[int] = []

    def watch(module: Any, args: Any, kwargs: Any) -> None:
        rows, tokens = kwargs["inputs_embeds"].shape[:2]
        seen.append(rows * (tokens + kwargs["cache"].get_seq_length()))

    hook = loaded_llava.model.get_decoder().register_forward_pre_hook(watch, with_kwargs=True)
    try:
        with torch.no_grad():
            # six text questions of one length could all be encoded together
            many = [*items, *(dataclasses.replace(items[1], id=f"again{place}") for place in range(5))]
            scores_of(prefix.score(loaded_llava, encoded(loaded_llava, many), budget=60, cache={}))
    finally:
        hook.remove()
    assert max(seen) <= 60


def test_half_precision_models_are_scored_from_prefixes_too(loaded_llava: Loaded, items: list[Item]) -> None:
    import torch

    half, notes = dataclasses.replace(loaded_llava, model=copy.deepcopy(loaded_llava.model).bfloat16()), Notes()
    for scored, reference in zip(score(half, items, progress=notes), score(loaded_llava, items), strict=True):
        assert scored.options == pytest.approx(reference.options, abs=scoring.TOLERANCE[2])
    assert not notes.texts
    assert half.model.lm_head.weight.dtype == torch.bfloat16


def test_more_tokens_than_positions_are_refused_before_anything_is_said(loaded_llava: Loaded) -> None:
    import copy
    import dataclasses

    short = copy.deepcopy(loaded_llava.model)
    short.config.get_text_config().max_position_embeddings = 6
    options = {"A": "The city is lisbon .", "B": "The city is oslo ."}
    item = Item("long", "p", "Which city ?", options=options, gold="A", column="c")
    with pytest.raises(UnusableData, match=r"item long, with an option, has \d+ tokens, the model has 6 positions"):
        score(dataclasses.replace(loaded_llava, model=short), [item])


@pytest.mark.parametrize("family", ["loaded_llava", "loaded_qwen2_vl"])
def test_a_picture_is_encoded_once_whoever_asks_about_it(
    family: str, request: pytest.FixtureRequest, items: list[Item]
) -> None:
    """By two columns, by written answers and what judges them, with what is remembered of the model; and the answers
    are those without it."""
    from mmsurgery.evaluate import fluency, open_answers
    from mmsurgery.evaluate.remembered import Remembered

    loaded: Loaded = request.getfixturevalue(family)
    passes: list[int] = []
    encoder = loaded.model.get_encoder(modality="image")
    hook = encoder.register_forward_pre_hook(lambda *arguments: passes.append(1))

    def asked(**remembered: Any) -> list[Any]:
        written = open_answers.write(loaded, items, budget=100, **remembered)
        texts = [each.text for each in written]
        return [
            score(loaded, items[:4], **remembered),
            score(loaded, items, budget=40, **remembered),
            written,
            fluency.median_probabilities(loaded, items, texts, **remembered),
        ]

    try:
        found = asked(remembered=Remembered(loaded))
        assert len(passes) == len({item.image_sha256 for item in items} - {None}) == 3
        assert asked() == found
        assert len(passes) > 6
    finally:
        hook.remove()
    assert "get_image_features" not in vars(loaded.model.model)


def test_features_that_are_not_kept_change_nothing(
    loaded_llava: Loaded, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmsurgery.evaluate import remembered

    expected = score(loaded_llava, items)
    monkeypatch.setattr(remembered, "FEATURE_BYTES", 0)
    assert score(loaded_llava, items) == expected


def test_memory_is_given_back_as_texts_and_features_pile_up(
    loaded_llava: Loaded, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmsurgery.backbones import encoding
    from mmsurgery.evaluate import remembered

    given: list[str] = []
    for module, often in ((encoding, 4), (remembered, 1)):
        monkeypatch.setattr(module, "give_back", lambda name=module.__name__: given.append(name))
        monkeypatch.setattr(module, "_OFTEN", often)
    cache: dict[Any, Any] = {}
    score(loaded_llava, items, cache=cache)
    pictures = len({item.image_sha256 for item in items} - {None})
    assert given.count(remembered.__name__) == pictures
    assert given.count(encoding.__name__) == len(cache[encoding._Cache].texts) // 4 > 2
    score(loaded_llava, items, cache=cache)
    assert given.count(encoding.__name__) == len(cache[encoding._Cache].texts) // 4  # known ones are not encoded again
