"""What scoring keeps of one model from column to column: features of pictures, and whether prefixes may be shared.

A picture passes through the vision encoder and the connector once, by itself, whatever protocol asks about it and
however many questions, options and columns there are: what it looks like to the model does not depend on the batch.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mmsurgery.memory import give_back

if TYPE_CHECKING:
    import torch

    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.backbones.protocol import Question

FEATURE_BYTES = 2 << 30
"""Most bytes of features that are kept, in main memory; pictures beyond them are encoded for each batch."""
_OFTEN = 64
"""Pictures whose features are taken before memory is given back."""


class Remembered:
    """Of a model whose weights do not change meanwhile."""

    def __init__(self, loaded: Loaded) -> None:
        self.prefixes_hold: dict[bool, bool] = {}
        """Whether questions have a picture -> whether scores from shared prefixes are those of whole rows."""
        self._loaded = loaded
        self._features: dict[str, torch.Tensor] = {}
        self._bytes = 0

    @contextlib.contextmanager
    def pictures(self, shown: Sequence[Question], cache: dict[Any, Any]) -> Iterator[None]:
        """Inside, the model is given the features of these pictures instead of encoding those of its batch.

        A family whose model has no `get_image_features` encodes them in every batch.

        Args:
            shown: what the batch's pictures belong to, in their order, repeated as they are; text questions between
                them do not matter.
            cache: see `Backbone.prompts`.
        """
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        pictured = [each for each in shown if each.image_sha256 is not None]
        encoder = self._encoder()
        if not pictured or encoder is None:
            yield
            return
        found = {each.image_sha256: each for each in pictured}
        device = next(self._loaded.model.parameters()).device
        features = {key: self._of(encoder, each, cache).to(device) for key, each in found.items()}
        output = BaseModelOutputWithPooling(pooler_output=[features[each.image_sha256] for each in pictured])

        @functools.wraps(encoder.get_image_features)  # generation asks which arguments it takes
        def remembered(*arguments: Any, **keywords: Any) -> Any:
            return output

        encoder.get_image_features = remembered
        try:
            yield
        finally:
            del encoder.get_image_features

    def features(self, question: Question, cache: dict[Any, Any]) -> torch.Tensor | None:
        """What the connector gives of a question's picture, `[image tokens, width]`; None of a family whose model has
        no `get_image_features`."""
        encoder = self._encoder()
        return None if encoder is None else self._of(encoder, question, cache)

    def _encoder(self) -> Any:
        """The module whose method `get_image_features` the model calls: the innermost that has one."""
        found = [module for module in self._loaded.model.modules() if hasattr(type(module), "get_image_features")]
        return found[-1] if found else None

    def _of(self, encoder: Any, question: Question, cache: dict[Any, Any]) -> torch.Tensor:
        """A picture's features `[image tokens, width]`."""
        import torch

        key = str(question.image_sha256)
        if key in self._features:
            return self._features[key]
        batch = self._loaded.backbone.prompts(self._loaded.processor, [question], cache=cache)
        text, device = batch["input_ids"].shape, next(self._loaded.model.parameters()).device
        inputs = {name: value.to(device) for name, value in batch.items() if value.shape[:2] != text}
        features: torch.Tensor
        with torch.no_grad():
            (features,) = encoder.get_image_features(**inputs).pooler_output
        if self._bytes + features.nbytes <= FEATURE_BYTES:
            self._bytes += features.nbytes
            self._features[key] = features.cpu()
            if len(self._features) % _OFTEN == 0:
                give_back()  # features stay where pixels were, and those go
        return features
