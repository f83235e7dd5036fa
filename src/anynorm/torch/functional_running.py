"""Those of `functional` that may have running statistics."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as peer
from torch.overrides import has_torch_function_variadic

from ..ops import torch as ops
from ..ops.torch_fused import operation
from ..ops.torch_onnx import goes_to_onnx
from . import running
from .calls import exported, overridden
from .sentences import BATCH, INSTANCE


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
    residual: Tensor | None = None,
    modulation: tuple[Tensor, Tensor] | None = None,
    activation: str | None = None,
) -> Any:
    """y = (x - mean) / sqrt(variance + eps) * weight + bias for every channel of every sample by itself.

    With `use_input_stats` running statistics, if there are any, move towards the batch's average; without, they are
    what is used.

    Source: Ulyanov et al. 2016, arXiv:1607.08022.

    Raises:
        ValueError: as for `layer_norm`; there are no running statistics, or of another length, where they are needed.
        TypeError: an input of integers.

    >>> import torch
    >>> instance_norm(torch.tensor([[[1.0, 3.0], [10.0, 30.0]]]), eps=0.0)
    tensor([[[-1.,  1.],
             [-1.,  1.]]])
    """
    how = operation(residual, modulation, activation)
    small = (running_mean, running_var, weight, bias)
    if has_torch_function_variadic(input, *small, residual):
        given = (input, *small, use_input_stats, momentum, eps)
        return overridden(instance_norm, (input, *small, residual), given, how, mask=mask)
    if ops.is_traced() and _goes_to_onnx(mask, use_input_stats, running_mean):
        return exported(how, INSTANCE, input, peer.instance_norm, *small, use_input_stats, momentum, eps)
    if not use_input_stats:
        return _with_running(how, input, *small, eps)
    tracked = running_mean is not None and running_var is not None
    y, mean, variance = how.normalize_checked(input, weight, bias, mask, INSTANCE, eps, statistics=tracked)
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
    residual: Tensor | None = None,
    modulation: tuple[Tensor, Tensor] | None = None,
    activation: str | None = None,
    correction: int = 1,
) -> Any:
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

    >>> import torch
    >>> mean, variance = torch.zeros(1), torch.ones(1)
    >>> batch_norm(torch.tensor([[1.0], [3.0]]), mean, variance, training=True, momentum=0.5, eps=0.0)
    tensor([[-1.],
            [ 1.]])
    >>> mean, variance
    (tensor([1.]), tensor([1.5000]))
    """
    how = operation(residual, modulation, activation)
    small = (running_mean, running_var, weight, bias)
    if has_torch_function_variadic(input, *small, residual):
        given = (input, *small, training, momentum, eps)
        return overridden(batch_norm, (input, *small, residual), given, how, mask=mask, correction=correction)
    if ops.is_traced() and _goes_to_onnx(mask, training, running_mean):
        return exported(how, BATCH, input, peer.batch_norm, *small, training, momentum, eps)
    if not training:
        return _with_running(how, input, *small, eps)
    tracked = running_mean is not None and running_var is not None
    y, mean, variance = how.normalize_checked(input, weight, bias, mask, BATCH, eps, statistics=tracked, erasing=False)
    if input.numel() == input.shape[1]:
        running.warn_of_one_value(input)
    if tracked:
        running.check_length(input, running_mean, running_var)
        count = running.counted(input, mean, mask)
        running.move(running_mean, running_var, mean, variance, count, momentum, correction)
    return y


def _goes_to_onnx(mask: Tensor | None, from_input: bool, running_mean: Tensor | None) -> bool:
    """As `goes_to_onnx`; what uses running statistics needs no mask, what moves them cannot be exported with one."""
    if not from_input:
        return goes_to_onnx(None)
    if mask is not None and running_mean is not None and goes_to_onnx(None):
        raise ValueError(
            "under a mask running statistics do not move in ONNX: export the model in evaluation, by model.eval()"
        )
    return goes_to_onnx(mask)


def _with_running(
    how: Any,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Any:
    """y = (x - running mean) / sqrt(running variance + eps) * weight + bias."""
    if running_mean is None or running_var is None:
        raise ValueError("there are no running statistics to normalize with: give both, or use the batch's")
    return how.apply_checked(input, running_mean, running_var, weight, bias, BATCH, eps)
