"""What micro models of all families share: a word-level tokenizer, and freshly drawn weights as a checkpoint folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.checkpoint import SINGLE
from mmsurgery.artifacts.tensors import write_safetensors


def word_tokenizer(words: Sequence[str], control: Mapping[str, str]) -> Any:
    """A tokenizer with one token per word of `words`, ids in their order, splitting at whitespace.

    Args:
        words: the first three are the padding, unknown and end tokens.
        control: attribute of the tokenizer -> control token among `words`, e.g. `image_token`.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    padding, unknown, end = words[:3]
    level = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unknown))
    level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=level, pad_token=padding, unk_token=unknown, eos_token=end, extra_special_tokens=dict(control)
    )


def write_model(folder: Path, build: Callable[[], Any], stored: Callable[[str], str], *, seed: int) -> None:
    """Draw a model's weights from a seed and write them with its configs; the same bytes for the same seed.

    Args:
        build: makes the transformers model, drawing from torch's generator, which is put back after.
        stored: canonical name -> name in the checkpoint file.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    weights = {stored(name): parameter.detach().numpy() for name, parameter in model.named_parameters()}
    write_safetensors(folder / SINGLE, weights, {"format": "pt"})
