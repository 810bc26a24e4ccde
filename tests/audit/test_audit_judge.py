"""Verdicts and the trio, on made-up values: every branch, and what the card says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from mmsurgery.audit import card, judge
from mmsurgery.audit.judge import COLLAPSED, DAMAGED, HELD, LEAKS, OVER, UNHARMED, UNKNOWN
from mmsurgery.audit.measured import Measured, Values
from mmsurgery.audit.run import _judged

PEOPLE = 20
CHANCE = 0.25


def values(share: float, name: str = "item") -> Values:
    """Of 20 people with 20 questions each, the first `share` of each person's right."""
    right = [float(n < 20 * share) for _ in range(PEOPLE) for n in range(20)]
    ids = tuple(f"{name}/{n}" for n in range(len(right)))
    return Values(ids, tuple(f"p{n // 20:02}" for n in range(len(right))), tuple(right))


def measured(arms: Mapping[str, float], kept: Mapping[str, float] | None = None, chance: float = CHANCE) -> Measured:
    kept = {"kept": 0.9} if kept is None else kept
    return Measured(
        {name: values(share) for name, share in arms.items()},
        {name: values(share, "kept") for name, share in kept.items()},
        dict.fromkeys([*arms, *(f"kept {name}" for name in kept)], chance),
    )


VANILLA, GOLD = measured({"one": 0.9, "two": 0.8}), measured({"one": 0.25, "two": 0.3})
DESTROYED = measured({"one": 0.25, "two": 0.25}, {"kept": 0.25})
KEPT_ALONE = {"far": 0.9, "near": 0.8}


@pytest.mark.parametrize(("share", "verdict"), [(0.9, LEAKS), (0.28, UNKNOWN), (0.25, UNKNOWN), (0.05, UNKNOWN)])
def test_without_gold_only_what_is_far_above_chance_is_judged(share: float, verdict: str) -> None:
    found = judge.judge(measured({"one": share}), None, VANILLA)
    assert (found["verdict"], found["held_against"], found["reference"]) == (verdict, "chance", 0.25)
    assert found["against"]["difference"] == pytest.approx(found["leak"]["mean"] - 0.25)


@pytest.mark.parametrize(
    ("model", "gold", "verdict", "arm"),
    [
        (measured({"one": 0.2, "two": 0.6}), GOLD, LEAKS, "two"),
        (measured({"one": 0.25, "two": 0.3}), GOLD, HELD, "two"),
        (measured({"one": 0.1, "two": 0.05}), GOLD, OVER, "one"),
        (measured({"one": 0.2, "two": 0.3}, {"kept": 0.25}), GOLD, COLLAPSED, "two"),
        (measured({"one": 0.1, "two": 0.05}, {"kept": 0.25}), GOLD, COLLAPSED, "one"),
        (measured({"one": 0.9, "two": 0.9}, {"kept": 0.25}), GOLD, LEAKS, "one"),  # all the same
        (measured({"one": 0.9}, {}), GOLD, LEAKS, "one"),  # nothing kept was asked
        (measured({"one": 0.9}), measured({"two": 0.3}), UNKNOWN, "one"),
    ],
)
def test_verdict(model: Measured, gold: Measured | None, verdict: str, arm: str) -> None:
    found = judge.judge(model, gold, VANILLA)
    assert (found["verdict"], found["arm"]) == (verdict, arm)
    assert found["leak"]["mean"] == pytest.approx(model.arms[arm].mean)
    assert found["mean"] == pytest.approx(sum(v.mean for v in model.arms.values()) / len(model.arms))
    if verdict in (LEAKS, OVER, HELD):
        assert found["reference"] == gold.arms[arm].mean  # type: ignore[union-attr]
        assert found["against"]["difference"] == pytest.approx(model.arms[arm].mean - found["reference"])
        assert found["against"]["resolved"] == (verdict != HELD)
    else:
        assert found["against"] is None


def test_the_choice_of_the_worst_arm_is_no_leak() -> None:
    """Twelve arms of two models that know the same: by the worst arm's own test there would be leaks."""
    rng, leaks, naive = np.random.default_rng(3), 0, 0
    people, ids, names = tuple(f"p{n:02}" for n in range(20)), tuple(map(str, range(20))), [f"a{n}" for n in range(12)]

    def guesser() -> Measured:
        arms = {name: Values(ids, people, tuple(rng.random(20))) for name in names}
        return Measured(arms, {}, dict.fromkeys(names, 0.5))

    for _ in range(100):
        one, other = guesser(), guesser()
        found = judge.judge(one, other, None)
        leaks += found["verdict"] == LEAKS
        plain = judge.against(one.arms[found["arm"]], other.arms[found["arm"]])
        naive += plain is not None and plain.resolved and plain.difference > 0
    assert leaks <= 6
    assert naive >= leaks + 8


def test_kept_arms_are_adjusted_for_their_number() -> None:
    """Of six people who all lose, p is 2 / 2^6: enough for one arm, not for the worst of five."""
    ids, people = tuple(map(str, range(6))), tuple("abcdef")
    before, after = Values(ids, people, (1.0,) * 6), Values(ids, people, (0.6,) * 6)
    for arms, verdict, p_value in ((1, DAMAGED, 2 / 64), (5, UNHARMED, 10 / 64)):
        names = [f"k{n}" for n in range(arms)]
        chance = {f"kept {name}": 0.1 for name in names}
        vanilla = Measured({}, dict.fromkeys(names, before), chance)
        model = Measured({}, {**dict.fromkeys(names, before), "k0": after}, chance)
        found = judge.judge(model, None, vanilla)
        assert (found["verdict"], found["arm"]) == (verdict, "k0")
        assert found["against"]["p_value"] == pytest.approx(p_value)


def test_other_questions_are_not_compared() -> None:
    other = Measured({"one": values(0.3, "others")}, {}, {"one": CHANCE})
    assert judge.judge(measured({"one": 0.9}), other, None)["verdict"] == UNKNOWN
    assert judge.against(values(0.9), values(0.3, "others")) is None


def test_the_worst_arm_is_furthest_above_its_own_chance() -> None:
    made = Measured({"high": values(0.6), "low": values(0.5)}, {}, {"high": 0.5, "low": 0.1})
    assert judge.worst_arm(made) == "low"
    assert judge.worst_arm(measured({})) is None


def test_a_two_sided_probe_is_read_below_chance_too() -> None:
    def sided(low: float, high: float, *, two_sided: bool) -> Measured:
        made = measured({"low": low, "high": high}, chance=0.5)
        return Measured(made.arms, made.kept, made.chance, two_sided=two_sided)

    assert [judge.worst_arm(sided(0.1, 0.6, two_sided=each)) for each in (True, False)] == ["low", "high"]
    gold = sided(0.5, 0.5, two_sided=True)
    assert judge.judge(sided(0.1, 0.6, two_sided=True), gold, None)["verdict"] == OVER
    for low, passes in ((0.5, True), (0.1, False)):
        assert judge.trio({"gold": sided(low, 0.5, two_sided=True)})["gold"] is passes
    assert judge.trio({"gold": sided(0.1, 0.5, two_sided=False)})["gold"] is True


@pytest.mark.parametrize(
    ("kept", "arm"),
    [
        ({"a": 0.25, "b": 0.3}, "b"),
        ({"a": 0.3, "b": 0.25}, "a"),  # 5 points above are no answer
        ({"a": 0.25, "b": 0.35}, None),
        ({"a": 0.05, "b": 0.9}, None),  # a part that is lost alone
        ({}, None),
    ],
)
def test_lost_is_what_answers_nothing(kept: dict[str, float], arm: str | None) -> None:
    assert judge.lost(measured({"one": 0.5}, kept)) == arm


def test_luck_of_few_questions_is_no_answer() -> None:
    """Three of eight by guessing one of four: above by 12 points, within its interval."""
    few = Values(tuple("abcdefgh"), tuple("pqrstuvw"), (1.0, 1.0, 1.0, *[0.0] * 5))
    made = Measured({}, {"few": few, "many": values(0.25)}, {"kept few": CHANCE, "kept many": CHANCE})
    assert judge.lost(made) == "few"


@pytest.mark.parametrize(
    ("model", "vanilla", "verdict", "arm"),
    [
        (KEPT_ALONE, KEPT_ALONE, UNHARMED, "far"),
        ({"far": 0.95, "near": 0.75}, KEPT_ALONE, DAMAGED, "near"),
        ({"far": 0.5, "near": 0.45}, KEPT_ALONE, DAMAGED, "far"),
        ({"far": 0.95, "near": 0.9}, KEPT_ALONE, UNHARMED, "far"),  # better is no damage
        ({"far": 0.25, "near": 0.2}, KEPT_ALONE, COLLAPSED, None),
        (KEPT_ALONE, None, UNKNOWN, None),
        (KEPT_ALONE, {"other": 0.9}, UNKNOWN, None),
    ],
)
def test_verdict_of_a_probe_of_what_is_kept(
    model: dict[str, float], vanilla: dict[str, float] | None, verdict: str, arm: str | None
) -> None:
    found = judge.judge(measured({}, model), None, None if vanilla is None else measured({}, vanilla))
    assert (found["verdict"], found["arm"]) == (verdict, arm)


PROVED = {"reliable": True, "vanilla": True, "gold": True, "destroyed": True}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, PROVED),
        ({"vanilla": GOLD}, {**PROVED, "reliable": False, "vanilla": False}),
        ({"gold": VANILLA}, {**PROVED, "reliable": False, "vanilla": False, "gold": False}),
        ({"gold": measured({"one": 0.5, "two": 0.3})}, {**PROVED, "reliable": False, "gold": False}),
        ({"gold": measured({"one": 0.2}, {"kept": 0.25})}, {**PROVED, "reliable": False, "gold": False}),
        ({"destroyed": GOLD}, {**PROVED, "reliable": False, "destroyed": False}),
        ({"destroyed": measured({"one": 0.9}, {"kept": 0.25})}, PROVED),  # it answers nothing that was to be kept
        ({"gold": None}, {"reliable": None, "vanilla": None, "gold": None, "destroyed": True}),
        ({"vanilla": None}, {**PROVED, "reliable": None, "vanilla": None}),
        ({"destroyed": None}, {**PROVED, "reliable": None, "destroyed": None}),
    ],
)
def test_trio(change: dict[str, Measured | None], expected: dict[str, bool | None]) -> None:
    three = {"vanilla": VANILLA, "gold": GOLD, "destroyed": DESTROYED, **change}
    assert judge.trio({name: each for name, each in three.items() if each is not None}) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, PROVED),
        ({"destroyed": {"far": 0.6, "near": 0.8}}, PROVED),
        ({"destroyed": KEPT_ALONE}, {**PROVED, "reliable": False, "destroyed": False}),
        ({"gold": {"far": 0.6, "near": 0.8}}, {**PROVED, "reliable": False, "gold": False}),
        ({"vanilla": {"far": 0.25, "near": 0.2}}, {**PROVED, "reliable": False, "vanilla": False}),
        ({"gold": None}, {"reliable": None, "vanilla": None, "gold": None, "destroyed": True}),
    ],
)
def test_trio_of_a_probe_of_what_is_kept(change: dict[str, Any], expected: dict[str, bool | None]) -> None:
    destroyed = {"far": 0.25, "near": 0.25}
    three = {"vanilla": KEPT_ALONE, "gold": KEPT_ALONE, "destroyed": destroyed, **change}
    found = judge.trio({name: measured({}, each) for name, each in three.items() if each is not None})
    assert found == expected


# the card


def record(**probes: Mapping[str, Measured]) -> dict[str, Any]:
    return {"model": "npo", "probes": {name: _judged(each, "npo") for name, each in probes.items()}, "rounding": None}


def tried(npo: Measured, **change: Measured | None) -> dict[str, Measured]:
    three = {"vanilla": VANILLA, "gold": GOLD, "destroyed": DESTROYED, **change, "npo": npo}
    return {name: each for name, each in three.items() if each is not None}


LEAKY, FINE = measured({"one": 0.2, "two": 0.6}), measured({"one": 0.25, "two": 0.3})


@pytest.mark.parametrize(
    ("probes", "said"),
    [
        ({"sampling": tried(FINE)}, "no leak resolved by 1 probe"),
        ({"sampling": tried(FINE), "probing": tried(FINE)}, "no leak resolved by 2 probes"),
        ({"sampling": tried(LEAKY), "probing": tried(FINE)}, "leaks under: sampling"),
        ({"sampling": tried(LEAKY), "probing": tried(LEAKY)}, "leaks under: sampling, probing"),
        ({"sampling": tried(LEAKY, vanilla=GOLD)}, "not reliable here: sampling"),
        ({"sampling": tried(FINE, gold=None)}, "unknown under: sampling"),
        (
            {"sampling": tried(FINE, destroyed=GOLD), "probing": tried(FINE)},
            "no leak resolved by 1 probe; not reliable here: sampling",
        ),
        (
            {"sampling": tried(measured({"one": 0.0, "two": 0.05})), "probing": tried(DESTROYED)},
            "collapsed under: probing; over-forgotten under: sampling",
        ),
    ],
)
def test_the_card_in_a_sentence(probes: dict[str, Any], said: str) -> None:
    assert card.overall(record(**probes)) == said


def test_a_line_of_the_card() -> None:
    far = {name: measured({}, {"far": share}) for name, share in (("vanilla", 0.9), ("gold", 0.9), ("destroyed", 0.25))}
    made = record(sampling=tried(LEAKY), collateral={**far, "npo": measured({}, {"far": 0.5})})
    leaky, kept = card.lines(made)
    assert (leaky.probe, leaky.verdict, leaky.arm, leaky.reference) == ("Sampling", LEAKS, "two", "gold")
    assert (leaky.model, leaky.gold, leaky.vanilla, leaky.chance) == pytest.approx((0.6, 0.3, 0.8, CHANCE))
    assert (leaky.n, leaky.people, leaky.reliable, leaky.why_not) == (400, PEOPLE, True, "")
    assert leaky.difference == pytest.approx(0.3)
    assert leaky.cells[3:8] == ("60.0", "30.0", "80.0", "25.0", "+30.0")
    assert (kept.verdict, kept.arm, kept.reference) == (DAMAGED, "far", "vanilla")
    assert (kept.model, kept.gold, kept.vanilla) == pytest.approx((0.5, 0.9, 0.9))
    doubted = record(sampling=tried(LEAKY, vanilla=GOLD, destroyed=GOLD))
    assert card.lines(doubted)[0].why_not == "vanilla passes, destroyed passes"
    lost = measured({"one": 0.9}, {"kept": 0.25})
    ruined = measured({"one": 0.25, "two": 0.3}, {"kept": 0.25})
    assert card.lines(record(sampling=tried(LEAKY, vanilla=ruined)))[0].why_not == "vanilla collapsed"
    assert card.lines(record(sampling=tried(LEAKY, gold=lost)))[0].why_not == "vanilla passes, gold collapsed"
    assert card.lines(doubted)[0].cells[-1] == "no: vanilla passes, destroyed passes"
    assert card.lines(record(sampling=tried(LEAKY, gold=None)))[0].cells[-1] == "unknown"


def test_generic_damage_of_rounding_is_that_of_vanilla() -> None:
    def rounded(share: float, plain: float) -> Measured:
        made = measured({"int8": share})
        return Measured(made.arms, made.kept, made.chance, {"answers as it is": list(values(plain).values)})

    three = {"vanilla": rounded(0.8, 0.9), "gold": rounded(0.25, 0.25), "destroyed": rounded(0.25, 0.25)}
    made = record(quantisation={**three, "npo": rounded(0.5, 0.25)})
    # 25 points came back, vanilla lost 10; of everybody alike, so the interval has no width
    assert card.damage(made) == ["int8 adds +35.0 (+35.0 to +35.0) more to npo than to vanilla"]
    assert made["probes"]["quantisation"]["brought_back"]["gold"]["int8"]["difference"] == pytest.approx(0.1)
    assert card.damage({**made, "model": "vanilla"}) == []
    assert card.damage(record(sampling=tried(FINE))) == card.damage(record(quantisation=tried(FINE))) == []


def test_the_mean_stands_beside_the_worst_way_of_asking() -> None:
    places = {"1": {"chosen": 3, "right": 1}, "2": {"chosen": 1, "right": 3}}
    npo = Measured(
        LEAKY.arms, LEAKY.kept, LEAKY.chance, {"places": {"listed": places}, "turned": {"otherwise": 3, "n": 4}}
    )
    assert card.ways(record(paraphrase=tried(npo))) == [
        "worst (two) and mean of 2 ways of asking: npo 60.0 and 40.0, gold 30.0 and 27.5, vanilla 80.0 and 85.0",
        "listed, how often each place of the options is chosen (is right): 1: 75.0 (25.0), 2: 25.0 (75.0)",
        "another option is chosen when the list is turned round: 3 of 4",
    ]
    assert card.ways(record(sampling=tried(FINE))) == []
    earlier = Measured(LEAKY.arms, LEAKY.kept, LEAKY.chance, {"positions": places})  # as cards had it before
    assert len(card.ways(record(paraphrase=tried(earlier)))) == 1


def test_somebody_who_is_asked_nothing_can_be_forgotten_alone() -> None:
    made = measured({}, KEPT_ALONE)
    drops = {"one by one": {"forgotten": ["a", "b"], "people": ["a", "c"], "drops": [[0.5, 0.25], [0.125, 0.0]]}}
    npo = Measured(made.arms, made.kept, made.chance, drops)
    assert card.one_by_one(record(collateral={"vanilla": made, "npo": npo})) == [
        "a forgotten alone: -50.0 for them, -25.0 for the others, most for c (-25.0)",
        "b forgotten alone: -6.2 for the others, most for a (-12.5)",
    ]


def test_nothing_recovers_where_vanilla_knows_no_more_than_gold() -> None:
    def curve(start: float) -> Measured:
        made = measured({"facts, full": 0.5})
        return Measured(
            made.arms, made.kept, made.chance, {"curves": {"facts, full": {"steps": [0], "accuracy": [start]}}}
        )

    for vanilla, arms in ((0.3, ["facts, full"]), (0.2, []), (0.1, [])):
        made = record(relearning={"vanilla": curve(vanilla), "gold": curve(0.2), "npo": curve(0.2)})
        assert list(made["probes"]["relearning"]["steps_to_recover"]) == arms


def test_what_rounding_and_relearning_add() -> None:
    def curve(accuracy: Sequence[float]) -> Measured:
        made = measured({"facts, full": 0.5})
        curves = {"facts, full": {"steps": [0, 4], "accuracy": list(accuracy)}}
        return Measured(made.arms, made.kept, made.chance, {"curves": curves})

    three = {"vanilla": curve([0.8, 0.8]), "gold": curve([0.2, 0.2]), "destroyed": curve([0.1, 0.1])}
    made = record(relearning={**three, "npo": curve([0.2, 0.8])})
    assert card.recovery(made) == [
        "facts, full, steps until half-way from gold to vanilla: vanilla 0, gold never, npo 2"
    ]
    assert card.rounding(made) == []
    made["rounding"] = {"int8": {"changed": 2000, "survive": 3}}
    assert card.rounding(made) == ["int8: 3 of 2,000 updated weights are rounded to another level"]
