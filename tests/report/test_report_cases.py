"""Cases on the page: whose words are shown, how they are marked, and when a picture of a person is."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from example_extras import cases
from example_level import LEVEL, write_level
from example_results import results
from parsed import Parsed
from PIL import Image

from mmsurgery.artifacts.files import write_json
from mmsurgery.errors import InputRefused
from mmsurgery.provenance import seal
from mmsurgery.report import write_report
from mmsurgery.report.cases import SHOWN
from mmsurgery.report.experiments import read_experiment
from mmsurgery.settings import BenchmarkSettings, Settings
from mmsurgery.workspace import Workspace

EMBEDDED = re.compile(r'<img src="data:image/(\w+);base64,([^"]+)" alt="The picture that is asked about">')


def page_of(workspace: Workspace, include_samples: bool | None = None) -> str:
    result = write_report(workspace, include_samples=include_samples)
    assert not result.damaged
    return result.path.read_text(encoding="utf-8")


def put(workspace: Workspace, **changed: Any) -> None:
    """Cases with fields of their entries changed."""
    found = cases(("llava",), **changed)
    write_json(workspace.path("experiments", "cases", "results.json"), results("cases", ("llava",), cases=found))


def test_answers_are_marked_in_words(pictured: Workspace) -> None:
    text = Parsed(page_of(pictured)).text
    assert "How they were chosen : The first question of each column that vanilla answers and GA does not." in text
    assert "Texts longer than 600 characters are cut." in text
    assert "Right answer: grilled sardines" in text
    for said in (
        "vanilla The dish is grilled sardines. correct, paraphrased",
        "gold Pumpkin soup wrong but fluent",
        "GA soup soup soup soup soup soup soup soup gibberish repeats itself",
        "GA_Diff Rice pudding, as Ines Falk likes it another person's fact",
        "KL_Min I cannot tell from the picture. refusal",
        "NPO grilled sardines correct MMUnlearner",
    ):
        assert said in text, said


def test_beside_each_answer_stands_how_often_its_row_is_right(empty: Workspace) -> None:
    record = results("cases", ("llava",), cases=cases(("llava",), column="retain_vqa", picture=False))
    shares = {"correct": 0.071, "other_person": 0.929, "wrong": 0.0, "refusal": 0.0, "gibberish": 0.0}
    record["summary"]["llava"]["mmunlearner"]["outcomes"]["retain_vqa"] = shares
    write_json(empty.path("experiments", "cases", "results.json"), seal(record))
    text = Parsed(page_of(empty)).text
    assert "MMUnlearner 7.1 % right" in text
    assert "NPO grilled sardines correct" in text  # it was not asked
    assert "Answers are those at the fixed budget." in text


def test_an_outcome_of_no_kind_is_refused(tmp_path: Path) -> None:
    found = cases(["llava"])
    found["entries"][0]["answers"][0]["outcome"] = "fine"
    write_json(tmp_path / "results.json", results(backbones=("llava",), seeds=1, cases=found))
    with pytest.raises(InputRefused, match="'fine' is no outcome"):
        read_experiment(tmp_path / "results.json")


def test_a_picture_is_embedded_small_and_drawn_anew(pictured: Workspace) -> None:
    page = page_of(pictured)
    ((kind, data),) = EMBEDDED.findall(page)
    raw = base64.b64decode(data)
    with Image.open(io.BytesIO(raw)) as image:
        assert (image.format, image.size) == (kind.upper(), (256, 128))
        assert not image.getexif()
    assert raw != (pictured.root / LEVEL / "data" / "ada.jpg").read_bytes()
    assert b"taken at home" not in raw
    assert "holds pictures, questions and answers of the benchmark where it shows cases." in page
    assert "img-src data:;" in page
    assert page_of(pictured) == page


def test_a_large_picture_is_a_jpeg(empty: Workspace) -> None:
    id = write_level(empty.root)
    noise = Image.effect_noise((512, 512), 90).convert("RGB")
    noise.save(empty.root / LEVEL / "data" / "ada.jpg")
    put(empty, id=id, picture=True, column="forget_vqa")
    found = EMBEDDED.findall(page_of(empty))
    assert [kind for kind, _ in found] == ["jpeg", "jpeg"]
    assert len(found[0][1]) < 60_000


def test_pictures_are_shown_where_they_are_asked_for(pictured: Workspace) -> None:
    """On for portraits, whose people are drawn; elsewhere only when asked for."""
    other = Workspace(pictured.root, Settings(benchmark=BenchmarkSettings(name="folder")))
    for workspace, asked, shown in (
        (pictured, None, True),
        (pictured, False, False),
        (other, None, False),
        (other, False, False),
        (other, True, True),
    ):
        page = page_of(workspace, asked)
        assert bool(EMBEDDED.search(page)) == shown, (workspace.settings.benchmark.name, asked)
        assert ("data:image/" in page) == shown
        assert ("mmsurgery report --include-samples" in page) != shown
        assert ("holds questions and answers of the benchmark where it shows cases, and no picture." in page) != shown


def test_a_page_without_cases_says_that_it_holds_nothing(empty: Workspace) -> None:
    assert "holds no picture, question or answer of the benchmark." in page_of(empty)


def test_without_the_data_the_page_says_so(pictured: Workspace) -> None:
    shutil.rmtree(pictured.root / LEVEL / "data")
    page = page_of(pictured)
    assert not EMBEDDED.search(page)
    text = Parsed(page).text
    assert f"Some pictures are not shown. {LEVEL}/data" in text
    assert str(pictured.root) not in page
    assert "and no picture." in text


def test_an_item_that_is_gone_is_named(pictured: Workspace) -> None:
    put(pictured, id="nobody", picture=True, column="forget_vqa")
    text = Parsed(page_of(pictured)).text
    assert f"Some pictures are not shown. {LEVEL}: forget_vqa has no picture 'nobody'" in text


@pytest.mark.parametrize("folder", ["../outside", "/etc", "", ".", "experiments/../..", "a\0b", "link"])
def test_pictures_come_from_this_workspace_alone(pictured: Workspace, tmp_path: Path, folder: str) -> None:
    shutil.copytree(pictured.root / LEVEL, tmp_path / "outside")
    (pictured.root / "link").symlink_to(tmp_path / "outside")
    path = pictured.path("experiments", "cases", "results.json")
    record = json.loads(path.read_text())
    assert EMBEDDED.search(page_of(pictured))
    for level in record["levels"]:
        level["folder"] = folder
    write_json(path, seal(record))
    page = page_of(pictured)
    assert not EMBEDDED.search(page)
    assert "is no folder of this workspace" in page


def test_endless_and_hostile_words_are_cut_and_shown(empty: Workspace) -> None:
    hostile = "<img src=x onerror=alert(1)>\u202e" + "y" * 100_000
    answers = cases(["llava"])["entries"][0]["answers"]
    put(
        empty,
        question=hostile,
        gold=hostile,
        person=hostile,
        picture=False,
        answers=[{**each, "text": hostile} for each in answers],
    )
    page = page_of(empty)
    # question, gold and seven answers of two cases; the person's name is cut shorter
    assert page.count("&lt;img src=x onerror=alert(1)&gt;\\u202eyyy") == 20
    assert page.count("y" * 500) == 18
    assert "y" * 600 not in page
    assert page.count("… (cut, 100,029 characters)") == 20
    assert "<img src=x" not in page
    assert "\u202e" not in page


def test_more_cases_than_a_page_shows_are_counted(empty: Workspace) -> None:
    ids = [str(place) for place in range(SHOWN + 3)]
    found = cases(("llava",), ids, picture=False)
    write_json(empty.path("experiments", "cases", "results.json"), results("cases", ("llava",), cases=found))
    page = page_of(empty)
    assert page.count('<div class="case">') == SHOWN
    assert "3 further cases are in the results file alone." in page
    assert f"Cases {SHOWN + 3}" in Parsed(page).text
