"""Models written for torch.nn alone, their norms replaced by one call, train as they did."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

import anynorm.torch as A  # noqa: N812


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.GroupNorm(4, width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


class ResNet(nn.Sequential):
    def __init__(self) -> None:
        stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)]
        super().__init__(*stem, Block(16), nn.MaxPool2d(2), nn.InstanceNorm2d(16, affine=True), Block(16), *head)

    def example(self) -> torch.Tensor:
        return torch.randn(16, 3, 12, 12)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(24, 3, 48, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.RMSNorm(24), enable_nested_tensor=False)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x).mean(1))

    def example(self) -> torch.Tensor:
        return torch.randn(16, 10, 24)


def losses(model: nn.Module) -> list[float]:
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    found = []
    batches = [(model.example(), torch.randint(5, (16,))) for _ in range(5)]
    for step in range(50):
        x, target = batches[step % 5]
        loss = nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize(("kind", "number"), [(ResNet, 6), (Transformer, 5)])
def test_losses_are_the_same_over_fifty_steps(kind, number):
    torch.manual_seed(0)
    theirs = kind()
    ours = copy.deepcopy(theirs)
    assert A.replace_norms(ours) == number
    assert A.replace_norms(ours) == 0
    got, wanted = losses(ours), losses(theirs)
    assert wanted[-1] < 0.7 * wanted[0], "it learns"
    assert max(abs(a - b) for a, b in zip(got, wanted, strict=True)) < 1e-3
    for (name, one), (other, two) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == other
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-2)


def test_what_a_module_has_stays_its_own():
    norm = nn.BatchNorm2d(6)
    model, weight = nn.ModuleDict({"one": norm, "tied": norm}), norm.weight
    norm.register_forward_hook(lambda *_: torch.zeros(()))
    assert A.replace_norms(model) == 1
    assert model["one"] is model["tied"] is norm
    assert type(norm) is A.BatchNorm2d
    assert norm.weight is weight
    assert norm(torch.randn(2, 6, 5, 5)).ndim == 0


def test_subclasses_are_left_alone():
    class Own(nn.LayerNorm):
        pass

    assert A.replace_norms(nn.Sequential(Own(6))) == 0


def parametrized(layer: nn.Module) -> nn.Module:
    class Doubled(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


@pytest.mark.parametrize("turn", [A.replace_norms, A.SyncBatchNorm.convert_sync_batchnorm])
def test_lazy_and_parametrized_norms_are_turned(turn):
    kind = A.SyncBatchNorm if turn != A.replace_norms else A.BatchNorm2d
    norm = parametrized(nn.BatchNorm2d(6))
    twin = copy.deepcopy(norm)
    model = nn.Sequential(nn.LazyBatchNorm2d(), norm, nn.LazyBatchNorm2d())
    before = list(model.state_dict())
    turn(model)
    assert A.replace_norms(model) == 0
    # Beyond what torch's own forward can do, in the first call too.
    x = 1e6 + torch.randn(16, 6, 5, 5)
    y = model[0](x)
    torch.testing.assert_close(
        y.double(), nn.functional.batch_norm(x.double(), None, None, training=True), rtol=0, atol=1e-5
    )
    y = model(x)
    assert [type(module).__mro__[i] for i, module in zip((0, 1, 0), model, strict=True)] == [kind] * 3
    assert list(model.state_dict()) == before
    assert norm.weight.tolist() == [2.0] * 6
    assert not isinstance(twin, kind), "a copy keeps its class"
    nn.utils.parametrize.remove_parametrizations(norm, "weight")
    assert type(norm) is kind
    torch.testing.assert_close(model(x), y, rtol=0, atol=1e-5)


def lazy() -> nn.Sequential:
    model = nn.Sequential(nn.LazyBatchNorm2d(), nn.LazyInstanceNorm2d(affine=True))
    assert A.replace_norms(model) == 2
    return model


def saved_whole(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_whole])
def test_lazy_norms_are_copied_before_the_first_input(copied):
    model, x = lazy(), torch.randn(2, 6, 5, 7)
    twin = copied(A.SyncBatchNorm.convert_sync_batchnorm(model))
    twin(x)
    assert [type(module) for module in twin] == [A.SyncBatchNorm, A.InstanceNorm2d]
    assert [module.num_features for module in twin] == [6, 6]
    assert model[0].has_uninitialized_params(), "the first input was another's"
    assert model(x).shape == x.shape


def test_lazy_norms_take_a_state_and_a_mask_before_the_first_input():
    whole = nn.Sequential(nn.BatchNorm2d(6), nn.InstanceNorm2d(6, affine=True, track_running_stats=True))
    x = torch.randn(2, 6, 5, 7)
    nn.init.normal_(whole[0].weight)
    model = lazy()
    model.load_state_dict(whole.state_dict())
    torch.testing.assert_close(model(x), whole(x), rtol=1e-5, atol=1e-5)
    assert [module.num_features for module in model] == [6, 6]
    late = nn.LazyBatchNorm2d()
    late.load_state_dict(nn.BatchNorm2d(6).state_dict())
    late(x)
    A.replace_norms(late)
    assert late.num_features == 6, "which torch leaves at 0"
    mask = torch.rand(2, 1, 5, 7) < 0.7
    wanted = A.BatchNorm2d(6)(x, mask)
    torch.testing.assert_close(lazy()[0](x, mask), wanted)
    torch.testing.assert_close(lazy()[0](x, mask=mask), wanted)
    assert lazy()[1](x[0]).shape == x[0].shape, "a sample without a batch"
    with pytest.raises(RuntimeError, match="call the module"):
        lazy()[0].forward(x)


def test_synchronization_leaves_subclasses_and_says_so():
    class Own(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 10 * super().forward(x)

    class OwnSync(A.SyncBatchNorm):
        pass

    model = nn.Sequential(nn.BatchNorm2d(6), nn.Sequential(Own(6)), A.BatchNorm2d(6), nn.SyncBatchNorm(6))
    with pytest.warns(UserWarning, match=r"not synchronized: 1\.0 \(Own\)"):
        A.SyncBatchNorm.convert_sync_batchnorm(model)
    assert [type(module) for module in model] == [A.SyncBatchNorm, nn.Sequential, A.SyncBatchNorm, A.SyncBatchNorm]
    assert type(model[1][0]) is Own
    twice = OwnSync.convert_sync_batchnorm(OwnSync.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(6))))
    assert type(twice[0]) is OwnSync
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        A.SyncBatchNorm.convert_sync_batchnorm(twice, process_group="some")
    assert type(twice[0]) is OwnSync
    assert twice[0].process_group == "some", "it is synchronized, in the group that was asked for"
