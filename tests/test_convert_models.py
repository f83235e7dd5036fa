"""Norms of whole models by name: the right ones or none; layers that convert refuses, keeps or says it cannot keep."""

from __future__ import annotations

import os
import warnings
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch import nn

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
keras = pytest.importorskip("keras")
nnx = pytest.importorskip("flax.nnx")

import anynorm.keras as K  # noqa: E402, N812
import anynorm.nnx as A  # noqa: E402, N812
import anynorm.torch as T  # noqa: E402, N812
from anynorm.convert import convert, convert_state, model_state, norm_mapping, norm_names  # noqa: E402

C = 6
R = {"rngs": nnx.Rngs(0)}


class InTorch(nn.Module):
    def __init__(self, first: str = "norm_in", second: str = "attn_norm") -> None:
        super().__init__()
        setattr(self, first, nn.LayerNorm(C, eps=1e-6))
        setattr(self, second, nn.LayerNorm(C, eps=1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn_norm(self.norm_in(x).square())


class InFlax(nnx.Module):
    def __init__(self) -> None:
        self.norm_in = A.LayerNorm(C, **R)
        self.attn_norm = A.LayerNorm(C, **R)

    def __call__(self, x: Any) -> Any:
        return self.attn_norm(self.norm_in(x) ** 2)


def _called(given: Any) -> str:
    """The name of a case: what Flax prints has addresses in it, which every process of pytest-xdist has its own."""
    return given if isinstance(given, str) else type(given).__name__


def filled(model: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return model.eval()


def test_equal_names_are_paired_whatever_their_order():
    one, other = filled(InTorch()), InFlax()
    assert norm_names(one) != norm_names(other), "Flax's order is the alphabet's"
    names = norm_mapping(one, other)
    assert names == {"norm_in": "norm_in", "attn_norm": "attn_norm"}
    nnx.update(other, convert_state(model_state(one), names, source="torch", to="nnx"))
    x = torch.randn(5, C)
    np.testing.assert_allclose(other(x.numpy()), one(x).detach(), rtol=0, atol=2e-5)


def test_keras_s_order_is_not_asked_for():
    """Of a model whose last layer takes the second norm first; its order of layers is not the calls'."""
    x = keras.Input((C,))
    n1 = K.LayerNormalization(name="n1")(keras.layers.Dense(C)(x))
    n2 = K.LayerNormalization(name="n2")(keras.layers.Dense(C)(x))
    model = keras.Model(x, keras.layers.Add()([n2, n1]))
    assert norm_mapping(InTorch("n1", "n2"), model) == {"n1": "n1", "n2": "n2"}
    with pytest.raises(ValueError, match=r'only you know .* "norm_in" \(layer \(6,\), scale and offset\).* There: '):
        norm_mapping(InTorch(), model)


def test_names_lose_what_depends_on_the_framework():
    inner = [nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.BatchNorm2d(C)]
    one = nn.ModuleDict({"features": nn.Sequential(*inner), "out": nn.LayerNorm(C)})

    class Other(nnx.Module):
        def __init__(self) -> None:
            self.out = nnx.LayerNorm(C, **R)
            norms = (nnx.BatchNorm(C, **R) for _ in range(2))
            self.features = nnx.Sequential(nnx.Conv(3, C, (3, 3), **R), *norms)

    wanted = {"features.1": "features.layers.1", "features.2": "features.layers.2", "out": "out"}
    assert norm_mapping(one, Other()) == wanted
    assert norm_mapping(nn.ModuleDict({"model": one}), Other()) == {f"model.{k}": v for k, v in wanted.items()}


def test_chains_are_paired_by_their_order():
    one = nn.Sequential(nn.Linear(4, C), nn.LayerNorm(C), nn.Sequential(nn.ReLU(), nn.LayerNorm(C)))
    norms = [nnx.LayerNorm(C, **R) for _ in range(2)]
    other = nnx.Sequential(nnx.Linear(4, C, **R), nnx.relu, norms[0], norms[1])
    assert norm_mapping(one, other) == {"1": "layers.2", "2.1": "layers.3"}
    model = keras.Sequential([keras.Input((C,)), *(K.LayerNormalization(name=name) for name in "ba")])
    assert [name.rpartition("/")[2] for name in norm_mapping(one, model).values()] == ["b", "a"]


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (InTorch(), nn.Sequential(nn.LayerNorm(C)), "has 2 norms and the other 1"),
        (InTorch(), InTorch("a", "b"), "write the mapping"),
        # One name in common says nothing of the others.
        (InTorch("n1", "n2"), InTorch("n2", "n3"), "write the mapping"),
        (nn.Sequential(nn.LayerNorm(C)), nn.Sequential(nn.RMSNorm(C)), r'"0" \(layer \(6,\).*\) would be "0" \(rms'),
        (nn.Sequential(nn.LayerNorm(C)), nn.Sequential(nn.LayerNorm(8)), "do not fit"),
        (nn.Sequential(nn.GroupNorm(2, C)), nn.Sequential(nn.GroupNorm(3, C)), "group of 2 .*group of 3"),
        (nn.Sequential(nn.LazyBatchNorm2d()), nn.Sequential(nn.BatchNorm2d(C)), "call it once"),
        # As many parameters of one shape, and others.
        (nn.LayerNorm(C, bias=False), nnx.LayerNorm(C, use_scale=False, **R), r"\(6,\), scale\) .* \(6,\), offset\)"),
        (T.FilterResponseNorm(C, learned_eps=True), T.FilterResponseNorm(C), "and learned_eps"),
    ],
    ids=_called,
)
def test_doubtful_pairs_are_refused(one, other, words):
    with pytest.raises(ValueError, match=words):
        norm_mapping(one, other)


def test_names_that_differ_are_paired_by_kind_and_shape():
    class Other(nnx.Module):
        def __init__(self) -> None:
            self.a, self.b, self.c = nnx.RMSNorm(C, **R), nnx.LayerNorm(8, **R), nnx.GroupNorm(C, num_groups=C, **R)

    one = nn.ModuleDict({"x": nn.InstanceNorm2d(C, affine=True), "y": nn.LayerNorm(8), "z": nn.RMSNorm(C)})
    assert norm_mapping(one, Other()) == {"x": "c", "y": "b", "z": "a"}


def test_norms_that_share_a_name_are_refused():
    """Keras takes two blocks of one name, of which a state by name would have one."""

    class Block(keras.layers.Layer):
        def __init__(self, name: str) -> None:
            super().__init__(name=name)
            self.norm = keras.layers.LayerNormalization(name="norm")

        def call(self, x: Any) -> Any:
            return self.norm(x)

    class Model(keras.Model):
        def __init__(self, *names: str) -> None:
            super().__init__(name="model")
            self.blocks = [Block(name) for name in names]

        def call(self, x: Any) -> Any:
            for block in self.blocks:
                x = block(x)
            return x

    same, own, two = Model("block", "block"), Model("one", "two"), nn.Sequential(nn.LayerNorm(C), nn.LayerNorm(C))
    for model in (same, own):
        with pytest.raises(ValueError, match="build it, or call it once"):
            norm_names(model)
        model(np.ones((2, C), "float32"))
    for call in (norm_names, model_state, lambda model: norm_mapping(two, model)):
        with pytest.raises(ValueError, match=r'are called "model/block/norm.*names of their own'):
            call(same)
    assert norm_names(own) == ["model/one/norm", "model/two/norm"]
    assert norm_names(own.blocks[0]) == ["model/one/norm"]
    with pytest.raises(ValueError, match="build it, or call it once"):
        model_state(keras.layers.LayerNormalization())
    # A chain that was made of built layers needs no input.
    chain = convert(two, to="keras")
    assert (len(norm_names(chain)), len(model_state(chain))) == (2, 4)


class Loud:
    """Ten times what its base class says, in every framework."""

    def forward(self, *args: Any) -> Any:
        return 10 * super().forward(*args)

    def call(self, *args: Any) -> Any:
        return 10 * super().call(*args)

    def __call__(self, *args: Any) -> Any:
        return super().__call__(*args) * (10 if isinstance(self, nnx.Module) else 1)


def parametrized(layer: Any, old: bool = False) -> Any:
    if old:
        return nn.utils.weight_norm(layer, dim=None)
    return nn.utils.parametrizations.weight_norm(layer, dim=None)


def hooked(layer: Any) -> Any:
    layer.register_forward_hook(lambda *given: 2 * given[2])
    return layer


def of_keras(layer: Any, *shape: int | None) -> Any:
    layer.build(shape or (None, 5, 7, C))
    return layer


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: type("My", (Loud, nn.LayerNorm), {})(C), "My .* subclass"),
        (lambda: type("My", (Loud, T.LayerNorm), {})(C), "My .* subclass"),
        (lambda: type("My", (Loud, nnx.LayerNorm), {})(C, **R), "My .* subclass"),
        (lambda: of_keras(type("My", (Loud, keras.layers.LayerNormalization), {})()), "My .* subclass"),
        (lambda: parametrized(nn.LayerNorm(C)), "parametrized"),
        (lambda: parametrized(nn.LayerNorm(C), old=True), "parametrized"),
        (lambda: hooked(nn.LayerNorm(C)), "hooks"),
        (lambda: nn.LayerNorm(C, device="meta"), "meta device"),
        (lambda: nn.BatchNorm2d(C, affine=False, device="meta"), "meta device"),
        (lambda: nn.LazyBatchNorm2d(), "call it once"),
        (lambda: nnx.eval_shape(lambda: nnx.LayerNorm(C, rngs=nnx.Rngs(0))), "abstract"),
        (lambda: nn.Sequential(nn.LayerNorm(C), hooked(nn.LayerNorm(C))), "hooks"),
    ],
)
def test_what_no_new_layer_can_be_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        convert(make(), to="torch")


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.LayerNorm(C)), nnx.Sequential(nnx.LayerNorm(C, **R))], ids=["t", "n"]
)
def test_a_chain_with_a_forward_of_its_own_is_no_chain(model):
    kind = type("My", (Loud, type(model)), {})
    with pytest.raises(TypeError, match="My is no normalization layer"):
        convert(kind(nn.LayerNorm(C)) if isinstance(model, nn.Module) else kind(nnx.LayerNorm(C, **R)), to="keras")


def test_names_of_models_that_are_parametrized_or_one_layer():
    model = nn.Sequential(nn.Linear(4, C), parametrized(nn.LayerNorm(C)), nn.LazyBatchNorm1d())
    assert norm_names(model) == ["1", "2"]
    layer = filled(nn.LayerNorm(3))
    state = convert_state(layer.state_dict(), {"": "x"}, source="torch", to="keras")
    assert list(state) == ["x/gamma", "x/beta"]
    back = convert_state(state, {"x": ""}, source="keras", to="torch")
    nn.LayerNorm(3).load_state_dict(back)
    torch.testing.assert_close(back["weight"], layer.weight.detach())


# What is kept


def dtype_of(layer: Any) -> str:
    weight = layer.gamma if hasattr(layer, "gamma") else getattr(layer, "weight", None)
    weight = layer.scale[...] if weight is None else weight
    return str(weight.dtype).rpartition(".")[2]


MAKERS = {
    "torch": lambda dtype: filled(nn.LayerNorm(C, dtype=getattr(torch, dtype))),
    "keras": lambda dtype: of_keras(keras.layers.LayerNormalization(dtype=dtype)),
    "nnx": lambda dtype: nnx.LayerNorm(C, param_dtype=dtype, **R),
}


@pytest.mark.parametrize("to", MAKERS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("source", MAKERS)
def test_types_come_along(source, dtype, to):
    if dtype == "float64" and "nnx" in (source, to):
        with jax.enable_x64(True):
            result = convert(MAKERS[source](dtype), to=to, check=True)
    else:
        result = convert(MAKERS[source](dtype), to=to, check=True)
    assert (dtype_of(result.layer), result.notes) == (dtype, ())


HALVES = {
    "torch batch": lambda dtype: filled(nn.BatchNorm2d(C).to(getattr(torch, dtype))),
    "torch group": lambda dtype: filled(nn.GroupNorm(3, C).to(getattr(torch, dtype))),
    "torch RMS": lambda dtype: filled(nn.RMSNorm((5, C), dtype=getattr(torch, dtype))),
    "torch response": lambda dtype: filled(T.FilterResponseNorm(C, learned_eps=True).to(getattr(torch, dtype))),
    "keras batch": lambda dtype: of_keras(keras.layers.BatchNormalization(dtype=dtype)),
    "keras mixed": lambda dtype: of_keras(keras.layers.GroupNormalization(3, dtype=f"mixed_{dtype}")),
    "nnx batch": lambda dtype: nnx.BatchNorm(C, param_dtype=dtype, use_running_average=True, **R),
    "nnx result": lambda dtype: nnx.LayerNorm(C, dtype=dtype, **R),
}


@pytest.mark.parametrize("to", MAKERS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", HALVES)
def test_half_precision_is_checked(name, dtype, to):
    """Of every kind, to four units in the last place, which `convert` compares itself; there and back."""
    there = convert(HALVES[name](dtype), to=to, check=True)
    convert(there.layer, to=name.split()[0], check=True)


def test_a_type_that_is_lost_is_said():
    layer = filled(nn.BatchNorm2d(C).double())
    with pytest.warns(UserWarning, match="parameters are float32, and were float64; running statistics are float32"):
        convert(layer, to="nnx")
    assert convert(layer, to="keras").moving_mean.dtype == "float64"
    twin = convert(layer, to="torch")
    torch.testing.assert_close(twin.running_mean, layer.running_mean, rtol=0, atol=0)
    assert twin(torch.randn(2, C, 3, 3).double()).dtype == torch.float64


def test_types_of_results_come_along_or_are_said():
    mixed = of_keras(keras.layers.BatchNormalization(dtype="mixed_float16"))
    assert convert(mixed, to="keras").dtype_policy.name == "mixed_float16"
    module = convert(mixed, to="nnx")
    assert (module.dtype, module.scale[...].dtype, module.mean[...].dtype) == ("float16", "float32", "float32")
    assert convert(module, to="keras", check=True).layer.dtype_policy.name == "mixed_float16"
    assert convert(mixed, to="torch", check=True).notes == (
        "results were float16 whatever the input, and follow from input and parameters now",
    )


def test_half_precision_states():
    layer = filled(nn.LayerNorm(C).bfloat16())
    for to, weight in (("nnx", "scale"), ("keras", "gamma"), ("addons", "gamma")):
        state = convert_state(layer.state_dict(), {"": ""}, source="torch", to=to)
        np.testing.assert_array_equal(np.asarray(state[weight], "float32"), layer.weight.float().detach())
        assert to != "nnx" or state[weight].dtype == "bfloat16"
    back = convert_state(state, {"": ""}, source="addons", to="torch")
    assert back["weight"].dtype == torch.float32
    pure = nnx.to_pure_dict(nnx.state(nnx.LayerNorm(C, param_dtype="bfloat16", **R)))
    assert convert_state(pure, {"": ""}, source="nnx", to="torch")["weight"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "source"),
    [
        (lambda: nn.LayerNorm(C, device="meta").state_dict(), "torch"),
        (lambda: model_state(nn.LazyBatchNorm2d()), "torch"),
        (lambda: model_state(nnx.eval_shape(lambda: nnx.LayerNorm(C, rngs=nnx.Rngs(0)))), "nnx"),
    ],
)
@pytest.mark.parametrize("to", ["torch", "keras", "nnx"])
def test_states_without_numbers_are_refused(make, source, to):
    with pytest.raises(ValueError, match=r'"x.* has no numbers, .* nnx.update, and convert outside of compiled'):
        convert_state(make(), {"": "x"}, source=source, to=to)


def test_traced_states_are_refused():
    state = model_state(nnx.LayerNorm(C, **R))
    with pytest.raises(ValueError, match="outside of compiled functions"):
        jax.jit(lambda state: convert_state(state, {"": "x"}, source="nnx", to="torch"))(state)
    with pytest.raises(ValueError, match="within jit, convert before that"):
        nnx.jit(lambda module: convert(module, to="torch"))(nnx.LayerNorm(C, **R))


def test_a_tolerance_is_that_of_the_type(monkeypatch):
    """Wide enough for right conversions of half precision, and narrow enough for wrong ones."""
    import dataclasses

    from anynorm.convert import nnx as dialect

    write = dialect.write
    monkeypatch.setattr(dialect, "write", lambda norm: write(dataclasses.replace(norm, scale=norm.scale * 1.05)))
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match="differs by"):
            convert(filled(nn.LayerNorm(C).to(dtype)), to="nnx", check=True)


def test_rms_norm_over_several_axes_without_parameters_goes_to_nnx():
    assert convert(nn.RMSNorm((5, 6), elementwise_affine=False), to="nnx", check=True).difference < 1e-5


def test_chains_with_hooks_and_replaced_forwards_are_refused():
    hooked, replaced = nn.Sequential(nn.LayerNorm(C)), nn.LayerNorm(C)
    hooked.register_forward_hook(lambda module, x, y: y * 10)
    replaced.forward = lambda x: x
    with pytest.raises(TypeError, match="Sequential"):
        convert(hooked, to="nnx")
    assert norm_mapping(hooked, nn.Sequential(nn.LayerNorm(C))) == {"0": "0"}
    with pytest.raises(ValueError, match="forward was replaced"):
        convert(replaced, to="nnx")


def test_frozen_parameters_stay_frozen():
    layer = filled(nn.BatchNorm2d(C))
    layer.weight.requires_grad_(False)
    twin = convert(layer, to="torch")
    assert (twin.weight.requires_grad, twin.bias.requires_grad) == (False, True)
    there = convert(layer, to="keras")
    assert [w.name for w in there.trainable_weights] == ["beta"]
    back = convert(there, to="torch")
    assert (back.weight.requires_grad, back.bias.requires_grad) == (False, True)
    assert "frozen scale would learn" in convert(layer, to="nnx", check=True).notes[0]
    still = of_keras(keras.layers.BatchNormalization(trainable=False))
    assert not convert(still, to="keras").trainable
    result = convert(still, to="torch", check=True)
    assert not any(p.requires_grad for p in result.layer.parameters())
    assert not result.layer.training
    assert "call eval() after train()" in result.notes[0]
    alone = of_keras(K.LayerNormalization(scale=False))
    assert not convert(alone, to="torch").weight.requires_grad


def test_a_frozen_learned_epsilon_stays_frozen():
    layer = filled(T.FilterResponseNorm(C, learned_eps=True))
    layer.learned_eps.requires_grad_(False)
    there = convert(layer, to="keras")
    assert [w.name for w in there.trainable_weights] == ["gamma", "beta"]
    for made in (
        convert(layer, to="torch"),
        convert(there, to="torch"),
        convert(convert(there, to="keras"), to="torch"),
    ):
        assert [name for name, p in made.named_parameters() if p.requires_grad] == ["weight", "bias"]
    # In Flax it is part of epsilon, and cannot learn.
    assert [note for note in convert(layer, to="nnx", check=True).notes if "frozen" in note] == []
    assert "frozen learned_eps would learn" in convert(layer, to="addons", check=True).notes[0]


def test_synchronization_comes_along_or_is_said():
    module = nnx.BatchNorm(C, axis_name="devices", **R)
    assert convert(module, to="nnx").axis_name == "devices"
    result = convert(module, to="torch", check=True)
    assert type(result.layer) is T.SyncBatchNorm
    assert "axis_name has no counterpart: it was devices" in result.notes
    assert convert(result.layer, to="keras").synchronized
    assert convert(convert(result.layer, to="keras"), to="torch").__class__ is T.SyncBatchNorm
    assert "were synchronized" in convert(nn.SyncBatchNorm(C), to="nnx", check=True).notes[0]
    assert convert(nnx.LayerNorm(C, axis_name="devices", **R), to="nnx", check=True).layer.axis_name == "devices"


def test_counters_names_and_penalties_come_along():
    layer = nn.BatchNorm2d(C)
    layer(torch.randn(2, C, 3, 3))
    assert convert(layer, to="torch").num_batches_tracked == 1
    assert convert_state(layer.state_dict(), {"": "x"}, source="torch", to="torch")["x.num_batches_tracked"] == 1
    penalty, bound = keras.regularizers.L2(0.1), keras.constraints.NonNeg()
    old = keras.layers.GroupNormalization(3, name="mine", gamma_regularizer=penalty, beta_constraint=bound)
    new = convert(of_keras(old), to="keras")
    assert (new.name, new.gamma_regularizer, new.beta.constraint) == ("mine", penalty, bound)
    assert len(new.losses) == 1
    assert [note.split(" has")[0] for note in convert(old, to="torch", check=True).notes] == [
        "gamma_regularizer",
        "beta_constraint",
    ]


def test_tied_layers_stay_tied():
    layer = nn.LayerNorm(C)
    chain = nn.Sequential(layer, nn.Sequential(nn.LayerNorm(C), layer))
    for to, layers in (("torch", list), ("nnx", lambda made: made.layers)):
        made = layers(convert(chain, to=to))
        assert made[0] is made[2] is not made[1]
    with pytest.raises(ValueError, match="in the chain twice"):
        convert(chain, to="keras")
    chain[1][0].weight = layer.weight
    with pytest.warns(UserWarning, match="layers of the chain share parameters"):
        convert(chain, to="torch")


def test_nothing_is_said_where_nothing_is_lost():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for layer in (nn.BatchNorm2d(C), of_keras(keras.layers.BatchNormalization()), nnx.BatchNorm(C, **R)):
            for to in ("torch", "keras", "nnx"):
                convert(layer, to=to)


# What can be read back


@pytest.mark.parametrize("layer", [nn.LayerNorm((5, C)), nn.RMSNorm((5, C)), T.LayerNorm((5, 7, C))], ids=str)
def test_lengths_of_several_axes_come_back(layer):
    there = convert(filled(layer), to="nnx", check=True).layer
    back = convert(there, to="torch", check=True).layer
    assert (type(back).__name__, back.normalized_shape) == (type(layer).__name__, layer.normalized_shape)
    torch.testing.assert_close(back.weight, layer.weight, rtol=0, atol=0)
    moved = convert(there, to="keras", check=True).layer
    assert type(moved).__name__ == type(layer).__name__ + "alization"


AXES = {"reduction_axes": (-3, -2), "feature_axes": -1}
BARE = {"use_scale": False, "use_bias": False}


@pytest.mark.parametrize("to", ["torch", "keras", "nnx"])
@pytest.mark.parametrize(
    ("module", "text"),
    [
        (nnx.LayerNorm(C, **AXES, **R), "... [a0 a1] a2"),
        (nnx.RMSNorm(C, **AXES, **R), "... [a0 a1] a2"),
        (nnx.LayerNorm(C, reduction_axes=(-2, -1), use_scale=False, **R), "... [a0 a1]"),
        (nnx.LayerNorm(5 * C, reduction_axes=(-2, -1), feature_axes=(-2, -1), **BARE, **R), "... [a0 a1]"),
        (A.GroupNorm(C, 2, reduction_axes=(-2, -1), **R), "... [a0] (g [a1])"),
        (A.GroupNorm(C, 2, reduction_axes=-1, **R), "... (g [a0])"),
    ],
    ids=_called,
)
def test_axes_of_flax_that_others_have_as_a_sentence(module, text, to):
    for i, variable in enumerate([v for name in ("scale", "bias") if (v := getattr(module, name, None)) is not None]):
        variable.set_value(jax.numpy.arange(1.0, C + 1) + i)
    made = convert(module, to=to, check=True).layer
    assert getattr(made, "pattern", None) == text or made.spec.text == text
    back = convert(made, to="nnx", check=True).layer
    x = np.random.default_rng(0).normal(size=(3, 4, 5, C)).astype("float32")
    np.testing.assert_allclose(back(x), module(x), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (
            nnx.LayerNorm(30, reduction_axes=(-2, -1), feature_axes=(-2, -1), **R),
            r"product of their lengths, 30.*\(5, 7",
        ),
        (nnx.LayerNorm(C, reduction_axes=(1, 2), feature_axes=-1, **R), "negative numbers"),
        (A.GroupNorm(C, 2, reduction_axes=(1, -1), **R), "negative numbers"),
        (A.GroupNorm(C, 2, reduction_axes=(-3, -2), **R), "lacks the last axis"),
        # Flax's own computes something else.
        (nnx.GroupNorm(C, 2, reduction_axes=(-2, -1), **R), "make it anynorm.nnx.GroupNorm"),
    ],
    ids=_called,
)
def test_axes_of_flax_that_say_too_little_are_refused(module, words):
    with pytest.raises(ValueError, match=words):
        convert(module, to="torch")


@pytest.mark.parametrize("learned", [False, True])
def test_filter_response_normalization_both_ways(learned):
    layer = filled(T.FilterResponseNorm(C, learned_eps=learned))
    there = convert(layer, to="keras", check=True).layer
    assert type(there) is K.FilterResponseNormalization
    assert tuple(there.gamma.shape) == (1, 1, 1, C)
    back = convert(there, to="torch", check=True).layer
    assert type(back) is T.FilterResponseNorm
    for name, tensor in layer.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], tensor)
    first = convert(layer, to="keras", channels="first", check=True).layer
    assert first.axis == [2, 3]
    old = convert(there, to="addons", check=True).layer
    assert len(old["weights"]) == 2 + learned
    state = convert_state(layer.state_dict(), {"": "frn"}, source="torch", to="keras")
    assert [name for name in state if "eps" in name] == ["frn/learned_epsilon"] * learned
    for model in (there, first):
        state = convert_state(model_state(model), norm_mapping(model, layer), source="keras", to="torch")
        T.FilterResponseNorm(C, learned_eps=learned).load_state_dict(state)
    same = convert_state(model_state(there), {there.name: "x"}, source="keras", to="keras")
    assert same["x/gamma"].shape == (1, 1, 1, C)
    partly = of_keras(K.FilterResponseNormalization(axis=1, learned_epsilon=learned), None, 5, 7, C)
    assert convert(partly, to="torch", check=True).difference < 1e-5


def test_groups_of_one_channel_stay_groups():
    """Of any rank, where torch's instance normalization is of one."""
    layer = filled(nn.GroupNorm(C, C))
    for to in ("keras", "nnx", "addons"):
        back = convert(convert(layer, to=to), to="torch")
        assert (type(back), back.num_groups) == (T.GroupNorm, C)
