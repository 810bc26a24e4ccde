"""`push` and `pull` against a stand-in of the client that keeps repositories in a folder: what leaves, what arrives."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx2
import huggingface_hub
import pytest
import yaml
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._validators import validate_repo_id

from mmsurgery.artifacts.mask import Mask
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.errors import InputRefused, Mismatch, MissingArtifact, RemoteFault, UsageError
from mmsurgery.exchange.card import card
from mmsurgery.exchange.hub import pull, push
from mmsurgery.provenance import seal
from mmsurgery.saliency.measure import measure_saliency
from mmsurgery.settings import Settings
from mmsurgery.workspace import Workspace
from mmsurgery_cli.main import run

if TYPE_CHECKING:
    from mmsurgery.backbones.loading import Loaded

TOKEN = "hf_canaryCANARYcanary"


def response(status: int) -> httpx2.Response:
    request = httpx2.Request("GET", "https://stand-in/", headers={"authorization": f"Bearer {TOKEN}"})
    return httpx2.Response(status, request=request)


class Hub:
    """Repositories in a folder; the methods of `HfApi` that are used, with their names and errors."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.fails: Exception | None = None

    def _folder(self, repository: str) -> Path:
        validate_repo_id(repository)
        if self.fails is not None:
            raise self.fails
        folder = self.root / repository.replace("/", "--")
        if not folder.exists():
            raise RepositoryNotFoundError(f"404 {TOKEN}", response=response(404))
        return folder

    def repo_info(self, repo_id: str, *, repo_type: str, revision: str | None = None) -> Any:
        folder = self._folder(repo_id)
        about = json.loads((folder / "about.json").read_text())
        if revision not in (None, "main", about["sha"]):
            raise RevisionNotFoundError("404", response=response(404))
        return SimpleNamespace(private=about["private"], sha=about["sha"])

    def create_repo(self, repo_id: str, *, private: bool, repo_type: str) -> None:
        self.calls.append(("create_repo", {"private": private}))
        self.put(repo_id, private=private)

    def put(self, repo_id: str, *, private: bool, **files: bytes) -> None:
        folder = self.root / repo_id.replace("/", "--")
        (folder / "files").mkdir(parents=True)
        (folder / "about.json").write_text(json.dumps({"private": private, "sha": "0" * 40}))
        (folder / "files/.gitattributes").write_bytes(b"")
        for name, data in files.items():
            (folder / "files" / name).write_bytes(data)

    def list_repo_files(self, repo_id: str, *, repo_type: str) -> list[str]:
        return [path.name for path in (self._folder(repo_id) / "files").iterdir()]

    def upload_folder(
        self, *, repo_id: str, folder_path: str, repo_type: str, allow_patterns: list[str], commit_message: str
    ) -> Any:
        files = {path.name for path in Path(folder_path).rglob("*")}
        chosen = {name for name in files if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns)}
        self.calls.append(("upload_folder", {"there": files, "sent": chosen}))
        folder = self._folder(repo_id)
        for name in chosen:
            shutil.copyfile(Path(folder_path, name), folder / "files" / name)
        about = json.loads((folder / "about.json").read_text())
        about["sha"] = f"{int(about['sha'], 16) + 1:040x}"
        (folder / "about.json").write_text(json.dumps(about))
        return SimpleNamespace(oid=about["sha"])

    def snapshot_download(self, repo_id: str, *, repo_type: str, revision: str, allow_patterns: list[str]) -> str:
        assert revision == self.repo_info(repo_id, repo_type=repo_type).sha
        self.calls.append(("snapshot_download", {"wanted": list(allow_patterns)}))
        target = self.root / "cache" / revision
        target.mkdir(parents=True, exist_ok=True)
        for path in (self._folder(repo_id) / "files").iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copyfile(path, target / path.name)
        return str(target)

    def files(self, repo_id: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self._folder(repo_id) / "files").iterdir()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: found)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return found


@pytest.fixture
def ws(tmp_path: Path, tiny_llava: Path, loaded_llava: Loaded, make_sample: Callable[..., Any]) -> Workspace:
    """A workspace with a vanilla model, a mask and a saliency map."""
    workspace = Workspace(tmp_path / "ws", Settings())
    shutil.copytree(tiny_llava, workspace.model_dir("vanilla"))
    (workspace.root / "mmsurgery.toml").write_text(Settings().to_toml())
    samples = [make_sample(f"s{i}", "What is this ?", "The food is soup .", seed=i) for i in range(2)]
    maps = [
        measure_saliency(loaded_llava, samples[i:], part=part) for i, part in enumerate(("forget_vqa", "retain_vqa"))
    ]
    maps[0].save(workspace.saliency_dir("forget_vqa"))
    from mmsurgery.masks.rule import ratio_mask

    mask = ratio_mask(maps[0], [maps[1]], modules="lm,connector", address=loaded_llava.backbone.address)
    mask.write(workspace.mask_path("default"))
    return workspace


@pytest.fixture
def other(tmp_path: Path, tiny_llava: Path) -> Workspace:
    """A workspace of the same model, with nothing in it."""
    workspace = Workspace(tmp_path / "other", Settings())
    shutil.copytree(tiny_llava, workspace.model_dir("vanilla"))
    return workspace


def sent(hub: Hub) -> set[str]:
    (call,) = [call for name, call in hub.calls if name == "upload_folder"]
    assert call["there"] == call["sent"]
    return set(call["sent"])


def test_a_mask_there_and_back(ws: Workspace, other: Workspace, hub: Hub) -> None:
    result = push(ws, "default", "me/mask")
    assert (result.private, result.kind, result.name) == (True, "mask", "default")
    assert hub.calls[0] == ("create_repo", {"private": True})
    assert sent(hub) == set(result.files) == {"README.md", "heatmap.png", "mask.safetensors", "mmsurgery.json"}
    pulled = pull(other, "me/mask")
    assert (pulled.kind, pulled.name, pulled.up_to_date) == ("mask", "default", False)
    assert pulled.path.read_bytes() == ws.mask_path("default").read_bytes()
    assert Mask.load(pulled.path) == Mask.load(ws.mask_path("default"))
    assert other.journal_entries()[-1]["commit"] == result.commit == pulled.commit
    assert pull(other, "me/mask", revision="main").up_to_date


def test_saliency_there_and_back(ws: Workspace, other: Workspace, hub: Hub) -> None:
    push(ws, "forget_vqa", "me/map")
    assert sent(hub) == {"README.md", "heatmap.png", "manifest.json", "saliency.h5", "mmsurgery.json"}
    path = pull(other, "me/map", name="theirs").path
    assert {p.name: p.read_bytes() for p in path.iterdir()} == {
        p.name: p.read_bytes() for p in ws.saliency_dir("forget_vqa").iterdir()
    }
    assert SaliencyMap.load(path).units == 2
    assert pull(other, "me/map", name="theirs").up_to_date


def test_everybody_may_read_only_what_was_said_to_be_public(ws: Workspace, hub: Hub) -> None:
    hub.put("me/open", private=False)
    with pytest.raises(Mismatch, match="me/open is public"):
        push(ws, "default", "me/open")
    assert set(hub.files("me/open")) == {".gitattributes"}
    assert not push(ws, "default", "me/open", public=True).private
    assert not push(ws, "default", "me/new", public=True).private
    assert hub.calls[-2] == ("create_repo", {"private": False})


def test_a_repository_of_other_things_is_left_alone(ws: Workspace, hub: Hub) -> None:
    hub.put("me/model", private=True, **{"model.safetensors": b"weights"})
    with pytest.raises(Mismatch, match=r"other files, such as model\.safetensors"):
        push(ws, "default", "me/model")
    push(ws, "default", "me/mask")
    with pytest.raises(Mismatch, match=r"such as mask\.safetensors"):
        push(ws, "forget_vqa", "me/mask")
    assert set(hub.files("me/model")) == {".gitattributes", "model.safetensors"}


def test_models_and_damaged_files_do_not_leave(ws: Workspace, hub: Hub) -> None:
    with pytest.raises(UsageError, match="patch create"):
        push(ws, "vanilla", "me/model")
    with pytest.raises(MissingArtifact, match="did you mean 'default'"):
        push(ws, "defaul", "me/mask")
    path = ws.mask_path("default")
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with pytest.raises(InputRefused):
        push(ws, "default", "me/mask")
    assert hub.calls == []


def test_paths_of_this_machine_do_not_leave(ws: Workspace, hub: Hub) -> None:
    from dataclasses import replace

    mask = Mask.load(ws.mask_path("default"))
    replace(mask, provenance={**mask.provenance, "settings": {"data": "/home/me/faces"}}).write(ws.mask_path("mine"))
    with pytest.raises(Mismatch, match="path of this machine: /home/me/faces"):
        push(ws, "mine", "me/mask")
    assert hub.calls == []


def test_nothing_about_the_machine_or_its_owner_is_in_what_is_sent(ws: Workspace, hub: Hub) -> None:
    push(ws, "default", "me/mask")
    everything = b"".join(hub.files("me/mask").values())
    for private in (TOKEN, str(ws.root), "person-s0"):
        assert private.encode() not in everything


def test_the_card_reads_as_markdown_with_front_matter(ws: Workspace, hub: Hub) -> None:
    push(ws, "default", "me/mask")
    text = hub.files("me/mask")["README.md"].decode()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "mmsurgery",
        "tags": ["mmsurgery", "weight-mask", "machine-unlearning"],
    }
    mask = Mask.load(ws.mask_path("default"))
    for line in ("# default", "![By layer and component](heatmap.png)", f"| selected | {mask.selected:,} |"):
        assert line in body
    assert mask.base["model_sha256"] in body
    assert "    mmsurgery apply --method mmunlearner --mask default" in body


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        ({"beta": 0.0, "preserve": "retain_vqa"}, "--beta 0.0 --modules lm --mixture pooled --preserve retain_vqa"),
        (
            {"density": 0.1, "per": "tensor", "control": "random", "seed": 0, "estimator": "batch", "batch_size": 2},
            "--density 0.1 --per tensor --modules lm --control random --seed 0 --mixture pooled --estimator batch "
            "--batch-size 2",
        ),
    ],
)
def test_the_command_on_a_card_makes_the_same_mask(settings: dict[str, Any], command: str) -> None:
    """Settings as a mask records them: what has no meaning there is null."""
    unset = dict.fromkeys(("control", "seed", "estimator", "batch_size"))
    described = {"provenance": {"settings": {"modules": "lm", "mixture": "pooled", **unset, **settings}}}
    assert f"    mmsurgery mask {command}\n" in card("mask", "m", described, picture=None)


def test_foreign_text_on_a_card_is_text() -> None:
    hostile = "x | <img src=x onerror=alert(1)> [a](javascript:b) ![c](d) `e`\n# f\x1b[31m"
    described = {"rule": hostile, "origin": [{"what": hostile, "name": hostile, "about": hostile, "sha256": hostile}]}
    body = card("mask", "m", {**described, "provenance": {"settings": {"expression": hostile}}}, picture=None)
    table = [line for line in body.splitlines() if line.startswith("|")]
    assert not any(sign in "".join(table) for sign in ("<", "](", "`", "\x1b"))
    assert all(line.count("|") == 3 for line in table if line.startswith("| rule"))
    assert "\x1b" not in body
    assert not [line for line in body.splitlines() if line.startswith("# f")]


def test_what_arrives_is_checked(ws: Workspace, other: Workspace, hub: Hub) -> None:
    push(ws, "default", "me/mask")
    folder = hub._folder("me/mask") / "files"
    whole = hub.files("me/mask")

    def refused(message: str) -> None:
        shutil.rmtree(hub.root / "cache", ignore_errors=True)
        with pytest.raises(InputRefused, match=message):
            pull(other, "me/mask")
        for name, data in whole.items():
            (folder / name).write_bytes(data)
        assert other.masks() == []

    data = bytearray(whole["mask.safetensors"])
    data[-1] ^= 1
    (folder / "mask.safetensors").write_bytes(data)
    refused("not as mmsurgery.json says")
    (folder / "mask.safetensors").unlink()
    refused("lacks mask.safetensors")
    (folder / "mmsurgery.json").unlink()
    refused("nothing that mmsurgery pushed")
    (folder / "mmsurgery.json").write_bytes(whole["mmsurgery.json"].replace(b'"mask"', b'"patch"'))
    refused("mmsurgery.json")
    record = json.loads(whole["mmsurgery.json"])
    for key, value in (
        ("files", {"../../evil": {"bytes": 1, "sha256": "0" * 64}}),
        ("files", {}),
        ("files", []),
        ("artifact", "model"),
        ("model_sha256", "0" * 64),
        ("name", 3),
    ):
        (folder / "mmsurgery.json").write_text(json.dumps(seal({**record, key: value})))
        refused("mmsurgery.json")
    (folder / "mmsurgery.json").write_text(json.dumps(seal({**record, "name": "../evil"})))
    shutil.rmtree(hub.root / "cache", ignore_errors=True)
    with pytest.raises((UsageError, InputRefused)):
        pull(other, "me/mask")
    assert other.masks() == []


def test_what_belongs_to_another_model_is_refused(ws: Workspace, hub: Hub, tmp_path: Path, tiny_qwen2_vl: Path) -> None:
    push(ws, "default", "me/mask")
    foreign = Workspace(tmp_path / "foreign", Settings())
    shutil.copytree(tiny_qwen2_vl, foreign.model_dir("vanilla"))
    with pytest.raises(Mismatch, match="belongs to llava weights"):
        pull(foreign, "me/mask")
    assert foreign.masks() == []


def test_another_artifact_of_the_name_is_kept(ws: Workspace, other: Workspace, hub: Hub) -> None:
    push(ws, "default", "me/mask")
    mask = Mask.load(ws.mask_path("default")).restrict("lm")
    mask.write(other.mask_path("default"))
    with pytest.raises(Mismatch, match="exists, and is another"):
        pull(other, "me/mask")
    assert Mask.load(other.mask_path("default")) == mask
    assert pull(other, "me/mask", name="theirs").path == other.mask_path("theirs")
    pull(other, "me/mask", force=True)
    assert Mask.load(other.mask_path("default")) != mask


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (HfHubHTTPError(f"401 {TOKEN}", response=response(401)), "refuses me/mask (status 401)"),
        (HfHubHTTPError(f"500 {TOKEN}", response=response(500)), "refuses me/mask (status 500)"),
        (OfflineModeIsEnabled("offline"), "cannot be reached: offline"),
        (LocalEntryNotFoundError("offline"), "cannot be reached: offline"),
        (httpx2.ConnectError(f"no route {TOKEN}"), "me/mask cannot be reached"),
    ],
)
def test_faults_of_the_hub_are_one_line_without_its_words(
    ws: Workspace, hub: Hub, fault: Exception, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.fails = fault
    for command in (["push", "default", "me/mask"], ["pull", "me/mask"]):
        for debug in ([], ["--debug"]):
            assert run(["-w", str(ws.root), *debug, *command]) == 7
            captured = capfd.readouterr()
            assert said in captured.err
            assert TOKEN not in captured.out + captured.err
            assert debug or len([line for line in captured.err.splitlines() if line.startswith("error")]) == 1


def test_names_and_revisions_that_are_none(ws: Workspace, hub: Hub) -> None:
    for name in ("a/b/c", "-x", "a b", "../x"):
        with pytest.raises(UsageError, match="no name of a repository"):
            push(ws, "default", name)
    with pytest.raises(RemoteFault, match="not there, or not for you"):
        pull(ws, "me/none")
    push(ws, "default", "me/mask")
    with pytest.raises(RemoteFault, match="no such revision"):
        pull(ws, "me/mask", revision="v9")


def test_the_command_line_shows_what_leaves(ws: Workspace, hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["-w", str(ws.root), "push", "default", "me/mask", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert set(document["files"]) == {"README.md", "heatmap.png", "mask.safetensors", "mmsurgery.json"}
    assert document["private"] is True
    assert run(["-w", str(ws.root), "push", "default", "me/mask"]) == 0
    captured = capfd.readouterr()
    assert "sends mask.safetensors" in captured.err
    assert "sent to me/mask (private)" in captured.out
    assert run(["-w", str(ws.root), "pull", "me/mask", "--name", "again"]) == 0
    assert "made" in capfd.readouterr().out
