"""What `saliency` would need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mmsurgery.artifacts.snapshots import GENERATIONS
from mmsurgery.backbones.loading import device as here
from mmsurgery.data.anchors import part_samples
from mmsurgery.data.benchmark import benchmark, source_of
from mmsurgery.data.samples import Sample
from mmsurgery.errors import UsageError, unknown
from mmsurgery.memory import Layout, gigabytes, layouts, within
from mmsurgery.plans import plan as terms
from mmsurgery.plans.lengths import Lengths, lengths
from mmsurgery.plans.plan import Passes, Plan, free_below, fullest
from mmsurgery.plans.probe import no_room, predicted
from mmsurgery.plans.sizes import FLOAT32, Sizes
from mmsurgery.plans.times.watch import now
from mmsurgery.saliency.blocks import block_rows, in_blocks
from mmsurgery.saliency.parts import STORES, check_measured, named_parts
from mmsurgery.saliency.shards import Shard
from mmsurgery.workspace import ESTIMATORS, SILENT, Progress, Workspace


def plan_saliency(
    workspace: Workspace,
    names: str | Sequence[str],
    *,
    estimator: str = "sample",
    batch_size: int = 4,
    shard: Shard | str | None = None,
    force: bool = False,
    model: str = "vanilla",
    store: str = "float32",
    layout: Layout | None = None,
    memory: int | None = None,
    device: str | None = None,
    progress: Progress = SILENT,
) -> Plan:
    """What `measure_parts` of the same arguments would need; nothing is written and no lock is taken.

    Args:
        memory: a budget in bytes, which the layout is chosen by.
        device: `cpu` or `cuda`, whose memory is planned; that of this machine where None.

    Raises:
        as `measure_parts`, as far as names, numbers, model and data are concerned.
        MachineFault: if no layout is within the budget.
    """
    begun = now()
    known = _Known.of(workspace, names, estimator, batch_size, shard, force, model, store, device)
    ready = now() - begun
    layout = (layout or Layout()) if memory is None else known.within(memory)
    sizes, samples, notes = known.sizes, known.samples, [*known.notes]
    found, said = fullest(known.moments(layout))
    if layout != Layout():
        notes.append(str(layout))
    if elsewhere := known.elsewhere(layout):
        place = "files" if layout.state == "disk" else "main memory"
        notes.append(f"{gigabytes(elsewhere)} of state lie elsewhere ({place})")
    count = sum(map(len, samples.values()))
    seconds, how = None, "no time: there is nothing to measure"
    if samples:
        seconds, how = known.time(workspace, model, layout, ready)
    one = FLOAT32 * sizes.count()
    stored = one if store == "float32" or shard is not None else one // 2
    disk = {"maps": stored * len(samples), "snapshots": one * (GENERATIONS + 1)} if samples else {}
    if layout.state == "disk":
        disk["sums"] = elsewhere
    return Plan(
        verb="saliency",
        model=sizes.size,
        samples={part: len(members) for part, members in samples.items()},
        passes=Passes(forward=count, backward=count, tokens=sum(each.total for each in known.lengths.values())),
        memory=found,
        disk=disk,
        disk_free=free_below(workspace.path("saliency")),
        seconds=seconds,
        notes=(*notes, *said, how, f"going on after an interruption takes {gigabytes(one)} more for a moment"),
        layouts={str(each): known.peak(each) for each in layouts(known.device)} if samples else {},
    )


def saliency_layout(workspace: Workspace, names: str | Sequence[str], memory: int, **options: Any) -> Layout:
    """The fastest layout of a measurement that is within a budget; estimator and batches stay as they are asked for.

    Args:
        memory: bytes.
        options: as for `measure_parts`.

    Raises:
        MachineFault: if none is within it, with the least that would do; or as `plan_saliency`.
    """
    chosen = {key: options[key] for key in _CHOSEN if key in options}
    return _Known.of(workspace, names, **{**_CHOSEN, **chosen}, device=None).within(memory)


_CHOSEN: dict[str, Any] = {
    "estimator": "sample",
    "batch_size": 4,
    "shard": None,
    "force": False,
    "model": "vanilla",
    "store": "float32",
}


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What is known of a measurement before it is started."""

    sizes: Sizes
    samples: Mapping[str, Sequence[Sample]]
    """Part that is to be measured -> its samples."""
    lengths: Mapping[str, Lengths]
    estimator: str
    batch_size: int
    store: str
    device: str
    notes: Sequence[str]

    @classmethod
    def of(
        cls,
        workspace: Workspace,
        names: str | Sequence[str],
        estimator: str,
        batch_size: int,
        shard: Shard | str | None,
        force: bool,
        model: str,
        store: str,
        device: str | None,
    ) -> _Known:
        """Raises as `plan_saliency`."""
        for kind, value, known in (("estimator", estimator, ESTIMATORS), ("store", store, STORES)):
            if value not in known:
                raise unknown(kind, value, known)
        if batch_size < 1:
            raise UsageError(f"batch size {batch_size} is impossible", "use 1 or more")
        block = Shard.parse(shard) if isinstance(shard, str) else shard
        reader, source, notes = benchmark(workspace.settings.benchmark.name), source_of(workspace), []
        sizes, samples = Sizes.of(model, workspace.existing_model(model)), {}
        for part in named_parts(workspace, names):
            found = part_samples(reader, source, part)
            made_with: dict[str, Any] = {
                "estimator": estimator,
                "batch_size": batch_size,
                "model": model,
                "store": store,
            }
            there = None if force else check_measured(workspace, part, found, shard=block, **made_with)
            if there is not None:
                notes.append(f"{there.name} is there: it is not measured again without --force")
                continue
            unit = batch_size if estimator == "batch" else 1
            samples[part] = found if block is None else found[block.block(len(found), unit)]
        processor = sizes.family.load_processor(workspace.existing_model(model))
        return cls(
            sizes=sizes,
            samples=samples,
            lengths={part: lengths(sizes, processor, members) for part, members in samples.items()},
            estimator=estimator,
            batch_size=batch_size,
            store=store,
            device=device or here().type,
            notes=notes,
        )

    def time(self, workspace: Workspace, model: str, layout: Layout, ready: float) -> tuple[float | None, str]:
        """Seconds, and what they are made of, or why there are none."""
        if why := no_room(self.sizes.loaded):
            return None, why
        if not any(self.samples.values()):
            return None, "no time: there is nothing to measure"
        from mmsurgery.plans.times.saliency import saliency_time

        timed = partial(
            saliency_time,
            workspace.existing_model(model),
            {part: members for part, members in self.samples.items() if members},
            {part: self._sums(each) for part, each in self.lengths.items()},
            estimator=self.estimator,
            batch_size=self.batch_size,
            store=self.store,
            layout=layout,
            threads=workspace.threads,
        )
        return predicted(ready, timed)

    def within(self, budget: int) -> Layout:
        """The fastest layout within a budget, in bytes; raises as `memory.within`."""
        return within(budget, layouts(self.device), self.peak)

    def peak(self, layout: Layout) -> int:
        """Bytes at the fullest moment."""
        return max(sum(each.values()) for each in self.moments(layout).values())

    def elsewhere(self, layout: Layout) -> int:
        """Bytes of sums that are not where the model is."""
        beside = layout.state == "device" or (layout.state == "host" and self.device == "cpu")
        return 0 if beside else max((self._sums(each) for each in self.lengths.values()), default=0)

    def _reached(self, part: Lengths) -> list[str]:
        """Parameters that a loss of the part reaches: all, or the language model's alone where no sample has a
        picture."""
        return list(self.sizes.shapes) if part.positions else sorted(self.sizes.within("lm"))

    def _sums(self, part: Lengths) -> int:
        """4 bytes for every weight that a loss reaches (8 of a float64 model)."""
        return max(self.sizes.width, FLOAT32) * self.sizes.count(self._reached(part))

    def _at_once(self, name: str) -> int:
        """Elements of a linear weight whose gradients by sample are made at a time."""
        shape = self.sizes.shapes[name]
        count, row = math.prod(shape), math.prod(shape[1:])
        if self.sizes.addresses[name].component == "embed":
            return count
        return min(count, row * block_rows(shape, self.device))

    def moments(self, layout: Layout) -> dict[str, dict[str, int]]:
        """Terms by moment, of the part that takes most; parts are measured and saved one after the other. (Saving takes
        a few megabytes, and the activations are gone then.)

        weights: the model is loaded in its own dtype.
        accumulators: one sum for every weight that is reached, where they are kept beside the model.
        temporary: `sample` (and `batch`, see `blocks.in_blocks`) has the gradient of a linear weight
            (the head is one), in the model's dtype and, for 16-bit models, in float32: of some rows at a time, but
            of all of an embedding that is the head, too. The others have the gradient of one tensor in the model's
            dtype (freed at once) and, for 16-bit models and `batch`, a float32 scratch of it. A GPU whose sums are
            elsewhere has one more, for what a batch adds to them.
        pictures: all different ones of the part, up to 256 MiB as the model takes them.
        """
        sizes, width = self.sizes, self.sizes.width
        number, low = max(width, FLOAT32), width < FLOAT32
        elsewhere = self.elsewhere(layout)
        blocks = in_blocks(self.estimator, [math.prod(shape) for shape in sizes.shapes.values()])
        moments: dict[str, dict[str, int]] = {}
        for part, each in self.lengths.items():
            reached = self._reached(each)
            if blocks:
                linear = [name for name in reached if name in sizes.linear or name in sizes.output]
                largest = sizes.largest(linear)
                at_once = max((self._at_once(name) for name in linear), default=0)
                temporary = at_once * (number + (width if low else 0))
            else:
                largest = sizes.largest(reached)
                temporary = largest * (width + (number if low and self.estimator == "batch" else 0))
            if elsewhere and self.device != "cpu":
                temporary += largest * number
            moments[f"{part} is measured"] = {
                terms.WEIGHTS: sizes.loaded,
                terms.ACCUMULATORS: 0 if elsewhere else self._sums(each),
                terms.TEMPORARY: temporary,
                terms.PICTURES: each.encoded,
                terms.SAMPLES: each.files,
                terms.ACTIVATIONS: sizes.kept(each.batch(self.batch_size), width, checkpointing=layout.checkpointing),
            }
        return moments or {"nothing is done": {}}
