"""What goes around a normalization as its arguments: a residual added before it, modulation and activation behind it.

    y = activation(norm(x + residual) * (1 + scale) + shift)

A kernel of our own computes it in one, where one takes all of it along. Elsewhere it is composed of torch's own
operations: for the backward pass autograd keeps the normalization's output, and what comes of it in between is computed
anew.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad
from torch.nn import functional as F  # noqa: N812

from ..precision import statistics_dtype
from ..spec import NormSpec, affine_names
from . import torch as ops
from . import torch_fused_kernel
from .checks import written
from .torch_constant import constant

Array = Any


def _silu_gradient(dy: Array, m: Array) -> Array:
    if not torch.is_grad_enabled():
        return torch.ops.aten.silu_backward(dy, m)
    # torch's operation has no derivative of its own.
    s = torch.sigmoid(m)
    return dy * (s * (1 + m * (1 - s)))


# By name: the function, and dy times its derivative.
_ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array, Array], Array]]] = {
    "relu": (F.relu, partial(torch.ops.aten.threshold_backward, threshold=0)),
    "silu": (F.silu, _silu_gradient),
    "gelu": (F.gelu, torch.ops.aten.gelu_backward),
    "gelu_tanh": (partial(F.gelu, approximate="tanh"), partial(torch.ops.aten.gelu_backward, approximate="tanh")),
}


def checked_activation(name: str | None) -> str | None:
    """The name, or an error that lists those that there are."""
    if name is not None and name not in _ACTIVATIONS:
        raise ValueError(f"activation must be None or one of {', '.join(_ACTIVATIONS)}, and it is {name!r}")
    return name


def operation(residual: Array | None, modulation: tuple[Array, Array] | None, activation: str | None) -> Any:
    """Whose verbs normalize: those of `ops.torch`, or with something around them those of a `Fused`."""
    if residual is None and modulation is None and activation is None:
        return ops
    return Fused(residual, modulation, activation)


class Fused(NamedTuple):
    """A normalization with all that is not None around it; its verbs stand for those of `ops.torch`.

    Attributes:
        residual: of x's shape. With it the result is the pair of y and the sum, which has the type that torch gives it.
        modulation: (shift, scale), each (n, c) or with as many dimensions as x, of the same length or 1.
        activation: one of `_ACTIVATIONS`.
    """

    residual: Array | None
    modulation: tuple[Array, Array] | None
    activation: str | None

    def normalize_checked(
        self,
        x: Array,
        scale: Array | None,
        offset: Array | None,
        mask: Array | None,
        sentence: str,
        eps: float,
        *,
        statistics: bool = False,
        erasing: bool = True,
    ) -> tuple[Any, ...]:
        if mask is None and torch_fused_kernel.may_serve(x):
            spread, behind = self._checked(x, sentence), partial(_behind, activation=self.activation)
            words = self.activation, sentence, eps, behind
            call = torch_fused_kernel.Call(x, self.residual, scale, offset, spread, *words)
            found = torch_fused_kernel.normalize(call, statistics, erasing)
            if found is not None:
                y, total, *more = found
                return y if self.residual is None else (y, total), *more
        rest = {"statistics": statistics, "erasing": erasing}
        return self.around(lambda x: ops.normalize_checked(x, scale, offset, mask, sentence, eps, **rest), x, sentence)

    def apply_checked(
        self,
        x: Array,
        mean: Array,
        variance: Array,
        scale: Array | None,
        offset: Array | None,
        sentence: str,
        eps: float,
    ) -> Any:
        given = (mean, variance, scale, offset, sentence, eps)
        return self.around(lambda x: (ops.apply_checked(x, *given),), x, sentence)[0]

    def around(self, norm: Callable[[Array], tuple[Any, ...]], x: Array, sentence: str) -> tuple[Any, ...]:
        """`norm` of an array gives y and more; here y is the fused one, or the pair of it and the sum."""
        spread = self._checked(x, sentence)
        total = x if self.residual is None else x + self.residual
        y, *more = norm(total)
        y = _behind(y, spread, x.dtype, self.activation)
        return y if self.residual is None else (y, total), *more

    def _checked(self, x: Array, sentence: str) -> tuple[Array, Array] | None:
        """Shift and scale with as many dimensions as x, after all checks of what goes around the norm."""
        checked_activation(self.activation)
        statistics_dtype(ops.dtype(x))
        spread = None if self.modulation is None else _spread(self.modulation, x, sentence)
        if self.residual is not None and self.residual.shape != x.shape:
            raise ValueError(
                f"the residual must have the input's shape {written(tuple(x.shape))}, and it has "
                f"{written(tuple(self.residual.shape))}"
            )
        return spread


def _behind(y: Array, spread: tuple[Array, Array] | None, dtype: torch.dtype, activation: str | None) -> Array:
    """What goes behind the norm, of its output."""
    if spread is not None:
        y = _modulated(y, *spread, activation, dtype)
    elif activation is not None:
        y = _ACTIVATIONS[activation][0](y)
    return y.to(dtype)


def _spread(modulation: tuple[Array, Array], x: Array, sentence: str) -> tuple[Array, Array]:
    """Shift and scale with as many dimensions as x."""
    if isinstance(modulation, torch.Tensor) or len(modulation) != 2:
        raise TypeError(
            "modulation is a pair of tensors (shift, scale); tensor.chunk(2, dim=-1) makes one of one tensor"
        )
    shift, scale = modulation
    channels = _channels(sentence, x.ndim)
    return _over_x("shift", shift, x, channels), _over_x("scale", scale, x, channels)


def _over_x(name: str, values: Array, x: Array, channels: int | None) -> Array:
    """Values of shape (n, c), or of one that broadcasts to x's, with as many dimensions as x."""
    if _fits(values.shape, x.shape):
        return values
    if channels is not None and _fits(values.shape, (x.shape[0], x.shape[channels])):
        small = [1] * x.ndim
        small[0], small[channels] = values.shape
        return values.reshape(small)
    vectors = "" if channels is None else f"{written((x.shape[0], x.shape[channels]))} or "
    raise ValueError(
        f"{name} must have the shape {vectors}{written(tuple(x.shape))}, where any length may be 1, and it has "
        f"{written(tuple(values.shape))}"
    )


def _fits(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    return len(shape) == len(whole) and all(n in (1, m) for n, m in zip(shape, whole, strict=True))


@constant
def _channels(sentence: str, rank: int) -> int | None:
    return _cached_channels(sentence, rank)


@lru_cache(maxsize=1024)
def _cached_channels(sentence: str, rank: int) -> int | None:
    """The one dimension behind the first that scale and offset lie along, None where that is not one."""
    spec = NormSpec.decode(sentence)
    expanded = spec.pattern.expand(rank)
    names = affine_names(spec, expanded)
    found = [d for d, dim in enumerate(expanded.dims) if any(axis.name in names for axis in dim)]
    return found[0] if len(found) == 1 and found[0] > 0 else None


def _modulated(n: Array, shift: Array, scale: Array, activation: str | None, dtype: torch.dtype) -> Array:
    """activation(n * (1 + scale) + shift), rounded once."""
    # Compilers find by themselves what need not be kept, and the transforms of torch.func cannot see into a function's
    # backward pass.
    is_plain = torch._C._functorch.peek_interpreter_stack() is None and forward_ad._current_level < 0
    if is_plain and torch.is_grad_enabled() and not ops.is_traced():
        return _Modulate.apply(n, shift, scale, activation, dtype)
    return _modulate(n, shift, scale, activation, dtype)


def _modulate(n: Array, shift: Array, scale: Array, activation: str | None, dtype: torch.dtype) -> Array:
    m = _before_activation(n, shift, scale)
    return (m if activation is None else _ACTIVATIONS[activation][0](m)).to(dtype)


def _before_activation(n: Array, shift: Array, scale: Array) -> Array:
    work = torch.float64 if n.dtype == torch.float64 else torch.float32
    return torch.addcmul(shift.to(work), n.to(work), 1 + scale.to(work))


class _Modulate(torch.autograd.Function):
    """`_modulate`, of which n alone is kept and not what goes into the activation, nor either in a wider type."""

    @staticmethod
    def forward(ctx: Any, n: Array, shift: Array, scale: Array, activation: str | None, dtype: torch.dtype) -> Array:
        ctx.activation = activation
        ctx.save_for_backward(n, shift, scale)
        return _modulate(n, shift, scale, activation, dtype)

    @staticmethod
    def backward(ctx: Any, dy: Array) -> tuple[Array | None, ...]:
        n, shift, scale = ctx.saved_tensors
        m = _before_activation(n, shift, scale)
        dm = dy.to(m.dtype)
        if ctx.activation is not None:
            dm = _ACTIVATIONS[ctx.activation][1](dm, m)
        dn = (dm * (1 + scale.to(m.dtype))).to(n.dtype)
        dshift = dm.sum_to_size(shift.shape).to(shift.dtype)
        dscale = (dm * n).sum_to_size(scale.shape).to(scale.dtype)
        return dn, dshift, dscale, None, None
