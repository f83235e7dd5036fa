"""Surgery on torch models: the same answers and refusals where they must be, and nothing else touched."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import anynorm.surgery as S  # noqa: N812
import anynorm.torch as A  # noqa: N812
from anynorm.surgery.torch_norms import stay


def filled(model: Any) -> Any:
    """Random norm parameters and statistics: fresh ones would hide almost everything."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: nn.Module, other: dict[str, torch.Tensor]) -> bool:
    mine = one.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[key], other[key]) for key in mine)


def reasons(receipt: S.Receipt) -> dict[str, str]:
    return {refusal.name: refusal.reason for refusal in receipt.refused}


def difference(one: nn.Module, other: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        a, b = one(x), other(x)
    return float((a - b).abs().max() / a.abs().max())


PAIRS = {
    "conv1d": (nn.Conv1d(6, 10, 3), nn.BatchNorm1d(10), (4, 6, 9)),
    "conv2d, grouped, no bias": (nn.Conv2d(6, 10, 3, groups=2, bias=False), nn.BatchNorm2d(10), (4, 6, 9, 7)),
    "conv2d, depthwise": (nn.Conv2d(6, 12, 3, groups=6), nn.BatchNorm2d(12), (4, 6, 9, 7)),
    "conv2d, padded by reflection": (
        nn.Conv2d(6, 10, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(10),
        (4, 6, 9, 7),
    ),
    "conv3d": (nn.Conv3d(2, 4, 3), A.BatchNorm3d(4), (3, 2, 5, 6, 7)),
    "transposed 1d": (nn.ConvTranspose1d(6, 10, 3), nn.BatchNorm1d(10), (4, 6, 9)),
    "transposed 2d, grouped": (nn.ConvTranspose2d(6, 9, 3, stride=2, groups=3), nn.BatchNorm2d(9), (4, 6, 5, 7)),
    "transposed 3d": (nn.ConvTranspose3d(2, 4, 3, bias=False), nn.BatchNorm3d(4), (3, 2, 5, 6, 7)),
    "linear": (nn.Linear(6, 10), nn.BatchNorm1d(10, affine=False), (8, 6)),
    "no momentum": (nn.Linear(6, 10, bias=False), A.BatchNorm1d(10, momentum=None), (8, 6)),
    "synchronized": (nn.Conv2d(6, 10, 3), A.SyncBatchNorm(10), (4, 6, 9, 7)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_fold_every_pair(name):
    front, norm, shape = PAIRS[name]
    model = filled(nn.Sequential(front, norm, nn.Tanh()))
    before, x = state(model), torch.randn(shape)
    new, receipt = S.fold(model, probe=x)
    assert same(model, before)
    assert receipt.refused == []
    assert isinstance(new[1], nn.Identity)
    assert difference(model.double(), copy.deepcopy(new).double(), x.double()) < 1e-6
    assert receipt.difference < 1e-5 * receipt.largest
    assert receipt.after == receipt.before - receipt.rows[0].before + receipt.rows[0].after
    back, _ = S.revert(new, receipt)
    assert same(back.float(), before)


def test_fold_in_place_keeps_the_parameters_objects():
    model = filled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    weight, bias = model[0].weight, model[0].bias
    before = state(model)
    new, receipt = S.fold(model, inplace=True)
    assert new is model
    assert (model[0].weight is weight, model[0].bias is bias) == (True, True)
    assert receipt.difference < 1e-5 * receipt.largest
    S.revert(model, receipt, inplace=True)
    assert same(model, before)


class Odd(nn.Module):
    """Each norm has a reason of its own not to be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.after_activation = nn.BatchNorm2d(6)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.after_twice = nn.BatchNorm2d(6)
        self.branching = nn.Conv2d(6, 6, 3, padding=1)
        self.after_branching = nn.BatchNorm2d(6)
        self.plain = nn.Conv2d(6, 6, 3, padding=1)
        self.norm_twice = nn.BatchNorm2d(6)
        self.another_name = self.norm_twice
        self.spectral = parametrizations.spectral_norm(nn.Conv2d(6, 6, 3, padding=1))
        self.after_spectral = nn.BatchNorm2d(6)
        self.weighed = nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 1))
        self.after_weighed = nn.BatchNorm2d(6)
        self.read = nn.Conv2d(6, 6, 1)
        self.after_read = nn.BatchNorm2d(6)
        self.hooked = nn.Conv2d(6, 6, 1)
        self.after_hooked = nn.BatchNorm2d(6)
        self.hooked.register_forward_hook(lambda module, inputs, output: output * 2)
        self.tied, self.tie = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.tie.weight = self.tied.weight
        self.after_tied = nn.BatchNorm2d(6)
        self.untracked_front, self.untracked = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, track_running_stats=False)
        self.never = nn.BatchNorm2d(6)
        self.broken_front, self.broken = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.after_activation(torch.relu(self.stem(self.first(x))))
        x = self.after_twice(self.twice(self.twice(x)))
        y = self.branching(x)
        x = self.after_branching(y) + y
        x = self.norm_twice(self.plain(x)) + self.another_name(x)
        x = self.after_weighed(self.weighed(self.after_spectral(self.spectral(x))))
        x = self.after_read(self.read(x)) * self.read.weight.sum()
        x = self.after_tied(self.tied(self.after_hooked(self.hooked(x))))
        x = self.untracked(self.untracked_front(x + self.tie(x)))
        return self.broken(self.broken_front(x)), y


def test_fold_refuses_with_the_reason():
    model = filled(Odd())
    model.broken.running_var[2] = float("nan")
    new, receipt = S.fold(model, probe=torch.randn(2, 3, 8, 8))
    assert receipt.rows == []
    assert same(new, state(model)) or torch.isnan(new.broken.running_var).any()
    expected = {
        "first": "the model's input",
        "after_activation": "relu",
        "after_twice": "twice, in front of it, is used 2 times",
        "after_branching": "the output of branching, in front of it, is used 3 times",
        "norm_twice": "it is used 2 times",
        "after_spectral": "parametrized",
        "after_weighed": "parametrized",
        "after_read": "used elsewhere",
        "after_hooked": "hooks",
        "after_tied": "used elsewhere",
        "untracked": "no running statistics",
        "never": "never called",
        "broken": "not finite",
    }
    found = reasons(receipt)
    assert found.keys() == expected.keys()
    for name, words in expected.items():
        assert words in found[name], (name, found[name])


def test_fold_a_linear_layer_only_where_its_channels_are_the_norm_s():
    model = filled(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6)))
    x = torch.randn(4, 6, 5)
    new, receipt = S.fold(model, probe=x)
    assert "axis 1" in reasons(receipt)["1"]
    assert torch.equal(new(x), model(x))


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
        self.entered = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))
        self.front, self.own = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x) if x.mean() > 1e9 else self.body(x) * 2
        return self.own(self.front(self.entered(x) + self.entered[0](x)))


def test_fold_what_fx_cannot_trace():
    """The parts that it can, where a run shows that nothing else calls what is in them."""
    model, x = filled(Untraceable()), torch.randn(2, 3, 8, 8)
    new, receipt = S.fold(model, probe=x)
    assert [row.name for row in receipt.rows] == ["body.1"]
    assert "from outside of entered" in reasons(receipt)["entered.1"]
    assert "torch.fx cannot trace" in reasons(receipt)["own"]
    assert difference(model, new, x) < 1e-5
    _, receipt = S.fold(model, probe=False)
    assert receipt.rows == []
    assert "with probe=" in reasons(receipt)["body.1"]


def test_half_precision_folds_into_half_precision():
    model = filled(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))).bfloat16()
    new, receipt = S.fold(model)
    assert new[0].weight.dtype == torch.bfloat16
    assert receipt.difference < 2e-2 * receipt.largest


def test_models_that_are_not_ready():
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    with pytest.raises(ValueError, match="run it once first"):
        S.fold(lazy)
    assert isinstance(lazy[0], nn.LazyConv2d)
    with pytest.raises(ValueError, match="a scripted model is fixed"):
        S.swap(torch.jit.script(nn.Sequential(nn.BatchNorm2d(6))), "batch", "group")
    model = nn.Sequential(nn.BatchNorm2d(6))
    model.extra = torch.randn(3, requires_grad=True) * 2
    with pytest.raises(ValueError, match="inplace=True changes it itself"):
        S.swap(model, "batch", "group")


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front, self.norm = nn.ConvTranspose2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor, scale: Any = 1) -> dict[str, Any]:
        y = self.norm(self.front(x, output_size=(18, 18))) * scale
        return {"y": y, "all": [y, None], "number": 3}


def test_several_inputs_and_outputs():
    model, inputs = filled(Two()), {"x": torch.randn(2, 3, 8, 8), "scale": torch.ones(1)}
    new, receipt = S.fold(model, probe=inputs)
    assert len(receipt.rows) == 1
    assert receipt.difference < 1e-5 * receipt.largest
    one, _ = S.reestimate(model, [(tuple(inputs.values()), "target")])
    two, _ = S.reestimate(model, [inputs])
    assert same(one, state(two))
    again, _ = S.revert(new, pickle.loads(pickle.dumps(receipt)))
    assert same(again, state(model))


def norms() -> nn.Sequential:
    return filled(
        nn.Sequential(
            nn.Conv2d(3, 12, 3),
            nn.BatchNorm2d(12),
            nn.GroupNorm(4, 12),
            nn.InstanceNorm2d(12, affine=True),
            A.LayerNorm2d(12),
            A.RMSNorm2d(12),
            A.SyncBatchNorm(12),
        )
    )


@pytest.mark.parametrize("target", ["batch", "group", "instance", "layer", "rms"])
def test_swap_any_norm_to_any_norm(target):
    model, x = norms(), torch.randn(5, 3, 9, 8)
    before = state(model)
    new, receipt = S.swap(model, "any", target, probe=x)
    assert same(model, before)
    assert receipt.refused == []
    assert len(receipt.rows) == 6
    for old, module in zip(list(model)[1:], list(new)[1:], strict=True):
        assert type(module).__module__.startswith("anynorm.torch")
        assert torch.equal(module.weight, old.weight)
        if target != "rms" and getattr(old, "bias", None) is not None:
            assert torch.equal(module.bias, old.bias)
        assert module.eps == old.eps or old.eps is None
        assert not module.training
    assert torch.isfinite(new(x)).all()
    back, _ = S.revert(new, receipt)
    assert same(back, before)
    assert [type(m) for m in back] == [type(m) for m in model]


def test_the_answer_of_a_swapped_norm_is_the_other_norm_s():
    model, x = nn.Sequential(filled(nn.BatchNorm2d(12))), torch.randn(5, 12, 4, 3)
    for target, other in {
        "group": lambda w, b: nn.functional.group_norm(x, 4, w, b, 1e-5),
        "instance": lambda w, b: nn.functional.instance_norm(x, weight=w, bias=b),
        "layer": lambda w, b: nn.functional.layer_norm(x.permute(0, 2, 3, 1), (12,), w, b).permute(0, 3, 1, 2),
        "rms": lambda w, b: nn.functional.rms_norm(x.permute(0, 2, 3, 1), (12,), w, 1e-5).permute(0, 3, 1, 2),
    }.items():
        new, _ = S.swap(model, "batch", target, groups=4 if target == "group" else None, probe=x)
        torch.testing.assert_close(new(x), other(model[0].weight, model[0].bias), rtol=1e-5, atol=1e-5)


def test_swap_keeps_type_flags_tied_tensors_and_optimizers():
    model = norms().double()
    model[1].weight.requires_grad_(False)
    model[2].weight = model[1].bias
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    weights = [model[i].weight for i in range(1, 6)]
    new, _ = S.swap(model, "any", "group", groups=3, inplace=True)
    assert new is model
    assert [model[i].weight for i in range(1, 6)] == weights or all(
        a is b for a, b in zip((model[i].weight for i in range(1, 6)), weights, strict=True)
    )
    assert model[2].weight is model[1].bias
    assert not model[1].weight.requires_grad
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    model(torch.randn(2, 3, 8, 8).double()).sum().backward()
    optimizer.step()


def test_swap_refuses_what_would_leave_nothing():
    model = filled(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1), nn.BatchNorm1d(1)))
    _, receipt = S.swap(model, "batch", "instance", probe=torch.randn(3, 4))
    assert receipt.rows == []
    assert "nothing of the input would be left" in reasons(receipt)["1"]
    _, receipt = S.swap(model, "batch", "group", groups=8, probe=torch.randn(3, 4))
    assert receipt.rows[0].note == "1 group (asked: 8); each statistic is over 8 elements"
    assert "nothing of the input would be left" in reasons(receipt)["3"]
    assert "one channel" in reasons(S.swap(model, "batch", "layer")[1])["3"]
    # Without an input, (n, c) and (n, c, l) cannot be told apart.
    assert "give probe=" in reasons(S.swap(model, "batch", "instance", probe=False)[1])["1"]
    note = S.swap(model, "batch", "group", groups=8, probe=False)[1].rows[0].note
    assert "unknown here: of one alone, a statistic is over 8 elements" in note
    # Two elements without their mean, over their deviation, are 1 and -1.
    model, x = filled(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))), torch.randn(3, 4)
    for target in ("group", "layer"):
        assert "nothing but the sign" in reasons(S.swap(model, "batch", target, probe=x)[1])["1"]
    _, receipt = S.swap(filled(nn.BatchNorm1d(6)), "batch", "instance", probe=torch.randn(3, 6, 2))
    assert "nothing but the sign" in receipt.refused[0].reason
    wide = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32)).eval()
    assert S.swap(wide, "batch", "group")[0][1].num_groups == 4


def test_groups_of_an_unknown_number_of_positions_leave_something_of_one():
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.p, self.n = nn.Conv2d(3, 64, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(64)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.n(self.p(self.c(x)) + y)

    for probe in (None, False):
        new, receipt = S.swap(filled(Pooled()), "batch", "group", probe=probe)
        assert new.n.num_groups == 8
        assert receipt.rows[0].note.startswith("8 groups (asked: 32); how many positions there are is unknown here")
    new, _ = S.swap(filled(Pooled()), "batch", "group", probe=(torch.randn(2, 3, 8, 8), 0.0))
    assert new.n.num_groups == 8
    _, receipt = S.swap(filled(nn.Sequential(nn.BatchNorm2d(2))), "batch", "group", probe=False)
    assert "nothing but the sign" in reasons(receipt)["0"]


def test_swap_within_a_transformer():
    layer = nn.TransformerEncoderLayer(24, 3, 48, dropout=0.0, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 5, 24)
    new, receipt = S.swap(model, "layer", "rms", probe=x)
    assert len(receipt.rows) == 4
    assert torch.isfinite(new(x)).all()
    assert "axis 1" in reasons(S.swap(model, "layer", "batch", probe=x)[1])["layers.0.norm1"]
    group, receipt = S.swap(model, "layer", "group", groups=4, probe=x)
    assert len(receipt.rows) == 4
    assert torch.isfinite(group(x)).all()


def test_subclasses_hooks_and_root_norms_are_not_swapped_behind_one_s_back():
    class Own(nn.BatchNorm2d):
        pass

    model = nn.Sequential(Own(6), nn.BatchNorm2d(6), nn.BatchNorm2d(6))
    model[1].register_forward_hook(lambda *_: None)
    new, receipt = S.swap(model, "batch", "group", groups=3)
    assert list(reasons(receipt)) == ["0", "1"]
    assert isinstance(new[2], A.GroupNorm)
    alone, _ = S.swap(nn.BatchNorm2d(6), "batch", "group", groups=3)
    assert isinstance(alone, A.GroupNorm)
    with pytest.raises(ValueError, match="in place"):
        S.swap(nn.BatchNorm2d(6), "batch", "group", inplace=True)


def test_a_norm_under_two_names_stays_one():
    model = nn.ModuleDict({"one": nn.BatchNorm2d(6)})
    model["two"] = model["one"]
    new, receipt = S.swap(model, "batch", "group", groups=3)
    assert new["one"] is new["two"]
    assert len(receipt.rows) == 1


def test_frozen_norms_stay_frozen():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.GroupNorm(2, 6))
    model[1].bias.requires_grad_(False)
    frozen, receipt = S.freeze(model, "batch")
    assert receipt.difference == 0
    file = io.BytesIO()
    torch.save(frozen, file)
    file.seek(0)
    for one in (frozen, copy.deepcopy(frozen), torch.load(file, weights_only=False)):
        before = state(one)
        one.train()(torch.randn(4, 3, 8, 8)).sum().backward()
        assert same(one, before)
        assert one[1].weight.grad is None
        assert one[2].weight.grad is not None
    assert not any(hook is stay for hook in model[1]._forward_pre_hooks.values())
    _, receipt = S.freeze(frozen, "batch")
    assert "already" in reasons(receipt)["1"]
    learning, undo = S.unfreeze(frozen)
    assert learning[1].bias.requires_grad
    learning.train()(torch.randn(4, 3, 8, 8))
    assert learning[1].num_batches_tracked == 1
    refrozen, _ = S.revert(learning, undo)
    assert any(hook is stay for hook in refrozen[1]._forward_pre_hooks.values())
    back, _ = S.revert(*S.freeze(model, "batch"))
    assert [p.requires_grad for p in back[1].parameters()] == [True, False]


class Net(nn.Sequential):
    def __init__(self) -> None:
        body = (
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(6, 5, 3),
            nn.BatchNorm2d(5),
        )
        super().__init__(*body)


@pytest.mark.parametrize("correction", [1, 0])
def test_reestimated_statistics_are_those_of_the_data(correction):
    model = filled(Net())
    if not correction:
        model[1] = A.BatchNorm2d(6, correction=0)
    before = state(model)
    x = torch.randn(23, 3, 8, 7) * 3 + torch.arange(23).reshape(-1, 1, 1, 1)
    new, receipt = S.reestimate(model, x, batch_size=5)
    assert same(model, before)
    # The first norm's input does not depend on batches.
    y = model[0](x).detach().double().transpose(0, 1).reshape(6, -1)
    np.testing.assert_allclose(new[1].running_mean, y.mean(1), rtol=1e-5)
    np.testing.assert_allclose(new[1].running_var, y.var(1, correction=correction), rtol=1e-5)
    # The second's does: each batch was normalized by its own statistics, without dropout.
    parts = []
    for part in x.split(5):
        z = nn.functional.batch_norm(model[0](part), None, None, model[1].weight, model[1].bias, training=True)
        parts.append(model[4](z.relu()).detach().double().transpose(0, 1).reshape(5, -1))
    z = torch.cat(parts, 1)
    np.testing.assert_allclose(new[5].running_mean, z.mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(new[5].running_var, z.var(1), rtol=1e-4)
    assert receipt.notes == ["5 batches"]
    back, _ = S.revert(new, receipt)
    assert same(back, before)


def test_reestimate_takes_what_loaders_give():
    model = filled(Net())
    x = torch.randn(10, 3, 8, 7)
    data = torch.utils.data.TensorDataset(x, torch.zeros(10))
    one, _ = S.reestimate(model, torch.utils.data.DataLoader(data, batch_size=4))
    two, _ = S.reestimate(model, x.numpy(), batch_size=4)
    three, receipt = S.reestimate(model, ((part, 0) for part in x.split(4)), batches=9)
    assert same(one, state(two))
    assert same(one, state(three))
    assert "the data ended after 3 of 9 batches" in receipt.notes
    seen = []
    S.reestimate(model, x, batch_size=4, progress=lambda *both: seen.append(both))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_reestimate_leaves_all_as_it_was_where_it_ends_early():
    model = filled(Net()).train()
    model[3].eval()
    before, modes = state(model), [m.training for m in model.modules()]

    def interrupted():
        yield torch.randn(4, 3, 8, 8)
        raise KeyboardInterrupt

    bad = torch.randn(4, 3, 8, 8)
    bad[0, 0, 0, 0] = float("nan")
    for data, error in (
        (interrupted(), KeyboardInterrupt),
        ([torch.randn(4, 3, 8, 8), bad], ValueError),
        ([torch.randn(4, 3, 8, 8), torch.randn(4, 2, 8, 8)], RuntimeError),
        ([], ValueError),
        (torch.randn(0, 3, 8, 8), ValueError),
    ):
        with pytest.raises(error):
            S.reestimate(model, data, inplace=True, probe=False)
        assert same(model, before)
        assert [m.training for m in model.modules()] == modes
        assert not any(m._forward_pre_hooks for m in model.modules())


def test_reestimate_leaves_frozen_norms():
    model, _ = S.freeze(filled(Net()), "batch")
    before = state(model)
    new, receipt = S.reestimate(model, torch.randn(4, 3, 8, 8))
    assert same(new, before)
    assert "frozen" in reasons(receipt)["1"]


def test_weight_decay_groups_have_each_parameter_once():
    model = nn.Sequential(*norms(), nn.Flatten(), nn.Linear(12, 5), nn.Embedding(7, 5), nn.LayerNorm((4, 3, 2)))
    model[-3].weight.requires_grad_(False)
    model.append(nn.Linear(5, 7, bias=False))
    model[-1].weight = model[-3].weight
    groups, _ = S.weight_decay_groups(model, 0.05)
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    placed = [id(p) for group in groups for p in group["params"]]
    assert len(placed) == len(set(placed))
    assert set(placed) == {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in groups[0]["params"]} == {id(model[0].weight), id(model[-3].weight)} - {0}
    torch.optim.AdamW(groups)


def test_inspect_and_its_doubts():
    model = filled(norms())
    model.append(nn.GroupNorm(12, 12))
    model[1].running_var[:2] = torch.tensor([0.0, 1e-5])
    found = {facts.name: facts for facts in S.inspect(model, batch=4)}
    assert [facts.sentence for facts in found.values()][:5] == [
        "[n] c [...]",
        "n (g [c]) [...] g=4",
        "n c [...]",
        "n [c] ...",
        "n [c] ...",
    ]
    doubts = " ".join(found["1"].doubts)
    for words in ("a batch of 4", "running_var is 0 in 1 of 12", "eps 1e-05 is too large"):
        assert words in doubts
    assert "groups of one channel" in found["7"].doubts[0]
    assert found["2"].doubts == ()
    fresh = S.inspect(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), batch=8)[0]
    assert fresh.doubts == (
        "statistics over 8 elements: they follow each one closely",
        "running_mean and running_var were never updated: zeros and ones",
    )
    assert not any("batch of" in doubt for facts in S.inspect(S.freeze(model)[0], batch=4) for doubt in facts.doubts)


def test_fold_goes_by_what_the_model_does_outside_training():
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.n = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.c(x)
            return self.n(y) if self.training else self.n(y) + y

    _, receipt = S.fold(Branch().train())
    assert not receipt.rows
    assert "used 2 times" in receipt.refused[0].reason

    class Noise(Branch):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.c(x)
            return self.n(y * torch.rand(1) if self.training else y)

    assert len(S.fold(Noise().train())[1].rows) == 1


def test_fold_refuses_where_statistics_are_read_elsewhere():
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.n = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.n(self.c(x)) + self.n.running_mean.sum()

    model = Reader()
    _, receipt = S.fold(model, inplace=True)
    assert not receipt.rows
    assert "used elsewhere" in receipt.refused[0].reason
    assert isinstance(model.n, nn.BatchNorm2d)


def test_fold_leaves_nothing_of_its_look_at_the_model_behind():
    class Keeper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.n = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = y = self.c(x)
            return self.n(y) * torch.tensor(2.0)

    model = Keeper()
    S.fold(model, inplace=True, probe=False)
    assert not {"last", "_tensor_constant0"} & vars(model).keys()


def test_a_norm_learns_again_behind_unfreeze_and_revert():
    for back in (lambda m, r: S.unfreeze(m, inplace=True), lambda m, r: S.revert(m, r, inplace=True)):
        model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6)).train()
        _, receipt = S.freeze(model, inplace=True)
        model(torch.randn(5, 3))
        back(model, receipt)
        model(torch.randn(5, 3))
        assert int(model[1].num_batches_tracked) == 1


def test_reestimate_counts_what_the_mask_counts():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = A.BatchNorm1d(3, correction=0)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.n(input=x, mask=mask)

    x = torch.randn(10, 3)
    far = torch.where(torch.arange(10)[:, None] < 4, x, 1000.0)
    batches = [{"x": part, "mask": (part != 1000).all(1, keepdim=True)} for part in (far[:3], far[3:5], far[5:])]
    model, receipt = S.reestimate(Masked(), batches, progress=False)
    torch.testing.assert_close(model.n.running_mean, x[:4].mean(0))
    torch.testing.assert_close(model.n.running_var, x[:4].var(0, correction=0))
    assert "over 4 elements" in receipt.rows[0].note


def test_reestimate_takes_a_batch_of_one_sample_and_no_count_of_batches():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.BatchNorm1d(4))
    model[0].num_batches_tracked = None
    x = torch.randn(9, 3)
    model, receipt = S.reestimate(model, [x[:8], x[8:]], progress=False)
    torch.testing.assert_close(model[0].running_mean, x.mean(0))
    torch.testing.assert_close(model[0].running_var, x.var(0))
    assert len(receipt.rows) == 2
    assert int(model[2].num_batches_tracked) == 2


def test_reestimate_refuses_statistics_that_half_precision_does_not_hold():
    model = nn.BatchNorm1d(3).half()
    with pytest.raises(ValueError, match=r"beyond 6\.55e"):
        S.reestimate(model, [(torch.randn(100, 3) * 1000).half()], inplace=True, progress=False)
    assert torch.equal(model.running_var, torch.ones(3).half())


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 2).eval()


@pytest.mark.parametrize("target", ["group", "rms"])
def test_transformer_layers_call_swapped_norms_at_inference_too(target):
    model, x = encoder(), torch.randn(3, 7, 16)
    padding = torch.arange(7) >= torch.tensor([[7], [5], [4]])
    fused = model(x).detach()
    new, receipt = S.swap(model, "layer", target, probe=x)
    assert receipt.difference > 0.1
    assert receipt.notes[0].startswith("torch's fused inference")
    assert receipt.notes[0].endswith("is off in the model itself, layers.0, layers.1")
    for options in ({}, {"src_key_padding_mask": padding}):
        with torch.no_grad():
            alone = new(x, **options)
        torch.testing.assert_close(alone, new(x, **options).detach())
    back, _ = S.revert(new, receipt)
    assert back.layers[0].activation_relu_or_gelu
    assert back.use_nested_tensor
    with torch.no_grad():
        torch.testing.assert_close(back(x), fused)


def test_replaced_norms_of_transformer_layers_run_at_inference():
    model, called = encoder(), []
    A.replace_norms(model)

    class Counted(A.LayerNorm):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            called.append(1)
            return super().forward(input)

    model.layers[1].norm2.__class__ = Counted
    with torch.no_grad():
        model(torch.randn(3, 7, 16))
    assert called == [1]


@pytest.mark.parametrize(("target", "read"), [("group", "num_features"), (None, "extra")])
def test_a_change_that_the_model_cannot_run_with_is_undone(target, read):
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.n = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.n.extra = 2

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.n(self.c(x)) * getattr(self.n, read)

    model = Reader()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"does not run.*the model is as it was"):
        S.swap(model, "batch", target, inplace=True) if target else S.fold(model, inplace=True)
    assert isinstance(model.n, nn.BatchNorm2d)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("how", ["iteration", "_parameters"])
def test_fold_is_undone_where_a_forward_reads_weights_that_nobody_sees(how):
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.n = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            nn.init.constant_(self.n.running_var, 4.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = next(iter(self.c.parameters())) if how == "iteration" else self.c._parameters["weight"]
            return self.n(self.c(x)) + weight.square().sum()

    model = Reader()
    weight = model.c.weight.detach().clone()
    with pytest.raises(ValueError, match="gives other outputs"):
        S.fold(model, inplace=True)
    assert torch.equal(model.c.weight, weight)
    assert isinstance(model.n, nn.BatchNorm2d)


@pytest.mark.parametrize(("source", "target"), [("batch", "group"), ("batch", "batch"), ("batch", "layer")])
def test_revert_gives_back_the_numbers_from_before_training(source, target):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
    nn.init.normal_(model[1].weight)
    before = {key: value.clone() for key, value in model[1].state_dict().items()}
    new, receipt = S.swap(model, source, target)
    new.train()
    optimizer = torch.optim.SGD(new.parameters(), lr=1.0)
    for _ in range(3):
        new(torch.randn(2, 3, 9, 9)).square().sum().backward()
        optimizer.step()
    back, _ = S.revert(new, receipt)
    assert all(torch.equal(value, before[key]) for key, value in back[1].state_dict().items())


@pytest.mark.parametrize(
    "operation",
    [
        lambda m: S.swap(m, "batch", "group", groups=3),
        lambda m: S.fold(m),
        lambda m: S.reestimate(m, torch.randn(8, 3, 9, 9), progress=False),
    ],
    ids=["swap", "fold", "reestimate"],
)
def test_revert_refuses_a_model_that_is_another(operation):
    small, large = (nn.Sequential(nn.Conv2d(3, c, 3), nn.BatchNorm2d(c)).eval() for c in (6, 12))
    _, receipt = operation(small)
    before = state(large)
    with pytest.raises(ValueError, match="receipt is not of this model"):
        S.revert(large, receipt, inplace=True)
    assert same(large, before)


def test_a_norm_that_was_in_evaluation_by_itself_stays_so_behind_unfreeze():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)).eval(), nn.BatchNorm2d(6))
    model.training = True
    S.freeze(model, inplace=True)
    model(torch.randn(2, 3, 9, 9))
    S.unfreeze(model, inplace=True)
    assert not model[0][1].training
    assert model[1].training


def test_a_guess_of_two_dimensions_decides_nothing_silently():
    linear = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7))
    _, receipt = S.swap(linear, "layer", "group", groups=7)
    assert not receipt.rows
    assert "give probe=" in receipt.refused[0].reason
    _, receipt = S.fold(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)).eval())
    assert "(n, c)" in receipt.rows[0].note


@pytest.mark.parametrize("groups", [2.5, "3", True, 0])
def test_groups_are_a_whole_number(groups):
    with pytest.raises(ValueError, match="positive whole number"):
        S.swap(nn.Sequential(nn.BatchNorm2d(6)), "batch", "group", groups=groups)
