"""mmsurgery on a GPU: the same numbers as on a CPU, and what a large model takes there beside what `--plan` said.

    python benchmarks/gpu_check.py --out DIR [--weights 7b|3b|1b|micro] [--stages micro,peaks,verbs]
                                   [--work DIR] [--seconds 480] [--start PREPARED]
    python benchmarks/gpu_check.py --out PREPARED --prepare

    micro     both micro families, GPU against CPU: saliency, mask, apply, eval, diff, verify
    peaks     a LLaVA-1.5-7B of random weights in the GPU's memory alone: saliency and LoRA
    verbs     a checkpoint of random weights and the size of --weights, through every verb, on disk

Times beside limits are `bench.py`'s, which runs on a GPU as it is. Nothing is downloaded. Each stage adds a line to
DIR/results.jsonl as it ends and writes DIR/table.md anew. A stage that would end after `--seconds` is left out, and
says so. Without a GPU, `micro` has nothing to compare with and the others run at micro size on the CPU: their figures
are of the CPU then, which every line names.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from measure import free, machine, wait

STAGES = ("micro", "peaks", "verbs")
ESTIMATE = {"micro": 110, "peaks": 150}
"""Seconds of a stage on a card of 2023 with 16 CPU cores, guessed before the first run there."""
VERBS_SECONDS = {"micro": 60, "1b": 110, "3b": 250, "7b": 440}


class Recorder:
    """Writes what was measured as soon as it is there.

    Args:
        seconds: the whole check's; a stage that is not expected to end within is left out.
    """

    def __init__(self, out: Path, seconds: float) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.lines, self.table = out / "results.jsonl", out / "table.md"
        self.begun, self.seconds = time.monotonic(), seconds
        self.rows: list[dict[str, Any]] = []
        self.machine = machine()
        self.write({"stage": "machine", **self.machine})

    def write(self, row: dict[str, Any]) -> None:
        row = {"at_s": round(time.monotonic() - self.begun, 1), **row}
        self.rows.append(row)
        with self.lines.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.table.write_text(markdown(self.rows))
        print(json.dumps(row), flush=True)

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.begun)

    @contextlib.contextmanager
    def stage(self, name: str, plan: Any = None, **known: Any) -> Iterator[dict[str, Any]]:
        """Time, and peaks of GPU and main memory; what the body puts into the yielded dictionary is written too.
        An error is written instead of passed on.

        Args:
            plan: what `--plan` said, or a function that finds it out (not part of the time).
        """
        row: dict[str, Any] = {"stage": name, **known}
        if callable(plan):
            try:
                plan = plan()
            except Exception as error:
                plan, row["plan_error"] = None, f"{type(error).__name__}: {error}"
        if plan is not None:
            row["plan_gb"] = round(plan.memory_total / 1e9, 2)
            row["plan_terms"] = {term: round(size / 1e9, 2) for term, size in plan.memory.items()}
        free()
        reset_host_peak()
        begun = time.perf_counter()
        try:
            yield row
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {str(error)[:500]}"
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            traceback.clear_frames(error.__traceback__)
        wait()
        row["seconds"] = round(time.perf_counter() - begun, 2)
        row["host_peak_gb"] = round(host_peak() / 1e9, 2)
        if torch.cuda.is_available():
            row["gpu_allocated_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
            row["gpu_reserved_gb"] = round(torch.cuda.max_memory_reserved() / 1e9, 2)
        self.write(row)
        free()


def reset_host_peak() -> None:
    """Where the system allows it; else the peak is the process's since its start."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def host_peak() -> int:
    """Largest resident memory, bytes; files that are mapped count, too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table: measured columns, then all else."""
    own = ("at_s", "stage", "seconds", "gpu_allocated_gb", "gpu_reserved_gb", "host_peak_gb", "plan_gb")
    lines = [f"|{'|'.join(own)}|more|", "|---" * (len(own) + 1) + "|"]
    for row in rows:
        rest = "; ".join(f"{key}: {json.dumps(value)}" for key, value in row.items() if key not in own)
        cells = [str(row.get(key, "")) for key in own]
        lines.append(f"|{'|'.join(cells)}|{rest.replace('|', '/')}|")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", choices=tuple(VERBS_SECONDS), default="3b")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--work", type=Path, help="folder for checkpoints and maps; by default a temporary one")
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--start", type=Path, help="workspaces for `micro` that --prepare has made")
    parser.add_argument("--prepare", action="store_true", help="make the workspaces for `micro` in --out, and stop")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    import gpu_large
    import gpu_micro

    if given.worker:
        gpu_micro.worker(given.worker)
        return
    if given.prepare:
        gpu_micro.prepare(given.out)
        return
    wanted = given.stages.split(",")
    if unknown := set(wanted) - set(STAGES):
        parser.error(f"unknown stages: {', '.join(sorted(unknown))}")
    weights = given.weights if torch.cuda.is_available() else "micro"
    recorder = Recorder(given.out, given.seconds)
    estimates = {stage: ESTIMATE.get(stage, VERBS_SECONDS[weights]) for stage in wanted}
    recorder.write({"stage": "estimate", "seconds_by_stage": estimates, "verbs_weights": weights})
    work = given.work or Path(tempfile.mkdtemp(prefix="gpu-check-"))
    work.mkdir(parents=True, exist_ok=True)
    runs: dict[str, Callable[[], None]] = {
        "micro": lambda: gpu_micro.compare_families(recorder, work / "micro", given.start),
        "peaks": lambda: gpu_large.peaks(recorder, work / "peaks"),
        "verbs": lambda: gpu_large.verbs(recorder, work / "verbs", weights),
    }
    try:
        for stage in (each for each in STAGES if each in wanted):
            if recorder.left() < estimates[stage]:
                recorder.write({"stage": stage, "skipped": f"{recorder.left():.0f} s are left, about "
                                f"{estimates[stage]} are needed"})  # fmt: skip
                continue
            with recorder.stage(f"{stage}: all"):
                runs[stage]()
    finally:
        if given.work is None:
            shutil.rmtree(work, ignore_errors=True)
    recorder.write({"stage": "end", "seconds": round(time.monotonic() - recorder.begun, 1)})


if __name__ == "__main__":
    sys.modules["gpu_check"] = sys.modules["__main__"]  # one recorder module, however it is imported
    main()
