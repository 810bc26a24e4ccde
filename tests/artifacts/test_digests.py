"""Digests are remembered where nothing can have changed, and only there."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from mmsurgery.artifacts import digests
from mmsurgery.artifacts.digests import DigestCache
from mmsurgery.provenance import sha256


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], DigestCache]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return DigestCache


def settled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no file count as just written."""
    monkeypatch.setattr(digests, "_RACY", -(10**18))


def test_a_digest_is_remembered_until_the_file_changes(
    cache: Callable[[], DigestCache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    settled(path, monkeypatch)
    assert cache().sha256(path) == sha256(b"one")
    with monkeypatch.context() as patch:
        patch.setattr(digests, "sha256_file", lambda path: pytest.fail("hashed again"))
        assert cache().sha256(path) == sha256(b"one")
    times = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert cache().sha256(path) == sha256(b"two")


def test_a_change_within_one_tick_of_the_clock_is_seen(
    cache: Callable[[], DigestCache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    frozen = path.stat()
    monkeypatch.setattr(digests, "regular_file", lambda path: frozen)
    kept = cache()
    for text in (b"one", b"two", b"six"):
        path.write_bytes(text)
        assert kept.sha256(path) == sha256(text)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"x": 1}', '{"x": [1, 2]}', "\xff"])
def test_a_damaged_cache_costs_time_alone(text: str, cache: Callable[[], DigestCache], tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    store = tmp_path / "cache" / "mmsurgery" / "digests.json"
    store.parent.mkdir(parents=True)
    store.write_text(text, encoding="latin-1")
    assert cache().sha256(path) == sha256(b"one")


def test_a_cache_that_others_may_write_is_not_believed(
    cache: Callable[[], DigestCache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    settled(path, monkeypatch)
    cache().sha256(path)
    store = tmp_path / "cache" / "mmsurgery" / "digests.json"
    entries = json.loads(store.read_text())
    planted = {key: [identity, "0" * 64] for key, (identity, _) in entries.items()}
    store.write_text(json.dumps(planted))
    assert cache().sha256(path) == "0" * 64
    store.chmod(0o666)
    assert cache().sha256(path) == sha256(b"one")


def test_a_cache_that_cannot_be_written(
    cache: Callable[[], DigestCache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    assert cache().sha256(path) == sha256(b"one")
    assert stat.S_IMODE(path.stat().st_mode) & 0o600


def test_the_cache_stays_small_and_private(cache: Callable[[], DigestCache], tmp_path: Path) -> None:
    kept = cache()
    kept._load().update({str(i): [[i], "x"] for i in range(5000)})
    assert kept.remember("new", [1], lambda: "value") == "value"
    store = tmp_path / "cache" / "mmsurgery" / "digests.json"
    entries = json.loads(store.read_text())
    assert len(entries) == 2048
    assert entries["new"] == [[1], "value"]
    assert stat.S_IMODE(store.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.parent.stat().st_mode) == 0o700
