"""One layer from one dialect to another: placed, written, compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from . import notes
from .norm import Norm, checked


@dataclass(frozen=True)
class Converted:
    """A converted layer, and what is to be said about it; the first two unpack as a pair.

    Attributes:
        layer: the new one.
        difference: the largest between its answer and the original's, on random input.
        notes: what it could not take over.

    >>> layer, difference = Converted(layer=None, difference=1e-7)
    >>> difference
    1e-07
    """

    layer: Any
    difference: float
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter((self.layer, self.difference))


def read(layer: Any, source: ModuleType) -> Norm:
    """The layer's norm; raises where a new layer could not be what this one is."""
    if source.is_norm(layer) and (reason := source.why_not(layer)):
        raise ValueError(f"{type(layer).__name__} cannot be made anew: {reason}")
    norm: Norm = source.read(layer)
    return norm


def converted(
    layer: Any,
    norm: Norm,
    source: ModuleType,
    target: ModuleType,
    channels: str | None,
    rank: int | None,
    check: bool,
    tolerance: float | None,
) -> Converted:
    """One layer, with a difference of 0 where none was asked for."""
    norm = checked(norm if rank is None else replace(norm, rank=rank))
    norm = norm if target.ANY_SENTENCE else norm.named()
    moved = _placed(norm, source, target, channels)
    result = target.write(moved if source is target else replace(moved, own={}))
    made = target.read(result)
    remarks = tuple(notes.lost(norm, source, made, target))
    if not check:
        return Converted(result, 0.0, remarks)
    difference, size = _difference(layer, source, norm, result, target, moved)
    if tolerance is None:
        tolerance = max(1e-5, 4 * max(_unit(one.types.result or one.types.parameters) for one in (norm, made)))
    if not difference <= tolerance * size:
        raise ValueError(
            f"the converted layer's answer differs by {difference:.1e} where the largest is {size:.1e}; a larger "
            "tolerance= lets that pass"
        )
    return Converted(result, difference, remarks)


def _unit(dtype: str) -> float:
    """A type's unit in the last place, at 1."""
    return {"bfloat16": 2.0**-7}.get(dtype) or float(np.finfo(dtype).eps)


def _placed(norm: Norm, source: ModuleType, target: ModuleType, channels: str | None) -> Norm:
    """The norm with its channels where they are to be."""
    if channels == "kept":
        return norm
    if channels is not None:
        return norm.moved(channels)
    return norm if source is target or len(norm.axes) != 1 or not _has_channels(norm) else norm.moved(target.CHANNELS)


def check_layout(norms: list[Norm], source: ModuleType, target: ModuleType, channels: str | None) -> None:
    """Raise where a chain would move the channels of some layers and leave others where they are."""
    if channels is None and len({_placed(norm, source, target, None).axes == norm.axes for norm in norms}) > 1:
        raise ValueError(
            "some of the layers would get their channels elsewhere and others, which have none, stay: say "
            'channels="kept" for a model that takes the same input, or "first" or "last" where all are to have them'
        )


def _has_channels(norm: Norm) -> bool:
    return norm.kind in ("batch", "group", "instance", "response") or norm.channels is not None


def _difference(
    layer: Any, source: ModuleType, norm: Norm, result: Any, target: ModuleType, moved: Norm
) -> tuple[float, float]:
    x = np.random.default_rng(0).normal(1, 2, norm.sample_shape())
    # Sixteenths below 16 are the same numbers in every type.
    x = np.clip(np.round(16 * x), -255, 255).astype(np.float32) / 16
    there, here = (norm.position, moved.position) if norm.axes else (0, 0)
    want = np.moveaxis(source.run(layer, x), there, here)
    y = target.run(result, np.ascontiguousarray(np.moveaxis(x, there, here)))
    # NaN for NaN, as a broken layer has them, is no difference.
    is_same = (y == want) | (np.isnan(y) & np.isnan(want))
    apart, size = np.abs(np.subtract(y, want, where=~is_same, out=np.zeros_like(y))), np.abs(want)
    return float(apart.max(initial=0.0)), float(size.max(initial=1e-30, where=np.isfinite(size)))
