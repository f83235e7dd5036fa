"""Layer normalization and RMS normalization."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from ..catalogue import over
from .base import Array, normalize, promoted, value


class LayerNorm(nnx.LayerNorm):
    """Layer normalization: the elements along the reduction axes share one mean and variance.

        y = (x - mean) / sqrt(variance + epsilon) * scale + bias

    Source: Ba et al. 2016, arXiv:1607.06450.

    Args:
        num_features: the length of the feature axis, or the product of the lengths of several.
        reduction_axes: the axes that share a statistic.
        feature_axes: the axes that carry scale and bias; they may be others than the reduction axes.

    All other arguments, types and errors are those of `GroupNorm`.

    >>> import jax
    >>> from flax import nnx
    >>> from anynorm.nnx import LayerNorm
    >>> module = LayerNorm(6, reduction_axes=(1, 2), feature_axes=-1, rngs=nnx.Rngs(0))
    >>> module(jax.numpy.ones((4, 8, 8, 6))).shape
    (4, 8, 8, 6)
    """

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        x, scale, bias = promoted(self, jnp.asarray(x), value(self.scale), value(self.bias))
        spec = over(self.reduction_axes, self.feature_axes, x.ndim)
        return normalize(self, spec, self.num_features, x, scale, bias, mask)[0]


class RMSNorm(nnx.RMSNorm):
    """RMS normalization: divide by the root mean square along the reduction axes.

        y = x / sqrt(mean(x^2) + epsilon) * scale

    Source: Zhang, Sennrich 2019, arXiv:1910.07467.

    Arguments, types and errors are those of `LayerNorm`; there is no bias.

    >>> import jax
    >>> from flax import nnx
    >>> from anynorm.nnx import RMSNorm
    >>> module = RMSNorm(6, rngs=nnx.Rngs(0))
    >>> module(jax.numpy.ones((4, 8, 6))).shape
    (4, 8, 6)
    """

    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        x, scale = promoted(self, jnp.asarray(x), value(self.scale))
        spec = over(self.reduction_axes, self.feature_axes, x.ndim, remove=("scale",))
        return normalize(self, spec, self.num_features, x, scale, None, mask)[0]
