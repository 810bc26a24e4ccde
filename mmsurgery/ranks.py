"""Several processes as one: who this one is, its share of the work, and how results come together.

A launcher such as `torchrun --nproc-per-node N -m mmsurgery_cli ...` starts the same command N times, with RANK,
WORLD_SIZE and LOCAL_RANK in each environment. Every rank computes its share; the first one alone holds the
workspace's lock and writes:

    ranks = Ranks.here()
    with ranks.together(workspace.lock()):
        progress = ranks.watched(progress)
        plan = ranks.told(find_out())       # what is on the disk, as the first rank sees it
        parts = ranks.gather(compute(items[ranks.share(len(items))], progress))
        if parts is not None:               # the first rank
            write(parts)

With one rank every step does nothing, and torch.distributed is not touched. Between ranks it is gloo on the CPU, of
whatever device the models are. A rank that fails leaves word and closes its connections: the others end with a
`MachineFault` that names it, at the next step of a watched stage (within a second) or where they wait for it.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from mmsurgery.errors import MachineFault, MmsurgeryError, UsageError
from mmsurgery.interruption import Interrupted
from mmsurgery.workspace import SILENT, Progress

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""Environment variables that a launcher sets for every rank."""
MEETING = datetime.timedelta(minutes=5)
"""How long ranks wait for each other to start."""
PATIENCE = datetime.timedelta(days=7)
"""How long a rank waits for one that still computes; one that ended is noticed at once."""
GRACE = datetime.timedelta(seconds=3)
"""How long word of a failure may take to arrive after the connection is closed."""
LOOK = 1.0
"""Seconds between two looks for word of a failure."""
PIECE = 1 << 26
"""Elements of a tensor that are sent at a time."""
_FAILED = "mmsurgery/failed"


@dataclass(frozen=True)
class Ranks:
    """Which of several processes this is."""

    rank: int = 0
    """From 0."""
    count: int = 1
    local: int = 0
    """Rank among the processes of this machine."""

    @classmethod
    def here(cls, environment: Mapping[str, str] | None = None) -> Ranks:
        """What the launcher says; one rank where it says nothing.

        Raises:
            UsageError: for values that are missing, no numbers, or contradict each other.
        """
        environment = os.environ if environment is None else environment
        given = {name: environment[name] for name in NAMES if name in environment}
        if not given:
            return cls()
        if missing := [name for name in NAMES if name not in given]:
            raise UsageError(f"{', '.join(given)} set, {', '.join(missing)} not", _LAUNCH)
        for name, value in given.items():
            if not value.isascii() or not value.isdecimal():
                raise UsageError(f"{name} is {value!r}, not a number of 0 or more", _LAUNCH)
        rank, count, local = (int(given[name]) for name in NAMES)
        if rank >= count:
            raise UsageError(f"RANK is {rank} of WORLD_SIZE {count}: ranks count from 0", _LAUNCH)
        if local > rank:
            raise UsageError(f"LOCAL_RANK is {local}, greater than RANK {rank}", _LAUNCH)
        return cls(rank, count, local)

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This rank's block of n things: contiguous, in the order of ranks, sizes differing by at most one."""
        return slice(self.rank * n // self.count, (self.rank + 1) * n // self.count)

    def device_index(self, devices: int) -> int:
        """Which of a machine's visible devices is this rank's: its own, or the only one there is (launchers that
        show each process one device of many; processes that share one).

        Raises:
            UsageError: if there are several, but fewer than ranks.
        """
        if devices == 1:
            return 0
        if self.local >= devices:
            raise UsageError(
                f"rank {self.rank} is number {self.local + 1} of this machine, which has {devices} devices",
                "use fewer ranks",
            )
        return self.local

    @contextlib.contextmanager
    def together(self, held: AbstractContextManager[Any] | None = None) -> Iterator[None]:
        """Work inside with the other ranks; all of them begin, and end, together. Such blocks may stand in each other,
        and after each other as long as none failed.

        Args:
            held: what the first rank alone holds meanwhile, such as the workspace's lock.

        Raises:
            MachineFault: if the ranks cannot meet, or naming another rank that failed.
            UsageError: if the launcher did not say where they meet.
        """
        held = nullcontext() if held is None else held
        if self.count == 1:
            with held:
                yield
            return
        meeting = _Meeting.open(self)
        try:
            with held if self.first else nullcontext():
                self.barrier()
                yield
                self.barrier()
        except BaseException as error:
            meeting.leave(self, error)
            raise

    def gather(self, value: T) -> list[T] | None:
        """Every rank's value (anything that can be pickled), in their order, for the first one; None for the others.
        To be called by all, inside `together`.

        Raises:
            MachineFault: naming a rank that failed.
        """
        if self.count == 1:
            return [value]
        found: list[Any] | None = [None] * self.count if self.first else None
        with self._connected() as (torch_distributed, group):
            torch_distributed.gather_object(value, found, group=group, group_dst=0)
        return found

    def exchange(self, value: T) -> list[T]:
        """Every rank's value, in their order, for all; called as `gather` is."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        with self._connected() as (torch_distributed, group):
            torch_distributed.all_gather_object(found, value, group=group)
        return found

    def told(self, value: T) -> T:
        """The first rank's value, for all; called as `gather` is."""
        if self.count == 1:
            return value
        found = [value if self.first else None]
        with self._connected() as (torch_distributed, group):
            torch_distributed.broadcast_object_list(found, group=group, group_src=0)
        return found[0]  # type: ignore[return-value]

    def barrier(self) -> None:
        """Go on when all ranks have come here; called as `gather` is."""
        if self.count > 1:
            with self._connected() as (torch_distributed, group):
                torch_distributed.barrier(group=group)

    def join(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor | None:
        """Every rank's rows, one after the other, in main memory, for the first one; None for the others, which hold
        no more than their own. Called as `gather` is.

        Args:
            rows: in main memory, `[counts[rank], ...]`; what follows the rows and the dtype are the same everywhere.
        """
        import torch

        rows = rows.contiguous()
        if self.count == 1:
            return rows
        with self._connected() as (torch_distributed, group):
            if not self.first:
                for piece in _pieces(rows):
                    torch_distributed.send(piece, 0, group=group)
                return None
            whole = torch.empty((sum(counts), *rows.shape[1:]), dtype=rows.dtype)
            whole[: counts[0]] = rows
            for rank in range(1, self.count):
                for piece in _pieces(whole[sum(counts[:rank]) :][: counts[rank]]):
                    torch_distributed.recv(piece, rank, group=group)
        return whole

    def mesh(self, device: str) -> Any:
        """The ranks as torch's `DeviceMesh` of one dimension, for what torch shares among them by itself: gloo between
        CPUs, nccl between GPUs. To be called by all, inside `together`; what uses it runs inside `connected`."""
        import torch.distributed
        from torch.distributed.device_mesh import DeviceMesh

        meeting = _Meeting.open(self)
        with self._connected():
            if device == "cpu":
                group = meeting.group
            else:
                group = meeting.cards = meeting.cards or torch.distributed.new_group(backend="nccl", timeout=PATIENCE)
        return DeviceMesh.from_group(group, device)

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Around work in which torch talks to the other ranks by itself: a broken connection becomes a fault that says
        whose.

        Raises:
            MachineFault: naming a rank that failed.
        """
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not _of_connection(error):
                raise
            _Meeting.open(self).fault(self, error)

    def watched(self, progress: Progress) -> Progress:
        """What a rank is to report to: the first one to `progress`, the others to nobody. Stages look for word of
        other ranks' failures as they advance.

        Raises (when a stage advances):
            MachineFault: naming a rank that failed.
        """
        return progress if self.count == 1 else _Watched(self, progress if self.first else SILENT)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[tuple[Any, Any]]:
        """torch.distributed and the group; a broken connection becomes a fault that says whose."""
        import torch.distributed

        meeting = _Meeting.open(self)
        try:
            yield torch.distributed, meeting.group
        except RuntimeError as error:
            meeting.fault(self, error)


ALONE = Ranks()
"""One process."""


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A contiguous tensor in flat pieces."""
    flat = tensor.view(-1)
    return (flat[start : start + PIECE] for start in range(0, len(flat), PIECE))


def _of_connection(error: RuntimeError) -> bool:
    """Whether an error is about talking to other ranks: nccl's have a type, gloo's are known by their words."""
    import torch.distributed

    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error) or "closed by peer" in str(error)


_LAUNCH = "start it with torchrun, or set " + ", ".join(NAMES[:-1]) + f" and {NAMES[-1]}, or none of them"


@dataclass(frozen=True)
class _Watched:
    ranks: Ranks
    progress: Progress

    @contextlib.contextmanager
    def stage(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        last = time.monotonic()

        def advanced(amount: int) -> None:
            nonlocal last
            advance(amount)
            if time.monotonic() - last >= LOOK:
                last = time.monotonic()
                _Meeting.open(self.ranks).look(self.ranks)

        with self.progress.stage(what, total) as advance:
            yield advanced

    def note(self, text: str) -> None:
        self.progress.note(text)


class _Meeting:
    """The connections of this process to the other ranks; one at a time, opened when they are first needed."""

    _now: _Meeting | None = None
    _parted = False

    def __init__(self, store: Any, group: Any) -> None:
        self.store, self.group = store, group
        self.cards: Any = None
        """The group of nccl, once it is needed."""

    @classmethod
    def open(cls, ranks: Ranks) -> _Meeting:
        """The one that is open, or a new one.

        Raises:
            MachineFault: if the ranks do not find each other.
            UsageError: if the launcher did not say where to.
        """
        if cls._now is not None:
            return cls._now
        if cls._parted:
            raise MachineFault("the ranks have parted after a failure", "start them again")
        if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
            raise UsageError(f"{ranks.count} ranks, but {' and '.join(missing)} not set", "start it with torchrun")
        # its warnings say once more, with a stack of addresses, what we say; read when torch is first imported
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        import torch.distributed

        try:
            if not torch.distributed.is_initialized():
                torch.distributed.init_process_group("gloo", timeout=MEETING, rank=ranks.rank, world_size=ranks.count)
            group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise MachineFault(
                f"rank {ranks.rank} of {ranks.count} does not reach the others: {str(error).splitlines()[0][:200]}",
                "see what they say; check MASTER_ADDR, MASTER_PORT and GLOO_SOCKET_IFNAME",
            ) from error
        cls._now = cls(torch.distributed.distributed_c10d._get_default_store(), group)
        return cls._now

    def look(self, ranks: Ranks) -> None:
        """Whether another rank left word of a failure.

        Raises:
            MachineFault: naming it.
        """
        try:
            if not self.store.check([_FAILED]):
                return
        except RuntimeError as error:
            self.fault(ranks, error)
        self.fault(ranks, None)

    def fault(self, ranks: Ranks, error: Exception | None) -> NoReturn:
        """Another rank failed.

        Raises:
            MachineFault: with the word it left, if it could.
        """
        try:
            self.store.wait([_FAILED], GRACE)
            who = self.store.get(_FAILED).decode("utf-8", "replace")
        except RuntimeError:  # killed; or the first rank, which keeps the words, is gone with them
            other = f"rank {1 - ranks.rank}" if ranks.count == 2 else "another rank"
            who = f"{other} of {ranks.count} ended: killed, out of memory, or for what it printed"
        raise MachineFault(who, "see what that rank printed, then run the same command again") from error

    def leave(self, ranks: Ranks, error: BaseException) -> None:
        """Leave word of a failure, unless there is an earlier one, and close the connections; once."""
        import torch.distributed

        if type(self)._now is not self:
            return
        line = error.what if isinstance(error, MmsurgeryError) else f"{type(error).__name__}: {error}"
        line = "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else line
        with contextlib.suppress(RuntimeError):
            if not self.store.check([_FAILED]):
                self.store.set(_FAILED, f"rank {ranks.rank} of {ranks.count} failed: {line}")
        type(self)._now, type(self)._parted = None, True
        if self.cards is not None:  # or it would wait for what the others will not do any more
            with contextlib.suppress(RuntimeError):
                self.cards.abort()
        with contextlib.suppress(RuntimeError, ValueError):
            torch.distributed.destroy_process_group()
