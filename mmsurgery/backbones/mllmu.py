"""The prompts that MLLMU-Bench's evaluation writes by hand, which families may share. No torch."""

from __future__ import annotations


def raw_prompt(task: str, text: str, placeholder: str | None) -> str:
    """The hand-written turn, byte for byte: where blanks and line breaks stand depends on the task.

    Args:
        task: `classification`, `cloze` or `generation`.
        text: the question in the benchmark's wording, options and instruction included.
        placeholder: what stands for the picture, None for a text question.
    """
    generation = task == "generation"
    if placeholder is not None:
        return f"USER: {placeholder}\n{text}\nASSISTANT:{' ' if generation else ''}"
    return f"USER:{' ' if generation else chr(10)}{text}\nASSISTANT:"
