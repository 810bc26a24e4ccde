"""What is set while a model is trained."""

from __future__ import annotations

import torch

from mmsurgery.unlearn.loop import deterministic


def test_new_tensors_are_not_filled_first_and_all_is_put_back() -> None:
    def state() -> tuple[object, ...]:
        filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        return torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), filled

    before = state()
    with deterministic(1):
        assert state() == (1, True, False)
    assert state() == before
