"""Loading a checkpoint folder through its backbone, with every parameter accounted for."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsurgery.artifacts.checkpoint import RUN_FILE, CheckpointFiles, companions_sha256, model_config
from mmsurgery.backbones.discovery import backbone
from mmsurgery.backbones.protocol import Backbone
from mmsurgery.errors import InputRefused, MachineFault, Mismatch, MmsurgeryError, UnusableData, UsageError
from mmsurgery.names import Address, unwrapped
from mmsurgery.provenance import sha256_json
from mmsurgery.ranks import Ranks

if TYPE_CHECKING:
    import torch


_SMALL = 1 << 24
"""Weights that take no memory to speak of."""
_PIECE = 1 << 18
"""Elements that a sum takes at a time: few enough to stay in a cache."""
_SCARCE = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What a machine has run out of: processes and threads, open files, memory."""


@dataclass(frozen=True)
class Loaded:
    """A model in memory with what belongs to it."""

    model: Any
    processor: Any
    backbone: Backbone
    path: Path
    addresses: dict[str, Address]
    """Canonical name -> address, over `named_parameters()` in its order."""
    tied: dict[str, str]
    """Alias -> canonical name of parameters that are one."""

    fingerprint: str | None = None
    """Of the weights as they were loaded, see `fingerprint`."""

    @property
    def model_sha256(self) -> str:
        """Identity of the weights in memory: that of the checkpoint (see `CheckpointFiles.digest`) as long as
        they are as they were loaded, else the one they would have if they were saved as they are."""
        if self.fingerprint in (None, fingerprint(self.model)):
            return self._stored_sha256
        return weights_sha256(self.model)

    @functools.cached_property
    def _stored_sha256(self) -> str:
        return CheckpointFiles(self.path, self.backbone.canonical).digest()

    @functools.cached_property
    def companions_sha256(self) -> str:
        """Identity of its configuration and processor files, see `checkpoint.companions_sha256`."""
        return companions_sha256(self.path)


def load(path: Path, dtype: torch.dtype | None = None) -> Loaded:
    """Load model and processor of a local checkpoint folder, in eval mode, onto `device()`.

    Args:
        dtype: of the parameters; the checkpoint's own where None.

    Raises:
        MissingArtifact: if the folder does not exist.
        InputRefused: if its files are damaged, incomplete or need code to be run.
        UsageError: if no backbone is installed for its model type.
        Mismatch: if a parameter belongs to no module group, or to the wrong one.
        UnusableData: if a parameter holds NaN or infinite values.
    """
    family = backbone(model_config(path)["model_type"])
    processor = family.load_processor(path)  # first: it forks, which takes the longer the more memory is in use
    model = family.load_model(path, dtype=dtype)
    found = addresses(family, model)
    if (where := device()).type != "cpu":
        model.to(where)
    _check_finite(model)
    loaded = Loaded(model, processor, family, path, found, tied(model), fingerprint(model))
    if (path / RUN_FILE).exists():
        loaded.model_sha256  # noqa: B018 - refuses what is not as its run wrote it
    return loaded


def device() -> torch.device:
    """Where models are put: the first visible CUDA device, else the CPU (`CUDA_VISIBLE_DEVICES` chooses); of several
    ranks each takes a device of its own.

    Raises:
        UsageError: if there are more ranks here than devices.
    """
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    # deterministic matrix products; read when the first of them runs
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # whole float32 in convolutions, as everywhere else: by default they cut their inputs to 10 bits
    torch.backends.cudnn.allow_tf32 = False
    if (ranks := Ranks.here()).count > 1:
        torch.cuda.set_device(ranks.device_index(torch.cuda.device_count()))
    return torch.device("cuda")


def device_name(where: torch.device | None = None) -> str:
    """What a record says of where it was made, beside its key: `cpu`, or the card's name.

    Args:
        where: `device()` where None.
    """
    import torch

    where = where or device()
    return torch.cuda.get_device_name(where) if where.type == "cuda" else where.type


def fingerprint(model: torch.nn.Module) -> str:
    """A quick look at every weight's bits (their sum by parameter): an update that leaves it as it is
    would be a coincidence."""
    return sha256_json(bit_sums(model))


def bit_sums(model: torch.nn.Module) -> dict[str, int]:
    """Canonical name -> `bit_sum` of a parameter, adapters of LoRA and their wrappers aside."""
    return {unwrapped(name): bit_sum(parameter) for name, parameter in model.named_parameters()}


def bit_sum(values: torch.Tensor) -> int:
    """Sum of the bit patterns of a tensor of 2, 4 or 8 bytes an element, modulo 2^64, as a signed integer."""
    import torch

    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = values.detach().view(integers[values.element_size()])
    # on a CPU the sum of a whole tensor would first be given a copy of 64 bits an element
    pieces = torch.split(bits.reshape(-1), _PIECE) if bits.device.type == "cpu" else [bits]
    total = torch.stack([piece.sum(dtype=torch.int64) for piece in pieces]).sum()
    return int(total)


def weights_sha256(model: torch.nn.Module) -> str:
    """The identity that the weights in memory would have as a checkpoint, see `CheckpointFiles.digest`."""
    import torch

    codes = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
    entries = []
    for name, parameter in sorted(model.named_parameters()):
        data = parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().data
        entries.append([name, codes[parameter.dtype], list(parameter.shape), hashlib.sha256(data).hexdigest()])
    return sha256_json(entries)


def addresses(family: Backbone, model: torch.nn.Module) -> dict[str, Address]:
    """The address of every parameter, checked against the model's own encoder and decoder.

    Raises:
        Mismatch: for a parameter without group, in the wrong group, or on the meta device.
    """
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise Mismatch(f"{name} is not in memory (offloaded); its gradient would be lost", "use a larger machine")
        found[name] = family.address(name)
    faults = misplaced(model, found)
    if faults:
        raise Mismatch(
            f"backbone '{family.model_type}' does not fit this model: {'; '.join(faults[:3])}",
            "update the backbone, or use the family it was written for",
        )
    return found


def _check_finite(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        least, greatest = parameter.detach().aminmax()
        if not math.isfinite(least.item()) or not math.isfinite(greatest.item()):
            raise UnusableData(f"{name} of the model holds NaN or infinite values", "use another checkpoint")


def misplaced(model: Any, found: dict[str, Address]) -> list[str]:
    """Parameters whose group contradicts `get_encoder`, `get_decoder` and `get_output_embeddings`.

    The connector may sit inside the encoder (Qwen2-VL) or beside it (LLaVA), never in the decoder.
    """
    decoder = {id(p) for p in model.get_decoder().parameters()}
    encoder = {id(p) for p in model.get_encoder(modality="image").parameters()}
    head = {id(p) for p in model.get_output_embeddings().parameters()}
    allowed = {"lm": decoder | head, "vision": encoder}
    faults = []
    for name, parameter in model.named_parameters():
        group, key = found[name].group, id(parameter)
        if key not in allowed[group] if group != "connector" else key in allowed["lm"]:
            faults.append(f"{name} is said to be in group {group}, the model says otherwise")
    return faults


def tied(model: torch.nn.Module) -> dict[str, str]:
    """Alias -> name of parameters that are one tensor, by identity."""
    first: dict[int, str] = {id(p): name for name, p in model.named_parameters()}
    return {
        name: first[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if first[id(parameter)] != name
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no log lines of transformers inside; its settings are put back after."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def pretrained(cls: Any, path: Path, dtype: torch.dtype | None) -> torch.nn.Module:
    """A transformers model of class `cls` from a local folder, complete, silent, in eval mode.

    Raises:
        InputRefused: if a tensor is missing, unexpected or of another shape, or the config is bad.
    """
    with quiet():
        _check_size(cls, path)
        try:
            model, info = cls.from_pretrained(
                path,
                dtype=dtype or "auto",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except Exception as error:  # configs and weights are read by half a dozen libraries
            raise fault_of(f"{path} cannot be loaded", error) from error
    for fault, keys in info.items():
        if keys:
            shown = ", ".join(sorted(str(key) for key in keys)[:3])
            raise InputRefused(
                f"{path}: {fault.replace('_', ' ')}, {len(keys)} in all: {shown}", "copy the whole checkpoint again"
            )
    loaded: torch.nn.Module = model.eval()
    return loaded


def fault_of(what: str, error: Exception) -> MmsurgeryError:
    """What is raised for what a library raised over a folder: its files are at fault, unless the machine is.

    Args:
        what: that went wrong, the folder named in it, such as `PATH cannot be loaded`.
    """
    if isinstance(error, MemoryError):
        return MachineFault(f"{what}: out of memory", "use a larger machine")
    if (isinstance(error, OSError) and error.errno in _SCARCE) or "can't start new thread" in str(error):
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        return MachineFault(f"{what}: {reason}", "end other programs, then run the command again")
    if isinstance(error, UnicodeEncodeError) and not _is_utf8(what):
        return UsageError(f"{what}: its path is not UTF-8", "rename the folder")  # libraries in Rust know nothing else
    return InputRefused(f"{what}: {str(error)[:300]}")


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_size(cls: Any, path: Path) -> None:
    """Check that the config describes about as many weights as the files hold, before memory is taken for
    them; what exactly is missing, `from_pretrained` says.

    Raises:
        InputRefused: if it describes many more, or cannot be read.
    """
    import torch

    files = CheckpointFiles(path, str)
    held = sum(math.prod(files.shape(name)) for name in files.names)
    try:
        config = cls.config_class.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            described = sum(parameter.numel() for parameter in cls(config).parameters())
    except Exception as error:  # as above
        raise fault_of(f"{path} cannot be loaded", error) from error
    if described > 2 * held + _SMALL:
        raise InputRefused(
            f"{path / 'config.json'} describes {described:,} weights, the files hold {held:,}",
            "copy the whole checkpoint again",
        )
