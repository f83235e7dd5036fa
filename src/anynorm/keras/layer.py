"""Layer normalization and RMS normalization."""

from __future__ import annotations

import warnings
from typing import Any

import keras

from ..catalogue import layer as over_axes
from ..plan import Shape
from ..spec import NormSpec
from .base import AffineLayer, SentenceLayer, checked_axis, plain, tensors


@keras.saving.register_keras_serializable("anynorm")
class LayerNormalization(AffineLayer):
    """Layer normalization: the elements along the given axes share one mean and variance.

        y = (x - mean) / sqrt(variance + epsilon) * gamma + beta

    Source: Ba et al. 2016, arXiv:1607.06450.

    Args:
        axis: the axis or axes that are normalized over. Gamma and beta have these axes too, in the input's order.
        epsilon: added to the variance.
        center, scale: whether there is a beta, a gamma.
        beta_initializer, gamma_initializer, beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint:
            as for any Keras layer.
        rms_scaling: deprecated in Keras and kept for its models, y = x / sqrt(variance + epsilon) * gamma; for RMS
            normalization use `RMSNormalization`.
        **kwargs: of `keras.layers.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: floating-point tensor of any rank; the axes of gamma and beta have to be known when built.
        mask: true where an element enters the statistics. It broadcasts to the input or has only leading dimensions of
            it. A mask that comes with the input is used.

    Returns:
        A tensor of the input's shape and the layer's compute dtype.

    Raises:
        ValueError: an axis out of range or named twice; an unknown length where parameters need one; an epsilon that
            is negative or not finite; a mask that does not broadcast.
        TypeError: an input of integers; an axis that is no whole number.

    >>> import numpy as np
    >>> from anynorm.keras import LayerNormalization
    >>> layer = LayerNormalization(axis=[1, 3])
    >>> tuple(layer(np.ones((4, 8, 5, 6), "float32")).shape)
    (4, 8, 5, 6)
    >>> tuple(layer.gamma.shape)
    (8, 6)
    """

    def __init__(
        self,
        axis: int | list[int] = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        *,
        rms_scaling: bool = False,
        **kwargs: Any,
    ) -> None:
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
        if rms_scaling:
            warnings.warn(
                "rms_scaling=True is deprecated: it divides by the standard deviation, not by the root mean square; "
                "for that use RMSNormalization",
                stacklevel=2,
            )
        self.axis = checked_axis(axis)
        self.rms_scaling = rms_scaling

    @property
    def has_gamma(self) -> bool:
        return self.scale or self.rms_scaling

    @property
    def has_beta(self) -> bool:
        return self.center and not self.rms_scaling

    def sentence(self, rank: int) -> NormSpec:
        return over_axes(self.axis, rank)

    def call(self, inputs: Any, mask: Any = None) -> Any:
        if not self.rms_scaling:
            return super().call(inputs, mask)
        x, mask, spec, module = self.enter(inputs, mask)
        mean, variance = module.moments(x, mask, spec)
        (gamma,) = tensors(x, module, self.gamma)
        # The deviation is the one about the mean, and yet the mean stays.
        return self.leave(
            module.apply(x, keras.ops.zeros_like(mean), variance, gamma, None, spec, self.epsilon), module
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "axis": plain(self.axis), "rms_scaling": self.rms_scaling}


@keras.saving.register_keras_serializable("anynorm")
class RMSNormalization(SentenceLayer):
    """RMS normalization: divide by the root mean square along the given axes.

        y = x / sqrt(mean(x^2) + epsilon) * scale

    Source: Zhang, Sennrich 2019, arXiv:1910.07467.

    Args:
        axis: the axis or axes that are normalized over. The weight `scale` has these axes too, in the input's order.
        epsilon: added to the mean square.
        **kwargs: of `keras.layers.Layer`, such as `name` and `dtype`.

    Call arguments, result and errors: those of `LayerNormalization`.

    >>> import numpy as np
    >>> from anynorm.keras import RMSNormalization
    >>> layer = RMSNormalization(axis=1)
    >>> tuple(layer(np.ones((4, 8, 6), "float32")).shape)
    (4, 8, 6)
    >>> tuple(layer.scale.shape)
    (8,)
    """

    def __init__(self, axis: int | list[int] = -1, epsilon: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(epsilon, **kwargs)
        self.axis = checked_axis(axis)

    def sentence(self, rank: int) -> NormSpec:
        return over_axes(self.axis, rank, remove=("scale",))

    def build(self, input_shape: Shape) -> None:
        shape = self.fix_parameter_shape(input_shape)
        self.scale = self.add_weight(name="scale", shape=shape, initializer="ones", autocast=False)

    def call(self, inputs: Any, mask: Any = None) -> Any:
        return self.normalize(inputs, self.scale, None, mask)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "axis": plain(self.axis)}
