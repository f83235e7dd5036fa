"""Keras on JAX and Flax's layers, all under jit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peers_keras
from measure import Contender, Timed, copy_of
from shapes import BOTH, EPS, FORWARD, GROUP_FIRST, Case

import anynorm

# Of x and the parameters: y, and what else the call gives.
Function = Callable[[Any, Any], tuple[Any, Any]]


def start(threads: int) -> None:
    """JAX takes its threads from the environment, and from the cores that the process may use."""


def copy(x: np.ndarray, dtype: str) -> Timed:
    return copy_of(x.astype(jnp.dtype(dtype)))


def numpy(a: Any) -> np.ndarray:
    return np.asarray(a, np.float32)


def contenders(
    case: Case, mode: str, x: np.ndarray, dy: np.ndarray, scale: np.ndarray, offset: np.ndarray | None
) -> dict[str, Callable[[], Contender]]:
    x, dy = jnp.asarray(x, case.dtype), jnp.asarray(dy, case.dtype)
    parameters = [jnp.asarray(a) for a in (scale, offset) if a is not None]

    def of_layer(layer: Any) -> Contender:
        rest = [v.value for v in layer.non_trainable_variables]
        training = peers_keras.training(case)
        call = lambda x, weights: layer.stateless_call(weights, rest, x, **training)  # noqa: E731
        return _contender(call, [v.value for v in layer.trainable_variables], x, dy)

    return {
        "anynorm": lambda: _contender(_anynorm(case), parameters, x, dy),
        "Flax": lambda: _contender(*_flax(case, parameters), x, dy),
        **peers_keras.makers(case, scale, offset, of_layer),
    }


def _anynorm(case: Case) -> Function:
    arguments = case.arguments()
    names = ("scale", "offset")
    return lambda x, p: (anynorm.normalize(x, **dict(zip(names, p, strict=False)), **arguments), None)


def _flax(case: Case, parameters: list[Any]) -> tuple[Function, Any]:
    """A layer as a function of its parameters, and these."""
    from flax import nnx

    if case.family is GROUP_FIRST:
        raise NotImplementedError("Flax's group normalization takes channels last only")
    c, axis, rngs = case.channels, case.family.channels, nnx.Rngs(0)
    common = {"epsilon": EPS, "dtype": jnp.dtype(case.dtype), "rngs": rngs}
    layer = {
        "group": lambda: nnx.GroupNorm(c, case.groups, **common),
        "instance": lambda: nnx.InstanceNorm(c, feature_axes=axis, **common),
        "batch": lambda: nnx.BatchNorm(c, use_running_average=False, axis=axis, **common),
        "rms": lambda: nnx.RMSNorm(c, **common),
    }.get(case.family.entry, lambda: nnx.LayerNorm(c, reduction_axes=axis, feature_axes=axis, **common))()
    for name, value in zip(("scale", "bias"), parameters, strict=False):
        getattr(layer, name)[...] = value
    graph, state, rest = nnx.split(layer, nnx.Param, ...)

    def call(x: Any, state: Any) -> tuple[Any, Any]:
        merged = nnx.merge(graph, state, rest, copy=True)
        return merged(x), nnx.state(merged, nnx.BatchStat)

    return call, state


def _contender(call: Function, parameters: Any, x: Any, dy: Any) -> Contender:
    def both(x: Any, parameters: Any, dy: Any) -> Any:
        y, pull, more = jax.vjp(call, x, parameters, has_aux=True)
        return y, pull(dy), more

    @jax.jit
    def closed_over(x: Any, parameters: Any) -> list[Any]:
        pull = jax.vjp(call, x, parameters, has_aux=True)[1]
        return list({id(a): a for a in jax.tree.leaves(pull)}.values())

    def kept() -> int:
        """Bytes of what the pulled-back function closes over, but for what it was given, in whatever shape."""
        given = [np.ravel(a) for a in (x, *jax.tree.leaves(parameters))]
        arrays = closed_over(x, parameters)
        return sum(a.nbytes for a in arrays if not any(np.array_equal(np.ravel(a), b) for b in given))

    forward, both = jax.jit(call), jax.jit(both)
    return Contender(
        {
            FORWARD: lambda: jax.block_until_ready(forward(x, parameters))[0],
            BOTH: lambda: jax.block_until_ready(both(x, parameters, dy)),
        },
        kept,
    )


def through(mode: str, x: np.ndarray, dy: np.ndarray, scale: np.ndarray, offset: np.ndarray | None) -> dict[str, Timed]:
    """Each byte once in the framework's own simplest operations: what a layer cannot be faster than within it."""
    x, dy, *small = (jnp.asarray(a) for a in (x, dy, scale, offset) if a is not None)
    forward = jax.jit(lambda x: x + x)
    both = jax.jit(lambda x, dy, small: (x + x, dy * x, [a + a for a in small]))
    return {
        FORWARD: lambda: jax.block_until_ready(forward(x)),
        BOTH: lambda: jax.block_until_ready(both(x, dy, small)),
    }
