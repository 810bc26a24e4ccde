"""`mask`: from the saliency of a workspace to a mask file; measures what is missing, else loads no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsurgery.artifacts.mask import Mask
from mmsurgery.artifacts.saliency_map import SaliencyMap, content_sha256, read_manifest
from mmsurgery.data.anchors import parts_with_anchors
from mmsurgery.data.benchmark import SETS, benchmark, source_of
from mmsurgery.errors import Mismatch, MissingArtifact, UsageError, unknown
from mmsurgery.masks import controls
from mmsurgery.masks.ratio import MIXTURES, Ratio
from mmsurgery.masks.rule import SCOPES, check_beta, check_density, ratio_mask
from mmsurgery.masks.stale import check_fresh, saliency_command, vanilla_files
from mmsurgery.names import Selector
from mmsurgery.provenance import differences, provenance
from mmsurgery.settings import check_seed
from mmsurgery.workspace import ESTIMATORS, SILENT, Progress

if TYPE_CHECKING:
    from mmsurgery.workspace import Workspace

_NAMES = frozenset((*SETS["forget"], *SETS["preserve"], "realworld_vqa", "retain_image_qa"))
"""Parts that some benchmarks have and others lack."""


@dataclass(frozen=True)
class MaskResult:
    """What `build_mask` made or found."""

    name: str
    path: Path
    mask: Mask = field(repr=False)
    up_to_date: bool
    """The file was there already, from the same settings and inputs."""
    measured: list[str]
    """Parts whose saliency was missing and was measured."""


def build_mask(
    workspace: Workspace,
    *,
    name: str = "default",
    beta: float | str | None = None,
    density: float | None = None,
    per: str | None = None,
    modules: str = "vision,connector,lm",
    control: str | None = None,
    seed: int | None = None,
    estimator: str = "sample",
    batch_size: int = 4,
    mixture: str = "pooled",
    preserve: str | Sequence[str] | None = None,
    measure: bool = True,
    force: bool = False,
    progress: Progress = SILENT,
) -> MaskResult:
    """Make `masks/NAME.safetensors` from forget (Eq. 5) and preserve (Eq. 6) saliency.

    Args:
        beta, density, per, modules, mixture: see `rule.ratio_mask`; beta 1 where neither beta nor density
            is given.
        control: instead of the rule's mask, one with its count in every tensor, see `controls`.
        seed: of the control `random`, 0 where None.
        estimator, batch_size: which saliency of the parts to use.
        preserve: parts that Eq. 7's denominator is measured on, comma-separated or as a list, in any order; those
            of Eq. 6 that the benchmark has where None.
        measure: measure parts that are missing.
        force: make it again, replacing a different mask of that name.

    Raises:
        UsageError: for a wrong argument, or one without effect.
        MissingArtifact: if saliency is missing and `measure` is false, or the vanilla model is.
        InputRefused: for damaged saliency, or a damaged mask under that name without `force`.
        Mismatch: if saliency is of another model or of other data, or another mask has that name.
        UnusableData: if nothing is selected.
    """
    path = workspace.mask_path(name)
    _check_idle(beta=beta, density=density, per=per, control=control, seed=seed)
    rule: dict[str, Any] = (
        {"beta": check_beta(1.0 if beta is None else beta)}
        if density is None
        else {"density": check_density(density), "per": per or SCOPES[0]}
    )
    settings = {
        **rule,
        "mixture": mixture,
        "modules": str(Selector(modules)),
        "estimator": estimator,
        "batch_size": batch_size if estimator == "batch" else None,
        "control": control,
        "seed": (seed or 0) if control == "random" else None,
    }
    _check_choices(estimator=estimator, mixture=mixture, per=per, control=control)
    parts, chosen = _parts(workspace, preserve)
    if chosen is not None:  # only then: masks of Eq. 6 as it stands keep their key
        settings["preserve"] = chosen
    measured = _measure_missing(workspace, parts, estimator, batch_size, measure=measure, progress=progress)
    inputs = _inputs(workspace, parts, estimator, batch_size)
    origin = provenance("mask", settings, inputs)
    if path.exists() and not force:
        return MaskResult(name, path, _same(path, origin), True, measured)
    with workspace.lock():
        if path.exists() and not force:  # made meanwhile
            return MaskResult(name, path, _same(path, origin), True, measured)
        maps = [SaliencyMap.load(workspace.saliency_dir(part, estimator, batch_size)) for part in parts]
        mask = _made(workspace, maps, settings)
        digests = {part: {"sha256": digest} for part, digest in inputs["saliency"].items()}
        parents = tuple({**parent, **digests.get(str(parent.get("part")), {})} for parent in mask.parents)
        mask = replace(mask, parents=parents, provenance={**origin, "tied": dict(maps[0].tied)})
        mask.write(path)
        workspace.journal("mask", name=name, selected=mask.selected, total=mask.total, settings=settings)
    return MaskResult(name, path, mask, False, measured)


def _check_idle(
    *, beta: float | str | None, density: float | None, per: str | None, control: str | None, seed: int | None
) -> None:
    """Refuse arguments that would have no effect."""
    if density is not None and beta is not None:
        raise UsageError("a mask is made by beta or by density, not by both", "leave --beta or --density out")
    if density is None and per is not None:
        raise UsageError(f"per '{per}' has no meaning without a density", "add --density 0.1, or leave --per out")
    if control != "random" and seed is not None:
        raise UsageError("only the control 'random' is drawn by a seed", "add --control random, or leave --seed out")
    if seed is not None:
        check_seed(seed)


def _check_choices(*, estimator: str, mixture: str, per: str | None, control: str | None) -> None:
    choices: list[tuple[str, str | None, Sequence[str]]] = [
        ("estimator", estimator, ESTIMATORS),
        ("mixture", mixture, MIXTURES),
        ("scope of density", per, SCOPES),
        ("control", control, controls.CONTROLS),
    ]
    for kind, value, known in choices:
        if value is not None and value not in known:
            raise unknown(kind, value, known)


def _parts(workspace: Workspace, preserve: str | Sequence[str] | None) -> tuple[list[str], str | None]:
    """The forget part, then the preserve parts that are asked for; and these as text where they are not those of
    Eq. 6 that the benchmark has."""
    name = workspace.settings.benchmark.name
    offered = parts_with_anchors(benchmark(name), source_of(workspace))
    usual = [part for part in SETS["preserve"] if part in offered]
    named = preserve.split(",") if isinstance(preserve, str) else preserve
    wanted = usual if named is None else _checked([part.strip() for part in named], name, offered)
    kept = [part for part in dict.fromkeys((*SETS["preserve"], *offered)) if part in wanted]
    if not set(SETS["forget"]) <= set(offered) or not kept:
        raise UsageError(
            f"benchmark '{name}' has no part to forget or none to preserve: {', '.join(offered)}",
            "choose another benchmark",
        )
    return [*SETS["forget"], *kept], None if kept == usual else ",".join(kept)


def _checked(parts: Sequence[str], name: str, offered: Sequence[str]) -> Sequence[str]:
    """Parts that the user named, if they can be preserved."""
    if not parts:
        raise UsageError("no part to preserve is named", f"name some of {', '.join(offered)}")
    for part in parts:
        if part in SETS["forget"]:
            raise UsageError(f"{part} is what is to be forgotten (Eq. 5)", "leave it out of --preserve")
        if part in offered:
            continue
        if part in _NAMES:
            raise UsageError(f"benchmark '{name}' has no part '{part}'", f"it has {', '.join(offered)}")
        raise unknown("part", part, offered)
    return parts


def _measure_missing(
    workspace: Workspace, parts: Sequence[str], estimator: str, batch_size: int, *, measure: bool, progress: Progress
) -> list[str]:
    missing = [part for part in parts if not workspace.saliency_dir(part, estimator, batch_size).is_dir()]
    if not missing:
        return []
    from mmsurgery.saliency.shards import unfinished_shards

    for part in missing:
        if left := unfinished_shards(workspace, part, estimator, batch_size):
            names = ", ".join(map(str, left))
            command = f"{saliency_command([part], estimator, batch_size)} --shard {left[0]}"
            raise MissingArtifact(f"{part} is measured in shards: {names} to be run before they are added up", command)
    if not measure:
        command = saliency_command(missing, estimator, batch_size)
        raise MissingArtifact(f"the saliency of {', '.join(missing)} has not been measured", command)
    from mmsurgery.saliency.parts import measure_parts

    progress.note(f"measuring the saliency of {', '.join(missing)} first")
    measure_parts(workspace, missing, estimator=estimator, batch_size=batch_size, progress=progress)
    return missing


def _inputs(workspace: Workspace, parts: Sequence[str], estimator: str, batch_size: int) -> dict[str, Any]:
    """Digests of the vanilla model and of each part's saliency, checked to belong to model and data."""
    manifests = {part: read_manifest(workspace.saliency_dir(part, estimator, batch_size)) for part in parts}
    check_fresh(workspace, [*manifests.values()])
    digests = {part: content_sha256(manifest) for part, manifest in manifests.items()}
    return {"model_sha256": vanilla_files(workspace).digest(), "saliency": digests}


def _same(path: Path, origin: dict[str, Any]) -> Mask:
    """The mask that is there, if it came from the same settings and inputs."""
    mask = Mask.load(path)
    if mask.provenance.get("key") == origin["key"]:
        return mask
    raise Mismatch(
        f"mask '{path.stem}' exists, made with other {differences(mask.provenance, origin)}",
        "pass --force to replace it, or another --name",
    )


def _made(workspace: Workspace, maps: Sequence[SaliencyMap], settings: dict[str, Any]) -> Mask:
    forget, *preserve = maps
    options = {key: settings[key] for key in ("beta", "density", "per", "mixture", "modules") if key in settings}
    mask = ratio_mask(forget, preserve, **options)
    match settings["control"]:
        case None:
            return mask
        case "random":
            return controls.random_mask(mask, settings["seed"])
        case "inverse":
            return controls.inverse_mask(mask, Ratio(forget, preserve, settings["mixture"]))
        case "magnitude":
            return controls.magnitude_mask(mask, vanilla_files(workspace).float32)
        case _:
            return controls.forget_only_mask(mask, forget)
