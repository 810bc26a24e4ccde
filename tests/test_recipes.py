"""Recipes: the paper's numbers as they ship, and files of one's own, refused key by key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmsurgery.errors import InputRefused, MissingArtifact, UsageError
from mmsurgery.recipes import Recipe, find_recipe, shipped_recipes

LEAST = {"epochs": "2", "batch_size": "4", "learning_rate": "1e-4", "rank": "8", "alpha": "16", "source": '"mine"'}


def toml(**changes: str | None) -> str:
    """The least recipe, with keys changed, or left out where None."""
    return "\n".join(f"{key} = {value}" for key, value in {**LEAST, **changes}.items() if value is not None)


# paper, Table 4: benchmark, backbone -> epochs, batch size, learning rate
TABLE_4 = {
    "mllmu-bench.llava": (4, 4, 2e-5),
    "mllmu-bench.qwen2_vl": (4, 4, 1e-5),
    "clear.llava": (4, 3, 2e-5),
    "clear.qwen2_vl": (4, 5, 1e-5),
}


def test_table_4_ships_and_clear_in_both_readings() -> None:
    swapped = {f"{n}.swapped": (b, e, r) for n, (e, b, r) in TABLE_4.items() if n.startswith("clear")}
    folder = {n.replace("mllmu-bench", "folder"): row for n, row in TABLE_4.items() if n.startswith("mllmu")}
    expected = {**TABLE_4, **swapped, **folder}
    assert shipped_recipes() == sorted(expected)
    for name, row in expected.items():
        found, recipe = find_recipe(name)
        assert found == name
        assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == row
        assert (recipe.adapter, recipe.schedule, recipe.accumulation, recipe.weight_decay) == ("lora", "linear", 1, 0)
        assert recipe.modules == "vision,connector,lm"
        assert recipe.source


def test_a_file_is_read_and_keys_left_out_have_their_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(toml(betas="[0.9, 0]"))
    name, recipe = find_recipe(str(file))
    assert name == "mine"
    assert recipe == Recipe(
        epochs=2, batch_size=4, learning_rate=1e-4, rank=8, alpha=16.0, betas=(0.9, 0.0), source="mine"
    )
    assert recipe.numbers()["betas"] == [0.9, 0.0]
    assert "source" not in recipe.numbers()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (toml(learning_rat="1e-4"), "unknown key 'learning_rat' (did you mean 'learning_rate'?)"),
        (toml(dropout="0.05"), "unknown key 'dropout'"),
        (toml(epochs=None), "key 'epochs' is missing"),
        (toml(source=None), "key 'source' is missing"),
        (toml(epochs="2.0"), "epochs should be a whole number, is 2.0"),
        (toml(epochs="true"), "epochs should be a whole number, is True"),
        (toml(checkpointing="1"), "checkpointing should be true or false, is 1"),
        (toml(learning_rate='"fast"'), "learning_rate should be a number, is 'fast'"),
        (toml(betas="[0.9]"), "betas should be two numbers, is [0.9]"),
        (toml(epochs="0"), "epochs is 0, should be 1 or more"),
        (toml(accumulation="-1"), "accumulation is -1, should be 1 or more"),
        (toml(learning_rate="nan"), "learning_rate is nan, should be between 0 and 1"),
        (toml(weight_decay="-0.1"), "weight_decay is -0.1, should be 0 or more"),
        (toml(clip_norm="inf"), "clip_norm is inf, should be 0 or more"),
        (toml(betas="[0.9, 1]"), "betas are [0.9, 1.0], should be from 0 to below 1"),
        (toml(seed="-1"), "seed is -1"),
        (toml(schedule='"cosine"'), "schedule is 'cosine', should be linear or constant"),
        (toml(adapter='"dora"'), "adapter is 'dora', should be lora or full"),
        (toml(precision='"fp16"'), "precision is 'fp16', should be float32 or bf16"),
        (toml(modules='"language"'), "modules: "),
        (toml(rank=None), "key 'rank' is missing, LoRA needs it"),
        (toml(alpha=None), "key 'alpha' is missing, LoRA needs it"),
        (toml(rank="0"), "rank is 0, should be 1 or more"),
        (toml(alpha="0"), "alpha is 0.0, should be above 0"),
        (toml(adapter='"full"', alpha=None), "rank is about LoRA, and adapter is full"),
        ("epochs = ", "is not valid TOML"),
    ],
)
def test_what_a_recipe_may_not_say(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe.from_toml(text, "mine.toml")
    assert caught.value.what.startswith("mine.toml")
    assert says in caught.value.what


def test_all_faults_at_once() -> None:
    with pytest.raises(UsageError, match=r"\[1\] unknown key 'lr'.*; \[2\] epochs should be .*; \[3\] .* is missing"):
        Recipe.from_toml(toml(lr="1", epochs='"two"', source=None), "mine.toml")


def test_an_unknown_name_lists_what_ships() -> None:
    with pytest.raises(UsageError) as caught:
        find_recipe("clear.lava")
    assert caught.value.what == "no recipe 'clear.lava'"
    assert "did you mean 'clear.llava'?" in str(caught.value.next_step)
    assert all(name in str(caught.value.next_step) for name in shipped_recipes())


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact, match="no recipe file"):
        find_recipe(str(tmp_path / "none.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputRefused, match="cannot be read"):
        find_recipe(str(tmp_path / "bytes.toml"))


def test_reading_a_recipe_needs_no_torch() -> None:
    code = "import sys; from mmsurgery.recipes import find_recipe; find_recipe('clear.llava')"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
