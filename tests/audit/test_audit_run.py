"""`audit` from nothing: what is written, what is used again, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audit_world import change, make

from mmsurgery.api import Workspace
from mmsurgery.audit import card, material, relearning
from mmsurgery.audit.choice import p_value
from mmsurgery.audit.judge import UNKNOWN, VERDICTS
from mmsurgery.audit.measured import Measured, Values
from mmsurgery.audit.probes import PROBES
from mmsurgery.audit.run import audit, read_audit
from mmsurgery.audit.subjects import DESTROYED, TRIO
from mmsurgery.data.samples import data_sha256
from mmsurgery.errors import InputRefused, Mismatch, MissingArtifact, UnusableData, UsageError
from mmsurgery.experiments.audits import audited
from mmsurgery.provenance import seal
from mmsurgery_cli.main import run

MODELS = ("vanilla", "gold", "npo", "base")
ORDER = ("vanilla", "gold", DESTROYED, "npo")
FEW = "quantisation,collateral"
Make = Callable[[str], Workspace]


class Notes:
    """Progress that keeps its notes, and stops at one."""

    def __init__(self, stop: str | None = None) -> None:
        self.notes: list[str] = []
        self.stop = stop

    def stage(self, what: str, total: int) -> Any:
        return contextlib.nullcontext(lambda amount: None)

    def note(self, text: str) -> None:
        self.notes.append(text)
        if text == self.stop:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_llava: Path, picture: Any, loads: list[str]) -> Workspace:
    """A workspace whose model was audited by every probe; read only."""
    workspace = make(tmp_path_factory.mktemp("whole"), tiny_llava, picture, MODELS)
    audit(workspace)
    return workspace


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, whole: Workspace) -> Make:
    """`few(name)`: a copy of it, with a card of two probes."""

    def copied(name: str) -> Workspace:
        root = tmp_path_factory.mktemp("few") / name
        shutil.copytree(whole.root, root)
        workspace = Workspace(root, whole.settings)
        audit(workspace, probes=FEW)
        return workspace

    return copied


def files(workspace: Workspace) -> dict[str, bytes]:
    folder = workspace.path("audits")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.json")}


def test_the_card(whole: Workspace) -> None:
    record = read_audit(whole.path("audits/npo.json"))
    assert list(record["probes"]) == sorted(PROBES)
    for key, probe in record["probes"].items():
        assert tuple(probe["models"]) == tuple(sorted(ORDER))
        assert {judged["verdict"] for judged in probe["models"].values()} <= set(VERDICTS)
        assert set(probe["trio"]) == {"reliable", *TRIO}
        for arm, means in probe["arms"].items():
            for model, mean in means.items():
                stored = json.loads(whole.path(f"audits/measured/{model}.{key}.json").read_bytes())
                values = stored["measured"]["arms"][arm]["values"]
                assert mean == pytest.approx(sum(values) / len(values), abs=1e-12)
                assert all(0 <= value <= 1 for value in values)
    assert set(files(whole)) == {"npo.json"} | {f"measured/{model}.{probe}.json" for model in ORDER for probe in PROBES}
    assert [entry["event"] for entry in whole.journal_entries()] == ["apply", "audit"]
    layers = {f"lm.{int(arm.split()[1]) - 1}": means for arm, means in record["probes"]["probing"]["arms"].items()}
    assert record["profile"] == layers
    assert record["rounding"]["int8"]["changed"] == record["rounding"]["nf4"]["changed"] > 0
    assert str(whole.root) not in whole.path("audits/npo.json").read_text()


def test_a_card_is_up_to_date_without_work(whole: Workspace, loads: list[str]) -> None:
    before, loads[:] = files(whole), []
    again = audit(whole)
    assert (again.up_to_date, loads, files(whole)) == (True, [], before)
    assert again.record == read_audit(whole.path("audits/npo.json"))


def test_interrupted_in_another_workspace_it_writes_the_same_bytes(
    whole: Workspace, tmp_path: Path, tiny_llava: Path, picture: Any, loads: list[str]
) -> None:
    workspace = make(tmp_path / "other", tiny_llava, picture, MODELS)
    with pytest.raises(KeyboardInterrupt):
        audit(workspace, progress=Notes(f"{DESTROYED}: paraphrase"))
    loads[:] = []
    assert not workspace.path("audits/npo.json").exists()
    done = files(workspace)
    assert len(done) == 7 + 7 + 2
    audit(workspace)
    assert "gold" not in loads
    assert files(workspace) == files(whole)
    assert {name: data for name, data in files(workspace).items() if name in done} == done


def test_a_card_that_is_gone_is_made_of_what_was_measured(few: Make, loads: list[str]) -> None:
    workspace = few("gone")
    before = files(workspace)
    workspace.path("audits/npo.json").unlink()
    loads[:] = []
    assert not audit(workspace, probes=FEW).up_to_date
    assert (loads, files(workspace)) == ([], before)


@pytest.mark.parametrize("damage", [b"", b"{}", b"changed"])
def test_a_damaged_measurement_is_made_again(few: Make, loads: list[str], damage: bytes) -> None:
    workspace = few("damaged")
    before, path = files(workspace), workspace.path("audits/measured/gold.quantisation.json")
    path.write_bytes(path.read_bytes().replace(b"0", b"1") if damage == b"changed" else damage)
    workspace.path("audits/npo.json").unlink()
    loads[:], progress = [], Notes()
    audit(workspace, probes=FEW, progress=progress)
    assert set(loads) == {"gold"}
    assert any("measuring again" in note for note in progress.notes)
    assert files(workspace) == before


def test_a_measurement_that_says_something_else_is_made_again(few: Make) -> None:
    workspace = few("lies")
    path = workspace.path("audits/measured/gold.quantisation.json")
    before = path.read_bytes()
    record = json.loads(before)
    for change_ in ({"arms": 1}, {"chance": {}}, {"kept": {"int8": {"ids": ["a"], "people": [], "values": []}}}):
        path.write_text(json.dumps(seal({**record, "measured": {**record["measured"], **change_}})))
        workspace.path("audits/npo.json").unlink()
        audit(workspace, probes=FEW)
        assert path.read_bytes() == before


def test_another_model_under_the_name_is_refused(few: Make, loads: list[str]) -> None:
    workspace = few("another")
    change(workspace.model_dir("npo"), 3)
    with pytest.raises(Mismatch, match="about other models") as caught:
        audit(workspace, probes=FEW)
    assert caught.value.next_step == "mmsurgery audit npo --force"
    loads[:] = []
    audit(workspace, probes=FEW, force=True)
    assert set(loads) == {"npo", "vanilla"}  # collateral asks vanilla whom people look like
    assert audit(workspace, probes=FEW).up_to_date


def test_what_probes_depend_on_besides_the_model(few: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = few("beside")
    measured: list[str] = []

    def counted(probe: Any) -> Any:
        def measure(subject: Any, *arguments: Any) -> Measured:
            measured.append(f"{subject.name} {probe.name}")
            values = Values(("a", "b"), ("p", "q"), (0.0, 1.0))
            return Measured({"arm": values}, {"arm": values}, {"arm": 0.5, "kept arm": 0.5})

        return dataclasses.replace(probe, measure=measure, version=99)

    for name in PROBES:
        monkeypatch.setitem(PROBES, name, counted(PROBES[name]))

    def again() -> set[str]:
        measured.clear()
        audit(workspace, force=True)
        return {each for each in measured if not each.startswith("npo")}

    references = {f"{model} {probe}" for model in TRIO for probe in PROBES}
    assert again() == references
    assert again() == set()
    rate = dataclasses.replace(workspace.settings.recipe, learning_rate=2e-3)
    workspace = Workspace(workspace.root, dataclasses.replace(workspace.settings, recipe=rate))
    measured.clear()
    assert not audit(workspace).up_to_date
    assert set(measured) == {f"{model} relearning" for model in ORDER}
    change(workspace.model_dir("base"), 7)
    assert again() == {f"{model} membership" for model in TRIO}
    change(workspace.model_dir("gold"), 7)
    assert again() == {f"gold {probe}" for probe in PROBES}
    change(workspace.model_dir("vanilla"), 7)
    assert again() == references - {f"gold {probe}" for probe in PROBES} | {"gold collateral"}


def test_fewer_probes_and_more(few: Make, loads: list[str]) -> None:
    workspace = few("fewer")
    assert set(audit(workspace, probes="collateral").record["probes"]) == {"collateral"}
    loads[:] = []
    assert list(audit(workspace, probes=FEW).record["probes"]) == ["quantisation", "collateral"]
    assert loads == []
    with pytest.raises(UsageError, match="no probe 'colateral'"):
        audit(workspace, probes="colateral")


def test_other_data(few: Make, tmp_path: Path) -> None:
    workspace = few("data")
    rows = workspace.data_dir / "rows.jsonl"
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(lines[:-1]))
    with pytest.raises(Mismatch, match=r"\(items\)"):
        audit(workspace, probes=FEW)
    rows.write_text("".join(lines))
    shutil.copytree(workspace.data_dir / "extra/held_out", tmp_path / "mine")
    assert audit(workspace, probes=FEW, held_out=tmp_path / "mine").up_to_date
    held_out = (tmp_path / "mine/rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "mine/rows.jsonl").write_text("".join(held_out[1:]))
    with pytest.raises(Mismatch, match=r"\(held_out\)"):
        audit(workspace, probes=FEW, held_out=tmp_path / "mine")
    with pytest.raises(MissingArtifact, match="no folder"):
        audit(workspace, held_out=tmp_path / "none")


def test_questions_beyond_those_that_are_asked_count(few: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likeness in facts is of all of them."""
    workspace = few("beyond")
    monkeypatch.setattr(material, "ASKED", 2)
    found = material.Material.of(workspace)
    assert found.digests["items"]["retain_vqa"] == data_sha256(workspace.items("retain_vqa"))


def test_without_gold_nothing_is_judged_until_there_is_one(few: Make, tmp_path: Path) -> None:
    workspace = few("alone")
    workspace.model_dir("gold").rename(tmp_path / "gold")
    workspace.path("audits/npo.json").unlink()
    progress = Notes()
    record = audit(workspace, probes="quantisation,collateral", progress=progress).record
    assert any("mmsurgery train gold" in note for note in progress.notes)
    assert any("no gold model" in each for each in record["unknown"])
    judged = record["probes"]["quantisation"]["models"]
    assert {each["verdict"] for each in judged.values()} <= {UNKNOWN, "collapsed"}
    assert record["probes"]["quantisation"]["trio"]["reliable"] is None
    (tmp_path / "gold").rename(workspace.model_dir("gold"))
    assert "gold" in audit(workspace, probes=FEW).record["probes"]["quantisation"]["models"]


def test_a_probe_that_fails_on_one_model_leaves_the_others(few: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = few("fails")
    original = PROBES["quantisation"]

    def failing(*models: str) -> None:
        def measured(subject: Any, *arguments: Any) -> Any:
            if subject.name in models:
                raise UnusableData(f"{subject.name} is not finite", "use another checkpoint")
            return original.measure(subject, *arguments)

        probe = dataclasses.replace(original, measure=measured, version=original.version + len(models))
        monkeypatch.setitem(PROBES, "quantisation", probe)

    failing(DESTROYED)
    record = audit(workspace, probes=FEW).record
    assert record["probes"]["quantisation"]["trio"]["destroyed"] is None
    assert "Quantisation, destroyed: destroyed is not finite" in record["unknown"]
    failing(DESTROYED, "npo")
    record = audit(workspace, probes=FEW).record
    assert list(record["probes"]) == ["collateral"]
    assert "Quantisation, npo: npo is not finite" in record["unknown"]
    assert record["rounding"] is None
    with pytest.raises(UnusableData, match="no probe can be tried on 'npo': destroyed is not finite"):
        audit(workspace, probes="quantisation")


def test_names_that_are_not_audited(few: Make) -> None:
    workspace = few("names")
    shutil.copytree(workspace.model_dir("npo"), workspace.model_dir(DESTROYED))
    with pytest.raises(UsageError, match="shuffled weights"):
        audit(workspace, DESTROYED)
    with pytest.raises(UsageError, match="base model"):
        audit(workspace, "base")
    elsewhere = shutil.copytree(workspace.model_dir("npo"), workspace.root / "else/vanilla")
    change(elsewhere, 5)
    result = audit(workspace, str(elsewhere), probes="collateral")
    assert (result.model, result.path.name) == ("else.vanilla", "else.vanilla.json")
    theirs = shutil.copytree(workspace.model_dir("gold"), workspace.root / "else/gold")
    kept = workspace.model_dir("gold").rename(workspace.root / "kept")
    with pytest.raises(UsageError, match="would be called 'gold', as the reference is"):
        audit(workspace, str(theirs), probes="collateral")
    kept.rename(workspace.model_dir("gold"))
    reference = audit(workspace, "gold", probes="collateral")
    assert set(reference.record["probes"]["collateral"]["models"]) == set(TRIO)
    assert audit(workspace, "vanilla", probes="quantisation").record["rounding"] is None


def test_a_model_of_another_family(few: Make, tmp_path: Path, tiny_qwen2_vl: Path) -> None:
    theirs = shutil.copytree(tiny_qwen2_vl, tmp_path / "theirs")
    record = audit(few("family"), str(theirs), probes=FEW).record
    assert record["rounding"] is None
    assert "Collateral, each person alone: 'theirs' has no record of a run" in record["unknown"]
    assert record["probes"]["quantisation"]["models"]["theirs"]["leak"]["n"] == 4


def test_nothing_to_ask(workspace: Workspace, loads: list[str]) -> None:
    rows = workspace.data_dir / "rows.jsonl"
    told = [
        line for line in rows.read_text().splitlines(keepends=True) if '"retain"' not in line or '"options"' not in line
    ]
    rows.write_text("".join(told))
    with pytest.raises(UnusableData, match="no questions about retained pictures"):
        audit(workspace, "vanilla")
    assert not workspace.path("audits").exists()


@pytest.mark.parametrize("damage", [b"{}", b"not JSON", b"changed"])
def test_a_damaged_card_is_refused(few: Make, damage: bytes) -> None:
    workspace = few("card")
    path = workspace.path("audits/npo.json")
    path.write_bytes(path.read_bytes().replace(b'"model":"npo"', b'"model":"mpo"') if damage == b"changed" else damage)
    for call in (lambda: read_audit(path), lambda: audit(workspace, probes=FEW)):
        with pytest.raises(InputRefused):
            call()
    audit(workspace, probes=FEW, force=True)
    assert read_audit(path)["model"] == "npo"
    path.unlink()
    with pytest.raises(MissingArtifact):
        read_audit(path)


# the command


def test_the_command(whole: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(whole.root)
    assert run(["audit", "npo"]) == 0
    shown = capfd.readouterr().out
    lines = shown.splitlines()
    titles = [line.split()[0] for line in lines[2:9]]
    assert titles == [probe.title for probe in PROBES.values()]
    assert max(map(len, lines[1:9])) <= 80
    for probe in PROBES.values():
        assert f"{probe.title.lower()}: {probe.asks}" in shown
    assert "unknown: attacks with gradients" in shown
    assert shown.splitlines()[-1] == "next: mmsurgery report"
    assert run(["audit", "npo", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == read_audit(whole.path("audits/npo.json"))


def test_exit_codes(few: Make, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    workspace = few("codes")
    monkeypatch.chdir(workspace.root)

    def code(*arguments: str) -> tuple[int, str, str]:
        ended = run(["audit", *arguments])
        captured = capfd.readouterr()
        return ended, captured.out, captured.err

    change(workspace.model_dir("npo"), 3)
    ended, out, err = code("npo", "--probes", FEW)
    assert (ended, out) == (4, "")
    assert "--force" in err
    assert code("npo", "--probes", FEW, "--force")[0] == 0
    workspace.path("audits/npo.json").write_text("{}")
    assert code("npo", "--probes", FEW, "--json")[:2] == (3, "")
    assert code("npo", "--probes", "none")[0] == 2
    assert code("nobody")[0] == 2
    assert code("npo", "--held-out", "nowhere")[0] == 2


def test_a_grid_is_told_of_every_way_that_could_have_been_the_worst(whole: Workspace) -> None:
    found = audited(whole, "npo", Notes())["probes"]
    for probe, said in found.items():
        kind, of = ("kept", "vanilla") if probe == "collateral" else ("arms", "gold")
        mine, theirs = (
            json.loads(whole.path(f"audits/measured/{model}.{probe}.json").read_bytes())["measured"][kind]
            for model in ("npo", of)
        )
        ways = said["ways"]
        assert ways["worst"] == {"collateral": "below", "membership": "from"}.get(probe, "above")
        assert set(ways["arms"]) == set(mine) == set(ways["chance"])
        for name, arm in ways["arms"].items():
            assert arm["people"] == mine[name]["people"]
            assert (arm["values"], arm["reference"]) == (mine[name]["values"], theirs[name]["values"])
        if said["arm"] is None:  # of what is kept nothing is: there is no worst of it
            assert (probe, said["verdict"]) == ("collateral", "collapsed")
            continue
        assert said["arm"] in ways["arms"]
        assert 0 < p_value([("v", ways)]) <= 1
    assert set(found) == set(PROBES)


def test_the_card_in_lines(whole: Workspace) -> None:
    record = read_audit(whole.path("audits/npo.json"))
    for model in ORDER:
        lines = card.lines(record, model)
        assert [line.probe for line in lines] == [probe.title for probe in PROBES.values()]
        assert all(len(line.cells) == len(card.HEADER) for line in lines)
        for key, line in zip(PROBES, lines, strict=True):
            judged = record["probes"][key]["models"][model]
            assert line.verdict == judged["verdict"]
            if judged["arm"] and record["probes"][key]["arms"]:
                assert line.model == record["probes"][key]["arms"][judged["arm"]][model]
                assert line.n == judged["leak"]["n"]


def test_a_damaged_record_is_refused_before_anything_is_measured(few: Make, loads: list[str], tiny_llava: Path) -> None:
    workspace = few("record")
    (workspace.model_dir("npo") / "mmsurgery-run.json").write_text("{}")
    loads.clear()
    with pytest.raises((InputRefused, Mismatch)):
        audit(workspace, "npo", probes="probing", force=True)
    assert loads == []


def test_an_attack_that_diverges_leaves_the_others(few: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, attack = few("diverges"), relearning._attack

    def diverging(loaded: Any, shown: Any, asked: Any, how: str, *rest: Any) -> Any:
        if how == "LoRA":
            raise UnusableData("step 3: the train loss is nan", "lower the learning rate")
        return attack(loaded, shown, asked, how, *rest)

    monkeypatch.setattr(relearning, "_attack", diverging)
    record = audit(workspace, probes="relearning", force=True).record
    probe = record["probes"]["relearning"]
    assert "facts, LoRA" not in probe["arms"]
    assert "facts, full" in probe["arms"]
    assert any("facts, LoRA: step 3" in each for each in record["unknown"])
