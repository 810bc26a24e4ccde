"""Sizes of a model from its checkpoint's headers, and of what a pass through it keeps; no weight is read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from mmsurgery.artifacts.checkpoint import CheckpointFiles, model_config
from mmsurgery.backbones.discovery import backbone
from mmsurgery.backbones.protocol import Backbone
from mmsurgery.names import Address
from mmsurgery.plans.plan import ModelSize

FLOAT32 = 4
"""Bytes."""
BF16 = 2
"""Bytes."""
KEPT = 1.25
"""Saved for the backward pass, in units of the inputs and outputs of all linear layers. Measured with torch's
saved-tensor hooks on LLaVA and Qwen2-VL of 8 layers, float32 and bfloat16: 1.10 to 1.30."""
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_NAMED = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_QUERIES = ("attn.q", "attn.qkv")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Shapes of a model's parameters by canonical name."""

    name: str
    family: Backbone
    shapes: Mapping[str, tuple[int, ...]]
    addresses: Mapping[str, Address]
    dtypes: Mapping[str, str]
    width: int
    """Bytes of a weight where the model is loaded in its own dtype: its config's, else that of most weights."""

    @classmethod
    def of(cls, name: str, folder: Path) -> Sizes:
        """Of a checkpoint folder.

        Raises:
            as `CheckpointFiles`; UsageError: if no backbone is installed for it.
        """
        family = backbone(model_config(folder)["model_type"])
        files = CheckpointFiles(folder, family.canonical)
        dtypes = {name: files.dtype(name) for name in files.names}
        most = _most(dtypes)
        return cls(
            name=name,
            family=family,
            shapes={name: files.shape(name) for name in files.names},
            addresses={name: family.address(name) for name in files.names},
            dtypes=dtypes,
            width=_NAMED.get(
                str(files.config.get("dtype") or files.config.get("torch_dtype")), _BYTES.get(most, FLOAT32)
            ),
        )

    def count(self, names: Collection[str] | None = None) -> int:
        """Weights of some parameters, or of all."""
        return sum(math.prod(self.shapes[name]) for name in (self.shapes if names is None else names))

    def largest(self, names: Collection[str] | None = None) -> int:
        """Weights of the largest of some parameters, or of all; 0 of none."""
        chosen = self.shapes if names is None else names
        return max((math.prod(self.shapes[name]) for name in chosen), default=0)

    def within(self, *groups: str) -> set[str]:
        """Parameters of some module groups."""
        return {name for name, address in self.addresses.items() if address.group in groups}

    @property
    def stored(self) -> int:
        """Bytes of the weights in their files."""
        return sum(_BYTES.get(self.dtypes[name], FLOAT32) * math.prod(shape) for name, shape in self.shapes.items())

    @property
    def loaded(self) -> int:
        """Bytes of the weights in memory, where the model is loaded in its own dtype."""
        return self.width * self.count()

    @property
    def size(self) -> ModelSize:
        return ModelSize(name=self.name, parameters=self.count(), dtype=_most(self.dtypes), bytes=self.stored)

    @property
    def linear(self) -> dict[str, tuple[int, ...]]:
        """Weights `[out, in]` of linear layers, embeddings and the head left out."""
        return {
            name: shape
            for name, shape in self.shapes.items()
            if len(shape) == 2 and self.addresses[name].component not in ("embed", "head", "norm")
        }

    @property
    def vocabulary(self) -> int:
        """Rows of the token embedding, which are the logits of a position."""
        return max(shape[0] for name, shape in self.shapes.items() if self._is_embedding(name))

    def _is_embedding(self, name: str) -> bool:
        group, _, component = self.addresses[name]
        return group == "lm" and component in ("embed", "head")

    @property
    def output(self) -> set[str]:
        """The language model's head, or the token embedding that is its head, too."""
        heads = {name for name, address in self.addresses.items() if address.component == "head"}
        return heads or {name for name in self.shapes if self._is_embedding(name)}

    @property
    def patch(self) -> int:
        """Pixel values of one position of the vision encoder: the weights of one filter of its patch embedding."""
        return max((math.prod(shape[1:]) for shape in self.shapes.values() if len(shape) > 3), default=1)

    def per_token(self, width: int) -> int:
        """Bytes of keys and values of one token in all layers of the language model."""
        weights = self.linear.items()
        kinds = {name: self.addresses[name] for name in self.linear}
        return width * sum(s[0] for n, s in weights if kinds[n][0] == "lm" and kinds[n][2] in ("attn.k", "attn.v"))

    def kept(self, rows: Rows, width: int, *, checkpointing: bool = False) -> int:
        """Activations that a forward pass keeps for the backward pass, bytes: an estimate.

        `KEPT` times the inputs and outputs of every linear layer, a token each in the language model, a position
        each in vision encoder and connector; with checkpointing the input of every layer, and all of the
        largest layer. Logits: `answers * vocabulary` in the model's dtype, in float32, as softmax and as gradient.

        Args:
            width: bytes of a value.
        """
        layers: Counter[str] = Counter()
        inputs = 0
        for name, shape in self.linear.items():
            address = self.addresses[name]
            lines = rows.tokens if address.group == "lm" else rows.positions
            layers[address.layer_key] += lines * sum(shape)
            inputs += lines * shape[1] if address.component in _QUERIES else 0
        inside = KEPT * (max(layers.values(), default=0) if checkpointing else sum(layers.values()))
        logits = rows.answers * self.vocabulary * (width + 3 * FLOAT32)
        return int(width * (inside + (inputs if checkpointing else 0))) + logits

    def passing(self, rows: Rows, width: int) -> int:
        """Activations of a forward pass alone, bytes: an estimate. The linear layer of the widest input and
        output, twice over, and logits as for `kept`."""
        widest = max((sum(shape) for shape in self.linear.values()), default=0)
        lines = max(rows.tokens, rows.positions)
        return 2 * width * lines * widest + rows.answers * self.vocabulary * (width + 3 * FLOAT32)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """How large a batch is."""

    tokens: int
    """Samples times the longest's tokens, padding included."""
    positions: int
    """Of the vision encoder, all pictures."""
    answers: int
    """Positions that logits are computed for."""


def _most(dtypes: Mapping[str, str]) -> str:
    return Counter(dtypes.values()).most_common(1)[0][0]
