"""Weight and spectral normalization, on whichever backend KERAS_BACKEND names: against torch's parametrizations."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrizations

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
keras = pytest.importorskip("keras")

from test_keras_layers import assert_close, differentiate, normal, numpy  # noqa: E402

import anynorm.keras as K  # noqa: E402, N812

pytestmark = pytest.mark.usefixtures("quick_compilation")
L = keras.layers
# A Keras layer, torch's of the same arithmetic, an input, and the axes of torch's kernel as Keras orders them.
LAYERS = {
    "dense": (lambda: L.Dense(4), lambda: torch.nn.Linear(5, 4), (3, 5), (1, 0)),
    "convolution": (lambda: L.Conv2D(4, 3), lambda: torch.nn.Conv2d(5, 4, 3), (2, 6, 7, 5), (2, 3, 1, 0)),
    "transposed": (
        lambda: L.Conv2DTranspose(4, 3), lambda: torch.nn.ConvTranspose2d(5, 4, 3), (2, 6, 7, 5), (2, 3, 1, 0)
    ),
    "depthwise": (
        lambda: L.DepthwiseConv2D(3, depth_multiplier=2), lambda: torch.nn.Conv2d(5, 10, 3, groups=5), (2, 6, 7, 5),
        None,
    ),
    "embedding": (lambda: L.Embedding(7, 4), None, (3, 5), None),
}  # fmt: skip
TORCH = {name: layer for name, layer in LAYERS.items() if layer[1] is not None}
WRAPPERS = {
    "weight": lambda layer, **more: K.WeightNormalization(layer, data_init=False, **more),
    "spectral": lambda layer, **more: K.SpectralNormalization(layer, **more),
}
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def to_keras(kernel: np.ndarray, name: str) -> np.ndarray:
    axes = LAYERS[name][3]
    if name == "transposed":
        return kernel.transpose(2, 3, 1, 0)  # torch's lies (in, out, ...)
    if axes is not None:
        return kernel.transpose(axes)
    return kernel.reshape(5, 2, 3, 3).transpose(2, 3, 0, 1)


def torch_input(x: np.ndarray, name: str) -> torch.Tensor:
    t = torch.tensor(x)
    return (t if name == "dense" else t.movedim(-1, 1)).requires_grad_()


def torch_output(y: torch.Tensor, name: str) -> np.ndarray:
    return (y if name == "dense" else y.movedim(1, -1)).detach().numpy()


def run_torch(layer: Any, x: np.ndarray, dy: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    given = torch_input(x, name)
    y = layer(given)
    upstream = torch.tensor(dy) if name == "dense" else torch.tensor(dy).movedim(-1, 1)
    y.backward(upstream)
    gradient = given.grad if name == "dense" else given.grad.movedim(1, -1)
    return torch_output(y, name), gradient.numpy()


@pytest.mark.parametrize("name", TORCH)
def test_weight_normalization_is_that_of_torch(name: str) -> None:
    make, peer, shape, _ = LAYERS[name]
    torch.manual_seed(1)
    layer, x = K.WeightNormalization(make(), data_init=False), normal(shape)
    theirs = parametrizations.weight_norm(peer(), dim=1 if name == "transposed" else 0)
    g, v = theirs.parametrizations.weight.original0, theirs.parametrizations.weight.original1
    with torch.no_grad():
        g.mul_(torch.rand_like(g) + 0.5)
    layer.build(shape)
    kernel = layer.layer.kernel
    kernel.assign(to_keras(v.detach().numpy(), name))
    layer.g.assign(g.detach().numpy().reshape(layer.g.shape))
    layer.layer.bias.assign(theirs.bias.detach().numpy())
    dy = normal(tuple(layer(x).shape), seed=1)
    y, dx, dw = differentiate(layer, x, dy)
    wanted, dx_wanted = run_torch(theirs, x, dy, name)
    assert_close(y, wanted, 1e-5)
    assert_close(dx, dx_wanted, 1e-5)
    gradients = dict(zip([w.name for w in layer.trainable_variables], dw, strict=True))
    assert_close(gradients["g"].ravel(), g.grad.numpy().ravel(), 1e-5)
    assert_close(gradients["kernel"], to_keras(v.grad.numpy(), name), 1e-5)
    assert_close(gradients["bias"], theirs.bias.grad.numpy(), 1e-5)


@pytest.mark.parametrize("name", TORCH)
def test_spectral_normalization_is_that_of_torch(name: str) -> None:
    make, peer, shape, _ = LAYERS[name]
    torch.manual_seed(1)
    layer, x = K.SpectralNormalization(make()), normal(shape)
    theirs = parametrizations.spectral_norm(peer(), dim=1 if name == "transposed" else 0)
    parametrization = theirs.parametrizations.weight[0]
    kernel = theirs.parametrizations.weight.original
    with torch.no_grad():
        parametrization._v.copy_(torch.nn.functional.normalize(torch.mv(
            kernel.transpose(0, 1).flatten(1).t() if name == "transposed" else kernel.flatten(1).t(), parametrization._u
        ), dim=0))  # fmt: skip
    layer.build(shape)
    layer.layer.kernel.assign(to_keras(kernel.detach().numpy(), name))
    layer.layer.bias.assign(theirs.bias.detach().numpy())
    layer.vectors[0].assign(parametrization._u.numpy().reshape(1, -1))
    dy = normal(tuple(layer(x).shape), seed=1)
    y, dx, dw = differentiate(layer, x, dy, training=True)
    wanted, dx_wanted = run_torch(theirs, x, dy, name)
    assert_close(y, wanted, 1e-5)
    assert_close(dx, dx_wanted, 1e-5)
    gradients = dict(zip([w.name for w in layer.trainable_variables], dw, strict=True))
    assert_close(gradients["kernel"], to_keras(kernel.grad.numpy(), name), 1e-5)
    # Once more from the same start, which JAX's gradient has left and torch's has not; then neither moves.
    start = parametrization._u.numpy().reshape(1, -1)
    layer.vectors[0].assign(start)
    layer(x, training=True)
    theirs.train()(torch_input(x, name))
    theirs.eval()
    assert_close(np.abs(numpy(layer.vectors[0])).ravel(), np.abs(parametrization._u.numpy()), 1e-5)
    assert_close(numpy(layer(x)), torch_output(theirs(torch_input(x, name)), name), 1e-5)


def test_sigma_after_a_step_is_that_of_the_new_kernel() -> None:
    """torch keeps both singular vectors of the old kernel, so that its sigma is no norm of the new one's image."""
    x = normal((3, 5))
    layer = K.SpectralNormalization(L.Dense(4))
    layer(x, training=True)
    layer.layer.kernel.assign(numpy(layer.layer.kernel) + 0.3 * normal((5, 4), seed=2))
    kernel, u = (numpy(w).astype("float64") for w in (layer.layer.kernel, layer.vectors[0]))
    assert_close(numpy(layer(x)), x @ kernel / np.linalg.norm(kernel @ u[0]), 1e-5)
    assert np.linalg.norm(kernel @ u[0]) <= np.linalg.norm(kernel, 2) * (1 + 1e-6)


def sigma(kernel: np.ndarray, axis: int) -> float:
    matrix = np.moveaxis(kernel, axis, -1).reshape(-1, kernel.shape[axis])
    return float(np.linalg.norm(matrix.astype("float64"), 2))


@pytest.mark.parametrize(("name", "axis"), [("dense", -1), ("convolution", -1), ("transposed", -2), ("embedding", -1)])
def test_the_largest_singular_value_becomes_one(name: str, axis: int) -> None:
    make, _, shape, _ = LAYERS[name]
    # How fast the iterations converge is a matter of the kernel.
    keras.utils.set_random_seed(0)
    layer = K.SpectralNormalization(make(), power_iterations=200)
    x = np.random.default_rng(0).integers(0, 7, shape) if name == "embedding" else normal(shape)
    layer(x, training=True)
    inner = layer.remove()
    kernel = numpy(inner.embeddings if name == "embedding" else inner.kernel)
    assert abs(sigma(kernel, axis) - 1) < 1e-4


@every_wrapper
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_the_size_of_the_kernel_does_not_matter(wrap: Any, scale: float) -> None:
    x = normal((3, 5))
    layer, small = wrap(L.Dense(4)), wrap(L.Dense(4))
    small(x)
    kernel = numpy(small.layer.kernel)
    layer.build(x.shape)
    layer.layer.kernel.assign(kernel * np.float32(scale))
    if isinstance(layer, K.WeightNormalization):
        layer.g.assign(small.g)
    else:
        layer.vectors[0].assign(small.vectors[0])
    assert_close(numpy(layer(x)), numpy(small(x)), 1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_lengths_are_those_of_kernels_of_any_size(scale: float) -> None:
    constant = keras.initializers.Constant(scale)
    layer = K.WeightNormalization(L.Conv2DTranspose(4, 3, kernel_initializer=constant), data_init=False)
    x = normal((2, 5, 6, 7))
    plain = L.Conv2DTranspose(4, 3, kernel_initializer=constant)
    assert_close(numpy(layer(x)), numpy(plain(x)), 1e-5)
    assert_close(numpy(layer.g), np.full(4, scale * np.sqrt(7 * 9), "float32"), 1e-5)


@every_wrapper
def test_a_kernel_of_zeros_is_safe(wrap: Any) -> None:
    layer, x = wrap(L.Dense(4, kernel_initializer="zeros")), normal((3, 5))
    _, dx, dw = differentiate(layer, x, normal((3, 4), seed=1), training=True)
    assert np.array_equal(numpy(layer(x, training=True)), np.zeros((3, 4)))
    assert all(np.isfinite(d).all() for d in (dx, *dw))
    if isinstance(layer, K.SpectralNormalization):
        assert np.abs(numpy(layer.vectors[0])).max() > 0, "the vector must not be lost"


@every_wrapper
@pytest.mark.parametrize(
    "make", [lambda: L.SeparableConv2D(6, 3), lambda: L.EinsumDense("...ab,bcd->...acd", (8, 2, 3))]
)
def test_other_layers_have_their_axes_too(wrap: Any, make: Any) -> None:
    layer = wrap(make())
    layer.build((2, 6, 8, 7))
    inner = layer.layer
    shapes = [tuple(w.shape) for w in (getattr(layer, "lengths", None) or layer.vectors)]
    if isinstance(inner, L.EinsumDense):
        assert shapes in ([(2, 3)], [(1, 6)])
    else:
        assert shapes in ([(7, 1), (6,)], [(1, 7), (1, 6)])


def test_recurrent_kernels() -> None:
    x = normal((2, 5, 3))
    layer = K.SpectralNormalization(L.SimpleRNN(4, return_sequences=True))
    wrapped = numpy(layer(x))
    inner = layer.remove()
    assert_close(numpy(inner(x)), wrapped, 1e-6)
    assert abs(sigma(numpy(inner.cell.recurrent_kernel), -1) - 1) < 0.05


def test_wrapping_changes_nothing_and_remove_goes_back() -> None:
    inner, x = L.Conv2D(4, 3), normal((2, 6, 7, 5))
    before = numpy(inner(x))
    layer = K.WeightNormalization(inner, data_init=False)
    assert_close(numpy(layer(x)), before, 1e-6)
    layer.g.assign(2 * numpy(layer.g))
    assert layer.remove() is inner
    assert_close(numpy(inner(x)), 2 * before, 1e-6)


@pytest.mark.parametrize("name", ["dense", "convolution", "transposed", "depthwise"])
def test_data_set_the_outputs_to_mean_0_and_variance_1(name: str) -> None:
    make, _, shape, _ = LAYERS[name]
    inner = make()
    inner.activation = keras.activations.relu
    layer, x = K.WeightNormalization(inner), 3 * normal((64, *shape[1:])) + 1
    layer(x)
    assert sorted(w.name for w in layer.weights) == ["bias", "g", "initialized", "kernel"]
    assert sum(w.shape == layer.layer.kernel.shape for w in layer.weights) == 1, "no copy of the kernel"
    assert inner.activation is keras.activations.relu
    inner.activation = keras.activations.linear
    y = numpy(layer(x)).reshape(-1, layer(x).shape[-1])
    assert np.abs(y.mean(0)).max() < 1e-4
    assert np.abs(y.std(0) - 1).max() < 1e-3
    again = numpy(layer(10 * x))
    assert np.abs(again).max() > 5, "only the first batch counts"


@pytest.mark.parametrize("x", [normal((1, 5)), np.repeat(normal((1, 5)) * 100, 7, 0), np.zeros((3, 5), "float32")])
def test_a_first_batch_without_variance_waits_for_the_next(x: Any) -> None:
    layer, other = K.WeightNormalization(L.Dense(4)), normal((64, 5))
    layer.build(x.shape)
    before = [numpy(w) for w in layer.weights]
    with pytest.warns(UserWarning, match="4 of 4 outputs have the same value everywhere.*by a later batch"):
        layer(x)
    assert all(np.array_equal(numpy(w), b) for w, b in zip(layer.weights, before, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        y = numpy(layer(other * 1e-6))
    assert np.abs(y.std(0) - 1).max() < 1e-3, "however small the input is"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        K.WeightNormalization(L.Dense(4))(normal((2, 5)))
        K.WeightNormalization(L.Conv1D(4, 2))(normal((1, 5, 3)))


def test_an_output_without_variance_stays_as_it_is() -> None:
    x = normal((8, 6, 6, 3))
    x[..., 1] = 0.25
    layer = K.WeightNormalization(L.DepthwiseConv2D(3, bias_initializer="ones"))
    layer.build(x.shape)
    g = numpy(layer.g)
    with pytest.warns(UserWarning, match="1 of 3 outputs"):
        y = numpy(layer(x))
    assert numpy(layer.g).ravel()[1] == g.ravel()[1]
    assert numpy(layer.layer.bias)[1] == 1
    assert np.abs(y[..., [0, 2]].std((0, 1, 2)) - 1).max() < 1e-3


def test_a_first_batch_of_fit_without_variance_waits_too() -> None:
    if keras.backend.backend() == "jax":
        pytest.skip("JAX is to be initialized before fit")
    model = keras.Sequential([keras.Input((5,)), K.WeightNormalization(L.Dense(4))])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    before = [numpy(w) for w in model.weights]
    model.fit(np.ones((8, 5), "float32"), normal((8, 4)), verbose=0)
    assert all(np.array_equal(numpy(w), b) for w, b in zip(model.weights, before, strict=True))
    model.fit(normal((8, 5)), normal((8, 4)), verbose=0)
    assert bool(numpy(model.layers[0].initialized))


def test_the_first_batch_of_fit_initializes_too() -> None:
    def make() -> Any:
        model = keras.Sequential([keras.Input((5,)), K.WeightNormalization(L.Dense(4, bias_initializer="ones"))])
        model.compile(keras.optimizers.SGD(0.0), "mse")
        return model

    x, wanted, model = 3 * normal((8, 5)) + 1, make().layers[0], make()
    model.layers[0].layer.kernel.assign(wanted.layer.kernel)
    wanted(x)
    if keras.backend.backend() == "jax":
        with pytest.raises(ValueError, match="call it once on a batch before fit"):
            model.fit(x, normal((8, 4)), verbose=0)
        model = make()
        model.set_weights(wanted.get_weights())
    for _ in range(2):
        model.fit(x, normal((8, 4)), verbose=0)
        for w, expected in zip(model.weights, wanted.weights, strict=True):
            assert_close(numpy(w).astype("float32"), numpy(expected).astype("float32"), 1e-5)
        x = 5 * x  # only the first batch counts


@every_wrapper
def test_models_train_and_survive_files(wrap: Any, tmp_path: Any) -> None:
    x = normal((8, 6, 5))
    model = keras.Sequential([keras.Input((6, 5)), wrap(L.Conv1D(4, 3, activation="relu"))])
    model.compile("sgd", "mse")
    before = [numpy(w) for w in model.weights]
    model.fit(x, normal((8, 4, 4)), epochs=2, verbose=0)
    changed = [np.abs(numpy(w) - b).max() > 0 for w, b in zip(model.weights, before, strict=True)]
    assert all(changed)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert np.array_equal(numpy(loaded(x)), numpy(model(x)))
    for actual, wanted in zip(loaded.layers, model.layers, strict=True):
        assert {**actual.get_config(), "layer": 0} == {**wanted.get_config(), "layer": 0}


@every_wrapper
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(wrap: Any, policy: str) -> None:
    x = normal((3, 5))
    full = wrap(L.Dense(4))
    wanted = numpy(full(x))
    layer = wrap(L.Dense(4, dtype=policy), dtype=policy)
    layer.build(x.shape)
    layer.set_weights(full.get_weights())
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_")
    assert all(w.dtype == "float32" for w in layer.trainable_weights)
    assert_close(numpy(y).astype("float32"), wanted, 0.03)


def test_a_converted_kernel_is_used_as_it_is_until_training() -> None:
    x = normal((3, 5))
    # One singular value far above the others, to which the iteration comes fast.
    start = keras.initializers.RandomUniform(0.5, 1.5, seed=1)
    layer = K.SpectralNormalization(L.Dense(4, kernel_initializer=start), converted=True)
    layer(x)
    kernel = numpy(layer.layer.kernel)
    assert_close(numpy(layer(x)), x @ kernel, 1e-6)
    layer(x, training=True)
    assert_close(numpy(layer(x)), x @ kernel / sigma(kernel, -1), 1e-3)
    assert np.array_equal(numpy(layer.layer.kernel), kernel), "the stored kernel stays"


def test_masks_pass_through() -> None:
    x = normal((2, 5, 3))
    x[0, 3:] = 0.0
    inner = L.SimpleRNN(4, return_sequences=True)
    inputs = keras.Input((5, 3))
    inside = L.Masking()(inputs)
    model = keras.Model(inputs, K.WeightNormalization(inner, data_init=False)(inside))
    y = numpy(model(x))
    assert np.array_equal(y[0, 3], y[0, 2]), "a masked step repeats the last"


def test_bad_arguments_are_refused() -> None:
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="power_iterations must be a positive whole number"):
            K.SpectralNormalization(L.Dense(4), power_iterations=wrong)
    for wrap in WRAPPERS.values():
        with pytest.raises(ValueError, match="has no weight called kernel"):
            wrap(L.BatchNormalization()).build((2, 5))
        with pytest.raises(ValueError, match="stateful"):
            wrap(L.LSTM(4, stateful=True)).build((2, 5, 3))
