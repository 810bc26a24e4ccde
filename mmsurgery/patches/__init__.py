"""Models as exact, revertible changes of others."""

from mmsurgery.patches.describe import describe
from mmsurgery.patches.make import PatchResult, create
from mmsurgery.patches.use import Patched, apply, revert

__all__ = ["PatchResult", "Patched", "apply", "create", "describe", "revert"]
