"""Protocol `open` on micro models: what is written, how fluent it is, and the records, against naive recomputation."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator
from rich.console import Console

from mmsurgery.data.samples import Item
from mmsurgery.errors import InputRefused, Mismatch, MissingArtifact, UnusableData, UsageError
from mmsurgery.evaluate import asked, columns, evaluate, fluency, gate, open_answers, records
from mmsurgery.evaluate.fluency import median_probabilities
from mmsurgery.evaluate.open_answers import Answered, write
from mmsurgery.evaluate.scoring import score
from mmsurgery.provenance import seal
from mmsurgery.settings import Settings
from mmsurgery.workspace import Workspace
from mmsurgery_cli.show import chain as show

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/eval.json").read_text())
OPTIONS = {"A": "The city is oslo .", "B": "The city is lisbon .", "C": "The city is soup ."}
COLUMNS = ["forget_vqa", "retain_qa"]
WHO = ["0/city", "0/food", "1/city", "1/food"]


class Bench:
    """Two columns of two people with two questions each, and one without items."""

    name = "bench"

    def __init__(self, image: bytes) -> None:
        def asked(column: str, person: int, word: str, **given: Any) -> Item:
            question = f"Which {word} of this person ?" if given else f"Which {word} of {('Anna', 'Berg')[person]} ?"
            return Item(
                f"{column}/{person}/{word}",
                f"p{person}",
                question,
                options=OPTIONS,
                gold="AB"[person],
                column=column,
                **given,
            )

        given: dict[str, Any] = {"forget_vqa": {"image_bytes": image}, "retain_qa": {}}
        self.found = {c: [asked(c, p, w, **given[c]) for p in range(2) for w in ("city", "food")] for c in COLUMNS}

    def columns(self, source: Any) -> tuple[str, ...]:
        return (*self.found, "empty")

    def items(self, source: Any, column: str, task: str = "classification") -> list[Item]:
        return self.found.get(column, []) if task == "classification" else []


@pytest.fixture
def bench(picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> Bench:
    found = Bench(picture(1))
    monkeypatch.setattr(asked, "benchmark", lambda name: found)
    return found


@pytest.fixture
def workspace(tmp_path: Path, tiny_llava: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """With vanilla, and a model of other weights; answers are short."""
    monkeypatch.setattr(open_answers, "NEW_TOKENS", 4)
    workspace = Workspace(tmp_path / "ws", Settings())
    for name in ("vanilla", "npo"):
        shutil.copytree(tiny_llava, workspace.model_dir(name))
    change(workspace.model_dir("npo"))
    return workspace


def change(folder: Path, place: int = 2) -> None:
    """Another weight at the end of a model's file."""
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-place] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="session")
def mixed(picture: Callable[..., bytes]) -> list[Item]:
    """Pictures and text, prompts of different length."""
    one, two = picture(1), picture(2, width=44)

    def item(id: str, question: str, image: bytes | None = None) -> Item:
        return Item(id, f"p-{id}", question, column="c", options=OPTIONS, gold="A", image_bytes=image)

    return [
        item("a", "What is the city of this person ?", one),
        item("b", "What is the food of Anna Berg ?"),
        item("c", "Which food ?", two),
        item("d", "Which ?"),
    ]


def stirred(loaded: Loaded) -> Loaded:
    """A copy of a tiny model whose answers and probabilities differ from question to question."""
    import torch

    model, generator = copy.deepcopy(loaded.model), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.get_decoder().parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        model.lm_head.weight[model.config.image_token_id] = 0
    return dataclasses.replace(loaded, model=model)


# writing and its fluency


@pytest.mark.parametrize("family", ["loaded_llava", "loaded_qwen2_vl"])
def test_answers_in_batches_are_those_given_alone(
    family: str, mixed: list[Item], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against whole forward passes of the prompt that `likelihood` scores options after, one token at a time."""
    import torch

    assert open_answers.NEW_TOKENS == 50
    monkeypatch.setattr(open_answers, "NEW_TOKENS", 12)
    loaded = stirred(request.getfixturevalue(family))
    together = write(loaded, mixed, budget=100_000)
    assert write(loaded, mixed, budget=1) == together
    assert len({each.text for each in together}) >= 3
    assert [each.prompt_sha256 for each in together] == [each.prompt_sha256 for each in score(loaded, mixed)]
    tokenizer = loaded.processor.tokenizer
    for item, found in zip(mixed, together, strict=True):
        batch = loaded.backbone.prompts(loaded.processor, [item])
        length, ids = batch["input_ids"].shape[1], batch["input_ids"]
        with torch.no_grad():
            for _ in range(12):
                grown = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                if "mm_token_type_ids" in batch:
                    kinds = torch.zeros_like(ids)
                    kinds[:, :length] = batch["mm_token_type_ids"]
                    grown["mm_token_type_ids"] = kinds
                token = loaded.model(**{**batch, **grown}).logits[:, -1:].argmax(-1)
                ids = torch.cat([ids, token], dim=1)
                if int(token) == tokenizer.eos_token_id:
                    break
        assert found.text == tokenizer.decode(ids[0, length:], skip_special_tokens=True)


TEXTS = ["The city is oslo .", "soup rice", "lisbon", "The the of the"]


@pytest.mark.parametrize("family", ["loaded_llava", "loaded_qwen2_vl"])
def test_fluency_is_the_median_probability_of_an_answers_tokens(
    family: str, mixed: list[Item], request: pytest.FixtureRequest
) -> None:
    """The end token left out; against one forward pass per prefix."""
    import torch

    loaded = stirred(request.getfixturevalue(family))
    found = median_probabilities(loaded, mixed, TEXTS, budget=100_000)
    assert median_probabilities(loaded, mixed, TEXTS, budget=1) == pytest.approx(found, abs=2e-4)
    for item, text, value in zip(mixed, TEXTS, found, strict=True):
        sample = dataclasses.replace(item, column="x")
        batch = loaded.backbone.collate(loaded.processor, [_answering(sample, text)])
        labels = batch.pop("labels")[0]
        with torch.no_grad():
            chances = loaded.model(**batch).logits[0].softmax(-1)
        places = [place for place, label in enumerate(labels.tolist()) if label != -100]
        assert len(places) == len(text.split()) + 1
        probabilities = [float(chances[place - 1, labels[place]]) for place in places[:-1]]
        assert value == pytest.approx(statistics.median(probabilities), abs=1e-4)
        assert value == round(value or 0, 4)
    assert len(set(found)) == len(found)


def _answering(item: Item, text: str) -> Any:
    from mmsurgery.data.samples import Sample

    return Sample(item.id, item.person, item.question, answer=text, image_bytes=item.image_bytes)


def test_fluency_of_what_is_no_plain_text(loaded_llava: Loaded, mixed: list[Item]) -> None:
    """Nothing, signs alone, control tokens, and words that the tokenizer does not know."""
    strange = ["", " . ?", "<image>", "zzz lisbon"]
    assert median_probabilities(loaded_llava, mixed, strange) == [None, None, None, 0.0]
    first = mixed[:1]
    marked = median_probabilities(loaded_llava, first, ["oslo <image> </s> soup"])
    assert marked == median_probabilities(loaded_llava, first, ["oslo soup"])
    broken = dataclasses.replace(mixed[1], question="What <image> ?")
    with pytest.raises(UnusableData, match="sample b holds the control token <image>"):
        median_probabilities(loaded_llava, [broken], ["oslo"])


def test_the_place_of_a_picture_is_no_word_of_an_answer(loaded_llava: Loaded, mixed: list[Item]) -> None:
    """Also where the tokenizer does not count it among its control tokens."""
    processor = copy.copy(loaded_llava.processor)
    processor.image_token = "soup"
    strange = dataclasses.replace(loaded_llava, processor=processor)
    question = [dataclasses.replace(mixed[1], question="Which ?")]
    assert median_probabilities(strange, question, ["oslo soup"]) == median_probabilities(
        loaded_llava, question, ["oslo"]
    )


def test_batches_keep_to_their_budget(loaded_llava: Loaded, mixed: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    true = fluency._medians

    def counted(loaded: Loaded, samples: Any, cache: Any) -> list[float]:
        sizes.append(tuple(loaded.backbone.collate(loaded.processor, samples)["input_ids"].shape))  # type: ignore[arg-type]
        return true(loaded, samples, cache)

    monkeypatch.setattr(fluency, "_medians", counted)
    median_probabilities(loaded_llava, [mixed[3], mixed[0], *mixed[1:3]], TEXTS, budget=45)
    assert sum(rows for rows, _ in sizes) == 4
    assert 1 < len(sizes) < 4
    assert all(rows * tokens <= 45 for rows, tokens in sizes)


def test_fluency_that_is_not_finite_is_none(loaded_llava: Loaded, mixed: list[Item]) -> None:
    import torch

    broken = stirred(loaded_llava)
    with torch.no_grad():
        broken.model.lm_head.weight[3, 0] = float("nan")
    with pytest.raises(UnusableData, match="not finite"):
        median_probabilities(broken, mixed[:1], ["oslo"])


def test_what_cannot_be_judged_is_not_asked(loaded_llava: Loaded, mixed: list[Item]) -> None:
    for change in ({"gold": "Z"}, {"options": None}):
        with pytest.raises(UnusableData, match="item a has no options"):
            write(loaded_llava, [dataclasses.replace(mixed[0], **change)])


# columns and records


def answered(number: int, text: str, **given: Any) -> Answered:
    values = {"options": OPTIONS, "gold": "A", "other": None, "fluency": 0.5, **given}
    return Answered(f"i{number}", f"p{number}", "forget_vqa", "0" * 64, text, **values)


def answers() -> list[Answered]:
    return [
        answered(0, "The city is oslo ."),
        answered(1, "In oslo"),
        answered(2, "The city is rice .", other="rice"),
        answered(3, "I do not know"),
        answered(4, "oslo oslo oslo"),
        answered(5, "", fluency=None),
        answered(6, "The city is lisbon ."),
    ]


def test_a_column_has_no_chance_but_outcomes() -> None:
    found = columns.summary(answers(), "open")
    assert {key: found[key] for key in found if key not in ("accuracy", "ci95")} == {
        "protocol": "open", "n": 7, "correct": 2, "chance": None, "distinct": 7, "paraphrased": 1, "repeated": 1,
        "outcomes": {"correct": 2, "other_person": 1, "wrong": 1, "refusal": 1, "gibberish": 2},
    }  # fmt: skip
    assert found["accuracy"] == columns.score_of(found) == pytest.approx(2 / 7)
    assert found["ci95"][0] < 2 / 7 < found["ci95"][1]
    assert columns.remarks(answers()) == ["2 of 7 answers are gibberish"]
    same = [answered(n, "The city is oslo .", gold="AB"[n % 2]) for n in range(6)]
    assert columns.remarks(same) == ["gives one answer to all 6 items: the model has collapsed"]
    assert columns.remarks(same[::2]) == ["3 people only: the interval is narrower than what is known"]


def test_a_line_is_read_as_it_was_written() -> None:
    for item in answers():
        line = json.loads(json.dumps(records.line(item)))
        assert records.from_line(line, "x") == item
        Draft202012Validator({"$ref": "#/$defs/item", "$defs": SCHEMA["$defs"]}).validate(line)
    assert records.line(answers()[2]) == {
        "id": "i2", "person": "p2", "column": "forget_vqa", "prompt_sha256": "0" * 64,
        "raw_output": "The city is rice .", "parsed": None, "gold": "A", "correct": False, "option_scores": None,
        "options": OPTIONS, "outcome": "other_person", "paraphrased": False, "repeated": False, "other": "rice",
        "fluency": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (0, {"outcome": "wrong"}),
        (0, {"correct": False}),
        (1, {"paraphrased": False}),
        (4, {"repeated": False}),
        (0, {"raw_output": "The city is lisbon ."}),
        (2, {"other": "soup"}),
        (2, {"other": None}),
        (0, {"other": ""}),
        (2, {"other": 5, "raw_output": "The city is 5"}),
        (0, {"fluency": 0.001, "raw_output": "In oslo"}),
        (0, {"fluency": 2.0}),
        (0, {"fluency": "0.5"}),
        (0, {"gold": "Z"}),
        (0, {"options": ["The city is oslo ."]}),
        (0, {"options": {"A": 1}}),
        (0, {"raw_output": None}),
        (0, {"parsed": "A"}),
        (0, {"extra": 1}),
    ],
)
def test_lines_that_contradict_themselves_are_refused(number: int, change: dict[str, Any]) -> None:
    good = records.line(answers()[number])
    with pytest.raises(InputRefused, match=r"x (contradicts itself|is no scored item)"):
        records.from_line({**good, **change}, "x")
    lacking = {key: value for key, value in good.items() if key not in change}
    with pytest.raises(InputRefused, match=r"x (contradicts itself|is no scored item)"):
        records.from_line(lacking if "extra" not in change else {**lacking, "extra": 2}, "x")


@pytest.mark.parametrize(
    "change",
    [
        {"outcomes": {"correct": 2, "other_person": 1, "wrong": 1, "refusal": 1, "gibberish": 3}},
        {"outcomes": {"correct": 1, "other_person": 2, "wrong": 1, "refusal": 1, "gibberish": 2}},
        {"outcomes": {"correct": 2, "other_person": 1, "wrong": 4}},
        {"outcomes": {"correct": 2, "other_person": 1, "wrong": 1, "refusal": 1, "gibberish": "2"}},
        {"outcomes": 7},
        {"unparsed": 1},
        {"protocol": "official"},
    ],
)
def test_columns_that_do_not_add_up_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "evals" / "open" / "npo.json"
    body = {"model": "npo", "columns": {"forget_vqa": columns.summary(answers(), "open")}, "remarks": {}}
    record = records.write_eval(path, {**body, "provenance": {}}, answers())
    assert records.read_eval(path) == record
    record["columns"]["forget_vqa"].update(change)
    record["provenance"].pop("seal")
    path.write_text(json.dumps(seal(record)))
    with pytest.raises(InputRefused, match="column forget_vqa cannot be read") as caught:
        records.read_eval(path)
    assert caught.value.next_step == "mmsurgery eval npo --protocol open --force"


# the verb


def test_open_scores_have_files_of_their_own(workspace: Workspace) -> None:
    evaluate(workspace)
    likelihood = contents(workspace.path("evals"))
    vanilla, npo = evaluate(workspace, protocol="open")
    assert npo.path == workspace.path("evals", "open", "npo.json")
    assert {k: v for k, v in contents(workspace.path("evals")).items() if not k.startswith("open")} == likelihood
    assert list(npo.columns) == COLUMNS
    record = records.read_eval(npo.path)
    Draft202012Validator(SCHEMA).validate(record)
    assert record["columns"] == npo.columns
    scored = records.read_items(npo.path)
    assert {column: columns.summary(items, "open") for column, items in scored.items()} == npo.columns
    assert [item.id for item in scored["retain_qa"]] == [f"retain_qa/{who}" for who in WHO]
    gate([npo], f"forget_vqa={npo.columns['forget_vqa']['accuracy']}")
    provenance = record["provenance"]
    assert provenance["settings"]["new_tokens"] == 50
    assert provenance["settings"]["judged"]["fluent"] == 0.01
    assert (
        provenance["inputs"]["vanilla_sha256"]
        == (records.read_eval(vanilla.path)["provenance"]["inputs"]["model_sha256"])
    )
    again = evaluate(workspace, protocol="open")
    assert [each.up_to_date for each in again] == [True, True]
    with pytest.raises(UsageError, match="'open' is zero-shot"):
        evaluate(workspace, protocol="open", shots=1)


def test_each_model_is_loaded_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever vanilla's place among them: what is written is judged by vanilla after all have written."""
    from mmsurgery.backbones import loading

    loaded: list[str] = []
    true = loading.load
    monkeypatch.setattr(loading, "load", lambda path, *rest: loaded.append(path.name) or true(path, *rest))
    shutil.copytree(workspace.model_dir("npo"), workspace.model_dir("more"))
    change(workspace.model_dir("more"), 6)
    evaluate(workspace, ["vanilla", "npo", "more"], protocol="open")
    assert loaded == ["npo", "more", "vanilla"]


def test_answers_are_judged_by_vanilla(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmsurgery.backbones.loading import load

    monkeypatch.setattr(open_answers, "greedy", lambda loaded, items, *_, **__: ["The city is rice ."] * len(items))
    (result,) = evaluate(workspace, ["npo"], protocol="open")
    scored = records.read_items(result.path)
    known = load(workspace.model_dir("vanilla"))
    for column, found in scored.items():
        items = asked.benchmark("").found[column]  # type: ignore[attr-defined]
        expected = median_probabilities(known, items, ["The city is rice ."] * 4)
        assert [each.fluency for each in found] == expected


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it was, writing or judging; two models, two columns each."""
    evaluate(workspace, protocol="open")
    undisturbed = contents(workspace.path("evals"))
    steps: list[str] = []
    wrote, median = open_answers.write, fluency.median_probabilities

    def step(what: str) -> None:
        steps.append(what)
        if len(steps) == at:
            raise KeyboardInterrupt

    def writing(loaded: Any, items: Any, **options: Any) -> Any:
        step(f"write {options['what']}")
        return wrote(loaded, items, **options)

    def judging(loaded: Any, items: Any, texts: Any, **options: Any) -> Any:
        step(f"judge {options['what']}")
        return median(loaded, items, texts, **options)

    monkeypatch.setattr(open_answers, "write", writing)
    monkeypatch.setattr(fluency, "median_probabilities", judging)
    for at in (2, 5, 8):
        shutil.rmtree(workspace.path("evals"))
        steps.clear()
        with pytest.raises(KeyboardInterrupt):
            evaluate(workspace, protocol="open")
        evaluate(workspace, protocol="open")
        assert (len(steps), len(set(steps))) == (9, 8)
        assert steps[at - 1] == steps[at]
        assert contents(workspace.path("evals")) == undisturbed


def test_damaged_answers_are_written_again(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(workspace, ["npo"], protocol="open")
    undisturbed = contents(workspace.path("evals"))
    shutil.rmtree(workspace.path("evals"))
    with monkeypatch.context() as patch:
        patch.setattr(fluency, "median_probabilities", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate(workspace, ["npo"], protocol="open")
    leftovers = sorted(workspace.path("evals").rglob("*.written.json"))
    assert [p.name for p in leftovers] == ["forget_vqa.written.json", "retain_qa.written.json"]
    damaged = json.loads(leftovers[1].read_text())
    damaged["lines"][0][1] = "The city is oslo ."
    leftovers[1].write_text(json.dumps(damaged))
    evaluate(workspace, ["npo"], protocol="open")
    assert contents(workspace.path("evals")) == undisturbed


def test_other_weights_of_vanilla_make_scores_stale(workspace: Workspace) -> None:
    evaluate(workspace, ["npo"], protocol="open")
    evaluate(workspace, ["npo"])
    change(workspace.model_dir("vanilla"), 6)
    with pytest.raises(Mismatch, match=r"npo.json holds scores with other inputs \(vanilla_sha256 ") as caught:
        evaluate(workspace, ["npo"], protocol="open")
    assert caught.value.next_step == "mmsurgery eval npo --protocol open --force"
    assert evaluate(workspace, ["npo"])[0].up_to_date
    assert not evaluate(workspace, ["npo"], protocol="open", force=True)[0].up_to_date


def test_without_vanilla_nothing_can_be_judged(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(workspace.model_dir("vanilla"))
    monkeypatch.setattr(open_answers, "write", None)
    with pytest.raises(MissingArtifact, match="no model 'vanilla'"):
        evaluate(workspace, ["npo"], protocol="open")
    assert evaluate(workspace, ["npo"])[0].model == "npo"


def test_a_subset_knows_the_people_outside_it(
    workspace: Workspace, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lisbon is the second person's, oslo the first's: whoever is drawn, the other one is known."""

    def swapped(loaded: Any, items: list[Item], *_: Any, **__: Any) -> list[str]:
        return ["It is oslo" if item.gold == "B" else "lisbon" for item in items]

    monkeypatch.setattr(open_answers, "greedy", swapped)
    (result,) = evaluate(workspace, ["npo"], protocol="open", subset=1)
    assert result.path == workspace.path("evals", "open", "subset-1", "npo.json")
    assert [value["n"] for value in result.columns.values()] == [1, 1]
    found = [item for items in records.read_items(result.path).values() for item in items]
    assert [each.other for each in found] == [("lisbon" if each.gold == "A" else "oslo") for each in found]
    (_, outsider) = (item for item in bench.found["retain_qa"] if item.id.endswith("city"))
    changed = dataclasses.replace(outsider, gold="C")
    bench.found["retain_qa"] = [changed if each is outsider else each for each in bench.found["retain_qa"]]
    with pytest.raises(Mismatch, match=r"other inputs \((items|known)"):
        evaluate(workspace, ["npo"], protocol="open", subset=1)


def test_the_table_shows_what_was_said_instead(workspace: Workspace) -> None:
    result = dataclasses.replace(
        evaluate(workspace, ["npo"], protocol="open")[0],
        columns={"forget_vqa": columns.summary(answers(), "open")},
        remarks={},
    )
    console = Console(file=io.StringIO(), width=120)
    for line in show.scored([result]):
        console.print(line)
    file: Any = console.file
    lines = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    start = lines.index("npo 28.6")
    assert lines[start : start + 6] == ["npo 28.6", "o 14", "w 14", "r 14", "g 29", "0-57"]
    assert "n 7" in lines
    assert not any("chance" in line for line in lines)
    assert "o of another person" in " ".join(lines)
