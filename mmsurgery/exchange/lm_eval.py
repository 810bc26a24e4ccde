"""Scores in the result files of lm-evaluation-harness 0.4.13, for programs that read those.

    NAME/MODEL/results_TIME.json            one task per column: mmsurgery_BENCHMARK_COLUMN
    NAME/MODEL/samples_TASK_TIME.jsonl      one line per item

Shapes: `lm_eval/result_schema.py` and `loggers/evaluation_tracker.py` of that release. What an items' file of ours does
not hold (question, options' texts, picture) is not in a sample line: `arguments` is empty, and `prompt_hash` is our
digest of prompt and picture.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.files import write_bytes, write_pretty_json
from mmsurgery.artifacts.find import Found
from mmsurgery.evaluate import columns, truth
from mmsurgery.evaluate.official import Answer
from mmsurgery.evaluate.records import read_eval, read_items
from mmsurgery.evaluate.scoring import ItemScore
from mmsurgery.evaluate.statistics import clustered_interval
from mmsurgery.paths import real
from mmsurgery.provenance import sha256
from mmsurgery.workspace import Progress, Workspace

DATE = 0.0
# an eval holds no time, and a line of the journal says neither which subset nor whose request it was: equal scores
# give equal bytes, and what would be the time of day is this
TIME = "1970-01-01T00-00-00"
"""`DATE` as lm-eval writes it into file names."""
FALLING = ("forget_vqa", "test_vqa", "forget_caption")
"""Columns that unlearning should lower, see `report.words`; text about the forgotten people, and what anybody sees in
their pictures (`forget_perception`), is to be kept."""
Z95 = 1.96
"""Half widths of a 95 % interval per standard error."""
OPTION_SCORES = "mean log-probability per token, nats, end token included; whether greedy is not known"

Item = ItemScore | Answer


@dataclass(frozen=True)
class Metric:
    """A metric of a column: its mean as scored, and each item's value."""

    mean: float
    values: list[float]
    higher_is_better: bool | None

    def stderr(self, people: Sequence[str]) -> float | str:
        """From the bootstrap interval clustered by person; `N/A` where all items are about one person."""
        if len(set(people)) == 1:
            return "N/A"
        low, high = clustered_interval(self.values, people, seed=columns.SEED)
        return (high - low) / 2 / Z95


def write_lm_eval(workspace: Workspace, found: Found, path: Path, progress: Progress) -> dict[str, Any]:
    """Write the scores of one model; see the module. The benchmark is that of the workspace.

    Returns:
        `tasks` and `samples`, how many.

    Raises:
        InputRefused: if it is no eval, or one of its two files is damaged or missing.
        Mismatch: if it was written by another schema.
    """
    record, items = read_eval(found.path), read_items(found.path)
    benchmark = workspace.settings.benchmark.name
    if real(workspace.path("evals")) not in real(found.path).parents:
        progress.note(
            f"{found.path} is not in this workspace: its tasks are named after the benchmark here, {benchmark}"
        )
    folder = path / sanitised_model(record["model"])
    results = _head(record)
    for column, scored in items.items():
        task, summary = task_name(benchmark, column), record["columns"][column]
        metrics = metrics_of(column, summary, scored)
        samples = [_sample(number, item, metrics) for number, item in enumerate(scored)]
        people = [item.person for item in scored]
        numbers: dict[str, Any] = {"name": task, "alias": column, "sample_len": len(scored)}
        for name, metric in metrics.items():
            numbers[f"{name},none"] = metric.mean
            numbers[f"{name}_stderr,none"] = metric.stderr(people)
        of_task = {
            "results": numbers,
            "group_subtasks": [],
            "configs": _config(task, benchmark, column, record, metrics),
            "versions": record["schema"],
            "n-shot": _setting(record, "shots", 0),
            "higher_is_better": {name: metric.higher_is_better for name, metric in metrics.items()},
            "n-samples": _counts(len(scored), _setting(record, "subset")),
            "task_hashes": sha256(
                "".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples).encode()
            ),
        }
        for key, value in of_task.items():
            results[key][task] = value
        lines = (json.dumps(sample, allow_nan=False, ensure_ascii=False) + "\n" for sample in samples)
        write_bytes(folder / f"samples_{task}_{TIME}.jsonl", "".join(lines).encode())
    write_pretty_json(folder / f"results_{TIME}.json", results)
    return {"tasks": len(items), "samples": sum(map(len, items.values()))}


def task_name(benchmark: str, column: str) -> str:
    """`mmsurgery_mllmu_bench_forget_vqa_cloze`."""
    return re.sub(r"\W", "_", f"mmsurgery_{benchmark}_{column}")


def sanitised_model(name: str) -> str:
    """As `lm_eval.utils.sanitize_model_name`."""
    return re.sub(r"[\"<>:/|\\?*\[\]]+", "__", name)


def metrics_of(column: str, summary: Mapping[str, Any], items: Sequence[Any]) -> dict[str, Metric]:
    """The metrics of a column by lm-eval's name, the column's one number (`columns.score_of`) first.

    acc                         share right; with `unparsed`, or of cloze questions `whole_words`, see `columns.summary`
    rougeL_f1, rougeL_recall    generation
    probability, truth_ratio    truth. A forget column's truth ratio has no better end: it is 1 where the model cannot
                                tell true from wrong, and near 0 where it is sure of either
    """
    falls = column.partition(".")[0] in FALLING
    if "rouge_l" in summary:
        return {
            f"rougeL_{key}": Metric(summary["rouge_l"][key], [getattr(item.rouge, key) for item in items], not falls)
            for key in ("f1", "recall")
        }
    if "truth_ratio" in summary:
        ratios = [truth.means([item])["truth_ratio"] for item in items]
        forget = column.startswith("forget_")
        return {
            "probability": Metric(summary["probability"], [truth.probability(item) for item in items], not falls),
            "truth_ratio": Metric(summary["truth_ratio"], ratios, None if forget else True),
        }
    found = {"acc": Metric(summary["accuracy"], [item.value for item in items], not falls)}
    if "whole_words" in summary:
        found["whole_words"] = Metric(summary["whole_words"], [float(item.whole_words) for item in items], not falls)
    if "unparsed" in summary:
        unread = [float(item.parsed is None) for item in items]
        found["unparsed"] = Metric(summary["unparsed"] / len(items), unread, False)
    return found


def _head(record: Mapping[str, Any]) -> dict[str, Any]:
    """What holds for all tasks, and an empty table for each of what differs by task."""
    inputs, provenance = record["provenance"]["inputs"], record["provenance"]
    digests = {key: inputs[key] for key in ("model_sha256", "companions_sha256") if key in inputs}
    by_task = ("group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
    new_tokens = _setting(record, "new_tokens")
    return {
        "results": {},
        **{key: {} for key in by_task},
        "config": {
            "model": record["model"],
            "model_args": {"pretrained": record["model"], **digests},
            "batch_size": None,
            "batch_sizes": [],
            "device": None,
            "use_cache": None,
            "limit": _setting(record, "subset"),
            "bootstrap_iters": _setting(record, "resamples"),
            "gen_kwargs": None if new_tokens is None else {"do_sample": False, "max_gen_toks": new_tokens},
            "metadata": {key: provenance[key] for key in ("key", "settings", "versions") if key in provenance},
        },
        "git_hash": None,
        "date": DATE,
        "task_hashes": {},
        "model_source": "mmsurgery",
        "model_name": record["model"],
        "model_name_sanitized": sanitised_model(record["model"]),
    }


def _config(
    task: str, benchmark: str, column: str, record: Mapping[str, Any], metrics: Mapping[str, Metric]
) -> dict[str, Any]:
    summary = record["columns"][column]
    generated = "new_tokens" in record["provenance"]["settings"]
    chosen = "loglikelihood" if "truth_ratio" in summary else "multiple_choice"
    return {
        "task": task,
        "dataset_path": benchmark,
        "output_type": "generate_until" if generated else chosen,
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": metric.higher_is_better}
            for name, metric in metrics.items()
        ],
        "num_fewshot": _setting(record, "shots", 0),
        "repeats": 1,
        "should_decontaminate": False,
        "metadata": {
            "version": record["schema"],
            "protocol": summary["protocol"],
            "column": column,
            "request": _setting(record, "request"),
            "chance": summary.get("chance"),
            "ci95": summary["ci95"],
            "scores": None if generated else OPTION_SCORES,
            "items_sha256": record["provenance"]["inputs"].get("items", {}).get(column),
            "remarks": record["remarks"].get(column, []),
        },
    }


def _setting(record: Mapping[str, Any], key: str, default: Any = None) -> Any:
    return record["provenance"]["settings"].get(key, default)


def _counts(n: int, subset: int | None) -> dict[str, int | None]:
    """How many there were before a subset was drawn is not on record, unless they were fewer than that."""
    return {"original": n if subset is None or n < subset else None, "effective": n}


def _sample(number: int, item: Item, metrics: Mapping[str, Metric]) -> dict[str, Any]:
    doc: dict[str, Any] = {"id": item.id, "person": item.person}
    if isinstance(item, ItemScore):
        doc["options"] = list(item.options)
        # texts, as lm-eval writes them: (log-probability, whether it is what greedy decoding writes)
        pairs = [[str(score), str(None)] for score in item.options.values()]
        resps: list[Any] = [[pair] for pair in pairs]
        filtered: list[Any] = pairs
    else:
        if item.letters is not None:
            doc["options"] = list(item.letters)
        resps, filtered = [[item.raw_output]], [item.raw_output]
    return {
        "doc_id": number,
        "doc": doc,
        "target": item.gold,
        "arguments": {},
        "resps": resps,
        "filtered_resps": filtered,
        "filter": "none",
        "metrics": list(metrics),
        "doc_hash": sha256(json.dumps(doc, indent=2, ensure_ascii=False).encode()),
        "prompt_hash": item.prompt_sha256,
        "target_hash": sha256(item.gold.encode()),
        **{name: metric.values[number] for name, metric in metrics.items()},
    }
