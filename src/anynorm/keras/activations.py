"""Activations of old models that Keras 3 has not, or has under a name that meant another function then.

Their own names differ from Keras's, since Keras saves a function of a name that it has itself as its own.
"""

from __future__ import annotations

import keras

from .base import Tensor


@keras.saving.register_keras_serializable("anynorm")
def keras2_hard_sigmoid(x: Tensor) -> Tensor:
    """Keras 2's `hard_sigmoid`, the recurrent activation of its first LSTM and GRU layers.

        y = min(max(0.2 x + 0.5, 0), 1)

    Keras 3's is min(max(x / 6 + 0.5, 0), 1).

    Args:
        x: floating-point tensor of any shape.

    Returns:
        A tensor of the same shape and type.

    >>> import numpy as np
    >>> [round(float(y), 3) for y in keras2_hard_sigmoid(np.array([-3.0, 1.0, 2.0], "float32"))]
    [0.0, 0.7, 0.9]
    """
    return keras.activations.hard_sigmoid(1.2 * x)


@keras.saving.register_keras_serializable("anynorm")
def approximate_gelu(x: Tensor) -> Tensor:
    """GELU in the form that TensorFlow Addons' `gelu` has of its own accord, at most 5e-4 from the exact one.

        y = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))

    Source: Hendrycks, Gimpel 2016, arXiv:1606.08415.

    Args:
        x: floating-point tensor of any shape.

    Returns:
        A tensor of the same shape and type.

    >>> import numpy as np
    >>> [round(float(y), 4) for y in approximate_gelu(np.array([-2.0, 2.0], "float32"))]
    [-0.0454, 1.9546]
    """
    return keras.activations.gelu(x, approximate=True)
