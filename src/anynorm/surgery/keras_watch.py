"""Seeing what enters the layers of a Keras model and which weights it reads, though Keras has no hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

# Is told the layer, its input and the mask that came with it.
Look = Callable[[Any, Any, Any], None]


class Reads(keras.StatelessScope):
    """Within it nothing is assigned to any variable, and which ones are read is kept by their ids in `seen`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def get_current_value(self, variable: Any) -> Any:
        self.seen.add(id(variable))
        return super().get_current_value(variable)


@contextmanager
def watched(layers: list[Any], look: Look, **settings: Any) -> Iterator[None]:
    """Within the block, each call of one of the layers tells `look`, and has these settings of the call besides.

    For that they are of a class that tells.
    """
    classes = [type(layer) for layer in layers]
    try:
        for layer in layers:
            # Not through the layer, which would take it for a part of its state.
            object.__setattr__(layer, "__class__", _telling(type(layer), look, settings))
        yield
    finally:
        for layer, kind in zip(layers, classes, strict=True):
            object.__setattr__(layer, "__class__", kind)


def _telling(kind: Any, look: Look, settings: dict[str, Any]) -> type:
    def call(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        look(self, inputs, kwargs.get("mask"))
        return kind.call(self, inputs, *args, **{**kwargs, **settings})

    return type(kind.__name__, (kind,), {"call": call, "__module__": kind.__module__})
