"""How figures are taken: sides run in turn in one process, CPU time beside wall clock, peaks of memory in a child
process, and a figure held against its limit."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

SAMPLED = 0.002
"""Seconds between two looks at a child's memory."""
LOOKED_AGAIN = 0.1
"""Seconds between two looks at the files in it, which take longer and change less often."""
LIBRARIES = ("torch", "transformers", "peft", "numpy", "h5py", "safetensors")


class Spread(NamedTuple):
    """Over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class Times:
    """Seconds of one side, round by round."""

    cpu: list[float] = field(default_factory=list)
    """Of all threads of this process."""
    wall: list[float] = field(default_factory=list)

    def against(self, other: Times, clock: str) -> Spread:
        """Ratios to another side's, of the same rounds."""
        mine, theirs = getattr(self, clock), getattr(other, clock)
        return Spread.of([a / b for a, b in zip(mine, theirs, strict=True)])

    def per(self, units: float, clock: str) -> Spread:
        """Nanoseconds per unit."""
        return Spread.of([1e9 * seconds / units for seconds in getattr(self, clock)])


def in_turn(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    before: Callable[[str], object] = lambda name: None,
    warm_up: int = 1,
) -> dict[str, Times]:
    """Run every side once a round, each round beginning with another one.

    Args:
        before: called before a side, outside of its time.
        warm_up: rounds that do not count.
    """
    times = {name: Times() for name in sides}
    order = list(sides)
    gc.collect()
    gc.freeze()  # what is there stays there: not to be looked through again before every side
    for number in range(warm_up + rounds):
        for name in order[number % len(order) :] + order[: number % len(order)]:
            before(name)
            gc.collect()
            wait()
            cpu, wall = time.process_time(), time.perf_counter()
            sides[name]()
            wait()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if number >= warm_up:
                times[name].cpu.append(cpu)
                times[name].wall.append(wall)
    gc.unfreeze()
    return times


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number that was measured."""

    model: str
    """Family and size, such as `llava 30M`."""
    what: str
    against: str = ""
    """What a ratio is to."""
    unit: str = "x"
    value: float
    low: float | None = None
    high: float | None = None
    clock: str = ""
    """`cpu` or `wall`: what was compared, and judged."""
    wall: float | None = None
    """The same by the wall clock, where `clock` is `cpu`."""
    baseline: float | None = None
    """The straightforward way, in the same unit."""
    limit: float | None = None
    """Greatest value that is kept; none where no goal is set."""
    stretch: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        return verdict(self.value, self.limit, self.stretch)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


def verdict(value: float, limit: float | None, stretch: float | None) -> str:
    """`stretch`, `kept` or `missed`; nothing where there is no limit. A value that is no number is missed."""
    if limit is None:
        return ""
    if stretch is not None and value <= stretch:
        return "stretch"
    return "kept" if value <= limit else "missed"


def ratio(
    times: Mapping[str, Times],
    side: str,
    to: str,
    *,
    baseline: str | None = None,
    clock: str | None = None,
    **rest: Any,
) -> Figure:
    """A side's time over another's, by CPU time (what else runs on the machine counts less) or, on a GPU, by the
    wall clock.

    Args:
        baseline: the side that goes the straightforward way.
        rest: fields of the figure.
    """
    clock = clock or ("wall" if torch.cuda.is_available() else "cpu")
    found = times[side].against(times[to], clock)
    seconds = {name: statistics.median(getattr(each, clock)) for name, each in times.items()}
    return Figure(
        value=found.median,
        low=found.low,
        high=found.high,
        clock=clock,
        wall=times[side].against(times[to], "wall").median if clock == "cpu" else None,
        baseline=times[baseline].against(times[to], clock).median if baseline else None,
        against=rest.pop("against", to),
        detail={"seconds": seconds, **rest.pop("detail", {})},
        **rest,
    )


# machine


def machine() -> dict[str, Any]:
    """What the figures are of: processor, card, versions, load when it was asked."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "cpu_threads": torch.get_num_threads(),
        "host_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "load": round(os.getloadavg()[0], 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{library: metadata.version(library) for library in LIBRARIES},
    }
    if not torch.cuda.is_available():
        return {**found, "card": None, "note": "no GPU is visible: nothing below was measured on one"}
    card = torch.cuda.get_device_properties(0)
    found |= {"card": card.name, "card_gb": round(card.total_memory / 1e9, 1), "cuda": torch.version.cuda}
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.check_output(command, text=True).strip().splitlines()[0]
    return found


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    """Until the GPU has done what was asked, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def free() -> None:
    """Give back what is not in use, on the GPU and, with glibc, in main memory."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL("libc.so.6").malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


# memory


class Peak(NamedTuple):
    """Of a task that ran in a process of its own."""

    bytes: int
    """The largest memory beyond what the process had when it was ready: of the GPU where there is one, else
    resident memory, that of files left out unless they were asked for."""
    seconds: float
    cpu_seconds: float
    system_seconds: float
    """Of these, what the system took."""
    found: Any
    """What the task returned."""


def peak(script: Path, task: str, *, mapped: str = "", **arguments: Any) -> Peak:
    """Run a task of `child` in a process of its own and watch its memory.

    Args:
        script: what hands `--child TASK` and JSON on its standard input to `child`.
        mapped: how the names of files end that count as far as they lie in memory: weights that nothing was written
            to. None if empty.
        arguments: plain JSON.

    Raises:
        RuntimeError: if the child fails.
    """
    command = [sys.executable, str(script), "--child", task]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps({**arguments, "threads": torch.get_num_threads()}) + "\n")
        process.stdin.flush()
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{task} did not get ready")
        begun = highest = _anonymous(process.pid)
        files, looked = 0, 0.0
        process.stdin.write("go\n")
        process.stdin.flush()
        while not select.select([process.stdout], [], [], SAMPLED)[0]:
            if mapped and time.monotonic() - looked > LOOKED_AGAIN:
                files, looked = _files(process.pid, mapped), time.monotonic()
            highest = max(highest, _anonymous(process.pid) + files)
        line = process.stdout.readline()
    if process.returncode or not line:
        raise RuntimeError(f"{task} failed")
    found = json.loads(line)
    above = highest - begun if found["gpu_bytes"] is None else found["gpu_bytes"]
    return Peak(above, **{name: found[name] for name in Peak._fields[1:]})


def child(tasks: Mapping[str, Callable[..., Callable[[], Any]]], name: str) -> None:
    """The child's side of `peak`: the task is made ready with the arguments, then run.

    Args:
        tasks: name -> function that makes a task ready, and returns what runs it.
    """
    out, sys.stdout = sys.stdout, sys.stderr  # progress of libraries is not the answer
    arguments = json.loads(sys.stdin.readline())
    torch.set_num_threads(arguments.pop("threads"))
    run = tasks[name](**arguments)
    free()
    there = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    print("ready", file=out, flush=True)
    sys.stdin.readline()
    cpu, system, wall = time.process_time(), os.times().system, time.perf_counter()
    found = run()
    wait()
    answer = {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "system_seconds": os.times().system - system,
        "gpu_bytes": torch.cuda.max_memory_allocated() - there if torch.cuda.is_available() else None,
        "found": found,
    }
    print(json.dumps(answer), file=out, flush=True)


def can_watch() -> bool:
    """Whether the system tells how much memory a process has (Linux), or a GPU does."""
    return torch.cuda.is_available() or Path("/proc/self/status").exists()


def _anonymous(pid: int) -> int:
    """Resident bytes of a process that no file is behind; 0 of one that has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return 1024 * int(line.split()[1])
    return 0


def _files(pid: int, ending: str) -> int:
    """Resident bytes of a process that stand as they are in files whose names end so; 0 of one that has ended."""
    found, counts = 0, False
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            name, *values = line.split()
            if not name.endswith(":"):
                counts = line.endswith(ending)
            elif counts and name in ("Rss:", "Anonymous:"):
                found += 1024 * int(values[0]) * (1 if name == "Rss:" else -1)
    return found


# files


def read(paths: Sequence[Path]) -> int:
    """Read files whole, in pieces of 4 MiB into one buffer: the limit of whatever reads them. Returns their size."""
    buffer, total = bytearray(4 << 20), 0
    for path in paths:
        with path.open("rb", buffering=0) as handle:
            while count := handle.readinto(buffer):
                total += count
    return total


def drop_from_cache(paths: Sequence[Path]) -> None:
    """Make the next reading of files come from the disk (Linux)."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
