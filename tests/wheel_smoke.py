"""Run by CI outside the checkout, with the installed wheel: the light commands and the first two of the four lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mmsurgery

command = sys.argv[1]


def run(*arguments: str) -> str:
    done = subprocess.run([command, *arguments], check=True, capture_output=True, text=True)
    return done.stdout


assert "site-packages" in mmsurgery.__file__, mmsurgery.__file__
assert "saliency" in run("--help")
assert {row["name"] for row in json.loads(run("methods", "--json"))} >= {"ga", "npo", "mmunlearner"}
assert {row["name"] for row in json.loads(run("backbones", "--json"))} >= {"llava", "qwen2_vl"}
run("init")
run("saliency", "--set", "forget")
mask = json.loads(run("mask", "--beta", "1", "--modules", "lm,connector", "--json"))
assert 0 < mask["density"] < 1
loaded = mmsurgery.Mask.load(Path("masks/default.safetensors"))
assert loaded.density() == mask["density"]
run("report")
assert "Layers by components" in Path("report/index.html").read_text(encoding="utf-8")
print("wheel smoke passed")
