"""The operation, for whatever array it is given: the module is picked by the array's type, and imported only then."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from ..plan import Plan, Shape
from ..plan import plan as make_plan
from ..precision import checked_eps, statistics_dtype
from ..spec import MOMENTS, NormSpec

Array = Any

# A module of ops, the framework's own module, and the types of its arrays there.
_FRAMEWORKS = (("torch", "torch", "Tensor"), ("jax", "jax", "Array"), ("tensorflow", "tensorflow", "Tensor"))


def framework_of(x: Array) -> str:
    """The name of the framework that `x` is an array of; no framework is imported to find out."""
    for name, module, kind in _FRAMEWORKS:
        known = getattr(sys.modules.get(module), kind, None)
        if known is not None and isinstance(x, known):
            return name
    if isinstance(x, np.ndarray | np.generic):
        return "numpy"
    raise TypeError(
        f"cannot normalize {type(x).__module__}.{type(x).__name__}: give an array of NumPy, torch, JAX or TensorFlow"
    )


def of(x: Array) -> ModuleType:
    """The module of operations for arrays like `x`."""
    return import_module(f".{framework_of(x)}", __name__)


def normalize(
    x: Array,
    pattern: str,
    *,
    scale: Array | None = None,
    offset: Array | None = None,
    affine: str | None = None,
    eps: float = 1e-5,
    remove: str | tuple[str, ...] = MOMENTS,
    mask: Array | None = None,
    **sizes: int,
) -> Array:
    """Normalize an array as a sentence about its axes says.

        y = (x - mean) / sqrt(variance + eps) * scale + offset

    The elements along the axes in square brackets share one mean and variance, one pair for each choice along the
    others. Statistics of float16, bfloat16 and float32 input are float32, and good to 1e-6 at offsets to 1e6; inputs
    near the type's largest and smallest numbers neither overflow nor vanish.

    Args:
        x: a floating-point array of NumPy, torch, JAX or TensorFlow, of any rank.
        pattern: the sentence, such as `"n [...] (g [c])"` (group normalization, channels last).
        scale, offset: arrays over the affine axes, or None.
        affine: the axes that carry scale and offset, in the pattern's order. None means the axes in parentheses,
            else the axis called `c`.
        eps: added to the variance; not negative.
        remove: the moments to take out, "mean", "scale" or both; `"scale"` alone is RMS normalization.
        mask: boolean, broadcastable to x; elements where it is false do not enter the statistics. A group without
            any true element comes out as `offset`.
        **sizes: lengths of axes, as in `g=8`.

    Returns:
        An array of x's kind, shape and type; differentiable in x, scale and offset where the framework is.

    Raises:
        PatternError: the sentence cannot be read.
        ValueError: shape, sizes, scale, offset, mask or eps do not fit, or a statistic would be over one element.
        TypeError: x is not a floating-point array.

    >>> import numpy as np
    >>> x = np.array([[1.0, 3.0], [10.0, 30.0]], dtype=np.float32)
    >>> normalize(x, "n [c]", eps=0.0)
    array([[-1.,  1.],
           [-1.,  1.]], dtype=float32)
    """
    ops = of(x)
    spec = NormSpec.of(pattern, affine=affine, remove=remove, **sizes)
    plan = _checked_plan(spec, ops, x)
    if plan.count == 1 and plan.removes_mean:
        raise ValueError(
            f'under "{pattern}" each statistic is over one element of an array of shape {tuple(ops.shape(x))}, so that '
            "nothing of x would be left; put more axes in square brackets, or use fewer groups"
        )
    if (scale is not None or offset is not None) and spec.affine is None:
        raise ValueError(
            f'which axes of "{pattern}" carry scale and offset? Say affine=, as in affine="{spec.pattern.names[-1]}"'
        )
    scale, offset = (_checked_small(s, name, ops, x, plan) for s, name in ((scale, "scale"), (offset, "offset")))
    y, _, _ = ops.normalize(x, scale, offset, _checked_mask(mask, ops, x), spec, checked_eps(eps))
    return y


def moments(x: Array, pattern: str, *, mask: Array | None = None, **sizes: int) -> tuple[Array, Array]:
    """Mean and biased variance of the elements that share a statistic.

    Args:
        x, pattern, mask, **sizes: as for `normalize`.

    Returns:
        Mean and variance, shaped as the axes outside square brackets, in order; float32, or float64 for float64 x.
        Both are differentiable where the framework is.

    >>> import numpy as np
    >>> moments(np.array([[1.0, 3.0], [10.0, 30.0]]), "n [c]")
    (array([ 2., 20.]), array([  1., 100.]))
    """
    ops = of(x)
    spec = NormSpec.of(pattern, affine="", **sizes)
    _checked_plan(spec, ops, x)
    mean, variance = ops.moments(x, _checked_mask(mask, ops, x), spec)
    return mean, variance


def _checked_plan(spec: NormSpec, ops: ModuleType, x: Array) -> Plan:
    statistics_dtype(ops.dtype(x))
    return make_plan(spec, ops.shape(x))


def _checked_small(values: Array | None, name: str, ops: ModuleType, x: Array, plan: Plan) -> Array | None:
    if values is None:
        return None
    values = ops.convert(values, x)
    if not _fits(ops.shape(values), plan.affine.shape):
        raise ValueError(
            f"{name} must have the shape {_written(plan.affine.shape)} of the affine axes, and it has "
            f"{_written(ops.shape(values))}"
        )
    return values


def _checked_mask(mask: Array | None, ops: ModuleType, x: Array) -> Array | None:
    if mask is None:
        return None
    mask = ops.convert(mask, x)
    if ops.dtype(mask) != "bool":
        raise TypeError(f"the mask must be boolean, true where an element counts, and it is {ops.dtype(mask)}")
    shape, whole = ops.shape(mask), ops.shape(x)
    if len(shape) > len(whole) or not all(
        m in (1, None) or n is None or m == n for m, n in zip(shape[::-1], whole[::-1], strict=False)
    ):
        raise ValueError(f"a mask of shape {_written(shape)} does not broadcast to {_written(whole)}")
    return mask


def _fits(shape: Shape, wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(a is None or b is None or a == b for a, b in zip(shape, wanted, strict=True))


def _written(shape: Shape) -> str:
    return "(" + ", ".join("?" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"


# AutoGraph rewrites whatever a tf.function reaches, at every tracing; it leaves alone what carries this mark, and there
# is no Python branch on a tensor's value below.
for _function in (normalize, moments):
    _function.autograph_info__ = {}  # type: ignore[attr-defined]
