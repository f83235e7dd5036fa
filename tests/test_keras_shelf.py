"""Filter response normalization, TLU and the recurrent cells: against float64, on whichever backend is there."""

from __future__ import annotations

import inspect
import os
from typing import Any

import numpy as np
import pytest
import torch

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
keras = pytest.importorskip("keras")

from test_keras_layers import assert_close, differentiate, normal, numpy  # noqa: E402

import anynorm.keras as K  # noqa: E402, N812
from anynorm.reference import Reference  # noqa: E402
from anynorm.torch.filter_response import TLU, FilterResponseNorm  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_compilation")
L = keras.layers
AFFINE = {
    "beta_initializer": keras.initializers.RandomUniform(-1, 1, seed=1),
    "gamma_initializer": keras.initializers.RandomUniform(0.5, 1.5, seed=2),
}
SHAPES = [
    ({}, (3, 5, 7, 4), "n [h w] c"),
    ({"axis": [1, 2]}, (3, 6, 6, 6), "n [h w] c"),
    ({"axis": [2, 3]}, (3, 6, 6, 6), "n c [h w]"),
    ({"axis": [-2]}, (3, 5, 7, 4), "n h [w] c"),
    ({"axis": 1}, (3, 9, 4), "n [t] c"),
    ({}, (2, 3, 5, 4, 3), "n [t h w] c"),
]


def filter_response(x: Any, layer: Any, pattern: str, mask: Any = None) -> Reference:
    """The reference for what the layer does with x."""
    eps = layer.epsilon
    if layer.learned_epsilon is not None:
        eps += abs(float(numpy(layer.learned_epsilon)[0]))
    gamma, beta = numpy(layer.gamma).ravel(), numpy(layer.beta).ravel()
    return Reference(x, pattern, gamma, beta, "c", eps, ("scale",), mask)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("arguments", "shape", "pattern"), SHAPES)
def test_filter_response_is_the_reference(arguments: Any, shape: Any, pattern: str, learned: bool) -> None:
    layer = K.FilterResponseNormalization(**arguments, **AFFINE, learned_epsilon=learned, epsilon=1e-2)
    layer.build(shape)
    if learned:
        layer.learned_epsilon.assign([-0.3])
    x, dy = 2 * normal(shape) + 1, normal(shape, seed=1)
    y, dx, dw = differentiate(layer, x, dy)
    wanted = filter_response(x, layer, pattern)
    dx_wanted, dgamma, dbeta = wanted.backward(dy)
    assert_close(y, wanted.y, 1e-6)
    assert_close(dx, dx_wanted, 1e-5)
    gradients = dict(zip([w.name for w in layer.trainable_variables], dw, strict=True))
    assert_close(gradients["gamma"].ravel(), dgamma, 1e-5)
    assert_close(gradients["beta"].ravel(), dbeta, 1e-5)
    if learned:
        spread = numpy(layer.gamma).reshape([n if n > 1 else 1 for n in layer.gamma.shape])
        per_element = dy.astype("float64") * x * spread * -0.5 * wanted.inverse**3
        # |eps| falls where eps rises, since it is negative.
        assert_close(gradients["learned_epsilon"], -per_element.sum().reshape(1), 1e-5)


@pytest.mark.parametrize("learned", [False, True])
def test_filter_response_at_the_ends_of_the_number_range(learned: bool) -> None:
    layer = K.FilterResponseNormalization(**AFFINE, learned_epsilon=learned)
    for factor in (1e30, 1e-30, 1.0):
        x = (normal((3, 5, 7, 4)) * factor).astype("float32")
        assert_close(numpy(layer(x)), filter_response(x, layer, "n [h w] c").y, 2e-6)
    assert np.isfinite(numpy(layer(np.zeros((3, 5, 7, 4), "float32")))).all()


@pytest.mark.parametrize("learned", [False, True])
def test_filter_response_with_masks_and_unknown_sizes(learned: bool) -> None:
    layer = K.FilterResponseNormalization(**AFFINE, learned_epsilon=learned)
    inputs = keras.Input((None, None, 4))
    model = keras.Model(inputs, layer(inputs))
    for shape in ((3, 5, 7, 4), (1, 9, 2, 4)):
        x = normal(shape)
        assert_close(numpy(model(x)), filter_response(x, layer, "n [h w] c").y, 1e-6)
    mask = np.random.default_rng(3).random(shape) < 0.7
    wanted = filter_response(x, layer, "n [h w] c", mask).y[mask]
    assert_close(numpy(layer(np.where(mask, x, np.float32(1e30)), mask=mask))[mask], wanted, 2e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy: str) -> None:
    x = 300 * normal((3, 5, 7, 4))
    dtype = policy.removeprefix("mixed_")
    for layer in (
        K.FilterResponseNormalization(dtype=policy),
        K.FilterResponseNormalization(learned_epsilon=True, dtype=policy),
    ):
        y = layer(x)
        assert keras.backend.standardize_dtype(y.dtype) == dtype
        assert all(w.dtype == "float32" for w in layer.weights)
        wanted = filter_response(x, layer, "n [h w] c").y
        assert_close(numpy(y).astype("float32"), wanted, 2e-3 if dtype == "float16" else 2e-2)
    for layer, shape in (
        (K.TLU(affine=True, dtype=policy), (3, 5, 7, 4)),
        (L.RNN(K.LayerNormLSTMCell(4, dtype=policy), dtype=policy), (3, 5, 7)),
        (L.RNN(K.LayerNormGRUCell(4, dtype=policy), dtype=policy), (3, 5, 7)),
    ):
        assert keras.backend.standardize_dtype(layer(normal(shape)).dtype) == dtype
        assert all(w.dtype == "float32" for w in layer.trainable_weights)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shared", [None, [1, 2]])
def test_tlu(affine: bool, shared: Any) -> None:
    shape = (3, 5, 7, 4)
    random = {f"{name}_initializer": keras.initializers.RandomNormal(seed=i) for i, name in enumerate(("tau", "alpha"))}
    layer = K.TLU(affine, **random, shared_axes=shared)
    x, dy = normal(shape), normal(shape, seed=1)
    y, dx, dw = differentiate(layer, x, dy)
    tau = numpy(layer.tau)
    assert tau.shape == ((1, 1, 4) if shared else shape[1:])
    alpha = numpy(layer.alpha) if affine else 0.0
    keeps = x >= alpha * x + tau
    assert_close(y, np.where(keeps, x, alpha * x + tau), 1e-6)
    assert_close(dx, np.where(keeps, dy, alpha * dy), 1e-6)
    summed = (0, 1, 2) if shared else 0
    assert_close(dw[0], np.where(keeps, 0, dy).sum(summed).reshape(tau.shape), 1e-5)
    if affine:
        assert_close(dw[1], np.where(keeps, 0, x * dy).sum(summed).reshape(tau.shape), 1e-5)


def norm(x: np.ndarray, layer: Any) -> np.ndarray:
    y: np.ndarray = Reference(x, "n [c]", numpy(layer.gamma), numpy(layer.beta), "c", layer.epsilon).y
    return y


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def random_cell(cell: Any, x: np.ndarray) -> list[np.ndarray]:
    cell.build((None, x.shape[-1]))
    rng = np.random.default_rng(2)
    for w in cell.weights:
        if w.dtype == "float32":
            w.assign(rng.normal(0.2, 0.7, w.shape))
    return [numpy(w).astype("float64") for w in (cell.kernel, cell.recurrent_kernel, cell.bias)]


@pytest.mark.parametrize("normalize_carry", [True, False])
def test_lstm_cell_is_the_paper_s_and_addons(normalize_carry: bool) -> None:
    x = normal((3, 6, 4))
    cell = K.LayerNormLSTMCell(5, normalize_carry=normalize_carry)
    kernel, recurrent, bias = random_cell(cell, x)
    h = c = np.zeros((3, 5))
    for t in range(x.shape[1]):
        z = norm(x[:, t] @ kernel, cell.kernel_norm) + norm(h @ recurrent, cell.recurrent_norm) + bias
        i, f, g, o = np.split(z, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        normalized = norm(c, cell.state_norm)
        h = sigmoid(o) * np.tanh(normalized)
        c = normalized if normalize_carry else c
    y, *states = L.RNN(cell, return_state=True)(x)
    assert_close(numpy(y), h, 1e-5)
    assert_close(numpy(states[1]), c, 1e-5)


def test_gru_cell_is_the_paper_s() -> None:
    x = normal((3, 6, 4))
    cell = K.LayerNormGRUCell(5)
    kernel, recurrent, bias = random_cell(cell, x)
    h = np.zeros((3, 5))
    for t in range(x.shape[1]):
        a, b = x[:, t] @ kernel, h @ recurrent
        z, r = np.split(norm(a[:, :10], cell.kernel_norm) + norm(b[:, :10], cell.recurrent_norm) + bias[:10], 2, axis=1)
        rest = sigmoid(r) * norm(b[:, 10:], cell.candidate_recurrent_norm)
        new = np.tanh(norm(a[:, 10:], cell.candidate_norm) + rest + bias[10:])
        h = sigmoid(z) * h + (1 - sigmoid(z)) * new
    assert_close(numpy(L.RNN(cell)(x)), h, 1e-5)


@pytest.mark.parametrize("make", [K.LayerNormLSTMCell, K.LayerNormGRUCell])
def test_cells_drop_out_train_and_survive_files(make: Any, tmp_path: Any) -> None:
    x = normal((4, 5, 3))
    cell = make(2, dropout=0.5, recurrent_dropout=0.3, norm_gamma_initializer="random_uniform", seed=1)
    model = keras.Sequential([keras.Input((5, 3)), L.RNN(cell, return_sequences=True)])
    assert np.array_equal(numpy(model(x)), numpy(model(x)))
    assert np.abs(numpy(model(x, training=True)) - numpy(model(x))).max() > 1e-3
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert np.array_equal(numpy(loaded(x)), numpy(model(x)))
    again = loaded.layers[-1].cell.get_config()
    assert again == cell.get_config()
    assert np.abs(numpy(cell.kernel_norm.gamma) - numpy(cell.recurrent_norm.gamma)).max() > 0, "drawn apart"


@pytest.mark.parametrize(
    "make",
    [
        lambda: K.FilterResponseNormalization(axis=[2, 1], learned_epsilon=True, learned_epsilon_constraint="non_neg"),
        lambda: K.TLU(affine=True, shared_axes=(1, 2), tau_regularizer="l2"),
        lambda: K.ContribInstanceNormalization(axis=3, center=False),
    ],
)
def test_configurations_go_both_ways(make: Any) -> None:
    layer = make()
    before = layer.get_config()
    layer(normal((2, 5, 6, 4)))
    assert layer.get_config() == before
    assert type(layer).from_config(before).get_config() == before


def test_contrib_instance_normalization_adds_epsilon_to_the_deviation() -> None:
    x, dy = normal((3, 5, 7, 4)), normal((3, 5, 7, 4), seed=1)
    for axis, axes in ((3, (1, 2)), (None, (1, 2, 3))):
        layer = K.ContribInstanceNormalization(axis, epsilon=0.1, **AFFINE)
        y, dx, _ = differentiate(layer, x, dy)
        std = x.astype("float64").std(axes, keepdims=True)
        wanted = (x - x.mean(axes, keepdims=True, dtype="float64")) / (std + 0.1)
        assert_close(y, wanted * numpy(layer.gamma) + numpy(layer.beta), 1e-6)
        # Along its own direction a sample's result moves only as epsilon lets it.
        step = 1e-3 * (x - x.mean(axes, keepdims=True))
        moved = wanted * (1.001 * (std + 0.1) / (1.001 * std + 0.1)) - wanted
        assert abs((dx * step).sum() - (dy * moved * numpy(layer.gamma)).sum()) < 1e-4
    assert np.isfinite(differentiate(layer, np.ones_like(x), dy)[1]).all()


@pytest.mark.parametrize(
    ("make", "shape", "words"),
    [
        (lambda: K.FilterResponseNormalization(axis=[0, 1]), (2, 5, 6, 4), "axis 0 is the batch"),
        (lambda: K.FilterResponseNormalization(axis=[1, 2, 3]), (2, 5, 6, 4), "leaves no channels"),
        (lambda: K.FilterResponseNormalization(axis=[1, -3]), (2, 5, 6, 4), "twice"),
        (lambda: K.FilterResponseNormalization(), (2, 4), "no spatial axes"),
        (lambda: K.FilterResponseNormalization(), (2, 5, 6, None), "declare it in the input's shape"),
        (lambda: K.TLU(), (None, None, 6, 4), "name it in shared_axes"),
        (lambda: K.TLU(shared_axes=[0]), (None, 5, 6, 4), "axis 0 is the batch"),
    ],
)
def test_bad_arguments_are_refused(make: Any, shape: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make().build(shape)
    with pytest.raises(ValueError, match="leave reset_after out"):
        K.LayerNormGRUCell(4, reset_after=True)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell"])
def test_cells_take_keras_s_arguments_in_keras_s_order(name: str) -> None:
    theirs, ours = (list(inspect.signature(c).parameters) for c in (getattr(L, name), getattr(K, f"LayerNorm{name}")))
    # After these Addons, which has the LSTM cell alone, goes on with the norms' arguments.
    theirs = (
        theirs[: theirs.index("recurrent_dropout") + 1] if name == "LSTMCell" else theirs[: theirs.index("seed") + 1]
    )
    assert ours[: len(theirs)] == theirs
    cell = getattr(K, f"LayerNorm{name}")(4, "relu", "tanh", False, "ones", "zeros")
    assert (cell.activation, cell.use_bias) == (keras.activations.relu, False)
    assert isinstance(cell.kernel_initializer, keras.initializers.Ones)
    assert isinstance(cell.recurrent_initializer, keras.initializers.Zeros)


@pytest.mark.parametrize("learned", [False, True])
def test_torch_s_filter_response_norm(learned: bool) -> None:
    layer = FilterResponseNorm(4, eps=1e-2, learned_eps=learned)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.rand_like(p))
    for factor in (1.0, 1e30):
        x, dy = normal((3, 4, 5, 7)) * np.float32(factor), normal((3, 4, 5, 7), seed=1)
        given = torch.tensor(x, requires_grad=True)
        y = layer(given)
        (dx,) = torch.autograd.grad(y, given, torch.tensor(dy))
        eps = 1e-2 + (float(layer.learned_eps) if learned else 0.0)
        weights = (layer.weight.detach().numpy(), layer.bias.detach().numpy())
        wanted = Reference(x, "n c [h w]", *weights, "c", eps, ("scale",))
        assert_close(y.detach().numpy(), wanted.y, 2e-6)
        assert_close(dx.numpy() * factor, wanted.backward(dy)[0] * factor, 1e-5)
    again = FilterResponseNorm(4, learned_eps=learned)
    again.load_state_dict(layer.state_dict())
    assert layer(torch.ones(2, 4, 3, dtype=torch.float16)).dtype == torch.float16
    for wrong in (torch.ones(2, 4), torch.ones(2, 5, 3)):
        with pytest.raises(ValueError, match="with spatial dimensions is needed"):
            layer(wrong)


def test_torch_s_tlu() -> None:
    layer = TLU(4, init=-0.5)
    x = torch.tensor(normal((3, 4, 5)))
    assert torch.equal(layer(x), x.clamp_min(-0.5))
    layer(x).sum().backward()
    assert torch.equal(layer.tau.grad, (x < -0.5).sum((0, 2)).float())


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX has float64 only where it is told so at the start")
def test_tlu_keeps_float64() -> None:
    x = normal((3, 4)).astype("float64") * (1 + 1e-12)
    y = K.TLU(affine=True, alpha_initializer="zeros", dtype="float64")(x)
    assert np.array_equal(numpy(y), np.maximum(x, 0))
