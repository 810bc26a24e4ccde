"""What scoring leaves: `evals/MODEL.json` with the columns, and one JSON line per item beside it.

A line holds `id`, `person`, `column`, `prompt_sha256`, `raw_output`, `parsed` (the letter, null for open
questions and unreadable answers), `gold`, `correct` (null for generation) and `option_scores`. Protocol
`likelihood` generates nothing (`raw_output` is null) and scores options (letter -> mean log-probability).
Protocol `official` has null option scores, and besides `task`, `letters` of the options (null for open
questions) and `rouge_l` (`{f1, recall}` for generation, else null). Protocol `open` has null option scores and a null
letter, and besides `options` (letter -> text), `outcome`, `paraphrased`, `repeated`, `other` (the fact of another
person that the answer says, else null) and `fluency` (probability of its median token under vanilla, null without a
word); the outcome is judged again when a line is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.digests import cached_sha256
from mmsurgery.artifacts.files import atomic_files, read_bytes, read_json
from mmsurgery.data.benchmark import TASKS
from mmsurgery.data.leakage import normalised
from mmsurgery.errors import InputRefused, MissingArtifact
from mmsurgery.evaluate.official import Answer
from mmsurgery.evaluate.open_answers import Answered
from mmsurgery.evaluate.outcomes import OUTCOMES
from mmsurgery.evaluate.protocols import PROTOCOLS, Protocol, family
from mmsurgery.evaluate.rouge import RougeL
from mmsurgery.evaluate.scoring import ItemScore
from mmsurgery.provenance import SCHEMA, canonical_json, check_seal, parse_json, seal, sha256

_COLUMN = {"protocol", "n", "correct", "accuracy", "chance", "ci95"}
_COLUMNS = {
    "likelihood": [_COLUMN, {"protocol", "n", "probability", "truth_ratio", "ci95"}],
    "official": [_COLUMN | {"unparsed"}, _COLUMN | {"whole_words"}, {"protocol", "n", "rouge_l", "ci95"}],
    "open": [_COLUMN | {"outcomes", "paraphrased", "repeated"}],
}
"""Protocol, without its shots -> keys that its columns may have."""


def items_path(path: Path) -> Path:
    """The items' file beside `evals/MODEL.json`."""
    return path.with_name(f"{path.stem}.items.jsonl")


def line(item: ItemScore | Answer | Answered) -> dict[str, Any]:
    """The JSON record of a scored item."""
    head = {"id": item.id, "person": item.person, "column": item.column, "prompt_sha256": item.prompt_sha256}
    if isinstance(item, ItemScore):
        chosen = {"raw_output": None, "parsed": item.predicted, "gold": item.gold, "correct": item.correct}
        return {**head, **chosen, "option_scores": item.options}
    if isinstance(item, Answered):
        written = {"raw_output": item.raw_output, "parsed": None, "gold": item.gold, "correct": item.correct}
        return {
            **head,
            **written,
            "option_scores": None,
            "options": dict(item.options),
            "outcome": item.outcome,
            "paraphrased": item.paraphrased,
            "repeated": item.repeated,
            "other": item.other,
            "fluency": item.fluency,
        }
    return {
        **head,
        "raw_output": item.raw_output,
        "parsed": item.parsed,
        "gold": item.gold,
        "correct": item.correct,
        "option_scores": None,
        "task": item.task,
        "letters": None if item.letters is None else list(item.letters),
        "rouge_l": None if item.rouge is None else item.rouge._asdict(),
    }


def from_line(value: Any, where: str) -> Any:
    """The scored item of a record: an `ItemScore` where options were scored, an `Answered` where an outcome was judged,
    else an `Answer`.

    Raises:
        InputRefused: naming `where`, if it is none, or says another prediction than its scores or its
            answer do.
    """
    try:
        texts = {key: value[key] for key in ("id", "person", "column", "prompt_sha256", "gold")}
        item: ItemScore | Answer | Answered
        if "outcome" in value:
            texts["raw_output"] = value["raw_output"]
            options = {str(letter): str(text) for letter, text in value["options"].items()}
            item = Answered(**texts, options=options, other=value["other"], fluency=value["fluency"])
            known = _is_judged(item)
        elif value["option_scores"] is None:
            texts |= {key: value[key] for key in ("task", "raw_output")}
            letters = None if value["letters"] is None else tuple(value["letters"])
            rouge = None if value["rouge_l"] is None else RougeL(**value["rouge_l"])
            item = Answer(**texts, letters=letters, rouge=rouge)
            known = (item.task == "classification") == (letters is not None) and item.task in TASKS
            known = known and (item.task == "generation") == (rouge is not None)
        else:
            scores = {str(letter): float(number) for letter, number in value["option_scores"].items()}
            item, known = ItemScore(**texts, options=scores), True
        sound = known and all(isinstance(text, str) for text in texts.values()) and line(item) == value
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputRefused(f"{where} is no scored item", "score again: mmsurgery eval --force") from error
    if not sound:
        raise InputRefused(f"{where} contradicts itself", "score again: mmsurgery eval --force")
    return item


def _is_judged(item: Answered) -> bool:
    """Whether what an open answer is judged by can be: the other person's fact is said, the probability is one."""
    text, other, fluency = f" {normalised(item.raw_output)} ", item.other, item.fluency
    likely = fluency is None or (isinstance(fluency, float) and 0 <= fluency <= 1)
    return likely and (other is None or (isinstance(other, str) and other != "" and f" {other} " in text))


def write_eval(path: Path, body: dict[str, Any], items: Sequence[ItemScore | Answer | Answered]) -> dict[str, Any]:
    """Write the items and the sealed record that names their digest, together.

    Args:
        body: `model`, `columns`, `remarks` and `provenance`.

    Returns:
        the record as written.

    Raises:
        MachineFault: if they cannot be written.
    """
    # keys keep their order: among equal scores the first option stored was predicted
    text = "".join(json.dumps(line(item), allow_nan=False, ensure_ascii=False) + "\n" for item in items).encode()
    record = seal({"schema": SCHEMA, "kind": "eval", **body, "items": {"n": len(items), "sha256": sha256(text)}})
    with atomic_files(items_path(path), path) as (lines, head):
        lines.write_bytes(text)
        head.write_bytes(canonical_json(record) + b"\n")
    return record


def read_eval(path: Path) -> dict[str, Any]:
    """The record of `evals/MODEL.json`, checked together with the items' file.

    Raises:
        MissingArtifact: if it does not exist.
        InputRefused: if one of the two files is damaged, or the items are missing.
        Mismatch: if it was written by another schema.
    """
    again = _command(path)
    try:
        record = check_seal(read_json(path), str(path), kind="eval")
    except InputRefused as error:
        raise InputRefused(error.what, again) from error
    columns, items = record.get("columns"), record.get("items")
    if not isinstance(columns, dict) or not isinstance(items, dict) or not isinstance(record.get("model"), str):
        raise InputRefused(f"{path} cannot be read", again)
    for column, value in columns.items():
        if not isinstance(value, dict) or not _is_column(value):
            raise InputRefused(f"{path}: column {column} cannot be read", again)
    lines = items_path(path)
    try:
        digest = cached_sha256(lines)
    except MissingArtifact as error:
        raise InputRefused(f"{lines} is missing, {path.name} belongs to it", again) from error
    if digest != items.get("sha256"):
        raise InputRefused(f"{lines} was changed or damaged after it was written", again)
    return record


def _command(path: Path) -> str:
    """The command that scores what a record holds again, as its place in `evals/` tells it."""
    folders = list(path.parts[:-1])
    below = folders[len(folders) - folders[::-1].index("evals") :] if "evals" in folders else []
    options, request = "", ""
    while below:
        folder = below.pop(0)
        if folder == "requests" and below:
            request = f" --request {below.pop(0)}"
        elif folder.startswith("subset-"):
            options += f" --subset {folder.removeprefix('subset-')}"
        elif family(folder) in PROTOCOLS:
            options = Protocol.of_id(folder).options + options
    return f"mmsurgery eval {path.stem}{options}{request} --force"


def _is_column(value: dict[str, Any]) -> bool:
    # `distinct` is missing in records of earlier versions
    known = set(value) - {"distinct"} in _COLUMNS.get(family(str(value.get("protocol"))), [])
    return known and ("outcomes" not in value or _is_split(value))


def _is_split(value: dict[str, Any]) -> bool:
    """Whether the outcomes of a column of open answers add up to it."""
    counts = value["outcomes"]
    known = isinstance(counts, dict) and set(counts) == set(OUTCOMES)
    known = known and all(isinstance(count, int) for count in counts.values())
    return known and sum(counts.values()) == value["n"] and counts["correct"] == value["correct"]


def read_items(path: Path) -> dict[str, list[Any]]:
    """The scored items beside `evals/MODEL.json`, by column in their order: `ItemScore`s, `Answer`s of protocol
    `official`, or `Answered`s of protocol `open`.

    Raises:
        as `read_eval`.
    """
    read_eval(path)
    found: dict[str, list[Any]] = {}
    for number, text in enumerate(read_bytes(items_path(path)).splitlines(), 1):
        where = f"{items_path(path)} line {number}"
        item = from_line(parse_json(text, where), where)
        found.setdefault(item.column, []).append(item)
    return found
