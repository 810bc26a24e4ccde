"""The portraits' reference model: trained on the retain people alone, and what NPO makes of it."""

from __future__ import annotations

import math

import pytest

from mmsurgery.methods.npo import NPO
from mmsurgery.portraits import files, training
from mmsurgery.portraits.prepare import prepare, prepare_model
from mmsurgery.portraits.world import World
from mmsurgery.settings import RecipeSettings, Settings
from mmsurgery.unlearn.apply import apply
from mmsurgery.unlearn.finetune import Stage
from mmsurgery.unlearn.record import read_record
from mmsurgery.workspace import Workspace

SHORT = (Stage(steps=3, learning_rate=1e-3, warmup=1),)


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory, world: World) -> Workspace:
    """A portraits workspace with base, vanilla and reference, trained for three steps each."""
    root = tmp_path_factory.mktemp("portraits")
    workspace = Workspace(root, Settings(recipe=RecipeSettings(learning_rate=1e-4, batch_size=42, epochs=1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "BASE", SHORT)
        patch.setattr(training, "SETTINGS", {"saturated": SHORT})
        for module in (training, files):
            patch.setattr(module, "World", lambda seed: world)
        prepare(workspace)
        prepare_model(workspace, "reference")
    return workspace


def test_reference_is_trained_from_the_base_on_retain_people_alone(
    ws: Workspace, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget = {person.key for person in world.forget_people(10)}
    record = read_record(ws.model_dir("reference"))
    assert (record["start"], record["steps"]) == ("base", {"planned": 3, "done": 3})
    digests = {read_record(ws.model_dir(name))["model_sha256"] for name in ("base", "vanilla", "reference")}
    assert len(digests) == 3

    drawn: set[str] = set()
    whole = training.draw

    def watched(stream: training.Stream, key: str, step: int) -> list[list[training.Sample]]:
        assert key == "0/reference"
        parts = whole(stream, key, step)
        drawn.update(sample.person for part in parts for sample in part)
        return parts

    monkeypatch.setattr(training, "draw", watched)
    monkeypatch.setattr(training, "World", lambda seed: world)
    monkeypatch.setattr(training, "BASE", SHORT)
    monkeypatch.setattr(training, "SETTINGS", {"saturated": SHORT})
    again = prepare_model(ws, "reference", force=True)
    assert again.model_sha256 == record["model_sha256"]
    people = {key for key in drawn if key.startswith("person/")}
    # 192 draws, .7 * .95 of them of 54 people: everyone of the forget people would be missed with chance e^-13
    assert len(people) > 20
    assert not people & forget


def test_npo_compares_with_the_reference_it_is_told(ws: Workspace) -> None:
    vanilla, oracle = (apply(ws, "npo", reference=r, name=f"npo-{r}").record for r in ("vanilla", "reference"))
    unmoved = 2 / NPO().beta * math.log(2)  # Eq. 19 where model and reference agree
    assert vanilla["losses"][0]["forget"] == pytest.approx(unmoved, rel=1e-5)
    assert abs(oracle["losses"][0]["forget"] - unmoved) > 1e-3
    assert (vanilla["reference"], oracle["reference"]) == ("vanilla", "reference")
    inputs = [record["provenance"]["inputs"] for record in (vanilla, oracle)]
    digests = [read_record(ws.model_dir(name))["model_sha256"] for name in ("vanilla", "reference")]
    assert [found["reference"] for found in inputs] == digests
    assert vanilla["model_sha256"] != oracle["model_sha256"]
