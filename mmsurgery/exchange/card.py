"""The card of a shared artifact: what it is, what it selects, where it comes from, how it is made again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TAGS = {
    "mask": ["mmsurgery", "weight-mask", "machine-unlearning"],
    "saliency": ["mmsurgery", "fisher-information", "machine-unlearning"],
    "patch": ["mmsurgery", "weight-patch", "machine-unlearning"],
}
_WHAT = {
    "mask": "A mask: one bit per weight of a model, 1 = may be updated.",
    "saliency": "A saliency map: the Fisher diagonal of a data part, per weight of a model.",
    "patch": "A patch: a model as an exact, revertible change of another one.",
}
_FACTS = (
    "rule", "beta", "estimator", "mixture", "modules", "part", "units", "unit", "model_type", "model_sha256",
    "content_sha256", "data_sha256", "selected", "changed", "total", "density", "bytes", "share",
)  # fmt: skip


def card(kind: str, name: str, described: Mapping[str, Any], *, picture: str | None) -> str:
    """Markdown with YAML front matter.

    Args:
        described: what `inspect` says of the artifact.
        picture: file name of its heatmap.
    """
    from huggingface_hub import ModelCardData

    lines = ["---", ModelCardData(library_name="mmsurgery", tags=TAGS[kind]).to_yaml().strip(), "---", ""]
    lines += [f"# {_plain(name)}", "", _WHAT[kind], ""]
    if picture:
        lines += [f"![By layer and component]({picture})", ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {key} | {_cell(described[key])} |" for key in _FACTS if described.get(key) is not None]
    lines += ["", *_groups(described), *_origin(described), *_commands(kind, name, described)]
    return "\n".join(lines) + "\n"


def _groups(described: Mapping[str, Any]) -> list[str]:
    table = described.get("by_group")
    if not isinstance(table, Mapping):
        return []
    key = "selected" if "selected" in described else "changed"
    rows = [
        f"| {_plain(group)} | {entry[key]:,} | {entry['total']:,} | "
        f"{'frozen' if entry.get('frozen') else format(100 * entry['density'], '.1f')} |"
        for group, entry in table.items()
    ]
    return [f"| group | {key} | weights | share % |", "|---|---:|---:|---:|", *rows, ""]


def _origin(described: Mapping[str, Any]) -> list[str]:
    steps = described.get("origin") or []
    if not steps:
        return []
    rows = [f"| {_plain(s['what'])} | {_cell(s['name'])} | {_cell(s['about'])} | {_cell(s['sha256'])} |" for s in steps]
    return ["## Where it comes from", "", "| what | name | | SHA-256 |", "|---|---|---|---|", *rows, ""]


def _commands(kind: str, name: str, described: Mapping[str, Any]) -> list[str]:
    """How it is used, and how it was made as far as its settings say."""
    use = {
        "mask": f"mmsurgery apply --method mmunlearner --mask {name}",
        "saliency": "mmsurgery mask --beta 1",
        "patch": f"mmsurgery patch apply {name}",
    }[kind]
    settings = (described.get("provenance") or {}).get("settings")
    made = "" if not isinstance(settings, Mapping) else _made(kind, settings)
    lines = ["## Commands", "", "In a workspace of the model above:", "", "    mmsurgery pull REPOSITORY", f"    {use}"]
    return [*lines, *(["", "Made by:", "", f"    {_line(made)}"] if made else [])]


def _made(kind: str, settings: Mapping[str, Any]) -> str:
    if isinstance(settings.get("expression"), str):
        return f'mmsurgery compose "{settings["expression"]}" --name NAME'
    options = {
        "saliency": ("estimator", "batch_size"),
        "mask": (
            "beta", "density", "per", "modules", "control", "seed", "mixture", "preserve", "estimator", "batch_size",
        ),
    }  # fmt: skip
    if kind not in options:
        return ""
    there = [key for key in options[kind] if settings.get(key) is not None]
    given = "".join(f" --{key.replace('_', '-')} {settings[key]}" for key in there)
    return f"mmsurgery {kind}{' --set ' + str(settings.get('part')) if kind == 'saliency' else ''}{given}"


def _plain(value: object) -> str:
    """Foreign text that neither ends a table cell nor is read as markup."""
    text = "".join(c if c.isprintable() else "?" for c in str(value))
    return "".join(f"&#{ord(c)};" if c in "<>|&[]`*_\\#!" else c for c in text)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else _plain(value)


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
