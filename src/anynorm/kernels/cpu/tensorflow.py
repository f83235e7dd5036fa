"""The CPU kernels in TensorFlow: as operations in eager mode and graphs, and as custom calls in what XLA compiles.

Both are told the normalization in one line of words, which `doors/tensorflow_problem.h` describes. The operations learn
from the array itself the lengths that a graph does not know, and the number of threads from TensorFlow's own setting.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

from ...plan import Plan, Run, Small
from ...precision import statistics_dtype
from .. import cpu as loader

Array = Any
_LABELS = {label: (label in "rR", label in "KR") for label in "kKrR"}


@lru_cache(maxsize=1)
def register() -> Any:
    """Make the operations known to TensorFlow, once, and return them as a module of functions.

    A SavedModel whose graph has AnynormForward in it loads only after this.

    Raises:
        RuntimeError: there are no such operations here; the message says why, and what to do about it.
    """
    if reason := why_not():
        raise RuntimeError(reason)
    return _load()[0]


@lru_cache(maxsize=1)
def why_not() -> str:
    """The reason why there are no operations, empty where there are."""
    if reason := loader.why_not():
        return reason
    module, library = _load()
    if module is None:
        return "the CPU kernels were built without their door to TensorFlow"
    library.anynorm_tensorflow_problem.restype = ctypes.c_char_p
    problem = library.anynorm_tensorflow_problem().decode()
    return f"the CPU kernels could not be registered with TensorFlow: {problem}" if problem else ""


@lru_cache(maxsize=1)
def has_custom_calls() -> bool:
    """Whether this TensorFlow's XLA lets custom calls be registered."""
    return not why_not() and bool(_load()[1].anynorm_tensorflow_has_xla())


@lru_cache(maxsize=1)
def _load() -> tuple[Any, Any]:
    path = loader.door("tensorflow")
    return (None, None) if path is None else (tf.load_op_library(str(path)), ctypes.CDLL(str(path)))


@lru_cache(maxsize=8192)
def told(plan: Plan, eps: float) -> str:
    """The normalization as the operations' attribute.

    >>> from anynorm import NormSpec
    >>> from anynorm.plan import plan
    >>> told(plan(NormSpec.of("n [...] (g [c])", g=32), (None, 56, 56, 64)), 1e-3)
    'krKR 3 0.001 1@0,3136,32,2 1@0,32'
    """
    unknown = iter([d for run in plan.runs if not run.reduced for d in run.unknown])
    kept = [f"1@{next(unknown)}" if n is None else str(n) for n in plan.kept.shape]
    runs = [str(run.known) + "".join(f"@{d}" for d in run.unknown) for run in plan.runs]
    removes = plan.removes_mean + 2 * plan.removes_scale
    return f"{plan.labels} {removes} {float(eps)!r} {','.join(runs)} {','.join(kept)}"


@lru_cache(maxsize=8192)
def untold(line: str, rank: int, affine_rank: int = 0) -> tuple[Plan, float]:
    """The plan that a line tells, for scale and offset of `affine_rank` dimensions, and its eps.

    Of the kept axes it says nothing.
    """
    labels, removes, eps, lengths, *_ = line.split(" ")
    runs = []
    for label, length in zip(labels, lengths.split(","), strict=True):
        known, *unknown = map(int, length.split("@"))
        runs.append(Run(known, *_LABELS[label], tuple(unknown)))
    affine, kept = Small((None,) * affine_rank, (), ()), Small((), (), ())
    bits = int(removes)
    return Plan(tuple(runs), tuple(range(rank)), affine, kept, bool(bits & 1), bool(bits & 2)), float(eps)


def forward(
    x: Array, scale: Array | None, offset: Array | None, plan: Plan, eps: float
) -> tuple[Array, Array, Array, Array]:
    """y, mean, variance, and what the gradient needs."""
    y, mean, variance, saved = register().anynorm_forward(
        x, _some(scale), _some(offset), plan=told(plan, eps), M=work(x)
    )
    return y, *_shaped(plan, mean, variance), saved


def backward(x: Array, dy: Array, saved: Array, scales: list[Array], offsets: list[Array], line: str) -> list[Array]:
    """dx, and dscale and doffset where there are a scale and an offset."""
    dx, dscale, doffset = register().anynorm_backward(x, dy, saved, scales, offsets, plan=line)
    return [dx, *dscale, *doffset]


def moments(x: Array, plan: Plan) -> tuple[Array, ...]:
    """Mean and variance."""
    return _shaped(plan, *register().anynorm_moments(x, plan=told(plan, 0.0), M=work(x)))


def apply(
    x: Array, mean: Array, variance: Array, scale: Array | None, offset: Array | None, plan: Plan, eps: float
) -> Array:
    """y from statistics made elsewhere."""
    return register().anynorm_apply(x, mean, variance, _some(scale), _some(offset), plan=told(plan, eps))


def forward_in_xla(
    x: Array, scale: Array | None, offset: Array | None, plan: Plan, eps: float
) -> tuple[Array, Array, Array, Array]:
    kept = tf.TensorSpec(plan.kept.shape, work(x))
    y, mean, variance, saved = _custom_call(
        "anynorm_forward",
        [x, *_some(scale), *_some(offset)],
        [x, kept, kept, tf.TensorSpec([plan.groups, 2], tf.float64)],
        _config(x, scale, offset, told(plan, eps)),
    )
    return y, mean, variance, saved


def backward_in_xla(
    x: Array, dy: Array, saved: Array, scale: Array | None, offset: Array | None, line: str
) -> list[Array]:
    smalls = _some(scale) + _some(offset)
    operands = [x, dy, saved, *_some(scale)]
    return _custom_call("anynorm_backward", operands, [x, *smalls], _config(x, scale, offset, line))


def moments_in_xla(x: Array, plan: Plan) -> list[Array]:
    kept = tf.TensorSpec(plan.kept.shape, work(x))
    return _custom_call("anynorm_moments", [x], [kept, kept], _config(x, None, None, told(plan, 0.0)))


def work(x: Array) -> tf.DType:
    """The type of mean and variance."""
    return tf.float64 if statistics_dtype(x.dtype.name) == "float64" else tf.float32


def _custom_call(target: str, operands: list[Array], results: list[Any], config: str) -> list[Array]:
    specs = [tf.TensorSpec(result.shape, result.dtype) for result in results]
    return list(xla.custom_call_v2(target, operands, specs, backend_config=config))


def _config(x: Array, scale: Array | None, offset: Array | None, line: str) -> str:
    """XLA hands custom calls neither types nor TensorFlow's configuration."""
    types = ["-" if a is None else str(loader.DTYPES[a.dtype.name]) for a in (x, scale, offset)]
    return " ".join([*types, str(tf.config.threading.get_intra_op_parallelism_threads()), line])


def _some(array: Array | None) -> list[Array]:
    return [] if array is None else [array]


def _shaped(plan: Plan, *statistics: Array) -> tuple[Array, ...]:
    """TensorFlow's C API does not show attributes to what infers shapes, so that graphs are told here."""
    if not tf.executing_eagerly():
        for statistic in statistics:
            statistic.set_shape(plan.kept.shape)
    return statistics
