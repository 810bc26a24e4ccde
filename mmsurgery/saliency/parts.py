"""Saliency of a workspace's data parts: what is there, what is missing, shards and their sum.

saliency/PART[.ESTIMATOR[-B]]/               the map of a part
saliency/PART[.ESTIMATOR[-B]].shard-I-of-N/  the map of a block of its samples
saliency/.resume-NAME/                       snapshots of an interrupted measurement
saliency/.resume-NAME/rank-I-of-N/           the map of a rank's block, until all ranks' are added up
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.files import check_space
from mmsurgery.artifacts.mask import SCORED_TEXT
from mmsurgery.artifacts.saliency_map import SaliencyMap, read_manifest
from mmsurgery.artifacts.snapshots import GENERATIONS, Snapshots
from mmsurgery.data.anchors import ANCHORS, FOLDER, no_anchors, part_samples, parts_with_anchors
from mmsurgery.data.benchmark import SETS, benchmark, parts_of, source_of
from mmsurgery.data.leakage import check_text
from mmsurgery.data.samples import Sample, data_sha256
from mmsurgery.errors import InputRefused, Mismatch, UsageError, unknown
from mmsurgery.memory import Layout
from mmsurgery.names import check_artifact_name
from mmsurgery.provenance import differences, provenance
from mmsurgery.ranks import Ranks
from mmsurgery.saliency.resume import settings
from mmsurgery.saliency.shards import Shard, alone, summed
from mmsurgery.saliency.stored import StoredModel
from mmsurgery.workspace import ESTIMATORS, SILENT, Progress, Workspace

STORES = ("float32", "bfloat16")
SHARD_WAIT = 600.0
"""Seconds that a shard waits for others to write theirs."""


@dataclass(frozen=True, kw_only=True)
class PartResult:
    """What measuring one part came to."""

    part: str
    path: Path
    """Folder of the map: the part's, or the shard's."""
    units: int
    no_gradient: int
    """Parameters that no loss of the part reaches."""
    supervised_tokens: int
    """Answer tokens that were learnt from, end tokens included."""
    up_to_date: bool
    """Whether it was there already."""
    shard: str | None
    """`I/N`, or None for a whole part."""
    merged: bool
    """Whether this shard was the last one, and all were added up into the part's folder."""


def measure_parts(
    workspace: Workspace,
    names: str | Sequence[str],
    *,
    estimator: str = "sample",
    batch_size: int = 4,
    shard: Shard | str | None = None,
    force: bool = False,
    model: str = "vanilla",
    store: str = "float32",
    layout: Layout = Layout(),
    progress: Progress = SILENT,
) -> list[PartResult]:
    """Measure the saliency of data parts into their folders, as far as they are missing.

    A killed measurement is repeated from its last snapshot and ends with the same bytes. The model is
    loaded once, and only if something is missing. Shards may run at the same time. Ranks (see `Ranks`) measure
    a block of units each, cut as shards are, and the first one adds them up.

    Args:
        names: sets or parts, comma-separated or as a list.
        shard: `I/N`: only the I-th of N blocks of each part's units, in their order. When the last
            block is there, all are added up into the part's folder.
        force: measure again, replacing what is there.
        store: `float32`, or `bfloat16` for half the size (shards stay float32 until they are added up).
        layout: how memory is used, see `measure_saliency`.

    Raises:
        UsageError: for unknown names, estimators or shards; for a shard on several ranks.
        MissingArtifact: if there is no such model.
        InputRefused: if model, data or an existing map is damaged, or changes meanwhile.
        Mismatch: if a folder holds a map, or an interrupted measurement, of other settings or inputs and `force` is
            not given.
        UnusableData: see `measure_saliency`; also for text that is scored, unless it is allowed by name.
        MachineFault: if the workspace is in use or cannot be written.
    """
    for kind, value, known in (("estimator", estimator, ESTIMATORS), ("store", store, STORES)):
        if value not in known:
            raise unknown(kind, value, known)
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size} is impossible", "use 1 or more")
    ranks = Ranks.here()
    if shard is not None and ranks.count > 1:
        raise UsageError(
            f"shard {shard} on {ranks.count} ranks would cut the parts twice", "leave out --shard, or start one process"
        )
    parts = named_parts(workspace, names)
    block = Shard.parse(shard) if isinstance(shard, str) else shard
    job = _Job(workspace, StoredModel(workspace, model), estimator, batch_size, force, store, layout, progress)
    if block is not None:
        return [job.shard(part, block) for part in parts]
    if ranks.count > 1:
        with ranks.together(workspace.lock()):
            return [replace(job, progress=ranks.watched(progress)).on_ranks(part, ranks) for part in parts]
    results = {part: None if force else job.found(part) for part in parts}
    there = [result for result in results.values() if result]
    if len(there) == len(parts) and not any(Snapshots.folder_of(each.path).exists() for each in there):
        return there
    with workspace.lock():
        return [job.whole(part) for part in parts]


def named_parts(workspace: Workspace, names: str | Sequence[str]) -> list[str]:
    """The parts of sets and parts, comma-separated or as a list, each once; of a set those that the benchmark has,
    as a mask takes them.

    Raises:
        UsageError: for a name that the benchmark does not have, or a set of which it has no part.
        MissingArtifact: for anchors where there are none.
    """
    listed = names.split(",") if isinstance(names, str) else names
    reader = benchmark(workspace.settings.benchmark.name)
    offered, found = parts_with_anchors(reader, source_of(workspace)), list[str]()
    for name in (each.strip() for each in listed):
        kept = [part for part in parts_of(name) if part in offered]
        if not kept and name in SETS:
            raise UsageError(f"benchmark '{reader.name}' has no part of set '{name}'", f"it has {', '.join(offered)}")
        if not kept and name == ANCHORS:
            raise no_anchors(source_of(workspace).folder / FOLDER)
        if not kept:
            raise unknown("set or part", name, (*SETS, *offered))
        found += kept
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class _Job:
    """The settings of one call of `measure_parts`."""

    workspace: Workspace
    model: StoredModel
    estimator: str
    batch_size: int
    force: bool
    store: str
    layout: Layout
    progress: Progress

    def found(self, part: str) -> PartResult | None:
        """A part that was measured; None if it was not."""
        folder = self._folder(part)
        if not folder.exists():
            return None
        found = existing(folder, self._origin(part, self._samples(part)))
        return None if found is None else _result(found, folder, up_to_date=True)

    def whole(self, part: str) -> PartResult:
        """Measure a part, unless it is there."""
        if not self.force and (found := self.found(part)) is not None:
            Snapshots.discard_of(found.path)  # of a run that was killed once it had saved the map
            return found
        samples = self._samples(part)
        folder, origin = self._folder(part), self._origin(part, samples)
        measured = self._measure(part, samples, samples, origin, folder)
        measured.save(folder, replace=self.force, store=self.store)
        self._done(part, folder)
        return _result(measured, folder)

    def on_ranks(self, part: str, ranks: Ranks) -> PartResult:
        """Measure this rank's block of a part; the first rank adds up all of them, unless the part is there."""
        found = ranks.told(None if self.force or not ranks.first else self.found(part))
        if found is not None:
            return found
        samples, unit = self._samples(part), self._unit
        blocks = [Shard(index + 1, ranks.count) for index in range(min(ranks.count, -(-len(samples) // unit)))]
        blocks = [replace(block, count=len(blocks)) for block in blocks]
        if ranks.rank < len(blocks):
            self._block(part, samples, blocks[ranks.rank])
        ranks.barrier()
        made = self._added(part, samples, blocks, ranks.count) if ranks.first else None
        return ranks.told(made)  # type: ignore[return-value]

    def _block(self, part: str, samples: list[Sample], block: Shard) -> None:
        """Measure a rank's block, unless an interrupted run of as many ranks has."""
        folder, origin = self._rank_folder(part, block), self._origin(part, samples, block)
        try:
            if existing(folder, origin) is not None:
                self.progress.note(f"{part}: the block of rank {block} is there")
                return
        except (InputRefused, Mismatch) as error:  # nobody's but an interrupted run's
            if isinstance(error, Mismatch) and not self.force:
                raise
            self.progress.note(f"{error.what}: measured again")
        mine = samples[block.block(len(samples), self._unit)]
        self._measure(part, samples, mine, origin, folder).save(folder, replace=True)

    def _added(self, part: str, samples: list[Sample], blocks: list[Shard], ranks: int) -> PartResult:
        """The sum of all ranks' blocks, saved as the part's map."""
        folder = self._folder(part)
        whole, record = summed([SaliencyMap.load(self._rank_folder(part, block)) for block in blocks])
        record = {**{key: value for key, value in record.items() if key != "shards"}, "ranks": ranks}
        whole = replace(whole, provenance={**record, **self._origin(part, samples)})
        whole.save(folder, replace=self.force, store=self.store)
        self._done(part, folder)
        return _result(whole, folder)

    def shard(self, part: str, shard: Shard) -> PartResult:
        """Measure a block of a part, and add up all blocks if this was the last one."""
        samples = self._samples(part)
        whole, folder = self._folder(part), self._folder(part, shard)
        origin = self._origin(part, samples, shard)
        mine = samples[shard.block(len(samples), self._unit)]
        if not self.force and (found := existing(whole, self._origin(part, samples))) is not None:
            return _result(found, whole, up_to_date=True)
        if not self.force:
            self._check_stores(part, shard)
        self.workspace.check_journal()
        with alone(folder):
            found = None if self.force else existing(folder, origin)
            measured = found or self._measure(part, samples, mine, origin, folder)
            if found is None:
                measured.save(folder, replace=self.force)
        with self.workspace.lock(timeout=SHARD_WAIT):
            if found is None:
                self._done(part, folder)
            merged = self._merge(part, samples, shard.count)
        return _result(measured, folder, up_to_date=found is not None, shard=str(shard), merged=merged)

    def _check_stores(self, part: str, shard: Shard) -> None:
        """
        Raises:
            Mismatch: if another shard of the part is to be added up into a map of another store.
        """
        for folder in (self._folder(part, each) for each in Shard.every(shard.count)):
            if folder.is_dir():
                other = read_manifest(folder)["provenance"]["settings"].get("sum_store", STORES[0])
                if other != self.store:
                    what = f"{folder} is to be added up as {other}, shard {shard} as {self.store}"
                    raise Mismatch(what, f"pass --store {other}, or measure every shard with --force")

    def _measure(
        self, part: str, samples: list[Sample], mine: list[Sample], origin: dict[str, Any], folder: Path
    ) -> SaliencyMap:
        from mmsurgery.saliency.measure import cpu_threads, measure_saliency

        copies = GENERATIONS + 1 + (self.layout.state == "disk")
        check_space(folder.parent, self.model.sums_bytes() * copies, "saliency and its snapshots")
        source, reader = source_of(self.workspace), benchmark(self.workspace.settings.benchmark.name)
        leaked = check_text(reader, source, part, samples)
        if leaked:
            self.progress.note(f"{leaked} samples of {part} are scored items: the settings allow it")
        if self.layout != Layout():
            self.progress.note(f"{part}: {self.layout}")
        with cpu_threads(self.workspace.threads):
            measured = measure_saliency(
                self.model.loaded,
                mine,
                estimator=self.estimator,
                batch_size=self.batch_size,
                part=part,
                progress=self.progress,
                resume_folder=Snapshots.folder_of(folder),
                data_sha256=origin["inputs"]["data_sha256"],
                layout=self.layout,
                force=self.force,
            )
        used = measured.provenance["inputs"]
        if not used == origin["inputs"] == {**used, **self.model.files()}:
            raise InputRefused(f"{self.model.folder} changed while it was measured", "measure again")
        marked = {SCORED_TEXT: leaked} if leaked else {}
        return replace(measured, provenance={**measured.provenance, **origin, **marked})

    def _done(self, part: str, folder: Path) -> None:
        Snapshots.discard_of(folder)
        self.workspace.journal("saliency", part=part, folder=folder.name, estimator=self.estimator)

    def _merge(self, part: str, samples: list[Sample], count: int) -> bool:
        """Add up the shards into the part's folder, if all are there and it is not.

        Raises:
            Mismatch: if one is of other settings or inputs and `force` is not given.
        """
        shards, folder, origin = Shard.every(count), self._folder(part), self._origin(part, samples)
        if not all(self._folder(part, shard).is_dir() for shard in shards):
            return False
        if not self.force and existing(folder, origin) is not None:
            return False
        found, stale = [], []
        for shard in shards:
            try:
                found.append(existing(self._folder(part, shard), self._origin(part, samples, shard)))
            except Mismatch as error:
                if not self.force:
                    error.next_step = f"run --shard {shard} again with the options of this one and --force"
                    raise
                stale.append(str(shard))
        if stale:  # others of the array are about to replace theirs, too
            self.progress.note(f"{part} is not added up yet: {', '.join(stale)} are of another measurement")
            return False
        merged, record = summed([one for one in found if one is not None])
        replace(merged, provenance={**record, **origin}).save(folder, replace=self.force, store=self.store)
        self._done(part, folder)
        self.progress.note(f"all {count} shards of {part} are there: added up into {folder}")
        return True

    @property
    def _unit(self) -> int:
        """Samples of a unit."""
        return self.batch_size if self.estimator == "batch" else 1

    def _samples(self, part: str) -> list[Sample]:
        settings = self.workspace.settings.benchmark
        return part_samples(benchmark(settings.name), source_of(self.workspace), part)

    def _folder(self, part: str, shard: Shard | None = None) -> Path:
        folder = self.workspace.saliency_dir(part, self.estimator, self.batch_size)
        if shard is None:
            return folder
        return folder.with_name(check_artifact_name(f"{folder.name}.shard-{shard.index}-of-{shard.count}"))

    def _rank_folder(self, part: str, block: Shard) -> Path:
        return Snapshots.folder_of(self._folder(part)) / f"rank-{block.index}-of-{block.count}"

    def _origin(self, part: str, samples: list[Sample], shard: Shard | None = None) -> dict[str, Any]:
        chosen = settings(part, self.estimator, self.batch_size, self.workspace.threads)
        stored = {"store": self.store}
        if shard is not None:  # what all are added up into is not theirs, but they must agree on it
            stored = {"store": "float32", "shard": str(shard)}
            stored |= {"sum_store": self.store} if self.store != "float32" else {}
        return provenance("saliency", {**chosen, **stored}, {**self.model.inputs, "data_sha256": data_sha256(samples)})


def existing(folder: Path, origin: dict[str, Any]) -> SaliencyMap | None:
    """The map in a folder, verified, or None if there is none.

    Raises:
        InputRefused: if it is damaged.
        Mismatch: if it is of other settings or inputs than `origin`, naming them.
    """
    if not folder.exists():
        return None
    found = SaliencyMap.load(folder)
    _check_same(folder, found.provenance, origin)
    return found


def _check_same(folder: Path, recorded: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
    if recorded.get("key") != origin["key"]:
        raise Mismatch(
            f"{folder} holds another measurement: {differences(recorded, origin)}", "add --force to replace it"
        )


def check_measured(
    workspace: Workspace,
    part: str,
    samples: list[Sample],
    *,
    estimator: str,
    batch_size: int,
    shard: Shard | None,
    model: str,
    store: str,
) -> Path | None:
    """The folder of a part, or of a shard of it, that `measure_parts` of the same arguments would find; None if it
    would measure. The numbers in it are not read.

    Raises:
        as `measure_parts` does of what is there.
    """
    job = _Job(workspace, StoredModel(workspace, model), estimator, batch_size, False, store, Layout(), SILENT)
    for each in dict.fromkeys((None, shard)):
        folder = job._folder(part, each)
        if folder.exists():
            _check_same(folder, read_manifest(folder)["provenance"], job._origin(part, samples, each))
            return folder
    return None


def _result(
    found: SaliencyMap, folder: Path, *, up_to_date: bool = False, shard: str | None = None, merged: bool = False
) -> PartResult:
    return PartResult(
        part=found.part,
        path=folder,
        units=found.units,
        no_gradient=len(found.no_gradient),
        supervised_tokens=int(found.provenance.get("supervised_tokens", 0)),
        up_to_date=up_to_date,
        shard=shard,
        merged=merged,
    )
