"""What does not belong together is refused before weights are loaded, and says what differs: cases 24 to 35."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from campaigns import fits
from campaigns.small import place

from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.mask import Mask
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.backbones.loading import load


def test_a_mask_fits_or_is_refused() -> None:
    """Promise 5; cases 24 to 27, 29, 34, 35. One pair of each kind of mismatch and a model, every time others."""
    said: list[str] = []
    (row,) = fits.run(seed=0, count=len(fits.KINDS), report=said.append)
    assert row.kept, said


def test_a_tied_head_stays_one_weight_from_saliency_to_the_saved_model(tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    """Case 32: saliency and mask list it once, under one name, and name the alias; the model that `apply` saves is
    tied, and its head has moved."""
    where = place(tmp_path / "ws", tiny_qwen2_vl)
    head, embedding = "lm_head.weight", "model.language_model.embed_tokens.weight"
    for command in (["saliency", "--set", "forget,preserve"], ["mask"], ["apply", "--method", "mmunlearner"]):
        code, _, err = where.run(*command)
        assert code == 0, err
    measured = SaliencyMap.load(where.root / "saliency" / "forget_vqa")
    mask = Mask.load(where.root / "masks" / "default.safetensors")
    assert measured.tied == mask.provenance["tied"] == {head: embedding}
    assert embedding in mask.names
    assert head not in (*mask.names, *measured.names)
    made = load(where.root / "models" / "mmunlearner.default")
    assert made.tied == {head: embedding}
    after, before = CheckpointFiles(made.path, made.backbone.canonical), where.files
    assert np.any(after.array(embedding) != before.array(embedding))
    assert np.array_equal(made.model.get_output_embeddings().weight.detach().numpy(), after.array(embedding))
