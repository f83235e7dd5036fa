"""Makes `configurations.json` beside it: what Keras 2 writes of each ordinary layer, in HDF5 and in its own format.

old/bin/python tests/old_files/configurations.py           # see make.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tensorflow as tf
from keras.src.saving import serialization_lib
from keras.src.saving.legacy import serialization
from keras.src.saving.legacy.saved_model import json_utils

layers = tf.keras.layers
# Their arguments where there have to be some.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "Activation": ("relu",), "AlphaDropout": (0.2,), "CategoryEncoding": (5,), "CenterCrop": (2, 2), "Dense": (3,),
    "DepthwiseConv1D": (3,), "DepthwiseConv2D": (3,), "Discretization": ([0.0, 1.0],), "Dot": (1,), "Dropout": (0.2,),
    "EinsumDense": ("ab,bc->ac", 3), "Embedding": (5, 3), "GRU": (3,), "GRUCell": (3,), "GaussianDropout": (0.2,),
    "GaussianNoise": (0.2,), "InputLayer": ((4,),), "IntegerLookup": (None, 1, None, -1, [7, 2]), "LSTM": (3,),
    "LSTMCell": (3,), "MultiHeadAttention": (2, 3), "Permute": ((1, 2),), "RandomBrightness": (0.2,),
    "RandomContrast": (0.2,), "RandomRotation": (0.2,), "RandomTranslation": (0.2, 0.2), "RandomZoom": (0.2,),
    "RepeatVector": (2,), "Rescaling": (2.0,), "Reshape": ((4,),), "Resizing": (3, 3), "SimpleRNN": (3,),
    "SimpleRNNCell": (3,), "SpatialDropout1D": (0.2,), "SpatialDropout2D": (0.2,), "SpatialDropout3D": (0.2,),
    "ThresholdedReLU": (0.3,),
}  # fmt: skip
CONVOLUTIONS = (
    "Conv1D", "Conv1DTranspose", "Conv2D", "Conv2DTranspose", "Conv3D", "Conv3DTranspose", "ConvLSTM1D", "ConvLSTM2D",
    "ConvLSTM3D", "SeparableConv1D", "SeparableConv2D",
)  # fmt: skip
WITHOUT = (
    "ActivityRegularization", "Add", "AdditiveAttention", "Attention", "Average", "AveragePooling1D",
    "AveragePooling2D", "AveragePooling3D", "BatchNormalization", "Concatenate", "Cropping1D", "Cropping2D",
    "Cropping3D", "ELU", "Flatten", "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D",
    "GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D", "GroupNormalization", "Identity",
    "LayerNormalization", "LeakyReLU", "Masking", "MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "Maximum", "Minimum",
    "Multiply", "Normalization", "PReLU", "RandomFlip", "ReLU", "Softmax", "Subtract", "UnitNormalization",
    "UpSampling1D", "UpSampling2D", "UpSampling3D", "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D",
)  # fmt: skip


def made() -> list[Any]:
    plain = [getattr(layers, name)(*ARGUMENTS.get(name, ())) for name in (*ARGUMENTS, *WITHOUT)]
    cells = [layers.LSTMCell(3), layers.GRUCell(2)]
    wrapping = [layers.Bidirectional(layers.LSTM(3)), layers.TimeDistributed(layers.Dense(3))]
    return [*plain, *(getattr(layers, name)(3, 2) for name in CONVOLUTIONS), *wrapping, layers.RNN(cells),
            layers.StackedRNNCells(cells)]  # fmt: skip


def main() -> None:
    both = {
        "HDF5": [json.loads(json.dumps(serialization.serialize_keras_object(layer), default=json_utils.get_json_type))
                 for layer in made()],
        "keras": [serialization_lib.serialize_keras_object(layer) for layer in made()],
    }  # fmt: skip
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(both, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
