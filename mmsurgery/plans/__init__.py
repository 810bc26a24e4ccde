"""What the heavy verbs would need, said before anything is loaded or written (`--plan`)."""

from mmsurgery.plans.apply import apply_layout, plan_apply
from mmsurgery.plans.audit import plan_audit
from mmsurgery.plans.diff import plan_diff
from mmsurgery.plans.evaluate import plan_eval
from mmsurgery.plans.plan import Passes, Plan
from mmsurgery.plans.saliency import plan_saliency, saliency_layout
from mmsurgery.plans.train import plan_train

__all__ = [
    "Passes",
    "Plan",
    "apply_layout",
    "plan_apply",
    "plan_audit",
    "plan_diff",
    "plan_eval",
    "plan_saliency",
    "plan_train",
    "saliency_layout",
]
