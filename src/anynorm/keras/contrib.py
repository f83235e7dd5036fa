"""keras-contrib's instance normalization, which adds epsilon to the deviation and not to the variance."""

from __future__ import annotations

from typing import Any

import keras

from ..catalogue import group, over
from ..plan import Shape
from ..spec import NormSpec
from .base import AffineLayer, Tensor, tensors


@keras.saving.register_keras_serializable("anynorm")
class ContribInstanceNormalization(AffineLayer):
    """Instance normalization as keras-contrib defines it, for its models; new ones take `InstanceNormalization`.

        y = (x - mean) / (sqrt(variance) + epsilon) * gamma + beta

    Args:
        axis: the channel axis; None normalizes a sample over the channels too, with one gamma and one beta.
        epsilon, center, scale, beta_initializer, gamma_initializer, beta_regularizer, gamma_regularizer,
            beta_constraint, gamma_constraint, **kwargs: as for `InstanceNormalization`.

    Call arguments, result and errors: those of `InstanceNormalization`.

    >>> import numpy as np
    >>> from anynorm.keras import ContribInstanceNormalization
    >>> layer = ContribInstanceNormalization()
    >>> tuple(layer(np.ones((4, 8, 8, 6), "float32")).shape)
    (4, 8, 8, 6)
    >>> tuple(layer.gamma.shape)
    (1,)
    """

    def __init__(
        self,
        axis: int | None = None,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        affine = (beta_initializer, gamma_initializer, beta_regularizer, gamma_regularizer)
        super().__init__(epsilon, center, scale, *affine, beta_constraint, gamma_constraint, **kwargs)
        self.axis = axis

    def sentence(self, rank: int) -> NormSpec:
        return over(range(1, rank), -1, rank) if self.axis is None else group(self.axis, rank, groups=None)

    def parameter_shape(self, input_shape: Shape) -> Shape:
        return (1,) if self.axis is None else super().parameter_shape(input_shape)

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        x, mask, spec, module = self.enter(inputs, mask)
        self.warn_if_nothing_is_left(spec, module.shape(x))
        mean, variance = module.moments(x, mask, spec)
        # The root has no slope at 0, where a constant input would turn its gradient into NaN.
        tiny = keras.config.epsilon() ** 4
        divisor = keras.ops.sqrt(keras.ops.maximum(variance, tiny)) + self.epsilon
        gamma, beta = tensors(x, module, self.gamma, self.beta)
        if self.axis is None:
            channels = (keras.ops.shape(x)[-1],)
            gamma, beta = (w if w is None else keras.ops.broadcast_to(w, channels) for w in (gamma, beta))
        return self.leave(module.apply(x, mean, divisor * divisor, gamma, beta, spec, 0.0), module)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "axis": self.axis}
