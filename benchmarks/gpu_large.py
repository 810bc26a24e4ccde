"""Stages of `gpu_check.py` on models of random weights and LLaVA-1.5-7B's shape: memory beside its plan. Times beside
limits are `bench.py`'s."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import baseline
import numpy as np
import torch
from gpu_check import Recorder
from measure import device, free, wait
from PIL import Image
from plan_7b import LLAVA, LLAVA_TEMPLATE, holes
from stages.masks import random_mask

from mmsurgery.api import Workspace, open_workspace
from mmsurgery.backbones import micro
from mmsurgery.backbones.discovery import backbone
from mmsurgery.backbones.loading import Loaded, addresses, tied
from mmsurgery.data.samples import Sample
from mmsurgery.diff.run import diff
from mmsurgery.evaluate.run import evaluate
from mmsurgery.masks.build import build_mask
from mmsurgery.plans import plan_apply, plan_diff, plan_eval, plan_saliency, probe
from mmsurgery.saliency.measure import measure_saliency
from mmsurgery.saliency.parts import measure_parts
from mmsurgery.start import initialise
from mmsurgery.unlearn.adapters import LowRankUpdate
from mmsurgery.unlearn.apply import apply
from mmsurgery.unlearn.loop import deterministic
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.unlearn.verify import verify

LAYERS = {"7b": 32, "3b": 16, "1b": 4}
"""Layers of the language model: 7.06, 3.82 and 1.39 billion weights in all."""
PARTS = "forget_vqa,retain_vqa"
"""All that the made data has."""
FORGET, RETAIN = 8, 16
"""Train rows."""
BATCH = 4
WORDS = ("This", "is", "a", "person", "who", "lives", "near", "the", "harbour", "and", "works", "as", "chef")
PIXELS = 336
BATCHES = 8
"""Of a long measurement; a short one has one, and what both cost beside their batches is the same."""


def config(weights: str, layers: int | None = None) -> dict[str, Any]:
    """LLaVA-1.5-7B's config with so many layers, special tokens where a word-level tokenizer has them."""
    found = copy.deepcopy(LLAVA) | {"image_token_index": 3, "pad_token_id": 0, "eos_token_id": 2}
    found["text_config"] |= {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}
    if weights == "micro":
        found["text_config"] |= {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 128}
        found["text_config"] |= {"num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2}
        found["vision_config"] |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        found["vision_config"] |= {"num_attention_heads": 4, "projection_dim": 32}
    else:
        found["text_config"]["num_hidden_layers"] = layers or LAYERS[weights]
    return found


def size() -> str:
    """Of models that live in the GPU's memory alone."""
    return "7b" if torch.cuda.is_available() else "micro"


def drawn(described: dict[str, Any], dtype: torch.dtype) -> Any:
    """A model of random weights, drawn where it lives."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    with device():
        model = LlavaForConditionalGeneration._from_config(LlavaConfig.from_dict(described), dtype=dtype)
    return model.eval()


def data(folder: Path) -> Path:
    """Rows of one's own: 8 pictures to forget and 16 to keep, a question of each for training and one for testing."""
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for number in range(FORGET + RETAIN):
        role, image = "forget" if number < FORGET else "retain", f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)).save(folder / image)
        row = {"role": role, "person": f"p{number}", "image": image}
        answers = [" ".join(rng.choice(WORDS, 40)) for _ in range(4)]
        rows.append({**row, "question": "Who is this ?", "answer": answers[0]})
        rows.append({**row, "question": "What is known ?", "answer": answers[1], "options": answers[1:]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def processor(folder: Path) -> None:
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = ["<pad>", "<unk>", "</s>", "<image>", "USER:", "ASSISTANT:", "Who", "this", "?", "What", "known", *WORDS]
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS}
        ),
        tokenizer=micro.word_tokenizer(words, {"image_token": "<image>"}),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    ).save_pretrained(folder)


def in_memory(work: Path, described: dict[str, Any], dtype: torch.dtype) -> tuple[Loaded, Workspace]:
    """A drawn model, and a workspace whose checkpoint has its shapes and no bytes, for plans."""
    holes(work / "vanilla", described)
    processor(work / "vanilla")
    initialise(work / "ws", benchmark="folder", data=str(data(work / "data")), vanilla=str(work / "vanilla"))
    family, model = backbone("llava"), drawn(described, dtype)
    found = addresses(family, model)
    loaded = Loaded(model, family.load_processor(work / "vanilla"), family, work / "vanilla", found, tied(model))
    return loaded, open_workspace(work / "ws")


@contextlib.contextmanager
def no_probe() -> Iterator[None]:
    """Plans without their look at the time, which would load the model."""
    share, probe.SHARE = probe.SHARE, 10**6
    try:
        yield
    finally:
        probe.SHARE = share


# peaks


def peaks(recorder: Recorder, work: Path) -> None:
    described = config(size())
    with recorder.stage("peaks: drawn in memory") as row:
        loaded, ws = in_memory(work, described, torch.bfloat16)
        row["weights"] = sum(p.numel() for p in loaded.model.parameters())
    samples = ws.samples("retain_vqa")
    with no_probe():
        _saliency(recorder, loaded, ws, samples)
        _low_rank(recorder, loaded, ws, samples[:BATCH])
    del loaded
    shutil.rmtree(work)


def _saliency(recorder: Recorder, loaded: Loaded, ws: Workspace, samples: Sequence[Sample]) -> None:
    """Memory of `batch` and `sample`, and a batch's seconds over those of a bare forward and backward: of a long
    measurement less a short one, since both copy the sums into main memory."""
    model = loaded.model
    shown, cache = [*samples, *samples, *samples][: BATCHES * BATCH], dict[Any, Any]()

    def bare(batches: int) -> None:
        model.requires_grad_(True)
        for start in range(0, batches * BATCH, BATCH):
            batch = loaded.backbone.collate(loaded.processor, shown[start : start + BATCH], cache=cache)
            baseline.losses(loaded, batch).mean().backward()
            model.zero_grad(set_to_none=True)

    def of_a_batch(run: Callable[[int], object]) -> float:
        run(1)
        short, long = (_seconds(functools.partial(run, count)) for count in (1, BATCHES))
        return (long - short) / (BATCHES - 1)

    with recorder.stage("peaks: bare forward and backward, batch of 4") as row, deterministic(torch.get_num_threads()):
        limit = row["seconds_of_a_batch"] = of_a_batch(bare)
    for estimator in ("batch", "sample"):
        plan = functools.partial(plan_saliency, ws, "retain_vqa", estimator=estimator)
        with recorder.stage(f"peaks: saliency {estimator}, batch of 4", plan) as row:
            found = of_a_batch(
                lambda batches, estimator=estimator: measure_saliency(
                    loaded, shown[: batches * BATCH], estimator=estimator, batch_size=BATCH
                )
            )
            row |= {"seconds_of_a_batch": round(found, 4), "ratio to bare": round(found / limit, 3)}
    model.requires_grad_(False)


def _seconds(run: Callable[[], object]) -> float:
    wait()
    begun = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - begun


def _low_rank(recorder: Recorder, loaded: Loaded, ws: Workspace, samples: Sequence[Sample]) -> None:
    """Forward and backward of masked LoRA in float32."""
    lora = LoRA(rank=16)
    shapes = {name: tuple(p.shape) for name, p in loaded.model.named_parameters()}
    mask = random_mask("llava", shapes, 0).restrict("lm")
    selection = {name: mask.parameters[name].selected for name in mask.in_modules()}
    plan = functools.partial(plan_apply, ws, "mmunlearner", mask="default", lora=lora, selection=selection)
    with recorder.stage("peaks: masked LoRA in float32, batch of 4", plan), deterministic(torch.get_num_threads()):
        loaded.model.float()
        free()
        update = LowRankUpdate(loaded.model, lora, lora.targets(loaded.addresses, loaded.backbone, mask), mask, seed=0)
        batch = loaded.backbone.collate(loaded.processor, samples)
        for _ in range(2):
            baseline.losses(loaded, batch).mean().backward()
            for parameter in update.trainable.values():
                parameter.grad = None


# verbs


def verbs(recorder: Recorder, work: Path, weights: str) -> None:
    """A checkpoint on disk through every verb; each stage's files are there for the next."""
    described = config(weights)
    needed, there = _disk_needed(described), _disk(work)
    while weights in ("7b", "3b") and needed > there:
        weights = "3b" if weights == "7b" else "1b"
        described = config(weights)
        needed = _disk_needed(described)
    known = {"weights": weights, "disk_free_gb": round(there / 1e9, 1), "disk_needed_gb": round(needed / 1e9, 1)}
    recorder.write({"stage": "verbs: begin", **known})
    with recorder.stage("verbs: weights drawn and saved"):
        model = drawn(described, torch.bfloat16)
        model.save_pretrained(work / "vanilla", max_shard_size="4GB")
        del model
        free()
        processor(work / "vanilla")
    with recorder.stage("verbs: init"):
        initialise(work / "ws", benchmark="folder", data=str(data(work / "data")), vanilla=str(work / "vanilla"))
    ws = open_workspace(work / "ws")
    measured: dict[str, Any] = {"estimator": "sample", "batch_size": BATCH, "store": "bfloat16"}
    with contextlib.nullcontext() if weights == "micro" else no_probe():
        with recorder.stage("verbs: saliency", lambda: plan_saliency(ws, PARTS, **measured)) as row:
            row["parts"] = [part.part for part in measure_parts(ws, PARTS, **measured)]
        with recorder.stage("verbs: mask") as row:
            row["selected"] = build_mask(ws, modules="lm,connector").mask.selected
        lora = {"mask": "default", "lora": LoRA(rank=16), "learning_rate": 1e-3, "epochs": 1}
        with recorder.stage("verbs: apply, masked LoRA", lambda: plan_apply(ws, "mmunlearner", **lora)) as row:
            made = apply(ws, "mmunlearner", name="lora", **lora)
            row |= {"steps": made.record["steps"], "losses": made.record["losses"]}
        shutil.rmtree(ws.path("saliency"), ignore_errors=True)
        with recorder.stage("verbs: eval", lambda: plan_eval(ws, ["lora"])) as row:
            row["accuracy"] = {name: each["accuracy"] for name, each in evaluate(ws, ["lora"])[0].columns.items()}
        with recorder.stage("verbs: verify") as row:
            found = verify(ws, "lora")
            row |= {"ok": found.ok, "claim": found.claim, "faults": found.faults[:3]}
        with recorder.stage("verbs: diff", lambda: plan_diff(ws, "vanilla", "lora")) as row:
            row["changed"] = diff(ws, "vanilla", "lora").changed
        full = {"mask": "default", "scope": "all", "learning_rate": 1e-3, "epochs": 1}
        plan = plan_apply(ws, "mmunlearner", name="full", **full)
        if torch.cuda.is_available() and plan.memory_total > torch.cuda.mem_get_info()[1]:
            recorder.write(
                {"stage": "verbs: apply, all weights", "skipped": f"planned {plan.memory_total / 1e9:.1f} GB"}
            )
            return
        if recorder.left() < 60 and weights != "micro":
            recorder.write({"stage": "verbs: apply, all weights", "skipped": f"{recorder.left():.0f} s are left"})
            return
        with recorder.stage("verbs: apply, all weights", plan) as row:
            row["steps"] = apply(ws, "mmunlearner", name="full", **full).record["steps"]
    shutil.rmtree(work, ignore_errors=True)


def _disk_needed(described: dict[str, Any]) -> int:
    """Bytes: the model, and what `saliency` wants free (a map and two snapshots of float32) beside a first map."""
    count = sum(parameter.numel() for parameter in backbone("llava").skeleton(described).parameters())
    return count * (2 + 3 * 4 + 2)


def _disk(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(folder).free
