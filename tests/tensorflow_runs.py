"""What the tests of the CPU kernels in TensorFlow share: a case's arrays, its gradients, and the ways to call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from arrays import back, relative
from cases import BY_NAME, CASES, Case
from test_normalize import seed

import anynorm
from anynorm.kernels import cpu
from anynorm.kernels.cpu import tensorflow as door

SERVED = [case for case in CASES if cpu.supports(case.plan)]
GROUP = BY_NAME["group, channels last"]


def given(case: Case, dtype: Any = np.float32, offset: float = 3.0) -> tuple[Any, ...]:
    """x, scale, offset and a cotangent."""
    rng = seed(case.name)
    x = (rng.normal(size=case.shape) + offset).astype(dtype)
    return x, *case.parameters(rng), rng.normal(size=case.shape).astype(dtype)


def gradients(case: Case, x: Any, scale: Any, offset: Any, dy: Any) -> list[Any]:
    """y and the gradients of all that is not None."""
    some = [a for a in (x, scale, offset) if a is not None]
    with tf.GradientTape() as tape:
        tape.watch(some)
        y = anynorm.normalize(x, scale=scale, offset=offset, **case.arguments)
    return [y, *tape.gradient(y, some, dy)]


def check(case: Case, got: list[Any], x: Any, scale: Any, offset: Any, dy: Any, tolerance: float) -> None:
    """Compare what `gradients` gave with the reference."""
    x, scale, offset, dy = (None if a is None else np.asarray(a).astype(np.float64) for a in (x, scale, offset, dy))
    reference = case.reference(x, scale, offset)
    dx, dscale, doffset = reference.backward(dy)
    wanted = {"y": reference.y, "dx": dx}
    wanted |= {} if scale is None else {"dscale": dscale}
    wanted |= {} if offset is None else {"doffset": doffset}
    for actual, (name, values) in zip(got, wanted.items(), strict=True):
        relative(back(actual), values, tolerance, name)


def kinds(function: Any) -> set[str]:
    """Which of the ways stand in a traced function: the kernels' operations, and custom calls."""
    types = {node.op for node in function.graph.as_graph_def().node}
    types |= {node.op for f in function.graph.as_graph_def().library.function for node in f.node_def}
    return {t for t in types if t.startswith("Anynorm") or t == "XlaCustomCallV2"}


def open_batch(f: Callable[..., Any], jit_compile: bool | None = None) -> Any:
    """A function for arrays like GROUP's, in any number."""
    return tf.function(f, input_signature=[tf.TensorSpec([None, *GROUP.shape[1:]])], jit_compile=jit_compile)


WRAPS: dict[str, Callable[..., Any]] = {
    "eager": lambda f: f,
    "graph": tf.function,
    "xla": lambda f: tf.function(f, jit_compile=True),
}
ways = pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
needs_door = pytest.mark.skipif(bool(door.why_not()), reason=door.why_not())
