"""What there is to say about one norm of a model: its sentence, its sizes, and what makes one doubt it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..catalogue import CATALOGUE
from ..convert.norm import FIRST, LAST, Norm
from .swapping import FEW

# Below it the noise of a batch's statistics costs accuracy (Wu, He 2018, figure 1).
SMALL_BATCH = 8
# A variance below ten times eps comes out with less than 95 % of its standard deviation.
_EPS_SHARE = 10
_ENTRIES = {"batch": "batch", "group": "group", "instance": "instance", "layer": "layer_last", "rms": "rms"}
_FIRST_ENTRIES = {**_ENTRIES, "layer": "layer_channels", "rms": "rms_channels"}


@dataclass(frozen=True)
class Facts:
    """One norm of a model.

    Attributes:
        name: where it is in the model.
        layer: its class.
        kind: "batch", "group", …; "norm" where a file has numbers and nothing that says more.
        sentence: which axes share a statistic; "" where nothing says it.
        shapes: of its inputs, None for lengths that are open; empty where nothing says them.
        parameters: the shape of each parameter and running statistic.
        numbers: how many numbers those are.
        eps: added to the variance; None where nothing says it.
        elements: how many elements of one sample share a statistic; None where nothing says it.
        doubts: what may be wrong with it.

    >>> Facts("bn1", "BatchNorm2d", "batch", "[n] c [...]").doubts
    ()
    """

    name: str
    layer: str
    kind: str
    sentence: str
    shapes: tuple[tuple[int | None, ...], ...] = ()
    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    numbers: int = 0
    eps: float | None = None
    elements: int | None = None
    doubts: tuple[str, ...] = ()


def facts_of(
    name: str, layer: str, norm: Norm, names: tuple[str, ...], shapes: Any, batch: int | None, frozen: bool = False
) -> Facts:
    """The facts of a norm that a dialect has read.

    Args:
        names: what the framework calls scale, offset, mean and variance.
        batch: the size of the batches that it is trained with, where somebody has said it.
        frozen: whether its running statistics are used in training too.
    """
    arrays = dict(zip(names, (norm.scale, norm.offset, norm.mean, norm.variance), strict=True))
    there = {key: tuple(values.shape) for key, values in arrays.items() if values is not None}
    elements = _elements(norm, shapes)
    return Facts(
        name=name,
        layer=layer,
        kind=norm.kind,
        sentence=sentence_of(norm),
        shapes=tuple(dict.fromkeys(tuple(shape) for shape in shapes)),
        parameters=there,
        numbers=sum(math.prod(shape) for shape in there.values()),
        eps=norm.eps,
        elements=elements,
        doubts=(*_of_sizes(norm, elements, batch, frozen), *doubts_of_numbers(arrays, norm, names)),
    )


def sentence_of(norm: Norm) -> str:
    """The catalogue's sentence where it is one of those, else one with the axes by number."""
    by_axes: dict[tuple[int, ...], dict[str, str]] = {(FIRST,): _FIRST_ENTRIES, (LAST,): _ENTRIES}
    entries = by_axes.get(norm.axes, {})
    if norm.kind not in entries:
        spec = norm.spec(norm.sample_rank())
        sizes = " ".join(f"{name}={size}" for name, size in spec.sizes)
        return f"{spec.text} {sizes}".rstrip()
    entry = CATALOGUE[entries[norm.kind]]
    text = entry.pattern_first if norm.axes == (FIRST,) and entry.pattern_first else entry.pattern
    return f"{text} g={norm.groups}" if norm.kind == "group" else text


def _elements(norm: Norm, shapes: Any) -> int | None:
    """The least number of elements of one sample that share a statistic."""
    if norm.kind in ("layer", "rms") and norm.shape:
        return math.prod(norm.shape)
    if not shapes or not norm.axes or any(None in shape[1:] for shape in shapes):
        return None
    channels = math.prod(norm.shape) if norm.shape else None
    least = min(math.prod(shape[1:]) // (channels or shape[min(norm.position, len(shape) - 1)]) for shape in shapes)
    return least if norm.kind != "group" or channels is None else least * (channels // (norm.groups or 1))


def _of_sizes(norm: Norm, elements: int | None, batch: int | None, frozen: bool) -> list[str]:
    found = [] if frozen else doubts_of_batch(norm.kind, batch)
    if norm.kind == "batch" and batch is not None:
        elements = None if elements is None else elements * batch
    if elements is not None and elements < FEW and (norm.kind != "batch" or (batch is not None and not frozen)):
        few = "nothing of the input is left" if elements == 1 and norm.kind != "rms" else "they follow each one closely"
        found.append(f"statistics over {elements} element{'s' * (elements != 1)}: {few}")
    if norm.kind == "group" and norm.shape and norm.groups == norm.features:
        found.append("groups of one channel: it is an instance normalization")
    return found


def doubts_of_batch(kind: str, batch: int | None) -> list[str]:
    """What the size of the batches gives to doubt."""
    if kind != "batch" or batch is None or batch >= SMALL_BATCH:
        return []
    return [f"a batch of {batch}: below {SMALL_BATCH} batch statistics are too noisy; freeze or swap it"]


def doubts_of_numbers(arrays: dict[str, Any], norm: Norm | None, names: tuple[str, ...]) -> list[str]:
    """What the parameters and running statistics themselves give to doubt."""
    found = [
        f"{name} is not finite in {number} of {values.size}"
        for name, values in arrays.items()
        if values is not None and (number := int((~np.isfinite(values)).sum()))
    ]
    mean, variance = (arrays.get(name) for name in names[2:])
    if mean is None or variance is None:
        return found
    if (variance == 1).all() and (mean == 0).all():
        return [*found, f"{names[2]} and {names[3]} were never updated: zeros and ones"]
    if number := int((variance < 0).sum()):
        found.append(f"{names[3]} is negative in {number} of {variance.size} channels")
    if number := int((variance == 0).sum()):
        found.append(f"{names[3]} is 0 in {number} of {variance.size} channels: they never varied")
    eps = None if norm is None else norm.eps
    if eps and (number := int(((variance > 0) & (variance < _EPS_SHARE * eps)).sum())):
        found.append(
            f"eps {eps:g} is too large: more than a tenth of {names[3]} in {number} of {variance.size} channels"
        )
    return found
