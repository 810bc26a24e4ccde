"""What `eval` would need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsurgery.backbones.encoding import PICTURE_BYTES
from mmsurgery.data.samples import Item
from mmsurgery.errors import UsageError
from mmsurgery.evaluate import official, scoring
from mmsurgery.evaluate.asked import Asked, what_is_asked
from mmsurgery.evaluate.asking import NEW_TOKENS
from mmsurgery.evaluate.protocols import LIKELIHOOD, OPEN, Protocol
from mmsurgery.evaluate.remembered import FEATURE_BYTES
from mmsurgery.plans import plan as terms
from mmsurgery.plans.lengths import LOOKED_AT, lengths, spread
from mmsurgery.plans.plan import Passes, Plan, free_below
from mmsurgery.plans.probe import no_room, predicted
from mmsurgery.plans.sizes import Rows, Sizes
from mmsurgery.plans.times.watch import now
from mmsurgery.workspace import SILENT, Progress, Workspace

LINE = 500
"""Bytes of an item in the files of a model's scores."""


def plan_eval(
    workspace: Workspace,
    models: Sequence[str] | None = None,
    *,
    protocol: str = LIKELIHOOD,
    shots: int = 0,
    demonstrations: str = "retain",
    subset: int | None = None,
    request: str | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Plan:
    """What `evaluate` of the same arguments would need; nothing is written and no lock is taken.

    weights: of one model at a time, the largest, loaded in its own dtype; of protocol `open` vanilla's, too.
    keys and values: of a batch in all layers; where prefixes are shared, of batches of pictures, of questions and of
        options. A batch has `BUDGET` tokens, or with options all that a column has, if that is less.
    activations: of a forward pass over such a batch, see `Sizes.passing`; logits for the tokens that come after what
        all options of a question share.
    pictures: all different ones, up to 256 MiB as the model takes them and up to 2 GiB as their features, which are
        kept in main memory.

    Raises:
        as `evaluate`, as far as models, options and items are concerned.
    """
    if subset is not None and subset < 1:
        raise UsageError(f"a subset of {subset} items is impossible", "use 1 or more")
    begun = now()
    names = list(models or ["vanilla", *(name for name in workspace.models() if name not in ("vanilla", "base"))])
    asked = what_is_asked(workspace, Protocol(protocol, shots, demonstrations), request, subset, progress)
    found, notes = dict(map(workspace.find_model, names)), []
    for name in list(found):
        if not force and workspace.eval_path(name, asked.protocol.id, request, subset).exists():
            notes.append(f"'{name}' has scores: it is not scored again without --force")
            del found[name]
    judge = workspace.existing_model("vanilla") if protocol == OPEN else None
    every = [Sizes.of(name, folder) for name, folder in found.items()]
    largest = max(every, key=lambda sizes: sizes.loaded, default=None)
    counts = {column: len(items) for column, items in asked.columns.items()} if every else {}
    if largest is None:
        name, folder = workspace.find_model(names[0])
        size = Sizes.of(name, folder).size
        return _plan(workspace, asked, size, counts, notes=(*notes, "no time: there is nothing to score"))
    folder, ready = found[largest.name], now() - begun
    seconds, how = _time(workspace, asked, found, every, largest, judge, ready)
    processor = largest.family.load_processor(folder)
    items = [item for each in asked.columns.values() for item in each]
    rows = {item.column: 0 for item in items}
    for item in items:
        rows[item.column] += (
            len(set((item.options or {}).values())) if protocol == LIKELIHOOD else 1 + (judge is not None)
        )
    memory = {
        terms.WEIGHTS: max(largest.loaded, 0 if judge is None else Sizes.of("vanilla", judge).loaded),
        **scoring_terms(largest, processor, items, largest.width, generated=protocol != LIKELIHOOD),
        terms.PICTURES: _pictures(largest, processor, items),
        terms.SAMPLES: sum({item.image_sha256: len(item.image_bytes or b"") for item in items}.values()),
    }
    if protocol == LIKELIHOOD:
        notes.append("a forward pass is an option's row; what rows share is run once")
    else:
        judged = "; and once more what was written, under vanilla" if judge is not None else ""
        notes.append(f"a forward pass is a prompt, continued by up to {NEW_TOKENS} tokens{judged}")
    forward = len(every) * sum(rows.values())
    return _plan(workspace, asked, largest.size, counts, memory, forward, seconds, (*notes, how), len(every))


def _plan(
    workspace: Workspace,
    asked: Asked,
    size: Any,
    counts: Mapping[str, int],
    memory: Mapping[str, int] | None = None,
    forward: int = 0,
    seconds: float | None = None,
    notes: tuple[str, ...] = (),
    models: int = 0,
) -> Plan:
    return Plan(
        verb="eval",
        model=size,
        samples=counts,
        passes=Passes(forward=forward, backward=0),
        memory={term: bytes_ for term, bytes_ in (memory or {}).items() if bytes_},
        disk={"scores": 2 * LINE * models * sum(counts.values())} if models else {},
        disk_free=free_below(workspace.path("evals")),
        seconds=seconds,
        notes=notes,
    )


def _time(
    workspace: Workspace,
    asked: Asked,
    found: Mapping[str, Path],
    every: Sequence[Sizes],
    largest: Sizes,
    judge: Path | None,
    ready: float,
) -> tuple[float | None, str]:
    """Seconds, and what they are made of, or why there are none."""
    if why := no_room(largest.loaded):
        return None, why
    from mmsurgery.plans.times.evaluate import eval_time
    from mmsurgery.plans.times.files import hashing

    folder = found[largest.name]
    others = [(sizes, found[sizes.name]) for sizes in every if sizes is not largest]

    def timed() -> dict[str, float]:
        alien = judge is not None and judge not in found.values()
        terms = eval_time(folder, asked, models=len(every), judge=alien, threads=workspace.threads)
        return {"hashing": hashing(others), **terms}

    return predicted(ready, timed)


def scoring_terms(
    sizes: Sizes, processor: Any, items: Sequence[Item], width: int, *, generated: bool = False
) -> dict[str, int]:
    """Keys and values, and activations, of scoring items: estimates, see `plan_eval`.

    Args:
        width: bytes of a weight as it is loaded.
        generated: answers are written, not options scored.
    """
    if generated:
        rows = Rows(tokens=official.BUDGET, positions=0, answers=max(1, official.BUDGET // (NEW_TOKENS + 1)))
        return {
            terms.CACHE: sizes.per_token(width) * official.BUDGET,
            terms.ACTIVATIONS: sizes.passing(rows, width),
        }
    columns: dict[str, list[Item]] = {}
    for item in items:
        columns.setdefault(item.column, []).append(item)
    every = [_choices(sizes, processor, members, width) for members in columns.values()]
    return max(every, key=lambda found: sum(found.values()), default={})


def _choices(sizes: Sizes, processor: Any, items: Sequence[Item], width: int) -> dict[str, int]:
    """Terms of scoring a column by likelihood, from a few of its items: batches are as full as its items make them. A
    family that cannot share prefixes passes all options whole.

    Logits are those of what options do not share, or of the words that all options of a question start with, and of
    what follows them.
    """
    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.evaluate import prefix

    loaded, longest, tails, questions = Loaded(None, processor, sizes.family, processor, {}, {}), 1, [0], [0]
    for item in spread(items, LOOKED_AT // 4):
        choice = prefix.encode(loaded, scoring.option_samples(item), {})
        ids = max((row.ids for row in choice.rows), key=len)
        longest = max(longest, len(ids))
        tails.append(len(ids) - choice.shared)
        if item.image_bytes is not None:
            questions.append(max(0, choice.shared - choice.first_answer) + 1)
    pictures = len({item.image_sha256 or number for number, item in enumerate(items)})
    options = sum(len(set((item.options or {}).values())) for item in items)
    fits = max(1, scoring.BUDGET // longest)
    levels = [min(count, fits) for count in (pictures, len(items), options)]
    behind = max(questions) * levels[1] if pictures < len(items) else 0
    rows = Rows(tokens=longest * levels[2], positions=0, answers=max(behind, max(tails) * levels[2]))
    return {
        terms.CACHE: sizes.per_token(width) * longest * sum(levels),
        terms.ACTIVATIONS: sizes.passing(rows, width),
    }


def _pictures(sizes: Sizes, processor: Any, items: Sequence[Item]) -> int:
    """Bytes of all different pictures as the model takes them, and as its features, as far as they are remembered."""
    pictured = [item for item in items if item.image_bytes is not None]
    if not pictured:
        return 0
    first = scoring.option_samples(pictured[0])[:1] if pictured[0].options else []
    if not first:
        return PICTURE_BYTES + FEATURE_BYTES
    different = len({item.image_sha256 for item in pictured})
    tokens = int(sizes.family.collate(processor, first)["input_ids"][0].bincount().max())
    features = tokens * sizes.shapes[min(sizes.output)][1] * sizes.width
    encoded = lengths(sizes, processor, first).encoded
    return min(PICTURE_BYTES, encoded * different) + min(FEATURE_BYTES, features * different)
