"""NumPy archives: equal arrays, no pickle, no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmsurgery.artifacts.mask import Mask, MaskParameter, pack
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.errors import Mismatch, MissingArtifact, UsageError
from mmsurgery.exchange.export import export
from mmsurgery.names import Address
from mmsurgery.settings import Settings
from mmsurgery.workspace import Workspace

BITS = np.arange(15).reshape(3, 5) % 4 == 1
NAME = "lm_head.weight"


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path, Settings())
    Mask(
        rule="random",
        beta=None,
        estimator=None,
        mixture=None,
        modules="lm",
        parameters={NAME: MaskParameter((3, 5), Address("lm", None, "head"), pack(BITS))},
        base={"model_type": "llava", "model_sha256": "a" * 64},
    ).write(workspace.mask_path("some"))
    workspace.path("saliency").mkdir()
    SaliencyMap(
        part="forget_vqa",
        estimator="sample",
        batch_size=None,
        units=7,
        model_type="llava",
        model_sha256="a" * 64,
        data_sha256="b" * 64,
        arrays={NAME: np.arange(6, dtype=np.float32).reshape(2, 3)},
        no_gradient={"silent": (2,)},
    ).save(workspace.path("saliency", "forget_vqa"))
    return workspace


def test_arrays_are_those_of_the_artifacts(ws: Workspace) -> None:
    with np.load(export(ws, "some", format="numpy").path, allow_pickle=False) as archive:
        assert archive[NAME].dtype == np.bool_
        assert np.array_equal(archive[NAME], BITS)
        about = json.loads(str(archive["mmsurgery"]))
    assert (about["kind"], about["selected"], about["total"]) == ("mask", int(BITS.sum()), 15)
    with np.load(export(ws, "forget_vqa", format="numpy").path, allow_pickle=False) as archive:
        assert np.array_equal(archive[NAME], [[0, 1, 2], [3, 4, 5]])
        about = json.loads(str(archive["mmsurgery"]))
    assert (about["quantity"], about["units"], about["no_gradient"]) == ("sum_of_squares", 7, ["silent"])


def test_what_lies_under_the_path_is_kept(ws: Workspace) -> None:
    result = export(ws, "some", format="numpy")
    assert export(ws, "some", format="numpy").up_to_date
    result.path.write_bytes(b"mine")
    with pytest.raises(Mismatch, match="exists"):
        export(ws, "some", format="numpy")
    assert result.path.read_bytes() == b"mine"
    assert not export(ws, "some", format="numpy", force=True).up_to_date
    assert [p.name for p in ws.path("exports").iterdir()] == ["some.npz"]


def test_wrong_formats_and_names_are_refused(ws: Workspace) -> None:
    with pytest.raises(UsageError, match="is a saliency"):
        export(ws, "forget_vqa", format="official")
    with pytest.raises(UsageError, match="no format"):
        export(ws, "some", format="nump")
    with pytest.raises(MissingArtifact) as caught:
        export(ws, "sone", format="numpy")
    assert "some" in str(caught.value)


def test_no_torch_is_imported(ws: Workspace) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from mmsurgery.exchange.export import export; from mmsurgery.settings import Settings\n"
        "from mmsurgery.workspace import Workspace\n"
        f"ws = Workspace(Path({str(ws.root)!r}), Settings())\n"
        "export(ws, 'some', format='numpy'); export(ws, 'forget_vqa', format='numpy')\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
