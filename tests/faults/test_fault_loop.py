"""Cases 50, 52, 53 and promise 4: every place at which a writer of artifacts can fail, SQLite's way.

Each writer replaces what it wrote before, while the first, second, ... operation on the disk fails, until one run goes
through: what was there stays to the byte or the new is whole, and the next run succeeds and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from campaigns import kills, verbs, writes
from failing_writes import every_place

from mmsurgery.artifacts.files import atomic_folder, write_bytes, write_json
from mmsurgery.artifacts.mask import Mask, MaskParameter, pack
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.backbones.discovery import backbone
from mmsurgery.errors import MachineFault
from mmsurgery.evaluate.records import write_eval
from mmsurgery.evaluate.scoring import ItemScore
from mmsurgery.evaluate.unfinished import Unfinished
from mmsurgery.exchange.export import FORMATS, _write
from mmsurgery.exchange.official import write_official
from mmsurgery.provenance import provenance
from mmsurgery.report import write as report
from mmsurgery.settings import Settings
from mmsurgery.unlearn.deletions import write_request
from mmsurgery.workspace import SILENT, Workspace

NAME = "lm_head.weight"


def saliency(ws: Workspace, version: int) -> None:
    SaliencyMap(
        part="forget_vqa",
        estimator="sample",
        batch_size=None,
        units=10,
        model_type="llava",
        model_sha256=f"{1:064x}",
        data_sha256=f"{2:064x}",
        arrays={NAME: np.full((4, 4), 1.0 + version, np.float32)},
        no_gradient={},
        provenance=provenance("saliency", {"version": version}, {}),
    ).save(ws.saliency_dir("forget_vqa"), replace=True)


def mask(ws: Workspace, version: int, side: int = 4) -> None:
    bits = pack(np.arange(side**2).reshape(side, side) < 8 - version)
    Mask(
        rule="ratio",
        beta=1.0,
        estimator="sample",
        mixture="pooled",
        modules="lm",
        parameters={NAME: MaskParameter((side, side), backbone("llava").address(NAME), bits)},
        base={"model_type": "llava", "model_sha256": f"{1:064x}"},
        provenance=provenance("mask", {"version": version}, {}),
    ).write(ws.mask_path("default"))


def checkpoint(ws: Workspace, version: int) -> None:
    """As `unlearn.save.commit` and patches write one: files in a folder that is exchanged."""
    with atomic_folder(ws.model_dir("npo"), replace=True) as new:
        (new / "config.json").write_text("{}")
        write_bytes(new / "model.safetensors", bytes([version]) * 100)
        write_json(new / "mmsurgery-run.json", {"version": version})


def scores(ws: Workspace, version: int) -> None:
    column = {"protocol": "likelihood", "n": 1, "correct": 1, "accuracy": 1.0, "chance": 0.5, "ci95": [0.0, 1.0]}
    item = ItemScore("one", "ann", "forget_vqa", f"{3:064x}", {"A": -1.0 - version, "B": -9.0}, "A")
    origin = provenance("eval", {"version": version}, {})
    body = {"model": "npo", "columns": {"forget_vqa": column}, "remarks": {}, "provenance": origin}
    write_eval(ws.eval_path("npo"), body, [item])


def columns(ws: Workspace, version: int) -> None:
    """What an interrupted scoring keeps."""
    kept = Unfinished(ws.path("evals", "scoring", "npo"), lambda text: None)
    kept.begin(provenance("eval", {}, {}), "again", force=True)
    kept.keep_scores("forget_vqa", [ItemScore("one", "ann", "x", f"{3:064x}", {"A": -1.0 - version, "B": -9.0}, "A")])


def snapshots(ws: Workspace, version: int) -> None:
    kept = Snapshots(ws.path("models", "snapshots"), provenance("apply", {}, {}))
    kept.save(1 + version, {}, [("weight", np.full(4, version, np.float32))])


def journal(ws: Workspace, version: int) -> None:
    ws.journal("mask", version=version)


def request(ws: Workspace, version: int) -> None:
    write_request(ws, ["ann", "berg"])


def page(ws: Workspace, version: int) -> None:
    with mock.patch.object(report, "_page", return_value=({}, [], b"page %d" % version)):
        report.write_report(ws)


def export(ws: Workspace, version: int) -> None:
    """Of a file, and of a folder."""

    def writer(ws: Any, found: Any, path: Path, progress: Any) -> dict[str, Any]:
        if path.suffix:
            write_bytes(path, bytes([version]) * 100)
        else:
            write_bytes(path / "a", bytes([version]))
            write_bytes(path / "below" / "b", bytes([version]))
        return {}

    module = SimpleNamespace(write=writer)
    with mock.patch("importlib.import_module", return_value=module):
        for format in ("official", "lm-eval"):
            chosen = mock.Mock(writer="module:write", suffix=FORMATS[format].suffix)
            path = ws.path("exports", "default" + FORMATS[format].suffix)
            _write(chosen, ws, mock.Mock(), path, True, SILENT)


def official_mask(ws: Workspace, version: int) -> None:
    """By torch, which hides why a file cannot be written."""
    mask(ws, version, 160)
    write_official(Mask.load(ws.mask_path("default")), ws.path("exports", "default.pt"), str)


ALONE = (saliency, mask, checkpoint, scores, columns, snapshots, request)
"""Writers of one artifact and nothing else: where one fails, all is as it was."""
WRITERS = (*ALONE, page, export, official_mask)


def workspace(root: Path, writer: Callable[[Workspace, int], None]) -> Workspace:
    """With what the writer wrote before."""
    root.mkdir()
    ws = Workspace(root, Settings())
    writer(ws, 0)
    return ws


@pytest.mark.parametrize("how", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("writer", WRITERS, ids=lambda each: each.__name__)
def test_at_every_place_the_old_stays_or_the_new_is_whole(
    writer: Callable[[Workspace, int], None], how: str, tmp_path: Path
) -> None:
    undisturbed = workspace(tmp_path / "undisturbed", writer)
    before = verbs.state(undisturbed.root)
    writer(undisturbed, 1)
    after, faults, told = verbs.state(undisturbed.root), 0, set()
    for disk in every_place(tmp_path / "trial", how):
        shutil.rmtree(tmp_path / "trial", ignore_errors=True)
        ws = workspace(tmp_path / "trial", writer)
        try:
            with disk:
                writer(ws, 1)
        except MachineFault as fault:
            faults += 1
            told.add((fault.code, bool(fault.next_step)))
            now = verbs.state(ws.root)
            assert now == before if writer in ALONE else not verbs.mixed(now, before, after), disk.done
            writer(ws, 1)
        assert verbs.state(ws.root) == after, disk.done
        assert verbs.leftovers(ws.root) == [], disk.done
    assert faults >= (5 if how == "EIO" else 3)
    assert told == {(6, True)}


@pytest.mark.parametrize("how", ["EIO", "ENOSPC"])
def test_a_line_of_the_journal_is_whole_or_not_there(how: str, tmp_path: Path) -> None:
    for disk in every_place(tmp_path / "trial", how):
        shutil.rmtree(tmp_path / "trial", ignore_errors=True)
        ws = workspace(tmp_path / "trial", journal)
        with disk, contextlib.suppress(MachineFault):
            journal(ws, 1)
        found = [entry["version"] for entry in ws.journal_entries()]
        assert found in ([0], [0, 1])
        journal(ws, 2)
        assert [entry["version"] for entry in ws.journal_entries()] == [*found, 2]


@pytest.mark.parametrize("command", ["patch"])
def test_promise_4_in_short(command: str) -> None:
    rows = writes.run(random.randrange(10**6), 1, print, (command,))
    assert [row for row in rows if not row.kept] == []


def test_promise_3_in_short() -> None:
    rows = kills.run(random.randrange(10**6), 1, print, ("saliency", "experiment"))
    assert [row for row in rows if not row.kept] == []
