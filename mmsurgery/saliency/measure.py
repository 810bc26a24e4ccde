"""Measuring saliency: what each weight means to the answers of some samples (Eq. 4)."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.backbones.checkpointing import activations_checkpointed
from mmsurgery.backbones.loading import device_name
from mmsurgery.data import samples as data
from mmsurgery.data.samples import Sample
from mmsurgery.errors import MachineFault, UnusableData, UsageError, unknown
from mmsurgery.memory import Layout, Store
from mmsurgery.methods.step import IGNORED, Answers
from mmsurgery.provenance import provenance
from mmsurgery.saliency.backward import Backward
from mmsurgery.saliency.blocks import in_blocks
from mmsurgery.saliency.exact import Hooked
from mmsurgery.saliency.modules import NotUnderstood
from mmsurgery.saliency.resume import State, settings
from mmsurgery.saliency.sums import Sums, sum_dtype
from mmsurgery.workspace import ESTIMATORS, SILENT, Progress

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.backbones.protocol import Batch

LOSS_SCALE = 1024.0
"""Factor of the loss of float16 models, taken out of the sums at the end: smaller gradients than 6e-8
would be lost before they are squared. A power of two changes no digit."""


def measure_saliency(
    loaded: Loaded,
    samples: Sequence[Sample],
    *,
    estimator: str = "sample",
    batch_size: int = 4,
    part: str = "",
    progress: Progress = SILENT,
    resume_folder: Path | None = None,
    data_sha256: str | None = None,
    layout: Layout = Layout(),
    force: bool = False,
) -> SaliencyMap:
    """The Fisher diagonal of some samples, as sums over units in float32 (float64 for a float64 model).

    The loss of a sample is the mean negative log-likelihood of its answer tokens, in nats. Estimators:
    `sample` sums the squared gradient of each sample's loss, exact at any batch size; `batch` the
    squared gradient of the mean loss of each batch (a last partial batch is a unit), as the official
    code; `dataset` sums the signed gradients of the samples (Eq. 4 as printed). The model is in eval
    mode meanwhile and left as it was found.

    Parameters that no loss reaches are in `no_gradient`. Those whose true gradient is zero whatever
    the data (`Backbone.no_true_gradient`) get sums of exactly 0, not their round-off; provenance lists
    them as `zero_gradient`. Its `path` says how it went: `hooks`, or, for a model that the hooks do not
    understand, `batch-1` of `sample` (slower), with the same result; `batches` of the others (of `batch` where
    `blocks.in_blocks` does not ask for hooks, or they do not understand the model).

    Args:
        batch_size: samples per forward pass.
        part: name of the data part, for the record.
        resume_folder: where snapshots go, so that a killed measurement can be repeated and goes on;
            to be removed when the map is saved.
        data_sha256: digest of the whole part, if `samples` is a shard of it.
        layout: how memory is used. Sums in files lie beside `resume_folder`, else where the system keeps its
            temporary files. An interrupted measurement may go on in another layout.
        force: snapshots of another measurement in `resume_folder` give way.

    Raises:
        TypeError: for a model or samples of another type.
        UsageError: for an unknown estimator or an impossible batch size; for a model that cannot compute its
            activations twice.
        Mismatch: if `resume_folder` has snapshots of another measurement, and `force` is not given.
        UnusableData: if there is no sample, a sample has no answer, or a loss or gradient is not
            finite, naming sample and tensor; if a parameter is not in memory; if all gradients are zero.
        MachineFault: if memory runs out.
    """
    _check_types(loaded, samples)
    if estimator not in ESTIMATORS:
        raise unknown("estimator", estimator, ESTIMATORS)
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size} is impossible", "use 1 or more")
    if not samples:
        raise UnusableData(f"no samples to measure{f' in {part}' if part else ''}", "choose a part that has some")
    for name, parameter in loaded.model.named_parameters():
        if parameter.is_meta:
            raise UnusableData(f"{name} is not in memory (offloaded); its gradient would be lost", "use more memory")
    digest = data.data_sha256(samples) if data_sha256 is None else data_sha256
    run = _Measurement(loaded, samples, estimator, batch_size, part, digest, progress, resume_folder, layout, force)
    twice = activations_checkpointed(loaded.model) if layout.checkpointing else contextlib.nullcontext()
    with _left_as_found(loaded.model), _deterministic(loaded.model), twice:
        try:
            run.run()
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise MachineFault(
                "out of memory while measuring saliency", "lower the batch size, or give --memory"
            ) from error
    return run.result()


def _check_types(loaded: object, samples: object) -> None:
    if not hasattr(loaded, "model") or not hasattr(loaded, "backbone"):
        raise TypeError(f"loaded is a {type(loaded).__name__}, should be what load_model returns")
    if isinstance(samples, str) or not isinstance(samples, Sequence):
        raise TypeError(f"samples is a {type(samples).__name__}, should be a list of Sample")
    odd = [sample for sample in samples if not isinstance(sample, Sample)]
    if odd:
        raise TypeError(f"samples holds a {type(odd[0]).__name__}, should hold Sample alone")


class _NotFinite(Exception):
    """A loss is no number; the text says whose."""


class _Measurement:
    """One call of `measure_saliency`."""

    def __init__(
        self,
        loaded: Loaded,
        samples: Sequence[Sample],
        estimator: str,
        batch_size: int,
        part: str,
        data_sha256: str,
        progress: Progress,
        resume_folder: Path | None,
        layout: Layout,
        force: bool,
    ) -> None:
        self.loaded, self.model, self.samples, self.progress = loaded, loaded.model, samples, progress
        self.estimator, self.batch_size, self.part = estimator, batch_size, part
        parameters = dict(self.model.named_parameters())
        self.names = {parameter: name for name, parameter in parameters.items()}
        first = next(iter(parameters.values()))
        self.device, self.dtype = first.device, first.dtype
        self.scale = LOSS_SCALE if any(p.dtype is torch.float16 for p in parameters.values()) else 1.0
        self.settings = settings(part, estimator, batch_size, torch.get_num_threads())
        self.inputs = {
            "model_sha256": loaded.model_sha256,
            "companions_sha256": loaded.companions_sha256,
            "data_sha256": data_sha256,
            "template_sha256": loaded.backbone.template_digest(loaded.processor),
        }
        self.cache: dict[Any, Any] = {}
        self.layout, self.folder = layout, None if resume_folder is None else resume_folder.parent
        self.sums = self._zeros()
        hooked = in_blocks(estimator, [parameter.numel() for parameter in parameters.values()])
        self.state = State(path="hooks" if hooked else "batches")
        self.clean = 0
        """Samples whose sums were seen to be finite."""
        self.snapshots = None
        if resume_folder is not None:
            how = {"batch_size": batch_size, "dtype": str(self.dtype), "device": self.device.type}
            inputs = {**self.inputs, "measured_sha256": data.data_sha256(samples)}
            origin = provenance("saliency", {**self.settings, **how}, inputs)
            self.snapshots = Snapshots(resume_folder, origin, unit="sample", force=force)

    def run(self) -> None:
        """Measure every sample that is not yet in the sums."""
        if self.snapshots is not None and (found := self.snapshots.load(self.progress)) is not None:
            self.state, arrays = State(**found[0]), found[1]
            self.clean = self.state.samples
            for parameter, name in self.names.items():
                if name in arrays:
                    self.sums.total(parameter).copy_(torch.from_numpy(arrays[name]))
        if self.state.path == "hooks":
            try:
                self._pass_over(Hooked(self.loaded, self.sums, self.estimator), self.batch_size)
                return
            except NotUnderstood as reason:
                path, words = {
                    "sample": ("batch-1", "one sample at a time, which is slower"),
                    "batch": ("batches", "with whole gradients, which takes more memory"),
                }[self.estimator]
                self.progress.note(f"{words}: {reason}")
                self.sums, self.state, self.clean = self._zeros(), State(path=path), 0
        take = self.sums.add if self.estimator == "dataset" else self.sums.add_square
        reduction = torch.mean if self.estimator == "batch" else torch.sum
        size = 1 if self.state.path == "batch-1" else self.batch_size
        self._pass_over(Backward(self.names, take, reduction), size)

    def _zeros(self) -> Sums:
        return Sums(self.names, Store(self.layout.state, self.folder))

    def _pass_over(self, method: Hooked | Backward, size: int) -> None:
        what = f"saliency of {self.part}" if self.part else "saliency"
        stoppable = contextlib.nullcontext() if self.snapshots is None else self.snapshots.taking()
        with self.progress.stage(what, len(self.samples)) as advance, method, stoppable:
            advance(self.state.samples)
            for start in range(self.state.samples, len(self.samples), size):
                chunk = self.samples[start : start + size]
                tokens = self._step(method, chunk)
                self.state = replace(
                    self.state,
                    samples=start + len(chunk),
                    supervised_tokens=self.state.supervised_tokens + tokens,
                )
                if self.snapshots is not None and self.snapshots.due():
                    self._check_sums()
                    self.snapshots.save(self.state.samples, asdict(self.state), self.sums.arrays())
                advance(len(chunk))
        self._check_sums()

    def _step(self, method: Hooked | Backward, chunk: Sequence[Sample]) -> int:
        """Measure the samples of one batch; returns how many tokens were supervised."""
        backbone, processor = self.loaded.backbone, self.loaded.processor
        batch = backbone.collate(processor, chunk, cache=self.cache)
        counts = (batch["labels"] != IGNORED).sum(dim=1).tolist()
        for sample, count in zip(chunk, counts, strict=True):
            if not count:
                raise UnusableData(f"sample {sample.id} has no answer token to learn from", "correct its answer")
        try:
            method.step(batch, functools.partial(self._losses, batch, chunk), self.scale)
        except _NotFinite as found:  # only here: inside, the model's weights are watched
            culprits = [n for p, n in self.names.items() if not bool(torch.isfinite(p).all())]
            why = f": {culprits[0]} of the model holds NaN or infinite values" if culprits else ""
            raise UnusableData(f"{found}{why}", "use another checkpoint") from None
        return int(sum(counts))

    def _losses(self, batch: Batch, chunk: Sequence[Sample]) -> torch.Tensor:
        """`[B]` mean answer NLL of each sample, in nats, checked to be finite."""
        inputs = {name: value.to(self.device) for name, value in batch.items()}
        losses = Answers.of(self.model, inputs, chunk).nll()
        for sample, loss in zip(chunk, losses.tolist(), strict=True):
            if not math.isfinite(loss):
                raise _NotFinite(f"the loss of sample {sample.id} is {loss}")
        return losses

    def _check_sums(self) -> None:
        """Check that the sums are finite; if not, find the first gradient since the last check that is not."""
        bad = self.sums.not_finite()
        if not bad:
            self.clean = self.state.samples
            return
        found: list[str] = []

        def look(parameter: torch.nn.Parameter, gradient: torch.Tensor) -> None:
            if not bool(torch.isfinite(gradient.to(sum_dtype(parameter)).square()).all()):
                found.append(self.names[parameter])

        size = self.batch_size if self.estimator == "batch" else 1
        with Backward(self.names, look, torch.mean) as method:
            for start in range(self.clean, self.state.samples, size):
                chunk = self.samples[start : start + size]
                self._step(method, chunk)
                if found:
                    ids = ", ".join(sample.id for sample in chunk)
                    raise UnusableData(f"the gradient of {found[0]} is not finite at sample {ids}", _REMEDY)
        raise UnusableData(f"the sums of {bad[0]} overflow after sample {self.samples[self.clean].id}", _REMEDY)

    def result(self) -> SaliencyMap:
        totals, backbone = self.sums.totals, self.loaded.backbone
        if not self.sums.any():
            raise UnusableData(f"all gradients of {self.part or 'the samples'} are zero in {self.dtype}", _REMEDY)
        unscale = self.scale if self.estimator == "dataset" else self.scale**2
        zero = sorted(name for name in totals if backbone.no_true_gradient(name))
        for name, total in totals.items():
            if name in zero:
                total.zero_()
            elif unscale != 1:
                total.div_(unscale)
        record = provenance("saliency", self.settings, self.inputs)
        measured = {
            "path": self.state.path,
            "supervised_tokens": self.state.supervised_tokens,
            "zero_gradient": zero,
            "loss_scale": self.scale,
            "device": device_name(self.device),
            **({} if self.layout == Layout() else {"layout": str(self.layout)}),
        }
        count = len(self.samples)
        return SaliencyMap(
            part=self.part,
            estimator=self.estimator,
            batch_size=self.batch_size if self.estimator == "batch" else None,
            units=math.ceil(count / self.batch_size) if self.estimator == "batch" else count,
            model_type=backbone.model_type,
            model_sha256=self.inputs["model_sha256"],
            data_sha256=self.inputs["data_sha256"],
            arrays=dict(self.sums.arrays()),
            no_gradient={name: tuple(p.shape) for p, name in self.names.items() if name not in totals},
            tied=self.loaded.tied,
            provenance={**record, **measured},
        )


_REMEDY = "measure in float32, or use another checkpoint"


@contextlib.contextmanager
def _left_as_found(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; modes, `requires_grad` and gradients are put back after."""
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _, _ in parameters:
            parameter.grad = None
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, gradient in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


@contextlib.contextmanager
def _deterministic(model: Any) -> Iterator[None]:
    """Deterministic algorithms inside; on a GPU only where cuBLAS has the environment variable that it wants
    (`loading.device` sets it)."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    if on_cpu or "CUBLAS_WORKSPACE_CONFIG" in os.environ:
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """`count` CPU threads inside: results are bit-identical only at the same number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
