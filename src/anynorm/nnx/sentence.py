"""Any normalization, given as a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes, initializers

from ..precision import checked_eps
from ..spec import MOMENTS, NormSpec
from .base import Array, normalize, promoted, value


class Norm(nnx.Module):
    """Normalization as a sentence about the input's axes says.

        y = (x - mean) / sqrt(variance + epsilon) * scale + bias

    The elements along the axes in square brackets share one mean and variance; scale and bias have the axes `affine`.

    Args:
        pattern: the sentence, such as `"n [...] (g [c])"`.
        num_features: the length of the affine axis, or the lengths of several; None where there are no parameters.
        affine: the axes that carry scale and bias, in the pattern's order. None means the axes in parentheses where
            there are some, else the axis called `c`; "" means none.
        remove: the moments to take out, "mean", "scale" or both; `"scale"` is RMS normalization.
        epsilon: added to the variance.
        **sizes: lengths of axes, as in `g=8`.

    All other arguments, types and call arguments are those of `GroupNorm`.

    Raises:
        PatternError: the sentence cannot be read.
        ValueError: affine axes that are not clear though there are parameters, `num_features` missing, an input that
            does not fit, an epsilon that is negative.

    >>> import jax
    >>> from flax import nnx
    >>> from anynorm.nnx import Norm
    >>> module = Norm("n [h] w c", 8, affine="h", rngs=nnx.Rngs(0))
    >>> module(jax.numpy.ones((4, 8, 5, 6))).shape
    (4, 8, 5, 6)
    """

    def __init__(
        self,
        pattern: str,
        num_features: int | Iterable[int] | None = None,
        *,
        affine: str | Iterable[str] | None = None,
        remove: str | Iterable[str] = MOMENTS,
        epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Callable[..., Array] = initializers.zeros_init(),  # noqa: B008
        scale_init: Callable[..., Array] = initializers.ones_init(),  # noqa: B008
        axis_name: Any = None,
        axis_index_groups: Any = None,
        promote_dtype: Callable[..., Any] = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        scale_metadata: Mapping[str, Any] = MappingProxyType({}),
        **sizes: int,
    ) -> None:
        spec = NormSpec.of(pattern, affine=affine, remove=remove, **sizes)
        if affine is None and spec.affine is None and (use_bias or use_scale):
            raise ValueError(
                f'which axes of "{pattern}" carry scale and bias? Say affine=, as in '
                f'affine="{spec.pattern.names[-1]}", or that there are none, with use_bias=False, use_scale=False'
            )
        has_scale, has_bias = (use and spec.affine is not None for use in (use_scale, use_bias))
        if num_features is None and (has_scale or has_bias):
            raise ValueError(f'how many features has "{spec.affine_text}"? Say num_features=, as in num_features=32')
        shape = (num_features,) if isinstance(num_features, int) else tuple(num_features or ())
        self.scale = nnx.Param(scale_init(rngs.params(), shape, param_dtype), **scale_metadata) if has_scale else None
        self.bias = nnx.Param(bias_init(rngs.params(), shape, param_dtype), **bias_metadata) if has_bias else None
        self.spec = spec
        self.num_features = num_features if isinstance(num_features, int | None) else shape
        self.epsilon = checked_eps(epsilon)
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.axis_name = axis_name
        self.axis_index_groups = axis_index_groups
        self.promote_dtype = promote_dtype

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        x, scale, bias = promoted(self, jnp.asarray(x), value(self.scale), value(self.bias))
        return normalize(self, self.spec, None, x, scale, bias, mask)[0]
