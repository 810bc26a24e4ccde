"""What `demo` and `experiment` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from mmsurgery_cli.output import label, table
from mmsurgery_cli.show.chain import applied, compared, masked, measured, scored
from mmsurgery_cli.show.common import Lines, next_command
from mmsurgery_cli.show.looking import inspected, verified
from mmsurgery_cli.show.making import initialised, trained

if TYPE_CHECKING:
    from mmsurgery.demo import Step
    from mmsurgery.experiments.run import ExperimentResult


_DEMO = {
    "init": lambda result: initialised(result),
    "train": lambda result: trained(result),
    "saliency": lambda result: measured(result),
    "mask": lambda result: masked(result),
    "inspect": lambda result: inspected(result),
    "apply": lambda result: applied(result),
    "verify": lambda result: verified(result),
    "eval": lambda result: scored(result),
    "diff": lambda result: compared(result),
}


def demo_step(step: Step) -> Lines:
    yield Text.assemble(("\n$ ", "bold cyan"), (step.command, "bold"), (f"   {step.seconds:.1f} s", "dim"))
    lines = list(_DEMO[step.kind](step.result))
    yield from (line for line in lines if not (isinstance(line, Text) and line.plain.startswith("next: ")))


def demo_end(root: str) -> Lines:
    yield Text("\nWhat to look at", style="bold")
    for line in (
        "Forget VQA should fall towards the gold model's, all other columns should stay. That is the trade-off.",
        "The row 'mmunlearner.random' is the control: a random mask of the same density. If it does as well as",
        "  'mmunlearner.default', it is not the choice of weights that helped.",
        f"The heatmap of what moved: {root}/diffs/vanilla..mmunlearner.default.png",
        f"Go on there: cd {root} && mmsurgery status",
    ):
        yield label(line)


def experiment(result: ExperimentResult) -> Lines:
    """What an experiment shows, as far as a terminal has room."""
    from mmsurgery.experiments.tables import glance

    if result.results is None:
        yield label(f"this share is done ({result.seconds:.0f} s); the same command without --shard writes the results")
        return
    for panel, sentences in result.results["findings"].items():
        yield Text(panel, style="bold")
        yield from (label(f"  {sentence}") for sentence in sentences)
    yield ""
    for text in glance(result.results):
        made = table(*(name.replace(" ", "\n").replace("-", "-\n") for name in text.header), title=text.title)
        made.columns[0].min_width = min(_LABEL, max((len(row[0]) for row in text.rows), default=0))
        for row in text.rows:
            made.add_row(*(_stacked(cell) for cell in row))
        yield made
        for note in text.notes:
            made_note = label(note)
            made_note.stylize("dim")
            yield made_note
        yield ""
    state = "up to date" if result.up_to_date else "written"
    yield label(f"{result.path} {state} ({result.seconds:.0f} s)")
    yield next_command("mmsurgery report")


_LABEL = 14
"""Letters of a row's name that are kept together."""


def _stacked(cell: str) -> Text:
    """A table's cell with its interval and its verdict below, so that columns fit beside each other."""
    broken = cell.replace(" (", "\n(").replace(", ", "\n").replace("not resolved at ", "not\nresolved\n")
    broken = broken.replace(" cannot resolve this: ", "\ncannot\nresolve it:\n").replace(" or --draws", "\nor --draws")
    return Text("\n").join(label(line) for line in broken.split("\n"))
