"""Every bit of the rule, against an independent recomputation from the files; and the laws it keeps."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmsurgery.artifacts.mask import Mask
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.errors import Mismatch, UnusableData, UsageError
from mmsurgery.masks import ratio as ratio_module
from mmsurgery.masks.rule import ratio_mask
from mmsurgery.names import Address

sys.path.insert(0, str(Path(__file__).parents[1] / "checkers"))
import mask_rule

GROUPS = ("vision", "connector", "lm")


def address(name: str) -> Address:
    """`lm.3.attn.q_7` -> lm.3.attn.q"""
    return Address.parse(name.rpartition("_")[0])


def name_of(index: int) -> str:
    return f"{('vision.0.attn.q', 'connector.proj', 'lm.1.mlp.up', 'lm.2.attn.o')[index % 4]}_{index:02d}"


def saliency(
    arrays: dict[str, np.ndarray],
    *,
    units: int = 4,
    part: str = "forget_vqa",
    estimator: str = "sample",
    no_gradient: dict[str, Any] | None = None,
    **changes: Any,
) -> SaliencyMap:
    values = {
        "part": part,
        "estimator": estimator,
        "batch_size": 2 if estimator == "batch" else None,
        "units": units,
        "model_type": "llava",
        "model_sha256": "m" * 64,
        "data_sha256": part.ljust(64, "d"),
        "arrays": arrays,
        "no_gradient": no_gradient or {},
    }
    return SaliencyMap(**(values | changes))


def random_maps(seed: int, *, estimator: str = "sample", parts: int = 3, shapes: Any = None) -> list[SaliencyMap]:
    """A forget map and preserve maps with zeros, equal values, parameters without gradient."""
    generator = np.random.default_rng(seed)
    shapes = shapes or [(n,) for n in range(18)] + [(), (3, 5), (0, 4), (2, 3, 4)]
    names = {name_of(i): shape for i, shape in enumerate(shapes)}
    maps = []
    for index in range(parts + 1):
        arrays, silent = {}, {}
        for name, shape in names.items():
            if generator.random() < 0.15:
                silent[name] = shape
                continue
            values = generator.choice([0.0, 1.0, 2.0, 3.0], shape) * generator.choice([1.0, 1e-30, 7e-5])
            noisy = values if generator.random() < 0.5 else generator.chisquare(1, shape) * 1e-6
            signs = generator.choice([-1.0, 1.0], shape) if estimator == "dataset" else 1.0
            arrays[name] = np.asarray(noisy * signs, np.float32)
        units = int(generator.integers(1, 50))
        part = ["forget_vqa", "forget_qa", "retain_vqa", "retain_qa"][index]
        maps.append(saliency(arrays, units=units, part=part, estimator=estimator, no_gradient=silent))
    return maps


def save_all(maps: list[SaliencyMap], folder: Path) -> list[Path]:
    for each in maps:
        each.save(folder / each.part)
    return [folder / each.part for each in maps]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("estimator", ["sample", "batch", "dataset"])
@pytest.mark.parametrize("mixture", ["pooled", "equal"])
def test_every_bit_is_what_the_files_say(seed: int, estimator: str, mixture: str, tmp_path: Path) -> None:
    folders = save_all(random_maps(seed, estimator=estimator, parts=1 + seed % 3), tmp_path)
    forget, *preserve = (SaliencyMap.load(folder) for folder in folders)
    beta = [0.25, 1.0, 1.5, 1e-20, 1e20, 1 / 3][seed]
    mask = ratio_mask(forget, preserve, beta=beta, mixture=mixture, address=address)
    mask.save(tmp_path / "mask.safetensors")
    assert mask.names == forget.names
    assert mask_rule.differing_bits(tmp_path / "mask.safetensors", folders[0], folders[1:]) == 0


def test_the_checker_sees_one_wrong_bit(tmp_path: Path) -> None:
    folders = save_all(random_maps(0), tmp_path)
    mask = ratio_mask(*(lambda f, *p: (f, p))(*map(SaliencyMap.load, folders)), address=address)
    name = next(name for name in mask if mask.parameters[name].selected)
    bits = mask.parameters[name].bits.copy()
    bits[0] ^= 1
    wrong = dataclasses.replace(
        mask, parameters={**mask.parameters, name: dataclasses.replace(mask.parameters[name], bits=bits)}
    )
    wrong.save(tmp_path / "mask.safetensors")
    assert mask_rule.differing_bits(tmp_path / "mask.safetensors", folders[0], folders[1:]) == 1


@pytest.mark.parametrize("store", ["float32", "bfloat16"])
def test_large_tensors_stream_and_join(store: str, tmp_path: Path) -> None:
    # 1.3 Mi elements in rows of 13: chunked in the file, slabs and blocks end inside rows of bytes
    generator = np.random.default_rng(0)
    shapes = {"lm.0.mlp.up_0": (100_003, 13), "lm.embed_1": (1 << 20,), "lm.head_2": (3, 700_001)}
    maps = [
        saliency({n: generator.chisquare(1, s).astype(np.float32) for n, s in shapes.items()}, part=part)
        for part in ("forget_vqa", "retain_vqa")
    ]
    for each in maps:
        each.save(tmp_path / each.part, store=store)
    folders = [tmp_path / each.part for each in maps]
    stored = [SaliencyMap.load(folder) for folder in folders]
    mask = ratio_mask(stored[0], stored[1], address=address)
    _, first = mask_rule.read_saliency(folders[0])
    _, second = mask_rule.read_saliency(folders[1])
    for name in shapes:
        assert np.array_equal(mask[name], (first[name] > 0) & (first[name] >= second[name]))
    if store == "float32":
        in_memory = ratio_mask(maps[0], maps[1], address=address)
        assert in_memory.content_sha256 == mask.content_sha256


def test_zero_cases_by_hand() -> None:
    # entries:                 0/0  x/0  0/x  x/x  just below
    forget = saliency({"lm.0.attn.q_0": np.array([0.0, 1.0, 0.0, 2.0, 2.0], np.float32)})
    preserve = saliency(
        {"lm.0.attn.q_0": np.array([0.0, 0.0, 1.0, 2.0, np.nextafter(np.float32(2), np.float32(3))], np.float32)}
    )
    mask = ratio_mask(forget, preserve, address=address)
    assert mask["lm.0.attn.q_0"].tolist() == [False, True, False, True, False]
    assert mask.counts == {"selected": 2, "total": 5, "zero_over_zero": 1, "no_gradient": 0}


def test_pooled_counts_units_of_parts_without_gradient() -> None:
    # S_T = 6/3 = 2. Pooled over 2 + 2 units: (8 + nothing) / 4 = 2; equal: (8/2 + 0) / 2 = 2; the part alone: 4
    name = "vision.0.attn.q_0"
    forget = saliency({name: np.array([6.0], np.float32)}, units=3)
    picture = saliency({name: np.array([8.0], np.float32)}, units=2, part="retain_vqa")
    text = saliency({}, units=2, part="retain_qa", no_gradient={name: (1,)})
    for mixture in ("pooled", "equal"):
        assert ratio_mask(forget, [picture, text], mixture=mixture, address=address)[name].all()
        with pytest.raises(UnusableData, match="0 of 1"):
            ratio_mask(forget, [picture, text], mixture=mixture, beta=1.0001, address=address)
    with pytest.raises(UnusableData):
        ratio_mask(forget, picture, address=address)


def test_pooled_and_equal_differ_where_parts_differ_in_size() -> None:
    # pooled (0 + 90) / (1 + 9) = 9; equal (0/1 + 90/9) / 2 = 5; S_T = 6
    name = "lm.0.attn.q_0"
    parts = [
        saliency({name: np.array([0.0], np.float32)}, units=1, part="forget_qa"),
        saliency({name: np.array([90.0], np.float32)}, units=9, part="retain_vqa"),
    ]
    forget = saliency({name: np.array([6.0], np.float32)}, units=1)
    assert ratio_mask(forget, parts, mixture="equal", address=address)[name].all()
    with pytest.raises(UnusableData):
        ratio_mask(forget, parts, mixture="pooled", address=address)


def test_dataset_squares_the_mean_of_all_parts() -> None:
    # gradients +3 and -3 in two parts: pooled mean 0, so anything positive is selected; equal: 9
    name = "lm.0.attn.q_0"
    signed = {"estimator": "dataset", "units": 1}
    parts = [saliency({name: np.array([g], np.float32)}, part=p, **signed) for g, p in ((3.0, "a"), (-3.0, "b"))]
    forget = saliency({name: np.array([-2.0], np.float32)}, **signed)
    assert ratio_mask(forget, parts, mixture="pooled", address=address)[name].all()
    with pytest.raises(UnusableData):
        ratio_mask(forget, parts, mixture="equal", address=address)


def test_no_forget_gradient_is_never_selected() -> None:
    arrays = {"lm.0.attn.q_0": np.ones(3, np.float32), "lm.1.attn.q_1": np.ones((2, 2), np.float32)}
    forget = saliency({"lm.0.attn.q_0": arrays["lm.0.attn.q_0"]}, no_gradient={"lm.1.attn.q_1": (2, 2)})
    mask = ratio_mask(forget, saliency(arrays), address=address)
    assert not mask["lm.1.attn.q_1"].any()
    assert mask["lm.1.attn.q_1"].shape == (2, 2)
    assert mask.counts["no_gradient"] == 4


def test_shape_of_a_silent_parameter_from_any_map_that_knows_it() -> None:
    known = saliency({"lm.0.attn.q_0": np.ones(3, np.float32), "lm.1.attn.q_1": np.ones(5, np.float32)})
    foreign = saliency({"lm.0.attn.q_0": np.ones(3, np.float32)}, no_gradient={"lm.1.attn.q_1": None})
    assert ratio_mask(foreign, known, address=address)["lm.1.attn.q_1"].shape == (5,)
    with pytest.raises(Mismatch, match="do not say the shape"):
        ratio_mask(foreign, foreign, address=address)


def test_modules_limit_the_rule_and_its_counts() -> None:
    forget, *preserve = random_maps(3)
    everything = ratio_mask(forget, preserve, beta=0.5, address=address)
    assert everything.modules == "vision,connector,lm"
    part = ratio_mask(forget, preserve, beta=0.5, modules="lm.1,connector", address=address)
    limited = everything.restrict("lm.1,connector")
    assert part.modules == limited.modules == "lm.1,connector"
    assert part.content_sha256 == limited.content_sha256
    outside = [n for n in forget.no_gradient if address(n).layer not in (1, None)]
    assert everything.counts["no_gradient"] - part.counts["no_gradient"] == sum(
        math.prod(forget.shape(n)) for n in outside
    )
    with pytest.raises(UsageError, match="matches no parameter"):
        ratio_mask(forget, preserve, modules="lm.7", address=address)


def test_default_modules_are_the_groups_there_are() -> None:
    one = saliency({"lm.0.attn.q_0": np.ones(3, np.float32)})
    assert ratio_mask(one, one, address=address).modules == "lm"


def test_address_comes_from_the_backbone() -> None:
    name = "model.language_model.layers.3.mlp.down_proj.weight"
    one = saliency({name: np.ones(3, np.float32)})
    assert ratio_mask(one, one).parameters[name].address == Address("lm", 3, "mlp.down")


def test_record_of_where_it_comes_from() -> None:
    name = "lm.0.attn.q_0"
    one = saliency({name: np.ones(3, np.float32)}, tied={"alias": name})
    other = saliency({name: np.ones(3, np.float32)}, part="retain_qa", units=9)
    mask = ratio_mask(one, [one, other], beta="0.5", address=address)
    assert (mask.rule, mask.beta, mask.estimator, mask.mixture) == ("ratio", 0.5, "sample", "pooled")
    assert mask.base == {"model_type": "llava", "model_sha256": "m" * 64}
    assert [(p["kind"], p["part"], p["units"]) for p in mask.parents] == [
        ("saliency", "forget_vqa", 4),
        ("saliency", "forget_vqa", 4),
        ("saliency", "retain_qa", 9),
    ]
    assert mask.provenance["tied"] == {"alias": name}


@pytest.mark.parametrize(
    "change",
    [
        {"model_sha256": "x" * 64},
        {"model_type": "qwen2_vl"},
        {"estimator": "batch", "batch_size": 2},
        {"provenance": {"inputs": {"template_sha256": "other"}}},
        {"arrays": {"lm.0.attn.q_1": np.ones(3, np.float32)}},
        {"arrays": {"lm.0.attn.q_0": np.ones(4, np.float32)}},
    ],
)
def test_maps_that_do_not_belong_together(change: dict[str, Any]) -> None:
    inputs = {"provenance": {"inputs": {"template_sha256": "one"}}}
    one = saliency({"lm.0.attn.q_0": np.ones(3, np.float32)}, **inputs)
    with pytest.raises(Mismatch) as caught:
        ratio_mask(one, [one, saliency(**({"arrays": one.arrays} | inputs | change))], address=address)
    assert caught.value.code == 4


@pytest.mark.parametrize("beta", [0, -1, math.nan, math.inf, "1e400", "1,0", "", "beta", "-0.0", "1_0", "٣"])
def test_beta_that_is_no_threshold(beta: Any) -> None:
    one = saliency({"lm.0.attn.q_0": np.ones(3, np.float32)})
    with pytest.raises(UsageError, match="beta"):
        ratio_mask(one, one, beta=beta, address=address)


@pytest.mark.parametrize("density", [0, -0.1, 1.01, math.nan])
def test_density_that_is_no_share(density: float) -> None:
    one = saliency({"lm.0.attn.q_0": np.ones(3, np.float32)})
    with pytest.raises(UsageError, match="density"):
        ratio_mask(one, one, density=density, address=address)


def test_words_that_are_not_known() -> None:
    one = saliency({"lm.0.attn.q_0": np.ones(3, np.float32)})
    with pytest.raises(UsageError, match="mixture"):
        ratio_mask(one, one, mixture="pool", address=address)
    with pytest.raises(UsageError, match="density"):
        ratio_mask(one, one, density=0.5, per="layer", address=address)
    with pytest.raises(UsageError, match="preserve"):
        ratio_mask(one, [], address=address)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("side", [0, 1, 2])
def test_values_that_are_no_saliency_are_named(value: float, side: int) -> None:
    parts = ["forget_vqa", "forget_qa", "retain_vqa"]
    maps = [saliency({"lm.0.attn.q_0": np.ones(9, np.float32)}, part=part) for part in parts]
    maps[side].arrays["lm.0.attn.q_0"][7] = value
    with pytest.raises(UnusableData, match=rf"'{parts[side]}' of lm\.0\.attn\.q_0"):
        ratio_mask(maps[0], maps[1:], address=address)


def test_nothing_selected_names_the_next_step() -> None:
    one = saliency({"lm.0.attn.q_0": np.ones(3, np.float32)})
    with pytest.raises(UnusableData, match="selects 0 of 3 weights") as caught:
        ratio_mask(one, one, beta=2, address=address)
    assert caught.value.code == 5
    assert "--beta" in str(caught.value.next_step)


# laws

betas = st.floats(2.0**-40, 2.0**40)
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def mask_or_none(forget: SaliencyMap, preserve: list[SaliencyMap], **options: Any) -> Mask | None:
    try:
        return ratio_mask(forget, preserve, address=address, **options)
    except UnusableData:
        return None


@quick
@given(seeds, betas, betas)
def test_a_higher_beta_selects_a_subset(seed: int, one: float, other: float) -> None:
    forget, *preserve = random_maps(seed)
    low = mask_or_none(forget, preserve, beta=min(one, other))
    high = mask_or_none(forget, preserve, beta=max(one, other))
    if high is not None:
        assert low is not None
        assert not (high - low).selected


@quick
@given(seeds, st.floats(0.001, 1), st.floats(0.001, 1), st.sampled_from(["overall", "tensor"]))
def test_a_larger_density_selects_a_superset(seed: int, one: float, other: float, per: str) -> None:
    forget, *preserve = random_maps(seed)
    few = mask_or_none(forget, preserve, density=min(one, other), per=per)
    many = mask_or_none(forget, preserve, density=max(one, other), per=per)
    if few is not None:
        assert many is not None
        assert not (few - many).selected


@quick
@given(seeds, betas, st.integers(-30, 30))
def test_loss_scale_changes_nothing(seed: int, beta: float, exponent: int) -> None:
    # gradients scaled by 2^k: squares by 4^k, exactly, as long as no value underflows (smallest: 1e-30 * 4^-30 > 1e-49)
    forget, *preserve = random_maps(seed)
    maps = [forget, *preserve]
    scaled = [
        dataclasses.replace(m, arrays={n: a.astype(np.float64) * 4.0**exponent for n, a in m.arrays.items()})
        for m in maps
    ]
    one, other = (mask_or_none(m[0], m[1:], beta=beta) for m in (maps, scaled))
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert one.content_sha256 == other.content_sha256


@quick
@given(seeds, st.integers(1, 3), st.sampled_from(["pooled", "equal"]), st.sampled_from(["sample", "dataset"]))
def test_same_data_on_both_sides_selects_everything_with_saliency(
    seed: int, copies: int, mixture: str, estimator: str
) -> None:
    # the mean of three equal float64 numbers need not be that number
    copies = 4 if mixture == "equal" and copies == 3 else copies
    forget = random_maps(seed, estimator=estimator)[0]
    mask = mask_or_none(forget, [forget] * copies, mixture=mixture)
    if mask is None:
        assert not any(a.any() for a in forget.arrays.values())
        return
    for name, values in forget.arrays.items():
        assert np.array_equal(mask[name], values != 0), name


@quick
@given(seeds, st.floats(0.001, 1), st.sampled_from(["overall", "tensor"]))
def test_density_selects_the_largest_ratios(seed: int, density: float, per: str) -> None:
    forget, *preserve = random_maps(seed)
    mask = mask_or_none(forget, preserve, density=density, per=per)
    names = forget.names
    sizes = {n: math.prod(forget.shape(n)) for n in names}
    rows = []
    for name in names:
        if name in forget.arrays:
            target = forget.saliency(name).reshape(-1)
            zero = np.zeros_like(target)
            together = sum(
                (p.arrays[name].reshape(-1).astype(np.float64) if name in p.arrays else zero) for p in preserve
            )
            kept = together / sum(p.units for p in preserve)
            for index, (t, k) in enumerate(zip(target, kept, strict=True)):
                if t > 0:
                    rows.append((-(t / k if k else math.inf), name, index))
    if per == "overall":
        expected = sorted(rows)[: round(density * sum(sizes.values()))]
    else:
        expected = [
            row for name in names for row in sorted(r for r in rows if r[1] == name)[: round(density * sizes[name])]
        ]
    found = [] if mask is None else [(n, int(i)) for n in names for i in np.flatnonzero(mask[n])]
    assert found == sorted((name, index) for _, name, index in expected)
    if mask is not None:
        wanted = (
            sum(round(density * s) for s in sizes.values()) if per == "tensor" else round(density * sum(sizes.values()))
        )
        moving = {n: s for n, s in sizes.items() if n in forget.arrays}
        if per == "tensor":
            wanted = sum(round(density * s) for s in moving.values())
        assert mask.counts["wanted"] == wanted
        assert mask.rule == "density"
        assert mask.beta is None


def test_blocks_of_any_size_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    maps = [saliency({"lm.0.attn.q_0": generator.chisquare(1, (37, 11)).astype(np.float32)}) for _ in range(2)]
    masks = []
    for block in (8, 64, 1 << 18):
        monkeypatch.setattr(ratio_module, "BLOCK", block)
        masks.append(ratio_mask(*maps, address=address).content_sha256)
        masks.append(ratio_mask(*maps, density=0.3, address=address).content_sha256)
    assert len(set(masks[::2])) == len(set(masks[1::2])) == 1


def test_maps_of_another_type() -> None:
    for arguments in (("forget_vqa", ["retain_vqa"]), (3, [])):
        with pytest.raises(TypeError, match="is no SaliencyMap"):
            ratio_mask(*arguments)  # type: ignore[arg-type]
