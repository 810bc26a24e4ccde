"""The one training loop: unlearning and fine-tuning differ in how a step's gradient comes about.

The model is in eval mode (no dropout), what the optimizer moves and its state are float32, the optimizer is
AdamW in its fused form. The gradient's norm is taken, and clipped, after masking. A loss or gradient
that is not finite ends the run; nothing of it is saved as a model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.errors import UnusableData
from mmsurgery.memory import Store
from mmsurgery.ranks import ALONE, Ranks
from mmsurgery.unlearn.resume import History
from mmsurgery.workspace import SILENT, Progress

if TYPE_CHECKING:
    import torch

    from mmsurgery.unlearn.masked import Update


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """AdamW (epsilon 1e-8) with decoupled weight decay."""

    learning_rate: Callable[[int], float]
    """Step from 0 -> learning rate."""
    weight_decay: float
    clip_norm: float
    """Largest norm of the gradient; 0 switches clipping off."""
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores taken along the run."""

    every: int
    """Steps between evaluations; also before the first and after the last step."""
    score: Callable[[], dict[str, Any]]
    """Scores the model as it is; plain JSON."""


@contextlib.contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Deterministic kernels and a fixed number of CPU threads inside; the caller's settings after."""
    import torch

    memory: Any = torch.utils.deterministic
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # or every new tensor is filled with NaN first
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        memory.fill_uninitialized_memory = before[2]


def train(
    update: Update,
    accumulate: Callable[[int], Mapping[str, float]],
    *,
    steps: int,
    optimisation: Optimisation,
    store: Store | None = None,
    snapshots: Snapshots | None = None,
    evaluation: Evaluation | None = None,
    batch_ids: Callable[[int], str] = str,
    ranks: Ranks = ALONE,
    what: str = "training",
    progress: Progress = SILENT,
) -> History:
    """Run the optimizer steps that are still to be done; the weights are changed in place.

    Args:
        accumulate: leaves step n's gradients in the parameters and returns its losses by kind.
        store: where moments are made; with the parameters where None.
        batch_ids: the ids of step n's samples, for messages.
        ranks: those that the model is cut up among; the gradient's norm is over all of them.

    Raises:
        UnusableData: naming step, tensor and samples, where a loss or gradient is not finite.
        MachineFault: if a snapshot cannot be written, or there is no room for moments in files.
        Interrupted: after a snapshot, where a signal asked for it.
    """
    store = store or Store()
    optimizer = _optimizer(update.trainable, optimisation)
    saved = None if snapshots is None else _fitting(snapshots, update.trainable, progress)
    history = History() if saved is None else History(**saved[0])
    if saved is not None:
        _restore(update.trainable, optimizer, store, saved[1])
        update.restore()
    with progress.stage(what, steps) as advance, contextlib.nullcontext() if snapshots is None else snapshots.taking():
        advance(history.steps)
        if evaluation is not None and not history.evaluations:
            history.evaluations.append({"step": 0, **evaluation.score()})
        for step in range(history.steps, steps):
            optimizer.zero_grad(set_to_none=True)
            losses = _finite(accumulate(step), step, batch_ids, update.trainable, ranks)
            norm = _clip(update.trainable, optimisation.clip_norm, step, batch_ids, ranks)
            _begin(update.trainable, optimizer, store)
            optimizer.param_groups[0]["lr"] = optimisation.learning_rate(step)
            optimizer.step()
            update.restore()
            history.losses.append({**losses, "norm": norm})
            if evaluation is not None and (history.steps % evaluation.every == 0 or history.steps == steps):
                history.evaluations.append({"step": history.steps, **evaluation.score()})
            if snapshots is not None and snapshots.due():
                snapshots.save(history.steps, dataclasses.asdict(history), _state(update.trainable, optimizer).items())
            advance(1)
    return history


def _optimizer(trainable: Mapping[str, torch.nn.Parameter], optimisation: Optimisation) -> torch.optim.Optimizer:
    import torch

    return torch.optim.AdamW(
        trainable.values(), lr=1.0, betas=optimisation.betas, weight_decay=optimisation.weight_decay, fused=True
    )


def _begin(trainable: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, store: Store) -> None:
    """Give every parameter that a gradient reaches for the first time its moments, zeros, before AdamW would."""
    for parameter in trainable.values():
        if parameter.grad is not None and parameter not in optimizer.state:
            optimizer.state[parameter] = _zeros(parameter, store)


def _zeros(parameter: torch.nn.Parameter, store: Store) -> dict[str, torch.Tensor]:
    """A parameter's moments, float32, and how many steps it was moved in."""
    import torch

    found = {kind: store.zeros(parameter.shape, torch.float32, parameter.device) for kind in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.zeros((), dtype=torch.float32, device=parameter.device), **found}


def _finite(
    losses: Mapping[str, float],
    step: int,
    batch_ids: Callable[[int], str],
    trainable: Mapping[str, torch.nn.Parameter],
    ranks: Ranks,
) -> Mapping[str, float]:
    for kind, loss in losses.items():
        if not math.isfinite(loss):
            weight = _first_not_finite({name: p.detach() for name, p in trainable.items()}, ranks)
            cause = f"; weight {weight} is not finite" if weight else ""
            raise UnusableData(
                f"step {step + 1}: the {kind} loss is {loss}{cause} (samples {batch_ids(step)})",
                "lower the learning rate, or check the model",
            )
    return losses


def _clip(
    trainable: Mapping[str, torch.nn.Parameter],
    largest: float,
    step: int,
    batch_ids: Callable[[int], str],
    ranks: Ranks,
) -> float:
    """Clip to the largest norm and return the norm before."""
    import torch

    gradients = {name: p.grad for name, p in trainable.items() if p.grad is not None}
    total = torch.nn.utils.get_total_norm(gradients.values())
    if ranks.count > 1:
        total = torch.tensor(math.hypot(*ranks.exchange(float(total))), dtype=torch.float32)
    norm = float(total)
    if not math.isfinite(norm):
        tensor = _first_not_finite(gradients, ranks)
        fault = f"the gradient of {tensor} is not finite" if tensor else "the gradient's norm is too large for float32"
        raise UnusableData(
            f"step {step + 1}: {fault} (samples {batch_ids(step)})", "lower the learning rate, or check the model"
        )
    if largest:
        torch.nn.utils.clip_grads_with_norm_(trainable.values(), largest, total)
    return norm


def _first_not_finite(tensors: Mapping[str, torch.Tensor], ranks: Ranks) -> str | None:
    """The first of some tensors, of the same names on all ranks, that is not finite on any of them."""
    import torch

    own = next((n for n, tensor in enumerate(tensors.values()) if not bool(torch.isfinite(tensor).all())), None)
    found = [number for number in ranks.exchange(own) if number is not None]
    return list(tensors)[min(found)] if found else None


def _state(trainable: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Weights and moments as NumPy arrays by `kind.name`; a parameter never reached has no moments."""
    arrays = {f"weight.{name}": p.detach().cpu().numpy() for name, p in trainable.items()}
    for name, parameter in trainable.items():
        for kind, value in optimizer.state.get(parameter, {}).items():
            arrays[f"{kind}.{name}"] = value.cpu().numpy()
    return arrays


def _fitting(
    snapshots: Snapshots, trainable: Mapping[str, torch.nn.Parameter], progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The newest whole snapshot, if it is of what is trained now."""
    saved = snapshots.load(progress)
    if saved is None or all(saved[1][f"weight.{name}"].shape == tuple(p.shape) for name, p in trainable.items()):
        return saved
    progress.note("the interrupted run kept other numbers of its weights: starting anew")
    snapshots.discard()
    return None


def _restore(
    trainable: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    store: Store,
    arrays: Mapping[str, Any],
) -> None:
    import torch

    for name, parameter in trainable.items():
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(arrays[f"weight.{name}"]))
        if f"step.{name}" in arrays:
            optimizer.state[parameter] = _zeros(parameter, store)
            for kind, value in optimizer.state[parameter].items():
                value.copy_(torch.from_numpy(arrays[f"{kind}.{name}"]))
