"""Top-n differences against a full stable sort, at several block sizes and dtypes; bits, masks, refusals."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.mask import Mask, MaskParameter, pack
from mmsurgery.artifacts.tensors import write_safetensors, write_safetensors_stream
from mmsurgery.diff import compare, group_counts, heatmaps, relative_heatmaps, stream
from mmsurgery.diff.stream import threshold_bin
from mmsurgery.errors import InputRefused, Mismatch, UnusableData, UsageError
from mmsurgery.names import Address

sys.path.insert(0, str(Path(__file__).parents[1] / "checkers"))
import topn

Arrays = dict[str, np.ndarray]
Write = Callable[..., CheckpointFiles]

ADDRESSES = {
    "connector": Address("connector", None, "proj"),
    "head": Address("lm", None, "head"),
    "layer0.down": Address("lm", 0, "mlp.down"),
    "layer0.q": Address("lm", 0, "attn.q"),
    "layer1.q": Address("lm", 1, "attn.q"),
    "layer1.q_bias": Address("lm", 1, "attn.q"),
    "vision": Address("vision", 10, "norm"),
    "vision2": Address("vision", 2, "norm"),
}
SHAPES = {
    "connector": (3, 5),
    "head": (7, 11),
    "layer0.down": (40, 13),
    "layer0.q": (1,),
    "layer1.q": (13, 17),
    "layer1.q_bias": (0,),
    "vision": (),
    "vision2": (29,),
}
CELLS = {name: (a.layer_key, a.component) for name, a in ADDRESSES.items()}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(arrays, dtype=None)`: a checkpoint folder of these tensors; `dtype="BF16"` for bit patterns."""
    made = []

    def make(arrays: Arrays, dtype: str | None = None) -> CheckpointFiles:
        folder = tmp_path / f"model{len(made)}"
        made.append(folder)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))
        file = folder / "model.safetensors"
        if dtype is None:
            write_safetensors(file, arrays, {})
        else:
            write_safetensors_stream(file, {n: (dtype, a.shape) for n, a in arrays.items()}, sorted(arrays.items()), {})
        return CheckpointFiles(folder, lambda name: name)

    return make


def noise(seed: int, scale: float = 1.0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: np.array(rng.normal(size=shape) * scale, np.float32) for name, shape in SHAPES.items()}


def cells_of(found: Any) -> dict[tuple[str, str], float]:
    return {
        (row, column): value
        for row, values in zip(found.layers, found.heatmap, strict=True)
        for column, value in zip(found.components, values, strict=True)
    }


def check(found: Any, before: Arrays, after: Arrays) -> None:
    """Everything in a Difference against the full sort."""
    listed = [(entry.name, entry.index, entry.delta) for entry in found.top]
    assert listed == topn.top_entries(before, after, found.n)[: len(listed)]
    threshold, counts = topn.cell_counts(before, after, found.n, CELLS)
    assert found.threshold == threshold
    assert {cell: value for cell, value in cells_of(found).items() if value} == {
        cell: pytest.approx(float(value), rel=1e-12) for cell, value in counts.items() if value
    }


@pytest.mark.parametrize("block", [8, 64, stream.BLOCK])
@pytest.mark.parametrize("n", [1, 2, 37, 400, 832, 863, 864, 10_000])
def test_top_n_equals_a_full_sort(write: Write, block: int, n: int) -> None:
    before, after = noise(0), noise(1)
    after["vision2"] = before["vision2"].copy()
    found = compare(write(before), write(after), ADDRESSES, top=n, listed=100, block=block)
    assert len(found.top) == min(n, 100)
    check(found, before, after)


@pytest.mark.parametrize("block", [8, 64, stream.BLOCK])
@pytest.mark.parametrize("n", [1, 10, 100, 500, 700])
def test_ties_are_listed_in_order_and_shared_over_cells(write: Write, block: int, n: int) -> None:
    """Differences of a few sizes only, both signs."""
    rng = np.random.default_rng(2)
    before = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    sizes, odds = (-0.5, -0.25, 0.0, 0.25, 0.5, 1.0), (0.2, 0.2, 0.2, 0.2, 0.1, 0.1)
    after = {name: np.array(rng.choice(sizes, shape, p=odds), np.float32) for name, shape in SHAPES.items()}
    found = compare(write(before), write(after), ADDRESSES, top=n, listed=1000, block=block)
    check(found, before, after)
    nonzero = sum(int(np.count_nonzero(a)) for a in after.values())
    assert sum(cells_of(found).values()) == pytest.approx(min(n, nonzero))


def test_shares_of_ties_are_exact(write: Write) -> None:
    """Ten equal differences, 6 in one cell and 4 in another; n = 5 takes 3 and 2 of them, n = 6 takes 3.6 and 2.4."""
    before = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    after = {name: array.copy() for name, array in before.items()}
    after["connector"].flat[:6] = 0.5
    after["head"].flat[:4] = -0.5
    files = write(before), write(after)
    found = cells_of(compare(*files, ADDRESSES, top=5))
    assert (found["connector", "proj"], found["lm", "head"]) == (3, 2)
    assert all(isinstance(value, int) for value in found.values())
    found = cells_of(compare(*files, ADDRESSES, top=6))
    assert (found["connector", "proj"], found["lm", "head"]) == (3.6, 2.4)


@given(
    # any finite value; neighbours among the smallest; neighbours on both sides of a bin's edge
    st.sampled_from([(0, 2**31 - 2**23 - 1), (0, 9), (2**30 - 4, 2**30 + 4)]).flatmap(
        lambda ends: st.lists(st.integers(*ends), min_size=1, max_size=99)
    ),
    st.integers(1, 110),
    st.sampled_from([0, 1, 2, 7, 1000]),
    st.sampled_from([8, 16]),
)
@settings(max_examples=100, deadline=None)
def test_any_patterns(
    tmp_path_factory: pytest.TempPathFactory, patterns: list[int], n: int, listed: int, block: int
) -> None:
    """Bit patterns from zero through denormals to the largest finite float, as differences from zero."""
    folder = tmp_path_factory.mktemp("any")
    size = len(patterns)
    deltas = np.array(patterns, np.uint32).view(np.float32)
    files = []
    for name, values in (("before", np.zeros(size, np.float32)), ("after", deltas)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text('{"model_type": "llava"}')
        write_safetensors(folder / name / "model.safetensors", {"a": values[: size // 2], "b": values[size // 2 :]}, {})
        files.append(CheckpointFiles(folder / name, lambda stored: stored))
    addresses = {"a": Address("lm", 0, "attn.q"), "b": Address("lm", 1, "attn.q")}
    found = compare(*files, addresses, top=n, listed=listed, block=block)
    ordered = np.sort(deltas)[::-1]
    assert found.threshold == (ordered[n - 1] if n <= size else 0.0)
    order = [place for place in np.argsort(-deltas, kind="stable") if deltas[place]][: min(n, listed)]
    half = size // 2
    assert [(e.name, e.index, e.delta) for e in found.top] == [
        ("a", place, deltas[place]) if place < half else ("b", place - half, deltas[place]) for place in order
    ]
    assert sum(map(sum, found.heatmap)) == pytest.approx(min(n, int(np.count_nonzero(deltas))))


def test_the_next_larger_float_displaces_what_is_listed(write: Write) -> None:
    """Blocks of equal differences, each a unit in the last place larger than the one before."""
    after = {"layer0.down": np.repeat(np.arange(8, 12, dtype=np.uint32), 8).view(np.float32)}
    files = write({"layer0.down": np.zeros(32, np.float32)}), write(after)
    assert [e.index for e in compare(*files, ADDRESSES, listed=3, block=8).top] == [24, 25, 26]


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_two_equal_models(write: Write, dtype: str) -> None:
    """Of any finite bits, negative zeros and subnormals among them."""
    kind, infinity = {"F32": ("u4", 0xFF << 23), "F16": ("u2", 31 << 10), "BF16": ("u2", 0xFF << 7)}[dtype]
    rng, width = np.random.default_rng(0), np.dtype(kind).itemsize * 8
    drawn = {name: rng.integers(0, 1 << width, shape, np.dtype(kind)) for name, shape in SHAPES.items()}
    finite = {name: np.where(bits & infinity == infinity, bits ^ infinity, bits) for name, bits in drawn.items()}
    finite["head"][0, :2] = 0, 1 << (width - 1)
    files = write(finite, dtype)
    found = compare(files, files, ADDRESSES)
    assert (found.n, found.threshold, found.changed, found.top) == (1000, 0.0, 0, ())
    assert not np.any(found.heatmap)


def test_rows_and_columns(write: Write) -> None:
    files = write(noise(0))
    found = compare(files, files, ADDRESSES)
    assert found.layers == ("vision.2", "vision.10", "connector", "lm.0", "lm.1", "lm")
    assert found.components == ("attn.q", "mlp.down", "norm", "head", "proj")
    sizes = dict(zip(found.layers, found.sizes, strict=True))
    assert sizes["lm.0"] == (1, 40 * 13, 0, 0, 0)
    assert sizes["lm.1"] == (13 * 17 + 0, 0, 0, 0, 0)
    assert sizes["lm"] == (0, 0, 0, 77, 0)
    assert sum(map(sum, found.sizes)) == sum(int(np.prod(shape)) for shape in SHAPES.values())


def test_changed_counts_bits_and_not_values(write: Write) -> None:
    """0.0 against -0.0 differs in bits and not in value; it is changed and not among the top."""
    before = noise(0)
    before["connector"].flat[:4] = 0.0
    after = {name: array.copy() for name, array in before.items()}
    after["connector"].flat[:4] = -0.0
    after["head"].flat[0] += 1
    found = compare(write(before), write(after), ADDRESSES, top=3)
    assert found.changed == 5
    assert [(entry.name, entry.index) for entry in found.top] == [("head", 0)]
    assert found.threshold == 0.0
    assert cells_of(found) == {**dict.fromkeys(cells_of(found), 0), ("lm", "head"): 1}


@pytest.mark.parametrize("block", [8, 64, stream.BLOCK])
def test_inside_and_outside_the_mask(write: Write, block: int) -> None:
    rng = np.random.default_rng(3)
    before, after = noise(0), noise(0)
    inside = outside = 0
    parameters = {}
    for name, shape in SHAPES.items():
        moved, selected = rng.random(shape) < 0.3, rng.random(shape) < 0.5
        after[name] = np.where(moved, after[name] + np.float32(1), after[name]).astype(np.float32)
        inside += int(np.count_nonzero(moved & selected))
        outside += int(np.count_nonzero(moved & ~selected))
        parameters[name] = MaskParameter(shape, ADDRESSES[name], pack(np.asarray(selected)))
    mask = Mask(
        rule="random", beta=None, estimator=None, mixture=None, modules="lm", parameters=parameters,
        base={"model_type": "llava", "model_sha256": ""},
    )  # fmt: skip
    found = compare(write(before), write(after), ADDRESSES, mask=mask, block=block)
    assert (found.inside, found.outside, found.changed) == (inside, outside, inside + outside)
    assert min(inside, outside) > 0
    without = compare(write(before), write(after), ADDRESSES, block=block)
    assert (without.inside, without.outside, without.changed) == (None, None, inside + outside)
    del parameters["head"]
    with pytest.raises(Mismatch, match=r"the mask .* 1 parameters: head: \[7, 11\] and none"):
        compare(write(before), write(after), ADDRESSES, mask=mask)


def test_half_precision_is_widened_before_it_is_subtracted(write: Write) -> None:
    rng = np.random.default_rng(4)
    patterns = [{n: rng.integers(0x3F00, 0x3F90, s).astype("<u2") for n, s in SHAPES.items()} for _ in range(2)]
    values = [
        {n: (np.asarray(a).astype(np.uint32) << 16).view(np.float32) for n, a in each.items()} for each in patterns
    ]
    found = compare(*(write(each, "BF16") for each in patterns), ADDRESSES, top=300)
    check(found, *values)
    halves = [{n: a.astype(np.float16) for n, a in each.items()} for each in values]
    check(compare(*map(write, halves), ADDRESSES, top=300), *halves)


def test_other_dtypes_are_compared_by_value(write: Write) -> None:
    """bfloat16 holds 1.0 and not 1 + 2^-20; float64 holds 1 + 2^-50, which float32 rounds to 1."""
    before = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    before["head"].flat[3] = 1 + 2**-20
    half = write({name: (array.view(np.uint32) >> 16).astype("<u2") for name, array in before.items()}, "BF16")
    found = compare(write(before), half, ADDRESSES)
    assert (found.changed, [(e.name, e.index, e.delta) for e in found.top]) == (1, [("head", 3, -(2.0**-20))])
    double = {name: array.astype(np.float64) for name, array in before.items()}
    double["head"].flat[5] = 1 + 2**-50
    found = compare(write(before), write(double), ADDRESSES)
    assert (found.changed, found.top) == (1, ())


def test_values_that_are_not_finite_are_refused(write: Write) -> None:
    good, bad = noise(0), noise(0)
    bad["layer0.down"].flat[77] = np.nan
    files = write(good), write(bad)
    for block in (8, stream.BLOCK):
        with pytest.raises(UnusableData, match=r"layer0.down of .*model1 holds nan at flat index 77"):
            compare(*files, ADDRESSES, block=block)
    bad["layer0.down"].flat[77] = -np.inf
    with pytest.raises(UnusableData, match=r"layer0.down of .* holds -inf at flat index 77"):
        compare(write(bad), write(bad), ADDRESSES)
    good["head"].flat[0] = 3e38
    bad = {**good, "head": -good["head"]}
    with pytest.raises(UnusableData, match="difference of head at flat index 0 is too large"):
        compare(write(good), write(bad), ADDRESSES)


def test_models_that_differ_in_shape_are_refused(write: Write) -> None:
    one, other = noise(0), noise(0)
    other["head"] = other["head"].T.copy()
    other["vision3"] = other.pop("vision2")
    with pytest.raises(
        Mismatch,
        match=r"3 parameters: head: \[7, 11\] and \[11, 7\]; vision2: \[29\] and none; vision3: none and \[29\]",
    ):
        compare(write(one), write(other), ADDRESSES)


def test_arguments_that_make_no_sense(write: Write) -> None:
    files = write(noise(0))
    for wrong in ({"top": 0}, {"listed": -1}):
        with pytest.raises(UsageError, match="make no sense"):
            compare(files, files, ADDRESSES, **wrong)
    assert compare(files, write(noise(1)), ADDRESSES, listed=0).top == ()


def test_the_bin_of_the_nth_largest() -> None:
    histogram = np.array([5, 0, 3, 2])
    assert [threshold_bin(histogram, n) for n in (1, 2, 3, 5, 6, 10, 11)] == [3, 3, 2, 2, 0, 0, 0]


def test_memory_depends_on_neither_size_nor_n(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice 16 MiB of weights, all different; n = half of them: far more than fits into the bound as entries."""
    size = 1 << 22
    rng = np.random.default_rng(5)
    before = {"layer0.down": rng.random(size, np.float32)}
    files = write(before), write({"layer0.down": rng.random(size, np.float32)})
    tracemalloc.start()
    found = compare(*files, ADDRESSES, top=size // 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.changed > 0.99 * size
    assert sum(map(sum, found.heatmap)) == pytest.approx(size // 2)
    assert peak < 40 << 20


@pytest.mark.parametrize(("kept", "again"), [(stream._KEPT, []), (0, [0])])
def test_only_blocks_of_candidates_that_were_too_many_are_read_again(
    write: Write, monkeypatch: pytest.MonkeyPatch, kept: int, again: list[int]
) -> None:
    """Of 65 blocks of 8 only the first holds a difference above zero's bin."""
    before = {"layer0.down": np.zeros(520, np.float32)}
    after = {"layer0.down": np.zeros(520, np.float32)}
    after["layer0.down"][3] = 1
    read: list[int] = []
    one = stream._Reading._read

    def watched(self: Any, name: str, start: int, size: int) -> Any:
        read.append(start)
        return one(self, name, start, size)

    monkeypatch.setattr(stream._Reading, "_read", watched)
    monkeypatch.setattr(stream, "_KEPT", kept)
    found = compare(write(before), write(after), ADDRESSES, top=1, block=8)
    assert [(e.name, e.index) for e in found.top] == [("layer0.down", 3)]
    assert found.threshold == 1
    assert read == [*range(0, 520, 8), *again]


@pytest.mark.parametrize("block", [8, 64, stream.BLOCK])
@pytest.mark.parametrize("n", [1, 37, 832, 10_000])
def test_the_same_is_found_where_no_candidates_are_kept(
    write: Write, monkeypatch: pytest.MonkeyPatch, block: int, n: int
) -> None:
    files = write(noise(0)), write(noise(1))
    found = compare(*files, ADDRESSES, top=n, block=block)
    monkeypatch.setattr(stream, "_KEPT", -1)
    assert compare(*files, ADDRESSES, top=n, block=block) == found


def test_a_file_that_is_cut_meanwhile_is_refused(write: Write) -> None:
    files = write(noise(0)), write(noise(1))
    with files[1].files[0].open("r+b") as handle:
        handle.truncate(600)
    with pytest.raises(InputRefused, match="was cut while it was read"):
        compare(*files, ADDRESSES)


def test_heatmaps_say_shares_and_counts(write: Write) -> None:
    """12 of 77 head weights and 4 of 15 connector weights are the top 16."""
    before, after = noise(0), noise(0)
    after["head"].flat[:12] += 1
    after["connector"].flat[:4] += 2
    record = compare(write(before), write(after), ADDRESSES, top=16).to_json()
    vision, connector, lm = heatmaps(json.loads(json.dumps(record)))
    assert (connector.title, lm.title, vision.title) == ("connector 25%", "lm 75%", "vision 0%")
    assert group_counts(record) == {"vision": 0, "connector": 4, "lm": 12}
    assert connector.values.tolist() == [[4 / 15]]
    assert lm.columns == ["attn.q", "mlp.down", "head"]
    assert lm.values[-1].tolist() == pytest.approx([np.nan, np.nan, 12 / 77], nan_ok=True)
    assert lm.unit == "share in the top 16"
    assert heatmaps(compare(write(before), write(before), ADDRESSES).to_json())[1].title == "connector 0%"


def norms(before: Arrays, after: Arrays) -> dict[tuple[str, str], float | None]:
    """The relative change of each cell, from whole tensors."""
    found: dict[tuple[str, str], float | None] = {}
    for cell in set(CELLS.values()):
        old, new = (
            np.concatenate([each[name].ravel() for name in SHAPES if CELLS[name] == cell]).astype(np.float64)
            for each in (before, after)
        )
        found[cell] = float(np.linalg.norm(new - old) / np.linalg.norm(old)) if old.any() else None
    return found


@pytest.mark.parametrize("block", [8, 64, stream.BLOCK])
@pytest.mark.parametrize("row", [3, 2048])
def test_relative_change_by_cell(write: Write, monkeypatch: pytest.MonkeyPatch, block: int, row: int) -> None:
    """Two parameters of a cell count together; one that does not change is 0, one that was all 0 is None."""
    monkeypatch.setattr(stream, "_ROW", row)
    before, after = noise(0), noise(1, scale=5)
    after["vision2"] = before["vision2"].copy()
    before["connector"][:] = 0
    before["layer1.q_bias"] = np.array([3.0, 4.0], np.float32)
    after["layer1.q_bias"] = np.array([-9.0, 4.0], np.float32)
    found = compare(write(before), write(after), ADDRESSES, block=block)
    expected = norms(before, after)
    assert (expected["vision.2", "norm"], expected["connector", "proj"]) == (0, None)
    for layer, values in zip(found.layers, found.relative, strict=True):
        for component, value in zip(found.components, values, strict=True):
            # differences are rounded to float32 before they are squared
            wanted = expected.get((layer, component))
            assert value == (None if wanted is None else pytest.approx(wanted, rel=1e-6))
    again = compare(write(before), write(after), ADDRESSES, block=block)
    assert again.relative == found.relative


def test_relative_change_of_half_precision_and_of_extremes(write: Write) -> None:
    """bfloat16 bits 0x3F80 are 1.0, 0x3F00 are 0.5; the largest floats' squares fit into float64 alone."""
    ones = {"head": np.full((7, 11), 0x3F80, "<u2")}
    halves = {"head": np.full((7, 11), 0x3F00, "<u2")}
    assert compare(write(ones, "BF16"), write(halves, "BF16"), ADDRESSES).relative[-1][-2] == 0.5
    tiny, huge = {"head": np.full((7, 11), 1e-45, np.float32)}, {"head": np.full((7, 11), 3e38, np.float32)}
    assert compare(write(tiny), write(huge), ADDRESSES).relative[-1][-2] == pytest.approx(3e38 / 1.401298464e-45)
    assert compare(write(huge), write(tiny), ADDRESSES).relative[-1][-2] == 1


def test_changed_weights_by_group(write: Write) -> None:
    """0.0 against -0.0 is a change; groups in the order of the model."""
    before, after = noise(0), noise(0)
    before["connector"].flat[0] = 0.0
    after["connector"].flat[0] = -0.0
    after["head"].flat[:5] += 1
    after["layer1.q"].flat[:2] += 1
    found = compare(write(before), write(after), ADDRESSES, block=8)
    assert list(found.changed_by_group.items()) == [("vision", 0), ("connector", 1), ("lm", 7)]
    assert found.to_json()["changed_by_group"] == {"vision": 0, "connector": 1, "lm": 7}
    assert found.changed == 8
    files = write({"head": before["head"]}), write({"head": after["head"]})
    assert compare(*files, {"head": ADDRESSES["head"]}).changed_by_group == {"lm": 5}


def test_heatmaps_of_relative_changes(write: Write) -> None:
    before, after = noise(0), noise(0)
    before["connector"][:] = 0
    after["head"] *= 3
    record = compare(write(before), write(after), ADDRESSES).to_json()
    vision, connector, lm = relative_heatmaps(json.loads(json.dumps(record)))
    assert [each.title for each in (vision, connector, lm)] == ["vision", "connector", "lm"]
    assert vision.values.tolist() == [[0], [0]]
    assert np.isnan(connector.values).all()
    assert lm.values[-1].tolist() == pytest.approx([np.nan, np.nan, 2], nan_ok=True, rel=1e-6)
    assert lm.unit == "||after - before|| / ||before||"
