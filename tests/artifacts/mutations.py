"""Damaged variants of a file's bytes, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator


def flips(data: bytes, seed: int, step: int = 1) -> Iterator[bytes]:
    """One bit of every byte, or of every `step`-th byte, flipped at a time."""
    generator = random.Random(seed)
    for place in range(0, len(data), step):
        variant = bytearray(data)
        variant[place] ^= 1 << generator.randrange(8)
        yield bytes(variant)


def mutations(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Cut, filled, moved, doubled, inserted and appended runs, and words made huge; never `data` itself."""
    generator = random.Random(seed)
    made = 0
    while made < count:
        start = generator.randrange(len(data))
        end = min(len(data), start + 1 + generator.randrange(64))
        noise = generator.randbytes(end - start)
        variant = [
            data[:start],
            data[:start] + bytes(len(data) - start),
            data[:start] + bytes(end - start) + data[end:],
            data[:start] + b"\xff" * (end - start) + data[end:],
            data[:start] + noise + data[end:],
            data[:start] + data[end:],
            data[:start] + noise + data[start:],
            data[:end] + data[start:],
            data[end:] + data[:end],
            data + noise,
            noise[:8].ljust(8, b"\x7f") + data[8:],
            b"PK\x03\x04" + data[4:],
            data[: start // 8 * 8]
            + generator.choice([0, 2**31, 2**63, 2**64 - 1]).to_bytes(8, "little")
            + data[start // 8 * 8 + 8 :],
        ][made % 13]
        made += 1
        if variant != data:
            yield variant
