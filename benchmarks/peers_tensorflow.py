"""Keras on TensorFlow: eager, in a graph and under XLA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import peers_keras
import tensorflow as tf
from measure import Contender, Timed, copy_of
from shapes import BOTH, FORWARD, Case


def start(threads: int) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def copy(x: np.ndarray, dtype: str) -> Timed:
    return copy_of(x.astype(tf.as_dtype(dtype).as_numpy_dtype))


def numpy(a: Any) -> np.ndarray:
    return np.asarray(a, np.float32)


def contenders(
    case: Case, mode: str, x: np.ndarray, dy: np.ndarray, scale: np.ndarray, offset: np.ndarray | None
) -> dict[str, Callable[[], Contender]]:
    """Nobody says what a graph keeps for its backward pass: no `kept`."""
    tensor, cotangent = tf.cast(x, case.dtype), tf.cast(dy, case.dtype)

    def ready(layer: Any) -> Contender:
        training = peers_keras.training(case)

        def forward(x: Any) -> Any:
            return layer(x, **training)

        def both(x: Any, dy: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, **training)
            return y, tape.gradient(y, [x, *layer.trainable_variables], dy)

        if mode != "TensorFlow eager":
            forward, both = (tf.function(f, jit_compile=mode == "TensorFlow XLA") for f in (forward, both))
        return Contender({FORWARD: lambda: forward(tensor), BOTH: lambda: both(tensor, cotangent)})

    return peers_keras.makers(case, scale, offset, ready)


def through(mode: str, x: np.ndarray, dy: np.ndarray, scale: np.ndarray, offset: np.ndarray | None) -> dict[str, Timed]:
    """Each byte once in the framework's own simplest operations: what a layer cannot be faster than within it."""
    if mode == "TensorFlow eager":
        return {}
    x, dy, *small = (tf.constant(a) for a in (x, dy, scale, offset) if a is not None)
    compiled = tf.function(jit_compile=mode == "TensorFlow XLA")
    forward = compiled(lambda x: x + x)
    both = compiled(lambda x, dy, small: (x + x, dy * x, [a + a for a in small]))
    return {FORWARD: lambda: forward(x), BOTH: lambda: both(x, dy, small)}
