"""Finding methods: built in, installed by another package (entry points), or in a file of one's own."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import traceback
from pathlib import Path
from typing import Any, get_args

from mmsurgery.backbones.discovery import Plugin, plugin, plugins
from mmsurgery.backbones.discovery import described as rows
from mmsurgery.errors import UsageError, unknown
from mmsurgery.interruption import Interrupted
from mmsurgery.methods.base import Beside, Budget, Method, Reference
from mmsurgery.provenance import sha256_file

GROUP, OWN = "mmsurgery.methods", "mmsurgery"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
_REFERENCES, _BESIDE = frozenset(get_args(Reference)), frozenset(get_args(Beside))
STOPS = (KeyboardInterrupt, Interrupted)
"""What somebody else asks for while someone's code runs."""


def installed() -> list[Plugin]:
    """The installed methods, sorted by name; importing none."""
    return plugins(GROUP)


def method(name: str) -> Method:
    """The method of a name, or of `path.py:Name`; in a name `-` is `_`.

    Raises:
        UsageError: if there is none (with the nearest name), if two distributions claim the name, or
            if what is found is no method.
    """
    if ".py:" in name:
        return _from_file(*name.rsplit(":", 1))
    name = name.replace("-", "_")
    chosen = plugin(GROUP, "method", name)
    code = None if chosen.distribution == OWN else f"{chosen.distribution} {chosen.version}"
    found = _checked(chosen.load(), f"'{chosen.origin}' of {chosen.distribution}", code)
    if found.name != name:
        raise UsageError(
            f"'{chosen.origin}' of {chosen.distribution} calls itself '{found.name}', its entry point '{name}'",
            f"update or remove {chosen.distribution}",
        )
    return found


def _from_file(file: str, attribute: str) -> Method:
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"no file {path} to take method {attribute} from", "write --method path.py:Name")
    spec = importlib.util.spec_from_file_location(f"mmsurgery_method_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be imported", "write --method path.py:Name")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except STOPS:
        raise
    except BaseException as error:  # someone's code: anything can come out of it
        raise UsageError(f"{path} cannot be imported: {said(error, path)}", "mend the file") from error
    known = [n for n, value in vars(module).items() if isinstance(value, type) and issubclass(value, Method)]
    if attribute not in known:
        raise unknown(f"method class in {path}", attribute, (n for n in known if n != "Method"))
    found = _checked(getattr(module, attribute), f"{attribute} of {path}", sha256_file(path))
    if taken := [each for each in installed() if each.name == found.name]:
        what = f"{attribute} of {path} is named '{found.name}', as a method of {taken[0].distribution} is"
        raise UsageError(what, "give it a name of its own")
    return found


def said(error: BaseException, path: Path | None = None) -> str:
    """What someone's code raised, and in which line of its file."""
    lines = [each.lineno for each in traceback.extract_tb(error.__traceback__) if each.filename == str(path)]
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{text} (line {lines[-1]})" if lines else text


def _checked(candidate: Any, where: str, code: str | None) -> Method:
    if not (isinstance(candidate, type) and issubclass(candidate, Method)):
        raise UsageError(f"{where} is no method", "derive it from mmsurgery.methods.base.Method")
    missing = [name for name in ("name", "title", "equation") if not isinstance(getattr(candidate, name, None), str)]
    if missing or candidate.__abstractmethods__:
        lacking = ", ".join([*missing, *sorted(candidate.__abstractmethods__)])
        raise UsageError(f"{where} lacks {lacking}", "see mmsurgery.methods.base.Method")
    if not _NAME.fullmatch(candidate.name):
        raise UsageError(f"{where} is named '{candidate.name}'", "use lower-case letters, digits and '_'")
    if not isinstance(candidate.references, (set, frozenset)):
        raise UsageError(f"{where} has references {candidate.references!r}", "make them a frozenset of names")
    if odd := candidate.references - _REFERENCES:
        raise UsageError(f"{where} asks for reference '{min(odd)}'", f"known: {', '.join(sorted(_REFERENCES))}")
    if not isinstance(candidate.budget, (Budget, type(None))):
        raise UsageError(f"{where} has budget {candidate.budget!r}", "make it a mmsurgery.methods.base.Budget")
    candidate.code = code
    try:
        made = candidate()
        sets = made.beside()
        json.dumps(made.settings(), allow_nan=False)
    except STOPS:
        raise
    except TypeError as error:
        raise UsageError(f"{where} cannot be made: {error}", "give every setting a default, of plain JSON") from error
    except BaseException as error:
        raise UsageError(f"{where} cannot be made: {said(error)}", "mend it") from error
    if odd_sets := sorted(set(sets) - _BESIDE):
        raise UsageError(f"{where} asks for data '{odd_sets[0]}'", f"known: {', '.join(sorted(_BESIDE))}")
    return made


def described() -> list[dict[str, str]]:
    """One row per installed method: name, title, equation, and where it is from."""
    return rows(GROUP, "title", "equation")
