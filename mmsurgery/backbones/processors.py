"""Loading the processor of a checkpoint folder: what its files say is checked against the model's configuration, and
what is a program of the checkpoint's, or takes memory as the checkpoint says, is tried within limits."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.apart import MEMORY, Died, apart
from mmsurgery.artifacts.checkpoint import (
    FURTHER_TEMPLATES,
    companion_files,
    companions_sha256,
    model_config,
)
from mmsurgery.backbones.encoding import render
from mmsurgery.backbones.loading import fault_of, quiet
from mmsurgery.errors import InputRefused

_SECONDS = 2
"""Of processor time; a template and a picture take thousandths."""
_SAID: dict[tuple[str, str], Any] = {}
"""What was returned in this process, by the digest of a checkpoint's files and what was tried."""
AGAIN = "copy {} from the model it was made of"


def pretrained_processor(cls: Any, config_class: Any, path: Path) -> tuple[Any, Any]:
    """A transformers processor of class `cls` from a local folder, silent, and the model's config.

    Raises:
        InputRefused: if its files or the config cannot be used, or tokens are not those of the config.
        MachineFault: if the machine has run out of memory, processes or open files.
    """
    described = model_config(path)
    with quiet():
        try:
            config = config_class.from_dict(described)
        except Exception as error:  # configs are validated by half a dozen libraries
            raise fault_of(f"{path} cannot be loaded", error) from error
        with _files_that_count(path) as folder:
            try:
                processor = cls.from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)
            except Exception as error:  # damaged tokenizer files raise bare exceptions of the Rust side
                raise fault_of(f"the processor files of {path} cannot be read", error) from error
        if processor.chat_template is None:  # some fine-tunes keep it with the tokenizer only
            processor.chat_template = processor.tokenizer.chat_template
        if processor.chat_template is None:
            raise InputRefused(
                f"{path} has no chat template", AGAIN.format("chat_template.jinja or chat_template.json")
            )
        _check_tokens(path, processor, config)
        within_limits(path, f"the chat template of {path}", lambda: _try_template(processor))
    return processor, config


def within_limits(path: Path, what: str, work: Callable[[], Any]) -> Any:
    """What a function returns, a JSON value, that does as a checkpoint says; called in a process of its own, and once
    only for the same files.

    Args:
        path: the checkpoint.
        what: that is tried, for messages, in which the path stands.

    Raises:
        InputRefused: if it takes too long or too much memory.
        MachineFault: if no process can be made.
    """

    key = (companions_sha256(path), what.replace(str(path), ""))
    if key in _SAID:
        return _SAID[key]

    def silently() -> Any:
        warnings.simplefilter("ignore")
        return work()

    said = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # unsaid, tokenizers warns in every process that is forked
    try:
        _SAID[key] = apart(silently, _SECONDS)
    except Died as died:
        raise InputRefused(
            f"{what} takes more than {_SECONDS} s or {MEMORY >> 30} GiB", "copy the processor files of the model again"
        ) from died
    except OSError as error:
        raise fault_of(f"{what} cannot be tried", error) from error
    finally:
        if said is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
    return _SAID[key]


@contextlib.contextmanager
def _files_that_count(path: Path) -> Iterator[Path]:
    """The folder itself; where it has further chat templates, which transformers would read, one without them."""
    if not (path / FURTHER_TEMPLATES).exists():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        for file in companion_files(path):
            Path(folder, file.name).symlink_to(file.resolve())
        yield Path(folder)


def _check_tokens(path: Path, processor: Any, config: Any) -> None:
    """Check tokens that the model would look up or wait for: it finds out in the first forward pass, or never."""
    tokenizer, image = processor.tokenizer, processor.image_token
    if tokenizer.eos_token is None:
        raise InputRefused(
            f"{path / 'tokenizer_config.json'} names no end token (eos_token)", AGAIN.format("tokenizer_config.json")
        )
    if not isinstance(tokenizer.model_max_length, int | float):
        raise InputRefused(
            f"{path / 'tokenizer_config.json'} says model_max_length = {str(tokenizer.model_max_length)[:60]!r}",
            AGAIN.format("tokenizer_config.json"),
        )
    size = config.get_text_config().vocab_size
    around = tokenizer.encode("")  # ids that may be in no vocabulary
    greatest = max([*tokenizer.get_vocab().values(), *around], default=-1)
    if greatest >= size:
        raise InputRefused(
            f"{path}: the tokenizer (tokenizer.json, tokenizer_config.json) has token "
            f"{tokenizer.convert_ids_to_tokens(greatest)!r} with id {greatest}, config.json says vocab_size = {size}",
            AGAIN.format("the tokenizer's files and config.json"),
        )
    found = tokenizer.encode(image, add_special_tokens=False)
    if found != [config.image_token_id]:
        raise InputRefused(
            f"{path / 'config.json'} says the image token is {config.image_token_id}, "
            f"the tokenizer makes {str(found)[:60]} of {image}",
            AGAIN.format("config.json and the tokenizer's files"),
        )


def _try_template(processor: Any) -> None:
    """Render a turn, with and without its answer; that it fails is said where it is used."""
    for answer in (None, "This."):
        try:
            render(processor, "What is this?", answer, image=True)
        except InputRefused as error:
            if isinstance(error.__cause__, MemoryError):
                raise
