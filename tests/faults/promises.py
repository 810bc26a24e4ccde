"""The promises and the figures that prove them: runs the campaigns and prints one table.

    python tests/faults/promises.py [1 3 ...] [--seed N] [--share 0.01]
    python tests/faults/promises.py --page docs/promises.md

Without numbers all promises are tried, with a fresh seed each time; the seed is printed. `--share` is the part of
each campaign's long count that is run. The last rows of each promise are kept in build/faults.json, so that they can
be tried one after the other; `--page` writes them into a page of the documentation, where rows of promises that were
not run stay as they are, and runs nothing. What broke
something is kept in a folder that is named. Exit code 1 if a promise was broken. Promises that need no campaign are
proved by tests, which are run and counted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STORE = ROOT / "build/faults.json"
sys.path[:0] = [str(HERE.parent), str(HERE)]

CAMPAIGNS: dict[str, tuple[int, str, int]] = {
    "damaged": (1, "A damaged file is refused, never used.", 10_000),
    "hostile": (2, "Reading runs nothing and opens nothing else.", 1000),
    "kills": (3, "kill -9 costs minutes, never results.", 100),
    "writes": (4, "Nothing half-written.", 300),
    "fits": (5, "A mask fits or is refused.", 48),
    "numbers": (6, "No silent NaN, underflow or empty result.", 15),
    "same_bytes": (8, "Same inputs, same bytes.", 240),
    "pedigree": (9, "Every number has its pedigree.", 100),
    "races": (10, "Two at a time is safe.", 200),
}
"""Module -> its promise, in words, and the count of the long form."""
TESTS: dict[int, tuple[str, tuple[str, ...]]] = {
    7: (
        "The mask really limits the forget step.",
        (
            "tests/unlearn/test_masked_update.py",
            "tests/unlearn/test_apply_verify.py",
            "tests/unlearn/test_training_loop.py",
        ),
    ),
    11: (
        "Your secrets and your people's data stay.",
        ("tests/cli/test_cli_secrets.py", "tests/exchange/test_hub.py", "tests/report/test_report_page.py"),
    ),
    12: ("Every error says what to do next.", ("tests/artifacts/test_errors_provenance.py",)),
    13: ("Old artifacts stay readable.", ("tests/faults/test_golden.py", "tests/exchange/test_official_masks.py")),
}
"""Promise -> its words, and the tests that prove it."""


HEAD = """# Promises

What mmsurgery promises of files, runs and secrets, and the figures that prove it. Made by `make faults`, a campaign
each (`make faults FAULTS_ARGS="3 --share 0.1"` for one, or less of it; `--page` writes this page of the last runs);
the test command runs each in short. Case by case: [tests/README.md](../tests/README.md).
"""


def proved_by_tests(promise: int) -> dict[str, Any]:
    begin, (_, files) = time.monotonic(), TESTS[promise]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", *files]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    counted = re.findall(r"(\d+) (passed|failed|error)", ran.stdout)
    found = {what: int(count) for count, what in counted}
    passed, all_ = found.get("passed", 0), sum(found.values())
    kept = ran.returncode == 0 and passed > 0
    row = {"promise": promise, "what": ", ".join(Path(file).stem for file in files), "kept": kept}
    return {**row, "figure": f"{passed} of {all_} tests pass", "seconds": time.monotonic() - begin}


def keep(rows: Sequence[Mapping[str, Any]], seed: int, share: float) -> None:
    """Put a promise's rows in the place of those it had."""
    known = recorded()
    for row in rows:
        known.pop(str(row["promise"]), None)
    for row in rows:
        entry = known.setdefault(str(row["promise"]), {"seed": seed, "share": share, "rows": []})
        entry["rows"].append(dict(row))
    STORE.parent.mkdir(exist_ok=True)
    partial = STORE.with_suffix(".partial")
    partial.write_text(json.dumps(known, indent=1))
    partial.replace(STORE)


def recorded() -> dict[str, Any]:
    """Promise -> seed, share and rows of its last run."""
    return dict(json.loads(STORE.read_text())) if STORE.exists() else {}


def page(known: Mapping[str, Any], words: Mapping[int, str], before: str = "") -> str:
    """The table in Markdown; what was not run is as the page `before` has it."""
    lines = [HEAD, "| | promise | tried | figure | kept | time | seed, share of the long count |"]
    lines.append("|---|---|---|---|---|---|---|")
    for number in sorted(words):
        entry = known.get(str(number), {"rows": []})
        if not entry["rows"]:
            earlier = [line for line in before.splitlines() if line.startswith(f"| {number} |")]
            lines += earlier or [f"| {number} | {words[number]} | not run | | | | |"]
        for place, row in enumerate(entry["rows"]):
            seconds = round(row["seconds"])
            told = f"{seconds} s" if seconds < 600 else f"{seconds / 60:.0f} min"
            kept = "yes" if row["kept"] else "**no**"
            drawn = "" if number in TESTS else f"{entry['seed']}, {entry['share']:g}"
            cells = [number, "" if place else words[number], row["what"], row["figure"], kept, told, drawn]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    words = {promise: text for promise, text, _ in CAMPAIGNS.values()} | {p: text for p, (text, _) in TESTS.items()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("promises", nargs="*", type=int, choices=[[], *sorted(words)], metavar="PROMISE")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31))
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    if given.page:
        before = given.page.read_text() if given.page.exists() else ""
        given.page.write_text(page(recorded(), words, before))
        return 0
    chosen = given.promises or sorted(words)
    print(f"seed {given.seed}", flush=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mmsurgery-faults-") as cache:
        os.environ["XDG_CACHE_HOME"], os.environ["HF_HUB_OFFLINE"] = cache, "1"
        modules = {promise: (name, count) for name, (promise, _, count) in CAMPAIGNS.items()}
        for promise in chosen:
            print(f"\n{promise}. {words[promise]}", flush=True)
            if promise in TESTS:
                found = [proved_by_tests(promise)]
            else:
                name, count = modules[promise]
                campaign = importlib.import_module(f"campaigns.{name}")
                count = max(1, round(count * given.share))
                found = [asdict(row) for row in campaign.run(given.seed, count, lambda said: print(f"   {said}"))]
            for row in found:
                verdict = "kept" if row["kept"] else "BROKEN"
                print(f"   {verdict:6} {row['what']}: {row['figure']} ({row['seconds']:.0f} s)", flush=True)
            keep(found, given.seed, given.share)
            rows += found
    return 0 if all(row["kept"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
