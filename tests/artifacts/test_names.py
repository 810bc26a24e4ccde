"""Addresses, selectors and names that can be trusted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsurgery.errors import InputRefused, UsageError
from mmsurgery.names import (
    COMPONENTS,
    GROUPS,
    Address,
    Selector,
    check_artifact_name,
    check_parameter_name,
    unwrapped,
)

addresses = st.builds(
    Address, st.sampled_from(GROUPS), st.none() | st.integers(0, 999_999), st.sampled_from(COMPONENTS)
)


@given(addresses)
def test_addresses_are_read_as_they_are_written(address: Address) -> None:
    assert Address.parse(str(address)) == address
    assert str(address).startswith(address.layer_key)


def test_layer_keys() -> None:
    assert Address("lm", 8, "mlp.down").layer_key == "lm.8"
    assert Address("lm", None, "head").layer_key == "lm"
    assert str(Address("connector", None, "proj")) == "connector.proj"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lm",
        "lm.8",
        "lm.attn",
        "lm.8.attn",
        "lm.08.norm",
        "lm.-1.norm",
        "lm.².norm",
        "lm.1000000.norm",
        "text.norm",
        "lm.norm.8",
        "LM.norm",
        "lm..norm",
        "lm.8.norm.",
        " lm.norm",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InputRefused):
        Address.parse(text)


MODEL = {
    name: Address.parse(address)
    for name, address in {
        "q0": "lm.0.attn.q",
        "k1": "lm.1.attn.k",
        "up1": "lm.1.mlp.up",
        "up12": "lm.12.mlp.up",
        "norm2": "lm.2.norm",
        "embed": "lm.embed",
        "fc1": "vision.1.mlp.fc1",
        "qkv": "vision.1.attn.qkv",
        "proj": "connector.proj",
    }.items()
}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("lm", "q0 k1 up1 up12 norm2 embed"),
        ("lm.1", "k1 up1"),
        ("lm.1-2", "k1 up1 norm2"),
        ("lm.0-12", "q0 k1 up1 up12 norm2"),
        ("lm.attn", "q0 k1"),
        ("lm.attn.q", "q0"),
        ("lm.1.mlp.up", "up1"),
        ("lm.embed", "embed"),
        ("vision.attn.qkv", "qkv"),
        ("connector", "proj"),
        ("connector, lm.2", "proj norm2"),
        ("vision,lm.attn", "fc1 qkv q0 k1"),
    ],
)
def test_selectors(text: str, names: str) -> None:
    selector = Selector(text)
    assert selector.select(MODEL) == set(names.split())
    assert str(selector) == text.replace(" ", "")
    assert Selector(str(selector)).select(MODEL) == set(names.split())


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("language", "groups: vision, connector, lm"),
        ("lm,", "groups"),
        ("", "groups"),
        ("visoin", "did you mean 'vision'?"),
        ("lm.5-3", "lm.3-5"),
        ("lm.", "group"),
        ("lm..attn", "group"),
        ("lm.3.", "group"),
    ],
)
def test_selectors_that_cannot_be_read(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        Selector(text)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("lm.mlp.downn", "lm.mlp"),
        ("lm.att", "lm.attn"),
        ("lm.at", "lm"),
        ("lm.3", "lm"),
        ("lm.attn.qk", "lm.attn.q"),
        ("lm,vision.9", "vision.1"),
        ("lm.08", "lm"),
        ("lm.9999999", "lm"),
        ("connector.0", "connector"),
    ],
)
def test_selectors_that_match_nothing_name_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(UsageError, match="matches no parameter") as caught:
        Selector(text).select(MODEL)
    assert f"nearest that does: {nearest}" in str(caught.value.next_step)
    Selector(str(caught.value.next_step).partition(": ")[2]).select(MODEL)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("lm.0-99", "lm.0-12"),
        ("lm.12-13", "lm.12"),
        ("lm,lm.1-13.mlp.up", "lm.1-12.mlp.up"),
        ("vision.1-2", "vision.1"),
    ],
)
def test_ranges_beyond_the_last_layer_are_refused(text: str, written: str) -> None:
    with pytest.raises(UsageError, match="beyond the last layer") as caught:
        Selector(text).select(MODEL)
    assert caught.value.next_step == f"write {written}"
    Selector(written).select(MODEL)


@pytest.mark.parametrize("name", ["a", "model.layers.0.weight", "A_b.9", "x" * 512])
def test_parameter_names(name: str) -> None:
    assert check_parameter_name(name) == name


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../x", "a\n", "é", "a\0b", "x" * 513, "a-b"])
def test_what_is_no_parameter_name(name: str) -> None:
    with pytest.raises(InputRefused):
        check_parameter_name(name)


@pytest.mark.parametrize("name", ["default", "mmunlearner.default", "a-b_c+d.e", "1", "x" * 100, "console", "a.con"])
def test_artifact_names(name: str) -> None:
    assert check_artifact_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "-x",
        ".x",
        "CON",
        "nul.txt",
        "com1",
        "a..b",
        "a.",
        "a\0",
        "a\n",
        "a b",
        "é",
        "x" * 101,
        "~",
        "*",
    ],
)
def test_what_cannot_name_an_artifact(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_artifact_name(name)
    assert len(caught.value.line()) < 300


@pytest.mark.parametrize(
    "wrapped",
    [
        "lm.layer.weight",
        "module.lm.layer.weight",
        "module._orig_mod.lm.layer.weight",
        "lm._checkpoint_wrapped_module.layer.weight",
        "_fsdp_wrapped_module.lm._fsdp_wrapped_module.layer.weight",
        "base_model.model.lm.layer.base_layer.weight",
        "module.base_model.model.lm.layer.base_layer.weight",
    ],
)
def test_wrappers_leave_no_trace_in_names(wrapped: str) -> None:
    assert unwrapped(wrapped) == "lm.layer.weight"
