"""Which framework a model is of, found out without importing one."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


# Import statements rather than import_module, for tools that look for imports.
def _keras() -> ModuleType:
    from . import keras

    return keras


def _torch() -> ModuleType:
    from . import torch

    return torch


# Keras comes first: under its torch backend a layer of Keras is a module of torch as well.
_SIDES = (("keras.layers", "Layer", _keras), ("torch.nn", "Module", _torch))


def side_of(model: Any) -> ModuleType:
    """What does the work for a model like this.

    Raises:
        TypeError: it is no model of Keras or torch.
    """
    for module, kind, side in _SIDES:
        known = getattr(sys.modules.get(module), kind, None)
        if known is not None and isinstance(model, known):
            return side()
    raise TypeError(f"{type(model).__module__}.{type(model).__name__} is no model of Keras or torch")
