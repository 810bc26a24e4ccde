"""Faults of rows by name, and what a reading found beside its samples and items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from mmsurgery.data.leakage import LEAKAGE, OVERLAP, allowing
from mmsurgery.errors import InputRefused, unknown

FAULTS = {
    "empty_id": "row without ID",
    "no_pictures": "row with an empty list of pictures",
    "bad_picture": "picture that cannot be used",
    "bad_metadata": "metadata that is not a JSON list of objects",
    "metadata_of_other": "metadata object of another person than its row",
    "bad_biography": "biography that is not a JSON object",
    "empty_pair": "training pair without question or answer",
    "empty_question": "question without text or gold",
    "empty_option": "question with an empty option",
    "gold_not_an_option": "gold letter that is no option",
    "gold_twice": "gold text that stands in two options",
    "cloze_blank": "cloze without exactly one blank",
    "unknown_type": "type that is neither Image_Textual nor Pure_Text",
    "repeated_row": "row that stands twice",
    "option_twice": "wrong option that stands twice",
    "mixed_row": "row that is neither a picture with a caption nor a question with an answer",
    "forget_author_in_retain": "retain row of an author to be forgotten",
    "author_of_other_split": "row of an author who is not of its split",
}
"""Faults of rows, by the name under which they can be allowed; what has one is then left out."""
ALLOWABLE = (*FAULTS, LEAKAGE, OVERLAP)


@dataclass
class Report:
    """What was found in the files beside the samples and items themselves."""

    counts: Counter[str] = field(default_factory=Counter)
    """Samples and items by part and column."""
    faults: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    """Fault -> where it was first met."""
    notes: Counter[str] = field(default_factory=Counter)
    """What the benchmark is known to do: `additional` objects skipped, `unresolved_text` pairs."""
    without_questions: list[str] = field(default_factory=list)
    """`COLUMN PERSON` of people with no question in a column (the published data has one)."""
    deviations: list[str] = field(default_factory=list)
    """Where the files differ from what is known of the published ones, a line each; never a reason to refuse."""
    _met: set[tuple[str, str]] = field(default_factory=set, repr=False)

    def fault(self, name: str, where: str) -> None:
        """Count a fault, once for each place however often it is read."""
        if (name, where) not in self._met:
            self._met.add((name, where))
            self.faults[name] += 1
            self.first.setdefault(name, where)

    def check(self, allow: Collection[str]) -> None:
        """Raise for the first fault that is not allowed by name.

        Raises:
            UsageError: if an allowed name is no fault.
            InputRefused: with the number of rows and the first of them.
        """
        for name in allow:
            if name not in ALLOWABLE:
                raise unknown("fault to allow", name, ALLOWABLE)
        for name in FAULTS:
            if self.faults[name] and name not in allow:
                raise InputRefused(
                    f"{self.faults[name]} times {FAULTS[name]}, first {self.first[name]}",
                    f"mend the file, or leave them out: {allowing(name)}",
                )
