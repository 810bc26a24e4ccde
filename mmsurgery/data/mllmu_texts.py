"""The text pairs of a split's people: what text saliency is measured on."""

from __future__ import annotations

from mmsurgery.data import text_pairs
from mmsurgery.data.mllmu_items import EVALUATION_SOURCE, read_items
from mmsurgery.data.mllmu_splits import Splits
from mmsurgery.data.samples import Sample
from mmsurgery.data.tables import is_text, read_rows
from mmsurgery.errors import InputRefused

TEXT_PAIRS = "extra/text_pairs.parquet"


def texts(splits: Splits, config: str, part: str) -> list[Sample]:
    """A split's text samples, by the source's `saliency_text`.

    `held-out`: from a file of ours, else from biographies, else from picture pairs with the name put in.
    `official`: the scored text questions themselves, each with the text of its gold option.
    """
    if splits.source.saliency_text == "official":
        return _scored(splits, config, part)
    filed = (splits.source.folder / TEXT_PAIRS).exists()
    if not filed and config not in splits.made_pairs:
        splits.made_pairs[config] = _made_pairs(splits, config)
    found = _filed_pairs(splits, config) if filed else splits.made_pairs[config]
    return [
        Sample(id=f"{config}/{person}/text/{i}", person=f"person/{person}", question=q, answer=a, part=part)
        for person, pairs in found.items()
        for i, (q, a) in enumerate(pairs)
    ]


def _scored(splits: Splits, config: str, part: str) -> list[Sample]:
    column = part.partition("_")[0] + "_qa"
    asked = read_items(splits.source.folder, config, column, "classification", "text", None, splits.report)
    return [
        Sample(id=item.id, person=item.person, question=item.question, answer=item.options[item.gold], part=part)
        for item in asked
        if item.options is not None
    ]


def _filed_pairs(splits: Splits, config: str) -> dict[str, list[text_pairs.Pair]]:
    wanted = splits.ids(config)
    found: dict[str, list[text_pairs.Pair]] = {}
    for row in read_rows(splits.source.folder, TEXT_PAIRS, ("ID", "question", "answer")):
        if (person := row.person(splits.report)) in wanted and person is not None:
            found.setdefault(person, []).append((row.text("question"), row.text("answer")))
    return found


def _made_pairs(splits: Splits, config: str) -> dict[str, list[text_pairs.Pair]]:
    """Person -> text pairs, from biography facts; people without get their picture pairs, named."""
    report = splits.report
    found: dict[str, list[text_pairs.Pair]] = {}
    names: dict[str, str | None] = {}
    for row in read_rows(splits.source.folder, config, ("ID",), ("biography",), needs=EVALUATION_SOURCE):
        person = row.person(report)
        if person is None or found.get(person):
            continue
        facts: dict[str, object] = {}
        if is_text(biography := row.cells.get("biography")):
            try:
                facts = text_pairs.parse_biography(biography, f"{row.where}: column biography")
            except InputRefused as error:
                report.fault("bad_biography", error.what)
        found[person], unresolved = text_pairs.biography_pairs(facts)
        report.notes["unresolved_text"] += unresolved
        name = facts.get("name")
        names.setdefault(person, name.strip() if is_text(name) else None)
    if all(found.values()):
        return found
    for training in splits.training(config, pictures=False):
        person = training.person
        if person in found and not found[person]:
            pairs = [(question, answer) for _, question, answer in training.pairs]
            found[person], unresolved = text_pairs.named_pairs(pairs, names[person])
            report.notes["unresolved_text"] += unresolved
    return found
