"""What torch.onnx.export gets in place of anynorm's operators, which ONNX does not have: torch's own operations."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as peer

from ..spec import NormSpec, affine_names


def goes_to_onnx(mask: Tensor | None) -> bool:
    """Whether torch's own function is to be called, since what is traced will be ONNX's, whose norms take no mask.

    Not asked where nothing is traced, since that would cost a small array's time.
    """
    return mask is None and torch.onnx.is_in_onnx_export()


def normalize(
    x: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    spec: NormSpec,
    eps: float | Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """y of a sentence in operations that every opset has: the axes that share a statistic become the last one."""
    pattern = spec.pattern.expand(x.ndim)
    lengths = dict(spec.sizes)
    for dim, length in zip(pattern.dims, x.shape, strict=True):
        known = math.prod(lengths[axis.name] for axis in dim if axis.name in lengths)
        lengths |= {axis.name: length // known for axis in dim if axis.name not in lengths}
    axes = pattern.axes
    kept, shared = ([i for i, axis in enumerate(axes) if axis.shared is here] for here in (False, True))

    def moved(values: Tensor) -> Tensor:
        return values.reshape([lengths[axis.name] for axis in axes]).permute(kept + shared)

    shape = moved(x).shape
    rows, counted = (
        None if values is None else moved(values.expand(x.shape)).flatten(len(kept)) for values in (x, mask)
    )
    y = (_over_last(rows, spec, eps) if counted is None else _over_some(rows, counted, spec, eps)).reshape(shape)
    y = y.permute([(kept + shared).index(i) for i in range(len(axes))])
    affine = affine_names(spec, pattern)
    small = [lengths[axis.name] if axis.name in affine else 1 for axis in axes]
    y = y if scale is None else y * scale.reshape(small)
    y = y if offset is None else y + offset.reshape(small)
    return y.reshape(x.shape).to(x.dtype)


def _over_last(x: Tensor, spec: NormSpec, eps: float | Tensor) -> Tensor:
    if spec.remove == ("mean",):
        return x - x.mean(-1, keepdim=True)
    if spec.remove == ("scale",):
        # Before opset 23 there is no RMS normalization to name, and squares leave half precision's range.
        work = x if x.dtype == torch.float64 else x.float()
        return work * torch.rsqrt(work.square().mean(-1, keepdim=True) + eps)
    return peer.layer_norm(x, x.shape[-1:], eps=float(eps))


def _over_some(x: Tensor, counted: Tensor, spec: NormSpec, eps: float | Tensor) -> Tensor:
    """`_over_last` with the statistics of the elements that count; 0 where none does."""
    d = x if x.dtype == torch.float64 else x.float()
    number = counted.sum(-1, keepdim=True).to(d.dtype).clamp_min(1)

    def mean(values: Tensor) -> Tensor:
        return torch.where(counted, values, torch.zeros_like(values)).sum(-1, keepdim=True) / number

    if "mean" in spec.remove:
        d = d - mean(d)
    if "scale" in spec.remove:
        d = d * torch.rsqrt(mean(d.square()) + eps)
    # Padding may be NaN.
    finite = (d > -math.inf) & (d < math.inf)
    return torch.where((counted | finite) & (counted.sum(-1, keepdim=True) > 0), d, torch.zeros_like(d))
