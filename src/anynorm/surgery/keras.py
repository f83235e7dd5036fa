"""The Keras side of surgery: what each operation asks of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ml_dtypes import finfo

from . import keras_fold, keras_swap, keras_training
from .data import Advance
from .keras_facts import facts
from .keras_graph import is_graph, layers, why_no_graph
from .keras_norms import numbers
from .keras_probe import Probe
from .keras_rebuild import rebuilt
from .keras_state import State
from .proving import check_copy
from .receipt import Receipt
from .swapping import Wish

__all__ = [
    "Probe",
    "coarsest",
    "facts",
    "fold",
    "freeze",
    "numbers",
    "reestimate",
    "revert",
    "swap",
    "weight_decay",
    "whole",
]

weight_decay = keras_training.weight_decay


@contextmanager
def whole(model: Any, inplace: bool, numbers: bool) -> Iterator[None]:
    """Let a model that is changed in place be as it was, in the same objects, where something fails."""
    before = State(model, numbers) if inplace else None
    try:
        yield
    except BaseException:
        if before is not None:
            before.restore()
        raise


def swap(model: Any, wish: Wish, probe: Probe, receipt: Receipt, inplace: bool) -> Any:
    compiled = _is_compiled(model)
    if not inplace and is_graph(model):
        check_copy(rebuilt(model, {}), probe, coarsest(model))
    return _noted(compiled, keras_swap.swap(model, wish, probe.shapes, receipt, inplace), receipt)


def fold(model: Any, probe: Probe, receipt: Receipt, inplace: bool) -> Any:
    compiled = _is_compiled(model)
    return _noted(compiled, keras_fold.fold(model, receipt, inplace), receipt)


def freeze(model: Any, kind: str, frozen: bool, receipt: Receipt, inplace: bool) -> Any:
    made = _own(model, inplace, receipt.notes)
    keras_training.freeze(made, kind, frozen, receipt)
    if inplace and receipt.rows and _is_compiled(made):
        receipt.notes.append("compile the model again, or its optimizer goes on with the flags as they were")
    return made if inplace else _noted(_is_compiled(model), made, receipt)


def reestimate(
    model: Any, batches: Any, advance: Advance, probe: Probe, receipt: Receipt, inplace: bool
) -> tuple[Any, int | None]:
    made = _own(model, inplace, receipt.notes)
    if not inplace:
        check_copy(made, probe, coarsest(model))
    done = keras_training.reestimate(made, batches, advance, receipt)
    return made if inplace else _noted(_is_compiled(model), made, receipt), done


def revert(model: Any, receipt: Receipt, inplace: bool) -> tuple[Any, Receipt]:
    undo = receipt.undo
    assert undo is not None
    if not getattr(undo, "func", undo).__module__.startswith(__name__):
        raise ValueError("the receipt is not of this model: this one is of Keras, and the receipt of another framework")
    # What rebuilds a graph makes a new model by itself; the others change the flags and numbers of theirs.
    if receipt.operation.startswith(("swap", "fold")):
        return undo(model, inplace)
    lost: list[str] = []
    made, back = undo(_own(model, inplace, lost), inplace)
    back.notes += lost
    return made, back


def coarsest(model: Any) -> float:
    """The largest rounding unit of what the model's layers have and compute in."""
    types = {t for _, layer, _ in layers(model) for t in (layer.compute_dtype, layer.variable_dtype) if t}
    return max((float(finfo(t).eps) for t in types if "float" in t), default=0.0)


def _own(model: Any, inplace: bool, notes: list[str]) -> Any:
    """The model itself, or a copy of it."""
    if not inplace and not is_graph(model):
        raise ValueError(f"{why_no_graph(model)}, and cannot be copied layer by layer; inplace=True changes it itself")
    return model if inplace else rebuilt(model, {}, notes=notes)


def _is_compiled(model: Any) -> bool:
    return bool(getattr(model, "compiled", False))


def _noted(compiled: bool, made: Any, receipt: Receipt) -> Any:
    """Says what became of the compiling of a model that was made anew."""
    if _is_compiled(made):
        receipt.notes.append("compiled anew from the old configuration; the optimizer begins afresh")
    elif compiled:
        receipt.notes.append("not compiled, as the given model was: compile it")
    return made
