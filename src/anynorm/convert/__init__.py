"""Normalization layers from one framework to another, with each one's conventions kept right.

    layer = anynorm.convert.convert(torch_layer, to="keras")

The dialects are "torch", "keras", "nnx" and "addons" (TensorFlow Addons, as dictionaries). What differs between them
and is taken care of: the names of parameters, the momentum (torch's is the others' subtracted from 1), the variance
that the running one moves to (torch's has Bessel's correction), which axes an axis argument names, where the channels
are, and eps, whose defaults differ. Importing this module imports no framework.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from . import model as models
from . import state as states
from .norm import POSITIONS, Norm, checked

__all__ = ["Converted", "convert", "convert_state", "model_state", "norm_names"]


class Converted(NamedTuple):
    """A converted layer, and the largest difference between its answer and the original's on random input.

    >>> Converted(layer=None, difference=1e-7).difference
    1e-07
    """

    layer: Any
    difference: float


# Import statements rather than import_module, for tools that look for imports.
def _torch() -> ModuleType:
    from . import torch

    return torch


def _keras() -> ModuleType:
    from . import keras

    return keras


def _nnx() -> ModuleType:
    from . import nnx

    return nnx


def _addons() -> ModuleType:
    from . import addons

    return addons


_DIALECTS: dict[str, Callable[[], ModuleType]] = {"torch": _torch, "keras": _keras, "nnx": _nnx, "addons": _addons}
# A layer's class by its module, looked for only where it is imported. Keras comes first: under its torch backend a
# layer of Keras is a module of torch as well.
_LAYERS = (("keras", "keras.layers", "Layer"), ("torch", "torch.nn", "Module"), ("nnx", "flax.nnx", "Module"))


def convert(
    layer: Any,
    to: str,
    *,
    channels: str | None = None,
    rank: int | None = None,
    check: bool = False,
    tolerance: float = 1e-5,
) -> Any:
    """A normalization layer in another framework, with its parameters and running statistics.

    Args:
        layer: a layer of torch.nn, keras.layers (built), flax.nnx or anynorm, or the dictionary of one of TensorFlow
            Addons: {"class_name": ..., "config": ..., "weights": [...]}; or a Sequential of layers that are all
            normalizations (of dictionaries a list), which becomes one there.
        to: "torch", "keras" or "nnx", for a layer of anynorm's that is a drop-in for the framework's own; "addons" for
            a dictionary.
        channels: "first" or "last", where the result has its channels; parameters over several axes are transposed.
            None means where the framework has them, for layers that have channels: first in torch, last elsewhere. A
            layer normalization over the last axes stays there unless this is given. "kept" leaves all axes where they
            are.
        rank: dimensions of the input, which torch's classes for 1, 2 and 3 dimensions need to know; None means as the
            layer says, or 4.
        check: also run both layers, in evaluation, on random input.
        tolerance: the largest difference that `check` lets pass, relative to the largest answer.

    Returns:
        The layer; with `check`, a `Converted` of it and the largest difference.

    Raises:
        TypeError: the layer is no normalization of a known framework, or the model has other layers; what to do with
            such a model, the error says (`convert_state`).
        ValueError: the layer does something that no layer there can do, such as torch's `momentum=None`; unknown names;
            a difference above the tolerance.

    Batch normalization's running variance is copied as it is. From torch it has Bessel's correction, which is part of
    the number; to anynorm.torch the rule by which it moves on comes along (`correction`).

    >>> gamma, beta = np.full(6, 2.0, "float32"), np.ones(6, "float32")
    >>> old = {"class_name": "Addons>InstanceNormalization", "config": {"axis": -1}, "weights": [gamma, beta]}
    >>> convert(old, to="torch").weight.tolist()
    [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    >>> layer, difference = convert(convert(old, to="torch"), to="nnx", check=True)
    >>> type(layer).__module__, difference < 1e-5
    ('anynorm.nnx.group', True)
    """
    source, target = dialect_of(layer), _dialect(to)
    if channels is not None and channels not in (*POSITIONS, "kept"):
        raise ValueError(f'channels is "first" or "last" or "kept", not {channels!r}')
    layers = models.layers_of(layer, source)
    if source.parts(layer) is not None:
        norms = [source.read(one) for one in layers]
        _check_layout(norms, source, target, channels)
        rank = rank or next((norm.rank for norm in norms if norm.rank), None)
        words: dict[str, Any] = {"channels": channels, "rank": rank, "check": check, "tolerance": tolerance}
        made = [convert(one, to, **words) for one in layers]
        if not check:
            return target.join(made)
        return Converted(target.join([one.layer for one in made]), max(one.difference for one in made))
    norm = source.read(layer)
    norm = checked(norm if rank is None else replace(norm, rank=rank))
    norm = norm if target.ANY_SENTENCE else norm.named()
    moved = _placed(norm, source, target, channels)
    result = target.write(moved)
    if not check:
        return result
    difference, size = _difference(layer, source, norm, result, target, moved)
    if not difference <= tolerance * size:
        raise ValueError(
            f"the converted layer's answer differs by {difference:.1e} where the largest is {size:.1e}; a larger "
            "tolerance= lets that pass"
        )
    return Converted(result, difference)


def convert_state(state: Mapping[str, Any], names: Mapping[str, str], *, source: str, to: str) -> dict[str, Any]:
    """The normalization layers' part of a state dictionary, under another framework's names.

    Args:
        state: arrays by name: torch's `state_dict()`; Keras's variables by path; `nnx.to_pure_dict(nnx.state(model))`.
        names: the name of each layer here and there, such as `{"features.1": "norm"}`; its parameters are renamed as
            the dialects have them. A full name of one array is renamed as it stands.
        source, to: the dialects: "torch", "keras", "nnx" or "addons".

    Returns:
        The target's arrays by name, nested for "nnx", as `nnx.replace_by_pure_dict` takes them. Entries that `names`
        does not name are left out: kernels of convolutions need more than a new name.

    Raises:
        KeyError: a name that the state lacks, or a parameter that is no normalization's.
        ValueError: an unknown dialect.

    >>> state = {"0.weight": np.ones(9), "1.weight": np.ones(3), "1.running_mean": np.zeros(3)}
    >>> convert_state(state, {"1": "norm"}, source="torch", to="keras")
    {'norm/gamma': array([1., 1., 1.]), 'norm/moving_mean': array([0., 0., 0.])}
    """
    _dialect(source)
    target = _dialect(to)
    flat = states.converted(state, names, source, to)
    arrays = {name: target.array(_host(value)) for name, value in flat.items()}
    return states.nested(arrays, states.SEPARATORS[to]) if to in states.NESTED else arrays


def norm_names(model: Any) -> list[str]:
    """The names of a model's normalizations that have parameters, as its state begins them, in the model's order.

    So two models of one architecture in two frameworks have the mapping `dict(zip(norm_names(a), norm_names(b)))`.

    Args:
        model: of torch, Keras (built) or Flax NNX.

    >>> import torch
    >>> norm_names(torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.LayerNorm(6)))
    ['1']
    """
    return list(models.norms(model, dialect_of(model)))


def model_state(model: Any) -> dict[str, Any]:
    """A model's whole state by name, as `convert_state` takes it.

    Args:
        model: of torch, Keras (built) or Flax NNX.

    >>> import torch
    >>> list(model_state(torch.nn.LayerNorm(6)))
    ['weight', 'bias']
    """
    return dict(dialect_of(model).state(model))


def dialect_of(layer: Any) -> ModuleType:
    """The reader and writer for a layer like this; no framework is imported to find out."""
    if isinstance(layer, Mapping | list):
        return _addons()
    for name, module, kind in _LAYERS:
        known = getattr(sys.modules.get(module), kind, None)
        if known is not None and isinstance(layer, known):
            return _DIALECTS[name]()
    raise TypeError(
        f"{type(layer).__module__}.{type(layer).__name__} is no layer of torch, Keras or Flax, and no dictionary of one"
    )


def _dialect(name: str) -> ModuleType:
    if name not in _DIALECTS:
        raise ValueError(f'there is no dialect "{name}"; there are {", ".join(_DIALECTS)}')
    return _DIALECTS[name]()


def _placed(norm: Norm, source: ModuleType, target: ModuleType, channels: str | None) -> Norm:
    """The norm with its channels where they are to be."""
    if channels == "kept":
        return norm
    if channels is not None:
        return norm.moved(channels)
    return norm if source is target or len(norm.axes) != 1 or not _has_channels(norm) else norm.moved(target.CHANNELS)


def _check_layout(norms: list[Norm], source: ModuleType, target: ModuleType, channels: str | None) -> None:
    """Raise where a chain would move the channels of some layers and leave others where they are."""
    if channels is None and len({_placed(norm, source, target, None).axes == norm.axes for norm in norms}) > 1:
        raise ValueError(
            "some of the layers would get their channels elsewhere and others, which have none, stay: say "
            'channels="kept" for a model that takes the same input'
        )


def _has_channels(norm: Norm) -> bool:
    return norm.kind in ("batch", "group", "instance", "response") or norm.channels is not None


def _difference(
    layer: Any, source: ModuleType, norm: Norm, result: Any, target: ModuleType, moved: Norm
) -> tuple[float, float]:
    x = np.random.default_rng(0).normal(1, 2, norm.sample_shape()).astype(np.float32)
    there, here = (norm.position, moved.position) if norm.axes else (0, 0)
    want = np.moveaxis(source.run(layer, x).astype(np.float64), there, here)
    y = target.run(result, np.ascontiguousarray(np.moveaxis(x, there, here)))
    return float(np.abs(y - want).max()), float(np.abs(want).max(initial=1e-30))


def _host(value: Any) -> Any:
    """A tensor of torch that is on a device or that autograd watches says its values only after these."""
    return value.detach().cpu() if hasattr(value, "detach") else value
