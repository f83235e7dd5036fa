"""TensorFlow tensors: eager, in a graph and under XLA, with dimensions that may be unknown."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import tensorflow as tf

from ..kernels import composed
from ..plan import Plan
from ..plan import plan as make_plan
from ..precision import statistics_dtype
from ..spec import NormSpec
from . import layout

Array = Any
# Rows that are added one after the other; another number of about that size where it divides what there is.
_BLOCK = 64
# Elements from which on a graph of known shape has a normalization compiled: a step then saves 10 ms and more.
_WORTH_COMPILING = 2**20
_BLOCKS = sorted(range(24, 160), key=lambda b: abs(b - _BLOCK))


class Verbs:
    """What the composed formula is made of."""

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


def is_traced() -> bool:
    """Whether a compiler is reading this very Python code; only torch's does."""
    return False


def dtype(x: Array) -> str:
    return str(x.dtype.name)


def shape(x: Array) -> tuple[int | None, ...]:
    if x.shape.rank is None:
        raise ValueError("the tensor's rank is unknown; give it a shape with tf.ensure_shape, None where it varies")
    return tuple(x.shape.as_list())


def convert(values: Any, like: Array) -> Array:
    return tf.convert_to_tensor(values)


def normalize(
    x: Array, scale: Array | None, offset: Array | None, mask: Array | None, spec: NormSpec, eps: float
) -> tuple[Array, Array, Array]:
    """y, mean and variance; the two statistics carry no gradient (`moments` does)."""
    plan = make_plan(spec, shape(x))

    forward, backward = (_in_graph(function, x, plan, eps) for function in (_forward, _backward))

    @tf.custom_gradient
    def run(x: Array, *small: Array) -> tuple[Any, Callable[..., Any]]:
        scale_here, offset_here = _fill(small, (scale, offset))
        y, mean, variance, stats = forward(x, scale_here, offset_here, mask)

        def grad(dy: Array, *_: Array) -> list[Array]:
            return [d for d in backward(x, dy, scale_here, offset_here, mask, stats) if d is not None]

        return (y, tf.stop_gradient(mean), tf.stop_gradient(variance)), grad

    out: tuple[Array, Array, Array] = run(x, *(s for s in (scale, offset) if s is not None))
    return out


def moments(x: Array, mask: Array | None, spec: NormSpec) -> tuple[Array, Array]:
    plan = make_plan(spec, shape(x))
    runs, _, _, mask = _enter(x, None, None, mask, plan)
    return _moments(x, composed.statistics(Verbs, runs, mask, plan, 0.0), plan)


def apply(
    x: Array, mean: Array, variance: Array, scale: Array | None, offset: Array | None, spec: NormSpec, eps: float
) -> Array:
    """Normalize with mean and variance given from outside, over the sentence's kept axes."""
    plan = make_plan(spec, shape(x))
    runs, scale, offset, _ = _enter(x, scale, offset, None, plan)
    mean, variance = (
        tf.cast(layout.small_to_runs(Verbs, s, plan.kept, plan, x, affine=False), runs.dtype) for s in (mean, variance)
    )
    y = composed.forward(Verbs, runs, scale, offset, composed.given(Verbs, mean, variance, eps), plan)
    return tf.cast(layout.from_runs(Verbs, y, x, plan), x.dtype)


def _forward(
    x: Array, scale: Array | None, offset: Array | None, mask: Array | None, plan: Plan, eps: float
) -> tuple[Array, Array, Array, composed.Stats]:
    """y, mean and variance, and the statistics that the gradient needs."""
    runs, scale, offset, mask = _enter(x, scale, offset, mask, plan)
    stats = composed.statistics(Verbs, runs, mask, plan, eps)
    y = composed.forward(Verbs, runs, scale, offset, stats, plan, mask)
    mean, variance = _moments(x, stats, plan)
    return tf.cast(layout.from_runs(Verbs, y, x, plan), x.dtype), mean, variance, stats


def _backward(
    x: Array,
    dy: Array,
    scale: Array | None,
    offset: Array | None,
    mask: Array | None,
    stats: composed.Stats,
    plan: Plan,
    eps: float,
) -> list[Array | None]:
    """dx, dscale and doffset."""
    runs, scale_runs, _, runs_mask = _enter(x, scale, None, mask, plan)
    dy = tf.cast(layout.to_runs(Verbs, dy, plan), runs.dtype)
    dx, *small = composed.backward(Verbs, runs, dy, scale_runs, runs_mask, stats, plan)
    return [tf.cast(layout.from_runs(Verbs, dx, x, plan), x.dtype)] + [
        None if like is None else tf.cast(layout.small_from_runs(Verbs, d, plan.affine, like, plan), like.dtype)
        for d, like in zip(small, (scale, offset), strict=True)
    ]


def _in_graph(function: Callable[..., Any], x: Array, plan: Plan, eps: float) -> Callable[..., Any]:
    """`function` for this plan, compiled by XLA within a graph that knows x's shape and in which x is large.

    A graph goes over memory once for every operation; XLA makes three passes of twenty. But it takes half a second to
    compile each shape, which a small array never gives back, and neither does a graph of unknown dimensions, which may
    see a thousand shapes, nor eager mode.
    """
    if tf.executing_eagerly() or not x.shape.is_fully_defined() or x.shape.num_elements() < _WORTH_COMPILING:
        return partial(function, plan=plan, eps=eps)
    return _compiled(function, plan, eps)


@lru_cache(maxsize=256)
def _compiled(function: Callable[..., Any], plan: Plan, eps: float) -> Callable[..., Any]:
    """One for all layers of a shape, so that a network compiles each shape once."""
    return tf.function(partial(function, plan=plan, eps=eps), jit_compile=True, autograph=False)  # type: ignore


def _fill(values: tuple[Array, ...], places: tuple[Array | None, ...]) -> list[Array | None]:
    rest = iter(values)
    return [None if place is None else next(rest) for place in places]


def _enter(x: Array, scale: Array | None, offset: Array | None, mask: Array | None, plan: Plan) -> list[Any]:
    work = statistics_dtype(dtype(x))
    smalls = [layout.small_to_runs(Verbs, s, plan.affine, plan, x, affine=True) for s in (scale, offset)]
    mask = None if mask is None else layout.to_runs(Verbs, tf.broadcast_to(mask, tf.shape(x)), plan)
    runs = tf.cast(layout.to_runs(Verbs, x, plan), work)
    return [runs, *(s if s is None else tf.cast(s, work) for s in smalls), mask]


def _moments(x: Array, stats: composed.Stats, plan: Plan) -> tuple[Array, ...]:
    return tuple(layout.statistic_from_runs(Verbs, s, x, plan) for s in (stats.mean(), stats.unscaled_variance()))


def normalize_replicas(
    x: Array, scale: Array | None, offset: Array | None, mask: Array | None, spec: NormSpec, eps: float
) -> tuple[Array, Array, Array]:
    """`normalize` with one mean and variance for the tensors of all replicas of a distribution strategy."""
    if _replica() is None:
        return normalize(x, scale, offset, mask, spec, eps)
    work = tf.cast(x, statistics_dtype(dtype(x)))
    shift, _ = (tf.stop_gradient(m) for m in moments_of_replicas(work, mask, spec))
    # Of the differences from the common mean, a float32 can hold the mean and the variance exactly enough.
    d = apply(work, shift, tf.ones_like(shift), None, None, spec, 0.0)
    mean, variance = moments_of_replicas(d, mask, spec)
    y = tf.cast(apply(d, mean, variance, scale, offset, spec, eps), x.dtype)
    return y, tf.stop_gradient(shift + mean), tf.stop_gradient(variance)


def moments_of_replicas(x: Array, mask: Array | None, spec: NormSpec) -> tuple[Array, Array]:
    """`moments` of the tensors of all replicas together, each weighing as many elements as it has."""
    replica = _replica()
    mean, variance = moments(x, mask, spec)
    if replica is None:
        return mean, variance
    # A replica without an element of a group weighs nothing there, and a group without any has mean 0 as elsewhere.
    share = 1.0 if mask is None else moments(tf.cast(tf.broadcast_to(mask, tf.shape(x)), mean.dtype), None, spec)[0]
    count = tf.cast(tf.size(x) / tf.maximum(tf.size(mean), 1), mean.dtype) * share
    weight = count / tf.maximum(_sum_over(replica, count), 1)
    common = _sum_over(replica, weight * mean)
    apart = mean - common
    return common, _sum_over(replica, weight * (variance + apart * apart))


def _replica() -> Any:
    """This replica's context, or None where there is no other replica."""
    context = tf.distribute.get_replica_context()
    return None if context is None or context.num_replicas_in_sync == 1 else context


def _sum_over(replica: Any, values: Array) -> Array:
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, values)
