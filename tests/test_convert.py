"""Conversions: every layer to every framework and back, by its answer; and what each dialect calls otherwise."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from test_normalize import seed

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
keras = pytest.importorskip("keras")
nnx = pytest.importorskip("flax.nnx")

import anynorm.keras as K  # noqa: E402, N812
import anynorm.nnx as A  # noqa: E402, N812
import anynorm.torch as T  # noqa: E402, N812
from anynorm.convert import convert, convert_state, model_state, norm_mapping, norm_names  # noqa: E402
from anynorm.reference import Reference  # noqa: E402

C = 6


def values(*shape: int) -> np.ndarray:
    return (seed(str(shape)).uniform(0.5, 1.5, shape) + np.arange(shape[-1])).astype(np.float32)


def of_torch(layer: Any) -> Any:
    state = layer.state_dict()
    new = [torch.tensor(values(*v.shape) + i) if v.ndim else v for i, v in enumerate(state.values())]
    layer.load_state_dict(dict(zip(state, new, strict=True)))
    return layer.eval()


def of_keras(layer: Any, *shape: int | None) -> Any:
    layer.build(shape or (None, 5, 7, C))
    layer.set_weights([values(*w.shape) + i for i, w in enumerate(layer.weights)])
    return layer


def of_nnx(layer: Any) -> Any:
    names = ("scale", "bias", "mean", "var")
    for i, name in enumerate(names):
        variable = getattr(layer, name, None)
        if variable is not None:
            variable.set_value(values(*variable.shape) + i)
    return layer


def of_addons(name: str, *weights: np.ndarray, **config: Any) -> dict[str, Any]:
    return {"class_name": f"Addons>{name}", "config": config, "weights": list(weights)}


R = {"rngs": nnx.Rngs(0)}
LAYERS = {
    "torch batch": lambda: of_torch(torch.nn.BatchNorm2d(C, 1e-2, 0.3)),
    "torch batch, 2 dimensions": lambda: of_torch(T.BatchNorm1d(C, affine=False)),
    "torch group": lambda: of_torch(torch.nn.GroupNorm(3, C)),
    "torch instance": lambda: of_torch(torch.nn.InstanceNorm1d(C, affine=True)),
    "torch layer": lambda: of_torch(torch.nn.LayerNorm(C, bias=False)),
    "torch layer, channels": lambda: of_torch(T.LayerNorm2d(C)),
    "torch layer, image": lambda: of_torch(torch.nn.LayerNorm((C, 5, 7))),
    "torch RMS": lambda: of_torch(torch.nn.RMSNorm(C)),
    "torch sentence": lambda: of_torch(T.Norm("n h [w] (g [c])", affine="w (g c)", w=5, g=3, c=2)),
    "keras batch": lambda: of_keras(keras.layers.BatchNormalization(momentum=0.8)),
    "keras batch, channels first": lambda: of_keras(K.BatchNormalization(axis=1, scale=False), None, C, 5, 7),
    "keras group": lambda: of_keras(keras.layers.GroupNormalization(3)),
    "keras group, channels second": lambda: of_keras(K.GroupNormalization(2, axis=2), None, 5, C, 7),
    "keras instance": lambda: of_keras(keras.layers.GroupNormalization(-1, center=False)),
    "keras layer": lambda: of_keras(keras.layers.LayerNormalization(), None, 5, C),
    "keras layer, the tutorial's": lambda: of_keras(K.LayerNormalization(axis=1)),
    "keras layer, the middle": lambda: of_keras(K.LayerNormalization(axis=2)),
    "keras layer, image": lambda: of_keras(keras.layers.LayerNormalization(axis=[1, 2, 3])),
    "keras RMS": lambda: of_keras(keras.layers.RMSNormalization()),
    "keras sentence": lambda: of_keras(K.Normalization("n [h] w c", affine="h")),
    "nnx batch": lambda: of_nnx(nnx.BatchNorm(C, momentum=0.6, use_running_average=True, **R)),
    "nnx group": lambda: of_nnx(nnx.GroupNorm(C, 2, **R)),
    "nnx instance": lambda: of_nnx(A.InstanceNorm(C, feature_axes=1, **R)),
    "nnx layer": lambda: of_nnx(nnx.LayerNorm(C, **R)),
    "nnx RMS": lambda: of_nnx(nnx.RMSNorm(C, **R)),
    "nnx sentence": lambda: of_nnx(A.Norm("n [t] c", C, remove="scale", **R)),
    "addons group": lambda: of_addons("GroupNormalization", values(C), values(C) + 1, groups=3, axis=-1, epsilon=1e-3),
    "addons instance": lambda: of_addons("InstanceNormalization", values(C), axis=1, center=False),
    "addons response": lambda: of_addons(
        "FilterResponseNormalization",
        np.array([-0.5], np.float32),
        values(1, 1, 1, C),
        values(1, 1, 1, C) + 1,
        learned_epsilon=True,
    ),
}


# torch has an offset only beside a scale, and gives these one of ones.
NO_SCALE = {"keras batch, channels first"}


@pytest.mark.parametrize("to", ["torch", "keras", "nnx"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_there_and_back(name, to):
    layer = LAYERS[name]()
    there, difference = convert(layer, to=to, check=True)
    assert type(there).__module__.split(".")[:2] == ["anynorm", to]
    assert difference < 2e-5
    back = name.split()[0]
    again, difference = convert(there, to=back, check=True)
    assert difference < 2e-5
    once = convert(layer, to=back)
    if to == "torch" and name in NO_SCALE:
        assert (parameters(again)[0] == 1).all()
        return
    # Flax has no layer that learns its epsilon.
    learned = to == "nnx" and name == "addons response"
    for a, b in zip(parameters(once)[learned:], parameters(again), strict=True):
        np.testing.assert_array_equal(a, b)


def parameters(layer: Any) -> list[np.ndarray]:
    if isinstance(layer, dict):
        return layer["weights"]
    # Under its torch backend Keras's layers are torch's modules too.
    if isinstance(layer, keras.layers.Layer):
        return layer.get_weights()
    if isinstance(layer, torch.nn.Module):
        return [v.numpy() for k, v in layer.state_dict().items() if k != "num_batches_tracked"]
    return [np.asarray(v[...]) for _, v in nnx.to_flat_state(nnx.state(layer))]


def test_the_answer_is_float64_s():
    """Not only the other layer's: from the numbers, by the oracle, in a layout that moved."""
    layer = convert(LAYERS["torch batch"](), to="keras")
    x = values(3, 5, 7, C) * 10
    w = {name: np.asarray(getattr(layer, name)) for name in ("gamma", "beta", "moving_mean", "moving_variance")}
    want = (x - w["moving_mean"].astype(float)) / np.sqrt(w["moving_variance"] + 1e-2) * w["gamma"] + w["beta"]
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer(x)), want, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(w["moving_variance"], values(C) + 3)
    group = convert(LAYERS["addons group"](), to="torch")
    want = Reference(x, "n [...] (g [c])", values(C), values(C) + 1, affine="g c", eps=1e-3, g=3).y
    y = group(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(y.detach().numpy(), want, rtol=0, atol=1e-5)


def test_training_goes_on_as_it_was():
    """Momentum mirrored, and each with its own rule for the running variance where the target has one."""
    x = values(4, C) * np.array([[1.0], [2.0], [-1.0], [3.0]], np.float32)
    old = of_torch(torch.nn.BatchNorm1d(C, momentum=0.3)).train()
    ours, flax = convert(old, to="torch"), convert(old, to="nnx")
    back = convert(flax, to="torch", rank=2)
    assert (back.momentum, back.correction, ours.correction) == (pytest.approx(0.3), 0, 1)
    layer = convert(old, to="keras", rank=2)
    for module in (old, ours, back):
        module(torch.tensor(x))
    flax(x)
    layer(x, training=True)
    assert flax.momentum == layer.momentum == pytest.approx(0.7)
    np.testing.assert_allclose(ours.running_var, old.running_var, rtol=1e-6)
    for mean, variance in ((layer.moving_mean, layer.moving_variance), (flax.mean[...], flax.var[...])):
        np.testing.assert_allclose(np.asarray(mean), old.running_mean, rtol=1e-5)
        np.testing.assert_allclose(np.asarray(variance), back.running_var, rtol=1e-5)
        np.testing.assert_allclose(np.asarray(variance), 0.7 * (values(C) + 3) + 0.3 * x.var(0), rtol=1e-5)
    assert convert(old.eval(), to="nnx").use_running_average
    assert not convert(flax, to="torch").eval().training


def test_where_the_channels_go():
    batch, layer = LAYERS["torch batch"](), LAYERS["torch layer, image"]()
    assert convert(batch, to="keras").axis == -1
    assert convert(batch, to="keras", channels="first").axis == 1
    assert convert(batch, to="nnx", channels="first").axis == 1
    assert isinstance(convert(LAYERS["keras layer"](), to="torch"), T.LayerNorm)
    assert isinstance(convert(LAYERS["keras layer"](), to="torch", channels="first"), T.LayerNorm2d)
    kept, moved = convert(layer, to="keras"), convert(layer, to="keras", channels="last", check=True).layer
    assert (kept.gamma.shape, moved.gamma.shape) == ((C, 5, 7), (5, 7, C))
    np.testing.assert_array_equal(np.asarray(moved.gamma), np.moveaxis(np.asarray(kept.gamma), 0, -1))
    back = convert(moved, to="torch", channels="first", check=True).layer
    np.testing.assert_array_equal(back.weight.detach(), layer.weight.detach())


def test_which_class_torch_gets():
    """By the rank that the layer knows, or that is said."""
    image = LAYERS["keras batch"]()
    assert isinstance(convert(image, to="torch"), T.BatchNorm2d)
    assert isinstance(convert(LAYERS["nnx batch"](), to="torch", rank=5, check=True).layer, T.BatchNorm3d)
    assert isinstance(convert(of_keras(K.BatchNormalization(), None, C), to="torch", check=True).layer, T.BatchNorm1d)
    assert isinstance(convert(LAYERS["keras layer, the middle"](), to="torch"), T.Norm)


def test_addons_both_ways():
    made = convert(LAYERS["torch instance"](), to="addons")
    assert made["class_name"] == "Addons>InstanceNormalization"
    assert made["config"] == {"groups": -1, "axis": -1, "epsilon": 1e-5, "scale": True, "center": True}
    with pytest.warns(UserWarning, match="learned epsilon is part of eps now"):
        response = convert(LAYERS["addons response"](), to="nnx")
    assert response.epsilon == pytest.approx(0.5 + 1e-6)
    again = convert(LAYERS["addons response"](), to="addons")
    assert [w.shape for w in again["weights"]] == [(1,), (1, 1, 1, C), (1, 1, 1, C)]


def with_short_mean(layer: Any) -> Any:
    layer.running_mean = torch.zeros(4)
    return layer


BARE = of_addons("InstanceNormalization", scale=False, center=False)
PAIR = values(C), values(C)
BAD = of_addons("InstanceNormalization", values(C), values(C), axis=-2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: convert(torch.nn.Linear(2, 3), to="keras"), "no normalization layer"),
        (lambda: convert(keras.layers.Dense(3), to="torch"), "no normalization layer"),
        (lambda: convert(nnx.Linear(2, 3, **R), to="torch"), "no normalization module"),
        (lambda: convert(np.ones(3), to="torch"), "no layer of torch, Keras or Flax"),
        (lambda: convert(torch.nn.GroupNorm(3, C), to="mxnet"), "no dialect"),
        (lambda: convert(torch.nn.GroupNorm(3, C), to="keras", channels="middle"), '"first" or "last"'),
        (lambda: convert(torch.nn.BatchNorm2d(C, momentum=None), to="keras"), "plain average"),
        (lambda: convert(torch.nn.BatchNorm2d(C, track_running_stats=False), to="keras"), "no counterpart"),
        (lambda: convert(torch.nn.InstanceNorm2d(C, track_running_stats=True), to="nnx"), "no counterpart"),
        (lambda: convert(keras.layers.BatchNormalization(), to="torch"), "build it"),
        (lambda: convert(of_keras(keras.layers.BatchNormalization(renorm=True)), to="torch"), "renorm"),
        (lambda: convert(LAYERS["torch batch"](), to="torch", channels="last"), "channels on axis 1"),
        (lambda: convert(LAYERS["torch batch"](), to="torch", rank=6), "for 6 dimensions"),
        (lambda: convert(nnx.GroupNorm(C, 2, reduction_axes=(1, -1), **R), to="torch"), "with Norm"),
        (lambda: convert(nnx.LayerNorm(C, reduction_axes=1, **R), to="torch"), "with Norm"),
        (lambda: convert(BAD, to="torch"), "on axis -2"),
        (lambda: convert(of_addons("WeightNormalization"), to="torch"), "none of the normalizations"),
        (lambda: convert(of_addons("InstanceNormalization", values(C)), to="torch"), "2 weights"),
        (lambda: convert(of_addons("InstanceNormalization", *PAIR, axis=[1]), to="torch"), "one axis behind"),
        (lambda: convert(of_addons("GroupNormalization", *PAIR), to="torch"), "says no groups"),
        (
            lambda: convert(of_addons("FilterResponseNormalization", *PAIR, axis=[2, 3]), to="torch"),
            r"the axis \[1, 2\]",
        ),
        (lambda: convert(of_addons("FilterResponseNormalization", values(C)), to="torch"), "1 weights"),
        (lambda: convert(of_addons("InstanceNormalization", *np.ones((2, C), int)), to="torch"), "is of int64"),
        (lambda: convert({"a": np.ones(3)}, to="torch"), '"class_name": ...'),
        (lambda: convert([torch.nn.LayerNorm(C)], to="nnx"), "or a list of these"),
        (lambda: convert(torch.nn.LayerNorm(C, dtype=torch.complex64), to="nnx"), "is of complex64"),
        (lambda: convert(torch.nn.LayerNorm(C), to="keras", rank=0), "rank is the number"),
        (lambda: convert(with_short_mean(torch.nn.BatchNorm2d(C)), to="nnx"), r"mean has the shape \(4,\)"),
        (
            lambda: convert(BARE, to="torch"),
            "how many channels",
        ),
        (lambda: convert(LAYERS["torch batch"](), to="addons"), "has no batch"),
        (lambda: convert(LAYERS["torch batch"](), to="keras", check=True, tolerance=0.0), "differs by"),
    ],
)
def test_errors_say_what_is_wrong(make, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make()


def test_a_wrong_conversion_is_found_out(monkeypatch):
    """The check can fail: with another eps, with the channels moved the wrong way, with the parameters swapped."""
    from anynorm.convert import nnx as dialect

    write = dialect.write
    for spoil in (
        lambda norm: {"eps": 2 * norm.eps},
        lambda norm: {"scale": norm.offset, "offset": norm.scale},
        lambda norm: {"variance": norm.variance * 1.01},
        lambda norm: {"mean": norm.mean[::-1]},
    ):
        monkeypatch.setattr(dialect, "write", lambda norm, spoil=spoil: write(dataclasses.replace(norm, **spoil(norm))))
        with pytest.raises(ValueError, match="differs by"):
            convert(LAYERS["torch batch"](), to="nnx", check=True)


def models() -> dict[str, Any]:
    """The same layers, untrained, as a model of each framework."""
    in_torch = torch.nn.Sequential(torch.nn.Linear(4, C), torch.nn.BatchNorm1d(C), torch.nn.LayerNorm(C))
    norms = [module(C, epsilon=1e-5, **R) for module in (nnx.BatchNorm, nnx.LayerNorm)]
    in_nnx = nnx.Sequential(nnx.Linear(4, C, **R), *norms)
    return {"torch": in_torch, "nnx": in_nnx}


def test_whole_states_by_a_mapping_of_names():
    made = models()
    of_torch(made["torch"])
    names = {"1": "layers.1", "2": "layers.2"}
    state = convert_state(made["torch"].state_dict(), names, source="torch", to="nnx")
    taken = nnx.state(made["nnx"])
    nnx.replace_by_pure_dict(taken, state)
    nnx.update(made["nnx"], taken)
    x = values(5, C)
    want = made["torch"][1:](torch.tensor(x)).detach()
    made["nnx"].eval()
    y = x
    for layer in made["nnx"].layers[1:]:
        y = layer(y)
    # Flax's variance is the mean of squares less the square of the mean, in float32: it rounds as XLA's code for the
    # processor adds, by more than an exact conversion does. A parameter in another's place is wrong by far more.
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-4)
    pure = nnx.to_pure_dict(nnx.state(made["nnx"]))
    back = convert_state(pure, {theirs: ours for ours, theirs in names.items()}, source="nnx", to="torch")
    fresh = models()["torch"]
    assert set(back) == {key for key in fresh.state_dict() if not key.startswith("0")}
    fresh.load_state_dict(back, strict=False)
    for key, value in back.items():
        if value.ndim:
            np.testing.assert_array_equal(value, made["torch"].state_dict()[key])


def test_states_of_every_pair():
    arrays = {"gamma": values(C), "beta": values(C) + 1, "moving_mean": values(C) + 2, "moving_variance": values(C) + 3}
    start = {f"a/bn/{name}": array for name, array in arrays.items()}
    for one, other in itertools.permutations(["torch", "keras", "nnx"], 2):
        there = convert_state(start, {"a/bn": "norm"}, source="keras", to=one)
        middle = convert_state(there, {"norm": "x"}, source=one, to=other)
        again = convert_state(middle, {"x": "a/bn"}, source=other, to="keras")
        assert list(again) == list(start)
        for key, array in start.items():
            np.testing.assert_array_equal(again[key], array)
    whole = convert_state({"k": {"kernel": values(3)}}, {"k.kernel": "conv/kernel"}, source="nnx", to="keras")
    assert list(whole) == ["conv/kernel"]
    with pytest.raises(KeyError, match="no entry"):
        convert_state(start, {"b": "norm"}, source="keras", to="torch")
    with pytest.raises(KeyError, match="no parameter of a normalization"):
        convert_state({"fc.weight2": values(3)}, {"fc": "x"}, source="torch", to="keras")


TWO = {"0.weight": values(3), "1.weight": values(3)}


@pytest.mark.parametrize(
    ("state", "names", "to", "words"),
    [
        (TWO, {"0": "x", "1": "x"}, "keras", '"1.weight" would be "x/gamma" in keras, and so would be another'),
        (TWO, {"0": "a", "1": "a.scale"}, "nnx", 'would be in "scale", which is an array'),
        (TWO, {"0": "a.scale", "1": "a"}, "nnx", "would be an array, and others are in it"),
        (torch.nn.LayerNorm(3), {"": "x"}, "nnx", "as model_state"),
        (TWO, ["0"], "nnx", "takes {name here"),
        ({}, {"0": "x"}, "nnx", "it has none at all"),
        ({"0.weight": "words"}, {"0": "x"}, "nnx", "no numbers"),
        ({"0.weight": None}, {"0": "x"}, "keras", "no numbers"),
    ],
    ids=str,
)
def test_states_that_would_lose_something_are_refused(state, names, to, words):
    with pytest.raises((KeyError, TypeError, ValueError), match=words):
        convert_state(state, names, source="torch", to=to)


def test_broken_numbers_come_along():
    """NaN for NaN is no difference, and another number is one."""
    layer = of_torch(torch.nn.BatchNorm2d(C))
    layer.weight.data[1] = float("nan")
    layer.num_batches_tracked = None
    for to in ("torch", "keras", "nnx"):
        assert convert(layer, to=to, check=True).difference < 1e-4
    assert convert(torch.nn.Sequential(), to="nnx", check=True).difference == 0


CHAINS = {
    "torch": lambda: torch.nn.Sequential(
        LAYERS["torch batch"](), torch.nn.Sequential(LAYERS["torch group"](), LAYERS["torch layer, channels"]())
    ),
    "keras": lambda: keras.Sequential([keras.Input((5, 7, C)), LAYERS["keras batch"](), LAYERS["keras group"]()]),
    "nnx": lambda: nnx.Sequential(LAYERS["nnx batch"](), LAYERS["nnx group"]()),
}


@pytest.mark.parametrize("to", ["torch", "keras", "nnx"])
@pytest.mark.parametrize("name", CHAINS)
def test_chains_of_norms(name, to):
    chain = CHAINS[name]()
    made, difference = convert(chain, to=to, check=True)
    assert difference < 2e-5
    for model in (chain, made):
        if hasattr(model, "eval"):
            model.eval()
    x = values(3, 5, 7, C)
    one, other = answer(chain, x), answer(made, x)
    np.testing.assert_allclose(other, one, rtol=0, atol=5e-5 * np.abs(one).max())


def answer(model: Any, x: np.ndarray) -> np.ndarray:
    """Of a model in evaluation, for an input and with a result whose channels are last."""
    if isinstance(model, keras.layers.Layer):
        return keras.ops.convert_to_numpy(model(x, training=False))
    if isinstance(model, torch.nn.Module):
        return model(torch.tensor(x).movedim(-1, 1)).movedim(1, -1).detach().numpy()
    return np.asarray(model(x))


def test_chains_keep_one_layout():
    chain = torch.nn.Sequential(LAYERS["torch batch"](), of_torch(torch.nn.LayerNorm(7)))
    with pytest.raises(ValueError, match='say channels="kept"'):
        convert(chain, to="keras")
    x = values(3, C, 5, 7)
    for to in ("keras", "nnx"):
        made = convert(chain, to=to, channels="kept", check=True).layer
        np.testing.assert_allclose(answer(made, x), chain(torch.tensor(x)).detach(), rtol=0, atol=1e-4)


def test_a_model_with_other_layers_says_what_to_do():
    """And what it says does it."""
    made = models()
    of_torch(made["torch"])
    with pytest.raises(
        TypeError, match=r"Linear is no .* its 2 normalizations .* convert_state\(model_state\(model\), "
    ):
        convert(made["torch"], to="nnx")
    with pytest.raises(TypeError, match=r'"layers.1": ..., "layers.2": ...'):
        convert(made["nnx"], to="torch")
    assert (norm_names(made["torch"]), norm_names(made["nnx"])) == (["1", "2"], ["layers.1", "layers.2"])
    names = norm_mapping(made["torch"], made["nnx"])
    state = convert_state(model_state(made["torch"]), names, source="torch", to="nnx")
    nnx.update(made["nnx"], state)
    np.testing.assert_array_equal(made["nnx"].layers[1].mean[...], made["torch"][1].running_mean)
    np.testing.assert_array_equal(made["nnx"].layers[2].scale[...], made["torch"][2].weight.detach())
    inputs = keras.Input((4,))
    y = keras.layers.LayerNormalization(name="b")(
        keras.layers.BatchNormalization(name="a")(keras.layers.Dense(C)(inputs))
    )
    model = keras.Model(inputs, y)
    names = norm_mapping(made["torch"], model)
    assert names == {"1": "a", "2": "b"}
    state = convert_state(model_state(made["torch"]), names, source="torch", to="keras")
    for variable in model.variables:
        variable.assign(state.get(variable.path, variable))
    np.testing.assert_array_equal(np.asarray(model.get_layer("a").moving_variance), made["torch"][1].running_var)
    with pytest.raises(TypeError, match="Functional is no"):
        convert(model, to="torch")
    assert convert_state(model_state(model), {"a": "x"}, source="keras", to="torch").keys() >= {"x.weight", "x.bias"}


def test_addons_states_mean_what_their_equations_say():
    """From the names and shapes that its files have, into a module, against the equation on the numbers."""
    gamma, beta, x = values(C), values(C) + 1, values(3, 5, 7, C)
    file = {
        "group_normalization": {"group_normalization": {"gamma:0": gamma, "beta:0": beta}},
        "frn/gamma:0": gamma.reshape(1, 1, 1, C),
        "frn/beta:0": beta.reshape(1, 1, 1, C),
        "frn/learned_epsilon:0": np.array([-0.5], np.float32),
    }
    names = {"group_normalization/group_normalization": "norm"}
    layer = T.GroupNorm(3, C, eps=1e-3)
    state = {k.removeprefix("norm."): v for k, v in convert_state(file, names, source="addons", to="torch").items()}
    layer.load_state_dict(state)
    groups = x.astype(float).reshape(3, 35, 3, C // 3)
    mean, variance = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    want = ((groups - mean) / np.sqrt(variance + 1e-3)).reshape(x.shape) * gamma + beta
    np.testing.assert_allclose(answer(layer, x), want, rtol=0, atol=1e-5)
    response = T.Norm("n c [...]", c=C, remove="scale", eps=0.5 + 1e-6)
    frn = {k: v for k, v in file.items() if "epsilon" not in k}
    state = convert_state(frn, {"frn": "x"}, source="addons", to="torch")
    response.load_state_dict({k.removeprefix("x."): v for k, v in state.items()})
    want = x / np.sqrt((x.astype(float) ** 2).mean((1, 2), keepdims=True) + 0.5 + 1e-6) * gamma + beta
    np.testing.assert_allclose(answer(response, x), want, rtol=0, atol=2e-5)
    with pytest.raises(KeyError, match="learned_epsilon"):
        convert_state(file, {"frn": "x"}, source="addons", to="nnx")
    learned = T.FilterResponseNorm(C, learned_eps=True)
    state = convert_state(file, {"frn": ""}, source="addons", to="torch")
    learned.load_state_dict(state)
    np.testing.assert_allclose(answer(learned, x), want, rtol=0, atol=2e-5)
    back = convert_state(layer.state_dict(), {"weight": "g/gamma", "bias": "g/beta"}, source="torch", to="addons")
    np.testing.assert_array_equal(back["g/gamma"], gamma)


def test_converting_imports_no_third_framework():
    code = (
        "import sys, numpy as np, anynorm.convert as c\n"
        "assert not {'torch', 'jax', 'keras', 'flax'} & set(sys.modules)\n"
        "c.convert({'class_name': 'InstanceNormalization', 'config': {}, 'weights': [np.ones(3)] * 2}, to='torch')\n"
        "assert not {'jax', 'keras', 'flax'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
