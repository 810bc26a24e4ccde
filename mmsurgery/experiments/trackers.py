"""Experiment trackers by the names that accelerate knows them by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsurgery.errors import UsageError, unknown
from mmsurgery.provenance import canonical_json

_PACKAGES = {"aim": "aim<4"}
"""What to install for a tracker, where it is not the tracker's name."""
_ONE_CLOCK = frozenset({"wandb"})
"""Trackers that drop what is logged at a smaller step than before; each run of a grid begins at step 0."""


class Trackers:
    """Trackers of a run; what fails is told once and not used any more.

    Args:
        names: as accelerate knows them: `tensorboard`, `wandb`, `mlflow` ... Nothing is imported where there are none.
        run: the run's name, for people.
        folder: where trackers that write files do so.
        settings: what is logged once as the run's configuration; nested ones get dotted names.
        note: told what fails.

    Raises:
        UsageError: for an unknown name, a tracker that is not installed, or one that does not start.
    """

    def __init__(
        self, names: Sequence[str], run: str, folder: Path, settings: Mapping[str, Any], note: Callable[[str], None]
    ) -> None:
        self._note = note
        self._active: dict[str, Any] = {}
        classes = {name: _find(name) for name in names}
        if classes:
            from accelerate import PartialState

            PartialState()  # trackers ask it which process they are in
        for name, tracker in classes.items():
            try:
                self._active[name] = _start(tracker, run, folder, _flat(settings))
            except Exception as error:
                self.close()
                raise UsageError(f"tracker '{name}' does not start: {error}", "set it up, or leave it out") from error

    def log(self, place: str, values: Mapping[str, float], step: int | None) -> None:
        """Log numbers as `place/NAME` at a step."""
        named = {f"{place}/{name}" if place else name: value for name, value in values.items()}
        if not named:
            return
        for name in list(self._active):
            if name in _ONE_CLOCK and step is not None:
                at = {f"{place}/step" if place else "step": step}
                self._try(name, "log", {**named, **at}, step=None)
            else:
                self._try(name, "log", named, step=step)

    def close(self) -> None:
        """Finish the trackers' runs."""
        for name in list(self._active):
            self._try(name, "finish")
        self._active = {}

    def _try(self, name: str, what: str, *args: Any, **kwargs: Any) -> None:
        try:
            getattr(self._active[name], what)(*args, **kwargs)
        except Exception as error:  # hours of work are worth more than their curve elsewhere
            del self._active[name]
            self._note(f"tracker '{name}' failed and is switched off: {error}")


def _find(name: str) -> Any:
    """The class of a tracker."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    if name not in LOGGER_TYPE_TO_CLASS:
        raise unknown("tracker", name, LOGGER_TYPE_TO_CLASS)
    own = {str(kind) for kind in LoggerType}
    if name in own and name not in {str(kind) for kind in get_available_trackers()}:
        package = _PACKAGES.get(name, name)
        raise UsageError(f"tracker '{name}' needs the package {package}", f'pip install "{package}", or leave it out')
    return LOGGER_TYPE_TO_CLASS[name]


def _start(tracker: Any, run: str, folder: Path, settings: Mapping[str, Any]) -> Any:
    if tracker.requires_logging_directory:
        folder.mkdir(parents=True, exist_ok=True)
    made = tracker(run, str(folder)) if tracker.requires_logging_directory else tracker(run)
    made.start()
    made.store_init_configuration(dict(settings))
    return made


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, bool | int | float | str]:
    """Settings of one level, of the types that every tracker takes."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{key}.")
        else:
            plain = isinstance(value, bool | int | float | str)
            flat[f"{above}{key}"] = value if plain else canonical_json(value).decode()
    return flat
