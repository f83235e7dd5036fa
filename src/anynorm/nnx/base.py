"""What the NNX modules share: types as Flax promotes them, and the call of the operation in `anynorm.ops`."""

from __future__ import annotations

import warnings
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..ops import jax as ops
from ..ops import layout
from ..ops.checks import check, written
from ..ops.numpy import Verbs
from ..plan import Plan
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
    dtype, given = result_dtype(module, x, scale, bias), mask if isinstance(mask, np.ndarray) else None
    scale, bias, mask, eps = fitted(module, spec, features, x, scale, bias, mask)
    if module.axis_name is None:
        # Within jit JAX's own copy of an array of NumPy's is traced, and says no values any more.
        warn_if_nothing_is_left(module, spec, x, mask if given is None else given)
        y, mean, variance = ops.normalize(x, scale, bias, mask, spec, eps)
    else:
        devices = module.axis_name, module.axis_index_groups
        y, mean, variance = ops.normalize_across(x, scale, bias, mask, spec, eps, *devices)
    return y.astype(dtype), mean, variance


def warn_if_nothing_is_left(module: Any, spec: NormSpec, x: Array, mask: Array | None) -> None:
    """Not an error: Flax answers with the bias, and models may rely on it for one batch of an odd size.

    A traced mask has no values yet, so that nothing can be said of it.
    """
    plan = make_plan(spec, ops.shape(x))
    if not plan.removes_mean:
        return
    is_one = plan.count == 1
    if not is_one and mask is not None and not isinstance(mask, jax.core.Tracer):
        is_one = None not in ops.shape(x) and _counts_one(np.asarray(mask), x.shape, plan)
    if is_one:
        warnings.warn(
            f"each statistic of {type(module).__name__} is over one element of an input of shape "
            f"{written(ops.shape(x))}{'' if mask is None else ' under its mask'}, so that nothing of the input is "
            "left; use fewer groups, other axes or a larger batch",
            stacklevel=4,
        )


def _counts_one(mask: np.ndarray, shape: tuple[int, ...], plan: Plan) -> bool:
    """Whether the statistics have one element under the mask, or none, as some may, but not all."""
    whole = prod(shape)
    # With more of them than statistics, one has two: only the few other masks are counted through.
    if not whole or np.count_nonzero(mask) * (whole // mask.size) > (plan.groups or 0):
        return False
    runs = layout.to_runs(Verbs, np.broadcast_to(mask, shape), plan)
    return bool(runs.sum(tuple(i for i, run in enumerate(plan.runs) if run.reduced)).max() == 1)
