"""Surgery on torch models that hold, share, move or return things in ways of their own."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_surgery_torch import filled, reasons, same, state
from torch import nn

import anynorm.surgery as S  # noqa: N812
import anynorm.torch as A  # noqa: N812


class Pair(nn.Module):
    """A convolution and a norm, for a forward to do with them what it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.n = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> Any:
        return self.n(self.c(x))


class Listed(Pair):
    def __init__(self, hold: Any) -> None:
        super().__init__()
        self.held = hold(self.c, self.n)

    def forward(self, x: torch.Tensor, more: float = 0.0) -> torch.Tensor:
        return self.held[1](self.held[0](x)) + more


@dataclass
class Holder:
    held: Any


def enclosing(norm: nn.Module) -> Any:
    return lambda x: norm(x)


HOLDS = {
    "list": lambda c, n: [c, n],
    "dictionary": lambda c, n: {0: c, 1: n},
    "tuple": lambda c, n: (c, n),
    "deque": lambda c, n: deque([c, n]),
    "partial": lambda c, n: (c, partial(n)),
    "method": lambda c, n: (c, n.forward),
    "function": lambda c, n: (c, enclosing(n)),
    "data class": lambda c, n: (c, [Holder(n)]),
    "names": lambda c, n: (c, SimpleNamespace(it=n)),
}


@pytest.mark.parametrize("hold", HOLDS.values(), ids=HOLDS)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("probe", [False, torch.randn(2, 3, 8, 8)], ids=["unseen", "seen"])
def test_a_norm_that_something_holds_too_stays(hold, inplace, probe):
    class Listed(Pair):
        def __init__(self) -> None:
            super().__init__()
            self.held = hold(self.c, self.n)

        def forward(self, x: torch.Tensor, more: float = 0.0) -> torch.Tensor:
            norm = self.held[1]
            norm = getattr(norm[0] if isinstance(norm, list) else norm, "held", norm)
            return getattr(norm, "it", norm)(self.held[0](x)) + more

    model, x = filled(Listed()), torch.randn(2, 3, 8, 8)
    before = model(x)
    for operation in (S.fold, lambda m, **k: S.swap(m, "batch", "group", **k)):
        if hold is HOLDS["function"] and not inplace:
            with pytest.raises(ValueError, match="held has enclosed a BatchNorm2d of the model"):
                operation(model, probe=probe)
            continue
        new, receipt = operation(model, probe=probe, inplace=inplace)
        assert not receipt.rows
        assert "held holds it too" in reasons(receipt)["n"]
        assert torch.equal(new(x), before)


def test_a_norm_that_an_object_holds_too_is_missed_and_all_is_undone():
    class Keeper:
        def __init__(self, norm: nn.Module) -> None:
            self.norm = norm

    class Hidden(Pair):
        def __init__(self) -> None:
            super().__init__()
            self.keeper = Keeper(self.n)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.keeper.norm(self.c(x))

    model = filled(Hidden())
    with pytest.raises(ValueError, match="what took the place of n is not called"):
        S.swap(model, "batch", "group", inplace=True)
    assert isinstance(model.n, nn.BatchNorm2d)


def test_who_holds_weights_that_change_or_go_is_told():
    model = filled(Pair())
    model.weights, model.statistics = [model.c.weight], deque([model.n.running_mean])
    _, receipt = S.fold(model, probe=False)
    assert receipt.rows[0].note == "weights holds weights that change or go; statistics holds weights that change or go"
    _, receipt = S.swap(model, "batch", "group", probe=False)
    assert receipt.rows[0].note.endswith("; statistics holds the old running_mean")
    _, receipt = S.swap(model, "batch", "batch", probe=False)
    assert "statistics" not in receipt.rows[0].note


def test_a_layer_whose_forward_was_replaced_stays():
    x = torch.randn(2, 3, 8, 8)
    for operation in (S.fold, lambda m, **k: S.swap(m, "batch", "group", **k)):
        for part in ("n", "c"):
            model = filled(Pair())
            own = getattr(model, part).forward
            getattr(model, part).forward = lambda x, own=own: own(x) * 2
            _, receipt = operation(model, probe=x, inplace=True)
            assert bool(receipt.rows) == (part == "c" and operation is not S.fold)


def test_without_a_probe_the_receipt_says_that_nothing_was_compared():
    model = filled(Pair())
    for operation in (S.fold, lambda m, **k: S.swap(m, "batch", "group", **k), S.freeze):
        _, receipt = operation(model, probe=False)
        assert "outputs were not compared" in " ".join(receipt.notes)
        assert receipt.difference is None


def test_outputs_that_cannot_be_compared_have_no_difference():
    @dataclass
    class Output:
        y: torch.Tensor

    class Wrapped(Pair):
        def forward(self, x: torch.Tensor) -> Output:
            return Output(super().forward(x))

    class Both(Pair):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Output]:
            return x.sum(), Output(super().forward(x))

    _, receipt = S.swap(filled(Wrapped()), "batch", "group")
    assert receipt.difference is None
    assert "no outputs could be compared" in " ".join(receipt.notes)
    _, receipt = S.swap(filled(Both()), "batch", "group")
    assert "some outputs could not be compared" in " ".join(receipt.notes)


def test_complex_outputs_are_compared_by_both_parts():
    class Imaginary(Pair):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 1j

    _, receipt = S.swap(filled(Imaginary()), "batch", "group")
    assert receipt.difference > 0.1


def test_fold_a_model_that_is_random_outside_training():
    class Noisy(Pair):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(super().forward(x), 0.5, True)

    new, receipt = S.fold(filled(Noisy()))
    assert isinstance(new.n, nn.Identity)
    assert "differs from itself" in " ".join(receipt.notes)


def test_fold_a_model_that_changes_its_input():
    class Eater(Pair):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.mul_(2))

    x = torch.randn(2, 3, 8, 8)
    before = x.clone()
    _, receipt = S.fold(filled(Eater()), probe=x)
    assert torch.equal(x, before)
    assert len(receipt.rows) == 1
    assert receipt.notes == []


def test_what_a_forward_counts_or_keeps_is_as_it_was():
    class Counter(Pair):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += 1
            self.steps = self.steps + 1
            self.last = x
            return super().forward(x)

    model = filled(Counter())
    S.fold(model)
    S.inspect(model)
    assert (model.seen, model.steps, hasattr(model, "last")) == (0, 0, False)


OPERATIONS = {
    "swap": lambda m, **k: S.swap(m, "batch", "group", groups=2, **k),
    "fold": S.fold,
    "freeze": S.freeze,
    "reestimate": lambda m: S.reestimate(m, torch.randn(8, 3, 9, 9), progress=False),
}
every = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


@every
@pytest.mark.parametrize(
    "other",
    [
        lambda: nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7)),
        lambda: nn.Sequential(nn.Conv2d(3, 7, 3), A.GroupNorm(7, 7)),
        lambda: nn.Sequential(nn.Conv2d(3, 7, 3), nn.Identity()),
        lambda: nn.Sequential(nn.Linear(3, 6), nn.Identity()),
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)),
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3)),
    ],
    ids=["wide", "wide group", "wide nothing", "linear", "convolutions", "short"],
)
def test_revert_refuses_another_model_and_changes_nothing(operation, other):
    _, receipt = operation(filled(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))))
    model = other()
    before, kinds = state(model), [type(m) for m in model]
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match="the receipt is not of this model"):
        S.revert(model, receipt, probe=False, inplace=True)
    assert same(model, before)
    assert [type(m) for m in model] == kinds
    assert [p.requires_grad for p in model.parameters()] == flags


@pytest.mark.parametrize("operation", [OPERATIONS["swap"], S.fold], ids=["swap", "fold"])
def test_what_comes_back_is_in_the_mode_and_type_that_its_model_is_in_now(operation):
    model = filled(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))).train()
    new, receipt = operation(model)
    back, _ = S.revert(new.eval().double(), receipt)
    assert not back[1].training
    assert {t.dtype for t in back.state_dict().values()} == {torch.float64, torch.int64}
    before = state(back)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(back(x.double()).float(), model.eval()(x))
    assert same(back, before)
    again, receipt = operation(back)
    assert S.revert(again.train(), receipt)[0][1].training


def test_a_norm_of_another_type_than_its_model_comes_back_in_it():
    model = filled(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)))
    model[0].half()
    before = state(model)
    for operation in (S.fold, OPERATIONS["swap"]):
        back, _ = S.revert(*operation(model, probe=False) if operation is S.fold else operation(model), probe=False)
        assert same(back, before)


def test_revert_ties_what_was_tied():
    model = filled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    model[3].weight = model[1].weight
    for operation in (S.fold, OPERATIONS["swap"]):
        back, _ = S.revert(*operation(model))
        assert back[1].weight is back[3].weight
        assert same(back, state(model))


def test_layer_norms_of_sequences_are_told_what_groups_would_see():
    def encoder(batch_first: bool) -> nn.Module:
        layer = nn.TransformerEncoderLayer(24, 3, 48, dropout=0.0, batch_first=batch_first)
        return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False, norm=nn.LayerNorm(24)).eval()

    x = torch.randn(7, 3, 24)
    for target in ("group", "instance"):
        _, receipt = S.swap(encoder(False), "layer", target, probe=x)
        assert not receipt.rows
        assert all("mix samples" in reason for reason in reasons(receipt).values())
        _, receipt = S.swap(encoder(True), "layer", target, probe=x)
        assert all("later ones too" in row.note for row in receipt.rows)
        assert len(receipt.rows) == 3
    assert "later" not in S.swap(filled(Pair()), "batch", "group")[1].rows[0].note
    _, receipt = S.swap(encoder(False), "layer", "rms", probe=x)
    assert len(receipt.rows) == 3


class Mixed(nn.Module):
    """Attention over the first axis in one block, a norm in the next one."""

    def __init__(self, batch_first: bool = False, embedded: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 24) if embedded else nn.Identity()
        self.block = nn.ModuleDict({"attention": nn.MultiheadAttention(24, 3)})
        self.other = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 24))
        self.batch_first = batch_first

    def forward(self, x: torch.Tensor, scale: Any = 1.0) -> torch.Tensor:
        x = self.embedding(x)
        y = x.transpose(0, 1) if self.batch_first else x
        y = self.block.attention(y, y, y)[0]
        return self.other(y.transpose(0, 1) if self.batch_first else y) * scale


@pytest.mark.parametrize("target", ["group", "instance"])
@pytest.mark.parametrize("embedded", [False, True])
def test_samples_are_where_one_is_changed_and_no_other_follows(target, embedded):
    x = torch.arange(21).reshape(7, 3) % 9 if embedded else torch.randn(7, 3, 24)
    for probe in (x, (x, torch.ones(3, 1))):
        _, receipt = S.swap(Mixed(embedded=embedded).eval(), "layer", target, probe=probe)
        assert reasons(receipt)["other.0"].startswith("axis 0 of its input does not have the samples")
    # Within, the attention has the tokens first, and the norm has the samples there: seen, and changed.
    new, receipt = S.swap(Mixed(True, embedded).eval(), "layer", target, probe=x)
    assert len(receipt.rows) == 1
    assert receipt.notes == []
    torch.testing.assert_close(new(x)[:1], new(x[:1]))
    # Unseen, with one sample or without an input, it may be so or not.
    for probe in (x[:1], False):
        _, receipt = S.swap(Mixed(True, embedded).eval(), "layer", target, probe=probe)
        assert "give a probe= of two samples or more" in reasons(receipt)["other.0"]


def test_that_nothing_shows_the_samples_is_said():
    class Loss(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).sum()

    _, receipt = S.swap(Loss(nn.Linear(6, 24), nn.LayerNorm(24)).eval(), "layer", "group", probe=torch.randn(5, 7, 6))
    assert len(receipt.rows) == 1
    assert receipt.notes == ["that axis 0 of the norms' inputs has the samples was not seen, and is taken to be so"]


def test_a_batch_norm_whose_first_axis_is_another_stays():
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = nn.BatchNorm2d(12)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.n(x.transpose(0, 2)).transpose(0, 2)

    _, receipt = S.swap(Turned().eval(), "batch", "group", probe=torch.randn(5, 12, 4, 6))
    assert "does not have the samples" in reasons(receipt)["n"]


def test_fold_of_a_model_that_is_one_norm_says_so():
    _, receipt = S.fold(filled(nn.BatchNorm2d(6)), probe=torch.randn(2, 6, 4, 4))
    assert "the whole model" in receipt.refused[0].reason
    assert not receipt.rows


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_frozen_model_can_be_scripted_and_compiled():
    model, _ = S.freeze(filled(Pair()))
    for made in (torch.jit.script(model), torch.compile(model, backend="eager", fullgraph=True)):
        before = state(model)
        made.train()(torch.randn(4, 3, 8, 8))
        assert same(model, before)
    assert "was_training" not in vars(S.unfreeze(model)[0].n)


@pytest.mark.parametrize("operation", [OPERATIONS["swap"], S.fold], ids=["swap", "fold"])
@pytest.mark.parametrize("key", ["weight", "bias"])
def test_revert_leaves_tied_what_was_tied_with_a_module_that_stays(operation, key):
    model = filled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)))
    setattr(model[2], key, getattr(model[1], key))
    before = state(model)
    new, receipt = operation(model)
    with torch.no_grad():
        getattr(new[2], key).add_(1)
    back, said = S.revert(new, receipt)
    assert getattr(back[2], key) is getattr(back[1], key)
    assert same(back, before)
    assert "shared with 2" in said.rows[0].note


def test_what_layers_shared_that_lost_it_is_shared_again_behind_revert():
    model = nn.Sequential(nn.LayerNorm((4, 5, 5)), nn.LayerNorm((4, 5, 5)))
    model[1].weight = model[0].weight
    model.register_parameter("scale", model[0].bias)
    new, receipt = S.swap(model, "layer", "group", groups=2, probe=torch.randn(2, 4, 5, 5))
    assert new[0].weight.shape == (4,)
    back, _ = S.revert(new, receipt)
    assert back.scale is back[0].bias
    assert back[1].weight is back[0].weight


def test_revert_in_place_leaves_an_optimizer_its_parameters():
    model = filled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    weight = model[1].weight
    _, receipt = S.swap(model, "batch", "group", groups=2, inplace=True)
    S.revert(model, receipt, inplace=True)
    assert model[1].weight is weight


class Whim(Pair):
    """Runs with a kind of norm only."""

    kind: Any = nn.BatchNorm2d

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(self.n, self.kind):
            raise TypeError("another norm")
        return self.n(self.c(x))


@pytest.mark.parametrize("operation", [OPERATIONS["swap"], S.fold], ids=["swap", "fold"])
@pytest.mark.parametrize("reverted", [False, True])
def test_what_failed_in_place_leaves_the_very_objects(operation, reverted, monkeypatch):
    def objects() -> list[int]:
        return [id(one) for one in (*model.modules(), *model.parameters(), *model.buffers())]

    model, x = filled(Whim()), torch.randn(2, 3, 8, 8)
    if reverted:
        monkeypatch.setattr(Whim, "kind", nn.Module)
        model, receipt = operation(model)
        monkeypatch.setattr(Whim, "kind", type(model.n))
    before, ids, y = state(model), objects(), model(x)
    with pytest.raises(ValueError, match=r"does not run: another norm.*as it was"):
        S.revert(model, receipt, inplace=True) if reverted else operation(model, inplace=True)
    assert objects() == ids
    assert same(model, before)
    assert torch.equal(model(x), y)


def test_revert_of_another_framework_s_receipt_says_so():
    _, receipt = OPERATIONS["swap"](filled(Pair()))
    receipt.undo = lambda model, inplace: (model.layers, receipt)
    with pytest.raises(ValueError, match="receipt of another framework"):
        S.revert(filled(Pair()), receipt)


def test_revert_of_a_lone_norm_in_place_says_that_it_cannot():
    new, receipt = S.swap(filled(nn.BatchNorm2d(6)), "batch", "group", groups=2)
    with pytest.raises(ValueError, match="leave inplace out"):
        S.revert(new, receipt, inplace=True)
    assert isinstance(S.revert(new, receipt)[0], nn.BatchNorm2d)
