"""The model whose parts are measured: what identifies it, from its files; the model itself when it is needed."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from mmsurgery.artifacts.checkpoint import CheckpointFiles, companions_sha256, model_config
from mmsurgery.artifacts.digests import digest_cache, file_identity
from mmsurgery.backbones.discovery import backbone
from mmsurgery.paths import real
from mmsurgery.provenance import versions
from mmsurgery.workspace import Workspace

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded


class StoredModel:
    """A model of a workspace, by name."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.folder = workspace.existing_model(name)
        self.family = backbone(model_config(self.folder)["model_type"])

    def files(self) -> dict[str, str]:
        """Digests of the weights and of what lies beside them, as the files are now."""
        weights = CheckpointFiles(self.folder, self.family.canonical).digest()
        return {"model_sha256": weights, "companions_sha256": companions_sha256(self.folder)}

    def sums_bytes(self) -> int:
        """Size of one float32 number per weight."""
        files = CheckpointFiles(self.folder, self.family.canonical)
        return 4 * sum(math.prod(files.shape(name)) for name in files.names)

    @functools.cached_property
    def inputs(self) -> dict[str, str]:
        """Digests of the weights, of configuration and processor files, and of what turns samples into
        tokens; no torch where nothing changed."""
        files = sorted(path for path in self.folder.iterdir() if path.suffix in (".json", ".jinja", ".model", ".txt"))
        identity = [versions(), *([path.name, *file_identity(path)] for path in files)]
        template = digest_cache.remember(f"template:{real(self.folder)}", identity, self._template)
        return {**self.files(), "template_sha256": template}

    def _template(self) -> str:
        return self.family.template_digest(self.family.load_processor(self.folder))

    @functools.cached_property
    def loaded(self) -> Loaded:
        from mmsurgery.backbones.loading import load

        return load(self.folder)
