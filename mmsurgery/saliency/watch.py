"""Noticing parameters that are used outside the modules that hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mmsurgery.saliency.modules import NotUnderstood


class Watch(TorchFunctionMode):
    """While active, every torch function that makes a tensor from a parameter must be called inside a
    module that holds the parameter; hooks on that module would otherwise miss the use.

    Args:
        holders: parameter -> the modules whose hooks see it.

    Raises:
        NotUnderstood: at such a use.
    """

    def __init__(self, holders: Mapping[nn.Parameter, Sequence[nn.Module]]) -> None:
        super().__init__()
        self._holders = holders
        self._inside: list[nn.Module] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Watch:
        for module in {module for modules in self._holders.values() for module in modules}:
            self._handles.append(module.register_forward_pre_hook(self._open))
            self._handles.append(module.register_forward_hook(self._close))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def _open(self, module: nn.Module, _: Any) -> None:
        self._inside.append(module)

    def _close(self, *_: Any) -> None:
        self._inside.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, (torch.Tensor, tuple, list)) and not isinstance(result, torch.Size):
            for parameter in _parameters([*args, *(kwargs or {}).values()]):
                holders = self._holders.get(parameter)
                if holders is not None and not any(module in holders for module in self._inside):
                    name = getattr(func, "__name__", str(func))
                    where = " and ".join(type(module).__name__ for module in holders)
                    raise NotUnderstood(f"a weight of {where} is used outside of it (by {name})")
        return result


def _parameters(values: Sequence[Any]) -> Iterator[nn.Parameter]:
    for value in values:
        if isinstance(value, nn.Parameter):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _parameters(value)
