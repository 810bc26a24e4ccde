"""Promise 6: no silent NaN, underflow or empty result; a 16-bit model has the mask that its gradients make."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from campaigns.row import Row
from campaigns.small import RECIPE, STORED, Arrays, Place, kept_if_broken, models, place, rows, stored

from mmsurgery.artifacts.mask import Mask, pack
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.backbones.loading import load
from mmsurgery.data.benchmark import benchmark, source_of
from mmsurgery.masks.rule import ratio_mask
from mmsurgery.methods.step import Answers
from mmsurgery.saliency.measure import LOSS_SCALE
from mmsurgery.settings import SETTINGS_FILE, Settings
from mmsurgery.workspace import find_workspace

PARTS = ("forget_vqa", "forget_qa", "retain_vqa", "retain_qa")
MEASURE = ("saliency", "--set", "forget,preserve")
HIDDEN = re.compile(r"/(\.|requests/|journal\.jsonl)")
"""What is no result: work that can go on, who was asked to be forgotten, the journal."""
EQUAL = {"F16": 0.999, "BF16": 0.99}
"""Share of a 16-bit model's mask that must be as from float64 sums of its gradients, and as of the float32 model.
Promised for float16; bfloat16 has 8 significant bits, so that many ratios near beta fall on either side."""


@dataclass(frozen=True)
class Fault:
    """A numeric fault, and what the one line about it must match."""

    what: str
    model: str
    make: Callable[[Place, random.Random], str]
    """Makes it in a workspace; returns a pattern of what must be named."""
    command: tuple[str, ...]
    """The first one that may end with anything but 0."""
    before: tuple[tuple[str, ...], ...] = ()


def fill(where: Place, end: str, value: float) -> None:
    """Set all weights of the tensors whose names end so."""

    def change(arrays: Arrays) -> None:
        for name, array in arrays.items():
            if name.endswith(end):
                array[...] = np.float16(value).view(np.uint16) if array.dtype == np.uint16 else value

    where.edit(change)


def one_weight(value: float) -> Callable[[Place, random.Random], str]:
    def make(where: Place, draw: random.Random) -> str:
        name = draw.choice(where.files.names)

        def change(arrays: Arrays) -> None:
            if name in arrays:
                array = arrays[name].reshape(-1)
                array[draw.randrange(array.size)] = value

        where.edit(change)
        return re.escape(name)

    return make


def huge_head(where: Place, draw: random.Random) -> str:
    fill(where, "lm_head.weight", draw.choice((3e38, -2e38)))
    return "the loss of sample rows/1 is"


def steep_head(where: Place, draw: random.Random) -> str:
    """Losses are finite, squares of gradients are not."""

    def change(arrays: Arrays) -> None:
        arrays["lm_head.weight"] *= np.float32(1e24)

    where.edit(change)
    return r"gradient of \S+ is not finite at sample rows/1 "


def silent_head(where: Place, draw: random.Random) -> str:
    for end in ("lm_head.weight", "language_model.norm.weight", "language_model.model.norm.weight"):
        fill(where, end, 0.0)
    return "all gradients of forget_vqa are zero"


def row_of(change: dict[str, str], pattern: str) -> Callable[[Place, random.Random], str]:
    """One pictured row to be forgotten becomes another; the pattern names its sample."""

    def make(where: Place, draw: random.Random) -> str:
        asked = rows()
        line = draw.choice([1, 3, 5])
        asked[line - 1] |= change
        where.write_rows(asked)
        return pattern.format(line)

    return make


def stored_value(value: float) -> Callable[[Place, random.Random], str]:
    """A value in a saliency map whose digests are right."""

    def make(where: Place, draw: random.Random) -> str:
        part = draw.choice(PARTS)
        folder = where.root / "saliency" / part
        measured = SaliencyMap.load(folder)
        name = draw.choice(sorted(SaliencyMap.load(where.root / "saliency" / "forget_qa").arrays))
        arrays = {n: measured.arrays[n].copy() for n in measured.arrays}
        arrays[name].reshape(-1)[draw.randrange(arrays[name].size)] = value
        replace(measured, arrays=arrays).save(folder, replace=True)
        return f"'{part}' of {re.escape(name)}"

    return make


def nothing(where: Place, draw: random.Random) -> str:
    return "selects 0 of [0-9,]+ weights in vision,connector,lm"


def empty_mask(where: Place, draw: random.Random) -> str:
    path = where.root / "masks" / "default.safetensors"
    mask = Mask.load(path)
    none = {n: replace(p, bits=pack(np.zeros(p.shape, bool))) for n, p in mask.parameters.items()}
    replace(mask, parameters=none).write(path)
    return "selects 0 of"


def out_of_reach(where: Place, draw: random.Random) -> str:
    """A mask of the one embedding that no sample has: that of the word Berg."""
    path = where.root / "masks" / "default.safetensors"
    mask = Mask.load(path)
    parameters = {n: replace(p, bits=pack(np.zeros(p.shape, bool))) for n, p in mask.parameters.items()}
    name = next(n for n in parameters if n.endswith("embed_tokens.weight"))
    chosen = np.zeros(parameters[name].shape, bool)
    chosen[-1] = True
    parameters[name] = replace(parameters[name], bits=pack(chosen))
    replace(mask, parameters=parameters).write(path)
    return "."


def huge_head_in_a_step(where: Place, draw: random.Random) -> str:
    fill(where, "lm_head.weight", 3e38)
    return r"step 1: the forget loss is \S+ \(samples rows/\d, rows/\d\)"


def growing(where: Place, draw: random.Random) -> str:
    """Weight decay that makes every weight a thousandfold larger each step."""
    recipe = replace(RECIPE, learning_rate=0.5, weight_decay=draw.uniform(2e3, 9e3), epochs=20)
    path = where.root / SETTINGS_FILE
    path.write_text(replace(Settings.read(path), recipe=recipe).to_toml())
    return r"step ([2-9]|\d\d): the (\S+ loss is|gradient) .*\(samples rows/\d"


def too_large_to_store(where: Place, draw: random.Random) -> str:
    """One weight at float16's end, and steps of half a weight upwards and downwards."""
    fill(where, "language_model.norm.weight", 65504.0)
    recipe = replace(RECIPE, learning_rate=0.9, epochs=60)
    path = where.root / SETTINGS_FILE
    path.write_text(replace(Settings.read(path), recipe=recipe).to_toml())
    return r"language_model\.norm\.weight is not finite as F16"


def asked_rows(where: Place, draw: random.Random) -> None:
    options = {"options": ["The city is lisbon .", "The city is oslo ."], "answer": "The city is lisbon ."}
    tests = [{**row, **options} for row in rows() if "image" in row]
    where.write_rows([*rows(), *tests])


def huge_head_in_scores(where: Place, draw: random.Random) -> str:
    asked_rows(where, draw)
    fill(where, "lm_head.weight", 3e38)
    return r"item rows/\d+ of column \S+: the model's scores are not finite"


def nan_in_a_model_that_is_compared(where: Place, draw: random.Random) -> str:
    other = where.copy(where.root / "elsewhere")
    return one_weight(float("nan"))(other, draw)


def small_set(where: Place, draw: random.Random) -> str:
    where.write_rows(rows(forget=1))
    return "the forget set has 1 samples, a batch takes 2"


GA = ("apply", "--method", "ga")
FORGET = ("saliency", "--set", "forget")
MASKED = (MEASURE, ("mask", "--beta", "1"))

FAULTS = (
    Fault("a NaN weight is measured", "llava", one_weight(float("nan")), FORGET),
    Fault("an infinite weight is trained", "qwen2_vl", one_weight(float("inf")), GA),
    Fault(
        "a NaN weight is scored",
        "llava",
        lambda w, d: (asked_rows(w, d), one_weight(float("nan"))(w, d))[1],
        ("eval", "vanilla"),
    ),
    Fault(
        "a model with a NaN weight is compared",
        "llava",
        nan_in_a_model_that_is_compared,
        ("diff", "vanilla", "{root}/elsewhere/models/vanilla"),
    ),
    Fault("a loss is not finite", "llava", huge_head, FORGET),
    Fault("a gradient's square is not finite", "llava", steep_head, FORGET),
    Fault("all gradients are zero", "llava, float16, 2 shards", silent_head, FORGET),
    Fault(
        "an answer is longer than the model",
        "llava",
        row_of({"answer": "The city . " * 99}, "sample rows/{} has"),
        FORGET,
    ),
    Fault(
        "an answer is of words the model lacks",
        "qwen2_vl",
        row_of({"answer": "porto"}, "sample rows/{}: the tokens"),
        GA,
    ),
    Fault("stored saliency is NaN", "llava", stored_value(float("nan")), ("mask",), (MEASURE,)),
    Fault("stored saliency is negative", "qwen2_vl", stored_value(-1.0), ("mask",), (MEASURE,)),
    Fault("beta selects nothing", "qwen2_vl, bfloat16", nothing, ("mask", "--beta", "1e30"), (MEASURE,)),
    Fault("a mask selects nothing", "llava", empty_mask, ("apply", "--method", "mmunlearner"), MASKED),
    Fault(
        "a mask selects what no sample reaches",
        "llava",
        out_of_reach,
        (*GA, "--mask", "default", "--scope", "all"),
        MASKED,
    ),
    Fault("a step's loss is not finite", "llava", huge_head_in_a_step, GA),
    Fault("weights grow until a step is not finite", "llava", growing, GA),
    Fault("a weight is too large for its dtype", "llava, float16, 2 shards", too_large_to_store, GA),
    Fault("a score is not finite", "llava", huge_head_in_scores, ("eval", "vanilla")),
    Fault("a set is smaller than its batch", "llava", small_set, GA),
)


def refusal(where: Place, fault: Fault, draw: random.Random) -> str | None:
    """What is wrong with how a fault is refused, None if nothing is."""
    for command in fault.before:
        if where.run(*command).code:
            return f"{' '.join(command)} failed before"
    named = fault.make(where, draw)
    there = set(where.root.rglob("*"))
    code, _, err = where.run(*(argument.format(root=where.root) for argument in fault.command))
    said = [line for line in err.splitlines() if line.startswith("error[")]
    if code != 5 or len(said) != 1 or err.splitlines()[-1] != said[0] or " - next: " not in said[0]:
        return f"exit code {code}: {err[-300:]}"
    if re.search(named, said[0]) is None:
        return f"'{named}' is not named: {said[0]}"
    left = [path for path in set(where.root.rglob("*")) - there if path.is_file() and not HIDDEN.search(str(path))]
    return f"left {left[0]}" if left else None


def sums_in_float64(where: Place) -> dict[str, SaliencyMap]:
    """Saliency of a 16-bit model by its own plain backward passes, squared and added up in float64."""
    import torch

    loaded, workspace = load(where.vanilla), find_workspace(where.root)
    scale = LOSS_SCALE if next(loaded.model.parameters()).dtype is torch.float16 else 1.0
    found = {}
    for part in PARTS:
        measured = SaliencyMap.load(where.root / "saliency" / part)
        sums = {name: np.zeros(array.shape) for name, array in measured.arrays.items()}
        for sample in benchmark("folder").samples(source_of(workspace), part):
            loaded.model.zero_grad(set_to_none=True)
            batch = loaded.backbone.collate(loaded.processor, [sample])
            (Answers.of(loaded.model, batch).nll().sum() * scale).backward()
            for name, parameter in loaded.model.named_parameters():
                if name in sums and parameter.grad is not None:
                    sums[name] += (parameter.grad.double().numpy() / scale) ** 2
        for name in measured.provenance["zero_gradient"]:
            sums[name][...] = 0
        found[part] = replace(measured, arrays=sums)
    return found


def differing(mine: Mask, theirs: Mask) -> int:
    return (mine ^ replace(theirs, base=mine.base)).selected


def mask_of(maps: dict[str, SaliencyMap]) -> Mask:
    return ratio_mask(maps["forget_vqa"], [maps[part] for part in PARTS[1:]])


def low_precision(folder: Path, name: str, model: Path, wide: Path) -> Row:
    """A 16-bit model's mask against float64 sums of its gradients, and against the same weights in float32."""
    started = time.monotonic()
    low, high = place(folder / "low", model), place(folder / "high", wide)
    for where in (low, high):
        for command in MASKED:
            code, _, err = where.run(*command)
            if code:
                return Row(6, f"mask of {name}", err.strip(), False, time.monotonic() - started)
    mask, full = (Mask.load(where.root / "masks" / "default.safetensors") for where in (low, high))
    summed, whole = differing(mask, mask_of(sums_in_float64(low))), differing(mask, full)
    figure = f"of {mask.total:,} bits {summed:,} differ from float64 sums, {whole:,} from the float32 model's mask"
    kept = max(summed, whole) <= (1 - EQUAL[STORED[name][1]]) * mask.total
    return Row(6, f"mask of {name}", figure, kept, time.monotonic() - started)


def run(seed: int, count: int, report: Callable[[str], None]) -> list[Row]:
    """`count` of the faults, each in another way every time they come round; and the masks of 16-bit models."""
    started, draw, faults = time.monotonic(), random.Random(seed), list[str]()
    report(f"numbers: seed {seed}")
    with kept_if_broken("numbers") as (folder, keep):
        made = models(folder / "models")
        asked = list(FAULTS)
        for number in range(count):
            if number % len(asked) == 0:
                draw.shuffle(asked)
            fault = asked[number % len(asked)]
            where = place(folder / f"fault-{number}", made[fault.model])
            if (wrong := refusal(where, fault, draw)) is not None:
                keep(where.root.name)
                faults.append(f"{fault.what}, in {where.root}: {wrong}")
        for each in faults:
            report(each)
        figure = f"{count - len(faults)} of {count} end with 5, naming tensor, sample or step, and leave nothing"
        found = [Row(6, f"{len(FAULTS)} kinds of numeric faults", figure, not faults, time.monotonic() - started)]
        for name in STORED:
            if STORED[name][1] != "F32":
                wide = stored(made[name], folder / "models" / f"{name}, widened", "F32")
                found.append(low_precision(folder / name, name, made[name], wide))
    return found
