"""What `saliency` would need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mmsurgery.artifacts.saliency_map import FILE_BYTES
from mmsurgery.artifacts.snapshots import GENERATIONS
from mmsurgery.data.benchmark import benchmark, source_of
from mmsurgery.data.samples import Sample
from mmsurgery.errors import UsageError, unknown
from mmsurgery.plans import plan as terms
from mmsurgery.plans.lengths import Lengths, lengths
from mmsurgery.plans.plan import Passes, Plan, free_below, fullest
from mmsurgery.plans.probe import probed
from mmsurgery.plans.sizes import FLOAT32, Sizes
from mmsurgery.saliency.parts import STORES, named_parts
from mmsurgery.saliency.shards import Shard
from mmsurgery.workspace import ESTIMATORS, SILENT, Progress, Workspace

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded


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
    progress: Progress = SILENT,
) -> Plan:
    """What `measure_parts` of the same arguments would need; nothing is written and no lock is taken.

    Raises:
        as `measure_parts`, as far as names, numbers, model and data are concerned.
    """
    for kind, value, known in (("estimator", estimator, ESTIMATORS), ("store", store, STORES)):
        if value not in known:
            raise unknown(kind, value, known)
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size} is impossible", "use 1 or more")
    block = Shard.parse(shard) if isinstance(shard, str) else shard
    reader, source, notes = benchmark(workspace.settings.benchmark.name), source_of(workspace), []
    folder = workspace.existing_model(model)
    sizes, samples = Sizes.of(model, folder), {}
    for part in named_parts(workspace, names):
        if not force and workspace.saliency_dir(part, estimator, batch_size).exists():
            notes.append(f"{part} is there: it is not measured again without --force")
            continue
        found = reader.samples(source, part)
        unit = batch_size if estimator == "batch" else 1
        samples[part] = found if block is None else found[block.block(len(found), unit)]
    processor = sizes.family.load_processor(folder)
    of_parts = {part: lengths(sizes, processor, members) for part, members in samples.items()}
    memory, said = fullest(_moments(sizes, of_parts, estimator, batch_size, store))
    count = sum(map(len, samples.values()))
    seconds, how = None, "no time: there is nothing to measure"
    if samples:
        speeds, how = probed(sizes, folder, samples, _run(estimator), threads=workspace.threads)
        seconds = None if speeds is None else sum(speeds[part] * len(members) for part, members in samples.items())
    one = FLOAT32 * sizes.count()
    stored = one if store == "float32" or block is not None else one // 2
    return Plan(
        verb="saliency",
        model=sizes.size,
        samples={part: len(members) for part, members in samples.items()},
        passes=Passes(forward=count, backward=count, tokens=sum(each.total for each in of_parts.values())),
        memory=memory,
        disk={"maps": stored * len(samples), "snapshots": one * (GENERATIONS + 1)} if samples else {},
        disk_free=free_below(workspace.path("saliency")),
        seconds=seconds,
        notes=(*notes, *said, how, f"going on after an interruption takes {one / 1e9:.2f} GB more for a moment"),
    )


def _run(estimator: str) -> Callable[[Loaded, Sequence[Sample]], None]:
    def run(loaded: Loaded, samples: Sequence[Sample]) -> None:
        from mmsurgery.saliency.measure import measure_saliency

        measure_saliency(loaded, samples, estimator=estimator, batch_size=len(samples))

    return run


def _moments(
    sizes: Sizes, parts: dict[str, Lengths], estimator: str, batch_size: int, store: str
) -> dict[str, dict[str, int]]:
    """Terms by moment, of the part that takes most; parts are measured and saved one after the other.

    weights: the model is loaded in its own dtype.
    accumulators: 4 bytes for every weight that a loss of the part reaches (8 of a float64 model): all, or the
        language model's alone where no sample has a picture.
    temporary, while measuring: estimator `sample` has a float32 scratch of the largest linear weight (the head, or the
        embedding tied to it, is one) and, for
        16-bit models, their product in the model's dtype; the others the gradient of one tensor in the model's
        dtype (freed at once) and, for 16-bit models and `batch`, a float32 scratch of it.
    temporary, while saving: one HDF5 file twice over (its image is built in memory), of at most 1 GiB or of one
        tensor, half of it with bfloat16.
    pictures: all different ones of the part, up to 256 MiB as the model takes them.
    """
    width = sizes.width
    number = max(width, FLOAT32)
    low = width < FLOAT32
    moments: dict[str, dict[str, int]] = {}
    for part, each in parts.items():
        reached = list(sizes.shapes) if each.positions else sorted(sizes.within("lm"))
        if estimator == "sample":
            largest = sizes.largest([name for name in reached if name in sizes.linear or name in sizes.output])
            temporary = largest * (number + (width if low else 0))
        else:
            temporary = sizes.largest(reached) * (width + (number if low and estimator == "batch" else 0))
        common = {terms.WEIGHTS: sizes.loaded, terms.ACCUMULATORS: number * sizes.count(reached)}
        file = min(number * sizes.count(reached), max(FILE_BYTES, number * sizes.largest(reached)))
        moments[f"{part} is measured"] = {
            **common,
            terms.TEMPORARY: temporary,
            terms.PICTURES: each.encoded,
            terms.SAMPLES: each.files,
            terms.ACTIVATIONS: sizes.kept(each.batch(batch_size), width),
        }
        moments[f"the map of {part} is saved"] = {
            **common,
            terms.TEMPORARY: 2 * (file if store == "float32" else file // 2),
            terms.SAMPLES: each.files,
        }
    return moments or {"nothing is done": {}}
