"""Error classes and their lines; canonical JSON, strict reading, seals."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mmsurgery
from mmsurgery import errors
from mmsurgery.errors import InputRefused, InternalError, Mismatch, MmsurgeryError, nearest, printable, unknown
from mmsurgery.provenance import (
    canonical_json,
    check_seal,
    differences,
    parse_json,
    provenance,
    seal,
    sha256,
    sha256_file,
    sha256_json,
    versions,
)


def test_exit_codes_are_the_contract() -> None:
    codes = {
        "GateMissed": 1,
        "UsageError": 2,
        "NoWorkspace": 2,
        "MissingArtifact": 2,
        "InputRefused": 3,
        "Mismatch": 4,
        "UnusableData": 5,
        "MachineFault": 6,
        "RemoteFault": 7,
        "InternalError": 70,
        "MmsurgeryError": 70,
    }
    found = {
        name: kind.code
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, MmsurgeryError)
    }
    assert found == codes
    assert set(found) <= set(str(errors.__doc__).split())


def test_one_line_with_what_and_what_next() -> None:
    assert InputRefused("x is cut", "make it again").line() == "error[3]: x is cut - next: make it again"
    assert Mismatch("a is not b").line() == "error[4]: a is not b"
    hostile = InputRefused("a\nb\x1b[31m\u202ec\u2028", "d\r\te")
    assert hostile.line() == "error[3]: a\\nb\\x1b[31m\\u202ec\\u2028 - next: d\\r\\te"


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1


def test_nearest_and_unknown() -> None:
    assert nearest("visoin", ["vision", "lm"]) == "vision"
    assert nearest("zzz", ["vision", "lm"]) is None
    error = unknown("backbone", "lava", ["llava", "qwen2_vl"])
    assert (error.code, str(error)) == (2, "no backbone 'lava' - next: did you mean 'llava'? known: llava, qwen2_vl")
    assert str(unknown("thing", "x", [])).endswith("known: none")
    assert str(unknown("thing", "x", [f"name{i:02d}" for i in range(30)])).count("name") == 20


# canonical JSON

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(json_values)
def test_canonical_json_is_read_as_it_was_written(value: Any) -> None:
    data = canonical_json(value)
    assert parse_json(data, "here") == value
    assert canonical_json(parse_json(data, "here")) == data


def test_canonical_json_by_hand() -> None:
    assert canonical_json({"b": 1, "a": ["é", 0.1, None, True]}) == '{"a":["é",0.1,null,true],"b":1}'.encode()
    assert sha256_json({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest() == sha256(b'{"a":1}')


@pytest.mark.parametrize("value", [math.nan, [math.inf], {1, 2}, b"x", object(), "\ud800"])
def test_what_is_no_json_is_our_own_fault(value: Any) -> None:
    with pytest.raises(InternalError):
        canonical_json(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[1,]",
        b"{'a': 1}",
        b'{"a": 1, "a": 1}',
        b'{"x": {"a": 1, "a": 2}}',
        b"NaN",
        b"[Infinity]",
        b"[-Infinity]",
        b"[1e999]",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"[" * 200_000,
        b"9" * 5000,
        b'"\\ud800"',
        b'{"\\udfff": 1}',
        b'["\\uD83D\\u0041"]',
        b'"\x01"',
    ],
)
def test_json_that_is_refused(data: bytes) -> None:
    with pytest.raises(InputRefused, match="here") as caught:
        parse_json(data, "here")
    assert len(caught.value.what) < 400


def test_pairs_of_surrogates_are_text() -> None:
    assert parse_json(b'"\\ud83d\\ude42"', "here") == "🙂"


# provenance and seals


def test_the_key_names_command_settings_and_inputs() -> None:
    one = provenance("mask", {"beta": 1.0}, {"model": "m"})
    assert set(one) == {"command", "settings", "inputs", "versions", "key"}
    assert one["key"] == sha256_json({"command": "mask", "settings": {"beta": 1.0}, "inputs": {"model": "m"}})
    for other in (
        provenance("saliency", {"beta": 1.0}, {"model": "m"}),
        provenance("mask", {"beta": 2.0}, {"model": "m"}),
        provenance("mask", {"beta": 1.0}, {"model": "n"}),
    ):
        assert other["key"] != one["key"]
    assert differences(one, provenance("mask", {"beta": 2.0}, {"model": "n"})) == "beta 1.0 -> 2.0, model m -> n"
    assert differences(one, provenance("other", {"beta": 1.0}, {"model": "m"})) == "command"
    long = [provenance("mask", {}, {"data": letter * 64, "parts": {"a": letter}}) for letter in "de"]
    assert differences(*long) == f"data {'d' * 12} -> {'e' * 12}, parts"
    inner = [
        provenance("apply", {"method_settings": {"weight": w, "seed": 1}, "seed": 2}, {"beside": {"text": "t"}})
        for w in (1, 2)
    ]
    assert differences(*inner) == "weight 1 -> 2"
    inner[1]["settings"]["method_settings"]["seed"] = 3
    assert differences(*inner) == "method_settings.seed 1 -> 3, weight 1 -> 2"
    assert differences({}, one) == "beta None -> 1.0, model None -> m"


def test_versions_without_importing() -> None:
    code = (
        "import sys; from mmsurgery.provenance import versions; versions()\n"
        "assert not {'torch', 'numpy', 'h5py'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {"mmsurgery", "torch", "numpy"} <= set(versions())


def record(**changes: Any) -> dict[str, Any]:
    return {"schema": 1, "kind": "eval", "value": 1, "provenance": {"command": "eval"}} | changes


def test_a_seal_is_checked() -> None:
    sealed = seal(record())
    assert check_seal(sealed, "here", kind="eval") == sealed
    assert seal(sealed) == sealed
    for key, value in (("value", 2), ("more", 1), ("provenance", {**sealed["provenance"], "command": "x"})):
        with pytest.raises(InputRefused, match="changed or damaged"):
            check_seal({**sealed, key: value}, "here", kind="eval")


@pytest.mark.parametrize(
    "value", [None, [], 3, record(kind="mask"), record(kind=["eval"]), record(provenance=None), {"kind": "eval"}]
)
def test_what_is_no_record(value: Any) -> None:
    with pytest.raises(InputRefused, match="no eval of mmsurgery"):
        check_seal(value, "here", kind="eval")


def test_another_schema() -> None:
    for schema in (0, 2, None, "1"):
        with pytest.raises(Mismatch, match="schema"):
            check_seal(record(schema=schema), "here", kind="eval")


def test_records_that_cannot_be_encoded() -> None:
    with pytest.raises(InputRefused, match="canonical"):
        check_seal(record(value="\ud800"), "here", kind="eval")


def test_digest_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 100_000)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(b"x" * 100_000).hexdigest()
    assert json.loads(canonical_json({"x": sha256_file(tmp_path / "x")}))


def test_every_error_says_what_to_do_next() -> None:
    """Promise 12: what is raised names a next step, but for classes that have a usual one."""
    root = Path(mmsurgery.__file__).parents[1]
    without = {
        f"{path.relative_to(root)}:{call.lineno}"
        for folder in ("mmsurgery", "cli", "plugins")
        for path in (root / folder).rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and isinstance(kind := getattr(errors, call.func.id, None), type)
        and issubclass(kind, errors.MmsurgeryError)
        and kind.usual_step is None
        and len(call.args) + len(call.keywords) < 2
    }
    assert not without


@pytest.mark.parametrize(
    ("kind", "versions", "whole"),
    [
        ("eval", {}, False),
        ("run", {"mmsurgery": "0.1"}, False),
        ("mask", {"mmsurgery": "0.1"}, False),
        ("mask", {}, True),
    ],
)
def test_a_seal_can_be_missing_in_what_others_may_write_alone(kind: str, versions: dict[str, str], whole: bool) -> None:
    """A record from which a run of bytes was taken out, the seal among them."""
    record = {"schema": 1, "kind": kind, "provenance": {"versions": versions}}
    assert check_seal(seal(record), "here", kind=kind)
    if whole:
        assert check_seal(record, "here", kind=kind) == record
    else:
        with pytest.raises(InputRefused, match="seal is missing"):
            check_seal(record, "here", kind=kind)
