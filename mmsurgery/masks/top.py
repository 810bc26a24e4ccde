"""The entries with the largest keys, exactly, without sorting and without holding the keys in memory.

Keys are uint64; 0 means "never". The threshold is found digit by digit, 16 bits a pass, each pass
streaming all keys again; ties at the threshold go to the first entries in the order streamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from mmsurgery.artifacts.mask import Bytes

Keys = np.ndarray[Any, np.dtype[np.uint64]]

_DIGIT = 16


def threshold(stream: Callable[[], Iterable[Keys]], count: int) -> tuple[int, int]:
    """`(key, ties)` such that all larger keys and the first `ties` equal ones are `count` entries.

    All keys above 0 are taken if there are fewer than `count`.
    """
    prefix, shift, wanted = 0, 64, count
    while shift:
        shift -= _DIGIT
        histogram = np.zeros(1 << _DIGIT, np.int64)
        for keys in stream():
            inside = keys[keys > 0] if shift == 64 - _DIGIT else keys[keys >> np.uint64(shift + _DIGIT) == prefix]
            digits = (inside >> np.uint64(shift)) & np.uint64((1 << _DIGIT) - 1)
            histogram += np.bincount(digits.view(np.int64), minlength=1 << _DIGIT)
        at_least = np.cumsum(histogram[::-1])[::-1]
        if at_least[0] < wanted:
            return 0, 0
        digit = int(np.flatnonzero(at_least >= wanted)[-1])
        wanted -= int(at_least[digit] - histogram[digit])
        prefix = prefix << _DIGIT | digit
        if histogram[digit] == wanted:
            return max((prefix << shift) - 1, 0), 0
    return prefix, wanted


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
