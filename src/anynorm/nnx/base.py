"""What the NNX modules share: types as Flax promotes them, and the call of the operation in `anynorm.ops`."""

from __future__ import annotations

import warnings
from math import prod
from typing import Any

import jax.numpy as jnp
from flax import nnx

from ..ops import jax as ops
from ..ops.checks import check, written
from ..plan import plan as make_plan
from ..spec import NormSpec

Array = Any


def value(variable: nnx.Variable | None) -> Array | None:
    return None if variable is None else variable[...]


def promoted(module: Any, x: Array, *values: Array | None) -> Any:
    """x and the module's values as its `promote_dtype` casts them, but never x to a narrower type.

    The statistics see the input as it came: cast to float16 beforehand, 70000 would be infinite.
    """
    dtype = None if module.dtype is None else jnp.promote_types(module.dtype, x.dtype)
    return module.promote_dtype((x, *values), dtype=dtype)


def result_dtype(module: Any, *arrays: Array | None) -> Any:
    return module.dtype or jnp.result_type(*(a for a in arrays if a is not None))


def fitted(
    module: Any,
    spec: NormSpec,
    features: int | None,
    x: Array,
    scale: Array | None,
    bias: Array | None,
    mask: Array | None,
) -> tuple[Array | None, Array | None, Array | None, float]:
    """scale and bias shaped as the feature axes, mask and epsilon; raises where the input does not fit the module.

    features: the product of the feature axes' lengths, over which Flax's parameters are flat; None where they are not.
    """
    if features is not None:
        shape = make_plan(spec, ops.shape(x)).affine.shape
        if None not in shape and prod(n or 0 for n in shape) != features:
            raise ValueError(
                f"{type(module).__name__} was made for {features} features, and an input of shape "
                f"{written(ops.shape(x))} has {written(shape)} along its feature axes"
            )
        scale, bias = (None if v is None else v.reshape(shape) for v in (scale, bias))
    mask = None if mask is None else jnp.asarray(mask)
    return scale, bias, mask, check(ops, x, scale, bias, mask, spec, module.epsilon, erasing=False)


def normalize(
    module: Any,
    spec: NormSpec,
    features: int | None,
    x: Array,
    scale: Array | None,
    bias: Array | None,
    mask: Array | None,
) -> tuple[Array, Array, Array]:
    """y in the module's type, mean and variance; over all devices where the module has an `axis_name`."""
    dtype = result_dtype(module, x, scale, bias)
    scale, bias, mask, eps = fitted(module, spec, features, x, scale, bias, mask)
    if module.axis_name is None:
        warn_if_nothing_is_left(module, spec, x)
        y, mean, variance = ops.normalize(x, scale, bias, mask, spec, eps)
    else:
        devices = module.axis_name, module.axis_index_groups
        y, mean, variance = ops.normalize_across(x, scale, bias, mask, spec, eps, *devices)
    return y.astype(dtype), mean, variance


def warn_if_nothing_is_left(module: Any, spec: NormSpec, x: Array) -> None:
    """Not an error: Flax answers with the bias, and models may rely on it for one batch of an odd size."""
    plan = make_plan(spec, ops.shape(x))
    if plan.count == 1 and plan.removes_mean:
        warnings.warn(
            f"each statistic of {type(module).__name__} is over one element of an input of shape "
            f"{written(ops.shape(x))}, so that nothing of the input is left; use fewer groups, other axes or a larger "
            "batch",
            stacklevel=4,
        )
