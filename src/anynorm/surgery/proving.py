"""How every receipt ends: the changed model is run, and compared with what the model gave before."""

from __future__ import annotations

from typing import Any

import numpy as np

from .receipt import Receipt, first_line

# Of the largest output: what a model may differ by that is to compute the same, and by how much one that is run twice.
_SAME, _REPEATED = 1e-3, 1e-5
# How many times as far as from itself.
_FAR = 10


class Entangled(ValueError):  # noqa: N818 - what the model is, and no mistake of a program
    """A model made anew reads weights of the one that it was made from."""


def finished(side: Any, changed: Any, measured: Any, receipt: Receipt) -> Receipt:
    """The receipt with what is measured afterwards."""
    receipt.after, receipt.probe = side.numbers(changed), measured.words
    if measured.outputs is None:
        if receipt.rows:
            receipt.notes.append("outputs were not compared, for there was no probe input")
        return receipt
    outputs = measured.run(changed)
    if not measured.outputs:
        receipt.notes.append("no outputs could be compared: the model returns no tensors in a structure known here")
        return receipt
    if measured.partly:
        receipt.notes.append("some outputs could not be compared: they are in a structure that is not known here")
    if not all(np.isfinite(y).all() for y in (*measured.outputs, *outputs)):
        receipt.notes.append("outputs on the probe input are not finite, so that no difference can be told")
        return receipt
    receipt.difference, receipt.largest = apart(measured.outputs, outputs), largest(measured.outputs)
    if varies(measured):
        receipt.notes.append(
            f"the model differs from itself by {measured.repeated:.1e} when it is run twice on the same input, outside "
            "training too: what the change did to its outputs cannot be told"
        )
    return receipt


def apart(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """The largest difference of two lists of outputs."""
    return max((float(np.abs(a - b).max(initial=0)) for a, b in zip(one, other, strict=True)), default=0.0)


def largest(outputs: list[np.ndarray]) -> float:
    return max((float(np.abs(y).max(initial=0)) for y in outputs), default=0.0)


def varies(measured: Any) -> bool:
    """Whether the model, before anything was changed, gave other outputs when it was run again."""
    return bool(measured.repeated > _REPEATED * largest(measured.outputs))


def proved(
    side: Any, changed: Any, measured: Any, receipt: Receipt, inplace: bool, coarsest: float | None = None
) -> Receipt:
    """The receipt with what is measured; where the changed model fails or, with `coarsest`, differs, all is undone.

    Args:
        coarsest: the largest rounding unit in the model, where its outputs are to be the same but for rounding.
    """
    try:
        finished(side, changed, measured, receipt)
        wrong = coarsest is not None and differs(receipt, coarsest, measured.repeated)
    except Entangled:
        raise
    except Exception as failed:  # whatever a model raises that its forward no longer fits
        _undone(side, changed, receipt, inplace)
        raise ValueError(
            f"the changed model does not run: {first_line(failed)}. Its forward reads something that has changed; the "
            "model is as it was"
        ) from failed
    if wrong:
        _undone(side, changed, receipt, inplace)
        raise ValueError(
            f"the changed model gives other outputs, by {receipt.difference:.1e} where the largest is "
            f"{receipt.largest:.1e}: something in it reads weights that have changed, or has numbers of its own that a "
            "copy lacks. The model is as it was"
        )
    return receipt


def differs(receipt: Receipt, coarsest: float, repeated: float = 0.0) -> bool:
    """Whether the outputs differ by more than rounding, and far more than those of one model run twice."""
    if receipt.difference is None or receipt.largest is None:
        return False
    return receipt.difference > max(_SAME, 64 * coarsest) * receipt.largest + _FAR * repeated


def check_copy(copy: Any, measured: Any, coarsest: float) -> None:
    """Raise where a copy in which nothing was changed gives other outputs than the model."""
    outputs = measured.run(copy)
    if not outputs or not measured.outputs:
        return
    found, size = apart(measured.outputs, outputs), largest(measured.outputs)
    if found > max(_SAME, 64 * coarsest) * size + _FAR * measured.repeated:
        raise ValueError(
            f"a copy of the model, with nothing changed in it, gives other outputs, by {found:.1e} where the largest "
            f"is {size:.1e}: a layer has numbers of its own that a copy lacks; inplace=True changes the model itself"
        )


def check_called(side: Any, changed: Any, measured: Any, receipt: Receipt, inplace: bool) -> None:
    """Note which of the changed layers the probe input did not reach; raise where it did before and nothing differs."""
    lost = [row.name for row in receipt.rows if measured.uncalled(row.name)]
    if not lost:
        return
    if receipt.difference == 0 and any(measured.calls[name] for name in lost):
        _undone(side, changed, receipt, inplace)
        raise ValueError(
            f"what took the place of {', '.join(lost)} is not called: something in the model holds the old norm where "
            "no exchange reaches it. The model is as it was"
        )
    receipt.notes.append(f"not called on the probe input: {', '.join(lost)}")


def _undone(side: Any, changed: Any, receipt: Receipt, inplace: bool) -> None:
    if inplace and receipt.undo is not None:
        side.revert(changed, receipt, True)
