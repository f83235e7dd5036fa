"""Operations that put other layers into a model, and the way back."""

from __future__ import annotations

from typing import Any

from .proving import check_called, differs, proved
from .receipt import Receipt
from .sides import side_of
from .swapping import Wish


def swap(
    model: Any, source: str, target: str, *, groups: int | None = None, probe: Any = None, inplace: bool = False
) -> tuple[Any, Receipt]:
    """Turn a model's norms of one kind into another kind.

    The new norms are anynorm's, have the old ones' names, axes, eps, type and trainable flags, and their scale and
    offset where the shapes fit. Batch normalization's running statistics are lost, and a new batch normalization has
    none yet: `reestimate` them, or train. A layer or RMS normalization that comes from another kind normalizes the
    channels at each position.

    Args:
        model: of torch; or of Keras, built, Sequential or functional and of Keras's own class, with shared layers and
            models within it. A loss of one's own leaves the new model not compiled; attributes that are no plain
            values, nor layers of it, do not come along; the receipt says so.
        source: the kind of the norms: "batch", "group", "instance", "layer", "rms" or "any".
        target: what they become: any of these but "any". A norm of that kind already becomes anynorm's, the same.
        groups: how many groups group normalization is to have, 32 where nothing is said. Each norm takes the divisor
            of its channels that is nearest and leaves 8 elements to a statistic, one group where none does, and stays
            as it is where even that has only two, of which nothing but a sign would be left; the receipt says which.
            In a torch model without a probe input there may be one position only, and 8 channels make a group.
        probe: an input of the model, to compare outputs on and to see how large the norms' inputs are: an array, a
            tuple of arguments, or a dictionary of named ones. None has one made from what the model says of its
            input, False has none.
        inplace: change the model itself; a Keras model within the model is built anew, and symbolic tensors of the old
            graph, such as `layer.output` gives them, stay those of the old one.

    Returns:
        The model and the receipt. Without `inplace` it is a new one, and the given one stays as it is.

    Raises:
        TypeError: no model of Keras or torch.
        ValueError: kinds that there are not; a model of Keras that cannot be rebuilt, since it is of a class of its own
            or, without `inplace`, has layers that another layer holds too or whose weights a function reads by itself,
            as is seen on the probe input; one that does not run with its new norms, or does not call them. It then is
            as it was.

    What cannot be swapped is left and named in the receipt: subclasses of norms, norms inside layers of one's own,
    statistics that would be over one element or two, norms with hooks, torch norms that an attribute, a container or a
    function of a module holds besides, and such whose statistics would mix samples, since axis 0 of their input does
    not have them: of torch models that is seen on the probe input, by changing one sample. Where layer or RMS
    normalization becomes group or instance normalization, statistics are over all positions of a sample, later ones of
    a sequence too: a note says so.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 48, 3), torch.nn.BatchNorm2d(48))
    >>> new, receipt = swap(model, "batch", "group")
    >>> new[1], receipt.rows[0].note
    (GroupNorm(24, 48, eps=1e-05, affine=True, bias=True), '24 groups (asked: 32)')
    """
    side, wish = side_of(model), Wish(source, target, groups)
    measured, receipt = side.Probe(model, probe), Receipt(f"swap: {source} to {target}")
    receipt.before = side.numbers(model)
    with side.whole(model, inplace, numbers=False):
        changed = side.swap(model, wish, measured, receipt, inplace)
        proved(side, changed, measured, receipt, inplace)
        check_called(side, changed, measured, receipt, inplace)
    if source == target and groups is None and differs(receipt, side.coarsest(changed)):
        receipt.notes.append(
            "the same norms of anynorm should give the same outputs: the old ones are inexact on this input"
        )
    return changed, receipt


def fold(model: Any, *, probe: Any = None, inplace: bool = False) -> tuple[Any, Receipt]:
    """Take batch normalizations into the convolutions and dense layers in front of them.

        ((W x + b) - mean) / sqrt(variance + eps) * gamma + beta = (W s) x + (b - mean) s + beta
        s = gamma / sqrt(variance + eps)

    The folded model computes what the model computes outside training, with less work; it is not for training on.
    Kernels are multiplied in float64 and rounded once. In a Keras model the norm is gone, in one of torch it becomes
    `Identity`.

    Args:
        model, probe, inplace: as for `swap`. How the modules of a torch model are connected, torch.fx has to find out:
            of a model that it cannot trace, those parts are folded that it can, and only with a probe input, on which
            is seen that nothing else calls what is in them.

    Returns:
        The model and the receipt.

    Raises:
        TypeError, ValueError: as `swap`; and ValueError where the folded model gives other outputs on the probe input,
            which happens where a forward reads weights in a way that no tracing sees.

    Taken: Conv1D, 2D and 3D, plain, grouped, transposed, depthwise and separable; Dense and Linear. A norm is left,
    with the reason in the receipt, where something is between (an activation, another layer), where either is used
    more than once or shares its weights, where the output in front is used elsewhere too, or where there are no
    running statistics or they are not finite.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU()).eval()
    >>> new, receipt = fold(model)
    >>> new[1], receipt.rows[0].became, receipt.difference < 1e-5
    (Identity(), 'in 0 (Conv2d)', True)
    """
    side = side_of(model)
    measured, receipt = side.Probe(model, probe), Receipt("fold")
    receipt.before = side.numbers(model)
    with side.whole(model, inplace, numbers=True):
        changed = side.fold(model, measured, receipt, inplace)
        return changed, proved(side, changed, measured, receipt, inplace, side.coarsest(model))


def revert(model: Any, receipt: Receipt, *, probe: Any = None, inplace: bool = False) -> tuple[Any, Receipt]:
    """Give back what an operation changed.

    For that a receipt keeps, in memory and not in what is saved: of `swap` the old norms with their numbers; of `fold`
    these and the kernels and biases in front of them; of `freeze` and `unfreeze` the flags; of `reestimate` the old
    running statistics. Those come back as they were before the operation; everything else in the model stays as it is
    now, trained meanwhile or not. What was learned in a layer that goes is gone. In torch a norm comes back in the
    mode, on the device and in the type of what it takes the place of, and shares the parameters that it shared: they
    have its numbers then, wherever they are.

    Args:
        model: what the operation returned, or a copy of it with the same names.
        receipt: the operation's.
        probe, inplace: as for `swap`.

    Returns:
        The model and a receipt of its own.

    Raises:
        ValueError: the receipt keeps nothing, the model has no layers of the names, classes and shapes that it has, or
            it does not run with the old ones; the model stays as it is.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6)).eval()
    >>> back, _ = revert(*fold(model))
    >>> back[1]
    BatchNorm2d(6, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
    """
    if receipt.undo is None:
        raise ValueError(f'the receipt of "{receipt.operation}" keeps nothing that could be given back')
    side = side_of(model)
    measured, before = side.Probe(model, probe), side.numbers(model)
    with side.whole(model, inplace, numbers=True):
        try:
            changed, back = side.revert(model, receipt, inplace)
        except KeyError as missing:
            raise ValueError(f"the receipt is not of this model: it has no layer called {missing}") from missing
        back.before = before
        return changed, proved(side, changed, measured, back, inplace)
