"""Answer distributions as a file: what is read is what was written, or it is to be made again."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsurgery.artifacts import distributions
from mmsurgery.artifacts.distributions import Distributions
from mmsurgery.artifacts.tensors import write_safetensors
from mmsurgery.errors import InputRefused
from mmsurgery.provenance import SCHEMA, canonical_json, provenance, seal

MADE = provenance("apply", {"set": "anchor_vqa"}, {"vanilla": "0" * 64})
KEY = MADE["key"]
SAMPLES = ("a", "b", "c", "d")
VALUES = np.log(np.random.default_rng(0).dirichlet(np.ones(5), 6)).astype(np.float32)
ENDS = np.array([1, 4, 6], dtype=np.int64)
ROWS = np.array([2, 0, 1, 0], dtype=np.int64)
"""Samples b and d share the first row."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "references/anchor_vqa-01234567.safetensors"
    distributions.write(file, VALUES, ENDS, ROWS, MADE)
    return file


def read(path: Path) -> Distributions | None:
    return distributions.read(path, SAMPLES, KEY)


def test_what_is_read_is_what_was_written_by_id(path: Path) -> None:
    found = read(path)
    assert found is not None
    assert list(found) == list(SAMPLES)
    assert len(found) == len(SAMPLES)
    for sample, (begin, end) in {"a": (4, 6), "b": (0, 1), "c": (1, 4), "d": (0, 1)}.items():
        assert str(found[sample].dtype) == "torch.float32"
        assert found[sample].numpy().tobytes() == VALUES[begin:end].tobytes()
    with pytest.raises(KeyError):
        found["e"]


def test_ids_are_whose_the_rows_are_in_their_order(path: Path) -> None:
    named, turned = (distributions.read(path, ids, KEY) for ids in (SAMPLES, SAMPLES[::-1]))
    assert named is not None
    assert turned is not None
    assert all(turned[theirs].equal(named[ours]) for theirs, ours in zip(SAMPLES[::-1], SAMPLES, strict=True))
    assert not turned["c"].equal(named["c"])


def test_what_is_taken_out_may_be_written_over(path: Path) -> None:
    """The file is mapped; a tensor of it is a copy."""
    found = read(path)
    assert found is not None
    found["a"].zero_()
    assert found["a"].numpy().tobytes() == VALUES[4:6].tobytes()
    assert read(path) is not None


def test_the_same_is_written_to_the_same_bytes(path: Path) -> None:
    before = path.read_bytes()
    distributions.write(path, VALUES, ENDS, ROWS, MADE)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def other_key(path: Path) -> Distributions | None:
    return distributions.read(path, SAMPLES, "f" * 64)


def fewer_samples(path: Path) -> Distributions | None:
    return distributions.read(path, SAMPLES[:3], KEY)


def more_samples(path: Path) -> Distributions | None:
    return distributions.read(path, (*SAMPLES, "e"), KEY)


def nothing_there(path: Path) -> Distributions | None:
    path.unlink()
    return read(path)


def a_folder(path: Path) -> Distributions | None:
    path.unlink()
    path.mkdir()
    return read(path)


def a_pipe(path: Path) -> Distributions | None:
    path.unlink()
    os.mkfifo(path)
    return read(path)


def empty(path: Path) -> Distributions | None:
    path.write_bytes(b"")
    return read(path)


def something_else(path: Path) -> Distributions | None:
    path.write_text("no tensors")
    return read(path)


def a_value(path: Path) -> Distributions | None:
    """One bit of the last value of the table."""
    data = bytearray(path.read_bytes())
    place = data.index(VALUES.tobytes()) + VALUES.nbytes - 4
    data[place] ^= 1
    path.write_bytes(data)
    return read(path)


@pytest.mark.parametrize(
    "fault",
    [other_key, fewer_samples, more_samples, nothing_there, a_folder, a_pipe, empty, something_else, a_value],
    ids=lambda each: each.__name__,
)
def test_what_does_not_fit_is_to_be_made_again(path: Path, fault: Callable[[Path], Distributions | None]) -> None:
    assert fault(path) is None


def test_whether_a_file_is_whole_is_asked_without_its_samples(path: Path) -> None:
    distributions.check(path)
    for fault in (a_value, empty, something_else):
        fault(path)
        with pytest.raises(InputRefused):
            distributions.check(path)


def test_a_file_that_is_cut_anywhere_or_has_more(path: Path) -> None:
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert read(path) is None, length
    path.write_bytes(data + b"\0")
    assert read(path) is None
    path.write_bytes(data)
    assert read(path) is not None


def test_a_bit_that_is_flipped_anywhere(path: Path) -> None:
    data, draw = path.read_bytes(), random.Random(0)
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        assert read(path) is None, (place, damaged[place])


def test_bytes_that_are_anything(path: Path) -> None:
    data, draw = path.read_bytes(), random.Random(1)
    for trial in range(300):
        damaged = bytearray(data)
        for _ in range(draw.randrange(1, 40)):
            damaged[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(damaged)
        assert damaged == data or read(path) is None, trial


OTHERS: dict[str, dict[str, Any]] = {
    "without rows": {"rows": None},
    "one more": {"more": ROWS},
    "float64": {"log_probabilities": VALUES.astype(np.float64)},
    "float16": {"log_probabilities": VALUES.astype(np.float16)},
    "rows of int32": {"rows": ROWS.astype(np.int32)},
    "a table of one dimension": {"log_probabilities": VALUES.reshape(-1)},
    "ends of two dimensions": {"ends": ENDS[None]},
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_tensors_are_to_be_made_again(path: Path, case: str) -> None:
    """With digest and seal that fit them."""
    tensors = {"log_probabilities": VALUES, "ends": ENDS, "rows": ROWS, **OTHERS[case]}
    _write(path, {name: values for name, values in tensors.items() if values is not None})
    assert read(path) is None


INCONSISTENT = {
    "an end beyond the table": (VALUES, [1, 4, 7], ROWS),
    "an end before the table's": (VALUES, [1, 4, 5], ROWS),
    "an empty row": (VALUES, [1, 1, 6], ROWS),
    "ends that fall": (VALUES, [4, 1, 6], ROWS),
    "an end below nothing": (VALUES, [-1, 4, 6], ROWS),
    "no ends": (VALUES[:0], [], [0, 0, 0, 0]),
    "a row beyond the ends": (VALUES, ENDS, [3, 0, 1, 0]),
    "a row below nothing": (VALUES, ENDS, [2, -1, 1, 0]),
}


@pytest.mark.parametrize("case", INCONSISTENT)
def test_tensors_that_do_not_go_together_are_to_be_made_again(path: Path, case: str) -> None:
    values, ends, rows = INCONSISTENT[case]
    distributions.write(path, values, np.array(ends, dtype=np.int64), np.array(rows, dtype=np.int64), MADE)
    assert read(path) is None


SAID: dict[str, dict[str, Any]] = {
    "another kind": {"kind": "mask"},
    "another schema": {"schema": SCHEMA + 1},
    "no digest": {"sha256": None},
    "no key": {"provenance": {}},
}


@pytest.mark.parametrize("case", SAID)
def test_what_says_something_else_of_itself_is_to_be_made_again(path: Path, case: str) -> None:
    tensors: dict[str, Any] = {"log_probabilities": VALUES, "ends": ENDS, "rows": ROWS}
    _write(path, tensors)
    assert read(path) is not None
    _write(path, tensors, **SAID[case])
    assert read(path) is None


def test_metadata_that_is_edited_breaks_the_seal(path: Path) -> None:
    data = path.read_bytes()
    edited = data.replace(KEY.encode(), b"0" * 64)
    assert edited != data
    path.write_bytes(edited)
    assert distributions.read(path, SAMPLES, "0" * 64) is None


def _write(path: Path, tensors: dict[str, Any], **said: Any) -> None:
    """As `distributions.write`, of anything."""
    value = {"schema": SCHEMA, "kind": "distributions", "sha256": distributions._digest(tensors), "provenance": MADE}
    value = {key: each for key, each in {**value, **said}.items() if each is not None}
    write_safetensors(path, tensors, {"mmsurgery": canonical_json(seal(value)).decode()})


def test_the_file_is_plain_safetensors(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        assert set(file.keys()) == {"log_probabilities", "ends", "rows"}
        said = json.loads(file.metadata()["mmsurgery"])
        assert said["provenance"]["key"] == KEY
        np.testing.assert_array_equal(file.get_tensor("log_probabilities"), VALUES)
