"""Swapping the norms of a Keras model."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from ..catalogue import normalized_axes
from ..convert import keras as dialect
from .folding import Refused
from .keras_graph import Saved, check_graph
from .keras_norms import check_same, describe, named, norms, numbers, why_not
from .keras_rebuild import rebuilt
from .receipt import Receipt, Row
from .swapping import Wish, swapped

Shapes = dict[int, list[tuple[int | None, ...]]]


def swap(model: Any, wish: Wish, shapes: Shapes, receipt: Receipt, inplace: bool) -> Any:
    """The model with its norms swapped."""
    check_graph(model)
    replaced: dict[int, Saved | None] = {}
    kept = {}
    for name, layer, kind, hidden in norms(model, wish.source):
        try:
            if reason := why_not(layer, hidden):
                raise Refused(reason)
            new, note = _made(layer, kind, wish, shapes.get(id(layer), []))
        except Refused as refused:
            receipt.refuse(name, layer, str(refused))
            continue
        shapes_now = [tuple(w.shape) for w in new.weights]
        became = f"anynorm {new.kind.__name__}"
        replaced[id(layer)], kept[name] = new, (Saved.of(layer), became, shapes_now)
        after = sum(map(math.prod, shapes_now))
        receipt.rows.append(Row(name, describe(layer), became, numbers(layer), after, note))
    receipt.undo = partial(_undo, kept)
    return rebuilt(model, replaced, inplace=inplace, notes=receipt.notes)


def _made(layer: Any, kind: str, wish: Wish, shapes: list[tuple[int | None, ...]]) -> tuple[Saved, str]:
    if kind == wish.target and wish.groups is None:
        try:
            new = dialect.write(dialect.read(layer))
        except (TypeError, ValueError) as wrong:
            raise Refused(str(wrong)) from wrong
        return _saved(new, layer), "the same, anynorm's"
    try:
        norm = dialect.read(layer)
        norm, notes = swapped(norm, wish, _positions(norm, shapes), keep=0.99, correction=0)
        new = dialect.write(norm)
    except (TypeError, ValueError) as wrong:
        raise Refused(str(wrong)) from wrong
    return _saved(new, layer), "; ".join(notes)


def _saved(new: Any, old: Any) -> Saved:
    """The new layer under the old one's name, with its types, flags, and what else the two have in common."""
    config, theirs = new.get_config(), old.get_config()
    common = ("name", "trainable", "dtype", *(key for key in theirs if key.startswith(("gamma_", "beta_", "moving_"))))
    config |= {key: theirs[key] for key in common if key in config and key in theirs}
    return Saved(type(new), config, new.get_weights())


def _positions(norm: Any, shapes: list[tuple[int | None, ...]]) -> int | None:
    """The least number of elements that a channel has in one sample."""
    if not shapes or not norm.axes or any(None in shape[1:] for shape in shapes):
        return None
    counts = []
    for shape in shapes:
        axes = norm.axes if len(norm.axes) == 1 or norm.kind not in ("layer", "rms") else (norm.position,)
        channels = math.prod(shape[a] or 1 for a in normalized_axes(axes, len(shape)))
        counts.append(math.prod(n or 1 for n in shape[1:]) // channels)
    return min(counts)


def _undo(kept: dict[str, Any], model: Any, inplace: bool) -> tuple[Any, Receipt]:
    """The old norms in their places, with the values that they had when they were swapped."""
    receipt, found = Receipt("revert: swap"), named(model)
    for name, (_, became, shapes) in kept.items():
        check_same(name, found[name], became, shapes)
    for name, (saved, _, _) in kept.items():
        before = sum(math.prod(w.shape) for w in saved.weights)
        receipt.rows.append(Row(name, describe(found[name]), saved.kind.__name__, numbers(found[name]), before))
    replaced: dict[int, Saved | None] = {id(found[name]): saved for name, (saved, _, _) in kept.items()}
    return rebuilt(model, replaced, inplace=inplace, notes=receipt.notes), receipt
