"""Weight normalization's initialization by data: what the first batch says of length and bias."""

from __future__ import annotations

import math
import warnings

import keras
import numpy as np

from .base import Tensor

# Equal samples may come out of a product apart by a few rounding units of its terms, of which the largest output tells
# the size: the outputs themselves may be sums that cancel.
_UNITS = 16


def by_data(name: str, t: Tensor, g: Tensor, *bias: Tensor) -> tuple[Tensor, ...]:
    """The paper's g = 1 / std(t) and bias = -mean(t) / std(t), with t = v x / ||v||.

    Args:
        t: (..., outputs), with the bias, where there is one, in it.
        g, *bias: as they are, for the outputs whose t is constant: nothing would come of those but a g without bound.

    Returns:
        g, the bias if there is one, and in g's shape which outputs vary.
    """
    if math.prod(n or 0 for n in t.shape[:-1]) == 1:
        warn_of_constant(name, np.zeros(tuple(g.shape), bool))
    axes = tuple(range(len(t.shape) - 1))
    mean = keras.ops.mean(t, axes)
    # Keras's own moments cancel on some backends, and of a constant something would be left.
    variance = keras.ops.mean(keras.ops.square(t - mean), axes)
    least = _UNITS * float(np.finfo(keras.backend.standardize_dtype(t.dtype)).eps)
    varied = variance > keras.ops.square(least * keras.ops.max(keras.ops.abs(t)))
    std = keras.ops.sqrt(keras.ops.where(varied, variance, keras.ops.ones_like(variance)))
    if bias:
        mean = mean - keras.ops.reshape(keras.ops.cast(bias[0], mean.dtype), mean.shape)
    values = []
    for found, old in zip((1.0 / std, -mean / std), (g, *bias), strict=False):
        found = keras.ops.cast(keras.ops.reshape(found, old.shape), old.dtype)
        values.append(keras.ops.where(keras.ops.reshape(varied, old.shape), found, old))
    return (*values, keras.ops.reshape(varied, g.shape))


def warn_of_constant(name: str, varied: np.ndarray) -> None:
    """Warn where outputs do not vary."""
    if varied.all():
        return
    rest = "" if varied.any() else ", and the layer is initialized by a later batch"
    warnings.warn(
        f"{name} is initialized by a batch on which {(~varied).sum()} of {varied.size} outputs have the same value "
        f"everywhere: g and bias of these stay as they are{rest}. Call the layer on a batch of different samples "
        "first, or make it with data_init=False",
        stacklevel=2,
    )
