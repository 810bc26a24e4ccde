"""Plugins are found by name, listed without being imported, and refused where two claim one name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmsurgery.backbones import discovery
from mmsurgery.errors import UsageError
from mmsurgery_llava import backbone as llava


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """`distribution(name, entry, code)`: an installed package with one module and one backbone entry point."""

    def install(name: str, entry: str, code: str) -> None:
        site = tmp_path / name
        info = site / f"{name}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[mmsurgery.backbones]\n{entry} = {name}_module:backbone\n")
        (site / f"{name}_module.py").write_text(code)
        monkeypatch.syspath_prepend(str(site))

    return install


def test_llava_is_found() -> None:
    assert discovery.backbone("llava") is llava
    row = next(row for row in discovery.described(discovery.GROUP, "title") if row["name"] == "llava")
    assert row["title"] == "LLaVA-1.5"
    assert row["distribution"] == "mmsurgery"
    assert row["origin"] == "mmsurgery_llava:backbone"


def test_unknown_model_type_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="no backbone 'lava' - next: did you mean 'llava'"):
        discovery.backbone("lava")


def test_listing_imports_nothing(distribution: Callable[[str, str, str], None]) -> None:
    distribution("third", "fuyu", "raise RuntimeError('imported')")
    listed = {each.name: each for each in discovery.installed()}
    assert (listed["fuyu"].distribution, listed["fuyu"].version) == ("third", "1.2")
    assert "third_module" not in sys.modules
    with pytest.raises(UsageError, match="'fuyu' of third cannot be imported: RuntimeError: imported"):
        discovery.backbone("fuyu")
    assert (
        "cannot be imported"
        in next(r for r in discovery.described(discovery.GROUP, "title") if r["name"] == "fuyu")["title"]
    )
    assert discovery.backbone("llava") is llava


def test_a_plugin_that_exits_is_refused(distribution: Callable[[str, str, str], None]) -> None:
    distribution("quitter", "quits", "raise SystemExit(0)")
    with pytest.raises(UsageError, match="cannot be imported: SystemExit"):
        discovery.backbone("quits")


def test_two_claims_are_refused(distribution: Callable[[str, str, str], None]) -> None:
    distribution("shadow", "llava", "raise RuntimeError('imported')")
    with pytest.raises(UsageError, match=r"claimed by mmsurgery \(mmsurgery_llava:backbone\) and shadow"):
        discovery.backbone("llava")


def test_something_else_is_no_backbone(distribution: Callable[[str, str, str], None]) -> None:
    distribution("other", "odd", "backbone = object()")
    with pytest.raises(UsageError, match="'other_module:backbone' of other is no backbone for 'odd'"):
        discovery.backbone("odd")
    distribution("liar", "liar", "from mmsurgery_llava import backbone")
    with pytest.raises(UsageError, match="is no backbone for 'liar'"):
        discovery.backbone("liar")
