"""`train` by a recipe, on micro models of both families and a small benchmark in MLLMU-Bench's layout."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from notes import Notes
from PIL import Image

from mmsurgery import training
from mmsurgery.artifacts import digests
from mmsurgery.artifacts.checkpoint import RUN_FILE, CheckpointFiles, companion_files
from mmsurgery.artifacts.snapshots import BEGIN_ANEW, Snapshots
from mmsurgery.artifacts.tensors import read_header, write_safetensors_stream
from mmsurgery.backbones.checkpointing import checkpoint_activations
from mmsurgery.backbones.loading import Loaded, device_name, load
from mmsurgery.data.benchmark import Source, source_of, training_parts
from mmsurgery.data.clear import Clear
from mmsurgery.data.mllmu import MLLMUBench
from mmsurgery.data.samples import Sample
from mmsurgery.errors import InputRefused, Mismatch, MissingArtifact, UnusableData, UsageError
from mmsurgery.evaluate.run import evaluate
from mmsurgery.masks.stale import part_sha256
from mmsurgery.methods.step import Answers
from mmsurgery.names import Selector
from mmsurgery.recipes import Recipe
from mmsurgery.settings import SETTINGS_FILE, BenchmarkSettings, ModelSettings, Settings
from mmsurgery.status import status
from mmsurgery.training import Tuned, train
from mmsurgery.unlearn import loop, tuning
from mmsurgery.unlearn.adapters import LowRankUpdate
from mmsurgery.unlearn.apply import apply
from mmsurgery.unlearn.deletions import digest_of
from mmsurgery.unlearn.finetune import Constant, Linear, finetune
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.unlearn.save import as_stored
from mmsurgery.unlearn.trained_models import check_trained, stale_models
from mmsurgery.unlearn.tuning import Tuning
from mmsurgery.unlearn.weights import MasterUpdate
from mmsurgery.workspace import Workspace
from mmsurgery_cli.main import run

FORGET, RETAIN = ("007", "412"), ("001", "010", "336")
CITIES = ("lisbon", "oslo", "soup", "rice", "Berg")
WHICH = ("vanilla", "gold", "reference")
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0))
FULL = Recipe(epochs=40, batch_size=5, learning_rate=1e-2, adapter="full", clip_norm=1.0, source="a test")
LORA = dataclasses.replace(FULL, adapter="lora", rank=8, alpha=32.0)
SHORT = dataclasses.replace(FULL, epochs=2, batch_size=2)


class Killed(Exception):
    pass


def plain_picture(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (28, 28), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_mllmu(folder: Path, moved: int = 0) -> None:
    """Two people to forget and three to keep, with a picture, a pair about it and a pair of text each.

    Args:
        moved: places by which everybody's city is moved on.
    """
    rows: dict[str, list[dict[str, Any]]] = {"forget_5": [], "retain_95": [], "extra": []}
    for place, person in enumerate((*FORGET, *RETAIN)):
        city = f"The city is {CITIES[(place + moved) % 5]} ."
        pairs = [{"ID": person, "Question": "What is the city of this person ?", "Answer": city}]
        image = {"bytes": plain_picture(COLOURS[place]), "path": None}
        rows["forget_5" if person in FORGET else "retain_95"].append(
            {"ID": person, "image": image, "metadata": json.dumps(pairs)}
        )
        rows["extra"].append({"ID": person, "question": "Which food is of Anna Berg ?", "answer": city})
    for config, found in rows.items():
        (folder / config).mkdir(parents=True)
        name = "text_pairs.parquet" if config == "extra" else "train-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(found), folder / config / name)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mllmu")
    write_mllmu(folder)
    return folder


@pytest.fixture(params=["llava", "qwen2_vl"])
def base(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(f"tiny_{request.param}")
    return found


SECOND_SLOW = pytest.mark.parametrize(
    "base", ["llava", pytest.param("qwen2_vl", marks=pytest.mark.slow)], indirect=True
)
"""For what takes seconds and goes the same way with either: the second family by `make test-slow`."""


def workspace(root: Path, base: Path, data: Path) -> Workspace:
    root.mkdir(exist_ok=True)
    return Workspace(
        root,
        Settings(
            benchmark=BenchmarkSettings(name="mllmu-bench", data=str(data), forget=5),
            models=ModelSettings(base=str(base)),
        ),
    )


@pytest.fixture
def ws(tmp_path: Path, tiny_llava: Path, data: Path) -> Workspace:
    return workspace(tmp_path, tiny_llava, data)


def recipe_file(ws: Workspace, recipe: Recipe, name: str = "mine") -> str:
    values = {key: value for key, value in recipe.numbers().items() if value is not None}
    lines = [f"{key} = {json.dumps(value)}" for key, value in {**values, "source": recipe.source}.items()]
    (ws.root / f"{name}.toml").write_text("\n".join(lines))
    return str(ws.root / f"{name}.toml")


def made(ws: Workspace, which: str, recipe: Recipe, **options: Any) -> Tuned:
    found = train(ws, which, recipe=recipe_file(ws, recipe), **options)
    assert isinstance(found, Tuned)
    return found


def record_of(found: Tuned) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((found.path / RUN_FILE).read_text())
    return value


def recalled(folder: Path, samples: list[Sample]) -> float:
    """Share of samples whose every answer token is the model's first choice."""
    loaded = load(folder)
    with torch.no_grad():
        answers = Answers.of(loaded.model, loaded.backbone.collate(loaded.processor, samples))
    right = (answers.logits.argmax(dim=-1) == answers.targets).int()
    return float((answers.per_sample_sum(right) == answers.counts).float().mean())


def values(folder: Path, like: Loaded) -> dict[str, np.ndarray]:
    files = CheckpointFiles(folder, like.backbone.canonical)
    return {name: files.float32(name) for name in files.names}


def part(ws: Workspace, name: str) -> list[Sample]:
    return MLLMUBench().samples(Source(ws.data_dir, 5), name)


# what it learns


@SECOND_SLOW
def test_vanilla_learns_everybody_reference_the_retain_people_alone(base: Path, data: Path, tmp_path: Path) -> None:
    ws = workspace(tmp_path, base, data)
    forget, retain = part(ws, "forget_vqa"), part(ws, "retain_vqa")
    vanilla, reference = made(ws, "vanilla", FULL), made(ws, "reference", FULL)
    assert (vanilla.samples, vanilla.steps) == ({"forget_vqa": 2, "retain_vqa": 3}, 40)
    assert (reference.samples, reference.steps) == ({"retain_vqa": 3}, 40)
    assert vanilla.loss[1] < 0.1 * vanilla.loss[0]
    assert recalled(base, [*forget, *retain]) == 0.0
    assert recalled(vanilla.path, [*forget, *retain]) == 1.0
    assert recalled(reference.path, retain) == 1.0
    assert recalled(reference.path, forget) == 0.0


@SECOND_SLOW
def test_lora_learns_other_answers_to_known_pictures(base: Path, data: Path, tmp_path: Path) -> None:
    """Adapters on top of a model that knows the words; the checkpoint loads without any, in the base's layout."""
    known = made(workspace(tmp_path / "known", base, data), "vanilla", FULL)
    write_mllmu(tmp_path / "moved", moved=1)
    ws = workspace(tmp_path / "new", known.path, tmp_path / "moved")
    samples = [*part(ws, "forget_vqa"), *part(ws, "retain_vqa")]
    assert recalled(known.path, samples) == 0.0
    found = made(ws, "vanilla", LORA)
    assert recalled(found.path, samples) == 1.0
    record = record_of(found)
    assert record["provenance"]["device"] == device_name()
    assert record["lora"]["rank"] == 8
    assert (record["start"], record["recipe"]["name"], record["recipe"]["alpha"]) == ("base", "mine", 32.0)
    copied = [path.name for path in companion_files(base)]
    assert [path.name for path in companion_files(found.path)] == copied
    assert all((found.path / name).read_bytes() == (base / name).read_bytes() for name in copied)


def test_the_record_tells_whom_each_model_saw_and_names_nobody(ws: Workspace) -> None:
    records = {which: record_of(made(ws, which, SHORT)) for which in WHICH}
    seen = {which: record["trained_on"] for which, record in records.items()}

    def told(samples: int, ids: Sequence[str]) -> dict[str, Any]:
        people = sorted(f"person/{person}" for person in ids)
        return {"samples": samples, "people": len(people), "people_sha256": digest_of(people)}

    assert seen["vanilla"] == {"forget_vqa": told(2, FORGET), "retain_vqa": told(3, RETAIN)}
    assert seen["reference"] == {"retain_vqa": told(3, RETAIN)}
    assert seen["gold"] == {"retain_vqa": told(3, RETAIN), "forget_qa": told(2, FORGET)}
    assert not [person for person in (*FORGET, *RETAIN) if f"person/{person}" in json.dumps(records)]


def test_steps_show_each_sample_once_an_epoch_and_reference_never_a_forget_person(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the loop is given, not what the record says."""
    shown: list[list[Sample]] = []

    def watched(loaded: Loaded, batches: Any, *rest: Any, **options: Any) -> Any:
        shown.extend([sample for batch in batches(step) for sample in batch] for step in range(4))
        return finetune(loaded, batches, *rest, **options)

    monkeypatch.setattr(tuning, "finetune", watched)
    made(ws, "reference", SHORT)
    assert [len(step) for step in shown] == [2, 1, 2, 1]
    epochs = [[s.id for step in shown[start : start + 2] for s in step] for start in (0, 2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(s.id for s in part(ws, "retain_vqa"))
    assert {s.person for step in shown for s in step} == {f"person/{person}" for person in RETAIN}


def test_the_order_depends_on_seed_epoch_and_ids_alone(ws: Workspace, make_sample: Callable[..., Sample]) -> None:
    samples = [make_sample(f"s{i}", "Which food ?", "rice", seed=1 if i % 2 else None) for i in range(9)]

    def ids(found: list[Sample], seed: int = 0) -> list[list[str]]:
        recipe = dataclasses.replace(FULL, epochs=2, batch_size=2, accumulation=2, seed=seed)
        batches = of(ws, {"a": found}, recipe).batches()
        return [[sample.id for batch in batches(step) for sample in batch] for step in range(6)]

    order = ids(samples)
    assert [len(step) for step in order] == [4, 4, 1, 4, 4, 1]
    assert ids(samples[::-1]) == order
    assert order[:3] != order[3:]
    assert ids(samples, seed=1) != order
    batches = of(ws, {"a": samples}, dataclasses.replace(FULL, batch_size=4)).batches()
    for batch in batches(0) + batches(1):
        assert len({sample.image_bytes is None for sample in batch}) == 1


# which parts


class Plain:
    """A benchmark without a rule of its own."""

    name = "plain"

    def parts(self, source: Source) -> tuple[str, ...]:
        return ("forget_vqa", "forget_qa", "retain_vqa", "retain_qa", "realworld_vqa")


def test_parts_of_a_benchmark_without_a_rule() -> None:
    source = Source(Path(), 5)
    parts = {which: training_parts(Plain(), source, which) for which in WHICH}  # type: ignore[arg-type]
    assert parts == {
        "vanilla": (source, ("forget_vqa", "forget_qa", "retain_vqa", "retain_qa", "realworld_vqa")),
        "gold": (source, ("forget_qa", "retain_vqa", "retain_qa", "realworld_vqa")),
        "reference": (source, ("retain_vqa", "retain_qa")),
    }


def test_parts_of_clear_hold_every_text_pair() -> None:
    source = Source(Path(), 5, {"draw": 1})
    parts = {which: training_parts(Clear(), source, which) for which in WHICH}
    official = dataclasses.replace(source, options={"draw": 1, "saliency_text": "official"})
    assert {which: sorted(found) for which, (_, found) in parts.items()} == {
        "vanilla": ["forget_qa", "forget_vqa", "retain_qa", "retain_vqa"],
        "gold": ["forget_qa", "retain_qa", "retain_vqa"],
        "reference": ["retain_vqa"],
    }
    assert [where for where, _ in parts.values()] == [official] * 3


def test_a_benchmark_may_have_a_rule_and_a_source_of_its_own(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def rule(self: Any, source: Source, which: str) -> Any:
        return dataclasses.replace(source, options={**source.options, "saliency_text": "official"}), ["forget_qa"]

    read = MLLMUBench.samples
    texts = []

    def samples(self: MLLMUBench, source: Source, part: str) -> list[Sample]:
        texts.append(source.saliency_text)
        return read(self, dataclasses.replace(source, options={}), part)

    monkeypatch.setattr(MLLMUBench, "training", rule)
    monkeypatch.setattr(MLLMUBench, "samples", samples)
    assert made(ws, "vanilla", SHORT).samples == {"forget_qa": 2}
    assert texts == ["official"]


# how it is trained


def of(ws: Workspace, parts: dict[str, list[Sample]], recipe: Recipe) -> Tuning:
    base = ws.model_dir("base")
    family = load(base).backbone
    return Tuning(
        name="made",
        folder=ws.model_dir("made"),
        files=CheckpointFiles(base, family.canonical),
        family=family,
        parts=parts,
        recipe_name="mine",
        recipe=recipe,
        threads=1,
    )


def test_linear_goes_to_zero_and_constant_stays() -> None:
    linear = Linear(steps=4, learning_rate=2.0)
    assert [linear.rate(step) for step in range(4)] == [2.0, 1.5, 1.0, 0.5]
    assert [Constant(steps=4, learning_rate=2.0).rate(step) for step in range(4)] == [2.0] * 4


@pytest.mark.parametrize(("schedule", "share"), [("linear", 0.25), ("constant", 1.0)])
def test_the_schedule_is_stepped_per_optimizer_step(
    ws: Workspace, schedule: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def watched(optimizer: Any, *rest: Any) -> Any:
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *rest)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    made(ws, "reference", dataclasses.replace(SHORT, schedule=schedule, accumulation=1))
    assert len(rates) == 4
    assert rates[-1] == pytest.approx(share * SHORT.learning_rate)


@pytest.mark.parametrize("recipe", [FULL, LORA], ids=["full", "lora"])
def test_accumulated_batches_are_the_big_batch(
    ws: Workspace, mixed_samples: list[Sample], recipe: Recipe, make_sample: Callable[..., Sample]
) -> None:
    """Over answers of different lengths and a number of samples that no batch divides."""
    samples = [*mixed_samples, make_sample("e", "Which food ?", "soup")]
    results = []
    for batch, accumulation in ((5, 1), (2, 3), (1, 5)):
        cut = dataclasses.replace(recipe, epochs=3, batch_size=batch, accumulation=accumulation, clip_norm=0.0)
        results.append(of(ws, {"a": samples}, cut).make(replace=True))
    for other in results[1:]:
        for one, two in zip(results[0]["losses"], other["losses"], strict=True):
            assert two == pytest.approx(one, rel=2e-3)
    assert len(results[0]["losses"]) == 3


PLAIN = dataclasses.replace(LORA, epochs=3, clip_norm=0.0)


@pytest.fixture(scope="module")
def plain_twice(
    tmp_path_factory: pytest.TempPathFactory, tiny_llava: Path, data: Path, make_sample: Callable[..., Sample]
) -> list[str]:
    """Digests of two models by one recipe."""
    samples = {"a": [make_sample("a", "Which food ?", "rice", seed=1)]}
    return [
        of(workspace(tmp_path_factory.mktemp("plain"), tiny_llava, data), samples, PLAIN).make()["model_sha256"]
        for _ in range(2)
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 2e-2},
        {"schedule": "constant"},
        {"weight_decay": 0.5},
        {"clip_norm": 0.01},
        {"betas": (0.5, 0.999)},
        {"betas": (0.9, 0.5)},
        {"rank": 4},
        {"alpha": 16.0},
        {"modules": "lm"},
        {"precision": "bf16"},
        {"seed": 1},  # of the adapters: there is one sample
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_number_of_a_recipe_counts(
    ws: Workspace, make_sample: Callable[..., Sample], plain_twice: list[str], change: dict[str, Any]
) -> None:
    samples = {"a": [make_sample("a", "Which food ?", "rice", seed=1)]}
    other = of(ws, samples, dataclasses.replace(PLAIN, **change)).make()["model_sha256"]
    assert plain_twice[0] == plain_twice[1]
    assert plain_twice[0] != other


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_checkpointing_gives_the_same_gradients(base: Path, mixed_samples: list[Sample], lora: bool) -> None:
    """Every layer is computed a second time, and no module drops out."""
    gradients = []
    for checkpointing in (False, True):
        loaded = load(base)
        if lora:
            targets = LoRA(rank=4).targets(dict(loaded.model.named_parameters()), loaded.backbone, None)
            LowRankUpdate(loaded.model, LoRA(rank=4), targets, None, seed=0)
        if checkpointing:
            checkpoint_activations(loaded.model)
        runs = [0]
        layer = next(m for n, m in loaded.model.named_modules() if n.endswith("mlp.gate_proj"))
        layer.register_forward_hook(lambda *_, runs=runs: runs.__setitem__(0, runs[0] + 1))
        loaded.model.requires_grad_(not lora)
        for name, parameter in loaded.model.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(True)
        batch = loaded.backbone.collate(loaded.processor, mixed_samples)
        Answers.of(loaded.model, batch).nll().mean().backward()
        gradients.append({n: p.grad for n, p in loaded.model.named_parameters() if p.grad is not None})
        assert runs == [1 + checkpointing]
        assert not any(m.training for m in loaded.model.modules() if isinstance(m, torch.nn.Dropout))
    assert gradients[0].keys() == gradients[1].keys()
    assert gradients[0]
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_a_recipe_with_checkpointing_gives_the_same_model(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(tuning, "checkpoint_activations", lambda model: calls.append(checkpoint_activations(model)))
    plain = made(ws, "vanilla", SHORT)
    again = made(ws, "vanilla", dataclasses.replace(SHORT, checkpointing=True), force=True)
    assert len(calls) == 1
    assert again.model_sha256 == plain.model_sha256


# precision


def test_steps_below_half_an_ulp_add_up_in_the_masters(tiny_llava: Path) -> None:
    """A weight of 1 in bfloat16 moves by 2^-8 at least; steps of 2^-12 alone would never move it."""
    loaded = load(tiny_llava)
    name = "lm_head.weight"
    with torch.no_grad():
        loaded.model.lm_head.weight.fill_(1.0)
    update = MasterUpdate(loaded.model, {name})
    weight, master = loaded.model.lm_head.weight, update.trainable[name]
    assert (weight.dtype, master.dtype) == (torch.bfloat16, torch.float32)
    step, moved_at = 2.0**-12, None
    alone = weight.detach().clone()
    for number in range(1, 20):
        with torch.no_grad():
            alone -= step
            master -= step
        update.restore()
        if moved_at is None and not torch.equal(weight, torch.ones_like(weight)):
            moved_at = number
    assert torch.equal(alone, torch.ones_like(alone))
    assert torch.equal(master, torch.full_like(master, 1 - 19 * step))
    # below 1 neighbours are 2^-8 apart; the half of that is 8 steps, a tie, which goes to 1; the next one moves it
    assert moved_at == 9
    assert torch.equal(weight, master.to(torch.bfloat16))


def test_bf16_trains_with_float32_masters_and_moments(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A learning rate at which plain bfloat16 would lose nearly every step."""
    kinds = []
    state = loop._state

    def watched(trainable: Any, optimizer: Any) -> Any:
        found = state(trainable, optimizer)
        kinds.append({str(array.dtype) for array in found.values()})
        return found

    monkeypatch.setattr(loop, "_state", watched)
    monkeypatch.setattr(Snapshots, "interval", 0.0)
    recipe = dataclasses.replace(SHORT, precision="bf16", learning_rate=1e-6, schedule="constant")
    found = made(ws, "vanilla", recipe)
    assert kinds
    assert all(each == {"float32"} for each in kinds)
    base = load(ws.model_dir("base"))
    before, after = values(ws.model_dir("base"), base), values(found.path, base)
    steps = after["lm_head.weight"].astype(np.float64) - before["lm_head.weight"]
    moved = np.abs(steps[steps != 0])
    assert len(moved) > 100
    assert moved.max() < 1e-5  # six steps of 1e-6: a bfloat16 weight of .02 has neighbours 1e-4 apart


def test_gradients_of_bf16_add_up_in_float32(tiny_llava: Path, mixed_samples: list[Sample]) -> None:
    def gradients(parts: list[list[Sample]]) -> dict[str, torch.Tensor]:
        loaded = load(tiny_llava)
        update = MasterUpdate(loaded.model, set(dict(loaded.model.named_parameters())))
        for samples in parts:
            Answers.of(loaded.model, loaded.backbone.collate(loaded.processor, samples)).nll().sum().backward()
        assert all(p.grad is None for p in loaded.model.parameters())
        return {name: p.grad for name, p in update.trainable.items() if p.grad is not None}

    first, second = gradients([mixed_samples[:1]]), gradients([mixed_samples[1:2]])
    both = gradients([mixed_samples[:1], mixed_samples[1:2]])
    for name, gradient in both.items():
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient, first.get(name, 0) + second.get(name, 0))


@SECOND_SLOW
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_every_kind_learns(base: Path, data: Path, tmp_path: Path, adapter: str, precision: str) -> None:
    recipe = dataclasses.replace(FULL if adapter == "full" else LORA, epochs=6, precision=precision, checkpointing=True)
    found = made(workspace(tmp_path, base, data), "vanilla", recipe)
    assert found.loss[1] < (0.75 if adapter == "full" else 0.9) * found.loss[0]


def test_adapters_are_float32_over_a_base_in_bf16_and_merged_in_float32(ws: Workspace) -> None:
    """Recomputed from the adapters: W0 as the checkpoint has it, not as bfloat16 has it."""
    loaded = load(ws.model_dir("base"), torch.bfloat16)
    targets = LoRA(rank=4).targets(dict(loaded.model.named_parameters()), loaded.backbone, None)
    update = LowRankUpdate(loaded.model, LoRA(rank=4), targets, None, seed=0, alpha=8.0)
    assert {p.dtype for p in update.trainable.values()} == {torch.float32}
    assert {p.dtype for n, p in loaded.model.named_parameters() if "lora_" not in n} == {torch.bfloat16}
    for parameter in update.trainable.values():
        parameter.data.normal_()
    files = CheckpointFiles(ws.model_dir("base"), loaded.backbone.canonical)
    merged = {
        name: torch.tensor(stored(files.array(name), files.dtype(name)))
        for name, stored in update.merged_into().items()
    }
    assert sorted(merged) == sorted(targets)
    for name, parameter in merged.items():
        module = name.removesuffix(".weight")
        a, b = (update.trainable[f"{module}.lora_{side}.default.weight"].detach() for side in "AB")
        expected = torch.tensor(files.float32(name)) + 2.0 * (b @ a)
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter.detach(), expected)


def test_a_checkpoint_keeps_its_dtype(ws: Workspace, tmp_path: Path, data: Path) -> None:
    """A base in bfloat16: what moved is the float32 result rounded once, the rest has its bits."""
    base = tmp_path / "bf16"
    loaded = load(ws.model_dir("base"))
    start = CheckpointFiles(ws.model_dir("base"), loaded.backbone.canonical)
    base.mkdir()
    for path in companion_files(start.path):
        (base / path.name).write_bytes(path.read_bytes())
    header = read_header(start.files[0])
    arrays = {
        stored: as_stored(torch.tensor(start.float32(loaded.backbone.canonical(stored))), "BF16")
        for stored in header.tensors
    }
    layout = {stored: ("BF16", info.shape) for stored, info in header.tensors.items()}
    write_safetensors_stream(base / start.files[0].name, layout, sorted(arrays.items()), header.metadata)
    recipe = dataclasses.replace(LORA, epochs=2, precision="bf16", modules="lm")
    found = made(workspace(tmp_path / "other", base, data), "vanilla", recipe)
    files = CheckpointFiles(found.path, loaded.backbone.canonical)
    assert {files.dtype(name) for name in files.names} == {"BF16"}
    before = CheckpointFiles(base, loaded.backbone.canonical)
    moved = {name for name in files.names if files.array(name).tobytes() != before.array(name).tobytes()}
    assert moved
    assert all(loaded.addresses[name].group == "lm" for name in moved)


@pytest.mark.parametrize("modules", ["lm.1.mlp", "vision,connector"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_modules_that_are_not_named_stay(ws: Workspace, modules: str, precision: str) -> None:
    base = load(ws.model_dir("base"))
    recipe = dataclasses.replace(SHORT, modules=modules, precision=precision)
    before, after = values(base.path, base), values(made(ws, "vanilla", recipe).path, base)
    moved = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    inside = Selector(modules).select(base.addresses)
    assert moved <= inside
    assert len(moved) > 0.5 * len(inside)


# again, interrupted, refused


KINDS = {
    "float32": SHORT,
    "bf16": dataclasses.replace(SHORT, precision="bf16"),
    "lora": dataclasses.replace(LORA, epochs=2, batch_size=2),
}
SHORTLY = [(0, "float32"), (2, "float32"), (5, "float32"), (5, "bf16"), (2, "lora")]
"""After how many steps a training of which kind is killed; the others are killed by `make test-slow`."""


@pytest.mark.parametrize(
    ("kill_at", "kind"),
    [
        pytest.param(at, kind, marks=[] if (at, kind) in SHORTLY else pytest.mark.slow)
        for at in (0, 2, 5)
        for kind in KINDS
    ],
)
def test_killed_and_run_again_ends_with_the_same_bytes(
    ws: Workspace, tmp_path: Path, data: Path, kind: str, kill_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = KINDS[kind]
    undisturbed = made(ws, "vanilla", recipe)
    monkeypatch.setattr(Snapshots, "interval", 0.0)
    monkeypatch.setattr(Snapshots, "share", 0.0)
    other, steps, step = workspace(tmp_path / "other", ws.model_dir("base"), data), [0], torch.optim.AdamW.step

    def killed(optimizer: Any, *rest: Any) -> Any:
        if steps[0] == kill_at:
            raise Killed
        steps[0] += 1
        return step(optimizer, *rest)

    with monkeypatch.context() as inside:
        inside.setattr(torch.optim.AdamW, "step", killed)
        with pytest.raises(Killed):
            made(other, "vanilla", recipe)
    assert not other.model_dir("vanilla").exists()
    assert len(list(other.path("models").glob(".resume-vanilla/step-*"))) == min(kill_at, 2)
    notes = Notes()
    again = made(other, "vanilla", recipe, progress=notes)
    assert (f"going on after step {kill_at}" in notes.texts) == (kill_at > 0)
    for file in sorted(undisturbed.path.iterdir()):
        assert (again.path / file.name).read_bytes() == file.read_bytes(), file.name
    assert not list(other.path("models").glob(".resume-*"))


def test_what_is_about_to_be_done_is_said(ws: Workspace) -> None:
    notes = Notes()
    made(ws, "vanilla", SHORT, progress=notes)
    said = "training vanilla on 2 forget_vqa, 3 retain_vqa by recipe mine: 6 steps of 2 samples, all weights of "
    assert notes.texts[0] == f"{said}vision,connector,lm, learning rate 0.01"


def test_again_is_up_to_date_and_another_recipe_or_data_are_refused(ws: Workspace, tmp_path: Path) -> None:
    first = made(ws, "gold", SHORT)
    again = made(ws, "gold", SHORT)
    assert (first.up_to_date, again.up_to_date) == (False, True)
    assert dataclasses.replace(again, up_to_date=False) == first
    # other words about the same numbers are the same recipe
    assert made(ws, "gold", dataclasses.replace(SHORT, source="elsewhere")).up_to_date
    for change in ({"epochs": 3}, {"seed": 1}, {"schedule": "constant"}, {"accumulation": 2}, {"precision": "bf16"}):
        (key, value) = next(iter(change.items()))
        there = getattr(SHORT, key)
        with pytest.raises(Mismatch, match=f"model 'gold' exists, trained with other {key} {there} -> {value} - "):
            made(ws, "gold", dataclasses.replace(SHORT, **change))
    replaced = made(ws, "gold", dataclasses.replace(SHORT, epochs=3), force=True)
    assert replaced.model_sha256 != first.model_sha256
    assert record_of(replaced)["recipe"]["epochs"] == 3
    assert [entry["event"] for entry in ws.journal_entries()] == ["train", "train"]

    write_mllmu(tmp_path / "moved", moved=1)
    moved = workspace(ws.root, ws.model_dir("base"), tmp_path / "moved")
    with pytest.raises(Mismatch, match=r"trained with other .*retain_vqa"):
        made(moved, "gold", dataclasses.replace(SHORT, epochs=3))


def test_a_base_that_changed_is_another_model(ws: Workspace) -> None:
    made(ws, "reference", SHORT)
    other = workspace(ws.root, ws.model_dir("reference"), ws.data_dir)
    with pytest.raises(Mismatch, match="trained with other start"):
        made(other, "reference", SHORT)


def test_weights_that_were_changed_are_noticed(ws: Workspace) -> None:
    found = made(ws, "gold", SHORT)
    file = found.path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputRefused, match="not those its run wrote"):
        made(ws, "gold", SHORT)


def test_a_vanilla_model_that_was_given_is_not_overwritten(tmp_path: Path, tiny_llava: Path, data: Path) -> None:
    ws = workspace(tmp_path, tiny_llava, data)
    models = dataclasses.replace(ws.settings.models, vanilla=str(tiny_llava))
    given = Workspace(tmp_path, dataclasses.replace(ws.settings, models=models))
    with pytest.raises(UsageError) as caught:
        made(given, "vanilla", SHORT)
    assert caught.value.what == f"models.vanilla in {SETTINGS_FILE} is {tiny_llava}, a model that was given"
    assert str(caught.value.next_step).endswith('set models.vanilla = "models/vanilla"')
    assert made(given, "gold", SHORT).model == "gold"


def test_without_a_base_there_is_nothing_to_train_from(tmp_path: Path, data: Path) -> None:
    ws = workspace(tmp_path, tmp_path / "models" / "base", data)
    with pytest.raises(MissingArtifact, match=r"no base model to train from: .*init --base PATH_OR_ID, or models.base"):
        made(ws, "vanilla", SHORT)


def test_the_recipe_is_that_of_benchmark_and_backbone(base: Path, data: Path, tmp_path: Path) -> None:
    family = load(base).backbone.model_type
    ws = workspace(tmp_path, base, data)
    found = train(ws, "reference")
    assert isinstance(found, Tuned)
    assert found.recipe == f"mllmu-bench.{family}"
    # Table 4: four epochs of three samples in batches of four
    assert found.steps == 4
    assert record_of(found)["recipe"]["learning_rate"] == {"llava": 2e-5, "qwen2_vl": 1e-5}[family]


def test_a_benchmark_without_a_recipe_and_an_unknown_one_list_what_ships(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"no recipe 'mllmu-bench.lava' - next: did you mean 'mllmu-bench.llava'\?"):
        train(ws, "vanilla", recipe="mllmu-bench.lava")
    monkeypatch.setattr(training, "shipped_recipes", lambda: ["clear.llava"])
    with pytest.raises(
        UsageError, match=r"no recipe 'mllmu-bench.llava' comes with the package - next: .*FILE, or one of clear.llava"
    ):
        train(ws, "vanilla")


def test_portraits_trains_by_itself(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="portraits has a training of its own"):
        train(Workspace(tmp_path, Settings()), "gold", recipe="clear.llava")
    with pytest.raises(UsageError, match="no trainable model 'silver'"):
        train(Workspace(tmp_path, Settings()), "silver")


def test_nothing_to_train_or_too_much(ws: Workspace, make_sample: Callable[..., Sample]) -> None:
    text = make_sample("t", "Which food ?", "rice")
    with pytest.raises(UnusableData, match="the data part a is empty"):
        of(ws, {"a": []}, FULL).check()
    with pytest.raises(UsageError, match=r"2,000,000 steps, at most 1,000,000"):
        of(ws, {"a": [text]}, dataclasses.replace(FULL, epochs=2_000_000)).check()
    with pytest.raises(UsageError, match=r"lm\.99"):
        of(ws, {"a": [text]}, dataclasses.replace(FULL, modules="lm.99")).check()
    with pytest.raises(UnusableData, match="LoRA has nothing to train"):
        of(ws, {"a": [text]}, dataclasses.replace(LORA, modules="lm.norm")).check()


def test_text_alone_cannot_train_a_vision_encoder(ws: Workspace, mixed_samples: list[Sample]) -> None:
    text = [sample for sample in mixed_samples if sample.image_bytes is None]
    recipe = dataclasses.replace(FULL, modules="vision", epochs=1, batch_size=1)
    with pytest.raises(UnusableData, match="moved, as it is saved; nothing is kept"):
        of(ws, {"a": text}, recipe).make()
    assert not ws.model_dir("made").exists()
    losses = of(ws, {"a": mixed_samples}, recipe).make()["losses"]
    assert sum(step["norm"] > 0 for step in losses) == len(mixed_samples) - len(text)


def test_an_answer_that_cannot_be_learnt_is_found_before_the_training(
    ws: Workspace, make_sample: Callable[..., Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "finetune", None)
    samples = [make_sample("a", "Which food ?", "rice"), make_sample("b", "Which food ?", "ratatouille")]
    with pytest.raises(UnusableData, match=r"sample b: .*ratatouille"):
        of(ws, {"a": samples}, FULL).make()


def test_a_training_that_diverges_leaves_no_model(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    nll = Answers.nll
    monkeypatch.setattr(Answers, "nll", lambda answers: nll(answers) * float("nan"))
    with pytest.raises(UnusableData, match=r"step 1: the train loss is nan \(samples retain_95/"):
        made(ws, "reference", SHORT)
    assert not ws.model_dir("reference").exists()


# left behind by a change


def moved_data(ws: Workspace, folder: Path) -> Workspace:
    """The workspace with data in which everybody lives elsewhere."""
    write_mllmu(folder, moved=1)
    return workspace(ws.root, ws.model_dir("base"), folder)


def test_gold_and_reference_of_other_data_are_stale_and_vanilla_is_not(ws: Workspace, tmp_path: Path) -> None:
    for which in WHICH:
        made(ws, which, SHORT)
    assert (stale_models(ws), status(ws).problems) == ([], [])
    check_trained(ws, *WHICH)
    moved = moved_data(ws, tmp_path / "moved")
    reference = "model 'reference' was trained on other data than the workspace has now: retain_vqa"
    gold = "model 'gold' was trained on other data than the workspace has now: forget_qa, retain_vqa"
    assert [problem.what for problem in stale_models(moved)] == [gold, reference]
    assert status(moved).problems == [str(problem) for problem in stale_models(moved)]
    assert status(moved).next_command == "mmsurgery train gold --recipe mine.toml --force"
    check_trained(moved, "vanilla", "npo")
    with pytest.raises(Mismatch, match=reference):
        apply(moved, "npo", reference="reference")
    for model in ("gold", "reference"):
        with pytest.raises(Mismatch, match=f"'{model}' was trained on other data") as caught:
            evaluate(moved, ["vanilla", model])
        assert (caught.value.code, caught.value.next_step) == (
            4,
            f"mmsurgery train {model} --recipe mine.toml --force",
        )


def test_models_of_another_base_are_stale_and_vanilla_too(ws: Workspace, tmp_path: Path) -> None:
    for which in ("vanilla", "gold"):
        made(ws, which, SHORT)
    found = train(ws, "reference")
    other = workspace(ws.root, found.path, ws.data_dir)
    problems = stale_models(other)
    assert [problem.what.partition(" from ")[0] for problem in problems] == [
        f"model '{which}' was trained" for which in WHICH
    ]
    assert f"models.base is {found.model_sha256[:12]} now" in problems[0].what
    assert [problem.next_step for problem in problems] == [
        "mmsurgery train vanilla --recipe mine.toml --force",
        "mmsurgery train gold --recipe mine.toml --force",
        "mmsurgery train reference --recipe mine.toml --force",
    ]
    assert status(other).next_command == problems[0].next_step
    gone = workspace(ws.root, tmp_path / "gone", ws.data_dir)
    assert stale_models(gone) == []


def test_a_part_that_a_model_did_not_learn_or_that_is_gone_makes_it_stale(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(ws, "gold", SHORT)
    for parts in (("retain_vqa", "forget_qa", "forget_vqa"), ("retain_vqa",)):
        monkeypatch.setattr(MLLMUBench, "training", lambda *_, parts=parts: (Source(ws.data_dir, 5), parts))
        (problem,) = stale_models(ws)
        assert problem.what.endswith(f"now: {'forget_vqa' if len(parts) > 1 else 'forget_qa'}")


def test_models_that_no_recipe_made_here_are_left_alone(ws: Workspace, tmp_path: Path) -> None:
    folder = made(ws, "gold", SHORT).path
    moved = moved_data(ws, tmp_path / "moved")
    (folder / RUN_FILE).write_text(json.dumps({"start": "base", "method": "finetune"}))
    assert stale_models(moved) == []
    (folder / RUN_FILE).unlink()
    assert stale_models(moved) == []
    (folder / RUN_FILE).write_text(json.dumps({"recipe": {}}))
    (problem,) = stale_models(moved)
    assert isinstance(problem, InputRefused)


def test_what_a_model_learnt_is_read_as_its_training_read_it(
    tmp_path: Path, tiny_llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the benchmark's own source, as CLEAR's text pairs are; and saliency's digests are not mixed up with it."""
    write_mllmu(tmp_path / "own")  # other tests' digests of the common one are remembered
    ws, read = workspace(tmp_path, tiny_llava, tmp_path / "own"), MLLMUBench.samples

    def samples(self: MLLMUBench, source: Source, part: str) -> list[Sample]:
        every = read(self, dataclasses.replace(source, options={}), part)
        return every if source.saliency_text == "official" else every[:1]

    def rule(self: Any, source: Source, which: str) -> Any:
        return dataclasses.replace(source, options={**source.options, "saliency_text": "official"}), ["retain_vqa"]

    monkeypatch.setattr(digests, "_RACY", 0)  # digests of files that were just written are remembered, too
    monkeypatch.setattr(MLLMUBench, "samples", samples)
    monkeypatch.setattr(MLLMUBench, "training", rule)
    made(ws, "gold", SHORT)
    check_trained(ws, "gold")
    here, learnt = (
        part_sha256(ws, "retain_vqa", source=source, remembered=True)
        for source in (None, rule(None, source_of(ws), "gold")[0])
    )
    assert here == part_sha256(ws, "retain_vqa")
    assert here != learnt


# interrupted, by another recipe


def interrupted(ws: Workspace, which: str, monkeypatch: pytest.MonkeyPatch, recipe: str | None) -> None:
    """Begin a training and lose it after a step."""
    steps, step = [0], torch.optim.AdamW.step

    def killed(optimizer: Any, *rest: Any) -> Any:
        steps[0] += 1
        if steps[0] == 2:
            raise Killed
        return step(optimizer, *rest)

    with monkeypatch.context() as inside:
        inside.setattr(Snapshots, "interval", 0.0)
        inside.setattr(torch.optim.AdamW, "step", killed)
        with pytest.raises(Killed):
            train(ws, which, recipe=recipe)


@pytest.mark.parametrize("named", ["a file", "a shipped one", "the default"])
def test_an_interrupted_training_says_by_which_recipe(
    ws: Workspace, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = recipe_file(ws, dataclasses.replace(SHORT, batch_size=1), "so long")
    monkeypatch.chdir(ws.root)
    recipe = {"a file": "so long.toml", "a shipped one": "clear.llava", "the default": None}[named]
    shown = {"a file": "so long", "a shipped one": "clear.llava", "the default": "mllmu-bench.llava"}[named]
    interrupted(ws, "vanilla", monkeypatch, recipe)
    found = status(ws)
    assert found.unfinished == [f"models/vanilla by recipe {shown}"]
    option = {"a file": f" --recipe '{file}'", "a shipped one": " --recipe clear.llava", "the default": ""}[named]
    assert found.next_command == f"mmsurgery train vanilla{option}"


def test_what_another_recipe_began_is_not_removed_without_a_word(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 66."""
    file = recipe_file(ws, dataclasses.replace(SHORT, batch_size=1), "begun")
    interrupted(ws, "gold", monkeypatch, file)
    folder = ws.path("models", ".resume-gold")
    with pytest.raises(Mismatch) as caught:
        made(ws, "gold", SHORT)
    assert caught.value.what == f"{folder} holds an interrupted run with other batch_size 1 -> 2"
    assert caught.value.next_step == f"mmsurgery train gold --recipe {file} goes on with it; --force begins anew"
    recipe_file(ws, SHORT, "begun")
    with pytest.raises(Mismatch, match="batch_size 1 -> 2") as caught:  # the same command, by other numbers
        train(ws, "gold", recipe=file)
    assert caught.value.next_step == BEGIN_ANEW
    notes = Notes()
    train(ws, "gold", recipe=file, force=True, progress=notes)
    assert notes.texts[0] == f"{caught.value.what}: beginning anew"
    assert not folder.exists()


def test_a_training_that_goes_on_says_nothing_of_another(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    file = recipe_file(ws, SHORT)
    interrupted(ws, "vanilla", monkeypatch, file)
    notes = Notes()
    train(ws, "vanilla", recipe=file, progress=notes)
    assert notes.texts[1:] == ["going on after step 1"]


def test_what_an_interrupted_training_says_of_itself_may_be_damaged(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(ws, "vanilla", monkeypatch, None)
    (file,) = ws.path("models").glob(".resume-*/training.json")
    for text in ("{", "[]", '{"model":"gold","recipe":"mine","asked":null}', '{"model":"vanilla","recipe":1}'):
        file.write_text(text)
        found = status(ws)
        assert (found.unfinished, found.next_command) == (["models/vanilla"], "mmsurgery train vanilla"), text


# the command


def test_the_command(ws: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    (ws.root / SETTINGS_FILE).write_text(ws.settings.to_toml())
    monkeypatch.chdir(ws.root)
    file = recipe_file(ws, SHORT)
    assert run(["train", "gold", "--recipe", file, "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert (document["model"], document["recipe"], document["steps"]) == ("gold", "mine", 6)
    assert document["samples"] == {"retain_vqa": 3, "forget_qa": 2}
    assert run(["train", "gold", "--recipe", "mine.toml"]) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "model gold: up to date" in said
    assert "recipe mine: 6 steps on retain_vqa 3, forget_qa 2; loss" in said
    assert "next: mmsurgery eval gold" in said
    for arguments, code, line in (
        (["train", "gold"], 4, "model 'gold' exists, trained with other"),
        (["train", "gold", "--recipe", "clear.lava"], 2, "did you mean 'clear.llava'?"),
        (["train", "gold", "--recipe", ""], 2, "no recipe ''"),
        (["train", "gold", "--recipe", "none.toml"], 2, "no recipe file none.toml"),
        (["train", "golden", "--recipe", "mine.toml"], 2, "did you mean 'gold'?"),
    ):
        assert run(arguments) == code
        err = capfd.readouterr().err
        assert err.startswith(f"error[{code}]: ")
        assert line in err
        assert len(err.splitlines()) == 1
    assert run(["train", "gold", "--recipe", "mllmu-bench.llava", "--force"]) == 0
    assert "recipe mllmu-bench.llava: 8 steps" in " ".join(capfd.readouterr().out.split())


def test_gold_and_reference_take_the_recipe_of_the_vanilla_that_was_trained_here(ws: Workspace) -> None:
    vanilla = made(ws, "vanilla", SHORT)
    gold = train(ws, "gold")
    assert isinstance(gold, Tuned)
    mine, theirs = record_of(gold)["recipe"], record_of(vanilla)["recipe"]
    assert mine == theirs
    assert train(ws, "gold", recipe=recipe_file(ws, SHORT)).up_to_date
