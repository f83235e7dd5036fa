"""The CPU kernels for TensorFlow tensors, and their gradients.

The operations have their gradients in TensorFlow's registry, which costs least in eager mode; a custom call of XLA's
can have none there, and is wrapped. A gradient's own gradient is that of the composed formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from ..kernels.cpu import DTYPES
from ..kernels.cpu import tensorflow as cpu
from ..plan import Plan
from . import tensorflow_arrays as arrays

Array = Any


def normalize(
    x: Array, scale: Array | None, offset: Array | None, plan: Plan, eps: float, in_xla: bool
) -> tuple[Array, Array, Array]:
    scale, offset = (_readable(a, x) for a in (scale, offset))
    if not in_xla:
        return cpu.forward(x, scale, offset, plan, eps)[:3]
    line = cpu.told(plan, eps)

    @tf.custom_gradient
    def run(x: Array, *small: Array) -> tuple[Any, Callable[..., Any]]:
        scale_here, offset_here = arrays.fill(small, (scale, offset))
        *out, saved = cpu.forward_in_xla(x, scale_here, offset_here, plan, eps)

        @tf.custom_gradient
        def backward(x: Array, dy: Array, *small: Array) -> tuple[Any, Callable[..., Any]]:
            scale_here, offset_here = arrays.fill(small, (scale, offset))
            out = cpu.backward_in_xla(x, dy, saved, scale_here, offset_here, line)
            return out, lambda *d: _second(x, dy, scale_here, offset_here, line, d)

        return tuple(out), lambda dy, *_: backward(x, dy, *small)

    out: tuple[Array, Array, Array] = run(x, *(a for a in (scale, offset) if a is not None))
    return out


def moments(x: Array, plan: Plan, in_xla: bool) -> tuple[Array, ...]:
    """Mean and variance, differentiable."""
    if not in_xla:
        return cpu.moments(x, plan)
    line = cpu.told(plan, 0.0)

    @tf.custom_gradient
    def run(x: Array) -> tuple[Any, Callable[..., Any]]:
        return tuple(cpu.moments_in_xla(x, plan)), lambda *d: _of_moments(x, line, d)

    out: tuple[Array, ...] = run(x)
    return out


def apply(
    x: Array, mean: Array, variance: Array, scale: Array | None, offset: Array | None, plan: Plan, eps: float
) -> Array:
    scale, offset = (_readable(a, x) for a in (scale, offset))
    mean, variance = (tf.cast(a, cpu.work(x)) for a in (mean, variance))
    return cpu.apply(x, mean, variance, scale, offset, plan, eps)


def _readable(small: Array | None, x: Array) -> Array | None:
    """Scale or offset in a type that the kernels have."""
    return small if small is None or small.dtype.name in DTYPES else tf.cast(small, cpu.work(x))


@tf.RegisterGradient("AnynormForward")
def _of_forward(op: Any, dy: Array, *_: Array) -> list[Array]:
    """Mean and variance carry no gradient, and `saved` has its share in dx."""
    x, *small = op.inputs
    scales = op.get_attr("scales")
    return cpu.backward(x, dy, op.outputs[3], small[:scales], small[scales:], op.get_attr("plan"))


@tf.RegisterGradient("AnynormBackward")
def _of_backward(op: Any, *d: Array) -> list[Array | None]:
    x, dy, _, *small = op.inputs
    scale, offset = _places(op, small)
    dx, ddy, *dsmall = _second(x, dy, scale, offset, op.get_attr("plan"), d)
    return [dx, ddy, None, *dsmall]


@tf.RegisterGradient("AnynormMoments")
def _of_moments_operation(op: Any, *d: Array) -> Array:
    return _of_moments(op.inputs[0], op.get_attr("plan"), d)


@tf.RegisterGradient("AnynormApply")
def _of_apply(op: Any, dy: Array) -> list[Array | None]:
    x, mean, variance, *small = op.inputs
    plan, eps = cpu.untold(tf.compat.as_str(op.get_attr("plan")), x.shape.rank)
    some = list(op.inputs)
    with tf.GradientTape() as tape:
        tape.watch(some)
        scale, offset = _places(op, small)
        y = arrays.apply(x, mean, variance, scale, offset, plan, eps)
    return list(tape.gradient(y, some, dy))


def _of_moments(x: Array, line: str | bytes, d: tuple[Array, ...]) -> Array:
    plan, eps = cpu.untold(tf.compat.as_str(line), x.shape.rank)
    with tf.GradientTape() as tape:
        tape.watch(x)
        stats = arrays.statistics(x, plan, eps)
        out = [
            tf.reshape(s, tf.shape(like)) for s, like in zip((stats.mean(), stats.unscaled_variance()), d, strict=True)
        ]
    return tape.gradient(out, x, list(d))


def _second(
    x: Array, dy: Array, scale: Array | None, offset: Array | None, line: str | bytes, d: tuple[Array, ...]
) -> list[Array | None]:
    """The gradient of the gradient, with respect to all that the gradient is made of."""
    small = offset if scale is None else scale
    plan, eps = cpu.untold(tf.compat.as_str(line), x.shape.rank, 0 if small is None else small.shape.rank)
    some = [a for a in (x, dy, scale, offset) if a is not None]
    with tf.GradientTape() as tape:
        tape.watch(some)
        out = arrays.gradients(x, dy, scale, offset, None, arrays.statistics(x, plan, eps), plan, eps)
    return list(tape.gradient([a for a in out if a is not None], some, list(d)))


def _places(op: Any, small: list[Array]) -> tuple[Array | None, Array | None]:
    """Scale and offset of an operation's last inputs."""
    scales, offsets = op.get_attr("scales"), op.get_attr("offsets")
    return small[0] if scales else None, small[scales] if offsets else None
