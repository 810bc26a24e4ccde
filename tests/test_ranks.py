"""Several processes as one: who each is, what its share is, and that none outlives another's failure."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsurgery.errors import UsageError
from mmsurgery.ranks import Ranks
from mmsurgery.workspace import SILENT


@given(n=st.integers(0, 1000), count=st.integers(1, 40))
def test_shares_cover_all_once_in_order_and_differ_by_one_at_most(n: int, count: int) -> None:
    shares = [range(n)[Ranks(rank, count, rank).share(n)] for rank in range(count)]
    assert [place for share in shares for place in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_who_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ranks.here({"HOME": "/"}) == Ranks(0, 1, 0)
    assert Ranks.here({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == Ranks(3, 4, 1)
    assert [Ranks(rank, 2, rank).first for rank in range(2)] == [True, False]
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    assert Ranks.here() == Ranks(1, 2, 0)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0"}, "RANK set, WORLD_SIZE, LOCAL_RANK not"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE set, LOCAL_RANK not"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK is 2 of WORLD_SIZE 2"),
        ({"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"}, "RANK is 0 of WORLD_SIZE 0"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "LOCAL_RANK is 1, greater than RANK 0"),
        ({"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK is '-1', not a number"),
        ({"RANK": "0", "WORLD_SIZE": "", "LOCAL_RANK": "0"}, "WORLD_SIZE is '', not a number"),
        ({"RANK": "0", "WORLD_SIZE": "²", "LOCAL_RANK": "0"}, "WORLD_SIZE is '²', not a number"),
    ],
)
def test_what_makes_no_sense_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Ranks.here(environment)


def test_each_rank_has_a_device_of_its_own() -> None:
    assert [Ranks(rank, 4, rank % 2).device_index(2) for rank in range(4)] == [0, 1, 0, 1]
    assert Ranks(3, 4, 3).device_index(1) == 0
    with pytest.raises(UsageError, match="rank 2 is number 3 of this machine, which has 2 devices"):
        Ranks(2, 3, 2).device_index(2)


def test_one_rank_needs_nobody() -> None:
    """Nor torch.distributed; ranks that are told no place to meet are refused."""
    code = (
        "import sys; from mmsurgery.ranks import Ranks\n"
        "one = Ranks.here({})\n"
        "with one.together():\n"
        "    one.barrier(); assert (one.gather(5), one.told(6)) == ([5], 6)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert Ranks().watched(SILENT) is SILENT


def test_ranks_without_a_place_to_meet_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(UsageError, match="2 ranks, but MASTER_ADDR not set"), Ranks(0, 2, 0).together():
        pass


TOGETHER = """
import contextlib, json, multiprocessing, os, signal, socket, sys, time
import torch.distributed
from mmsurgery.errors import MachineFault, MmsurgeryError, UnusableData
from mmsurgery.ranks import Ranks
from mmsurgery.workspace import SILENT

@contextlib.contextmanager
def lock(found, taken):
    if taken:
        raise MachineFault("the workspace is in use")
    found["lock"] = "held"
    yield
    found["lock"] = "free"

def working(ranks, found):
    with ranks.together(lock(found, taken=False)):
        with ranks.together():
            found["told"] = ranks.told(("of", ranks.rank))
        found["gathered"] = ranks.gather([ranks.rank] * (ranks.rank + 1))

def refuse(ranks):
    if not ranks.first:
        raise UnusableData("sample x is bad", "leave it out")

def waiting(ranks, found):
    with ranks.together():
        refuse(ranks)
        ranks.gather(1)

def computing(ranks, found):
    with ranks.together():
        with ranks.together():
            refuse(ranks)
            with ranks.watched(SILENT).stage("long", 300) as advance:
                for found["steps"] in range(300):
                    time.sleep(0.1)
                    advance(1)

def locked(ranks, found):
    with ranks.together(lock(found, taken=True)):
        pass

def killed(ranks, found):
    with ranks.together():
        if not ranks.first:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.gather(1)

def rank(number, port, work, results):
    os.environ |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    found = {}
    try:
        work(Ranks.here(), found)
    except MmsurgeryError as error:
        found["error"] = [type(error).__name__, error.what]
    results.send(found)
    results.recv()  # whoever fails stays alive: that its connections close is not its end

every, fork = {}, multiprocessing.get_context("fork")  # torch is imported once
for work in (working, waiting, computing, locked, killed):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    pipes = [fork.Pipe() for _ in range(2)]
    pair = [fork.Process(target=rank, args=(str(n), port, work, pipes[n][1])) for n in range(2)]
    for process in pair:
        process.start()
    alive = pipes[:1] if work is killed else pipes
    every[work.__name__] = [mine.recv() if mine.poll(120) else "hangs" for mine, _ in alive]
    for process in pair:
        process.kill()
        process.join()
    if "hangs" in every[work.__name__]:
        break
print(json.dumps(every))
"""


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[Any]]:
    """What two ranks found and how they failed."""
    ended = subprocess.run([sys.executable, "-c", TOGETHER], check=True, capture_output=True, text=True)
    return dict(json.loads(ended.stdout))


def test_ranks_work_together(pairs: dict[str, list[Any]]) -> None:
    first, second = pairs["working"]
    assert first == {"lock": "free", "told": ["of", 0], "gathered": [[0], [1, 1]]}
    assert second == {"told": ["of", 0], "gathered": None}


@pytest.mark.parametrize("how", ["waiting", "computing"])
def test_a_rank_that_fails_ends_the_others(pairs: dict[str, list[Any]], how: str) -> None:
    first, second = pairs[how]
    assert first["error"] == ["MachineFault", "rank 1 of 2 failed: sample x is bad"]
    assert second["error"] == ["UnusableData", "sample x is bad"]
    assert first.get("steps", 0) < 299  # it did not compute to the end


def test_a_lock_that_the_first_does_not_get_is_nobodys(pairs: dict[str, list[Any]]) -> None:
    first, second = pairs["locked"]
    assert first["error"] == ["MachineFault", "the workspace is in use"]
    assert second["error"] == ["MachineFault", "rank 0 of 2 failed: the workspace is in use"]


def test_a_killed_rank_ends_the_others(pairs: dict[str, list[Any]]) -> None:
    (first,) = pairs["killed"]
    assert first["error"] == ["MachineFault", "rank 1 of 2 ended: killed, out of memory, or for what it printed"]
