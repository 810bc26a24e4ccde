"""`compose`: the expression language against Python's operators and booleans, and the masks it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mmsurgery
from mmsurgery.artifacts.mask import Mask, MaskParameter, pack
from mmsurgery.artifacts.tensors import write_safetensors
from mmsurgery.errors import Mismatch, UnusableData, UsageError
from mmsurgery.masks.compose import MAX_OPERATORS, Expression, compose, compose_masks
from mmsurgery.names import Address
from mmsurgery.provenance import provenance
from mmsurgery.settings import Settings
from mmsurgery.workspace import Workspace

SHAPES = {"a": (3, 5), "b": (9,), "c": (), "d": (0,), "e": (17,)}
PLACES = {"a": "lm.0.attn.q", "b": "lm.1.mlp.up", "c": "vision.0.norm", "d": "connector.proj", "e": "lm.2.attn.k"}
SALIENCY = {"kind": "saliency", "part": "forget_vqa", "units": 3, "data_sha256": "d" * 64}


def mask_of(seed: int, **changes: Any) -> Mask:
    generator = np.random.default_rng(seed)
    parameters = {
        name: MaskParameter(shape, Address.parse(PLACES[name]), pack(generator.random(shape) < 0.5))
        for name, shape in SHAPES.items()
    }
    made: dict[str, Any] = {
        "rule": "ratio",
        "beta": 1.0,
        "estimator": "sample",
        "mixture": "pooled",
        "modules": "vision,connector,lm",
    }
    base = {"model_type": "llava", "model_sha256": "b" * 64}
    origin = provenance("mask", {}, {})
    return Mask(parameters=parameters, base=base, parents=(SALIENCY,), provenance=origin, **(made | changes))


MASKS = {"x": mask_of(1), "y": mask_of(2), "z_2": mask_of(3), "npo.default": mask_of(4)}

# expressions as (text, how tightly it binds, booleans by parameter, mask by Python's operators)
ATOM, NEGATION, RESTRICTION, PRODUCT, SUM = 4, 4, 3, 2, 1
Part = tuple[str, int, dict[str, Any], Mask]


def named(name: str) -> Part:
    text = name if name.replace("_", "").isalnum() else f"'{name}'"
    return text, ATOM, {p: MASKS[name][p] for p in SHAPES}, MASKS[name]


def enclosed(part: Part, least: int) -> str:
    return part[0] if part[1] >= least else f"({part[0]})"


def negated(part: Part) -> Part:
    return f"~{enclosed(part, NEGATION)}", NEGATION, {p: ~v for p, v in part[2].items()}, ~part[3]


def restricted(part: Part, selector: str) -> Part:
    mask = part[3].restrict(selector)
    inside = mask.in_modules()
    booleans = {p: v if p in inside else np.zeros_like(v) for p, v in part[2].items()}
    return f"{enclosed(part, RESTRICTION)} @ {selector}", RESTRICTION, booleans, mask


def paired(left: Part, sign: str, right: Part) -> Part:
    level = PRODUCT if sign == "&" else SUM
    combine: Any = {
        "&": lambda a, b: a & b,
        "|": lambda a, b: a | b,
        "^": lambda a, b: a ^ b,
        "-": lambda a, b: a & ~b,
    }[sign]
    mask = left[3] - right[3] if sign == "-" else combine(left[3], right[3])
    text = f"{enclosed(left, level)} {sign} {enclosed(right, level + 1)}"
    return text, level, {p: combine(left[2][p], right[2][p]) for p in SHAPES}, mask


parts = st.recursive(
    st.sampled_from(sorted(MASKS)).map(named),
    lambda inner: st.one_of(
        inner.map(negated),
        st.builds(
            restricted, inner, st.sampled_from(["lm", "lm.0-1", "lm.1-2.mlp,vision", "lm.0-2", "vision,lm.attn"])
        ),
        st.builds(paired, inner, st.sampled_from("&|^-"), inner),
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(parts, st.booleans())
def test_expressions_mean_what_python_and_booleans_mean(part: Part, tight: bool) -> None:
    text, _, booleans, by_python = part
    made = compose(text.replace(" ", "") if tight else text, MASKS)
    for name, expected in booleans.items():
        assert np.array_equal(made[name], expected), text
    assert made.content_sha256 == by_python.content_sha256
    assert made.modules == by_python.modules
    assert made.selected == sum(int(value.sum()) for value in booleans.values()) == made.counts["selected"]
    assert made.expression == text


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("x&y", "x & y"),
        ("  x\t&\n y ", "x & y"),
        ("'x' & 'z_2'", "x & z_2"),
        ("'npo.default'&x", "'npo.default' & x"),
        ("((x))", "x"),
        ("(x & y) & z_2", "x & y & z_2"),
        ("x & (y & z_2)", "x & (y & z_2)"),
        ("(x & y) | z_2", "x & y | z_2"),
        ("x & (y | z_2)", "x & (y | z_2)"),
        ("x-(y-z_2)", "x - (y - z_2)"),
        ("(x - y) - z_2", "x - y - z_2"),
        ("~ ( ~x )", "~~x"),
        ("(~x)@lm", "~x @ lm"),
        ("~(x@lm)", "~(x @ lm)"),
        ("((x@lm)@lm.0)&y", "x @ lm @ lm.0 & y"),
        ("(x & y)@ lm.0-1-y", "(x & y) @ lm.0-1 - y"),
    ],
)
def test_there_is_one_way_to_write_an_expression(written: str, canonical: str) -> None:
    assert Expression(written).canonical == Expression(canonical).canonical == canonical


@pytest.mark.parametrize(
    ("loose", "same"),
    [
        ("~x & y", "(~x) & y"),
        ("~x @ lm", "(~x) @ lm"),
        ("x & y @ lm", "x & (y @ lm)"),
        ("x | y & z_2", "x | (y & z_2)"),
        ("x - y | z_2", "(x - y) | z_2"),
        ("x - y - z_2", "(x - y) - z_2"),
        ("x | y - z_2", "(x | y) - z_2"),
        ("x@lm-y", "(x @ lm) - y"),
        ("x@lm.0-1-y", "(x @ lm.0-1) - y"),
        ("x @ lm.0,vision & y", "(x @ lm.0,vision) & y"),
        ("~~x", "x"),
        ("x @ lm @ lm.0", "x @ lm.0"),
    ],
)
def test_binding(loose: str, same: str) -> None:
    assert compose(loose, MASKS).content_sha256 == compose(same, MASKS).content_sha256


def test_binding_matters() -> None:
    assert compose("x | y & z_2", MASKS).content_sha256 != compose("(x | y) & z_2", MASKS).content_sha256
    assert compose("x | y - z_2", MASKS).content_sha256 != compose("x | (y - z_2)", MASKS).content_sha256
    assert compose("x & y @ lm", MASKS).modules == "lm"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at its end: the name of a mask expected"),
        ("x &", "at its end"),
        ("x y", "at 'y'"),
        ("(x", r"'\)' expected"),
        ("x)", r"at '\)'"),
        ("x @", "selector"),
        ("x @ lmm", "did you mean|no module group"),
        ("x @ lm.7", "matches no parameter"),
        ("x + y", r"at '\+ y'"),
        ("1x", "at '1x'"),
        ("'../x'", "name"),
        ("'x", "cannot be read"),
        ("xx & y", "mask"),
        ("x" + " | x" * (MAX_OPERATORS + 1), "more than 200 operators"),
        ("~" * 100_000 + "x", "more than 200 operators"),
        ("(" * 100_000, "more than 200 operators"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compose(text, MASKS)


def test_as_many_operators_as_allowed() -> None:
    text = "~" * (MAX_OPERATORS // 2) + "x" + " | y" * (MAX_OPERATORS // 2)
    assert compose(text, MASKS).content_sha256 == compose("x | y", MASKS).content_sha256


def test_modules_of_an_intersection_are_those_of_both() -> None:
    assert compose("x @ lm,connector & ~y", MASKS).modules == "lm,connector"
    assert compose("x @ lm.0-1 & y @ lm", MASKS).modules == "lm.0-1"
    assert compose("x @ lm.0-1 & y @ lm.attn", MASKS).modules == "lm.0-1,lm.attn"  # no selector of either says less
    assert compose("x @ lm - y", MASKS).modules == "lm"


def test_names_are_listed_once_in_order() -> None:
    assert Expression("y & 'npo.default' - y@lm").names == ("y", "npo.default")


def test_parents_are_the_masks_and_what_they_were_made_from() -> None:
    made = compose("x & ~'npo.default'", MASKS)
    first, saliency, second = made.parents
    assert (first["name"], second["name"], saliency) == ("x", "npo.default", SALIENCY)
    assert first["content_sha256"] == MASKS["x"].content_sha256
    assert (made.rule, made.beta, made.estimator, made.expression) == ("compose", None, "sample", "x & ~'npo.default'")
    assert compose("x | y", {"x": MASKS["x"], "y": mask_of(2, estimator="batch")}).estimator is None


def test_python_operators_keep_the_history() -> None:
    x, y = MASKS["x"], MASKS["y"]
    made = (x | y) & ~x
    digests = [parent["content_sha256"] for parent in made.parents if parent["kind"] == "mask"]
    assert digests == [x.content_sha256, y.content_sha256]
    assert [parent for parent in made.parents if parent["kind"] == "saliency"] == [SALIENCY]
    assert made.expression == f"('{x.content_sha256[:12]}' | '{y.content_sha256[:12]}') & (~'{x.content_sha256[:12]}')"
    for _ in range(100):
        made = made | made  # doubles the text, were it not for a digest now and then
    assert len(str(made.expression)) < 1000


def test_other_models_do_not_compose() -> None:
    other = replace(MASKS["y"], base={"model_type": "llava", "model_sha256": "c" * 64})
    with pytest.raises(Mismatch, match=f"different weights, llava {'b' * 12} and llava {'c' * 12}") as caught:
        compose("x & y", {"x": MASKS["x"], "y": other})
    assert "one model" in str(caught.value.next_step)
    fewer = {name: p for name, p in MASKS["y"].parameters.items() if name != "b"}
    other = replace(MASKS["y"], parameters=fewer, base={"model_type": "qwen2_vl", "model_sha256": "c" * 64})
    with pytest.raises(
        Mismatch, match=f"different models, llava {'b' * 12} and qwen2_vl {'c' * 12}: .* in b"
    ) as caught:
        compose("x & y", {"x": MASKS["x"], "y": other})
    assert "one model" in str(caught.value.next_step)


# in a workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path, Settings())
    for name, mask in MASKS.items():
        mask.write(made.mask_path(name))
    return made


def test_the_same_again_is_up_to_date(workspace: Workspace) -> None:
    first = compose_masks(workspace, "x & ~'npo.default'", name="both")
    data = first.path.read_bytes()
    assert not first.up_to_date
    again = compose_masks(workspace, "x & ~'npo.default'", name="both")
    assert (again.up_to_date, again.path.read_bytes()) == (True, data)
    assert Mask.load(first.path) == mmsurgery.compose("x & ~'npo.default'", MASKS)


def test_the_same_written_otherwise_is_up_to_date(workspace: Workspace) -> None:
    data = compose_masks(workspace, "x&y", name="both").path.read_bytes()
    again = compose_masks(workspace, " ('x' & y)", name="both")
    assert (again.up_to_date, again.path.read_bytes(), again.mask.expression) == (True, data, "x & y")
    with pytest.raises(Mismatch, match=r"expression x & y -> x \| y"):
        compose_masks(workspace, "x|y", name="both")


def test_another_result_needs_force(workspace: Workspace) -> None:
    compose_masks(workspace, "x", name="both")
    with pytest.raises(Mismatch, match="expression"):
        compose_masks(workspace, "y", name="both")
    MASKS["z_2"].write(workspace.mask_path("x"))
    with pytest.raises(Mismatch, match="made with other"):  # the same words about another mask
        compose_masks(workspace, "x", name="both")
    made = compose_masks(workspace, "x", name="both", force=True)
    assert made.mask.content_sha256 == MASKS["z_2"].content_sha256
    with pytest.raises(Mismatch, match="rule"):
        compose_masks(workspace, "x", name="y")


def test_refusals(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="composed of itself"):
        compose_masks(workspace, "x & y", name="x")
    with pytest.raises(UnusableData, match="selects 0"):
        compose_masks(workspace, "x - x", name="none")
    with pytest.raises(UsageError, match="did you mean 'z_2'"):
        compose_masks(workspace, "z_3", name="none")
    assert "none" not in workspace.masks()


def test_masks_of_another_model_than_vanilla_are_refused(workspace: Workspace) -> None:
    folder = workspace.model_dir("vanilla")
    tensors = {"model.multi_modal_projector.linear_1.bias": np.zeros(2, np.float32)}
    (folder).mkdir(parents=True)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": {}}))
    with pytest.raises(Mismatch, match=r"x, npo.default: made for .*, vanilla is llava") as caught:
        compose_masks(workspace, "x & ~'npo.default'", name="both")
    assert caught.value.code == 4
    assert not workspace.mask_path("both").exists()
