"""Keras's layers and anynorm's of the same name, with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from shapes import Case

import anynorm.keras


def makers(case: Case, scale: Any, offset: Any, ready: Callable[[Any], Any]) -> dict[str, Callable[[], Any]]:
    """What makes each contender; `ready` turns a built layer into one."""

    def maker(module: Any) -> Callable[[], Any]:
        return lambda: ready(_built(module, case, scale, offset))

    return {"anynorm.keras": maker(anynorm.keras), "Keras": maker(keras.layers)}


def _built(module: Any, case: Case, scale: Any, offset: Any) -> Any:
    layer = getattr(module, case.family.keras)(**case.keras_arguments())
    layer.build(case.shape)
    for variable, value in zip(layer.trainable_variables, (scale, offset), strict=False):
        variable.assign(value)
    return layer


def training(case: Case) -> dict[str, bool]:
    """The call arguments under which a layer uses the batch's statistics."""
    return {"training": True} if case.family.keras == "BatchNormalization" else {}


def layer_of(function: Callable[[Any], Any]) -> Any:
    """A layer that calls a function and nothing else."""

    class Through(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return function(x)

    return Through()
