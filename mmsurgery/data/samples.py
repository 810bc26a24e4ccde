"""The two records that flow through the tool: training samples and scored items."""

from __future__ import annotations

import functools
import hashlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmsurgery.errors import InputRefused
from mmsurgery.provenance import sha256_json

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 25_000_000
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
SMALLER = f"scale it down to at most {MAX_PIXELS:,} pixels"
"""What to do about a picture with more."""


def decode_image(data: bytes, where: str) -> Image:
    """Decode an encoded picture to RGB.

    Raises:
        InputRefused: naming `where`, for anything but a whole PNG, JPEG or WebP that `check_picture` takes.
    """
    from PIL import Image as pil
    from PIL import ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with pil.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
                check_picture(image, where)
                image.load()
                return ImageOps.exif_transpose(image).convert("RGB")
        except InputRefused:
            raise
        except (pil.DecompressionBombWarning, pil.DecompressionBombError) as error:  # of more than the decoder opens
            raise InputRefused(f"{where}: picture of too many pixels", SMALLER) from error
        except Exception as error:  # a dozen classes can come out of a damaged picture
            raise InputRefused(
                f"{where}: picture cannot be decoded ({type(error).__name__})", "replace the picture"
            ) from error


def check_picture(image: Image, where: str) -> None:
    """Look at the header of an open picture.

    Raises:
        InputRefused: naming `where`, for one of more than 25 Mpx, of several frames, of which it does not say which one
            is meant, or in 16-bit gray, of which the decoder makes white.
    """
    if (pixels := image.width * image.height) > MAX_PIXELS:
        raise InputRefused(f"{where}: picture of {pixels:,} pixels is too large", SMALLER)
    if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a photo and its preview
        raise InputRefused(f"{where}: picture of {getattr(image, 'n_frames', 2)} frames", "save the one that is meant")
    if image.mode.startswith("I"):
        raise InputRefused(f"{where}: picture in 16-bit gray", "save it with 8 bits a pixel")


@dataclass(frozen=True)
class _Pictured:
    id: str
    """Unique within its part or column; stable across runs."""
    person: str
    """Key of the person, unique over a benchmark's fictitious and real people."""
    question: str
    image_bytes: bytes | None = field(repr=False, kw_only=True, default=None)
    """The encoded picture, or None for a text question."""

    @functools.cached_property
    def image_sha256(self) -> str | None:
        """Digest of the encoded picture, or None."""
        return None if self.image_bytes is None else hashlib.sha256(self.image_bytes).hexdigest()

    @property
    def image(self) -> Image | None:
        """The picture in RGB, decoded at each access, or None for a text question."""
        return None if self.image_bytes is None else decode_image(self.image_bytes, self.id)


@dataclass(frozen=True)
class Sample(_Pictured):
    """One question with its answer, to be trained on or measured."""

    answer: str = field(kw_only=True)
    part: str = field(kw_only=True, default="")
    """Name of the data part it belongs to (`forget_vqa`, ...)."""

    def record(self) -> dict[str, Any]:
        """What identifies the sample's content."""
        return {
            "id": self.id,
            "person": self.person,
            "image": self.image_sha256,
            "question": self.question,
            "answer": self.answer,
        }


@dataclass(frozen=True)
class Item(_Pictured):
    """One scored question."""

    column: str = field(kw_only=True)
    """Name of the score column (`forget_vqa`, `realworld_qa`, ...)."""
    task: str = field(kw_only=True, default="classification")
    """`classification` (options and gold letter), `cloze` or `generation` (gold text), `truth` (true and wrong
    answers as options, gold `true`)."""
    options: dict[str, str] | None = field(kw_only=True, default=None)
    """Letter -> option text in stored order, for classification."""
    gold: str = field(kw_only=True)
    """The gold option's letter for classification, else the gold text."""

    @property
    def modality(self) -> str:
        """`image` or `text`."""
        return "text" if self.image_bytes is None else "image"

    def record(self) -> dict[str, Any]:
        """What identifies the item's content."""
        return {
            "id": self.id,
            "person": self.person,
            "image": self.image_sha256,
            "question": self.question,
            "options": self.options,
            "gold": self.gold,
            "task": self.task,
        }


def data_sha256(records: Sequence[Sample] | Sequence[Item]) -> str:
    """Digest of samples or items in their order: ids, people, pictures, questions, answers."""
    return sha256_json([record.record() for record in records])
