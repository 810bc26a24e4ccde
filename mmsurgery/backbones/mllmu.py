"""The prompts that MLLMU-Bench's evaluation writes by hand, which families may share. No torch."""

from __future__ import annotations

from collections.abc import Sequence


def raw_prompt(task: str, text: str, placeholder: str | None, demonstrations: Sequence[str] = ()) -> str:
    """The hand-written turn, byte for byte: where blanks and line breaks stand depends on the task.

    Args:
        task: `classification`, `cloze` or `generation`.
        text: the question in the benchmark's wording, options and instruction included.
        placeholder: what stands for the picture, None for a text question.
        demonstrations: solved questions of the same kind that stand before it.
    """
    generation = task == "generation"
    lead = f"{' ' if task == 'classification' else ''}{placeholder}" if placeholder is not None else ""
    shots = "".join(f"USER:{lead}\n{each}\n" for each in demonstrations)
    if placeholder is not None:
        return f"{shots}USER: {placeholder}\n{text}\nASSISTANT:{' ' if generation else ''}"
    return f"{shots}USER:{' ' if generation else chr(10)}{text}\nASSISTANT:"
