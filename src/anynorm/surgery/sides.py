"""Which framework a model is of, found out without importing one; and how every receipt ends."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

from .receipt import Receipt


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


def finished(side: Any, changed: Any, measured: Any, receipt: Receipt) -> Receipt:
    """The receipt with what is measured afterwards."""
    receipt.after, receipt.probe = side.numbers(changed), measured.words
    if measured.outputs is not None:
        pairs = list(zip(measured.outputs, measured.run(changed), strict=True))
        if not all(np.isfinite(y).all() for pair in pairs for y in pair):
            receipt.notes.append("outputs on the probe input are not finite, so that no difference can be told")
            return receipt
        receipt.difference = max((float(np.abs(a - b).max(initial=0)) for a, b in pairs), default=0.0)
        receipt.largest = max((float(np.abs(a).max(initial=0)) for a, _ in pairs), default=0.0)
    return receipt
