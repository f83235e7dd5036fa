"""Flax's dialect: flax.nnx's modules and anynorm.nnx's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..nnx import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from ..nnx import Norm as SentenceNorm
from ..spec import NormSpec
from .norm import LAST, Array, Norm, layout_of, neutral

CHANNELS, ANY_SENTENCE = "last", True


def read(layer: Any) -> Norm:
    scale, offset, mean, variance = (numpy(getattr(layer, name, None)) for name in ("scale", "bias", "mean", "var"))
    if not hasattr(layer, "epsilon"):
        raise TypeError(f"{type(layer).__name__} is no normalization module of flax.nnx or anynorm.nnx")
    common: dict[str, Any] = {"scale": scale, "offset": offset, "eps": layer.epsilon}
    if isinstance(layer, SentenceNorm):
        features = layer.num_features
        shape = (features,) if isinstance(features, int) else tuple(features or ())
        return Norm("sentence", (), shape, given=layer.spec, **common)
    if isinstance(layer, nnx.GroupNorm):
        if layer.reduction_axes is not None:
            raise ValueError("GroupNorm with reduction_axes has no counterpart; write it as a sentence, with Norm")
        features = layer.num_groups * layer.group_size
        return Norm("group", (LAST,), (features,), groups=layer.num_groups, channels=CHANNELS, **common)
    if isinstance(layer, nnx.BatchNorm | nnx.InstanceNorm):
        axes = _axes(layer.axis if isinstance(layer, nnx.BatchNorm) else layer.feature_axes)
        one: dict[str, Any] = {"axes": axes, "shape": (layer.num_features,), "channels": layout_of(axes)}
        if len(axes) != 1:
            raise ValueError(f"channels on several axes, {axes}, have no counterpart; write a sentence, with Norm")
        if isinstance(layer, nnx.InstanceNorm):
            return Norm("instance", **one, **common)
        training = not layer.use_running_average
        return Norm("batch", **one, mean=mean, variance=variance, keep=layer.momentum, training=training, **common)
    return _layer(layer, common)


def _layer(layer: Any, common: dict[str, Any]) -> Norm:
    if not isinstance(layer, nnx.LayerNorm | nnx.RMSNorm):
        raise TypeError(f"{type(layer).__name__} is no normalization module of flax.nnx or anynorm.nnx")
    axes = _axes(layer.reduction_axes)
    if axes != _axes(layer.feature_axes) or len(axes) != 1:
        raise ValueError(
            f"{type(layer).__name__} with the reduction axes {axes} does not say the lengths that its parameters would "
            "have elsewhere; write it as a sentence, with Norm"
        )
    return Norm("layer" if isinstance(layer, nnx.LayerNorm) else "rms", axes, (layer.num_features,), **common)


def _axes(axes: Any) -> tuple[int, ...]:
    return (axes,) if isinstance(axes, int) else tuple(axes)


def write(norm: Norm) -> nnx.Module:
    layer = _made(norm)
    scale = neutral(norm)[0] if norm.kind == "rms" else norm.scale
    for name, values in (("scale", scale), ("bias", norm.offset), ("mean", norm.mean), ("var", norm.variance)):
        if values is not None:
            variable = getattr(layer, name)
            variable.set_value(jnp.asarray(values.reshape(variable.shape)))
    return layer


def _made(norm: Norm) -> Any:
    rngs = nnx.Rngs(0)
    common: dict[str, Any] = {"epsilon": norm.eps, "rngs": rngs}
    both: dict[str, Any] = {"use_bias": norm.offset is not None, "use_scale": norm.scale is not None, **common}
    axis = norm.axes[0] if len(norm.axes) == 1 else norm.axes
    if norm.kind == "batch":
        training: dict[str, Any] = {"use_running_average": not norm.training, "momentum": norm.keep}
        return BatchNorm(norm.features, axis=axis, **training, **both)
    if norm.kind == "group" and axis == LAST:
        return GroupNorm(norm.features, norm.groups, **both)
    if norm.kind == "instance":
        return InstanceNorm(norm.features, feature_axes=axis, **both)
    if norm.kind == "layer":
        return LayerNorm(norm.features, reduction_axes=axis, feature_axes=axis, **both)
    if norm.kind == "rms":
        return RMSNorm(norm.features, reduction_axes=axis, feature_axes=axis, **common)
    spec: NormSpec = norm.spec(norm.sample_rank())
    words: dict[str, Any] = {"affine": spec.affine_text or "", "remove": spec.remove, **dict(spec.sizes), **both}
    return SentenceNorm(spec.text, norm.shape or None, **words)


def run(layer: Any, x: np.ndarray) -> np.ndarray:
    """The module's answer outside training."""
    more: dict[str, Any] = {"use_running_average": True} if isinstance(layer, nnx.BatchNorm) else {}
    return np.asarray(layer(jnp.asarray(x), **more))


def parts(model: Any) -> list[Any] | None:
    """A chain's modules, None for what is no chain."""
    return list(model.layers) if isinstance(model, nnx.Sequential) else None


def join(layers: list[Any]) -> nnx.Sequential:
    return nnx.Sequential(*layers)


def named(model: Any) -> Iterator[tuple[str, Any]]:
    """All modules of a model that have parameters, by the names that its state gives them."""
    found = nnx.iter_modules(model)
    return ((".".join(map(str, path)), module) for path, module in found if nnx.to_flat_state(nnx.state(module)))


def state(model: Any) -> dict[str, Any]:
    return dict(nnx.to_pure_dict(nnx.state(model)))


def array(values: Array) -> Any:
    return jnp.asarray(values)


def numpy(variable: Any) -> np.ndarray | None:
    return None if variable is None else np.array(variable[...])
