"""Nested tensors: samples of different lengths in one, as `torch.nested` makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def each(
    normalize: Callable[[Tensor], Tensor], x: Tensor, normalized_shape: Sequence[int], mask: Tensor | None
) -> Tensor:
    """`normalize`, which is over the last axes, of each sample; its gradient with it.

    Raises:
        ValueError: the axis along which the samples differ is among those that are normalized over, or there is a mask.
    """
    if mask is not None:
        raise ValueError("a nested tensor has no padding to mask: leave the mask out")
    if x.layout is not torch.jagged:
        return torch.nested.as_nested_tensor([normalize(sample) for sample in x.unbind()])
    if x._ragged_idx >= x.ndim - len(normalized_shape):
        raise ValueError(
            f"the samples of a nested tensor of shape {tuple(x.shape)} differ in length along an axis that is "
            "normalized over; normalize over those behind it, or pad the samples and give a mask"
        )
    return torch.nested.nested_tensor_from_jagged(normalize(x.values()), x.offsets(), x.lengths(), x._ragged_idx)
