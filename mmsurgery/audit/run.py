"""`audit`: try whether an unlearned model stays one, beside the models that prove each probe.

audits/measured/MODEL.PROBE.json    what a probe measured of a model; kept, so that references are measured once
audits/MODEL.json                   the card: what was tried, what leaked, what is unknown
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.checkpoint import RUN_FILE, CheckpointFiles, model_config
from mmsurgery.artifacts.files import read_json, write_json
from mmsurgery.artifacts.mask import Mask
from mmsurgery.audit import judge, probing, quantisation, relearning
from mmsurgery.audit.material import Material
from mmsurgery.audit.measured import Measured
from mmsurgery.audit.probes import PROBES, Probe, chosen
from mmsurgery.audit.subjects import DESTROYED, TRIO, Subject, base, subject
from mmsurgery.backbones.discovery import backbone
from mmsurgery.backbones.loading import device_name
from mmsurgery.errors import InputRefused, Mismatch, MissingArtifact, UnusableData, UsageError
from mmsurgery.names import check_artifact_name
from mmsurgery.paths import real
from mmsurgery.provenance import SCHEMA, check_seal, differences, provenance, seal
from mmsurgery.unlearn.record import mask_identity, read_record
from mmsurgery.workspace import SILENT, Progress, Workspace

MEASURED = "measured"


@dataclass(frozen=True)
class AuditResult:
    """The card of one model."""

    model: str
    path: Path
    record: dict[str, Any] = field(repr=False)
    up_to_date: bool


def audit(
    workspace: Workspace,
    model: str | None = None,
    *,
    probes: str | None = None,
    held_out: Path | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> AuditResult:
    """Try probes on a model and write `audits/MODEL.json`.

    vanilla, gold and a destroyed vanilla are tried too, once for all models of the workspace. An interrupted run goes
    on with the probe it was at.

    Args:
        model: name, or path of a checkpoint folder; the last unlearned where None.
        probes: names of `probes.PROBES`, comma-separated; all where None.
        held_out: folder of people and questions that no model was trained on (see `data.held_out`); the benchmark's
            own where None and it has one.
        force: measure the model again, and replace a card of another model or of other data.

    Raises:
        UsageError: for an unknown probe, the base model, or a model that is called as the destroyed one.
        MissingArtifact: if the model, vanilla or the folder does not exist.
        InputRefused: if a model, the data or a card is damaged.
        Mismatch: if the name holds a card of other weights or other data, and `force` is not given.
        UnusableData: if there is nothing to ask, or no probe can be tried.
        MachineFault: if the workspace is in use or cannot be written.
    """
    from mmsurgery.unlearn.loop import deterministic

    name, folder = audited_model(workspace, model)
    wanted, material = chosen(probes), material_of(workspace, held_out)
    _ = material.forget, material.retain
    if (folder / RUN_FILE).exists():
        read_record(folder)  # damaged, it is refused before hours of measuring
    subjects = subjects_of(workspace, name, folder, progress)
    path = workspace.path("audits", f"{check_artifact_name(name)}.json")
    models = {each.name: each.sha256 for each in (*subjects, base(workspace)) if each is not None}
    beside = beside_of(workspace, subjects)
    settings = {
        "probes": {probe.name: probe.version for probe in wanted},
        "rules": judge.RULES,
        "threads": workspace.threads,
        "learning_rate": beside["learning_rate"],
    }
    made = provenance("audit", settings, {"models": models, **material.digests})
    if (found := _found(path, made, force=force)) is not None:
        return AuditResult(name, path, found, True)
    with workspace.lock(), deterministic(workspace.threads):
        measured: dict[str, dict[str, Measured]] = {}
        failed: dict[str, dict[str, UnusableData]] = {probe.name: {} for probe in wanted}
        seconds: dict[str, float] = {}
        for each in subjects:
            begin = time.monotonic()
            for probe in wanted:
                if "vanilla" in failed[probe.name]:  # of the data, then, or of a model that nothing can be held against
                    continue
                progress.note(f"{each.name}: {probe.title.lower()}")
                again = force and each.name == name
                try:
                    result = _measured(workspace, each, probe, material, beside, again=again, progress=progress)
                except UnusableData as error:
                    failed[probe.name][each.name] = error
                    continue
                measured.setdefault(probe.name, {})[each.name] = result
            seconds[each.name] = round(time.monotonic() - begin, 1)
        measured = {probe: found for probe, found in measured.items() if name in found}
        if not measured:
            first = next(error for found in failed.values() for error in found.values())
            raise UnusableData(f"no probe can be tried on '{name}': {first.what}", first.next_step)
        body = {
            "model": name,
            "probes": {probe.name: _judged(measured[probe.name], name) for probe in wanted if probe.name in measured},
            "unknown": _unknown(measured, failed, name, subjects),
            "rounding": _survival(workspace, folder, progress) if "quantisation" in measured else None,
            "profile": _profile(workspace, name, folder, measured.get("probing", {})),
            "provenance": {**made, "device": device_name()},
        }
        record = seal({"schema": SCHEMA, "kind": "audit", **body})
        write_json(path, record)
        workspace.journal("audit", model=name, seconds=seconds[name])
    return AuditResult(name, path, record, False)


def audited_model(workspace: Workspace, model: str | None) -> tuple[str, Path]:
    """Name and folder of a model that can be audited; raises as `audit`."""
    name, folder = workspace.find_model(model or workspace.last_unlearned())
    if name == "base":
        raise UsageError("the base model knows nobody of these people", "name an unlearned model")
    if name == DESTROYED:
        raise UsageError(f"'{DESTROYED}' is what an audit calls shuffled weights", "give the model another name")
    if name in TRIO and real(workspace.model_dir(name)) != real(folder):
        raise UsageError(f"{folder} would be called '{name}', as the reference is", "name its folder by another name")
    return name, folder


def material_of(workspace: Workspace, held_out: Path | None) -> Material:
    """What is asked; raises as `audit`."""
    if held_out is not None and not held_out.is_dir():
        raise MissingArtifact(f"no folder {held_out}", "see docs/audit.md for what it holds")
    return Material.of(workspace, held_out)


def read_audit(path: Path) -> dict[str, Any]:
    """The card of a model.

    Raises:
        MissingArtifact: if there is none.
        InputRefused: if it is damaged.
        Mismatch: if it was written by another schema.
    """
    if not path.exists():
        raise MissingArtifact(f"{path} does not exist", f"mmsurgery audit {path.stem}")
    return check_seal(read_json(path), str(path), kind="audit")


def subjects_of(workspace: Workspace, name: str, folder: Path, progress: Progress) -> list[Subject]:
    """The model and its references; each at most once."""
    found = [subject(workspace, "vanilla")]
    try:
        found.append(subject(workspace, "gold"))
    except MissingArtifact:
        progress.note("there is no gold model, so probes are held against chance alone: mmsurgery train gold")
    found.append(subject(workspace, DESTROYED))
    if name not in {each.name for each in found}:
        found.append(subject(workspace, name, folder))
    return found


def beside_of(workspace: Workspace, subjects: Sequence[Subject]) -> dict[str, Any]:
    """What probes depend on besides the model and the data (see `Probe.beside`)."""
    first = base(workspace)
    return {
        "learning_rate": workspace.settings.recipe.learning_rate,
        "base": None if first is None else first.sha256,
        "vanilla": next(each.sha256 for each in subjects if each.name == "vanilla"),
    }


def _found(path: Path, made: Mapping[str, Any], *, force: bool) -> dict[str, Any] | None:
    """The card that is there, if it is the one that is asked for.

    Raises:
        Mismatch: if it is another, and `force` is not given.
    """
    if force or not path.exists():
        return None
    record = read_audit(path)
    if record["provenance"].get("key") == made["key"]:
        return record
    before, now = record["provenance"]["inputs"], made["inputs"]
    known = {model: digest for model, digest in now["models"].items() if model in before["models"]}
    if before == {**now, "models": known}:
        return None  # more probes, or fewer, of the same, or a reference that was made since
    why = differences(record["provenance"], made)
    raise Mismatch(f"{path} is about other models or data ({why})", f"mmsurgery audit {path.stem} --force")


def _measured(
    workspace: Workspace,
    each: Subject,
    probe: Probe,
    material: Material,
    beside: Mapping[str, Any],
    *,
    again: bool,
    progress: Progress,
) -> Measured:
    """What a probe finds of a model: from its file, or measured now and written there."""
    path, origin = _file(workspace, each, probe, material, beside)
    if not again and (stored := measured_before(workspace, each, probe, material, beside, progress)) is not None:
        return stored
    result = probe.measure(each, material, progress)
    body = {"measured": result.to_json(), "provenance": {**origin, "device": device_name()}}
    write_json(path, seal({"schema": SCHEMA, "kind": "measured", **body}))
    # in the order of the file, so that ties fall as they do when it is read later
    return Measured.from_json(read_json(path)["measured"], str(path))


def measured_before(
    workspace: Workspace,
    each: Subject,
    probe: Probe,
    material: Material,
    beside: Mapping[str, Any],
    progress: Progress = SILENT,
) -> Measured | None:
    """What a probe found of this model in this data before, if it is there and sound."""
    path, origin = _file(workspace, each, probe, material, beside)
    if not path.exists():
        return None
    try:
        found = check_seal(read_json(path), str(path), kind="measured")
        if found["provenance"].get("key") == origin["key"]:
            return Measured.from_json(found["measured"], str(path))
    except InputRefused as error:
        progress.note(f"{error.what}: measuring again")
    return None


def _file(
    workspace: Workspace, each: Subject, probe: Probe, material: Material, beside: Mapping[str, Any]
) -> tuple[Path, dict[str, Any]]:
    """Where a measurement is kept, and its provenance."""
    made = provenance(
        "audit",
        {"probe": probe.name, "version": probe.version, "model": each.name, "threads": workspace.threads},
        {
            "model_sha256": each.sha256,
            "companions_sha256": each.companions,
            "beside": {key: beside[key] for key in probe.beside},
            **material.digests,
        },
    )
    return workspace.path("audits", MEASURED, f"{check_artifact_name(each.name)}.{probe.name}.json"), made


def _judged(found: Mapping[str, Measured], name: str) -> dict[str, Any]:
    """One probe's part of the card: its trio, and what it says of each model."""
    gold, vanilla = found.get("gold"), found.get("vanilla")
    return {
        "trio": judge.trio(found),
        "models": {each: judge.judge(measured, gold, vanilla) for each, measured in found.items()},
        "arms": {
            arm: {each: measured.arms[arm].mean for each, measured in found.items() if arm in measured.arms}
            for arm in found[name].arms
        },
        "chance": dict(found[name].chance),
        "details": {each: dict(measured.details) for each, measured in found.items()},
        "untried": dict(found[name].untried),
        **({"brought_back": _brought_back(found)} if "answers as it is" in found[name].details else {}),
        **({"steps_to_recover": _recovered(found)} if "curves" in found[name].details else {}),
    }


def _brought_back(found: Mapping[str, Measured]) -> dict[str, dict[str, dict[str, Any]]]:
    """Model -> arm -> what rounding adds to it and not to vanilla."""
    return {
        each: {
            arm: {"difference": paired.difference, "ci95": list(paired.ci95), "resolved": paired.resolved}
            for arm, paired in quantisation.brought_back(measured, found["vanilla"]).items()
        }
        for each, measured in found.items()
        if "vanilla" in found and each != "vanilla"
    }


def _recovered(found: Mapping[str, Measured]) -> dict[str, dict[str, float | None]]:
    """Arm -> model -> steps to recover, of arms where vanilla starts above gold; empty without gold."""
    curves = {each: measured.details["curves"] for each, measured in found.items()}
    if not {"gold", "vanilla"} <= curves.keys():
        return {}

    def apart(arm: str) -> bool:
        """Where vanilla knows no more than gold there is no way from one to the other."""
        starts = [curves[each][arm]["accuracy"][0] if arm in curves[each] else 0.0 for each in ("gold", "vanilla")]
        return starts[0] < starts[1]

    return {
        arm: {
            each: relearning.steps_to_recover(curve[arm], curves["gold"][arm], curves["vanilla"][arm])
            for each, curve in curves.items()
            if arm in curve
        }
        for arm in curves["gold"]
        if apart(arm)
    }


def _unknown(
    measured: Mapping[str, Mapping[str, Measured]],
    failed: Mapping[str, Mapping[str, UnusableData]],
    name: str,
    subjects: list[Subject],
) -> list[str]:
    """What the card cannot say, for people."""
    found = []
    for probe, errors in failed.items():
        title = PROBES[probe].title
        found += [f"{title}{'' if of == 'vanilla' else f', {of}'}: {error.what}" for of, error in errors.items()]
    for probe, models in measured.items():
        found += [f"{PROBES[probe].title}, {arm}: {why}" for arm, why in models[name].untried.items()]
        if why := models[name].details.get("one by one", {}).get("why not"):
            found.append(f"{PROBES[probe].title}, each person alone: {why}")
    if "gold" not in {each.name for each in subjects}:
        found.append("no gold model, which never saw these pictures: all is held against chance alone")
    return [*found, "attacks with gradients in pixels, shadow models and activation patching were not tried"]


def _profile(
    workspace: Workspace, name: str, folder: Path, probed: Mapping[str, Measured]
) -> dict[str, dict[str, float]] | None:
    """Layer of the language model -> what a probe reads off the states that leave it, by model, beside the share of its
    weights that the model's mask selects (`mask`, where it had one); None where nothing was probed."""
    if name not in probed:
        return None
    record = read_record(folder) if (folder / RUN_FILE).exists() else {}
    path = workspace.mask_path(record["mask"]) if record.get("mask") else None
    mask = Mask.load(path) if path is not None and path.exists() else None
    ours = mask is not None and mask_identity(mask) == record["provenance"].get("inputs", {}).get("mask")
    density = mask.density(by="layer") if mask is not None and ours else {}
    found: dict[str, dict[str, float]] = {}
    for arm in probed[name].arms:
        _, _, number = arm.rpartition(probing.LAYER)
        if not number.isdecimal():
            continue
        layer = f"lm.{int(number) - 1}"  # states are numbered from the embedding on
        found[layer] = {each: values.arms[arm].mean for each, values in probed.items() if arm in values.arms}
        if layer in density:
            found[layer]["mask"] = float(density[layer])
    return found


def _survival(workspace: Workspace, folder: Path, progress: Progress) -> dict[str, Any] | None:
    """Share of the updates since vanilla that survive rounding; None for vanilla itself, and for a model of another
    architecture."""
    before = workspace.existing_model("vanilla")
    kind = model_config(folder)["model_type"]
    if model_config(before)["model_type"] != kind:
        return None
    family = backbone(kind)
    files = CheckpointFiles(before, family.canonical)
    if files.digest() == CheckpointFiles(folder, family.canonical).digest():
        return None
    return quantisation.survival(files, folder, family)
