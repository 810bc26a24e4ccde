"""The workspace: one folder with its settings, its lock and its journal; where each artifact lives.

mmsurgery.toml            settings (see `mmsurgery.settings`)
models/NAME/              checkpoints; models/vanilla is what unlearning starts from
saliency/PART[.ESTIMATOR[-B]]/   saliency maps of data parts
masks/NAME.safetensors
patches/NAME.safetensors   a model as a change of another
evals/[PROTOCOL/][subset-N/][requests/EARLIER/]MODEL.json, MODEL.items.jsonl   without PROTOCOL: likelihood
audits/MODEL.json, audits/measured/MODEL.PROBE.json   whether it stays forgotten
references/SET-KEY.safetensors   what the vanilla model says of anchors, text and forget samples; may be removed
requests/DIGEST.json      whom an unlearned model was made to forget
diffs/BEFORE..AFTER.json, .png, .svg
journal.jsonl             what was done, for people; the folders are the truth
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from mmsurgery.errors import MachineFault, MissingArtifact, NoWorkspace, UsageError, nearest
from mmsurgery.hub_models import HubModel, cache_folder, fetch, hub_model, is_cached, pinned_model
from mmsurgery.names import check_artifact_name, is_artifact_name
from mmsurgery.paths import home_expanded, real
from mmsurgery.settings import SETTINGS_FILE, Settings

LOCK_TIMEOUT = 1.5
"""Seconds to wait for the lock: whoever does not get it is told so in less than two."""
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


class InUse(MachineFault):
    """Another process works on the workspace.

    Args:
        pid: the process that holds the lock; None where it is not known.
    """

    def __init__(self, root: Path, holder: str, pid: int | None) -> None:
        self.pid = pid
        super().__init__(f"{root} is in use by {holder}", "wait for it to finish, or use another --workspace")


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
        return (self.root / home_expanded(setting)).absolute()

    @property
    def data_dir(self) -> Path:
        """The benchmark's files."""
        return self.resolve(self.settings.benchmark.data)

    @property
    def threads(self) -> int:
        return self.settings.recipe.threads

    def model_dir(self, name: str) -> Path:
        """The checkpoint folder of a model by name; `vanilla` and `base` follow the settings: a path, or
        `org/name@COMMIT` in the hub's cache."""
        if name in ("vanilla", "base"):
            model = self._of_the_hub(name)
            return cache_folder(model) if model else self.resolve(getattr(self.settings.models, name))
        return self.path("models", check_artifact_name(name))

    def _of_the_hub(self, name: str) -> HubModel | None:
        """What the settings say of `vanilla` or `base` if it is a model of the hub."""
        return pinned_model(getattr(self.settings.models, name)) if name in ("vanilla", "base") else None

    def existing_model(self, name: str) -> Path:
        """The checkpoint folder of a model that exists.

        Raises:
            MissingArtifact: naming the nearest model, or the command that makes or fetches it.
        """
        if (model := self._of_the_hub(name)) and not is_cached(model):
            what = f"'{name}' is {model}, which the hub's cache does not hold whole"
            raise MissingArtifact(what, f"mmsurgery init {self.root}")
        folder = self.model_dir(name)
        if not (folder / "config.json").exists():
            made_by = {
                "vanilla": "mmsurgery init"
                if self.settings.benchmark.name == "portraits"
                else "mmsurgery init --vanilla PATH_OR_ID, or mmsurgery train vanilla",
                "base": "mmsurgery init --base PATH_OR_ID",
                "gold": "mmsurgery train gold",
                "reference": "mmsurgery train reference",
            }
            guess = nearest(name, self.models())
            known = f"there is: {', '.join(self.models()) or 'none yet'}"
            hint = f"did you mean '{guess}'?" if guess else known
            raise MissingArtifact(f"no model '{name}' in {self.root}", made_by.get(name, hint))
        return folder

    def find_model(self, text: str) -> tuple[str, Path]:
        """Name and checkpoint folder of a model given by its name here, by the path of its folder, or by
        its id on the hub, from where it is fetched unless the cache has it.

        A folder elsewhere with the name of a model of the workspace is named after where it lies, too:
        `other.vanilla` for `other/models/vanilla`. A model of the hub is `org.name` or `org.name+REVISION`.

        Raises:
            MissingArtifact: if there is none of them.
            UsageError: if the folder's name cannot name an artifact, or a model here has the name of the hub's.
            RemoteFault: if a model of the hub cannot be fetched.
        """
        if model := hub_model(text):
            if (name := model.artifact_name) in self.models():
                raise UsageError(
                    f"{text} would be called '{name}', as a model here is", "name its folder by another name"
                )
            return check_artifact_name(name), cache_folder(fetch(model))
        folder = home_expanded(text).absolute()
        by_path = "/" in text or (text not in self.models() and (folder / "config.json").exists())
        if not by_path:
            return text, self.existing_model(text)
        if not folder.is_dir():
            raise MissingArtifact(
                f"no model folder {folder}", "name a model that mmsurgery status lists, or a checkpoint folder"
            )
        folder = real(folder)
        name = folder.name
        if name in self.models() and real(self.model_dir(name)) != folder:
            home = folder.parent.parent if folder.parent.name == "models" else folder.parent
            name = f"{home.name}.{name}"
        return check_artifact_name(name), folder

    def models(self) -> list[str]:
        """Names of the models that exist, vanilla first."""
        folder = self.path("models")
        found = [p.name for p in folder.iterdir() if (p / "config.json").is_file()] if folder.is_dir() else []
        names = {name for name in found if is_artifact_name(name)}
        if (self.model_dir("vanilla") / "config.json").is_file():
            names.add("vanilla")
        return sorted(names, key=lambda name: (name != "vanilla", name))

    def last_unlearned(self) -> str:
        """The model that the journal names last as unlearned, of those that are still there.

        Raises:
            MissingArtifact: if there is none.
        """
        there = set(self.models())
        for entry in reversed(self.journal_entries()):
            if entry["event"] == "apply" and entry.get("model") in there:
                return str(entry["model"])
        raise MissingArtifact(f"no model was unlearned in {self.root} yet", "mmsurgery apply --method npo")

    def saliency_dir(self, part: str, estimator: str = "sample", batch_size: int | None = None) -> Path:
        """Where a part's saliency lives: `saliency/PART` for `sample`, else `PART.<estimator>[-B]`."""
        suffix = {"sample": "", "batch": f".batch-{batch_size}", "dataset": ".dataset"}[estimator]
        return self.path("saliency", check_artifact_name(part + suffix))

    def mask_path(self, name: str) -> Path:
        return self.path("masks", check_artifact_name(name) + ".safetensors")

    def masks(self) -> list[str]:
        """Names of the masks that exist."""
        return sorted(p.stem for p in self.path("masks").glob("*.safetensors") if is_artifact_name(p.stem))

    def patch_path(self, name: str) -> Path:
        return self.path("patches", check_artifact_name(name) + ".safetensors")

    def patches(self) -> list[str]:
        """Names of the patches that exist."""
        return sorted(p.stem for p in self.path("patches").glob("*.safetensors") if is_artifact_name(p.stem))

    def eval_path(
        self, model: str, protocol: str = "likelihood", request: str | None = None, subset: int | None = None
    ) -> Path:
        """`evals/MODEL.json`; scores under another protocol lie in a folder of its id, of N items of each column
        in `subset-N/` there, those about the people that an earlier model forgot in `requests/EARLIER/` there."""
        folder: tuple[str, ...] = () if protocol == "likelihood" else (check_artifact_name(protocol),)
        folder += () if subset is None else (f"subset-{subset}",)
        about = () if request is None else ("requests", check_artifact_name(request))
        return self.path("evals", *folder, *about, check_artifact_name(model) + ".json")

    def request_path(self, digest: str) -> Path:
        """`requests/DIGEST.json`, by the first 16 digits."""
        return self.path("requests", check_artifact_name(digest[:16]) + ".json")

    def diff_path(self, before: str, after: str) -> Path:
        return self.path("diffs", f"{check_artifact_name(before)}..{check_artifact_name(after)}.json")

    @contextlib.contextmanager
    def lock(self, timeout: float | None = None) -> Iterator[None]:
        """Hold the one writer's lock; a lock of a killed process frees itself.

        Raises:
            InUse: after `timeout` seconds (`LOCK_TIMEOUT` where None), naming who holds it.
            MachineFault: if journal or lock cannot be written.
        """
        import filelock

        holder = self.path(".lock.holder")
        lock = filelock.FileLock(self.path(".lock"))
        try:
            lock.acquire(timeout=LOCK_TIMEOUT if timeout is None else timeout)
        except filelock.Timeout as error:
            raise InUse(self.root, *_read_holder(holder)) from error
        except OSError as error:
            raise MachineFault(f"cannot lock {self.root}: {error.strerror}", "check its permissions") from error
        try:
            since = datetime.datetime.now().strftime("%H:%M")
            self.check_journal()
            with self._writing(holder):
                holder.unlink(missing_ok=True)  # a link or pipe in its place is not to be written through
                with holder.open("x") as stream:
                    stream.write(f"pid {os.getpid()} on host {socket.gethostname()} since {since}")
            yield
        finally:
            with contextlib.suppress(OSError):
                holder.unlink()
            lock.release()

    def check_journal(self) -> None:
        """Check that the journal can be written, before there is something to write into it.

        Raises:
            MachineFault: if it cannot.
        """
        with self._journal():
            pass

    def journal(self, event: str, **details: Any) -> None:
        """Append one line: what was done, to what.

        Raises:
            MachineFault: if it cannot be written.
        """
        entry = {"time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"), "event": event, **details}
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        with self._journal() as stream:
            if size := os.fstat(stream.fileno()).st_size:
                torn = os.pread(stream.fileno(), 1, size - 1) != b"\n"  # by a kill
                line = b"\n" + line if torn else line
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    @contextlib.contextmanager
    def _journal(self) -> Iterator[BinaryIO]:
        """The journal, to be written at its end; no link is followed, no pipe waited for."""
        path = self.path("journal.jsonl")
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        with self._writing(path), open(os.open(path, flags, 0o666), "ab") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise OSError(errno.EINVAL, "is not a regular file")
            yield stream

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
            with contextlib.suppress(ValueError, RecursionError):
                entries.append(json.loads(line))
        return [entry for entry in entries if isinstance(entry, dict) and "event" in entry]


def _read_holder(path: Path) -> tuple[str, int | None]:
    """Who holds the lock, in words, and its process."""
    with contextlib.suppress(OSError, ValueError):
        if path.is_file() and (text := path.read_text()).startswith("pid "):
            return text, int(text.split()[1])
    return "another process", None


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
            return Workspace(folder, Settings.read(file))
    raise NoWorkspace(f"no {SETTINGS_FILE} in {start} or above", "mmsurgery init")
