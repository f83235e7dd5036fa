"""How a Keras model's norms train: frozen or not, which statistics they have, which weights decay."""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import numpy as np
from ml_dtypes import finfo

from ..keras import TLU, BatchNormalization, ContribInstanceNormalization, FilterResponseNormalization
from .data import Advance
from .keras_norms import KNOWN, check_same, describe, named, norms, numbers, shapes_of
from .keras_watch import watched
from .moments import Moments, check_range
from .receipt import Receipt, Row

# Of these every parameter is one a channel, whatever its number of axes.
_UNDECAYED = (*KNOWN, ContribInstanceNormalization, FilterResponseNormalization, TLU)


def freeze(model: Any, kind: str, frozen: bool, receipt: Receipt) -> None:
    """Freeze or unfreeze in the model itself."""
    kept: dict[str, Any] = {}
    for name, layer, _, _ in norms(model, kind):
        if layer.trainable is not frozen:
            receipt.refuse(name, layer, "it is so already")
            continue
        kept[name] = (describe(layer), shapes_of(layer), layer.trainable)
        layer.trainable = not frozen
        receipt.rows.append(_row(name, layer, "frozen" if frozen else "learning"))
    if not frozen and not model.trainable:
        receipt.notes.append("the model's own trainable is False, so that nothing in it learns yet")
    receipt.undo = partial(_undo_freeze, kept)


def _row(name: str, layer: Any, became: str, note: str = "") -> Row:
    return Row(name, describe(layer), became, numbers(layer), numbers(layer), note)


def _undo_freeze(kept: dict[str, Any], model: Any, inplace: bool) -> tuple[Any, Receipt]:
    receipt, found = Receipt("revert: freeze or unfreeze"), named(model)
    for name, (was, shapes, _) in kept.items():
        check_same(name, found[name], was, shapes)
    for name, (_, _, trainable) in kept.items():
        found[name].trainable = trainable
        receipt.rows.append(_row(name, found[name], "learning" if trainable else "frozen"))
    return model, receipt


def reestimate(model: Any, batches: Any, advance: Advance, receipt: Receipt) -> int | None:
    """Population statistics into the model itself, once all batches went through.

    Returns:
        How many batches those were; None where no norm needs them.
    """
    found: dict[str, Any] = {}
    for name, layer, _, _ in norms(model, "batch"):
        if not layer.trainable:
            receipt.refuse(name, layer, "it is frozen; unfreeze it first")
        elif getattr(layer, "renorm", False):
            receipt.refuse(name, layer, "renorm=True has statistics of its own, of what it corrects")
        elif not layer.built:
            receipt.refuse(name, layer, "it is not built")
        else:
            found[name] = layer
    if not found:
        return None
    seen = {id(layer): (name, Moments(), BatchNormalization(axis=layer.axis)) for name, layer in found.items()}
    kept = {name: _statistics(layer) for name, layer in found.items()}

    def look(layer: Any, x: Any, mask: Any) -> None:
        name, sums, helper = seen[id(layer)]
        _add(sums, x, mask, helper, name)

    done = 0
    try:
        with watched(list(found.values()), look, training=True):
            for batch in batches:
                model(_tensors(batch), training=False)
                done += 1
                advance(done)
    finally:
        # Each batch moved them.
        for name, layer in found.items():
            _assign(layer, *kept[name])
    if done:
        _check_range(found, seen)
    moved = {}
    for name, layer in found.items() if done else ():
        _, one, _ = seen[id(layer)]
        if not np.any(one.count):
            receipt.refuse(name, layer, "no batch reached it")
            continue
        moved[name] = (describe(layer), shapes_of(layer), kept[name])
        distance = float(np.abs(kept[name][0].astype(np.float64) - one.mean).max(initial=0))
        _assign(layer, one.mean, one.variance())
        note = f"over {int(np.max(one.count)):,} elements a channel; the mean moved by up to {distance:.2g}"
        receipt.rows.append(_row(name, layer, describe(layer), note))
    receipt.undo = partial(_undo_reestimate, moved)
    return done


def _check_range(found: dict[str, Any], seen: dict[int, Any]) -> None:
    for name, layer in found.items():
        _, one, _ = seen[id(layer)]
        for variable, values in ((layer.moving_mean, one.mean), (layer.moving_variance, one.variance())):
            check_range(name, values, str(variable.dtype), float(finfo(variable.dtype).max))


def _tensors(batch: Any) -> Any:
    """Arrays of another framework, such as those of a torch DataLoader, by way of NumPy."""
    return keras.tree.map_structure(lambda x: x if keras.ops.is_tensor(x) else np.asarray(x), batch)


def _add(sums: Moments, inputs: Any, mask: Any, helper: Any, name: str) -> None:
    x, mask, spec, module = helper.enter(inputs, mask)
    if not bool(keras.ops.all(keras.ops.isfinite(x))):
        raise ValueError(f"the input of {name} is not finite; the statistics stay as they were")
    mean, variance = (keras.ops.convert_to_numpy(part).astype(np.float64) for part in module.moments(x, mask, spec))
    count = np.full(mean.shape, np.prod(x.shape) / max(mean.size, 1))
    if mask is not None:
        whole = keras.ops.broadcast_to(keras.ops.cast(mask, "float32"), x.shape)
        kept = {axis % len(x.shape) for axis in np.atleast_1d(helper.axis)}
        summed = keras.ops.sum(whole, axis=[a for a in range(len(x.shape)) if a not in kept])
        count = keras.ops.convert_to_numpy(summed).astype(np.float64)
    sums.add(count, np.where(count > 0, mean, 0.0), np.where(count > 0, variance, 0.0))


def _statistics(layer: Any) -> tuple[Any, Any]:
    mean, variance = (np.array(keras.ops.convert_to_numpy(v)) for v in (layer.moving_mean, layer.moving_variance))
    return mean, variance


def _assign(layer: Any, mean: Any, variance: Any) -> None:
    layer.moving_mean.assign(mean.astype(np.float32))
    layer.moving_variance.assign(variance.astype(np.float32))


def _undo_reestimate(kept: dict[str, Any], model: Any, inplace: bool) -> tuple[Any, Receipt]:
    receipt, found = Receipt("revert: reestimate"), named(model)
    for name, (was, shapes, _) in kept.items():
        check_same(name, found[name], was, shapes)
    for name, (_, _, statistics) in kept.items():
        _assign(found[name], *statistics)
        receipt.rows.append(_row(name, found[name], describe(found[name])))
    return model, receipt


def weight_decay(model: Any, decay: float, receipt: Receipt) -> list[Any]:
    """The variables that weight decay is not for."""
    excluded: dict[int, Any] = {}
    for name, layer in named(model).items():
        mine = layer.trainable_weights if isinstance(layer, _UNDECAYED) else _own(layer)
        mine = [w for w in mine if id(w) not in excluded]
        excluded |= {id(w): w for w in mine}
        if mine:
            number = sum(int(np.prod(w.shape)) for w in mine)
            receipt.rows.append(Row(name, describe(layer), "no weight decay", number, number))
    return list(excluded.values())


def _own(layer: Any) -> list[Any]:
    """The biases and all over one axis or none that a layer has itself, not those of a layer in it."""
    inner = {id(w) for part in layer._flatten_layers(include_self=False) for w in part.trainable_weights}
    mine = [w for w in layer.trainable_weights if id(w) not in inner]
    return [w for w in mine if len(w.shape) < 2 or "bias" in w.name]
