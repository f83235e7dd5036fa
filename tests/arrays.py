"""NumPy arrays into each framework and back, whatever their type; the operation and its gradients in between."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import tensorflow as tf
import torch

import anynorm

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FRAMEWORKS = ("numpy", "torch", "jax", "tensorflow")


def _to_torch(a: np.ndarray) -> torch.Tensor:
    return torch.tensor(a.astype(np.float32)).bfloat16() if a.dtype == BFLOAT16 else torch.tensor(a)


def to(framework: str, a: Any) -> Any:
    """`a` as an array of that framework; JAX keeps float64 only under `jax.enable_x64`."""
    if a is None:
        return None
    make = {"numpy": np.asarray, "torch": _to_torch, "jax": jnp.asarray, "tensorflow": tf.constant}
    return make[framework](np.asarray(a))


def back(a: Any) -> np.ndarray:
    if isinstance(a, torch.Tensor):
        a = a.detach()
        return a.float().numpy().astype(BFLOAT16) if a.dtype == torch.bfloat16 else a.numpy()
    return np.asarray(a)


def normalize(framework: str, x: Any, pattern: str, **rest: Any) -> np.ndarray:
    arrays = {k: to(framework, rest.pop(k)) for k in ("scale", "offset", "mask") if k in rest}
    return back(anynorm.normalize(to(framework, x), pattern, **arrays, **rest))


def differentiate(framework: str, x: Any, dy: Any, scale: Any = None, offset: Any = None, **rest: Any) -> list[Any]:
    """y, dx, dscale and doffset of sum(y * dy), None for what was not given; NumPy, which has no gradients, gives y."""
    rest["mask"] = to(framework, rest.get("mask"))
    given = [to(framework, a) for a in (x, scale, offset)]
    there = [a is not None for a in given]
    some = [a for a in given if a is not None]

    def call(*some: Any) -> Any:
        values = iter(some)
        x, scale, offset = (next(values) if yes else None for yes in there)
        return anynorm.normalize(x, scale=scale, offset=offset, **rest)

    if framework == "numpy":
        return [call(*some), None, None, None]
    if framework == "torch":
        y = call(*(a.requires_grad_() for a in some))
        grads = torch.autograd.grad(y, some, to("torch", dy).to(y.dtype))
    elif framework == "jax":
        y, pull = jax.vjp(call, *some)
        grads = pull(to("jax", dy).astype(y.dtype))
    else:
        with tf.GradientTape() as tape:
            tape.watch(some)
            y = call(*some)
        grads = tape.gradient(y, some, tf.cast(to("tensorflow", dy), y.dtype))
    rest_of = iter(grads)
    return [back(y), *(back(next(rest_of)) if yes else None for yes in there)]


def ulps(actual: np.ndarray, wanted: np.ndarray, number: float = 4.0) -> None:
    """Assert agreement within `number` units in the last place at the scale of `wanted`."""
    assert actual.shape == wanted.shape
    size = np.abs(wanted).max(initial=np.finfo(np.float32).tiny).astype(np.float32)
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=number * float(np.spacing(size)))


def relative(actual: np.ndarray, wanted: np.ndarray, tolerance: float, name: str = "") -> None:
    """Assert agreement within `tolerance` of the largest entry of `wanted`."""
    actual, wanted = (np.ravel(a).astype(np.float64) for a in (actual, wanted))
    np.testing.assert_allclose(
        actual, wanted, rtol=0, atol=tolerance * np.abs(wanted).max(initial=1e-300), err_msg=name
    )
