"""Normalization layers for Keras 3, on each of its backends.

The classes take every argument that `keras.layers` and TensorFlow Addons give the class of that name, with the same
meaning, order and default; weights have the same names and order. Importing this module imports Keras and its backend,
and lets `keras.saving.load_model` understand the names `Addons>...` in old models; `anynorm.rescue` reads those models
whose files Keras does not, among them all with weight or spectral normalization, whose weights lie otherwise.
"""

from .addons import register
from .batch import BatchNormalization
from .contrib import ContribInstanceNormalization
from .filter_response import TLU, FilterResponseNormalization
from .group import GroupNormalization, InstanceNormalization
from .layer import LayerNormalization, RMSNormalization
from .recurrent import LayerNormGRUCell, LayerNormLSTMCell
from .sentence import Normalization
from .weights import SpectralNormalization, WeightNormalization

__all__ = [  # noqa: RUF022 - in the alphabet's order, TLU too, which is no constant
    "BatchNormalization",
    "ContribInstanceNormalization",
    "FilterResponseNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormGRUCell",
    "LayerNormLSTMCell",
    "LayerNormalization",
    "Normalization",
    "RMSNormalization",
    "SpectralNormalization",
    "TLU",
    "WeightNormalization",
]

register()
