"""What reading a benchmark of the published size costs: seconds of processor time and peak memory of each reading.

    python benchmarks/read_benchmarks.py [--forget 5] [--folder FOLDER] [--keep] [--json]

Makes MLLMU-Bench (500 + 153 people, pictures of 336 pixels and 0.34 MB; training rows in one folder, then by split) and
CLEAR (its published row counts, pictures of 512 pixels and 167 kB; the folders of one percentage, and those that are
only counted) from invented people, one after the other, and reads each: `survey`, as `init` does; every part; every
column with all its tasks. Each reading is a fresh process that decodes every picture it meets once. Up to 4 GB of disk.
Exits with 1 if a reading needs more than 1 GiB.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import multiprocessing
import os
import platform
import re
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.files import check_space
from mmsurgery.data.benchmark import TASKS, Source, benchmark
from mmsurgery.data.survey import survey
from mmsurgery.errors import MmsurgeryError

MAKERS = Path(__file__).parents[1] / "tests" / "data"
LIMIT = 1 << 30
"""Bytes of memory that no reading may exceed."""
NEEDED = 4 << 30
"""Bytes of disk for the largest set of files."""
SIDE, QUALITY = 512, 78
"""Of CLEAR's pictures, JPEG of noise: 167 kB."""

# each in a process of its own, so that neither the maker's memory nor that of another reading is counted


def make_mllmu(layout: str, folder: Path, forget: int) -> None:
    sys.path.insert(0, str(MAKERS))
    from mllmu_files import Files

    Files(folder, layout=layout).write()


def make_clear(folder: Path, forget: int) -> None:
    sys.path.insert(0, str(MAKERS))
    import clear_files
    import numpy as np
    from PIL import Image

    def picture(number: int) -> dict[str, Any]:
        noise = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, "JPEG", quality=QUALITY)
        return {"bytes": buffer.getvalue(), "path": f"{number}.jpg"}

    clear_files.picture = picture
    files = clear_files.ClearFiles(folder, clear_files.PUBLISHED)
    read = f"forget{forget:02}", f"retain{100 - forget}"
    files.rows = {
        config: rows
        for config, rows in files.rows.items()
        if config.startswith(read) or not re.match(r"(forget|retain)\d", config)
    }
    files.write()


def measured(reading: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a reading found, its seconds of processor time, and the peak of this process in bytes."""
    before = _seconds()
    found = reading()
    return {**found, "seconds": _seconds() - before, "peak": _peak()}


def read_survey(name: str, source: Source) -> dict[str, Any]:
    found = survey(benchmark(name), source)
    return {"records": sum(found.counts.values()), "counts": found.counts, "remarks": found.remarks}


def read_part(name: str, source: Source, part: str) -> dict[str, Any]:
    return _decoded(benchmark(name).samples(source, part))


def read_column(name: str, source: Source, column: str) -> dict[str, Any]:
    return _decoded(item for task in TASKS for item in benchmark(name).items(source, column, task))


def _decoded(records: Iterable[Any]) -> dict[str, Any]:
    count, met = 0, set()
    for record in records:
        count += 1
        if record.image_sha256 not in met and record.image is not None:
            met.add(record.image_sha256)
    return {"records": count, "pictures": len(met)}


def _seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _peak() -> int:
    # of this program alone: what getrusage gives is at least the size of the process that started it
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """Call in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def readings(name: str, source: Source) -> Iterable[tuple[str, dict[str, Any]]]:
    reader = benchmark(name)
    yield "survey", apart(measured, functools.partial(read_survey, name, source))
    for part in reader.parts(source):
        yield f"part {part}", apart(measured, functools.partial(read_part, name, source, part))
    for column in reader.columns(source):
        yield f"column {column}", apart(measured, functools.partial(read_column, name, source, column))


def run(folder: Path, forget: int, keep: bool, show: Callable[..., None]) -> list[dict[str, Any]]:
    sets: dict[str, tuple[str, Callable[[Path, int], None]]] = {
        "MLLMU-Bench-ft_Data": ("mllmu-bench", functools.partial(make_mllmu, "ft_Data")),
        "MLLMU-Bench-by-split": ("mllmu-bench", functools.partial(make_mllmu, "baseline_train_split")),
        "CLEAR": ("clear", make_clear),
    }
    rows = []
    for title, (name, make) in sets.items():
        place, partial = folder / title, folder / f".partial-{title}"
        if made := not place.exists():
            check_space(folder, NEEDED, title)
            shutil.rmtree(partial, ignore_errors=True)
            apart(make, partial, forget)
            partial.rename(place)
        for what, found in readings(name, Source(place, forget)):
            rows.append({"files": title, "reading": what, **found})
            show(rows[-1])
        if made and not keep:
            shutil.rmtree(place)
    return rows


def line(row: dict[str, Any]) -> str:
    over = "  over the limit" if row["peak"] > LIMIT else ""
    return (
        f"{row['files']:22}{row['reading']:24}{row['records']:8,}{row.get('pictures', ''):>10}"
        f"{row['seconds']:8.1f}{row['peak'] / (1 << 20):8.0f}{over}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forget", type=int, choices=(5, 10), default=5)
    parser.add_argument("--folder", type=Path, help="where the files are made; files kept there are read again")
    parser.add_argument("--keep", action="store_true", help="leave the files in FOLDER")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.keep and options.folder is None:
        parser.error("--keep needs --folder")
    machine = {"python": platform.python_version(), "system": platform.system(), "cpus": os.cpu_count()}
    if not options.json:
        print(f"{'files':22}{'reading':24}{'records':>8}{'pictures':>10}{'CPU s':>8}{'MiB':>8}")
    try:
        with tempfile.TemporaryDirectory(prefix="benchmarks-") as temporary:
            folder = options.folder or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            show = (lambda row: None) if options.json else (lambda row: print(line(row), flush=True))
            rows = run(folder, options.forget, options.keep, show)
    except MmsurgeryError as error:
        raise SystemExit(str(error)) from error
    if options.json:
        print(json.dumps({"rows": rows, "machine": machine}, indent=2))
    else:
        for row in rows:
            for remark in row.get("remarks", ()):
                print(f"{row['files']}: {remark}")
        print(", ".join(f"{key} {value}" for key, value in machine.items()))
    raise SystemExit(int(any(row["peak"] > LIMIT for row in rows)))


if __name__ == "__main__":
    main()
