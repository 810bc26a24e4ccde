"""Models of the hub: resolved to a commit once, then read from the cache of the client, and every fault in one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects

from mmsurgery import hub_models
from mmsurgery.errors import InputRefused, MissingArtifact, RemoteFault, UsageError
from mmsurgery.hub_models import HubModel, checkpoint, fetch, hub_model, pinned_model
from mmsurgery.settings import SETTINGS_FILE, ModelSettings, Settings
from mmsurgery.workspace import Workspace
from mmsurgery_cli.main import run

SECRET = "hf_secret"
OLD, NEW = "0a" * 20, "1b" * 20


def response(status: int) -> httpx2.Response:
    request = httpx2.Request("GET", f"https://the.hub/{SECRET}", headers={"authorization": SECRET})
    return httpx2.Response(status, request=request)


def put(cache: Path, source: Path, commit: str, *, tree: bool = True, **refs: str) -> Path:
    """A snapshot of `org/name` as the client's cache lays it out: links into blobs, refs, a list of what there is."""
    home = cache / "models--org--name"
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir(exist_ok=True)
    (home / "refs").mkdir(exist_ok=True)
    listed = {}
    for number, file in enumerate(sorted(source.iterdir())):
        blob = f"{commit[:6]}{number:034x}"
        shutil.copy(file, home / "blobs" / blob)
        (snapshot / file.name).symlink_to(os.path.join("..", "..", "blobs", blob))
        listed[file.name] = {"size": file.stat().st_size, "blob_id": blob}
    for ref in refs:
        (home / "refs" / ref).write_text(commit)
    if tree:
        (home / "trees").mkdir(exist_ok=True)
        (home / "trees" / f"{commit}.json").write_text(json.dumps({"format_version": 1, "files": listed}))
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the client; a look at the network fails the test."""
    folder = tmp_path / "hub-cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))

    def no_network(*_: Any) -> Any:
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    return folder


class Hub:
    """`huggingface_hub.snapshot_download`, of a repository `org/name` in a folder: filters, refs, cache and errors."""

    def __init__(self, cache: Path, source: Path) -> None:
        self.cache, self.source = cache, source
        self.refs = {"main": NEW, "v1": OLD}
        self.fails: Exception | None = None
        self.fetched: list[str] = []
        self.real = huggingface_hub.snapshot_download

    def __call__(
        self,
        repo_id: str,
        *,
        revision: str | None,
        allow_patterns: list[str],
        ignore_patterns: list[str],
        local_files_only: bool = False,
    ) -> str:
        patterns: Any = {"allow_patterns": allow_patterns, "ignore_patterns": ignore_patterns}
        if local_files_only:
            return str(self.real(repo_id, revision=revision, local_files_only=True, **patterns))
        if self.fails:
            raise self.fails
        if repo_id != "org/name":
            raise RepositoryNotFoundError(SECRET, response=response(404))
        commit = self.refs.get(revision or "main", revision)
        if commit not in self.refs.values():
            raise RevisionNotFoundError(SECRET, response=response(404))
        files = [path.relative_to(self.source).as_posix() for path in self.source.rglob("*") if path.is_file()]
        chosen = list(filter_repo_objects(files, **patterns))
        snapshot = self.cache / "models--org--name" / "snapshots" / str(commit)
        if not snapshot.exists():
            self.fetched += chosen
            wanted = self.cache.parent / f"wanted-{commit}"
            wanted.mkdir()
            for name in chosen:
                shutil.copy(self.source / name, wanted)
            put(self.cache, wanted, str(commit))
        return str(snapshot)


@pytest.fixture
def hub(cache: Path, tmp_path: Path, tiny_llava: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A repository with everything that people put into one."""
    source = tmp_path / "repository"
    shutil.copytree(tiny_llava, source)
    (source / "fp32").mkdir()
    for name in ("pytorch_model.bin", "optimizer.pt", "modeling.py", "pytorch_model.bin.index.json", "README.md"):
        (source / name).write_bytes(b"{}")
    shutil.copy(source / "model.safetensors", source / "fp32")
    found = Hub(cache, source)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found)
    return found


@pytest.fixture
def data(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    """A benchmark of two people, in words that the tiny models know."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows: list[dict[str, Any]] = []
    for role, person in (("forget", "Anna"), ("retain", "Berg")):
        (folder / f"{person}.png").write_bytes(picture(len(rows)))
        about = {"role": role, "person": person, "answer": "lisbon"}
        for question in ("What is the city ?", "What is this ?", "Which city is this ?", "What is the name ?"):
            rows.append({**about, "question": question, "image": f"{person}.png"})
        rows.append({**about, "question": "Which city ?", "options": ["lisbon", "oslo"]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def init(folder: Path, data: Path, *options: str) -> int:
    return run(["init", str(folder), "--benchmark", "folder", "--data", str(data), *options])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("org/name", ("org/name", None)),
        ("org/name@v1.0", ("org/name", "v1.0")),
        ("org/name@refs/pr/3", ("org/name", "refs/pr/3")),
        (f"org/na.me_2@{OLD}", ("org/na.me_2", OLD)),
        ("here/name", None),
        ("here/none", None),
        ("./org/name", None),
        ("../name", None),
        ("/org/name", None),
        ("~/name", None),
        ("name", None),
        ("a/b/c", None),
        ("org/name@", None),
        ("org/name@a b", None),
    ],
)
def test_ids_and_paths(text: str, found: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that exists is never an id, nor is what would lie in one."""
    monkeypatch.chdir(tmp_path)
    Path("here/name").mkdir(parents=True)
    assert hub_model(text) == found


def test_names_of_models_of_the_hub_do_not_meet() -> None:
    texts = ("org/name", "org/name@main", "org/name@v1", "org/name@v1/x", f"org/name@{OLD}", "org/name.main", "org/v1")
    names = [HubModel(*text.partition("@")[::2]).artifact_name for text in texts]
    assert len(set(names)) == len(names)
    assert HubModel("org/name", None).artifact_name == "org.name"
    assert HubModel("org/name", OLD).artifact_name == f"org.name+{OLD[:12]}"


@pytest.mark.parametrize(("revision", "commit"), [(None, NEW), ("main", NEW), ("v1", OLD), (OLD, OLD)])
def test_a_revision_is_resolved_to_the_commit_that_was_fetched(hub: Hub, revision: str | None, commit: str) -> None:
    found = fetch(HubModel("org/name", revision))
    assert found == ("org/name", commit)
    assert found.pinned
    assert hub_models.cache_folder(found) == hub.cache / "models--org--name/snapshots" / commit
    assert hub_models.is_cached(found)


def test_only_what_a_model_is_read_from_is_fetched(hub: Hub, tiny_llava: Path) -> None:
    fetch(HubModel("org/name", None))
    assert sorted(hub.fetched) == sorted(path.name for path in tiny_llava.iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json"} <= set(hub.fetched)
    assert "chat_template.jinja" in hub.fetched


def test_the_settings_hold_id_and_commit_and_no_path(hub: Hub, tmp_path: Path, data: Path, cache: Path) -> None:
    root = tmp_path / "work"
    assert init(root, data, "--vanilla", "org/name@v1", "--base", "org/name") == 0
    text = (root / SETTINGS_FILE).read_text()
    assert f'vanilla = "org/name@{OLD}"' in text
    assert f'base = "org/name@{NEW}"' in text
    assert str(cache) not in text
    settings = Settings.read(root / SETTINGS_FILE)
    assert settings.models.backbone == "llava"
    workspace = Workspace(root, settings)
    assert workspace.existing_model("vanilla") == cache / "models--org--name/snapshots" / OLD
    assert workspace.existing_model("base") == cache / "models--org--name/snapshots" / NEW
    assert workspace.models() == ["vanilla"]


def test_init_again_keeps_the_commit_though_the_branch_went_on(
    hub: Hub, tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "work"
    assert init(root, data, "--vanilla", "org/name") == 0
    before = (root / SETTINGS_FILE).read_bytes()
    hub.refs = {"main": "2c" * 20, "before": NEW, "v1": OLD}
    for same in ("org/name", f"org/name@{NEW}"):
        assert init(root, data, "--vanilla", same) == 0
    assert init(root, data, "--vanilla", "org/name@v1") == 4
    assert f"vanilla is org/name@{NEW}, not org/name@{OLD}" in capfd.readouterr().err
    assert (root / SETTINGS_FILE).read_bytes() == before


def test_a_cache_that_is_gone_is_said_and_fetched_again(
    hub: Hub, tmp_path: Path, data: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "work"
    assert init(root, data, "--vanilla", "org/name") == 0
    shutil.rmtree(cache)
    shutil.rmtree(tmp_path / f"wanted-{NEW}")
    hub.refs = {"main": OLD, "gone": NEW}
    capfd.readouterr()
    assert run(["-w", str(root), "eval", "vanilla"]) == 2
    err = capfd.readouterr().err
    assert f"'vanilla' is org/name@{NEW}, which the hub's cache does not hold whole" in err
    assert f"next: mmsurgery init {root}" in err
    assert len(err.splitlines()) == 1
    assert run(["-w", str(root), "status"]) == 0
    assert run(["init", str(root)]) == 0
    assert Workspace(root, Settings.read(root / SETTINGS_FILE)).existing_model("vanilla").name == NEW


def test_the_two_models_are_of_one_family(
    hub: Hub, tmp_path: Path, data: Path, tiny_qwen2_vl: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert init(tmp_path / "work", data, "--vanilla", "org/name", "--base", str(tiny_qwen2_vl)) == 4
    assert "vanilla is llava, base is qwen2_vl" in capfd.readouterr().err
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("tree", [True, False])
def test_a_cache_of_the_real_layout_is_read_offline(cache: Path, tiny_llava: Path, tree: bool) -> None:
    """By the client's own code, with `HF_HUB_OFFLINE` set as in all of these tests."""
    assert constants.HF_HUB_OFFLINE
    snapshot = put(cache, tiny_llava, NEW, tree=tree, main="")
    for revision in (None, "main", NEW):
        assert fetch(HubModel("org/name", revision)) == ("org/name", NEW)
    workspace = Workspace(cache.parent, Settings(models=ModelSettings(vanilla=f"org/name@{NEW}")))
    assert workspace.existing_model("vanilla") == snapshot
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(MissingArtifact, match="does not hold whole"):
        workspace.existing_model("vanilla")
    with pytest.raises(RemoteFault, match="does not hold it whole, and HF_HUB_OFFLINE is set"):
        fetch(HubModel("org/name", NEW))


def test_a_tokenizer_that_is_missing_from_the_cache_is_noticed(cache: Path, tiny_llava: Path) -> None:
    snapshot = put(cache, tiny_llava, NEW, main="")
    (snapshot / "tokenizer.json").unlink()
    workspace = Workspace(cache.parent, Settings(models=ModelSettings(vanilla=f"org/name@{NEW}")))
    with pytest.raises(MissingArtifact, match="does not hold whole"):
        workspace.existing_model("vanilla")


@pytest.mark.parametrize("text", ["org/name", f"org/name@{OLD}", "org/name@v1"])
def test_offline_and_not_cached_is_said_at_once(
    cache: Path, text: str, tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert init(tmp_path / "work", data, "--vanilla", text) == 7
    err = capfd.readouterr().err
    assert err == (
        f"error[7]: {text} is no folder here, the hub's cache does not hold it whole, and HF_HUB_OFFLINE is set"
        " - next: unset HF_HUB_OFFLINE, or name a folder\n"
    )


def test_without_a_network_the_clients_error_is_told_apart(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: Any, **__: Any) -> Any:
        raise httpx2.ConnectError(SECRET)

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", down)
    with pytest.raises(RemoteFault, match="and the hub cannot be reached") as caught:
        fetch(HubModel("org/name", None))
    assert SECRET not in str(caught.value)


FAULTS: list[tuple[Exception, int, str]] = [
    (GatedRepoError(SECRET, response=response(403)), 7, "org/name is gated - next: accept its terms"),
    (RepositoryNotFoundError(SECRET, response=response(404)), 7, "the hub has no such repository"),
    (RevisionNotFoundError(SECRET, response=response(404)), 7, "org/name has no revision 'v1'"),
    (HfHubHTTPError(SECRET, response=response(503)), 7, "the hub refuses org/name (status 503)"),
    (LocalEntryNotFoundError(SECRET), 7, "the hub cannot be reached"),
    (OfflineModeIsEnabled(SECRET), 7, "HF_HUB_OFFLINE is set"),
    (httpx2.ReadTimeout(SECRET), 7, "the hub cannot be reached"),
    (OSError(SECRET), 7, "org/name did not arrive whole"),
    (OSError(errno.ENOSPC, "No space left on device"), 6, "hub's cache: No space left on device"),
]


@pytest.mark.parametrize(("fault", "code", "said"), FAULTS, ids=lambda value: type(value).__name__)
def test_faults_are_one_line_without_the_hubs_words(
    hub: Hub, fault: Exception, code: int, said: str, tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.fails = fault
    assert init(tmp_path / "work", data, "--vanilla", "org/name@v1") == code
    err = capfd.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    work = ["init", str(tmp_path / "work"), "--benchmark", "folder", "--data", str(data), "--vanilla", "org/name@v1"]
    assert run(["--debug", *work]) == code
    assert SECRET not in err + capfd.readouterr().err
    assert not (tmp_path / "work").exists()


def test_names_that_are_none(cache: Path) -> None:
    with pytest.raises(UsageError, match="no name of a repository"):
        fetch(HubModel("org/na--me", None))
    with pytest.raises(MissingArtifact, match="no folder a/b/c - next: name a checkpoint folder or a hub id"):
        checkpoint("a/b/c")
    assert pinned_model("models/vanilla") is None
    assert pinned_model(f"/models/vanilla@{OLD}") is None
    settings = Settings(models=ModelSettings(vanilla=f"org/na--me@{OLD}"))
    with pytest.raises(MissingArtifact, match="does not hold whole"):
        Workspace(cache, settings).existing_model("vanilla")


def test_pickled_weights_are_refused_and_never_fetched(
    hub: Hub, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    (hub.source / "model.safetensors").unlink()
    assert init(tmp_path / "work", data, "--vanilla", "org/name") == 2
    assert "org/name holds no model in safetensors" in capfd.readouterr().err
    assert not any(name.endswith((".bin", ".pt", ".py")) for name in hub.fetched)
    with pytest.raises(InputRefused, match=r"pytorch_model\.bin may run code when read.*docs/checkpoints\.md"):
        checkpoint(str(hub.source))


def test_a_foreign_model_by_its_id(hub: Hub, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws", Settings())
    assert workspace.find_model("org/name") == ("org.name", hub.cache / "models--org--name/snapshots" / NEW)
    assert workspace.find_model("org/name@v1") == ("org.name+v1", hub.cache / "models--org--name/snapshots" / OLD)
    shutil.copytree(hub.source, workspace.path("models", "org.name"))
    with pytest.raises(UsageError, match=r"would be called 'org\.name', as a model here is"):
        workspace.find_model("org/name")
    assert workspace.find_model("org.name") == ("org.name", workspace.path("models", "org.name"))
    with pytest.raises(RemoteFault, match="no such repository"):
        workspace.find_model("org/other")


def test_a_path_stays_a_path(cache: Path, tmp_path: Path, tiny_llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_llava, "models/mine")
    workspace = Workspace(tmp_path / "ws", Settings())
    assert workspace.find_model("models/mine") == ("mine", tmp_path / "models/mine")
    with pytest.raises(MissingArtifact, match="no model folder"):
        workspace.find_model("models/nine")
    assert checkpoint("models/mine") == str(tmp_path / "models/mine")


def test_eval_of_ids_and_paths(
    hub: Hub, tmp_path: Path, data: Path, tiny_qwen2_vl: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Foreign models of either family, beside vanilla; two revisions have scores of their own."""
    root = tmp_path / "work"
    assert init(root, data, "--vanilla", "org/name") == 0
    assert run(["-w", str(root), "eval", "vanilla", "org/name", "org/name@v1", str(tiny_qwen2_vl)]) == 0
    scored = {path.stem for path in (root / "evals").glob("*.json")}
    assert scored == {"vanilla", "org.name", "org.name+v1", tiny_qwen2_vl.name}
    capfd.readouterr()
    assert run(["-w", str(root), "eval", "org/none"]) == 7


def test_unlearning_starts_from_the_cache_and_leaves_it_as_it_is(
    hub: Hub, tmp_path: Path, data: Path, tiny_llava: Path
) -> None:
    root = tmp_path / "work"
    assert init(root, data, "--vanilla", "org/name") == 0
    before = {path: path.read_bytes() for path in hub.cache.rglob("*") if path.is_file()}
    assert run(["-w", str(root), "apply", "--method", "ga", "--learning-rate", "1e-2"]) == 0
    made = root / "models" / "ga"
    assert not any(path.is_symlink() for path in made.iterdir())
    for path in tiny_llava.iterdir():
        same = (made / path.name).read_bytes() == path.read_bytes()
        assert same == (path.name != "model.safetensors")
    assert run(["-w", str(root), "verify", "ga"]) == 0
    assert {path: path.read_bytes() for path in hub.cache.rglob("*") if path.is_file()} == before
