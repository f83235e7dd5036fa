"""The names under which TensorFlow Addons saved its layers, for `keras.saving.load_model`."""

from __future__ import annotations

from typing import Any

import keras
from keras.src.backend.common import global_state

from .filter_response import TLU, FilterResponseNormalization
from .group import GroupNormalization, InstanceNormalization
from .recurrent import LayerNormLSTMCell
from .weights import SpectralNormalization, WeightNormalization


class AddonsSpectralNormalization(SpectralNormalization):
    """A name in old files only; the layer that is made is a `SpectralNormalization` whose kernel is converted."""

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> SpectralNormalization:
        _check_not_in_file("SpectralNormalization")
        layer: SpectralNormalization = SpectralNormalization.from_config({**config, "converted": True}, custom_objects)
        return layer


class AddonsWeightNormalization(WeightNormalization):
    """A name in old files only; the layer that is made is a `WeightNormalization`."""

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> WeightNormalization:
        _check_not_in_file("WeightNormalization")
        layer: WeightNormalization = WeightNormalization.from_config(config, custom_objects)
        return layer


def _check_not_in_file(name: str) -> None:
    """Raise where Keras is about to fill the layer from an HDF5 file, by the number of weights: Addons has another.

    A configuration alone, as `keras.models.model_from_json` takes it, is understood.
    """
    if global_state.get_global_attribute("use_legacy_config", False):
        raise ValueError(
            f"this file has weights of Addons>{name}, which lie otherwise than Keras reads them: open it with "
            "anynorm.rescue.load(path), or make a new file of it with: anynorm rescue old.h5 -o new.keras"
        )


ADDONS = {
    "FilterResponseNormalization": FilterResponseNormalization,
    "GroupNormalization": GroupNormalization,
    "InstanceNormalization": InstanceNormalization,
    "LayerNormLSTMCell": LayerNormLSTMCell,
    "SpectralNormalization": AddonsSpectralNormalization,
    "TLU": TLU,
    "WeightNormalization": AddonsWeightNormalization,
}


def register() -> None:
    """Make the names known to Keras, which then still saves the layers under their own."""
    keras.saving.get_custom_objects().update({f"Addons>{name}": made for name, made in ADDONS.items()})
