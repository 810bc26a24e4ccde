"""How scores under the official protocol are shown, and what `eval` refuses before it scores."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mmsurgery.evaluate import EvalResult
from mmsurgery.settings import SETTINGS_FILE, Settings
from mmsurgery_cli.main import run
from mmsurgery_cli.show import chain as show


def shown(results: list[EvalResult]) -> list[str]:
    console = Console(file=io.StringIO(), width=100)
    for line in show.scored(results):
        console.print(line)
    file: Any = console.file
    return [" ".join(line.split()) for line in file.getvalue().splitlines()]


def test_official_scores_are_a_table_per_task() -> None:
    interval = {"protocol": "official", "ci95": [0.1, 0.3]}
    columns: dict[str, dict[str, Any]] = {
        "forget_vqa": {**interval, "n": 126, "correct": 28, "accuracy": 28 / 126, "chance": 0.25, "unparsed": 0},
        "forget_vqa.cloze": {**interval, "n": 12, "correct": 3, "accuracy": 0.25, "chance": None, "whole_words": 0.2},
        "forget_vqa.generation": {**interval, "n": 6, "rouge_l": {"f1": 0.834, "recall": 0.9}},
    }
    remarks = {
        "forget_vqa": ["answers A to all 126 items: so"],
        "forget_vqa.cloze": ["all items are about one person", "answers A to all 12 items: so"],
    }
    lines = shown([EvalResult("vanilla", Path(), columns, remarks, False)])
    heads = [number for number, line in enumerate(lines) if line.startswith("model")]
    texts = [lines[start:stop] for start, stop in zip(heads, [*heads[1:], None], strict=True)]
    assert {"vanilla 22.2", "10-30", "n 126", "chance 25.0"} <= set(texts[0])
    assert {"vanilla 25.0", "10-30", "n 12"} <= set(texts[1])
    assert {"vanilla 83.4", "r 90.0", "10-30", "n 6"} <= set(texts[2])
    assert not any("chance" in line for text in texts[1:] for line in text)
    title = " ".join(lines)  # as wide as its table
    for part in ("accuracy in % and its 95 %", "official, cloze", "F1 of ROUGE-L (r recall)", "official, generation"):
        assert title.count(part) == 1 + (part.startswith("accuracy"))
    assert lines[-3:] == [
        "vanilla, Forget VQA: answers A to all 126 items: so (and so 1 more: see --json)",
        "vanilla, Forget VQA cloze: all items are about one person",
        "next: mmsurgery saliency --set forget",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--fail-under", "retain_vqa"], "'retain_vqa' is no gate"),
        (["--fail-under", "retain_vqa=90"], "'retain_vqa=90' is no gate"),
        (["--protocol", "offical"], "did you mean 'official'"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(
    options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before models and data are looked for, which this workspace lacks."""
    (tmp_path / SETTINGS_FILE).write_text(Settings().to_toml())
    monkeypatch.chdir(tmp_path)
    assert run(["eval", *options]) == 2
    assert said in capfd.readouterr().err
