"""torch's dialect: torch.nn's layers and anynorm.torch's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..torch import GroupNorm, LayerNorm, LayerNorm2d, RMSNorm, RMSNorm2d
from ..torch import Norm as SentenceNorm
from ..torch.peers import BATCH, INSTANCE
from .norm import FIRST, Array, Norm, neutral, shape_of

CHANNELS, ANY_SENTENCE = "first", True
RANKS = {kind.__name__[-2:]: rank for rank, kind in INSTANCE.items()}


def read(layer: Any, whole: bool = True) -> Norm:
    """The norm of a module; not `whole`: without running statistics and activation, for who keeps or refuses them."""
    if whole and getattr(layer, "activation", None) is not None:
        raise ValueError(
            f"{type(layer).__name__}(activation={layer.activation!r}) has no counterpart: set the layer's activation "
            "to None, and put a layer for it behind the converted one"
        )
    scale, offset = (numpy(getattr(layer, name, None)) for name in ("weight", "bias"))
    common: dict[str, Any] = {"scale": scale, "offset": offset, "training": layer.training}
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
    if isinstance(layer, torch.nn.modules.batchnorm._NormBase):
        if not whole:
            return _channelwise(layer, common)
        return _with_statistics(layer, common)
    raise TypeError(f"{type(layer).__name__} is no normalization layer of torch.nn or anynorm.torch")


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
    layer = _made(norm)
    has = norm.scale is not None or norm.offset is not None
    values: dict[str, Any] = dict(zip(("weight", "bias"), neutral(norm), strict=True)) if has else {}
    values |= {"running_mean": norm.mean, "running_var": norm.variance} if norm.mean is not None else {}
    state = layer.state_dict()
    layer.load_state_dict({k: array(values[k]) if k in values else v for k, v in state.items()})
    return layer.train(norm.training)


def _made(norm: Norm) -> Any:
    # torch has a bias only where it has a weight.
    has, bias = norm.scale is not None or norm.offset is not None, norm.offset is not None
    rank, eps = norm.rank or 4, norm.eps
    is_first = norm.axes == (FIRST,) or (norm.kind != "batch" and norm.axes == (1 - rank,))
    if norm.kind == "batch" and (is_first or (rank == 2 and norm.axes == (-1,))):
        momentum: dict[str, Any] = {"momentum": 1 - norm.keep, "correction": norm.correction}
        return _class(BATCH, rank, norm)(norm.features, eps, affine=has, bias=bias, **momentum)
    if norm.kind == "group" and is_first and norm.groups is not None:
        return GroupNorm(norm.groups, norm.features, eps, affine=has, bias=bias)
    if norm.kind == "instance" and is_first:
        return _class(INSTANCE, rank, norm)(norm.features, eps, affine=has, bias=bias)
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
    return SentenceNorm(spec.text, eps=eps, **words, **sizes)


def _class(classes: dict[int, Any], rank: int, norm: Norm) -> Any:
    if rank not in classes:
        raise ValueError(f"torch has no {norm.kind} normalization for {rank} dimensions, but for {sorted(classes)}")
    return classes[rank]


def run(layer: Any, x: np.ndarray) -> np.ndarray:
    """The layer's answer outside training; its own mode stays."""
    training = layer.training
    with torch.no_grad():
        y = layer.eval()(array(x))
    layer.train(training)
    return y.numpy()


def parts(model: Any) -> list[Any] | None:
    """A chain's layers, None for what is no chain."""
    return list(model) if isinstance(model, torch.nn.Sequential) else None


def join(layers: list[Any]) -> torch.nn.Module:
    return torch.nn.Sequential(*layers)


def named(model: Any) -> Iterator[tuple[str, Any]]:
    """All layers of a model that have parameters, by the names that its state gives them."""
    return ((name, layer) for name, layer in model.named_modules() if layer.state_dict())


def state(model: Any) -> dict[str, Any]:
    return dict(model.state_dict())


def array(values: Array) -> torch.Tensor:
    return torch.tensor(np.asarray(values))


def numpy(tensor: Any) -> np.ndarray | None:
    """The values in the narrowest type of NumPy's that holds them, for bfloat16 float32."""
    if tensor is None:
        return None
    tensor = torch.as_tensor(tensor).detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()
