"""Canonical parameter names, their addresses in a model, and selectors over addresses.

A canonical name is the transformers 5 in-memory name from `named_parameters()` of the unwrapped
model. A backbone gives each name an `Address`; masks, saliency maps and diffs are read by address.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mmsurgery.errors import InputRefused, UsageError, nearest

GROUPS = ("vision", "connector", "lm")
"""Module groups of a multimodal LLM; every parameter is in exactly one. The output head is `lm`."""

COMPONENTS = (
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.o",
    "attn.qkv",
    "mlp.gate",
    "mlp.up",
    "mlp.down",
    "mlp.fc1",
    "mlp.fc2",
    "norm",
    "embed",
    "head",
    "proj",
)
"""Component names; a bias goes with its weight. `proj` is a linear layer of the connector."""

_NAME = re.compile(r"[A-Za-z0-9_.]{1,512}")
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"})
_ARTIFACT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
_LAYER = "(?:0|[1-9][0-9]{0,5})"
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


class Address(NamedTuple):
    """Where a parameter sits: `lm.8.mlp.down`, `vision.0.attn.q`, `connector.proj`, `lm.head`."""

    group: str
    layer: int | None
    component: str

    def __str__(self) -> str:
        return ".".join(str(part) for part in self if part is not None)

    @property
    def layer_key(self) -> str:
        """`lm.8`; for a parameter without a layer its group alone."""
        return self.group if self.layer is None else f"{self.group}.{self.layer}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address written as `str(address)`.

        Raises:
            InputRefused: if the text is not an address.
        """
        group, _, rest = text.partition(".")
        head, _, tail = rest.partition(".")
        layer, component = (int(head), tail) if re.fullmatch(_LAYER, head) else (None, rest)
        if group not in GROUPS or component not in COMPONENTS:
            raise InputRefused(f"'{text}' is not an address (group[.layer].component)", "write one as lm.3.attn.q")
        return cls(group, layer, component)


def model_order(key: str) -> tuple[int, bool, int, int, str]:
    """Sorts groups, layer keys and addresses (`lm`, `lm.8`, `lm.8.mlp.down`) the way a model is run: vision,
    connector, language model; layers from 0, what has none after them; components as in `COMPONENTS`."""
    group, _, rest = key.partition(".")
    head, _, tail = rest.partition(".")
    layer, component = (int(head), tail) if head.isdigit() else (0, rest)
    place = COMPONENTS.index(component) if component in COMPONENTS else -1
    return GROUPS.index(group) if group in GROUPS else len(GROUPS), not head.isdigit(), layer, place, key


def check_parameter_name(name: str) -> str:
    """Return `name` if it can be a canonical parameter name.

    Raises:
        InputRefused: for empty names, names over 512 characters or with other characters.
    """
    if not _NAME.fullmatch(name):
        raise InputRefused(f"'{name[:80]}' cannot be a parameter name")
    return name


def unwrapped(name: str) -> str:
    """`name` without what DistributedDataParallel, torch.compile, FSDP 1, checkpoint wrappers and PEFT
    (`base_model.model.`, `.base_layer`) put into parameter names."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    return ".".join(parts[2:] if parts[:2] == ["base_model", "model"] else parts)


def check_artifact_name(name: str) -> str:
    """Return `name` if it can name a file or folder of a workspace.

    Raises:
        UsageError: for path separators, a leading dot or dash, reserved names, over 100 characters.
    """
    if not is_artifact_name(name):
        raise UsageError(
            f"'{name[:80]}' cannot name an artifact",
            "use up to 100 letters, digits, '_', '-', '+' and '.', starting with a letter or digit; "
            "names that some system reserves, such as CON, are out",
        )
    return name


def is_artifact_name(name: str) -> bool:
    """Whether `name` can name a file or folder of a workspace, see `check_artifact_name`."""
    sound = _ARTIFACT_NAME.fullmatch(name) and not _RESERVED.fullmatch(name)
    return bool(sound) and not name.endswith(".") and ".." not in name


@dataclass(frozen=True)
class _Term:
    text: str
    group: str
    layers: tuple[int, int] | None
    component: tuple[str, ...]

    def matches(self, address: Address) -> bool:
        if address.group != self.group:
            return False
        if self.layers is not None and not (
            address.layer is not None and self.layers[0] <= address.layer <= self.layers[1]
        ):
            return False
        return tuple(address.component.split("."))[: len(self.component)] == self.component


class Selector:
    """Comma-separated `group[.N|.N-M][.component]`; layer ranges are inclusive.

    After the group a field of digits is layers, the rest a dot-prefix of the component
    (`attn` matches `attn.q`). A range excludes parameters without a layer.

    Raises:
        UsageError: if the text cannot be read as a selector.
    """

    def __init__(self, text: str) -> None:
        self.terms = tuple(_parse_term(part.strip()) for part in text.split(","))
        self.text = ",".join(term.text for term in self.terms)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Selector({self.text!r})"

    def matches(self, address: Address) -> bool:
        """Whether any term matches the address."""
        return any(term.matches(address) for term in self.terms)

    def select(self, addresses: Mapping[str, Address]) -> set[str]:
        """The names whose address matches.

        Raises:
            UsageError: if a term matches no parameter, naming the nearest address that exists; or if
                its layer range goes on beyond the last layer.
        """
        for term in self.terms:
            if not any(term.matches(address) for address in addresses.values()):
                raise _matches_nothing(term, addresses.values())
            if term.layers is not None:
                last = max(a.layer for a in addresses.values() if a.group == term.group and a.layer is not None)
                if term.layers[1] > last:
                    raise _beyond(term, last)
        return {name for name, address in addresses.items() if self.matches(address)}


def _parse_term(text: str) -> _Term:
    fields = text.split(".")
    group, rest = fields[0], fields[1:]
    if group not in GROUPS:
        guess = nearest(group, GROUPS)
        hint = f"did you mean '{guess}'? " if guess else ""
        raise UsageError(f"selector '{text}' starts with no module group", f"{hint}groups: {', '.join(GROUPS)}")
    layers = None
    if rest and re.fullmatch(f"{_LAYER}(-{_LAYER})?", rest[0]):
        first, _, last = rest[0].partition("-")
        layers = (int(first), int(last or first))
        if layers[0] > layers[1]:
            raise UsageError(f"selector '{text}' has an empty layer range", f"write {group}.{last}-{first}")
        rest = rest[1:]
    if any(not field for field in rest):
        raise UsageError(f"selector '{text}' has an empty field", "write group[.N|.N-M][.component]")
    return _Term(text, group, layers, tuple(rest))


def _beyond(term: _Term, last: int) -> UsageError:
    head, _, rest = term.text.partition(f"-{term.layers[1] if term.layers else last}")
    hint = head + (f"-{last}" if head != f"{term.group}.{last}" else "") + rest
    what = f"selector '{term.text}' goes beyond the last layer of {term.group}, which is {last}"
    return UsageError(what, f"write {hint}")


def _matches_nothing(term: _Term, addresses: Iterable[Address]) -> UsageError:
    existing: set[str] = set()
    for address in addresses:
        parts = address.component.split(".")
        for depth in range(len(parts) + 1):
            component = ".".join(parts[:depth])
            for base in {address.group, address.layer_key}:
                existing.add(f"{base}.{component}" if component else base)
    guess = nearest(term.text, sorted(existing)) or term.group
    return UsageError(f"selector '{term.text}' matches no parameter of this model", f"nearest that does: {guess}")
