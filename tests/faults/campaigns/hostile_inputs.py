"""Hostile models and data."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from campaigns.scene import MEASURE, Bomb, Plant, Scene, special, text
from campaigns.small import rows

from mmsurgery.artifacts.tensors import read_header, read_tensor

# models


def _model(name: str, change: Callable[[Any, Scene], Any], command: tuple[str, ...] = MEASURE) -> Plant:
    """Vanilla with a JSON file of its changed."""

    def plant(scene: Scene) -> tuple[str, ...]:
        path = scene.place.vanilla / name
        value = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(change(value, scene)))
        (scene.place.vanilla / "evil.py").write_text(f"import os\nos.mkdir({str(scene.marker)!r})\nclass Evil: pass\n")
        return command

    return plant


def _sharded(change: Callable[[dict[str, str], Scene], object], **metadata: int) -> Plant:
    """Vanilla in two shards, the table of its index changed."""

    def plant(scene: Scene) -> tuple[str, ...]:
        from safetensors.numpy import save_file

        single = scene.place.vanilla / "model.safetensors"
        header = read_header(single)
        names = sorted(header.tensors)
        table = {name: f"model-{place % 2}.safetensors" for place, name in enumerate(names)}
        for shard in set(table.values()):
            held = {n: read_tensor(single, header.tensors[n]) for n in names if table[n] == shard}
            save_file(held, single.with_name(shard), {"format": "pt"})
        single.unlink()
        change(table, scene)
        index = {"metadata": metadata, "weight_map": table}
        single.with_name("model.safetensors.index.json").write_text(json.dumps(index))
        return MEASURE

    return plant


def _linked_out(table: dict[str, str], scene: Scene) -> None:
    shard = scene.place.vanilla / "model-0.safetensors"
    shutil.move(shard, scene.baits / shard.name)
    shard.symlink_to(scene.baits / shard.name)


def _file_linked_out(name: str) -> Plant:
    """A file of vanilla is a link to one outside."""

    def plant(scene: Scene) -> tuple[str, ...]:
        path = scene.place.vanilla / name
        shutil.move(path, scene.baits / name)
        path.symlink_to(scene.baits / name)
        return MEASURE

    return plant


def _left_behind(scene: Scene) -> tuple[str, ...]:
    """Case 86: the official code loads this file from the folder that it is started in."""
    (scene.root / "forget_fisher.pt").write_bytes(pickle.dumps(Bomb(scene.marker)))
    return ("mask", "--beta", "1", "--name", "again")


def _template(content: str) -> Plant:
    return special("models/vanilla/chat_template.jinja", text(content), MEASURE)


def _adapter(scene: Scene) -> tuple[str, ...]:
    folder = scene.root / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}')
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(scene.marker)))
    return ("import", "adapter", "--name", "theirs")


def _pickled_weights(scene: Scene) -> tuple[str, ...]:
    (scene.place.vanilla / "model.safetensors").unlink()
    (scene.place.vanilla / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(scene.marker)))
    return MEASURE


# data


def _picture(name: str, make: Callable[[Path, Scene], object] | None = None) -> Plant:
    """One's own pictures, where a row names this one."""

    def plant(scene: Scene) -> tuple[str, ...]:
        if make is not None:
            make(scene.root / "data" / name, scene)
        asked = rows()
        asked[0]["image"] = name.replace("BAITS", str(scene.baits))
        scene.place.write_rows(asked)
        return MEASURE

    return plant


def _png(width: int, height: int) -> bytes:
    """A few kilobytes that decode to `width` times `height` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 7) // 8 + 1) * height, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _parquet(**cells: Any) -> Plant:
    """CLEAR, where a row of the forget split has other cells."""

    def plant(scene: Scene) -> tuple[str, ...]:
        sys.path.append(str(Path(__file__).resolve().parents[2] / "data"))
        from clear_files import ClearFiles

        files = ClearFiles(scene.root / "clear")
        files.change("forget10", 0, **cells)
        settings = scene.root / "mmsurgery.toml"
        settings.write_text(settings.read_text().replace('"folder"', '"clear"').replace('"data"', '"clear"'))
        files.write()
        return MEASURE

    return plant


_EVIL = {"AutoConfig": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
INPUTS: dict[str, tuple[int, Plant]] = {
    "pickled weights": (14, _pickled_weights),
    "pickled adapter": (14, _adapter),
    "parquet picture by a path outside": (19, _parquet(image={"bytes": None, "path": "../../etc/passwd"})),
    "parquet picture by an address": (19, _parquet(image={"bytes": None, "path": "http://localhost/x.png"})),
    "picture of 169 million pixels": (20, _picture("bomb.png", lambda path, s: path.write_bytes(_png(13_000, 13_000)))),
    "picture outside": (19, _picture("../../baits/secret.png")),
    "picture by an absolute path": (19, _picture("BAITS/secret.png")),
    "picture that is a link": (19, _picture("x.png", lambda path, s: path.symlink_to(s.baits / "secret.png"))),
    "picture that is a pipe": (21, _picture("x.png", lambda path, s: os.mkfifo(path))),
    "rows that are a pipe": (21, special("data/rows.jsonl", os.mkfifo, MEASURE)),
    "tokenizer that is a pipe": (21, special("models/vanilla/tokenizer.json", os.mkfifo, MEASURE)),
    "shard outside": (22, _sharded(lambda table, s: table.update({min(table): "../../../../baits/x.safetensors"}))),
    "shard by an absolute path": (22, _sharded(lambda table, s: table.update({min(table): str(s.baits / "x")}))),
    "shard that is a link": (22, _sharded(_linked_out)),
    "shard that is missing": (22, _sharded(lambda table, s: (s.place.vanilla / "model-1.safetensors").unlink())),
    "tensor in another shard": (22, _sharded(lambda table, s: table.update({min(table): "model-1.safetensors"}))),
    "shards of another size": (22, _sharded(lambda table, s: None, total_size=17)),
    "weights that are a link": (22, _file_linked_out("model.safetensors")),
    "tokenizer that is a link": (22, _file_linked_out("tokenizer.json")),
    "configuration that is a link": (22, _file_linked_out("config.json")),
    "model with code": (23, _model("config.json", lambda value, s: {**value, "auto_map": _EVIL})),
    "vision tower with code": (
        23,
        _model("config.json", lambda v, s: {**v, "vision_config": {**v["vision_config"], "auto_map": _EVIL}}),
    ),
    "tokenizer with code": (23, _model("tokenizer_config.json", lambda value, s: {**value, "auto_map": _EVIL})),
    "processor with code": (23, _model("processor_config.json", lambda value, s: {**value, "auto_map": _EVIL})),
    "template that escapes": (
        23,
        _template("{{ cycler.__init__.__globals__.os.mkdir('marker') }}"),
    ),
    "template that looks for classes": (23, _template("{{ ''.__class__.__mro__[1].__subclasses__() }}")),
    "template that includes a file": (23, _template("{% include '/etc/passwd' %}")),
    "file that the official code loads": (86, _left_behind),
}
"""Name -> case, what is planted."""
