"""torch.nn.functional's normalizations under the same names, and those over the channels of an image.

Arguments, order and defaults are torch's; `mask` is new in each: true where an element enters the statistics, of any
shape that broadcasts to the input.

Statistics of float16, bfloat16 and float32 are float32, good to 1e-6 of the standard deviation at offsets to 1e6 and
for inputs near the ends of the number range. The result has the input's type, under autocast too, whatever that of the
parameters. While torch.onnx.export looks on, torch's own functions are called, which it turns into single nodes.

>>> import torch
>>> from anynorm.torch import functional
>>> x = 1e6 + torch.tensor([[1.0, 3.0], [10.0, 30.0]])
>>> functional.layer_norm(x, (2,), eps=0.0)
tensor([[-1.,  1.],
        [-1.,  1.]])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as peer
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ..ops import torch as ops
from . import running
from .export import goes_to_onnx
from .sentences import BATCH, INSTANCE, LAYER_CHANNELS, RMS_CHANNELS, groups_of, over_last

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "layer_norm2d", "rms_norm", "rms_norm2d"]


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """y = (x - mean) / sqrt(variance + eps) * weight + bias over the last axes, whose lengths are `normalized_shape`.

    Source: Ba et al. 2016, arXiv:1607.06450.

    Raises:
        ValueError: the input does not end in `normalized_shape`, weight or bias has another shape, a statistic would be
            over one element, or eps is negative.
        TypeError: an input of integers.

    >>> layer_norm(torch.tensor([[1.0, 3.0]]), (2,), bias=torch.ones(2), eps=0.0)
    tensor([[0., 2.]])
    """
    if has_torch_function_variadic(input, weight, bias):
        given = (input, normalized_shape, weight, bias, eps)
        return _overridden(layer_norm, (input, weight, bias), given, mask=mask)
    if goes_to_onnx(mask):
        return peer.layer_norm(input, list(normalized_shape), weight, bias, eps)
    shape = tuple(normalized_shape)
    try:
        return ops.normalize_checked(input, weight, bias, mask, over_last(shape), eps)[0]
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
) -> Tensor:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last axes, whose lengths are `normalized_shape`.

    Without `eps` it is the machine epsilon of the type of the statistics, as in torch: 1.2e-7, and 2.2e-16 for float64.

    Source: Zhang, Sennrich 2019, arXiv:1910.07467.

    Raises:
        ValueError, TypeError: as for `layer_norm`.

    >>> rms_norm(torch.tensor([[3.0, -3.0]]), (2,), eps=0.0)
    tensor([[ 1., -1.]])
    """
    if has_torch_function_variadic(input, weight):
        return _overridden(rms_norm, (input, weight), (input, normalized_shape, weight, eps), mask=mask)
    if goes_to_onnx(mask):
        return peer.rms_norm(input, list(normalized_shape), weight, eps)
    shape = tuple(normalized_shape)
    try:
        return ops.normalize_checked(input, weight, None, mask, over_last(shape, ("scale",)), _rms_eps(input, eps))[0]
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
) -> Tensor:
    """`layer_norm` over axis 1 alone, the channels of NCHW, at each position; the other axes may be any number.

    Source: Liu et al. 2022, arXiv:2201.03545.

    Raises:
        ValueError, TypeError: as for `layer_norm`.

    >>> layer_norm2d(torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1), eps=0.0).flatten()
    tensor([-1.,  1.])
    """
    if has_torch_function_variadic(input, weight, bias):
        return _overridden(layer_norm2d, (input, weight, bias), (input, weight, bias, eps), mask=mask)
    if goes_to_onnx(mask):
        last_axis = input.ndim - 1
        y = peer.layer_norm(input.movedim(1, last_axis), [input.shape[1]], weight, bias, eps)
        return y.movedim(last_axis, 1)
    return ops.normalize_checked(input, weight, bias, mask, LAYER_CHANNELS, eps)[0]


def rms_norm2d(
    input: Tensor, weight: Tensor | None = None, eps: float | None = None, *, mask: Tensor | None = None
) -> Tensor:
    """`rms_norm` over axis 1 alone, the channels of NCHW, at each position; the other axes may be any number.

    Raises:
        ValueError, TypeError: as for `layer_norm`.

    >>> rms_norm2d(torch.tensor([3.0, -3.0]).reshape(1, 2, 1, 1), eps=0.0).flatten()
    tensor([ 1., -1.])
    """
    if has_torch_function_variadic(input, weight):
        return _overridden(rms_norm2d, (input, weight), (input, weight, eps), mask=mask)
    if goes_to_onnx(mask):
        last_axis = input.ndim - 1
        return peer.rms_norm(input.movedim(1, last_axis), [input.shape[1]], weight, eps).movedim(last_axis, 1)
    return ops.normalize_checked(input, weight, None, mask, RMS_CHANNELS, _rms_eps(input, eps))[0]


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """y = (x - mean) / sqrt(variance + eps) * weight + bias over groups of neighbouring channels and all positions.

    Source: Wu, He 2018, arXiv:1803.08494.

    Raises:
        ValueError: groups that do not divide the channels; otherwise as for `layer_norm`.
        TypeError: an input of integers.

    >>> group_norm(torch.tensor([[1.0, 3.0, 10.0, 30.0]]), 2, eps=0.0)
    tensor([[-1.,  1., -1.,  1.]])
    """
    if has_torch_function_variadic(input, weight, bias):
        return _overridden(group_norm, (input, weight, bias), (input, num_groups, weight, bias, eps), mask=mask)
    if goes_to_onnx(mask):
        return peer.group_norm(input, num_groups, weight, bias, eps)
    return ops.normalize_checked(input, weight, bias, mask, groups_of(num_groups), eps)[0]


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """y = (x - mean) / sqrt(variance + eps) * weight + bias for every channel of every sample by itself.

    With `use_input_stats` running statistics, if there are any, move towards the batch's average; without, they are
    what is used.

    Source: Ulyanov et al. 2016, arXiv:1607.08022.

    Raises:
        ValueError: as for `layer_norm`; there are no running statistics, or of another length, where they are needed.
        TypeError: an input of integers.

    >>> instance_norm(torch.tensor([[[1.0, 3.0], [10.0, 30.0]]]), eps=0.0)
    tensor([[[-1.,  1.],
             [-1.,  1.]]])
    """
    small = (running_mean, running_var, weight, bias)
    if has_torch_function_variadic(input, *small):
        given = (input, *small, use_input_stats, momentum, eps)
        return _overridden(instance_norm, (input, *small), given, mask=mask)
    if goes_to_onnx(mask):
        return peer.instance_norm(input, *small, use_input_stats, momentum, eps)
    if not use_input_stats:
        return _with_running(input, *small, eps)
    tracked = running_mean is not None and running_var is not None
    spec = INSTANCE
    y, mean, variance = ops.normalize_checked(input, weight, bias, mask, spec, eps, statistics=tracked)
    if tracked:
        running.check_length(input, running_mean, running_var)
        running.move(running_mean, running_var, mean, variance, running.counted(input, mean, mask), momentum)
    return y


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    *,
    mask: Tensor | None = None,
    correction: int = 1,
) -> Tensor:
    """y = (x - mean) / sqrt(variance + eps) * weight + bias with a channel's statistics over the batch.

    In training the running statistics, if there are any, move by `running += momentum * (batch - running)`; otherwise
    they are what is used. The variance that moves is divided by count - `correction`: 1 as in torch, 0 as in Keras and
    Flax. A batch with one value a channel is a warning: y is the bias, and the running variance stays. An empty batch
    moves nothing, and neither does a forward pass inside a backward pass, which is activation checkpointing's second.

    Source: Ioffe, Szegedy 2015, arXiv:1502.03167.

    Raises:
        ValueError: weight, bias or running statistics of another length than there are channels; no running statistics
            where they are needed; a negative eps.
        TypeError: an input of integers.

    >>> mean, variance = torch.zeros(1), torch.ones(1)
    >>> batch_norm(torch.tensor([[1.0], [3.0]]), mean, variance, training=True, momentum=0.5, eps=0.0)
    tensor([[-1.],
            [ 1.]])
    >>> mean, variance
    (tensor([1.]), tensor([1.5000]))
    """
    small = (running_mean, running_var, weight, bias)
    if has_torch_function_variadic(input, *small):
        given = (input, *small, training, momentum, eps)
        return _overridden(batch_norm, (input, *small), given, mask=mask, correction=correction)
    if goes_to_onnx(mask):
        return peer.batch_norm(input, *small, training, momentum, eps)
    if not training:
        return _with_running(input, *small, eps)
    tracked = running_mean is not None and running_var is not None
    y, mean, variance = ops.normalize_checked(input, weight, bias, mask, BATCH, eps, statistics=tracked, erasing=False)
    if input.numel() == input.shape[1]:
        running.warn_of_one_value(input)
    if tracked:
        running.check_length(input, running_mean, running_var)
        count = running.counted(input, mean, mask)
        running.move(running_mean, running_var, mean, variance, count, momentum, correction)
    return y


def _overridden(function: Callable[..., Tensor], tensors: tuple[Any, ...], given: tuple[Any, ...], **rest: Any) -> Any:
    """What a subclass of Tensor, or a mode, makes of a call."""
    return handle_torch_function(function, tensors, *given, **rest)


def _with_running(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """y = (x - running mean) / sqrt(running variance + eps) * weight + bias."""
    if running_mean is None or running_var is None:
        raise ValueError("there are no running statistics to normalize with: give both, or use the batch's")
    return ops.apply_checked(input, running_mean, running_var, weight, bias, BATCH, eps)


def _check_end(input: Tensor, shape: tuple[int, ...]) -> None:
    """Say which lengths do not fit: behind an error, since before each call it would cost a small array's time."""
    if shape and tuple(input.shape[-len(shape) :]) != shape:
        raise ValueError(f"the input must end in {shape}, and its shape is {tuple(input.shape)}")


def _rms_eps(input: Tensor, eps: float | None) -> float:
    if eps is not None:
        return eps
    return torch.finfo(torch.float64 if input.dtype == torch.float64 else torch.float32).eps
