"""What is about single weights: masks, saliency maps, differences between models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from mmsurgery.artifacts.mask import Mask
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.backbones.discovery import backbone
from mmsurgery.diff import read_diff
from mmsurgery.diff.difference import heatmaps as diff_heatmaps
from mmsurgery.errors import InputRefused
from mmsurgery.masks.inspect import mask_heatmaps, saliency_summary
from mmsurgery.names import GROUPS, Address
from mmsurgery.report import charts, heat, numbers, words
from mmsurgery.report.fields import Fields
from mmsurgery.report.origin import Origin, origin

SUMMARISED = 20_000_000
"""Saliency of at most this many weights is summarised; larger maps are left to `mmsurgery inspect`."""
_TOP = 10


@dataclass(frozen=True)
class MaskView:
    name: str
    rule: str
    about: str
    beta: str
    modules: str
    selected: int
    total: int
    density: float
    inside: str
    """Density inside its modules."""
    groups: Sequence[tuple[str, float, Markup, str]]
    """Group, density, its bar, `selected of total`."""
    digest: str
    profile: Markup
    heatmaps: Sequence[Markup]
    origin: Origin


def read_mask(path: Path) -> MaskView:
    """A mask, checked bit by bit.

    Raises:
        InputRefused, Mismatch: as `Mask.load`.
    """
    mask = Mask.load(path)
    within = sum(mask.parameters[name].numel for name in mask.in_modules())
    tally = mask.tally("group")
    provenance = Fields({"provenance": dict(mask.provenance)}, f"metadata of {path}")
    settings = mask.provenance.get("settings")
    control = settings.get("control") if isinstance(settings, Mapping) else None
    kind = control if isinstance(control, str) and control in words.RULES else mask.rule
    made = origin("mask", path.stem, provenance)
    facts = [("content_sha256", mask.content_sha256), ("base.model_sha256", mask.base["model_sha256"]), *made.facts]
    return MaskView(
        name=path.stem,
        rule=kind,
        about=words.RULES.get(kind, "a rule of its own"),
        beta="–" if mask.beta is None else f"{mask.beta:g}",
        modules=mask.modules,
        selected=mask.selected,
        total=mask.total,
        density=mask.density(),
        inside=numbers.percent(mask.selected / within) if within else "–",
        groups=[_group(group, *tally[group]) for group in GROUPS if group in tally],
        digest=numbers.digest(mask.content_sha256),
        profile=charts.profile(mask.tally("layer")),
        heatmaps=heat.heatmaps(mask_heatmaps(mask), _sizes(mask)),
        origin=Origin(made.kind, made.name, made.command, made.key, facts, made.versions),
    )


def _sizes(mask: Mask) -> dict[Address, int]:
    """Weights of each cell."""
    found: dict[Address, int] = {}
    for name in mask.in_modules():
        parameter = mask.parameters[name]
        found[parameter.address] = found.get(parameter.address, 0) + parameter.numel
    return found


def _group(group: str, ones: int, total: int) -> tuple[str, float, Markup, str]:
    share = ones / total if total else 0.0
    label = f"{numbers.count(ones)} of {numbers.count(total)} weights"
    return group, share, charts.bar(share, f"{group}: {label}"), label


@dataclass(frozen=True)
class SaliencyView:
    name: str
    part: str
    estimator: str
    units: int
    unit: str
    groups: Mapping[str, Mapping[str, float]]
    """Group -> share -> value of S; empty for a map that is too large."""
    means: Mapping[str, float]
    origin: Origin


def read_saliency(folder: Path) -> SaliencyView:
    """A saliency map and the quantiles of S by module group.

    Raises:
        InputRefused, Mismatch: as `SaliencyMap.load`.
        UsageError: if no backbone of its model type is installed.
        UnusableData: for saliency that is not finite.
    """
    found = SaliencyMap.load(folder)
    address = backbone(found.model_type).address
    names: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name in found.arrays:
        names[address(name).group].append(name)
    total = sum(_numel(found.shape(name)) for name in found.arrays)
    inside = {group: inner for group, inner in names.items() if inner} if total <= SUMMARISED else {}
    summaries = {group: saliency_summary(found, inner) for group, inner in inside.items()}
    made = origin("saliency", folder.name, Fields({"provenance": dict(found.provenance)}, str(folder)))
    facts = [("data_sha256", found.data_sha256), ("model_sha256", found.model_sha256), *made.facts]
    units = {"sample": "samples", "batch": f"batches of {found.batch_size}", "dataset": "samples"}
    return SaliencyView(
        name=folder.name,
        part=words.column(found.part),
        estimator=found.estimator,
        units=found.units,
        unit=units[found.estimator],
        groups={group: summary["quantiles"] for group, summary in summaries.items()},
        means={group: summary["mean"] for group, summary in summaries.items()},
        origin=Origin(made.kind, made.name, made.command, made.key, list(dict.fromkeys(facts)), made.versions),
    )


def _numel(shape: tuple[int, ...] | None) -> int:
    size = 1
    for length in shape or ():
        size *= length
    return size


@dataclass(frozen=True)
class DiffView:
    name: str
    before: str
    after: str
    mask: str
    n: int
    changed: int
    inside: int | None
    outside: int | None
    share: Markup | None
    """Of the changed weights, those inside the mask."""
    threshold: str
    heatmaps: Sequence[Markup]
    top: Sequence[tuple[str, str, str]]
    """Name, index, difference of the largest."""
    origin: Origin


def read_difference(path: Path) -> DiffView:
    """A difference between two models.

    Raises:
        InputRefused, Mismatch: as `diff.read_diff`, or if a field is not what it should be.
    """
    record = Fields(read_diff(path), str(path))
    sizes = _checked_sizes(record)
    changed = record.get("changed").whole()
    inside, outside = ((record.get(key).whole() if record.has(key) else None) for key in ("inside", "outside"))
    share = None
    if inside is not None and changed:
        share = charts.bar(min(inside / changed, 1.0), f"{numbers.percent(inside / changed)} of the changes are inside")
    top = [
        (entry.get("name").text(), numbers.count(entry.get("index").whole()), f"{entry.get('delta').number():+.5f}")
        for entry in record.get("top").entries()[:_TOP]
    ]
    return DiffView(
        name=path.stem,
        before=record.get("before").text(),
        after=record.get("after").text(),
        mask=record.get("mask").text() if record.has("mask") else "",
        n=record.get("n").whole(),
        changed=changed,
        inside=inside,
        outside=outside,
        share=share,
        threshold=numbers.scientific(record.get("threshold").number()),
        heatmaps=heat.heatmaps(
            [replace(h, title=h.title.replace("%", " %")) for h in diff_heatmaps(record.mapping())], sizes
        ),
        top=[(name, index, delta.replace("-", "−")) for name, index, delta in top],
        origin=origin("difference", path.stem, record),
    )


def _checked_sizes(record: Fields) -> dict[Address, int]:
    """Weights of each cell, once heatmap and sizes are rectangles of counts over addresses that exist."""
    rows, columns = record.get("layers").texts(), record.get("components").texts()
    for key in ("heatmap", "sizes"):
        values = [[cell.number() for cell in row.entries()] for row in record.get(key).entries()]
        if len(values) != len(rows) or any(len(row) != len(columns) or min(row, default=0) < 0 for row in values):
            raise InputRefused(
                f"{record.where}: {key} does not fit its layers and components", "mmsurgery diff --force"
            )
    sizes = [[cell.whole() for cell in row.entries()] for row in record.get("sizes").entries()]
    return {
        Address.parse(f"{row}.{column}"): size
        for row, here in zip(rows, sizes, strict=True)
        for column, size in zip(columns, here, strict=True)
    }
