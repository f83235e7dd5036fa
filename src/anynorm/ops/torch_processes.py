"""Statistics of the batches of several processes together, each process normalizing its own.

Everything is float64 in between: one float32 cannot carry a mean at offset 1e6, and counts, means and variances are
combined by sums that would cancel. Both of the sums are differentiable, so that no gradient rule stands here.
"""

from __future__ import annotations

from typing import Any

import torch

from ..spec import NormSpec
from . import torch as ops

Array = Any


def normalize(
    x: Array, scale: Array | None, offset: Array | None, mask: Array | None, spec: NormSpec, eps: float, group: Any
) -> tuple[Array, Array, Array, Array]:
    """y, mean, variance and count, the last three over the kept axes and the same in every process of `group`."""
    # Here, since a torch without torch.distributed has no such module.
    from torch.distributed.nn.functional import all_reduce

    wide = x.double()
    mean, variance = ops.moments(wide, mask, spec)
    axes = [d for d, (axis,) in enumerate(spec.pattern.expand(x.ndim).dims) if axis.shared]
    counted = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.expand(x.shape)
    count = counted.sum(dim=axes).double()
    total, weighted = all_reduce(torch.stack([count, count * mean]), group=group).unbind()
    everywhere = total.clamp_min(1)
    common = weighted / everywhere
    spread = all_reduce(count * (variance + (mean - common) ** 2), group=group) / everywhere
    y = ops.apply(wide, common, spread, scale, offset, spec, eps).to(x.dtype)
    return y, common.detach(), spread.detach(), total.detach()
