"""Which cells of an N × C × (H, W) cube share one statistic, read off the plan that the kernels are told.

An array has any number of dimensions and a cube has three directions, so every dimension is laid along one of them:

- N, the batch: dimensions called n, b, batch, or o (the outputs of a convolution kernel).
- C, the channels: dimensions called c, ch, channel, channels, or i (the inputs of a convolution kernel), and every
  dimension in parentheses that is no batch.
- (H, W), the rest: dimensions called h, w, t, l, s, x, y, z, time, height, width.
- A dimension by another name takes the place that is empty: the first such one N, the last C, those between (H, W).

Dimensions in one direction are flattened in the order in which they stand, h before w, as in the paper's figure.

`...` stands for those of n, c, h, w that the sentence does not name, or for the axes that the shape names instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..catalogue import CATALOGUE
from ..pattern import ELLIPSIS
from ..plan import Plan, plan
from . import words

DIRECTIONS = ("N", "C", "S")
DEFAULT_SHAPE = {"n": 4, "c": 6, "h": 3, "w": 3}
TUTORIAL = ("batch", "layer", "instance", "group")
LONGEST = 64

_DEFAULT_LENGTH = {"N": 4, "C": 6, "S": 3}
_GROUPS = 2
_DIRECTION_OF = {
    **dict.fromkeys(("n", "b", "batch", "o"), "N"),
    **dict.fromkeys(("c", "ch", "channel", "channels", "i"), "C"),
    **dict.fromkeys(("h", "w", "t", "l", "s", "x", "y", "z", "time", "height", "width"), "S"),
}


@dataclass(frozen=True)
class Cube:
    """One normalization of one shape, laid out to be drawn.

    Attributes:
        title: its name in words, "" for a sentence.
        sentence: the pattern, with the sizes given.
        labels: for each direction N, C, (H, W) the axes along it, "" where there are none.
        statistic: integers of shape (N, C, H*W): the statistic that each cell belongs to.
        plan: what a kernel would be told.
        axes: the names of all axes of the array.
    """

    title: str
    sentence: str
    labels: tuple[str, str, str]
    statistic: NDArray[np.intp] = field(repr=False)
    plan: Plan
    axes: tuple[str, ...]

    @property
    def shared(self) -> NDArray[np.bool_]:
        """The cells that share the statistic of the first one."""
        return self.statistic == self.statistic[0, 0, 0]

    @property
    def caption(self) -> str:
        """How many statistics there are, and over how many elements each."""
        groups, count = self.plan.groups or 0, self.plan.count or 0
        return f"{groups} statistic{'s' * (groups != 1)} of {count} element{'s' * (count != 1)}"


def cubes(norms: Iterable[str], shape: Mapping[str, int], sizes: Mapping[str, int]) -> list[Cube]:
    """Several normalizations of one shape, each as `cube` lays it out.

    Raises:
        ValueError: also for a name in `shape` or `sizes` that is an axis of none of them.
    """
    made = [cube(norm, shape, sizes) for norm in norms]
    used = {name for one in made for name in one.axes}
    for what, names in (("shape", shape), ("size", sizes)):
        for name in names:
            if name not in used:
                raise ValueError(f"the {what} {name}={names[name]} names no axis; they are {', '.join(sorted(used))}")
    return made


def cube(norm: str, shape: Mapping[str, int] | None = None, sizes: Mapping[str, int] | None = None) -> Cube:
    """Lay one normalization out on a cube.

    Args:
        norm: a name of the catalogue or a sentence, sizes behind it if it needs some: `"group g=3"`.
        shape: the lengths of dimensions by the names of their axes; `c` is the whole of a dimension `(g c)`.
            What it leaves out is 4 along N, 6 along C and 3 along the rest.
        sizes: the lengths of axes in parentheses, as far as the sentence has them. All but the last are 2 if not given.

    Raises:
        PatternError: the sentence cannot be read.
        ValueError: a name, a size or a shape that does not fit.

    >>> cube("group").shared.nonzero()[1].max()  # the first of 2 groups of 6 channels
    np.int64(2)
    >>> cube("n [h] w c").caption
    '72 statistics of 3 elements'
    """
    text, own = words.split(norm)
    pattern = words.pattern(text)
    spec = words.spec(text, {name: size for name, size in (sizes or {}).items() if name in pattern.names} | own)
    lengths = _full_shape(shape or {})
    missing = [name for name in lengths if name not in pattern.names]
    dims: list[tuple[str, ...]] = []
    for dim in pattern.dims:
        dims += [(name,) for name in missing] if dim[0].name == ELLIPSIS else [tuple(axis.name for axis in dim)]
    directions = _directions(dims)
    defaults = {name: (shape or {}).get(name, _GROUPS) for dim in dims for name in dim[:-1]}
    known = defaults | dict(spec.sizes)
    spec = words.spec(text, {name: known[name] for name in pattern.names if name in known})
    array_shape = tuple(
        math.prod(known[name] for name in dim) if dim[-1] in known else lengths.get(dim[-1], _DEFAULT_LENGTH[direction])
        for dim, direction in zip(dims, directions, strict=True)
    )
    made = plan(spec, array_shape)
    along = {d: [i for i, direction in enumerate(directions) if direction == d] for d in DIRECTIONS}
    extents = [math.prod(array_shape[i] for i in along[d]) for d in DIRECTIONS]
    if max(extents) > LONGEST:
        raise ValueError(
            f"a cube of {' × '.join(map(str, extents))} cells is too fine to see; draw at most {LONGEST} a side"
        )
    flattened = [i for d in DIRECTIONS for i in along[d]]
    statistic = _statistics(made).reshape(array_shape).transpose(flattened).reshape(extents)
    names = tuple(dim[-1] for dim in dims)
    entry = CATALOGUE.get(text)
    return Cube(
        title=entry.title[0].upper() + entry.title[1:] if entry else "",
        sentence=" ".join([spec.text, *(f"{name}={size}" for name, size in spec.sizes)]),
        labels=tuple(", ".join(_label(names[i]) for i in along[d]) for d in DIRECTIONS),  # type: ignore[arg-type]
        statistic=statistic,
        plan=made,
        axes=tuple(name for dim in dims for name in dim),
    )


def _statistics(made: Plan) -> NDArray[np.intp]:
    """The number of its statistic for every element, in memory order: it counts up along the runs that are kept."""
    kept = [1 if run.reduced else run.known for run in made.runs]
    numbers = np.arange(math.prod(kept)).reshape(kept)
    return np.broadcast_to(numbers, [run.known for run in made.runs]).ravel()


def _full_shape(shape: Mapping[str, int]) -> dict[str, int]:
    for name, length in shape.items():
        if length < 1:
            raise ValueError(f"the length {name}={length} must be a positive whole number")
    if set(shape) <= set(DEFAULT_SHAPE):
        return {**DEFAULT_SHAPE, **shape}
    return {**{name: DEFAULT_SHAPE[name] for name in ("n", "c")}, **shape}


def _directions(dims: list[tuple[str, ...]]) -> list[str]:
    places = []
    for dim in dims:
        found = {_DIRECTION_OF.get(name, "") for name in dim}
        places.append("N" if "N" in found else "C" if len(dim) > 1 else found.pop())
    unplaced = [i for i, place in enumerate(places) if not place]
    if unplaced and "N" not in places:
        places[unplaced.pop(0)] = "N"
    if unplaced and "C" not in places:
        places[unplaced.pop()] = "C"
    return [place or "S" for place in places]


def _label(name: str) -> str:
    return name.upper() if len(name) == 1 else name
