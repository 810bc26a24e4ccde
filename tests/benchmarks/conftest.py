"""The scripts in `benchmarks/` as modules, as `python benchmarks/bench.py` sees them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny models of the benchmarks lie."""
    return tmp_path_factory.mktemp("bench")
