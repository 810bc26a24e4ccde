"""The plans of 7B models, without their weights: what each verb would take on MLLMU-Bench at forget 5.

    python benchmarks/plan_7b.py [--people 500] > plan_7b.md

Checkpoints of LLaVA-1.5-7B's and Qwen2-VL-7B's real configs with the right shapes in bfloat16 over files that are
all holes, made files of MLLMU-Bench, and a word-level tokenizer: pictures take as many tokens as in the real
models, texts fewer (a word is a token). Prints Markdown tables, beside the byte counts of a bfloat16 design.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "data"))

from mllmu_files import Files

from mmsurgery.artifacts import files
from mmsurgery.backbones import micro
from mmsurgery.backbones.discovery import backbone
from mmsurgery.data.benchmark import TASKS, benchmark, source_of
from mmsurgery.names import Selector
from mmsurgery.plans import Plan, plan_apply, plan_diff, plan_eval, plan_saliency, plan_train
from mmsurgery.plans import plan as terms
from mmsurgery.plans.sizes import Sizes
from mmsurgery.settings import BenchmarkSettings, ModelSettings, Settings
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.workspace import Workspace
from mmsurgery_llava.backbone import CHAT_TEMPLATE as LLAVA_TEMPLATE
from mmsurgery_qwen2_vl.backbone import CHAT_TEMPLATE as QWEN_TEMPLATE
from mmsurgery_qwen2_vl.processor import Qwen2VLProcessor, save

DENSITY = 10
"""Every so-manieth weight of language model and connector is selected by the mask that is planned with."""
CARDS = (80, 40, 24)
"""GB of the common GPUs."""
LLAVA: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "dtype": "bfloat16",
    "image_token_index": 3,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "projector_hidden_act": "gelu",
    "image_seq_length": 576,
    "text_config": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "vocab_size": 32064,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
}
QWEN: dict[str, Any] = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "model_type": "qwen2_vl",
    "dtype": "bfloat16",
    "image_token_id": 3,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "tie_word_embeddings": False,
    "text_config": {
        "model_type": "qwen2_vl_text",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "vocab_size": 152064,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "model_type": "qwen2_vl",
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 3584,
        "mlp_ratio": 4,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
SCOPE_FORGET = "apply mmunlearner, 10 % mask, scope forget"
FIGURES = {
    ("llava", "saliency"): "45", ("qwen2_vl", "saliency"): "54",
    ("llava", "apply"): "84.7", ("qwen2_vl", "apply"): "99.5",
    ("llava", "diff"): "28.2 read", ("qwen2_vl", "diff"): "33.2 read",
}  # fmt: skip
"""GB of a bfloat16 design, without activations in `apply`: two bytes a weight and gradient, eight for moments."""


def holes(folder: Path, config: Mapping[str, Any]) -> None:
    """A checkpoint of a config: true headers, no bytes of weights on disk."""
    family = backbone(config["model_type"])
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    header: dict[str, Any] = {}
    place = 0
    for name, parameter in sorted(family.skeleton(config).named_parameters()):
        size = 2 * parameter.numel()
        entry = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [place, place + size]}
        header[family.published(name)] = entry
        place += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + place)


def llava_processor(words: list[str], folder: Path) -> None:
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    control = {"image_token": "<image>"}
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        tokenizer=micro.word_tokenizer(["<pad>", "<unk>", "</s>", "<image>", "USER:", "ASSISTANT:", *words], control),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    ).save_pretrained(folder)


def qwen_processor(words: list[str], folder: Path) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    control = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start": "<|vision_start|>",
        "vision_end": "<|vision_end|>",
    }
    tokenizer = micro.word_tokenizer(
        ["<pad>", "<unk>", "<|im_end|>", *control.values(), "USER:", "ASSISTANT:", *words], control
    )
    save(
        Qwen2VLProcessor(
            image_processor=Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, temporal_patch_size=2),
            tokenizer=tokenizer,
            chat_template=QWEN_TEMPLATE,
        ),
        folder,
    )


def workspace(root: Path, data: Path, config: Mapping[str, Any], processor: Callable[..., None]) -> Workspace:
    models = root / "models"
    holes(models / "vanilla", config)
    made = Workspace(
        root,
        Settings(
            benchmark=BenchmarkSettings(name="mllmu-bench", data=str(data), forget=5),
            models=ModelSettings(base=str(models / "vanilla"), vanilla=str(models / "vanilla")),
        ),
    )
    reader, source = benchmark("mllmu-bench"), source_of(made)
    texts = [
        f"{sample.question} {sample.answer}" for part in reader.parts(source) for sample in reader.samples(source, part)
    ]
    for task in TASKS:
        for column in reader.columns(source):
            for item in reader.items(source, column, task):
                texts += [item.question, item.gold, *(item.options or {}).values()]
    processor(sorted(set(re.split(r"\s+", " ".join(texts)))), models / "vanilla")
    return made


def plans(made: Workspace) -> dict[str, Plan]:
    sizes = Sizes.of("vanilla", made.model_dir("vanilla"))
    inside = Selector("lm,connector").select(sizes.addresses)
    masked: dict[str, Any] = {
        "mask": "default",
        "selection": {name: sizes.count([name]) // DENSITY for name in sizes.shapes if name in inside},
    }

    def planned(method: str, **options: Any) -> Plan:
        return plan_apply(made, method, device="cuda", **options)

    strict, lora = {**masked, "scope": "all"}, LoRA(rank=16)
    return {
        "saliency --set forget,preserve": plan_saliency(made, "forget,preserve", device="cuda"),
        "apply ga_diff, no mask": planned("ga_diff"),
        "apply ga_diff, no mask, bf16": planned("ga_diff", precision="bf16"),
        SCOPE_FORGET: planned("mmunlearner", **masked),
        "apply mmunlearner, 10 % mask, scope forget, bf16": planned("mmunlearner", precision="bf16", **masked),
        "apply mmunlearner, 10 % mask, scope all": planned("mmunlearner", **strict),
        "apply mmunlearner, 10 % mask, scope all, bf16": planned("mmunlearner", precision="bf16", **strict),
        "apply mmunlearner, 10 % mask, LoRA 16": planned("mmunlearner", lora=lora, **masked),
        "apply mmunlearner, 10 % mask, LoRA 16, bf16": planned("mmunlearner", lora=lora, precision="bf16", **masked),
        "apply npo, LoRA 16": planned("npo", lora=lora),
        "eval": plan_eval(made, ["vanilla"]),
        "eval --protocol official": plan_eval(made, ["vanilla"], protocol="official"),
        "diff": plan_diff(made, "vanilla", "vanilla"),
        "train reference": plan_train(made, "reference"),
    }


def show(family: str, title: str, found: Mapping[str, Plan]) -> None:
    model = next(iter(found.values())).model
    print(f"\n### {title}: {model.parameters:,} weights, {model.bytes / 1e9:.1f} GB in {model.dtype}\n")
    print("| verb | samples | forward, backward | memory, GB | largest terms | bf16 design | 80 GB | disk, GB |")
    print("|---|---|---|---|---|---|---|---|")
    for verb, plan in found.items():
        largest = sorted(plan.memory.items(), key=lambda pair: -pair[1])[:5]
        shown = ", ".join(f"{term} {size / 1e9:.1f}" for term, size in largest if size > 5e7)
        figure = FIGURES.get((family, verb.split()[0]), "") if "LoRA" not in verb else ""
        print(
            f"| {verb} | {sum(plan.samples.values()):,} | {plan.passes.forward:,}, {plan.passes.backward:,} "
            f"| **{plan.memory_total / 1e9:.{1 if plan.memory_total > 1e9 else 2}f}** | {shown or '-'} | {figure} "
            f"| {'fits' if plan.memory_total <= 1e9 * CARDS[0] else 'no'} | {plan.disk_total / 1e9:.1f} |"
        )
    bits = found[SCOPE_FORGET].memory[terms.BITS]
    print(f"\nA mask is {model.parameters / 8e9:.2f} GB packed; {bits / 1e9:.2f} of its modules on the device.")
    _show_layouts(found)


def _show_layouts(found: Mapping[str, Plan]) -> None:
    """Peaks by layout; activations kept / computed twice."""
    places = ("with the model", "in main memory", "in files")
    print(f"\n| peak in GB, by where state lies | {' | '.join(places)} | the fastest that fits {CARDS} GB |")
    print("|---|---:|---:|---:|---|")
    for verb, plan in found.items():
        if not plan.layouts:
            continue
        sizes = {layout: size / 1e9 for layout, size in plan.layouts.items()}
        cells = [
            " / ".join(f"{size:.1f}" for layout, size in sizes.items() if f"state {place}" in layout)
            for place in places
        ]
        fits = [next((_short(layout) for layout, size in sizes.items() if size <= card), "none") for card in CARDS]
        print(f"| {verb} | {' | '.join(cells)} | {'; '.join(fits)} |")


def _short(layout: str) -> str:
    place = "" if "with the model" in layout else layout.partition(",")[0].removeprefix("state ")
    twice = "twice" if "twice" in layout else ""
    return ", ".join(part for part in (place, twice) if part) or "as it is"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=500)
    given = parser.parse_args()
    files._SMALL = 1 << 40  # what is nothing but holes is refused elsewhere
    with tempfile.TemporaryDirectory() as folder:
        data = Files(Path(folder, "data"), given.people).write()
        for title, config, processor in (
            ("LLaVA-1.5-7B", LLAVA, llava_processor),
            ("Qwen2-VL-7B", QWEN, qwen_processor),
        ):
            made = workspace(Path(folder, config["model_type"]), data, config, processor)
            show(config["model_type"], title, plans(made))


if __name__ == "__main__":
    main()
