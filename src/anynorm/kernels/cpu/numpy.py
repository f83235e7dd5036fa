"""The CPU kernels for NumPy arrays, C-contiguous in the order of their dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...plan import Plan
from . import DTYPES, calls, problem

Array = Any


def forward(x: Array, scale: Array | None, offset: Array | None, plan: Plan, eps: float) -> tuple[Array, Array, Array]:
    """y, mean and variance over the kept runs."""
    x, scale, offset = np.ascontiguousarray(x), _small(scale, x), _small(offset, x)
    y = np.empty_like(x)
    mean, variance = np.empty((2, plan.groups or 0), _work(x))
    names = (None if s is None else s.dtype.name for s in (scale, offset))
    calls.forward(
        problem(plan, x.dtype.name, *names, eps),
        *(_address(a) for a in (x, scale, offset, y, mean, variance, None)),  # type: ignore[arg-type]
    )
    return y, mean, variance


def moments(x: Array, plan: Plan) -> tuple[Array, Array]:
    """Mean and variance over the kept runs."""
    x = np.ascontiguousarray(x)
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
    return np.ascontiguousarray(values if values.dtype.name in DTYPES else values.astype(_work(x)))


def _work(x: Array) -> Any:
    return np.float64 if x.dtype == np.float64 else np.float32
