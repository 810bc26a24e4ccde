"""The workspace: one folder with its settings, its lock and its journal; where each artifact lives.

mmsurgery.toml            settings (see `Settings`)
models/NAME/              checkpoints; models/vanilla is what unlearning starts from
saliency/PART[.ESTIMATOR[-B]]/   saliency maps of data parts
masks/NAME.safetensors
evals/MODEL.json, evals/MODEL.items.jsonl
diffs/BEFORE..AFTER.json, .png, .svg
journal.jsonl             what was done, for people; the folders are the truth
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import socket
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mmsurgery.errors import InputRefused, MachineFault, MissingArtifact, NoWorkspace, UsageError, nearest
from mmsurgery.names import check_artifact_name
from mmsurgery.provenance import SCHEMA

SETTINGS_FILE = "mmsurgery.toml"
LOCK_TIMEOUT = 2.0
ESTIMATORS = ("sample", "batch", "dataset")


class Progress(Protocol):
    """How the engine tells a caller what it is doing; the engine itself prints nothing."""

    def stage(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """A stage of `total` units begins; the yielded function advances it."""
        ...

    def note(self, text: str) -> None:
        """Something a person wants to know that is no error."""
        ...


class Silent:
    """A `Progress` that says nothing."""

    @contextlib.contextmanager
    def stage(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda amount: None

    def note(self, text: str) -> None:
        return


SILENT: Progress = Silent()


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    name: str = "portraits"
    """`portraits`, `mllmu-bench` or an installed benchmark."""
    data: str = "data"
    """Folder of the benchmark's files, absolute or relative to the workspace."""
    forget: int = 10
    """Percentage of people to forget."""
    draw: int = 0
    """portraits: which people are forgotten; 0 takes the first ones."""
    world: int = 0
    """portraits: seed of the fictitious world."""
    allow: tuple[str, ...] = ()
    """Faults of the data that are accepted by name."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    backbone: str = "llava"
    """portraits: the micro model's family; elsewhere the checkpoint's config says it."""
    base: str = "models/base"
    """What vanilla, reference and gold are fine-tuned from."""
    vanilla: str = "models/vanilla"
    """The model that knows everything; unlearning starts from it."""
    setting: str = "saturated"
    """portraits: `saturated` (all columns near 100) or `fragile` (text forgetting shows)."""
    seed: int = 0
    """Seed of the base's initialisation and of its training."""


@dataclass(frozen=True, kw_only=True)
class RecipeSettings:
    """How `apply` unlearns (paper Table 5; portraits: AdamW at 3e-4)."""

    learning_rate: float = 2e-5
    batch_size: int = 4
    epochs: int = 2
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    """Largest norm of the gradient, taken after masking; 0 switches clipping off."""
    seed: int = 0
    threads: int = 1
    """CPU threads; results are bit-identical only at the same number."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    benchmark: BenchmarkSettings = field(default_factory=BenchmarkSettings)
    models: ModelSettings = field(default_factory=ModelSettings)
    recipe: RecipeSettings = field(default_factory=RecipeSettings)

    def to_toml(self) -> str:
        """The settings as the text of `mmsurgery.toml`."""
        lines = [f"schema = {SCHEMA}"]
        for section in dataclasses.fields(self):
            lines += ["", f"[{section.name}]"]
            for key, value in dataclasses.asdict(getattr(self, section.name)).items():
                lines.append(f"{key} = {_toml_value(value)}")
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str, where: str) -> Settings:
        """Settings from TOML; every key and type checked, all faults reported together.

        Raises:
            UsageError: for unknown keys (with the nearest known one), wrong types or values.
        """
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{where} is not valid TOML: {error}", "mend the line") from error
        faults: list[str] = []
        schema = table.pop("schema", SCHEMA)
        if schema != SCHEMA:
            faults.append(f"schema {schema}, this version reads {SCHEMA}")
        sections: dict[str, Any] = {}
        kinds = {"benchmark": BenchmarkSettings, "models": ModelSettings, "recipe": RecipeSettings}
        for name, value in table.items():
            if name not in kinds or not isinstance(value, dict):
                faults.append(_unknown_key(name, kinds))
                continue
            sections[name] = _section(kinds[name], name, value, faults)
        faults += _value_faults(cls(**sections))
        if faults:
            shown = "; ".join(f"[{i}] {fault}" for i, fault in enumerate(faults, 1)) if len(faults) > 1 else faults[0]
            raise UsageError(f"{where}: {shown}", "mend the settings")
        return cls(**sections)


def _unknown_key(key: str, known: Any) -> str:
    guess = nearest(key, known)
    return f"unknown key '{key}'" + (f" (did you mean '{guess}'?)" if guess else "")


def _section(kind: type[Any], name: str, table: dict[str, Any], faults: list[str]) -> Any:
    known = {f.name: f for f in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            faults.append(_unknown_key(key, known) + f" in [{name}]")
            continue
        default = known[key].default
        if isinstance(default, tuple) and isinstance(value, list) and all(isinstance(v, str) for v in value):
            value = tuple(value)
        if isinstance(default, float) and type(value) is int and abs(value) < 1 << 53:
            value = float(value)
        if type(value) is not type(default):
            faults.append(f"{name}.{key} should be {_kind_name(default)}, is {value!r}")
            continue
        values[key] = value
    return kind(**values)


def _kind_name(default: object) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", tuple: "a list of texts"}
    return names[type(default)]


def _value_faults(settings: Settings) -> list[str]:
    recipe, faults = settings.recipe, []
    if not 0 < recipe.learning_rate < 1:
        faults.append(f"recipe.learning_rate is {recipe.learning_rate}, should be between 0 and 1")
    for key in ("batch_size", "epochs", "threads"):
        if getattr(recipe, key) < 1:
            faults.append(f"recipe.{key} is {getattr(recipe, key)}, should be 1 or more")
    for key in ("weight_decay", "clip_norm"):
        if not 0 <= getattr(recipe, key) < float("inf"):
            faults.append(f"recipe.{key} is {getattr(recipe, key)}, should be 0 or more")
    for section, key in (("benchmark", "draw"), ("benchmark", "world"), ("models", "seed"), ("recipe", "seed")):
        value = getattr(getattr(settings, section), key)
        if not 0 <= value < 1 << 32:
            faults.append(f"{section}.{key} is {value}, should be 0 or more, below 2^32")
    if not 0 < settings.benchmark.forget < 100:
        faults.append(f"benchmark.forget is {settings.benchmark.forget}, should be a percentage of people")
    if settings.models.setting not in ("saturated", "fragile"):
        faults.append(f"models.setting is '{settings.models.setting}', should be saturated or fragile")
    return faults


def _toml_value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return repr(value)


class Workspace:
    """A workspace folder. Reading it needs no lock; whoever writes holds `lock()`."""

    def __init__(self, root: Path, settings: Settings) -> None:
        self.root = root
        self.settings = settings

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.root)!r})"

    def path(self, *parts: str) -> Path:
        """A path inside the workspace; each part must be an artifact name or a folder of ours."""
        return self.root.joinpath(*parts)

    def resolve(self, setting: str) -> Path:
        """A path from the settings: absolute, or relative to the workspace."""
        return (self.root / Path(setting).expanduser()).absolute()

    @property
    def data_dir(self) -> Path:
        """The benchmark's files."""
        return self.resolve(self.settings.benchmark.data)

    @property
    def threads(self) -> int:
        return self.settings.recipe.threads

    def model_dir(self, name: str) -> Path:
        """The checkpoint folder of a model by name; `vanilla` and `base` follow the settings."""
        if name in ("vanilla", "base"):
            return self.resolve(getattr(self.settings.models, name))
        return self.path("models", check_artifact_name(name))

    def existing_model(self, name: str) -> Path:
        """The checkpoint folder of a model that exists.

        Raises:
            MissingArtifact: naming the nearest model, or the command that makes it.
        """
        folder = self.model_dir(name)
        if not (folder / "config.json").exists():
            made_by = {
                "vanilla": "mmsurgery init",
                "gold": "mmsurgery train gold",
                "reference": "mmsurgery train reference",
            }
            guess = nearest(name, self.models())
            hint = f"did you mean '{guess}'?" if guess else "mmsurgery apply --method METHOD"
            raise MissingArtifact(f"no model '{name}' in {self.root}", made_by.get(name, hint))
        return folder

    def find_model(self, text: str) -> tuple[str, Path]:
        """Name and checkpoint folder of a model given by its name here, or by the path of its folder.

        Raises:
            MissingArtifact: if there is neither.
            UsageError: if the folder has the name of another model of the workspace.
        """
        folder = Path(text).expanduser().absolute()
        by_path = "/" in text or (text not in self.models() and (folder / "config.json").exists())
        if not by_path:
            return text, self.existing_model(text)
        if not folder.is_dir():
            raise MissingArtifact(f"no model folder {folder}")
        name = check_artifact_name(folder.name)
        if name in self.models() and self.model_dir(name).resolve() != folder.resolve():
            raise UsageError(f"{folder} has the name of another model of the workspace", "rename the folder")
        return name, folder

    def models(self) -> list[str]:
        """Names of the models that exist, vanilla first."""
        folder = self.path("models")
        found = [p.name for p in folder.iterdir() if (p / "config.json").is_file()] if folder.is_dir() else []
        names = {name for name in found if not name.startswith(".")}
        if (self.model_dir("vanilla") / "config.json").is_file():
            names.add("vanilla")
        return sorted(names, key=lambda name: (name != "vanilla", name))

    def saliency_dir(self, part: str, estimator: str = "sample", batch_size: int | None = None) -> Path:
        """Where a part's saliency lives: `saliency/PART` for `sample`, else `PART.<estimator>[-B]`."""
        suffix = {"sample": "", "batch": f".batch-{batch_size}", "dataset": ".dataset"}[estimator]
        return self.path("saliency", check_artifact_name(part + suffix))

    def mask_path(self, name: str) -> Path:
        return self.path("masks", check_artifact_name(name) + ".safetensors")

    def masks(self) -> list[str]:
        """Names of the masks that exist."""
        return sorted(p.stem for p in self.path("masks").glob("[!.]*.safetensors"))

    def eval_path(self, model: str) -> Path:
        return self.path("evals", check_artifact_name(model) + ".json")

    def diff_path(self, before: str, after: str) -> Path:
        return self.path("diffs", f"{check_artifact_name(before)}..{check_artifact_name(after)}.json")

    @contextlib.contextmanager
    def lock(self, timeout: float | None = None) -> Iterator[None]:
        """Hold the one writer's lock; a lock of a killed process frees itself.

        Raises:
            MachineFault: after `timeout` seconds (default 2), naming who holds it.
        """
        import filelock

        holder = self.path(".lock.holder")
        lock = filelock.FileLock(self.path(".lock"))
        try:
            lock.acquire(timeout=LOCK_TIMEOUT if timeout is None else timeout)
        except filelock.Timeout as error:
            raise MachineFault(f"{self.root} is in use by {_read_holder(holder)}", "wait for it to finish") from error
        except OSError as error:
            raise MachineFault(f"cannot lock {self.root}: {error.strerror}", "check its permissions") from error
        try:
            since = datetime.datetime.now().strftime("%H:%M")
            with self._writing(holder):
                holder.write_text(f"pid {os.getpid()} on host {socket.gethostname()} since {since}")
            yield
        finally:
            with contextlib.suppress(OSError):
                holder.unlink()
            lock.release()

    def journal(self, event: str, **details: Any) -> None:
        """Append one line: what was done, to what.

        Raises:
            MachineFault: if it cannot be written.
        """
        entry = {"time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"), "event": event, **details}
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        path = self.path("journal.jsonl")
        with self._writing(path), path.open("a+b") as stream:
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                line = line if stream.read(1) == b"\n" else b"\n" + line  # a kill tore the last line
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    @contextlib.contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MachineFault(
                f"cannot write {path}: {error.strerror}", "check the disk and its permissions"
            ) from error

    def journal_entries(self) -> list[dict[str, Any]]:
        """All whole lines of the journal; a torn last line is left out."""
        path = self.path("journal.jsonl")
        if not path.is_file():
            return []
        entries = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                entries.append(json.loads(line))
        return [entry for entry in entries if isinstance(entry, dict) and "event" in entry]


def _read_holder(path: Path) -> str:
    try:
        return path.read_text() or "another process"
    except OSError:
        return "another process"


def find_workspace(start: Path) -> Workspace:
    """The workspace `start` stands in: this folder or the nearest parent with a `mmsurgery.toml`.

    Raises:
        NoWorkspace: if there is none.
        UsageError: if its settings are wrong.
        InputRefused: if the settings file cannot be read.
    """
    start = start.absolute()
    for folder in (start, *start.parents):
        file = folder / SETTINGS_FILE
        if file.is_file():
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InputRefused(f"{file} cannot be read: {error}") from error
            return Workspace(folder, Settings.from_toml(text, str(file)))
    raise NoWorkspace(f"no {SETTINGS_FILE} in {start} or above", "mmsurgery init")
