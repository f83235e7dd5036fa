"""Keras's dialect: the layers of keras.layers and of anynorm.keras."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from ..keras import (
    BatchNormalization,
    GroupNormalization,
    InstanceNormalization,
    LayerNormalization,
    Normalization,
    RMSNormalization,
)
from .norm import Array, Norm, canonical, layout_of, neutral, shape_of

CHANNELS, ANY_SENTENCE = "last", True
KINDS = {
    "batch": (keras.layers.BatchNormalization, BatchNormalization),
    "instance": (InstanceNormalization,),
    "group": (keras.layers.GroupNormalization, GroupNormalization),
    "layer": (keras.layers.LayerNormalization, LayerNormalization),
    "rms": (keras.layers.RMSNormalization, RMSNormalization),
    "sentence": (Normalization,),
}


def read(layer: Any) -> Norm:
    kind = next((kind for kind, classes in KINDS.items() if isinstance(layer, classes)), None)
    if kind is None:
        raise TypeError(f"{type(layer).__name__} is no normalization layer of keras.layers or anynorm.keras")
    if not layer.built:
        raise ValueError(f"{layer.name} has no parameters yet: build it, or call it once")
    if getattr(layer, "renorm", False) or getattr(layer, "rms_scaling", False):
        raise ValueError(f"{layer.name} has renorm=True or rms_scaling=True, which no other framework's layer has")
    shape = tuple(layer.get_build_config()["input_shape"])
    scale, offset = numpy(getattr(layer, "gamma", None)), numpy(getattr(layer, "beta", None))
    if kind == "rms":
        scale = numpy(layer.scale)
    common: dict[str, Any] = {"scale": scale, "offset": offset, "eps": layer.epsilon, "rank": len(shape)}
    if kind == "sentence":
        spec = layer.sentence(len(shape))
        return Norm(kind, (), shape_of(scale, offset), given=spec, **common)
    axes = canonical(layer.axis, len(shape))
    lengths = tuple(shape[a] for a in axes)
    moves = kind in ("batch", "group", "instance")
    norm: dict[str, Any] = {
        "axes": axes,
        "shape": lengths,
        "channels": layout_of(axes) if moves else CHANNELS if axes[1:] else None,
    }
    if kind == "group" and layer.groups in (-1, lengths[0]):
        kind = "instance"
    groups = layer.groups if kind == "group" else None
    if kind != "batch":
        return Norm(kind, **norm, groups=groups, **common)
    statistics: dict[str, Any] = {"mean": numpy(layer.moving_mean), "variance": numpy(layer.moving_variance)}
    return Norm(kind, **norm, **statistics, keep=layer.momentum, **common)


def write(norm: Norm) -> keras.layers.Layer:
    layer = _made(norm)
    rank = norm.sample_rank()
    shape: list[int | None] = list(norm.sample_shape()) if norm.kind == "sentence" else [None] * rank
    for axis, length in zip(norm.axes, norm.shape, strict=True) if norm.kind != "sentence" else ():
        shape[axis] = length
    layer.build(tuple(shape))
    scale = neutral(norm)[0] if norm.kind == "rms" else norm.scale
    weights = (scale, norm.offset, norm.mean, norm.variance)
    layer.set_weights([values for values in weights if values is not None])
    return layer


def _made(norm: Norm) -> Any:
    axis = norm.axes[0] if len(norm.axes) == 1 else list(norm.axes)
    common: dict[str, Any] = {"epsilon": norm.eps, "center": norm.offset is not None, "scale": norm.scale is not None}
    if norm.kind == "batch":
        return BatchNormalization(axis, momentum=norm.keep, **common)
    if norm.kind == "group" and norm.groups is not None:
        return GroupNormalization(norm.groups, axis, **common)
    if norm.kind == "instance":
        return InstanceNormalization(axis, **common)
    if norm.kind == "layer":
        return LayerNormalization(axis, **common)
    if norm.kind == "rms":
        return RMSNormalization(axis, norm.eps)
    spec = norm.spec(norm.sample_rank())
    common |= dict(spec.sizes)
    return Normalization(spec.text, affine=spec.affine_text or "", remove=spec.remove, **common)


def run(layer: Any, x: np.ndarray) -> np.ndarray:
    """The layer's answer outside training."""
    return np.asarray(keras.ops.convert_to_numpy(layer(x)))


def parts(model: Any) -> list[Any] | None:
    """A chain's layers, None for what is no chain."""
    return list(model.layers) if isinstance(model, keras.Sequential) else None


def join(layers: list[Any]) -> keras.Sequential:
    return keras.Sequential(layers)


def named(model: Any) -> Iterator[tuple[str, Any]]:
    """All layers of a model that have parameters, by the paths of these."""
    layers = model._flatten_layers(include_self=False) if isinstance(model, keras.Model) else [model]
    return ((layer.weights[0].path.rpartition("/")[0], layer) for layer in layers if layer.weights)


def state(model: Any) -> dict[str, Any]:
    return {variable.path: numpy(variable) for variable in model.variables}


def array(values: Array) -> np.ndarray:
    return np.asarray(values)


def numpy(variable: Any) -> np.ndarray | None:
    return None if variable is None else np.array(keras.ops.convert_to_numpy(variable))
