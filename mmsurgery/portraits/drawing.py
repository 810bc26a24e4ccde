"""Drawing a face as 48 x 48 pixels, and writing it as PNG."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmsurgery.portraits.wording import BACKGROUND_COLOURS, HAIR_COLOURS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]
    Field = NDArray[np.float64]
    Region = NDArray[np.bool_]

SIZE = 48
JITTER = 12
"""Largest change of a colour channel between renderings."""
NOISE = 4.0
"""Standard deviation of the pixel noise, in levels of 255."""

SKIN_TONES = ((250, 222, 198), (236, 188, 150), (206, 150, 108), (164, 108, 70), (116, 72, 46), (72, 46, 34))
EYE_COLOURS = ((40, 90, 190), (40, 130, 60), (90, 56, 28), (30, 30, 34), (110, 116, 124))
SHIRT_COLOURS = (
    (200, 30, 40),
    (30, 60, 150),
    (24, 120, 60),
    (240, 240, 240),
    (32, 32, 36),
    (240, 200, 40),
    (130, 40, 140),
    (60, 190, 200),
)
HAIR_STYLES = 4
_GLASSES = (20, 20, 24)
_MOUTH = (176, 44, 52)
_EYE_WHITE = (250, 250, 250)


@dataclass(frozen=True)
class Face:
    """What stays the same over all renderings of a person; lengths in pixels."""

    skin: int
    hair: str
    style: int
    eye: int
    shirt: int
    width: float
    """Half-axis of the face, 9 to 13."""
    height: float
    """Half-axis of the face, 11 to 15."""
    mouth: float
    """Half-width of the mouth, 2 to 6."""
    glasses: bool
    beard: bool


def draw_face(rng: np.random.Generator) -> Face:
    """A face with every feature drawn independently and uniformly."""
    return Face(
        skin=int(rng.integers(len(SKIN_TONES))),
        hair=list(HAIR_COLOURS)[int(rng.integers(len(HAIR_COLOURS)))],
        style=int(rng.integers(HAIR_STYLES)),
        eye=int(rng.integers(len(EYE_COLOURS))),
        shirt=int(rng.integers(len(SHIRT_COLOURS))),
        width=float(rng.uniform(9, 13)),
        height=float(rng.uniform(11, 15)),
        mouth=float(rng.uniform(2, 6)),
        glasses=bool(rng.integers(2)),
        beard=bool(rng.integers(2)),
    )


def _ellipse(x: Field, y: Field, cx: float, cy: float, rx: float, ry: float) -> Region:
    return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1.0


def _hair(face: Face, x: Field, y: Field) -> tuple[Region, Region]:
    """Regions of hair behind and in front of the face, by style: cap, long, crest, curls."""
    w, h = face.width, face.height
    nothing = np.zeros_like(x, dtype=np.bool_)
    around = _ellipse(x, y, 0, -2, w + 2.5, h + 2.5)
    fringe = _ellipse(x, y, 0, 0, w, h) & (y < -0.55 * h)
    if face.style == 0:
        return around & (y < -0.2 * h), fringe
    if face.style == 1:
        return around | ((np.abs(x) < w + 3) & (y > -2) & (y < h + 2)), fringe
    if face.style == 2:
        return (np.abs(x) < 3.5) & (y < 0) & (y > -h - 6), nothing
    curls = nothing
    for angle in np.linspace(np.pi, 2 * np.pi, 7):
        curls = curls | _ellipse(x, y, w * np.cos(angle), 0.9 * h * np.sin(angle), 4.2, 4.2)
    return curls, fringe


def render(
    face: Face, background: str, rng: np.random.Generator, *, shift: int = 2, scale: tuple[float, float] = (1.0, 1.0)
) -> Pixels:
    """One picture of a face: uint8 `[48, 48, 3]`, RGB.

    Colours are jittered, the head is moved by up to `shift` pixels each way and scaled by a factor
    drawn from `scale`, and every pixel gets normal noise.
    """
    factor = rng.uniform(*scale)
    dx, dy = rng.integers(-shift, shift + 1, size=2)
    rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64)
    x, y = (columns - 23.5 - dx) / factor, (rows - 22.5 - dy) / factor
    w, h = face.width, face.height
    behind, front = _hair(face, x, y)
    head = _ellipse(x, y, 0, 0, w, h)
    eyes_x, eyes_y = 0.42 * w, -0.12 * h
    side = np.abs(x)
    beard = head & (y > 0.38 * h) if face.beard else np.zeros_like(head)
    lens = np.hypot(side - eyes_x, y - eyes_y)
    frame = ((lens > 2.9) & (lens < 4.2)) | ((np.abs(y - eyes_y) < 0.7) & (side < eyes_x - 2.8))
    layers = [
        (np.ones_like(head), BACKGROUND_COLOURS[background]),
        (_ellipse(x, y, 0, h + 10, 19, 12), SHIRT_COLOURS[face.shirt]),
        (behind, HAIR_COLOURS[face.hair]),
        (head, SKIN_TONES[face.skin]),
        (front, HAIR_COLOURS[face.hair]),
        (beard, HAIR_COLOURS[face.hair]),
        ((np.abs(y - 0.55 * h) < 1.2) & (side < face.mouth), _MOUTH),
        (_ellipse(side, y, eyes_x, eyes_y, 2.6, 1.8), _EYE_WHITE),
        (_ellipse(side, y, eyes_x, eyes_y, 1.4, 1.4), EYE_COLOURS[face.eye]),
        (frame if face.glasses else np.zeros_like(head), _GLASSES),
    ]
    jitter = {colour: rng.integers(-JITTER, JITTER + 1, size=3) for _, colour in layers}
    picture = np.zeros((SIZE, SIZE, 3))
    for region, colour in layers:
        picture[region] = np.asarray(colour) + jitter[colour]
    picture += rng.normal(0.0, NOISE, picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def png(pixels: Pixels) -> bytes:
    """A PNG file of uint8 `[H, W, 3]` RGB pixels, stored uncompressed.

    Noise does not compress, and stored data is the same whatever the compression library's version,
    so digests of pictures hold on every machine.
    """
    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines, level=0)),
        (b"IEND", b""),
    )
    body = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)
