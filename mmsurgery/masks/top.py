"""The entries with the largest keys, exactly, without sorting and without holding the keys in memory.

Keys are uint64; 0 means "never". The threshold is found digit by digit, 16 bits a pass, each pass
streaming all keys again, until few keys can still be it; ties at the threshold go to the first
entries in the order streamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from mmsurgery.artifacts.mask import Bytes

Keys = np.ndarray[Any, np.dtype[np.uint64]]

_DIGIT = 16
_FEW = 1 << 20
"""As many keys are held and sorted, to spare the passes that are left."""


def threshold(stream: Callable[[], Iterable[Keys]], count: int) -> tuple[int, int]:
    """`(key, ties)` such that all larger keys and the first `ties` equal ones are `count` entries.

    All keys above 0 are taken if there are fewer than `count`.
    """
    if not count:
        return (1 << 64) - 1, 0
    prefix, shift, wanted = 0, 64, count
    while shift:
        shift -= _DIGIT
        histogram = np.zeros(1 << _DIGIT, np.int64)
        for keys in stream():
            if shift == 64 - _DIGIT:
                digits = keys >> np.uint64(shift)
                histogram[0] -= keys.size - np.count_nonzero(keys)
            else:
                digits = _with_prefix(keys, prefix, shift + _DIGIT) >> np.uint64(shift) & np.uint64((1 << _DIGIT) - 1)
            histogram += np.bincount(digits.view(np.int64), minlength=1 << _DIGIT)
        at_least = np.cumsum(histogram[::-1])[::-1]
        if at_least[0] < wanted:
            return 0, 0
        digit = int(np.flatnonzero(at_least >= wanted)[-1])
        wanted -= int(at_least[digit] - histogram[digit])
        prefix = prefix << _DIGIT | digit
        if histogram[digit] == wanted:
            return max((prefix << shift) - 1, 0), 0
        if histogram[digit] <= _FEW:
            few = np.concatenate([_with_prefix(keys, prefix, shift) for keys in stream()])
            key = int(np.sort(few)[-wanted])
            return key, wanted - int(np.count_nonzero(few > key))
    return prefix, wanted


def _with_prefix(keys: Keys, prefix: int, shift: int) -> Keys:
    """The keys above 0 whose bits from `shift` up are `prefix`."""
    found: Keys = keys[(keys >> np.uint64(shift) == prefix) & (keys > 0)]
    return found


def take(blocks: Iterable[Keys], key: int, ties: int) -> tuple[Bytes, int]:
    """Packed bits of the entries above `key` and of the first `ties` equal to it, and the ties left.

    Args:
        blocks: keys of one tensor in C order; every block but the last a multiple of 8 long.
    """
    packed = []
    for keys in blocks:
        chosen = keys > key
        if ties:
            equal = np.flatnonzero(keys == key)[:ties]
            chosen[equal] = True
            ties -= equal.size
        packed.append(np.packbits(chosen, bitorder="little"))
    return np.concatenate(packed), ties


def largest(blocks: Callable[[], Iterator[Keys]], count: int) -> Bytes:
    """Packed bits of the `count` largest keys of one tensor, ties to the lower flat index."""
    return take(blocks(), *threshold(blocks, count))[0]


def order(values: np.ndarray[Any, np.dtype[np.float64]]) -> Keys:
    """Keys that sort as non-negative float64 values do (infinity included), all above 0."""
    return values.view(np.uint64) + np.uint64(1)
