"""Any normalization, given as a sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

from ..ops import torch as ops
from ..ops import torch_onnx
from ..ops.torch_fused import operation
from ..pattern import ELLIPSIS
from ..precision import checked_eps
from ..spec import MOMENTS, NormSpec
from .base import Base
from .calls import exported


class Norm(Base):
    """Normalization as a sentence about the input's axes says.

        y = (x - mean) / sqrt(variance + eps) * weight + bias

    The elements along the axes in square brackets share one mean and variance; weight and bias have the axes `affine`.

    Args:
        pattern: the sentence, such as `"n (g [c]) [...]"`.
        affine: the axes that carry weight and bias, in the pattern's order. None means the axes in parentheses where
            there are some, else the axis called `c`; "" means none.
        eps: added to the variance.
        remove: the moments to take out, "mean", "scale" or both; `"scale"` alone is RMS normalization.
        bias: whether there is a bias where there is a weight.
        device, dtype: of weight and bias.
        activation: what follows the normalization: "relu", "silu", "gelu", "gelu_tanh" or None.
        **sizes: lengths of axes; those of the affine ones are needed.

    Call arguments:
        input: floating-point tensor whose shape fits the sentence.
        mask: boolean, broadcastable to the input; elements where it is false do not enter the statistics.
        residual, modulation: what is added to the input and what y is scaled and shifted by; see `functional`.
            A modulation (n, c) needs axes of samples in front and one of weight and bias behind it.

    Returns:
        A tensor of the input's shape, type and memory format; with `residual` a pair, of that and of the sum.

    Raises:
        PatternError: the sentence cannot be read.
        ValueError: the length of an affine axis is missing, or the input does not fit; statistics over one element; an
            eps that is negative or not finite.
        TypeError: an input of integers.

    >>> import torch
    >>> from anynorm.torch import Norm
    >>> layer = Norm("n (g [c]) [...]", g=3, c=2)
    >>> layer, layer(torch.randn(4, 6, 8, 8)).shape, layer.weight.shape
    (Norm('n (g [c]) [...]', affine='(g c)', c=2, g=3, eps=1e-05, bias=True), torch.Size([4, 6, 8, 8]), torch.Size([6]))
    """

    def __init__(
        self,
        pattern: str,
        *,
        affine: str | Iterable[str] | None = None,
        eps: float = 1e-5,
        remove: str | Iterable[str] = MOMENTS,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        activation: str | None = None,
        **sizes: int,
    ) -> None:
        super().__init__(activation=activation)
        self.spec = NormSpec.of(pattern, affine=affine, remove=remove, **sizes)
        self._sentence = self.spec.encode()
        self.eps = checked_eps(eps)
        shape = _parameter_shape(self.spec)
        for name, there in (("weight", shape is not None), ("bias", shape is not None and bias)):
            values = torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if there else None
            self.register_parameter(name, values)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Ones for the weight, zeros for the bias."""
        if self.weight is not None:
            torch.nn.init.ones_(self.weight)
        if self.bias is not None:
            torch.nn.init.zeros_(self.bias)

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
        how = operation(residual, modulation, self.activation)
        if ops.is_traced() and torch_onnx.goes_to_onnx(mask):
            return exported(how, self._sentence, input, torch_onnx.normalize, weight, bias, self.spec, self.eps)
        return how.normalize_checked(input, weight, bias, mask, self._sentence, self.eps)[0]

    def extra_repr(self) -> str:
        words = repr(self.spec).removeprefix("NormSpec.of(").removesuffix(")")
        return f"{words}, eps={self.eps}, bias={self.bias is not None}{super().extra_repr()}"


def _parameter_shape(spec: NormSpec) -> tuple[int, ...] | None:
    if spec.affine is None:
        return None
    sizes = dict(spec.sizes)
    missing = [name for name in spec.affine.names if name not in sizes]
    if ELLIPSIS in missing:
        raise ValueError(f'weight and bias cannot have the axes "...": write them out in "{spec.text}"')
    if missing:
        raise ValueError(
            f'weight and bias have the axes "{spec.affine_text}", and the length of {" and ".join(missing)} is '
            f'missing: give it, as in {missing[0]}=8, or affine="" for neither'
        )
    return tuple(math.prod(sizes[axis.name] for axis in dim) for dim in spec.affine.dims)
