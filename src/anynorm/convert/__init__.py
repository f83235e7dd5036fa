"""Normalization layers from one framework to another, with each one's conventions kept right.

    layer = anynorm.convert.convert(torch_layer, to="keras")

The dialects are "torch", "keras", "nnx" and "addons" (TensorFlow Addons, as dictionaries). What differs between them
and is taken care of: the names of parameters, the momentum (torch's is the others' subtracted from 1), the variance
that the running one moves to (torch's has Bessel's correction), which axes an axis argument names, where the channels
are, and eps, whose defaults differ. Importing this module imports no framework.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from . import mapping, notes
from . import model as models
from . import state as states
from .layer import Converted, check_layout, converted, read
from .norm import POSITIONS

__all__ = ["Converted", "convert", "convert_state", "model_state", "norm_mapping", "norm_names"]


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
    tolerance: float | None = None,
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
        check: also run both layers, in evaluation, on random input of the layer's type.
        tolerance: the largest difference that `check` lets pass, relative to the largest answer; None means 1e-5, or
            four units in the last place of the narrower of both layers' types where that is more.

    Returns:
        The layer; with `check`, a `Converted` of it, the largest difference and the notes.

    Raises:
        TypeError: the layer is no normalization of a known framework; its parameters are no floating-point numbers; or
            the model has other layers: what to do with such a model, the error says (`convert_state`).
        ValueError: the layer may do more than its class says: it is of a subclass, its parameters are parametrized, it
            has hooks or a forward of its own. It has no numbers: it is not built, lazy, on the meta device, abstract
            or traced; nothing says how many channels there are. It does what no layer there can do: torch's
            `momentum=None`, an `activation` and `track_running_stats` other than usual; Keras's `renorm` and
            `rms_scaling`; Flax's axes that it counts from the front, parameters over several axes, of which it keeps
            the product, and `flax.nnx.GroupNorm(reduction_axes=)`. The target has no such layer: torch's batch
            normalization has its channels on axis 1, of 2 to 5 dimensions; Addons has three norms over one axis;
            `keras.Sequential` takes no layer twice. Channels that cannot be moved, or would be in a part of a chain;
            arguments that are none; a difference above the tolerance.

    Warns:
        UserWarning: without `check`, the notes: what the target cannot take over.

    Types, frozen parameters and synchronization come along where the target has them (float64 in JAX only with
    jax_enable_x64; frozen parameters in torch and Keras, not in Flax); regularizers, constraints, `axis_name` and
    `process_group` within their framework; a layer that is in a chain twice stays one. All else that is lost is a note.

    Batch normalization's running variance is copied as it is. From torch it has Bessel's correction, which is part of
    the number; to anynorm.torch the rule by which it moves on comes along (`correction`).

    >>> import numpy as np
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
    if rank is not None and not (isinstance(rank, int) and rank > 0):
        raise ValueError(f"rank is the number of the input's dimensions, such as 4, not {rank!r}")
    layers = models.layers_of(layer, source)
    norms = [read(one, source) for one in layers]
    if source.parts(layer) is not None:
        check_layout(norms, source, target, channels)
        rank = rank or next((norm.rank for norm in norms if norm.rank), None)
    once = {id(one): (one, norm) for one, norm in zip(layers, norms, strict=True)}
    made = {key: converted(*pair, source, target, channels, rank, check, tolerance) for key, pair in once.items()}
    parts = [made[id(one)] for one in layers]
    remarks = [note for one in made.values() for note in one.notes] + notes.shared(layers, source)
    result = parts[0].layer if source.parts(layer) is None else target.join([one.layer for one in parts])
    if check:
        return Converted(result, max((one.difference for one in parts), default=0.0), tuple(dict.fromkeys(remarks)))
    if remarks:
        warnings.warn(f"converted, but {'; '.join(dict.fromkeys(remarks))}", stacklevel=2)
    return result


def convert_state(state: Mapping[str, Any], names: Mapping[str, str], *, source: str, to: str) -> dict[str, Any]:
    """The normalization layers' part of a state dictionary, under another framework's names.

    Args:
        state: arrays by name: torch's `state_dict()`; Keras's variables by path; `nnx.to_pure_dict(nnx.state(model))`.
        names: the name of each layer here and there, such as `{"features.1": "norm"}`; its parameters are renamed as
            the dialects have them. A full name of one array is renamed as it stands, and "" is a model that itself
            is the layer. `norm_mapping` finds the names of two models.
        source, to: the dialects: "torch", "keras", "nnx" or "addons".

    Returns:
        The target's arrays by name, nested for "nnx", as `nnx.replace_by_pure_dict` takes them. Entries that `names`
        does not name are left out: kernels of convolutions need more than a new name. They keep their types; bfloat16
        comes to Keras and Addons as float32, of the same values, and float64 to JAX as it is configured. They keep
        their shapes too, but for filter response normalization's from images, (1, 1, 1, c) in Keras and Addons, which
        come elsewhere as (c,); a variable of Keras's takes those reshaped.

    Raises:
        KeyError: a name that the state lacks, or a parameter that is no normalization's.
        ValueError: an unknown dialect, or an array without numbers: of a lazy torch module, on the meta device, of an
            abstract Flax module, or within a function that is being compiled.

    >>> import numpy as np
    >>> state = {"0.weight": np.ones(9), "1.weight": np.ones(3), "1.running_mean": np.zeros(3)}
    >>> convert_state(state, {"1": "norm"}, source="torch", to="keras")
    {'norm/gamma': array([1., 1., 1.]), 'norm/moving_mean': array([0., 0., 0.])}
    """
    _dialect(source)
    target = _dialect(to)
    flat = states.converted(state, names, source, to)
    arrays = {name: target.array(*states.numbers(name, value)) for name, value in flat.items()}
    return states.nested(arrays, states.SEPARATORS[to]) if to in states.NESTED else arrays


def norm_names(model: Any) -> list[str]:
    """The names of a model's normalizations that have parameters, as its state begins them.

    Their order is the framework's, by the alphabet in Flax: `norm_mapping` finds which are the same in two models.

    Args:
        model: of torch, Keras (built) or Flax NNX.

    Raises:
        ValueError: a Keras model that is not built, or two norms of one name, as Keras's subclassed models may have.

    >>> import torch
    >>> norm_names(torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.LayerNorm(6)))
    ['1']
    """
    return list(models.norms(model, dialect_of(model)))


def norm_mapping(source: Any, target: Any) -> dict[str, str]:
    """Which normalization of one model is which of another, by name, as `convert_state` takes it.

    They are paired by their names, if all names of both models are the same but for what all have in front, for
    separators and for containers called "layers"; else by their order, if both models are nothing but chains; else by
    kind and shapes, if no two norms of a model have the same. Pairs must have one kind, the same of scale, offset and
    statistics, and one shape of these.
    Epsilon and momentum are no part of a state: build the target with the source's.

    Args:
        source, target: models of torch, Keras (built) or Flax NNX.

    Raises:
        ValueError: there are different numbers of norms, pairs that do not fit, or more than one way to pair them; the
            names are in the error. Or a model has parameters without shapes, or two norms of one name.

    >>> import torch
    >>> one = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.LayerNorm(6))
    >>> norm_mapping(one, torch.nn.Sequential(torch.nn.LayerNorm(6), torch.nn.Linear(6, 4)))
    {'1': '0'}
    """
    return mapping.of_models(source, dialect_of(source), target, dialect_of(target))


def model_state(model: Any) -> dict[str, Any]:
    """A model's whole state by name, as `convert_state` takes it.

    Args:
        model: of torch, Keras (built) or Flax NNX.

    Raises:
        ValueError: a Keras model that is not built, or two variables of one path, of which a state could hold one.

    >>> import torch
    >>> list(model_state(torch.nn.LayerNorm(6)))
    ['weight', 'bias']
    """
    return models.state(model, dialect_of(model))


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
