"""Damage that only one format knows: what is said of lengths, shapes, names, sizes and checksums is changed so that
the file stays readable, for then only a digest or a check of ours can tell."""

from __future__ import annotations

import json
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

Damage = Callable[[bytes, random.Random], bytes]

EDGES = (0, 1, 7, 0x7FFF, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
"""Numbers at which widths, signs and memory end."""


def kinds(data: bytes) -> dict[str, Damage]:
    """What can be done to a whole file, by the format that it has."""
    if data.startswith(b"\x89HDF\r\n\x1a\n"):
        return {"superblock": _superblock, "letter": _letter}
    if data.startswith(b"PAR1"):
        return {"footer": _footer, "length of the footer": _footer_length, "page": _page, "letter": _letter}
    if data.startswith(b"PK\x03\x04"):
        return {"entry of the directory": _directory, "member": _member, "letter": _letter}
    if data.startswith((b"\x89PNG", b"\xff\xd8\xff", b"RIFF")):
        return {"size of the picture": _size}
    return {"JSON edited": _json, "letter": _letter} if _is_json(data) else {}


def _put(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


def _bit(data: bytes, draw: random.Random, start: int, end: int) -> bytes:
    place = draw.randrange(start, end)
    return _put(data, place, bytes([data[place] ^ 1 << draw.randrange(8)]))


def _letter(data: bytes, draw: random.Random) -> bytes:
    """A letter of any word: a name, a type, an attribute."""
    words = list(re.finditer(rb"[a-zA-Z_]{3,}", data))
    if not words:
        return data
    word = draw.choice(words)
    place = draw.randrange(word.start(), word.end())
    return _put(data, place, bytes([data[place] ^ 1]))


# JSON and JSON lines


def _is_json(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data.partition(b"\n{")[0]), dict)
    except ValueError:
        return False


def _json(data: bytes, draw: random.Random) -> bytes:
    if b"\n{" not in data:
        return _edited(data, draw)
    lines = data.splitlines()
    number, how = draw.randrange(len(lines)), draw.choice(("edited", "edited", "gone", "twice", "swapped"))
    if how == "edited":
        lines[number] = _edited(lines[number], draw)
    elif how == "gone":
        del lines[number]
    elif how == "twice":
        lines.insert(draw.randrange(len(lines) + 1), lines[number])
    else:
        lines[number], lines[0] = lines[0], lines[number]
    return b"\n".join(lines) + b"\n"


def _edited(text: bytes, draw: random.Random) -> bytes:
    """JSON with one thing otherwise than it was."""
    value = json.loads(text)
    if not (objects := list(_objects(value))):
        return text
    inner = draw.choice(objects)
    key = draw.choice(list(inner))
    how = draw.choice(("value", "value", "value", "gone", "renamed", "more", "twice", "NaN", "whole"))
    if how == "value":
        inner[key] = _other(inner[key], draw)
    elif how == "gone":
        del inner[key]
    elif how == "renamed":
        inner[draw.choice(["", "a\0b", "../../x", key + "_", "x" * 600, "\u202e" + key])] = inner.pop(key)
    elif how == "more":
        inner[key + ".more"] = inner[key]
    elif how == "twice":
        return _dumped(value)[:-1] + b"," + _dumped({key: inner[key]})[1:]
    elif how == "NaN":
        return re.sub(rb"([:\[])-?\d+", rb"\1NaN", _dumped(value), count=1)
    else:
        deep, blanks = b"[" * 30_000 + b"]" * 30_000, _dumped(value) + b" " * 1_000_000
        return draw.choice(
            [b"[]", b"null", b"1e999", b"\xef\xbb\xbf" + text, text.decode().encode("utf-16"), deep, blanks]
        )
    return _dumped(value)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object inside a value that has keys."""
    if isinstance(value, dict) and value:
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(each)


def _other(value: Any, draw: random.Random) -> Any:
    """Another value, of the same type or of any."""
    if isinstance(value, bool) or draw.random() < 0.3:
        return draw.choice([None, True, "", [], {}, -1, 1.5, 10**30, "\ud800", "../../x", [value], {"x": value}])
    if isinstance(value, (int, float)):
        return draw.choice([value + 1, value - 1, -value, 0, *EDGES])
    if isinstance(value, str) and value:
        place = draw.randrange(len(value))
        return value[:place] + chr(ord(value[place]) ^ 1) + value[place + 1 :]
    if isinstance(value, list) and value:
        return draw.choice([value[1:], value[::-1], [*value, value[0]], [0, *value]])
    if isinstance(value, dict) and value:
        first, *others = value.values()
        return dict(zip(value, [*others, first], strict=True))
    return "x"


def _dumped(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


# HDF5, parquet, zip


def _superblock(data: bytes, draw: random.Random) -> bytes:
    return _put(data, draw.randrange(8, 96), bytes([draw.choice((0, 1, 3, 9, 0x7F, 0x80, 0xFF))]))


def _foot(data: bytes) -> int:
    """Where the footer of parquet begins."""
    return len(data) - 8 - int(struct.unpack("<I", data[-8:-4])[0])


def _footer(data: bytes, draw: random.Random) -> bytes:
    return _bit(data, draw, _foot(data), len(data) - 8)


def _footer_length(data: bytes, draw: random.Random) -> bytes:
    return _put(data, len(data) - 8, struct.pack("<I", draw.choice(EDGES) % 2**32))


def _page(data: bytes, draw: random.Random) -> bytes:
    """A bit of a page's header or of its values."""
    return _bit(data, draw, 4, _foot(data))


def _directory(data: bytes, draw: random.Random) -> bytes:
    """A number of an entry: method, checksum, sizes, lengths, place."""
    entry = draw.choice([match.start() for match in re.finditer(b"PK\x01\x02", data)])
    place, width = draw.choice(((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)))
    return _put(data, entry + place, (draw.choice(EDGES) % (1 << 8 * width)).to_bytes(width, "little"))


def _member(data: bytes, draw: random.Random) -> bytes:
    """A bit of what is stored, or of what stands before it."""
    return _bit(data, draw, 0, data.find(b"PK\x01\x02"))


# pictures


def _size(data: bytes, draw: random.Random) -> bytes:
    """Another width or height, with the checksum that fits where there is one."""
    if data.startswith(b"\x89PNG"):
        head = b"IHDR" + struct.pack(">II", *draw.choices((0, 1, 27, 29, 2**16, 2**31 - 1), k=2)) + data[24:29]
        return _put(data, 12, head + struct.pack(">I", zlib.crc32(head)))
    if data.startswith(b"RIFF"):
        return _put(data, 26, struct.pack("<HH", *draw.choices((0, 1, 29, 16383), k=2)))
    frame = re.search(rb"\xff[\xc0\xc2]", data)
    return _put(data, frame.start() + 5 if frame else 8, struct.pack(">HH", *draw.choices((0, 1, 29, 65535), k=2)))
