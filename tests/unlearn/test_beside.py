"""`apply` of methods that see more than forget and retain samples: what vanilla said is kept, and used as it was."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from anchor_world import make, rows, write_anchors, write_rows
from jsonschema import Draft202012Validator
from notes import Notes
from PIL import Image

from mmsurgery.api import Workspace
from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.mask import Mask
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.artifacts.tensors import read_header, read_tensor
from mmsurgery.audit import one_by_one
from mmsurgery.audit.material import Material
from mmsurgery.audit.subjects import subject
from mmsurgery.backbones import loading
from mmsurgery.backbones.discovery import backbone
from mmsurgery.data import folder, folder_rows
from mmsurgery.data.anchors import anchor_samples
from mmsurgery.errors import Mismatch, MissingArtifact, UnusableData, UsageError
from mmsurgery.memory import Layout
from mmsurgery.methods import attacks, robust_distillation, stranger_distillation
from mmsurgery.methods.step import Answers, Step
from mmsurgery.plans import plan as terms
from mmsurgery.plans import plan_apply
from mmsurgery.unlearn import beside as seen
from mmsurgery.unlearn import loop
from mmsurgery.unlearn.apply import apply
from mmsurgery.unlearn.beside import NEAREST, Beside, beside
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.unlearn.plan import StepPlan, with_beside
from mmsurgery.unlearn.request import Request, Run, gather
from mmsurgery.unlearn.train_run import vanilla_of
from mmsurgery.unlearn.verify import verify
from mmsurgery.workspace import SILENT

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.data.samples import Sample

SIZES: dict[str, Any] = {"batch_size": 2, "retain_batch": 2, "epochs": 1}
"""Four samples are forgotten: two steps."""
FEW: dict[str, dict[str, int]] = {
    "anchored_ascent": {"anchors": 3, "text": 2},
    "stranger_distillation": {"anchors": 3, "text": 2},
    "robust_distillation": {"anchors": 3, "text": 2, "attacked": 3},
}
METHODS = tuple(FEW)
SCHEMA = Path(__file__).parents[2] / "docs/schemas/run.json"


def run(workspace: Workspace, method: str, **options: Any) -> Any:
    """`apply` in small steps."""
    settings = {**FEW.get(method, {}), **options.pop("settings", {})}
    return apply(workspace, method, **{**SIZES, **options}, settings=settings)


def weights(workspace: Workspace, model: str) -> bytes:
    return (workspace.model_dir(model) / "model.safetensors").read_bytes()


def kept(workspace: Workspace) -> dict[str, bytes]:
    """What vanilla said: files by name."""
    return {path.name: path.read_bytes() for path in sorted(workspace.path("references").iterdir())}


def gathered(workspace: Workspace, method: str, **options: Any) -> Run:
    """The run of a request, not begun."""
    names = ("name", "mask", "scope", "learning_rate", "seed", "precision", "lora", "steps", "anchors")
    asked: dict[str, Any] = {
        **dict.fromkeys(names),
        "protocol": "equations",
        "start": "vanilla",
        "reference": "vanilla",
        "forget_weight": 1.0,
        "eval_every": 0,
        "settings": {},
        **SIZES,
        **options,
    }
    return gather(workspace, Request.of(workspace, method, **asked))


def saw(found: Run) -> Beside:
    return beside(found, lambda: vanilla_of(found), SILENT)


@pytest.fixture
def ws(tmp_path: Path, tiny_llava: Path, picture: Callable[..., bytes]) -> Workspace:
    return make(tmp_path / "ws", tiny_llava, picture)


@pytest.fixture(scope="module", autouse=True)
def every_load() -> Iterator[list[str]]:
    """Models and rows are read from disk once for all tests; names of the models' folders as they are loaded."""
    models: dict[Any, Loaded] = {}
    read: dict[Any, Any] = {}
    names: list[str] = []
    load, own_rows = loading.load, folder_rows.own_rows

    def loaded(path: Path, *arguments: Any) -> Loaded:
        names.append(path.name)
        key = hashlib.sha256((path / "model.safetensors").read_bytes()).digest(), *arguments
        if key not in models:
            found = load(path, *arguments)
            models[key] = dataclasses.replace(found, model=copy.deepcopy(found.model))  # not mapped from its file
        return dataclasses.replace(models[key], model=copy.deepcopy(models[key].model), path=path)

    def rows_of(path: Path, allow: Any, report: Any) -> Any:
        key = path, allow, (path / "rows.jsonl").read_bytes()
        if key not in read:
            read[key] = own_rows(path, allow, report)
        return read[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load", loaded)
        patch.setattr(folder, "own_rows", rows_of)
        yield names


@pytest.fixture
def loads(every_load: list[str]) -> list[str]:
    """Names of the models' folders in the order they are loaded."""
    every_load.clear()
    return every_load


# end to end


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_a_model_its_record_and_what_vanilla_said(ws: Workspace, method: str, loads: list[str]) -> None:
    result = run(ws, method)
    assert (result.up_to_date, result.claim) == (False, "none")
    record = result.record
    Draft202012Validator(json.loads(SCHEMA.read_text())).validate(record)
    asked = {"anchor_vqa": 2 * 3, "text": 2 * 2}
    if method == "robust_distillation":
        asked["forget_vqa"] = 2 * 3
    assert record["samples"] == {"forget": 4, "retain": 4, **asked}
    assert record["steps"] == {"planned": 2, "done": 2, "forget": 2, "retain": 2}
    assert all(np.isfinite(list(losses.values())).all() for losses in record["losses"])
    assert record["provenance"]["settings"]["method_settings"].items() >= FEW[method].items()
    assert set(record["provenance"]["inputs"]["beside"]) == {"anchor_vqa", "text"}
    assert record["provenance"]["inputs"]["vanilla"] == record["provenance"]["inputs"]["start"]
    sets = {"anchor_vqa", "features", "text"}
    if method != "anchored_ascent":
        sets |= {"forget_vqa", "stranger"}
    assert {name.rpartition("-")[0] for name in kept(ws)} == sets
    assert verify(ws, result.model).ok
    loads.clear()
    before = kept(ws)
    assert run(ws, method).up_to_date
    assert (loads, kept(ws)) == ([], before)


def test_a_folder_that_is_given_makes_the_same_model_as_the_benchmarks_own(ws: Workspace) -> None:
    run(ws, "anchored_ascent", name="own")
    shutil.move(ws.data_dir / "extra/anchors", ws.root / "elsewhere")
    run(ws, "anchored_ascent", name="given", anchors=ws.root / "elsewhere")
    assert weights(ws, "own") == weights(ws, "given")


def test_the_terms_are_those_of_the_plan(ws: Workspace) -> None:
    """In the first step the model is vanilla: anchors and text are as they were, and the rest is GA_Diff's."""
    plain = run(ws, "ga_diff").record["losses"][0]
    for method in METHODS:
        settings = {"weight": 1.0} if method == "anchored_ascent" else {}
        first = run(ws, method, settings=settings, steps=1).record["losses"][0]
        assert first["retain"] == pytest.approx(plain["retain"], abs=1e-5)
        if method == "anchored_ascent":
            assert first["forget"] == pytest.approx(plain["forget"], abs=1e-5)
        else:
            assert first["forget"] > 1e-3


def test_how_far_attacks_go_is_drawn_by_the_runs_seed(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[str, float]] = []
    pixels, relearning = attacks.picture_moved, attacks.weights_relearning

    def moved(passage: Any, size: float) -> Any:
        sizes.append(("pixels", size))
        return pixels(passage, size)

    def relearnt(model: Any, passage: Any, size: float) -> Any:
        sizes.append(("relearning", size))
        return relearning(model, passage, size)

    monkeypatch.setattr(stranger_distillation, "picture_moved", moved)
    monkeypatch.setattr(robust_distillation, "weights_relearning", relearnt)
    run(ws, "robust_distillation", seed=5, settings={"pixels": 0.2, "relearning": 0.01})
    steps = [Step(number, None, None, None, seed=5) for number in range(2)]
    most = {"relearning": 0.01, "pixels": 0.2}
    assert sizes == [(what, step.uniform(what, 0.0, size)) for step in steps for what, size in most.items()]


@pytest.mark.parametrize(("method", "without"), [("anchored_ascent", "anchors"), ("robust_distillation", "text")])
def test_every_set_makes_a_difference(ws: Workspace, method: str, without: str) -> None:
    run(ws, method)
    less = run(ws, method, name="less", settings={without: 0}).record
    assert {"anchors": "anchor_vqa", "text": "text"}[without] not in less["samples"]
    assert weights(ws, "less") != weights(ws, method)


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_goes_on_to_the_same_bytes(
    ws: Workspace, method: str, monkeypatch: pytest.MonkeyPatch, loads: list[str]
) -> None:
    whole = run(ws, method, name="whole").record
    shutil.rmtree(ws.path("references"))

    class Killed(BaseException):
        pass

    clip, calls = loop._clip, iter(range(100))

    def dying(*arguments: Any) -> float:
        if next(calls) == 1:
            raise Killed
        return clip(*arguments)

    monkeypatch.setattr(Snapshots, "due", lambda self: True)
    monkeypatch.setattr(loop, "_clip", dying)
    with pytest.raises(Killed):
        run(ws, method, name="cut")
    assert not ws.model_dir("cut").exists()
    said = kept(ws)
    monkeypatch.setattr(loop, "_clip", clip)
    loads.clear()
    resumed = run(ws, method, name="cut").record
    assert loads == ["vanilla"]  # to be trained; it is asked nothing again
    assert (weights(ws, "cut"), resumed["losses"]) == (weights(ws, "whole"), whole["losses"])
    assert kept(ws) == said


def test_vanilla_is_asked_once(ws: Workspace, loads: list[str]) -> None:
    shutil.copytree(ws.model_dir("vanilla"), ws.model_dir("begun"))
    run(ws, "robust_distillation", start="begun")
    assert loads == ["vanilla", "begun"]
    said = kept(ws)
    loads.clear()
    run(ws, "robust_distillation", start="begun", seed=1, settings={"overshoot": 0.0}, name="other")
    run(ws, "stranger_distillation", start="begun")
    run(ws, "anchored_ascent", start="begun")
    assert loads == ["begun"] * 3
    assert kept(ws) == said
    run(ws, "anchored_ascent", start="begun", precision="bf16", name="low")
    assert loads[3:] == ["vanilla", "begun"]  # in bfloat16 it says something else
    assert kept(ws).items() > said.items()


@pytest.mark.parametrize("fault", ["cut", "bit", "gone", "another's"])
def test_what_is_damaged_is_made_again_to_the_same_bytes(ws: Workspace, fault: str, loads: list[str]) -> None:
    run(ws, "robust_distillation", name="before")
    said = kept(ws)
    for name, data in said.items():
        path = ws.path("references", name)
        if fault == "cut":
            path.write_bytes(data[:-3])
        elif fault == "bit":
            path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
        elif fault == "gone":
            path.unlink()
        else:
            path.write_bytes(next(each for other, each in said.items() if other != name))
    loads.clear()
    run(ws, "robust_distillation", name="after")
    assert loads == ["vanilla", "vanilla"]  # to be asked, and to be trained
    assert kept(ws) == said
    assert weights(ws, "after") == weights(ws, "before")


def test_other_anchors_are_another_run(ws: Workspace, picture: Callable[..., bytes]) -> None:
    run(ws, "anchored_ascent")
    given = write_anchors(ws.root / "given", picture, first=6000)
    with pytest.raises(Mismatch, match=r"'anchored_ascent' exists, made with other .*anchor_vqa \w+ -> \w+.*--force"):
        run(ws, "anchored_ascent", anchors=given)
    (ws.data_dir / "extra/anchors/stranger-0.png").write_bytes(picture(6000))
    with pytest.raises(Mismatch, match=r"'anchored_ascent' exists, made with other .*anchor_vqa \w+ -> \w+"):
        run(ws, "anchored_ascent")
    before = weights(ws, "anchored_ascent")
    run(ws, "anchored_ascent", force=True)
    assert weights(ws, "anchored_ascent") != before


def test_another_vanilla_is_another_run(ws: Workspace) -> None:
    shutil.copytree(ws.model_dir("vanilla"), ws.model_dir("begun"))
    run(ws, "anchored_ascent", start="begun")
    run(ws, "ga_diff", name="other")
    shutil.copy(ws.model_dir("other") / "model.safetensors", ws.model_dir("vanilla"))
    with pytest.raises(Mismatch, match=r"made with other vanilla"):
        run(ws, "anchored_ascent", start="begun")
    said = kept(ws)
    run(ws, "anchored_ascent", start="begun", force=True)
    now = kept(ws)
    assert now.items() >= said.items()
    assert {name.rpartition("-")[0] for name in now.keys() - said.keys()} == {"anchor_vqa", "features", "text"}


@pytest.mark.parametrize("method", METHODS)
def test_without_anchors(ws: Workspace, method: str, loads: list[str]) -> None:
    shutil.rmtree(ws.data_dir / "extra")
    with pytest.raises(
        MissingArtifact, match=r"no anchor pictures in \S+extra/anchors: no such folder - next: pass --anchors"
    ):
        run(ws, method)
    if method == "anchored_ascent":
        assert run(ws, method, settings={"anchors": 0}).record["samples"]["text"] == 4
    else:
        with pytest.raises(MissingArtifact, match="no anchor pictures"):  # strangers are anchors, too
            run(ws, method, settings={"anchors": 0})
        assert loads == []


def test_strangers_without_the_anchors_own_term(ws: Workspace) -> None:
    record = run(ws, "stranger_distillation", settings={"anchors": 0, "text": 0}).record
    assert record["samples"] == {"forget": 4, "retain": 4}
    assert set(record["provenance"]["inputs"]["beside"]) == {"anchor_vqa"}


def test_without_text_pairs(ws: Workspace, picture: Callable[..., bytes]) -> None:
    write_rows(ws.data_dir, [row for row in rows() if "image" in row], picture)
    with pytest.raises(UnusableData, match=r"no text pairs - next: pass --setting text=0"):
        run(ws, "anchored_ascent")
    assert "text" not in run(ws, "anchored_ascent", settings={"text": 0}).record["samples"]


def test_text_that_is_scored_is_refused(ws: Workspace, picture: Callable[..., bytes]) -> None:
    scored = [row for row in rows() if "image" not in row][:1]
    asked = [{**row, "options": [row["answer"], "No ."]} for row in scored]
    write_rows(ws.data_dir, [*rows(), *asked], picture)
    with pytest.raises(UnusableData, match="1 text pairs of forget_qa are scored items"):
        run(ws, "anchored_ascent")
    allowed = dataclasses.replace(ws.settings.benchmark, allow=("text_leakage",))
    allowing = Workspace(ws.root, dataclasses.replace(ws.settings, benchmark=allowed))
    notes = Notes()
    assert run(allowing, "anchored_ascent", progress=notes).record["scored_text"] == 1
    assert "1 text samples behind it are scored, too" in notes.texts


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"anchors": 25}, "the anchor_vqa set has 24 samples, a batch takes 25"),
        ({"text": 13}, "text has 12 samples, a step takes 13"),
        ({"attacked": 5}, "forget_vqa has 4 samples, a step takes 5"),
    ],
)
def test_a_set_that_is_smaller_than_its_batch(ws: Workspace, settings: dict[str, int], words: str) -> None:
    """Of eight pictures that are asked four questions, two are too near."""
    with pytest.raises(UnusableData, match=words):
        run(ws, "robust_distillation", settings=settings)
    assert not ws.model_dir("robust_distillation").exists()


# masks, LoRA, layouts


@pytest.fixture
def masked(ws: Workspace, random_mask: Callable[..., Mask], loaded_llava: Loaded) -> Workspace:
    random_mask(loaded_llava, "lm,connector").write(ws.mask_path("default"))
    return ws


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("scope", "claim"), [("forget", "modules"), ("all", "mask")])
def test_nothing_moves_that_may_not(masked: Workspace, method: str, scope: str, claim: str) -> None:
    result = run(masked, method, mask="default", scope=scope)
    assert result.claim == claim
    mask = Mask.load(masked.mask_path("default"))
    files = [CheckpointFiles(masked.model_dir(name), backbone("llava").canonical) for name in ("vanilla", result.model)]
    for name in files[0].names:
        moved = files[0].array(name).view(np.uint32) != files[1].array(name).view(np.uint32)
        frozen = name not in mask.in_modules()
        assert not (moved & (True if frozen else ~mask[name])).any() or (scope == "forget" and not frozen)
    assert result.moved["lm"].inside > 0
    assert (result.moved["lm"].outside == 0) == (scope == "all")
    assert verify(masked, result.model).ok


def test_an_attack_on_weights_reaches_beyond_the_mask_and_leaves_nothing_there(masked: Workspace) -> None:
    run(masked, "robust_distillation", mask="default", scope="all", settings={"relearning": 0.5})
    assert verify(masked, "robust_distillation.default").ok
    with_none = run(masked, "robust_distillation", mask="default", scope="all", name="n", settings={"relearning": 0})
    assert weights(masked, "robust_distillation.default") != weights(masked, with_none.model)


@pytest.mark.parametrize(
    ("method", "mask"), [("anchored_ascent", None), ("robust_distillation", None), ("robust_distillation", "default")]
)
def test_lora(masked: Workspace, method: str, mask: str | None) -> None:
    result = run(masked, method, lora=LoRA(rank=4), mask=mask)
    assert result.claim == ("none" if mask is None else "mask")
    assert result.moved["lm"].inside > 0
    assert result.record["lora"]["rank"] == 4
    assert verify(masked, result.model).ok


def test_memory_may_be_used_in_any_way(ws: Workspace) -> None:
    """Both attacks are gradients of their own, through activations that are computed twice."""
    method = "robust_distillation"
    run(ws, method)
    for place, layout in enumerate((Layout(checkpointing=True), Layout(state="disk", checkpointing=True))):
        run(ws, method, name=f"laid-out-{place}", layout=layout)
        assert weights(ws, f"laid-out-{place}") == weights(ws, method)


# what vanilla says


def test_what_vanilla_said_is_what_it_says_of_every_sample_alone(ws: Workspace, loaded_llava: Loaded) -> None:
    found = gathered(ws, "stranger_distillation")
    others = saw(found)
    samples = {each.id: each for each in (*found.forgotten, *others.sets["anchor_vqa"], *others.sets["text"])}
    assert set(others.vanilla) == set(samples)
    for name, sample in samples.items():
        batch = loaded_llava.backbone.collate(loaded_llava.processor, [sample])
        with torch.no_grad():
            alone = Answers.of(loaded_llava.model, batch).log_probabilities()
        torch.testing.assert_close(others.vanilla[name], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("most", [seen.STRANGERS, 4])
def test_strangers_are_a_mean_over_anchors_that_are_far(
    ws: Workspace, loaded_llava: Loaded, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over so many of the six that there are; which, is drawn by question and answer."""
    monkeypatch.setattr(seen, "STRANGERS", most)
    found = gathered(ws, "stranger_distillation")
    others = saw(found)
    pictures = {sample.person: sample.image_bytes for sample in others.sets["anchor_vqa"]}
    assert len(pictures) == 6
    assert set(others.stranger) == {sample.id for sample in found.forget}
    chosen: dict[tuple[str, str], set[tuple[int, ...]]] = {}
    for sample in found.forget:
        asked = [dataclasses.replace(sample, image_bytes=picture) for picture in pictures.values()]
        with torch.no_grad():
            answers = [
                Answers.of(loaded_llava.model, loaded_llava.backbone.collate(loaded_llava.processor, [one]))
                for one in asked
            ]
        each = np.stack([one.log_probabilities().double().exp().numpy() for one in answers])
        said = others.stranger[sample.id].double().exp().numpy()
        subsets = [places for count in range(1, 7) for places in combinations(range(6), count)]
        off = [float(abs(each[list(places)].mean(axis=0) / said - 1).max()) for places in subsets]
        first, second = sorted(off)[:2]
        assert first < 1e-4 < second / 3
        fitting = subsets[off.index(first)]
        assert len(fitting) == min(most, 6)
        chosen.setdefault((sample.question, sample.answer), set()).add(fitting)
    assert all(len(places) == 1 for places in chosen.values())
    assert (len({next(iter(places)) for places in chosen.values()}) > 1) == (most == 4)


def test_samples_that_ask_the_same_share_a_row(ws: Workspace, picture: Callable[..., bytes]) -> None:
    more = [{**row, "image": "again.png"} for row in rows() if row["role"] == "forget" and "options" not in row]
    write_rows(
        ws.data_dir, [*rows(), *(row for row in more if row["person"] == "Ada" and "this" in row["question"])], picture
    )
    found = gathered(ws, "stranger_distillation")
    assert len(found.forget) == 6
    saw(found)
    (path,) = ws.path("references").glob("stranger-*")
    header = read_header(path)
    by_row: dict[int, set[tuple[str, str]]] = {}
    for sample, row in zip(found.forget, read_tensor(path, header.tensors["rows"]).tolist(), strict=True):
        by_row.setdefault(row, set()).add((sample.question, sample.answer))
    assert all(len(pairs) == 1 for pairs in by_row.values())
    assert len(by_row) == len({(sample.question, sample.answer) for sample in found.forget}) < len(found.forget)


def test_what_is_not_finite_is_refused_with_its_sample(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    found = gathered(ws, "anchored_ascent")
    monkeypatch.setattr(Answers, "log_probabilities", lambda self: self.logits / 0.0)
    with pytest.raises(UnusableData, match=r"vanilla model's output for rows/2 is not finite"):
        saw(found)
    assert not [name for name in kept(ws) if not name.startswith("features")]


def test_samples_of_two_sets_that_have_one_id(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a benchmark of one's own may have them, which are unique within a part."""
    samples = folder.OwnPictures.samples

    def numbered(self: Any, source: Any, part: str) -> list[Sample]:
        return [dataclasses.replace(each, id=f"{place}") for place, each in enumerate(samples(self, source, part))]

    monkeypatch.setattr(folder.OwnPictures, "samples", numbered)
    with pytest.raises(
        UnusableData, match=r"4 samples of forget_vqa have ids that others have, such as 0 - next: have"
    ):
        run(ws, "stranger_distillation")


def nearly(data: bytes) -> bytes:
    """A picture with one pixel of another colour."""
    with Image.open(io.BytesIO(data)) as image:
        image.putpixel((0, 0), (0, 0, 0))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
    return buffer.getvalue()


def test_the_nearest_quarter_of_the_anchors_is_left_out(ws: Workspace) -> None:
    anchors = ws.data_dir / "extra/anchors"
    for number, name in ((2, "Ada.png"), (5, "Bo.png")):
        (anchors / f"stranger-{number}.png").write_bytes(nearly((ws.data_dir / name).read_bytes()))
    (anchors / "stranger-6.png").write_bytes(nearly((ws.data_dir / "Cy.png").read_bytes()))  # is not to be forgotten
    notes = Notes()
    found = gathered(ws, "anchored_ascent")
    others = beside(found, lambda: vanilla_of(found), notes)
    left = {sample.person for sample in others.sets["anchor_vqa"]}
    assert left == {f"anchor/stranger-{number}.png" for number in (0, 1, 3, 4, 6, 7)}
    assert notes.texts == ["6 of 8 anchor pictures are far enough"]
    assert [sample.id for sample in others.sets["anchor_vqa"]] == [
        sample.id for sample in found.beside["anchor_vqa"] if sample.person in left
    ]
    assert set(others.vanilla) == {sample.id for each in others.sets.values() for sample in each}


def test_near_is_the_largest_cosine_around_the_mean_of_all(ws: Workspace) -> None:
    found = gathered(ws, "anchored_ascent")
    anchors = found.beside["anchor_vqa"]
    pictures = {str(sample.image_sha256): sample.person for sample in anchors}
    forgotten = list(dict.fromkeys(str(sample.image_sha256) for sample in found.forget))
    names = [*forgotten, *pictures]
    points = np.random.default_rng(2).normal(0, 1, (len(names), 4)) + 7.0
    points[::3] = (points[::3] - 7.0) * 5 + 7.0  # how far a picture is from the mean does not count
    centred = points - points.mean(axis=0)
    units = centred / np.sqrt((centred**2).sum(axis=1, keepdims=True))
    nearest = (units[2:] @ units[:2].T).max(axis=1)
    expected = {person for _, person in sorted(zip(nearest, pictures.values(), strict=True))[:6]}
    features = {name: torch.tensor(point)[None] for name, point in zip(names, points, strict=True)}
    assert {sample.person for sample in seen._far(anchors, found.forget, features)} == expected
    others = (units[2:] @ units[:2].T).mean(axis=1)
    assert expected != {person for _, person in sorted(zip(others, pictures.values(), strict=True))[:6]}
    assert len(expected) == 8 - round(8 * NEAREST)


# plans


def test_further_sets_are_cycled_without_a_gap(ws: Workspace) -> None:
    found = gathered(ws, "robust_distillation", settings=FEW["robust_distillation"], epochs=9)
    plan = saw(found).planned(found.plan(), found)
    assert [step.forget for step in plan] == [step.forget for step in found.plan()]
    assert [step.retain for step in plan] == [step.retain for step in found.plan()]
    assert len(plan) == 18
    for name, size, total in (("anchor_vqa", 3, 24), ("text", 2, 12), ("forget_vqa", 3, 4)):
        assert {len(step.beside[name]) for step in plan} == {size}
        stream = [place for step in plan for place in step.beside[name]]
        cycles = [stream[start : start + total] for start in range(0, len(stream) - total + 1, total)]
        assert len(cycles) > 1
        assert all(sorted(cycle) == list(range(total)) for cycle in cycles)
        assert cycles[0] != cycles[1]


def test_orders_depend_on_seed_and_ids_alone(make_sample: Callable[..., Sample]) -> None:
    samples = [make_sample(f"s{number}", "Which food ?", "rice") for number in range(9)]
    plan = [StepPlan((0,), (1,))] * 6

    def drawn(members: Sequence[Sample], seed: int = 0, **sizes: int) -> list[list[str]]:
        sets = dict.fromkeys(sizes, members)
        found = with_beside(plan, sets, sizes, seed)  # type: ignore[arg-type]
        return [[members[place].id for place in step.beside["text"]] for step in found]

    first = drawn(samples, text=4)
    assert drawn(samples, text=4) == first
    assert drawn(samples[::-1], text=4) == first
    assert drawn(samples, text=4, anchor_vqa=2) == first
    assert drawn(samples, seed=1, text=4) != first
    assert [*chain(*drawn(samples, text=2))] == [*chain(*first)][:12]
    with pytest.raises(UnusableData, match="the text set has 9 samples, a batch takes 10"):
        drawn(samples, text=10)
    assert with_beside(plan, {}, {}, 0) == plan


class Stages:
    """A `Progress` that counts what each stage is about."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}

    @contextlib.contextmanager
    def stage(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        self.totals[what] = total
        yield lambda amount: None

    def note(self, text: str) -> None:
        return


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_counts_what_a_run_does(ws: Workspace, method: str) -> None:
    plan = plan_apply(ws, method, **SIZES, settings=FEW[method])
    assert not ws.path("references").exists()
    assert plan.samples == {"forget_vqa": 4, "retain_vqa": 8, "anchor_vqa": 32, "text": 12}
    stages = Stages()
    record = run(ws, method, progress=stages).record
    trained = {name: count for name, count in record["samples"].items() if name != "forget_vqa"}
    assert plan.passes.backward == sum(trained.values())
    asked = {what: total for what, total in stages.totals.items() if what.startswith("vanilla on")}
    distils = method != "anchored_ascent"
    pairs = len({(sample.question, sample.answer) for sample in ws.samples("forget_vqa")})
    assert asked == {
        "vanilla on anchor_vqa": 24,
        "vanilla on text": 12,
        **({"vanilla on forget_vqa": 4, "vanilla on strangers": 6 * pairs} if distils else {}),
    }
    # of which anchors are near, and how many strangers there are, is seen only when it is done
    most = 32 + 12 + (4 + seen.STRANGERS * pairs) * distils
    assert plan.passes.forward - plan.passes.backward == most >= sum(asked.values())
    stored = sum(
        read_header(path).tensors["log_probabilities"].numel * 4
        for path in ws.path("references").iterdir()
        if not path.name.startswith("features")
    )
    assert stored <= plan.disk["reference outputs"] < 2 * stored
    assert plan.seconds is not None
    assert (terms.ATTACK in plan.memory) == (method == "robust_distillation")


def test_a_plan_refuses_what_a_run_refuses(ws: Workspace) -> None:
    with pytest.raises(UsageError, match="no setting of method anchored_ascent 'anchor'"):
        plan_apply(ws, "anchored_ascent", settings={"anchor": 3})
    with pytest.raises(MissingArtifact, match="no anchor pictures in"):
        plan_apply(ws, "anchored_ascent", **SIZES, anchors=ws.root / "nowhere")


# one person at a time


@pytest.mark.parametrize("method", METHODS)
def test_the_run_is_done_again_for_single_people(ws: Workspace, method: str) -> None:
    run(ws, method, settings={"anchors": 2})
    material = Material.of(ws)
    again = one_by_one._again(subject(ws, method), material)
    assert again.request.method.settings() == {**again.request.method.settings(), **FEW[method], "anchors": 2}
    assert (
        again.provenance()["inputs"]
        == gathered(ws, method, settings={**FEW[method], "anchors": 2}).provenance()["inputs"]
    )
    before = kept(ws)
    found = one_by_one.drops(subject(ws, method), material)
    assert found["forgotten"] == ["person/Ada", "person/Bo"]
    assert len(found["drops"]) == 2
    assert kept(ws) == before


def test_a_run_with_given_anchors_says_why_it_cannot_be_done_again(ws: Workspace) -> None:
    shutil.move(ws.data_dir / "extra/anchors", ws.root / "given")
    run(ws, "anchored_ascent", anchors=ws.root / "given")
    with pytest.raises(UnusableData, match=r"run of 'anchored_ascent' cannot be done again: .*anchor"):
        one_by_one._again(subject(ws, "anchored_ascent"), Material.of(ws))
    assert anchor_samples(ws.benchmark, ws.source, ws.root / "given")


def test_a_forget_sample_without_picture_has_nobody_to_stand_in(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = type(ws.benchmark)
    samples = reader.samples

    def bare(self: Any, source: Any, part: str) -> list[Any]:
        found = samples(self, source, part)
        return [dataclasses.replace(each, image_bytes=None) for each in found] if part == "forget_vqa" else found

    monkeypatch.setattr(reader, "samples", bare)
    with pytest.raises(UnusableData, match="has no picture"):
        apply(ws, "anchored_ascent")


def test_a_start_of_another_family_is_refused(ws: Workspace, tiny_qwen2_vl: Path) -> None:
    shutil.copytree(tiny_qwen2_vl, ws.model_dir("theirs"))
    for name in ("anchored_ascent", "kl_min"):
        with pytest.raises(Mismatch, match="of another family"):
            apply(ws, name, start="theirs", name="made")
