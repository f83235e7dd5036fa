"""What torch.onnx.export gets in place of anynorm's operators, which ONNX does not have: torch's own operations."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as peer

from ..spec import MOMENTS, NormSpec, affine_names


def goes_to_onnx(mask: Tensor | None) -> bool:
    """Whether torch's own function is to be called, since what is traced will be ONNX's, whose norms take no mask.

    Not asked where nothing is traced, since that would cost a small array's time.
    """
    return mask is None and torch.onnx.is_in_onnx_export()


def _is_old() -> bool:
    """Whether torch's old exporter looks on, which traces; lengths are tensors for it."""
    return torch._C._get_tracing_state() is not None


def length(x: Tensor, axis: int) -> int:
    """A length that the exported program may take for constant."""
    return int(x.shape[axis]) if _is_old() else x.shape[axis]


def rms_norm(x: Tensor, normalized_shape: list[int], weight: Tensor | None, eps: float) -> Tensor:
    """torch's own, or in operations for the old exporter, which knows none."""
    if not _is_old():
        return peer.rms_norm(x, normalized_shape, weight, eps)
    y = _over(x, tuple(range(-len(normalized_shape), 0)), ("scale",), eps)
    return (y if weight is None else y * weight).to(x.dtype)


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
    # Before opset 23 there is no RMS normalization to name. The old exporter writes a layer norm's length down.
    if spec.remove == MOMENTS and not _is_old():
        return peer.layer_norm(x, x.shape[-1:], eps=float(eps))
    return _over(x, (-1,), spec.remove, eps)


def _over(x: Tensor, axes: tuple[int, ...], remove: tuple[str, ...], eps: float | Tensor) -> Tensor:
    # Squares leave half precision's range.
    d = x if x.dtype == torch.float64 else x.float()
    if "mean" in remove:
        d = d - d.mean(axes, keepdim=True)
    if "scale" in remove:
        d = d * torch.rsqrt(d.square().mean(axes, keepdim=True) + eps)
    return d


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
