"""What torch.onnx.export gets in place of anynorm's operators, which ONNX does not have: torch's own operations."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as peer

from ..spec import NormSpec, affine_names


def goes_to_onnx(mask: Tensor | None) -> bool:
    """Whether what is traced will be ONNX's; not asked where nothing is, since that would cost a small array's time."""
    if not torch.onnx.is_in_onnx_export():
        return False
    if mask is not None:
        raise ValueError("ONNX's normalizations take no mask: export the model without one")
    return True


def normalize(x: Tensor, scale: Tensor | None, offset: Tensor | None, spec: NormSpec, eps: float | Tensor) -> Tensor:
    """y of a sentence in operations that every opset has: the axes that share a statistic become the last one."""
    pattern = spec.pattern.expand(x.ndim)
    lengths = dict(spec.sizes)
    for dim, length in zip(pattern.dims, x.shape, strict=True):
        known = math.prod(lengths[axis.name] for axis in dim if axis.name in lengths)
        lengths |= {axis.name: length // known for axis in dim if axis.name not in lengths}
    axes = pattern.axes
    kept, shared = ([i for i, axis in enumerate(axes) if axis.shared is here] for here in (False, True))
    moved = x.reshape([lengths[axis.name] for axis in axes]).permute(kept + shared)
    y = _over_last(moved.flatten(len(kept)), spec, eps).reshape(moved.shape)
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
