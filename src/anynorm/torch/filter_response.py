"""Filter response normalization and the thresholded linear unit for torch, which has neither."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from ..ops import torch as ops
from ..ops import torch_onnx
from ..precision import checked_eps
from ..spec import NormSpec
from .base import Base
from .sentences import over_space

# What the learned part of epsilon begins with.
LEARNED = 1e-4


class FilterResponseNorm(Base):
    """Filter response normalization: divide each channel of each sample by its root mean square over space.

        y = x / sqrt(mean(x^2) + eps) * weight + bias

    The channels are the second dimension, as everywhere in torch. `TLU` is the activation that goes with this layer.

    Source: Singh, Krishnan 2019, arXiv:1911.09737.

    Args:
        num_features: how many channels.
        eps: added to the mean square.
        affine: whether there are a weight and a bias, one of each a channel.
        learned_eps: whether the absolute value of a parameter is added to eps; the paper learns it where few positions
            share a mean. It begins at 1e-4.
        device, dtype: of the parameters.

    Raises:
        ValueError: an input of other channels or without spatial dimensions; an eps that is negative or not finite.
        TypeError: an input of integers.

    >>> layer = FilterResponseNorm(6)
    >>> layer(torch.ones(4, 6, 8, 8)).shape
    torch.Size([4, 6, 8, 8])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        affine: bool = True,
        learned_eps: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, checked_eps(eps), affine
        lengths = {"weight": num_features if affine else None, "bias": num_features if affine else None}
        for name, length in {**lengths, "learned_eps": 1 if learned_eps else None}.items():
            empty = None if length is None else torch.empty(length, device=device, dtype=dtype)
            values = None if empty is None else nn.Parameter(empty)
            self.register_parameter(name, values)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Ones for the weight, zeros for the bias, 1e-4 for the learned epsilon."""
        for parameter, start in ((self.weight, 1.0), (self.bias, 0.0), (self.learned_eps, LEARNED)):
            if parameter is not None:
                nn.init.constant_(parameter, start)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):
            return self.as_leaf(x)
        if x.dim() < 3 or x.shape[1] != self.num_features:
            raise ValueError(
                f"an input of shape (batch, {self.num_features}, ...) with spatial dimensions is needed, and this one "
                f"has the shape {tuple(x.shape)}"
            )
        sentence, is_traced = over_space(x.dim()), ops.is_traced()
        if is_traced and torch_onnx.goes_to_onnx(None):
            eps = self.eps if self.learned_eps is None else self.eps + self.learned_eps.abs()
            return torch_onnx.normalize(x, self.weight, self.bias, NormSpec.decode(sentence), eps)
        if self.learned_eps is None:
            y: Tensor = ops.normalize_checked(x, self.weight, self.bias, None, sentence, self.eps)[0]
            return y
        # Scaled by a power of two to values near 1, whose squares stay finite; beyond 2^40 that of eps would not.
        work = x if x.dtype == torch.float64 else x.float()
        largest = work.detach().abs().amax(tuple(range(2, x.dim())), keepdim=True).clamp_min(2.0**-40)
        power = torch.exp2(-torch.floor(torch.log2(largest)))
        work = work * power
        if is_traced:
            mean, variance = ops.moments_traced(work, None, sentence, None)
        else:
            mean, variance = ops.moments(work, None, NormSpec.decode(sentence))
        eps = self.eps + self.learned_eps.abs().to(variance.dtype)
        square = variance + mean * mean + eps * (power * power).reshape(mean.shape)
        y = ops.apply_checked(work, torch.zeros_like(mean), square, self.weight, self.bias, sentence, 0.0).to(x.dtype)
        return y

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}, learned_eps={self.learned_eps is not None}"


class TLU(Base):
    """Thresholded linear unit: y = max(x, tau), with one learned threshold a channel.

    Source: Singh, Krishnan 2019, arXiv:1911.09737.

    Args:
        num_features: how many channels, in the second dimension.
        init: the threshold to begin with.
        device, dtype: of the parameter.

    >>> TLU(2, init=-1.0)(torch.tensor([[-3.0, 0.5]]))
    tensor([[-1.0000,  0.5000]], grad_fn=<MaximumBackward0>)
    """

    def __init__(
        self,
        num_features: int,
        init: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.init = num_features, init
        self.tau = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The threshold that the constructor was told."""
        nn.init.constant_(self.tau, self.init)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):
            return self.as_leaf(x)
        return torch.maximum(x, self.tau.to(x.dtype).reshape(-1, *[1] * (x.dim() - 2)))

    def extra_repr(self) -> str:
        return f"{self.num_features}"
