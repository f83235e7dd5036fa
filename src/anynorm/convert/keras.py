"""Keras's dialect: the layers of keras.layers and of anynorm.keras."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

import keras
import numpy as np

from ..keras import (
    BatchNormalization,
    FilterResponseNormalization,
    GroupNormalization,
    InstanceNormalization,
    LayerNormalization,
    Normalization,
    RMSNormalization,
)
from ..ops import of
from .norm import (
    FIRST,
    LAST,
    LEARNING,
    ROLES,
    Array,
    Norm,
    Shapes,
    Types,
    canonical,
    group_kind,
    layout_of,
    neutral,
    shape_of,
    widened,
)
from .state import LEARNED, NAMES

CHANNELS, ANY_SENTENCE, FREEZES = "last", True, True
# What no layer of another framework can have, by its attribute.
LOUD = (
    "gamma_regularizer",
    "beta_regularizer",
    "gamma_constraint",
    "beta_constraint",
    "activity_regularizer",
    "learned_epsilon_constraint",
)
# Of the variables, in the order of `ROLES`.
_NAMES = (*NAMES["keras"], LEARNED["keras"])
_OWN = (*LOUD, "gamma_initializer", "beta_initializer", "moving_mean_initializer", "moving_variance_initializer")
KINDS = {
    "batch": (keras.layers.BatchNormalization, BatchNormalization),
    "instance": (InstanceNormalization,),
    "group": (keras.layers.GroupNormalization, GroupNormalization),
    "layer": (keras.layers.LayerNormalization, LayerNormalization),
    "rms": (keras.layers.RMSNormalization, RMSNormalization),
    "sentence": (Normalization,),
}
_ALL = {**KINDS, "response": (FilterResponseNormalization,)}
# Every norm whose call is known: a subclass of one of these may do something else.
KNOWN = frozenset(known for classes in _ALL.values() for known in classes)


def is_norm(layer: Any) -> bool:
    return isinstance(layer, tuple(KNOWN))


def why_not(layer: Any) -> str | None:
    """Why no layer made anew can be what this one is, or None."""
    return None if type(layer) in KNOWN else "its class is a subclass of a norm's, and may do something else"


def variables(layer: Any) -> list[Any]:
    return list(layer.weights)


def kind(layer: Any) -> str | None:
    """What two norms must have in common besides shapes, None for a sentence."""
    name = _kind(layer)
    if name == "group":
        return group_kind(layer.groups, layer.gamma.shape[0] if layer.scale else -1)
    return None if name == "sentence" else name


def shapes(layer: Any) -> Shapes:
    """Those of parameters and running statistics that it has."""
    found = {role: tuple(v.shape) for role, v in _variables(layer).items() if v is not None}
    # Filter response normalization's have the input's dimensions, of which one is the channels'.
    return {role: (prod(shape),) if kind(layer) == "response" else shape for role, shape in found.items()}


def _kind(layer: Any) -> str | None:
    return next((kind for kind, classes in _ALL.items() if isinstance(layer, classes)), None)


def read(layer: Any) -> Norm:
    kind = _kind(layer)
    if kind is None:
        raise TypeError(f"{type(layer).__name__} is no normalization layer of keras.layers or anynorm.keras")
    if not layer.built:
        raise ValueError(f"{layer.name} has no parameters yet: build it, or call it once")
    if getattr(layer, "renorm", False) or getattr(layer, "rms_scaling", False):
        raise ValueError(f"{layer.name} has renorm=True or rms_scaling=True, which no other framework's layer has")
    shape = tuple(layer.get_build_config()["input_shape"])
    found = _variables(layer)
    scale, offset = numpy(found["scale"]), numpy(found["offset"])
    common: dict[str, Any] = {"scale": scale, "offset": offset, "eps": layer.epsilon, "rank": len(shape)}
    common |= {"types": _types(layer), "still": not layer.trainable, "own": _own(layer)}
    common["frozen"] = frozenset(n for n in LEARNING if found[n] is not None and not found[n].trainable)
    if kind == "response":
        return _response(layer, shape, common)
    if kind == "sentence":
        spec = layer.sentence(len(shape))
        return Norm(kind, (), shape_of(scale, offset), given=spec, **common)
    axes = canonical(layer.axis, len(shape))
    lengths = tuple(shape[a] for a in axes)
    moves = kind in ("batch", "group", "instance")
    norm: dict[str, Any] = {
        "axes": axes,
        "shape": lengths,
        "channels": layout_of(axes) if moves else CHANNELS if axes[1:] else None,
    }
    if kind == "group" and layer.groups == -1:
        kind = "instance"
    groups = layer.groups if kind == "group" else None
    if kind != "batch":
        return Norm(kind, **norm, groups=groups, **common)
    statistics: dict[str, Any] = {name: numpy(found[name]) for name in ("mean", "variance")}
    return Norm(kind, **norm, **statistics, keep=layer.momentum, synchronized=layer.synchronized, **common)


def _response(layer: Any, shape: tuple[int | None, ...], common: dict[str, Any]) -> Norm:
    common |= {name: v if (v := common[name]) is None else v.reshape(-1) for name in ("scale", "offset")}
    if layer.learned_epsilon is not None:
        common["learned_eps"] = float(numpy(layer.learned_epsilon)[0])  # type: ignore[index]
    channels = shape_of(common["scale"], common["offset"])
    return Norm("sentence", (), channels, given=layer.sentence(len(shape)), **common).named()


def _types(layer: Any) -> Types:
    moving = getattr(layer, "moving_mean", None)
    parameters = [v for v in layer.weights if v is not moving] or layer.weights
    names = [np.asarray(keras.ops.convert_to_numpy(v)).dtype.name for v in (*parameters[:1], moving) if v is not None]
    whole = Types(*names) if parameters else Types(layer.variable_dtype)
    return whole if layer.compute_dtype == whole.parameters else whole._replace(result=layer.compute_dtype)


def _own(layer: Any) -> dict[str, Any]:
    found = {name: getattr(layer, name, None) for name in _OWN}
    kept = {name: value for name, value in found.items() if value is not None}
    return {"name": layer.name, "dtype": layer.dtype_policy, **kept}


def write(norm: Norm) -> keras.layers.Layer:
    layer = _made(norm)
    for name in _OWN:
        if name in norm.own and hasattr(layer, name):
            setattr(layer, name, norm.own[name])
    rank = norm.sample_rank()
    shape: list[int | None] = list(norm.sample_shape()) if norm.kind == "sentence" else [None] * rank
    for axis, length in zip(norm.axes, norm.shape, strict=True) if norm.kind != "sentence" else ():
        shape[axis] = length
    layer.build(tuple(shape))
    variables = _variables(layer)
    values: dict[str, Any] = {role: getattr(norm, role) for role in variables}
    if norm.kind == "rms":
        values["scale"] = neutral(norm)[0]
    # Before its variables, all of which it sets.
    layer.trainable = layer.trainable and not norm.still
    for name, variable in variables.items():
        if variable is not None:
            variable.assign(np.reshape(values[name], variable.shape))
            variable.trainable = variable.trainable and name not in norm.frozen
    return layer


def _variables(layer: Any) -> dict[str, Any]:
    """By role, None for those that it has not."""
    found = {role: getattr(layer, name, None) for role, name in zip(ROLES, _NAMES, strict=True)}
    # Keras's RMS normalization calls its gamma scale, which in the other layers says whether there is one.
    return found | {"scale": layer.scale} if _kind(layer) == "rms" else found


def _made(norm: Norm) -> Any:
    axis = norm.axes[0] if len(norm.axes) == 1 else list(norm.axes)
    named: dict[str, Any] = {"name": norm.own.get("name"), "dtype": norm.own.get("dtype") or _policy(norm.types)}
    has: dict[str, Any] = {"center": norm.offset is not None, "scale": norm.scale is not None}
    common: dict[str, Any] = {"epsilon": norm.eps, **has, **named}
    if norm.kind == "batch":
        # Only where Keras's backend has replicas; elsewhere the layer would refuse, and a note is enough.
        synchronized = norm.synchronized and hasattr(of(keras.ops.zeros(())), "moments_of_replicas")
        return BatchNormalization(axis, momentum=norm.keep, synchronized=synchronized, **common)
    if norm.kind == "group" and norm.groups is not None:
        return GroupNormalization(norm.groups, axis, **common)
    if norm.kind == "instance":
        return InstanceNormalization(axis, **common)
    if norm.kind == "layer":
        return LayerNormalization(axis, **common)
    if norm.kind == "rms":
        return RMSNormalization(axis, norm.eps, **named)
    spec, rank = norm.spec(norm.sample_rank()), norm.sample_rank()
    if norm.kind == "response" and norm.axes in ((FIRST,), (LAST,)):
        learned = norm.learned_eps is not None
        spatial = None if norm.axes == (LAST,) else list(range(2, rank))
        return FilterResponseNormalization(axis=spatial, learned_epsilon=learned, **common)
    common |= {"epsilon": norm.whole_eps, **dict(spec.sizes)}
    return Normalization(spec.text, affine=spec.affine_text or "", remove=spec.remove, **common)


def _policy(types: Types) -> str | None:
    """The name of Keras's policy with these types; None, Keras's global policy, for those that say nothing."""
    result = types.result or types.parameters
    if result == types.parameters:
        return None if types == Types() else result
    is_mixed = types.parameters == "float32" and result in ("float16", "bfloat16")
    return f"mixed_{result}" if is_mixed else types.parameters


def run(layer: Any, x: np.ndarray) -> np.ndarray:
    """The layer's answer outside training."""
    return np.asarray(keras.ops.convert_to_numpy(layer(x))).astype(np.float64)


def parts(model: Any) -> list[Any] | None:
    """A chain's layers, None for what is no chain."""
    is_chain = isinstance(model, keras.Sequential) and type(model).call is keras.Sequential.call
    return list(model.layers) if is_chain else None


def join(layers: list[Any]) -> keras.Sequential:
    if len({id(layer) for layer in layers}) < len(layers):
        raise ValueError("a layer is in the chain twice, which keras.Sequential does not take: use a functional model")
    return keras.Sequential(layers)


def named(model: Any) -> Iterator[tuple[str, Any]]:
    """All layers of a model that have parameters, by the paths of these."""
    found = _layers(model) if isinstance(model, keras.Model) else model._flatten_layers()
    return ((layer.weights[0].path.rpartition("/")[0], layer) for layer in found if layer.weights)


def _layers(model: Any) -> list[Any]:
    """A model and all layers in it; raises where some have no variables yet."""
    found: list[Any] = model._flatten_layers()
    inner = [layer.built for layer in found if layer is not model]
    if not model.built and not (inner and all(inner)):
        raise ValueError(f"{model.name} has no parameters yet: build it, or call it once")
    return found


def state(model: Any) -> Iterable[tuple[str, Any]]:
    _layers(model)
    return ((variable.path, numpy(variable)) for variable in model.variables)


def array(values: Array, dtype: str) -> np.ndarray:
    """NumPy has no bfloat16: its values come as float32, and Keras's variables round them back, exactly."""
    return np.asarray(values)


def numpy(variable: Any) -> np.ndarray | None:
    return None if variable is None else widened(np.array(keras.ops.convert_to_numpy(variable)))
