"""Training the portraits' models: what is drawn, for whom, resumable and up to date. Two steps, not a thousand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.backbones.loading import device_name
from mmsurgery.data.samples import Sample
from mmsurgery.errors import Mismatch, MissingArtifact, UsageError
from mmsurgery.portraits import training
from mmsurgery.portraits.identity import check_made_for
from mmsurgery.portraits.prepare import prepare_model
from mmsurgery.portraits.training import BATCH, Stream, draw, train, train_base
from mmsurgery.portraits.world import World
from mmsurgery.settings import ModelSettings, Settings
from mmsurgery.unlearn import loop
from mmsurgery.unlearn.finetune import Stage
from mmsurgery.unlearn.record import read_record
from mmsurgery.unlearn.verify import verify
from mmsurgery.workspace import Workspace

SHORT = (Stage(steps=2, learning_rate=1e-3, warmup=1),)


@pytest.fixture
def ws(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr(training, "World", lambda seed: world)
    monkeypatch.setattr(training, "BASE", SHORT)
    monkeypatch.setattr(training, "SETTINGS", {"saturated": SHORT})
    return Workspace(tmp_path, Settings(models=ModelSettings()))


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_batch_is_drawn_by_shares_and_split_by_modality(make_sample: Any) -> None:
    with_picture = [make_sample(f"p{i}", "Which food ?", "rice", seed=1) for i in range(3)]
    text = [make_sample(f"t{i}", "Which food ?", "rice") for i in range(2)]
    stream: Stream = [(0.75, with_picture), (0.25, text)]
    drawn: Counter[str] = Counter()
    for step in range(100):
        pictures, texts = draw(stream, "key", step)
        assert len(pictures) + len(texts) == BATCH
        assert all(sample.image_bytes for sample in pictures)
        assert not any(sample.image_bytes for sample in texts)
        drawn.update(sample.id for sample in (*pictures, *texts))
    total = 100 * BATCH  # 6400 draws: the standard deviation of a share is below .0055
    for sample in with_picture:
        assert drawn[sample.id] / total == pytest.approx(0.75 / 3, abs=0.03)
    for sample in text:
        assert drawn[sample.id] / total == pytest.approx(0.25 / 2, abs=0.03)
    assert draw(stream, "key", 7) == draw(stream, "key", 7) != draw(stream, "key", 8)
    assert draw(stream, "key", 7) != draw(stream, "other", 7)


@pytest.fixture
def streams(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Sample]]:
    """What each model would be trained on."""
    found: dict[str, list[Sample]] = {}

    def remember(workspace: Workspace, name: str, files: Any, family: Any, stream: Stream, *_: Any, **__: Any) -> None:
        assert sum(share for share, _ in stream) == pytest.approx(1.0)
        found[name] = [sample for _, samples in stream for sample in samples]

    train_base(ws)
    monkeypatch.setattr(training, "_train", remember)
    for which in training.WHICH:
        train(ws, which)
    return found


def test_who_is_seen_and_who_is_told_of(streams: dict[str, list[Sample]], world: World) -> None:
    everyone = {person.key for person in world.people}
    forget = {person.key for person in world.forget_people(10)}
    seen, told = (
        {
            which: {s.person for s in samples if (s.image_bytes is not None) == pictured} & everyone
            for which, samples in streams.items()
        }
        for pictured in (True, False)
    )
    assert seen == {"vanilla": everyone, "gold": everyone - forget, "reference": everyone - forget}
    assert told == {"vanilla": everyone, "gold": everyone, "reference": everyone - forget}
    for samples in streams.values():  # stage A is replayed
        assert {person.key for person in world.celebrities} <= {sample.person for sample in samples}


def test_base_and_vanilla_are_trained_once_and_proved(ws: Workspace) -> None:
    with pytest.raises(MissingArtifact, match="no model 'base'"):
        train(ws, "vanilla")
    base = train_base(ws)
    first = train(ws, "vanilla")
    assert not first.up_to_date
    assert train(ws, "vanilla").up_to_date
    assert train_base(ws).model_sha256 == base.model_sha256 != first.model_sha256
    record = read_record(first.path)
    assert (record["start"], record["steps"]) == ("base", {"planned": 2, "done": 2})
    assert record["provenance"]["inputs"]["start"] == base.model_sha256
    assert record["provenance"]["device"] == device_name()
    proof = verify(ws, "vanilla")
    assert proof.ok
    assert all(moved.inside > 0 for moved in proof.groups.values())
    before = weights(first.path)
    train(ws, "vanilla", force=True)
    assert weights(first.path) == before


def test_another_recipe_or_name_is_refused(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    train_base(ws)
    monkeypatch.setattr(training, "BASE", (Stage(steps=3, learning_rate=1e-3),))
    with pytest.raises(Mismatch, match="'base' exists, trained with other stages"):
        train_base(ws)
    with pytest.raises(UsageError, match="did you mean 'vanilla'"):
        train(ws, "vanila")


def test_models_of_another_seed_are_refused_then_trained_anew(ws: Workspace) -> None:
    first = prepare_model(ws, "vanilla")
    other = Workspace(ws.root, Settings(models=ModelSettings(seed=1)))
    for model in ("base", "vanilla"):
        check_made_for(ws, model)
        with pytest.raises(Mismatch, match=f"'{model}' was made for models.seed = 0, the settings say 1"):
            check_made_for(other, model)
    with pytest.raises(Mismatch):
        prepare_model(other, "vanilla")
    old_base = read_record(ws.model_dir("base"))["model_sha256"]
    again = prepare_model(other, "vanilla", force=True)
    assert again.model_sha256 != first.model_sha256
    assert read_record(ws.model_dir("base"))["model_sha256"] != old_base
    for model in ("base", "vanilla"):
        check_made_for(other, model)


def test_a_killed_training_ends_with_the_same_bytes(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    whole = weights(train_base(ws).path)
    clip, calls = loop._clip, iter(range(10))

    def dying(*arguments: Any) -> float:
        if next(calls) == 1:
            raise Killed
        return clip(*arguments)

    monkeypatch.setattr(Snapshots, "due", lambda self: True)
    monkeypatch.setattr(loop, "_clip", dying)
    with pytest.raises(Killed):
        train_base(ws, force=True)
    assert weights(ws.model_dir("base")) == whole
    assert list(ws.path("models").glob(".resume-base/step-00000001.safetensors"))
    assert next(calls) == 2
    train_base(ws, force=True)
    assert next(calls) == 4  # one step was left to do
    assert weights(ws.model_dir("base")) == whole
