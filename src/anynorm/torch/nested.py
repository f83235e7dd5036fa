"""Nested tensors: samples of different lengths in one, as `torch.nested` makes them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function_unary

_PLAIN = (Tensor, torch.nn.Parameter)


def is_nested(x: Any) -> bool:
    """Of either layout. To ask `x.is_nested` would be a call that modes and tracers see, but for a plain tensor."""
    if type(x) in _PLAIN:
        return not has_torch_function_unary(x) and x.is_nested
    module = sys.modules.get("torch.nested._internal.nested_tensor")
    return module is not None and isinstance(x, module.NestedTensor)


def check(*rest: Any) -> None:
    """Raise where something is given that would have to be nested too, or means nothing."""
    if any(value is not None for value in rest):
        raise ValueError("a nested tensor takes no mask, having no padding, and no residual or modulation")


def each(normalize: Callable[[Tensor, Sequence[int]], Tensor], x: Tensor, normalized_shape: Sequence[int]) -> Tensor:
    """`normalize`, which is over the last axes, of each sample; its gradient with it.

    Raises:
        ValueError: the axis along which the samples differ is among those that are normalized over.
    """
    if x.layout is not torch.jagged:
        return torch.nested.as_nested_tensor([normalize(sample, normalized_shape) for sample in x.unbind()])
    if x._ragged_idx >= x.ndim - len(normalized_shape):
        raise ValueError(
            f"the samples of a nested tensor of shape {tuple(x.shape)} differ in length along an axis that is "
            "normalized over; normalize over those behind it, or pad the samples and give a mask"
        )
    values = normalize(x.values(), normalized_shape)
    return torch.nested.nested_tensor_from_jagged(values, x.offsets(), x.lengths(), x._ragged_idx)
