"""The operation, for whatever array it is given: the module is picked by the array's type, and imported only then."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

from ..spec import MOMENTS, spec_of
from .checks import check, check_out

Array = Any

# The framework's own module and the type of its arrays there, by the name of the module of ops.
_ARRAYS = (
    ("torch", "torch", "Tensor"),
    ("jax", "jax", "Array"),
    ("tensorflow", "tensorflow", "Tensor"),
    ("tensorflow", "tensorflow", "Variable"),
)
_NUMPY = (np.ndarray, np.generic)


def framework_of(x: Array) -> str:
    """The name of the framework that `x` is an array of; no framework is imported to find out."""
    name = _known(x)
    if name is None:
        raise TypeError(
            f"cannot normalize {type(x).__module__}.{type(x).__name__}: give an array of NumPy, torch, JAX or "
            "TensorFlow"
        )
    return name


def _known(x: Any) -> str | None:
    for name, module, kind in _ARRAYS:
        known = getattr(sys.modules.get(module), kind, None)
        if known is not None and isinstance(x, known):
            return name
    return "numpy" if isinstance(x, _NUMPY) else None


def _leading(x: Array, *others: Any) -> Array:
    """The array whose framework computes: x, or where x is NumPy's the first that is not, which may have a gradient."""
    if not isinstance(x, _NUMPY):
        return x
    return next((other for other in others if not isinstance(other, _NUMPY) and _known(other) is not None), x)


def of(x: Array) -> ModuleType:
    """The module of operations for arrays like `x`."""
    return _MODULES[framework_of(x)]()


# Import statements rather than import_module: torch.compile follows them, and so do tools that look for imports.
def _numpy() -> ModuleType:
    from . import numpy

    return numpy


def _torch() -> ModuleType:
    from . import torch

    return torch


def _jax() -> ModuleType:
    from . import jax

    return jax


def _tensorflow() -> ModuleType:
    from . import tensorflow

    return tensorflow


_MODULES = {"numpy": _numpy, "torch": _torch, "jax": _jax, "tensorflow": _tensorflow}


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
    kernel: str | None = None,
    out: Array | None = None,
    **sizes: int,
) -> Array:
    """Normalize an array as a sentence about its axes says.

        y = (x - mean) / sqrt(variance + eps) * scale + offset

    The elements along the axes in square brackets share one mean and variance, one pair for each choice along the
    others. Statistics of float16, bfloat16 and float32 input are float32, and good to 1e-6 at offsets to 1e6; inputs
    near the type's largest and smallest numbers neither overflow nor vanish.

    Args:
        x: a floating-point array of NumPy, torch, JAX or TensorFlow, of any rank. NumPy's is taken for one of the
            framework that scale, offset or mask are of.
        pattern: the sentence, such as `"n [...] (g [c])"` (group normalization, channels last).
        scale, offset: arrays over the affine axes, or None.
        affine: the axes that carry scale and offset, in the pattern's order. None means the axes in parentheses,
            else the axis called `c`.
        eps: added to the variance; not negative.
        remove: the moments to take out, "mean", "scale" or both; `"scale"` alone is RMS normalization.
        mask: boolean, broadcastable to x; elements where it is false do not enter the statistics. A group without
            any true element comes out as `offset`.
        kernel: which kernel must compute ("cpu", "triton", "pallas", "native", "composed"); None takes the
            environment's ANYNORM_KERNEL, which is read once, at the first call, or else the best. `anynorm doctor`
            says which that is, and why.
        out: an array like x to write into, NumPy's or torch's, for inference; x itself normalizes in place.
        **sizes: lengths of axes, as in `g=8`.

    Returns:
        An array of x's kind, shape and type; differentiable in x, scale and offset where the framework is. `out`
        where that was given.

    Raises:
        PatternError: the sentence cannot be read.
        ValueError: shape, sizes, scale, offset, mask or eps do not fit, a statistic would be over one element, or the
            kernel that was asked for cannot run here.
        TypeError: x is not a floating-point array, or its framework's arrays cannot be written into.

    >>> import numpy as np
    >>> x = np.array([[1.0, 3.0], [10.0, 30.0]], dtype=np.float32)
    >>> normalize(x, "n [c]", eps=0.0)
    array([[-1.,  1.],
           [-1.,  1.]], dtype=float32)
    """
    like = x if out is not None else _leading(x, scale, offset, mask)
    ops = of(like)
    words = (pattern, affine, remove, tuple(sizes.items()))
    x, scale, offset, mask = [None if a is None else ops.convert(a, like) for a in (x, scale, offset, mask)]
    if ops.is_traced():
        y = ops.normalize_traced(x, scale, offset, mask, ops.sentence(*words), eps, kernel)[0]
        return y if out is None else out.copy_(y)
    if out is None and kernel is None and hasattr(ops, "normalize_checked"):
        # torch in eager mode, where a small array is done before its shape is checked: all of that is looked up.
        return ops.normalize_checked(x, scale, offset, mask, ops.sentence(*words), eps)[0]
    spec = spec_of(*words)
    eps = check(ops, x, scale, offset, mask, spec, eps)
    if out is not None:
        if not hasattr(ops, "normalize_into"):
            raise TypeError(f"{framework_of(x)} arrays cannot be written into: leave out= away")
        check_out(ops, x, out)
        return ops.normalize_into(out, x, scale, offset, mask, spec, eps, kernel)
    return ops.normalize(x, scale, offset, mask, spec, eps, kernel, statistics=False)[0]


def moments(
    x: Array, pattern: str, *, mask: Array | None = None, kernel: str | None = None, **sizes: int
) -> tuple[Array, Array]:
    """Mean and biased variance of the elements that share a statistic.

    Args:
        x, pattern, mask, kernel, **sizes: as for `normalize`.

    Returns:
        Mean and variance, shaped as the axes outside square brackets, in order; float32, or float64 for float64 x.
        Both are differentiable where the framework is.

    >>> import numpy as np
    >>> moments(np.array([[1.0, 3.0], [10.0, 30.0]]), "n [c]")
    (array([ 2., 20.]), array([  1., 100.]))
    """
    like = _leading(x, mask)
    ops = of(like)
    words = (pattern, "", MOMENTS, tuple(sizes.items()))
    x, mask = [None if a is None else ops.convert(a, like) for a in (x, mask)]
    if ops.is_traced():
        mean, variance = ops.moments_traced(x, mask, ops.sentence(*words), kernel)
        return mean, variance
    spec = spec_of(*words)
    check(ops, x, None, None, mask, spec, 0.0, erasing=False)
    mean, variance = ops.moments(x, mask, spec, kernel)
    return mean, variance


# AutoGraph rewrites whatever a tf.function reaches, at every tracing; it leaves alone what carries this mark, and there
# is no Python branch on a tensor's value below.
for _function in (normalize, moments):
    setattr(_function, "autograph_info__", {})  # noqa: B010
