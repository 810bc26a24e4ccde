"""`push` and `pull`: artifacts on the hub, through its client; private unless said otherwise.

Only a parcel's files leave (`exchange.parcel`), in one commit. Credentials are the client's business: they are
neither read nor printed here, and what the hub says in an error is not passed on.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmsurgery.artifacts.checkpoint import CheckpointFiles, model_config
from mmsurgery.artifacts.files import atomic_file, atomic_folder
from mmsurgery.artifacts.find import EXCHANGED, find
from mmsurgery.backbones.discovery import backbone
from mmsurgery.errors import InputRefused, Mismatch, RemoteFault, UsageError
from mmsurgery.exchange.parcel import KINDS, LIST, Parcel, open_parcel, pack_parcel, read_list, unpack_parcel
from mmsurgery.names import check_artifact_name
from mmsurgery.provenance import sha256_file
from mmsurgery.workspace import SILENT, Progress, Workspace

_OURS = (".gitattributes", ".gitignore")
"""Files that the hub itself puts into a repository."""


@dataclass(frozen=True)
class PushResult:
    """What left."""

    repository: str
    commit: str
    private: bool
    kind: str
    name: str
    files: dict[str, int]
    """Every file that was sent: name -> bytes."""


@dataclass(frozen=True)
class PullResult:
    """What arrived, verified."""

    repository: str
    commit: str
    kind: str
    name: str
    path: Path
    up_to_date: bool


def push(
    workspace: Workspace,
    artifact: str,
    repository: str,
    *,
    public: bool = False,
    progress: Progress = SILENT,
) -> PushResult:
    """Send a mask, a saliency map or a patch to a repository of its own, in one commit.

    Args:
        artifact: name or path.
        repository: `owner/name`; made if it is not there.
        public: let everybody read it; by default the repository is private, and a public one is refused.

    Raises:
        MissingArtifact: if there is no such artifact.
        UsageError: for a model, or a repository name that is none.
        InputRefused: if the artifact is damaged.
        Mismatch: if it holds a path of this machine, the repository is public without `public`, or holds other files.
        RemoteFault: if the hub cannot be reached, or refuses.
    """
    found = find(workspace, artifact, EXCHANGED, called="mask, saliency or patch")
    if found.also:
        progress.note(f"this is the {found.kind}; of the same name are {', '.join(found.also)}")
    if found.kind not in KINDS:
        raise UsageError(
            f"'{artifact}' is a {found.kind}, not shared by push", "push its patch: mmsurgery patch create"
        )
    with tempfile.TemporaryDirectory() as folder:
        parcel = pack_parcel(found, Path(folder))
        files = {name: (parcel.folder / name).stat().st_size for name in parcel.everything}
        for name, size in files.items():
            progress.note(f"sends {name}, {size:,} bytes")
        commit, private = _upload(parcel, repository, public=public)
    with workspace.lock():
        workspace.journal("push", kind=found.kind, name=found.name, repository=repository, commit=commit)
    return PushResult(repository, commit, private, found.kind, found.name, files)


def _upload(parcel: Parcel, repository: str, *, public: bool) -> tuple[str, bool]:
    """The commit, and whether the repository is private."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi()
    with _hub(repository):
        try:
            there = api.repo_info(repository, repo_type="model")
        except RepositoryNotFoundError:
            api.create_repo(repository, private=not public, repo_type="model")
            there = api.repo_info(repository, repo_type="model")
        if not there.private and not public:
            raise Mismatch(f"repository {repository} is public", "pass --public, or name another one")
        surplus = sorted(set(api.list_repo_files(repository, repo_type="model")) - {*parcel.everything, *_OURS})
        if surplus:
            raise Mismatch(
                f"repository {repository} holds other files, such as {surplus[0]}",
                "name a repository for this artifact alone",
            )
        sent = api.upload_folder(
            repo_id=repository,
            folder_path=str(parcel.folder),
            repo_type="model",
            allow_patterns=parcel.everything,
            commit_message=f"{parcel.kind} {parcel.name}",
        )
    return str(sent.oid), bool(there.private)


def pull(
    workspace: Workspace,
    repository: str,
    *,
    revision: str | None = None,
    name: str | None = None,
    force: bool = False,
) -> PullResult:
    """Fetch a shared artifact, verify it, and put it where the workspace keeps such things.

    Args:
        revision: branch, tag or commit; resolved to a commit once.
        name: instead of the name it was shared under.
        force: replace another artifact of that name.

    Raises:
        UsageError: for a repository or artifact name that is none.
        InputRefused: if what arrives is damaged, incomplete, or nothing that `push` sends.
        Mismatch: if it belongs to another model than the workspace's, or another artifact has the name.
        RemoteFault: if the hub cannot be reached, or has no such repository.
    """
    with tempfile.TemporaryDirectory() as folder:
        commit = _download(repository, revision, Path(folder))
        parcel = open_parcel(Path(folder))
        _check_model(workspace, parcel)
        kept = check_artifact_name(name or parcel.name)
        with workspace.lock():
            target, up_to_date = _place(workspace, parcel, kept, force)
            if not up_to_date:
                workspace.journal("pull", kind=parcel.kind, name=kept, repository=repository, commit=commit)
    return PullResult(repository, commit, parcel.kind, kept, target, up_to_date)


def _download(repository: str, revision: str | None, folder: Path) -> str:
    """Fill a folder with the list and the files it names, of one commit; returns the commit."""
    from huggingface_hub import HfApi

    api = HfApi()
    with _hub(repository):
        commit = str(api.repo_info(repository, repo_type="model", revision=revision).sha)
        wanted = [LIST]
        for _ in range(2):
            there = Path(api.snapshot_download(repository, repo_type="model", revision=commit, allow_patterns=wanted))
            if not (there / LIST).is_file():
                raise InputRefused(
                    f"{repository} is nothing that mmsurgery pushed: it has no {LIST}", "name another one"
                )
            wanted = [LIST, *read_list(there / LIST)["files"]]
        for each in wanted:
            if not (there / each).is_file():
                raise InputRefused(
                    f"{repository} lacks {each}, which its {LIST} names", "ask for it to be pushed again"
                )
            shutil.copyfile(there / each, folder / each)
    return commit


def _check_model(workspace: Workspace, parcel: Parcel) -> None:
    """Refuse what was made for other weights; a patch may lead from any model of the workspace."""
    names = ["vanilla", *workspace.models()] if parcel.kind == "patch" else ["vanilla"]
    for name in dict.fromkeys(names):
        folder = workspace.existing_model(name)
        family = backbone(model_config(folder)["model_type"])
        if CheckpointFiles(folder, family.canonical).digest() == parcel.model_sha256:
            return
    raise Mismatch(
        f"{parcel.kind} '{parcel.name}' belongs to {parcel.model_type} weights {parcel.model_sha256[:12]}, "
        f"which {'no model' if parcel.kind == 'patch' else 'vanilla'} of {workspace.root} has",
        "pull it in a workspace of that model",
    )


def _place(workspace: Workspace, parcel: Parcel, name: str, force: bool) -> tuple[Path, bool]:
    target = workspace.path("saliency", name)
    if parcel.kind != "saliency":
        target = workspace.mask_path(name) if parcel.kind == "mask" else workspace.patch_path(name)
    if target.exists():
        there = [target] if target.is_file() else [target / file for file in parcel.files]
        same = {sha256_file(path) if path.is_file() else None for path in there}
        if same == {file["sha256"] for file in parcel.files.values()}:
            return target, True
        if not force:
            raise Mismatch(f"{parcel.kind} '{name}' exists, and is another", "pass --force, or another --name")
    if parcel.kind == "saliency":
        with atomic_folder(target, replace=force) as new:
            unpack_parcel(parcel, new)
    else:
        with atomic_file(target) as new:
            unpack_parcel(parcel, new)
    return target, False


@contextlib.contextmanager
def _hub(repository: str) -> Iterator[None]:
    """Turn what the client raises into our errors; its text, which may quote requests, goes nowhere."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    network: type[Exception] = HfHubHTTPError.__mro__[1]  # of the client's transport, whichever it is built on
    fault: Exception
    try:
        yield
        return
    except HFValidationError:
        fault = UsageError(f"'{repository}' is no name of a repository", "write owner/name")
    except RevisionNotFoundError:
        fault = RemoteFault(f"{repository} has no such revision", "leave --revision out, or name another one")
    except RepositoryNotFoundError:
        fault = RemoteFault(f"{repository} is not there, or not for you", "check the name, and that you are logged in")
    except (OfflineModeIsEnabled, LocalEntryNotFoundError):
        fault = RemoteFault(f"{repository} cannot be reached: offline", "unset HF_HUB_OFFLINE, and check the network")
    except HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = "log in with a token that may write" if status in (401, 403) else "try again later"
        fault = RemoteFault(f"the hub refuses {repository}" + (f" (status {status})" if status else ""), hint)
    except network:
        fault = RemoteFault(f"{repository} cannot be reached", "check the network")
    raise fault from None
