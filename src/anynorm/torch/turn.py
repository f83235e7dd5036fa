"""A module of torch.nn that becomes one of another class where it is: lazy and parametrized ones too."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize


def class_of(module: torch.nn.Module) -> type:
    """A module's class as its author wrote it; for a lazy one the class that it will be."""
    if isinstance(module, LazyModuleMixin) and module.cls_to_become is not None:
        return module.cls_to_become
    return parametrize.type_before_parametrizations(module)


def turn(module: torch.nn.Module, kind: type) -> None:
    """Make a module one of class `kind`; it stays the same object, with all that it has."""
    own = type(module)
    if isinstance(module, LazyModuleMixin):
        module.__class__ = type(own.__name__, (own,), {"cls_to_become": kind, "forward": _forward_anew})
    elif parametrize.is_parametrized(module):
        # torch gave it a class of its own, whose properties compute the parameters.
        rest = {key: value for key, value in vars(own).items() if key not in ("__dict__", "__weakref__")}
        module.__class__ = type(own.__name__, (kind,), rest)
    else:
        module.__class__ = kind


def _forward_anew(self: Any, *args: Any, **kwargs: Any) -> Any:
    # torch has looked this method up before the first input changed the class.
    return type(self).forward(self, *args, **kwargs)
