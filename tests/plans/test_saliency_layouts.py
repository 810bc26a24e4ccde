"""What plans say of every layout of saliency, against what is allocated in the run itself; budgets that choose."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any

import pytest

from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.backbones.loading import load
from mmsurgery.data.benchmark import source_of
from mmsurgery.errors import MachineFault
from mmsurgery.memory import PLACES, Layout, Store, gigabytes, layouts
from mmsurgery.plans import plan as terms
from mmsurgery.plans import plan_saliency, saliency_layout
from mmsurgery.saliency import parts
from mmsurgery.saliency.measure import measure_saliency
from mmsurgery.workspace import Workspace
from mmsurgery_cli.main import run


def allocated(run: Callable[[], object]) -> int:
    """Most bytes that torch had allocated on the CPU for tensors made meanwhile; mapped files are none."""
    import torch

    gc.collect()  # what earlier tests left would be freed meanwhile
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    now = most = 0
    results: Any = profile.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("estimator", ["sample", pytest.param("batch", marks=pytest.mark.slow), "dataset"])
def test_every_layout_takes_what_is_planned(
    ws: Workspace, untimed: None, estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a part is measured, in two batches: the second one finds all sums."""
    monkeypatch.setattr("mmsurgery.saliency.uses.SMALL", 0)  # as with tensors of large models
    in_files: list[int] = []
    mapped = Store._mapped

    def noted(self: Store, count: int, dtype: Any) -> Any:
        in_files.append(count * dtype.itemsize)
        return mapped(self, count, dtype)

    monkeypatch.setattr(Store, "_mapped", noted)
    loaded = load(ws.model_dir("vanilla"))
    samples = parts.benchmark("tiny").samples(source_of(ws), "forget_vqa")
    options: dict[str, Any] = {"estimator": estimator, "batch_size": len(samples) // 2}
    measure_saliency(loaded, samples, **options)
    for layout in layouts("cpu"):
        in_files.clear()
        plan = plan_saliency(ws, "forget_vqa", layout=layout, **options)
        said = plan.memory_total - plan.memory[terms.WEIGHTS] - plan.memory[terms.SAMPLES]
        seen = allocated(functools.partial(measure_saliency, loaded, samples, layout=layout, **options))
        seen -= sum(in_files)  # torch counts a mapped file as memory
        assert seen == pytest.approx(said, rel=0.2), (layout, plan.memory)
        assert bool(in_files) == (layout.state == "disk")
        assert plan.disk.get("sums", 0) == pytest.approx(sum(in_files), rel=0.01)  # two tensors get no gradient
        assert plan.layouts[str(layout)] == plan.memory_total
    assert len(plan.layouts) == 4


def test_a_gpu_keeps_no_sums_that_lie_elsewhere(ws: Workspace) -> None:
    """But a scratch of the largest tensor, as large as that of the samples' gradients, for what a batch adds."""
    plans = {place: plan_saliency(ws, "forget_vqa", device="cuda", layout=Layout(state=place)) for place in PLACES}
    sums = plans["device"].memory[terms.ACCUMULATORS]
    for place in ("host", "disk"):
        assert terms.ACCUMULATORS not in plans[place].memory
        assert plans[place].memory[terms.TEMPORARY] == 2 * plans["device"].memory[terms.TEMPORARY]
        assert f"{gigabytes(sums)} of state lie elsewhere" in " ".join(plans[place].notes)
    assert len(plans["host"].layouts) == 6
    assert ("sums" in plans["host"].disk, plans["disk"].disk["sums"]) == (False, sums)


def test_a_budget_chooses_the_fastest_layout_within_it(ws: Workspace) -> None:
    options: dict[str, Any] = {"estimator": "batch", "batch_size": 6}
    plan = plan_saliency(ws, "forget_vqa,retain_qa", **options)
    for layout in layouts("cpu"):
        chosen = saliency_layout(ws, "forget_vqa,retain_qa", plan.layouts[str(layout)], progress=None, **options)
        within = [each for each in layouts("cpu") if plan.layouts[str(each)] <= plan.layouts[str(layout)]]
        assert chosen == within[0]
    assert chosen != Layout()
    least = min(plan.layouts.values())
    assert plan_saliency(ws, "forget_vqa,retain_qa", memory=least, **options).memory_total == least
    with pytest.raises(MachineFault, match=r"this needs at least .* the budget is"):
        saliency_layout(ws, "forget_vqa,retain_qa", least - 1, **options)


def test_the_command_measures_within_its_budget(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsurgery_cli.chain.open_here", lambda: ws)
    least = min(plan_saliency(ws, "forget_vqa").layouts.values())
    assert run(["saliency", "--set", "forget_vqa", "--memory", str(least)]) == 0
    measured = SaliencyMap.load(ws.saliency_dir("forget_vqa"))
    assert measured.provenance["layout"] == "state in files, activations computed twice"
    assert run(["saliency", "--set", "forget_vqa"]) == 0  # another layout is no other measurement
    assert run(["saliency", "--set", "retain_qa", "--memory", "1kB"]) == MachineFault.code
