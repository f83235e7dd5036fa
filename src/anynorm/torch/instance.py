"""Instance normalization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

from . import functional
from .base import Base


class InstanceNorm(Base, torch.nn.modules.instancenorm._InstanceNorm):
    """What instance normalization is whatever the rank of its input."""

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
        is_single = input.dim() == self._get_no_batch_dim()
        self.check_channels(input, self.num_features, 0 if is_single else 1)
        weight, bias = self.weight_and_bias()
        y = functional.instance_norm(
            input.unsqueeze(0) if is_single else input,
            self.running_mean,
            self.running_var,
            weight,
            bias,
            self.training or not self.track_running_stats,
            self.momentum if self.momentum is not None else 0.0,
            self.eps,
            mask=mask,
            residual=residual.unsqueeze(0) if is_single and residual is not None else residual,
            modulation=modulation,
            activation=self.activation,
        )
        if not is_single:
            return y
        return y.squeeze(0) if residual is None else tuple(one.squeeze(0) for one in y)


class InstanceNorm1d(InstanceNorm, torch.nn.InstanceNorm1d):
    """Instance normalization of (n, c, l) or (c, l): every channel of every sample has a mean and variance of its own.

        y = (x - mean) / sqrt(variance + eps) * weight + bias

    As `torch.nn.InstanceNorm1d`.

    Source: Ulyanov et al. 2016, arXiv:1607.08022.

    Args:
        num_features: the number of channels c.
        eps: added to the variance.
        momentum: of the running statistics; None leaves them as they are.
        affine: whether there are weight and bias, of shape (num_features,).
        track_running_stats: whether there are running statistics, which are used outside training.
        device, dtype: of parameters and buffers.
        bias: whether there is a bias.
        activation: what follows the normalization: "relu", "silu", "gelu", "gelu_tanh" or None.

    Call arguments:
        input: floating-point tensor.
        mask: boolean, broadcastable to the input; elements where it is false do not enter the statistics.
        residual, modulation: what is added to the input and what y is scaled and shifted by; see `functional`.
            Without a batch the modulation is that of a batch of one: (1, c), or (1, c, 1).

    Returns:
        A tensor of the input's shape, type and memory format; with `residual` a pair, of that and of the sum.

    Raises:
        ValueError: an input of another rank, or of another number of channels, which torch takes with a warning;
            statistics over one element; a negative eps.
        TypeError: an input of integers.

    >>> import torch
    >>> from anynorm.torch import InstanceNorm1d
    >>> InstanceNorm1d(6)(torch.randn(4, 6, 8)).shape
    torch.Size([4, 6, 8])
    """


class InstanceNorm2d(InstanceNorm, torch.nn.InstanceNorm2d):
    """Instance normalization of (n, c, h, w) or (c, h, w); all else is as `InstanceNorm1d` has it.

    >>> import torch
    >>> from anynorm.torch import InstanceNorm2d
    >>> InstanceNorm2d(6)(torch.randn(4, 6, 8, 8)).shape
    torch.Size([4, 6, 8, 8])
    """


class InstanceNorm3d(InstanceNorm, torch.nn.InstanceNorm3d):
    """Instance normalization of (n, c, d, h, w) or (c, d, h, w); all else is as `InstanceNorm1d` has it.

    >>> import torch
    >>> from anynorm.torch import InstanceNorm3d
    >>> InstanceNorm3d(6)(torch.randn(4, 6, 2, 8, 8)).shape
    torch.Size([4, 6, 2, 8, 8])
    """
