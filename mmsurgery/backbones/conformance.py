"""The checks that every backbone passes, on micro models that the kit has the backbone build itself.

def test_my_backbone(tmp_path):
    assert_conforms(my_plugin.backbone, tmp_path)
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsurgery.artifacts.checkpoint import CheckpointFiles, model_config
from mmsurgery.backbones import loading
from mmsurgery.backbones.protocol import Backbone
from mmsurgery.names import COMPONENTS, GROUPS

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

WORDS = ("What", "is", "the", "city", "food", "of", "this", "person", "?", "The", "lisbon", "soup", ".")
TOLERANCE = 1e-5
"""Largest relative difference of a loss between a batch and its samples alone."""
_SHOWN = 3


@dataclass(frozen=True)
class _Turn:
    id: str
    question: str
    answer: str
    seed: int | None = None
    """Seed of the picture; None for a text question."""
    width: int = 30

    @functools.cached_property
    def image(self) -> Image | None:
        import numpy as np
        from PIL import Image as pil

        if self.seed is None:
            return None
        pixels = np.random.default_rng(self.seed).integers(0, 256, (30, self.width, 3), dtype=np.uint8)
        return pil.fromarray(pixels)

    @property
    def image_sha256(self) -> str | None:
        return None if self.image is None else hashlib.sha256(f"{self.seed} {self.width}".encode()).hexdigest()


TURNS = (
    _Turn("short", "What city ?", "lisbon", seed=1),
    _Turn("text", "What is the city of the person ?", "The city is lisbon ."),
    _Turn("long", "What is the food of this person ?", "The food of this person is soup .", seed=2, width=40),
    _Turn("again", "What is this ?", "The person .", seed=1),
)
"""Pictures and text mixed, lengths and picture sizes mixed, one picture twice."""


def assert_conforms(backbone: Backbone, folder: Path) -> None:
    """Raise an AssertionError that lists what `check` found."""
    failures = check(backbone, folder)
    if failures:
        raise AssertionError(f"{type(backbone).__name__}: {len(failures)} failures\n  " + "\n  ".join(failures))


def check(backbone: Backbone, folder: Path) -> list[str]:
    """Everything that is wrong with a backbone, one line each, starting with the name of the check.

    Args:
        folder: an empty folder for the micro models (about 2 MB).
    """
    kit = _Kit(backbone, folder)
    checks: tuple[Callable[[], Iterator[str]], ...] = (
        kit.names,
        kit.groups,
        kit.targets,
        kit.layouts,
        kit.determinism,
        kit.labels,
        kit.cache,
        kit.padding,
        kit.prompts,
        kit.mllmu_prompts,
        kit.owners,
        kit.zero_gradients,
        kit.gradient_rules,
    )
    failures = []
    for each in checks:
        try:
            failures += [f"{each.__name__}: {failure}" for failure in each()]
        except Exception as error:  # what a backbone raises is what the kit reports
            failures.append(f"{each.__name__}: {type(error).__name__}: {error}")
    return failures


class _Kit:
    """One micro model, and the checks over it. B samples, T tokens, V vocabulary."""

    def __init__(self, backbone: Backbone, folder: Path) -> None:
        self.backbone, self.folder = backbone, folder

    @functools.cached_property
    def path(self) -> Path:
        path = self.folder / "micro"
        self.backbone.micro(path, WORDS, seed=0, size="tiny")
        return path

    @functools.cached_property
    def model(self) -> Any:
        return self.backbone.load_model(self.path)

    @functools.cached_property
    def processor(self) -> Any:
        return self.backbone.load_processor(self.path)

    def names(self) -> Iterator[str]:
        """Every parameter has an address; canonical names stay as they are, wrapped or not."""
        for name, _ in self.model.named_parameters():
            address = self.backbone.address(name)
            if address.group not in GROUPS or address.component not in COMPONENTS:
                yield f"{name} has the impossible address {address}"
            number = re.search(r"\.(\d+)\.", name)
            if address.layer is not None and (number is None or int(number[1]) != address.layer):
                yield f"{name} is said to be in layer {address.layer}"
            published = self.backbone.published(name)
            for wrapped in (name, published, f"module.{name}", f"base_model.model.{name}", f"_orig_mod.{name}"):
                if self.backbone.canonical(wrapped) != name:
                    yield f"canonical('{wrapped}') is '{self.backbone.canonical(wrapped)}'"
        skeleton = self.backbone.skeleton(model_config(self.path))
        yield from _differences("skeleton", dict(skeleton.named_parameters()), dict(self.model.named_parameters()))

    def groups(self) -> Iterator[str]:
        """Groups agree with the model's own accessors, and none is empty."""
        found = {name: self.backbone.address(name) for name, _ in self.model.named_parameters()}
        yield from loading.misplaced(self.model, found)
        for group in GROUPS:
            if not any(address.group == group for address in found.values()):
                yield f"no parameter is in group {group}"

    def targets(self) -> Iterator[str]:
        """LoRA targets are the linear layers of their group, the head left out."""
        from torch import nn

        linear = {name for name, module in self.model.named_modules() if isinstance(module, nn.Linear)}
        for group in GROUPS:
            pattern = self.backbone.linear_targets(group)
            expected = {
                name
                for name in linear
                if (address := self.backbone.address(f"{name}.weight")).group == group and address.component != "head"
            }
            matched = {name for name, _ in self.model.named_modules() if re.fullmatch(pattern, name)}
            for name in sorted(matched ^ expected)[:_SHOWN]:
                yield f"{group}: {name} is {'no linear layer of the group' if name in matched else 'left out'}"

    def layouts(self) -> Iterator[str]:
        """The micro model as written, loaded and re-saved, built from its config and saved, with
        in-memory names, and sharded: the same names, digest and values."""
        import torch

        reference = dict(self.model.named_parameters())
        digest = CheckpointFiles(self.path, self.backbone.canonical).digest()
        built = type(self.model)(self.model.config)
        built.load_state_dict(self.model.state_dict())
        folders = {"micro": self.path}
        saved: tuple[tuple[str, Any, dict[str, Any]], ...] = (
            ("resaved", self.model, {}),
            ("built", built, {}),
            ("memory", self.model, {"save_original_format": False}),
            ("sharded", self.model, {"max_shard_size": "40KB"}),
        )
        for layout, model, options in saved:
            folders[layout] = self.folder / layout
            with loading.quiet():
                model.save_pretrained(folders[layout], **options)
        for layout, folder in folders.items():
            files = CheckpointFiles(folder, self.backbone.canonical)
            yield from _differences(layout, dict.fromkeys(files.names), reference)
            if files.digest() != digest:
                yield f"{layout}: the digest differs from the published layout's"
            loaded = dict(self.backbone.load_model(folder).named_parameters())
            yield from _differences(layout, loaded, reference)
            for name in sorted(loaded.keys() & reference.keys()):
                if not torch.equal(loaded[name], reference[name]):
                    yield f"{layout}: {name} has other values after loading"

    def determinism(self) -> Iterator[str]:
        """A micro model's bytes depend on its seed alone."""
        again, other = self.folder / "again", self.folder / "other"
        self.backbone.micro(again, WORDS, seed=0, size="tiny")
        self.backbone.micro(other, WORDS, seed=1, size="tiny")
        for file in sorted(self.path.iterdir()):
            if file.read_bytes() != (again / file.name).read_bytes():
                yield f"{file.name} differs between two micro models of the same seed"
        canonical = self.backbone.canonical
        if CheckpointFiles(self.path, canonical).digest() == CheckpointFiles(other, canonical).digest():
            yield "micro models of two seeds have the same weights"

    def labels(self) -> Iterator[str]:
        """Labels are the answer and its end token, in batches of every kind."""
        tokenizer = self.processor.tokenizer
        for turns in (TURNS, TURNS[:1], TURNS[1:2], TURNS[::-1]):
            batch = self.backbone.collate(self.processor, turns)
            kept = batch["labels"] != -100
            if not bool((batch["labels"][kept] == batch["input_ids"][kept]).all()):
                yield "labels differ from the input ids they stand at"
            if bool((kept & (batch["attention_mask"] == 0)).any()):
                yield "padding is labelled"
            for turn, labels in zip(turns, batch["labels"], strict=True):
                text = tokenizer.decode(labels[labels != -100].tolist())
                if "".join(text.split()) != "".join((turn.answer + tokenizer.eos_token).split()):
                    yield f"sample {turn.id}: the labels read {text!r}, not {turn.answer!r} and the end token"
        if any(key.startswith("pixel") for key in self.backbone.collate(self.processor, TURNS[1:2])):
            yield "a batch without pictures has pixel values"

    def cache(self) -> Iterator[str]:
        """A cache changes nothing."""
        kept: dict[Any, Any] = {}
        for turns in (TURNS[2:], TURNS, TURNS[:2], TURNS):
            for what, build in (("collate", self.backbone.collate), ("prompts", self.backbone.prompts)):
                with_cache, without = build(self.processor, turns, cache=kept), build(self.processor, turns)
                if not _equal(with_cache, without):
                    yield f"{what} gives another batch with a cache"

    def padding(self) -> Iterator[str]:
        """A sample's loss is the same in a batch and alone, padded on either side."""
        for side in ("right", "left"):
            batch = self.backbone.collate(self.processor, TURNS, padding_side=side)
            together = _losses(self.model, batch)
            for turn, loss in zip(TURNS, together, strict=True):
                alone = _losses(self.model, self.backbone.collate(self.processor, [turn]))[0]
                if abs(loss - alone) > TOLERANCE * abs(alone):
                    yield f"sample {turn.id}: loss {loss:.7f} in a batch padded on the {side}, {alone:.7f} alone"

    def prompts(self) -> Iterator[str]:
        """Prompts end at the last position, hold no answer, and continue as they would alone."""
        import torch

        batch = self.backbone.prompts(self.processor, TURNS)
        if "labels" in batch:
            yield "prompts have labels"
        if not bool((batch["attention_mask"][:, -1] == 1).all()):
            yield "prompts are not padded on the left"
        with torch.no_grad():
            together = self.model(**batch).logits[:, -1]
            for turn, logits in zip(TURNS, together, strict=True):
                alone = self.backbone.prompts(self.processor, [turn])
                whole = self.backbone.collate(self.processor, [turn])["input_ids"][0]
                ids = alone["input_ids"][0]
                if len(ids) >= len(whole) or not torch.equal(ids[:-1], whole[: len(ids) - 1]):
                    yield f"sample {turn.id}: the prompt is not the beginning of the whole text"
                if not torch.allclose(logits, self.model(**alone).logits[0, -1], atol=TOLERANCE, rtol=TOLERANCE):
                    yield f"sample {turn.id}: the prompt is continued otherwise in a batch than alone"

    def mllmu_prompts(self) -> Iterator[str]:
        """The benchmark's prompts hold the question, and a placeholder where there is a picture."""
        for task, turn in itertools.product(("classification", "cloze", "generation"), TURNS[:2]):
            image = turn.seed is not None
            text = self.backbone.mllmu_prompt(self.processor, task, turn.question, image=image)
            if turn.question not in text or text.count(self.processor.image_token) != image:
                yield f"{task} of sample {turn.id} is asked as {text!r}"

    def owners(self) -> Iterator[str]:
        """Rows of vision and connector activations belong to the sample whose picture moves them."""
        import torch

        batch = self.backbone.collate(self.processor, TURNS)
        before = self._activations(batch)
        if not before:
            yield "no module of vision or connector ran"
        for position, turn in enumerate(TURNS):
            if turn.seed is None:
                continue
            changed = [*TURNS]
            changed[position] = _Turn(turn.id, turn.question, turn.answer, seed=99, width=turn.width)
            after = self._activations(self.backbone.collate(self.processor, changed))
            for name, activation in before.items():
                owners = self.backbone.row_owners(self.model.config, batch, name, len(activation))
                if owners.shape != activation.shape[:1]:
                    yield f"{name}: {tuple(owners.shape)} owners for {len(activation)} rows"
                    continue
                moved = (after[name] != activation).flatten(1).any(1)
                if not torch.equal(moved, owners == position):
                    yield f"{name}: the rows of sample {turn.id} are not those that its picture moves"

    def _activations(self, batch: Any) -> dict[str, torch.Tensor]:
        """Outputs of the vision and connector modules that hold parameters of their own."""
        import torch

        found: dict[str, torch.Tensor] = {}
        handles = []
        for name, module in self.model.named_modules():
            own = [f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False)]
            outside = all(self.backbone.address(parameter).group != "lm" for parameter in own)
            if own and outside and not isinstance(module, torch.nn.Embedding):

                def keep(_: Any, __: Any, output: torch.Tensor, name: str = name) -> None:
                    found[name] = output.detach()

                handles.append(module.register_forward_hook(keep))
        try:
            with torch.no_grad():
                self.model(**batch)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def zero_gradients(self) -> Iterator[str]:
        """Parameters said to have no true gradient have none beyond round-off (float64)."""
        import torch

        model: Any = self.backbone.load_model(self.path, dtype=torch.float64)
        batch = self.backbone.collate(self.processor, TURNS)
        model(**batch).loss.backward()
        for name, parameter in model.named_parameters():
            if self.backbone.no_true_gradient(name) and parameter.grad is not None:
                greatest = float(parameter.grad.abs().max())
                if greatest > 1e-9:
                    yield f"{name} is said to have no gradient, found {greatest:.2e}"

    def gradient_rules(self) -> Iterator[str]:
        """Summed over rows, `sample_gradients` are what autograd gives."""
        import torch

        rules = self.backbone.sample_gradients()
        found: dict[str, torch.Tensor] = {}
        model: Any = self.backbone.load_model(self.path)
        for name, module in model.named_modules():
            rule = rules.get(type(module).__name__)
            if rule is None:
                continue

            def watch(module: Any, inputs: Any, output: Any, name: str = name, rule: Any = rule) -> None:
                def apply(gradient: torch.Tensor) -> None:
                    for parameter, rows in rule(module, inputs, gradient).items():
                        found[f"{name}.{parameter}"] = rows.sum(0)

                output.register_hook(apply)

            module.register_forward_hook(watch)
        model(**self.backbone.collate(self.processor, TURNS)).loss.backward()
        parameters = dict(model.named_parameters())
        if rules and not found:
            yield f"no module is one of {', '.join(rules)}"
        for name, gradient in found.items():
            true = parameters[name].grad
            if true is None or not torch.allclose(gradient, true, rtol=1e-4, atol=1e-7):
                yield f"{name}: the rule's gradients do not add up to autograd's"


def _differences(what: str, found: dict[str, Any], expected: dict[str, Any]) -> Iterator[str]:
    for name in sorted(found.keys() ^ expected.keys())[:_SHOWN]:
        yield f"{what}: parameter {name} is {'not in the model' if name in found else 'missing'}"


def _equal(a: Any, b: Any) -> bool:
    import torch

    return bool(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a))


def _losses(model: Any, batch: Any) -> Sequence[float]:
    """Mean answer NLL of each sample, nats, `[B]`."""
    import torch

    with torch.no_grad():
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    losses: list[float] = (nll.sum(1) / (labels != -100).sum(1)).tolist()
    return losses
