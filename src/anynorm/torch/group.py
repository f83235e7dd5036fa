"""Group normalization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

from . import functional
from .base import Base


class GroupNorm(Base, torch.nn.GroupNorm):
    """Group normalization: a group's channels, at all positions of a sample, share one mean and variance.

        y = (x - mean) / sqrt(variance + eps) * weight + bias

    As `torch.nn.GroupNorm`; a tensor in channels_last comes out in channels_last.

    Source: Wu, He 2018, arXiv:1803.08494.

    Args:
        num_groups: into how many groups the channels are split.
        num_channels: a multiple of `num_groups`.
        eps: added to the variance.
        affine: whether there are weight and bias, of shape (num_channels,).
        device, dtype: of weight and bias.
        bias: whether there is a bias.
        activation: what follows the normalization: "relu", "silu", "gelu", "gelu_tanh" or None.

    Call arguments:
        input: floating-point tensor (n, num_channels, ...).
        mask: boolean, broadcastable to the input; elements where it is false do not enter the statistics.
        residual, modulation: what is added to the input and what y is scaled and shifted by; see `functional`.

    Returns:
        A tensor of the input's shape, type and memory format; with `residual` a pair, of that and of the sum.

    Raises:
        ValueError: an input of another number of channels; statistics over one element, which torch answers with
            zeros; a negative eps.
        TypeError: an input of integers.

    >>> import torch
    >>> from anynorm.torch import GroupNorm
    >>> layer = GroupNorm(3, 6)
    >>> layer, layer(torch.randn(4, 6, 8, 8)).shape
    (GroupNorm(3, 6, eps=1e-05, affine=True, bias=True), torch.Size([4, 6, 8, 8]))
    """

    def forward(
        self,
        input: Tensor,
        mask: Tensor | None = None,
        residual: Tensor | None = None,
        modulation: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        if isinstance(input, Proxy):
            return self.as_leaf(input, mask=mask, residual=residual, modulation=modulation)
        self.check_channels(input, self.num_channels)
        weight, bias = self.weight_and_bias()
        return functional.group_norm(
            input,
            self.num_groups,
            weight,
            bias,
            self.eps,
            mask=mask,
            residual=residual,
            modulation=modulation,
            activation=self.activation,
        )
