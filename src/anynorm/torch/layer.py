"""Layer and RMS normalization, over the last axes and over the channels of an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

from . import functional
from .base import Base


class LayerNorm(Base, torch.nn.LayerNorm):
    """Layer normalization: the elements along the last axes share one mean and variance. As `torch.nn.LayerNorm`.

        y = (x - mean) / sqrt(variance + eps) * weight + bias

    Source: Ba et al. 2016, arXiv:1607.06450.

    Args:
        normalized_shape: the lengths of the last axes, or of the last one.
        eps: added to the variance.
        elementwise_affine: whether there are weight and bias, of shape `normalized_shape`.
        bias: whether there is a bias.
        device, dtype: of weight and bias.
        activation: what follows the normalization: "relu", "silu", "gelu", "gelu_tanh" or None.

    Call arguments:
        input: floating-point tensor whose shape ends in `normalized_shape`.
        mask: boolean, broadcastable to the input; elements where it is false do not enter the statistics.
        residual, modulation: what is added to the input and what y is scaled and shifted by; see `functional`.

    Returns:
        A tensor of the input's shape and type; with `residual` a pair, of that and of the sum.

    Raises:
        ValueError: an input of another shape; statistics over one element, which torch answers with zeros; a negative
            eps.
        TypeError: an input of integers.

    >>> import torch
    >>> from anynorm.torch import LayerNorm
    >>> layer = LayerNorm(8)
    >>> layer, layer(torch.randn(4, 5, 8)).shape
    (LayerNorm((8,), eps=1e-05, elementwise_affine=True, bias=True), torch.Size([4, 5, 8]))
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
        weight, bias = self.weight_and_bias()
        return functional.layer_norm(
            input,
            self.normalized_shape,
            weight,
            bias,
            self.eps,
            mask=mask,
            residual=residual,
            modulation=modulation,
            activation=self.activation,
        )


class LayerNorm2d(Base, torch.nn.LayerNorm):
    """Layer normalization over the channels of NCHW, at each position, as ConvNeXt has it.

    Arguments, types and errors are those of `LayerNorm`, but that the one axis normalized over is axis 1; the axes
    behind it may be any number.

    Source: Liu et al. 2022, arXiv:2201.03545.

    >>> import torch
    >>> from anynorm.torch import LayerNorm2d
    >>> LayerNorm2d(6)(torch.randn(4, 6, 8, 8)).shape
    torch.Size([4, 6, 8, 8])
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
        self.check_channels(input, *self.normalized_shape)
        weight, bias = self.weight_and_bias()
        return functional.layer_norm2d(
            input,
            weight,
            bias,
            self.eps,
            mask=mask,
            residual=residual,
            modulation=modulation,
            activation=self.activation,
        )


class RMSNorm(Base, torch.nn.RMSNorm):
    """RMS normalization over the last axes: the mean stays. As `torch.nn.RMSNorm`.

        y = x / sqrt(mean(x^2) + eps) * weight

    Source: Zhang, Sennrich 2019, arXiv:1910.07467.

    Args:
        normalized_shape: the lengths of the last axes, or of the last one.
        eps: added to the mean of squares; None for the machine epsilon of the type of the statistics, which is float32,
            or float64 for float64.
        elementwise_affine: whether there is a weight, of shape `normalized_shape`.
        device, dtype: of the weight.
        activation: what follows the normalization: "relu", "silu", "gelu", "gelu_tanh" or None.

    Call arguments, result and errors: those of `LayerNorm`.

    >>> import torch
    >>> from anynorm.torch import RMSNorm
    >>> layer = RMSNorm(8)
    >>> layer, layer(torch.randn(4, 5, 8)).shape
    (RMSNorm((8,), eps=None, elementwise_affine=True), torch.Size([4, 5, 8]))
    """

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        residual: Tensor | None = None,
        modulation: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        if isinstance(x, Proxy):
            return self.as_leaf(x, mask=mask, residual=residual, modulation=modulation)
        return functional.rms_norm(
            x,
            self.normalized_shape,
            self.parameter("weight"),
            self.eps,
            mask=mask,
            residual=residual,
            modulation=modulation,
            activation=self.activation,
        )


class RMSNorm2d(Base, torch.nn.RMSNorm):
    """RMS normalization over the channels of NCHW, at each position.

    Arguments, types and errors are those of `RMSNorm`, but that the one axis normalized over is axis 1; the axes
    behind it may be any number.

    Source: Zhang, Sennrich 2019, arXiv:1910.07467.

    >>> import torch
    >>> from anynorm.torch import RMSNorm2d
    >>> RMSNorm2d(6)(torch.randn(4, 6, 8, 8)).shape
    torch.Size([4, 6, 8, 8])
    """

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        residual: Tensor | None = None,
        modulation: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        if isinstance(x, Proxy):
            return self.as_leaf(x, mask=mask, residual=residual, modulation=modulation)
        self.check_channels(x, *self.normalized_shape)
        return functional.rms_norm2d(
            x,
            self.parameter("weight"),
            self.eps,
            mask=mask,
            residual=residual,
            modulation=modulation,
            activation=self.activation,
        )
