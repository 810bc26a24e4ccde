"""What scoring leaves: `evals/MODEL.json` with the columns, and one JSON line per item beside it.

A line holds `id`, `person`, `column`, `prompt_sha256`, `raw_output`, `parsed` (the letter, null for open
questions and unreadable answers), `gold`, `correct` (null for generation) and `option_scores`. Protocol
`likelihood` generates nothing (`raw_output` is null) and scores options (letter -> mean log-probability).
Protocol `official` has null option scores, and besides `task`, `letters` of the options (null for open
questions) and `rouge_l` (`{f1, recall}` for generation, else null).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.files import cached_sha256, read_bytes, read_json, write_bytes, write_json
from mmsurgery.data.benchmark import TASKS
from mmsurgery.errors import InputRefused, MissingArtifact
from mmsurgery.evaluate.official import Answer
from mmsurgery.evaluate.protocols import PROTOCOLS, Protocol, family
from mmsurgery.evaluate.rouge import RougeL
from mmsurgery.evaluate.scoring import ItemScore
from mmsurgery.provenance import SCHEMA, check_seal, parse_json, seal, sha256

_COLUMN = {"protocol", "n", "correct", "accuracy", "chance", "ci95"}
_COLUMNS = {
    "likelihood": [_COLUMN, {"protocol", "n", "probability", "truth_ratio", "ci95"}],
    "official": [_COLUMN | {"unparsed"}, _COLUMN | {"whole_words"}, {"protocol", "n", "rouge_l", "ci95"}],
}
"""Protocol, without its shots -> keys that its columns may have."""


def items_path(path: Path) -> Path:
    """The items' file beside `evals/MODEL.json`."""
    return path.with_name(f"{path.stem}.items.jsonl")


def line(item: ItemScore | Answer) -> dict[str, Any]:
    """The JSON record of a scored item."""
    head = {"id": item.id, "person": item.person, "column": item.column, "prompt_sha256": item.prompt_sha256}
    if isinstance(item, ItemScore):
        chosen = {"raw_output": None, "parsed": item.predicted, "gold": item.gold, "correct": item.correct}
        return {**head, **chosen, "option_scores": item.options}
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
    """The scored item of a record: an `ItemScore` where options were scored, else an `Answer`.

    Raises:
        InputRefused: naming `where`, if it is none, or says another prediction than its scores or its
            answer do.
    """
    try:
        texts = {key: value[key] for key in ("id", "person", "column", "prompt_sha256", "gold")}
        item: ItemScore | Answer
        if value["option_scores"] is None:
            texts |= {key: value[key] for key in ("task", "raw_output")}
            letters = None if value["letters"] is None else tuple(value["letters"])
            rouge = None if value["rouge_l"] is None else RougeL(**value["rouge_l"])
            item = Answer(**texts, letters=letters, rouge=rouge)
            known = (item.task == "classification") == (letters is not None) and item.task in TASKS
            known = known and (item.task == "generation") == (rouge is not None)
        else:
            options = {str(letter): float(number) for letter, number in value["option_scores"].items()}
            item, known = ItemScore(**texts, options=options), True
        sound = known and all(isinstance(text, str) for text in texts.values()) and line(item) == value
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputRefused(f"{where} is no scored item") from error
    if not sound:
        raise InputRefused(f"{where} contradicts itself")
    return item


def write_eval(path: Path, body: dict[str, Any], items: Sequence[ItemScore | Answer]) -> dict[str, Any]:
    """Write the items, then the sealed record that names their digest; both atomically.

    Args:
        body: `model`, `columns`, `remarks` and `provenance`.

    Returns:
        the record as written.

    Raises:
        MachineFault: if they cannot be written.
    """
    # keys keep their order: among equal scores the first option stored was predicted
    text = "".join(json.dumps(line(item), allow_nan=False, ensure_ascii=False) + "\n" for item in items).encode()
    write_bytes(items_path(path), text)
    record = seal({"schema": SCHEMA, "kind": "eval", **body, "items": {"n": len(items), "sha256": sha256(text)}})
    write_json(path, record)
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
    return set(value) - {"distinct"} in _COLUMNS.get(family(str(value.get("protocol"))), [])


def read_items(path: Path) -> dict[str, list[Any]]:
    """The scored items beside `evals/MODEL.json`, by column in their order: `ItemScore`s, or `Answer`s of
    protocol `official`.

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
