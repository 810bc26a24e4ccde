"""The hunt: what its scores order, and the table of what was found."""

from __future__ import annotations

from typing import Any

import hunt
import numpy as np
import pytest

FORGET, KEPT = np.array([[4.0, 1.0], [0.0, 9.0]]), np.array([[2.0, 1.0], [0.0, 1.0]])
MEAN = {"forget_vqa": np.array([[2.0, -1.0], [0.0, 3.0]]), "kept": np.array([[1.0, 1.0], [0.0, -1.0]])}


class Known(hunt.Level):
    """Two matrices of which one is silent where something is kept."""

    def __init__(self) -> None:
        pass

    def fisher(self, *parts: str) -> dict[str, Any]:
        return {"w": FORGET, "v": FORGET} if parts == ("forget_vqa",) else {"w": KEPT}

    def gradient(self, *parts: str) -> dict[str, Any]:
        return {"w": MEAN["forget_vqa" if parts == ("forget_vqa",) else "kept"]}


@pytest.mark.parametrize(
    ("key", "scores"),
    [
        ("ratio", [[2, 1], [0, 9]]),
        ("forget", FORGET),
        ("kept", KEPT),
        ("coherence", [[1, 1], [0, 1]]),
        ("harmless", [[0, 1], [0, 3]]),
        ("influence", [[4 / 3, 1 / 2], [0, 9 / 2]]),
    ],
)
def test_scores(key: str, scores: Any) -> None:
    found = hunt.CANDIDATES[key][1](Known())
    np.testing.assert_allclose(found["w"], scores, atol=1e-20)
    assert set(found) == ({"w", "v"} if key == "forget" else {"w"})


def test_the_table() -> None:
    def run(utility: float | None, left: float = 0.3) -> dict[str, Any]:
        return {"utility": utility, "step": None if utility is None else 50.0, "forget at the end": left}

    first = {f"all 0.1 random-{draw}": run(value) for draw, value in enumerate((0.90, 0.92, None))}
    first["all 0.1 random-0 longer"] = run(0.94)
    second = {"all 0.1 random-0": run(0.80)}
    known = {
        "one": {"none": run(0.95), **first, "all 0.1 ratio": run(0.92), "all 0.1 forget": run(None, 0.1)},
        "two": {**second, "all 0.1 ratio": run(0.81), "all 0.1 layers": run(0.79), "again 0.1 ratio": run(0.9)},
    }
    rows = hunt.page(known).splitlines()[2:]
    words = {key: text for key, (text, _) in hunt.CANDIDATES.items()}
    assert rows == [
        "| all | 100 % | no mask | 95.0 | - | 1 of 1 | 50 | 30.0 | - |",
        "| all | 10 % | random, of 3 draws | 85.5 | scatter 1.4 | 3 of 4 | 50 | 30.0 | scatter 0.0 |",
        "| all | 10 % | the same, 3 times as long | 94.0 | - | 1 of 1 | 50 | 30.0 | - |",
        f"| all | 10 % | {words['ratio']} | 86.5 | +0.5 ± 0.5 | 2 of 2 | 50 | 30.0 | +0.0 ± 0.0 |",
        f"| all | 10 % | {words['forget']} | - | - | 0 of 1 | - | 10.0 | -20.0 |",
        f"| all | 10 % | {hunt.SHARES['layers']} | 79.0 | -1.0 | 1 of 1 | 50 | 30.0 | +0.0 |",
        f"| again | 10 % | {words['ratio']} | 90.0 | - | 1 of 1 | 50 | 30.0 | - |",
    ]
