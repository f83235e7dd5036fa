"""What the composed formula is made of in TensorFlow: eager, in a graph and under XLA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from ..kernels import composed

Array = Any
# Rows that are added one after the other; another number of about that size where it divides what there is.
_BLOCK = 64
_BLOCKS = sorted(range(24, 160), key=lambda b: abs(b - _BLOCK))


class Verbs:
    where, maximum, minimum, sqrt, clip = tf.where, tf.maximum, tf.minimum, tf.sqrt, tf.clip_by_value
    zeros_like, ones_like, broadcast_to, transpose = tf.zeros_like, tf.ones_like, tf.broadcast_to, tf.transpose
    constant, all = tf.stop_gradient, tf.reduce_all

    @staticmethod
    def dtype(x: Array) -> str:
        return str(x.dtype.name)

    @staticmethod
    def length(x: Array, d: int) -> Any:
        known = x.shape[d]
        return tf.shape(x)[d] if known is None else known

    @staticmethod
    def number(n: Array, dtype: str) -> Array:
        return tf.cast(tf.maximum(n, 1), dtype)

    @staticmethod
    def reshape(x: Array, lengths: Any) -> Array:
        """With -1 for the one length that is not known, so that the result's shape knows the others."""
        open_ones = [i for i, n in enumerate(lengths) if not isinstance(n, int)]
        if len(open_ones) == 1:
            lengths = [-1 if i in open_ones else n for i, n in enumerate(lengths)]
        elif not open_ones and x.shape.rank is not None and x.shape.as_list() == list(lengths):
            return x
        return tf.reshape(x, lengths)

    @staticmethod
    def view(x: Array, dtype: str) -> Array:
        return tf.bitcast(x, dtype)

    @staticmethod
    def choose(quick_is_good: Array, quick: composed.Stats, mend: Callable[[], composed.Stats]) -> composed.Stats:
        if tf.executing_eagerly():
            return quick if quick_is_good else mend()
        whole = composed.filled(Verbs, quick)
        power, shift, residual, variance, rstd = tf.cond(quick_is_good, lambda: whole[:-1], lambda: mend()[:-1])
        return composed.Stats(power, shift, residual, variance, rstd, quick.count)

    @staticmethod
    def squares(d: Array) -> Array:
        return d * d

    @staticmethod
    def multiply_add(x: Array, factor: Array, summand: Array) -> Array:
        return x * factor + summand

    @staticmethod
    def sum(x: Array) -> Array:
        return _blocked_sum(x)

    @staticmethod
    def amin(x: Array) -> Array:
        return tf.reduce_min(x, axis=1)

    @staticmethod
    def amax(x: Array) -> Array:
        return tf.reduce_max(x, axis=1)


def _blocked_sum(x: Array, levels: int = 4) -> Array:
    """The sum over the middle axis, in blocks, then in blocks of these, and so on.

    TensorFlow and its XLA add one row after the other, which in float32 is off by 4e-4 for a million rows. XLA would
    merge a sum of sums into one again; what stands between them here does nothing, and XLA does not know it.
    """
    rows = x.shape[1]
    if levels == 1 or (rows is not None and rows <= 2 * _BLOCK):
        return tf.reduce_sum(x, axis=1)
    block = _BLOCK if rows is None else next((b for b in _BLOCKS if rows % b == 0), _BLOCK)
    if rows is None or rows % block:
        missing = -(tf.shape(x)[1] if rows is None else rows) % block
        x = tf.pad(x, [[0, 0], [0, missing], [0, 0]])
    outer, after = Verbs.length(x, 0), Verbs.length(x, 2)
    blocks = Verbs.length(x, 1) // block
    sums = tf.reduce_sum(tf.reshape(x, [-1, block, after]), axis=1)
    sums = tf.where(tf.math.is_nan(sums), tf.constant(float("nan"), x.dtype), sums)
    return _blocked_sum(tf.reshape(sums, [outer, blocks, after]), levels - 1)
