"""Promise 1: a damaged file is refused, never used.

Every format that is read, in variants damaged anew by each seed. What a reader returns is held against what the whole
file says: a variant is refused, or its damage lies in bytes that mean nothing; told apart is data whose digest, which
every artifact made of it names, is another one. Variants are read in a child process: one that dies or hangs is a
fault.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from campaigns import pedigree, small
from campaigns.row import Row
from damage import variants
from PIL import Image

from mmsurgery.artifacts import distributions
from mmsurgery.artifacts.checkpoint import CheckpointFiles
from mmsurgery.artifacts.files import read_json
from mmsurgery.artifacts.mask import Mask
from mmsurgery.artifacts.patch import Patch
from mmsurgery.artifacts.saliency_map import SaliencyMap
from mmsurgery.backbones.discovery import backbone
from mmsurgery.backbones.loading import load
from mmsurgery.data.benchmark import Source, benchmark
from mmsurgery.data.samples import data_sha256
from mmsurgery.diff import read_diff
from mmsurgery.errors import InputRefused, MmsurgeryError
from mmsurgery.evaluate.records import read_eval, read_items
from mmsurgery.exchange.masks import import_mask
from mmsurgery.provenance import check_seal, sha256, sha256_json
from mmsurgery.unlearn.record import read_record
from mmsurgery.workspace import Workspace, find_workspace

sys.path.append(str(Path(__file__).resolve().parents[2] / "data"))  # makers of published data sets

SECONDS, MEMORY = 5, 1 << 30
"""That one variant may take, the memory beyond what the process has."""
KEY = sha256_json({"settings": {}, "inputs": {}})
"""Of the golden artifact of what a vanilla model says."""
REFUSED = (3, 4, 5)
"""Exit codes: broken, not what belongs here, or (a table that was cut between two rows) not enough."""


@dataclass(frozen=True)
class Target:
    """One file, and what reads it."""

    what: str
    path: Path
    read: Callable[[], Any]
    """Returns what it means, to be compared; raises where it is refused."""
    pinned: bool = False
    """Whether another meaning is told apart by the digests that artifacts name."""
    refused: tuple[int, ...] = REFUSED


def run(seed: int, count: int, report: Callable[[str], None]) -> list[Row]:
    """`count` variants, shared over all files."""
    report(f"damaged: seed {seed}")
    rows = []
    with small.kept_if_broken("damaged") as (folder, keep):
        targets = list(made(folder))
        for number, target in enumerate(targets):
            begin, share = time.monotonic(), count // len(targets) + (number < count % len(targets))
            found, faults = _tried(target, seed * 1000 + number, share)
            for how, variant in faults:
                kept = folder / f"broken-{number}-{len(variant)}-{sha256(variant)[:8]}"
                kept.write_bytes(variant)
                keep(kept.name)
                report(f"  {target.what}: {how}: {kept}")
            told = ", ".join(f"{found[kind]} {kind}" for kind in ("refused", "told apart", "the same") if found[kind])
            figure = f"{share - len(faults)} of {share} safe: {told}"
            rows.append(Row(1, target.what, figure, not faults, time.monotonic() - begin))
    return rows


def made(folder: Path) -> Iterator[Target]:
    """One of each kind of file."""
    models = small.models(folder / "models")
    place = pedigree.workspace(folder / "here", models["llava"])
    official = folder / "mask.pt"
    for command in (
        ("patch", "create", "unlearned", "--name", "change"),
        ("export", "default", "--format", "official", "--out", str(official)),
    ):
        ran = place.run(*command)
        assert ran.code == 0, ran.err
    space = find_workspace(place.root)
    SaliencyMap.load(space.saliency_dir("forget_vqa")).save(space.saliency_dir("stored"), store="bfloat16")
    yield Target("mask", space.mask_path("default"), lambda: _mask(space.mask_path("default")))
    yield Target("patch", space.patch_path("change"), lambda: _patch(space.patch_path("change")))
    for what, name in (("saliency map, float32", "forget_vqa"), ("saliency map, bfloat16", "stored")):
        for file in ("saliency.h5", "manifest.json"):
            yield Target(f"{what}: {file}", space.saliency_dir(name) / file, lambda name=name: _map(space, name))
    made_here = space.model_dir("unlearned")
    for file in ("model.safetensors", "config.json", "mmsurgery-run.json"):
        yield Target(f"model: {file}", made_here / file, lambda: (_digest(made_here), read_record(made_here)))
    sharded = models["llava, float16, 2 shards"]
    for file in ("model.safetensors.index.json", sorted(sharded.glob("model-*.safetensors"))[0].name):
        yield Target(f"checkpoint in shards: {file}", sharded / file, lambda: _digest(sharded), pinned=True)
    scores = space.eval_path("unlearned")
    for path in (scores, scores.with_name("unlearned.items.jsonl")):
        yield Target(f"scores: {path.name}", path, lambda: (read_eval(scores), read_items(scores)))
    diff = space.diff_path("vanilla", "unlearned")
    yield Target("diff", diff, lambda: read_diff(diff))
    golden = Path(__file__).parents[1] / "golden" / "schema-1"
    for file, kind in (
        ("results.json", "experiment"),
        ("request.json", "request"),
        ("stability.json", "stability"),
        ("audit.json", "audit"),
        ("measured.json", "measured"),
    ):
        record = Path(shutil.copy(golden / file, folder))
        yield Target(
            file, record, lambda record=record, kind=kind: check_seal(read_json(record), record.name, kind=kind)
        )
    said = Path(shutil.copy(golden / "references.safetensors", folder))
    yield Target("what the vanilla model says", said, lambda: _said(said))
    yield Target("mask of the official code (.pt)", official, lambda: _imported(space, official))
    yield from _data(folder, place)
    for family in ("llava", "qwen2_vl"):  # nothing is known yet of what these files should say
        for file in ("config.json", "tokenizer.json", "processor_config.json", "generation_config.json"):
            what, read = f"{family} when it is first loaded: {file}", lambda family=family: _loaded(models[family])
            yield Target(what, models[family] / file, read, refused=(2, *REFUSED))  # 2: no such family


def _data(folder: Path, place: small.Place) -> Iterator[Target]:
    from clear_files import ClearFiles
    from mllmu_files import Files

    own, rows = Source(place.root / "data", 5), (2, *REFUSED)  # 2: a table cut down to text has no pictures to forget
    for file in ("rows.jsonl", "forget-0.png"):
        path = own.folder / file
        yield Target(f"own pictures: {file}", path, lambda: _samples("folder", own), pinned=True, refused=rows)
    pictures = Source(folder / "pictures", 5)
    pictures.folder.mkdir()
    asked = ["role,person,question,answer,image", "retain,Bo,Who ?,Bo,", "forget,Anna 0,Who else ?,Anna,"]
    for number, form in enumerate(("png", "jpeg", "webp")):
        Image.effect_noise((40, 30), 50).convert("RGB").save(pictures.folder / f"x.{form}")
        asked.append(f"forget,Anna {number},Who ?,Anna,x.{form}")
    (pictures.folder / "rows.csv").write_text("\n".join(asked) + "\n")
    for file in ("x.jpeg", "x.webp", "rows.csv"):
        path = pictures.folder / file
        yield Target(f"pictures: {file}", path, lambda: _samples("folder", pictures), pinned=True, refused=rows)
    mllmu = Source(Files(folder / "mllmu", people=20, celebrities=3, pixels=28).write(), 5)
    clear = Source(ClearFiles(folder / "clear").write(), 5)
    for name, source, config in (("mllmu-bench", mllmu, "ft_Data"), ("clear", clear, "forget05")):
        path = next(p for p in sorted(source.folder.rglob("*.parquet")) if config in p.as_posix())
        read = lambda name=name, source=source: _samples(name, source)  # noqa: E731
        yield Target(f"{name}: {path.relative_to(source.folder)}", path, read, pinned=True)


def _mask(path: Path) -> Any:
    mask = Mask.load(path)
    return mask.rule, mask.base, mask.provenance, {n: (p.shape, p.bits.tobytes()) for n, p in mask.parameters.items()}


def _patch(path: Path) -> Any:
    patch = Patch.load(path)
    return {name: (patch.changed(name).tobytes(), patch.xor(name).tobytes()) for name in patch.names}


def _map(space: Workspace, name: str) -> Any:
    found = SaliencyMap.load(space.saliency_dir(name))
    return found.part, found.units, {each: found.sum_of_squares(each).tobytes() for each in found.arrays}


def _said(path: Path) -> Any:
    """As a run reads it, which makes again what it cannot use."""
    found = distributions.read(path, "abc", KEY)
    if found is None:
        distributions.check(path)
        raise InputRefused(f"{path} is of something else", "make it again")
    return {sample: found[sample].numpy().tobytes() for sample in found}


def _digest(folder: Path) -> str:
    return CheckpointFiles(folder, backbone("llava").canonical).digest()


def _imported(space: Workspace, path: Path) -> Any:
    name = f"imported-{time.monotonic_ns()}"
    import_mask(space, [path], name=name)
    try:
        return _mask(space.mask_path(name))[-1]
    finally:
        space.mask_path(name).unlink()


def _samples(name: str, source: Source) -> str:
    """What the forget set says and shows."""
    reader = benchmark(name)
    found = [sample for part in ("forget_vqa", "forget_qa") for sample in reader.samples(source, part)]
    return data_sha256(found) + sha256(b"".join(image.tobytes() for s in found if (image := s.image) is not None))


def _loaded(folder: Path) -> str:
    return load(folder).backbone.model_type


def _tried(target: Target, seed: int, count: int) -> tuple[Counter[str], list[tuple[str, bytes]]]:
    """How many variants were refused, told apart or the same; the faults, and what provoked them."""
    whole = target.path.read_bytes()
    meaning = _meaning(target)
    left, found, faults = variants(whole, seed, count), Counter[str](), list[tuple[str, bytes]]()
    try:
        variant = next(left, None)
        while variant:
            with _child(target, meaning) as (process, pipe):
                while variant:
                    target.path.write_bytes(variant[1])
                    pipe.send(None)
                    if not pipe.poll(SECONDS + 1):
                        faults.append((f"{variant[0]}: more than {SECONDS} s", variant[1]))
                        break
                    try:
                        how = pipe.recv()
                    except EOFError:
                        process.join()
                        faults.append((f"{variant[0]}: the reader died ({process.exitcode})", variant[1]))
                        break
                    if how in ("refused", "told apart", "the same"):
                        found[how] += 1
                    else:
                        faults.append((f"{variant[0]}: {how}", variant[1]))
                    variant = next(left, None)
                else:
                    break
            variant = next(left, None)
    finally:
        target.path.write_bytes(whole)
    return found, faults


def _meaning(target: Target) -> str:
    found = target.read()
    return found if isinstance(found, str) else sha256(repr(found).encode())


@contextlib.contextmanager
def _child(target: Target, meaning: str) -> Iterator[tuple[Any, Connection]]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_reader, args=(target, meaning, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()
        ours.close()


def _reader(target: Target, meaning: str, pipe: Connection) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    while True:
        pipe.recv()
        begin = time.monotonic()
        how = _outcome(target, meaning)
        pipe.send(how if time.monotonic() - begin < SECONDS else f"more than {SECONDS} s")


def _outcome(target: Target, meaning: str) -> str:
    try:
        found = _meaning(target)
    except MmsurgeryError as error:
        told = error.line()
        return "refused" if error.code in target.refused and " - next: " in told else f"exit code {error.code}: {told}"
    except BaseException as error:  # whatever it is, it is a fault
        return f"{type(error).__name__}: {str(error)[:200]}"
    if found == meaning:
        return "the same"
    return "told apart" if target.pinned else "used, and means something else"
