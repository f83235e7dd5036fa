"""Group and instance normalization."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from ..catalogue import group, normalized_axes
from .base import Array, normalize, promoted, value


class GroupNorm(nnx.GroupNorm):
    """Group normalization: the channels of a group, at all positions of a sample, share one mean and variance.

        y = (x - mean) / sqrt(variance + epsilon) * scale + bias

    Source: Wu, He 2018, arXiv:1803.08494.

    Args:
        num_features: the number of channels, which are the last axis.
        num_groups, group_size: into how many groups they are split, or how many a group has; the other is None.
        epsilon: added to the variance.
        dtype: the result's type; None takes what input and parameters promote to.
        param_dtype, use_bias, use_scale, bias_init, scale_init, bias_metadata, scale_metadata, promote_dtype, rngs: as
            in Flax.
        reduction_axes: the axes that share a statistic, the last one among them; None means all but the first. Any
            others may be kept, several or none (where the batch is vmapped away).
        axis_name, axis_index_groups: of `shard_map` or `pmap`, where the axes of a statistic lie on several devices.
        use_fast_variance: accepted and without effect.

    Call arguments:
        x: array (batch, ..., num_features); float16, bfloat16 and float32 have float32 statistics.
        mask: true where an element enters the statistics; broadcasts to x.

    Returns:
        An array of x's shape.

    Raises:
        ValueError: another number of channels, groups that do not divide it, axes out of range or without the last, an
            epsilon that is negative, a mask that does not broadcast.
        TypeError: an input of complex numbers.

    >>> import jax
    >>> from flax import nnx
    >>> from anynorm.nnx import GroupNorm
    >>> module = GroupNorm(6, num_groups=3, rngs=nnx.Rngs(0))
    >>> module(jax.numpy.ones((4, 8, 8, 6))).shape
    (4, 8, 8, 6)
    >>> sorted(nnx.to_pure_dict(nnx.state(module)))
    ['bias', 'scale']
    """

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        x, scale, bias = promoted(self, jnp.asarray(x), value(self.scale), value(self.bias))
        reduced = range(1, x.ndim) if self.reduction_axes is None else normalized_axes(self.reduction_axes, x.ndim)
        if x.ndim - 1 not in reduced:
            raise ValueError(f"reduction_axes={self.reduction_axes!r} lacks the last axis, the one split into groups")
        kept = tuple(i for i in range(x.ndim) if i not in reduced)
        spec = group(-1, x.ndim, self.num_groups, kept)
        return normalize(self, spec, self.num_groups * self.group_size, x, scale, bias, mask)[0]


class InstanceNorm(nnx.InstanceNorm):
    """Instance normalization: every channel of every sample has a mean and variance of its own.

        y = (x - mean) / sqrt(variance + epsilon) * scale + bias

    Source: Ulyanov et al. 2016, arXiv:1607.08022.

    Args:
        num_features: the number of channels, or the product of the lengths of the feature axes.
        feature_axes: the channels: one axis or several, but not the first, which is the batch.

    All other arguments, types and errors are those of `GroupNorm`.

    >>> import jax
    >>> from flax import nnx
    >>> from anynorm.nnx import InstanceNorm
    >>> module = InstanceNorm(6, feature_axes=1, rngs=nnx.Rngs(0))
    >>> module(jax.numpy.ones((4, 6, 8, 8))).shape
    (4, 6, 8, 8)
    """

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        x, scale, bias = promoted(self, jnp.asarray(x), value(self.scale), value(self.bias))
        spec = group(self.feature_axes, x.ndim, None)
        return normalize(self, spec, self.num_features, x, scale, bias, mask)[0]
