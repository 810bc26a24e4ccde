"""The engine never imports a plugin or the CLI, lower rooms never import higher ones, light modules stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    {"errors", "interruption", "names", "paths"},
    {"provenance", "settings", "hub_models", "workspace", "recipes", "memory", "ranks"},
    {"artifacts", "figures"},
    {"backbones"},
    {"data", "methods"},
    {"saliency", "masks"},
    {"unlearn", "evaluate", "diff", "patches", "audit"},
    {"portraits", "report", "exchange"},
    {"api", "start", "status", "training", "links", "look", "stability", "demo", "experiments", "plans"},
]
ROW = {room: row for row, rooms in enumerate(ROWS) for room in rooms}


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def engine_files() -> list[Path]:
    return sorted(f for f in (ROOT / "mmsurgery").rglob("*.py") if f != ROOT / "mmsurgery" / "__init__.py")


def test_every_room_has_a_row() -> None:
    rooms = {f.relative_to(ROOT / "mmsurgery").parts[0].removesuffix(".py") for f in engine_files()}
    assert rooms <= set(ROW)


@pytest.mark.parametrize("file", engine_files(), ids=lambda f: str(f.relative_to(ROOT)))
def test_engine_imports_only_downwards(file: Path) -> None:
    room = file.relative_to(ROOT / "mmsurgery").parts[0].removesuffix(".py")
    for name in imports(file):
        top, _, rest = name.partition(".")
        assert not top.startswith("mmsurgery_"), f"{file} imports {name}"
        assert top not in {"typer", "rich"}, f"{file} imports {name}"
        if top == "mmsurgery" and rest.split(".")[0] in ROW:
            assert ROW[rest.split(".")[0]] <= ROW[room], f"{file} in row {ROW[room]} imports {name}"


@pytest.mark.parametrize("folder", ["plugins", "cli"])
def test_plugins_and_cli_do_not_import_each_other(folder: str) -> None:
    for file in sorted((ROOT / folder).rglob("*.py")):
        own = file.relative_to(ROOT / folder).parts[0]
        tops = {name.partition(".")[0] for name in imports(file)}
        assert not {top for top in tops if top.startswith("mmsurgery_")} - {own}, file


@pytest.mark.parametrize(
    "statement",
    [
        "import mmsurgery; mmsurgery.Mask; mmsurgery.ratio_mask; mmsurgery.open_workspace",
        "from mmsurgery.backbones.discovery import backbone; backbone('llava').address('lm_head.weight')",
        "import mmsurgery_cli.main; mmsurgery_cli.main.run(['--help'])",
        "from mmsurgery.data.benchmark import benchmark; benchmark('portraits')",
        "from mmsurgery.report import write_report",
    ],
)
def test_light_imports(statement: str) -> None:
    heavy = "{'torch', 'transformers', 'peft', 'h5py', 'matplotlib'}"
    code = f"import sys\n{statement}\nassert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
