"""Surgery on Keras models that share, derive, subclass or compile in ways of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from test_keras_surgery import data, filled, functional, reasons, run, slow_on_jax, unchanged, weights  # noqa: E402

import anynorm.keras as K  # noqa: E402, N812
import anynorm.surgery as S  # noqa: E402, N812

L = keras.layers
pytestmark = slow_on_jax

COPYING = {
    "freeze": S.freeze,
    "unfreeze": lambda m, **k: S.unfreeze(m, **k),
    "swap": lambda m, **k: S.swap(m, "batch", "batch", **k),
    "fold": S.fold,
    "reestimate": lambda m, **k: S.reestimate(m, data(8, *m.inputs[0].shape[1:]), progress=False, **k),
}
every = pytest.mark.parametrize("operation", COPYING.values(), ids=COPYING)


def adapted() -> Any:
    layer = L.Normalization()
    layer.adapt(data(64, 4) * 3 + 5)
    return filled(functional([layer, L.Dense(3), L.BatchNormalization(name="norm")], (4,)))


@every
def test_what_a_layer_worked_out_from_its_weights_is_copied(operation):
    model, x = adapted(), data(5, 4) * 3 + 5
    new, receipt = operation(model, probe=x)
    first = [keras.Model(m.inputs[0], m.layers[1].output) for m in (model, new)]
    assert np.array_equal(*(run(m, x)[0] for m in first))
    if operation is not COPYING["reestimate"]:
        assert receipt.difference <= 1e-5 * receipt.largest


def test_what_a_layer_learned_from_data_and_keeps_in_its_configuration_is_copied():
    layer, x = L.Discretization(num_bins=4, output_mode="one_hot"), data(64, 1)
    layer.adapt(x)
    model = filled(functional([layer, L.Flatten(), L.Dense(3), L.BatchNormalization()], (1,)))
    assert np.array_equal(run(S.freeze(model)[0], x)[0], run(model, x)[0])


@keras.saving.register_keras_serializable("test_keras_surgery_odd")
class Forgetful(L.Layer):
    """Has a number that is in no configuration and no weight."""

    factor = 1.0

    def call(self, x: Any) -> Any:
        return x * self.factor


@keras.saving.register_keras_serializable("test_keras_surgery_odd")
class Noisy(L.Layer):
    """Gives another output each time."""

    def call(self, x: Any) -> Any:
        return x + 0.01 * keras.random.uniform(keras.ops.shape(x))


@pytest.mark.parametrize("last", [L.ReLU, Noisy])
@pytest.mark.parametrize(
    "operation",
    [*COPYING.values(), lambda m, **k: S.swap(m, "batch", "layer", **k)],
    ids=[*COPYING, "swap to another kind"],
)
def test_a_copy_that_computes_something_else_is_noticed(operation, last):
    model = filled(functional([Forgetful(), L.Dense(3), L.BatchNormalization(name="norm"), last()], (4,)))
    model.layers[1].factor = 3.0
    with pytest.raises(ValueError, match="numbers of its own that a copy lacks"):
        operation(model)
    assert operation(model, inplace=True)[1].difference is not None


class Own(keras.Model):
    def __init__(self, *args: Any, extra: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extra, self.made = extra, True
        self.temperature = self.add_weight(name="temperature", shape=(), initializer="ones")


def test_a_functional_model_of_one_s_own_class_is_not_made_anew():
    inputs = keras.Input((4,))
    model = Own(inputs, L.BatchNormalization(name="norm")(L.Dense(3)(inputs)), extra=5)
    model.temperature.assign(7.0)
    for operation in (S.fold, COPYING["swap"]):
        for inplace in (False, True):
            with pytest.raises(ValueError, match="a class of its own, Own"):
                operation(model, inplace=inplace)
    for operation in (S.freeze, COPYING["reestimate"]):
        with pytest.raises(ValueError, match="inplace=True"):
            operation(model)
        same, receipt = operation(model, inplace=True)
        assert same is model
        assert len(receipt.rows) == 1 or "frozen" in reasons(receipt)["norm"]
    assert (model.extra, float(model.temperature), len(model.weights)) == (5, 7.0, 7)


def test_a_functional_model_with_a_weight_of_its_own_is_not_made_anew():
    model = filled(functional([L.Dense(3), L.BatchNormalization()], (4,)))
    model.temperature = model.add_weight(name="temperature", shape=(), initializer="ones")
    with pytest.raises(ValueError, match="has weights of its own"):
        S.fold(model, inplace=True)
    assert any(w is model.temperature for w in model.weights)


@keras.saving.register_keras_serializable("test_keras_surgery_odd")
class Tied(L.Layer):
    """The embedding used once more, as language models do."""

    def __init__(self, embedding: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.embedding = embedding

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, keras.ops.transpose(self.embedding.embeddings))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "embedding": self.embedding}


def tied() -> Any:
    inputs, embedding = keras.Input((5,), dtype="int32"), L.Embedding(11, 8, name="embedding")
    return keras.Model(inputs, Tied(embedding)(L.BatchNormalization(name="norm")(embedding(inputs))))


def timed() -> Any:
    inputs, dense = keras.Input((5, 3)), L.Dense(3, name="embedding")
    return keras.Model(inputs, L.BatchNormalization(name="norm")(L.TimeDistributed(dense)(dense(inputs))))


@pytest.mark.parametrize("make", [tied, timed])
@pytest.mark.parametrize("operation", [S.freeze, COPYING["swap"], S.fold], ids=["freeze", "swap", "fold"])
def test_layers_that_another_layer_holds_too_stay_tied(make, operation):
    model = make()
    number = len(model.weights)
    with pytest.raises(ValueError, match=r"embedding is in the graph and in .*two layers"):
        operation(model)
    operation(model, inplace=True)
    assert len(model.weights) == number


def test_what_a_wrapper_holds_too_is_neither_folded_nor_swapped():
    inputs, dense = keras.Input((5, 3)), L.Dense(3, name="dense")
    norm = L.BatchNormalization(name="norm")
    model = filled(keras.Model(inputs, [norm(dense(inputs)), L.TimeDistributed(dense, name="timed")(inputs)]))
    _, receipt = S.fold(model, inplace=True)
    assert "is also in timed" in reasons(receipt)["norm"]
    model = filled(keras.Model(inputs, [norm(dense(inputs)), L.TimeDistributed(norm, name="timed")(inputs)]))
    _, receipt = S.swap(model, "batch", "layer", inplace=True)
    assert "inside timed" in reasons(receipt)["norm"]


def mean_square(y: Any, z: Any) -> Any:
    return keras.ops.mean(keras.ops.square(y - z))


@pytest.mark.parametrize("loss", [mean_square, lambda y, z: mean_square(y, z)], ids=["function", "lambda"])
@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.filterwarnings("error::UserWarning")
def test_a_model_with_a_loss_of_one_s_own_comes_back_not_compiled(loss, sequential):
    def make() -> Any:
        layers = [L.Dense(3), L.BatchNormalization()]
        model = keras.Sequential([keras.Input((4,)), *layers]) if sequential else functional(layers, (4,))
        model.compile("sgd", loss)
        return filled(model)

    for operation in COPYING.values():
        model = make()
        new, receipt = operation(model)
        assert (model.compiled, new.compiled) == (True, False)
        assert "not compiled, as the given model was: compile it" in receipt.notes
    for operation in (S.fold, COPYING["swap"]):
        model = make()
        x = data(5, 4)
        want = run(model, x)[0]
        new, receipt = operation(model, inplace=True)
        np.testing.assert_allclose(run(model, x)[0], want, rtol=1e-4, atol=1e-5)
        assert not model.compiled
        assert "not compiled, as the given model was: compile it" in receipt.notes


OTHERS = {
    "wide": [L.Dense(7, name="front"), L.BatchNormalization(name="norm")],
    "wide group": [L.Dense(8, name="front"), K.GroupNormalization(4, name="norm")],
    "activation": [L.Dense(6, name="front"), L.Activation("relu", name="norm")],
    "no norm, wide": [L.Dense(7, name="front")],
    "convolution": [L.Reshape((2, 2)), L.Conv1D(6, 1, name="front"), L.Flatten(), L.Dense(6)],
    "other names": [L.Dense(6), L.BatchNormalization()],
}


@pytest.mark.parametrize("layers", OTHERS.values(), ids=OTHERS)
def test_revert_refuses_another_model_and_changes_nothing(layers):
    model = filled(functional([L.Dense(6, name="front"), L.BatchNormalization(name="norm")], (4,)))
    other = functional(layers, (4,))
    before, kept = weights(other), list(other.layers)
    operations = {**COPYING, "swap": lambda m: S.swap(m, "batch", "group", groups=2)}
    for operation in (operations[name] for name in ("swap", "fold", "freeze", "reestimate")):
        _, receipt = operation(model)
        for inplace in (False, True):
            with pytest.raises(ValueError, match="the receipt is not of this model"):
                S.revert(other, receipt, inplace=inplace)
        assert unchanged(other, before)
        assert all(a is b for a, b in zip(other.layers, kept, strict=True))
        assert all(layer.trainable for layer in kept)


def test_a_fold_is_reverted_once():
    model = filled(functional([L.Dense(6, name="front"), L.BatchNormalization(name="norm")], (4,)))
    new, receipt = S.fold(model)
    back, _ = S.revert(new, receipt)
    with pytest.raises(ValueError, match="a layer called norm already"):
        S.revert(back, receipt)


def test_weight_decay_is_not_for_norms_of_any_number_of_axes():
    layers = [
        K.WeightNormalization(L.Conv2D(4, 3), data_init=False), K.FilterResponseNormalization(learned_epsilon=True),
        K.TLU(affine=True), K.ContribInstanceNormalization(axis=-1),
    ]  # fmt: skip
    model = functional(layers, (8, 8, 3))
    excluded = {id(w) for w in S.weight_decay_groups(model)[0]}
    assert [w.name for w in model.trainable_weights if id(w) not in excluded] == ["kernel"]


def test_weight_decay_of_one_layer_and_of_a_model_s_own_weights():
    norm = L.BatchNormalization()
    norm.build((None, 4))
    assert {w.name for w in S.weight_decay_groups(norm)[0]} == {"gamma", "beta"}
    inputs = keras.Input((4,))
    model = Own(inputs, L.Dense(3)(inputs))
    assert {w.name for w in S.weight_decay_groups(model)[0]} == {"bias", "temperature"}


def test_a_lone_norm_is_frozen_and_given_back():
    norm = L.BatchNormalization()
    norm.build((None, 4))
    _, receipt = S.freeze(norm, inplace=True)
    assert not norm.trainable
    S.revert(norm, receipt, inplace=True)
    assert norm.trainable
