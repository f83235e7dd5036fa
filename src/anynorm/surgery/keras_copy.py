"""What a copy of a Keras layer or model has besides its configuration: flags, numbers, vocabularies, attributes."""

from __future__ import annotations

import tempfile
import types
from contextlib import suppress
from typing import Any

import keras
import numpy as np

from .keras_graph import is_graph


def take_over(old: Any, new: Any) -> None:
    """Flags and values of a layer, of what is in it too; the layers of a model have theirs by themselves, later."""
    if is_graph(old):
        # Of a model True would reach all that is in it, frozen or not.
        if not old.trainable:
            new.trainable = False
        return
    if len(old.variables) != len(new.variables):
        raise ValueError(
            f"the layer {old.name} has {len(old.variables)} weights, and made anew from its configuration "
            f"{len(new.variables)}; inplace=True changes the model itself"
        )
    for one, other in zip(old.variables, new.variables, strict=True):
        other.assign(copied(one))
    for one, other in zip(old._flatten_layers(), new._flatten_layers(), strict=True):
        other.trainable = one.trainable
        if hasattr(one, "finalize_state") and one.built:
            # What a layer works out from its weights, such as the mean and variance that Normalization takes, it does
            # where it reads them.
            store: dict[str, Any] = {}
            one.save_own_variables(store)
            other.load_own_variables({key: copied(values) for key, values in store.items()})
        _take_over_assets(one, other)


def _take_over_assets(old: Any, new: Any) -> None:
    """What a layer keeps that is neither weight nor configuration: a vocabulary, or what it saves as files."""
    if hasattr(old, "get_vocabulary"):
        words = old.get_vocabulary()
        # By hand, for files of words lose those with line breaks, and configurations those that were set later.
        if words != new.get_vocabulary():
            store: dict[str, Any] = {}
            old.save_own_variables(store)
            new.set_vocabulary(words, **{name: store[name] for name in ("idf_weights",) if name in store})
    elif hasattr(old, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)


# What training and Keras itself leave in a model.
_TRAINER = {
    *("_compile_config", "_compiled_trainable_state", "_eval_epoch_iterator", "_functional", "history", "optimizer"),
    *("stop_evaluating", "stop_predicting", "stop_training"),
}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic, type)


def attributes(old: Any, new: Any, made: dict[int, Any]) -> list[str]:
    """Give a model the attributes that its user gave the old one, as far as they are plain values or its layers.

    Args:
        made: the new layers by the ids of the old ones.

    Returns:
        The names of those that it does not get.
    """
    own_class = not is_graph(old)
    lost = []
    for name, value in held(old).items():
        there = name in held(new)
        if name in _TRAINER or (there and (name.startswith("_") or not own_class)):
            continue
        try:
            kept = _kept(value, made)
        except LookupError:
            # What the constructor has made anew is its own.
            lost += [] if there else [f"{old.name}.{name}"]
            continue
        if not there or (isinstance(value, _PLAIN) and getattr(new, name) != value):
            # Properties that only say what something else says cannot be set.
            with suppress(AttributeError):
                setattr(new, name, kept)
    return lost


def exchange(model: Any, before: dict[str, Any], plain: Any, made: dict[int, Any]) -> None:
    """Let the attributes that a model's user gave it speak of the new layers where they speak of old ones.

    Args:
        before: what `held` gave of it, of which some may be gone.
        plain: a model without such attributes.
        made: the new layers by the ids of the old ones.
    """
    for name, value in before.items():
        if name in _TRAINER or name in held(plain):
            continue
        if any(made.get(id(one), one) is not one for one in keras.tree.flatten(value)):
            with suppress(LookupError):
                value = _kept(value, made)
        if held(model).get(name) is not value:
            setattr(model, name, value)


def held(model: Any) -> dict[str, Any]:
    """The attributes of a model, wherever they are: layers may lie apart from the rest, as modules of torch do."""
    return {**vars(model), **vars(model).get("_modules", {})}


def _kept(value: Any, made: dict[int, Any]) -> Any:
    """A copy of a plain value, or the new layer for an old one; LookupError for all else."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: _kept(one, made) for key, one in value.items()}
    if type(value) is tuple:
        return tuple(_kept(one, made) for one in value)
    if isinstance(value, list):
        return [_kept(one, made) for one in value]
    if isinstance(value, set | frozenset):
        kept = frozenset(_kept(one, made) for one in value)
        return kept if isinstance(value, frozenset) else set(kept)
    if isinstance(value, types.FunctionType) and value.__closure__ is None:
        return value
    return made[id(value)]


def copied(values: Any) -> np.ndarray:
    """An array of its own: JAX's would be shared, and training one model deletes what it has used up."""
    return np.array(keras.ops.convert_to_numpy(values))
