"""Sizes, layouts within a budget, and where state lies."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmsurgery.errors import MachineFault, UsageError
from mmsurgery.memory import Layout, Store, layouts, parse_size, within


@pytest.mark.parametrize(
    ("text", "size"), [("20GiB", 20 * 2**30), ("1.5 GB", 1_500_000_000), ("4000", 4000), ("512mib", 2**29)]
)
def test_sizes_are_read_with_their_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "0GB", "-1GB", "20 Gi", "nan", "1e9", "20GiBs"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no size"):
        parse_size(text)


def test_the_fastest_layout_within_the_budget_is_taken() -> None:
    needed = {(False, "device"): 10, (True, "device"): 7, (False, "disk"): 5, (True, "disk"): 2}
    sizes = lambda layout: needed[layout.checkpointing, layout.state]  # noqa: E731
    choose = lambda budget: within(budget, layouts("cpu"), sizes)  # noqa: E731
    assert choose(10) == Layout()
    assert choose(9) == Layout(checkpointing=True)
    assert choose(6) == Layout(state="disk")
    assert choose(2) == Layout(checkpointing=True, state="disk")
    with pytest.raises(MachineFault, match="at least"):
        choose(1)


def test_main_memory_is_a_place_of_its_own_beside_a_gpu_alone() -> None:
    assert {layout.state for layout in layouts("cpu")} == {"device", "disk"}
    assert [layout.state for layout in layouts("cuda")][::2] == ["device", "host", "disk"]


@pytest.mark.parametrize("place", ["device", "host", "disk"])
def test_state_is_zeros_that_keep_what_is_written(place: str, tmp_path: Path) -> None:
    made = Store(place, tmp_path).zeros((3, 5), torch.float32, "cpu")
    assert made.shape == (3, 5)
    assert not made.any()
    made[1] += 2.5
    assert made.sum() == 12.5
    assert not list(tmp_path.iterdir())
    assert Store(place, tmp_path).zeros((0, 4), torch.float32, "cpu").shape == (0, 4)


def test_a_full_disk_is_a_fault_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(MachineFault, match="No space left"):
        Store("disk", tmp_path).zeros((8,), torch.float32, "cpu")
    assert not list(tmp_path.iterdir())


# In a process of its own: free memory that other tests left resident would be handed out first.
FRAGMENTED = """
import re
from pathlib import Path

import numpy as np

from mmsurgery.memory import give_back


def resident() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * sum(map(int, re.findall(r"(?:RssAnon|VmSwap):\\s+(\\d+)", status)))


give_back()
begun = resident()
stay, go = [], []
for _ in range(1500):
    go.append(np.ones(12_000))  # below what glibc maps by itself
    stay.append(np.ones(200))
held = resident() - begun
needed = len(go) * go[0].nbytes
go.clear()
give_back()
print(needed, held, resident() - begun)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="a C library that gives back by itself")
def test_free_memory_between_what_stays_is_given_back() -> None:
    run = subprocess.run([sys.executable, "-c", FRAGMENTED], capture_output=True, text=True, check=True)
    needed, held, kept = map(int, run.stdout.split())
    assert held > 0.9 * needed
    assert kept < held / 4
