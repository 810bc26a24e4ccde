"""Deliberately broken trainers through the public `apply`, and tampered models through `verify`: each is caught,
by the check and with the message that docs/fail_closed.md names; nothing is kept."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmsurgery.artifacts.checkpoint import CheckpointFiles, companions_sha256
from mmsurgery.artifacts.mask import Mask, MaskParameter, pack
from mmsurgery.artifacts.tensors import read_header, read_tensor, write_safetensors
from mmsurgery.backbones.discovery import backbone
from mmsurgery.backbones.loading import Loaded
from mmsurgery.errors import InternalError, MmsurgeryError
from mmsurgery.methods.mmunlearner import MMUnlearner
from mmsurgery.provenance import canonical_json, seal
from mmsurgery.settings import Settings
from mmsurgery.unlearn import loop
from mmsurgery.unlearn.apply import apply
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.unlearn.masked import MaskedUpdate, PackedBits
from mmsurgery.unlearn.masters import Selection
from mmsurgery.unlearn.objective import Unlearning
from mmsurgery.unlearn.plan import PROTOCOLS, StepPlan
from mmsurgery.unlearn.verify import verify
from mmsurgery.workspace import Workspace

PAGE = Path(__file__).parents[2] / "docs/fail_closed.md"
Patch = pytest.MonkeyPatch


@dataclass
class Place:
    """A workspace of a family with what tests change in it."""

    ws: Workspace
    family: str
    loaded: Loaded

    @property
    def mask(self) -> Mask:
        return Mask.load(self.ws.mask_path("default"))

    def write(self, mask: Mask) -> None:
        mask.write(self.ws.mask_path("default"))


@dataclass(frozen=True)
class Case:
    """One thing that is broken, and what catches it."""

    what: str
    breaks: Callable[[Place, Any], object]
    check: str
    """What catches it, in words."""
    error: str
    """Class of `mmsurgery.errors`."""
    message: str
    """With … where names and numbers differ."""
    options: tuple[str, ...] = ("all", "forget")
    """Scopes, or `lora`, in which it is a fault; in the others it is none, or another row's."""
    families: tuple[str, ...] = ("llava", "qwen2_vl")

    def matches(self, text: str) -> bool:
        """What an error says; the step that every error of our own ends with is not part of the table."""
        said = text.removesuffix(f" - next: {InternalError.usual_step}")
        return re.fullmatch(".*".join(map(re.escape, self.message.split("…"))), said) is not None


# trainers


def drop(patch: Patch, owner: Any, name: str) -> None:
    patch.setattr(owner, name, lambda self, *arguments: None)


def wrong_names(place: Place, patch: Patch) -> None:
    """The trainer looks its bits up under wrapped names, finds none, and goes on."""
    whole_tensors(patch)
    build = MaskedUpdate.__init__
    patch.setattr(MaskedUpdate, "__init__", lambda self, *a, **o: (build(self, *a, **o), self._bits.clear())[-1])


def whole_tensors(patch: Patch) -> list[MaskedUpdate]:
    """The optimizer is given all weights of the mask's modules in scope `all`, too.

    Returns:
        The updates that are built, as they are.
    """
    built, updates = MaskedUpdate.__init__, list[MaskedUpdate]()

    def build(self: MaskedUpdate, model: Any, mask: Mask | None, *, strict: bool = False, **options: Any) -> None:
        built(self, model, mask, **options)
        updates.append(self)

    patch.setattr(MaskedUpdate, "__init__", build)
    return updates


def before_clipping(patch: Patch, do: Callable[[dict[str, torch.nn.Parameter]], object]) -> None:
    """Something is done to the gradient after all terms."""
    clip = loop._clip
    patch.setattr(loop, "_clip", lambda trainable, *rest: (do(trainable), clip(trainable, *rest))[1])


def inverted(place: Place, patch: Patch) -> None:
    """Exactly the weights that the mask keeps are moved (xzz81/MMUnlearner's port)."""
    clear, restore, select = PackedBits.clear_outside, PackedBits.restore_outside, Selection.__init__

    def complement(bits: PackedBits) -> PackedBits:
        return PackedBits(~bits.bits, bits.numel)

    def others(self: Selection, bits: np.ndarray, numel: int, device: torch.device) -> None:
        select(self, pack(np.unpackbits(bits, bitorder="little")[:numel] == 0), numel, device)

    patch.setattr(Selection, "__init__", others)

    patch.setattr(PackedBits, "clear_outside", lambda self, values: clear(complement(self), values))
    patch.setattr(PackedBits, "restore_outside", lambda self, v, original: restore(complement(self), v, original))


def decay_on_frozen(place: Place, patch: Patch) -> None:
    """Everything is trained; outside the mask's modules the gradient is zero, and AdamW decays the weights."""
    named: list[str] = []
    built, forget = MaskedUpdate.__init__, MaskedUpdate.mask_forget_gradient

    def build(self: MaskedUpdate, model: Any, mask: Mask | None, **options: Any) -> None:
        built(self, model, mask, **options)
        named.extend(self.trainable)
        model.requires_grad_(True)
        self.trainable = {**dict(model.named_parameters()), **self.trainable}

    def clear(trainable: dict[str, torch.nn.Parameter]) -> None:
        for name, parameter in trainable.items():
            if name not in named and parameter.grad is not None:
                parameter.grad.zero_()

    patch.setattr(MaskedUpdate, "__init__", build)
    patch.setattr(MaskedUpdate, "mask_forget_gradient", lambda self: (forget(self), clear(self.trainable)))
    before_clipping(patch, clear)
    decay(place)


def frozen_in_memory(place: Place, patch: Patch) -> None:
    """A frozen weight drifts while others are trained; the file has it from the start."""
    models: list[Any] = []
    built, restore = MaskedUpdate.__init__, MaskedUpdate.restore

    def build(self: MaskedUpdate, model: Any, mask: Mask | None, **options: Any) -> None:
        models.append(model)
        built(self, model, mask, **options)

    def drift(self: MaskedUpdate) -> None:
        restore(self)
        next(p for n, p in models[0].named_parameters() if n not in self.trainable).data.mul_(0.99)

    patch.setattr(MaskedUpdate, "__init__", build)
    patch.setattr(MaskedUpdate, "restore", drift)


def decay(place: Place) -> None:
    object.__setattr__(place.ws.settings, "recipe", replace(place.ws.settings.recipe, weight_decay=0.1))


def momentum_leak(place: Place, patch: Patch) -> None:
    """The first step's moments hold the whole gradient; later gradients are masked, updates are not."""
    updates, calls = whole_tensors(patch), iter(range(100))
    before_clipping(patch, lambda _: updates[0].mask_forget_gradient() if next(calls) else None)


def gradient_only(place: Place, patch: Patch) -> None:
    """`grad = 0` taken for `update = 0`: AdamW's weight decay moves what has no gradient."""
    updates = whole_tensors(patch)
    before_clipping(patch, lambda _: updates[0].mask_forget_gradient())
    decay(place)


def merged_whole(place: Place, patch: Patch) -> None:
    """LoRA's product is merged as it is."""
    drop(patch, PackedBits, "restore_outside")


def swallowed_term(place: Place, patch: Patch) -> None:
    """try: forget step; except Exception: pass."""
    terms = MMUnlearner.terms

    def only_retain(self: MMUnlearner, step: Any) -> Iterator[Any]:
        yield from (term for term in terms(self, step) if term.kind != "forget")

    patch.setattr(MMUnlearner, "terms", only_retain)


def swallowed_backward(place: Place, patch: Patch) -> None:
    """The forget loss is computed and logged; its backward pass dies unseen."""
    backward = Unlearning._backward

    def swallow(self: Unlearning, term: Any, number: int) -> float:
        return float(term.loss.detach()) if term.kind == "forget" else backward(self, term, number)

    patch.setattr(Unlearning, "_backward", swallow)


def swallowed_silently(place: Place, patch: Patch) -> None:
    """The same, and its loss is logged as zero."""
    backward = Unlearning._backward
    patch.setattr(Unlearning, "_backward", lambda s, term, n: 0.0 if term.kind == "forget" else backward(s, term, n))


def swallowed_step(place: Place, patch: Patch) -> None:
    """One step of all fails and is skipped."""
    accumulate = Unlearning.__call__

    def skip(self: Unlearning, number: int) -> dict[str, float]:
        losses = accumulate(self, number)
        return {"retain": losses["retain"]} if number == 2 else losses

    patch.setattr(Unlearning, "__call__", skip)


def retain_only(place: Place, patch: Patch) -> None:
    """The plan has retain batches alone: fine-tuning."""
    real = PROTOCOLS["equations"]
    patch.setitem(PROTOCOLS, "equations", lambda *a, **o: [StepPlan((), step.retain) for step in real(*a, **o)])


def no_update(place: Place, patch: Patch) -> None:
    """The optimizer holds parameters of a copy."""

    def copies(trainable: Any, optimisation: Any) -> Any:
        return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])

    patch.setattr(loop, "_optimizer", copies)


def not_a_number(place: Place, patch: Patch) -> None:
    """One value of the gradient is NaN."""

    def spoil(trainable: dict[str, torch.nn.Parameter]) -> None:
        gradient = trainable["model.language_model.layers.0.mlp.up_proj.weight"].grad
        assert gradient is not None
        gradient.view(-1)[0] = torch.nan

    before_clipping(patch, spoil)


def not_a_number_last(place: Place, patch: Patch) -> None:
    """A weight is NaN after the last step."""
    trained = MaskedUpdate.trained

    def spoil(self: MaskedUpdate) -> Any:
        name = "model.language_model.layers.0.mlp.up_proj.weight"
        return {**trained(self), name: lambda array, dtype: np.full_like(array, np.nan)}

    patch.setattr(MaskedUpdate, "trained", spoil)


# masks


def changed(mask: Mask, bits: dict[str, np.ndarray]) -> Mask:
    new = {name: replace(mask.parameters[name], bits=pack(values)) for name, values in bits.items()}
    return replace(mask, parameters={**mask.parameters, **new})


def only(mask: Mask, wanted: Callable[[str], bool]) -> Mask:
    """The mask with nothing selected but what is wanted, all of it."""
    return changed(mask, {n: np.full(p.shape, wanted(n)) for n, p in mask.parameters.items()})


def mask_of_wrong_names(place: Place, patch: Patch) -> None:
    mask = place.mask
    place.write(replace(mask, parameters={f"base_model.{n}": p for n, p in mask.parameters.items()}))


def mask_of_other_shapes(place: Place, patch: Patch) -> None:
    mask = place.mask
    name = mask.names[0]
    other = MaskParameter((3,), mask.addresses[name], pack(np.ones(3, bool)))
    place.write(replace(mask, parameters={**mask.parameters, name: other}))


def mask_of_another_model(place: Place, patch: Patch) -> None:
    place.write(replace(place.mask, base={"model_type": place.family, "model_sha256": "0" * 64}))


def mask_of_another_split(place: Place, patch: Patch) -> None:
    parent = {"kind": "saliency", "part": "forget_vqa", "data_sha256": "0" * 64, "units": 4}
    place.write(replace(place.mask, parents=(parent,)))


def mask_of_nothing(place: Place, patch: Patch) -> None:
    place.write(only(place.mask, lambda name: False))


def mask_without_gradient(place: Place, patch: Patch) -> None:
    """It selects but the embedding of a word that no sample has (the head is not tied to it)."""
    name = "model.language_model.embed_tokens.weight"
    mask = place.mask
    rows = np.zeros(mask.parameters[name].shape, bool)
    rows[1] = True  # <unk>
    place.write(changed(only(mask, lambda name: False), {name: rows}))


def mask_of_norms(place: Place, patch: Patch) -> None:
    place.write(only(place.mask, lambda name: name.endswith("norm.weight") and "language_model" in name))


OUTSIDE = "the audit of 'broken' failed, nothing is kept: …: … weights outside the mask moved"
WITNESS = "step 1: the forget term reaches … weights of … outside the mask; nothing is kept"
AUDIT = "the audit of the saved files, against base and mask, bit by bit"
GRADIENT = "the first forget gradient, held against the mask's own bits"
BEFORE = "mask and model compared, before any weight is loaded"
REACH = "every forget step's gradient inside the mask"
FINITE = "every loss, every gradient's norm, every saved value"

TRAINERS = [
    Case("mask keyed on wrong names in the trainer", wrong_names, AUDIT, "InternalError", OUTSIDE, ("all",)),
    Case("mask keyed on wrong names in the trainer", wrong_names, GRADIENT, "InternalError", WITNESS, ("forget",)),
    Case("inverted mask", inverted, AUDIT, "InternalError", OUTSIDE, ("all", "lora")),
    Case(
        "inverted mask",
        inverted,
        REACH,
        "UnusableData",
        "step 1: the forget loss has no gradient inside the mask (samples …) - next: mask or train other modules",
        ("forget",),
    ),
    Case(
        "weight decay on frozen weights",
        decay_on_frozen,
        AUDIT,
        "InternalError",
        "the audit of 'broken' failed, nothing is kept: …: … weights of a frozen parameter moved",
    ),
    Case(
        "frozen weights that drift in memory",
        frozen_in_memory,
        "sums of all frozen weights' bits, before and after training",
        "InternalError",
        "… is frozen and moved in memory: what was trained is not what is saved",
    ),
    Case("momentum leak", momentum_leak, AUDIT, "InternalError", OUTSIDE, ("all",)),
    Case("gradient masked, update not", gradient_only, AUDIT, "InternalError", OUTSIDE, ("all",)),
    Case("LoRA merged without projection", merged_whole, AUDIT, "InternalError", OUTSIDE, ("lora",)),
    Case(
        "swallowed forget step: no term",
        swallowed_term,
        "the terms of every step, against its plan",
        "UsageError",
        "method mmunlearner yields no forget term for step 1 - next: …",
        ("all", "forget", "lora"),
    ),
    Case(
        "swallowed forget step: no gradient",
        swallowed_backward,
        REACH,
        "UnusableData",
        "step 1: the forget loss has no gradient inside the mask (samples …) - next: mask or train other modules",
        ("all", "forget", "lora"),
    ),
    Case(
        "swallowed forget step: no gradient, loss logged as zero",
        swallowed_silently,
        "the losses of all steps",
        "UnusableData",
        "the forget loss was zero in every step; nothing is kept - next: check method and forget set",
        ("all", "forget", "lora"),
    ),
    Case(
        "swallowed forget step: one of all",
        swallowed_step,
        "steps done counted against steps planned",
        "InternalError",
        "steps planned 4 {'forget': 4, 'retain': 4}, done 4 {'forget': 3, 'retain': 4}; nothing is kept",
        ("all", "forget", "lora"),
    ),
    Case(
        "retain-only training",
        retain_only,
        "forget samples of the plan counted against the forget set",
        "InternalError",
        "the plan has 0 of 8 forget samples in it; nothing was trained",
        ("all", "forget", "lora"),
    ),
    Case(
        "optimizer over other parameters",
        no_update,
        AUDIT,
        "UnusableData",
        "none of the … weights inside the mask moved, as it is saved; nothing is kept - next: raise --learning-rate",
        ("all", "forget", "lora"),
    ),
    Case(
        "NaN in a gradient",
        not_a_number,
        FINITE,
        "UnusableData",
        "step 1: the gradient of model.language_model.layers.0.mlp.up_proj.weight is not finite (samples …) - next: …",
    ),
    Case(
        "NaN in a weight after the last step",
        not_a_number_last,
        FINITE,
        "UnusableData",
        "model.language_model.layers.0.mlp.up_proj.weight is not finite as F32; nothing is kept - next: …",
    ),
]

MASKS = [
    Case(
        "mask keyed on wrong names",
        mask_of_wrong_names,
        BEFORE,
        "Mismatch",
        "the mask does not fit the model in … parameters: …: mask …, model none; … - next: mmsurgery mask",
        ("all", "forget", "lora"),
    ),
    Case(
        "mask of other shapes",
        mask_of_other_shapes,
        BEFORE,
        "Mismatch",
        "the mask does not fit the model in 1 parameters: …: mask [3], model … - next: mmsurgery mask",
        ("all", "forget", "lora"),
    ),
    Case(
        "mask of another model",
        mask_of_another_model,
        BEFORE,
        "Mismatch",
        "mask 'default' was built for weights 00000000, model 'vanilla' has … - next: build it again: mmsurgery mask",
        ("all", "forget", "lora"),
    ),
    Case(
        "mask of another split",
        mask_of_another_split,
        BEFORE,
        "Mismatch",
        "mask 'default' was built from another forget set, …, than the workspace has now, … - next: …",
        ("all", "forget", "lora"),
    ),
    Case(
        "mask that selects nothing",
        mask_of_nothing,
        BEFORE,
        "UnusableData",
        "the mask selects 0 of the … weights of lm,connector - next: lower --beta, or name other --modules",
        ("all", "forget", "lora"),
    ),
    Case(
        "mask of weights beyond LoRA",
        mask_of_norms,
        BEFORE,
        "UnusableData",
        "LoRA has nothing to train: no weight of a linear layer in lm,connector selected - next: …",
        ("lora",),
    ),
    Case(
        "mask of weights that no forget sample uses",
        mask_without_gradient,
        REACH,
        "UnusableData",
        "step 1: the forget loss has no gradient inside the mask (samples …) - next: mask or train other modules",
        families=("llava",),
    ),
]


# models


def reseal(folder: Path, **changes: Any) -> None:
    """Make the record fit the files again, as somebody would who knows how."""
    path = folder / "mmsurgery-run.json"
    record = json.loads(path.read_text())
    family = backbone(record["model_type"])
    path.unlink()
    identity = {
        "model_sha256": CheckpointFiles(folder, family.canonical).digest(),
        "companions_sha256": companions_sha256(folder),
    }
    path.write_bytes(canonical_json(seal({**record, **identity, **changes})))


def edit(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change stored tensors, by canonical name, in place."""
    path = folder / "model.safetensors"
    header, family = read_header(path), backbone(json.loads((folder / "config.json").read_text())["model_type"])
    stored = {name: read_tensor(path, info).copy() for name, info in header.tensors.items()}
    change({family.canonical(name): array for name, array in stored.items()})
    write_safetensors(path, stored, header.metadata)


NORM = "model.language_model.layers.0.mlp.up_proj.weight"


def flip(place: Place, folder: Path, name: str, *, inside: bool = False) -> None:
    index = int(np.flatnonzero(place.mask[name].reshape(-1) == inside)[0])

    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[name].reshape(-1).view(np.uint32)[index] ^= 1

    edit(folder, change)


def frozen(place: Place) -> str:
    return next(name for name in place.mask.names if place.mask.addresses[name].group == "vision")


def flipped(place: Place, folder: Path) -> None:
    flip(place, folder, NORM, inside=True)


def flipped_outside(place: Place, folder: Path) -> None:
    flip(place, folder, NORM)
    reseal(folder)


def flipped_frozen(place: Place, folder: Path) -> None:
    flip(place, folder, frozen(place))
    reseal(folder)


def put_back(place: Place, folder: Path) -> None:
    shutil.copy(place.ws.model_dir("vanilla") / "model.safetensors", folder)
    reseal(folder)


def spoiled(place: Place, folder: Path) -> None:
    edit(folder, lambda arrays: arrays[NORM].fill(np.nan))
    reseal(folder)


def record_changed(place: Place, folder: Path) -> None:
    path = folder / "mmsurgery-run.json"
    path.write_bytes(path.read_bytes().replace(b'"claim":"m', b'"claim":"n'))


def claims_less(place: Place, folder: Path) -> None:
    flip(place, folder, frozen(place))
    reseal(folder, claim="none")


def steps_missing(place: Place, folder: Path) -> None:
    reseal(folder, steps={"planned": 4, "done": 4, "forget": 0, "retain": 4})


def steps_short(place: Place, folder: Path) -> None:
    reseal(folder, steps={"planned": 4, "done": 3, "forget": 3, "retain": 3})


def config_changed(place: Place, folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_cache": False}))


def mask_exchanged(place: Place, folder: Path) -> None:
    place.write((~place.mask).restrict("lm,connector"))


def start_exchanged(place: Place, folder: Path) -> None:
    flip(place, place.ws.model_dir("vanilla"), NORM)


def mask_gone(place: Place, folder: Path) -> None:
    place.ws.mask_path("default").unlink()


RECORD, IDENTITY = "the record's seal", "digests of weights and companion files, in the record"
CHAIN = "digests of start and mask, in the record"
REFUSED = "the weights of model 'sound' are not those its run wrote - next: …"

MODELS = [
    Case("a bit flipped, even inside the mask", flipped, IDENTITY, "InputRefused", REFUSED),
    Case(
        "a bit flipped outside the mask, record made to fit",
        flipped_outside,
        AUDIT,
        "",
        NORM + ": 1 weights outside the mask moved",
        ("all",),
    ),
    Case(
        "a bit of a frozen module flipped, record made to fit",
        flipped_frozen,
        AUDIT,
        "",
        "…: 1 weights of a frozen parameter moved",
    ),
    Case(
        "the start's weights put back, record made to fit",
        put_back,
        AUDIT,
        "",
        "none of the … weights inside the mask moved",
    ),
    Case("NaN, record made to fit", spoiled, FINITE, "", NORM + " holds NaN or infinite values"),
    Case(
        "record edited",
        record_changed,
        RECORD,
        "InputRefused",
        "… was changed or damaged after it was written - next: …",
    ),
    Case(
        "claim weakened, record made to fit",
        claims_less,
        "claim against scope and mask",
        "",
        "the record claims less than scope … under a mask: 'none'",
    ),
    Case("forget steps lost, record made to fit", steps_missing, "steps of the record", "", "no forget step was done"),
    Case("steps lost, record made to fit", steps_short, "steps of the record", "", "3 of 4 planned steps were done"),
    Case(
        "configuration edited",
        config_changed,
        IDENTITY,
        "InputRefused",
        "configuration or processor of model 'sound' are not those its run wrote - next: …",
    ),
    Case(
        "mask exchanged",
        mask_exchanged,
        CHAIN,
        "Mismatch",
        "mask 'default' has changed since 'sound' was made with it …",
    ),
    Case(
        "start exchanged",
        start_exchanged,
        CHAIN,
        "Mismatch",
        "model 'vanilla' has changed since 'sound' was made from it …",
    ),
    Case("mask lost", mask_gone, CHAIN, "MissingArtifact", "mask 'default', which 'sound' was made with, is gone …"),
]


# the tests


def runs(cases: list[Case]) -> list[Any]:
    return [
        pytest.param(case, option, family, id=f"{case.what}-{option}-{family}")
        for case in cases
        for option in case.options
        for family in case.families
    ]


@pytest.fixture
def place(
    request: pytest.FixtureRequest, tmp_path: Path, tiny: Any, family: str, random_mask: Callable[..., Mask]
) -> Place:
    """A workspace with vanilla model and a mask `default` of half of lm and connector."""
    ws = Workspace(tmp_path, Settings(recipe=tiny.recipe))
    shutil.copytree(request.getfixturevalue(f"tiny_{family}"), ws.model_dir("vanilla"))
    loaded = request.getfixturevalue(f"loaded_{family}")
    random_mask(loaded, "lm,connector").write(ws.mask_path("default"))
    return Place(ws, family, loaded)


def run(place: Place, option: str, name: str) -> Any:
    choice: dict[str, Any] = {"lora": LoRA(rank=4)} if option == "lora" else {"scope": option}
    return apply(place.ws, "mmunlearner", mask="default", name=name, **choice)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("option", ["all", "forget", "lora"])
def test_the_real_trainer_passes(place: Place, option: str) -> None:
    run(place, option, "sound")
    assert verify(place.ws, "sound").ok


@pytest.mark.parametrize(("case", "option", "family"), runs([*TRAINERS, *MASKS]))
def test_a_broken_trainer_is_caught(place: Place, case: Case, option: str, monkeypatch: Patch) -> None:
    case.breaks(place, monkeypatch)
    with pytest.raises(MmsurgeryError) as caught:
        run(place, option, "broken")
    assert type(caught.value).__name__ == case.error
    assert case.matches(str(caught.value)), str(caught.value)
    assert place.ws.models() == ["vanilla"]
    assert not place.ws.model_dir("broken").exists()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Place, str], Path]:
    """`sound(place, option)`: a model `sound` in the place, trained once for all tests."""
    made: dict[tuple[str, str], Path] = {}

    def put(place: Place, option: str) -> Path:
        key = place.family, option
        if key not in made:
            made[key] = tmp_path_factory.mktemp("sound") / "sound"
            shutil.copytree(run(place, option, "sound").path, made[key])
        else:
            shutil.copytree(made[key], place.ws.model_dir("sound"))
        return place.ws.model_dir("sound")

    return put


@pytest.mark.parametrize(("case", "option", "family"), runs(MODELS))
def test_a_tampered_model_is_caught(place: Place, case: Case, option: str, sound: Callable[[Place, str], Path]) -> None:
    case.breaks(place, sound(place, option))
    if case.error:
        with pytest.raises(MmsurgeryError) as caught:
            verify(place.ws, "sound")
        assert type(caught.value).__name__ == case.error
        assert case.matches(str(caught.value)), str(caught.value)
        return
    proof = verify(place.ws, "sound")
    assert not proof.ok
    assert any(map(case.matches, proof.faults)), proof.faults


# the page


def table(cases: list[Case], claim: str) -> str:
    lines = [f"| {claim} | in | what catches it | message |", "|---|---|---|---|"]
    for case in cases:
        options = ", ".join("LoRA" if option == "lora" else f"scope {option}" for option in case.options)
        message = f"{case.error}: {case.message}" if case.error else case.message
        lines.append(f"| {case.what} | {options} | {case.check} | `{message}` |")
    return "\n".join(lines)


def page() -> str:
    parts = {
        "## Trainers": table(TRAINERS, "broken trainer"),
        "## Masks": table(MASKS, "wrong mask"),
        "## Models": table(MODELS, "tampered model"),
    }
    text = PAGE.read_text()
    head = text[: text.index("## Trainers")]
    tail = text[text.index("## What") :]
    return head + "".join(f"{title}\n\n{rows}\n\n" for title, rows in parts.items()) + tail


def test_the_page_says_what_is_tested_here() -> None:
    """`python tests/unlearn/test_broken_trainers.py` writes the tables."""
    assert PAGE.read_text() == page()


if __name__ == "__main__":
    PAGE.write_text(page())
