"""Any normalization, given as a sentence."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real
from typing import Any

import keras

from ..pattern import parse
from ..spec import MOMENTS, NormSpec
from .base import AffineLayer


@keras.saving.register_keras_serializable("anynorm")
class Normalization(AffineLayer):
    """Normalization as a sentence about the input's axes says.

        y = (x - mean) / sqrt(variance + epsilon) * gamma + beta

    The elements along the axes in square brackets share one mean and variance; gamma and beta have the axes `affine`.

    Args:
        pattern: the sentence, such as `"n [...] (g [c])"`.
        affine: the axes that carry gamma and beta, in the pattern's order. None means the axes in parentheses where
            there are some, else the axis called `c`; "" means none.
        epsilon: added to the variance.
        center, scale: whether there is a beta, a gamma.
        remove: the moments to take out, "mean", "scale" or both; `("scale",)` is RMS normalization.
        beta_initializer, gamma_initializer, beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint:
            as for any Keras layer.
        **kwargs: lengths of axes, as in `g=8`; all others are those of `keras.layers.Layer`.

    Call arguments and result: those of `LayerNormalization`.

    Raises:
        PatternError: the sentence cannot be read.
        ValueError: a sentence whose affine axes are not clear though it has parameters, or which the input's shape
            does not fit; an unknown length where one is needed; an epsilon that is negative or not finite.
        TypeError: an input of integers.

    >>> import numpy as np
    >>> from anynorm.keras import Normalization
    >>> layer = Normalization("n [...] (g [c])", g=3)
    >>> tuple(layer(np.ones((4, 8, 8, 6), "float32")).shape)
    (4, 8, 8, 6)
    >>> tuple(layer.gamma.shape)
    (6,)
    """

    def __init__(
        self,
        pattern: str,
        *,
        affine: str | Iterable[str] | None = None,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        remove: str | Iterable[str] = MOMENTS,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        sizes = {name: kwargs.pop(name) for name in parse(pattern).names if isinstance(kwargs.get(name), Real)}
        super().__init__(
            epsilon,
            center,
            scale,
            beta_initializer,
            gamma_initializer,
            beta_regularizer,
            gamma_regularizer,
            beta_constraint,
            gamma_constraint,
            **kwargs,
        )
        spec = NormSpec.of(pattern, affine=affine, remove=remove, **sizes)
        if affine is None and spec.affine is None and (center or scale):
            raise ValueError(
                f'which axes of "{pattern}" carry gamma and beta? Say affine=, as in '
                f'affine="{spec.pattern.names[-1]}", or that there are none, with center=False, scale=False'
            )
        self.pattern = pattern
        self.affine = affine if affine is None or isinstance(affine, str) else " ".join(affine)
        self.remove = remove if isinstance(remove, str) else tuple(remove)
        self.sizes = sizes
        self._spec = spec

    @property
    def has_gamma(self) -> bool:
        return self.scale and self._spec.affine is not None

    @property
    def has_beta(self) -> bool:
        return self.center and self._spec.affine is not None

    def sentence(self, rank: int) -> NormSpec:
        return self._spec

    def get_config(self) -> dict[str, Any]:
        remove = self.remove if isinstance(self.remove, str) else list(self.remove)
        config = {**super().get_config(), "pattern": self.pattern, "affine": self.affine, "remove": remove}
        return {**config, **self.sizes}
