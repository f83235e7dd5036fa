"""Normalization layers for Keras 3, on each of its backends.

The classes take every argument that `keras.layers` and TensorFlow Addons give the class of that name, with the same
meaning, order and default; weights have the same names and order. Importing this module imports Keras and its backend.
"""

from .batch import BatchNormalization
from .group import GroupNormalization, InstanceNormalization
from .layer import LayerNormalization, RMSNormalization
from .sentence import Normalization

__all__ = [
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "Normalization",
    "RMSNormalization",
]
