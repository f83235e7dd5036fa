"""Surgery on Keras models, on the backend that runs: the same answers, refusals, and the given model as it was."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras")

from arrays import relative  # noqa: E402

import anynorm.keras as K  # noqa: E402, N812
import anynorm.surgery as S  # noqa: E402, N812

L = keras.layers


# What is tested there is the graph, which is the same on all backends.
slow_on_jax = pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX compiles each operation on its own")


def filled(model: Any) -> Any:
    """Random norm parameters and statistics: fresh ones would hide almost everything."""
    rng = np.random.default_rng(0)
    for w in model.weights:
        if w.name in ("gamma", "moving_variance", "scale"):
            w.assign(rng.uniform(0.5, 1.5, w.shape).astype("float32"))
        elif w.name in ("beta", "moving_mean", "bias"):
            w.assign(rng.normal(size=w.shape).astype("float32"))
    return model


def weights(model: Any) -> list[np.ndarray]:
    return [np.array(w) for w in model.get_weights()]


def unchanged(model: Any, before: list[np.ndarray]) -> bool:
    after = weights(model)
    return len(after) == len(before) and all(np.array_equal(a, b) for a, b in zip(after, before, strict=True))


def run(model: Any, x: Any) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(model(x, training=False))]


def data(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype("float32")


def reasons(receipt: S.Receipt) -> dict[str, str]:
    return {refusal.name: refusal.reason for refusal in receipt.refused}


def functional(layers: list[Any], shape: tuple[int | None, ...]) -> Any:
    x = inputs = keras.Input(shape)
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


FIRST = {"data_format": "channels_first"}
PAIRS = {
    "conv1d": ((9, 6), L.Conv1D, (10, 3), {}),
    "conv2d, grouped, no bias": ((9, 7, 6), L.Conv2D, (10, 3), {"groups": 2, "use_bias": False}),
    "conv3d": ((5, 6, 7, 2), L.Conv3D, (4, 3), {}),
    "transposed 1d": ((9, 6), L.Conv1DTranspose, (10, 3), {}),
    "transposed 2d": ((5, 7, 6), L.Conv2DTranspose, (9, 3), {"strides": 2}),
    "transposed 3d": ((5, 6, 7, 2), L.Conv3DTranspose, (4, 3), {"use_bias": False}),
    "depthwise 1d": ((9, 6), L.DepthwiseConv1D, (3,), {"depth_multiplier": 2}),
    "depthwise 2d": ((9, 7, 6), L.DepthwiseConv2D, (3,), {"depth_multiplier": 2, "use_bias": False}),
    "separable 1d": ((9, 6), L.SeparableConv1D, (10, 3), {}),
    "separable 2d": ((9, 7, 6), L.SeparableConv2D, (10, 3), {"depth_multiplier": 2, "use_bias": False}),
    "dense": ((6,), L.Dense, (10,), {}),
    "dense over time": ((9, 6), L.Dense, (10,), {"use_bias": False}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_fold_every_pair(name):
    shape, kind, words, named = PAIRS[name]
    norm = K.BatchNormalization(scale=False) if name == "dense" else L.BatchNormalization(center=name != "conv1d")
    model = filled(functional([kind(*words, **named, name="front"), norm, L.ReLU()], shape))
    before, x = weights(model), data(3, *shape)
    new, receipt = S.fold(model, probe=x)
    assert unchanged(model, before)
    assert (len(receipt.rows), receipt.refused) == (1, [])
    assert len(new.layers) == len(model.layers) - 1
    relative(run(new, x)[0], run(model, x)[0], 1e-5)
    assert receipt.difference < 1e-5 * receipt.largest
    back, _ = S.revert(new, receipt)
    assert unchanged(back, before)
    assert [layer.name for layer in back.layers] == [layer.name for layer in model.layers]


def test_fold_channels_first():
    if keras.backend.backend() == "tensorflow":
        pytest.skip("TensorFlow convolves channels first on GPUs only")
    model = filled(functional([L.Conv2D(10, 3, **FIRST), L.BatchNormalization(axis=1)], (6, 9, 7)))
    new, receipt = S.fold(model)
    assert len(receipt.rows) == 1
    relative(run(new, data(2, 6, 9, 7))[0], run(model, data(2, 6, 9, 7))[0], 1e-5)


def odd() -> Any:
    """Each norm but the first has a reason of its own not to be folded."""

    class Own(L.BatchNormalization):
        pass

    class Block(L.Layer):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.norm = L.BatchNormalization(name="inner")

        def call(self, x: Any) -> Any:
            return self.norm(x)

    keras.saving.register_keras_serializable("test_keras_surgery")(Block)
    inputs = keras.Input((8, 8, 3))
    x = L.BatchNormalization(name="on_the_input")(inputs)
    x = L.BatchNormalization(name="fine")(L.Conv2D(6, 3, padding="same")(x))
    x = L.BatchNormalization(name="on_a_norm")(x)
    x = L.BatchNormalization(name="on_relu")(L.Conv2D(6, 3, activation="relu", name="with_relu")(x))
    shared = L.Conv2D(6, 3, padding="same", name="shared")
    x = L.BatchNormalization(name="on_shared")(shared(shared(x)))
    y = L.Conv2D(6, 3, padding="same", name="branching")(x)
    x = L.BatchNormalization(name="on_branching")(y) + y
    z = L.Conv2D(6, 3, padding="same", name="output")(x)
    x = L.BatchNormalization(name="on_output")(z)
    norm = L.BatchNormalization(name="norm_twice")
    x = norm(L.Conv2D(6, 1)(x)) + norm(L.Conv2D(6, 1)(x))
    x = L.BatchNormalization(name="training")(L.Conv2D(6, 1)(x), training=True)
    x = L.BatchNormalization(axis=1, name="other_axis")(L.Conv2D(6, 1, name="front")(x))
    x = Own(name="own")(L.Conv2D(6, 1)(x))
    x = Block(name="block")(L.Conv2D(6, 1)(x))
    x = L.BatchNormalization(name="on_wrapper")(L.SpectralNormalization(L.Conv2D(6, 1), name="wrapper")(x))
    x = K.BatchNormalization(renorm=True, name="renorm")(L.Conv2D(6, 1)(x))
    x = L.BatchNormalization(name="broken")(L.Conv2D(6, 1)(x))
    return keras.Model(inputs, [x, z])


@slow_on_jax
def test_fold_refuses_with_the_reason():
    model = odd()
    model.get_layer("broken").moving_variance.assign(np.array([1, 1, np.nan, 1, 1, 1], "float32"))
    try:
        new, receipt = S.fold(model)
    except ValueError as wrong:
        # A class of one's own inside a function has no configuration that Keras finds; Own and Block have.
        pytest.fail(str(wrong))
    assert [row.name for row in receipt.rows] == ["fine"]
    expected = {
        "on_the_input": "an input of its model",
        "on_a_norm": "no convolution or dense layer",
        "on_relu": "the activation of with_relu, relu, is between",
        "on_shared": "shared, in front of it, is used 2 times",
        "on_branching": "the output of branching, in front of it, is used 2 times",
        "on_output": "the output of output, in front of it, is used 2 times",
        "norm_twice": "it is used 2 times",
        "training": "training=True",
        "other_axis": "its axis 1 is not the one with the channels of front",
        "own": "a subclass",
        "block/inner": "inside block",
        "on_wrapper": "wrapper (SpectralNormalization), in front of it, is no convolution",
        "renorm": "renorm",
        "broken": "not finite",
    }
    found = reasons(receipt)
    assert found.keys() == expected.keys()
    for name, words in expected.items():
        assert words in found[name], (name, found[name])
    assert "not finite" in " ".join(receipt.notes)
    assert len(new.outputs) == 2


def nested() -> Any:
    """A model and a Sequential within a model, the inner one called twice, and two outputs."""
    inner = keras.Sequential(
        [keras.Input((8, 8, 6)), L.Conv2D(6, 3, padding="same", use_bias=False), L.BatchNormalization(name="norm")],
        name="inner",
    )
    deep_in = keras.Input((8, 8, 6))
    deep = keras.Model(deep_in, inner(L.GroupNormalization(3, name="group")(deep_in)), name="deep")
    inputs = keras.Input((8, 8, 6))
    x = inner(deep(inputs))
    y = L.GlobalAveragePooling2D()(L.Activation("relu")(x))
    y = L.BatchNormalization(name="head_norm")(L.Dense(4, name="head")(L.Dropout(0.5)(y)))
    return keras.Model(inputs, {"x": x, "y": y})


def test_models_within_models():
    model = filled(nested())
    before, x = weights(model), data(2, 8, 8, 6)
    want = run(model, x)
    new, receipt = S.fold(model, probe=x)
    assert [row.name for row in receipt.rows] == ["deep/inner/norm", "head_norm"]
    for a, b in zip(run(new, x), want, strict=True):
        relative(a, b, 1e-5)
    assert new.get_layer("inner") is new.get_layer("deep").get_layer("inner"), "what was shared still is"
    back, _ = S.revert(new, receipt)
    assert unchanged(back, before)
    swapped, receipt = S.swap(model, "any", "layer")
    assert [row.name for row in receipt.rows] == ["deep/group", "deep/inner/norm", "head_norm"]
    assert type(swapped.get_layer("inner").get_layer("norm")) is K.LayerNormalization
    assert unchanged(model, before)
    assert all(np.array_equal(a, b) for a, b in zip(run(model, x), want, strict=True))


@pytest.mark.parametrize(
    "make", [nested, lambda: keras.Sequential([keras.Input((6,)), L.Dense(5), L.BatchNormalization()])]
)
def test_in_place(make):
    model = filled(make())
    model.compile("sgd", "mse")
    shape = model.inputs[0].shape[1:]
    x = data(3, *shape)
    want, before, first = run(model, x), weights(model), model.layers[1] if len(model.layers) > 2 else model.layers[0]
    new, receipt = S.fold(model, probe=x, inplace=True)
    assert new is model
    assert model.compiled
    for a, b in zip(run(model, x), want, strict=True):
        relative(a, b, 1e-5)
    back, _ = S.revert(model, receipt, inplace=True)
    assert back is model
    for a, b in zip(run(model, x), want, strict=True):
        relative(a, b, 1e-6)
    assert unchanged(model, before)
    assert first.built


NORMS = {
    "batch": lambda: L.BatchNormalization(),
    "group": lambda: L.GroupNormalization(4),
    "instance": lambda: K.InstanceNormalization(),
    "layer": lambda: L.LayerNormalization(),
    "rms": lambda: L.RMSNormalization(),
}


@pytest.mark.parametrize("target", NORMS)
def test_swap_any_norm_to_any_norm(target):
    model = filled(functional([make() for make in NORMS.values()], (7, 5, 12)))
    before, x = weights(model), data(3, 7, 5, 12)
    new, receipt = S.swap(model, "any", target, groups=3 if target == "group" else None, probe=x)
    assert unchanged(model, before)
    assert (len(receipt.rows), receipt.refused) == (5, [])
    for old, layer in zip(model.layers[1:], new.layers[1:], strict=True):
        assert type(layer).__module__.startswith("anynorm.keras")
        assert (layer.name, layer.epsilon) == (old.name, old.epsilon)
        old_gamma, gamma = (one.scale if "RMS" in type(one).__name__ else one.gamma for one in (old, layer))
        assert np.array_equal(gamma, old_gamma)
        if target == "group":
            assert layer.groups == 3
    assert np.isfinite(run(new, x)[0]).all()
    back, _ = S.revert(new, receipt)
    assert unchanged(back, before)
    relative(run(back, x)[0], run(model, x)[0], 1e-6)


def test_swap_keeps_names_flags_regularizers_and_mixed_precision():
    norm = L.BatchNormalization(axis=1, dtype="mixed_float16", gamma_regularizer="l2", name="norm", scale=True)
    model = filled(functional([norm, L.Dense(3, name="dense")], (6, 5, 4)))
    norm.trainable = False
    model.get_layer("dense").trainable = False
    new, receipt = S.swap(model, "batch", "group", groups=4)
    made = new.get_layer("norm")
    assert (made.groups, made.axis, made.trainable, made.compute_dtype) == (3, 1, False, "float16")
    assert isinstance(made.gamma_regularizer, keras.regularizers.L2)
    assert not new.get_layer("dense").trainable
    assert receipt.rows[0].note == "3 groups (asked: 4)"
    json.dumps(receipt.to_dict())


@pytest.mark.parametrize("inplace", [False, True])
def test_flags_and_layers_that_are_hard_to_copy(inplace):
    lambda_layer = L.Lambda(lambda x: keras.ops.abs(x) + 1.0, name="lambda")
    layers = [L.RandomFlip(), lambda_layer, L.Conv2D(4, 3), L.BatchNormalization(name="norm"), L.Dropout(0.5)]
    model, x = filled(functional(layers, (8, 8, 3))), data(2, 8, 8, 3)
    model.trainable = False
    layers[2].trainable = True
    want = run(model, x)[0]
    new, receipt = S.fold(model, probe=x, inplace=inplace)
    assert len(receipt.rows) == 1
    relative(run(new, x)[0], want, 1e-5)
    assert (new.trainable, new.get_layer(layers[2].name).trainable) == (False, True)
    assert not new.get_layer(layers[4].name).trainable


@slow_on_jax
def test_several_inputs_integers_and_masks():
    inputs = {"words": keras.Input((7,), dtype="int32", name="words"), "numbers": keras.Input((6,), name="numbers")}
    x = L.BatchNormalization(name="norm")(L.Embedding(11, 6, mask_zero=True)(inputs["words"]))
    x = L.Dense(6)(L.LSTM(6)(x) + inputs["numbers"])
    model = filled(keras.Model(inputs, {"y": L.BatchNormalization(name="last")(x)}))
    _, receipt = S.fold(model)
    assert [row.name for row in receipt.rows] == ["last"]
    assert receipt.difference < 1e-5 * receipt.largest
    words = np.random.default_rng(0).integers(0, 11, (5, 7))
    fresh, receipt = S.reestimate(model, [({"words": words, "numbers": data(5, 6)}, None)])
    embedded = np.array(model.layers[1].embeddings)[words[words > 0]].astype(np.float64)
    np.testing.assert_allclose(np.array(fresh.get_layer("norm").moving_mean), embedded.mean(0), rtol=1e-4, atol=1e-6)


def test_swapped_and_folded_models_are_saved_and_train_on(tmp_path):
    model = filled(functional([L.Conv2D(4, 3), L.BatchNormalization(), L.Flatten(), L.Dense(1)], (8, 8, 3)))
    model.compile("adam", "mse")
    x = data(4, 8, 8, 3)
    for new, receipt in (S.swap(model, "batch", "group", groups=2), S.fold(model)):
        assert new.compiled
        assert "the optimizer begins afresh" in " ".join(receipt.notes)
        new.save(tmp_path / "new.keras")
        assert np.array_equal(run(keras.saving.load_model(tmp_path / "new.keras"), x)[0], run(new, x)[0])
        want = run(model, x)[0]
        new.fit(x, data(4, 1), verbose=0)
        assert np.array_equal(run(model, x)[0], want), "the given model has arrays of its own"
        back, _ = S.revert(new, receipt)
        assert np.array_equal(back.layers[2].moving_mean, model.layers[2].moving_mean)


def test_swap_on_maps_of_one_element():
    shape = (1, 1, 32)
    model = filled(functional([L.BatchNormalization(name="norm")], shape))
    new, receipt = S.swap(model, "batch", "group", groups=32)
    assert receipt.rows[0].note == "4 groups (asked: 32); each statistic is over 8 elements"
    assert np.abs(run(new, data(2, *shape))[0] - np.array(model.get_layer("norm").beta)).max() > 0.1
    assert "nothing of the input would be left" in reasons(S.swap(model, "batch", "instance")[1])["norm"]
    # A shared norm has the least of its inputs.
    norm, inputs = L.BatchNormalization(name="norm"), keras.Input((4, 4, 8))
    both = keras.Model(inputs, norm(inputs) + norm(L.GlobalAveragePooling2D(keepdims=True)(inputs)))
    assert S.swap(both, "batch", "group")[0].get_layer("norm").groups == 1
    # And where the size is open, a group has at least two channels, until an input says it.
    wide = functional([L.BatchNormalization(name="norm")], (None, None, 8))
    assert S.swap(wide, "batch", "group")[0].get_layer("norm").groups == 4
    assert S.swap(wide, "batch", "group", probe=data(1, 5, 5, 8))[0].get_layer("norm").groups == 8


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.front, self.norm = L.Dense(5), L.BatchNormalization(name="norm")

    def call(self, x: Any, training: bool = False) -> Any:
        return self.norm(self.front(x), training=training)


def test_a_model_of_one_s_own_class():
    model, x = Subclassed(), data(8, 4)
    model(x)
    for operation in (S.fold, lambda m: S.swap(m, "batch", "group")):
        with pytest.raises(ValueError, match="a class of its own, Subclassed"):
            operation(model)
    for operation in (S.freeze, lambda m: S.reestimate(m, x)):
        with pytest.raises(ValueError, match="inplace=True"):
            operation(model)
    same, receipt = S.reestimate(model, x, batch_size=8, inplace=True, probe=x)
    assert same is model
    y = run(model.front, x)[0].astype(np.float64)
    np.testing.assert_allclose(np.array(model.norm.moving_mean), y.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.array(model.norm.moving_variance), y.var(0), rtol=1e-4)
    assert receipt.difference > 0
    S.freeze(model, inplace=True)
    assert not model.norm.trainable
    assert [facts.name for facts in S.inspect(model)] == ["norm"]
    assert len(S.weight_decay_groups(model)[0]) == 1


def test_models_that_have_no_graph_yet():
    with pytest.raises(ValueError, match="build it"):
        S.fold(keras.Sequential([L.Dense(5), L.BatchNormalization()]))


def test_freeze_and_unfreeze():
    model = filled(nested())
    model.get_layer("head").trainable = False
    frozen, receipt = S.freeze(model, "batch")
    assert receipt.difference == 0
    assert not frozen.get_layer("head_norm").trainable
    assert frozen.get_layer("deep").get_layer("group").trainable
    assert not frozen.get_layer("head").trainable
    assert model.get_layer("head_norm").trainable
    before = weights(frozen)
    frozen.compile("sgd", "mse")
    frozen.get_layer("inner")(data(2, 8, 8, 6), training=True)
    assert unchanged(frozen, before)
    learning, undo = S.unfreeze(frozen, "batch")
    assert learning.get_layer("head_norm").trainable
    assert not S.revert(learning, undo)[0].get_layer("head_norm").trainable


def test_reestimated_statistics_are_those_of_the_data():
    model = filled(nested())
    before = weights(model)
    x = data(11, 8, 8, 6) * 3 + np.arange(11, dtype="float32").reshape(-1, 1, 1, 1)
    batches = [(x[i : i + 4], None) for i in (0, 4, 8)]
    new, receipt = S.reestimate(model, batches)
    assert unchanged(model, before)
    assert receipt.notes == ["3 batches"]
    again, _ = S.reestimate(model, x, batch_size=4)
    assert unchanged(again, weights(new))
    # By hand, with the layers called one after the other; the shared norm sees two inputs in each batch.
    inner, deep = model.get_layer("inner"), model.get_layer("deep")
    conv, norm = inner.layers
    seen = []
    for part, _ in batches:
        y = deep.get_layer("group")(part)
        for _ in range(2):
            y = keras.ops.convert_to_numpy(conv(y))
            seen.append(y.reshape(-1, 6).astype(np.float64))
            scale = np.array(norm.gamma) / np.sqrt(seen[-1].var(0) + norm.epsilon)
            y = ((y - seen[-1].mean(0)) * scale + np.array(norm.beta)).astype("float32")
    everything = np.concatenate(seen)
    made = new.get_layer("inner").get_layer("norm")
    np.testing.assert_allclose(np.array(made.moving_mean), everything.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.array(made.moving_variance), everything.var(0), rtol=1e-4)
    back, _ = S.revert(new, receipt)
    assert unchanged(back, before)


def test_reestimate_does_not_count_what_is_masked():
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, L.BatchNormalization(name="norm")(L.Masking()(inputs)))
    x = data(6, 5, 4)
    x[:, 3:] = 0
    new, _ = S.reestimate(model, x, batch_size=4)
    seen = x[:, :3].reshape(-1, 4).astype(np.float64)
    norm = new.get_layer("norm")
    np.testing.assert_allclose(np.array(norm.moving_mean), seen.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.array(norm.moving_variance), seen.var(0), rtol=1e-5)


def test_reestimate_leaves_all_as_it_was_where_it_ends_early():
    model = filled(functional([L.Dense(5), L.BatchNormalization(name="norm")], (4,)))
    before, kind = weights(model), type(model.get_layer("norm"))

    def interrupted() -> Any:
        yield data(4, 4)
        raise KeyboardInterrupt

    bad = data(4, 4)
    bad[0, 0] = np.nan
    for batches, error in ((interrupted(), KeyboardInterrupt), ([data(4, 4), bad], ValueError), ([], ValueError)):
        with pytest.raises(error):
            S.reestimate(model, batches, inplace=True, probe=False)
        assert unchanged(model, before)
        assert type(model.get_layer("norm")) is kind


def test_weight_decay_exclusions_are_the_optimizer_s():
    model = filled(nested())
    excluded, receipt = S.weight_decay_groups(model)
    assert {w.name for w in excluded} == {"gamma", "beta", "bias"}
    assert len({id(w) for w in excluded}) == len(excluded) == 7
    optimizer = keras.optimizers.AdamW(weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_list=excluded)
    decays = {w.name for w in model.trainable_variables if optimizer._use_weight_decay(w)}
    assert decays == {"kernel"}
    assert receipt.before == receipt.after == model.count_params()


def test_inspect_a_saved_model(tmp_path):
    pytest.importorskip("click")
    from click.testing import CliRunner

    from anynorm.cli.app import app

    body = keras.Sequential([keras.Input((8, 8, 6)), L.GroupNormalization(3, name="group")], name="body")
    inputs = keras.Input((8, 8, 6))
    x = K.InstanceNormalization(name="instance")(body(inputs))
    x = L.Dense(4)(L.GlobalAveragePooling2D()(x))
    model = filled(keras.Model(inputs, L.BatchNormalization(name="head_norm")(x)))
    model.get_layer("head_norm").moving_variance.assign(np.array([0, 1e-3, 1, 1], "float32"))
    model.save(tmp_path / "model.keras")
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "model.keras"), "--batch", "4"], env={"COLUMNS": "140"})
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    for word in (
        "model.keras: 3 norms, 1 with doubts",
        "n [...] (g [c])",
        "body/group",
        "0.001",
        "head_norm: moving_variance is 0 in 1 of 4",
        "eps 0.001 is too large",
        "head_norm: statistics over 4 elements",
    ):
        assert word in words, (word, result.output)
    found = json.loads(CliRunner().invoke(app, ["inspect", str(tmp_path / "model.keras"), "--json"]).output)
    assert [facts["name"] for facts in found] == ["body/group", "instance", "head_norm"]
    assert found[0]["shapes"] == [[None, 8, 8, 6]]


def test_fold_says_where_a_constraint_would_undo_it():
    model = keras.Sequential(
        [keras.Input((9, 9, 3)), keras.layers.Conv2D(6, 3, kernel_constraint="max_norm"), K.BatchNormalization()]
    )
    assert "kernel_constraint" in S.fold(model)[1].rows[0].note


def test_reestimate_refuses_statistics_that_half_precision_does_not_hold():
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(dtype="float16")])
    data = (np.random.default_rng(0).normal(size=(100, 3)) * 1000).astype("float16")
    with pytest.raises(ValueError, match="the most that float16 holds"):
        S.reestimate(model, data, batch_size=100, inplace=True, progress=False)
    assert np.array_equal(keras.ops.convert_to_numpy(model.layers[0].moving_variance), np.ones(3))
