"""What things are called on the page, and the one sentence that says what they mean."""

from __future__ import annotations

from mmsurgery.data.benchmark import COLUMN_LABELS

COLUMNS = {
    "forget_vqa": "Questions about the pictures to be forgotten. It should fall to where gold is.",
    "forget_perception": "What anyone can see in those pictures without knowing the person. Keep.",
    "forget_qa": "The same people in text alone: what the text knows should stay.",
    "retain_vqa": "Questions about everyone else's pictures. Keep.",
    "retain_qa": "Everyone else in text alone. Keep.",
    "realworld_vqa": "Pictures of celebrities, known from before anyone here was learned. Keep.",
    "realworld_qa": "Celebrities in text alone. Keep.",
    "realface_vqa": "Pictures of real faces. Keep.",
    "test_vqa": "Other pictures of the people to be forgotten. It should fall with Forget VQA.",
    "forget_caption": "Captions of the pictures to be forgotten. They should fall to where gold is.",
    "retain_caption": "Captions of everyone else's pictures. Keep.",
    "utility": "Mean of the columns that should stay, each column weighing the same.",
}

TASKS = {
    "cloze": "Gaps filled by generation; right where the gold text stands in the answer.",
    "truth": "Probability of the true answer beside wrong ones, by likelihood (CLEAR's own measure).",
    "generation": "Open questions answered by generation; F1 of ROUGE-L against the gold text.",
}

METHODS = {
    "ga": ("GA", "gradient ascent on the forget set"),
    "ga_diff": ("GA_Diff", "ascent on the forget set, descent on the retain set"),
    "kl_min": ("KL_Min", "ascent, while staying close to vanilla on the retain set"),
    "npo": ("NPO", "negative preference against a reference model"),
    "mmunlearner": ("MMUnlearner", "ascent inside the mask, descent on the retain set"),
}

RULES = {
    "ratio": "selects weights whose forget saliency is at least beta times their preserve saliency (Eq. 7)",
    "density": "selects the given share of weights with the highest ratio of forget to preserve saliency",
    "random": "control: as many weights in every tensor, drawn at random",
    "inverse": "control: as many weights in every tensor, those with the lowest ratios",
    "magnitude": "control: as many weights in every tensor, the largest ones",
    "forget-only": "control: as many weights in every tensor, by forget saliency alone",
    "compose": "made from other masks",
}

ESTIMATORS = {
    "sample": "mean over samples of squared gradients of each sample's loss",
    "batch": "mean over batches of squared batch gradients, as the official code",
    "dataset": "square of the mean gradient (Eq. 4 as printed)",
}

CLAIMS = {
    "mask": "nothing outside the mask moved",
    "modules": "nothing outside the mask's modules moved",
    "none": "every weight may have moved",
}

PLAIN_MODELS = {
    "vanilla": "knows everyone; unlearning starts here",
    "gold": "never saw the pictures to be forgotten, but knows their text: the goal",
    "reference": "fine-tuned on the retain set alone: NPO's reference",
    "base": "before any person was learned",
}


def column(name: str) -> str:
    """The label of a column."""
    asked, _, task = name.partition(".")
    label = "Utility" if asked == "utility" else COLUMN_LABELS.get(asked, asked)
    return f"{label}, {task}" if task else label


def about(name: str) -> str:
    """What a column is, in a sentence; empty for columns of other benchmarks."""
    asked, _, task = name.partition(".")
    return f"{COLUMNS.get(asked, '')} {TASKS.get(task, '')}".strip()


def method(name: str) -> str:
    """The label of a method."""
    return METHODS[name][0] if name in METHODS else name
