"""`compose`: algebra over named masks, on packed bits.

expression = term { ("-" | "^" | "|") term }       from the left, one level
term       = factor { "&" factor }
factor     = negation { "@" selector }              restricted to modules
negation   = "~" negation | "(" expression ")" | name
name       = [A-Za-z][A-Za-z0-9_]*, any other in single quotes
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsurgery.artifacts.mask import COMPOSED, Mask, scored_text
from mmsurgery.errors import Mismatch, UnusableData, UsageError, unknown
from mmsurgery.masks.stale import vanilla_files
from mmsurgery.names import Selector, check_artifact_name
from mmsurgery.provenance import differences, provenance

if TYPE_CHECKING:
    from mmsurgery.workspace import Workspace

MAX_OPERATORS = 200
"""Operators and parentheses of one expression."""

_BARE = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_QUOTED = re.compile(r"'([^']*)'")
_SELECTOR = re.compile(r"\s*([A-Za-z_]+(?:\.(?:\d+-\d+|\w+))*(?:,[A-Za-z_]+(?:\.(?:\d+-\d+|\w+))*)*)")
"""A dash belongs to a selector between two layer numbers only; elsewhere it is minus."""

_BINARY: dict[str, Callable[[Mask, Mask], Mask]] = {"-": operator.sub, "^": operator.xor, "|": operator.or_}


@dataclass(frozen=True)
class Expression:
    """A parsed expression.

    Args:
        text: see the module's grammar.

    Raises:
        UsageError: naming the place where it cannot be read, or a selector that cannot.
    """

    text: str
    names: tuple[str, ...] = field(init=False)
    """The masks it names, each once, in order."""
    canonical: str = field(init=False)
    """The one way to write it: one blank around operators, no parentheses or quotes but where they are needed."""
    _evaluate: Callable[[Mapping[str, Mask]], Mask] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parser = _Parser(self.text)
        node = parser.whole()
        object.__setattr__(self, "_evaluate", node.evaluate)
        object.__setattr__(self, "canonical", node.text)
        object.__setattr__(self, "names", tuple(dict.fromkeys(parser.names)))

    def __call__(self, masks: Mapping[str, Mask]) -> Mask:
        """The mask of the expression.

        Raises:
            UsageError: for a name that is not among `masks`, or a selector that matches nothing.
            Mismatch: if the masks belong to different models.
        """
        for name in self.names:
            if name not in masks:
                raise unknown("mask", name, masks)
        return self._evaluate(masks)


def compose(expression: str, masks: Mapping[str, Mask]) -> Mask:
    """The mask of an expression over named masks, such as `(forget & ~language) @ lm.8-15`.

    The result's rule is `compose`; its parents are the masks named, and what they were made from; the
    expression stands in its provenance, in its canonical writing.

    Raises:
        UsageError: for an expression that cannot be read, an unknown name, a selector that matches nothing.
        Mismatch: if the masks belong to different models.
    """
    parsed = Expression(expression)
    result = parsed(masks)
    parents: list[Mapping[str, Any]] = []
    for name in parsed.names:
        mask = masks[name]
        own = {"kind": "mask", "name": name, "rule": mask.rule, "modules": mask.modules}
        for parent in ({**own, "content_sha256": mask.content_sha256}, *mask.parents):
            if parent not in parents:
                parents.append(parent)
    return replace(
        result,
        rule=COMPOSED,
        beta=None,
        estimator=_common(masks[name].estimator for name in parsed.names),
        mixture=_common(masks[name].mixture for name in parsed.names),
        parents=tuple(parents),
        counts={
            "selected": result.selected,
            "total": result.total,
            **scored_text(*(masks[name] for name in parsed.names)),
        },
        provenance=provenance(
            "compose",
            {"expression": parsed.canonical},
            {
                name: {"content_sha256": masks[name].content_sha256, "modules": masks[name].modules}
                for name in parsed.names
            },
        ),
    )


def _common(values: Any) -> Any:
    """What all have in common, else None."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class ComposeResult:
    """What `compose_masks` made or found."""

    name: str
    path: Path
    mask: Mask = field(repr=False)
    up_to_date: bool


def compose_masks(workspace: Workspace, expression: str, *, name: str, force: bool = False) -> ComposeResult:
    """Make `masks/NAME.safetensors` from masks of the workspace.

    Raises:
        UsageError: as `compose`; also for a name that the expression itself uses.
        InputRefused: if a mask is damaged.
        Mismatch: if the masks belong to different models, or to another one than vanilla, or another mask has the
            name.
        UnusableData: if nothing is selected.
    """
    path = workspace.mask_path(check_artifact_name(name))
    parsed = Expression(expression)
    if name in parsed.names:
        raise UsageError(f"mask '{name}' cannot be composed of itself", "choose another --name")
    known = workspace.masks()
    for each in parsed.names:
        if each not in known:
            raise unknown("mask", each, known)
    with workspace.lock():
        result = compose(expression, {each: Mask.load(workspace.mask_path(each)) for each in parsed.names})
        _check_base(workspace, parsed.names, result)
        if path.exists() and not force:
            return ComposeResult(name, path, _same(path, result), True)
        if not result.selected:
            raise UnusableData(
                f"the mask '{expression}' selects 0 of {result.total:,} weights", "see what the masks share: inspect"
            )
        result.write(path)
        workspace.journal(
            "compose", name=name, selected=result.selected, total=result.total, expression=parsed.canonical
        )
    return ComposeResult(name, path, result, False)


def _check_base(workspace: Workspace, names: Sequence[str], made: Mask) -> None:
    if "vanilla" not in workspace.models():
        return  # masks are composed where the model is not, too
    vanilla = vanilla_files(workspace)
    theirs = {"model_type": vanilla.model_type, "model_sha256": vanilla.digest()}
    if dict(made.base) != theirs:
        raise Mismatch(
            f"{', '.join(names)}: made for {made.base['model_type']} {made.base['model_sha256'][:12]}, vanilla is "
            f"{theirs['model_type']} {theirs['model_sha256'][:12]}",
            "compose them in the workspace of that model, or make them again: mmsurgery mask --force",
        )


def _same(path: Path, made: Mask) -> Mask:
    there = Mask.load(path)
    if there.provenance.get("key") != made.provenance["key"]:
        other = "rule" if there.rule != COMPOSED else differences(there.provenance, made.provenance)
        raise Mismatch(f"mask '{path.stem}' exists, made with other {other}", "pass --force, or another --name")
    return there


_SUM, _PRODUCT, _RESTRICTION, _ATOM = range(4)
"""How tightly what is parsed binds."""


@dataclass(frozen=True)
class _Node:
    """A part of an expression: its canonical text, how tightly it binds, and its mask as a function of the masks."""

    text: str
    binds: int
    evaluate: Callable[[Mapping[str, Mask]], Mask]

    def within(self, least: int) -> str:
        """Its text where something that binds as `least` or more tightly must stand."""
        return self.text if self.binds >= least else f"({self.text})"


class _Parser:
    """Recursive descent to one node."""

    def __init__(self, text: str) -> None:
        self.text, self.place, self.operators = text, 0, 0
        self.names: list[str] = []

    def whole(self) -> _Node:
        node = self._expression()
        if self._peek():
            raise self._fault("'&', '|', '-', '^' or '@' expected")
        return node

    def _expression(self) -> _Node:
        node = self._term()
        while (sign := self._peek()) in _BINARY:
            self._step()
            node = _pair(_BINARY[sign], sign, _SUM, node, self._term())
        return node

    def _term(self) -> _Node:
        node = self._factor()
        while self._peek() == "&":
            self._step()
            node = _pair(operator.and_, "&", _PRODUCT, node, self._factor())
        return node

    def _factor(self) -> _Node:
        node = self._negation()
        while self._peek() == "@":
            self._step()
            found = _SELECTOR.match(self.text, self.place)
            if found is None:
                raise self._fault("a selector such as lm.8-15 expected")
            self.place = found.end()
            node = _restricted(node, str(Selector(found[1])))
        return node

    def _negation(self) -> _Node:
        sign = self._peek()
        if sign == "~":
            self._step()
            inner = self._negation()
            return _Node(f"~{inner.within(_ATOM)}", _ATOM, lambda masks: ~inner.evaluate(masks))
        if sign == "(":
            self._step()
            inner = self._expression()
            if self._peek() != ")":
                raise self._fault("')' expected")
            self.place += 1
            return inner
        return self._name()

    def _step(self) -> None:
        """Past an operator."""
        self.place += 1
        self.operators += 1
        if self.operators > MAX_OPERATORS:
            raise UsageError(f"the expression has more than {MAX_OPERATORS} operators", "compose in steps")

    def _name(self) -> _Node:
        found = _BARE.match(self.text, self.place)
        quoted = None if found else _QUOTED.match(self.text, self.place)
        if found is None and quoted is None:
            raise self._fault("the name of a mask expected")
        name = found[0] if found else check_artifact_name(quoted[1]) if quoted else ""
        self.place = found.end() if found else quoted.end() if quoted else self.place
        self.names.append(name)
        text = name if _BARE.fullmatch(name) else f"'{name}'"
        return _Node(text, _ATOM, lambda masks: masks[name])

    def _peek(self) -> str:
        """The next character that is no blank, or nothing at the end."""
        while self.place < len(self.text) and self.text[self.place].isspace():
            self.place += 1
        return self.text[self.place : self.place + 1]

    def _fault(self, what: str) -> UsageError:
        where = f"at '{self.text[self.place : self.place + 20]}'" if self.place < len(self.text) else "at its end"
        hint = "write names as a, others as 'a.b'; ~ not, @ modules, & and, - without, ^ either, | or"
        return UsageError(f"the expression '{self.text[:80]}' cannot be read {where}: {what}", hint)


def _pair(combine: Callable[[Mask, Mask], Mask], sign: str, binds: int, left: _Node, right: _Node) -> _Node:
    text = f"{left.within(binds)} {sign} {right.within(binds + 1)}"
    return _Node(text, binds, lambda masks: combine(left.evaluate(masks), right.evaluate(masks)))


def _restricted(node: _Node, selector: str) -> _Node:
    text = f"{node.within(_RESTRICTION)} @ {selector}"
    return _Node(text, _RESTRICTION, lambda masks: node.evaluate(masks).restrict(selector))
