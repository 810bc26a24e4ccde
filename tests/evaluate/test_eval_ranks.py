"""Two ranks score as one process does: the same records, of both families, under every protocol."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmsurgery.api import open_workspace
from mmsurgery.artifacts.files import read_json
from mmsurgery.data.samples import Item
from mmsurgery.evaluate import evaluate, records, scorer
from mmsurgery.evaluate.scorer import share
from mmsurgery.evaluate.unfinished import Unfinished
from mmsurgery.ranks import Ranks
from mmsurgery.start import initialise
from mmsurgery.workspace import Workspace

sys.path.insert(0, str(Path(__file__).parents[1]))
from ranks_pair import launched

PROTOCOLS = ("likelihood", "official", "open")
FAMILIES = ("tiny_llava", "tiny_qwen2_vl")
FACTS = ("The city is oslo .", "The city is lisbon .", "soup", "Anna Berg")
ASKED = ("What is the city of this person ?", "Which food ?", "What is this ?")

EVALUATE = """
import sys
from mmsurgery.errors import UnusableData
from mmsurgery.evaluate import scorer
from mmsurgery.ranks import Ranks
from mmsurgery_cli.main import run
commands, failing = sys.argv[1:-1], sys.argv[-1]
for command in commands:
    assert run(command.split("|")) == 0, command
if Ranks.here().rank == 1:
    def refuse(*arguments, **options):
        raise UnusableData("item x cannot be scored")
    scorer.score = refuse
sys.exit(run(failing.split("|")))
"""
"""Commands that pass, and one that fails on the second rank."""


def test_shares_keep_pictures_together_and_cover_all_once() -> None:
    pictures = [b"1", None, b"2", b"1", None, b"3", b"2", None, b"1"]
    items = [Item(f"i{n}", "p", "?", column="c", gold="A", image_bytes=picture) for n, picture in enumerate(pictures)]
    for count in range(1, 9):
        shares = [share(Ranks(rank, count, rank), items) for rank in range(count)]
        assert sorted(place for places in shares for place in places) == list(range(9))
        assert all(places == sorted(places) for places in shares)
        for picture in (b"1", b"2"):
            assert sum(any(pictures[place] == picture for place in places) for places in shares) == 1
    assert [len(share(Ranks(rank, 3, rank), items)) for rank in range(3)] == [4, 3, 2]


def double(source: Path, folder: Path) -> Path:
    """A checkpoint in float64."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(source, folder)
    file = folder / "model.safetensors"
    save_file({name: value.astype("float64") for name, value in load_file(file).items()}, file, {"format": "pt"})
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"float32"', '"float64"'))
    return folder


def workspace(root: Path, model: Path, picture: Callable[..., bytes]) -> Workspace:
    """People to forget and to keep, three questions about some of their pictures and one without."""
    rows: list[dict[str, Any]] = []
    later: list[tuple[int, dict[str, Any]]] = []
    (root / "data").mkdir(parents=True)
    for number in range(5):
        person = {"role": "forget" if number < 2 else "retain", "person": f"p{number}"}
        (root / "data" / f"{number}.png").write_bytes(picture(number))
        shown = {**person, "image": f"{number}.png"}
        options = [*FACTS[number % 4 :], *FACTS[: number % 4]]
        rows.append({**shown, "question": ASKED[0], "answer": FACTS[0]})
        for turn, question in enumerate(ASKED[: 1 + number % 3]):
            later.append((turn, {**shown, "question": question, "answer": options[0], "options": options}))
        rows.append({**person, "question": "Which city ?", "answer": FACTS[0], "options": list(FACTS[:2])})
    rows += [row for _, row in sorted(later, key=lambda pair: pair[0])]  # of one picture, then of the next, and again
    (root / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    initialise(root / "ws", benchmark="folder", data=str(root / "data"), vanilla=str(model))
    return open_workspace(root / "ws")


def interrupted(ws: Workspace) -> Any:
    """Scored up to its second column; one kept score is marked."""
    true, calls = scorer.score, []

    def once(loaded: Any, items: Any, **options: Any) -> Any:
        calls.append(items)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return true(loaded, items, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scorer, "score", once)
        with pytest.raises(KeyboardInterrupt):
            evaluate(ws)
    folder = ws.path("evals", ".scoring", "vanilla")
    (column,) = (file.stem for file in folder.iterdir() if file.name != "origin.json")
    kept = Unfinished(folder, pytest.fail)
    scores = kept.scores(column)
    assert scores is not None
    scores[0].options["A"] = -100.0
    kept.keep_scores(column, scores)
    return column


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """Workspaces scored by two ranks, what these printed, and the marked column."""
    found = {}
    for family in FAMILIES:
        root = tmp_path_factory.mktemp(family)
        ws = workspace(
            root, double(request.getfixturevalue(family), root / "model"), request.getfixturevalue("picture")
        )
        shutil.copytree(ws.root, root / "alone")
        found[family] = ws, open_workspace(root / "alone")
    column = interrupted(found[FAMILIES[1]][0])
    commands = [f"-w|{ws.root}|eval|--protocol|{name}" for ws, _ in found.values() for name in PROTOCOLS]
    commands.append(f"{commands[0]}|--json")
    ended = launched(EVALUATE, *commands, f"{commands[0]}|--subset|4")
    return found, ended, column


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_two_ranks_write_what_one_process_does(both: Any, family: str, protocol: str) -> None:
    found, ended, marked = both
    together, alone = found[family]
    (result,) = evaluate(alone, protocol=protocol)
    path = together.eval_path("vanilla", protocol)
    assert path.exists(), ended
    record, expected = read_json(path), read_json(result.path)
    assert record["provenance"].pop("ranks") == 2
    for each in (record, expected):
        assert each["provenance"].pop("seal")
        each["items"].pop("sha256")
    resumed = protocol == "likelihood" and family == FAMILIES[1]
    if not resumed:
        assert record == expected
    assert set(record["columns"]) == {"forget_vqa", "forget_qa", "retain_vqa", "retain_qa"}
    ours, theirs = records.read_items(path), records.read_items(result.path)
    for column, items in theirs.items():
        for one, other in zip(ours[column], items, strict=True):
            if protocol == "likelihood":
                if resumed and column == marked and one is ours[column][0]:
                    assert one.options.pop("A") == -100.0  # of the interrupted run, which went on
                    other.options.pop("A")
                assert one.options == pytest.approx(other.options, abs=1e-12, rel=0)
                other.options.update(one.options)
            assert one == other


def test_the_first_rank_speaks_alone(both: Any) -> None:
    _, (first, second), _ = both
    assert "accuracy in %" in first.out
    assert second.out == ""
    assert json.loads(first.out[first.out.index("\n[") :])[0]["up_to_date"] is True
    assert "no test row" not in second.err


def test_a_rank_that_cannot_score_ends_the_evaluation(both: Any) -> None:
    found, (first, second), _ = both
    assert first.code == 6, first
    assert "error[6]: rank 1 of 2 failed: item x cannot be scored - next" in first.err
    assert second.code == 5, second
    assert "error[5]: item x cannot be scored" in second.err
    ws = found[FAMILIES[0]][0]
    assert not ws.eval_path("vanilla", subset=4).exists()
    with ws.lock():
        pass
