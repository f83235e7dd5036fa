"""The Keras layers in models: configurations, files, masks that travel, shapes that are not known, and errors."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
keras = pytest.importorskip("keras")

import anynorm.keras as K  # noqa: E402, N812

BACKEND = keras.backend.backend()
LAYERS = {
    "group": lambda **more: K.GroupNormalization(3, epsilon=0.01, gamma_regularizer="l2", **more),
    "group, several axes": lambda **more: K.GroupNormalization(2, axis=[2, -1], beta_constraint="non_neg", **more),
    "instance": lambda **more: K.InstanceNormalization(axis=3, gamma_initializer="random_uniform", **more),
    "layer": lambda **more: K.LayerNormalization(axis=(1, 3), center=False, **more),
    "rms": lambda **more: K.RMSNormalization(axis=[-1], epsilon=0.1, **more),
    "batch": lambda **more: K.BatchNormalization(renorm=True, renorm_clipping={"rmax": 2.0}, momentum=0.5, **more),
    "sentence": lambda **more: K.Normalization("n [...] (g [c])", g=2, remove=("scale",), **more),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
SHAPE = (4, 8, 6, 6)
X = np.random.default_rng(0).normal(size=SHAPE).astype("float32")


def numpy(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def model_of(*layers: Any) -> Any:
    x = inputs = keras.Input(SHAPE[1:])
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


@every_layer
def test_build_rewrites_no_argument(make: Any) -> None:
    layer = make(name="norm")
    before = layer.get_config()
    layer(X)
    assert layer.get_config() == before
    again = type(layer).from_config(before)
    assert again.get_config() == before
    assert np.array_equal(numpy(again(X)).shape, SHAPE)


def test_groups_and_axes_stay_as_given() -> None:
    layers = [
        K.GroupNormalization(groups=-1, axis=-1),
        K.LayerNormalization(axis=[-1, 1]),
        K.BatchNormalization(axis=-1),
    ]
    for layer in layers:
        layer(X)
    assert (layers[0].groups, layers[0].axis, layers[1].axis, layers[2].axis) == (-1, -1, [-1, 1], -1)
    assert layers[0](X[:, :, 0]).shape == X[:, :, 0].shape, "another rank, the same channels"


def test_a_model_survives_files_and_cloning(tmp_path: Any) -> None:
    model = model_of(*(make() for make in LAYERS.values()))
    model.compile("sgd", "mse", jit_compile=False)  # compiling seven layers takes longer than all other tests
    model.fit(X, X, verbose=0)
    wanted = model.predict(X, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert np.array_equal(loaded.predict(X, verbose=0), wanted)
    clone = keras.models.clone_model(model)
    assert [layer.get_config() for layer in clone.layers[1:]] == [layer.get_config() for layer in model.layers[1:]]
    model.save_weights(tmp_path / "model.weights.h5")
    clone.load_weights(tmp_path / "model.weights.h5")
    assert np.array_equal(clone.predict(X, verbose=0), wanted)
    lines: list[str] = []
    model.summary(print_fn=lambda line, **_: lines.append(line))
    assert "instance_normalization" in "".join(lines)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the other backends export through packages of their own")
def test_an_exported_model_says_the_same(tmp_path: Any) -> None:
    import tensorflow as tf

    x = inputs = keras.Input((None, None, 6))
    for name in ("group", "instance", "rms", "batch", "sentence"):
        x = LAYERS[name]()(x)
    model = keras.Model(inputs, x)
    model.export(tmp_path / "model", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    for part in (X, X[:1, :5, :3]):
        np.testing.assert_allclose(numpy(loaded.serve(part)), numpy(model(part)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("GroupNormalization", {"groups": 3}),
        ("LayerNormalization", {"axis": [1, 2, 3]}),
        ("BatchNormalization", {}),
        ("BatchNormalization", {"renorm": True}),
        ("RMSNormalization", {}),
    ],
)
def test_weight_files_go_both_ways(kind: str, arguments: dict[str, Any], tmp_path: Any) -> None:
    models = [model_of(getattr(module, kind)(**arguments)) for module in (K, keras.layers)]
    for source, target in (models, models[::-1]):
        random = np.random.default_rng(1)
        source.set_weights([random.uniform(0.5, 1.5, w.shape) for w in source.weights])
        source.save_weights(tmp_path / "model.weights.h5")
        target.load_weights(tmp_path / "model.weights.h5")
        np.testing.assert_allclose(numpy(target(X)), numpy(source(X)), rtol=1e-5, atol=1e-5)
        target.set_weights([np.zeros(w.shape) for w in target.weights])


@every_layer
def test_batch_and_space_may_be_unknown(make: Any) -> None:
    layer = make()
    shape = (None, 8, 6, 6) if isinstance(layer.get_config().get("axis"), list) else (None, None, None, 6)
    inputs = keras.Input(batch_shape=shape)
    outputs = layer(inputs)
    assert (outputs.shape, outputs.dtype) == (shape, "float32")
    assert layer.compute_output_shape(shape) == shape
    np.testing.assert_allclose(
        keras.Model(inputs, outputs).predict(X, verbose=0), numpy(layer(X)), rtol=1e-5, atol=1e-6
    )


@keras.saving.register_keras_serializable("anynorm tests")
class Wrapper(keras.layers.Layer):
    """Has no compute_output_shape, so that Keras traces what is inside."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def call(self, x: Any) -> Any:
        return self.inner(x)


@every_layer
def test_a_layer_inside_a_layer_is_traced(make: Any) -> None:
    layer = Wrapper(make())
    inputs = keras.Input(SHAPE[1:])
    assert layer(inputs).shape == (None, *SHAPE[1:])


@pytest.mark.parametrize(
    "make",
    [
        lambda: K.GroupNormalization(1),
        lambda: K.InstanceNormalization(),
        lambda: K.LayerNormalization(axis=1),
        lambda: K.RMSNormalization(axis=[1, 2]),
        lambda: K.Normalization("n [t] c"),
    ],
)
def test_a_mask_that_comes_with_the_input_is_used(make: Any) -> None:
    x, layer = X[:, 0, :5].copy(), make()
    x[0, 3:] = x[1, 2:] = 0.0
    inputs = keras.Input(x.shape[1:])
    model = keras.Model(inputs, layer(keras.layers.Masking()(inputs)))
    wanted = numpy(layer(x, mask=(x != 0).any(-1)))
    np.testing.assert_allclose(numpy(model(x)), wanted, rtol=1e-5, atol=1e-6)
    assert np.abs(wanted - numpy(layer(x))).max() > 0.1


def test_a_wholly_masked_sample_gives_beta() -> None:
    layer = K.GroupNormalization(2, beta_initializer="ones")
    assert np.array_equal(numpy(layer(X, mask=np.arange(4) != 2))[2], np.ones(SHAPE[1:]))


@pytest.mark.parametrize(
    ("make", "shape", "error", "words"),
    [
        (
            lambda: K.GroupNormalization(4),
            (None, 8, 6),
            ValueError,
            "channels must be a multiple of the number of groups",
        ),
        (lambda: K.GroupNormalization(), (None, 8, 6), ValueError, "6 channels cannot be split"),
        (lambda: K.GroupNormalization(0), None, ValueError, "groups must be a positive whole number"),
        (lambda: K.GroupNormalization(2.0), None, ValueError, "groups must be a positive whole number"),
        (lambda: K.GroupNormalization(2, axis=0), (2, 8, 6), ValueError, "axis 0 is the batch"),
        (lambda: K.InstanceNormalization(axis=-3), (2, 8, 6), ValueError, "axis 0 is the batch"),
        (lambda: K.GroupNormalization(2, axis=3), (2, 8, 6), ValueError, "axis 3 is out of range"),
        (lambda: K.LayerNormalization(axis=-4), (2, 8, 6), ValueError, "axis -4 is out of range"),
        (lambda: K.LayerNormalization(axis=[1, -2]), (2, 8, 6), ValueError, "twice"),
        (lambda: K.RMSNormalization(axis=[]), (2, 8, 6), ValueError, "axis is empty"),
        (lambda: K.LayerNormalization(axis="1"), None, TypeError, "axis must be a whole number"),
        (lambda: K.BatchNormalization(axis=1.5), None, TypeError, "axis must be a whole number"),
        (lambda: K.GroupNormalization(2), (None, 8, None), ValueError, "must be known"),
        (lambda: K.InstanceNormalization(), (None, 8, None), ValueError, "declare it in the input's shape"),
        (lambda: K.LayerNormalization(), (None, 8, None), ValueError, "declare it in the input's shape"),
        (lambda: K.BatchNormalization(), (None, 8, None), ValueError, "declare it in the input's shape"),
        (lambda: K.RMSNormalization(epsilon=-1.0), None, ValueError, "not negative"),
        (lambda: K.BatchNormalization(epsilon=float("nan")), None, ValueError, "finite"),
        (
            lambda: K.BatchNormalization(renorm=True, renorm_clipping={"max": 1}),
            None,
            ValueError,
            "renorm_clipping takes",
        ),
        (lambda: K.BatchNormalization(renorm=True, renorm_clipping={"rmin": 2, "rmax": 1}), None, ValueError, "rmax"),
        (lambda: K.BatchNormalization(renorm=True, renorm_clipping={"dmax": -1}), None, ValueError, "dmax"),
        (lambda: K.Normalization("n [...] x"), None, ValueError, "which axes .* carry gamma and beta"),
        (lambda: K.Normalization("n [... c"), None, ValueError, "never closed"),
        (lambda: K.Normalization("n [h w] c"), (2, 8, 6), ValueError, "4"),
        (lambda: K.Normalization("n [...] (g [c])", q=3), None, ValueError, "q"),
    ],
)
def test_bad_arguments_are_refused(make: Any, shape: Any, error: type[Exception], words: str) -> None:
    if shape is None:
        with pytest.raises(error, match=words):
            make()
        return
    with pytest.raises(error, match=words):
        make().build(shape)
    with pytest.raises(error, match=words):
        make()(keras.Input(batch_shape=shape))


@pytest.mark.parametrize("make", [K.GroupNormalization, K.LayerNormalization, K.RMSNormalization, K.BatchNormalization])
def test_bad_inputs_are_refused(make: Any) -> None:
    layer = make(groups=2) if make is K.GroupNormalization else make()
    layer(X)
    with pytest.raises(TypeError, match="cannot normalize an array of type int32"):
        layer(X.astype("int32"))
    with pytest.raises(TypeError, match="cannot normalize an array of type int32"):
        layer(keras.Input(SHAPE[1:], dtype="int32"))
    with pytest.raises(ValueError, match=r"built with parameters of shape \(6,\).*needs \(4,\)"):
        layer(X[..., :4])
    for mask in (np.ones((4, 7, 6, 1), bool), np.ones((4, 8, 6, 6, 1), bool), np.ones((3,), bool)):
        with pytest.raises(ValueError, match="does not broadcast"):
            layer(X, mask=mask)


@pytest.mark.parametrize(
    ("layer", "x", "call"),
    [
        (K.GroupNormalization(6), X[:, 0, 0], {}),
        (K.LayerNormalization(), X[..., :1], {}),
        (K.BatchNormalization(), X[:1, 0, 0], {"training": True}),
    ],
)
def test_a_statistic_over_one_element_warns_once(layer: Any, x: np.ndarray, call: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="over one element"):
        y = layer(x, **call)
    assert np.array_equal(numpy(y), np.zeros(x.shape))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        layer(x, **call)


def test_inference_over_one_element_is_no_reason_to_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        K.BatchNormalization()(X[:1, 0, 0])
        K.RMSNormalization()(X[..., :1])


def test_groups_of_an_old_instance_normalization() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        old, new = K.InstanceNormalization(groups=6), K.InstanceNormalization()
        assert np.array_equal(numpy(old(X)), numpy(new(X)))
    with pytest.warns(UserWarning, match="groups=3 is ignored"):
        assert np.array_equal(numpy(K.InstanceNormalization(groups=3)(X)), numpy(new(X)))


def test_a_sentence_without_parameters() -> None:
    layer = K.Normalization("n [h] w x", center=False, scale=False)
    layer(X)
    assert layer.weights == [] == K.Normalization("n [h] w x", affine="").weights
    assert K.Normalization("n [h] w c", affine=("h", "w")).get_config()["affine"] == "h w"


def test_an_empty_batch_gives_an_empty_result() -> None:
    for make in LAYERS.values():
        assert tuple(make()(X[:0]).shape) == (0, *SHAPE[1:])
