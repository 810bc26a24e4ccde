"""The person x person drop matrix, against workspaces in which each person alone is to be forgotten."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from audit_world import FORGET, make
from jsonschema import Draft202012Validator

from mmsurgery.api import Workspace
from mmsurgery.artifacts.mask import Mask
from mmsurgery.audit import card, one_by_one
from mmsurgery.audit.material import Material
from mmsurgery.audit.run import audit
from mmsurgery.audit.subjects import subject
from mmsurgery.backbones.loading import load
from mmsurgery.errors import UnusableData
from mmsurgery.evaluate.scoring import score
from mmsurgery.masks.build import build_mask
from mmsurgery.unlearn.apply import apply

OPTIONS = {"learning_rate": 0.05, "epochs": 4, "seed": 3, "forget_weight": 0.7}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, tiny_llava: Path, picture: Callable[..., bytes]) -> Workspace:
    workspace = make(tmp_path_factory.mktemp("together"), tiny_llava, picture, ("vanilla", "gold"))
    apply(workspace, "ga_diff", **OPTIONS)
    return workspace


def accuracy(workspace: Workspace, model: str, asked: Material) -> dict[str, float]:
    right: dict[str, list[bool]] = {}
    items = [*asked.forget, *asked.items("retain_vqa")]
    for item, each in zip(items, score(load(workspace.model_dir(model)), items), strict=True):
        right.setdefault(item.person, []).append(each.correct)
    return {person: sum(each) / len(each) for person, each in right.items()}


def test_each_row_is_that_of_a_run_for_one_person(
    together: Workspace, tmp_path: Path, tiny_llava: Path, picture: Callable[..., bytes]
) -> None:
    material = Material.of(together)
    found = one_by_one.drops(subject(together, "ga_diff"), material)
    assert found["forgotten"] == [f"person/{name}" for name in FORGET]
    before = accuracy(together, "vanilla", material)
    assert set(found["people"]) == set(before)
    for name, row in zip(FORGET, found["drops"], strict=True):
        alone = make(tmp_path / name, tiny_llava, picture, ("vanilla",))
        rows = [json.loads(line) for line in (alone.data_dir / "rows.jsonl").read_text().splitlines()]
        kept = [row for row in rows if row["role"] == "retain" or row["person"] == name]
        # the ids of rows, which orders are drawn by, are their lines
        (alone.data_dir / "rows.jsonl").write_text(
            "".join(("" if row not in kept else json.dumps(row)) + "\n" for row in rows)
        )
        smaller = dataclasses.replace(alone.settings.recipe, batch_size=2)  # nobody has more than two samples
        alone = Workspace(alone.root, dataclasses.replace(alone.settings, recipe=smaller))
        apply(alone, "ga_diff", retain_batch=4, **OPTIONS)
        after = accuracy(alone, "ga_diff", material)
        assert row == pytest.approx([before[person] - after[person] for person in found["people"]], abs=1e-4)
    assert any(drop for row in found["drops"] for drop in row)


def test_the_card_says_who_pays(together: Workspace) -> None:
    record = audit(together, "ga_diff", probes="collateral").record
    said = card.one_by_one(record)
    assert [line.split(" forgotten alone")[0] for line in said] == [f"person/{name}" for name in FORGET]
    assert card.one_by_one(audit(together, "gold", probes="collateral").record) == []


def test_what_cannot_be_done_again_says_why(together: Workspace) -> None:
    with pytest.raises(UnusableData, match="'gold' has no record of a run"):
        one_by_one.drops(subject(together, "gold"), Material.of(together))


def test_card_and_measurements_are_what_their_schema_says(together: Workspace) -> None:
    schema = json.loads((Path(__file__).parents[2] / "docs/schemas/audit.json").read_text())
    Draft202012Validator.check_schema(schema)
    result = audit(together, "ga_diff", probes="collateral,quantisation,membership")
    Draft202012Validator(schema).validate(json.loads(result.path.read_text()))
    measured = Draft202012Validator({**schema["$defs"]["measured"], "$defs": schema["$defs"]})
    files = sorted(together.path("audits", "measured").glob("*.json"))
    assert len(files) >= 9
    for file in files:
        measured.validate(json.loads(file.read_text()))
    broken = json.loads(result.path.read_text())
    broken["probes"]["quantisation"]["models"]["ga_diff"]["verdict"] = "fine"
    assert not Draft202012Validator(schema).is_valid(broken)


def test_layers_stand_beside_what_the_mask_selects_there(together: Workspace) -> None:
    build_mask(together, density=0.2, modules="lm")
    apply(together, "mmunlearner", mask="default", **OPTIONS)
    record = audit(together, "mmunlearner.default", probes="probing").record
    density = Mask.load(together.mask_path("default")).density(by="layer")
    assert len(record["profile"]) > 1
    for layer, read in record["profile"].items():
        assert read["mask"] == density[layer]
    said = card.profile(record)
    assert [line.split(":")[0] for line in said] == sorted(record["profile"])
    assert all("the mask selects" in line for line in said)
    build_mask(together, density=0.1, modules="lm", force=True)
    again = audit(together, "mmunlearner.default", probes="probing", force=True).record
    assert all("mask" not in read for read in again["profile"].values())
