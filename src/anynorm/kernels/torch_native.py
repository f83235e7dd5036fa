"""torch's own layer and group normalization on the CPU, for rows whose elements share a statistic.

They read a row once where single operations read it five times. Their statistics are about 0, so they are used where
that keeps the precision contract, row by row: `are_good` of kernels/composed.py says where, and the composed formula
does the other rows. Arrays are shaped as the plan's runs.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from ..plan import Plan
from ..precision import FORMATS
from .composed import Stats, are_good

Array = Any


def shape_of(plan: Plan) -> tuple[int, int, int, int, bool]:
    """Samples, groups, channels and positions as torch's group normalization counts them; whether a row is a layer's.

    >>> from anynorm import NormSpec
    >>> from anynorm.plan import plan
    >>> shape_of(plan(NormSpec.of("n (g [c]) [...]", g=4), (3, 12, 5, 7)))
    (3, 4, 12, 35, False)
    """
    extents = dict(zip(plan.labels, (run.known for run in plan.runs), strict=True))
    n, g, c, s = (extents.get(label, 1) for label in "kKRr")
    return n, g, g * c, s, re.fullmatch("k?[Rr]", plan.labels) is not None


def forward(x: Array, scale: Array | None, offset: Array | None, plan: Plan, eps: float) -> tuple[Array, Stats, Array]:
    """y and the statistics, and for which groups both are good."""
    n, g, c, s, is_layer = shape_of(plan)
    scale, offset = (_along(a, c * s if is_layer else c) for a in (scale, offset))
    if is_layer:
        y, mean, rstd = torch.native_layer_norm(x.reshape(n, -1).contiguous(), (c * s,), scale, offset, eps)
    else:
        y, mean, rstd = torch.native_group_norm(x.reshape(n, c, s).contiguous(), scale, offset, n, c, s, g, eps)
    small = [1 if run.reduced else run.known for run in plan.runs]
    mean, rstd = mean.reshape(small), rstd.reshape(small)
    fmt = FORMATS[str(x.dtype).removeprefix("torch.")]
    variance = rstd.pow(-2) - eps
    # Below eps too much of the variance is lost in this subtraction to judge by it.
    good = are_good(mean, variance, plan, eps, fmt) & (variance >= eps)
    return y.reshape(x.shape), Stats(None, None, mean, variance, rstd, float(plan.count or 1)), good


def backward(
    x: Array, dy: Array, scale: Array | None, mean: Array, rstd: Array, plan: Plan
) -> tuple[Array, Array, Array]:
    """dx, dscale and doffset, shaped as the runs."""
    n, g, c, s, is_layer = shape_of(plan)
    # Without a weight torch's kernels give no sum for the offset either, and the group's raises.
    # A slice of a larger tensor is strided even where its rows need no copy to be seen as such.
    x, dy = x.contiguous(), dy.contiguous()
    weight = x.new_ones(c * s if is_layer else c) if scale is None else _along(scale, c * s if is_layer else c)
    if is_layer:
        rows = (n, c * s)
        dx, dscale, doffset = torch.ops.aten.native_layer_norm_backward(
            dy.reshape(rows), x.reshape(rows), (c * s,), mean.reshape(n, 1), rstd.reshape(n, 1), weight, weight,
            [True, True, True],
        )  # fmt: skip
    else:
        dx, dscale, doffset = torch.ops.aten.native_group_norm_backward(
            dy.reshape(n, c, s), x.reshape(n, c, s), mean.reshape(n, g), rstd.reshape(n, g), weight,
            n, c, s, g, [True, True, True],
        )  # fmt: skip
    small = [run.known if run.affine else 1 for run in plan.runs]
    if not any(run.affine for run in plan.runs):
        dscale, doffset = dscale.sum(), doffset.sum()
    return dx.reshape(x.shape), dscale.reshape(small), doffset.reshape(small)


def _along(small: Array | None, length: int) -> Array | None:
    """Scale or offset as torch wants them: of an axis of length 1, which is no run, one number stands for all."""
    return None if small is None else small.reshape(-1).expand(length).contiguous()
