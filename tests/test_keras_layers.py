"""The Keras layers' numbers, on whichever backend KERAS_BACKEND names: against the float64 oracle and against Keras."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
keras = pytest.importorskip("keras")

import anynorm.keras as K  # noqa: E402, N812
from anynorm.reference import Reference  # noqa: E402

BACKEND = keras.backend.backend()
AFFINE = {
    "beta_initializer": keras.initializers.RandomUniform(-1, 1, seed=1),
    "gamma_initializer": keras.initializers.RandomUniform(0.5, 1.5, seed=2),
}


@dataclass(frozen=True)
class Case:
    kind: str
    arguments: dict[str, Any]
    shape: tuple[int, ...]
    pattern: str
    affine: str
    sizes: dict[str, int] = field(default_factory=dict)
    remove: tuple[str, ...] = ("mean", "scale")
    call: dict[str, Any] = field(default_factory=dict)

    def layer(self, **more: Any) -> Any:
        random = {} if self.kind == "RMSNormalization" else AFFINE
        return getattr(K, self.kind)(**{**random, **self.arguments, **more})

    def reference(self, layer: Any, x: np.ndarray, **more: Any) -> Reference:
        values = {w.name: numpy(w) for w in layer.weights}
        return Reference(
            x, self.pattern, values.get("gamma", values.get("scale")), values.get("beta"), self.affine, layer.epsilon,
            self.remove, **more, **self.sizes,
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.kind}-{self.pattern}"


def case(kind: str, arguments: dict[str, Any], shape: Any, pattern: str, affine: str, **more: Any) -> Any:
    made = Case(f"{kind}Normalization" if kind else "Normalization", arguments, shape, pattern, affine, **more)
    return pytest.param(made, id=f"{kind or 'Sentence'} {arguments} {len(shape)}d")


CASES = [
    case("Group", {"groups": 3}, (4, 5, 7, 6), "n [h w] (g [c])", "g c", sizes={"g": 3}),
    case("Group", {"groups": 3}, (2, 3, 5, 7, 6), "n [t h w] (g [c])", "g c", sizes={"g": 3}),
    case("Group", {"groups": 3}, (5, 6), "n (g [c])", "g c", sizes={"g": 3}),
    case("Group", {"groups": 2, "axis": 1}, (4, 6, 5, 7), "n (g [c]) [h w]", "g c", sizes={"g": 2}),
    case("Group", {"groups": 2, "axis": -2}, (4, 6, 6, 6), "n [h] (g [c]) [w]", "g c", sizes={"g": 2}),
    case("Group", {"groups": 2, "axis": [1, 2]}, (3, 6, 5, 7), "n (g [a]) [b] [c]", "g a b", sizes={"g": 2}),
    case("Group", {"groups": 1, "center": False}, (4, 5, 7, 6), "n [h w c]", "c"),
    case("Group", {"groups": -1, "scale": False}, (4, 5, 7, 6), "n [h w] c", "c"),
    case("Instance", {}, (4, 5, 7, 6), "n [h w] c", "c"),
    case("Instance", {"axis": 3}, (4, 5, 7, 6), "n [h w] c", "c"),
    case("Instance", {"axis": -2}, (3, 6, 6, 6), "n [h] c [w]", "c"),
    case("Instance", {"axis": -3}, (3, 6, 6, 6), "n c [h w]", "c"),
    case("Layer", {}, (4, 5, 6), "n t [c]", "c"),
    case("Layer", {"axis": 1}, (5, 5, 5, 5), "n [h] w c", "h"),
    case("Layer", {"axis": [1, 2, 3]}, (4, 5, 7, 6), "n [h w c]", "h w c"),
    case("Layer", {"axis": (-2, 1)}, (4, 5, 5, 5), "n [h w] c", "h w"),
    case("RMS", {}, (4, 5, 6), "n t [c]", "c", remove=("scale",)),
    case("RMS", {"axis": 1}, (5, 5, 5, 5), "n [h] w c", "h", remove=("scale",)),
    case("RMS", {"axis": [-1, 1]}, (4, 5, 7, 6), "n [h] w [c]", "h c", remove=("scale",)),
    case("Batch", {}, (4, 5, 7, 6), "[n h w] c", "c", call={"training": True}),
    case("Batch", {"axis": 1}, (6, 6, 6, 6), "[n] c [h w]", "c", call={"training": True}),
    case("Batch", {"axis": [1, 3]}, (9, 3, 7, 6), "[n] a [h] c", "a c", call={"training": True}),
    case("", {"pattern": "n [...] (g [c])", "g": 3}, (4, 5, 7, 6), "n [...] (g [c])", "g c", sizes={"g": 3}),
    case(
        "", {"pattern": "n [h] w c", "affine": "h w", "remove": "mean"}, (4, 5, 5, 5), "n [h] w c", "h w",
        remove=("mean",),
    ),
]  # fmt: skip


def cases_where(holds: Any) -> Any:
    return pytest.mark.parametrize("case", [c for c in CASES if holds(c.values[0])])


every_case = cases_where(lambda case: True)
one_case_a_class = pytest.mark.parametrize("case", list({c.values[0].kind: c for c in CASES}.values()))


def numpy(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def differentiate(layer: Any, x: np.ndarray, dy: np.ndarray, **call: Any) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """y, dx and the gradients of the layer's weights, of sum(y * dy)."""
    if not layer.built:
        layer.build(x.shape)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(given := tf.constant(x))
            y = layer(given, **call)
        dx, *dw = tape.gradient(y, [given, *(w.value for w in layer.trainable_variables)], output_gradients=dy)
    elif BACKEND == "jax":
        import jax

        rest = [w.value for w in layer.non_trainable_variables]

        @jax.jit
        def both(weights: Any, x: Any, dy: Any) -> Any:
            y, pull = jax.vjp(lambda weights, x: layer.stateless_call(weights, rest, x, **call)[0], weights, x)
            return y, *pull(dy)

        y, dw, dx = both([w.value for w in layer.trainable_variables], x, dy)
    else:
        import torch

        given = torch.tensor(x, requires_grad=True)
        y = layer(given, **call)
        dx, *dw = torch.autograd.grad(y, [given, *(w.value for w in layer.trainable_variables)], torch.tensor(dy))
    return numpy(y), numpy(dx), [numpy(d) for d in dw]


def assert_close(actual: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    """Relative to the largest entry, or to 1."""
    assert actual.shape == wanted.shape
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance * max(1.0, np.abs(wanted).max(initial=0)))


@every_case
def test_output_and_gradients_are_the_references(case: Case) -> None:
    x, dy = 2 * normal(case.shape) + 1, normal(case.shape, seed=1)
    layer = case.layer()
    y, dx, dw = differentiate(layer, x, dy, **case.call)
    wanted = case.reference(layer, x)
    dx_wanted, *small = wanted.backward(dy)
    assert_close(y, wanted.y, 1e-6)
    assert_close(dx, dx_wanted, 1e-5)
    by_name = {"gamma": small[0], "scale": small[0], "beta": small[1]}
    for weight, gradient in zip(layer.trainable_variables, dw, strict=True):
        assert_close(gradient.ravel(), by_name[weight.name], 1e-5)


@cases_where(lambda case: len(case.remove) == 2)
def test_a_large_mean_costs_no_accuracy(case: Case) -> None:
    layer = case.layer()
    for offset in (1e4, -1e6):
        x = (offset + normal(case.shape)).astype("float32")
        assert_close(numpy(layer(x, **case.call)), case.reference(layer, x).y, 1e-6)


@cases_where(lambda case: "mean" in case.remove)
def test_a_constant_input_gives_exactly_beta(case: Case) -> None:
    layer = case.layer()
    for value in (127.3, 200.1, 255.0, 1000.3):
        y = numpy(layer(np.full(case.shape, value, "float32"), **case.call))
        assert np.array_equal(y, case.reference(layer, np.zeros(case.shape)).y.astype("float32"))


@one_case_a_class
def test_a_sample_does_not_depend_on_its_batch(case: Case) -> None:
    layer, x = case.layer(), normal(case.shape)
    whole = numpy(layer(x))
    assert np.array_equal(numpy(layer(x[:1])), whole[:1])


@one_case_a_class
def test_scale_of_the_input_does_not_matter(case: Case) -> None:
    layer = case.layer(epsilon=0.0)
    for factor in (1e30, 1e-30):
        x = (normal(case.shape) * factor).astype("float32")
        assert_close(numpy(layer(x, **case.call)), case.reference(layer, x).y, 2e-6)


@every_case
def test_mask_keeps_padding_out_of_the_statistics(case: Case) -> None:
    x = normal(case.shape)
    mask = np.random.default_rng(3).random(case.shape) < 0.7
    layer = case.layer()
    y = numpy(layer(x, mask=mask, **case.call))
    assert_close(y[mask], case.reference(layer, x, mask=mask).y[mask], 2e-6)
    spoiled = np.where(mask, x, np.float32(1e6))
    assert np.array_equal(numpy(layer(spoiled, mask=mask.astype("float32"), **case.call))[mask], y[mask])


@pytest.mark.parametrize(
    ("layer", "expand"),
    [
        (lambda: K.GroupNormalization(2), lambda m: m[..., None]),
        (lambda: K.GroupNormalization(2, axis=1), lambda m: m[:, None]),
        (lambda: K.InstanceNormalization(axis=2), lambda m: m[:, :, None]),
        (lambda: K.LayerNormalization(axis=1), lambda m: m[..., None]),
        (lambda: K.RMSNormalization(axis=[1, 2]), lambda m: m[..., None]),
        (lambda: K.BatchNormalization(axis=1), lambda m: m[:, None]),
        (lambda: K.Normalization("n [t h] c"), lambda m: m[..., None]),
    ],
)
def test_a_short_mask_lacks_the_channels(layer: Any, expand: Any) -> None:
    x, mask, layer = normal((4, 4, 4, 4)), normal((4, 4, 4), seed=5) > -0.5, layer()
    call = {"training": True} if isinstance(layer, K.BatchNormalization) else {}
    assert np.array_equal(numpy(layer(x, mask=mask, **call)), numpy(layer(x, mask=expand(mask), **call)))
    rows = np.array([True, True, False, True])
    assert np.array_equal(numpy(layer(x, mask=rows, **call)), numpy(layer(x, mask=rows[:, None, None, None], **call)))


POLICIES = ["mixed_float16", "mixed_bfloat16", "float16"] + ["float64"] * (BACKEND != "jax")


@cases_where(lambda case: case.shape == (4, 5, 7, 6) or case.kind == "RMSNormalization")
@pytest.mark.parametrize("policy", POLICIES)  # JAX has float64 only when told to
def test_a_policy_rounds_once_at_the_end(case: Case, policy: str) -> None:
    if policy == "float16" and case.call:
        pytest.skip("this policy's moving variance is infinite")
    x = normal(case.shape) * 1e5 + 1e5
    assert np.abs(x).max() > 65504
    layer = case.layer(dtype=policy)
    y = layer(x, **case.call)
    dtype = policy.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(y.dtype) == dtype == layer.compute_dtype
    assert layer.compute_output_spec(keras.KerasTensor((None, *case.shape[1:]))).dtype == dtype
    assert all(w.dtype == layer.variable_dtype for w in layer.weights)
    precision = {"float16": 2**-11, "bfloat16": 2**-8, "float64": 1e-12}[dtype]
    wanted = case.reference(layer, x).y
    np.testing.assert_allclose(
        numpy(y).astype("float64"), wanted, rtol=1.01 * precision, atol=max(1e-12, 2e-3 * precision)
    )


PEERS = [
    ("GroupNormalization", {"groups": 2, "axis": 1}, (3, 6, 5, 7)),
    ("GroupNormalization", {"groups": -1, "epsilon": 0.1}, (3, 5, 7, 6)),
    ("GroupNormalization", {"groups": 3, "center": False, "gamma_regularizer": "l2"}, (3, 5, 6)),
    ("GroupNormalization", {"groups": 3, "scale": False, "beta_regularizer": "l1"}, (3, 5, 6)),
    ("LayerNormalization", {"axis": [1, 2], "epsilon": 0.1}, (3, 5, 7)),
    ("LayerNormalization", {"gamma_constraint": "non_neg", "beta_constraint": "non_neg"}, (3, 5, 7)),
    ("LayerNormalization", {"center": False, "scale": False}, (3, 5, 7)),
    ("LayerNormalization", {"rms_scaling": True, "scale": False}, (3, 5, 7)),
    ("RMSNormalization", {"epsilon": 0.1}, (3, 5, 7)),
    ("BatchNormalization", {"axis": 1, "momentum": 0.7, "epsilon": 0.1}, (3, 5, 7)),
    ("BatchNormalization", {"moving_mean_initializer": "ones", "moving_variance_initializer": "zeros"}, (9, 7)),
    ("BatchNormalization", {"center": False, "scale": False, "dtype": "mixed_float16"}, (3, 5, 7)),
]


@pytest.mark.filterwarnings("ignore:.*rms_scaling")
@pytest.mark.parametrize(("kind", "arguments", "shape"), PEERS)
def test_arguments_mean_what_they_mean_in_keras(kind: str, arguments: dict[str, Any], shape: tuple[int, ...]) -> None:
    random = {} if kind == "RMSNormalization" else AFFINE
    ours, theirs = (getattr(module, kind)(**{**random, **arguments}) for module in (K, keras.layers))
    x, dy = normal(shape), normal(shape, seed=1)
    results = [differentiate(layer, x, dy.astype(layer.compute_dtype)) for layer in (ours, theirs)]
    for mine, its in zip(results[0][:2], results[1][:2], strict=True):
        tolerance = 1e-5 if ours.compute_dtype == "float32" else 2e-3
        np.testing.assert_allclose(mine, its, rtol=tolerance, atol=tolerance)
    for mine, its in zip(results[0][2], results[1][2], strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-4)
    for mine, its in zip(ours.weights, theirs.weights, strict=True):
        assert (mine.name, mine.shape, mine.trainable) == (its.name, its.shape, its.trainable)
        assert (mine.constraint is None) == (its.constraint is None)
    for mine, its in zip(ours.losses, theirs.losses, strict=True):
        np.testing.assert_allclose(numpy(mine), numpy(its))


@pytest.mark.parametrize(
    "kind", [name for name in K.__all__ if hasattr(keras.layers, name) and name != "Normalization"]
)
def test_signatures_are_those_of_keras(kind: str) -> None:
    ours, theirs = (inspect.signature(getattr(module, kind).__init__).parameters for module in (K, keras.layers))
    assert [(p.name, p.default) for p in ours.values() if p.name in theirs] == [
        (p.name, p.default) for p in theirs.values()
    ]
    assert set(ours) - set(theirs) <= {"rms_scaling", "converted"}
    given = [keras.layers.Dense(2)] if "layer" in theirs else []
    configs = [set(getattr(module, kind)(*given).get_config()) for module in (K, keras.layers)]
    assert configs[0] - {"converted"} == configs[1]
