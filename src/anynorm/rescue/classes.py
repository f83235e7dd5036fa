"""Which class stands for which of an old model, and what changes in its arguments.

A class that is not named here is refused, and no class is looked up anywhere else.
"""

from __future__ import annotations

import inspect
from typing import Any

import keras

import anynorm.keras as norms
from anynorm.keras.base import SentenceLayer

from .activations import activation
from .errors import RescueError

ORDINARY = frozenset((
    "Activation", "ActivityRegularization", "Add", "AdditiveAttention", "AlphaDropout", "Attention", "Average",
    "AveragePooling1D", "AveragePooling2D", "AveragePooling3D", "Bidirectional", "CategoryEncoding", "CenterCrop",
    "Concatenate", "Conv1D", "Conv1DTranspose", "Conv2D", "Conv2DTranspose", "Conv3D", "Conv3DTranspose", "ConvLSTM1D",
    "ConvLSTM2D", "ConvLSTM3D", "Cropping1D", "Cropping2D", "Cropping3D", "Dense", "DepthwiseConv1D", "DepthwiseConv2D",
    "Discretization", "Dot", "Dropout", "ELU", "EinsumDense", "Embedding", "Flatten", "GRU", "GRUCell",
    "GaussianDropout", "GaussianNoise", "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D",
    "GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D", "Identity", "InputLayer", "IntegerLookup", "LSTM",
    "LSTMCell", "LeakyReLU", "Masking", "MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "Maximum", "Minimum",
    "MultiHeadAttention", "Multiply", "Normalization", "PReLU", "Permute", "RNN", "RandomBrightness", "RandomContrast",
    "RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom", "ReLU", "RepeatVector", "Rescaling", "Reshape",
    "Resizing", "SeparableConv1D", "SeparableConv2D", "SimpleRNN", "SimpleRNNCell", "Softmax", "SpatialDropout1D",
    "SpatialDropout2D", "SpatialDropout3D", "StackedRNNCells", "Subtract", "TimeDistributed", "UnitNormalization",
    "UpSampling1D", "UpSampling2D", "UpSampling3D", "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D",
))  # fmt: skip
MODELS = ("Functional", "Model", "Sequential")
RENAMED = {
    "Convolution1D": "Conv1D",
    "Convolution2D": "Conv2D",
    "Convolution2DTranspose": "Conv2DTranspose",
    "Convolution3D": "Conv3D",
    "SeparableConvolution2D": "SeparableConv2D",
    "SyncBatchNormalization": "BatchNormalization",
    "ThresholdedReLU": "ReLU",
}
OURS: dict[str, type] = {
    "Addons>FilterResponseNormalization": norms.FilterResponseNormalization,
    "Addons>GroupNormalization": norms.GroupNormalization,
    "Addons>InstanceNormalization": norms.InstanceNormalization,
    "Addons>LayerNormLSTMCell": norms.LayerNormLSTMCell,
    "Addons>SpectralNormalization": norms.SpectralNormalization,
    "Addons>TLU": norms.TLU,
    "Addons>WeightNormalization": norms.WeightNormalization,
    # Without a package: keras-contrib's, or Keras's own, which are the same functions but for one.
    "BatchNormalization": norms.BatchNormalization,
    "GroupNormalization": norms.GroupNormalization,
    "InstanceNormalization": norms.ContribInstanceNormalization,
    "LayerNormalization": norms.LayerNormalization,
    "SpectralNormalization": norms.SpectralNormalization,
}
# Arguments that Keras 3 lacks, and the values with which they change nothing; others are refused.
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "batch_input_shape": (),
    "causal": (False, None),
    "fused": (None, True, False),
    "groups": (1, None),
    "implementation": (0, 1, 2),
    "input_length": (),
    "input_shape": (),
    "noise_shape": (None,),
    "ragged": (False, None),
    "renorm": (False,),
    "rng_type": (),
    "sparse": (False, None),
    "time_major": (False,),
    "virtual_batch_size": (None,),
    "query_shape": (),
    # Keras 2 wrote these of separable and depthwise convolutions, whose kernels have settings of other names.
    "kernel_constraint": (),
    "kernel_initializer": (),
    "kernel_regularizer": (),
    "key_shape": (),
    "value_shape": (),
    "experimental_run_tf_function": (),
    "force_generator": (),
    # How long the vocabulary is, which says so itself, and whether it was given.
    "has_input_vocabulary": (),
    "vocabulary_size": (),
}


def class_of(old: str) -> type | None:
    """The class that stands for an old one, or None."""
    name = old.removeprefix("keras>").removeprefix("Keras>").removeprefix("Experimental>")
    name = RENAMED.get(name, name)
    if name in OURS:
        return OURS[name]
    made = getattr(keras.layers, name, None) if name in ORDINARY else None
    return made if inspect.isclass(made) else None


def why_not(old: str) -> str:
    """Why there is no class for an old one."""
    if old == "Lambda":
        return "a Lambda layer is Python code in the file, which would be run; if you trust it, say unsafe (--unsafe)"
    if old == "RandomCrop":
        return (
            "RandomCrop crops in the middle outside training, and Keras 3's does not then; use CenterCrop or Resizing"
        )
    if old in ("TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer", "ClassMethod", "InstanceProperty"):
        return f"{old} is an operation of TensorFlow used as a layer; write it as a layer of Keras and save again"
    if old.startswith("Addons>"):
        return f"{old} is of TensorFlow Addons and no normalization that anynorm has"
    if inspect.isclass(getattr(keras.layers, old, None)):
        return f"{old} is in Keras 3, but what of an old one to put into it is not known here"
    return f"there is no {old[:80]} in Keras 3 or anynorm; a class of your own cannot be known here"


def accepted(made: type) -> set[str]:
    """The names of the arguments that a class takes, with those that it hands on to the class it is made from."""
    names: set[str] = set()
    for base in made.__mro__:
        parameters = inspect.signature(vars(base)["__init__"]).parameters if "__init__" in vars(base) else {}
        names |= {name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if base is keras.layers.Layer or (parameters and all(p.kind != p.VAR_KEYWORD for p in parameters.values())):
            break
    return names - {"self"}


def changed(old: str, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The arguments as the new class takes them, and what became different, in words.

    Raises:
        RescueError: an activation or a way of interpolation that Keras 3 has not, or a vocabulary that is not there.
    """
    config, notes = dict(config), []
    short = old.rpartition(">")[2]
    for key in ("activation", "recurrent_activation"):
        if key in config:
            config[key], note = activation(config[key])
            notes += [note] if note and note not in notes else []
    if short in ("Resizing", "UpSampling2D") and config.get("interpolation") in ("gaussian", "mitchellcubic"):
        raise RescueError(f"Keras 3 does not interpolate by {config['interpolation']}")
    if short in ("GRU", "GRUCell"):
        # Before there was a choice, the reset gate came first; without a bias no shape would tell.
        config.setdefault("reset_after", False)
    if short in ("SyncBatchNormalization", "BatchNormalization"):
        axis = config.get("axis")
        if isinstance(axis, list) and len(axis) == 1:
            config["axis"] = axis[0]
    if short == "IntegerLookup":
        notes += _lookup(config)
    if short == "Discretization" and config.get("output_mode", "int") == "int":
        notes.append("gives whole numbers of 32 bits, where Keras 2 gave those of 64")
    if short == "LeakyReLU" and "alpha" in config:
        config["negative_slope"] = config.pop("alpha")
    if short == "ThresholdedReLU":
        config["threshold"] = config.pop("theta", 1.0)
        notes.append("a ReLU with a threshold, which is the same")
    if short == "FilterResponseNormalization" and isinstance(config.get("epsilon"), int | float):
        config["epsilon"] = abs(config["epsilon"])
    if short == "GroupNormalization" and old == short and "epsilon" not in config:
        config["epsilon"] = 1e-5
    if short == "SpectralNormalization":
        config["converted"] = True
        notes.append("the kernel is used as it was stored until training goes on")
    inner = config.get("layer")
    if old.startswith("Addons>") and isinstance(inner, dict) and str(inner.get("class_name")).endswith("Transpose"):
        notes.append("Addons took the kernel's inputs for its outputs; trained on, each output's weights are normed")
    half = next((name for name in ("bfloat16", "float16") if f"'mixed_{name}'" in repr(config.get("dtype"))), None)
    if half and issubclass(class_of(old) or object, SentenceLayer):
        notes.append(f"sees a float32 input as it is; the old layer rounded it to {half} first")
    if config.get("unroll"):
        config["unroll"] = False
        notes.append("not unrolled, which gives the same numbers")
    return config, notes


def _lookup(config: dict[str, Any]) -> list[str]:
    """What there is to say of a layer that looks whole numbers up in a vocabulary, which has to be in the file."""
    words, name = config.get("vocabulary"), str(config.get("name"))[:80]
    if config.get("output_mode") == "tf_idf":
        raise RescueError(f"{name}: its weights of words (tf_idf) are not read; use output_mode count and multiply")
    if words is None:
        raise RescueError(f"{name}: its vocabulary came from data and is not in this file; save the model as .keras")
    if not isinstance(words, list) or any(type(word) is not int for word in words):
        raise RescueError(f"{name}: its vocabulary is {str(words)[:80]!r}, and should be a list of whole numbers")
    notes = ["needs TensorFlow, which Keras 3 looks words up with on every backend"]
    if config.get("output_mode", "int") != "int":
        notes.append("gives whole numbers, where Keras 2 gave the same as floats")
    return notes
