"""The page: what it says, that it is the same each time, and that nothing in a file becomes code in it."""

from __future__ import annotations

import base64
import copy
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from example_artifacts import write_diff, write_mask, write_model, write_scores
from example_extras import KEYS, cases, deviations, tuned
from example_results import COLUMNS, TABLE1, results
from parsed import Parsed

from mmsurgery.artifacts.files import write_json
from mmsurgery.errors import MmsurgeryError
from mmsurgery.provenance import seal
from mmsurgery.report import write_report
from mmsurgery.report.experiments import read_experiment
from mmsurgery.report.models import remarks_of
from mmsurgery.workspace import Workspace

PageOf = Callable[[Workspace], str]
HOSTILE = [
    "</script><script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "{{7*7}}{% include 'style.css' %}",
    "<!--",
    "a\u202eb\u2028c\u0000d\u001b[31m",
    "&lt;b&gt;",
    "<script src=//example.org/x.js></script>",
    "<img src=x onerror='alert(1)'>",
    '<a href="javascript:alert(1)">a</a>',
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<svg><script>alert(1)</script></svg>",
    "<math><mi xlink:href='javascript:alert(1)'>a</mi></math>",
    "<body onload=alert(1)>",
    "<details open ontoggle=alert(1)>",
    "<style>@import url(//example.org/x.css)</style>",
    "<link rel=stylesheet href=//example.org/x.css>",
    "<meta http-equiv=refresh content='0;url=//example.org'>",
    "<base href=//example.org/>",
    "<form action=//example.org><input name=a>",
    "<template><script>alert(1)</script></template>",
    "]]><script>alert(1)</script>",
    "--><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</textarea><script>alert(1)</script>",
    '" onfocus=alert(1) autofocus x="',
    "`${alert(1)}`",
    "\\u003cscript\\u003ealert(1)",
]


def test_shows_every_kind_of_artifact(full: Workspace, page_of: PageOf) -> None:
    text = Parsed(page_of(full)).text
    assert "Table 1: the five methods Does choosing weights by saliency keep more" in text
    assert "qwen2_vl" in text
    # npo keeps 75 % of forget_qa and retain_vqa: a utility of 75 %
    assert re.search(r"npo provenance 50\.0 % 40\.0–60\.0 75\.0 % 75\.0 % 65\.0–85\.0 75\.0 %", text)
    # 16 of layer 1's 64 weights and 64 of the head's 128, of 384 in all: 80
    assert "It selects 80 of 384 weights, 25.0 % of those in its modules." in text
    assert "16 : 32 2.0 37.5 % 0.0 %" in text  # retain : forget; 30 of 80 inside, 0 of 304 outside
    assert "Mask default : 20 changes inside 10 outside" in text
    assert "model.language_model.layers.1.mlp.down_proj.weight 5 −0.25000" in text


def test_same_workspace_same_bytes(full: Workspace, tmp_path: Path) -> None:
    first = write_report(full)
    assert not first.up_to_date
    page = first.path.read_bytes()
    again = write_report(full)
    assert again.up_to_date
    assert again.path.read_bytes() == page
    moved = Workspace(tmp_path / "another place", full.settings)
    shutil.copytree(full.root, moved.root)
    moved.path("report", "index.html").unlink()
    assert write_report(moved).path.read_bytes() == page
    assert str(tmp_path).encode() not in page
    write_scores(full.eval_path("npo"), "npo", 0.25, 0.5)
    assert not write_report(full).up_to_date
    assert first.path.read_bytes() != page


def assert_inert(parsed: Parsed) -> None:
    """No script but ours, no event handler, no address that leaves the page, no style outside of the policy."""
    allowed = {"a", "article", "b", "body", "br", "caption", "circle", "code", "dd", "details", "div", "dl", "dt"}
    allowed |= {"bdi", "figcaption", "figure", "footer", "g", "h1", "h2", "h3", "h4", "head", "header", "html", "i"}
    allowed |= {"img", "input", "label", "li", "main", "meta", "nav", "p", "path", "rect", "script", "section", "span"}
    allowed |= {"style", "summary", "svg", "table", "tbody", "td", "text", "th", "thead", "title", "tr", "ul", "wbr"}
    assert {tag for tag, _ in parsed.tags} <= allowed
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    for tag, attributes in parsed.tags:
        assert not [key for key in attributes if key.startswith("on") or key in ("style", "srcset")], tag
        assert re.match(
            "data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+$", attributes.get("src", "data:image/png;base64,0")
        )
        assert attributes.get("href", "#").startswith("#")


@pytest.mark.parametrize("turn", range(0, len(HOSTILE), 5))
def test_hostile_text_stays_text(full: Workspace, page_of: PageOf, turn: int) -> None:
    """Every text of the records is a payload, another one in each turn."""
    payloads = itertools.cycle(HOSTILE[turn:] + HOSTILE[:turn])

    def poison(value: Any, key: str = "") -> Any:
        """Every text that is no key of another part of the record."""
        if isinstance(value, dict):
            return {k: poison(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v, key) for v in value]
        free = ("label", "model", "remarks", "rule", "modules", "folder", "name", "experiment", "model_sha256")
        free += ("question", "gold", "person", "text", "claim", "source", "evidence", "on", "collapsed", "failed", "id")
        free += ("title", "llava", "qwen2_vl")
        return next(payloads) if isinstance(value, str) and key in free else value

    plain = Parsed(page_of(full))
    path = full.path("experiments", "table1", "results.json")
    record = poison(json.loads(path.read_text()))
    record["cells"][0]["remarks"] = {payload: [payload] for payload in HOSTILE}
    write_json(path, seal(record))
    diff = full.diff_path("vanilla", "npo")
    write_diff(diff)
    names = {"before": next(payloads), "mask": next(payloads)}
    write_json(diff, seal(poison(json.loads(diff.read_text())) | names))
    parsed = Parsed(page_of(full))
    assert_inert(plain)
    assert_inert(parsed)
    assert not write_report(full).damaged
    assert "\u202e" not in "".join(parsed.words)
    assert "\x1b" not in "".join(parsed.words)
    assert len(parsed.words) >= len(plain.words) - 40  # nothing was cut off
    words = "".join("".join(parsed.words).split())
    for payload in HOSTILE:
        visible = "".join(payload.split()) if payload.isprintable() else "a\\u202eb\\u2028c\\x00d\\x1b[31m"
        assert visible in words


def test_nothing_on_the_page_leads_or_asks_elsewhere(full: Workspace, page_of: PageOf) -> None:
    page = page_of(full)
    assert "://" not in page
    assert not re.search(r"url\(|@import|<link|<iframe|<base|fetch\(|XMLHttpRequest|import\(|\bhref=\"[^#]", page)


def test_policy_lets_only_the_pages_own_code_run(full: Workspace, page_of: PageOf) -> None:
    parsed = Parsed(page_of(full))
    policy = next(a["content"] for tag, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "http" not in policy
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(parsed.raw[tag].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("experiments/table1/results.json", "experiments"),
        ("evals/npo.json", "scores"),
        ("models/npo/mmsurgery-run.json", "models"),
        ("masks/default.safetensors", "masks"),
        ("saliency/forget_vqa/saliency.h5", "saliency"),
        ("diffs/vanilla..npo.json", "diffs"),
    ],
)
def test_damaged_artifacts_are_named_and_left_out(full: Workspace, page_of: PageOf, path: str, kind: str) -> None:
    whole = write_report(full).holds
    file = full.root / path
    data = bytearray(file.read_bytes())
    data[-len(data) // 3] ^= 1
    file.write_bytes(data)
    result = write_report(full)
    assert [damaged.kind for damaged in result.damaged] == [kind]
    assert result.holds == {**whole, kind: whole[kind] - 1}
    text = Parsed(result.path.read_text(encoding="utf-8")).text
    assert "1 artifact is not on this page" in text
    assert path.split("/")[1].removesuffix(".json") in text
    assert str(full.root) not in text


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from leaves(child, (*path, key))


def places_of(record: dict[str, Any]) -> list[tuple[Any, ...]]:
    """One place of each kind: entries of a list are of one kind, and so are columns and rows."""
    kinds: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    alike = {**dict.fromkeys(COLUMNS, "column"), **dict.fromkeys(KEYS, "row")}
    for place in leaves(record):
        if place and place[0] not in ("schema", "kind", "provenance"):
            kinds.setdefault(tuple("*" if isinstance(key, int) else alike.get(key, key) for key in place), place)
    return list(kinds.values())


def test_any_field_of_another_type_is_refused_or_shown(tmp_path: Path) -> None:
    """A sealed file of the right digest may still say nonsense; it never crashes the page."""
    extras = {"deviations": deviations(["llava"], ["npo"]), "cases": cases(["llava"]), "tuned": tuned(["llava"])}
    record = results(seeds=1, backbones=("llava",), rows=TABLE1[3:], **extras)
    record["cells"] = [{**cell, "curve": cell["curve"][:2]} for cell in record["cells"]]
    found = record["deviations"]["llava"]["npo"]
    found |= {key: found[key][:2] for key in ("layers", "sizes", "share", "relative")}
    refused, shown = [], 0
    path = tmp_path / "results.json"
    wrongs = ("x", None, -1.5, [])
    for turn, place in enumerate(places_of(record)):
        changed = copy.deepcopy(record)
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = wrongs[turn % 4]
        write_json(path, seal(changed))
        try:
            for part in read_experiment(path).panels:
                assert part.charts[0].picture
            shown += 1
        except MmsurgeryError as error:
            refused.append(str(error))
    assert len(refused) > 3 * shown
    assert all(str(path) in said for said in refused)


def test_scores_of_other_weights_are_marked(full: Workspace, page_of: PageOf) -> None:
    assert "scored before the model was made again" not in Parsed(page_of(full)).text
    write_model(full.model_dir("other"), None)
    record_path = full.model_dir("other") / "mmsurgery-run.json"
    record = json.loads(record_path.read_text())
    write_json(record_path, seal({**record, "model_sha256": f"{8:064x}"}))
    write_scores(full.eval_path("other"), "other", 0.5, 0.5)
    assert Parsed(page_of(full)).text.count("scored before the model was made again") == 1


def test_what_is_said_of_several_models_is_said_once() -> None:
    scores = [SimpleNamespace(name=name, remarks=said) for name, said in (("a", ["x"]), ("b", []), ("c", ["x"]))]
    assert remarks_of([*scores, SimpleNamespace(name="d", remarks=["x", "y"])]) == [  # type: ignore[list-item]
        ("a, c", ["x"]),
        ("d", ["x", "y"]),
    ]


def test_a_model_of_a_patch_says_so(full: Workspace, page_of: PageOf) -> None:
    shutil.copytree(full.model_dir("npo"), full.model_dir("undone"))
    assert "patch revert" not in Parsed(page_of(full)).text
    with full.lock():
        full.journal("patch revert", model="undone", patch="p<i>")
        full.journal("eval", model="undone")
    assert "by patch revert of p<i>: weights and record are those of npo" in Parsed(page_of(full)).text
    with full.lock():
        full.journal("apply", model="undone", method="npo")
    assert "weights and record are those" not in Parsed(page_of(full)).text


def test_an_empty_workspace_has_a_page(empty: Workspace, page_of: PageOf) -> None:
    text = Parsed(page_of(empty)).text
    assert "This workspace holds nothing yet" in text
    assert "Provenance" not in text


def test_every_link_leads_somewhere(full: Workspace, page_of: PageOf) -> None:
    write_mask(full.mask_path("x.y-z+1"))
    write_mask(full.mask_path("x.y_z+1"))
    parsed = Parsed(page_of(full))
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    links = {attributes["href"][1:] for tag, attributes in parsed.tags if tag == "a"}
    assert len(ids) == len(set(ids))
    assert links <= set(ids)
