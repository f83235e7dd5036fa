"""How each framework computes a case: eagerly, compiled, and with dimensions that it does not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
import torch

import anynorm

Array = Any
Given = tuple[Array | None, ...]
Result = tuple[np.ndarray, list[np.ndarray | None]]


def run_numpy(given: Given, dy: Array, mask: Array | None, arguments: dict[str, Any]) -> Result:
    """No gradient: NumPy has none."""
    x, scale, offset = given
    return anynorm.normalize(x, scale=scale, offset=offset, mask=mask, **arguments), []


def _torch(
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]],
    given: Given,
    dy: Array,
    mask: Array | None,
    arguments: Any,
) -> Result:
    leaves = [None if a is None else torch.tensor(a).requires_grad_() for a in given]

    def call(x: Any, scale: Any, offset: Any) -> Any:
        return anynorm.normalize(
            x, scale=scale, offset=offset, mask=None if mask is None else torch.tensor(mask), **arguments
        )

    y = wrap(call)(*leaves)
    some = [a for a in leaves if a is not None]
    grads = iter(torch.autograd.grad(y, some, torch.tensor(dy).to(y.dtype)))
    return y.detach().numpy(), [None if a is None else next(grads).numpy() for a in leaves]


def run_torch(*args: Any) -> Result:
    return _torch(lambda f: f, *args)


def run_torch_compile(*args: Any) -> Result:
    # Each case is another function, and torch gives up at the ninth that was compiled from one line.
    torch._dynamo.reset()
    return _torch(lambda f: torch.compile(f, fullgraph=True, backend="aot_eager"), *args)


def _jax(
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]],
    given: Given,
    dy: Array,
    mask: Array | None,
    arguments: Any,
) -> Result:
    def call(given: Any, dy: Any, mask: Any) -> Any:
        y, vjp = jax.vjp(lambda x, s, o: anynorm.normalize(x, scale=s, offset=o, mask=mask, **arguments), *given)
        return y, vjp(dy.astype(y.dtype))

    y, grads = wrap(call)(
        tuple(None if a is None else jnp.asarray(a) for a in given), jnp.asarray(dy), None if mask is None else mask
    )
    return np.asarray(y), [None if g is None else np.asarray(g) for g in grads]


def run_jax(*args: Any) -> Result:
    return _jax(lambda f: f, *args)


def run_jax_jit(*args: Any) -> Result:
    return _jax(jax.jit, *args)


def _tensorflow(
    wrap: Callable[..., Callable[..., Any]], given: Given, dy: Array, mask: Array | None, arguments: Any
) -> Result:
    places = [a is not None for a in given]

    def call(dy: Any, *some: Any) -> Any:
        rest = iter(some)
        x, scale, offset = (next(rest) if there else None for there in places)
        with tf.GradientTape() as tape:
            tape.watch(some)
            y = anynorm.normalize(x, scale=scale, offset=offset, mask=mask, **arguments)
        return y, tape.gradient(y, some, tf.cast(dy, y.dtype))

    tensors = [tf.constant(a) for a in given if a is not None]
    y, grads = wrap(call, tensors)(tf.constant(dy), *tensors)
    rest = iter(grads)
    return y.numpy(), [next(rest).numpy() if there else None for there in places]


def run_tensorflow(*args: Any) -> Result:
    return _tensorflow(lambda f, tensors: f, *args)


def run_tensorflow_graph(*args: Any) -> Result:
    return _tensorflow(lambda f, tensors: tf.function(f), *args)


def run_tensorflow_xla(*args: Any) -> Result:
    return _tensorflow(lambda f, tensors: tf.function(f, jit_compile=True), *args)


def run_tensorflow_unknown(given: Given, dy: Array, mask: Array | None, arguments: Any) -> Result:
    """In a graph that knows of x only the dimensions that are split or carry parameters."""
    spec = anynorm.NormSpec.of(**{k: v for k, v in arguments.items() if k not in ("eps", "kernel")})
    known = {axis.name for dim in spec.pattern.dims if len(dim) > 1 for axis in dim}
    known |= set(spec.affine.names) if spec.affine else set()
    dims = spec.pattern.expand(np.ndim(given[0])).dims
    shape = [
        n if any(axis.name in known or ("..." in known and axis.name.startswith("...")) for axis in dim) else None
        for dim, n in zip(dims, np.shape(given[0]), strict=True)
    ]

    def wrap(f: Callable[..., Any], tensors: list[Any]) -> Callable[..., Any]:
        first = tf.TensorSpec(shape, tensors[0].dtype)
        signature = [tf.TensorSpec(shape, tf.float32), first, *(tf.TensorSpec(t.shape, t.dtype) for t in tensors[1:])]
        return tf.function(f, input_signature=signature)

    return _tensorflow(wrap, given, dy, mask, arguments)


RUNNERS: dict[str, Callable[..., Result]] = {
    "numpy": run_numpy,
    "torch": run_torch,
    "torch compile": run_torch_compile,
    "jax": run_jax,
    "jax jit": run_jax_jit,
    "tensorflow": run_tensorflow,
    "tensorflow graph": run_tensorflow_graph,
    "tensorflow xla": run_tensorflow_xla,
    "tensorflow unknown": run_tensorflow_unknown,
}
