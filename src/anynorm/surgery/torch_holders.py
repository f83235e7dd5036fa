"""What holds modules and tensors of a torch model besides its modules: attributes, containers, functions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import partial
from itertools import chain
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any

import torch
from torch import nn

# What a module registers; all else that it has is looked through, but for hooks of its state dictionary.
_REGISTERED = ("_modules", "_parameters", "_buffers")


def held_elsewhere(model: nn.Module) -> dict[int, str]:
    """Which modules and tensors of a model something else holds besides, by their ids, and what does.

    An exchange of modules does not reach those, and a forward that calls them there would go on with the old ones.
    Looked through are containers, data classes, partial functions, methods, and what functions have enclosed; not the
    attributes of other objects, which may lead to all there is.

    """
    registered = {id(module) for module in model.modules()}
    found: dict[int, str] = {}
    for module, place, held in _all_held(model):
        inside = [held] if id(held) in registered or isinstance(held, torch.Tensor) else _parts(held)
        found.update({id(one): place for one in inside if one is not module})
    return found


def check_apart(model: nn.Module, copy: nn.Module) -> None:
    """Raise where a copy of a model goes on with parts of the model itself, as functions do, which are not copied."""
    own = {id(one) for one in _parts(model)}
    for _, place, held in _all_held(copy):
        if id(held) in own:
            raise ValueError(
                f"the model cannot be copied: the function in {place} has enclosed a {type(held).__name__} of the "
                "model, and in a copy too would go on with that; inplace=True changes the model itself"
            )


def _all_held(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Modules and tensors that are held, with the module that does, and its attribute in words."""
    for name, module in model.named_modules():
        seen: set[int] = set()
        for key, value in vars(module).items():
            if key not in _REGISTERED and "state_dict" not in key:
                for held in _held(value, seen):
                    yield module, f"{name}.{key}".lstrip("."), held


def _parts(module: nn.Module) -> Iterator[Any]:
    return chain(module.modules(), module.parameters(), module.buffers())


def _held(value: Any, seen: set[int]) -> Iterator[Any]:
    """The modules and tensors that a value holds."""
    if isinstance(value, nn.Module | torch.Tensor):
        yield value
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    for one in _contents(value):
        yield from _held(one, seen)


def _contents(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset | deque):
        return list(value)
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return [value.__self__]
    if isinstance(value, FunctionType):
        return [*map(_enclosed, value.__closure__ or ()), *(value.__defaults__ or ())]
    if isinstance(value, SimpleNamespace) or (is_dataclass(value) and not isinstance(value, type)):
        return list(vars(value).values()) if hasattr(value, "__dict__") else []
    return []


def _enclosed(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing is there yet
        return None
