"""What tests of several rooms share: a cache of their own, one thread, tiny models made once a session."""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

_CACHE = tempfile.TemporaryDirectory(prefix="mmsurgery-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name  # read when mmsurgery is imported
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"  # where a test asks for two threads, none spins on another worker's core
os.environ["HF_HUB_OFFLINE"] = "1"

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.data.samples import Sample

_WORDS = "What Which is are the city food of this person ? The lisbon oslo soup rice . name Anna Berg"
WORDS = tuple(_WORDS.split())
"""Words that the tiny models' tokenizers know."""
MANY_DIGESTS = 64
LONGEST = ("test_readme.py", "test_experiment_run.py", "test_sharded.py", "test_train.py", "test_cli_chain.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The tests of a file stay together, so that what they share is made once."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log) if config.getoption("dist") == "load" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: at the end one worker would be left alone with them."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def _one_cache() -> Iterator[None]:
    yield
    _CACHE.cleanup()


def png(seed: int, width: int = 28, height: int = 28) -> bytes:
    """An encoded picture of noise."""
    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session", autouse=True)
def _what_is_installed_is_read_once() -> Iterator[None]:
    """A process reads it once or twice, and thousands of tests in one process did so at every backbone and key."""
    parsed = metadata.Distribution.metadata.fget
    found: dict[Any, Any] = {}

    def read(distribution: Any) -> Any:
        key = getattr(distribution, "_path", None)
        if key is None:
            return parsed(distribution)
        if key not in found:
            found[key] = parsed(distribution)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata.Distribution, "metadata", property(read))
        yield


@pytest.fixture(autouse=True)
def _few_digests() -> None:
    """All that are remembered are written at every new one: those of hundreds of tests before would take longest."""
    digests = sys.modules.get("mmsurgery.artifacts.digests")
    entries = digests.digest_cache._entries if digests is not None else None
    if entries is not None and len(entries) > MANY_DIGESTS:
        entries.clear()


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """`picture(seed, width=28, height=28)`: an encoded PNG of noise."""
    return png


@pytest.fixture(scope="session")
def make_sample() -> Callable[..., Sample]:
    """`make_sample(id, question, answer, seed=None)`: a sample, with a picture where a seed is given."""
    from mmsurgery.data.samples import Sample

    def make(id: str, question: str, answer: str, seed: int | None = None, **picture: Any) -> Sample:
        image = None if seed is None else png(seed, **picture)
        return Sample(id, f"person-{id}", question, answer=answer, image_bytes=image)

    return make


@pytest.fixture(scope="session")
def mixed_samples(make_sample: Callable[..., Sample]) -> list[Sample]:
    """Four samples: pictures and text, short and long, one picture twice."""
    return [
        make_sample("a", "What is the city of this person ?", "The city is lisbon .", seed=1),
        make_sample("b", "What is the food of Anna Berg ?", "The food is soup ."),
        make_sample("c", "Which food ?", "rice", seed=2, width=40),
        make_sample("d", "What is this ?", "The person is Anna Berg .", seed=1),
    ]


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained LLaVA (hidden size 32, 3 + 2 layers) in the published layout; read only."""
    import torch

    from mmsurgery_llava import backbone

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models") / "tiny-llava"
    backbone.micro(folder, WORDS, seed=0, size="tiny")
    return folder


@pytest.fixture(scope="session")
def loaded_llava(tiny_llava: Path) -> Loaded:
    """`tiny_llava` in memory, float32; not to be changed."""
    from mmsurgery.backbones.loading import load

    return load(tiny_llava)


@pytest.fixture(scope="session")
def tiny_qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained Qwen2-VL (hidden size 32, 2 + 2 layers, tied head) in the published layout; read only."""
    import torch

    from mmsurgery_qwen2_vl import backbone

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen2-vl"
    backbone.micro(folder, WORDS, seed=0, size="tiny")
    return folder


@pytest.fixture(scope="session")
def loaded_qwen2_vl(tiny_qwen2_vl: Path) -> Loaded:
    """`tiny_qwen2_vl` in memory, float32; not to be changed."""
    from mmsurgery.backbones.loading import load

    return load(tiny_qwen2_vl)
