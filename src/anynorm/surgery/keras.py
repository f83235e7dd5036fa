"""The Keras side of surgery: what each operation asks of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ml_dtypes import finfo

from . import keras_fold, keras_swap, keras_training
from .data import Advance
from .keras_facts import facts
from .keras_graph import is_graph, layers
from .keras_norms import numbers
from .keras_probe import Probe
from .keras_rebuild import rebuilt
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


def whole(model: Any, inplace: bool, numbers: bool) -> AbstractContextManager[None]:
    """Nothing to give back here: the layers of a graph change only once the new graph is made."""
    return nullcontext()


def swap(model: Any, wish: Wish, probe: Probe, receipt: Receipt, inplace: bool) -> Any:
    compiled = _is_compiled(model)
    if not inplace and is_graph(model):
        check_copy(rebuilt(model, {}), probe, coarsest(model))
    return _noted(compiled, keras_swap.swap(model, wish, probe.shapes, receipt, inplace), receipt)


def fold(model: Any, probe: Probe, receipt: Receipt, inplace: bool) -> Any:
    compiled = _is_compiled(model)
    return _noted(compiled, keras_fold.fold(model, receipt, inplace), receipt)


def freeze(model: Any, kind: str, frozen: bool, receipt: Receipt, inplace: bool) -> Any:
    made = _own(model, inplace)
    keras_training.freeze(made, kind, frozen, receipt)
    if inplace and receipt.rows and _is_compiled(made):
        receipt.notes.append("compile the model again, or its optimizer goes on with the flags as they were")
    return made if inplace else _noted(_is_compiled(model), made, receipt)


def reestimate(
    model: Any, batches: Any, advance: Advance, probe: Probe, receipt: Receipt, inplace: bool
) -> tuple[Any, int | None]:
    made = _own(model, inplace)
    if not inplace:
        check_copy(made, probe, coarsest(model))
    done = keras_training.reestimate(made, batches, advance, receipt)
    return made if inplace else _noted(_is_compiled(model), made, receipt), done


def revert(model: Any, receipt: Receipt, inplace: bool) -> tuple[Any, Receipt]:
    assert receipt.undo is not None
    # What rebuilds a graph makes a new model by itself; the others change the flags and numbers of theirs.
    changes_layers = receipt.operation.startswith(("swap", "fold"))
    return receipt.undo(model if changes_layers else _own(model, inplace), inplace)


def coarsest(model: Any) -> float:
    """The largest rounding unit of what the model's layers have and compute in."""
    types = {t for _, layer, _ in layers(model) for t in (layer.compute_dtype, layer.variable_dtype) if t}
    return max((float(finfo(t).eps) for t in types if "float" in t), default=0.0)


def _own(model: Any, inplace: bool) -> Any:
    if not inplace and not is_graph(model):
        raise ValueError(
            f"{model.name} is a model of a class of its own, {type(model).__name__}, or has weights of its own, and "
            "cannot be copied layer by layer; inplace=True changes it itself"
        )
    return model if inplace else rebuilt(model, {})


def _is_compiled(model: Any) -> bool:
    return bool(getattr(model, "compiled", False))


def _noted(compiled: bool, made: Any, receipt: Receipt) -> Any:
    """Says what became of the compiling of a model that was made anew."""
    if _is_compiled(made):
        receipt.notes.append("compiled anew from the old configuration; the optimizer begins afresh")
    elif compiled:
        receipt.notes.append("not compiled, as the given model was: compile it")
    return made
