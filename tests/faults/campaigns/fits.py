"""Promise 5: a mask fits or is refused, before weights are loaded, and what differs is named."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
from campaigns.row import Row
from campaigns.small import STORED, Place, kept_if_broken, models, place, rows

from mmsurgery.artifacts.mask import Mask, MaskParameter, pack
from mmsurgery.artifacts.tensors import read_header, read_tensor, write_safetensors
from mmsurgery.backbones.discovery import backbone
from mmsurgery.data.benchmark import benchmark, source_of
from mmsurgery.data.samples import data_sha256
from mmsurgery.workspace import Workspace, find_workspace

Mismatched = Callable[[Place, Mask, random.Random], str]
"""Makes mask and model of a workspace differ; returns what the refusal must name."""


def fitting(where: Place) -> Mask:
    """A mask of half of vanilla's weights, as if measured on the data that are there."""
    files, family = where.files, backbone(where.files.model_type)
    generator = np.random.default_rng(0)
    parameters = {
        name: MaskParameter(files.shape(name), family.address(name), pack(generator.random(files.shape(name)) < 0.5))
        for name in files.names
    }
    workspace: Workspace = find_workspace(where.root)
    forget = benchmark("folder").samples(source_of(workspace), "forget_vqa")
    return Mask(
        rule="ratio",
        beta=1.0,
        estimator="sample",
        mixture="pooled",
        modules="vision,connector,lm",
        parameters=parameters,
        base={"model_type": files.model_type, "model_sha256": files.digest()},
        parents=({"kind": "saliency", "part": "forget_vqa", "data_sha256": data_sha256(forget)},),
    )


def write(where: Place, mask: Mask) -> None:
    mask.write(where.root / "masks" / "default.safetensors")


def with_parameters(where: Place, mask: Mask, parameters: dict[str, MaskParameter]) -> None:
    write(where, replace(mask, parameters=parameters))


def another_family(where: Place, mask: Mask, draw: random.Random) -> str:
    others = [Place(root) for root in sorted(where.root.parent.glob("sound-*"))]
    other = draw.choice([each for each in others if each.files.model_type != where.files.model_type])
    shutil.copy(other.root / "masks" / "default.safetensors", where.root / "masks")
    return f"{min(set(other.files.names) ^ set(where.files.names))}: mask "


def a_renamed_parameter(where: Place, mask: Mask, draw: random.Random) -> str:
    name = draw.choice(mask.names)
    changed = {f"{n}.renamed" if n == name else n: each for n, each in mask.parameters.items()}
    with_parameters(where, mask, changed)
    return f"{name}: mask none"


def a_layer_less(where: Place, mask: Mask, draw: random.Random) -> str:
    layers = sorted({str(a.layer_key) for a in mask.addresses.values() if a.layer is not None})
    gone = draw.choice(layers)
    left = {n: each for n, each in mask.parameters.items() if str(each.address.layer_key) != gone}
    with_parameters(where, mask, left)
    return f"{min(mask.parameters.keys() - left.keys())}: mask none"


def a_layer_more(where: Place, mask: Mask, draw: random.Random) -> str:
    of_first = {n: each for n, each in mask.parameters.items() if "language_model.layers.0." in n}
    more = {n.replace("layers.0.", "layers.7."): each for n, each in of_first.items()}
    with_parameters(where, mask, {**mask.parameters, **more})
    return "layers.7."


def another_shape(where: Place, mask: Mask, draw: random.Random) -> str:
    name = draw.choice(mask.names)
    shape = (*mask.parameters[name].shape, draw.randint(2, 9))
    resized(where, mask, name, shape)
    return f"{name}: mask {list(shape)}"


def another_vocabulary(where: Place, mask: Mask, draw: random.Random) -> str:
    name = next(n for n in mask.names if n.endswith("embed_tokens.weight"))
    tokens, width = mask.parameters[name].shape
    shape = (tokens + draw.choice((-2, 1, 64)), width)
    resized(where, mask, name, shape)
    return f"{name}: mask {list(shape)}, model {[tokens, width]}"


def resized(where: Place, mask: Mask, name: str, shape: tuple[int, ...]) -> None:
    other = MaskParameter(shape, mask.addresses[name], pack(np.ones(shape, bool)))
    with_parameters(where, mask, {**mask.parameters, name: other})


def one_other_bit(where: Place, mask: Mask, draw: random.Random) -> str:
    name = draw.choice([n for n in mask.names if mask.parameters[n].numel])

    def flip(arrays: dict[str, Any]) -> None:
        if name in arrays:
            values = arrays[name].reshape(-1)
            bits = values.view(np.uint32 if values.itemsize == 4 else np.uint16)
            bits[draw.randrange(bits.size)] ^= 1

    where.edit(flip)
    return f"built for weights {mask.base['model_sha256'][:8]}, model 'vanilla' has {where.files.digest()[:8]}"


def another_dtype(where: Place, mask: Mask, draw: random.Random) -> str:
    for path in where.vanilla.glob("*.safetensors"):
        header = read_header(path)
        wide = {n: read_tensor(path, info).astype(np.float64) for n, info in header.tensors.items()}
        write_safetensors(path, wide, header.metadata)
    for index in where.vanilla.glob("*.index.json"):
        value = json.loads(index.read_text())
        index.write_text(json.dumps({**value, "metadata": {}}))
    return f"model 'vanilla' has {where.files.digest()[:8]}"


def quantised(where: Place, mask: Mask, draw: random.Random) -> str:
    where.configure(quantization_config={"bits": draw.choice((4, 8))})
    return "quantised"


def an_adapter(where: Place, mask: Mask, draw: random.Random) -> str:
    (where.vanilla / "adapter_config.json").write_text("{}")
    return "adapter"


def another_forget_set(where: Place, mask: Mask, draw: random.Random) -> str:
    asked = rows()
    draw.choice([row for row in asked if row["role"] == "forget" and "image" in row])["answer"] = "The city ."
    where.write_rows(asked)
    return "another forget set"


def a_newer_schema(where: Place, mask: Mask, draw: random.Random) -> str:
    path = where.root / "masks" / "default.safetensors"
    header = read_header(path)
    newer = {**json.loads(header.metadata["mmsurgery"]), "schema": (new := draw.randint(2, 9))}
    arrays = {n: read_tensor(path, info) for n, info in header.tensors.items()}
    write_safetensors(path, arrays, {**header.metadata, "mmsurgery": json.dumps(newer)})
    return f"schema {new}, this version reads 1"


KINDS: tuple[Mismatched, ...] = (
    another_family,
    a_renamed_parameter,
    a_layer_less,
    a_layer_more,
    another_shape,
    another_vocabulary,
    one_other_bit,
    another_dtype,
    quantised,
    an_adapter,
    another_forget_set,
    a_newer_schema,
)


class Loads:
    """Stands for the loading of weights, and remembers that somebody asked for it."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.asked += 1
        raise AssertionError("weights were loaded")


def refusal(where: Place, kind: Mismatched, draw: random.Random) -> str | None:
    """What is wrong with how a mismatch is refused, None if nothing is."""
    named = kind(where, Mask.load(where.root / "masks" / "default.safetensors"), draw)
    with mock.patch("transformers.PreTrainedModel.from_pretrained", Loads()) as loads:
        code, _, err = where.run("apply", "--method", "mmunlearner")
    lines = err.splitlines()
    if loads.asked:
        return "weights were loaded first"
    if code != 4 or len(lines) != 1 or not lines[0].startswith("error[4]: ") or " - next: " not in lines[0]:
        return f"exit code {code}: {err[:300]}"
    if named not in lines[0]:
        return f"'{named}' is not named: {lines[0]}"
    return None


def run(seed: int, count: int, report: Callable[[str], None]) -> list[Row]:
    """Every kind of mismatch with every model, `count` of these pairs: first each kind with one model, and so on."""
    started, draw = time.monotonic(), random.Random(seed)
    report(f"mismatches: seed {seed}")
    order, faults = draw.sample(list(STORED), len(STORED)), list[str]()
    pairs = [(kind, order[(i + j) % len(order)]) for j in range(len(order)) for i, kind in enumerate(KINDS)]
    with kept_if_broken("fits") as (folder, keep):
        made = models(folder / "models")
        sound = {name: place(folder / f"sound-{i}", made[name]) for i, name in enumerate(made)}
        for each in sound.values():
            (each.root / "masks").mkdir()
            write(each, fitting(each))
            with mock.patch("transformers.PreTrainedModel.from_pretrained", Loads()) as seen:
                each.run("apply", "--method", "mmunlearner")
            if not seen.asked:
                faults.append("a mask that fits does not reach the loading of weights")
        for number in range(count):
            kind, model = pairs[number % len(pairs)]
            where = sound[model].copy(folder / f"{number}-{kind.__name__}")
            if (fault := refusal(where, kind, draw)) is not None:
                keep(where.root.name)
                faults.append(f"{kind.__name__} of {model} in {where.root}: {fault}")
    for fault in faults:
        report(fault)
    figure = f"{count - len(faults)} of {count} refused before weights are loaded, naming what differs"
    what = f"{len(KINDS)} kinds of mismatch with {len(STORED)} models"
    return [Row(5, what, figure, not faults, time.monotonic() - started)]
