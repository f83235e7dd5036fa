"""The CPU kernels for NumPy arrays, C-contiguous in the order of their dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...plan import Plan
from . import DTYPES, calls, problem

Array = Any


def forward(
    x: Array, scale: Array | None, offset: Array | None, plan: Plan, eps: float, out: Array | None = None
) -> tuple[Array, Array, Array]:
    """y (in `out`, if that is given), mean and variance over the kept runs."""
    x, scale, offset = np.asarray(x, order="C"), _small(scale, x), _small(offset, x)
    y = np.empty_like(x) if out is None else out
    mean, variance = np.empty((2, plan.groups or 0), _work(x))
    names = (None if s is None else s.dtype.name for s in (scale, offset))
    calls.forward(
        problem(plan, x.dtype.name, *names, eps),
        *(_address(a) for a in (x, scale, offset, y, mean, variance, None)),  # type: ignore[arg-type]
    )
    return y, mean, variance


def can_write(out: Array, x: Array, scale: Array | None, offset: Array | None) -> bool:
    """Whether y may be written into `out` as it comes: contiguous as x is, x or apart from it, and from the rest."""
    contiguous = out.flags.c_contiguous and x.flags.c_contiguous and out.flags.writeable
    same = out.ctypes.data == x.ctypes.data
    apart = not any(a is not None and np.may_share_memory(out, a) for a in (None if same else x, scale, offset))
    return bool(contiguous and apart)


def moments(x: Array, plan: Plan) -> tuple[Array, Array]:
    """Mean and variance over the kept runs."""
    x = np.asarray(x, order="C")
    mean, variance = np.empty((2, plan.groups or 0), _work(x))
    calls.moments(
        problem(plan, x.dtype.name, None, None, 0.0),
        *(_address(a) for a in (x, mean, variance, None)),  # type: ignore[arg-type]
    )
    return mean, variance


def _address(a: Array | None) -> int | None:
    return None if a is None else a.ctypes.data


def _small(values: Array | None, x: Array) -> Array | None:
    """Scale or offset in a type that the kernels read."""
    if values is None:
        return None
    return np.asarray(values if values.dtype.name in DTYPES else values.astype(_work(x)), order="C")


def _work(x: Array) -> Any:
    return np.float64 if x.dtype == np.float64 else np.float32
