"""A module of torch.nn that becomes one of another class where it is: lazy and parametrized ones too."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer
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
        module.__class__ = _lazy_class(own.made_of if issubclass(own, _Lazy) else own, kind)
        return
    if parametrize.is_parametrized(module):
        # torch gave it a class of its own, whose properties compute the parameters.
        rest = {key: value for key, value in vars(own).items() if key not in ("__dict__", "__weakref__")}
        module.__class__ = type(own.__name__, (kind,), rest)
    else:
        module.__class__ = kind
    _count_channels(module)


def _count_channels(module: Any, input: Tensor | None = None) -> None:
    """Set the number that torch's lazy norms leave at 0 where a state dictionary gave them their parameters."""
    if getattr(module, "num_features", None) != 0:
        return
    for name in ("weight", "bias", "running_mean", "running_var"):
        values = getattr(module, name, None)
        if values is not None:
            module.num_features = len(values)
            return
    if input is not None:
        module.num_features = input.shape[1]


class _Lazy:
    """What stands in front of torch's lazy class: it takes more than the input, and can be copied before the first."""

    made_of: type

    def initialize_parameters(self: Any, input: Tensor, *_: Any, **rest: Any) -> None:
        # torch takes axis 1 for the channels, whether there is a batch or not.
        is_single = hasattr(self, "_get_no_batch_dim") and input.dim() == self._get_no_batch_dim()
        input = input.unsqueeze(0) if is_single else input
        super().initialize_parameters(input)  # type: ignore[misc]
        _count_channels(self, input)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        # torch has looked this method up before the first input changed the class.
        if isinstance(self, _Lazy):
            raise RuntimeError("a lazy module is made by its first input: call the module, not its forward")
        return self.forward(*args, **kwargs)

    def __reduce_ex__(self: Any, _: Any) -> tuple[Any, ...]:
        # The class itself is made anew in each process, so that pickle cannot find it.
        return _new, (self.made_of, self.cls_to_become), self.__getstate__()

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        # torch's own lazy buffers, unlike its lazy parameters, cannot be copied.
        for buffer in self._buffers.values():
            if isinstance(buffer, UninitializedBuffer):
                memo[id(buffer)] = UninitializedBuffer(device=buffer.data.device, dtype=buffer.data.dtype)  # type: ignore[call-arg]
        twin = memo[id(self)] = _new(self.made_of, self.cls_to_become)
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin


@lru_cache
def _lazy_class(made_of: type, kind: type) -> Any:
    """torch's lazy class, that becomes `kind`."""
    return type(made_of.__name__, (_Lazy, made_of), {"cls_to_become": kind, "made_of": made_of})


def _new(made_of: type, kind: type) -> Any:
    lazy = _lazy_class(made_of, kind)
    return lazy.__new__(lazy)
