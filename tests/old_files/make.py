"""Makes the old files beside it with the libraries that made such files: TensorFlow 2.15 and TensorFlow Addons.

    python3.11 -m venv old
    old/bin/pip install tensorflow-cpu==2.15.1 tensorflow-addons==0.23.0 'numpy<2'
    old/bin/python tests/old_files/make.py

Every model is a folder with `model.h5`, `model.keras`, `saved/` (SavedModel), `old_weights.h5`, `model.weights.h5`, and
`expected.npz`, which has the input x and the output y that the model gave here. A format in which the old libraries
themselves cannot save the model is left out, and said.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf
import tensorflow_addons as tfa

keras, layers = tf.keras, tf.keras.layers
HERE = Path(__file__).parent
IMAGE = (6, 5, 3)


class ContribNormalization(layers.Layer):
    """What keras-contrib's two normalizations have in common: arguments, weights and, over the axes given, arithmetic.

    That package cannot be installed any more. This stands in for it: same class names, configurations and weights.
    """

    def __init__(self, axis=-1, epsilon=1e-3, center=True, scale=True, beta_initializer="zeros",
                 gamma_initializer="ones", beta_regularizer=None, gamma_regularizer=None, beta_constraint=None,
                 gamma_constraint=None, **kwargs):  # fmt: skip
        super().__init__(**kwargs)
        self.axis, self.epsilon, self.center, self.scale = axis, epsilon, center, scale
        self.parts = {
            "beta_initializer": keras.initializers.get(beta_initializer),
            "gamma_initializer": keras.initializers.get(gamma_initializer),
            "beta_regularizer": keras.regularizers.get(beta_regularizer),
            "gamma_regularizer": keras.regularizers.get(gamma_regularizer),
            "beta_constraint": keras.constraints.get(beta_constraint),
            "gamma_constraint": keras.constraints.get(gamma_constraint),
        }

    def build(self, input_shape):
        shape = (1,) if self.axis is None else (input_shape[self.axis],)
        self.gamma = self.add_weight("gamma", shape, initializer="ones") if self.scale else None
        self.beta = self.add_weight("beta", shape, initializer="zeros") if self.center else None
        super().build(input_shape)

    def affine(self, y):
        shape = [1] * len(y.shape)
        if self.axis is not None:
            shape[self.axis] = y.shape[self.axis]
        y = y * tf.reshape(self.gamma, shape) if self.scale else y
        return y + tf.reshape(self.beta, shape) if self.center else y

    def get_config(self):
        modules = (keras.initializers, keras.regularizers, keras.constraints)
        parts = {
            name: next(m for m in modules if m.__name__.split(".")[-1].startswith(name.split("_")[1])).serialize(part)
            for name, part in self.parts.items()
        }
        own = {"axis": self.axis, "epsilon": self.epsilon, "center": self.center, "scale": self.scale}
        return {**super().get_config(), **own, **parts}


class InstanceNormalization(ContribNormalization):
    """Divides by the standard deviation plus epsilon; axis None normalizes over the channels too."""

    def __init__(self, axis=None, **kwargs):
        super().__init__(axis=axis, **kwargs)

    def call(self, x):
        axes = [i for i in range(1, len(x.shape)) if self.axis is None or i != self.axis % len(x.shape)]
        mean = tf.reduce_mean(x, axes, keepdims=True)
        return self.affine((x - mean) / (tf.math.reduce_std(x, axes, keepdims=True) + self.epsilon))


class GroupNormalization(ContribNormalization):
    """Divides by the root of the variance plus epsilon."""

    def __init__(self, groups=32, axis=-1, epsilon=1e-5, **kwargs):
        super().__init__(axis=axis, epsilon=epsilon, **kwargs)
        self.groups = groups

    def call(self, x):
        shape = tf.shape(x)
        split = tf.reshape(x, [shape[0], shape[1], shape[2], self.groups, x.shape[-1] // self.groups])
        mean, variance = tf.nn.moments(split, [1, 2, 4], keepdims=True)
        return self.affine(tf.reshape((split - mean) / tf.sqrt(variance + self.epsilon), shape))

    def get_config(self):
        return {**super().get_config(), "groups": self.groups}


def around(*norms: Any) -> Any:
    """A sequential model: convolution, the norms, and what else such models have."""
    return keras.Sequential(
        [layers.Conv2D(6, 3, padding="same", input_shape=IMAGE), *norms, layers.LeakyReLU(0.1), layers.Flatten(),
         layers.Dense(4)]
    )  # fmt: skip


def functional(first: Any, shape: tuple[int, ...], build: Callable[[Any], Any], name: str | None = None) -> Any:
    x = keras.Input(shape, **first)
    return keras.Model(x, build(x), name=name)


def branches() -> Any:
    """Two inputs, two outputs, a shared layer, a model within the model, joins."""
    image, vector = keras.Input(IMAGE, name="image"), keras.Input((7,), name="vector")
    shared = layers.Conv2D(6, 3, padding="same", name="shared")
    norm = tfa.layers.GroupNormalization(3, name="norm")
    inner = functional({}, (6, 5, 6), lambda x: layers.BatchNormalization()(layers.Conv2D(4, 1)(x)), "inner")
    one = layers.Activation("relu")(norm(shared(image)))
    two = norm(shared(layers.Rescaling(0.5, 0.1)(image)))
    joined = layers.Concatenate(axis=-1)([one, layers.Add()([one, two]), inner(one)])
    pooled = layers.GlobalAveragePooling2D()(joined)
    scaled = layers.Multiply()([pooled, layers.Dense(16, activation="sigmoid")(vector)])
    out = layers.Dense(3, activation="softmax", name="classes")(scaled)
    return keras.Model([image, vector], [out, layers.Flatten(name="flat")(inner(two))])


def cyclegan() -> Any:
    """The usual generator: reflections apart, down, a residual block, up, instance normalization everywhere."""

    def block(x: Any, layer: Any, activation: str | None = "relu") -> Any:
        x = tfa.layers.InstanceNormalization(gamma_initializer=keras.initializers.RandomNormal(0.0, 0.02))(layer(x))
        return layers.Activation(activation)(x) if activation else x

    def generator(x: Any) -> Any:
        x = block(layers.ZeroPadding2D(3)(x), layers.Conv2D(4, 7, use_bias=False))
        x = block(x, layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False))
        y = block(x, layers.Conv2D(8, 3, padding="same", use_bias=False))
        x = layers.add([x, block(y, layers.Conv2D(8, 3, padding="same", use_bias=False), None)])
        x = block(x, layers.Conv2DTranspose(4, 3, strides=2, padding="same", use_bias=False))
        return layers.Conv2D(3, 7, padding="same", activation="tanh")(x)

    return functional({}, (None, None, 3), generator, "generator")


def ordinary() -> Any:
    """Layers of Keras alone: those with several kernels, with statistics or with arguments that Keras 3 renamed."""
    norm = layers.Normalization()
    norm.adapt(np.random.default_rng(0).normal(3.0, 2.0, (50, *IMAGE)))

    def build(x: Any) -> Any:
        x = layers.SeparableConv2D(6, 3, padding="same", depth_multiplier=2)(norm(x))
        x = layers.ThresholdedReLU(0.1)(layers.DepthwiseConv2D(3, padding="same")(x))
        x = layers.PReLU(shared_axes=[1, 2])(layers.MaxPooling2D(2)(layers.UpSampling2D(2)(x)))
        x = layers.BatchNormalization()(layers.Conv2DTranspose(4, 3, padding="same", groups=1)(x))
        x = layers.ELU(0.5)(layers.Permute((2, 1, 3))(layers.Cropping2D(1)(layers.ZeroPadding2D(1)(x))))
        x = layers.LayerNormalization(axis=-1)(layers.Reshape((30, 4))(layers.Dropout(0.3)(x)))
        y = layers.MultiHeadAttention(2, 3)(x, layers.Conv1D(4, 1, activation="gelu")(x))
        y = layers.GroupNormalization(2)(layers.Subtract()([x, y]))
        return layers.Softmax()(layers.Dot(axes=1, normalize=True)([x, layers.UnitNormalization()(y)]))

    return functional({}, IMAGE, build)


def activations() -> Any:
    """Those that Keras 3 calls otherwise, or calls another function so; Addons' gelu is written as Keras's by now."""
    shrinks = (tfa.activations.hardshrink, tfa.activations.softshrink, tfa.activations.tanhshrink)
    return keras.Sequential([
        keras.Input((7, 4)),
        layers.LSTM(5, recurrent_activation="hard_sigmoid", return_sequences=True),
        layers.SpatialDropout1D(0.3),
        layers.Bidirectional(
            layers.GRU(3, recurrent_activation="hard_sigmoid", reset_after=False, use_bias=False, return_sequences=True)
        ),
        layers.Dense(4, activation="hard_sigmoid"),
        *(layers.Dense(6, activation=shrink) for shrink in shrinks),
        layers.Activation("hard_sigmoid"),
        layers.Activation(tf.nn.log_softmax),
    ])  # fmt: skip


def recurrent() -> Any:
    """Addons's cell in an RNN layer, and Keras's own recurrent layers."""
    cell = tfa.rnn.LayerNormLSTMCell(5, norm_gamma_initializer="random_uniform")
    simple = layers.SimpleRNN(4, return_sequences=True)
    return keras.Sequential(
        [
            layers.Embedding(11, 4, mask_zero=True, input_length=7),
            layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
            layers.GRU(6, return_sequences=True),
            tfa.layers.WeightNormalization(simple, data_init=False),
            layers.RNN(cell, return_sequences=True),
            layers.TimeDistributed(layers.Dense(2)),
        ]
    )


def states() -> Any:
    """Initial states that an encoder gives, cells on top of each other, and a layer with random numbers of its own."""
    one, two, image = keras.Input((5, 3)), keras.Input((4, 2)), keras.Input(IMAGE)
    _, h, c = layers.LSTM(3, return_state=True)(one)
    y = layers.LSTM(3, return_sequences=True)(two, initial_state=[h, c])
    y = layers.Bidirectional(layers.GRU(3, return_sequences=True))(y, initial_state=[h, c])
    y = layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)])(layers.GRU(3, return_sequences=True)(y, initial_state=h))
    return keras.Model([one, two, image], [y, layers.Conv2D(2, 3)(layers.RandomFlip()(image))])


def wrapped(wrap: Callable[[Any], Any]) -> Any:
    """A wrapper around each kind of layer that it takes."""
    return functional(
        {}, IMAGE, lambda x: layers.Flatten()(wrap(layers.Dense(4))(wrap(layers.Conv2D(6, 3, activation="relu"))(x)))
    )


def transposed() -> Any:
    """Wrappers around a layer whose outputs are not the kernel's last axis, which Addons took for them all the same."""
    return functional(
        {},
        IMAGE,
        lambda x: tfa.layers.SpectralNormalization(layers.Conv2DTranspose(4, 3))(
            tfa.layers.WeightNormalization(layers.Conv2DTranspose(6, 3, activation="relu"), data_init=False)(x)
        ),
    )


def frozen() -> Any:
    """Layers and a model that are not trainable, which changes the order of weights in HDF5 files."""
    inner = keras.Sequential(
        [layers.Conv2D(6, 1, input_shape=(6, 5, 6)), layers.BatchNormalization(), layers.Conv2D(6, 1)], name="inner"
    )
    inner.trainable = False
    norm = layers.BatchNormalization(trainable=False)
    return around(inner, norm, tfa.layers.WeightNormalization(layers.Conv2D(6, 1), trainable=False))


def tied() -> Any:
    """Layers and a model that are in several models and wrappers, the first in one that is within the whole."""
    a, b, c = (keras.Input((3, 6)) for _ in range(3))
    layer = layers.Dense(6, name="tied")
    within = keras.Sequential([keras.Input((3, 6)), layers.Dense(6), layers.BatchNormalization()], name="within")
    one = keras.Model(a, [layer(a), layers.TimeDistributed(layer)(a), within(a)], name="one")
    two = keras.Model(b, layers.Dense(6)(within(layer(b))), name="two")
    last = keras.Sequential([keras.Input((3, 6)), layers.Dense(6)], name="last")
    x, y, z = one(c)
    return keras.Model(c, [x, y, z, last(two(c)), layer(x)])


def moving() -> Any:
    """Convolutions over time."""
    one, two, three = keras.Input((3, 6, 2)), keras.Input((3, 5, 4, 2)), keras.Input((3, 4, 3, 3, 1))
    x = layers.ConvLSTM2D(2, 3, recurrent_activation="sigmoid", return_sequences=True, padding="same")(two)
    return keras.Model(
        [one, two, three],
        [layers.Bidirectional(layers.ConvLSTM1D(2, 3, dilation_rate=2))(one),
         layers.ConvLSTM2D(2, 2, strides=2, go_backwards=True, use_bias=False)(x), layers.ConvLSTM3D(2, 2)(three)],
    )  # fmt: skip


def preprocessing() -> Any:
    """Bins and vocabularies, given and, for the bins, from data."""
    x, words = keras.Input((4,)), keras.Input((5,), dtype="int64")
    bins = layers.Discretization(num_bins=4)
    bins.adapt(np.random.default_rng(0).normal(1.0, 2.0, (30, 4)))
    counted = layers.IntegerLookup(vocabulary=[7, 2, 3], output_mode="count")(words)
    looked_up = layers.IntegerLookup(vocabulary=[7, 2, 3], num_oov_indices=2, mask_token=0)(words)
    return keras.Model(
        [x, words],
        [layers.Discretization([0.0, 1.0, 2.0], output_mode="multi_hot")(x), bins(x), layers.Dense(3)(counted),
         looked_up, layers.Embedding(6, 2)(looked_up)],
    )  # fmt: skip


def vocabulary() -> Any:
    """A vocabulary from data, which Keras 2 does not save in HDF5; two, so that it matters whose it is."""
    words = keras.Input((5,), dtype="int64")
    one, two = layers.IntegerLookup(), layers.IntegerLookup(mask_token=0)
    one.adapt(np.array([3, 3, 3, 5, 5, 1]))
    two.adapt(np.array([7, 7, 0, 2, 2, 2]))
    return keras.Model(words, [keras.Model(words, one(words))(words), two(words)])


MODELS: dict[str, Callable[[], Any]] = {
    "group": lambda: around(tfa.layers.GroupNormalization(groups=3, axis=3, beta_regularizer="l2")),
    "instance": lambda: around(tfa.layers.InstanceNormalization(axis=-1, epsilon=1e-5)),
    "layer": lambda: around(layers.LayerNormalization(axis=[1, 2]), layers.LayerNormalization()),
    "filter_response": lambda: around(tfa.layers.FilterResponseNormalization(), tfa.layers.TLU(affine=True)),
    "filter_response_learned": lambda: around(
        tfa.layers.FilterResponseNormalization(learned_epsilon=True), tfa.layers.TLU()
    ),
    "weight": lambda: wrapped(lambda layer: tfa.layers.WeightNormalization(layer, data_init=False)),
    "weight_data": lambda: wrapped(tfa.layers.WeightNormalization),
    "spectral": lambda: wrapped(tfa.layers.SpectralNormalization),
    "batch_mixed": lambda: around(layers.BatchNormalization(dtype="mixed_float16"), layers.ReLU(6.0)),
    "contrib": lambda: around(
        InstanceNormalization(axis=3), InstanceNormalization(), GroupNormalization(groups=2, scale=False)
    ),
    "transposed": transposed,
    "frozen": frozen,
    "ordinary": ordinary,
    "branches": branches,
    "cyclegan": cyclegan,
    "recurrent": recurrent,
    "activations": activations,
    "states": states,
    "tied": tied,
    "moving": moving,
    "preprocessing": preprocessing,
    "vocabulary": vocabulary,
}


def inputs(model: Any, rng: np.random.Generator) -> list[np.ndarray]:
    if isinstance(model.layers[0], layers.Embedding):
        return [rng.integers(0, 11, (3, 7)).astype("float32")]
    shapes = [tuple(n or 8 for n in tensor.shape[1:]) for tensor in model.inputs]
    return [
        rng.integers(0, 9, (3, *shape)) if tensor.dtype.is_integer
        else rng.normal(1.0, 2.0, (3, *shape)).astype("float32")
        for tensor, shape in zip(model.inputs, shapes, strict=True)
    ]  # fmt: skip


def randomize(model: Any, rng: np.random.Generator) -> None:
    """So that a weight that goes to the wrong place is seen; flags and positive weights stay what they are."""
    for w in (w for w in model.weights if isinstance(w, tf.Variable)):
        value = w.numpy()
        # The last are those of a layer that copied them when it saw data.
        seen = ("mean:0", "variance:0", "count:0", "summary:0")
        if value.dtype == bool or "sn_u" in w.name or w.name.split("/")[-1] in seen:
            continue
        noise = rng.normal(0.0, 0.3, value.shape)
        w.assign(np.abs(value + noise) + 0.1 if "variance" in w.name else value + noise)


def save(model: Any, folder: Path) -> list[str]:
    """Write each format that the model can be saved in; the others, with the reason."""
    ways: dict[str, Callable[[str], Any]] = {
        "model.h5": lambda path: model.save(path, save_format="h5"),
        "model.keras": lambda path: model.save(path, save_format="keras"),
        # The traced functions take minutes and much space. With them, as by default, all variables are in a list too.
        "saved": lambda path: model.save(path, save_format="tf", save_traces=folder.name == "states"),
        "old_weights.h5": lambda path: model.save_weights(path),
        "model.weights.h5": lambda path: model.save_weights(path),
    }
    failed = []
    for name, way in ways.items():
        try:
            way(str(folder / name))
        except Exception as error:
            (folder / name).unlink(missing_ok=True)
            failed.append(f"{name}: {type(error).__name__} {str(error)[:200]}")
    # The graph, half of all bytes, is not what a rescue reads; one model keeps it.
    if folder.name != "group":
        (folder / "saved" / "saved_model.pb").unlink(missing_ok=True)
    return failed


def main(names: list[str]) -> None:
    for name in names or MODELS:
        keras.backend.clear_session()
        keras.utils.set_random_seed(1)
        rng = np.random.default_rng(1)
        model = MODELS[name]()
        x = inputs(model, rng)
        # Wrappers set themselves up at the first call; spectral normalization changes its kernel in training.
        model(x if len(x) > 1 else x[0], training=name == "spectral")
        randomize(model, rng)
        outputs = model.predict(x, verbose=0)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        named = {f"x{i}": a for i, a in enumerate(x)} | {f"y{i}": a for i, a in enumerate(outputs)}
        np.savez_compressed(folder / "expected.npz", **named)
        print(name, *save(model, folder), sep="\n  ", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
