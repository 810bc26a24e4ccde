"""Scoring options from shared prefixes: what rows have in common is encoded once.

The rows of one picture (its questions, each with its options) form a tree: picture, then question
and the words all options start with, then what differs. Each level is one forward pass that
continues from the keys and values of the level above, so a picture goes through the vision tower
once, and its tokens through the language model once. Within a pass all rows have the same number of
tokens before them: nothing is padded on the left, and positions are those of the rows themselves.

I items, O options of an item, T tokens, R rows of a pass, V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmsurgery.evaluate.remembered import Remembered
from mmsurgery.methods.step import check_positions

if TYPE_CHECKING:
    import torch

    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.data.samples import Sample

Cache = dict[Any, Any]


@dataclass(frozen=True)
class Row:
    """A prompt with one option as its answer, cut after the last labelled token."""

    ids: torch.Tensor
    """int64 `[T]`"""
    labelled: torch.Tensor
    """bool `[T]`: the answer and its end token."""


@dataclass(frozen=True)
class Choice:
    """One item to be scored."""

    samples: tuple[Sample, ...]
    """`[O]`, one per option, with the option as the answer."""
    rows: tuple[Row, ...]
    """`[O]`"""
    shared: int
    """Number of leading tokens that all its rows have in common; at least one is left to each row."""

    @property
    def first_answer(self) -> int:
        """Position of the first answer token."""
        return min(int(row.labelled.int().argmax()) for row in self.rows)


def encode(loaded: Loaded, samples: Sequence[Sample], cache: Cache) -> Choice:
    """The rows of one item's samples, as the backbone's collator writes them.

    Raises:
        UnusableData: naming the item, if a row has more tokens than the model has positions.
    """
    # the processor is kept with what it encoded, so that its id stays its own
    _, known = cache.setdefault((encode, id(loaded.processor)), (loaded.processor, {}))
    key = (samples[0].question, samples[0].image_sha256, *(sample.answer for sample in samples))
    if key not in known:
        batch = loaded.backbone.collate(loaded.processor, samples, cache=cache)
        rows = []
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            length = int((labels != -100).nonzero()[-1]) + 1
            rows.append(Row(ids[:length], labels[:length] != -100))
        check_positions(
            loaded.model, max(len(row.ids) for row in rows), lambda: f"item {samples[0].id}, with an option,"
        )
        known[key] = tuple(rows), common_prefix(rows)
    return Choice(tuple(samples), *known[key])


def common_prefix(rows: Sequence[Row]) -> int:
    """Number of leading tokens that all rows share, at most one less than the shortest has."""
    import torch

    shortest = min(len(row.ids) for row in rows)
    ids = torch.stack([row.ids[: shortest - 1] for row in rows])
    return int((ids == ids[0]).all(dim=0).cumprod(dim=0).sum())


def score(
    loaded: Loaded,
    choices: Sequence[Choice],
    *,
    budget: int,
    cache: Cache,
    remembered: Remembered | None = None,
) -> Iterator[tuple[int, list[float]]]:
    """Yield (place of a choice, mean log-probability in nats of each option's labelled tokens `[O]`).

    Args:
        budget: largest number of tokens of the rows of one pass, those encoded before included.
    """
    import torch

    remembered = remembered or Remembered(loaded)
    for length, groups in _chunks(loaded, choices, budget):
        first = min(choices[place].first_answer for group in groups for place in group)
        roots = [choices[group[0]].samples[0] for group in groups]
        keep = max(1, length - first + 1)
        with remembered.pictures(roots, cache):
            known, prefix = _encode_roots(loaded, roots, length, keep, cache)
        questions: dict[int, list[tuple[int, int]]] = {}
        for root, group in enumerate(groups):
            for place in group:
                questions.setdefault(choices[place].shared, []).append((place, root))
        for shared, asked in sorted(questions.items()):
            for part in _parts(asked, budget // shared):
                below, asking = prefix.rows([root for _, root in part]), [choices[place] for place, _ in part]
                tokens = known[[root for _, root in part]]
                if shared > length:
                    answered = shared - min(choice.first_answer for choice in asking)
                    wanted = min(max(0, answered), shared - length)
                    more, below = below.extend(loaded.model, _stacked(asking, length, shared), wanted)
                    # where fewer than all new tokens are wanted, those before them are no answers and not looked at
                    tokens = torch.cat([tokens, more], dim=1)
                yield from zip(
                    (place for place, _ in part), _options(loaded, asking, tokens, below, budget), strict=True
                )


def _parts(entries: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """`entries` in runs of at most `size`, at least one each."""
    return (entries[start : start + max(1, size)] for start in range(0, len(entries), max(1, size)))


def _stacked(choices: Sequence[Choice], start: int, stop: int) -> torch.Tensor:
    import torch

    return torch.stack([choice.rows[0].ids[start:stop] for choice in choices])


def _options(
    loaded: Loaded, choices: Sequence[Choice], known: torch.Tensor, prefix: _Prefix, budget: int
) -> list[list[float]]:
    """Scores of all options of choices whose shared tokens are encoded.

    Args:
        known: float32 or better `[I, T]`, at its end log-probabilities of the labelled ones of these tokens.
    """
    import torch

    pad = torch.nn.utils.rnn.pad_sequence
    start = prefix.length
    rows = [(place, row) for place, choice in enumerate(choices) for row in choice.rows]
    longest = max(len(row.ids) for _, row in rows)
    scores: list[float] = []
    for part in _parts(rows, budget // longest):
        ids = pad([row.ids[start:] for _, row in part], batch_first=True)
        tokens = prefix.rows([place for place, _ in part]).finish(loaded.model, ids)
        shared = known[[place for place, _ in part]]
        labelled = pad([row.labelled[start - known.shape[1] :] for _, row in part], batch_first=True)
        values = torch.cat([shared, tokens], dim=1).double().cpu()
        # padding may hold anything, NaN included: it is selected away, not multiplied
        scores += (values.where(labelled, 0.0).sum(dim=1) / labelled.sum(dim=1)).tolist()
    answers = iter(scores)
    return [[next(answers) for _ in choice.rows] for choice in choices]


class _Prefix:
    """Encoded prefixes of equal length, one per row."""

    def __init__(self, cache: Any, length: int, offsets: torch.Tensor, following: torch.Tensor) -> None:
        self.cache, self.length, self.offsets, self.following = cache, length, offsets, following
        """Keys and values; tokens; int64 `[R]` what to add to a token's index to get its position (pictures
        take fewer positions than tokens in some families); float32 or better `[R, V]` log-probabilities of the next
        token."""

    def rows(self, places: Sequence[int]) -> _Prefix:
        """A prefix of the given rows, repeated as given; this one stays as it is."""
        import torch

        index = torch.tensor(places, device=self.offsets.device)
        selected = copy.copy(self.cache)
        selected.layers = [copy.copy(layer) for layer in self.cache.layers]
        selected.batch_select_indices(index)
        return _Prefix(selected, self.length, self.offsets[index], self.following[index])

    def extend(self, model: Any, ids: torch.Tensor, wanted: int) -> tuple[torch.Tensor, _Prefix]:
        """Encode further tokens; uses this prefix up.

        Args:
            ids: int64 `[R, T]`.
            wanted: W, how many of them, the last ones, are asked for their log-probability.

        Returns:
            log-probability of each of these, float32 or better `[R, W]`; the longer prefix.
        """
        import torch

        ids = ids.to(self.offsets.device)
        index = torch.arange(self.length, self.length + ids.shape[1], device=ids.device)
        output = model(
            input_ids=ids,
            attention_mask=ids.new_ones(len(ids), self.length + ids.shape[1]),
            position_ids=index + self.offsets[:, None],
            use_cache=True,
            logits_to_keep=min(wanted + 1, ids.shape[1]),
            **{_cache_argument(model): self.cache},
        )
        following = _log_softmax(output.logits)
        if wanted == ids.shape[1]:
            following = torch.cat([self.following[:, None], following], dim=1)
        tokens = following[:, :-1].gather(2, ids[:, ids.shape[1] - wanted :, None])[..., 0]
        return tokens, _Prefix(self.cache, self.length + ids.shape[1], self.offsets, following[:, -1])

    def finish(self, model: Any, ids: torch.Tensor) -> torch.Tensor:
        """Log-probability of each of some last tokens `[R, T]`, float32 or better `[R, T]`; uses this prefix up."""
        import torch

        ids = ids.to(self.offsets.device)
        if ids.shape[1] == 1:
            return self.following.gather(1, ids)
        tokens, longer = self.extend(model, ids[:, :-1], ids.shape[1] - 1)
        return torch.cat([tokens, longer.following.gather(1, ids[:, -1:])], dim=1)


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities, in float32 at least."""
    return (logits.float() if logits.dtype.itemsize < 4 else logits).log_softmax(dim=-1)


def _cache_argument(model: Any) -> str:
    """The forward argument that takes keys and values; transformers renamed it in 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _chunks(loaded: Loaded, choices: Sequence[Choice], budget: int) -> Iterator[tuple[int, list[list[int]]]]:
    """Groups of choices about one picture (a text question is a group of its own), with the number of
    tokens their rows share; groups of equal number together."""
    by_picture: dict[Any, list[int]] = {}
    for place, choice in enumerate(choices):
        by_picture.setdefault(choice.samples[0].image_sha256 or place, []).append(place)
    groups: list[tuple[int, list[int]]] = []
    for group in by_picture.values():
        length = _shared_by_all(loaded, [choices[place] for place in group])
        if length:
            groups.append((length, group))
        else:
            groups += [(choices[place].shared, [place]) for place in group]
    groups.sort(key=lambda pair: pair[0])
    start = 0
    while start < len(groups):
        length = groups[start][0]
        stop = start
        while stop < len(groups) and groups[stop][0] == length and stop - start < max(1, budget // length):
            stop += 1
        yield length, [group for _, group in groups[start:stop]]
        start = stop


def _shared_by_all(loaded: Loaded, choices: Sequence[Choice]) -> int:
    """Tokens shared by all rows of the questions about one picture; 0 where that would leave picture tokens out."""
    if len(choices) == 1:
        return choices[0].shared
    length = common_prefix([row for choice in choices for row in choice.rows])
    picture = loaded.model.config.image_token_id
    left = any(bool((row.ids[length:] == picture).any()) for choice in choices for row in choice.rows)
    return 0 if left else length


def _encode_roots(
    loaded: Loaded, roots: Sequence[Sample], length: int, keep: int, cache: Cache
) -> tuple[torch.Tensor, _Prefix]:
    """Encode the first `length` tokens of one sample per root, pictures included.

    Returns:
        log-probabilities of the last `keep - 1` of these tokens, float32 or better `[R, keep - 1]`; the prefix.
    """
    import torch
    from transformers import DynamicCache

    batch = loaded.backbone.collate(loaded.processor, roots, cache=cache)
    shape, device = batch.pop("labels").shape, next(loaded.model.parameters()).device
    inputs = {
        name: (value[:, :length] if value.shape[:2] == shape else value).to(device) for name, value in batch.items()
    }
    positions: list[Any] = []
    hook = loaded.model.get_decoder().register_forward_pre_hook(
        lambda module, arguments, keywords: positions.append(keywords.get("position_ids")), with_kwargs=True
    )
    keys = DynamicCache(config=loaded.model.config)
    try:
        output = loaded.model(**inputs, use_cache=True, logits_to_keep=keep, **{_cache_argument(loaded.model): keys})
    finally:
        hook.remove()
    following = _log_softmax(output.logits[:, -keep:])
    ids = inputs["input_ids"][:, length - keep + 1 :]
    known = following[:, :-1].gather(2, ids[..., None])[..., 0]
    offsets = torch.zeros(len(roots), dtype=torch.int64, device=device)
    if positions[0] is not None:  # [R, T], or [axes, R, T] where pictures have positions of their own
        offsets = offsets + positions[0].reshape(-1, *positions[0].shape[-2:]).amax(dim=(0, 2)) + 1 - length
    return known, _Prefix(keys, length, offsets, following[:, -1])
