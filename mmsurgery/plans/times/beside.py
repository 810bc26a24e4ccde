"""What a method sees besides, without what vanilla says of it, for the time of steps; and how long vanilla takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mmsurgery.data.samples import Sample
from mmsurgery.plans.times.watch import now
from mmsurgery.unlearn.beside import BATCH, Beside, vanilla_passes
from mmsurgery.unlearn.request import FORGET, Run

if TYPE_CHECKING:
    import torch

    from mmsurgery.backbones.loading import Loaded


def stand_in(run: Run, loaded: Loaded) -> Beside:
    """Sets as they are, every distribution uniform."""
    if not run.beside:
        return Beside()
    needed = run.request.method.beside()
    uniform = _Uniform(loaded, {sample.id: sample for each in (run.forget, *run.beside.values()) for sample in each})
    return Beside({name: each for name, each in run.beside.items() if name in needed}, uniform, uniform)


class _Uniform(Mapping[str, "torch.Tensor"]):
    def __init__(self, loaded: Loaded, samples: Mapping[str, Sample]) -> None:
        self._loaded, self._samples = loaded, samples
        self._words = int(loaded.model.get_output_embeddings().weight.shape[0])

    def __getitem__(self, sample: str) -> torch.Tensor:
        import torch

        text = dataclasses.replace(self._samples[sample], image_bytes=None)
        labels = self._loaded.backbone.collate(self._loaded.processor, [text])["labels"]
        return torch.zeros(int((labels >= 0).sum()), self._words).log_softmax(dim=-1)

    def __iter__(self) -> Iterator[str]:
        return iter(self._samples)

    def __len__(self) -> int:
        return len(self._samples)


def vanilla_seconds(run: Run, loaded: Loaded) -> float:
    """Seconds in which the vanilla model is asked about everything, from one batch; nothing is looked for on disk."""
    import torch

    from mmsurgery.methods.step import Answers

    asked = [sample for name, samples in run.beside.items() if name != FORGET for sample in samples]
    if not asked:
        return 0.0
    some = asked[:: max(1, len(asked) // BATCH)][:BATCH]
    cache, device = dict[Any, Any](), next(loaded.model.parameters()).device
    begun = now()
    with torch.no_grad():
        batch = loaded.backbone.collate(loaded.processor, some, cache=cache)
        Answers.of(loaded.model, {name: value.to(device) for name, value in batch.items()}, some).log_probabilities()
    return vanilla_passes(run.request.method, run.beside, run.forgotten) * (now() - begun) / len(some)
