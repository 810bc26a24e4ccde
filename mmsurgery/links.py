"""`verify` without a model: every artifact of a workspace and every link between them, upstream first."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsurgery.api import Workspace
from mmsurgery.artifacts import distributions
from mmsurgery.artifacts.checkpoint import RUN_FILE, CheckpointFiles, model_config
from mmsurgery.artifacts.digests import digest_cache
from mmsurgery.artifacts.files import read_json
from mmsurgery.artifacts.mask import Mask
from mmsurgery.artifacts.patch import Patch
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.audit.run import read_audit
from mmsurgery.backbones.discovery import backbone
from mmsurgery.data.benchmark import benchmark, source_of
from mmsurgery.data.portraits import check_drawn_for
from mmsurgery.data.samples import Sample, data_sha256
from mmsurgery.diff.run import read_diff
from mmsurgery.errors import InputRefused, Mismatch, MissingArtifact, MmsurgeryError
from mmsurgery.evaluate.records import read_eval, read_items
from mmsurgery.masks.stale import stale
from mmsurgery.provenance import check_seal
from mmsurgery.unlearn.deletions import digest_of, earlier_requests, people_of
from mmsurgery.unlearn.record import mask_identity, read_record
from mmsurgery.unlearn.request import FORGET, RETAIN
from mmsurgery.unlearn.trained_models import stale_models
from mmsurgery.workspace import SILENT, Progress

Check = Callable[[], object]


@dataclass(frozen=True)
class WorkspaceCheck:
    """What was looked at, and what is wrong with it."""

    checked: dict[str, int]
    """Kind -> artifacts, in the order of the data's flow."""
    faults: list[MmsurgeryError]
    """The most upstream first."""

    def to_json(self) -> dict[str, Any]:
        faults = [{"code": f.code, "what": f.what, "next": f.next_step} for f in self.faults]
        return {"checked": self.checked, "faults": faults}


def check_workspace(workspace: Workspace, progress: Progress = SILENT) -> WorkspaceCheck:
    """Read every artifact whole and hold it against the record of what wrote it, and the digests that it names
    against the data, models, saliency and masks as they are now. Nothing that was remembered of files is believed.

    A fault is of the class that using the artifact would raise.
    """
    kinds = dict(_Checks(workspace).kinds())
    faults: dict[str, MmsurgeryError] = {}
    with digest_cache.afresh(), progress.stage("checking artifacts", sum(map(len, kinds.values()))) as advance:
        for check in [check for checks in kinds.values() for check in checks]:
            try:
                found = check()
            except MmsurgeryError as error:
                found = [error]
            for fault in found if isinstance(found, list) else ():
                faults.setdefault(str(fault), fault)
            advance(1)
    return WorkspaceCheck({kind: len(checks) for kind, checks in kinds.items() if checks}, list(faults.values()))


class _Checks:
    """Looks at one artifact each; raises or returns what is wrong."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._digests: dict[str, str] = {}
        self._items: dict[str, str] = {}
        self._parts: dict[str, Sequence[Sample]] = {}

    def kinds(self) -> Iterator[tuple[str, list[Check]]]:
        space = self.workspace
        portraits = space.settings.benchmark.name == "portraits" and space.data_dir.exists()
        yield "data", [functools.partial(check_drawn_for, source_of(space))] if portraits else []
        yield "models", [functools.partial(self._digest, name) for name in space.models()]
        yield "saliency", self._each("saliency", "[!.]*/manifest.json", lambda path: SaliencyMap.load(path.parent))
        yield "masks", self._each("masks", "[!.]*.safetensors", Mask.load)
        yield "links", [lambda: stale_models(space), lambda: stale(space), *self._runs()]
        yield "references", self._each("references", "[!.]*.safetensors", distributions.check)
        yield "patches", self._each("patches", "[!.]*.safetensors", _read_patch)
        yield "requests", self._each("requests", "[!.]*.json", _sealed("request"))
        yield "scores", self._each("evals", "**/[!.]*.json", self._scores)
        yield "diffs", self._each("diffs", "[!.]*.json", self._diff)
        yield (
            "audits",
            [
                *self._each("audits", "[!.]*.json", self._audit),
                *self._each("audits", "measured/[!.]*.json", _sealed("measured")),
            ],
        )
        yield "stability", self._each("stability", "[!.]*.json", _sealed("stability"))
        yield "experiments", self._each("experiments", "[!.]*/results.json", _sealed("experiment"))

    def _each(self, folder: str, pattern: str, look: Callable[[Path], object]) -> list[Check]:
        room = self.workspace.path(folder)
        paths = (p for p in sorted(room.glob(pattern)) if not any(q[0] == "." for q in p.relative_to(room).parts))
        return [functools.partial(look, path) for path in paths]

    def _digest(self, name: str) -> str:
        """Of a model's weights, which are those that its run wrote."""
        if name not in self._digests:
            folder = self.workspace.existing_model(name)
            files = CheckpointFiles(folder, backbone(model_config(folder)["model_type"]).canonical)
            self._digests[name] = files.digest()
        return self._digests[name]

    def _runs(self) -> Iterator[Check]:
        for name in self.workspace.models():
            folder = self.workspace.model_dir(name)
            if (folder / RUN_FILE).exists():
                yield functools.partial(self._run, name, folder)

    def _run(self, name: str, folder: Path) -> None:
        record = read_record(folder)
        again = f"make '{name}' again, with --force"
        inputs = _mapping(record["provenance"].get("inputs"), f"the record of '{name}'")
        for part in ("start", "reference"):
            self._same(f"model '{name}'", str(record.get(part)), inputs.get(part), again)
        mask = record.get("mask")
        if (
            mask
            and (path := self.workspace.mask_path(mask)).exists()
            and mask_identity(Mask.load(path)) != inputs.get("mask")
        ):
            raise Mismatch(f"mask '{mask}' has changed since '{name}' was made with it", again)
        self._learnt(name, record, again)

    def _learnt(self, name: str, record: Mapping[str, Any], again: str) -> None:
        """Check that data which a model unlearned with are as they were, if it is about the people of today."""
        inputs, request = record["provenance"]["inputs"], record.get("request")
        if not isinstance(request, str) or request != digest_of(people_of(forget := self._samples(FORGET))):
            return
        differing = [FORGET] if inputs.get("forget") != data_sha256(forget) else []
        if inputs.get("retain") != data_sha256([]):  # the method had some
            with contextlib.suppress(MissingArtifact):  # of a chain of which a model is gone
                earlier = {p for people in earlier_requests(self.workspace, record["start"]).values() for p in people}
                kept = [sample for sample in self._samples(RETAIN) if sample.person not in earlier]
                differing += [RETAIN] if inputs.get("retain") != data_sha256(kept) else []
        if differing:
            what = f"model '{name}' was made with other data than there are now: {', '.join(differing)}"
            raise Mismatch(what, again)

    def _samples(self, part: str) -> Sequence[Sample]:
        if part not in self._parts:
            source, reader = source_of(self.workspace), benchmark(self.workspace.settings.benchmark.name)
            self._parts[part] = reader.samples(source, part)
        return self._parts[part]

    def _same(self, what: str, model: str, digest: Any, again: str) -> None:
        """Check that a model which is named and there still has the weights that an artifact was made of."""
        if digest is not None and model in self.workspace.models() and self._digest(model) != digest:
            raise Mismatch(f"{what} was made of weights that '{model}' has no more", again)

    def _scores(self, path: Path) -> None:
        record = read_eval(path)
        read_items(path)
        inputs = _mapping(record["provenance"].get("inputs", {}), str(path))
        again = f"mmsurgery eval {record['model']} --force"
        self._same(f"{path}", record["model"], inputs.get("model_sha256"), again)
        own = path.parent == self.workspace.path("evals")  # others ask a subset, of an earlier request or otherwise
        asked = _mapping(inputs.get("items", {}), str(path)) if own else {}
        if differing := sorted(column for column, digest in asked.items() if self._asked(column) != digest):
            raise Mismatch(f"{path} is about other items than the data holds now: {', '.join(differing)}", again)

    def _asked(self, column: str) -> str:
        """Digest of a column's items as the data has them now."""
        if column not in self._items:
            self._items[column] = data_sha256(self.workspace.items(column))
        return self._items[column]

    def _diff(self, path: Path) -> None:
        record = read_diff(path)
        inputs = _mapping(record["provenance"].get("inputs", {}), str(path))
        again = f"mmsurgery diff {record.get('before')} {record.get('after')} --force"
        for side in ("before", "after"):
            self._same(f"{path}", str(record.get(side)), inputs.get(side), again)

    def _audit(self, path: Path) -> None:
        record = read_audit(path)
        again = f"mmsurgery audit {record['model']} --force"
        inputs = _mapping(record["provenance"].get("inputs", {}), str(path))
        for name, digest in _mapping(inputs.get("models", {}), str(path)).items():
            self._same(f"{path}", name, digest, again)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputRefused(f"{where} does not say what it was made of", "make it again")
    return value


def _sealed(kind: str) -> Callable[[Path], Mapping[str, Any]]:
    return lambda path: check_seal(read_json(path), str(path), kind=kind)


def _read_patch(path: Path) -> None:
    patch = Patch.load(path)
    for name in patch.names:
        patch.xor(name)
