"""One-shot: demonstrations byte for byte, whose they are, and that every picture has its place."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_official import BLANK, LISTED, MLLMU, QWEN2_VL_TEMPLATE, item

from mmsurgery.data.samples import Item
from mmsurgery.errors import InputRefused, UnusableData, UsageError
from mmsurgery.evaluate import asked as asked_module
from mmsurgery.evaluate.asked import what_is_asked
from mmsurgery.evaluate.asking import ASKINGS, asking_of
from mmsurgery.evaluate.demonstrations import chosen, scored
from mmsurgery.evaluate.official import answers
from mmsurgery.evaluate.protocols import Protocol
from mmsurgery.settings import Settings
from mmsurgery.workspace import SILENT, Workspace

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded

SHOWN = "Question: Where ?\nA: soup\nB: rice\nC: oslo\nD: lisbon\nCorrect Answer: B\n"
FILLED = f"Earns [Blank] a year.\n{BLANK}\nCorrect Answer: soup\n"
TAIL = {
    "classification": f"Where ?\n{LISTED}",
    "cloze": f"Earns [Blank] a year.\n{BLANK}",
}
LLAVA = {
    ("classification", True): f"USER: <image>\n{SHOWN}" * 2 + f"USER: <image>\n{TAIL['classification']}\nASSISTANT:",
    ("classification", False): f"USER:\n{SHOWN}" * 2 + f"USER:\n{TAIL['classification']}\nASSISTANT:",
    # no blank after USER: where a picture's cloze is demonstrated
    ("cloze", True): f"USER:<image>\n{FILLED}" * 2 + f"USER: <image>\n{TAIL['cloze']}\nASSISTANT:",
    ("cloze", False): f"USER:\n{FILLED}" * 2 + f"USER:\n{TAIL['cloze']}\nASSISTANT:",
}
_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
_HEAD = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
_END = "<|im_end|>\n<|im_start|>assistant\n"
QWEN2_VL = {
    # the original pastes these as text with one place for six pictures; here each has its own
    ("classification", True): f"{_HEAD}{_PICTURE}{SHOWN}{_PICTURE}{SHOWN}{_PICTURE}\n{TAIL['classification']}{_END}",
    ("classification", False): LLAVA["classification", False],
    ("cloze", True): f"{_HEAD}{_PICTURE}{FILLED}{_PICTURE}{FILLED}{_PICTURE}\n{TAIL['cloze']}{_END}",
    ("cloze", False): f"{_HEAD}{FILLED}{FILLED}{TAIL['cloze']}{_END}",
}


@pytest.mark.parametrize("task", ["classification", "cloze"])
@pytest.mark.parametrize("pictured", [True, False], ids=["image", "text"])
def test_demonstrations_are_the_benchmarks(
    task: str, pictured: bool, loaded_llava: Loaded, loaded_qwen2_vl: Loaded
) -> None:
    asked = item(task, b"" if pictured else None)
    solved = [MLLMU.solved(asked)] * 2
    assert MLLMU.prompt(loaded_llava, asked, MLLMU.wording(asked), solved) == LLAVA[task, pictured]
    published = copy.copy(loaded_qwen2_vl.processor)
    published.chat_template = QWEN2_VL_TEMPLATE
    qwen = dataclasses.replace(loaded_qwen2_vl, processor=published)
    assert MLLMU.prompt(qwen, asked, MLLMU.wording(asked), solved) == QWEN2_VL[task, pictured]


def test_clear_lists_options_and_asks_for_no_letter(loaded_llava: Loaded, loaded_qwen2_vl: Loaded) -> None:
    clear = ASKINGS["clear"]
    choice = clear.wording(item("classification", b""))
    assert choice == "Where ?\nA. soup\nB. rice\nC. oslo\nD. lisbon\n"
    assert clear.wording(item("generation")) == "Where ?"
    published = copy.copy(loaded_qwen2_vl.processor)
    published.chat_template = QWEN2_VL_TEMPLATE
    qwen = dataclasses.replace(loaded_qwen2_vl, processor=published)
    assert clear.prompt(qwen, item("classification", b""), choice, []) == f"{_HEAD}{_PICTURE}{choice}{_END}"
    assert clear.prompt(qwen, item("generation"), "Where ?", []) == f"{_HEAD}Where ?{_END}"
    assert clear.prompt(loaded_llava, item("classification", b""), choice, []) == f"USER: <image>\n{choice} ASSISTANT:"
    assert clear.prompt(loaded_llava, item("generation"), "Where ?", []) == "USER: Where ? ASSISTANT:"
    assert not clear.demonstrated("forget_vqa", "classification")


def test_a_benchmark_without_a_way_of_its_own_is_asked_in_the_chat_template(loaded_llava: Loaded) -> None:
    chat = asking_of(object())
    asked = item("classification", b"")
    prompt = chat.prompt(loaded_llava, asked, chat.wording(asked), [])
    wording = f"Where ?\n{LISTED}"
    assert prompt == loaded_llava.backbone.render(loaded_llava.processor, wording, None, image=True)


@pytest.mark.parametrize("family", ["loaded_llava", "loaded_qwen2_vl"])
def test_pictures_of_demonstrations_reach_the_model(
    family: str, request: pytest.FixtureRequest, picture: Callable[..., bytes]
) -> None:
    from test_official import reaching

    loaded = reaching(request.getfixturevalue(family), 512)
    shown = [item("classification", picture(seed), id=f"d{seed}", person="d") for seed in (1, 2)]
    asked = [item("classification", picture(3), id="a"), item("classification", picture(4), id="b")]
    together = answers(loaded, asked, MLLMU, demonstrations=shown, budget=100_000)
    assert answers(loaded, asked, MLLMU, demonstrations=shown, budget=1) == together
    calls: list[int] = []
    true = type(loaded.backbone).prompts

    class Counting(type(loaded.backbone)):  # type: ignore[misc]
        def prompts(self, processor: Any, questions: Any, **options: Any) -> Any:
            batch = true(self, processor, questions, **options)
            if "shown" not in options:  # for its picture alone
                return batch
            tokens = int((batch["input_ids"] == loaded.model.config.image_token_id).sum())
            calls.append(tokens)
            assert [[each.id for each in row] for row in options["shown"]] == [["d1", "d2", q.id] for q in questions]
            return batch

    counting = dataclasses.replace(loaded, backbone=Counting())
    assert answers(counting, asked, MLLMU, demonstrations=shown, budget=1) == together
    alone = loaded.backbone.prompts(loaded.processor, [dataclasses.replace(asked[0], question="w")])
    per_picture = int((alone["input_ids"] == loaded.model.config.image_token_id).sum())
    assert set(calls) == {3 * per_picture}


def test_a_prompt_without_a_place_for_each_picture_is_refused(
    loaded_llava: Loaded, picture: Callable[..., bytes]
) -> None:
    asked = item("classification", picture(1))
    with pytest.raises(InputRefused, match="prompt of sample i has 1 places for 2 pictures"):
        loaded_llava.backbone.prompts(
            loaded_llava.processor, [asked], texts=["USER: <image> w"], shown=[[asked, asked]]
        )


# whose they are


def columns() -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = {}
    for column, people in {
        "forget_vqa": "fg",
        "retain_vqa": "rst",
        "retain_qa": "rst",
        "forget_qa": "fg",
        "realworld_vqa": "c",
    }.items():
        for task in ("classification", "cloze", "generation"):
            name = column if task == "classification" else f"{column}.{task}"
            found[name] = [
                dataclasses.replace(item(task, id=f"{name}/{p}{n}", person=p), column=name)
                for p in people
                for n in range(2)
            ]
    return found


def test_one_retain_person_demonstrates_and_is_not_scored() -> None:
    asked = columns()
    found = chosen(asked, Protocol("official", 1), MLLMU)
    (person,) = set(found.people.values())
    assert person in "rst"
    # celebrities are asked clozes only after demonstrations, open questions never
    assert sorted(found.people) == sorted(
        [*("forget_vqa", "retain_vqa", "retain_qa", "forget_qa"), *(f"{c}.cloze" for c in
         ("forget_vqa", "retain_vqa", "retain_qa", "forget_qa", "realworld_vqa"))]
    )  # fmt: skip
    assert [each.id for each in found.items["forget_vqa.cloze"]] == [f"retain_vqa.cloze/{person}{n}" for n in (0, 1)]
    assert [each.id for each in found.items["forget_qa"]] == [f"retain_qa/{person}{n}" for n in (0, 1)]
    left = scored(asked["retain_vqa"], found.people["retain_vqa"])
    assert {each.person for each in left} == set("rst") - {person}
    assert len(scored(asked["retain_vqa.generation"], found.people.get("retain_vqa.generation"))) == 6
    assert chosen(dict(reversed(asked.items())), Protocol("official", 1), MLLMU).people == found.people


def test_the_official_draw_shows_a_forget_person_only_when_asked_to() -> None:
    asked = columns()
    found = chosen(asked, Protocol("official", 1, "scored"), MLLMU)
    assert found.people["forget_vqa"] in "fg"
    assert found.people["realworld_vqa.cloze"] == "c"
    assert {each.person for each in found.items["forget_vqa"]} == {found.people["forget_vqa"]}
    assert {each.column for each in found.items["forget_vqa"]} == {"forget_vqa"}


def test_a_column_about_the_demonstrated_person_alone_is_refused_before_anything_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {name: items for name, items in columns().items() if "." not in name}
    found["retain_vqa"] = [each for each in found["retain_vqa"] if each.person == "r"]
    found["retain_qa"] = [each for each in found["retain_qa"] if each.person == "r"]

    class Bench:
        name = asking = "mllmu-bench"

        def columns(self, source: Any) -> tuple[str, ...]:
            return tuple(found)

        def items(self, source: Any, column: str, task: str = "classification") -> list[Item]:
            return found[column] if task == "classification" else []

    monkeypatch.setattr(asked_module, "benchmark", lambda name: Bench())
    with pytest.raises(UnusableData, match="retain_vqa, retain_qa: nobody is left to be asked about"):
        what_is_asked(Workspace(tmp_path, Settings()), Protocol("official", 1), None, None, SILENT)


def test_nobody_to_demonstrate() -> None:
    asked = {name: items for name, items in columns().items() if not name.startswith("retain_qa")}
    with pytest.raises(UnusableData, match="no retain person has questions of all kinds"):
        chosen(asked, Protocol("official", 1), MLLMU)
    assert chosen(columns(), Protocol("official"), MLLMU).people == {}
    assert chosen(columns(), Protocol("official", 1), ASKINGS["clear"]).people == {}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"name": "letters"}, "no protocol 'letters'"),
        ({"name": "likelihood", "shots": 1}, "is zero-shot"),
        ({"name": "official", "shots": 2}, "2 shots are impossible"),
        ({"name": "official", "demonstrations": "scored"}, "nothing is demonstrated"),
        ({"name": "official", "shots": 1, "demonstrations": "forget"}, "'forget'"),
    ],
)
def test_protocols_that_make_no_sense(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Protocol(**chosen)


def test_ids_and_options() -> None:
    found = [Protocol(), Protocol("official"), Protocol("official", 1), Protocol("official", 1, "scored")]
    assert [each.id for each in found] == ["likelihood", "official", "official-1-shot", "official-1-shot-scored"]
    assert found[0].options == ""
    assert found[3].options == " --protocol official --shots 1 --demonstrations scored"
