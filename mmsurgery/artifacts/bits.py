"""One bit per weight of a model: packed, counted and combined without unpacking.

Bit order little: element i of a parameter is bit i % 8 of its byte i // 8; pad bits zero.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmsurgery.errors import unknown
from mmsurgery.names import Address, model_order
from mmsurgery.provenance import sha256

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Words = np.ndarray[Any, np.dtype[np.uint64]]
Shapes = Mapping[str, tuple[int, ...]]

Operation = Callable[[Words, Words, Words], object]
"""Of two operands and what it writes into, which is neither."""

_PIECE = 1 << 15
"""Words that are combined and counted at a time, while they are in the cache; their ones are below 2^32."""
_SMALL = 256
"""Bytes up to which a Python number counts faster than an array."""


@dataclass(frozen=True, eq=False)
class MaskParameter:
    """One parameter of a mask."""

    shape: tuple[int, ...]
    address: Address
    bits: Bytes = field(repr=False)
    """ceil(numel / 8) bytes, bit order little, pad bits zero."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @functools.cached_property
    def selected(self) -> int:
        """Number of ones."""
        return count_ones(self.bits)

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of the packed bits."""
        return sha256(self.bits.data)


def pack(values: Bools) -> Bytes:
    """Pack booleans of any shape, C order, bit order little, pad bits zero."""
    return np.packbits(np.ascontiguousarray(values).reshape(-1), bitorder="little")


def unpack(bits: Bytes, shape: tuple[int, ...]) -> Bools:
    """The booleans of a shape from their packed bits."""
    return np.unpackbits(bits, count=math.prod(shape), bitorder="little").view(np.bool_).reshape(shape)


def count_ones(bits: Bytes) -> int:
    """Number of ones in packed bits."""
    whole = bits.size // 8 * 8 if bits.size > _SMALL else 0
    ones = int.from_bytes(bits[whole:].tobytes(), "little").bit_count()
    for start in range(0, whole, 8 * _PIECE):  # a generator would cost small parameters as much as their bits
        ones += _ones(bits[start : min(start + 8 * _PIECE, whole)].view(np.uint64))
    return ones


def _ones(words: Words) -> int:
    return int(np.add.reduce(np.bitwise_count(words), dtype=np.uint32))


def _pieces(words: Words) -> Iterator[Words]:
    return (words[start : start + _PIECE] for start in range(0, words.size, _PIECE))


def without(mine: Words, theirs: Words, out: Words) -> None:
    """The ones of the first that are not in the second."""
    np.bitwise_and(mine, theirs, out=out)
    np.bitwise_xor(out, mine, out=out)


_KEYS: dict[str, Callable[[str, Address], str]] = {
    "group": lambda name, address: address.group,
    "layer": lambda name, address: address.layer_key,
    "component": lambda name, address: str(address),
    "parameter": lambda name, address: name,
}


def tally(parameters: Mapping[str, MaskParameter], by: str) -> dict[str, tuple[int, int]]:
    """(selected, total) by key; see `Mask.density`."""
    if by not in _KEYS:
        raise unknown("density key", by, _KEYS)
    sums: dict[str, tuple[int, int]] = {}
    for name, parameter in sorted(parameters.items()):
        key = _KEYS[by](name, parameter.address)
        ones, total = sums.get(key, (0, 0))
        sums[key] = (ones + parameter.selected, total + parameter.numel)
    return sums if by == "parameter" else {key: sums[key] for key in sorted(sums, key=model_order)}


class Layout:
    """Where the bits of each parameter lie in one buffer of 64-bit words: sorted by name, each from its own word.

    Args:
        shapes: of all parameters, by name.
        addresses: of the same.
    """

    def __init__(self, shapes: Shapes, addresses: Mapping[str, Address]) -> None:
        self.shapes = {name: shapes[name] for name in sorted(shapes)}
        self.addresses = {name: addresses[name] for name in self.shapes}
        self._spans: dict[str, slice] = {}
        self.total = 0
        """Number of bits without pads."""
        self.words = 0
        ends, masks = [], []
        for name, shape in self.shapes.items():
            numel = math.prod(shape)
            first, self.words = self.words, self.words + (numel + 63) // 64
            self._spans[name] = slice(first, self.words)
            self.total += numel
            if numel % 64:
                ends.append(self.words - 1)
                masks.append((1 << numel % 64) - 1)
        self._ends, self._masks = np.array(ends, np.intp), np.array(masks, np.uint64)

    def span(self, name: str) -> slice:
        """The words of a parameter."""
        return self._spans[name]

    def of(self, words: Words, name: str) -> Bytes:
        """The bytes of a parameter, a view."""
        return words[self._spans[name]].view(np.uint8)[: (math.prod(self.shapes[name]) + 7) // 8]

    def clear_pads(self, words: Words) -> None:
        """Set what lies between parameters to zero."""
        words[self._ends] &= self._masks


class Packed(Mapping[str, MaskParameter]):
    """The parameters of a mask in one buffer, so that masks combine at the speed of memory.

    Args:
        words: bits by `layout`, pads zero; read-only from here on.
        selected: number of ones, where it is known.
    """

    def __init__(self, layout: Layout, words: Words, selected: int | None = None) -> None:
        words.setflags(write=False)
        self.layout, self.words = layout, words
        self._made: dict[str, MaskParameter] = {}
        self._selected = selected

    @classmethod
    def of(cls, parameters: Mapping[str, MaskParameter]) -> Packed:
        """The same parameters, copied into one buffer unless they lie in one."""
        if isinstance(parameters, Packed):
            return parameters
        layout = Layout(
            {name: each.shape for name, each in parameters.items()},
            {name: each.address for name, each in parameters.items()},
        )
        words = np.zeros(layout.words, np.uint64)
        for name, each in parameters.items():
            layout.of(words, name)[:] = each.bits
        return cls(layout, words)

    def __getitem__(self, name: str) -> MaskParameter:
        made = self._made.get(name)
        if made is None:
            shape = self.layout.shapes[name]
            made = MaskParameter(shape, self.layout.addresses[name], self.layout.of(self.words, name))
            self._made[name] = made
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.layout.shapes

    def __len__(self) -> int:
        return len(self.layout.shapes)

    @property
    def selected(self) -> int:
        """Number of ones."""
        if self._selected is None:
            self._selected = sum(_ones(words) for words in _pieces(self.words))
        return self._selected

    def with_(self, other: Packed, operation: Operation) -> Packed:
        """An operation on each pair of bits, of parameters of the same names and shapes; it makes 0 of 0 and 0."""
        made, ones = np.empty_like(self.words), 0
        for mine, theirs, out in zip(_pieces(self.words), _pieces(other.words), _pieces(made), strict=True):
            operation(mine, theirs, out)
            ones += _ones(out)
        return Packed(self.layout, made, ones)

    def flipped(self) -> Packed:
        """The opposite of each bit."""
        words = np.bitwise_not(self.words)
        self.layout.clear_pads(words)
        return Packed(self.layout, words, self.layout.total - self.selected)

    def only(self, names: set[str]) -> Packed:
        """The same bits in some parameters, zero in all others."""
        words = np.zeros_like(self.words)
        for name in names:
            span = self.layout.span(name)
            words[span] = self.words[span]
        return Packed(self.layout, words)
