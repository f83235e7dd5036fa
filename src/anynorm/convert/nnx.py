"""Flax's dialect: flax.nnx's modules and anynorm.nnx's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn import dtypes

from ..catalogue import group, last, over
from ..nnx import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from ..nnx import Norm as SentenceNorm
from ..spec import MOMENTS, NormSpec
from .norm import LAST, ROLES, Array, Norm, Shapes, Types, group_kind, layout_of, neutral, shape_of, type_name, widened
from .state import NAMES

CHANNELS, ANY_SENTENCE, FREEZES = "last", True, False


_OURS = (BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm)
KNOWN = frozenset((*_OURS, *(getattr(nnx, kind.__name__) for kind in _OURS), SentenceNorm))
_VARIABLES = NAMES["nnx"]
# Arguments that no other framework's layers have.
LOUD = ("axis_name", "axis_index_groups", "promote_dtype")


def why_not(layer: Any) -> str | None:
    """Why no module made anew can be what this one is, or None."""
    if type(layer) not in KNOWN:
        return "its class is a subclass of a norm's, and may do something else"
    if any(isinstance(variable.get_value(), jax.ShapeDtypeStruct | jax.core.Tracer) for variable in variables(layer)):
        return "it is abstract and has no numbers: give it some, by nnx.update, or, within jit, convert before that"
    return None


def is_norm(layer: Any) -> bool:
    return isinstance(layer, tuple(KNOWN))


_KINDS = (
    (SentenceNorm, None),
    (nnx.BatchNorm, "batch"),
    (nnx.InstanceNorm, "instance"),
    (nnx.LayerNorm, "layer"),
    (nnx.RMSNorm, "rms"),
)


def kind(layer: Any) -> str | None:
    """What two norms must have in common besides shapes, None for a sentence."""
    if isinstance(layer, nnx.GroupNorm):
        return group_kind(layer.num_groups, layer.num_groups * layer.group_size)
    return next(name for known, name in _KINDS if isinstance(layer, known))


def shapes(layer: Any) -> Shapes:
    """Those of parameters and running statistics that it has."""
    found = zip(ROLES, _VARIABLES, strict=False)
    return {role: tuple(v.shape) for role, name in found if (v := getattr(layer, name, None)) is not None}


def variables(layer: Any) -> list[Any]:
    return [v for name in _VARIABLES if (v := getattr(layer, name, None)) is not None]


def read(layer: Any) -> Norm:
    if not is_norm(layer):
        raise TypeError(f"{type(layer).__name__} is no normalization module of flax.nnx or anynorm.nnx")
    scale, offset, mean, variance = (numpy(getattr(layer, name, None)) for name in _VARIABLES)
    common: dict[str, Any] = {"scale": scale, "offset": offset, "eps": layer.epsilon}
    common |= {"types": _types(layer), "synchronized": layer.axis_name is not None, "own": _own(layer)}
    if isinstance(layer, SentenceNorm):
        features = layer.num_features
        shape = (features,) if isinstance(features, int) else tuple(features or ())
        return Norm("sentence", (), shape, given=layer.spec, **common).over_last()
    if isinstance(layer, nnx.GroupNorm):
        features = layer.num_groups * layer.group_size
        if layer.reduction_axes is not None:
            return Norm("sentence", (), (features,), given=_grouped(layer), **common)
        return Norm("group", (LAST,), (features,), groups=layer.num_groups, channels=CHANNELS, **common)
    if isinstance(layer, nnx.BatchNorm | nnx.InstanceNorm):
        axes = _axes(layer.axis if isinstance(layer, nnx.BatchNorm) else layer.feature_axes)
        one: dict[str, Any] = {"axes": axes, "shape": (layer.num_features,), "channels": layout_of(axes)}
        if len(axes) != 1:
            raise ValueError(f"channels on several axes, {axes}, have no counterpart; write a sentence, with Norm")
        if isinstance(layer, nnx.InstanceNorm):
            return Norm("instance", **one, **common)
        training = not layer.use_running_average
        return Norm("batch", **one, mean=mean, variance=variance, keep=layer.momentum, training=training, **common)
    axes, carriers = _axes(layer.reduction_axes), _axes(layer.feature_axes)
    has, remove = shape_of(scale, offset), MOMENTS if isinstance(layer, nnx.LayerNorm) else ("scale",)
    if axes == carriers and len(axes) == 1:
        return Norm("layer" if remove == MOMENTS else "rms", axes, (layer.num_features,), **common)
    if has and len(carriers) > 1:
        raise ValueError(
            f"{type(layer).__name__} with the feature axes {carriers} keeps the product of their lengths, "
            f"{layer.num_features}, and not the lengths, which its parameters would have elsewhere: write it as a "
            'sentence, with Norm, as in anynorm.nnx.Norm("... [a b]", (5, 7), affine="a b"), give that the scale and '
            "bias in this shape, and convert it"
        )
    spec = over(axes, carriers, _count(layer, (*axes, *carriers)), remove)
    return Norm("sentence", (), has, given=_open(spec), **common)


def _grouped(layer: Any) -> NormSpec:
    """The sentence of a GroupNorm that says its reduction axes."""
    if not isinstance(layer, GroupNorm):
        raise ValueError(
            "flax.nnx.GroupNorm with reduction_axes takes other groups' statistics where it keeps more axes than the "
            "batch; make it anynorm.nnx.GroupNorm, which does not, or write it as a sentence, with Norm"
        )
    axes = _axes(layer.reduction_axes)
    rank = _count(layer, axes)
    if LAST not in axes:
        raise ValueError(f"reduction_axes={layer.reduction_axes!r} lacks the last axis, the one split into groups")
    return _open(group(LAST, rank, layer.num_groups, tuple(i for i in range(rank) if i - rank not in axes)))


def _count(layer: Any, axes: tuple[int, ...]) -> int:
    """Of how many axes, counted from the end, a module speaks; raises where it counts from the front."""
    if max(axes) >= 0:
        raise ValueError(
            f"{type(layer).__name__} over the axes {axes} is another for each rank of the input; set its axes to "
            "negative numbers, which are counted from the end, or write it as a sentence, with Norm"
        )
    return -min(axes)


def _open(spec: NormSpec) -> NormSpec:
    """The sentence about the last axes, with any others in front."""
    return NormSpec.of(f"... {spec.text}", affine=spec.affine_text, remove=spec.remove, **dict(spec.sizes))


def _axes(axes: Any) -> tuple[int, ...]:
    return (axes,) if isinstance(axes, int) else tuple(axes)


def _types(layer: Any) -> Types:
    first = next((v for name in _VARIABLES[:2] if (v := getattr(layer, name, None)) is not None), None)
    parameters = jnp.dtype(layer.param_dtype).name if first is None else type_name(first[...])
    statistics = "float32" if getattr(layer, "mean", None) is None else type_name(layer.mean[...])
    result = None if layer.dtype is None else jnp.dtype(layer.dtype).name
    return Types(parameters, statistics, result)


def _own(layer: Any) -> dict[str, Any]:
    found = {name: getattr(layer, name) for name in LOUD}
    return {name: v for name, v in found.items() if v is not None and v is not dtypes.promote_dtype}


def write(norm: Norm) -> nnx.Module:
    layer = _made(norm)
    scale = neutral(norm)[0] if norm.kind == "rms" else norm.scale
    statistics = jnp.promote_types(norm.types.statistics, "float32").name
    for name, values, dtype in (
        ("scale", scale, norm.types.parameters),
        ("bias", norm.offset, norm.types.parameters),
        ("mean", norm.mean, statistics),
        ("var", norm.variance, statistics),
    ):
        if values is not None and (variable := getattr(layer, name)) is not None:
            variable.set_value(array(values.reshape(variable.shape), dtype))
    return layer


def _made(norm: Norm) -> Any:
    rngs = nnx.Rngs(0)
    types = {"param_dtype": _possible(norm.types.parameters), "dtype": norm.types.result}
    own = {name: norm.own[name] for name in LOUD if name in norm.own}
    common: dict[str, Any] = {"epsilon": norm.whole_eps, "rngs": rngs, **types, **own}
    both: dict[str, Any] = {"use_bias": norm.offset is not None, "use_scale": norm.scale is not None, **common}
    axis = norm.axes[0] if len(norm.axes) == 1 else norm.axes
    if norm.kind == "batch":
        training: dict[str, Any] = {"use_running_average": not norm.training or norm.still, "momentum": norm.keep}
        return BatchNorm(norm.features, axis=axis, **training, **both)
    if norm.kind == "group" and axis == LAST:
        return GroupNorm(norm.features, norm.groups, **both)
    if norm.kind == "instance":
        return InstanceNorm(norm.features, feature_axes=axis, **both)
    # Those over several axes keep only the product of their lengths, and a sentence keeps the lengths.
    if norm.kind == "layer" and len(norm.axes) == 1:
        return LayerNorm(norm.features, reduction_axes=axis, feature_axes=axis, **both)
    if norm.kind == "rms" and len(norm.axes) == 1:
        return RMSNorm(norm.features, reduction_axes=axis, feature_axes=axis, **common)
    is_last = norm.kind in ("layer", "rms") and norm.axes == tuple(range(-len(norm.axes), 0))
    spec: NormSpec = last(norm.shape, norm.remove) if is_last else norm.spec(norm.sample_rank())
    words: dict[str, Any] = {"affine": spec.affine_text or "", "remove": spec.remove, **dict(spec.sizes), **both}
    return SentenceNorm(spec.text, norm.shape or None, **words)


def run(layer: Any, x: np.ndarray) -> np.ndarray:
    """The module's answer outside training, to an input of its parameters' type, on one device."""
    module = nnx.clone(layer)
    module.axis_name = None
    more: dict[str, Any] = {"use_running_average": True} if isinstance(layer, nnx.BatchNorm) else {}
    return np.asarray(module(array(x, _types(layer).parameters), **more)).astype(np.float64)


def parts(model: Any) -> list[Any] | None:
    """A chain's modules, None for what is no chain."""
    is_chain = isinstance(model, nnx.Sequential) and type(model).__call__ is nnx.Sequential.__call__
    return list(model.layers) if is_chain else None


def join(layers: list[Any]) -> nnx.Sequential:
    return nnx.Sequential(*layers)


def named(model: Any) -> Iterator[tuple[str, Any]]:
    """All modules of a model that have parameters, by the names that its state gives them."""
    found = nnx.iter_modules(model)
    return ((".".join(map(str, path)), module) for path, module in found if nnx.to_flat_state(nnx.state(module)))


def state(model: Any) -> Iterable[tuple[str, Any]]:
    return nnx.to_pure_dict(nnx.state(model)).items()  # type: ignore[no-any-return]


def array(values: Array, dtype: str) -> Any:
    return jnp.asarray(values).astype(_possible(dtype))


def _possible(dtype: str) -> Any:
    """The type, but float32 for float64 without jax_enable_x64: asked for it, JAX warns and takes float32."""
    return jax.dtypes.canonicalize_dtype(dtype)


def numpy(variable: Any) -> np.ndarray | None:
    return None if variable is None else widened(np.array(variable[...]))
