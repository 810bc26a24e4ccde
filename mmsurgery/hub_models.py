"""Models of the hub as a workspace names them: `org/name@COMMIT`, whose files lie in the client's cache.

Fetching resolves a branch or tag to a commit once; from then on the commit is the name, and no network is
needed. Of a repository only what a model is read from is fetched: never pickled weights, never code. What the
hub says in an error may quote a request, and is not passed on.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mmsurgery.errors import InputRefused, MachineFault, MissingArtifact, RemoteFault, UsageError
from mmsurgery.paths import home_expanded

FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""Configuration, weights, tokenizer, processor, chat template."""
NOT_FILES = ["*/*", "*.bin.index.json"]
"""Folders of a repository hold the same weights for other programs; the index is of weights that are not fetched."""

CONVERT = "convert the weights to safetensors as docs/checkpoints.md says"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_ID = re.compile(r"([A-Za-z0-9_][\w.-]*/[\w.-]*\w)(?:@([\w./+-]+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubModel(NamedTuple):
    """What `org/name` or `org/name@REVISION` says."""

    repository: str
    revision: str | None
    """A branch, tag or commit; None for the main branch."""

    def __str__(self) -> str:
        return self.repository + (f"@{self.revision}" if self.revision else "")

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    @property
    def artifact_name(self) -> str:
        """`org.name` or `org.name+REVISION`; repositories have no `+` in their names."""
        revision = self.revision[:12] if self.revision and self.pinned else self.revision
        return self.repository.replace("/", ".") + (f"+{revision.replace('/', '.')}" if revision else "")


def hub_model(text: str) -> HubModel | None:
    """What `text` says if it names a model of the hub; None if it is a path: a folder that exists, what starts
    like a path, or what would lie in a folder that exists."""
    found = _ID.fullmatch(text)
    if found is None or Path(text).exists() or Path(text.split("/")[0]).is_dir():
        return None
    return HubModel(found[1], found[2])


def pinned_model(setting: str) -> HubModel | None:
    """What the settings say if it is a model of the hub, `org/name@COMMIT`; None if it is a path."""
    found = _ID.fullmatch(setting)
    model = HubModel(found[1], found[2]) if found else None
    return model if model and model.pinned else None


def cache_folder(model: HubModel) -> Path:
    """Where the cache keeps a pinned model, whether it is there or not."""
    from huggingface_hub import constants

    place = "models--" + model.repository.replace("/", "--")
    return Path(constants.HF_HUB_CACHE).expanduser() / place / "snapshots" / str(model.revision)


def is_cached(model: HubModel) -> bool:
    """Whether the cache holds a pinned model, whole as far as it knows; nothing is asked of the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot_download(
            model.repository,
            revision=model.revision,
            allow_patterns=FILES,
            ignore_patterns=NOT_FILES,
            local_files_only=True,
        )
    except (LocalEntryNotFoundError, ValueError):  # the latter for what is no name of a repository
        return False
    return _holds_model(cache_folder(model))


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def fetch(model: HubModel) -> HubModel:
    """The model under its commit, its files in the cache; without a network, as the cache has it.

    Raises:
        UsageError: if the name cannot be a repository's.
        MissingArtifact: if the repository holds no model that can be read.
        RemoteFault: if the hub cannot be reached or refuses, or has no such repository or revision.
        MachineFault: if the cache cannot be written.
    """
    from huggingface_hub import constants, snapshot_download

    with _asking(model):
        folder = Path(
            snapshot_download(
                model.repository, revision=model.revision, allow_patterns=FILES, ignore_patterns=NOT_FILES
            )
        )
    if not _holds_model(folder):
        if constants.HF_HUB_OFFLINE:  # the client is content with a part then, such as a config alone
            raise _offline(model)
        raise MissingArtifact(
            f"{model.repository} holds no model in safetensors (pickled weights are never fetched)",
            f"name another one, or a folder of your own: {CONVERT}",
        )
    return HubModel(model.repository, folder.name)


def checkpoint(text: str) -> str:
    """What the settings hold for a model that is given: an absolute path, or `org/name@COMMIT`, fetched.

    Raises:
        MissingArtifact: if it is neither a folder nor can be an id.
        InputRefused: if all weights of the folder are pickled; and as `fetch`.
    """
    if (model := hub_model(text)) is None:
        folder = home_expanded(text)
        if not folder.is_dir():
            raise MissingArtifact(f"no folder {text}", "name a checkpoint folder or a hub id such as org/name")
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
        if pickled and not any(folder.glob("*.safetensors")):
            weights = next((name for name in pickled if "model" in name), pickled[0])
            raise InputRefused(f"{folder / weights} may run code when read, and is not read", CONVERT)
        return str(folder.absolute())
    return str(fetch(model))


def is_of(text: str, setting: str) -> bool:
    """Whether `text` names the repository of `setting` (`org/name@COMMIT`) and says nothing against its commit."""
    asked, there = hub_model(text), pinned_model(setting)
    return asked is not None and there is not None and asked in (there, (there.repository, None))


@contextlib.contextmanager
def _asking(model: HubModel) -> Iterator[None]:
    """Turn what the client raises into our errors."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    network: type[Exception] = HfHubHTTPError.__mro__[1]  # of the client's transport, whichever it is built on
    name = model.repository
    fault: Exception
    try:
        yield
        return
    except HFValidationError:
        fault = UsageError(f"'{name}' is no folder, and no name of a repository", "write a path or org/name")
    except GatedRepoError:
        fault = RemoteFault(f"{name} is gated", "accept its terms on the hub and log in")
    except RevisionNotFoundError:
        fault = RemoteFault(f"{name} has no revision '{model.revision}'", "name a branch, tag or commit that it has")
    except RepositoryNotFoundError:
        what = f"{name} is no folder here, and the hub has no such repository, or none for you"
        fault = RemoteFault(what, "check the name, and that you are logged in")
    except OfflineModeIsEnabled:
        fault = _offline(model)
    except LocalEntryNotFoundError as error:
        offline = isinstance(error.__cause__, OfflineModeIsEnabled)
        fault = _offline(model) if offline else _unreachable(model)
    except HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        fault = RemoteFault(f"the hub refuses {name}" + (f" (status {status})" if status else ""), "try again later")
    except network:
        fault = _unreachable(model)
    except OSError as error:
        if error.errno is None:  # the client's own checks of what arrived
            fault = RemoteFault(f"{name} did not arrive whole", "run the same command again")
        else:
            fault = MachineFault(
                f"{name} cannot be kept in the hub's cache: {error.strerror}", "check disk and HF_HOME"
            )
    raise fault from None


def _offline(model: HubModel) -> RemoteFault:
    what = f"{model} is no folder here, the hub's cache does not hold it whole, and HF_HUB_OFFLINE is set"
    return RemoteFault(what, "unset HF_HUB_OFFLINE, or name a folder")


def _unreachable(model: HubModel) -> RemoteFault:
    what = f"{model} is no folder here, the hub's cache does not hold it whole, and the hub cannot be reached"
    return RemoteFault(what, "check the network, or name a folder")
