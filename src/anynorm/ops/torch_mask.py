"""What a mask leaves of the elements that share a statistic."""

from __future__ import annotations

import warnings
from typing import Any

from ..plan import Plan
from . import layout
from .torch_arrays import Verbs, plain

Array = Any


def warn_of_one(x: Array, mask: Array, variance: Array, plan: Plan) -> None:
    """Warn where a mask lets one element alone into a statistic: nothing of it is left, as of an axis of length 1.

    That is an error without a mask, which is data. It is looked for where the values lie on the CPU, since another
    device would have to be waited for, and only where a variance is 0, which seldom is.
    """
    if not plan.removes_mean or plan.empty or not x.is_cpu or not plain(x, mask, variance) or variance.all():
        return
    counted = layout.to_runs(Verbs, mask.expand(x.shape), plan).sum(
        [d for d, run in enumerate(plan.runs) if run.reduced]
    )
    if (counted == 1).any():
        warnings.warn(
            "a mask lets only one element into a statistic, so that nothing of it is left there: y is the bias; let "
            "more in, or put more axes under one statistic",
            stacklevel=5,
        )
