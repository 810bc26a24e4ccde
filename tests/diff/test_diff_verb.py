"""`diff` on a workspace: which models, which n, which mask; files, identity, refusals."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mmsurgery.artifacts.checkpoint import RUN_FILE, CheckpointFiles
from mmsurgery.artifacts.files import write_json
from mmsurgery.artifacts.mask import Mask, MaskParameter, pack
from mmsurgery.artifacts.tensors import read_header, read_tensor, write_safetensors
from mmsurgery.backbones.discovery import backbone
from mmsurgery.diff import diff, read_diff
from mmsurgery.diff import run as diff_run
from mmsurgery.errors import InputRefused, Mismatch, MissingArtifact
from mmsurgery.provenance import seal
from mmsurgery.settings import SETTINGS_FILE, Settings
from mmsurgery.unlearn.record import mask_identity, sealed
from mmsurgery.workspace import SILENT, Workspace
from mmsurgery_cli.main import run

sys.path.insert(0, str(Path(__file__).parents[1] / "checkers"))
import topn

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded

QUERY = "model.language_model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def workspace(tmp_path: Path, tiny_llava: Path) -> Workspace:
    workspace = Workspace(tmp_path / "ws", Settings())
    shutil.copytree(tiny_llava, workspace.model_dir("vanilla"))
    return workspace


@pytest.fixture
def model(workspace: Workspace) -> Callable[..., Path]:
    """`model(name, seed, mask=None)`: vanilla with noise on layer 1's query weights, and the run's record."""

    def make(name: str, seed: int, mask: Mask | None = None) -> Path:
        folder = workspace.model_dir(name)
        shutil.copytree(workspace.model_dir("vanilla"), folder)
        file = folder / "model.safetensors"
        header = read_header(file)
        arrays = {stored: read_tensor(file, info).copy() for stored, info in header.tensors.items()}
        (stored,) = (
            each for each in arrays if each.endswith("layers.1.self_attn.q_proj.weight") and "language" in each
        )
        arrays[stored] += np.random.default_rng(seed).normal(size=arrays[stored].shape).astype(np.float32)
        write_safetensors(file, arrays, header.metadata)
        inputs = {} if mask is None else {"mask": mask_identity(mask)}
        body = {
            "model": name, "method": "npo", "claim": "none", "start": "vanilla", "model_type": "llava",
            "model_sha256": CheckpointFiles(folder, backbone("llava").canonical).digest(),
            "steps": {}, "moved": {}, "mask": None if mask is None else "small",
            "provenance": {"inputs": inputs, "settings": {}},
        }  # fmt: skip
        write_json(folder / RUN_FILE, sealed(body))
        workspace.journal("apply", model=name)
        return folder

    return make


@pytest.fixture
def mask(workspace: Workspace, loaded_llava: Loaded) -> Callable[..., Mask]:
    """`mask(name, n)`: the first n of layer 1's query weights, saved."""

    def make(name: str, n: int) -> Mask:
        parameters = {}
        for each, parameter in loaded_llava.model.named_parameters():
            chosen = np.zeros(tuple(parameter.shape), bool)
            if each == QUERY:
                chosen.flat[:n] = True
            parameters[each] = MaskParameter(chosen.shape, loaded_llava.addresses[each], pack(chosen))
        made = Mask(
            rule="random", beta=None, estimator=None, mixture=None, modules="lm", parameters=parameters,
            base={"model_type": "llava", "model_sha256": ""}, provenance={},
        )  # fmt: skip
        made.write(workspace.mask_path(name))
        return made

    return make


def test_record_pictures_and_journal(workspace: Workspace, model: Callable[..., Path]) -> None:
    folder = model("npo", 1)
    result = diff(workspace)
    assert (result.before, result.after, result.up_to_date) == ("vanilla", "npo", False)
    assert result.path == workspace.path("diffs", "vanilla..npo.json")
    assert [p.name for p in result.pictures] == ["vanilla..npo.png", "vanilla..npo.svg"]
    assert result.pictures[0].read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in result.pictures[1].read_bytes()[:600]
    record = read_diff(result.path)
    assert record == result.record
    assert (record["schema"], record["kind"], record["before"], record["after"]) == (1, "diff", "vanilla", "npo")
    assert (record["n"], record["inside"], record["outside"], record["mask"]) == (1000, None, None, None)
    assert result.changed == record["changed"] == 32 * 32
    assert {entry["name"] for entry in record["top"]} == {QUERY}
    row, column = record["layers"].index("lm.1"), record["components"].index("attn.q")
    assert record["heatmap"][row][column] == 1000 == sum(map(sum, record["heatmap"]))
    assert [heatmap.title for heatmap in result.heatmaps] == ["vision 0%", "connector 0%", "lm 100%"]
    files = (workspace.model_dir("vanilla") / "model.safetensors", folder / "model.safetensors")
    assert topn.main(result.path, *files) == 0
    assert [entry["event"] for entry in workspace.journal_entries()] == ["apply", "diff"]


def test_after_is_the_last_applied_model_that_is_still_there(workspace: Workspace, model: Callable[..., Path]) -> None:
    with pytest.raises(MissingArtifact, match="no model was unlearned"):
        diff(workspace)
    for name in ("ga", "npo", "kl_min"):
        model(name, 1)
    shutil.rmtree(workspace.model_dir("kl_min"))
    assert diff(workspace).after == "npo"
    assert diff(workspace, after="ga").after == "ga"
    both = diff(workspace, "ga", "npo")
    assert (both.path.name, both.changed) == ("ga..npo.json", 0)


def test_n_is_the_count_of_the_models_mask_else_of_default(
    workspace: Workspace, model: Callable[..., Path], mask: Callable[..., Mask]
) -> None:
    mask("default", 77)
    model("npo", 1)
    record = diff(workspace).record
    assert (record["n"], record["mask"], record["inside"], record["outside"]) == (77, "default", 77, 1024 - 77)
    model("mmunlearner.small", 1, mask("small", 30))
    record = diff(workspace).record
    assert (record["n"], record["mask"], record["inside"], record["outside"]) == (30, "small", 30, 1024 - 30)
    assert len(record["top"]) == 30
    record = diff(workspace, top=5, list_=3, force=True).record
    assert (record["n"], len(record["top"]), record["inside"]) == (5, 3, 30)


def test_the_same_again_is_up_to_date_and_redraws_lost_pictures(
    workspace: Workspace, model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model("npo", 1)
    first = diff(workspace)
    before = {p.name: p.read_bytes() for p in first.path.parent.iterdir()}
    monkeypatch.setattr(diff_run, "compare", None)
    first.pictures[1].unlink()
    again = diff(workspace)
    assert again.up_to_date
    assert again.record == first.record
    assert {p.name: p.read_bytes() for p in first.path.parent.iterdir()} == before
    assert [entry["event"] for entry in workspace.journal_entries()] == ["apply", "diff"]


def test_another_diff_under_the_name_is_refused(workspace: Workspace, model: Callable[..., Path]) -> None:
    model("npo", 1)
    diff(workspace)
    with pytest.raises(
        Mismatch, match=r"vanilla..npo.json is a diff with other inputs \(list 1000 -> 3, top 1000 -> 5\)"
    ):
        diff(workspace, top=5, list_=3)
    assert diff(workspace, top=5, list_=3, force=True).record["n"] == 5
    shutil.rmtree(workspace.model_dir("npo"))
    model("npo", 2)
    with pytest.raises(Mismatch, match=r"other inputs \(after [0-9a-f]{12} -> "):
        diff(workspace, top=5, list_=3)


def test_a_mask_that_changed_since_is_refused(
    workspace: Workspace, model: Callable[..., Path], mask: Callable[..., Mask]
) -> None:
    model("mmunlearner.small", 1, mask("small", 30))
    mask("small", 31)
    with pytest.raises(Mismatch, match=r"mask 'small' has changed since 'mmunlearner.small' was made with it"):
        diff(workspace)
    workspace.mask_path("small").unlink()
    with pytest.raises(MissingArtifact, match="mask 'small'"):
        diff(workspace)


def test_models_by_path(workspace: Workspace, tiny_llava: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llava, tmp_path / "elsewhere")
    result = diff(workspace, after=str(tmp_path / "elsewhere"))
    assert (result.path.name, result.changed) == ("vanilla..elsewhere.json", 0)
    with pytest.raises(MissingArtifact, match="no model folder"):
        diff(workspace, after=str(tmp_path / "nowhere"))
    with pytest.raises(MissingArtifact, match="no model 'vanila'"):
        diff(workspace, "vanila", "vanilla")


def test_the_vanilla_model_of_another_workspace(workspace: Workspace, tmp_path: Path) -> None:
    other = tmp_path / "other" / "models" / "vanilla"
    shutil.copytree(workspace.model_dir("vanilla"), other)
    result = diff(workspace, after=str(other))
    assert (result.path.name, result.after, result.changed) == ("vanilla..other.vanilla.json", "other.vanilla", 0)
    assert diff(workspace, after=str(other)).up_to_date
    own = workspace.find_model(str(workspace.model_dir("vanilla")))
    assert own == ("vanilla", workspace.model_dir("vanilla").resolve())


@pytest.mark.parametrize("top", [2000, 10**30])
def test_more_than_differ_are_all_of_them(workspace: Workspace, model: Callable[..., Path], top: int) -> None:
    model("npo", 1)
    notes: list[str] = []

    class Notes(type(SILENT)):  # type: ignore[misc]
        def note(self, text: str) -> None:
            notes.append(text)

    result = diff(workspace, top=top, progress=Notes())
    assert notes == [f"only 1,024 weights differ: the heatmap counts all of them, not {top:,}"]
    assert sum(map(sum, result.record["heatmap"])) == 1024
    assert result.heatmaps[0].unit == "share in the top 1,024"
    assert diff(workspace, top=top).up_to_date


def test_up_to_date_needs_no_lock(
    workspace: Workspace, model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model("npo", 1)
    diff(workspace)
    monkeypatch.setattr(Workspace, "lock", lambda self: pytest.fail("locked"))
    assert diff(workspace).up_to_date


def test_a_damaged_diff_is_refused(workspace: Workspace, model: Callable[..., Path]) -> None:
    model("npo", 1)
    path = diff(workspace).path
    value = json.loads(path.read_text())
    value["changed"] += 1
    path.write_text(json.dumps(value))
    with pytest.raises(InputRefused, match="changed or damaged"):
        read_diff(path)
    with pytest.raises(InputRefused, match="changed or damaged"):
        diff(workspace)
    assert diff(workspace, force=True).changed == 1024


def test_weights_that_are_not_finite_leave_no_diff(workspace: Workspace, model: Callable[..., Path]) -> None:
    from mmsurgery.errors import UnusableData

    file = model("npo", 1) / "model.safetensors"
    info = next(info for name, info in read_header(file).tensors.items() if "q_proj" in name)
    data = bytearray(file.read_bytes())
    data[info.begin : info.begin + 4] = struct.pack("<f", float("nan"))
    file.write_bytes(data)
    (file.parent / RUN_FILE).unlink()  # a model from elsewhere; with its record it is refused before
    with pytest.raises(UnusableData, match=r"q_proj.* holds nan at flat index 0"):
        diff(workspace)
    assert not workspace.path("diffs").exists()


def test_nothing_heavy_is_imported(workspace: Workspace, model: Callable[..., Path]) -> None:
    import subprocess

    model("npo", 1)
    diff(workspace)
    code = (
        "import sys; from pathlib import Path; from mmsurgery.diff import diff\n"
        "from mmsurgery.settings import Settings; from mmsurgery.workspace import Workspace\n"
        f"assert diff(Workspace(Path({str(workspace.root)!r}), Settings())).up_to_date\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'h5py'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_relative_changes_are_drawn_when_asked_for(
    workspace: Workspace, model: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    model("npo", 1)
    first = diff(workspace)
    assert not (first.path.parent / "relative").exists()
    counts = [picture.read_bytes() for picture in first.pictures]
    result = diff(workspace, relative=True)
    assert result.up_to_date
    assert [p.relative_to(workspace.path("diffs")).as_posix() for p in result.pictures] == [
        "vanilla..npo.png", "vanilla..npo.svg", "relative/vanilla..npo.png", "relative/vanilla..npo.svg",
    ]  # fmt: skip
    drawn = [picture.read_bytes() for picture in result.pictures]
    assert drawn[:2] == counts
    assert b"||after - before|| / ||before||" in drawn[3]
    assert b"share in the top" not in drawn[3]
    row, column = result.record["layers"].index("lm.1"), result.record["components"].index("attn.q")
    assert result.record["relative"][row][column] == result.relative_heatmaps[-1].values[1, 0] > 0
    assert sum(value or 0 for values in result.record["relative"] for value in values) == pytest.approx(
        result.record["relative"][row][column]
    )
    (workspace.root / SETTINGS_FILE).write_text(workspace.settings.to_toml())
    capfd.readouterr()
    assert run(["-w", str(workspace.root), "diff", "--relative"]) == 0
    printed = capfd.readouterr().out
    assert "change relative to the weights before" in printed
    assert "||after - before|| / ||before||: 9 = " in printed
    assert "relative/vanilla..npo.png" in printed.replace("\n", "")
    assert "share in the top" not in printed
    assert run(["-w", str(workspace.root), "diff"]) == 0
    assert "share in the top" in capfd.readouterr().out


def test_a_diff_of_an_earlier_version_is_read_and_completed(workspace: Workspace, model: Callable[..., Path]) -> None:
    """Its counts are the same; what it lacks is added without --force."""
    model("npo", 1)
    result = diff(workspace)
    earlier = {key: value for key, value in result.record.items() if key not in ("relative", "changed_by_group")}
    write_json(result.path, seal(earlier))
    assert "relative" not in read_diff(result.path)
    assert read_diff(result.path)["heatmap"] == result.record["heatmap"]
    notes: list[str] = []

    class Notes(type(SILENT)):  # type: ignore[misc]
        def note(self, text: str) -> None:
            notes.append(text)

    again = diff(workspace, progress=Notes())
    assert not again.up_to_date
    assert "earlier version" in notes[0]
    assert read_diff(result.path) == result.record
    assert diff(workspace).up_to_date


def test_result_is_plain_json(workspace: Workspace, model: Callable[..., Path]) -> None:
    model("npo", 1)
    record: dict[str, Any] = diff(workspace).record
    assert json.loads(json.dumps(record, allow_nan=False)) == record
