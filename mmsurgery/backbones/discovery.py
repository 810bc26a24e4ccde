"""Finding plugins by entry points: named, listed without being imported, never guessed."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from mmsurgery.backbones.protocol import Backbone
from mmsurgery.errors import UsageError, printable, unknown

GROUP = "mmsurgery.backbones"


@dataclass(frozen=True)
class Plugin:
    """An entry point of an installed distribution; nothing of it is imported until `load`."""

    name: str
    distribution: str
    version: str
    origin: str
    """Where the object is, as `module:attribute`."""
    entry_point: metadata.EntryPoint

    def load(self) -> Any:
        """Import the object.

        Raises:
            UsageError: if it cannot be imported, naming the distribution.
        """
        try:
            return self.entry_point.load()
        except (Exception, SystemExit) as error:  # a plugin's import can do anything
            raise UsageError(
                f"'{self.name}' of {self.distribution} cannot be imported: {type(error).__name__}: {error}",
                f"reinstall or remove {self.distribution}",
            ) from error


def entry_points(group: str) -> tuple[metadata.EntryPoint, ...]:
    """Those of a group. The folders that modules are imported from are looked through again only if one of them was
    changed: that takes 10 ms, and an experiment asks hundreds of times."""
    return _found(metadata.entry_points, group, tuple((place, _changed(place)) for place in sys.path))


def _changed(place: str) -> int | None:
    try:
        return os.stat(place or ".").st_mtime_ns
    except OSError:
        return None


@functools.lru_cache
def _found(
    read: Callable[..., Any], group: str, places: tuple[tuple[str, int | None], ...]
) -> tuple[metadata.EntryPoint, ...]:
    return tuple(read(group=group))


def plugins(group: str) -> list[Plugin]:
    """All entry points of a group, sorted by name and distribution; two may claim one name."""
    found: dict[tuple[str, str, str], Plugin] = {}
    for point in entry_points(group):
        distribution = point.dist.name if point.dist else "unknown"
        version = point.dist.version if point.dist else "unknown"
        key = (point.name, distribution, point.value)
        found.setdefault(key, Plugin(point.name, distribution, version, point.value, point))
    return [found[key] for key in sorted(found)]


def plugin(group: str, kind: str, name: str) -> Plugin:
    """The one plugin of a group with this name.

    Args:
        kind: what to call it in messages, e.g. `backbone`.

    Raises:
        UsageError: if there is none (with the nearest name), or if two distributions claim it.
    """
    everything = plugins(group)
    claims = [each for each in everything if each.name == name]
    if not claims:
        raise unknown(kind, name, {each.name for each in everything})
    if len(claims) > 1:
        both = " and ".join(f"{each.distribution} ({each.origin})" for each in claims)
        raise UsageError(f"{kind} '{name}' is claimed by {both}", "uninstall one of them")
    return claims[0]


def installed() -> list[Plugin]:
    """The installed backbones; importing nothing."""
    return plugins(GROUP)


def backbone(model_type: str) -> Backbone:
    """The backbone of a config's `model_type`.

    Raises:
        UsageError: if none or more than one is installed, or the plugin is not a backbone.
    """
    chosen = plugin(GROUP, "backbone", model_type)
    loaded = chosen.load()
    if not isinstance(loaded, Backbone) or loaded.model_type != model_type:
        raise UsageError(
            f"'{chosen.origin}' of {chosen.distribution} is no backbone for '{model_type}'",
            f"update or remove {chosen.distribution}",
        )
    return loaded


def described(group: str, title: str, *more: str) -> list[dict[str, str]]:
    """One row per installed plugin: its name, `title` and `more` (attributes of the object), and where it
    is from. One that cannot be imported is listed with the reason as its `title`."""
    rows = []
    for each in plugins(group):
        try:
            found = each.load()
            about = {detail: str(getattr(found, detail, "")) for detail in (title, *more)}
        except UsageError as error:
            about = {title: printable(error.what)} | dict.fromkeys(more, "")
        origin = {"distribution": each.distribution, "version": each.version, "origin": each.origin}
        rows.append({"name": each.name, **about, **origin})
    return rows
