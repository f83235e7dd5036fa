"""Operations that change how a model's norms train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .data import batches as batches_of
from .data import shown
from .proving import finished, proved
from .receipt import Receipt
from .sides import side_of
from .swapping import ANY, checked_kind


def freeze(model: Any, kind: str = ANY, *, probe: Any = None, inplace: bool = False) -> tuple[Any, Receipt]:
    """Let norms learn no more: neither their parameters nor their running statistics move.

    A frozen batch normalization uses its running statistics in training too. In Keras that is `trainable = False`; in
    torch the parameters get no gradient, and a hook before the forward keeps the module in evaluation, whatever
    `model.train()` says, in copies and saved models too.

    Args:
        model: of torch or Keras.
        kind: of the norms: "batch", "group", "instance", "layer", "rms" or "any".
        probe, inplace: as for `swap`; a Keras model of one's own class, or with layers that another layer holds too,
            needs inplace=True.

    Returns:
        The model and the receipt.

    Raises:
        TypeError: no model of Keras or torch.
        ValueError: a kind that there is not; a copy whose outputs differ, since a layer has numbers of its own.

    >>> import torch
    >>> model, receipt = freeze(torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.BatchNorm1d(6)))
    >>> _ = model.train()(torch.randn(4, 3))
    >>> int(model[1].num_batches_tracked), model[1].weight.requires_grad
    (0, False)
    """
    return _frozen(model, kind, True, probe, inplace)


def unfreeze(model: Any, kind: str = ANY, *, probe: Any = None, inplace: bool = False) -> tuple[Any, Receipt]:
    """Let norms learn again: the opposite of `freeze`, with its arguments, result and errors.

    All norms of the kind learn afterwards; to have the flags as they were before `freeze`, `revert` that.

    >>> import torch
    >>> model, _ = freeze(torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.BatchNorm1d(6)))
    >>> model, _ = unfreeze(model)
    >>> _ = model.train()(torch.randn(4, 3))
    >>> int(model[1].num_batches_tracked), model[1].weight.requires_grad
    (1, True)
    """
    return _frozen(model, kind, False, probe, inplace)


def _frozen(model: Any, kind: str, frozen: bool, probe: Any, inplace: bool) -> tuple[Any, Receipt]:
    side, receipt = side_of(model), Receipt(f"{'freeze' if frozen else 'unfreeze'}: {checked_kind(kind)}")
    measured, receipt.before = side.Probe(model, probe), side.numbers(model)
    with side.whole(model, inplace, numbers=False):
        changed = side.freeze(model, kind, frozen, receipt, inplace)
        return changed, proved(side, changed, measured, receipt, inplace, side.coarsest(model))


def reestimate(
    model: Any,
    data: Any,
    *,
    batch_size: int = 32,
    batches: int | None = None,
    progress: bool | Callable[[int, int | None], None] = True,
    probe: Any = None,
    inplace: bool = False,
) -> tuple[Any, Receipt]:
    """Set the running statistics of batch normalizations to those of a whole data set.

    The model goes once through the data as in training, each batch normalized by its own statistics, but with dropout
    and all else as outside training. The batches' moments are merged in float64 (Chan, Golub, LeVeque 1979), each
    weighted by how many elements it has, so that the variance includes what batches differ by, and the last, smaller
    batch counts as what it is. Anything that ends the pass early leaves the statistics as they were.

    Source: Wu, Johnson 2021, arXiv:2105.07576 ("precise batch normalization").

    Args:
        model: of torch or Keras, as for `freeze`.
        data: an array of inputs, or an iterable of batches: a DataLoader, a `tf.data.Dataset`, a `PyDataset`, a list.
            A batch is an array, a dictionary of named inputs, or a tuple or list whose first entry is one of these, as
            in (x, y); ((x1, x2), y) for a model with two inputs.
        batch_size: of the batches that an array is cut into; as in training is best.
        batches: take at most so many.
        progress: whether to show a bar on a terminal (where rich is installed), or what to call with how many batches
            are done, and of how many, None where that is unknown.
        probe, inplace: as for `swap`.

    Returns:
        The model and the receipt.

    Raises:
        TypeError: no model of Keras or torch, or data that is no such thing.
        ValueError: data without a batch; an input of a norm that is not finite.

    >>> import torch
    >>> x = torch.tensor([[1.0], [3.0], [8.0]])
    >>> model, receipt = reestimate(torch.nn.Sequential(torch.nn.BatchNorm1d(1)), x, batch_size=3, progress=False)
    >>> model[0].running_mean, model[0].running_var
    (tensor([4.]), tensor([13.]))
    """
    side, receipt = side_of(model), Receipt("reestimate")
    inputs, total = batches_of(data, batch_size, batches)
    measured, receipt.before = side.Probe(model, probe), side.numbers(model)
    with side.whole(model, inplace, numbers=False), shown(progress, total) as advance:
        changed, done = side.reestimate(model, inputs, advance, measured, receipt, inplace)
        finished(side, changed, measured, receipt)
    if done == 0:
        raise ValueError("the data has no batch, or was used up before; the statistics stay as they were")
    if done is not None:
        receipt.notes.append(f"{done} batch{'es' * (done != 1)}")
    elif not receipt.refused:
        receipt.notes.append("the model has no batch normalization")
    wanted = batches if batches is not None else total
    if wanted is not None and done is not None and done < wanted:
        receipt.notes.append(f"the data ended after {done} of {wanted} batches")
    return changed, receipt


def weight_decay_groups(model: Any, weight_decay: float = 0.01) -> tuple[list[Any], Receipt]:
    """Which parameters weight decay is for, and which not: those of norms, biases, and all over one axis or none.

    Args:
        model: of torch or Keras.
        weight_decay: of the first group; only torch's optimizers have it here.

    Returns:
        For torch, two groups to make an optimizer with, each trainable parameter in one of them. For Keras, the list
        for `optimizer.exclude_from_weight_decay(var_list=...)`. And the receipt, which names the layers whose
        parameters do not decay; nothing is changed.

    Raises:
        TypeError: no model of Keras or torch.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.LayerNorm(6))
    >>> groups, receipt = weight_decay_groups(model)
    >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
    [(1, 0.01), (3, 0.0)]
    >>> optimizer = torch.optim.AdamW(groups)
    """
    side, receipt = side_of(model), Receipt("weight_decay_groups")
    found = side.weight_decay(model, weight_decay, receipt)
    receipt.before = receipt.after = side.numbers(model)
    return found, receipt
