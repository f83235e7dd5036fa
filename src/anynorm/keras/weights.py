"""Weight normalization and spectral normalization: wrappers around a layer whose kernel is divided by a norm."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras.src.backend import in_stateless_scope

from .. import ops
from ..catalogue import batch
from ..plan import Shape
from .base import Tensor
from .first_batch import by_data, warn_of_constant
from .kernels import Kernel, call_with, channel_axis, initial, kernels_of, value_of

FIRST_ITERATIONS = 15


class KernelWrapper(keras.layers.Wrapper):
    """A wrapper whose layer is called with other kernels than it stores."""

    def __init__(self, layer: Any, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        self.supports_masking = layer.supports_masking
        # The layer casts its input by itself, and the norm of a kernel is taken before it is cast.
        self.autocast = False

    def compute_mask(self, inputs: Tensor, mask: Tensor | None = None) -> Any:
        return self.layer.compute_mask(inputs, mask)

    def compute_output_shape(self, input_shape: Shape) -> Any:
        return self.layer.compute_output_shape(input_shape)

    def compute_output_spec(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.layer.compute_output_spec(inputs)

    def effective(self) -> list[tuple[Kernel, Tensor]]:
        """The kernels, and the values with which the layer is called."""
        raise NotImplementedError(f"{type(self).__name__} has to say its kernels")

    def remove(self) -> Any:
        """Write the kernels with which the layer is called into it, and return it: a layer without the wrapper.

        Train it no further within the wrapper, which would norm the kernel once more.
        """
        for kernel, value in self.effective():
            kernel.variable.assign(value)
        return self.layer


@keras.saving.register_keras_serializable("anynorm")
class WeightNormalization(KernelWrapper):
    """Weight normalization: learn length and direction of each output's weights apart.

        w = g * v / ||v||

    v is the wrapped layer's own kernel, and g, one number an output, begins as ||v||, so that wrapping changes nothing.
    The norm is over all that enters one output, whichever axis of the kernel that leaves: of transposed convolutions
    the last but one, of depthwise ones the last two, of separable ones of both kernels; of recurrent layers it is the
    recurrent kernel's that is normalized, of embeddings each dimension over the vocabulary.

    Source: Salimans, Kingma 2016, arXiv:1602.07868.

    Args:
        layer: a dense, convolutional, recurrent or embedding layer.
        data_init: whether the first batch, of training or of an eager call, sets g and bias so that the outputs for
            it, before the activation, have mean 0 and variance 1 (the paper's initialization). An output with the same
            value all over the batch has no variance: its g and bias stay as they are, with a warning in an eager call,
            and where no output varies the next batch is the first one. Recurrent layers are left as they are, as the
            paper advises, and so is EinsumDense. A weight `initialized` remembers it.
        **kwargs: of `keras.layers.Layer`, such as `name` and `dtype`.

    Returns:
        What the layer returns.

    Raises:
        ValueError: a layer without a kernel, or a stateful one; `fit` with `data_init` before the first call where
            training is a function without side effects, as Keras makes it for JAX, which could not keep g and bias.

    >>> import numpy as np
    >>> from anynorm.keras import WeightNormalization
    >>> layer = WeightNormalization(keras.layers.Conv2DTranspose(6, 3), data_init=False)
    >>> tuple(layer(np.ones((4, 8, 8, 5), "float32")).shape)
    (4, 10, 10, 6)
    >>> [(w.name, tuple(w.shape)) for w in layer.weights]
    [('g', (6,)), ('kernel', (3, 3, 6, 5)), ('bias', (6,))]
    """

    def __init__(self, layer: Any, data_init: bool = True, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        self.data_init = data_init
        self.initialized: Any = None
        self._seen = False

    def build(self, input_shape: Shape | None = None) -> None:
        super().build(input_shape)
        self.lengths = [
            self.add_weight(
                name="g",
                shape=kernel.outputs,
                initializer=initial(lambda kernel=kernel: kernel.lengths(kernel.value)),
                dtype=kernel.variable.dtype,
                autocast=False,
            )
            for kernel in kernels_of(self.layer)
        ]
        if self.data_init and channel_axis(self.layer) is not None:
            self.initialized = self.add_weight(
                name="initialized", shape=(), initializer="zeros", dtype="bool", trainable=False
            )

    @property
    def g(self) -> Any:
        """The lengths of the outputs' weights; of several kernels, of the last."""
        return self.lengths[-1]

    def effective(self) -> list[tuple[Kernel, Tensor]]:
        return [
            (kernel, kernel.normalized(kernel.value, value_of(g)))
            for kernel, g in zip(kernels_of(self.layer), self.lengths, strict=True)
        ]

    def call(self, inputs: Tensor, training: bool | None = None) -> Any:
        if self.initialized is not None:
            self._initialize(inputs, training)
        return call_with(self.layer, self.effective(), inputs)

    def _initialize(self, inputs: Tensor, training: bool | None) -> None:
        try:
            done = bool(keras.ops.convert_to_numpy(self.initialized))
            if not done:
                keras.ops.convert_to_numpy(inputs)
        except Exception:
            # Inside a compiled function there are no values to look at, and each framework says so in its own way.
            if training:
                self._initialize_compiled(inputs)
            return
        if not done:
            *values, varied = self._by_data(inputs)
            self._keep(*values, varied)
            there = keras.ops.convert_to_numpy(varied)
            warn_of_constant(self.name, there)
            # What is assigned in a stateless scope is lost.
            done = bool(there.any()) and not in_stateless_scope()
        self._seen = self._seen or done

    def _initialize_compiled(self, inputs: Tensor) -> None:
        if not in_stateless_scope():
            now = (*map(value_of, self._set_by_data()), keras.ops.ones_like(value_of(self.g), dtype="bool"))
            self._keep(*keras.ops.cond(value_of(self.initialized), lambda: now, lambda: self._by_data(inputs)))
        elif not self._seen:
            raise ValueError(
                f"{self.name} is initialized by its first batch, and what this compiled training assigns to g and bias "
                "would be lost: make the model anew, for fit has let go of its weights, and call it once on a batch "
                "before fit; or make the layer with data_init=False"
            )

    def _set_by_data(self) -> list[Any]:
        bias = getattr(self.layer, "bias", None)
        return [self.g] if bias is None else [self.g, bias]

    def _keep(self, *made: Tensor) -> None:
        *values, varied = made
        for variable, value in zip(self._set_by_data(), values, strict=True):
            variable.assign(value)
        self.initialized.assign(keras.ops.any(varied))

    def _by_data(self, inputs: Tensor) -> tuple[Tensor, ...]:
        *before, (kernel, _) = self.effective()
        replaced = [*before, (kernel, kernel.normalized(kernel.value, keras.ops.ones_like(value_of(self.g))))]
        activation = getattr(self.layer, "activation", None)
        if activation is not None:
            self.layer.activation = keras.activations.linear
        try:
            t = call_with(self.layer, replaced, inputs)
        finally:
            if activation is not None:
                self.layer.activation = activation
        t = keras.ops.moveaxis(keras.ops.cast(t, self.g.dtype), channel_axis(self.layer), -1)
        return by_data(self.name, t, *map(value_of, self._set_by_data()))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "data_init": self.data_init}


@keras.saving.register_keras_serializable("anynorm")
class SpectralNormalization(KernelWrapper):
    """Spectral normalization: divide a kernel by its largest singular value, as the matrix (inputs, outputs).

        w = v / sigma        sigma = ||v u||

    u is a running estimate of the first singular vector, bettered by one step of the power method in each training
    call and left alone otherwise; 15 steps are made when the layer is built. The gradient goes through sigma. The layer
    stores v itself; Keras and TensorFlow Addons overwrite it with w instead, see `converted`. A kernel of zeros stays
    one. Which axes are outputs: see `WeightNormalization`.

    In a training call sigma is that of torch's `spectral_norm`. Between an optimizer's step and the next training call
    it is ||v u|| of the new v, as the equation says; torch then still uses the other singular vector of the old one,
    which makes its sigma smaller by a second-order term.

    Source: Miyato et al. 2018, arXiv:1802.05957.

    Args:
        layer: a dense, convolutional, recurrent or embedding layer.
        power_iterations: steps of the power method in a training call.
        converted: whether the stored kernel is already divided by sigma, as in models of `keras.layers` and of
            TensorFlow Addons: it is used as it is until the first training call. A weight of that name remembers it.
        **kwargs: of `keras.layers.Layer`, such as `name` and `dtype`.

    Returns:
        What the layer returns.

    Raises:
        ValueError: a layer without a kernel, or a stateful one; power_iterations below 1.

    >>> import numpy as np
    >>> from anynorm.keras import SpectralNormalization
    >>> layer = SpectralNormalization(keras.layers.Dense(6, kernel_initializer="ones"), power_iterations=100)
    >>> tuple(layer(np.ones((4, 5), "float32")).shape)
    (4, 6)
    >>> kernel = keras.ops.convert_to_numpy(layer.remove().kernel)
    >>> round(float(np.linalg.norm(kernel, 2)), 3)
    1.0
    """

    def __init__(self, layer: Any, power_iterations: int = 1, converted: bool = False, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        if isinstance(power_iterations, bool) or not isinstance(power_iterations, int) or power_iterations < 1:
            raise ValueError(f"power_iterations must be a positive whole number, and it is {power_iterations!r}")
        self.power_iterations = power_iterations
        self.converted = converted
        self.as_stored: Any = None

    def build(self, input_shape: Shape | None = None) -> None:
        super().build(input_shape)
        self.vectors = []
        for kernel in kernels_of(self.layer):
            self.vectors.append(
                self.add_weight(
                    name="vector_u",
                    shape=(1, math.prod(kernel.outputs)),
                    initializer=initial(lambda kernel=kernel: _first(kernel)),
                    trainable=False,
                    dtype=kernel.variable.dtype,
                    autocast=False,
                )
            )
        if self.converted:
            self.as_stored = self.add_weight(
                name="converted", shape=(), initializer="ones", dtype="bool", trainable=False
            )

    def restart(self) -> None:
        """Find the vectors anew, after the kernels have become quite other ones."""
        for kernel, vector in zip(kernels_of(self.layer), self.vectors, strict=True):
            vector.assign(_first(kernel))

    def effective(self) -> list[tuple[Kernel, Tensor]]:
        pairs = []
        for kernel, vector in zip(kernels_of(self.layer), self.vectors, strict=True):
            sigma = _sigma(kernel.matrix(kernel.value), value_of(vector))
            if self.as_stored is not None:
                stored = value_of(self.as_stored)
                sigma = keras.ops.where(stored, keras.ops.ones_like(sigma), sigma)
            pairs.append((kernel, kernel.value / sigma))
        return pairs

    def call(self, inputs: Tensor, training: bool | None = None) -> Any:
        if training and self.trainable:
            for kernel, vector in zip(kernels_of(self.layer), self.vectors, strict=True):
                u = value_of(vector)
                vector.assign(_iterated(kernel.matrix(kernel.value), u, self.power_iterations))
            if self.as_stored is not None:
                self.as_stored.assign(False)
        return call_with(self.layer, self.effective(), inputs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "power_iterations": self.power_iterations, "converted": self.converted}


def _unit(row: Tensor) -> Tensor:
    """The row (1, n) made 1 long, safe at both ends of the number range; zeros stay zeros."""
    spec = batch(0, rank=2, remove=("scale",))
    scale = keras.ops.full((1,), int(row.shape[1]) ** -0.5, dtype=row.dtype)
    return ops.of(row).normalize(row, scale, None, None, spec, 0.0)[0]


def _first(kernel: Kernel) -> Tensor:
    matrix = kernel.matrix(kernel.value)
    start = keras.initializers.RandomNormal(seed=keras.random.SeedGenerator(0))((1, int(matrix.shape[1])))
    return _iterated(matrix, start, FIRST_ITERATIONS)


def _iterated(matrix: Tensor, u: Tensor, steps: int) -> Tensor:
    """u after steps of the power method; it stays where the matrix is zero, since from zero it would not come back."""
    matrix, u = keras.ops.stop_gradient(matrix), keras.ops.cast(u, matrix.dtype)
    for _ in range(steps):
        better = keras.ops.matmul(_unit(keras.ops.matmul(u, keras.ops.transpose(matrix))), matrix)
        u = keras.ops.where(keras.ops.any(better != 0), _unit(better), u)
    return u


def _sigma(matrix: Tensor, u: Tensor) -> Tensor:
    """||matrix u||, with its gradient in the matrix alone; 1 for a matrix of zeros."""
    u = keras.ops.stop_gradient(keras.ops.cast(u, matrix.dtype))
    image = keras.ops.matmul(u, keras.ops.transpose(matrix))
    sigma = keras.ops.sum(image * keras.ops.stop_gradient(_unit(image)))
    return keras.ops.where(sigma > 0, sigma, keras.ops.ones_like(sigma))
