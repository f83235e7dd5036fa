"""Filter response normalization and the activation that goes with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from ..catalogue import filter_response, normalized_axes
from ..ops.checks import written
from ..plan import Shape
from ..spec import NormSpec
from .base import AffineLayer, Tensor, checked_axis, plain, tensors

# With values scaled to 1, epsilon is scaled too; beyond this power of two its square would leave float32.
LARGEST_POWER = 40


@keras.saving.register_keras_serializable("anynorm")
class FilterResponseNormalization(AffineLayer):
    """Filter response normalization: divide each channel of each sample by its root mean square over space.

        y = x / sqrt(mean(x^2) + |epsilon|) * gamma + beta

    With `learned_epsilon`, epsilon + |learned_epsilon| takes the place of |epsilon|; the paper learns it where few
    positions share a mean. `TLU` is the activation that goes with this layer.

    Source: Singh, Krishnan 2019, arXiv:1911.09737.

    Args:
        epsilon: added to the mean square.
        axis: the spatial axes, which share the mean; None means all between the batch and the last axis. The last
            axis that is not among them is the channels'.
        beta_initializer, gamma_initializer, beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint:
            as for any Keras layer. Gamma and beta have as many dimensions as the input, as TensorFlow Addons saves
            them: (1, 1, 1, channels) for images.
        learned_epsilon: whether a weight of that name, of shape (1,), is added to epsilon.
        learned_epsilon_constraint: a constraint on it.
        center, scale: whether there is a beta, a gamma.
        **kwargs: of `keras.layers.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: floating-point tensor (batch, ...) of three or more dimensions, of which only the channels' has to be
            known when built.
        mask: true where an element enters the mean, as for `GroupNormalization`.

    Returns:
        A tensor of the input's shape and the layer's compute dtype.

    Raises:
        ValueError: an axis out of range, named twice or the batch's; no axis left for the channels; channels of
            unknown number; an epsilon that is negative or not finite; a mask that does not broadcast.
        TypeError: an input of integers.

    >>> import numpy as np
    >>> from anynorm.keras import FilterResponseNormalization
    >>> layer = FilterResponseNormalization(learned_epsilon=True)
    >>> tuple(layer(np.ones((4, 8, 8, 6), "float32")).shape)
    (4, 8, 8, 6)
    >>> [(w.name, tuple(w.shape)) for w in layer.weights]
    [('learned_epsilon', (1,)), ('gamma', (1, 1, 1, 6)), ('beta', (1, 1, 1, 6))]
    """

    def __init__(
        self,
        epsilon: float = 1e-6,
        axis: int | Iterable[int] | None = None,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        learned_epsilon: bool = False,
        learned_epsilon_constraint: Any = None,
        *,
        center: bool = True,
        scale: bool = True,
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
        self.axis = None if axis is None else checked_axis(axis)
        self.use_learned_epsilon = learned_epsilon
        self.learned_epsilon_constraint = keras.constraints.get(learned_epsilon_constraint)
        self.learned_epsilon: Any = None

    def sentence(self, rank: int) -> NormSpec:
        return filter_response([self.axis] if isinstance(self.axis, int) else self.axis, rank)

    def parameter_shape(self, input_shape: Shape) -> Shape:
        (channels,) = self.fix_parameter_shape(input_shape)
        affine = self.sentence(len(input_shape)).affine_text
        return tuple(channels if affine == f"a{i}" else 1 for i in range(len(input_shape)))

    def build(self, input_shape: Shape) -> None:
        if self.use_learned_epsilon:
            self.learned_epsilon = self.add_weight(
                name="learned_epsilon",
                shape=(1,),
                initializer=keras.initializers.Constant(1e-4),
                constraint=self.learned_epsilon_constraint,
                autocast=False,
            )
        super().build(input_shape)

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        gamma, beta = (None if w is None else keras.ops.reshape(w, (-1,)) for w in (self.gamma, self.beta))
        if self.learned_epsilon is None:
            return self.normalize(inputs, gamma, beta, mask)
        x, mask, spec, module = self.enter(inputs, mask)
        gamma, beta, learned = tensors(x, module, gamma, beta, self.learned_epsilon)
        reduced = tuple(i for i, axis in enumerate(spec.pattern.axes) if axis.shared)
        x, power = _scaled(x, mask, reduced)
        mean, variance = module.moments(x, mask, spec)
        eps = self.epsilon + keras.ops.abs(keras.ops.cast(learned, variance.dtype))
        square = variance + mean * mean + eps * keras.ops.squeeze(power * power, reduced)
        return self.leave(module.apply(x, keras.ops.zeros_like(mean), square, gamma, beta, spec, 0.0), module)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "axis": None if self.axis is None else plain(self.axis),
            "learned_epsilon": self.use_learned_epsilon,
            "learned_epsilon_constraint": keras.constraints.serialize(self.learned_epsilon_constraint),
        }


def _scaled(x: Tensor, mask: Tensor | None, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """x times a power of two that brings each group's largest element near 1, so that squares stay finite."""
    dtype = keras.backend.standardize_dtype(x.dtype)
    x = keras.ops.cast(x, "float64" if dtype == "float64" else "float32")
    seen = keras.ops.abs(x if mask is None else keras.ops.where(mask, x, keras.ops.zeros_like(x)))
    largest = keras.ops.stop_gradient(keras.ops.max(seen, axis=axes, keepdims=True))
    exponent = -keras.ops.floor(keras.ops.log2(keras.ops.maximum(largest, 2.0**-LARGEST_POWER)))
    power = keras.ops.power(keras.ops.cast(2.0, x.dtype), exponent)
    return x * power, power


@keras.saving.register_keras_serializable("anynorm")
class TLU(keras.layers.Layer):
    """Thresholded linear unit: the activation whose threshold is learned, made for filter response normalization.

        y = max(x, tau)                    y = max(x, alpha * x + tau)  with affine

    Source: Singh, Krishnan 2019, arXiv:1911.09737.

    Args:
        affine: whether the threshold has a slope alpha too.
        tau_initializer, tau_regularizer, tau_constraint, alpha_initializer, alpha_regularizer, alpha_constraint: as
            for any Keras layer.
        shared_axes: the axes along which one threshold serves, as in `keras.layers.PReLU`: [1, 2] gives every channel
            of an image one, as the paper has it, and lets height and width vary. None gives every element of a
            sample its own, as TensorFlow Addons does.
        **kwargs: of `keras.layers.Layer`, such as `name` and `dtype`.

    Returns:
        A tensor of the input's shape and the layer's compute dtype.

    Raises:
        ValueError: a shared axis out of range, named twice or the batch's; an unknown length along an axis that is not
            shared.

    >>> import numpy as np
    >>> from anynorm.keras import TLU
    >>> layer = TLU(tau_initializer=keras.initializers.Constant(-1.0), shared_axes=[1])
    >>> np.asarray(keras.ops.convert_to_numpy(layer(np.array([[[-3.0], [-0.5]]], "float32")))).tolist()
    [[[-1.0], [-0.5]]]
    >>> tuple(layer.tau.shape)
    (1, 1)
    """

    def __init__(
        self,
        affine: bool = False,
        tau_initializer: Any = "zeros",
        tau_regularizer: Any = None,
        tau_constraint: Any = None,
        alpha_initializer: Any = "zeros",
        alpha_regularizer: Any = None,
        alpha_constraint: Any = None,
        shared_axes: int | Iterable[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.affine = affine
        self.tau_initializer = keras.initializers.get(tau_initializer)
        self.tau_regularizer = keras.regularizers.get(tau_regularizer)
        self.tau_constraint = keras.constraints.get(tau_constraint)
        self.alpha_initializer = keras.initializers.get(alpha_initializer)
        self.alpha_regularizer = keras.regularizers.get(alpha_regularizer)
        self.alpha_constraint = keras.constraints.get(alpha_constraint)
        self.shared_axes = None if shared_axes is None else checked_axis(shared_axes)
        self.alpha: Any = None

    def build(self, input_shape: Shape) -> None:
        shared = () if self.shared_axes is None else normalized_axes(self.shared_axes, len(input_shape))
        if 0 in shared:
            raise ValueError("axis 0 is the batch, along which a threshold is always shared; leave it out")
        shape = tuple(1 if i in shared else n for i, n in enumerate(input_shape))[1:]
        if None in shape:
            raise ValueError(
                f"{self.name} has a threshold for each element along the axes that are not shared, and an input of "
                f"shape {written(tuple(input_shape))} leaves one unknown; name it in shared_axes"
            )
        self.tau = self.add_weight(
            name="tau",
            shape=shape,
            initializer=self.tau_initializer,
            regularizer=self.tau_regularizer,
            constraint=self.tau_constraint,
        )
        if self.affine:
            self.alpha = self.add_weight(
                name="alpha",
                shape=shape,
                initializer=self.alpha_initializer,
                regularizer=self.alpha_regularizer,
                constraint=self.alpha_constraint,
            )

    def call(self, inputs: Tensor) -> Tensor:
        tau = keras.ops.convert_to_tensor(self.tau)
        threshold = tau if self.alpha is None else self.alpha * inputs + tau
        # Not `maximum`, which makes float32 of float64 on the torch backend. `where` of JAX takes no Keras variable.
        return keras.ops.where(inputs < threshold, threshold, inputs)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "affine": self.affine,
            "tau_initializer": keras.initializers.serialize(self.tau_initializer),
            "tau_regularizer": keras.regularizers.serialize(self.tau_regularizer),
            "tau_constraint": keras.constraints.serialize(self.tau_constraint),
            "alpha_initializer": keras.initializers.serialize(self.alpha_initializer),
            "alpha_regularizer": keras.regularizers.serialize(self.alpha_regularizer),
            "alpha_constraint": keras.constraints.serialize(self.alpha_constraint),
            "shared_axes": None if self.shared_axes is None else plain(self.shared_axes),
        }
