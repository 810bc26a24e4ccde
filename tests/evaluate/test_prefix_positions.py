"""Shared prefixes in a family whose pictures take fewer positions than tokens (M-RoPE of Qwen2-VL).

The model is the real transformers class; the collator here stands for a plugin's.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from mmsurgery.data.samples import Item, Sample
from mmsurgery.evaluate import prefix, scoring

PICTURE, START, END, PAD, EOS = 3, 4, 5, 0, 2
GRID = (1, 8, 8)
"""Patches of a picture; merged by 2 x 2 they are 16 tokens on 4 positions."""


class Collator:
    """Questions and answers are numbers; 16 picture tokens stand between two marks."""

    model_type = title = "mrope"
    picture_last = False

    def render(self, processor: Any, question: str, answer: str | None, *, image: bool) -> str:
        return question

    def collate(self, processor: Any, samples: Sequence[Sample], **options: Any) -> dict[str, Any]:
        import torch

        rows, labels, pixels = [], [], []
        for sample in samples:
            seed = sample.image_bytes
            marks = [] if seed is None else [START, *[PICTURE] * 16, END]
            words = [*map(int, sample.question.split())]
            prompt = [6, *words, *marks] if self.picture_last else [6, *marks, *words]
            answer = [*map(int, sample.answer.split()), EOS]
            rows.append(torch.tensor(prompt + answer))
            labels.append(torch.tensor([-100] * len(prompt) + answer))
            if seed is not None:
                pixels.append(torch.randn(64, 3 * 6 * 6, generator=torch.Generator().manual_seed(seed[0])))
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad(rows, batch_first=True, padding_value=PAD)
        batch = {
            "input_ids": ids,
            "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
            "labels": pad(labels, batch_first=True, padding_value=-100),
        }
        if pixels:
            batch |= {
                "pixel_values": torch.cat(pixels),
                "image_grid_thw": torch.tensor([GRID] * len(pixels)),
                "mm_token_type_ids": (ids == PICTURE).int(),
            }
        return batch

    def prompts(self, processor: Any, questions: Sequence[Any], **options: Any) -> dict[str, Any]:
        """With an answer: nobody continues these."""
        answered = [Sample(q.id, q.person, q.question, image_bytes=q.image_bytes, answer="20") for q in questions]
        return {name: value for name, value in self.collate(processor, answered).items() if name != "labels"}


@pytest.fixture(scope="module")
def mrope() -> Any:
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    config = Qwen2VLConfig(
        text_config={
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": 40,
            "initializer_range": 0.3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 4, 4]},
            "bos_token_id": None,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
        },
        vision_config={
            "depth": 1,
            "embed_dim": 32,
            "hidden_size": 48,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 6,
            "spatial_merge_size": 2,
            "temporal_patch_size": 1,
        },
        image_token_id=PICTURE,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    torch.manual_seed(0)
    return SimpleNamespace(model=Qwen2VLForConditionalGeneration(config).eval(), processor=None, backbone=Collator())


def item(place: int, question: str, seed: int | None) -> Item:
    options = {"A": "20 21", "B": "20 22 23", "C": "24"}
    image = None if seed is None else bytes([seed])
    return Item(f"i{place}", "p", question, options=options, gold="A", column="c", image_bytes=image)


@pytest.mark.parametrize(
    "items",
    [
        [item(0, "10 11", 1), item(1, "10 12 13", 1), item(2, "14", 2), item(3, "10 11", 2), item(4, "15 16", 3)],
        [item(0, "10 11", None), item(1, "12 13 14", None)],
        [item(0, "10 11", 1), item(1, "12 13 14", None), item(2, "12 13 14 15 16 17 18 19 10 11 12 13", None)],
    ],
    ids=["pictures", "text", "both"],
)
def test_prefixes_keep_the_positions_of_their_rows(mrope: Any, items: list[Item]) -> None:
    import torch

    choices = [prefix.encode(mrope, scoring.option_samples(each), {}) for each in items]
    # a picture before the text leaves its offset in the model
    with torch.no_grad():
        dict(prefix.score(mrope, choices[:1], budget=4096, cache={}))
        shared = dict(prefix.score(mrope, choices, budget=4096, cache={}))
        rows = dict(scoring.row_scores(mrope, choices, budget=4096, cache={}))
    for place in rows:
        assert shared[place] == pytest.approx(rows[place], abs=1e-5)
    assert scoring.prefixes_hold(mrope, choices, {})


def test_a_picture_after_the_question_is_not_cut_off(mrope: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What two questions about a picture share ends before the picture then."""
    import torch

    monkeypatch.setattr(Collator, "picture_last", True)
    items = [item(0, "10 11", 1), item(1, "10 12", 1)]
    choices = [prefix.encode(mrope, scoring.option_samples(each), {}) for each in items]
    with torch.no_grad():
        shared = dict(prefix.score(mrope, choices, budget=4096, cache={}))
        rows = dict(scoring.row_scores(mrope, choices, budget=4096, cache={}))
    assert [shared[0], shared[1]] == [pytest.approx(rows[0], abs=1e-5), pytest.approx(rows[1], abs=1e-5)]
