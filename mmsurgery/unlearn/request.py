"""What `apply` is asked for, and everything that determines the run: checked before any weight is loaded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmsurgery.artifacts.checkpoint import CheckpointFiles, companions_sha256, model_config
from mmsurgery.artifacts.mask import Mask
from mmsurgery.backbones.discovery import backbone
from mmsurgery.backbones.protocol import Backbone
from mmsurgery.data.anchors import ANCHORS
from mmsurgery.data.benchmark import benchmark, source_of
from mmsurgery.data.leakage import check_overlap
from mmsurgery.data.samples import Sample, data_sha256
from mmsurgery.errors import InternalError, Mismatch, MissingArtifact, UnusableData, UsageError, unknown
from mmsurgery.methods.base import Method
from mmsurgery.methods.registry import method as find_method
from mmsurgery.names import check_artifact_name
from mmsurgery.provenance import provenance
from mmsurgery.recipes.recipe import PRECISIONS
from mmsurgery.settings import RecipeSettings, check_seed
from mmsurgery.unlearn.beside import beside_of
from mmsurgery.unlearn.deletions import earlier_requests
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.unlearn.masked import check_fit
from mmsurgery.unlearn.method_settings import recipe_of, with_settings
from mmsurgery.unlearn.plan import PROTOCOLS, StepPlan
from mmsurgery.unlearn.record import SCRATCH, mask_identity
from mmsurgery.workspace import Workspace

SCOPES = ("forget", "all")
REFERENCES = ("vanilla", "reference")
FORGET, RETAIN = "forget_vqa", "retain_vqa"
"""Data parts that are unlearned and kept."""
TRAINED = ("base", "vanilla", "gold", "reference", SCRATCH)
"""Models that are trained, never unlearned."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `apply`, with the recipe they change."""

    name: str
    """Of the model to be made."""
    method: Method
    mask: str | None
    scope: str | None
    """None for the default: `all` with masked LoRA, else `forget`."""
    protocol: str
    lora: LoRA | None
    start: str
    reference: str
    forget_weight: float
    retain_batch: int | None
    eval_every: int
    steps: int | None
    """Steps of the plan that are done; all where None."""
    anchors: Path | None = None
    """Folder of anchor pictures; the benchmark's own where None."""
    recipe: RecipeSettings

    @classmethod
    def of(
        cls,
        workspace: Workspace,
        method: str,
        *,
        name: str | None,
        mask: str | None,
        learning_rate: float | None,
        batch_size: int | None,
        retain_batch: int | None,
        epochs: int | None,
        seed: int | None,
        precision: str | None,
        forget_weight: float,
        settings: Mapping[str, Any],
        **others: Any,
    ) -> Request:
        """What `apply` with these arguments asks for: the method's mask where it needs one, the workspace's recipe
        with what the method runs best with and what is given instead, a name made of method and mask; checked.

        Raises:
            UsageError: for an unknown method, or an argument that is wrong or has no meaning for the method.
        """
        found = with_settings(find_method(method), settings)
        if mask is None and found.requires_mask:
            mask = "default"
        given: dict[str, Any] = {
            "learning_rate": learning_rate,
            "batch_size": batch_size,
            "epochs": epochs,
            "seed": seed,
            "precision": precision,
        }
        recipe = recipe_of(found.budget, workspace.settings.recipe)
        recipe = dataclasses.replace(recipe, **{key: value for key, value in given.items() if value is not None})
        if retain_batch is None and found.budget is not None and found.uses_retain:
            retain_batch = found.budget.retain_batch
        name = check_artifact_name(name or ".".join(part for part in (found.name, mask) if part))
        others |= {"retain_batch": retain_batch, "forget_weight": float(forget_weight)}
        request = cls(name=name, method=found, mask=mask, recipe=recipe, **others)
        request._check()
        return request

    def _check(self) -> None:
        check_seed(self.recipe.seed)
        if self.recipe.precision not in PRECISIONS:
            raise unknown("precision", self.recipe.precision, PRECISIONS)
        if self.scope is not None and self.scope not in SCOPES:
            raise unknown("scope", self.scope, SCOPES)
        if self.protocol not in PROTOCOLS:
            raise unknown("protocol", self.protocol, PROTOCOLS)
        if self.reference not in REFERENCES:
            raise unknown("reference model", self.reference, REFERENCES)
        if self.reference != "vanilla" and not self.takes_reference:
            raise UsageError(f"method {self.method.name} takes no reference model", "leave --reference out")
        if self.scope == "all" and self.mask is None:
            raise UsageError("scope all is about a mask, and none is given", "pass --mask, or leave --scope out")
        if self.protocol != "equations" and self.method.beside():
            raise UsageError(f"method {self.method.name} takes all its terms in one step", "leave --protocol out")
        if self.anchors is not None and not self.takes_anchors:
            raise UsageError(f"method {self.method.name} takes no anchor pictures", "leave --anchors out")
        if self.retain_batch is not None and not self.method.uses_retain:
            raise UsageError(f"method {self.method.name} takes no retain data", "leave --retain-batch out")
        if self.lora is not None:
            self._check_lora(self.lora)
        if self.name in TRAINED or self.name == self.start:
            raise UsageError(f"an unlearned model cannot be named '{self.name}'", "choose another --name")
        limits = {
            "forget weight": (self.forget_weight, 0, math.inf),
            "learning rate": (self.recipe.learning_rate, 0, 1),
            "epochs": (self.recipe.epochs, 0, math.inf),
            "batch size": (self.recipe.batch_size, 0, math.inf),
            "retain batch": (self.retain_size, 0, math.inf),
            "eval every": (self.eval_every, -1, math.inf),
            "steps": (1 if self.steps is None else self.steps, 0, math.inf),
        }
        for what, (value, above, below) in limits.items():
            if not above < value < below:
                raise UsageError(f"{what} is {value}, should be above {above}", f"change --{what.replace(' ', '-')}")

    def _check_lora(self, lora: LoRA) -> None:
        lora.check()
        if self.mask is not None and self.scope == "forget":
            raise UsageError(
                "a mask under LoRA acts on the weights themselves, in every step: it has scope all",
                "leave --scope out, or train without LoRA",
            )
        if self.mask is not None and lora.modules != LoRA.modules:
            raise UsageError("a mask brings its own modules", "leave --lora-modules out")

    @property
    def reach(self) -> str:
        """The scope, or its default."""
        return self.scope or ("all" if self.mask is not None and self.lora is not None else "forget")

    @property
    def retain_size(self) -> int:
        """Samples of a retain batch."""
        return self.recipe.batch_size if self.retain_batch is None else self.retain_batch

    def begun(self, plan: list[StepPlan]) -> list[StepPlan]:
        """The steps of a plan that are done.

        Raises:
            UsageError: if it has fewer than are asked for.
        """
        if self.steps is not None and self.steps > len(plan):
            raise UsageError(
                f"{self.steps:,} steps are asked for, {self.recipe.epochs} epochs have {len(plan):,}",
                "pass more --epochs, or fewer --steps",
            )
        return plan[: self.steps]

    @property
    def low(self) -> bool:
        """Whether the model computes in bfloat16."""
        return self.recipe.precision == "bf16"

    @property
    def takes_reference(self) -> bool:
        return "forget_logprob" in self.method.references

    @property
    def needs_vanilla(self) -> bool:
        return "retain_distribution" in self.method.references

    @property
    def takes_anchors(self) -> bool:
        return ANCHORS in self.method.beside() or "stranger_distribution" in self.method.references

    @property
    def asks_vanilla(self) -> bool:
        """Whether the vanilla model's outputs are part of the run."""
        outputs = {"retain_distribution", "forget_distribution", "stranger_distribution"}
        return bool(self.method.references & outputs or self.method.beside())

    @property
    def strict(self) -> bool:
        """Whether nothing outside the mask may move: also where no retain term could move it."""
        return self.mask is not None and (self.reach == "all" or not self.method.uses_retain)

    @property
    def claim(self) -> str:
        """What the run promises, a key of `record.CLAIMS`."""
        return "none" if self.mask is None else "mask" if self.strict else "modules"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A request with the model, mask and data it is about."""

    workspace: Workspace
    request: Request
    files: CheckpointFiles
    """The model to start from."""
    family: Backbone
    mask: Mask | None
    forget: Sequence[Sample]
    retain: Sequence[Sample]
    """Empty for a method without retain data; without the people that earlier models of the chain forgot."""
    earlier: Mapping[str, int]
    """Model of the chain -> retain samples of people that it forgot, which are left out."""
    targets: Sequence[str]
    """Weights that get a LoRA adapter; empty without LoRA."""
    beside: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    """What the method sees besides, by name (see `Method.beside`), and anchors where it needs what is said of them."""
    forgotten: Sequence[Sample] = ()
    """The whole forget set, of which `forget` may be a part."""
    scored_text: int = 0
    """Text samples among `beside` that are scored, too."""

    @property
    def vanilla_sha256(self) -> str:
        return _digest(self.workspace, "vanilla", self.family)

    def plan(self) -> list[StepPlan]:
        """The run's steps.

        Raises:
            UnusableData: if a set is smaller than its batch.
            UsageError: if they are too many.
            InternalError: if the protocol leaves out a forget sample.
        """
        recipe = self.request.recipe
        plan = PROTOCOLS[self.request.protocol](
            self.forget,
            self.retain,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            retain_batch=self.request.retain_size,
            seed=recipe.seed,
        )
        due, planned = recipe.epochs * len(self.forget), sum(len(step.forget) for step in plan)
        if planned != due:
            raise InternalError(f"the plan has {planned} of {due} forget samples in it; nothing was trained")
        return self.request.begun(plan)

    def provenance(self) -> dict[str, Any]:
        """Settings and inputs; the key over them tells runs apart. How memory is used is none of them."""
        request = self.request
        settings = {
            "method": request.method.name,
            "method_settings": request.method.settings(),
            "protocol": request.protocol,
            "scope": request.reach,
            "start": request.start,
            "reference": request.reference if request.takes_reference else None,
            "forget_weight": request.forget_weight,
            "retain_batch": request.retain_size if request.method.uses_retain else None,
            "eval_every": request.eval_every,
            **dataclasses.asdict(request.recipe),
        }
        if not request.low:  # as it was before there was another
            del settings["precision"]
        if request.steps is not None:
            settings["steps"] = request.steps
        if request.lora is not None:
            settings["lora"] = dataclasses.asdict(request.lora)
        inputs: dict[str, Any] = {
            "start": self.files.digest(),
            "processor": companions_sha256(self.files.path),
            "forget": data_sha256(self.forget),
            "retain": data_sha256(self.retain),
            "mask": None if self.mask is None else mask_identity(self.mask),
        }
        if request.method.code is not None:
            inputs["method"] = request.method.code
        if request.takes_reference:
            inputs["reference"] = _digest(self.workspace, request.reference, self.family)
        if request.asks_vanilla:
            inputs["vanilla"] = self.vanilla_sha256
        if others := {name: data_sha256(samples) for name, samples in self.beside.items() if name != FORGET}:
            inputs["beside"] = others
        return provenance("apply", settings, inputs)


def gather(workspace: Workspace, request: Request) -> Run:
    """The run of a checked request.

    Raises:
        MissingArtifact: for a model or mask that does not exist.
        InputRefused: if a file is damaged.
        Mismatch: if the mask is of another model, or of another forget set.
        UnusableData: if the mask selects nothing, LoRA has nothing to train, or the forget or retain set is unusable.
    """
    folder = workspace.existing_model(request.start)
    family = backbone(model_config(folder)["model_type"])
    vanilla = workspace.model_dir("vanilla")
    if (vanilla / "config.json").exists() and model_config(vanilla)["model_type"] != model_config(folder)["model_type"]:
        raise Mismatch(
            f"model '{request.start}' is a {family.title}, the workspace's vanilla model is of another family",
            "start from a model that was made of vanilla",
        )
    files = CheckpointFiles(folder, family.canonical)
    mask = None if request.mask is None else _mask(workspace, request.mask, files, family)
    targets = [] if request.lora is None else request.lora.targets(files.names, family, mask)
    forget, retain = _data(workspace, request.method)
    beside, scored_text = beside_of(workspace, request, forget)
    earlier = {}
    for model, people in earlier_requests(workspace, request.start).items():
        kept = [sample for sample in retain if sample.person not in people]
        earlier[model] = len(retain) - len(kept)
        retain = kept
    if request.method.uses_retain and not retain:
        raise UnusableData(f"all people of {RETAIN} were forgotten by {', '.join(earlier)}", "use a method without it")
    if mask is not None:
        _check_people(str(request.mask), mask, forget)
    return Run(
        workspace=workspace,
        request=request,
        files=files,
        family=family,
        mask=mask,
        forget=forget,
        retain=retain,
        earlier=earlier,
        targets=targets,
        beside=beside,
        forgotten=forget,
        scored_text=scored_text,
    )


def _mask(workspace: Workspace, name: str, files: CheckpointFiles, family: Backbone) -> Mask:
    path = workspace.mask_path(name)
    if not path.exists():
        if workspace.masks() and name != "default":
            raise unknown("mask", name, workspace.masks())
        raise MissingArtifact(f"no mask '{name}' in {workspace.root}", "mmsurgery mask --beta 1 --modules lm,connector")
    mask = Mask.load(path)
    check_fit(mask, {name: files.shape(name) for name in files.names})
    base = mask.base["model_sha256"]
    if base != files.digest() and base != _digest(workspace, "vanilla", family):
        raise Mismatch(
            f"mask '{name}' was built for weights {base[:8]}, model '{files.path.name}' has {files.digest()[:8]}",
            "build it again: mmsurgery mask",
        )
    return mask


def _check_people(name: str, mask: Mask, forget: Sequence[Sample]) -> None:
    """Refuse a mask whose saliency was measured on other samples than are to be forgotten now; one composed
    of several masks has to have some that were measured on these."""
    measured = {parent.get("data_sha256") for parent in mask.parents if parent.get("part") == FORGET}
    if measured and not measured & {None, now := data_sha256(forget)}:
        built = ", ".join(sorted(str(digest)[:8] for digest in measured))
        raise Mismatch(
            f"mask '{name}' was built from another forget set, {built}, than the workspace has now, {now[:8]}",
            "mmsurgery saliency --set forget,preserve --force, then mmsurgery mask with its options and --force",
        )


def _digest(workspace: Workspace, model: str, family: Backbone) -> str:
    return CheckpointFiles(workspace.existing_model(model), family.canonical).digest()


def _data(workspace: Workspace, method: Method) -> tuple[list[Sample], list[Sample]]:
    source, reader = source_of(workspace), benchmark(workspace.settings.benchmark.name)
    forget = reader.samples(source, FORGET)
    retain = reader.samples(source, RETAIN) if method.uses_retain else []
    if not forget or (method.uses_retain and not retain):
        raise UnusableData(f"the data part {RETAIN if forget else FORGET} is empty", "check the benchmark's files")
    check_overlap(forget, retain, allow=source.allow)
    return forget, retain
