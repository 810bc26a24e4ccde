"""From samples to model inputs, for families whose processor holds a tokenizer, an image processor and a
chat template that puts one placeholder where the picture is. B samples, T tokens.

Every text goes through the tokenizer once and every picture through the image processor once; batches
are put together from the remembered pieces. The answer is found by characters counted from the end of
the text: prompt tokens need not be a prefix of the whole text's tokens (merges at the boundary), and
the expansion of the image placeholder happens before the answer.
"""

from __future__ import annotations

import json
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mmsurgery.errors import InputRefused, UnusableData
from mmsurgery.memory import give_back
from mmsurgery.provenance import sha256_json

if TYPE_CHECKING:
    import torch

    from mmsurgery.backbones.protocol import Answered, Batch, Question

IGNORED = -100
"""Label of positions outside the answer."""

_TEMPLATE = "copy the chat template from the model it was made of"
PICTURE_BYTES = 256 << 20
"""Most bytes of pictures that one cache remembers."""
_OFTEN = 256
"""Texts that are encoded before memory is given back."""


class Picture(NamedTuple):
    """One picture as the model takes it."""

    inputs: Mapping[str, torch.Tensor]
    """Input name -> `[rows, ...]`; a batch has those of its pictures one after the other."""
    tokens: int
    """How many image tokens stand for it in the text."""


PictureEncoder = Callable[[Any, Any], Picture]
"""Takes the processor and a picture in RGB; a ValueError says that the picture cannot be used."""


class _Encoded(NamedTuple):
    ids: torch.Tensor
    """int64 `[T]`"""
    labels: torch.Tensor
    """int64 `[T]`"""


class _Cache:
    """What was encoded with one processor."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.texts: dict[tuple[str, str | None, tuple[int, ...], str | None], _Encoded] = {}
        self.pictures: OrderedDict[str, Picture] = OrderedDict()
        self.picture_bytes = 0

    @classmethod
    def of(cls, processor: Any, cache: dict[Any, Any] | None) -> _Cache:
        found = None if cache is None else cache.get(cls)
        if found is None or found.processor is not processor:
            found = cls(processor)
            if cache is not None:
                cache[cls] = found
        return found

    def picture(self, sample: Question, encode: PictureEncoder) -> Picture:
        """The picture of a sample that has one."""
        key = str(sample.image_sha256)
        if key in self.pictures:
            self.pictures.move_to_end(key)
            return self.pictures[key]
        try:
            picture = encode(self.processor, sample.image)
        except (ArithmeticError, TypeError, ValueError) as error:  # of the picture, or of damaged settings
            raise UnusableData(
                f"the picture of sample {sample.id} cannot be used: {error}",
                "replace the picture, take the sample out of the data, or copy the processor files of the model again",
            ) from error
        self.pictures[key] = picture
        self.picture_bytes += _size(picture)
        while self.picture_bytes > PICTURE_BYTES and len(self.pictures) > 1:
            self.picture_bytes -= _size(self.pictures.popitem(last=False)[1])
        return picture

    def text(
        self, sample: Question, answer: str | None, tokens: tuple[int, ...], prompt: str | None = None
    ) -> _Encoded:
        """The encoded prompt (`answer` None; `prompt` unless it is rendered here) or whole text of a sample;
        `tokens` of each picture in it."""
        key = (sample.question, answer, tokens, prompt)
        if key not in self.texts:
            self.texts[key] = _encode(self.processor, sample, answer, tokens, prompt)
            if len(self.texts) % _OFTEN == 0:
                give_back()  # texts stay where pixels were, and those go
        return self.texts[key]


def collate(
    processor: Any,
    samples: Sequence[Answered],
    picture: PictureEncoder,
    *,
    padding_side: str = "right",
    cache: dict[Any, Any] | None = None,
) -> Batch:
    """See `Backbone.collate`."""
    answers = [sample.answer for sample in samples]
    rows = list(zip(samples, answers, [None] * len(samples), [None] * len(samples), strict=True))
    batch, encoded = _assembled(_Cache.of(processor, cache), rows, picture, padding_side)
    batch["labels"] = _pad([each.labels for each in encoded], IGNORED, padding_side)
    return batch


def prompts(
    processor: Any,
    questions: Sequence[Question],
    picture: PictureEncoder,
    *,
    texts: Sequence[str] | None = None,
    shown: Sequence[Sequence[Question]] | None = None,
    cache: dict[Any, Any] | None = None,
) -> Batch:
    """See `Backbone.prompts`."""
    given: Sequence[str | None] = [None] * len(questions) if texts is None else texts
    pictured: Sequence[Sequence[Question] | None] = [None] * len(questions) if shown is None else shown
    rows = [(question, None, text, others) for question, text, others in zip(questions, given, pictured, strict=True)]
    return _assembled(_Cache.of(processor, cache), rows, picture, "left")[0]


def render(processor: Any, question: str, answer: str | None, *, image: bool) -> str:
    """See `Backbone.render`. What templates put after an answer (a space and no end token; an end
    token and a line break) is made one end token."""
    return render_parts(processor, [(question, image)], answer)


def render_parts(processor: Any, parts: Sequence[tuple[str, bool]], answer: str | None = None) -> str:
    """As `render`, of a turn whose texts each have a picture before them or none."""
    content: list[dict[str, str]] = []
    for text, image in parts:
        content += [*([{"type": "image"}] if image else []), {"type": "text", "text": text}]
    turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if answer is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    try:
        text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None)
    except Exception as error:  # a template is a program of the checkpoint's; anything can come out of it
        raise InputRefused(
            f"the model's chat template fails: {str(error)[:200]}", "copy the processor files of the model again"
        ) from error
    if answer is None:
        return str(text)
    end = processor.tokenizer.eos_token
    return f"{text.rstrip().removesuffix(end)}{end}"


def template_digest(processor: Any, **geometry: Any) -> str:
    """See `Backbone.template_digest`. Padding and truncation state of the tokenizer is left out: calls change it.

    Args:
        geometry: what else decides how many image tokens a picture has.
    """
    backend = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    backend.pop("padding", None)
    backend.pop("truncation", None)
    return sha256_json(
        {
            "chat_template": processor.chat_template,
            "tokenizer": backend,
            "end": processor.tokenizer.eos_token,
            "picture": processor.image_processor.to_dict(),
            **geometry,
        }
    )


def _assembled(
    remembered: _Cache,
    rows: Sequence[tuple[Question, str | None, str | None, Sequence[Question] | None]],
    picture: PictureEncoder,
    padding_side: str,
) -> tuple[Batch, list[_Encoded]]:
    """Batch and encoded texts of rows (sample, answer, prompt unless it is rendered here, whose pictures are in
    it if not the sample's own)."""
    import torch

    if not rows:
        raise UnusableData("a batch without samples", "give it samples")
    pictures, encoded = [], []
    for sample, answer, prompt, shown in rows:
        own = [sample] if sample.image_sha256 is not None else []
        found = [remembered.picture(each, picture) for each in (own if shown is None else shown)]
        encoded.append(remembered.text(sample, answer, tuple(each.tokens for each in found), prompt))
        pictures += found
    padding = remembered.processor.tokenizer.pad_token_id
    if padding is None:
        raise InputRefused("the model's tokenizer has no padding token", "set pad_token in tokenizer_config.json")
    batch = {
        "input_ids": _pad([each.ids for each in encoded], padding, padding_side),
        "attention_mask": _pad([torch.ones_like(each.ids) for each in encoded], 0, padding_side),
    }
    for name in pictures[0].inputs if pictures else ():
        batch[name] = torch.cat([found.inputs[name] for found in pictures])
    return batch, encoded


def _encode(
    processor: Any, sample: Question, answer: str | None, tokens: tuple[int, ...], prompt: str | None
) -> _Encoded:
    import torch

    tokenizer, placeholder = processor.tokenizer, processor.image_token
    _check_text(processor, sample, answer)
    if prompt is None:
        prompt = render(processor, sample.question, None, image=bool(tokens))
    text = prompt if answer is None else render(processor, sample.question, answer, image=bool(tokens))
    pieces = text.split(placeholder)
    if not text.startswith(prompt):
        raise InputRefused("the model's chat template does not put an answer after its prompt", _TEMPLATE)
    if len(pieces) != len(tokens) + 1:
        raise InputRefused(
            f"the prompt of sample {sample.id} has {len(pieces) - 1} places for {len(tokens)} pictures", _TEMPLATE
        )
    expanded = pieces[0] + "".join(placeholder * n + piece for n, piece in zip(tokens, pieces[1:], strict=True))
    encoded = tokenizer(expanded, return_offsets_mapping=True, verbose=False, truncation=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if len(ids) > tokenizer.model_max_length:
        raise UnusableData(
            f"sample {sample.id} has {len(ids)} tokens, the model takes {tokenizer.model_max_length}",
            "shorten it, or take it out of the data",
        )
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
        raise UnusableData(f"sample {sample.id} has an empty answer", "give it an answer, or take it out of the data")
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


def _size(picture: Picture) -> int:
    return sum(value.nbytes for value in picture.inputs.values())


def _pad(rows: Sequence[torch.Tensor], value: int, side: str) -> torch.Tensor:
    import torch

    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)
