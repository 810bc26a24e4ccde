"""Fine-tuning a base by a recipe: which samples each step sees, what is trained, and the record of it.

An epoch goes once through all samples, in an order that is sorted by digests of (seed, epoch, part,
sample id). A step takes `batch_size * accumulation` of them, the last one of an epoch what is left; its
gradient is that of the mean over its samples, whatever it is cut into.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsurgery.artifacts.checkpoint import CheckpointFiles, companions_sha256
from mmsurgery.backbones.checkpointing import checkpoint_activations
from mmsurgery.backbones.loading import device_name
from mmsurgery.backbones.protocol import Backbone
from mmsurgery.data.samples import Sample, data_sha256
from mmsurgery.errors import UnusableData, UsageError
from mmsurgery.names import Selector
from mmsurgery.provenance import provenance
from mmsurgery.recipes import Recipe
from mmsurgery.unlearn.deletions import digest_of, people_of
from mmsurgery.unlearn.finetune import Constant, Linear, finetune
from mmsurgery.unlearn.interrupted import TrainingSnapshots, training_snapshots
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.unlearn.plan import MAX_STEPS
from mmsurgery.unlearn.save import check_space, commit
from mmsurgery.workspace import SILENT, Progress

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.unlearn.masked import Update
    from mmsurgery.unlearn.save import Trained

START = "base"
"""The model that is fine-tuned, by its name in the workspace."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A model to be made: the base, what it is trained on, and how."""

    name: str
    folder: Path
    """Where it will be."""
    files: CheckpointFiles
    """The base."""
    family: Backbone
    parts: Mapping[str, Sequence[Sample]]
    """Data part -> its samples."""
    recipe_name: str
    recipe: Recipe
    recipe_asked: str | None = None
    """What the recipe was given as, a name or a path; None for the default one."""
    threads: int

    def check(self) -> None:
        """Check what can be checked before a weight is loaded.

        Raises:
            UnusableData: if there is nothing to train on, or nothing to be trained.
            UsageError: if the modules name no parameter, or there are too many steps.
        """
        for part, samples in self.parts.items():
            if not samples:
                raise UnusableData(f"the data part {part} is empty", "check the benchmark's files")
        if self.steps > MAX_STEPS:
            raise UsageError(f"{self.steps:,} steps, at most {MAX_STEPS:,} are possible", "use fewer epochs")
        self._trained_names()

    @property
    def _samples(self) -> list[Sample]:
        return [sample for samples in self.parts.values() for sample in samples]

    @property
    def _step_size(self) -> int:
        return self.recipe.batch_size * self.recipe.accumulation

    @property
    def _steps_an_epoch(self) -> int:
        return -(-len(self._samples) // self._step_size)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.recipe.epochs * self._steps_an_epoch

    def batches(self) -> Callable[[int], list[list[Sample]]]:
        """Step from 0 -> its samples in sub-batches of at most the recipe's batch size; samples with a
        picture and samples without are apart, so that text is not padded to the length of pictures."""
        samples = [(part, sample) for part, found in self.parts.items() for sample in found]
        size, an_epoch = self._step_size, self._steps_an_epoch

        @functools.lru_cache(maxsize=1)
        def order(epoch: int) -> list[Sample]:
            keyed = (
                (hashlib.sha256(f"{self.recipe.seed}/train/{epoch}/{part}/{sample.id}".encode()).digest(), sample)
                for part, sample in samples
            )
            return [sample for _, sample in sorted(keyed, key=lambda pair: pair[0])]

        def batches(step: int) -> list[list[Sample]]:
            epoch, place = divmod(step, an_epoch)
            chosen = order(epoch)[place * size : (place + 1) * size]
            found = []
            for start in range(0, len(chosen), self.recipe.batch_size):
                batch = chosen[start : start + self.recipe.batch_size]
                found += [[s for s in batch if s.image_bytes is not None], [s for s in batch if s.image_bytes is None]]
            return [batch for batch in found if batch]

        return batches

    def provenance(self) -> dict[str, Any]:
        """Settings and inputs; the key over them tells trainings apart."""
        settings = {"model": self.name, "parts": list(self.parts), **self.recipe.numbers(), "threads": self.threads}
        inputs = {
            "start": self.files.digest(),
            "processor": companions_sha256(self.files.path),
            **{part: data_sha256(samples) for part, samples in self.parts.items()},
        }
        return provenance("train", settings, inputs)

    def _trained_names(self) -> list[str]:
        """The parameters that are trained, or get an adapter; raises as `check`."""
        if self.recipe.adapter == "lora":
            return self._lora.targets(self.files.names, self.family, None)
        addresses = {name: self.family.address(name) for name in self.files.names}
        inside = Selector(self.recipe.modules).select(addresses)
        return [name for name in self.files.names if name in inside]

    @property
    def _lora(self) -> LoRA:
        return LoRA(rank=self.recipe.rank or 0, modules=self.recipe.modules)

    def make(self, *, replace: bool = False, progress: Progress = SILENT) -> dict[str, Any]:
        """Train and save the model; resumable.

        Args:
            replace: another model may stand in its place.

        Returns:
            The record.

        Raises:
            as `check`; UnusableData: for an answer that cannot be learnt, such as one of unknown words, or if
                the training diverges or moves nothing.
            Mismatch: if an interrupted training was one of other settings, and may not be replaced.
            MachineFault: if the disk is too small or cannot be written.
        """
        from mmsurgery.unlearn.loop import deterministic

        self.check()
        check_space(self.files, self.folder.parent)
        origin = self.provenance()
        snapshots = training_snapshots(self.folder, origin, self.recipe_name, self.recipe_asked, force=replace)
        snapshots.check(progress)
        self._say(progress)
        self._check_samples(progress)
        with deterministic(self.threads):
            trained, record = self._train(snapshots, progress)
        body = {**record, "provenance": {**origin, "device": device_name()}}
        return commit(self.folder, self.files, self.family, trained, body, replace=replace, progress=progress)

    def _check_samples(self, progress: Progress) -> None:
        """Check that every sample can be trained on, before hours of training; raises as `Backbone.collate`."""
        processor, samples = self.family.load_processor(self.files.path), self._samples
        with progress.stage("checking the samples", len(samples)) as advance:
            for sample in samples:
                self.family.collate(processor, [sample])
                advance(1)

    def _say(self, progress: Progress) -> None:
        recipe, parts = self.recipe, ", ".join(f"{len(samples):,} {part}" for part, samples in self.parts.items())
        what = f"LoRA of rank {recipe.rank} on" if recipe.adapter == "lora" else "all weights of"
        progress.note(
            f"training {self.name} on {parts} by recipe {self.recipe_name}: {self.steps:,} steps of {self._step_size} "
            f"samples, {what} {recipe.modules}, learning rate {recipe.learning_rate:g}"
        )
        if dtypes := {self.files.dtype(name) for name in self.files.names} - {"F32"}:
            progress.note(
                f"trained in float32, saved as {', '.join(sorted(dtypes))}: "
                "changes below half a unit in the last place are rounded away"
            )

    def _train(self, snapshots: TrainingSnapshots, progress: Progress) -> tuple[dict[str, Trained], dict[str, Any]]:
        """What was trained by canonical name, and what the run's record says of the training."""
        recipe, loaded = self.recipe, self._load()
        update, trained = self.update(loaded)
        if recipe.checkpointing:
            checkpoint_activations(loaded.model)
        rates = {"linear": Linear, "constant": Constant}[recipe.schedule]
        _, history = finetune(
            loaded,
            self.batches(),
            [rates(steps=self.steps, learning_rate=recipe.learning_rate)],
            update=update,
            weight_decay=recipe.weight_decay,
            clip_norm=recipe.clip_norm,
            betas=recipe.betas,
            remember=False,  # thousands of encoded pictures would fill the memory
            snapshots=snapshots,
            what=f"training {self.name}",
            progress=progress,
        )
        record: dict[str, Any] = {
            "model": self.name,
            "method": "finetune",
            "equation": "Eq. 14",
            "protocol": None,
            "scope": None,
            "mask": None,
            "start": START,
            "reference": None,
            "recipe": {"name": self.recipe_name, "source": recipe.source, **recipe.numbers()},
            "trained_on": {
                part: {
                    "samples": len(samples),
                    "people": len(people_of(samples)),
                    "people_sha256": digest_of(people_of(samples)),
                }
                for part, samples in self.parts.items()
            },
            "steps": {"planned": self.steps, "done": history.steps},
            "samples": {"train": recipe.epochs * len(self._samples)},
            "losses": history.losses,
            "evaluations": history.evaluations,
        }
        if recipe.adapter == "lora":
            record["lora"] = {"rank": recipe.rank, "layers": len(self._trained_names())}
        return trained(), record

    def _load(self) -> Loaded:
        import torch

        from mmsurgery.backbones.loading import load

        bf16 = self.recipe.adapter == "lora" and self.recipe.precision == "bf16"
        return load(self.files.path, torch.bfloat16 if bf16 else torch.float32)

    def update(self, loaded: Loaded) -> tuple[Update, Callable[[], dict[str, Trained]]]:
        """What is trained of the model, and what gives what is to be saved once it is."""
        recipe, names = self.recipe, self._trained_names()
        if recipe.adapter == "lora":
            from mmsurgery.unlearn.adapters import LowRankUpdate

            adapters = LowRankUpdate(loaded.model, self._lora, names, None, seed=recipe.seed, alpha=recipe.alpha)
            return adapters, adapters.merged_into
        from mmsurgery.unlearn.weights import MasterUpdate, WeightUpdate

        update = (MasterUpdate if recipe.precision == "bf16" else WeightUpdate)(loaded.model, names)
        return update, update.trained
