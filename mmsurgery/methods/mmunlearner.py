"""MMUnlearner (Eq. 3): Gradient Difference whose ascent reaches the mask's weights only."""

from __future__ import annotations

from mmsurgery.methods.ga_diff import GADiff


class MMUnlearner(GADiff):
    """The update is m * grad(-L_forget) + grad(L_retain); the training loop applies the mask m."""

    name = "mmunlearner"
    title = "MMUnlearner"
    equation = "Eq. 3"
    requires_mask = True
