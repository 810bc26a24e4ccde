from __future__ import annotations

import pytest

from mmsurgery.portraits.world import World


@pytest.fixture(scope="session")
def world() -> World:
    """The default one; its pictures are drawn once."""
    return World(0)
