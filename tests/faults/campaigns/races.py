"""Promise 10: two at a time are safe: one works, the other waits or is told who does, and a dead one's lock is free."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from campaigns import small, verbs
from campaigns.row import Row

from mmsurgery.workspace import find_workspace

Report = Callable[[str], None]
VERBS = ("saliency", "train", "apply", "eval", "diff", "patch")
"""None of them takes what another one makes."""
_TOLD = re.compile(r"is in use by pid (\d+) on host (\S+) since \d\d:\d\d - next: wait for it to finish")


class _Ended(NamedTuple):
    code: int
    said: str
    seconds: float


def run(seed: int, count: int, report: Report, commands: tuple[str, ...] = VERBS) -> list[Row]:
    """`count` races of two processes. In half of them both run a verb, at about the same time; in the others one keeps
    the lock until it is killed, and the second one runs a verb while it lives, and again."""
    report(f"races: seed {seed}")
    begin, broken, told, chance = time.monotonic(), 0, list[float](), random.Random(seed)
    with small.kept_if_broken("races") as (folder, keep):
        place = verbs.chain(folder / "race", chance.choice(verbs.FAMILIES))
        before, made = verbs.state(place.root), dict[str, dict[str, str]]()
        for verb in commands:
            copied = place.copy(folder / verb)
            assert verbs.command(copied, verb).code == 0
            made[verb] = {name: each for name, each in verbs.state(copied.root).items() if before.get(name) != each}
        for trial in range(count):
            name, pair = f"race-{trial}", (chance.choice(commands), chance.choice(commands))
            copied = place.copy(folder / name)
            if trial % 2:
                pair = (pair[0],)
                fault = _held(copied, pair[0], told)
            else:
                fault = _both(copied, pair, chance, told)
            fault = fault or _whole(copied, {**before, **made[pair[0]], **made[pair[-1]]})
            if fault:
                broken += 1
                keep(name)
                report(f"  {folder / name}: {' and '.join(pair)}: {fault}")
            else:
                shutil.rmtree(copied.root)
    longest = f", after at most {max(told):.1f} s" if told else ""
    figure = f"{count - broken} of {count} races end whole; {len(told)} were told who works{longest}"
    report(f"  {figure}")
    kept = not broken and max(told, default=0) < 2.5  # of which 1.5 s are the wait for the lock
    return [Row(10, "two processes on one workspace", figure, kept, time.monotonic() - begin)]


def _both(place: small.Place, pair: tuple[str, ...], chance: random.Random, told: list[float]) -> str | None:
    """What is wrong, None for nothing."""
    processes = []
    for number, verb in enumerate(pair):
        processes.append(_start(place, verb, number))
        time.sleep(chance.uniform(0, 0.2))
    for number, verb in enumerate(pair):
        ended = _end(place, processes[number], number)
        if ended.code != 0:
            if fault := _is_told(verb, ended, processes[1 - number], told):
                return fault
            if (again := _again(place, verb)) is not None:
                return again
    return None


def _held(place: small.Place, verb: str, told: list[float]) -> str | None:
    def holds() -> int:
        with find_workspace(place.root).lock():
            signal.pause()
        return 0

    holder = verbs.fork(holds)
    while not place.root.joinpath(".lock.holder").exists():
        time.sleep(0.005)
    try:
        fault = _is_told(verb, _end(place, _start(place, verb, 0), 0), holder, told)
    finally:
        os.kill(holder, signal.SIGKILL)
        verbs.ended(holder)
    return fault or _again(place, verb)


def _again(place: small.Place, verb: str) -> str | None:
    """Whoever was told to wait comes again: nobody holds the lock."""
    ended = _end(place, _start(place, verb, 0), 0)
    return None if ended.code == 0 else f"{verb} ended with {ended.code} when it came again: {ended.said[-300:]}"


def _is_told(verb: str, ended: _Ended, holder: int, told: list[float]) -> str | None:
    found = _TOLD.search(ended.said)
    if ended.code != 6 or found is None:
        return f"{verb} ended with {ended.code}: {ended.said[-300:]}"
    told.append(ended.seconds)
    if (found[1], found[2]) != (str(holder), socket.gethostname()):
        return f"{verb} was told that it {found[0]}, though pid {holder} held it"
    return None


def _start(place: small.Place, verb: str, number: int) -> int:
    def action() -> int:
        begin = time.monotonic()
        code = verbs.work(place, verb)
        print(f"seconds {time.monotonic() - begin}", flush=True)
        return code

    return verbs.fork(action, _said(place, number))


def _end(place: small.Place, process: int, number: int) -> _Ended:
    code, said = verbs.ended(process), _said(place, number)
    words, _, seconds = said.read_text().rpartition("seconds ")
    said.unlink()
    return _Ended(code, words.strip(), float(seconds or "inf"))


def _said(place: small.Place, number: int) -> Path:
    return place.root / "data" / f"said-{number}.txt"


def _whole(place: small.Place, expected: dict[str, str]) -> str | None:
    if (now := verbs.state(place.root)) != expected:
        return f"other bytes: {verbs.mixed(now, expected, expected)}"
    left = verbs.leftovers(place.root)
    return f"leaves {left}" if left else None
