"""`--plan`: a table or one document, exit code 0, and nothing done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COMMANDS = {
    "saliency": ["saliency", "--set", "forget,retain_qa", "--estimator", "batch"],
    "apply": ["apply", "--method", "npo", "--epochs", "1", "--name", "planned"],
    "eval": ["eval", "vanilla", "--subset", "2"],
    "diff": ["diff", "base", "vanilla"],
}


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_plan_is_printed_and_nothing_is_made(portraits: Path, command: Callable[..., Any], verb: str) -> None:
    before = files(portraits)
    ran = command(*COMMANDS[verb], "--plan")
    assert ran.code == 0
    assert f"plan of {verb}: model '" in ran.out
    assert "nothing is done" in ran.out
    heads = [line.split(" ")[0] for line in ran.out.splitlines()]
    for row in ("passes", "memory", "disk", "time", *(() if verb == "diff" else ("samples",))):
        assert row in heads
    assert files(portraits) == before


def test_a_plan_as_a_document(command: Callable[..., Any]) -> None:
    ran = command(*COMMANDS["apply"], "--plan", "--json")
    assert ran.code == 0
    plan = ran.document
    assert plan["verb"] == "apply"
    assert plan["samples"] == {"forget_vqa": 126}
    assert plan["passes"]["backward"] == 126
    assert plan["memory_total"] == sum(plan["memory"].values())
    assert plan["disk_total"] == sum(plan["disk"].values())
    assert plan["memory"]["moments"] == 8 * plan["model"]["parameters"]


def test_a_wrong_argument_is_refused_as_without_plan(command: Callable[..., Any]) -> None:
    ran = command("apply", "--method", "npo", "--scope", "all", "--plan")
    assert ran.code == 2
    assert "scope all is about a mask" in ran.err


def test_a_budget_chooses_the_layout(command: Callable[..., Any]) -> None:
    plain = command(*COMMANDS["apply"], "--plan", "--json").document
    assert next(iter(plain["layouts"].values())) == plain["memory_total"]
    least = min(plain["layouts"].values())
    tight = command(*COMMANDS["apply"], "--plan", "--json", "--memory", f"{least + 1}").document
    assert tight["memory_total"] == least < plain["memory_total"]
    assert command(*COMMANDS["apply"], "--plan", "--memory", "20GiB").out.count("fits") == 3 * len(plain["layouts"])
    refused = command(*COMMANDS["apply"], "--memory", "1MB")
    assert refused.code == 6
    assert "the budget is 0.0010 GB - next: give --memory" in refused.err


ANCHORED = ("apply", "--method", "anchored_ascent", "--epochs", "1", "--plan")


def test_what_a_method_sees_besides_is_named_by_its_options(
    command: Callable[..., Any], tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    sizes = ("--batch-size", "63", "--retain-batch", "5", "--setting", "anchors=3", "--setting", "text=2")
    ran = command(*ANCHORED, "--anchors", str(tmp_path), *sizes, "--json")
    assert ran.code == 0, ran.err
    # 126 samples to forget in two steps
    assert ran.document["samples"]["anchor_vqa"] == 8 * 7
    assert ran.document["passes"]["backward"] == 126 + 2 * (5 + 3 + 2)
    own = command(*ANCHORED, "--json").document
    assert own["samples"]["anchor_vqa"] == 400 * 7
    assert own["passes"]["backward"] == 126 + 11 * (16 + 16 + 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--setting", "weight"], "setting 'weight' is not NAME=NUMBER"),
        (["--setting", "beta=1"], "no setting of method anchored_ascent 'beta'"),
        (["--protocol", "official"], "takes all its terms in one step"),
        (["--setting", "anchors=0", "--anchors", "."], "takes no anchor pictures"),
    ],
)
def test_options_that_have_no_meaning_for_a_method(command: Callable[..., Any], options: list[str], words: str) -> None:
    ran = command(*ANCHORED, *options)
    assert (ran.code, words in ran.err) == (2, True), ran.err
