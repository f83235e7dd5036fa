"""Batch normalization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

from . import functional, running
from .base import Base


class BatchNorm(Base, torch.nn.modules.batchnorm._BatchNorm):
    """What batch normalization is whatever the rank of its input."""

    # On the class too: a module of torch.nn that becomes one of these by `replace_norms` has none of its own.
    correction = 1

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        correction: int = 1,
        activation: str | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias, activation=activation
        )
        self.correction = correction

    def forward(
        self,
        input: Tensor,
        mask: Tensor | None = None,
        residual: Tensor | None = None,
        modulation: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        if isinstance(input, Proxy):
            return self.as_leaf(input, mask=mask, residual=residual, modulation=modulation)
        self._check_input_dim(input)
        self.check_channels(input, self.num_features)
        mean, variance, momentum = self.statistics()
        weight, bias = self.weight_and_bias()
        return functional.batch_norm(
            input,
            mean,
            variance,
            weight,
            bias,
            self.training or mean is None,
            momentum,
            self.eps,
            mask=mask,
            residual=residual,
            modulation=modulation,
            activation=self.activation,
            correction=self.correction,
        )

    def statistics(self) -> tuple[Tensor | None, Tensor | None, float | Tensor]:
        """The running mean and variance and the momentum with which they move; None where the batch's alone count."""
        buffers, training = self._buffers, self.training
        mean, variance = buffers["running_mean"], buffers["running_var"]
        if mean is None or variance is None or (training and not self.track_running_stats):
            return None, None, 0.0
        return mean, variance, running.momentum_of(self) if training else 0.0

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", correction={self.correction}" if self.correction != 1 else "")


class BatchNorm1d(BatchNorm, torch.nn.BatchNorm1d):
    """Batch normalization of (n, c) or (n, c, l): in training a channel's statistics over the batch, else running ones.

        y = (x - mean) / sqrt(variance + eps) * weight + bias
        running += momentum * (batch - running)

    As `torch.nn.BatchNorm1d`. Under activation checkpointing, which runs a forward pass a second time in the backward
    pass, the running statistics move once.

    Source: Ioffe, Szegedy 2015, arXiv:1502.03167.

    Args:
        num_features: the number of channels c.
        eps: added to the variance.
        momentum: of the running statistics; None for their plain average over all batches.
        affine: whether there are weight and bias, of shape (num_features,).
        track_running_stats: whether there are running statistics; without them the batch's are used always.
        device, dtype: of parameters and buffers.
        bias: whether there is a bias.
        correction: the variance that moves is divided by count - correction: 1 as in torch, 0 as in Keras and Flax.
        activation: what follows the normalization: "relu", "silu", "gelu", "gelu_tanh" or None.

    Call arguments:
        input: floating-point tensor.
        mask: boolean, broadcastable to the input; elements where it is false do not enter the statistics.
        residual, modulation: what is added to the input and what y is scaled and shifted by; see `functional`.

    Returns:
        A tensor of the input's shape, type and memory format; with `residual` a pair, of that and of the sum.

    Raises:
        ValueError: an input of another rank or number of channels; a negative eps.
        TypeError: an input of integers.

    Warns:
        UserWarning: in training, a batch with one value a channel, where torch raises: y is the bias.

    >>> import torch
    >>> from anynorm.torch import BatchNorm1d
    >>> layer = BatchNorm1d(6, momentum=None)
    >>> layer(torch.tensor([[1.0] * 6, [3.0] * 6])).shape
    torch.Size([2, 6])
    >>> layer.running_mean[0], layer.running_var[0]
    (tensor(2.), tensor(2.))
    """


class BatchNorm2d(BatchNorm, torch.nn.BatchNorm2d):
    """Batch normalization of (n, c, h, w); all else is as `BatchNorm1d` has it, and channels_last is kept.

    >>> import torch
    >>> from anynorm.torch import BatchNorm2d
    >>> BatchNorm2d(6)(torch.randn(4, 6, 8, 8)).shape
    torch.Size([4, 6, 8, 8])
    """


class BatchNorm3d(BatchNorm, torch.nn.BatchNorm3d):
    """Batch normalization of (n, c, d, h, w); all else is as `BatchNorm1d` has it.

    >>> import torch
    >>> from anynorm.torch import BatchNorm3d
    >>> BatchNorm3d(6)(torch.randn(4, 6, 2, 8, 8)).shape
    torch.Size([4, 6, 2, 8, 8])
    """
