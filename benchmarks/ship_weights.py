"""Remake the weights that come with the package: train the default portraits models, copy them into the tree.

    python benchmarks/ship_weights.py [BACKBONE ...]

For the named backbones, by default all that have weights in the tree: trains base, vanilla and gold (settings as
`mmsurgery init` leaves them) in a new folder, a few minutes each on one core, prints the digest of each, and says
whether it is the one in the tree.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from mmsurgery.api import open_workspace
from mmsurgery.artifacts.checkpoint import RUN_FILE, SINGLE
from mmsurgery.portraits import shipped, training
from mmsurgery.settings import ModelSettings, Settings
from mmsurgery.start import PORTRAITS_RECIPE
from mmsurgery.unlearn.record import read_record
from mmsurgery_cli.output import Output

MODELS = ("base", "vanilla", "gold")


def main(backbones: list[str]) -> None:
    progress = Output()
    for backbone in backbones:
        with tempfile.TemporaryDirectory() as root:
            settings = Settings(models=ModelSettings(backbone=backbone), recipe=PORTRAITS_RECIPE)
            Path(root, "mmsurgery.toml").write_text(settings.to_toml())
            workspace = open_workspace(root)
            training.train_base(workspace, force=True, progress=progress)
            for which in MODELS[1:]:
                training.train(workspace, which, force=True, progress=progress)
            for model in MODELS:
                ship(workspace.model_dir(model), shipped.WEIGHTS / backbone / model)


def ship(folder: Path, target: Path) -> None:
    """Copy weights and record of a trained model into the tree."""
    made = read_record(folder)["model_sha256"]
    before = read_record(target)["model_sha256"] if target.exists() else None
    verdict = "as in the tree" if made == before else "new" if before is None else f"the tree had {before[:12]}"
    print(f"{target.parent.name} {target.name} {made} ({verdict})")
    target.mkdir(parents=True, exist_ok=True)
    for name in (SINGLE, RUN_FILE):
        shutil.copyfile(folder / name, target / name)


if __name__ == "__main__":
    main(sys.argv[1:] or sorted(folder.name for folder in shipped.WEIGHTS.iterdir()))
