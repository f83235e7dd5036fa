"""The names under which TensorFlow Addons saved its layers, for `keras.saving.load_model`."""

from __future__ import annotations

from typing import Any

import keras

from .filter_response import TLU, FilterResponseNormalization
from .group import GroupNormalization, InstanceNormalization
from .recurrent import LayerNormLSTMCell
from .weights import SpectralNormalization, WeightNormalization


class AddonsSpectralNormalization(SpectralNormalization):
    """A name in old files only; the layer that is made is a `SpectralNormalization` whose kernel is converted."""

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> SpectralNormalization:
        layer: SpectralNormalization = SpectralNormalization.from_config({**config, "converted": True}, custom_objects)
        return layer


ADDONS = {
    "FilterResponseNormalization": FilterResponseNormalization,
    "GroupNormalization": GroupNormalization,
    "InstanceNormalization": InstanceNormalization,
    "LayerNormLSTMCell": LayerNormLSTMCell,
    "SpectralNormalization": AddonsSpectralNormalization,
    "TLU": TLU,
    "WeightNormalization": WeightNormalization,
}


def register() -> None:
    """Make the names known to Keras, which then still saves the layers under their own."""
    keras.saving.get_custom_objects().update({f"Addons>{name}": made for name, made in ADDONS.items()})
