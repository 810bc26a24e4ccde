"""Has models score or answer the items of columns; of several ranks each does its share of every column's pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mmsurgery.data.samples import Item
from mmsurgery.errors import InternalError
from mmsurgery.evaluate import fluency, official, open_answers
from mmsurgery.evaluate.asked import Asked
from mmsurgery.evaluate.loader import Loader
from mmsurgery.evaluate.open_answers import Answered, Written
from mmsurgery.evaluate.others import Others
from mmsurgery.evaluate.protocols import LIKELIHOOD
from mmsurgery.evaluate.scoring import look_at_prefixes, score
from mmsurgery.evaluate.unfinished import UNFINISHED, Unfinished
from mmsurgery.ranks import Ranks
from mmsurgery.workspace import Progress

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded
    from mmsurgery.evaluate.run import EvalResult

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """A model that is to be scored."""

    asked: Asked
    name: str
    folder: Path
    path: Path
    """Of its scores."""
    provenance: dict[str, Any]
    vanilla: Path | None
    """Folder of the model under which written answers are judged, of protocol `open`."""
    finished: EvalResult | None

    def unfinished(self, progress: Progress) -> Unfinished:
        """Beside the scores that it becomes."""
        return Unfinished(self.path.parent / UNFINISHED / self.name, progress.note)


def command(*plans: Plan) -> str:
    """The command that scores them again."""
    return f"mmsurgery eval {' '.join(plan.name for plan in plans)}{plans[0].asked.options} --force"


class Scorer:
    """One model at a time."""

    def __init__(self, threads: int, ranks: Ranks, progress: Progress) -> None:
        self._threads, self._ranks, self._progress = threads, ranks, progress
        self._loader = Loader()
        self._others: Others | None = None

    def score(self, plan: Plan, column: str, written: Sequence[Written] | None = None) -> list[Any]:
        """A column's scored items; nothing for ranks but the first.

        Args:
            written: what the model wrote, of protocol `open`.
        """
        items = plan.asked.columns[column]
        if plan.vanilla is not None:
            return self._judge(plan, plan.vanilla, column, items, written)
        shown = plan.asked.demonstrations.items.get(column, ())

        def scored(chosen: Sequence[Item], places: Sequence[int]) -> list[Any]:
            loaded, common = self._load(plan), self._common(plan, column)
            if plan.asked.protocol.name != LIKELIHOOD:
                return list(official.answers(loaded, chosen, plan.asked.asking, demonstrations=shown, **common))
            look_at_prefixes(loaded, items, common["cache"], common["remembered"])
            return list(score(loaded, chosen, **common))

        return self._shared(items, scored)

    def write(self, plan: Plan, column: str) -> list[Written]:
        """The model's open answers; nothing for ranks but the first."""

        def written(chosen: Sequence[Item], places: Sequence[int]) -> list[Written]:
            return open_answers.write(self._load(plan), chosen, **self._common(plan, column))

        return self._shared(plan.asked.columns[column], written)

    def _judge(
        self, plan: Plan, vanilla: Path, column: str, items: Sequence[Item], written: Sequence[Written] | None
    ) -> list[Answered]:
        """What the model has written, judged with the help of vanilla."""
        if written is None:
            raise InternalError(f"nothing was written of {column}")

        def likely(chosen: Sequence[Item], places: Sequence[int]) -> list[float | None]:
            loaded = self._loader.load(vanilla, plan.provenance["inputs"]["vanilla_sha256"], command(plan))
            texts = [written[place].text for place in places]
            return fluency.median_probabilities(loaded, chosen, texts, **self._common(plan, f"{column}, fluency"))

        found = self._shared(items, likely)
        self._others = self._others or Others(plan.asked.every)
        return open_answers.judged(items, written, self._others, found) if self._ranks.first else []

    def _shared(self, items: Sequence[Item], compute: Callable[[Sequence[Item], Sequence[int]], list[T]]) -> list[T]:
        """What `compute` makes of items and their places, each rank of its share; for the first one, in order."""
        from mmsurgery.unlearn.loop import deterministic

        places, mine = share(self._ranks, items), list[T]()
        if places:
            with deterministic(self._threads):
                mine = compute([items[place] for place in places], places)
        parts = self._ranks.gather(list(zip(places, mine, strict=True)))
        found = dict(pair for part in parts or () for pair in part)
        return [found[place] for place in sorted(found)]

    def _common(self, plan: Plan, what: str) -> dict[str, Any]:
        """Once the model is loaded."""
        return {
            "cache": self._loader.cache,
            "remembered": self._loader.remembered,
            "what": f"{plan.name}: {what}",
            "progress": self._progress,
        }

    def _load(self, plan: Plan) -> Loaded:
        return self._loader.load(plan.folder, plan.provenance["inputs"]["model_sha256"], command(plan))


def share(ranks: Ranks, items: Sequence[Item]) -> list[int]:
    """Places of a rank's items: all questions about a picture together, a text question by itself."""
    groups: dict[str | int, list[int]] = {}
    for place, item in enumerate(items):
        groups.setdefault(item.image_sha256 or place, []).append(place)
    return sorted(place for group in list(groups.values())[ranks.share(len(groups))] for place in group)
