"""Batch normalization's state, step by step beside Keras's own layer."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
keras = pytest.importorskip("keras")

import anynorm.keras as K  # noqa: E402, N812

BACKEND = keras.backend.backend()


def numpy(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def pair(**arguments: Any) -> list[Any]:
    return [module.BatchNormalization(**arguments) for module in (K, keras.layers)]


def assert_alike(ours: Any, theirs: Any, x: np.ndarray, **call: Any) -> None:
    np.testing.assert_allclose(numpy(ours(x, **call)), numpy(theirs(x, **call)), rtol=1e-5, atol=1e-5)
    for mine, its in zip(ours.weights, theirs.weights, strict=True):
        assert mine.name == its.name
        np.testing.assert_allclose(numpy(mine), numpy(its), rtol=1e-5, atol=1e-5)


CLIPPING = {"rmin": 0.4, "rmax": 1.1, "dmax": 0.3}


@pytest.mark.parametrize(
    "arguments",
    [
        {"momentum": 0.6},
        {"axis": 1, "epsilon": 0.1, "momentum": 0.0},
        {"renorm": True, "momentum": 0.6, "renorm_momentum": 0.8},
        {"renorm": True, "renorm_clipping": CLIPPING, "renorm_momentum": 0.5, "gamma_initializer": "random_uniform"},
        {"renorm": True, "renorm_clipping": {"rmax": 2.0}, "scale": False},
        {"renorm": True, "center": False, "moving_mean_initializer": keras.initializers.RandomNormal(seed=1)},
        {"renorm": True, "scale": False, "center": False, "dtype": "mixed_bfloat16"},
    ],
)
def test_moving_statistics_move_as_in_keras(arguments: dict[str, Any]) -> None:
    keras.utils.set_random_seed(0)
    ours, theirs = pair(**arguments)
    random = np.random.default_rng(0)
    ours.build((None, 6, 5, 6))
    theirs.build((None, 6, 5, 6))
    for mine, its in zip(ours.weights, theirs.weights, strict=True):
        its.assign(mine)
    for step in range(5):
        x = (3 * random.normal(size=(8, 6, 5, 6)) + step).astype("float32")
        call = {"training": step != 3}
        if "dtype" in arguments:
            ours(x, **call), theirs(x, **call)
            np.testing.assert_allclose(numpy(ours.moving_mean), numpy(theirs.moving_mean), atol=1e-2)
        else:
            assert_alike(ours, theirs, x, **call)


@pytest.mark.parametrize("channels", [1, 6])
def test_a_mask_means_what_it_means_in_keras(channels: int) -> None:
    if channels == 1 and BACKEND != "tensorflow":
        pytest.skip("Keras's own layer raises IndexError here")
    ours, theirs = pair(momentum=0.5)
    random = np.random.default_rng(0)
    for _ in range(2):
        x, mask = random.normal(size=(4, 7, channels)).astype("float32"), random.random((4, 7)) < 0.6
        assert_alike(ours, theirs, x, mask=mask, training=True)
    assert_alike(ours, theirs, x, mask=mask)


def test_one_channel_takes_a_mask() -> None:
    layer = K.BatchNormalization(momentum=0.0)
    x = np.array([[[1.0], [3.0], [99.0]]], "float32")
    layer(x, mask=np.array([[True, True, False]]), training=True)
    np.testing.assert_allclose([numpy(layer.moving_mean), numpy(layer.moving_variance)], [[2.0], [1.0]])


def test_a_frozen_layer_infers() -> None:
    layer, x = K.BatchNormalization(), np.random.default_rng(0).normal(2.0, 3.0, (8, 6)).astype("float32")
    layer.build(x.shape)
    layer.trainable = False
    before = layer.get_weights()
    np.testing.assert_allclose(numpy(layer(x, training=True)), x / np.sqrt(1.001), rtol=1e-6)
    assert all(np.array_equal(a, b) for a, b in zip(before, layer.get_weights(), strict=True))
    assert layer.trainable_variables == []


def test_training_is_keras_training() -> None:
    random = np.random.default_rng(0)
    x, target = random.normal(2.0, 3.0, (64, 6)).astype("float32"), random.normal(size=(64, 1)).astype("float32")
    weights = []
    for module in (K, keras.layers):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5), module.BatchNormalization(momentum=0.7)])
        model.add(keras.layers.Dense(1))
        model.compile("sgd", "mse")
        model.fit(x, target, batch_size=16, epochs=2, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for mine, its in zip(*weights, strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-5)


def test_float32_beyond_float16_in_mixed_precision() -> None:
    layer = K.BatchNormalization(dtype="mixed_float16", momentum=0.0)
    x = np.linspace(7e4, 9e4, 32, dtype="float32").reshape(16, 2)
    assert np.isfinite(numpy(layer(x, training=True))).all()
    np.testing.assert_allclose(numpy(layer.moving_mean), x.mean(0), rtol=1e-6)
    assert np.abs(numpy(layer(x))).max() < 2


REPLICAS = """
import numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, anynorm.keras as K
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
x = (np.random.default_rng(0).normal(size=(12, 5)) * 2 + OFFSET).astype("float32")
dy = np.random.default_rng(1).normal(size=(12, 5)).astype("float32")
parts = [slice(0, 8), slice(8, 12)]                     # of different sizes
mask = np.random.default_rng(2).random((12, 5)) < 0.7 if MASKED else None
arguments = {"momentum": 0.5, "renorm": RENORM}
with strategy.scope():
    shared = K.BatchNormalization(synchronized=True, **arguments)
    shared.build((None, 5))
def pick(values):
    if values is None:
        return None
    return strategy.experimental_distribute_values_from_function(
        lambda c: tf.constant(values[parts[c.replica_id_in_sync_group]]))
def step(x, dy, mask):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = shared(x, training=True, mask=mask)
    return y, tape.gradient(y, x, output_gradients=dy)
run = tf.function(lambda *args: strategy.run(step, args))
out = [[tf.concat(strategy.experimental_local_results(o), 0) for o in run(pick(x), pick(dy), pick(mask))]
       for _ in range(2)][-1]
alone = K.BatchNormalization(**arguments)
for _ in range(2):
    with tf.GradientTape() as tape:
        tape.watch(whole := tf.constant(x))
        y = alone(whole, training=True, mask=mask)
tolerance = 2e-6
np.testing.assert_allclose(out[0], y, atol=tolerance * max(1, np.abs(y).max()))
np.testing.assert_allclose(out[1], tape.gradient(y, whole, output_gradients=dy), atol=1e-5)
for a, b in zip(shared.non_trainable_variables, alone.non_trainable_variables):
    np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5)
"""


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has replicas")
@pytest.mark.parametrize(("offset", "renorm", "masked"), [(0.0, True, True), (1e6, False, False)])
def test_replicas_share_their_statistics(offset: float, renorm: bool, masked: bool) -> None:
    code = f"OFFSET, RENORM, MASKED = {offset}, {renorm}, {masked}\n{REPLICAS}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has replicas")
def test_one_replica_synchronizes_with_nobody() -> None:
    x = np.random.default_rng(0).normal(size=(8, 5)).astype("float32")
    assert np.array_equal(*(numpy(K.BatchNormalization(synchronized=s)(x, training=True)) for s in (True, False)))


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow has replicas")
def test_synchronized_needs_replicas() -> None:
    with pytest.raises(ValueError, match="synchronized=True needs a backend with replicas"):
        K.BatchNormalization(synchronized=True)
