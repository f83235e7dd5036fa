"""Statistics of the batches of several processes together, each process normalizing its own.

Everything is float64 in between: one float32 cannot carry a mean at offset 1e6, and counts, means and variances are
combined by sums that would cancel.
"""

from __future__ import annotations

from typing import Any

import torch

from ..spec import NormSpec
from . import torch as ops
from . import torch_given

Array = Any


def normalize(
    x: Array, scale: Array | None, offset: Array | None, mask: Array | None, sentence: str, eps: float, group: Any
) -> tuple[Array, Array, Array, Array]:
    """y, mean, variance and count, the last three over the kept axes and the same in every process of `group`."""
    wide = x.double()
    if ops.is_traced():
        mean, variance = ops.moments_traced(wide, mask, sentence, None)
    else:
        mean, variance = ops.moments(wide, mask, NormSpec.decode(sentence))
    kept, _ = torch_given.whole_axes(sentence, x.ndim)
    axes = [d for d in range(x.ndim) if d not in kept]
    counted = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.expand(x.shape)
    count = counted.sum(dim=axes).double()
    total, weighted = _total(torch.stack([count, count * mean]), group.group_name).unbind()
    everywhere = total.clamp_min(1)
    common = weighted / everywhere
    spread = _total(count * (variance + (mean - common) ** 2), group.group_name) / everywhere
    y = ops.apply_checked(wide, common, spread, scale, offset, sentence, eps).to(x.dtype)
    return y, common.detach(), spread.detach(), total.detach()


# An operator of its own: under torch.compile's default compiler torch 2.13's functional all_reduce, twice in one graph,
# gave wrong sums.
@torch.library.custom_op("anynorm::sum_over_processes", mutates_args=())
def _sum(values: torch.Tensor, group: str) -> torch.Tensor:
    """The sum of all processes' values, in each of them."""
    total = values.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total, group=torch.distributed.distributed_c10d._resolve_process_group(group))
    return total


@_sum.register_fake
def _sum_fake(values: torch.Tensor, group: str) -> torch.Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.group = inputs[1]


def _gradient(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
    return _sum(gradient, ctx.group), None


_sum.register_autograd(_gradient, setup_context=_setup_context)


class _Sum(torch.autograd.Function):
    """The operator with the derivatives and the batching that operators have none of."""

    @staticmethod
    def forward(values: Array, group: str) -> Array:
        return _sum(values, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Array) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Array) -> tuple[Array, None]:
        return _total(gradient, ctx.group), None

    @staticmethod
    def jvp(ctx: Any, tangent: Array, _: Any) -> Array:
        return _total(tangent, ctx.group)

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], values: Array, group: str) -> tuple[Array, Any]:
        return _total(values, group), dims[0]


def _total(values: Array, group: str) -> Array:
    if not ops.is_traced():
        total: Array = _Sum.apply(values, group)
        return total
    if ops.is_transformed():
        raise NotImplementedError("no derivative of SyncBatchNorm can be taken inside what is compiled, only of it")
    return _sum(values, group)
