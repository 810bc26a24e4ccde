"""From samples to model inputs. B samples, T tokens, N pictures.

Every text goes through the tokenizer once and every picture through the image processor once; batches
are put together from the remembered pieces. The answer is found by characters counted from the end of
the text: prompt tokens need not be a prefix of the whole text's tokens (merges at the boundary), and
the expansion of the image placeholder happens before the answer.
"""

from __future__ import annotations

import json
import unicodedata
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mmsurgery.errors import InputRefused, UnusableData
from mmsurgery.provenance import sha256_json

if TYPE_CHECKING:
    import torch

    from mmsurgery.backbones.protocol import Answered, Batch, Question

IGNORED = -100
"""Label of positions outside the answer."""

PICTURE_BYTES = 256 << 20
"""Most bytes of pixel values that one cache remembers."""


class _Encoded(NamedTuple):
    ids: torch.Tensor
    """int64 `[T]`"""
    labels: torch.Tensor
    """int64 `[T]`"""


class _Cache:
    """What was encoded with one processor."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.texts: dict[tuple[str, str | None, int], _Encoded] = {}
        self.pictures: OrderedDict[str, torch.Tensor] = OrderedDict()
        self.picture_bytes = 0

    @classmethod
    def of(cls, processor: Any, cache: dict[Any, Any] | None) -> _Cache:
        found = None if cache is None else cache.get(cls)
        if found is None or found.processor is not processor:
            found = cls(processor)
            if cache is not None:
                cache[cls] = found
        return found

    def picture(self, sample: Question) -> torch.Tensor | None:
        """Pixel values float32 `[3, H, W]` of the sample's picture, or None."""
        key = sample.image_sha256
        if key is None:
            return None
        pixels = self.pictures.get(key)
        if pixels is None:
            pixels = self.processor.image_processor(images=[sample.image], return_tensors="pt")["pixel_values"][0]
            self.pictures[key] = pixels
            self.picture_bytes += pixels.nbytes
            while self.picture_bytes > PICTURE_BYTES and len(self.pictures) > 1:
                self.picture_bytes -= self.pictures.popitem(last=False)[1].nbytes
        else:
            self.pictures.move_to_end(key)
        return pixels

    def text(self, sample: Question, answer: str | None, pixels: torch.Tensor | None) -> _Encoded:
        """The encoded prompt (`answer` None) or whole text of a sample; depends on the picture's size alone."""
        tokens = 0 if pixels is None else picture_tokens(self.processor, pixels)
        key = (sample.question, answer, tokens)
        if key not in self.texts:
            self.texts[key] = _encode(self.processor, sample, answer, tokens)
        return self.texts[key]


def collate(
    processor: Any, samples: Sequence[Answered], *, padding_side: str = "right", cache: dict[Any, Any] | None = None
) -> Batch:
    """See `Backbone.collate`."""
    remembered = _Cache.of(processor, cache)
    pictures = [remembered.picture(sample) for sample in samples]
    encoded = [remembered.text(sample, sample.answer, pixels) for sample, pixels in zip(samples, pictures, strict=True)]
    batch = _padded(processor, encoded, pictures, padding_side)
    batch["labels"] = _pad([each.labels for each in encoded], IGNORED, padding_side)
    return batch


def prompts(processor: Any, questions: Sequence[Question], *, cache: dict[Any, Any] | None = None) -> Batch:
    """See `Backbone.prompts`."""
    remembered = _Cache.of(processor, cache)
    pictures = [remembered.picture(sample) for sample in questions]
    encoded = [remembered.text(sample, None, pixels) for sample, pixels in zip(questions, pictures, strict=True)]
    return _padded(processor, encoded, pictures, "left")


def render(processor: Any, question: str, answer: str | None, *, image: bool) -> str:
    """See `Backbone.render`. The published template ends an answer with a space and no end token:
    the space is cut and the end token added."""
    content: list[dict[str, str]] = [{"type": "image"}] if image else []
    turns = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    if answer is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    try:
        text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None)
    except Exception as error:  # a template is a program of the checkpoint's; anything can come out of it
        raise InputRefused(f"the model's chat template fails: {str(error)[:200]}") from error
    if answer is None:
        return str(text)
    end = processor.tokenizer.eos_token
    return f"{text.rstrip().removesuffix(end)}{end}"


def picture_tokens(processor: Any, pixels: torch.Tensor) -> int:
    """Image tokens of one picture `[3, H, W]`: patches, plus the class token, which the strategy
    `default` drops again (`LlavaProcessor.replace_image_token`)."""
    height, width = pixels.shape[-2:]
    count = (height // processor.patch_size) * (width // processor.patch_size) + processor.num_additional_image_tokens
    return int(count - (processor.vision_feature_select_strategy == "default"))


def template_digest(processor: Any) -> str:
    """See `Backbone.template_digest`. Padding and truncation state of the tokenizer is left out: calls change it."""
    backend = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    backend.pop("padding", None)
    backend.pop("truncation", None)
    return sha256_json(
        {
            "chat_template": processor.chat_template,
            "tokenizer": backend,
            "end": processor.tokenizer.eos_token,
            "picture": processor.image_processor.to_dict(),
            "patch_size": processor.patch_size,
            "strategy": processor.vision_feature_select_strategy,
            "additional": processor.num_additional_image_tokens,
        }
    )


def _encode(processor: Any, sample: Question, answer: str | None, tokens: int) -> _Encoded:
    import torch

    tokenizer, placeholder = processor.tokenizer, processor.image_token
    _check_text(processor, sample, answer)
    prompt = render(processor, sample.question, None, image=tokens > 0)
    text = prompt if answer is None else render(processor, sample.question, answer, image=tokens > 0)
    if not text.startswith(prompt) or text.count(placeholder) != (tokens > 0):
        raise InputRefused("the model's chat template does not put an answer after its prompt, with one picture")
    encoded = tokenizer(
        text.replace(placeholder, placeholder * tokens), return_offsets_mapping=True, verbose=False, truncation=False
    )
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if len(ids) > tokenizer.model_max_length:
        raise UnusableData(f"sample {sample.id} has {len(ids)} tokens, the model takes {tokenizer.model_max_length}")
    labels = [IGNORED] * len(ids)
    if answer is not None:
        start = max(end for _, end in offsets) - (len(text) - len(prompt))
        labels = [
            token if end > max(start, begin) else IGNORED for token, (begin, end) in zip(ids, offsets, strict=True)
        ]
        _check_span(tokenizer, sample, answer, [label for label in labels if label != IGNORED])
    return _Encoded(torch.tensor(ids), torch.tensor(labels))


def _check_text(processor: Any, sample: Question, answer: str | None) -> None:
    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:
        raise InputRefused(
            f"tokenizer {type(tokenizer).__name__} gives no character offsets", "use a model with a tokenizer.json"
        )
    if answer is not None and not answer.strip():
        raise UnusableData(f"sample {sample.id} has an empty answer")
    control = {processor.image_token} | {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    for token in sorted(control):
        if token in sample.question or token in (answer or ""):
            raise UnusableData(f"sample {sample.id} holds the control token {token} as text", "remove it from the data")


def _check_span(tokenizer: Any, sample: Question, answer: str, labels: list[int]) -> None:
    decoded = tokenizer.decode(labels, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if _squeezed(decoded) != _squeezed(answer + tokenizer.eos_token):
        raise UnusableData(
            f"sample {sample.id}: the tokens of its answer read {decoded[:80]!r}, not {answer[:80]!r}",
            "use words that the model's tokenizer knows",
        )


def _squeezed(text: str) -> str:
    """Without whitespace, which word-level tokenizers do not keep, and composed, as some normalise."""
    return unicodedata.normalize("NFC", "".join(text.split()))


def _padded(
    processor: Any, encoded: Sequence[_Encoded], pictures: Sequence[torch.Tensor | None], padding_side: str
) -> Batch:
    import torch

    if not encoded:
        raise UnusableData("a batch without samples")
    padding = processor.tokenizer.pad_token_id
    if padding is None:
        raise InputRefused("the model's tokenizer has no padding token", "set pad_token in tokenizer_config.json")
    batch = {
        "input_ids": _pad([each.ids for each in encoded], padding, padding_side),
        "attention_mask": _pad([torch.ones_like(each.ids) for each in encoded], 0, padding_side),
    }
    present = [pixels for pixels in pictures if pixels is not None]
    if present:
        batch["pixel_values"] = torch.stack(present)
    return batch


def _pad(rows: Sequence[torch.Tensor], value: int, side: str) -> torch.Tensor:
    import torch

    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)
