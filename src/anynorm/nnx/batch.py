"""Batch normalization: running statistics around the operation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ..catalogue import batch
from ..ops import jax as ops
from .base import Array, fitted, normalize, promoted, result_dtype, value


class BatchNorm(nnx.BatchNorm):
    """Batch normalization: in training a channel's mean and variance over the batch, else their running averages.

        y = (x - mean) / sqrt(variance + epsilon) * scale + bias
        running = running * momentum + batch * (1 - momentum)

    Both variances are the biased ones, as everywhere but in torch. The running ones keep their type, float32, whatever
    `dtype` is.

    Source: Ioffe, Szegedy 2015, arXiv:1502.03167.

    Args:
        num_features: the number of channels.
        use_running_average: whether to use the running averages and keep them; `train()`, `eval()` and `nnx.view`
            set it.
        axis: the channel axis.
        momentum: how much of the running averages remains in a step.
        epsilon: added to the variance.
        axis_name, axis_index_groups: of `shard_map`, `pmap` or `vmap`, where the batch lies on several devices. Each
            weighs as many elements as it has under its mask.

    All other arguments, types and errors are those of `GroupNorm`.

    Call arguments:
        x: array of any rank.
        use_running_average: overrules the constructor's.
        mask: true where an element enters the statistics; broadcasts to x.

    >>> import jax
    >>> from flax import nnx
    >>> from anynorm.nnx import BatchNorm
    >>> module = BatchNorm(6, momentum=0.9, rngs=nnx.Rngs(0))
    >>> module(jax.numpy.ones((4, 8, 8, 6))).shape
    (4, 8, 8, 6)
    >>> round(float(module.mean[0]), 6)
    0.1
    """

    def __call__(self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None) -> Array:
        if use_running_average is None:
            use_running_average = self.use_running_average
        if use_running_average is None:
            raise ValueError("say use_running_average=True or False, in BatchNorm's constructor or in the call")
        x = jnp.asarray(x)
        statistics = value(self.mean), value(self.var)
        x, _, _, scale, bias = promoted(self, x, *statistics, value(self.scale), value(self.bias))
        spec = batch(self.axis, x.ndim)
        if use_running_average:
            return self._apply(x, statistics, scale, bias, spec)
        y, mean, variance = normalize(self, spec, self.num_features, x, scale, bias, mask)
        # An empty batch has nothing to say; Flax's statistics become NaN.
        if 0 not in x.shape:
            momentum = self.momentum if mask is None else jnp.where(self._some(x, mask), self.momentum, 1.0)
            _move(self.mean, mean, momentum)
            _move(self.var, variance, momentum)
        return y

    def _some(self, x: Array, mask: Array) -> Array:
        """For each channel, whether anything of it is under the mask, on any device."""
        others = tuple(d for d in range(x.ndim) if d != self.axis % x.ndim)
        some = jnp.broadcast_to(mask, x.shape).any(others)
        if self.axis_name is None:
            return some
        return jax.lax.pmax(some.astype(int), self.axis_name, axis_index_groups=self.axis_index_groups) > 0

    def _apply(self, x: Array, statistics: Any, scale: Array | None, bias: Array | None, spec: Any) -> Array:
        dtype = result_dtype(self, x, scale, bias)
        scale, bias, _, eps = fitted(self, spec, self.num_features, x, scale, bias, None)
        return ops.apply(x, *statistics, scale, bias, spec, eps).astype(dtype)


def _move(variable: Any, batch: Array, momentum: float | Array) -> None:
    running = variable[...]
    moved = running.astype(batch.dtype) * momentum + batch.reshape(running.shape) * (1.0 - momentum)
    # In its own type, so that a loop's state keeps the shape and type it started with.
    variable[...] = moved.astype(running.dtype)
