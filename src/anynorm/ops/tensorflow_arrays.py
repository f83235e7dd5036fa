"""The composed formula for TensorFlow tensors of any shape, with or without a mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import tensorflow as tf

from ..kernels import composed
from ..plan import Plan
from ..precision import statistics_dtype
from . import layout
from .tensorflow_verbs import Verbs

Array = Any
# Elements from which on a graph of known shape has a normalization compiled: a step then saves 10 ms and more.
_WORTH_COMPILING = 2**20


def normalize(
    x: Array, scale: Array | None, offset: Array | None, mask: Array | None, plan: Plan, eps: float
) -> tuple[Array, Array, Array]:
    forward, backward = (_in_graph(function, x, plan, eps) for function in (_forward, gradients))

    @tf.custom_gradient
    def run(x: Array, *small: Array) -> tuple[Any, Callable[..., Any]]:
        scale_here, offset_here = fill(small, (scale, offset))
        y, mean, variance, stats = forward(x, scale_here, offset_here, mask)

        def grad(dy: Array, *_: Array) -> list[Array]:
            return [d for d in backward(x, dy, scale_here, offset_here, mask, stats) if d is not None]

        return (y, tf.stop_gradient(mean), tf.stop_gradient(variance)), grad

    out: tuple[Array, Array, Array] = run(x, *(s for s in (scale, offset) if s is not None))
    return out


def moments(x: Array, mask: Array | None, plan: Plan) -> tuple[Array, ...]:
    """Mean and variance, differentiable."""
    runs, _, _, mask = _enter(x, None, None, mask, plan)
    return _moments(x, composed.statistics(Verbs, runs, mask, plan, 0.0), plan)


def apply(
    x: Array, mean: Array, variance: Array, scale: Array | None, offset: Array | None, plan: Plan, eps: float
) -> Array:
    runs, scale, offset, _ = _enter(x, scale, offset, None, plan)
    mean, variance = (
        tf.cast(layout.small_to_runs(Verbs, s, plan.kept, plan, x, affine=False), runs.dtype) for s in (mean, variance)
    )
    y = composed.forward(Verbs, runs, scale, offset, composed.given(Verbs, mean, variance, eps), plan)
    return tf.cast(layout.from_runs(Verbs, y, x, plan), x.dtype)


def statistics(x: Array, plan: Plan, eps: float) -> composed.Stats:
    """What the gradient needs, made from x anew so that it can be differentiated once more."""
    return composed.statistics(Verbs, _enter(x, None, None, None, plan)[0], None, plan, eps)


def gradients(
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


def fill(values: tuple[Array, ...], places: tuple[Array | None, ...]) -> list[Array | None]:
    """One value after the other where there is something in `places`, None elsewhere."""
    rest = iter(values)
    return [None if place is None else next(rest) for place in places]


def _forward(
    x: Array, scale: Array | None, offset: Array | None, mask: Array | None, plan: Plan, eps: float
) -> tuple[Array, Array, Array, composed.Stats]:
    """y, mean and variance, and the statistics that the gradient needs."""
    runs, scale, offset, mask = _enter(x, scale, offset, mask, plan)
    stats = composed.statistics(Verbs, runs, mask, plan, eps)
    y = composed.forward(Verbs, runs, scale, offset, stats, plan, mask)
    mean, variance = _moments(x, stats, plan)
    return tf.cast(layout.from_runs(Verbs, y, x, plan), x.dtype), mean, variance, stats


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


def _enter(x: Array, scale: Array | None, offset: Array | None, mask: Array | None, plan: Plan) -> list[Any]:
    work = statistics_dtype(str(x.dtype.name))
    smalls = [layout.small_to_runs(Verbs, s, plan.affine, plan, x, affine=True) for s in (scale, offset)]
    mask = None if mask is None else layout.to_runs(Verbs, tf.broadcast_to(mask, tf.shape(x)), plan)
    runs = tf.cast(layout.to_runs(Verbs, x, plan), work)
    return [runs, *(s if s is None else tf.cast(s, work) for s in smalls), mask]


def _moments(x: Array, stats: composed.Stats, plan: Plan) -> tuple[Array, ...]:
    return tuple(layout.statistic_from_runs(Verbs, s, x, plan) for s in (stats.mean(), stats.unscaled_variance()))
