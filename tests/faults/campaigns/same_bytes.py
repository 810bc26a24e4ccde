"""Promise 8: the same inputs give the same bytes, in any folder, locale, time and order of hashing."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from campaigns.row import Row
from campaigns.small import RECIPE, WORDS, Place, kept_if_broken, place

from mmsurgery.artifacts.mask import Mask
from mmsurgery.backbones.discovery import backbone

FAMILIES = ("llava", "qwen2_vl")
FOLDERS = ("plain", "数据 é 🙂 %s")
LOCALES = ("C", "C.UTF-8", "tr_TR.ISO-8859-9")
"""The last one as a name alone, where it is not installed: Python then does as for C."""
CLOCKS = (0, 2_000_000_000)
"""Seconds since 1970 at the start; files are as old."""
HASH_SEEDS = ("0", "1")
COMMANDS = (
    ("saliency", "--set", "forget,preserve"),
    ("mask", "--beta", "1"),
    ("apply", "--method", "mmunlearner"),
    ("diff",),
)
PROGRAM = """
import sys, time
start, began = float(sys.argv[2]), time.time()
time.time = lambda real=time.time: real() - began + start
time.time_ns = lambda: int(time.time() * 1e9)
from mmsurgery_cli.main import run
for command in eval(sys.argv[3]):
    if code := run(["-w", sys.argv[1], *command]):
        sys.exit(code)
"""
"""What runs in a process of its own: arguments are the workspace, the time, the commands."""


class Surroundings(NamedTuple):
    folder: str
    locale: str
    clock: int
    hash_seed: str


EVERY = tuple(Surroundings(*each) for each in itertools.product(FOLDERS, LOCALES, CLOCKS, HASH_SEEDS))


def digest(root: Path) -> dict[str, str]:
    """SHA-256 of every file that the commands made, the journal aside, which says when."""
    made = [path for room in ("saliency", "masks", "models", "diffs") for path in (root / room).rglob("*")]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(made)
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
    }


def made_in(where: Place, around: Surroundings) -> dict[str, str] | str:
    """What the commands make of a workspace there, or what went wrong."""
    for path in where.root.rglob("*"):
        os.utime(path, (around.clock, around.clock))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONHASH"))}
    environment |= {"LC_ALL": around.locale, "PYTHONHASHSEED": around.hash_seed, "OMP_NUM_THREADS": "1"}
    environment |= {"TZ": "Asia/Kathmandu" if around.clock else "UTC", "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(where.root), str(around.clock), repr(COMMANDS)],
        env=environment,
        capture_output=True,
    )
    if ran.returncode:
        return f"exit code {ran.returncode}: {ran.stderr.decode(errors='replace')[-300:]}"
    return digest(where.root)


def differing(found: dict[str, str], first: dict[str, str]) -> list[str]:
    return sorted(name for name in found.keys() | first.keys() if found.get(name) != first.get(name))


def by_threads(folder: Path, family: str) -> Row:
    """How many bits of a mask differ between one thread and two, on a micro model of the size of portraits."""
    started, masks = time.monotonic(), list[Mask]()
    backbone(family).micro(folder / "model", WORDS, seed=0)
    for threads in (1, 2):
        where = place(folder / str(threads), folder / "model", replace(RECIPE, threads=threads))
        for command in COMMANDS[:2]:
            code, _, err = where.run(*command)
            if code:
                return Row(8, f"threads, {family}", err.strip(), False, time.monotonic() - started)
        masks.append(Mask.load(where.root / "masks" / "default.safetensors"))
    figure = f"{(masks[0] ^ masks[1]).selected:,} of {masks[0].total:,} mask bits differ between 1 thread and 2"
    return Row(8, f"threads, {family}", figure, True, time.monotonic() - started)


def run(seed: int, count: int, report: Callable[[str], None]) -> list[Row]:
    """`count` runs of the commands, each in a process of its own in other surroundings, the families by turns; what
    they make is held against what this process makes."""
    started, draw, faults = time.monotonic(), random.Random(seed), list[str]()
    report(f"same bytes: seed {seed}")
    order = [EVERY[-1], *draw.sample(EVERY[:-1], len(EVERY) - 1)]
    with kept_if_broken("same-bytes") as (folder, keep):
        sound, made_here = dict[str, Place](), dict[str, dict[str, str]]()
        for family in FAMILIES[:count]:
            backbone(family).micro(folder / family, WORDS, seed=0, size="tiny")
            sound[family] = place(folder / f"{family}-sound", folder / family)
            here = sound[family].copy(folder / f"{family}-here")
            for command in COMMANDS:
                if (ran := here.run(*command)).code:
                    faults.append(f"{family}, {command[0]}: {ran.err.strip()}")
            made_here[family] = digest(here.root)
        for number in range(count):
            if number % len(order) == 0 and number:
                draw.shuffle(order)
            family, around = FAMILIES[number % len(sound)], order[number % len(order)]
            where = sound[family].copy(folder / f"run-{number}" / around.folder)
            found = made_in(where, around)
            if found == made_here[family]:
                shutil.rmtree(where.root.parent)
                continue
            keep(where.root.parent.name)
            what = found if isinstance(found, str) else ", ".join(differing(found, made_here[family])[:5])
            faults.append(f"{family}, {around}, in {where.root}: {what}")
        for fault in faults:
            report(fault)
        figure = (
            f"{count - len(faults)} of {count} runs in {min(count, len(order))} surroundings, {len(sound)} families"
        )
        kinds = "2 folders x 3 locales x 2 clocks x 2 hash seeds, saliency to diff: one digest each"
        found_rows = [Row(8, kinds, figure, not faults, time.monotonic() - started)]
        if count >= len(order):
            found_rows += [by_threads(folder / f"{family}-threads", family) for family in FAMILIES]
    return found_rows
