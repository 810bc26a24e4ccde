"""The backbone protocol: everything the engine asks of a model family.

A backbone is a small object behind an entry point of group `mmsurgery.backbones`, whose name is
the config's `model_type`. Importing the plugin's top module must not import torch or transformers:
names and addresses are needed where no model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mmsurgery.names import Address

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    Batch = dict[str, torch.Tensor]
    SampleGradient = Callable[[torch.nn.Module, tuple[Any, ...], torch.Tensor], dict[str, torch.Tensor]]


class Question(Protocol):
    """What a backbone reads of a question; `Sample` and `Item` of `mmsurgery.data.samples` are such."""

    @property
    def id(self) -> str: ...

    @property
    def question(self) -> str: ...

    @property
    def image(self) -> Image | None:
        """The picture in RGB, or None for a text question."""
        ...

    @property
    def image_sha256(self) -> str | None:
        """Digest of the encoded picture: equal pictures are processed once."""
        ...


class Answered(Question, Protocol):
    """A question with the answer to be learnt."""

    @property
    def answer(self) -> str: ...


@runtime_checkable
class Backbone(Protocol):
    """A model family. Every method is pure: it changes neither the model nor the processor."""

    model_type: str
    """The config's `model_type`, e.g. `llava`."""

    title: str
    """Name for people, e.g. `LLaVA-1.5`."""

    # names; no torch

    def address(self, name: str) -> Address:
        """The address of a canonical parameter name, by longest prefix.

        Raises:
            Mismatch: if the name belongs to no group of this family.
        """
        ...

    def canonical(self, stored: str) -> str:
        """The canonical name of a name as stored in a checkpoint file of any known layout
        (published, re-saved, in-memory); wrapper prefixes such as `module.` are removed."""
        ...

    def published(self, name: str) -> str:
        """The name that a canonical name has in the family's published checkpoints, and had in memory
        before transformers 4.52."""
        ...

    def no_true_gradient(self, name: str) -> bool:
        """Whether the parameter's true gradient is exactly zero whatever the data (its computed
        gradient is round-off), such as the key bias of a softmax attention (CLIP `k_proj.bias`)."""
        ...

    def linear_targets(self, group: str) -> str:
        """A full-match regular expression over module names: the group's linear layers, for LoRA."""
        ...

    # loading

    def load_model(self, path: Path, *, dtype: torch.dtype | None = None) -> torch.nn.Module:
        """The model of a local checkpoint folder, in eval mode, in the checkpoint's dtype unless
        `dtype` is given.

        Raises:
            InputRefused: if a tensor is missing, unexpected or of another shape.
        """
        ...

    def load_processor(self, path: Path) -> Any:
        """The processor of a local checkpoint folder, PIL backend, torchvision not needed.

        Raises:
            InputRefused: if its files cannot be used, or do not fit the model's `config.json`.
        """
        ...

    def skeleton(self, config: Mapping[str, Any]) -> torch.nn.Module:
        """The model of a config on the meta device: names and shapes without weights."""
        ...

    # batches

    def collate(
        self,
        processor: Any,
        samples: Sequence[Answered],
        *,
        padding_side: str = "right",
        cache: dict[Any, Any] | None = None,
    ) -> Batch:
        """Model inputs with `labels` (int64 `[B, T]`, -100 outside the answer and its end token).

        Image, prompt and padding tokens are never labelled. Mixed image and text samples are
        allowed; a batch without pictures has no pixel values.

        Args:
            cache: a dictionary the caller keeps between calls; encoded texts and pictures are
                remembered in it. The result is the same with and without.

        Raises:
            UnusableData: naming the sample, if its answer is empty or lost to truncation, or its
                text holds the image placeholder.
        """
        ...

    def prompts(
        self,
        processor: Any,
        questions: Sequence[Question],
        *,
        texts: Sequence[str] | None = None,
        shown: Sequence[Sequence[Question]] | None = None,
        cache: dict[Any, Any] | None = None,
    ) -> Batch:
        """Model inputs for generation: prompts only, left-padded, no labels; answers are ignored.

        Args:
            texts: the rendered prompts, one placeholder where a picture is; by default the chat template's.
            shown: whose pictures stand in each prompt, in order; by default the question's own.

        Raises:
            InputRefused: naming the question, if a prompt has not as many places as pictures.
        """
        ...

    def mllmu_prompt(
        self, processor: Any, task: str, text: str, *, image: bool, demonstrations: Sequence[str] = ()
    ) -> str:
        """The prompt that MLLMU-Bench's own evaluation gives this family: a string written by hand or
        the chat template, as it has it.

        Args:
            task: `classification`, `cloze` or `generation`.
            text: the question in the benchmark's wording, options and instruction included.
            demonstrations: solved questions that stand before it, each with a picture of its own if `image`.
        """
        ...

    def render(self, processor: Any, question: str, answer: str | None, *, image: bool) -> str:
        """The text of one turn: the prompt alone (`answer` None) or the prompt, answer and end token."""
        ...

    def template_digest(self, processor: Any) -> str:
        """Digest of what turns a sample into tokens: chat template, tokenizer, image processing."""
        ...

    def row_owners(self, config: Any, batch: Batch, module: str, rows: int) -> torch.Tensor:
        """Which sample each leading row of a module's activation belongs to: int64 `[rows]`.

        Only asked for modules of the vision encoder and the connector; in the language model the
        leading dimension is the batch.

        Args:
            config: the model's config.
            module: canonical module name, e.g. `model.vision_tower.encoder.layers.0.mlp.fc1`.
            rows: length of the activation's leading dimension.

        Raises:
            UnusableData: if the rows cannot be assigned.
        """
        ...

    def sample_gradients(self) -> Mapping[str, SampleGradient]:
        """Rules for modules that hold parameters in a way of their own, by module class name.

        A rule takes the module, its forward inputs and the gradient of its output `[rows, ...]` and
        returns for each parameter it covers (name relative to the module, possibly of a child) the
        gradient of every row `[rows, *shape]`.
        """
        ...

    # micro models

    def micro(self, folder: Path, vocabulary: Sequence[str], *, seed: int, size: str = "portraits") -> None:
        """Write a freshly initialised micro model with tokenizer and processor as a checkpoint folder
        in the family's published layout.

        Args:
            vocabulary: words the tokenizer knows, one token each.
            size: `portraits` (about 0.4 M parameters, 48-pixel pictures) or `tiny` (for tests).
        """
        ...
