"""`report`: gather what a workspace holds and write it as one HTML page, the same bytes each time."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from markupsafe import Markup

from mmsurgery import errors
from mmsurgery.artifacts.files import machine_fault, write_bytes
from mmsurgery.figures import looks
from mmsurgery.report import numbers, palette, swatches, words
from mmsurgery.report.audits import HEADER as AUDIT_HEADER
from mmsurgery.report.audits import read_card
from mmsurgery.report.cases import OPEN
from mmsurgery.report.charts import ranges
from mmsurgery.report.experiments import Experiment, anchor, read_experiment, without_repeats
from mmsurgery.report.models import (
    GENERATED,
    columns_of,
    own_chart,
    read_model,
    read_score,
    remarks_of,
    sizes_of,
    with_patches,
)
from mmsurgery.report.pictures import Pictures
from mmsurgery.report.results import COMPARISONS, FORGET, UTILITY
from mmsurgery.report.texts import ANSWER, cut
from mmsurgery.report.weights import SaliencyView, read_difference, read_mask, read_saliency
from mmsurgery.workspace import SILENT, Progress, Workspace

if TYPE_CHECKING:
    import jinja2

REFUSED = (errors.InputRefused, errors.Mismatch, errors.UnusableData, errors.UsageError)
"""What a single artifact may be guilty of; the page is written without it and names it."""

STYLES, SCRIPTS = ("style.css", "results.css"), ("page.js", "heat.js")
EXPERIMENTS = (
    *("table1", "table2", "figure4", "figure5", "figure6", "cases", "controls", "ablations", "audit"),
    *("beyond", "beyond-equal", "beyond-masks", "beyond-ablations", "beyond-tuning"),
)
_LONGEST = 2000
"""Characters of any single text from outside."""

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Damaged:
    """An artifact that is not on the page, and why."""

    kind: str
    name: str
    what: str
    next_step: str | None


@dataclass(frozen=True)
class ReportResult:
    """What `report` wrote."""

    path: Path
    up_to_date: bool
    """The page was there already, byte for byte."""
    holds: dict[str, int]
    """How many of each kind it shows."""
    damaged: list[Damaged] = field(default_factory=list)


def write_report(
    workspace: Workspace, progress: Progress = SILENT, *, include_samples: bool | None = None
) -> ReportResult:
    """Write `report/index.html`: experiments, scores, models, masks, saliency, differences, and where they come from.

    An artifact that is damaged or does not fit is left out, named on the page and in the result. The page
    makes no request and holds no dates. Of the benchmark it holds the questions and answers of cases, if an
    experiment has some.

    Args:
        include_samples: whether it holds their pictures too; None for the benchmark portraits alone, whose
            people are drawn.

    Raises:
        MachineFault: if it cannot be written.
    """
    pictured = workspace.settings.benchmark.name == "portraits" if include_samples is None else include_samples
    holds, damaged, page = _page(workspace, progress, pictured)
    path = workspace.path("report", "index.html")
    up_to_date = _same(path, page)
    if not up_to_date:
        with workspace.lock():
            write_bytes(path, page)
            workspace.journal("report", damaged=len(damaged))
    return ReportResult(path, up_to_date, holds, damaged)


def _same(path: Path, page: bytes) -> bool:
    """Whether a regular file with just these bytes is there."""
    try:
        return path.is_file() and path.stat().st_size == len(page) and path.read_bytes() == page
    except OSError as error:
        raise machine_fault(error, path) from error


def _page(workspace: Workspace, progress: Progress, pictured: bool) -> tuple[dict[str, int], list[Damaged], bytes]:
    damaged: list[Damaged] = []
    found: dict[str, list[Any]] = {}
    sources = list(_sources(workspace, Pictures(workspace.root) if pictured else None))
    with progress.stage("reading the workspace", sum(len(paths) for _, paths, _ in sources)) as advance:
        for kind, paths, read in sources:
            found[kind] = list(_readable(workspace, kind, paths, read, damaged, advance))
    found["experiments"] = without_repeats(found["experiments"])
    found["models"] = with_patches(found["models"], workspace.journal_entries())
    models = {model.name: model.model_sha256 for model in found["models"]}
    scored = [*found["scores"], *found["generated"]]
    stale = {s.origin.anchor for s in scored if models.get(s.name, s.model_sha256) != s.model_sha256}
    tables = [(kind, found[kind], columns_of(found[kind])) for kind in ("scores", "generated") if found[kind]]
    origins = [each.origin for kind in found for each in found[kind]]
    page = _render(
        settings=workspace.settings,
        **found,
        damaged=damaged,
        stale=stale,
        tables=[(*table, sizes_of(*table[1:])) for table in tables],
        chart=own_chart(found["models"], found["scores"]),
        origins=origins,
        saliency_chart=_ranges(found["saliency"]),
        versions=sorted({pair for each in origins for pair in each.versions.items()}),
        next_command=_next(found),
        holdings=_holdings(found["experiments"]),
    )
    return {kind: len(things) for kind, things in found.items()}, damaged, page


def _sources(
    workspace: Workspace, pictures: Pictures | None
) -> Iterator[tuple[str, list[Path], Callable[[Path], Any]]]:
    """Kinds of artifacts: where they lie, and how each is read."""

    def there(folder: str, pattern: str) -> list[Path]:
        return sorted(workspace.path(folder).glob(pattern))

    models = [workspace.model_dir(name) for name in sorted(workspace.models(), key=_order)]
    experiments = sorted(there("experiments", "[!.]*/results.json"), key=lambda path: _place(path.parent.name))
    yield "experiments", experiments, functools.partial(read_experiment, pictures=pictures)
    yield "scores", sorted(there("evals", "[!.]*.json"), key=lambda path: _order(path.stem)), read_score
    generated = there(f"evals/{GENERATED}", "[!.]*.json")
    yield "generated", sorted(generated, key=lambda path: _order(path.stem)), read_score
    yield "audits", sorted(there("audits", "[!.]*.json"), key=lambda path: _order(path.stem)), read_card
    yield "models", [m for m in models if (m / "mmsurgery-run.json").exists()], read_model
    yield "masks", sorted(there("masks", "[!.]*.safetensors"), key=lambda p: (p.stem != "default", p.stem)), read_mask
    yield "saliency", [p.parent for p in there("saliency", "[!.]*/manifest.json")], read_saliency
    yield "diffs", there("diffs", "[!.]*.json"), read_difference


def _order(name: str) -> tuple[int, str]:
    """Vanilla and gold first: what everything is compared with."""
    first = ("vanilla", "gold", "reference", "base")
    return (first.index(name) if name in first else len(first)), name


def _place(name: str) -> tuple[int, str]:
    """Experiments in the paper's order, tuned ones behind their own, others after them."""
    plain = name.removesuffix("-tuned")
    return (EXPERIMENTS.index(plain) if plain in EXPERIMENTS else len(EXPERIMENTS)), name


def _readable(
    workspace: Workspace,
    kind: str,
    paths: list[Path],
    read: Callable[[Path], Thing],
    damaged: list[Damaged],
    advance: Callable[[int], None],
) -> Iterator[Thing]:
    for path in paths:
        try:
            yield read(path)
        except REFUSED as error:
            name = str(path.relative_to(workspace.root)) if path.is_relative_to(workspace.root) else path.name
            # no absolute path belongs on a page that may be sent around
            damaged.append(Damaged(kind, name, error.what.replace(f"{workspace.root}/", ""), error.next_step))
        advance(1)


def _ranges(maps: list[SaliencyView]) -> str | None:
    rows = [(each.name, group, quantiles) for each in maps for group, quantiles in each.groups.items()]
    return ranges(rows) if rows else None


def _next(found: dict[str, list[Any]]) -> str:
    if not found["scores"]:
        return "mmsurgery eval"
    return "mmsurgery experiment table1" if not found["experiments"] else "mmsurgery status"


def _holdings(experiments: list[Experiment]) -> str:
    """What the page holds of the benchmark, for its last line."""
    found = [case for each in experiments for panel in each.panels if panel.cases for case in panel.cases.cases]
    pictures = any(case.picture for case in found)
    if not found:
        return "holds no picture, question or answer of the benchmark"
    with_pictures = "pictures, questions and answers" if pictures else "questions and answers"
    return f"holds {with_pictures} of the benchmark where it shows cases{'' if pictures else ', and no picture'}"


def page_text(name: str) -> str:
    """A file of the page: template, style, script."""
    return resources.files("mmsurgery.report").joinpath("page", name).read_text(encoding="utf-8")


def environment() -> jinja2.Environment:
    """Templates of pages that hold foreign text: all of it is escaped."""
    import jinja2

    def foreign(value: Any) -> Any:
        """Control characters and bidirectional overrides of texts are shown, not obeyed; no text is endless."""
        if not isinstance(value, str) or isinstance(value, Markup):
            return value
        return errors.printable(cut(value, _LONGEST))

    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(page_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=foreign,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(opened=lambda text: text[:1].upper() + text[1:], breakable=_breakable)
    return made


def _render(**values: Any) -> bytes:
    from mmsurgery import __version__

    style, script = ("".join(map(page_text, names)) for names in (STYLES, SCRIPTS))
    style = palette.style() + style  # whose classes may take its colours, and override them
    page = (
        environment()
        .get_template("page.html")
        .render(
            style=Markup(style),  # noqa: S704
            script=Markup(script),  # noqa: S704
            policy=policy(style, script, pictures=True),
            version=__version__,
            words=words,
            numbers=numbers,
            comparisons=COMPARISONS,
            looks=looks,
            swatches=swatches,
            forget=FORGET,
            utility=UTILITY,
            longest=ANSWER,
            open_cases=OPEN,
            anchor=anchor,
            audit_header=AUDIT_HEADER,
            remarks_of=remarks_of,
            **values,
        )
    )
    return page.encode()


def _breakable(name: str) -> Markup:
    """A name that may wrap after its dots and underscores."""
    parts = re.split(r"(?<=[._])", errors.printable(name))
    return Markup("<wbr>").join(parts)


def policy(style: str, script: str = "", pictures: bool = False) -> str:
    """A content security policy under which only this page's own style and script do anything, and pictures
    are those in the page itself, or none."""
    style_hash, script_hash = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)
    )
    scripts = f" script-src 'sha256-{script_hash}';" if script else ""
    images = " img-src data:;" if pictures else ""
    return f"default-src 'none'; style-src 'sha256-{style_hash}';{scripts}{images} base-uri 'none'; form-action 'none'"
