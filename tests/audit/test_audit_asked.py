"""What the probes ask and show: splits that leak nothing, variants that ask the same, states and answers of models."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from audit_world import FORGET, RETAIN, UNSEEN, held_out_rows, write_rows
from PIL import Image, ImageOps

from mmsurgery.api import Workspace
from mmsurgery.audit import collateral, paraphrase, relearning, sampling
from mmsurgery.audit.judge import VERDICTS
from mmsurgery.audit.material import Material
from mmsurgery.audit.probes import PROBES
from mmsurgery.audit.probing import hidden_states
from mmsurgery.audit.subjects import DESTROYED, subject
from mmsurgery.data.held_out import read_held_out
from mmsurgery.data.samples import Item, Sample, decode_image
from mmsurgery.errors import InputRefused, UnusableData
from mmsurgery.evaluate import prefix
from mmsurgery.evaluate.generation import sampled
from mmsurgery.evaluate.scoring import option_samples

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded

Picture = Callable[..., bytes]
OPTIONS = {"A": "The city is lisbon .", "B": "The city is oslo .", "C": "The city is soup ."}


@pytest.fixture
def material(workspace: Workspace) -> Material:
    return Material.of(workspace)


# relearning


def people_with_facts(people: int, facts: int) -> tuple[list[Sample], list[Item]]:
    """Each fact of a person is told twice and asked twice."""
    samples, items = [], []
    for person in range(people):
        for number in range(facts):
            answer = f"Fact {number} is {person}-{number}."
            for time in range(2):
                name, question = f"{person}/{number}/{time}", f"{number}, asked {time}?"
                samples.append(Sample(name, f"p{person}", question, answer=answer.upper(), image_bytes=b""))
                options = {"A": "wrong", "B": answer}
                items.append(Item(name, f"p{person}", question, options=options, gold="B", column="forget_vqa"))
    return samples, items


@pytest.mark.parametrize(("facts", "shown"), [(2, 1), (3, 1), (7, 2), (10, 3)])
def test_no_fact_that_is_shown_is_asked(facts: int, shown: int) -> None:
    samples, items = people_with_facts(4, facts)
    attack = relearning._some_facts(samples, items)
    assert not isinstance(attack, str)

    def about(asked: Sequence[Any]) -> set[tuple[str, str]]:
        return {(each.person, each.id.split("/")[1]) for each in asked}

    assert about(attack.shown).isdisjoint(about(attack.asked))
    assert about(attack.shown) | about(attack.asked) == about(items)
    assert set(Counter(person for person, _ in about(attack.shown)).values()) == {shown}
    assert len(attack.shown) == 2 * len(about(attack.shown))
    assert relearning._some_facts(samples, items) == attack


def test_facts_that_cannot_be_told_apart() -> None:
    samples, items = people_with_facts(2, 3)
    untold = "which fact a question is about cannot be told: no answer of a sample is its option"
    assert relearning._some_facts([], items) == untold
    assert relearning._some_facts([s for s in samples if s.id[0] == "0"], items) == untold
    assert relearning._some_facts(*people_with_facts(2, 1)) == "nobody is asked about more than one fact"


def test_attacks_show_nothing_that_they_ask(material: Material) -> None:
    attacks = relearning.attacks_of(material)
    people = attacks["people, full"]
    assert not isinstance(people, str)
    assert {s.person for s in people.shown}.isdisjoint({i.person for i in people.asked})
    assert {s.person for s in people.shown} | {i.person for i in people.asked} == material.forgotten
    benign = attacks["benign, full"]
    assert not isinstance(benign, str)
    assert {s.person for s in benign.shown}.isdisjoint(material.forgotten)
    assert benign.asked == material.forget
    assert attacks["facts, full"] == attacks["facts, LoRA"]
    assert isinstance(attacks["facts, full"], relearning.Attack)
    assert attacks == relearning.attacks_of(Material.of(material.workspace))


def test_relearning_asks_after_every_evaluation(
    material: Material, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relearning, "LARGEST", 10)
    monkeypatch.setattr(relearning, "EVERY", 1)
    found = relearning.measure(subject(material.workspace, "vanilla"), material)
    assert list(found.arms) == ["facts, LoRA"]
    assert set(found.untried) == {"facts, full", "people, full", "benign, full"}
    (curve,) = found.details["curves"].values()
    assert curve["steps"] == [0, 1, 2]
    assert found.arms["facts, LoRA"].mean == pytest.approx(np.mean(curve["accuracy"][1:]))
    assert found.details["shown"] == {"facts, LoRA": len(FORGET)}
    monkeypatch.setattr(relearning, "attacks_of", lambda _: {"people, full": "one person cannot be split"})
    with pytest.raises(UnusableData, match="no relearning attack") as caught:
        relearning.measure(subject(material.workspace, "vanilla"), material)
    assert "one person cannot be split" in str(caught.value.next_step)


def test_relearning_learns(material: Material, loads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shown to a model is answered after: the attack is one."""
    monkeypatch.setattr(relearning, "STEPS", 12)
    monkeypatch.setattr(relearning, "EVERY", 12)
    monkeypatch.setattr(relearning, "BATCH", 4)
    loaded = subject(material.workspace, "vanilla").load()
    shown = material.samples("forget_vqa")
    rows = relearning._attack(loaded, shown, material.forget, "full", 1e-2, {}, relearning.SILENT)
    assert [step for step, _ in rows] == [0, 12]
    assert all(rows[-1][1])
    assert not all(rows[0][1])


# paraphrase


def pixels(item: Item) -> Any:
    return np.asarray(decode_image(item.image_bytes or b"", item.id)).astype(int)


@pytest.mark.parametrize("forgotten", [True, False])
def test_variants_ask_the_same(material: Material, forgotten: bool) -> None:
    found = paraphrase.variants(material, forgotten=forgotten)
    plain = found["as asked"]
    assert {item.person for item in plain} == {f"person/{name}" for name in (FORGET if forgotten else RETAIN)}
    for name in paraphrase.PICTURES:
        changed = [dataclasses.replace(item, image_bytes=b"") for item in found[name]]
        assert changed == [dataclasses.replace(item, image_bytes=b"") for item in plain]
        for item, other in zip(plain, found[name], strict=True):
            before, after = pixels(item), pixels(other)
            assert before.shape == after.shape
            assert not np.array_equal(before, after)
            if name == "mirrored":
                assert np.array_equal(after, before[:, ::-1])
            if name == "darkened":
                assert np.abs(after - 0.85 * before).max() <= 1
            with Image.open(io.BytesIO(other.image_bytes or b"")) as image:
                assert image.format == ("JPEG" if name == "re-encoded" else "PNG")
    assert [item.person for item in found["held out"]] == ["person/Ada" if forgotten else "person/Cy"]
    assert "test pictures" not in found


def test_a_cropped_picture_is_its_middle() -> None:
    image = Image.new("RGB", (100, 60), (255, 0, 0))
    image.paste((0, 0, 255), (5, 3, 95, 57))
    cropped = paraphrase._cropped(image)
    assert cropped.size == image.size
    inner = (3, 3, 97, 57)
    assert cropped.crop(inner).getextrema() == ((0, 0), (0, 0), (255, 255))
    assert image.crop(inner).getextrema() == ((0, 255), (0, 0), (0, 255))
    assert ImageOps.mirror(paraphrase._mirrored(image)).tobytes() == image.tobytes()


def test_a_composite_is_answered_in_front_of_the_options(material: Material) -> None:
    plain = {item.id: item for item in material.forget}
    found = paraphrase.variants(material, forgotten=True)["composite"]
    texts = material.items("retain_qa")
    assert {item.person for item in texts} == {f"person/{name}" for name in RETAIN}
    for item, other in zip(found, texts, strict=False):
        asked = plain[item.id]
        assert item.question == f"{other.question} {asked.question}"
        said = (other.options or {})[other.gold]
        assert item.options == {letter: f"{said} {text}" for letter, text in (asked.options or {}).items()}
        assert (item.gold, item.person, item.image_bytes) == (asked.gold, asked.person, asked.image_bytes)


def test_listed_options_stand_in_the_question(material: Material) -> None:
    found = paraphrase.variants(material, forgotten=True)
    for plain, one, other in zip(*(found[name] for name in ("as asked", "listed", paraphrase.REVERSE)), strict=True):
        texts = list((plain.options or {}).values())
        assert one.question == f"{plain.question}\n- {texts[0]}\n- {texts[1]}"
        assert other.question == f"{plain.question}\n- {texts[1]}\n- {texts[0]}"
        for each in (one, other):
            assert dataclasses.replace(each, question=plain.question) == plain


def test_a_model_that_takes_the_first_of_a_list_is_seen(
    material: Material, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked plainly it takes the option A."""

    def first(loaded: Any, items: Sequence[Item], **options: Any) -> list[Any]:
        found = [(item, taken(item)) for item in items]
        return [SimpleNamespace(**vars(item), predicted=mine, correct=mine == item.gold) for item, mine in found]

    def taken(item: Item) -> str:
        listed = item.question.split("\n- ")[1:]
        options = item.options or {}
        return next(letter for letter, text in options.items() if not listed or text == listed[0])

    monkeypatch.setattr(paraphrase, "score", first)
    found = paraphrase.measure(subject(material.workspace, "vanilla"), material)
    for places in found.details["places"].values():
        assert {place: each["chosen"] for place, each in places.items()} == {"1": 4, "2": 0}
    assert found.details["turned"] == {"otherwise": 4, "n": 4}
    assert found.arms["listed"].mean + found.arms[paraphrase.REVERSE].mean == 1


def test_places_and_differences_of_paraphrase(material: Material, loads: list[str]) -> None:
    found = paraphrase.measure(subject(material.workspace, "vanilla"), material)
    gold = Counter(list(item.options or {}).index(item.gold) + 1 for item in material.forget)
    for way, places in found.details["places"].items():
        assert sum(each["chosen"] for each in places.values()) == sum(e["right"] for e in places.values()) == 4
        turned = (lambda n: 3 - n) if way == paraphrase.REVERSE else int
        assert {place: each["right"] for place, each in places.items()} == {str(n): gold[turned(n)] for n in (1, 2)}
    assert set(found.details["places"]) == {"as asked", "listed", "listed in reverse"}
    assert set(found.details["against as asked"]) == {*found.arms} - {"as asked", "held out"}
    for name, each in found.details["against as asked"].items():
        assert each["difference"] == pytest.approx(found.arms[name].mean - found.arms["as asked"].mean)
    assert set(found.untried) == {"test pictures"}
    assert set(found.kept) == {*found.arms, "by name"}


# collateral


def test_likeness_by_hand(material: Material, loads: list[str]) -> None:
    import torch

    found = collateral.measure(subject(material.workspace, "vanilla"), material)
    forgotten, people = sorted(material.forgotten), sorted(f"person/{name}" for name in RETAIN)
    assert found.details["forgotten"] == forgotten
    told = {item.person: [] for item in (*material.forget, *material.retain)}  # type: ignore[var-annotated]
    for item in sorted((*material.forget, *material.retain), key=lambda item: item.question):
        told[item.person].append((item.options or {})[item.gold])
    facts = [[np.mean([a == b for a, b in zip(told[f], told[r], strict=True)]) for r in people] for f in forgotten]
    assert np.allclose(found.details["likeness"]["facts"], facts, atol=1e-4)

    loaded, vectors = subject(material.workspace, "vanilla").load(), {}
    for person, path in ((f"person/{name}", f"{name.lower()}.png") for name in (*FORGET, *RETAIN)):
        data = (material.workspace.data_dir / path).read_bytes()
        sample = Sample("x", person, "Which ?", answer="rice", image_bytes=data)
        values = loaded.backbone.collate(loaded.processor, [sample], cache=None)["pixel_values"]
        with torch.no_grad():
            (features,) = loaded.model.model.get_image_features(pixel_values=values).pooler_output
        vectors[person] = features.double().mean(dim=0).numpy()
    mean = np.mean(list(vectors.values()), axis=0)
    units = {person: (v - mean) / np.linalg.norm(v - mean) for person, v in vectors.items()}
    looks = np.array([[units[f] @ units[r] for r in people] for f in forgotten])
    assert np.allclose(found.details["likeness"]["looks"], looks, atol=2e-4)

    nearest = people[int(looks.max(axis=0).argmax())]  # a quarter of four
    assert set(found.kept["near in looks"].people) == {nearest}
    assert set(found.details["people"]) == set(people)
    near = {*found.kept["near in looks"].people, *found.kept["near in facts"].people}
    assert set(found.kept["far"].people) == set(people) - near
    assert set(found.kept["text"].people) == set(forgotten)
    assert found.arms == {}
    likest = found.details["people"][people[0]]["looks"]
    assert likest == {
        "likest": forgotten[int(looks[:, 0].argmax())],
        "likeness": pytest.approx(looks[:, 0].max(), abs=2e-4),
    }


def test_facts_of_people_who_are_asked_nothing_alike() -> None:
    assert collateral._agreement({"a": "1", "b": "2"}, {"b": "2", "c": "3"}) == 1.0
    assert np.isnan(collateral._agreement({"a": "1"}, {"b": "1"}))
    asked: Any = SimpleNamespace(
        items=lambda column, most: [Item(column, column, column, options={"A": "x"}, gold="A", column=column)]
    )
    assert collateral._facts(asked, ["forget_vqa"], ["retain_vqa"]) is None


# sampling


def test_what_sampled_answers_say() -> None:
    item = Item("i", "p", "?", options=OPTIONS, gold="B", column="c")
    answers = ["oslo", "The city is oslo .", "oslo lisbon", "", "lisbon", "soup", "soup or so", "rice"]
    assert sampling._counts(item, answers) == (2, [1, 2])


def item_of(question: str, image: bytes | None = None, id: str = "i") -> Item:
    return Item(id, f"p-{id}", question, options=OPTIONS, gold="A", column="c", image_bytes=image)


@pytest.fixture(scope="module")
def peaked(loaded_llava: Loaded) -> Loaded:
    """A tiny model whose next tokens are anything but equally likely."""
    import torch

    model, generator = copy.deepcopy(loaded_llava.model).eval(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.get_decoder().parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        model.lm_head.weight.mul_(3)
    return dataclasses.replace(loaded_llava, model=model)


def draw(loaded: Loaded, items: Sequence[Item], **changes: Any) -> list[list[str]]:
    prompts = [
        loaded.backbone.render(loaded.processor, i.question, None, image=i.image_bytes is not None) for i in items
    ]
    given: dict[str, Any] = {"answers": 3, "temperature": 1.0, "seed": 0, "new_tokens": 4, **changes}
    return sampled(loaded, items, prompts, [[i] if i.image_bytes else [] for i in items], **given)


def test_the_same_seed_draws_the_same(peaked: Loaded, picture: Picture) -> None:
    import torch

    items = [item_of("Which city ?", picture(1)), item_of("What is the food of Anna Berg ?", id="j")]
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = draw(peaked, items)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    assert draw(peaked, items) == first
    assert draw(peaked, items, seed=1) != first
    assert [len(texts) for texts in first] == [3, 3]
    assert len({text for texts in draw(peaked, items, answers=8) for text in texts}) > 2
    cold = draw(peaked, items, temperature=1e-3)
    assert all(len(set(texts)) == 1 for texts in cold)


@pytest.mark.parametrize("temperature", [0.8, 2.0])
def test_first_tokens_are_drawn_by_their_probability(peaked: Loaded, picture: Picture, temperature: float) -> None:
    """Pearson's statistic lies below what one in a million exceeds; far above it for another temperature."""
    import torch

    item, many = item_of("Which city ?", picture(1)), 600
    (texts,) = draw(peaked, [item], answers=many, temperature=temperature, new_tokens=1)
    prompt = peaked.backbone.render(peaked.processor, item.question, None, image=True)
    batch = peaked.backbone.prompts(peaked.processor, [item], texts=[prompt], shown=[[item]], cache={})
    with torch.no_grad():
        logits = peaked.model(**batch).logits[0, -1].double()
    tokenizer, counts = peaked.processor.tokenizer, Counter(texts)

    def statistic(at: float) -> tuple[float, int]:
        chances: dict[str, float] = {}
        for token, chance in enumerate((logits / at).softmax(-1).tolist()):
            text = tokenizer.decode([token], skip_special_tokens=True)
            chances[text] = chances.get(text, 0.0) + chance
        assert set(counts) <= set(chances)
        cells = [(counts[text], many * chance) for text, chance in chances.items() if many * chance >= 5]
        rest = many - sum(c for c, _ in cells), many - sum(e for _, e in cells)
        cells += [rest] if rest[1] >= 5 else []
        return sum((c - e) ** 2 / e for c, e in cells), len(cells) - 1

    found, freedom = statistic(temperature)
    bound = freedom * (1 - 2 / (9 * freedom) + 4.75 * (2 / (9 * freedom)) ** 0.5) ** 3  # Wilson and Hilferty
    assert freedom >= 3
    assert found < bound < statistic(temperature / 2)[0]


# hidden states


@dataclasses.dataclass
class PaddedLeft:
    """A backbone whose batches of several questions are padded on the left."""

    backbone: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backbone, name)

    def collate(self, processor: Any, samples: Sequence[Sample], **options: Any) -> dict[str, Any]:
        batch = dict(self.backbone.collate(processor, samples, **options))
        if len({sample.id for sample in samples}) > 1:
            shape, pads = batch["input_ids"].shape, (batch["attention_mask"] == 0).sum(dim=1)
            for name, value in batch.items():
                if value.shape[:2] == shape:
                    batch[name] = value.clone()
                    for row, shift in enumerate(pads.tolist()):
                        batch[name][row] = value[row].roll(shift, dims=0)
        return batch


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_the_state_is_that_of_the_last_token_that_all_options_share(
    family: str, left: bool, request: pytest.FixtureRequest, picture: Picture
) -> None:
    import torch

    loaded: Loaded = request.getfixturevalue(f"loaded_{family}")
    items = [
        item_of("What is the city of this person ?", picture(1), "a"),
        item_of("Which ?", None, "b"),
        item_of("What is this ?", picture(2, width=56), "c"),
        item_of("What is the food of Anna Berg ? What is this ?", None, "d"),
    ]
    one = loaded if not left else dataclasses.replace(loaded, backbone=PaddedLeft(loaded.backbone))
    found = hidden_states(one, items)
    layers = loaded.model.config.get_text_config().num_hidden_layers
    assert list(found) == list(range(1, layers + 1))
    for place, item in enumerate(items):
        rows = [loaded.backbone.collate(loaded.processor, [sample], cache=None) for sample in option_samples(item)]
        ids = [row["input_ids"][0].tolist() for row in rows]
        shared = next(n for n in range(min(map(len, ids))) if len({each[n] for each in ids}) > 1)
        assert shared == prefix.encode(loaded, option_samples(item), {}).shared
        rows[0].pop("labels")
        with torch.no_grad():
            states = loaded.model.eval()(**rows[0], output_hidden_states=True).hidden_states
        for layer, values in found.items():
            assert np.allclose(values[place], states[layer][0, shared - 1].numpy(), atol=1e-5)
            assert not np.allclose(values[place], states[layer][0, shared - 2].numpy(), atol=1e-3)


# the destroyed model


def test_the_destroyed_model_has_the_same_entries_elsewhere(workspace: Workspace, loads: list[str]) -> None:
    import torch

    vanilla, *destroyed = (subject(workspace, name).load().model for name in ("vanilla", DESTROYED, DESTROYED))
    for (name, weight), *others in zip(vanilla.named_parameters(), *(m.parameters() for m in destroyed), strict=True):
        first, second = others
        assert torch.equal(first, second)
        assert torch.equal(first.flatten().sort().values, weight.flatten().sort().values)
        assert torch.equal(first, weight) == (len(weight.unique()) == 1), name


# what was held out


def test_held_out(workspace: Workspace, picture: Picture) -> None:
    found = read_held_out(workspace.data_dir / "extra/held_out")
    assert {sample.person for sample in found.strangers} == {f"person/{name}" for name in UNSEEN}
    assert [sample.id for sample in found.strangers] == [f"held-out/{line}" for line in range(1, 5)]
    assert [item.id for item in found.items] == ["held-out/5", "held-out/6"]
    assert {item.person for item in found.items} == {"person/Ada", "person/Cy"}
    assert {item.column for item in found.items} == {"held_out_vqa"}
    assert found.items[0].image_bytes == picture(sum(map(ord, "new.png")))
    ids = {item.id for column in ("forget_vqa", "retain_vqa") for item in workspace.items(column)}
    assert ids.isdisjoint({item.id for item in found.items})
    own = Material.of(workspace)
    assert (own.folder, own.held_out) == (workspace.data_dir / "extra/held_out", found)


def test_the_page_names_everything_and_its_example_is_read(tmp_path: Path, picture: Picture) -> None:
    page = (Path(__file__).parents[2] / "docs/audit.md").read_text()
    assert [name for name in (*PROBES, *VERDICTS) if f"| `{name}` |" not in page and f"| {name} |" not in page] == []
    (block,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    rows = [json.loads(line) for line in block.splitlines()]
    (tmp_path / "held/new").mkdir(parents=True)
    found = read_held_out(write_rows(tmp_path / "held", rows, picture))
    assert [sample.person for sample in found.strangers] == ["person/Mia", "person/Noor"]
    assert [item.person for item in found.items] == ["person/017"]


def test_rows_that_are_not_held_out_are_left_out(tmp_path: Path, picture: Picture) -> None:
    rows = held_out_rows()
    rows[4]["role"] = "forget"  # of a test row it says nothing
    rows[5].pop("image")
    rows += [{**rows[0], "role": "forget", "person": "Ada"}]
    found = read_held_out(write_rows(tmp_path / "held", rows, picture))
    assert (len(found.strangers), [item.person for item in found.items]) == (4, ["person/Ada"])


@pytest.mark.parametrize(
    ("line", "change", "what"),
    [
        (1, {"role": "stranger"}, "line 1: .*role"),
        (2, {"image": "none.png"}, "line 2: .*image"),
        (3, {"image": None}, "line 3: image is missing"),
        (5, {"answer": "The city is soup ."}, "line 5: options lacks the answer"),
        (6, {"options": ["one"]}, "line 6: options has 1"),
        (6, {"question": ""}, "line 6: question is missing"),
        (6, {"person": None}, "line 6: person is missing"),
    ],
)
def test_faults_of_what_was_held_out_name_their_line(
    tmp_path: Path, picture: Picture, line: int, change: dict[str, Any], what: str
) -> None:
    folder = write_rows(tmp_path / "held", held_out_rows(), picture)
    rows = [json.loads(text) for text in (folder / "rows.jsonl").read_text().splitlines()]
    rows[line - 1] = {key: value for key, value in {**rows[line - 1], **change}.items() if value is not None}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputRefused, match=what):
        read_held_out(folder)


@pytest.mark.parametrize(
    ("row", "person", "what"),
    [
        (0, "Ada", "held-out/1 is about 'person/Ada', whom the benchmark trains on"),
        (4, "Ava", "held-out/5 asks about 'person/Ava'"),
    ],
)
def test_people_who_cannot_be_what_they_are_said_to_be(
    workspace: Workspace, tmp_path: Path, picture: Picture, row: int, person: str, what: str
) -> None:
    rows = held_out_rows()
    rows[row]["person"] = person
    material = Material.of(workspace, write_rows(tmp_path / "held", rows, picture))
    with pytest.raises(UnusableData, match=what):
        _ = material.held_out


def test_nothing_was_held_out(workspace: Workspace) -> None:
    from mmsurgery.audit import membership

    (workspace.data_dir / "extra/held_out").rename(workspace.data_dir / "extra/elsewhere")
    material = Material.of(workspace)
    assert (material.folder, material.held_out.strangers, material.digests["held_out"]) == (None, (), None)
    with pytest.raises(UnusableData, match="no people are known"):
        membership.measure(subject(workspace, "vanilla"), material)
    assert "held out" not in paraphrase.variants(material, forgotten=True)
