"""Two ranks that cut up a model train it as one process does: both families, scopes, uneven batches, and failures."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from notes import Notes

from mmsurgery.api import open_workspace
from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.mask import Mask, MaskParameter, pack
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.backbones.discovery import backbone
from mmsurgery.backbones.loading import load
from mmsurgery.data.samples import Sample
from mmsurgery.errors import Mismatch, UnusableData, UsageError
from mmsurgery.memory import Layout
from mmsurgery.methods.ga_diff import GADiff
from mmsurgery.methods.mmunlearner import MMUnlearner
from mmsurgery.names import Address
from mmsurgery.provenance import provenance
from mmsurgery.ranks import Ranks
from mmsurgery.start import initialise
from mmsurgery.unlearn import sharded
from mmsurgery.unlearn.lora import LoRA
from mmsurgery.unlearn.rank_snapshots import snapshots_of
from mmsurgery.unlearn.record import read_record
from mmsurgery.unlearn.shares import Share
from mmsurgery.workspace import Workspace
from mmsurgery_cli.main import run

sys.path.insert(0, str(Path(__file__).parents[1]))
from ranks_pair import Ended, forked, launched

FAMILIES = {"llava": "tiny_llava", "qwen2_vl": "tiny_qwen2_vl"}
FACTS = ("The city is oslo .", "The city is lisbon .", "soup", "Anna Berg")
RECIPE = "[recipe]\nbatch_size = 3\nlearning_rate = 0.005\nepochs = 2\nweight_decay = 0.1\n"
"""Four samples to forget: batches of three and of one, of which one of two ranks has two and one, or one and none."""

APPLY = """
import os, signal, sys
from mmsurgery.artifacts.snapshots import Snapshots
from mmsurgery.interruption import interrupt
from mmsurgery.unlearn import references
from mmsurgery.unlearn.objective import Unlearning
from mmsurgery.unlearn.rank_snapshots import RankSnapshots
from mmsurgery_cli.main import run

wound, *commands, last = sys.argv[1:]
Snapshots.interval = Snapshots.share = 0.0
if wound == "twin":
    references.CACHE = -1
for command in commands:
    assert run(command.split("|")) == 0, command

signal.signal(signal.SIGTERM, lambda number, frame: interrupt(number))
save, call, backward = RankSnapshots.save, Unlearning.__call__, Unlearning._backward

def saving(self, done, *arguments):
    if wound == "kill" and done == 3:
        os._exit(9)
    save(self, done, *arguments)

def calling(self, number):
    if wound == "stop" and number == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    if wound == "raise" and number == 1:
        raise ValueError("out of luck")
    return call(self, number)

def passing(self, term, number):
    if wound == "nan" and number == 1:
        term = term._replace(loss=term.loss * float("nan"))
    return backward(self, term, number)

if os.environ["RANK"] == "1":
    RankSnapshots.save, Unlearning.__call__, Unlearning._backward = saving, calling, passing
sys.exit(run(last.split("|")))
"""
"""What befalls the second rank in the last command, commands that pass, and the last one."""


class Place(NamedTuple):
    """A workspace of a family; one that is worked on by ranks, and one by a single process."""

    family: str
    together: Workspace
    alone: Workspace

    def command(self, name: str, options: str) -> str:
        return f"-w|{self.together.root}|apply|--name|{name}|--method|{options.replace(' ', '|')}"

    def weights(self, ws: Workspace, model: str) -> dict[str, np.ndarray]:
        files = CheckpointFiles(ws.existing_model(model), backbone(self.family).canonical)
        return {name: files.float32(name) for name in files.names}

    def by_one_process(self, name: str, options: str) -> None:
        assert run(["-w", str(self.alone.root), "apply", "--name", name, "--method", *options.split()]) == 0

    def apart(self, name: str) -> float:
        """Norm of the difference of the two models, over that of what one process moved."""
        start, alone, together = (
            self.weights(*of) for of in ((self.alone, "vanilla"), (self.alone, name), (self.together, name))
        )

        def norm(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
            return sum(float(np.square(one[n].astype(float) - other[n]).sum()) for n in start) ** 0.5

        return norm(alone, together) / norm(alone, start)


@pytest.fixture(scope="module")
def places(
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    picture: Callable[..., bytes],
    random_mask: Callable[..., Mask],
) -> dict[str, Place]:
    found = {}
    for family, fixture in FAMILIES.items():
        root, model = tmp_path_factory.mktemp(family), request.getfixturevalue(fixture)
        rows: list[dict[str, Any]] = []
        (root / "data").mkdir()
        for number in range(9):
            (root / "data" / f"{number}.png").write_bytes(picture(number))
            role = "forget" if number < 4 else "retain"
            shown = {"role": role, "person": f"p{number}", "image": f"{number}.png"}
            rows.append({**shown, "question": "What is the city of this person ?", "answer": FACTS[number % 4]})
            rows.append({**shown, "question": "Which food ?", "answer": FACTS[2], "options": list(FACTS)})
        (root / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        initialise(root / "ws", benchmark="folder", data=str(root / "data"), vanilla=str(model))
        settings = root / "ws" / "mmsurgery.toml"
        settings.write_text(settings.read_text().partition("[recipe]")[0] + RECIPE)
        ws = open_workspace(root / "ws")
        random_mask(load(model), "lm,connector").write(ws.mask_path("default"))
        shutil.copytree(ws.root, root / "alone")
        found[family] = Place(family, ws, open_workspace(root / "alone"))
    return found


RUNS = {
    "llava": {
        "forget": "mmunlearner",
        "all": "mmunlearner --scope all",
        "npo": "npo",
        "kl": "kl_min",
        "scored": "ga_diff --protocol official --eval-every 4",
    },
    "qwen2_vl": {"all": "mmunlearner --scope all", "kl": "kl_min --mask default"},
}
CASES = [(family, name) for family, runs in RUNS.items() for name in runs]
KILLED = "mmunlearner --retain-batch 1"


@pytest.fixture(scope="module")
def made(places: dict[str, Place]) -> list[Ended]:
    """What two ranks printed that made the models of `RUNS`; in the last run the second one is killed."""
    commands = [places[family].command(name, RUNS[family][name]) for family, name in CASES]
    llava = places["llava"]
    commands += [commands[0], llava.command("whole", KILLED)]
    return forked(APPLY, "kill", *commands, llava.command("killed", KILLED))


@pytest.mark.parametrize(("family", "name"), CASES)
def test_two_ranks_are_one_process(
    places: dict[str, Place], made: list[Ended], family: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = places[family]
    assert place.together.model_dir(name).exists(), made
    place.by_one_process(name, RUNS[family][name])
    capsys.readouterr()
    ours, theirs = (read_record(ws.model_dir(name)) for ws in (place.together, place.alone))
    assert ours["provenance"].pop("ranks") == 2
    assert "ranks" not in theirs["provenance"]
    assert ours["provenance"]["key"] == theirs["provenance"]["key"]
    assert (ours["steps"], ours["samples"], ours["claim"]) == (theirs["steps"], theirs["samples"], theirs["claim"])
    for one, other in zip(ours["losses"], theirs["losses"], strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    assert ours["evaluations"] == theirs["evaluations"]
    assert 0 < place.apart(name) < 3e-4
    if name == "all":
        start, after = (place.weights(place.together, model) for model in ("vanilla", name))
        mask = Mask.load(place.together.mask_path("default"))
        moved = {each: start[each].view(np.uint32) != after[each].view(np.uint32) for each in start}
        assert not any((moved[each] & ~mask[each]).any() for each in start)
        assert sum(int(bits.sum()) for bits in moved.values()) > 0.95 * mask.selected
        # what is there was made by ranks, or by one process: either takes it for its own
        assert run(["-w", str(place.together.root), "apply", "--name", name, *_given(RUNS[family][name])]) == 0
        assert "up to date" in capsys.readouterr().out


def _given(options: str) -> list[str]:
    return ["--method", *options.split()]


def test_one_rank_speaks_and_what_is_there_is_found(made: list[Ended]) -> None:
    first, second = made
    assert second.out == ""
    assert second.err == ""
    assert first.err.count("the model is cut up among 2 processes") == len(CASES) + 2
    assert first.out.count("up to date") == 1


def test_killed_and_started_again_ends_with_the_same_bytes(places: dict[str, Place], made: list[Ended]) -> None:
    """The first rank's newest snapshot is of step 3, the second one's of step 2: both go on after that. Then the second
    one gets a signal to stop: both do, each with a snapshot."""
    first, second = made
    assert second.code == 9
    assert first.code == 6, first.err
    assert first.err.splitlines()[-1].startswith("error[6]: rank 1 of 2 ended: killed")
    llava = places["llava"]
    models = llava.together.path("models")
    folder = models / ".resume-killed"
    assert sorted(str(path.relative_to(folder)) for path in folder.glob("*/*")) == [
        f"rank-{rank}-of-2/step-0000000{step}.safetensors" for rank, step in ((1, 2), (1, 3), (2, 1), (2, 2))
    ]
    again = forked(APPLY, "stop", llava.command("killed", KILLED), llava.command("stopped", "ga"))
    assert "going on after step 2" in again[0].err
    assert "going on after step 3" not in again[0].err
    whole, resumed = (read_record(models / name) for name in ("whole", "killed"))
    assert resumed["model_sha256"] == whole["model_sha256"]
    assert resumed["losses"] == whole["losses"]
    assert not folder.exists()
    assert [ended.code for ended in again] == [128 + 15, 128 + 15], again
    assert all("it goes on where it stopped" in ended.err for ended in again)
    assert len(list(models.glob(".resume-stopped/rank-*-of-2/step-00000003.safetensors"))) == 2


def test_a_loss_that_is_not_finite_on_one_rank_ends_all_alike(places: dict[str, Place]) -> None:
    ended = forked(APPLY, "nan", places["qwen2_vl"].command("nan", "ga_diff"))
    assert [each.code for each in ended] == [5, 5], ended
    lines = [each.err.splitlines()[-1] for each in ended]
    assert lines[0] == lines[1]
    assert lines[0].startswith("error[5]: step 2: the forget loss is nan (samples ")
    assert not places["qwen2_vl"].together.model_dir("nan").exists()


@pytest.mark.slow
@pytest.mark.parametrize("wound", ["twin", "raise"])
def test_three_ranks_are_one_process(places: dict[str, Place], wound: str) -> None:
    """Of some weights the last rank holds no row. `twin`: vanilla beside the model; `raise`: a rank that fails."""
    runs = {
        "three.forget": "mmunlearner --epochs 1",
        "three.all": "mmunlearner --scope all --epochs 1",
        "three.kl": "kl_min --epochs 1",
        "three.kept": "kl_min --epochs 1 --from three.all",
        "three.low": "mmunlearner --epochs 1 --precision bf16 --scope all",
    }
    for place in places.values():
        models = [place.together.model_dir(name) for name in runs]
        for model in models:
            shutil.rmtree(model, ignore_errors=True)
        last = place.command(f"three.{wound}", "npo --epochs 1")
        ended = launched(APPLY, wound, *(place.command(*each) for each in runs.items()), last, count=3)
        if wound == "raise":
            assert ended[1].code == 70
            assert [ended[0].code, ended[2].code] == [6, 6], ended
            assert "rank 1 of 3 failed: ValueError: out of luck" in ended[0].err
        else:
            assert [each.code for each in ended] == [0, 0, 0], ended
            assert "it stays in memory beside the trained one" in ended[0].err
        for name, options in runs.items():
            if not place.alone.model_dir(name).exists():
                place.by_one_process(name, options)
            assert 0 < place.apart(name) < (0.2 if name == "three.low" else 1e-3), name


# what needs no ranks


@pytest.mark.parametrize("size", range(1, 8))
@pytest.mark.parametrize("count", range(1, 6))
def test_shares_make_up_the_batch(size: int, count: int) -> None:
    batch = tuple(range(10, 10 + size))
    shares = [Share.of(batch, Ranks(rank, count, rank)) for rank in range(count)]
    assert sum(share.weight for share in shares) == pytest.approx(1)
    assert tuple(place for share in shares if share.weight for place in share.places) == batch
    assert all(share.places for share in shares)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (1, 7), (4,), (7, 3, 3)])
@pytest.mark.parametrize("count", range(2, 5))
def test_the_mask_is_cut_up_as_the_weights_are(shape: tuple[int, ...], count: int) -> None:
    """As torch cuts them, also where rows begin within a byte, and where a rank has none."""
    chosen = np.random.default_rng(0).random(shape) < 0.5
    address = Address("lm", 0, "w")
    parts = {"w": MaskParameter(shape, address, pack(chosen))}
    mask = Mask(rule="random", beta=None, estimator=None, mixture=None, modules="lm", parameters=parts, base={})
    weight = torch.from_numpy(chosen)
    for rank in range(count):
        shards = object.__new__(sharded.Shards)
        shards.ranks, shards.cut = Ranks(rank, count, rank), {"w": weight}
        expected = (*weight.chunk(count), *[weight[:0]] * count)[rank]
        assert torch.equal(weight[shards.rows("w")], expected)
        assert shards.bits(mask, "w").tolist() == pack(expected.numpy()).tolist()


class Own(GADiff):
    name = "own"

    def terms(self, step: Any) -> Any:
        yield from super().terms(step)


def test_what_ranks_cannot_do_is_refused(make_sample: Callable[..., Sample]) -> None:
    two = Ranks(0, 2, 0)
    sharded.check(two, MMUnlearner(), None, Layout(checkpointing=True))
    sharded.check(Ranks(), Own(), LoRA(rank=2), Layout(state="disk"))
    with pytest.raises(UsageError, match=r"method own does not say that its terms are means over samples"):
        sharded.check(two, Own(), None, Layout())
    with pytest.raises(UsageError, match=r"LoRA is trained in one process, not in 2"):
        sharded.check(two, GADiff(), LoRA(rank=2), Layout())
    with pytest.raises(UsageError, match=r"state disk is for one process"):
        sharded.check(two, GADiff(), None, Layout(state="disk"))
    samples = [make_sample("shown", "Which food ?", "rice", seed=1), make_sample("told", "Which food ?", "rice")]
    for alike in (samples[:1], samples[1:], []):
        sharded.check_pictures(two, alike)
    sharded.check_pictures(Ranks(), samples)
    with pytest.raises(UnusableData, match="sample told has no picture, others have one"):
        sharded.check_pictures(two, samples)


@pytest.mark.parametrize("option", ["--plan", "--memory=1GB"])
def test_plans_of_one_process_are_refused(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert run(["apply", "--method", "ga", option]) == 2
    assert f"{option.partition('=')[0]} is about one process, not about 2" in capsys.readouterr().err


@pytest.mark.parametrize(("there", "said"), [("rank-1-of-2", "2 processes"), ("rank-1-of-3", "3 processes")])
def test_snapshots_of_other_ranks_are_refused(tmp_path: Path, there: str, said: str) -> None:
    """Case 66; forced, they are removed with a word."""
    origin, notes, folder = provenance("test", {}, {}), Notes(), Snapshots.folder_of(tmp_path / "made")
    (folder / there).mkdir(parents=True)
    what = f"{folder} holds an interrupted run of {said}, this is of 1"
    with pytest.raises(Mismatch, match=re.escape(what)):
        snapshots_of(tmp_path / "made", origin, Ranks(), notes, force=False)
    alone = snapshots_of(tmp_path / "made", origin, Ranks(), notes, force=True)
    assert notes.texts == [f"{what}: beginning anew"]
    assert not folder.exists()
    alone.save(1, {}, [])
    assert snapshots_of(tmp_path / "made", origin, Ranks(), notes, force=False).folder == folder
    assert (len(notes.texts), folder.exists()) == (1, True)
