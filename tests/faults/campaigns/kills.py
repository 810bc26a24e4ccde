"""Promise 3: kill -9 costs an interval, never a result; at random moments, and at file operations."""

from __future__ import annotations

import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from campaigns import small, verbs
from campaigns.row import Row
from failing_writes import FailingDisk

Report = Callable[[str], None]


def run(seed: int, count: int, report: Report, commands: tuple[str, ...] = verbs.LONG) -> list[Row]:
    """`count` random kills and `count` kills at operations on files, of each command; both families in turn, of one
    kill the first."""
    report(f"kills: seed {seed}")
    with small.kept_if_broken("kills") as (folder, keep):
        (folder / "said").mkdir()
        places = [verbs.chain(folder / family, family) for family in verbs.FAMILIES[:count]]
        return [row for verb in commands for row in _command(verb, places, folder, seed, count, report, keep)]


def _command(
    verb: str, places: list[small.Place], folder: Path, seed: int, count: int, report: Report, keep: Report
) -> Iterator[Row]:
    chance = random.Random(f"{seed}/{verb}")
    undisturbed = [_undisturbed(verb, place, folder) for place in places]
    for how, kill in (("random moments", _at_random), ("operations on files", _at_an_operation)):
        begin, broken, killed, trial = time.monotonic(), list[str](), 0, 0
        while killed < count:
            which = trial % len(places)
            name = f"{verb}-{how.split()[0]}-{trial}"
            place = places[which].copy(folder / name)
            expected, seconds, operations = undisturbed[which]
            died = kill(verb, place, chance, seconds, operations)
            if died and (fault := _goes_on(verb, place, expected)):
                broken.append(f"{name}: {fault}")
                keep(name)
                report(f"  {folder / name}: {fault}")
            else:
                shutil.rmtree(place.root)
            killed, trial = killed + died, trial + 1
        figure = f"{killed - len(broken)} of {killed} reruns end with the same bytes"
        yield Row(3, f"{verb}, killed at {how}", figure, not broken, time.monotonic() - begin)
        report(f"  {verb}, killed at {how}: {figure}")


def _undisturbed(verb: str, place: small.Place, folder: Path) -> tuple[dict[str, str], float, int]:
    """What an undisturbed run leaves, how long it takes, how many operations on files it does."""
    copied = place.copy(folder / f"{verb}-{place.root.name}-undisturbed")
    said = _said(copied)

    def counted() -> int:
        with FailingDisk(copied.root) as disk:
            code = verbs.work(copied, verb)
        print(f"operations {len(disk.done)}", flush=True)
        return code

    begin = time.monotonic()
    code = verbs.ended(verbs.fork(counted, said))
    assert code == 0, said.read_text()
    found = re.search(r"operations (\d+)", said.read_text())
    assert found is not None
    return verbs.state(copied.root), time.monotonic() - begin, int(found[1])


def _said(place: small.Place) -> Path:
    """Where the words of a run go: not on the disk that it works on."""
    return place.root.with_name("said") / f"{place.root.name}.txt"


def _at_random(verb: str, place: small.Place, chance: random.Random, seconds: float, operations: int) -> bool:
    """One kill, or several of the same run; whether there was one."""
    times = chance.choice((1, 1, 2, 3))
    deaths = [
        verbs.killed_within(verbs.fork(lambda: verbs.work(place, verb)), chance.uniform(0, seconds))
        for _ in range(times)
    ]
    return any(deaths)


def _at_an_operation(verb: str, place: small.Place, chance: random.Random, seconds: float, operations: int) -> bool:
    def dies() -> int:
        with FailingDisk(place.root, chance.randint(1, operations), "kill"):
            return verbs.work(place, verb)

    return verbs.ended(verbs.fork(dies)) < 0


def _goes_on(verb: str, place: small.Place, expected: dict[str, str]) -> str | None:
    """Run it again; what is wrong with how that ends, None for nothing."""
    said = _said(place)
    snapshots = [path for path in place.root.glob("models/.resume-*/step-*") if "partial" not in path.name]
    code = verbs.ended(verbs.fork(lambda: verbs.work(place, verb), said))
    text = said.read_text()
    if code != 0:
        return f"ended with {code}: {text.strip()[-300:]}"
    if snapshots and verb in ("train", "apply"):
        newest = max(int(path.stem.rpartition("-")[2]) for path in snapshots)
        if f"going on after step {newest}" not in text:
            return f"began anew, though there was a snapshot of step {newest}"
    found = verbs.state(place.root)
    if found != expected:
        return (
            f"other bytes: {sorted(name for name in found.keys() | expected if found.get(name) != expected.get(name))}"
        )
    left = verbs.leftovers(place.root)
    return f"leaves {left}" if left else None
