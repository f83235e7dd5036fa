"""Normalizing with statistics from outside in torch's own operations, which a compiler joins with their neighbours."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from ..spec import NormSpec, affine_names
from .torch_constant import constant

Array = Any


def apply(
    x: Array, mean: Array, variance: Array, scale: Array | None, offset: Array | None, sentence: str, eps: float
) -> Array:
    """y = (x - mean) / sqrt(variance + eps) * scale + offset, differentiable in all of them."""
    kept, affine = whole_axes(sentence, x.ndim)
    work = torch.float64 if x.dtype == torch.float64 else torch.float32

    def spread(small: Array, shape: list[int]) -> Array:
        return small.to(work).reshape(shape)

    over_kept = [n if d in kept else 1 for d, n in enumerate(x.shape)]
    over_affine = [n if d in affine else 1 for d, n in enumerate(x.shape)]
    factor = (spread(variance, over_kept) + eps).clamp_min(torch.finfo(work).tiny).rsqrt()
    if scale is not None:
        factor = factor * spread(scale, over_affine)
    d = x.to(work) - spread(mean, over_kept)
    y = d * factor if offset is None else torch.addcmul(spread(offset, over_affine), d, factor)
    return y.to(x.dtype)


@constant
def whole_axes(sentence: str, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The dimensions over which statistics are kept, and those with scale and offset."""
    return _cached_whole_axes(sentence, rank)


@lru_cache(maxsize=1024)
def _cached_whole_axes(sentence: str, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    spec = NormSpec.decode(sentence)
    expanded = spec.pattern.expand(rank)
    if any(len(dim) > 1 for dim in expanded.dims):
        raise ValueError(f'statistics from outside are over whole axes, and "{spec.text}" splits one')
    names = affine_names(spec, expanded)
    kept = tuple(d for d, (axis,) in enumerate(expanded.dims) if not axis.shared)
    return kept, tuple(d for d, (axis,) in enumerate(expanded.dims) if axis.name in names)
