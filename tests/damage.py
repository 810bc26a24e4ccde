"""Damaged variants of a file's bytes, the same for the same seed; the first n of any number are the same."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import damage_formats
from damage_formats import EDGES

_MAGICS = (b"PK\x03\x04", b"\x80\x04\x95", b"\x89HDF\r\n\x1a\n", b"\x1f\x8b\x08", b"<!doctype html><html>", b"PAR1")
_MAGICS += (b"version https://git-lfs.github.com/spec/v1\n", bytes(16), b"\xff\xfe{\0")


def flips(data: bytes, seed: int, step: int = 1) -> Iterator[bytes]:
    """One bit of every byte, or of every `step`-th byte, flipped at a time."""
    generator = random.Random(seed)
    for place in range(0, len(data), step):
        yield _flipped(data, generator, place, place + 1, 1)


def mutations(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Cut, filled, moved, doubled, inserted and appended runs, and words made huge; never `data` itself."""
    generator, made = random.Random(seed), 0
    while made < count:
        start = generator.randrange(len(data))
        variant = _run_damaged(data, generator, start, min(len(data), start + 1 + generator.randrange(64)), made % 13)
        made += 1
        if variant != data:
            yield variant


def variants(data: bytes, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Damage of every kind, and of the kinds that the file's format has: what was done, and the bytes."""
    generator = random.Random(seed)
    kinds = _KINDS | (_SAFETENSORS if _is_safetensors(data) else damage_formats.kinds(data))
    names, made, tried = list(kinds), 0, 0
    while made < count:
        name = names[tried] if tried < len(names) else generator.choice(names)
        variant = kinds[name](data, generator)
        tried += 1
        if variant != data:
            made += 1
            yield name, variant


def _flipped(data: bytes, generator: random.Random, start: int, end: int, count: int) -> bytes:
    variant = bytearray(data)
    for _ in range(count):
        variant[generator.randrange(start, end)] ^= 1 << generator.randrange(8)
    return bytes(variant)


def _run_damaged(data: bytes, generator: random.Random, start: int, end: int, how: int) -> bytes:
    noise = generator.randbytes(end - start)
    word = generator.choice(EDGES).to_bytes(8, "little")
    return [
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
        data[: start // 8 * 8] + word + data[start // 8 * 8 + 8 :],
    ][how]


def _of_run(how: int, longest: int) -> Callable[[bytes, random.Random], bytes]:
    def damage(data: bytes, generator: random.Random) -> bytes:
        start, size = generator.randrange(len(data)), int(2 ** generator.uniform(0, longest))
        return _run_damaged(data, generator, start, min(len(data), start + size), how)

    return damage


def _swapped(data: bytes, generator: random.Random) -> bytes:
    size = max(1, min(4096, len(data) // 4))
    first, second = (generator.randrange(len(data) - size + 1) for _ in range(2))
    variant = bytearray(data)
    variant[first : first + size] = data[second : second + size]
    if abs(first - second) >= size:
        variant[second : second + size] = data[first : first + size]
    return bytes(variant)


def _at_an_end(data: bytes, generator: random.Random) -> bytes:
    head = generator.random() < 0.5
    return _flipped(data, generator, *((0, min(512, len(data))) if head else (max(0, len(data) - 512), len(data))), 1)


_KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": _of_run(0, 6),
    "tail zeroed": _of_run(1, 6),
    "zeroed": _of_run(2, 16),
    "ones": _of_run(3, 16),
    "noise": _of_run(4, 16),
    "taken out": _of_run(5, 12),
    "put in": _of_run(6, 12),
    "doubled": _of_run(7, 12),
    "turned round": _of_run(8, 12),
    "appended": _of_run(9, 16),
    "word": _of_run(12, 6),
    "blocks swapped": _swapped,
    "bit": lambda data, generator: _flipped(data, generator, 0, len(data), 1),
    "bits": lambda data, generator: _flipped(data, generator, 0, len(data), generator.randrange(2, 65)),
    "bit of head or tail": _at_an_end,
    "magic": lambda data, generator: (magic := generator.choice(_MAGICS)) + data[len(magic) :],
    "empty": lambda data, generator: b"",
}


def _is_safetensors(data: bytes) -> bool:
    return len(data) > 9 and data[8:9] == b"{" and struct.unpack("<Q", data[:8])[0] <= len(data) - 8


def _header_edited(edit: Callable[[dict[str, Any], str, random.Random], Any]) -> Callable[..., bytes]:
    """`edit` changes the header in place, or returns what to write instead: a value, or raw bytes."""

    def damage(data: bytes, generator: random.Random) -> bytes:
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        names = [name for name in header if name != "__metadata__"]
        found = edit(header, generator.choice(names), generator)
        found = header if found is None else found
        raw = found if isinstance(found, bytes) else json.dumps(found, separators=(",", ":")).encode()
        return struct.pack("<Q", len(raw)) + raw + data[8 + size :]

    return damage


def _entry(**changes: Any) -> Callable[..., Any]:
    return lambda header, name, generator: header[name].update(changes)


def _moved(begin: int, end: int) -> Callable[..., Any]:
    def edit(header: dict[str, Any], name: str, generator: random.Random) -> None:
        old = header[name]["data_offsets"]
        header[name]["data_offsets"] = [old[0] + begin, old[1] + end]

    return edit


def _renamed(to: str) -> Callable[..., Any]:
    return lambda header, name, generator: header.update({to or f"{name}_": header.pop(name)})


def _exchanged(header: dict[str, Any], name: str, generator: random.Random) -> None:
    other = generator.choice([each for each in header if each not in (name, "__metadata__")] or [name])
    header[name], header[other] = header[other], header[name]


def _twice(header: dict[str, Any], name: str, generator: random.Random) -> bytes:
    return json.dumps(header).encode()[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}}}".encode()


_SAFETENSORS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "header length": lambda data, generator: struct.pack("<Q", generator.choice(EDGES)) + data[8:],
    "value": lambda data, generator: _flipped(data, generator, 8 + struct.unpack("<Q", data[:8])[0], len(data), 1),
    **{
        f"header: {what}": _header_edited(edit)
        for what, edit in {
            "end later": _moved(0, 1),
            "begin earlier": _moved(-1, 0),
            "far away": _entry(data_offsets=[2**62, 2**63]),
            "turned": lambda header, name, generator: header[name]["data_offsets"].reverse(),
            "a dimension of 0": lambda header, name, generator: header[name]["shape"].insert(0, 0),
            "dimensions that overflow": _entry(shape=[4194305, 4194305, 211106198978564]),
            "a negative dimension": lambda header, name, generator: header[name]["shape"].insert(0, -1),
            "dimensions of text": _entry(shape="many"),
            "another dtype": _entry(dtype="F64"),
            "no such dtype": _entry(dtype="F31"),
            "no dtype": lambda header, name, generator: header[name].pop("dtype") and None,
            "one more tensor": lambda header, name, generator: header.update({f"{name}.ghost": header[name]}),
            "renamed": _renamed(""),
            "a path for a name": _renamed("../../../../x"),
            "a null in a name": _renamed("a\0b"),
            "names exchanged": _exchanged,
            "one tensor less": lambda header, name, generator: header.pop(name) and None,
            "a name twice": _twice,
            "metadata of numbers": lambda header, name, generator: header.update(__metadata__={"a": 1}),
            "nested deep": lambda header, name, generator: b"[" * 20_000 + b"]" * 20_000,
            "no object": lambda header, name, generator: ["x"],
            "not a number": lambda header, name, generator: json.dumps(header).replace("[", "[NaN, ", 1).encode(),
            "five million blanks": lambda header, name, generator: json.dumps(header).encode() + b" " * 5_000_000,
        }.items()
    },
}
