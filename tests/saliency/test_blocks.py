"""When whole gradients are avoided."""

from __future__ import annotations

import pytest

from mmsurgery.saliency.blocks import in_blocks


@pytest.mark.parametrize(
    ("estimator", "sizes", "hooked"),
    [
        ("sample", [1] * 100, True),
        ("batch", [1] * 100, False),
        ("batch", [20, *[1] * 80], True),
        ("batch", [10, *[1] * 90], False),
        ("dataset", [20, *[1] * 80], False),
    ],
)
def test_hooks_are_for_samples_and_for_large_tensors(estimator: str, sizes: list[int], hooked: bool) -> None:
    assert in_blocks(estimator, sizes) is hooked
