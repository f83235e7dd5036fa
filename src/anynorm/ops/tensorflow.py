"""TensorFlow tensors: eager, in a graph and under XLA, with dimensions that may be unknown."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from ..kernels.cpu.tensorflow import has_custom_calls
from ..kernels.select import forced_by_environment, select
from ..plan import Plan
from ..plan import plan as make_plan
from ..precision import statistics_dtype
from ..spec import NormSpec
from . import tensorflow_arrays as arrays
from . import tensorflow_kernel as kernels

Array = Any
OPERATION, CUSTOM_CALL, COMPOSED = "operation", "custom call", "composed"


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
    x: Array,
    scale: Array | None,
    offset: Array | None,
    mask: Array | None,
    spec: NormSpec,
    eps: float,
    kernel: str | None = None,
    *,
    statistics: bool = True,
) -> tuple[Array, Array | None, Array | None]:
    """y, mean and variance; the two statistics carry no gradient (`moments` does).

    `statistics`: whether anybody asks for them; None may stand for them where not.
    """
    plan = make_plan(spec, shape(x))
    way = _way(x, mask, plan, kernel)
    if way == COMPOSED:
        return arrays.normalize(x, scale, offset, mask, plan, eps)
    return kernels.normalize(x, scale, offset, plan, eps, in_xla=way == CUSTOM_CALL)


def moments(x: Array, mask: Array | None, spec: NormSpec, kernel: str | None = None) -> tuple[Array, ...]:
    plan = make_plan(spec, shape(x))
    way = _way(x, mask, plan, kernel)
    return arrays.moments(x, mask, plan) if way == COMPOSED else kernels.moments(x, plan, in_xla=way == CUSTOM_CALL)


def apply(
    x: Array, mean: Array, variance: Array, scale: Array | None, offset: Array | None, spec: NormSpec, eps: float
) -> Array:
    """Normalize with mean and variance given from outside, over the sentence's kept axes."""
    plan = make_plan(spec, shape(x))
    # XLA itself makes one pass of this formula.
    module = kernels if _way(x, None, plan) == OPERATION else arrays
    return module.apply(x, mean, variance, scale, offset, plan, eps)


def _way(x: Array, mask: Array | None, plan: Plan, forced: str | None = None) -> str:
    """How this is computed: by the kernels' operations, by XLA's custom calls of them, or composed."""
    if select(plan, "tensorflow", _device(x), dtype(x), forced, mask is not None).kernel != "cpu":
        return COMPOSED
    graph = tf.compat.v1.get_default_graph()
    if tf.executing_eagerly() or not control_flow_util.GraphOrParentsInXlaContext(graph):
        return OPERATION
    why_not = _why_no_custom_call(x, graph)
    if why_not and "cpu" in (forced, forced_by_environment()):
        raise ValueError(f"the cpu kernel was asked for and cannot run under jit_compile=True here: {why_not}")
    return COMPOSED if why_not else CUSTOM_CALL


def _why_no_custom_call(x: Array, graph: Any) -> str:
    # Whether a function with jit_compile=True is itself in the context or was called in it depends on how it came to
    # be traced. Functions further in may be called from elsewhere too, where no custom call can run.
    if not any(control_flow_util.InXlaContext(g) for g in (graph, getattr(graph, "outer_graph", graph))):
        return "this is a function within the one that XLA compiles, and it may have other callers"
    if not x.shape.is_fully_defined():
        return f"XLA needs to know the array's shape when the function is traced, and it is {x.shape}"
    return "" if has_custom_calls() else "this TensorFlow does not let custom calls be registered"


def _device(x: Array) -> str:
    """The kind of device that computes with x; a graph leaves that open, so that there the best there is counts."""
    if named := tf.DeviceSpec.from_string(x.device).device_type:
        return str(named).lower()
    return next((d.device_type.lower() for d in tf.config.list_physical_devices() if d.device_type != "CPU"), "cpu")


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
