"""How times are scaled up from a few units, by a clock that only moves when a unit says so; which units these are."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.data.samples import Item, Sample
from mmsurgery.plans import plan_apply, plan_eval, plan_saliency, plan_train
from mmsurgery.plans.sizes import Sizes
from mmsurgery.plans.times import files, watch
from mmsurgery.plans.times.evaluate import by_picture
from mmsurgery.plans.times.saliency import in_batches
from mmsurgery.plans.times.watch import LEAST, Growth, Watch, in_turn, line, watched
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.workspace import Workspace
from mmsurgery_llava import backbone


class Clock:
    """Stands still, but for what is added to `time`."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that everything in `times` reads."""
    made = Clock()
    monkeypatch.setattr(watch.time, "perf_counter", made)
    return made


def loop(clock: Clock, seconds: Sequence[float], amount: int = 1) -> Callable[[Watch], None]:
    """A verb whose units take so long each."""

    def run(progress: Watch) -> None:
        with progress.stage("units", len(seconds)) as advance:
            advance(0)
            for each in seconds:
                clock.time += each
                advance(amount)

    return run


def test_the_first_unit_is_no_measure_of_the_others(clock: Clock) -> None:
    found = watched(loop(clock, [10.0, 1.0, 1.0, 1.0]), work=100, box=1000)
    assert found.seconds == 10 + 99 * 1
    by_four = watched(loop(clock, [10.0, 4.0, 4.0], amount=4), work=100, box=1000)
    assert by_four.seconds == 10 + 96 * 1
    assert watched(loop(clock, [3.0]), work=5, box=1000).seconds == 15
    assert watched(loop(clock, []), work=5, box=1000).seconds == 0


def test_units_are_timed_until_they_agree_or_the_time_is_spent(clock: Clock) -> None:
    agreed = watched(loop(clock, [5.0] + [1.0] * 1000), work=1e6, box=1e9)
    assert len(agreed.times) == 1 + LEAST
    uneven = watched(loop(clock, [1.0, 3.0] * 500), work=1e6, box=1e9)
    seen = uneven.times[1:]
    assert statistics.stdev(seen) / len(seen) ** 0.5 <= watch.SPREAD * statistics.fmean(seen)
    assert len(seen) > 10 * LEAST
    slow = watched(loop(clock, [4.0] * 100), work=1e6, box=7)
    assert slow.times == [4.0, 4.0]
    # a tenth of the work is enough, however uneven
    short = watched(loop(clock, [1.0, 3.0] * 500), work=80, box=1e9)
    assert len(short.times) < 12


@pytest.mark.parametrize("count", [1, 2, 6, 7, 40, 1000])
def test_units_come_in_an_order_that_is_spread_over_their_sizes(count: int) -> None:
    found = in_turn(range(count), lambda number: -number)
    assert sorted(found) == list(range(count))
    if count >= 7:
        middle = (count - 1) / 2
        assert abs(found[0] - middle) <= 1
        others = found[1 : 1 + LEAST]
        assert abs(statistics.fmean(others) - middle) <= 0.1 * count
        assert max(others) - min(others) >= 0.7 * (count - 1)


def test_long_batches_are_among_those_that_are_measured() -> None:
    samples = [Sample(str(n), "p", "x" * n, answer="y") for n in range(403)]
    batches = in_batches(samples, 4)
    assert all(len(batch) == 4 for batch in batches)
    # each as the verb cuts it
    assert {int(batch[0].id) % 4 for batch in batches} == {0}
    mean = statistics.fmean(len(sample.question) for batch in batches[1:7] for sample in batch)
    assert mean == pytest.approx(201, abs=8)
    assert [len(batch) for batch in in_batches(samples[:3], 4)] == [3]


class Runs:
    """Each takes 1 s and 0.1 s a member; the first one 5 s more."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.sizes = clock, list[int]()

    def __call__(self, members: list[int]) -> None:
        self.clock.time += (0.0 if self.sizes else 5.0) + 1.0 + 0.1 * len(members)
        self.sizes.append(len(members))


def test_what_a_run_costs_by_itself_is_not_taken_for_what_a_member_costs(clock: Clock) -> None:
    growth, runs, groups = Growth(), Runs(clock), [[0, 0]] * 1000
    assert growth.seconds(groups, runs, 8) == pytest.approx(5.0 + 1.0 + 0.1 * 2000)
    assert runs.sizes == [2, 8, 2]  # the time is spent, but these are needed
    assert growth.alone == pytest.approx(1.0)
    # the next column begins warm
    assert growth.seconds(groups[:50], runs, 1) == pytest.approx(1.0 + 0.1 * 100)
    assert runs.sizes[3:] == [8]


def test_runs_grow_as_long_as_there_is_time(clock: Clock) -> None:
    growth, runs = Growth(alone=1.0), Runs(clock)
    runs.sizes.append(0)
    assert growth.seconds([[0]] * 10_000, runs, 30) == pytest.approx(1.0 + 0.1 * 10_000)
    assert runs.sizes[1:4] == [4, 16, 64]
    assert clock.time <= 30 + 1
    assert Growth().seconds([], runs, 30) == 0
    assert Growth(alone=1.0).seconds([], runs, 30) == 0


def test_slow_work_is_not_run_several_times_over(clock: Clock) -> None:
    ran: list[int] = []

    def run(members: list[int]) -> None:
        clock.time += 20.0 * len(members)
        ran.append(len(members))

    assert Growth().seconds([[0]] * 20, run, 3) == pytest.approx(400)
    assert ran == [1, 2, 1]  # a tenth of the work at once
    assert Growth().seconds([[0]], run, 3) == pytest.approx(20)


def test_a_line_never_falls_and_never_begins_below_zero() -> None:
    assert line([1, 3, 5], [2.0, 4.0, 6.0]) == pytest.approx((1.0, 1.0))
    assert line([1, 9], [5.0, 4.0]) == pytest.approx((0.0, 0.9))
    assert line([1, 2], [1.0, 5.0]) == pytest.approx((0.0, 2.0))
    assert line([4, 4], [1.0, 3.0]) == pytest.approx((0.0, 0.5))
    assert line([4], [3.0], 1.0) == pytest.approx((1.0, 0.5))
    assert line([4], [3.0], 5.0) == pytest.approx((3.0, 0.0))


def test_columns_about_the_same_pictures_are_asked_about_the_same_ones_first() -> None:
    def items(column: str, order: Sequence[int]) -> list[Item]:
        return [Item(f"{column}{n}", "p", "q", column=column, gold="A", image_bytes=bytes([n % 10])) for n in order]

    one, other = by_picture(items("a", range(20))), by_picture(items("b", range(19, -1, -1)))
    assert [{item.image_bytes for item in group} for group in one] == [
        {item.image_bytes for item in group} for group in other
    ]
    assert all(len(group) == 2 for group in one)


def test_tensors_are_taken_from_all_over_the_model() -> None:
    sizes = {f"layer{n:03d}": 10 for n in range(100)}
    chosen = files.some(sizes, 100)
    assert len(chosen) == 10
    assert (chosen[0] < "layer010", chosen[-1] >= "layer090") == (True, True)
    assert files.some(sizes, 10_000) == sorted(sizes)
    assert len(files.some({"one": 10**9}, 1)) == 1


def test_snapshots_take_a_twentieth_at_most() -> None:
    assert files.snapshots(29, 10**9, 1e-9) == 0
    assert files.snapshots(310, 10**9, 1e-9) == pytest.approx(10)  # every 30 s, each takes 1
    assert files.snapshots(10_000, 10**11, 1e-9) == pytest.approx(400)  # each takes 100 s, every 2,000 s


def test_only_what_is_not_remembered_is_hashed(ws: Workspace, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ws.model_dir("vanilla")
    sizes = Sizes.of("vanilla", folder)
    known: list[str] = []
    monkeypatch.setattr(
        "mmsurgery.artifacts.checkpoint.digest_cache.remember",
        lambda key, identity, compute: known[0] if known else compute(),
    )

    def sha256(data: bytes) -> str:
        clock.time += 2.0
        return ""

    monkeypatch.setattr(files, "sha256", sha256)
    assert files.hashing([(sizes, folder)]) == pytest.approx(2.0)
    monkeypatch.setattr(files, "HASHED", sizes.stored // 4)
    assert files.hashing([(sizes, folder), (sizes, folder)]) == pytest.approx(2 * 4 * 2.0)
    known.append("digest")
    assert files.hashing([(sizes, folder)]) == 0


# what plans scale up to is what the verb does


class Counted:
    """How much work each watch was told of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.work: list[float] = []
        made = Watch.__init__

        def init(watch: Watch, work: float, *others: Any) -> None:
            self.work.append(work)
            made(watch, work, *others)

        monkeypatch.setattr(Watch, "__init__", init)


def test_saliency_is_timed_for_all_samples_of_each_part(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    plan = plan_saliency(ws, "forget_vqa,retain_qa", batch_size=2)
    assert counted.work == [1, 6, 6]  # a batch that warms up, then each part
    assert [part for part in ("loading", "forget_vqa", "retain_qa") if f"{part} " in plan.notes[-2]]


@pytest.mark.parametrize(
    ("method", "options", "work"),
    [
        ("ga_diff", {"epochs": 3}, [9]),
        ("ga_diff", {"epochs": 3, "protocol": "official"}, [9, 9]),  # forget and retain steps of their own
        ("ga_diff", {"lora": LoRA(rank=2)}, [3]),
        ("npo", {"epochs": 3}, [9, 6]),  # and every forget sample once, under the reference
        ("kl_min", {"epochs": 3}, [9, 6]),
    ],
)
def test_apply_is_timed_for_all_steps_and_references(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch, method: str, options: dict[str, Any], work: list[float]
) -> None:
    counted = Counted(monkeypatch)
    assert plan_apply(ws, method, **options).seconds
    assert counted.work == work


def test_what_is_scored_along_the_run_is_timed(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        "mmsurgery.plans.times.apply.along_time", lambda loaded, items, times: asked.append(times) or 7.0
    )
    plan = plan_apply(ws, "npo", eval_every=2)
    assert asked == [3]
    assert any("scoring 7.0" in note for note in plan.notes)
    plan_apply(ws, "npo")
    assert asked == [3]


def test_a_plan_trains_nothing(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are those of the run, at no learning rate: what was read is what would be saved."""
    saved: list[Any] = []
    monkeypatch.setattr(
        "mmsurgery.plans.times.apply.saving_model",
        lambda start, family, trained, mask: saved.append((start, trained)) or 0.0,
    )
    plan_apply(ws, "ga_diff", learning_rate=0.5)
    start, trained = saved[0]
    assert set(trained) == set(start.names)
    for name, parameter in trained.items():
        assert (parameter.detach().numpy() == start.float32(name)).all(), name


def test_a_mask_that_is_not_made_has_no_time(ws: Workspace) -> None:
    sizes = Sizes.of("vanilla", ws.model_dir("vanilla"))
    plan = plan_apply(ws, "mmunlearner", selection=dict.fromkeys(sizes.within("connector"), 1))
    assert plan.seconds is None
    assert any("the mask is not made yet" in note for note in plan.notes)


def test_steps_that_do_not_fit_are_not_run(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Sizes.of("vanilla", ws.model_dir("vanilla")).loaded
    monkeypatch.setattr("mmsurgery.plans.probe.free_memory", lambda: 3 * weights)
    plan = plan_apply(ws, "ga_diff")
    assert plan.memory_total > 3 * weights
    assert plan.seconds is None
    assert any("no time: a step takes" in note for note in plan.notes)


@pytest.mark.parametrize("names", [["vanilla"], ["vanilla", "reference"]])
def test_every_model_is_loaded_and_scored(ws: Workspace, monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    rounds: list[dict[str, float]] = [{"forget_vqa": 10.0}, {"forget_vqa": 4.0}]
    monkeypatch.setattr("mmsurgery.plans.times.evaluate.columns_time", lambda *arguments: rounds.pop(0))
    plan = plan_eval(ws, names)
    assert plan.seconds is not None
    assert f"forget_vqa {10 + 4 * (len(names) - 1):.1f}" in plan.notes[-1]


def test_training_is_timed_for_all_epochs(
    trainable: Workspace, recipe: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    for text in ("rank = 8\nalpha = 8.0\n", 'adapter = "full"\n', 'adapter = "full"\nprecision = "bf16"\n'):
        assert plan_train(trainable, "gold", recipe=recipe(text)).seconds
        assert counted.work == [12, 2 * 6]  # samples that are checked, steps of two
        counted.work.clear()


def test_saving_is_scaled_by_bytes(ws: Workspace, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    start = CheckpointFiles(ws.model_dir("vanilla"), backbone.canonical)
    written: list[int] = []

    def write(path: Path, layout: Any, arrays: Any, metadata: Any) -> None:
        written.append(sum(array.nbytes for _, array in arrays))
        path.write_bytes(b"")
        clock.time += 3.0

    monkeypatch.setattr(files, "write_safetensors_stream", write)
    assert files.saving_model(start, backbone, {}) == pytest.approx(3.0)
    whole = written[0]
    monkeypatch.setattr(files, "TRIED", whole // 5)
    seconds = files.saving_model(start, backbone, {})
    assert written[1] < whole / 2
    assert seconds == pytest.approx(3.0 * whole / written[1])
