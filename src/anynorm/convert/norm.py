"""A normalization layer without its framework: what every dialect can be read into and written from.

One reader and one writer for each dialect, with this between them, take the place of a conversion for each pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .. import catalogue
from ..plan import plan
from ..spec import MOMENTS, NormSpec

Array = Any
FIRST, LAST = 1, -1
POSITIONS = {"first": FIRST, "last": LAST}
# What a layer's arrays are, as `Norm` calls them, and their shapes by these names.
ROLES = ("scale", "offset", "mean", "variance", "learned_eps")
LEARNING = ("scale", "offset", "learned_eps")
Shapes = dict[str, tuple[int, ...]]


class Types(NamedTuple):
    """The names of a layer's types; the arrays themselves may be wider, since NumPy has no bfloat16."""

    parameters: str = "float32"
    statistics: str = "float32"
    # What the layer casts its result to, None where that follows from input and parameters.
    result: str | None = None


FLOAT32 = Types()


@dataclass(frozen=True)
class Norm:
    """A normalization, its parameters and its running statistics.

    Attributes:
        kind: "batch", "group", "instance", "layer", "rms", "response" or "sentence".
        axes: the axes that carry scale and offset, in the order of these: negative from the end, or 1, the axis behind
            the batch, where the rank is open.
        shape: their lengths, () where nothing says them.
        eps: added to the variance.
        scale, offset, mean, variance: arrays, None where the layer has none.
        rank: of the input, None where nothing says it.
        channels: where the channels are among several axes, or that the one axis is theirs and moves with the layout:
            "first", "last", or None for axes that stay where they are.
        groups: into how many the channels are split.
        keep: how much of the running statistics remains in a step: 0.9 is torch's momentum 0.1 and Keras's 0.9.
        correction: the running variance moves to a variance divided by count - correction: 1 in torch, 0 elsewhere.
        training: whether batch normalization takes the batch's statistics, where the layer itself says so.
        given: the sentence, of kind "sentence".
        learned_eps: what filter response normalization has learned to add to eps, None where it learns none.
        types: of parameters, statistics and result.
        frozen: which of "scale", "offset" and "learned_eps" do not learn.
        still: that batch normalization is never in training, as Keras's `trainable=False` has it.
        synchronized: that the batches of all processes or devices share their statistics.
        own: what only a layer of the same framework can take over, by the name of its attribute or argument.
    """

    kind: str
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    eps: float
    scale: Array | None = None
    offset: Array | None = None
    mean: Array | None = None
    variance: Array | None = None
    rank: int | None = None
    channels: str | None = None
    groups: int | None = None
    keep: float = 0.99
    correction: int = 0
    training: bool = True
    given: NormSpec | None = None
    learned_eps: float | None = None
    types: Types = FLOAT32
    frozen: frozenset[str] = frozenset()
    still: bool = False
    synchronized: bool = False
    own: Mapping[str, Any] = field(default_factory=dict)

    @property
    def features(self) -> int:
        if not self.shape:
            raise ValueError("the layer has no parameters, so that nothing says how many channels there are")
        return prod(self.shape)

    @property
    def position(self) -> int:
        """The axis of the channels."""
        return self.axes[0] if self.channels == "first" else self.axes[-1]

    def moved(self, channels: str) -> Norm:
        """The same with the channels first (behind the batch) or last; the parameters' axes move along."""
        if self.kind == "sentence" or channels == self.channels:
            return self
        if len(self.axes) == 1:
            return replace(self, axes=(POSITIONS[channels],), channels=channels)
        if self.kind not in ("layer", "rms") or self.axes != tuple(range(-len(self.axes), 0)):
            raise ValueError(
                f"a {self.kind} normalization with parameters over the axes {self.axes} has no one channel axis that "
                "could be moved; leave channels= out"
            )
        source, target = (-1, 0) if channels == "first" else (0, -1)
        move = lambda a: None if a is None else np.moveaxis(a, source, target)  # noqa: E731
        shape = np.moveaxis(np.empty(self.shape), source, target).shape
        return replace(self, shape=shape, scale=move(self.scale), offset=move(self.offset), channels=channels)

    @property
    def remove(self) -> tuple[str, ...]:
        return ("scale",) if self.kind in ("rms", "response") else MOMENTS

    @property
    def whole_eps(self) -> float:
        """eps with what was learned, for who cannot learn it."""
        return self.eps + abs(self.learned_eps or 0.0)

    def named(self) -> Norm:
        """A sentence that is filter response normalization's, as that; for who has no layer for sentences."""
        if self.given is None or self.given.remove != ("scale",):
            return self
        axes = self.given.pattern.axes
        kept = [i for i, axis in enumerate(axes) if not axis.shared]
        for position, channels in ((FIRST, "first"), (len(axes) - 1, "last")):
            if kept == [0, position] and self.given.affine_text in (None, axes[position].name):
                return replace(self, kind="response", axes=(POSITIONS[channels],), channels=channels, given=None)
        return self

    def over_last(self) -> Norm:
        """A sentence that is layer or RMS normalization over the last axes, with their lengths, as that."""
        kind = None if self.given is None else {MOMENTS: "layer", ("scale",): "rms"}.get(self.given.remove)
        if self.given is None or kind is None or not self.shape:
            return self
        if self.given != catalogue.last(self.shape, self.given.remove):
            return self
        axes = tuple(range(-len(self.shape), 0))
        return replace(self, kind=kind, axes=axes, given=None)

    def spec(self, rank: int) -> NormSpec:
        """The sentence for an input of `rank` dimensions."""
        if self.given is not None:
            return self.given
        if self.kind == "batch":
            return catalogue.batch(self.axes, rank)
        if self.kind in ("layer", "rms"):
            return catalogue.layer(self.axes, rank, self.remove)
        groups = self.groups if self.kind == "group" else None
        spec = catalogue.group(self.axes, rank, groups)
        return NormSpec.of(spec.text, affine=spec.affine_text, remove=self.remove, **dict(spec.sizes))

    def lengths(self) -> dict[str, int]:
        """The sizes of the sentence and those that follow from the parameters' shape."""
        spec = self.spec(self.sample_rank())
        sizes = dict(spec.sizes)
        for dim, length in zip(spec.affine.dims if spec.affine and self.shape else (), self.shape, strict=False):
            free = [axis.name for axis in dim if axis.name not in sizes]
            if len(free) == 1:
                sizes[free[0]] = length // prod(sizes[axis.name] for axis in dim if axis.name in sizes)
        return sizes

    def sample_rank(self) -> int:
        """The rank of the input, or one that is possible."""
        if self.given is not None:
            return len(self.given.pattern.dims) + 2 * ("..." in self.given.pattern.names)
        return self.rank or max(4, *(abs(a) + 1 for a in self.axes))

    def sample_shape(self) -> tuple[int, ...]:
        """A shape of the input, with lengths that differ where they are free."""
        rank = self.sample_rank()
        spec, sizes = self.spec(rank), self.lengths()
        free = iter((3, 5, 4, 7, 6, 8, 9))
        shape = []
        for dim in spec.pattern.expand(rank).dims:
            known = all(axis.name in sizes for axis in dim)
            shape.append(prod(sizes[axis.name] for axis in dim) if known else next(free))
        return tuple(shape)


def checked(norm: Norm) -> Norm:
    """The norm as it is, or an error where its arrays and its sentence do not fit each other."""
    arrays = {role: values for role in ROLES[:4] if (values := getattr(norm, role)) is not None}
    for role, values in arrays.items():
        if values.dtype.kind != "f":
            raise TypeError(f"{role} is of {values.dtype}, and a normalization's parameters are floating-point numbers")
    if norm.shape:
        wanted = plan(norm.spec(norm.sample_rank()), norm.sample_shape()).affine.shape
        for role, values in arrays.items():
            if values.shape != wanted:
                raise ValueError(f"{role} has the shape {values.shape}, and the layer's axes have {wanted}")
    return norm


def canonical(axis: Any, rank: int | None) -> tuple[int, ...]:
    """Axes as `Norm.axes` has them: from the end, but one axis behind the batch of an image is 1."""
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if rank is None:
        return axes
    axes = tuple(a - rank for a in catalogue.normalized_axes(axes, rank))
    return (FIRST,) if axes == (1 - rank,) and rank > 2 else axes


def layout_of(axes: tuple[int, ...]) -> str | None:
    """ "first" or "last" for one axis of channels that lies there."""
    return next((name for name, position in POSITIONS.items() if axes == (position,)), None)


def shape_of(*parameters: Array | None) -> tuple[int, ...]:
    """The shape of the first that there is."""
    return next((tuple(a.shape) for a in parameters if a is not None), ())


def neutral(norm: Norm) -> tuple[Array, Array]:
    """Scale and offset, with ones and zeros where the layer has none."""
    scale = np.ones(norm.shape, np.float32) if norm.scale is None else norm.scale
    return scale, np.zeros(norm.shape, scale.dtype) if norm.offset is None else norm.offset


def widened(values: np.ndarray) -> np.ndarray:
    """The values in a type of NumPy's own: bfloat16, which JAX and Keras have as an extension, as float32."""
    return values.astype(np.float32) if values.dtype.name == "bfloat16" else values


def type_name(array: Any) -> str:
    """ "float32" for any framework's array of that type."""
    return str(array.dtype).rpartition(".")[2]


def group_kind(groups: int, channels: int) -> str:
    """Group normalizations with other groups are other norms; with as many as channels, instance normalization.

    >>> group_kind(3, 6), group_kind(6, 6)
    ('group of 3', 'instance')
    """
    return "instance" if groups in (-1, channels) else f"group of {groups}"
