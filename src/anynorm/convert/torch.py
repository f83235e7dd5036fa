"""torch's dialect: torch.nn's layers and anynorm.torch's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from ..torch import FilterResponseNorm, GroupNorm, LayerNorm, LayerNorm2d, RMSNorm, RMSNorm2d, SyncBatchNorm
from ..torch import Norm as SentenceNorm
from ..torch.peers import BATCH, INSTANCE, KNOWN
from .norm import FIRST, ROLES, Array, Norm, Shapes, Types, group_kind, neutral, shape_of, type_name
from .state import LEARNED, NAMES

CHANNELS, ANY_SENTENCE, FREEZES = "first", True, True
# What no layer of another framework can have.
LOUD = ("process_group",)
RANKS = {kind.__name__[-2:]: rank for rank, kind in INSTANCE.items()}


_KINDS = (
    (SentenceNorm, None),
    (FilterResponseNorm, "response"),
    (torch.nn.LayerNorm, "layer"),
    (torch.nn.RMSNorm, "rms"),
    (torch.nn.modules.batchnorm._BatchNorm, "batch"),
    (torch.nn.modules.instancenorm._InstanceNorm, "instance"),
)
_CLASSES = (torch.nn.GroupNorm, *(known for known, _ in _KINDS))
_PARAMETERS = {"scale": "weight", "offset": "bias"}
_LEARNING = {**_PARAMETERS, "learned_eps": LEARNED["torch"]}
_SYNCHRONIZED = (SyncBatchNorm, torch.nn.SyncBatchNorm)


def why_not(layer: Any) -> str | None:
    """Why no layer made anew can be what this one is, or None."""
    if reason := _no_numbers(layer):
        return reason
    names = [name for name in _PARAMETERS.values() if getattr(layer, name, None) is not None]
    if parametrize.is_parametrized(layer) or any(name not in layer._parameters for name in names):
        return "its parameters are parametrized, or no parameters"
    if type(layer) not in KNOWN:
        return "its class is a subclass of a norm's, and may do something else"
    return _does_more(layer)


def _does_more(module: Any) -> str | None:
    """Why a call of the module does more than its class says, or None."""
    if any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)):
        return "it has hooks, which would be lost: remove them first"
    if "forward" in vars(module):
        return "its forward was replaced, and may do something else"
    return None


def variables(layer: Any) -> list[Any]:
    return [*layer.parameters(), *layer.buffers()]


def is_norm(layer: Any) -> bool:
    return isinstance(layer, _CLASSES)


def read(layer: Any, whole: bool = True) -> Norm:
    """The norm of a module; not `whole`: without running statistics and activation, for who keeps or refuses them."""
    if not is_norm(layer):
        raise TypeError(f"{type(layer).__name__} is no normalization layer of torch.nn or anynorm.torch")
    if reason := _no_numbers(layer):
        raise ValueError(f"{type(layer).__name__} cannot be read: {reason}")
    if whole and getattr(layer, "activation", None) is not None:
        raise ValueError(
            f"{type(layer).__name__}(activation={layer.activation!r}) has no counterpart: set the layer's activation "
            "to None, and put a layer for it behind the converted one"
        )
    found = {name: getattr(layer, ours, None) for name, ours in _PARAMETERS.items()}
    scale, offset = (numpy(tensor) for tensor in found.values())
    common: dict[str, Any] = {"scale": scale, "offset": offset, "training": layer.training, "types": _types(layer)}
    common["frozen"] = frozenset(
        role
        for role, name in _LEARNING.items()
        if (tensor := getattr(layer, name, None)) is not None and not tensor.requires_grad
    )
    if isinstance(layer, SentenceNorm):
        return Norm("sentence", (), shape_of(scale), layer.eps, given=layer.spec, **common)
    if isinstance(layer, torch.nn.GroupNorm):
        one: dict[str, Any] = {"axes": (FIRST,), "shape": (layer.num_channels,), "channels": CHANNELS}
        return Norm("group", **one, eps=layer.eps, groups=layer.num_groups, **common)
    if isinstance(layer, torch.nn.LayerNorm | torch.nn.RMSNorm):
        is_layer, shape = isinstance(layer, torch.nn.LayerNorm), tuple(layer.normalized_shape)
        axes: tuple[int, ...] = tuple(range(-len(shape), 0))
        channels = CHANNELS if len(shape) > 1 else None
        if isinstance(layer, LayerNorm2d | RMSNorm2d):
            axes, channels = (FIRST,), CHANNELS
        # torch's default is the epsilon of the type in which the statistics are, float32 for all narrower ones.
        double = scale is not None and scale.dtype == np.float64
        eps = torch.finfo(torch.float64 if double else torch.float32).eps if layer.eps is None else layer.eps
        return Norm("layer" if is_layer else "rms", axes, shape, eps, channels=channels, **common)
    if isinstance(layer, FilterResponseNorm):
        learned = None if layer.learned_eps is None else layer.learned_eps.item()
        one = {"axes": (FIRST,), "shape": (layer.num_features,), "channels": CHANNELS, "learned_eps": learned}
        return Norm("response", **one, eps=layer.eps, **common)
    return _with_statistics(layer, common) if whole else _channelwise(layer, common)


def _no_numbers(layer: Any) -> str | None:
    if isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():
        return "it has no parameters yet: call it once"
    if any(tensor.is_meta for tensor in variables(layer)):
        return "it is on the meta device, where there are no numbers: give it some, by to_empty() and load_state_dict()"
    return None


def kind(layer: Any) -> str | None:
    """What two norms must have in common besides shapes, None for a sentence."""
    if isinstance(layer, torch.nn.GroupNorm):
        return group_kind(layer.num_groups, layer.num_channels)
    return next(name for known, name in _KINDS if isinstance(layer, known))


def shapes(layer: Any) -> Shapes:
    """Those of parameters and running statistics that it has."""
    if isinstance(layer, LazyModuleMixin):
        raise ValueError(f"{type(layer).__name__} has no parameters yet: call it once")
    found = zip(ROLES, (*NAMES["torch"], LEARNED["torch"]), strict=True)
    return {role: tuple(v.shape) for role, name in found if (v := getattr(layer, name, None)) is not None}


def _types(layer: Any) -> Types:
    names = [
        [type_name(t) for t in tensors if t.is_floating_point()] for tensors in (layer.parameters(), layer.buffers())
    ]
    parameters, statistics = (found[0] if found else None for found in names)
    return Types(parameters or statistics or "float32", statistics or parameters or "float32")


def _with_statistics(layer: Any, common: dict[str, Any]) -> Norm:
    is_batch = isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)
    if is_batch != (layer.running_mean is not None):
        raise ValueError(
            f"{type(layer).__name__}(track_running_stats={not is_batch}) has no counterpart: in evaluation other "
            f"layers of batch normalization use running statistics, and those of instance normalization have none"
        )
    if is_batch and layer.momentum is None:
        raise ValueError("momentum=None, the plain average, has no counterpart; set the layer's momentum to a number")
    common |= {"mean": numpy(layer.running_mean), "variance": numpy(layer.running_var)}
    common |= {"keep": 1 - layer.momentum} if is_batch else {}
    tracked = layer.num_batches_tracked if is_batch else None
    common["own"] = {} if tracked is None else {"num_batches_tracked": int(tracked)}
    if isinstance(layer, _SYNCHRONIZED):
        common["synchronized"] = True
        common["own"] |= {} if layer.process_group is None else {"process_group": layer.process_group}
    return _channelwise(layer, common)


def _channelwise(layer: Any, common: dict[str, Any]) -> Norm:
    return Norm(
        "batch" if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) else "instance",
        (FIRST,),
        (layer.num_features,),
        layer.eps,
        rank=RANKS.get(type(layer).__name__[-2:]),
        channels=CHANNELS,
        correction=getattr(layer, "correction", 1),
        **common,
    )


def write(norm: Norm) -> torch.nn.Module:
    layer = _made(norm).to(getattr(torch, norm.types.parameters))
    has = norm.scale is not None or norm.offset is not None
    values: dict[str, Any] = dict(zip(_PARAMETERS.values(), neutral(norm), strict=True)) if has else {}
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name in values:
                parameter.copy_(torch.as_tensor(np.asarray(values[name])))
    if norm.learned_eps is not None and isinstance(layer, FilterResponseNorm):
        torch.nn.init.constant_(layer.learned_eps, norm.learned_eps)
    if norm.mean is not None:
        for name, statistic in (("running_mean", norm.mean), ("running_var", norm.variance)):
            setattr(layer, name, array(statistic, norm.types.statistics))
        layer.num_batches_tracked.fill_(norm.own.get("num_batches_tracked", 0))
    # An offset has a scale beside it, of ones where there was none, which then does not learn.
    for name in norm.frozen | ({"scale"} if norm.scale is None else set()):
        if (parameter := getattr(layer, _LEARNING[name], None)) is not None:
            parameter.requires_grad_(False)
    return layer.train(norm.training and not (norm.still and norm.kind == "batch"))


def _made(norm: Norm) -> Any:
    # torch has a bias only where it has a weight.
    has, bias = norm.scale is not None or norm.offset is not None, norm.offset is not None
    rank, eps = norm.rank or 4, norm.eps
    is_first = norm.axes == (FIRST,) or (norm.kind != "batch" and norm.axes == (1 - rank,))
    if norm.kind == "batch" and (is_first or (rank == 2 and norm.axes == (-1,))):
        momentum: dict[str, Any] = {"momentum": 1 - norm.keep, "correction": norm.correction}
        if norm.synchronized:
            momentum["process_group"] = norm.own.get("process_group")
            return SyncBatchNorm(norm.features, eps, affine=has, bias=bias, **momentum)
        return _class(BATCH, rank, norm)(norm.features, eps, affine=has, bias=bias, **momentum)
    if norm.kind == "group" and is_first and norm.groups is not None:
        return GroupNorm(norm.groups, norm.features, eps, affine=has, bias=bias)
    if norm.kind == "instance" and is_first:
        return _class(INSTANCE, rank, norm)(norm.features, eps, affine=has, bias=bias)
    if norm.kind == "response" and is_first and norm.scale is not None and bias:
        return FilterResponseNorm(norm.features, eps, learned_eps=norm.learned_eps is not None)
    is_last = norm.axes == tuple(range(-len(norm.axes), 0))
    if norm.kind == "layer" and (is_last or is_first):
        return (LayerNorm if is_last else LayerNorm2d)(norm.shape, eps, has, bias=bias)
    if norm.kind == "rms" and (is_last or is_first):
        return (RMSNorm if is_last else RMSNorm2d)(norm.shape, eps, has)
    if norm.kind == "batch":
        raise ValueError(f"torch's batch normalization has its channels on axis 1, and this one on {norm.axes}")
    spec = norm.spec(norm.sample_rank())
    words: dict[str, Any] = {"affine": spec.affine_text if has else "", "remove": spec.remove, "bias": bias}
    sizes: dict[str, Any] = {name: n for name, n in norm.lengths().items() if name in spec.pattern.names}
    return SentenceNorm(spec.text, eps=norm.whole_eps, **words, **sizes)


def _class(classes: dict[int, Any], rank: int, norm: Norm) -> Any:
    if rank not in classes:
        raise ValueError(f"torch has no {norm.kind} normalization for {rank} dimensions, but for {sorted(classes)}")
    return classes[rank]


def run(layer: Any, x: np.ndarray) -> np.ndarray:
    """The layer's answer outside training, to an input of its parameters' type; its own mode stays."""
    training = layer.training
    with torch.no_grad():
        y = layer.eval()(array(x, _types(layer).parameters))
    layer.train(training)
    return y.double().numpy()


def parts(model: Any) -> list[Any] | None:
    """A chain's layers, None for what is no chain, or does more than its layers do."""
    is_chain = isinstance(model, torch.nn.Sequential) and type(model).forward is torch.nn.Sequential.forward
    return list(model) if is_chain and not _does_more(model) else None


def join(layers: list[Any]) -> torch.nn.Module:
    return torch.nn.Sequential(*layers)


def named(model: Any) -> Iterator[tuple[str, Any]]:
    """All layers of a model that have parameters, by the names that its state gives them."""
    return ((name, layer) for name, layer in model.named_modules() if layer.state_dict())


def state(model: Any) -> Iterable[tuple[str, Any]]:
    return model.state_dict().items()  # type: ignore[no-any-return]


def array(values: Array, dtype: str) -> torch.Tensor:
    return torch.tensor(np.asarray(values)).to(getattr(torch, dtype))


def numpy(tensor: Any) -> np.ndarray | None:
    """The values in the narrowest type of NumPy's that holds them, for bfloat16 float32."""
    if tensor is None:
        return None
    tensor = torch.as_tensor(tensor).detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()
