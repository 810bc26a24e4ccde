"""How benchmarks ask for written answers: wording and prompt, byte for byte.

mllmu-bench   MLLMU-Bench's wording of choice, cloze and open questions, in the prompt that it gives the model's
              family (`Backbone.mllmu_prompt`); one-shot: solved questions of one person before it
clear         CLEAR's questions as MMUnlearner asks them: options as `A. text`, no instruction, the chat template
chat          MLLMU-Bench's wording in the model's own chat template, for benchmarks that have no way of their own
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from mmsurgery.data.samples import Item
from mmsurgery.errors import InternalError, UnusableData

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded

NEW_TOKENS = 50
"""Most tokens of a written answer, in both benchmarks."""

_LETTER = "Just give ONE letter representing the answer directly."
_CLOZE = "Please **ONLY** provide the correct answer that should replace the [Blank]."
_SENTENCE = {
    "image": "Answer the question based on your trained knowledge in one sentence accurately in ENGLISH.",
    "text": "Answer the question based on your trained knowledge in one sentence in ENGLISH.",
}


class Asking(Protocol):
    """A way of asking."""

    name: str

    def wording(self, item: Item) -> str:
        """The question as the benchmark words it, without what a family puts around it.

        Raises:
            UnusableData: for a choice without options or with another gold letter than they have.
        """
        ...

    def demonstrated(self, column: str, task: str) -> bool:
        """Whether solved questions can stand before those of a column and task."""
        ...

    def solved(self, item: Item) -> str:
        """A question with its answer, as a demonstration words it."""
        ...

    def prompt(self, loaded: Loaded, item: Item, wording: str, solved: Sequence[str]) -> str:
        """The rendered prompt of a worded question after its demonstrations."""
        ...


class MLLMUAsking:
    """See https://arxiv.org/abs/2410.22108 and the evaluation script of its repository."""

    name = "mllmu-bench"

    def wording(self, item: Item) -> str:
        if item.task == "cloze":
            return f"{_blanked(item)}\n{_CLOZE}"
        if item.task == "generation":
            return f"{item.question}\n{_SENTENCE[item.modality]}"
        return f"{item.question}\n{_listed(item, ':')}\n{_LETTER}"

    def demonstrated(self, column: str, task: str) -> bool:
        """Of celebrities only clozes, as in the original; open questions never."""
        split, _, kind = column.partition("_")
        if kind not in ("vqa", "qa"):  # perception has no solved questions about others
            return False
        return task == "cloze" or (task == "classification" and split in ("forget", "retain", "test"))

    def solved(self, item: Item) -> str:
        if item.task == "cloze":
            return f"{self.wording(item)}\nCorrect Answer: {item.gold}"
        return f"Question: {item.question}\n{_listed(item, ':')}\nCorrect Answer: {item.gold}"

    def prompt(self, loaded: Loaded, item: Item, wording: str, solved: Sequence[str]) -> str:
        return loaded.backbone.mllmu_prompt(
            loaded.processor, item.task, wording, image=item.image_bytes is not None, demonstrations=solved
        )


class _Templated:
    """Zero-shot in the model's chat template."""

    name: str

    def demonstrated(self, column: str, task: str) -> bool:
        return False

    def solved(self, item: Item) -> str:
        raise InternalError(f"benchmark '{self.name}' is asked zero-shot")

    def prompt(self, loaded: Loaded, item: Item, wording: str, solved: Sequence[str]) -> str:
        return loaded.backbone.render(loaded.processor, wording, None, image=item.image_bytes is not None)


class ClearAsking(_Templated):
    """As MMUnlearner's `CLEAR_eval.py` asks; zero-shot, as it is whatever its shell script is told."""

    name = "clear"

    def wording(self, item: Item) -> str:
        return f"{item.question}\n{_listed(item, '.')}\n" if item.task == "classification" else item.question


class ChatAsking(_Templated):
    name = "chat"
    wording = MLLMUAsking.wording


def asking_of(benchmark: Any) -> Asking:
    """The way of a benchmark: that of its attribute `asking`, else `chat`."""
    return ASKINGS[getattr(benchmark, "asking", "chat")]


ASKINGS: dict[str, Asking] = {each.name: each for each in (MLLMUAsking(), ClearAsking(), ChatAsking())}


def _blanked(item: Item) -> str:
    return item.question.replace("__", "[Blank]")


def _listed(item: Item, sign: str) -> str:
    if not item.options or item.gold not in item.options:
        raise UnusableData(
            f"item {item.id} has no options with gold letter {item.gold!r}", "mend the benchmark's files"
        )
    return "\n".join(f"{letter}{sign} {text}" for letter, text in item.options.items())
