"""Surgery on Keras models that share, derive, subclass or compile in ways of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from test_keras_surgery import data, filled, functional, reasons, run, unchanged, weights  # noqa: E402

import anynorm.keras as K  # noqa: E402, N812
import anynorm.surgery as S  # noqa: E402, N812

L = keras.layers
pytestmark = pytest.mark.usefixtures("quick_compilation")

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

    def compute_output_spec(self, x: Any) -> Any:
        # JAX traces nothing that is not seeded.
        return keras.KerasTensor(x.shape, dtype=x.dtype)


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


@pytest.mark.parametrize("words", [{"activation": "relu"}, {"strides": 2}])
def test_a_fold_is_not_reverted_into_a_layer_that_computes_something_else(words):
    conv = {"filters": 4, "kernel_size": 3, "name": "front"}
    model = filled(functional([L.Conv1D(**conv), L.BatchNormalization(name="norm")], (8, 3)))
    _, receipt = S.fold(model)
    other = functional([L.Conv1D(**conv, **words)], (8, 3))
    with pytest.raises(ValueError, match=f"not of this model: front has {next(iter(words))}="):
        S.revert(other, receipt)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ["freeze", "swap", "fold", "reestimate"])
def test_receipts_of_another_framework_are_refused(name, inplace):
    torch = pytest.importorskip("torch")
    made = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6)).eval()
    data_of = {"reestimate": lambda m: S.reestimate(m, torch.randn(8, 4), progress=False)}
    _, theirs = data_of.get(name, COPYING[name])(made)
    model = filled(functional([L.Dense(6, name="front"), L.BatchNormalization(name="norm")], (4,)))
    _, ours = COPYING[name](model)
    before = weights(model)
    for one, receipt in ((model, theirs), (made, ours)):
        with pytest.raises(ValueError, match="receipt of another framework"):
            S.revert(one, receipt, inplace=inplace)
    assert unchanged(model, before)


def closed_over(reading: str) -> tuple[Any, Any]:
    """A model with a function that reads a layer by itself, beside the graph."""
    dense, norm = L.Dense(3, name="dense"), L.BatchNormalization(name="norm", momentum=0.5)
    read = {
        "dense": lambda: dense.kernel[0],
        "norm": lambda: norm.gamma,
        "called": lambda: dense(keras.ops.ones((1, 4))),
    }
    inputs = keras.Input((4,))
    model = keras.Model(inputs, L.Lambda(lambda x: x + read[reading](), name="tie")(norm(dense(inputs))))
    return filled(model), dense


@pytest.mark.parametrize("reading", ["dense", "norm", "called"])
@every
def test_a_copy_that_reads_the_given_model_is_refused(operation, reading):
    model, _ = closed_over(reading)
    before = weights(model)
    with pytest.raises(ValueError, match=r"reads (dense/kernel|norm/gamma).* of the given one.*inplace=True"):
        operation(model)
    assert unchanged(model, before)
    if operation in (COPYING["freeze"], COPYING["unfreeze"], COPYING["reestimate"]):
        operation(model, inplace=True)


def test_what_would_go_on_reading_a_layer_that_is_gone_is_refused_in_place_too():
    model, dense = closed_over("norm")
    model.compile("sgd", "mse")
    optimizer, kept, nodes, x = model.optimizer, list(model.layers), len(dense._inbound_nodes), data(3, 4)
    want = run(model, x)[0]
    for operation in (COPYING["swap"], lambda m, **k: S.swap(m, "batch", "group", groups=1, **k)):
        with pytest.raises(ValueError, match="still reads norm/gamma, of a layer that is no longer in it"):
            operation(model, inplace=True)
        assert all(a is b for a, b in zip(model.layers, kept, strict=True))
        assert (model.optimizer, len(dense._inbound_nodes)) == (optimizer, nodes)
        assert np.array_equal(run(model, x)[0], want)
    model.fit(x, data(3, 3), verbose=0)
    assert not np.array_equal(run(model, x)[0], want)


@keras.saving.register_keras_serializable("test_keras_surgery_odd")
class Handing(L.Layer):
    """Its configuration has the layer itself, which a copy then shares."""

    def __init__(self, inner: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x: Any) -> Any:
        return self.inner(x)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "inner": self.inner}


def test_a_copy_that_shares_a_layer_with_the_given_model_is_refused_without_a_probe():
    model = filled(functional([Handing(L.Dense(3)), L.BatchNormalization(name="norm")], (4,)))
    with pytest.raises(ValueError, match=r"a copy of the model would share .*kernel"):
        S.freeze(model, probe=False)


def test_without_a_probe_the_receipt_says_whose_code_was_not_seen():
    model, _ = closed_over("dense")
    assert "which weights the code of tie reads" in S.freeze(model, probe=False)[1].probe
    assert S.freeze(functional([L.Dense(3)], (4,)), probe=False)[1].probe == "not wanted"


def test_a_probe_leaves_a_model_as_it_is():
    model = functional([K.WeightNormalization(L.Dense(3)), L.BatchNormalization(name="norm"), L.Dropout(0.5)], (4,))
    before = weights(model)
    S.swap(model, "batch", "layer", probe=data(8, 4))
    assert unchanged(model, before)


@every
def test_attributes_of_a_model_are_kept_or_named(operation):
    model = filled(functional([L.Dense(3, name="dense"), L.BatchNormalization(name="norm")], (4,)))
    model.made_with = {"rate": 0.1, "steps": [1, 2]}
    model.first, model.all_norms, model.opener = model.get_layer("dense"), [model.get_layer("norm")], open
    new, receipt = operation(model)
    assert new.made_with == {"rate": 0.1, "steps": [1, 2]}
    assert new.made_with is not model.made_with
    assert new.first is new.get_layer("dense")
    folded = operation is COPYING["fold"]
    assert folded or new.all_norms[0] is new.get_layer("norm")
    lost = f"{model.name}.all_norms, {model.name}.opener" if folded else f"{model.name}.opener"
    assert f"attributes that the new model lacks: {lost}" in receipt.notes


def test_attributes_speak_of_the_new_layers_in_place_too():
    model = filled(functional([L.Dense(3, name="dense"), L.BatchNormalization(name="norm")], (4,)))
    model.norm, model.parts, model.opener = model.get_layer("norm"), {"a": [model.get_layer("norm")]}, open
    _, receipt = S.swap(model, "batch", "layer", inplace=True)
    assert model.norm is model.parts["a"][0] is model.get_layer("norm")
    assert (len(model.weights), receipt.notes, model.opener) == (4, [], open)


@keras.saving.register_keras_serializable("test_keras_surgery_odd")
class Described(keras.Model):
    """A functional model of one's own class, which Keras makes anew from its configuration."""


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("operation", [S.freeze, COPYING["swap"], COPYING["reestimate"]])
def test_a_functional_model_of_one_s_own_class_within_a_model(operation, share):
    inputs = keras.Input((4,))
    inside = inputs if share else keras.Input((4,))
    inner = Described(inside, L.Dense(3)(inside), name="inner")
    inner.note, inner.scales = "mine", [1.0, 2.0]
    model = filled(keras.Model(inputs, L.BatchNormalization(name="norm")(inner(inputs))))
    new, receipt = operation(model)
    made = new.get_layer("inner")
    assert (type(made), made.note, list(made.scales)) == (Described, "mine", [1.0, 2.0])
    assert made is not inner
    assert len(receipt.rows) == 1


def looked_up(kind: str) -> tuple[Any, Any]:
    words = np.array(["a", "b", "c d"])
    layer, values = {
        "words": (L.StringLookup(), words), "numbers": (L.IntegerLookup(), np.array([5, 7, 9])),
        "text": (L.TextVectorization(output_sequence_length=3), words),
        "weighted": (L.StringLookup(output_mode="tf_idf"), words),
        "set later": (L.StringLookup(vocabulary=["x"]), None),
        "line breaks": (L.StringLookup(), np.array(["a\nb", "c"])),
    }[kind]  # fmt: skip
    if values is None:
        layer.set_vocabulary(["a", "b"])
    else:
        layer.adapt(values)
    x = keras.ops.convert_to_tensor(np.array([["a"], ["b"], ["z"]] if kind != "numbers" else [[5], [9], [3]]))
    inputs = keras.Input((1,), dtype=keras.backend.standardize_dtype(x.dtype))
    y = layer(inputs)
    y = L.Flatten()(y if kind == "weighted" else L.Embedding(9, 4)(y))
    return filled(keras.Model(inputs, L.BatchNormalization(name="norm")(L.Dense(3)(y)))), x


@pytest.mark.parametrize("kind", ["words", "numbers", "text", "weighted", "set later", "line breaks"])
def test_vocabularies_are_copied(kind):
    if kind != "numbers" and keras.backend.backend() != "tensorflow":
        pytest.skip("other backends have no tensors of strings")
    model, x = looked_up(kind)
    for operation in (S.freeze, S.fold, COPYING["swap"], lambda m, **k: S.reestimate(m, [x], progress=False, **k)):
        for probe in (None, x, False):
            new, receipt = operation(model, probe=probe)
            assert len(receipt.rows) == 1
            assert (receipt.difference is None) == (probe is False)
            assert new.layers[1].get_vocabulary() == model.layers[1].get_vocabulary()
    assert np.array_equal(run(S.freeze(model)[0], x)[0], run(model, x)[0])


def test_a_lone_layer_is_told_so():
    norm = L.BatchNormalization()
    norm.build((None, 4))
    for operation in (S.fold, COPYING["swap"]):
        with pytest.raises(ValueError, match=r"a lone layer, BatchNormalization, .*Put it into one"):
            operation(norm)
    with pytest.raises(ValueError, match=r"a lone layer.*inplace=True"):
        S.freeze(norm)


def test_what_a_call_said_and_the_new_norm_does_not_take_is_told():
    a = keras.Input((12, 4))
    model = keras.Model(a, L.BatchNormalization(name="bn")(L.Conv1D(8, 3)(a), training=True))
    assert any("bn was called with training=True" in note for note in S.swap(model, "batch", "group")[1].notes)
    assert not any("was called" in note for note in S.swap(model, "batch", "batch", probe=False)[1].notes)


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
