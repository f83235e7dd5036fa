"""Batch normalization and batch renormalization: running statistics around the operation."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import keras

from .. import ops
from ..catalogue import batch, normalized_axes
from ..plan import Shape
from ..spec import NormSpec
from .base import AffineLayer, Tensor, checked_axis, plain, tensors

CLIPS = ("rmax", "rmin", "dmax")


@keras.saving.register_keras_serializable("anynorm")
class BatchNormalization(AffineLayer):
    """Batch normalization: in training a channel's mean and variance over the batch, else their running averages.

        y = (x - mean) / sqrt(variance + epsilon) * gamma + beta
        moving = moving * momentum + batch * (1 - momentum)

    A layer whose `trainable` is False uses and keeps the running averages in training too.

    Sources: Ioffe, Szegedy 2015, arXiv:1502.03167; renorm: Ioffe 2017, arXiv:1702.03275.

    Args:
        axis: the channel axis or axes.
        momentum: how much of the running averages remains in a step.
        epsilon: added to the variance.
        center, scale: whether there is a beta, a gamma.
        beta_initializer, gamma_initializer, moving_mean_initializer, moving_variance_initializer, beta_regularizer,
            gamma_regularizer, beta_constraint, gamma_constraint: as for any Keras layer.
        renorm: correct the batch's statistics towards running ones, y = ((x - mean) / std * r + d) * gamma + beta.
        renorm_clipping: bounds of the correction, a dictionary with any of "rmin" and "rmax" of r and "dmax" of |d|.
        renorm_momentum: as `momentum`, for the statistics that the correction is made from.
        synchronized: one mean and variance for the batches of all replicas of a `tf.distribute` strategy; only with
            the TensorFlow backend.
        **kwargs: of `keras.layers.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: floating-point tensor of any rank; only the channel axis has to be known when built.
        training: whether to use and to update the batch's statistics.
        mask: true where an element enters the statistics. It broadcasts to the input, or lacks its channel axis, or
            has only leading dimensions of it. A mask that comes with the input is used.

    Returns:
        A tensor of the input's shape and the layer's compute dtype.

    Raises:
        ValueError: an axis out of range or named twice; channels of unknown number; an epsilon that is negative or not
            finite; clipping bounds of other names or that contradict each other; a mask that does not broadcast;
            `synchronized` on a backend without it.
        TypeError: an input of integers.

    >>> import numpy as np
    >>> from anynorm.keras import BatchNormalization
    >>> layer = BatchNormalization(axis=1)
    >>> tuple(layer(np.ones((4, 6, 8, 8), "float32"), training=True).shape)
    (4, 6, 8, 8)
    >>> [w.name for w in layer.weights]
    ['gamma', 'beta', 'moving_mean', 'moving_variance']
    """

    def __init__(
        self,
        axis: int | list[int] = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        renorm: bool = False,
        renorm_clipping: dict[str, float] | None = None,
        renorm_momentum: float = 0.99,
        synchronized: bool = False,
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
        if renorm:
            _check_clipping(renorm_clipping or {})
        if synchronized and not hasattr(ops.of(keras.ops.zeros(())), "moments_of_replicas"):
            raise ValueError(
                f"synchronized=True needs a backend with replicas, and {keras.backend.backend()} has none; leave it out"
            )
        self.axis = checked_axis(axis)
        self.momentum = momentum
        self.moving_mean_initializer = keras.initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = keras.initializers.get(moving_variance_initializer)
        self.renorm = renorm
        self.renorm_clipping = renorm_clipping
        self.renorm_momentum = renorm_momentum
        self.synchronized = synchronized

    def sentence(self, rank: int) -> NormSpec:
        return batch(self.axis, rank)

    def mask_gap(self, rank: int) -> int:
        axes = normalized_axes(self.axis, rank)
        return axes[0] if len(axes) == 1 else rank - 1

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        shape = self.fix_parameter_shape(input_shape)
        mean, variance = self.moving_mean_initializer, self.moving_variance_initializer
        self.moving_mean = self._add_state("moving_mean", shape, mean)
        self.moving_variance = self._add_state("moving_variance", shape, variance)
        if self.renorm:
            self.moving_stddev = self._add_state("moving_stddev", shape, _root_of(variance))
            self.renorm_mean = self._add_state("renorm_mean", shape, _copy(mean))
            self.renorm_stddev = self._add_state("renorm_stddev", shape, _root_of(variance))

    def call(  # type: ignore[override]
        self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
    ) -> Tensor:
        x, mask, spec, module = self.enter(inputs, mask)
        gamma, beta = tensors(x, module, self.gamma, self.beta)
        if not (training and self.trainable):
            moving = tensors(x, module, self.moving_mean, self.moving_variance)
            return self.leave(module.apply(x, *moving, gamma, beta, spec, self.epsilon), module)
        self.warn_if_nothing_is_left(spec, module.shape(x))
        if self.renorm:
            gamma, beta = self._corrected(gamma, beta, *self._moments(x, mask, spec, module))
        normalize = module.normalize_replicas if self.synchronized else module.normalize
        y, mean, variance = normalize(x, gamma, beta, mask, spec, self.epsilon)
        self._update(mean, variance)
        return self.leave(y, module)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "axis": plain(self.axis),
            "momentum": self.momentum,
            "moving_mean_initializer": keras.initializers.serialize(self.moving_mean_initializer),
            "moving_variance_initializer": keras.initializers.serialize(self.moving_variance_initializer),
            "renorm": self.renorm,
            "renorm_clipping": None if self.renorm_clipping is None else dict(self.renorm_clipping),
            "renorm_momentum": self.renorm_momentum,
            "synchronized": self.synchronized,
        }

    def _add_state(self, name: str, shape: Shape, initializer: Any) -> Any:
        return self.add_weight(name=name, shape=shape, initializer=initializer, trainable=False, autocast=False)

    def _moments(self, x: Tensor, mask: Tensor | None, spec: NormSpec, module: ModuleType) -> tuple[Tensor, Tensor]:
        mean, variance = (module.moments_of_replicas if self.synchronized else module.moments)(x, mask, spec)
        return keras.ops.stop_gradient(mean), keras.ops.stop_gradient(variance)

    def _corrected(
        self, gamma: Tensor | None, beta: Tensor | None, mean: Tensor, variance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scale and offset with the correction in them: (h r + d) gamma + beta = h (r gamma) + (d gamma + beta)."""
        renorm_mean = keras.ops.cast(self.renorm_mean, mean.dtype)
        # Never below what a constant channel has, or the first steps would divide by zero.
        renorm_stddev = keras.ops.maximum(keras.ops.cast(self.renorm_stddev, mean.dtype), self.epsilon**0.5)
        r = keras.ops.sqrt(variance + self.epsilon) / renorm_stddev
        d = (mean - renorm_mean) / renorm_stddev
        clipping = self.renorm_clipping or {}
        rmin, rmax, dmax = (clipping.get(key) for key in ("rmin", "rmax", "dmax"))
        r = r if rmin is None else keras.ops.maximum(r, rmin)
        r = r if rmax is None else keras.ops.minimum(r, rmax)
        d = d if dmax is None else keras.ops.clip(d, -dmax, dmax)
        scale, offset = r, d
        if gamma is not None:
            gamma = keras.ops.cast(gamma, mean.dtype)
            scale, offset = r * gamma, d * gamma
        return scale, offset if beta is None else offset + keras.ops.cast(beta, mean.dtype)

    def _update(self, mean: Tensor, variance: Tensor) -> None:
        _move(self.moving_mean, mean, self.momentum)
        if not self.renorm:
            _move(self.moving_variance, variance, self.momentum)
            return
        stddev = keras.ops.sqrt(variance + self.epsilon)
        _move(self.renorm_mean, mean, self.renorm_momentum)
        _move(self.renorm_stddev, stddev, self.renorm_momentum)
        moved = _move(self.moving_stddev, stddev, self.momentum)
        self.moving_variance.assign(keras.ops.relu(moved * moved - self.epsilon))


def _move(variable: Any, value: Tensor, momentum: float) -> Tensor:
    moved = keras.ops.cast(variable, value.dtype) * momentum + value * (1.0 - momentum)
    variable.assign(moved)
    return moved


def _copy(initializer: Any) -> Any:
    """A random initializer draws its numbers once; another variable needs another one."""
    return initializer.clone() if isinstance(initializer, keras.initializers.Initializer) else initializer


def _root_of(initializer: Any) -> Any:
    return lambda shape, dtype=None: keras.ops.sqrt(_copy(initializer)(shape, dtype=dtype))


def _check_clipping(clipping: dict[str, float]) -> None:
    if set(clipping) - set(CLIPS):
        raise ValueError(f"renorm_clipping takes {', '.join(CLIPS)}, and it is {clipping}")
    rmin, rmax, dmax = (clipping.get(key) for key in ("rmin", "rmax", "dmax"))
    if rmin is not None and rmax is not None and rmax < rmin:
        raise ValueError(f"renorm_clipping's rmax must not be below its rmin, and it is {clipping}")
    if dmax is not None and dmax < 0:
        raise ValueError(f"renorm_clipping's dmax must not be negative, and it is {clipping}")
