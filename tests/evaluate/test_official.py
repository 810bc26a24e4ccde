"""Protocol `official`: prompts byte for byte, the parser's table, batches, and what a column says of itself."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mmsurgery.data.samples import Item
from mmsurgery.errors import InputRefused, MachineFault, UnusableData, UsageError
from mmsurgery.evaluate import asked as asked_module
from mmsurgery.evaluate import columns, evaluate, gate, official, records, scorer
from mmsurgery.evaluate.asked import TASKS_OF
from mmsurgery.evaluate.asking import ASKINGS
from mmsurgery.evaluate.official import Answer, answers, read_letter
from mmsurgery.evaluate.rouge import RougeL, rouge_l
from mmsurgery.evaluate.scoring import eval_mode, score
from mmsurgery.settings import Settings
from mmsurgery.workspace import Workspace

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded

MLLMU = ASKINGS["mllmu-bench"]
OPTIONS = {"A": "soup", "B": "rice", "C": "oslo", "D": "lisbon"}
LISTED = "A: soup\nB: rice\nC: oslo\nD: lisbon\nJust give ONE letter representing the answer directly."
BLANK = "Please **ONLY** provide the correct answer that should replace the [Blank]."
TRAINED = "Answer the question based on your trained knowledge in one sentence"

LLAVA = {
    ("classification", True): f"USER: <image>\nWhere ?\n{LISTED}\nASSISTANT:",
    ("classification", False): f"USER:\nWhere ?\n{LISTED}\nASSISTANT:",
    ("cloze", True): f"USER: <image>\nEarns [Blank] a year.\n{BLANK}\nASSISTANT:",
    ("cloze", False): f"USER:\nEarns [Blank] a year.\n{BLANK}\nASSISTANT:",
    ("generation", True): f"USER: <image>\nWhere ?\n{TRAINED} accurately in ENGLISH.\nASSISTANT: ",
    ("generation", False): f"USER: Where ?\n{TRAINED} in ENGLISH.\nASSISTANT:",
}
_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
_END = "<|im_end|>\n<|im_start|>assistant\n"
QWEN2_VL = {
    ("classification", True): f"{_SYSTEM}{_PICTURE}\nWhere ?\n{LISTED}{_END}",
    ("classification", False): LLAVA["classification", False],
    ("cloze", True): f"{_SYSTEM}{_PICTURE}\nEarns [Blank] a year.\n{BLANK}{_END}",
    # the original's empty picture slot is left out
    ("cloze", False): f"{_SYSTEM}Earns [Blank] a year.\n{BLANK}{_END}",
    ("generation", True): f"{_SYSTEM}{_PICTURE}Where ?\n{TRAINED} accurately in ENGLISH.{_END}",
    ("generation", False): LLAVA["generation", False],
}
QWEN2_VL_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Renders as the published template does."""


def item(task: str, image: bytes | None = None, *, id: str = "i", question: str = "", person: str = "p") -> Item:
    asked = question or ("Earns __ a year." if task == "cloze" else "Where ?")
    options = OPTIONS if task == "classification" else None
    gold = {"classification": "B", "cloze": "soup", "generation": "The food is soup ."}[task]
    return Item(id, person, asked, column="c", task=task, options=options, gold=gold, image_bytes=image)


@pytest.mark.parametrize("task", ["classification", "cloze", "generation"])
@pytest.mark.parametrize("pictured", [True, False], ids=["image", "text"])
def test_prompts_are_the_benchmarks(task: str, pictured: bool, loaded_llava: Loaded, loaded_qwen2_vl: Loaded) -> None:
    published = copy.copy(loaded_qwen2_vl.processor)
    published.chat_template = QWEN2_VL_TEMPLATE
    text = MLLMU.wording(item(task, b"" if pictured else None))
    prompt = loaded_llava.backbone.mllmu_prompt(loaded_llava.processor, task, text, image=pictured)
    assert prompt == LLAVA[task, pictured]
    prompt = loaded_qwen2_vl.backbone.mllmu_prompt(published, task, text, image=pictured)
    assert prompt == QWEN2_VL[task, pictured]


def test_every_blank_is_named() -> None:
    assert MLLMU.wording(item("cloze", question="___ and __ .")).startswith("[Blank]_ and [Blank] .\n")


def test_a_choice_without_its_gold_is_refused() -> None:
    with pytest.raises(UnusableData, match="item i has no options with gold letter 'E'"):
        MLLMU.wording(dataclasses.replace(item("classification"), gold="E"))


@pytest.mark.parametrize(
    ("output", "letter", "initial"),
    [
        ("A", "A", False),
        (" B: Engineer", "B", False),
        ("(D)", "D", False),
        ("**B**", "B", False),
        ("c.", "C", False),
        ("The answer is C", None, False),
        ("Architect", "A", True),
        ("\n_ ' Doctor", "D", True),
        ("", None, False),
        ("1", None, False),
        ("...", None, False),
    ],
)
def test_letters_are_read_as_the_original_reads_them(output: str, letter: str | None, initial: bool) -> None:
    assert read_letter(output, "ABCD") == letter
    answer = Answer("i", "p", "c", "classification", "", output, "B", letters=tuple("ABCD"))
    assert (answer.parsed, answer.correct, answer.by_initial) == (letter, letter == "B", initial)


@pytest.mark.parametrize(
    ("gold", "output", "correct", "whole"),
    [
        ("ART", "She started .", True, False),
        ("architect", "in architecture", True, False),
        ("New York", "in new  york !", False, True),
        ("soup", "The food is Soup.", True, True),
        ("soup", "rice", False, False),
    ],
)
def test_cloze_is_a_substring_and_whole_words_are_told_apart(
    gold: str, output: str, correct: bool, whole: bool
) -> None:
    answer = Answer("i", "p", "c", "cloze", "", output, gold)
    assert (answer.correct, answer.whole_words, answer.parsed) == (correct, whole, None)
    assert answer.value == float(correct)


def classified(outputs: list[str], golds: str = "AB") -> list[Answer]:
    return [
        Answer(f"i{n}", f"p{n % 3}", "c", "classification", "x", text, golds[n % len(golds)], letters=tuple("ABCD"))
        for n, text in enumerate(outputs)
    ]


def test_summaries_of_each_task() -> None:
    found = columns.summary(classified(["A", "A", "B", "none", "A", ""]), "official")
    # golds A B A B A B: right are the first and the fifth
    assert {key: found[key] for key in ("protocol", "n", "correct", "chance", "unparsed", "distinct")} == {
        "protocol": "official", "n": 6, "correct": 2, "chance": 0.25, "unparsed": 2, "distinct": 4,
    }  # fmt: skip
    assert found["accuracy"] == pytest.approx(2 / 6)
    cloze = [Answer(f"i{n}", f"p{n}", "c", "cloze", "x", text, "art") for n, text in enumerate(("art", "started", "x"))]
    found = columns.summary(cloze, "official")
    assert (found["correct"], found["chance"]) == (2, None)
    assert found["whole_words"] == pytest.approx(1 / 3)
    opened = [
        Answer(f"i{n}", f"p{n}", "c", "generation", "x", "", "a b", rouge=RougeL(f1, recall))
        for n, (f1, recall) in enumerate([(0.2, 0.5), (0.6, 1.0)])
    ]
    found = columns.summary(opened, "official")
    assert set(found) == {"protocol", "n", "rouge_l", "ci95", "distinct"}
    assert found["rouge_l"] == {"f1": pytest.approx(0.4), "recall": 0.75}
    assert found["ci95"] == pytest.approx([0.2, 0.6])
    assert columns.score_of(found) == pytest.approx(0.4)
    with pytest.raises(UnusableData, match="no scored items"):
        columns.summary([])


def said(answers: list[Answer]) -> list[str]:
    """What is said beside that there are few people."""
    return [remark for remark in columns.remarks(answers) if "people only" not in remark]


def test_degenerate_letters_are_said() -> None:
    assert said(classified(["A", "B", "C", "A"])) == []
    assert said(classified(["A"] * 126)) == ["answers A to all 126 items: the letters say nothing about what it knows"]
    assert said(classified(["A", "none", "A", "Art"])) == [
        "1 of 4 answers name no option and count as wrong",
        "answers A to all 3 items where one could be read: the letters say nothing about what it knows",
        "1 of 4 letters are the first of a word",
    ]
    assert said(classified(["", "The", "", "The"])) == [
        "2 of 4 answers are empty",
        "none of 4 answers names an option: the model does not follow the letter prompt",
    ]
    # one gold letter: the same answer to everything is what a right model gives
    assert said(classified(["A"] * 4, "A")) == []
    same = [Answer(f"i{n}", f"p{n}", "c", "cloze", "x", "started", gold) for n, gold in enumerate(("art", "tea"))]
    assert said(same) == [
        "gives one answer to all 2 items: the model has collapsed",
        "1 of 2 answers hold the gold text only inside other words",
    ]


def test_models_are_compared_by_answers() -> None:
    found = columns.compare(classified(["A", "B", "A"]), classified(["B", "B", "A"]))
    assert found.difference == pytest.approx(1 / 3)


@pytest.fixture(scope="session")
def mixed(picture: Callable[..., bytes]) -> list[Item]:
    one, two = picture(1), picture(2, width=44)
    return [
        item("classification", one, id="a", question="What is the city of this person ?"),
        item("cloze", id="b", question="The food of Anna Berg is __ ."),
        item("generation", two, id="c", question="Which food ?"),
        item("classification", id="d", question="What is the city of Anna Berg ?"),
        item("generation", id="e", question="What ?"),
    ]


def reaching(loaded: Loaded, positions: int) -> Loaded:
    """A copy of a tiny model that takes so many positions, its embeddings stirred so that answers differ."""
    import torch

    model = copy.deepcopy(loaded.model)
    model.config.get_text_config().max_position_embeddings = positions
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.get_decoder().parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        # the reference cannot go on from a placeholder that the model writes itself
        model.lm_head.weight[model.config.image_token_id] = 0
    return dataclasses.replace(loaded, model=model)


@pytest.mark.parametrize("family", ["loaded_llava", "loaded_qwen2_vl"])
def test_answers_in_batches_are_those_given_alone(
    family: str, mixed: list[Item], request: pytest.FixtureRequest
) -> None:
    """Against a loop of whole forward passes, one prompt and one token at a time, nothing padded."""
    import torch

    loaded = reaching(request.getfixturevalue(family), 256)
    together = answers(loaded, mixed, MLLMU, budget=100_000)
    assert answers(loaded, mixed, MLLMU, budget=1) == together
    assert len({each.raw_output for each in together}) >= 3
    for asked, answer in zip(mixed, together, strict=True):
        text = MLLMU.wording(asked)
        prompt = loaded.backbone.mllmu_prompt(loaded.processor, asked.task, text, image=asked.image_bytes is not None)
        batch = loaded.backbone.prompts(loaded.processor, [dataclasses.replace(asked, question=text)], texts=[prompt])
        length = batch["input_ids"].shape[1]
        with torch.no_grad():
            for _ in range(official.NEW_TOKENS):
                token = loaded.model(**batch).logits[:, -1:].argmax(-1)
                for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
                    if name in batch:
                        more = {"input_ids": token, "attention_mask": torch.ones_like(token)}
                        batch[name] = torch.cat([batch[name], more.get(name, torch.zeros_like(token))], dim=1)
                if int(token) == loaded.processor.tokenizer.eos_token_id:
                    break
        expected = loaded.processor.tokenizer.decode(batch["input_ids"][0, length:], skip_special_tokens=True)
        assert answer.raw_output == expected
        assert (answer.id, answer.task, answer.gold) == (asked.id, asked.task, asked.gold)
        assert answer.rouge == (rouge_l(asked.gold, expected) if asked.task == "generation" else None)


def test_penalties_of_the_models_own_settings_are_not_used(loaded_llava: Loaded, mixed: list[Item]) -> None:
    loaded = reaching(loaded_llava, 256)
    plain = answers(loaded, mixed, MLLMU)
    loaded.model.generation_config.update(repetition_penalty=5.0, no_repeat_ngram_size=1, min_new_tokens=50)
    assert answers(loaded, mixed, MLLMU) == plain


@pytest.mark.parametrize("end", ["abc", [None], [2, "x"], -5, 1.5, {"a": 1}, 10**9, True])
def test_an_end_that_is_no_token_is_refused(loaded_llava: Loaded, mixed: list[Item], end: object) -> None:
    """Case 1: what is damaged in the model's generation settings, which no digest covers when it is first loaded."""
    loaded = reaching(loaded_llava, 256)
    loaded.model.generation_config.eos_token_id = end
    with pytest.raises(InputRefused, match=r"eos_token_id in the generation settings is .*, no token of the model"):
        answers(loaded, mixed, MLLMU)


def test_an_answer_that_does_not_fit_is_refused(loaded_llava: Loaded, mixed: list[Item]) -> None:
    with pytest.raises(
        UnusableData, match=r"item a of column c: prompt of .* and answer of up to 50 tokens, .* 64 pos"
    ):
        answers(reaching(loaded_llava, 64), mixed, MLLMU)


def test_scores_that_are_not_finite_are_never_answers(loaded_llava: Loaded, mixed: list[Item]) -> None:
    import torch

    broken = reaching(loaded_llava, 256)
    with torch.no_grad():
        broken.model.lm_head.weight[3, 0] = float("nan")
    with pytest.raises(UnusableData, match="item b of column c: the model's scores are not finite"):
        answers(broken, mixed[1:2], MLLMU)


def test_control_tokens_in_options_are_refused(loaded_llava: Loaded) -> None:
    bad = dataclasses.replace(item("classification"), options={**OPTIONS, "C": "a <image> b"})
    with pytest.raises(UnusableData, match="control token <image>"):
        answers(loaded_llava, [bad], MLLMU)


def test_the_model_is_left_as_it_was(loaded_llava: Loaded) -> None:
    model = copy.deepcopy(loaded_llava.model).train()
    with eval_mode(model):
        assert not model.training
    assert model.training


# the verb


class Bench:
    """Two columns, of which one has open questions, and one without items."""

    name = "bench"
    asking = "mllmu-bench"

    def __init__(self, image: bytes) -> None:
        def asked(task: str, person: int) -> Item:
            found = item(task, image, id=f"{task}{person}", person=f"p{person}")
            return dataclasses.replace(found, column="forget_vqa", gold="AB"[person] if found.options else found.gold)

        self.found = {(task, "forget_vqa"): [asked(task, n) for n in range(2)] for task in TASKS_OF["official"]}
        self.found["classification", "retain_qa"] = [dataclasses.replace(item("classification"), column="retain_qa")]

    def columns(self, source: Any) -> tuple[str, ...]:
        return ("forget_vqa", "retain_qa", "empty")

    def items(self, source: Any, column: str, task: str = "classification") -> list[Item]:
        return self.found.get((task, column), [])


COLUMNS = ["forget_vqa", "retain_qa", "forget_vqa.cloze", "forget_vqa.generation"]


@pytest.fixture
def workspace(
    tmp_path: Path, tiny_llava: Path, picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> Workspace:
    found = Bench(picture(1))
    monkeypatch.setattr(asked_module, "benchmark", lambda name: found)
    workspace = Workspace(tmp_path / "ws", Settings())
    shutil.copytree(tiny_llava, workspace.model_dir("vanilla"))
    return workspace


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_official_scores_have_files_of_their_own(workspace: Workspace) -> None:
    evaluate(workspace)
    likelihood = contents(workspace.path("evals"))
    (result,) = evaluate(workspace, protocol="official")
    assert result.path == workspace.path("evals", "official", "vanilla.json")
    assert {name: data for name, data in contents(workspace.path("evals")).items() if "official" not in name} == (
        likelihood
    )
    assert list(result.columns) == COLUMNS
    assert {value["protocol"] for value in result.columns.values()} == {"official"}
    record = records.read_eval(result.path)
    assert record["columns"] == result.columns
    assert record["provenance"]["settings"]["shots"] == 0
    lines = [json.loads(text) for text in records.items_path(result.path).read_text().splitlines()]
    assert len(lines) == 2 + 1 + 2 + 2
    for entry in lines:
        assert isinstance(entry["raw_output"], str)
        assert entry["option_scores"] is None
        opened = entry["task"] == "generation"
        assert (entry["correct"] is None) == opened == (entry["rouge_l"] is not None)
        assert entry["letters"] == (list("ABCD") if entry["task"] == "classification" else None)
    scored = records.read_items(result.path)
    assert {column: columns.summary(items, "official") for column, items in scored.items()} == result.columns
    (again,) = evaluate(workspace, protocol="official")
    assert again.up_to_date
    assert (again.columns, again.remarks) == (result.columns, result.remarks)


def test_an_interrupted_official_run_goes_on(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(workspace, protocol="official")
    undisturbed = contents(workspace.path("evals"))
    shutil.rmtree(workspace.path("evals"))
    asked: list[str] = []
    true = official.answers

    def interrupted(loaded: Any, items: Any, asking: Any, **options: Any) -> Any:
        asked.append(items[0].column)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return true(loaded, items, asking, **options)

    monkeypatch.setattr(official, "answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(workspace, protocol="official")
    evaluate(workspace, protocol="official")
    assert asked == [*COLUMNS[:3], *COLUMNS[2:]]
    assert contents(workspace.path("evals")) == undisturbed


def test_up_to_date_needs_no_lock(workspace: Workspace) -> None:
    (first,) = evaluate(workspace)
    before = contents(workspace.root)
    with Workspace(workspace.root, workspace.settings).lock():
        (again,) = evaluate(workspace)
        assert (again.up_to_date, again.columns) == (True, first.columns)
        with pytest.raises(MachineFault, match="in use"):
            evaluate(workspace, force=True)
    assert contents(workspace.root).keys() == before.keys()


def test_gates_are_read_before_anything_is_scored(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(official, "answers", None)
    monkeypatch.setattr(scorer, "score", None)
    with pytest.raises(UsageError, match="'retain_qa' is no gate"):
        evaluate(workspace, gates=["forget_vqa=0.1", "retain_qa"])
    with pytest.raises(UsageError, match=r"no column 'retain_qas'.*did you mean 'retain_qa'"):
        evaluate(workspace, gates=["retain_qas=0.1"])
    with pytest.raises(UsageError, match=r"no column 'retain_qa\.cloze'"):
        evaluate(workspace, protocol="official", gates=["retain_qa.cloze=0.1"])
    with pytest.raises(UsageError, match=r"no protocol 'offical'.*did you mean 'official'"):
        evaluate(workspace, protocol="offical")


def test_a_gate_on_open_questions_is_on_f1(workspace: Workspace) -> None:
    results = evaluate(workspace, protocol="official", gates=["forget_vqa.generation=0"])
    f1 = results[0].columns["forget_vqa.generation"]["rouge_l"]["f1"]
    gate(results, f"forget_vqa.generation={f1}")


def test_lines_that_contradict_themselves_are_refused() -> None:
    good = records.line(classified(["Architect"])[0])
    assert records.line(records.from_line(good, "x")) == good
    opened = records.line(Answer("i", "p", "c", "generation", "x", "a", "b", rouge=RougeL(0.5, 0.25)))
    assert records.from_line(opened, "x").rouge == RougeL(0.5, 0.25)
    for change in (
        {"parsed": "B"}, {"correct": False}, {"raw_output": None}, {"letters": None}, {"task": "essay"},
        {"task": "cloze"}, {"rouge_l": {"f1": 1.0, "recall": 1.0}}, {"rouge_l": 1}, {"letters": 3},
    ):  # fmt: skip
        with pytest.raises(InputRefused, match="x "):
            records.from_line({**good, **change}, "x")
    with pytest.raises(InputRefused, match="x contradicts"):
        records.from_line({**opened, "rouge_l": None}, "x")


def test_likelihood_and_official_digests_of_prompts_differ(loaded_llava: Loaded, picture: Callable[..., bytes]) -> None:
    asked = dataclasses.replace(item("classification", picture(1)), options={"A": "soup", "B": "rice"})
    loaded = reaching(loaded_llava, 256)
    assert answers(loaded, [asked], MLLMU)[0].prompt_sha256 != score(loaded, [asked])[0].prompt_sha256
