"""Stages of `gpu_check.py` on models of random weights and LLaVA-1.5-7B's shape."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_check import Recorder, device, free, wait
from PIL import Image
from plan_7b import LLAVA, LLAVA_TEMPLATE, holes

from mmsurgery.api import Workspace, open_workspace
from mmsurgery.artifacts.mask import Mask, MaskParameter
from mmsurgery.backbones import micro
from mmsurgery.backbones.discovery import backbone
from mmsurgery.backbones.loading import Loaded, addresses, tied
from mmsurgery.data.samples import Sample
from mmsurgery.diff.run import diff
from mmsurgery.evaluate.run import evaluate
from mmsurgery.masks.build import build_mask
from mmsurgery.methods.registry import method
from mmsurgery.methods.step import Answers, References
from mmsurgery.plans import plan_apply, plan_diff, plan_eval, plan_saliency, probe
from mmsurgery.saliency.exact import HookedSamples
from mmsurgery.saliency.measure import _Backward
from mmsurgery.saliency.parts import measure_parts
from mmsurgery.saliency.sums import Sums
from mmsurgery.start import initialise
from mmsurgery.unlearn.adapters import LowRankUpdate
from mmsurgery.unlearn.apply import apply
from mmsurgery.unlearn.loop import deterministic
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.unlearn.masked import MaskedUpdate, PackedBits
from mmsurgery.unlearn.objective import Unlearning
from mmsurgery.unlearn.plan import StepPlan
from mmsurgery.unlearn.verify import verify
from mmsurgery.unlearn.weights import WeightUpdate

LAYERS = {"7b": 32, "3b": 16, "1b": 4}
"""Layers of the language model: 7.06, 3.82 and 1.39 billion weights in all."""
PARTS = "forget_vqa,retain_vqa"
"""All that the made data has."""
FORGET, RETAIN = 8, 16
"""Train rows."""
BATCH = 4
WORDS = ("This", "is", "a", "person", "who", "lives", "near", "the", "harbour", "and", "works", "as", "chef")
PIXELS = 336
REPEATS = 5


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


def in_turn(sides: dict[str, Callable[[], object]], base: str, repeats: int = REPEATS) -> dict[str, Any]:
    """Seconds of each side, run in turn after a warm-up, and the median ratio to one of them."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            wait()
            begun = time.perf_counter()
            side()
            wait()
            if repeat:
                times[name].append(time.perf_counter() - begun)
    return {
        name: {
            "seconds": round(statistics.median(found), 4),
            "ratio": round(statistics.median(a / b for a, b in zip(found, times[base], strict=True)), 3),
            "range": [round(min(found), 4), round(max(found), 4)],
        }
        for name, found in times.items()
    }


# kernels


def kernels(recorder: Recorder) -> None:
    """The squared sum of a bfloat16 gradient and the clearing of a masked one, a large layer's."""
    shape = (11008, 4096) if torch.cuda.is_available() else (256, 64)
    where = device()
    gradient = torch.randn(shape, device=where).bfloat16()
    total, scratch, values = (torch.zeros(shape, device=where) for _ in range(3))

    def converted() -> None:
        total.addcmul_(scratch.copy_(gradient), scratch)

    with recorder.stage("kernels: squares of a 16-bit gradient") as row:
        one, other = torch.zeros_like(total), torch.zeros_like(total)
        one.addcmul_(gradient.float(), gradient.float())
        other.addcmul_(gradient, gradient)
        row["same bits"] = torch.equal(one, other)
        sides = {"read as it is": lambda: total.addcmul_(gradient, gradient), "through a float32 copy": converted}
        row |= in_turn(sides, "through a float32 copy", 20)
    with recorder.stage("kernels: gradient outside the mask cleared") as row:
        bits = torch.randint(0, 256, (values.numel() // 8,), dtype=torch.uint8, device=where)
        packed = PackedBits(bits, values.numel())
        mask = torch.rand(shape, device=where) < 0.5
        sides = {"packed": lambda: packed.clear_outside(values), "bool mask": lambda: values.mul_(mask)}
        row |= in_turn(sides, "bool mask", 20)


# peaks


def peaks(recorder: Recorder, work: Path) -> None:
    described = config(size())
    with recorder.stage("peaks: drawn in memory") as row:
        loaded, ws = in_memory(work, described, torch.bfloat16)
        row["weights"] = sum(p.numel() for p in loaded.model.parameters())
    samples = ws.samples("retain_vqa")[:BATCH]
    with (
        no_probe(),
        recorder.stage("peaks: saliency sample, batch of 4", lambda: plan_saliency(ws, "retain_vqa")) as row,
    ):
        _saliency_steps(loaded, samples, row)
    with no_probe():
        _low_rank(recorder, loaded, ws, samples)
    del loaded
    shutil.rmtree(work)


def _inputs(loaded: Loaded, samples: Sequence[Sample]) -> tuple[Any, Callable[[], torch.Tensor]]:
    """The batch on the host, and what computes its losses `[B]`."""
    batch = loaded.backbone.collate(loaded.processor, samples)
    there = {name: value.to(device()) for name, value in batch.items()}
    return batch, lambda: Answers.of(loaded.model, there).nll()


def _saliency_steps(loaded: Loaded, samples: Sequence[Sample], row: dict[str, Any]) -> None:
    """Bare forward and backward against `batch` and `sample`, with deterministic kernels, as measuring has them,
    and without."""
    model = loaded.model
    batch, losses = _inputs(loaded, samples)
    names = {parameter: name for name, parameter in model.named_parameters()}
    sums = Sums(names)
    exact, whole = HookedSamples(loaded, sums), _Backward(names, sums.add_square, torch.mean)
    row["tokens"] = list(batch["input_ids"].shape)

    def bare() -> None:
        model.requires_grad_(True)
        losses().mean().backward()
        model.zero_grad(set_to_none=True)

    def through(way: Any) -> Callable[[], None]:
        def run() -> None:
            with way:
                way.step(batch, losses, 1.0)

        return run

    sides = {"bare": bare, "batch": through(whole), "sample": through(exact)}
    with deterministic(torch.get_num_threads()):
        sides["sample"]()
        wait()
        if torch.cuda.is_available():
            row["one step allocated_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        row["deterministic"] = in_turn(sides, "bare")
    row["free kernels"] = in_turn(sides, "bare")
    model.requires_grad_(False)


def _random_mask(loaded: Loaded, modules: str, groups: Sequence[str]) -> Mask:
    """Independent bits of one half in some module groups, none elsewhere."""
    rng, found = np.random.default_rng(0), {}
    for name, parameter in loaded.model.named_parameters():
        size_ = -(-parameter.numel() // 8)
        chosen = loaded.addresses[name].group in groups
        bits = np.frombuffer(rng.bytes(size_), np.uint8) if chosen else np.zeros(size_, np.uint8)
        if spare := 8 * size_ - parameter.numel():
            bits = bits.copy()
            bits[-1] &= 255 >> spare
        found[name] = MaskParameter(tuple(parameter.shape), loaded.addresses[name], bits)
    base = {"model_type": "llava", "model_sha256": "0" * 64}
    rest: dict[str, Any] = {"rule": "ratio", "beta": 1.0, "estimator": "sample", "mixture": "pooled"}
    return Mask(parameters=found, base=base, modules=modules, **rest)


def _low_rank(recorder: Recorder, loaded: Loaded, ws: Workspace, samples: Sequence[Sample]) -> None:
    """Forward and backward of LoRA in float32 with and without a mask; one set of adapters, forwards exchanged."""
    lora = LoRA(rank=16)
    mask = _random_mask(loaded, "lm", ["lm"])
    selection = {name: mask.parameters[name].selected for name in mask.in_modules()}
    plan = functools.partial(plan_apply, ws, "mmunlearner", mask="default", lora=lora, selection=selection)
    with recorder.stage("peaks: LoRA in float32, batch of 4", plan) as row:
        loaded.model.requires_grad_(False)
        loaded.model.float()
        free()
        targets = lora.targets(loaded.addresses, loaded.backbone, mask)
        update = LowRankUpdate(loaded.model, lora, targets, mask, seed=0)
        _, losses = _inputs(loaded, samples)
        masked = {layer: layer.__dict__["forward"] for layer in update._layers.values()}

        def step(with_mask: bool) -> Callable[[], None]:
            def run() -> None:
                for layer, forward in masked.items():
                    layer.__dict__.pop("forward", None)
                    if with_mask:
                        layer.forward = forward
                losses().mean().backward()
                for parameter in update.trainable.values():
                    parameter.grad = None

            return run

        with deterministic(torch.get_num_threads()):
            row |= in_turn({"no mask": step(False), "masked": step(True)}, "no mask", 2)


# steps


def steps(recorder: Recorder, work: Path) -> None:
    """Whole optimizer steps of `ga_diff`'s kind in float32: the modules trained without a mask, and with one in
    each scope; one optimizer for all, since they move the same parameters."""
    layers = 8
    with recorder.stage(f"steps: masked against unmasked, {layers} layers") as row:
        loaded, ws = in_memory(work, config(size(), layers), torch.float32)
        row["weights"] = sum(p.numel() for p in loaded.model.parameters())
        mask = _random_mask(loaded, "lm", ["lm"])
        forget, retain = ws.samples("forget_vqa")[:BATCH], ws.samples("retain_vqa")[:BATCH]
        plan = [StepPlan(tuple(range(BATCH)), tuple(range(BATCH)))]
        updates = {
            "no mask": WeightUpdate(loaded.model, mask.in_modules()),
            "scope forget": MaskedUpdate(loaded.model, mask, strict=False),
            "scope all": MaskedUpdate(loaded.model, mask, strict=True),
        }
        optimizer = torch.optim.AdamW(updates["no mask"].trainable.values(), lr=1e-5, fused=True)

        def step(update: Any) -> Callable[[], None]:
            terms = Unlearning(loaded, method("mmunlearner"), update, forget, retain, plan, References())

            def run() -> None:
                optimizer.zero_grad(set_to_none=True)
                terms(0)
                update.mask_gradient()
                gradients = [p.grad for p in update.trainable.values() if p.grad is not None]
                total = torch.nn.utils.get_total_norm(gradients)
                torch.nn.utils.clip_grads_with_norm_(update.trainable.values(), 1.0, total)
                optimizer.step()
                update.restore()

            return run

        with deterministic(torch.get_num_threads()):
            row |= in_turn({name: step(update) for name, update in updates.items()}, "no mask", 3)
    shutil.rmtree(work, ignore_errors=True)


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
