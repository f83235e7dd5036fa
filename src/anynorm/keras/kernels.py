"""What the wrappers of weights share: which kernels a layer has, which of their axes are its outputs, and how to call
the layer with other kernels than it stores."""

from __future__ import annotations

import math
from typing import Any

import keras

from .. import ops
from ..catalogue import batch, normalized_axes
from .base import Tensor

TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)


class Kernel:
    """One kernel of a layer: its variable, and which axes of it count outputs."""

    def __init__(self, variable: Any, axes: tuple[int, ...]) -> None:
        self.variable = variable
        self.axes = normalized_axes(axes, len(variable.shape))

    @property
    def outputs(self) -> tuple[int, ...]:
        """The lengths of the axes that count outputs."""
        return tuple(int(self.variable.shape[i]) for i in self.axes)

    @property
    def value(self) -> Tensor:
        return value_of(self.variable)

    def matrix(self, value: Tensor) -> Tensor:
        """The kernel as a matrix (inputs, outputs)."""
        rest = [i for i in range(len(self.variable.shape)) if i not in self.axes]
        return keras.ops.reshape(keras.ops.transpose(value, (*rest, *self.axes)), (-1, math.prod(self.outputs)))

    def normalized(self, value: Tensor, magnitude: Tensor) -> Tensor:
        """Each output's weights, made `magnitude` long; weights that are all zero stay so."""
        spec = batch(self.axes, len(self.variable.shape), remove=("scale",))
        count = math.prod(self.variable.shape) // math.prod(self.outputs)
        # Divided by the root of the sum of squares rather than by that of their mean.
        scale = keras.ops.cast(magnitude, value.dtype) * count**-0.5
        return ops.of(value).normalize(value, scale, None, None, spec, 0.0)[0]

    def lengths(self, value: Tensor) -> Tensor:
        """The Euclidean norm of each output's weights, safe at both ends of the number range."""
        rest = tuple(i for i in range(len(self.variable.shape)) if i not in self.axes)
        largest = keras.ops.max(keras.ops.abs(value), axis=rest, keepdims=True)
        share = value / keras.ops.where(largest > 0, largest, keras.ops.ones_like(largest))
        return keras.ops.sqrt(keras.ops.sum(keras.ops.square(share), axis=rest)) * keras.ops.reshape(
            largest, self.outputs
        )


def value_of(variable: Any) -> Tensor:
    """A variable's tensor; Keras's own conversion may hand back the variable itself."""
    value = variable.value
    return ops.of(value).convert(value, value)


def kernels_of(layer: Any) -> list[Kernel]:
    """The kernels of a built layer, the one nearest to its output last.

    Raises:
        ValueError: the layer has no kernel, or one whose outputs are not known here, or keeps states of its own.
    """
    if getattr(layer, "stateful", False):
        raise ValueError(f"{layer.name} is stateful, and its states would be lost; make it with stateful=False")
    cell = getattr(layer, "cell", None)
    if cell is not None:
        return [Kernel(_variable(cell, "recurrent_kernel"), (-1,))]
    if isinstance(layer, SEPARABLE):
        return [Kernel(layer.depthwise_kernel, (-2, -1)), Kernel(layer.pointwise_kernel, (-1,))]
    if isinstance(layer, keras.layers.Embedding):
        return [Kernel(_variable(layer, "embeddings"), (-1,))]
    if isinstance(layer, keras.layers.EinsumDense):
        inputs, kernel = layer.equation.replace("...", "").split("->")[0].split(",")
        return [Kernel(_variable(layer, "kernel"), tuple(i for i, a in enumerate(kernel) if a not in inputs))]
    if isinstance(layer, TRANSPOSED):
        return [Kernel(_variable(layer, "kernel"), (-2,))]
    return [Kernel(_variable(layer, "kernel"), (-2, -1) if isinstance(layer, DEPTHWISE) else (-1,))]


def channel_axis(layer: Any) -> int | None:
    """The one axis of a layer's result that counts its outputs; None for recurrent and for Einstein's layers."""
    if hasattr(layer, "cell") or isinstance(layer, keras.layers.EinsumDense):
        return None
    return 1 if getattr(layer, "data_format", None) == "channels_first" else -1


def _variable(layer: Any, name: str) -> Any:
    variable = getattr(layer, name, None)
    if not isinstance(variable, keras.Variable):
        raise ValueError(
            f"{layer.name}, a {type(layer).__name__}, has no weight called {name}; wrap a dense, convolutional, "
            "recurrent or embedding layer"
        )
    return variable


def call_with(layer: Any, kernels: list[tuple[Kernel, Tensor]], *args: Any, **kwargs: Any) -> Any:
    """Call a layer as if its kernels had these values; what it changes of its other variables is kept."""
    replaced = {id(kernel.variable): value for kernel, value in kernels}
    # A scope hides the one around it, if any, so that the layer's other variables have to be passed on.
    state = [(v, replaced.get(id(v), v.value)) for v in layer.variables]
    with keras.StatelessScope(state_mapping=state) as scope:
        before = [scope.get_current_value(v) for v in layer.variables]
        outputs = layer(*args, **kwargs)
        after = [scope.get_current_value(v) for v in layer.variables]
    for variable, old, new in zip(layer.variables, before, after, strict=True):
        if new is not old:
            variable.assign(new)
    return outputs


def initial(make: Any) -> Any:
    """An initializer from a function without arguments, which may read variables that were made before."""
    return lambda shape, dtype=None: keras.ops.cast(make(), dtype or "float32")
