"""The chain through the command line: documents, notes, exit codes, up to date, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsurgery import Mask, SaliencyMap
from mmsurgery.artifacts.tensors import read_header
from mmsurgery_cli.main import run

Command = Callable[..., Any]


@pytest.fixture
def chain(command: Command) -> Command:
    """The first three lines; done once, up to date afterwards."""
    assert command("mask", "--beta", "1", "--modules", "lm,connector", "--json").code == 0
    return command


def one_line(ran: Any, code: int) -> str:
    assert ran.code == code, ran
    lines = [line for line in ran.err.splitlines() if line.startswith("error[")]
    assert len(lines) == 1, ran.err
    assert lines[0].startswith(f"error[{code}]: ")
    assert "Traceback" not in ran.err
    return lines[0]


def test_saliency_then_up_to_date(command: Command, portraits: Path) -> None:
    first = command("saliency", "--set", "forget", "--json")
    assert first.code == 0
    manifest = (portraits / "saliency/forget_vqa/manifest.json").read_bytes()
    again = command("saliency", "--set", "forget", "--json")
    assert again.document[0]["up_to_date"] is True
    assert (portraits / "saliency/forget_vqa/manifest.json").read_bytes() == manifest
    assert SaliencyMap.load(portraits / "saliency/forget_vqa").units == 126


def test_mask_document_agrees_with_the_file(chain: Command, portraits: Path) -> None:
    document = chain("mask", "--beta", "1", "--modules", "lm,connector", "--json").document
    mask = Mask.load(portraits / "masks/default.safetensors")
    assert document["up_to_date"] is True
    assert document["density"] == mask.density()
    assert mask.density("group")["vision"] == 0.0
    assert set(read_header(portraits / "masks/default.safetensors").metadata) == {"mmsurgery"}


def test_other_settings_under_the_same_name_are_refused(chain: Command) -> None:
    line = one_line(chain("mask", "--beta", "2"), 4)
    assert "default" in line
    assert "--force" in line


def test_apply_verify_eval_diff(chain: Command, portraits: Path) -> None:
    applied = chain("apply", "--method", "mmunlearner", "--scope", "all", "--epochs", "1", "--name", "one", "--json")
    assert applied.code == 0
    moved = applied.document["moved"]
    assert sum(group["outside"] for group in moved.values()) == 0 < sum(group["inside"] for group in moved.values())
    assert applied.document["record"]["steps"]["done"] == applied.document["record"]["steps"]["planned"] == 32
    assert chain("verify", "one", "--json").document["ok"] is True

    scored = chain("eval", "one", "--json")
    record = json.loads((portraits / "evals/one.json").read_text())
    assert scored.document[0]["columns"] == record["columns"]
    items = [json.loads(line) for line in (portraits / "evals/one.items.jsonl").read_text().splitlines()]
    forget = [item for item in items if item["column"] == "forget_vqa"]
    assert record["columns"]["forget_vqa"]["n"] == len(forget) == 126
    assert record["columns"]["forget_vqa"]["correct"] == sum(item["correct"] for item in forget)

    document = chain("diff", "vanilla", "one", "--json").document
    mask = Mask.load(portraits / "masks/default.safetensors")
    assert document["n"] == mask.selected
    assert document["outside"] == 0
    assert np.sum(document["heatmap"]) == min(document["n"], document["changed"])
    for suffix in (".json", ".png", ".svg"):
        assert (portraits / f"diffs/vanilla..one{suffix}").stat().st_size > 100
    for arguments, following in ((["verify", "one"], "eval one"), (["eval", "one"], "report")):
        assert f"next: mmsurgery {following}" in chain(*arguments).out
    assert "next: mmsurgery verify one" in chain("diff", "vanilla", "one").out


def test_a_moved_weight_outside_the_mask_fails_the_claim(chain: Command, portraits: Path) -> None:
    assert chain("apply", "--method", "mmunlearner", "--scope", "all", "--epochs", "1", "--name", "two").code == 0
    weights = portraits / "models/two/model.safetensors"
    header = read_header(weights)
    name = next(n for n in sorted(header.tensors) if "vision_tower" in n)
    content = bytearray(weights.read_bytes())
    content[header.tensors[name].begin] ^= 1
    weights.write_bytes(content)
    one_line(chain("verify", "two"), 3)


def test_lora_under_a_mask(chain: Command) -> None:
    ran = chain("apply", "--method", "npo", "--mask", "default", "--lora-rank", "4", "--epochs", "1", "--name", "low")
    assert ran.code == 0
    assert "LoRA of rank 4 on " in ran.err
    assert "scope all: under LoRA the mask acts on the weights in every step" in ran.err
    assert "audited from its files: no weight outside the mask moved" in ran.out
    proof = chain("verify", "low", "--json").document
    assert proof["ok"] is True
    assert sum(group["outside"] for group in proof["groups"].values()) == 0
    assert proof["groups"]["lm"]["inside"] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["inspect", "default", "--png", "/nonexistent/x.png"], 2, "no folder /nonexistent"),
        (["inspect", "default", "--html", "/nonexistent/x.html"], 2, "no folder /nonexistent"),
        (["inspect", "default", "--with", "forget_vqa"], 2, "'forget_vqa' is no mask"),
        (["inspect", "vanilla", "--stability"], 2, "'vanilla' is no mask"),
        (["inspect", "vanilla", "--png", "x.png"], 2, "has no heatmap"),
        (["mask", "--modules", "lm.0-9", "--name", "x"], 2, "write lm.0-2"),
        (["inspect", "defualt"], 2, "did you mean 'default'"),
        (["mask", "--modules", "lm.99", "--name", "x"], 2, "nearest"),
        (["mask", "--modules", "brain", "--name", "x"], 2, "groups: vision, connector, lm"),
        (["mask", "--beta", "0", "--name", "x"], 2, "beta"),
        (["mask", "--beta", "1,0", "--name", "x"], 2, "beta"),
        (["mask", "--beta", "nan", "--name", "x"], 2, "beta"),
        (["mask", "--beta", "1", "--density", "0.1", "--name", "x"], 2, "not by both"),
        (["mask", "--per", "tensor", "--name", "x"], 2, "without a density"),
        (["mask", "--seed", "1", "--name", "x"], 2, "--control random"),
        (["mask", "--name", "../x"], 2, "../x"),
        (["mask", "--estimator", "dataset", "--no-measure", "--name", "x"], 2, "mmsurgery saliency"),
        (["mask", "--beta", "1e300", "--name", "x"], 5, "selects 0"),
        (["saliency", "--set", "forgot"], 2, "forget"),
        (["saliency", "--set", "forget", "--shard", "3/2"], 2, "shard"),
        (["apply", "--method", "gaa"], 2, "did you mean 'ga'"),
        (["apply", "--method", "ga", "--mask", "none_such"], 2, "none_such"),
        (["apply", "--method", "npo", "--reference", "reference"], 2, "mmsurgery train reference"),
        (["apply", "--method", "ga", "--retain-batch", "8"], 2, "takes no retain data"),
        (["apply", "--method", "ga", "--scope", "all"], 2, "none is given"),
        (["apply", "--method", "ga", "--epochs", "999999999"], 2, "steps, at most 1,000,000"),
        (["apply", "--method", "ga", "--protocol", "off"], 2, "did you mean 'official'"),
        (["apply", "--method", "ga", "--lora-modules", "lm"], 2, "--lora-rank 16"),
        (
            ["apply", "--method", "ga_diff", "--mask", "default", "--scope", "forget", "--lora-rank", "4"],
            2,
            "scope all",
        ),
        (["eval", "nobody"], 2, "nobody"),
        (["verify", "base"], 2, "trained from random weights"),
        (["verify", "nobody"], 2, "nobody"),
        (["diff", "vanilla", "nobody"], 2, "nobody"),
    ],
)
def test_mistakes_get_one_line(chain: Command, arguments: list[str], code: int, said: str) -> None:
    assert said in one_line(chain(*arguments), code)


def test_usage_errors_exit_2(command: Command) -> None:
    assert command("saliency").code == 2
    assert command("no-such-command").code == 2


def test_what_ranks_do_not_share_is_refused_under_a_launcher(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert "'status' runs in one process, not in 2" in one_line(command("status"), 2)
    for verb in (("saliency", "--set", "forget"), ("eval",)):
        assert "--plan is about one process, not about 2" in one_line(command(*verb, "--plan"), 2)


def test_no_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["status"]) == 2
    assert "next: mmsurgery init" in capfd.readouterr().err


def test_status_names_the_next_command(chain: Command) -> None:
    document = chain("status", "--json").document
    assert "default" in document["masks"]
    assert document["next_command"].startswith("mmsurgery ")


def test_fail_under_is_a_gate(chain: Command) -> None:
    assert chain("eval", "vanilla", "--fail-under", "retain_vqa=0.3").code == 0
    assert one_line(chain("eval", "vanilla", "--fail-under", "retain_vqa=0.999"), 1)


def test_damaged_saliency_is_refused(chain: Command, portraits: Path) -> None:
    file = next((portraits / "saliency/retain_qa").glob("*.h5"))
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        line = one_line(chain("mask", "--beta", "3", "--name", "broken"), 3)
        assert "saliency.h5" in line
        assert not (portraits / "masks/broken.safetensors").exists()
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize("what", ["weights", "configuration"])
def test_a_damaged_model_reaches_no_verb(chain: Command, portraits: Path, what: str) -> None:
    """Weights or configuration that are not those the run wrote are used by nothing."""
    file = portraits / "models/vanilla" / {"weights": "model.safetensors", "configuration": "config.json"}[what]
    whole = file.read_bytes()
    if what == "weights":
        damaged = whole[:-1] + bytes([whole[-1] ^ 1])
    else:
        damaged = whole.replace(b'"rms_norm_eps": 1e-06', b'"rms_norm_eps": 1e-05')
    assert damaged != whole
    try:
        file.write_bytes(damaged)
        for arguments in (
            ["saliency", "--set", "forget"],
            ["mask", "--beta", "3", "--name", "damaged"],
            ["apply", "--method", "ga", "--name", "damaged"],
            ["eval", "vanilla"],
            ["diff", "gold", "vanilla"] if (portraits / "models/gold").exists() else ["diff", "base", "vanilla"],
            ["verify", "vanilla"],
        ):
            line = one_line(chain(*arguments), 3)
            assert f"{what} " in line, arguments
            assert line.endswith("next: mmsurgery train vanilla --force"), arguments
    finally:
        file.write_bytes(whole)
