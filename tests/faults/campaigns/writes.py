"""Promise 4: nothing half-written, whichever operation on a file fails, and wherever the disk is full."""

from __future__ import annotations

import random
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from campaigns import small, verbs
from campaigns.row import Row
from failing_writes import FailingDisk

Report = Callable[[str], None]
HOW = {"EIO": "one operation fails", "ENOSPC": "the disk is full from one on", "limit": "files are limited in size"}


def run(seed: int, count: int, report: Report, commands: tuple[str, ...] = tuple(verbs.COMMANDS)) -> list[Row]:
    """At most `count` places of each command and kind of failure; all of them where there are no more."""
    report(f"writes: seed {seed}")
    rows = []
    with small.kept_if_broken("writes") as (folder, keep):
        places = [verbs.chain(folder / family, family) for family in verbs.FAMILIES[:count]]
        for number, verb in enumerate(commands):
            place = places[number % len(places)]
            trials = _Trials(verb, place, folder, random.Random(f"{seed}/{verb}"))
            for how, words in HOW.items():
                begin, broken = time.monotonic(), 0
                chosen = trials.places(how, count)
                for where in chosen:
                    name, fault = trials.at(how, where)
                    if fault:
                        broken += 1
                        keep(name)
                        report(f"  {folder / name}: {fault}")
                    else:
                        shutil.rmtree(folder / name)
                figure = f"{len(chosen) - broken} of {len(chosen)} places"
                report(f"  {verb}, {words}: {figure}")
                rows.append(Row(4, f"{verb}, {words}", figure, not broken, time.monotonic() - begin))
    return rows


class _Trials:
    """Failures of one command."""

    def __init__(self, verb: str, place: small.Place, folder: Path, chance: random.Random) -> None:
        self.verb, self.place, self.folder, self.chance = verb, place, folder, chance
        self.before = verbs.state(place.root)
        copied = place.copy(folder / f"{verb}-{place.root.name}-undisturbed")
        with FailingDisk(copied.root) as disk:
            ran = verbs.command(copied, verb)
        assert ran.code == 0, ran.err
        self.after, self.operations = verbs.state(copied.root), disk.done
        changed = [name for name, digest in self.after.items() if self.before.get(name) != digest]
        self.largest = max((copied.root / name).stat().st_size for name in changed)

    def places(self, how: str, count: int) -> list[int]:
        if how == "limit":
            return [self.chance.randint(0, self.largest - 1) for _ in range(min(count, 20))]
        every = range(1, len(self.operations) + 1)
        return sorted(self.chance.sample(every, min(count, len(every))))

    def at(self, how: str, where: int) -> tuple[str, str | None]:
        """The folder of a trial, and what is wrong, None for nothing."""
        name = f"{self.verb}-{how}-{where}"
        place = self.place.copy(self.folder / name)
        ran = self._limited(place, where) if how == "limit" else self._failing(place, how, where)
        return name, self._judge(place, ran)

    def _failing(self, place: small.Place, how: str, where: int) -> tuple[int, str]:
        with FailingDisk(place.root, where, how):
            ran = verbs.command(place, self.verb)
        return ran.code, ran.err

    def _limited(self, place: small.Place, size: int) -> tuple[int, str]:
        def limited() -> int:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            code = verbs.command(place, self.verb).code
            return code  # its words may be more than the limit lets through

        return verbs.ended(verbs.fork(limited)), "error[6]"

    def _judge(self, place: small.Place, ran: tuple[int, str]) -> str | None:
        code, said = ran
        now = verbs.state(place.root)
        if code not in (0, 6) or (code == 6 and said.count("error[6]") != 1):
            return f"ended with {code}: {said.strip()[-300:]}"
        if code == 0 and now != self.after:
            return f"claims to be done, and is not: {verbs.mixed(now, self.after, self.after)}"
        if mixed := verbs.mixed(now, self.before, self.after):
            return f"half-written: {mixed}"
        again = verbs.command(place, self.verb)
        if again.code != 0:
            return f"the next run ends with {again.code}: {again.err.strip()[-300:]}"
        if verbs.state(place.root) != self.after:
            return f"the next run ends with other bytes: {verbs.mixed(verbs.state(place.root), self.after, self.after)}"
        left = verbs.leftovers(place.root)
        return f"the next run leaves {left}" if left else None
