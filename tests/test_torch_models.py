"""Models written for torch.nn alone, their norms replaced by one call, train as they did."""

from __future__ import annotations

import copy

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
