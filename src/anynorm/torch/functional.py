"""torch.nn.functional's normalizations under the same names, and those over the channels of an image.

Arguments, order and defaults are torch's. New in each, and by keyword alone:

    mask        true where an element enters the statistics, of any shape that broadcasts to the input. Where it lets
                one element alone into a statistic, nothing of that is left and y is the bias: with a warning on a CPU
                in eager mode, since other devices would have to be waited for
    residual    a tensor of the input's shape that is added to it first. The result is then a pair, y and the sum, which
                is the next block's input in a transformer that normalizes first; where the two have different types the
                sum has the wider one
    modulation  shift and scale from a condition, as adaLN has them: norm(x) * (1 + scale) + shift. Each is (n, c), of
                one vector over the channels a sample, or has as many dimensions as the input; any length may be 1
    activation  "relu", "silu", "gelu" or "gelu_tanh", behind all of it

Together they are `activation(norm(input + residual) * (1 + scale) + shift)`, derivatives of every kind included. One
tensor of the input's size is kept for the backward pass besides what the norm itself keeps: the norm's output, or with
"relu" alone y. From float16 and bfloat16 the norm is rounded once, and what follows it, computed in float32, once more.

Statistics of float16, bfloat16 and float32 are float32, good to 1e-6 of the standard deviation at offsets to 1e6 and
for inputs near the ends of the number range. The result has the input's type, under autocast too, whatever that of the
parameters. While torch.onnx.export looks on, torch's own functions are called, which it turns into single nodes.

>>> import torch
>>> from anynorm.torch import functional
>>> x = 1e6 + torch.tensor([[1.0, 3.0], [10.0, 30.0]])
>>> functional.layer_norm(x, (2,), eps=0.0)
tensor([[-1.,  1.],
        [-1.,  1.]])
>>> y, total = functional.layer_norm(x, (2,), eps=0.0, residual=torch.ones(2, 2), activation="relu")
>>> y, (total - x == 1).all()
(tensor([[0., 1.],
        [0., 1.]]), tensor(True))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as peer
from torch.overrides import has_torch_function_variadic

from ..ops import torch as ops
from ..ops import torch_onnx
from ..ops.torch_fused import operation
from ..ops.torch_onnx import goes_to_onnx
from . import nested
from .calls import exported, overridden
from .functional_running import batch_norm, instance_norm
from .sentences import LAYER_CHANNELS, RMS_CHANNELS, groups_of, over_last

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "layer_norm2d", "rms_norm", "rms_norm2d"]

_EPS, _DOUBLE_EPS = (torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64))


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    mask: Tensor | None = None,
    residual: Tensor | None = None,
    modulation: tuple[Tensor, Tensor] | None = None,
    activation: str | None = None,
) -> Any:
    """y = (x - mean) / sqrt(variance + eps) * weight + bias over the last axes, whose lengths are `normalized_shape`.

    Source: Ba et al. 2016, arXiv:1607.06450.

    Raises:
        ValueError: the input does not end in `normalized_shape`, weight or bias has another shape, a statistic would be
            over one element, or eps is negative.
        TypeError: an input of integers.

    >>> layer_norm(torch.tensor([[1.0, 3.0]]), (2,), bias=torch.ones(2), eps=0.0)
    tensor([[0., 2.]])
    """
    how = operation(residual, modulation, activation)
    if nested.is_nested(input):
        nested.check(mask, residual, modulation)
        each = partial(layer_norm, weight=weight, bias=bias, eps=eps, activation=activation)
        return nested.each(each, input, normalized_shape)
    if has_torch_function_variadic(input, weight, bias, residual):
        given = (input, normalized_shape, weight, bias, eps)
        return overridden(layer_norm, (input, weight, bias, residual), given, how, mask=mask)
    shape = tuple(normalized_shape)
    if ops.is_traced() and goes_to_onnx(mask):
        return exported(how, over_last(shape), input, peer.layer_norm, list(shape), weight, bias, eps)
    try:
        return how.normalize_checked(input, weight, bias, mask, over_last(shape), eps)[0]
    except ValueError:
        _check_end(input, shape)
        raise


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    mask: Tensor | None = None,
    residual: Tensor | None = None,
    modulation: tuple[Tensor, Tensor] | None = None,
    activation: str | None = None,
) -> Any:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last axes, whose lengths are `normalized_shape`.

    Without `eps` it is the machine epsilon of the type of the statistics, as in torch: 1.2e-7, and 2.2e-16 for float64.

    Source: Zhang, Sennrich 2019, arXiv:1910.07467.

    Raises:
        ValueError, TypeError: as for `layer_norm`.

    >>> rms_norm(torch.tensor([[3.0, -3.0]]), (2,), eps=0.0)
    tensor([[ 1., -1.]])
    """
    how = operation(residual, modulation, activation)
    if nested.is_nested(input):
        nested.check(mask, residual, modulation)
        each = partial(rms_norm, weight=weight, eps=eps, activation=activation)
        return nested.each(each, input, normalized_shape)
    if has_torch_function_variadic(input, weight, residual):
        given = (input, normalized_shape, weight, eps)
        return overridden(rms_norm, (input, weight, residual), given, how, mask=mask)
    shape = tuple(normalized_shape)
    sentence = over_last(shape, ("scale",))
    if ops.is_traced() and goes_to_onnx(mask):
        return exported(how, sentence, input, torch_onnx.rms_norm, list(shape), weight, _rms_eps(input, eps))
    try:
        return how.normalize_checked(input, weight, None, mask, sentence, _rms_eps(input, eps))[0]
    except ValueError:
        _check_end(input, shape)
        raise


def layer_norm2d(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    mask: Tensor | None = None,
    residual: Tensor | None = None,
    modulation: tuple[Tensor, Tensor] | None = None,
    activation: str | None = None,
) -> Any:
    """`layer_norm` over axis 1 alone, the channels of NCHW, at each position; the other axes may be any number.

    Source: Liu et al. 2022, arXiv:2201.03545.

    Raises:
        ValueError, TypeError: as for `layer_norm`.

    >>> layer_norm2d(torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1), eps=0.0).flatten()
    tensor([-1.,  1.])
    """
    how = operation(residual, modulation, activation)
    if has_torch_function_variadic(input, weight, bias, residual):
        given = (input, weight, bias, eps)
        return overridden(layer_norm2d, (input, weight, bias, residual), given, how, mask=mask)
    if ops.is_traced() and goes_to_onnx(mask):
        return exported(how, LAYER_CHANNELS, input, _over_channels, peer.layer_norm, weight, bias, eps)
    return how.normalize_checked(input, weight, bias, mask, LAYER_CHANNELS, eps)[0]


def rms_norm2d(
    input: Tensor,
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    mask: Tensor | None = None,
    residual: Tensor | None = None,
    modulation: tuple[Tensor, Tensor] | None = None,
    activation: str | None = None,
) -> Any:
    """`rms_norm` over axis 1 alone, the channels of NCHW, at each position; the other axes may be any number.

    Raises:
        ValueError, TypeError: as for `layer_norm`.

    >>> rms_norm2d(torch.tensor([3.0, -3.0]).reshape(1, 2, 1, 1), eps=0.0).flatten()
    tensor([ 1., -1.])
    """
    how = operation(residual, modulation, activation)
    if has_torch_function_variadic(input, weight, residual):
        return overridden(rms_norm2d, (input, weight, residual), (input, weight, eps), how, mask=mask)
    if ops.is_traced() and goes_to_onnx(mask):
        return exported(how, RMS_CHANNELS, input, _over_channels, torch_onnx.rms_norm, weight, _rms_eps(input, eps))
    return how.normalize_checked(input, weight, None, mask, RMS_CHANNELS, _rms_eps(input, eps))[0]


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    mask: Tensor | None = None,
    residual: Tensor | None = None,
    modulation: tuple[Tensor, Tensor] | None = None,
    activation: str | None = None,
) -> Any:
    """y = (x - mean) / sqrt(variance + eps) * weight + bias over groups of neighbouring channels and all positions.

    Source: Wu, He 2018, arXiv:1803.08494.

    Raises:
        ValueError: groups that do not divide the channels; otherwise as for `layer_norm`.
        TypeError: an input of integers.

    >>> group_norm(torch.tensor([[1.0, 3.0, 10.0, 30.0]]), 2, eps=0.0)
    tensor([[-1.,  1., -1.,  1.]])
    """
    how = operation(residual, modulation, activation)
    if has_torch_function_variadic(input, weight, bias, residual):
        given = (input, num_groups, weight, bias, eps)
        return overridden(group_norm, (input, weight, bias, residual), given, how, mask=mask)
    sentence = groups_of(num_groups)
    if ops.is_traced() and goes_to_onnx(mask):
        return exported(how, sentence, input, peer.group_norm, num_groups, weight, bias, eps)
    return how.normalize_checked(input, weight, bias, mask, sentence, eps)[0]


def _over_channels(x: Tensor, norm: Callable[..., Tensor], *given: Any) -> Tensor:
    """One of torch's own functions, over axis 1."""
    last_axis = x.ndim - 1
    return norm(x.movedim(1, last_axis), [torch_onnx.length(x, 1)], *given).movedim(last_axis, 1)


def _check_end(input: Tensor, shape: tuple[int, ...]) -> None:
    """Say which lengths do not fit: behind an error, since before each call it would cost a small array's time."""
    if shape and tuple(input.shape[-len(shape) :]) != shape:
        raise ValueError(f"the input must end in {shape}, and its shape is {tuple(input.shape)}")


def _rms_eps(input: Tensor, eps: float | None) -> float:
    if eps is not None:
        return eps
    return _DOUBLE_EPS if input.dtype == torch.float64 else _EPS
