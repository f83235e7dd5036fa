"""From a sentence and a shape to runs: what a kernel is told.

Every axis has two labels, reduced (its elements share a statistic) and affine (it carries scale and offset). Taken in
memory order, neighbours with equal labels are one *run*; reduced axes of length 1 vanish. Four runs suffice for every
norm of the catalogue in either layout, so a kernel needs extents and labels, never a layer's name, a rank or a layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby

from .pattern import Pattern
from .spec import NormSpec, affine_names

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Run:
    """Neighbouring axes with equal labels.

    The number of elements is `known` times the lengths of the array's dimensions `unknown`, which a framework with
    symbolic shapes learns only at run time.
    """

    known: int
    reduced: bool
    affine: bool
    unknown: tuple[int, ...] = ()

    @property
    def extent(self) -> int | None:
        return None if self.unknown else self.known


@dataclass(frozen=True)
class Small:
    """An array over some of the axes only: scale and offset over the affine ones, statistics over the kept ones.

    Attributes:
        shape: as users see it; None marks a length known only at run time.
        axes: the lengths of the single axes, in the order in which users have them.
        order: those axes in memory order of the large array.
    """

    shape: Shape
    axes: Shape
    order: tuple[int, ...]

    @cached_property
    def in_order(self) -> bool:
        return self.order == tuple(range(len(self.order)))


@dataclass(frozen=True)
class Plan:
    """Everything that a kernel needs to know of one normalization of one shape.

    Attributes:
        runs: outermost first, in memory order.
        order: the array's dimensions from outermost to innermost in memory.
        affine, kept: how scale and offset, and how statistics, lie on the runs.
        removes_mean, removes_scale: which moments are taken out.
    """

    runs: tuple[Run, ...]
    order: tuple[int, ...]
    affine: Small
    kept: Small
    removes_mean: bool
    removes_scale: bool

    def __hash__(self) -> int:
        # Once: caches ask for it at every call.
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.runs, self.order, self.affine, self.kept, self.removes_mean, self.removes_scale))

    @cached_property
    def count(self) -> int | None:
        """Elements that share one statistic."""
        return _product(run.extent for run in self.runs if run.reduced)

    @cached_property
    def groups(self) -> int | None:
        """Number of statistics."""
        return _product(run.extent for run in self.runs if not run.reduced)

    @cached_property
    def labels(self) -> str:
        """A letter for each run: k kept, r reduced; capital where it carries scale and offset.

        >>> plan(NormSpec.of("n [...] (g [c])", g=32), (16, 56, 56, 64)).labels
        'krKR'
        """
        return "".join("kKrR"[2 * run.reduced + run.affine] for run in self.runs)

    @cached_property
    def empty(self) -> bool:
        return any(run.extent == 0 for run in self.runs)

    @cached_property
    def in_order(self) -> bool:
        """Whether the array lies in memory in the order of its dimensions."""
        return self.order == tuple(range(len(self.order)))

    @cached_property
    def folds(self) -> bool:
        """Whether scale/sqrt(var) is smaller than the array, so that y = d*a + b with a and b made beforehand."""
        return any(run.reduced and not run.affine for run in self.runs)

    def __str__(self) -> str:
        words = []
        for run in self.runs:
            extent = "?" if run.extent is None else str(run.extent)
            words.append(("[" + extent + "]" if run.reduced else extent) + ("*" if run.affine else ""))
        return " ".join(words)


def plan(spec: NormSpec, shape: Shape, order: tuple[int, ...] | None = None) -> Plan:
    """The plan for an array of `shape`.

    Args:
        spec: the sentence.
        shape: the array's dimensions; None where one is not known.
        order: the dimensions from outermost to innermost in memory; None means as they stand.

    Raises:
        ValueError: the shape does not fit the sentence: rank, lengths, or groups that do not divide.

    >>> from anynorm.spec import NormSpec
    >>> print(plan(NormSpec.of("n [...] (g [c])", g=32), (16, 56, 56, 64)))
    16 [3136] 32* [2]*
    """
    return _plan(spec, tuple(shape), tuple(range(len(shape))) if order is None else order)


@lru_cache(maxsize=8192)
def _plan(spec: NormSpec, shape: Shape, order: tuple[int, ...]) -> Plan:
    expanded = spec.pattern.expand(len(shape))
    lengths, sources = _lengths(spec, expanded, shape)
    affine = affine_names(spec, expanded)
    labelled = [(axis.name, axis.shared, axis.name in affine) for d in order for axis in expanded.dims[d]]
    runs = []
    # A kept axis stays though its length be 1: a batch of 1 is summed in the same order as any other.
    visible = [(name, reduced, is_affine) for name, reduced, is_affine in labelled if lengths[name] != 1 or not reduced]
    for (reduced, is_affine), axes in groupby(visible, key=lambda a: (a[1], a[2])):
        names = [name for name, *_ in axes]
        known = math.prod(lengths[name] or 0 for name in names if lengths[name] is not None)
        unknown = tuple(sources[name] for name in names if lengths[name] is None)
        runs.append(Run(known, reduced, is_affine, unknown))
    in_memory = [name for name, *_ in labelled]
    kept = tuple(axis.name for axis in expanded.axes if not axis.shared)
    return Plan(
        runs=tuple(runs) or (Run(1, False, False),),
        order=order,
        affine=_small(affine, _affine_shape(spec, expanded, lengths), lengths, in_memory),
        kept=_small(kept, tuple(lengths[name] for name in kept), lengths, in_memory),
        removes_mean="mean" in spec.remove,
        removes_scale="scale" in spec.remove,
    )


def _small(names: tuple[str, ...], shape: Shape, lengths: dict[str, int | None], in_memory: list[str]) -> Small:
    ordered = sorted(names, key=in_memory.index)
    return Small(shape, tuple(lengths[name] for name in names), tuple(names.index(name) for name in ordered))


def _lengths(spec: NormSpec, expanded: Pattern, shape: Shape) -> tuple[dict[str, int | None], dict[str, int]]:
    """The length of every axis, and for each the dimension of the array that it comes from."""
    sizes = dict(spec.sizes)
    lengths: dict[str, int | None] = {}
    sources: dict[str, int] = {}
    for position, (dim, length) in enumerate(zip(expanded.dims, shape, strict=True)):
        free = [axis.name for axis in dim if axis.name not in sizes]
        given = math.prod(sizes[axis.name] for axis in dim if axis.name in sizes)
        joined = " ".join(axis.name for axis in dim)
        if len(free) > 1:
            raise ValueError(
                f'the lengths of {" and ".join(free)} in "({joined})" are open: give all but one, as in {free[0]}=8'
            )
        if length is None and len(dim) > 1:
            raise ValueError(
                f'dimension {position} is split as "({joined})" and must be known, but its length is unknown here; '
                "declare it in the input's shape"
            )
        if length is not None:
            _check_division(dim[0].name, joined, len(dim) > 1, length, given, free, sizes)
        for axis in dim:
            sources[axis.name] = position
            if axis.name in sizes:
                lengths[axis.name] = sizes[axis.name]
            else:
                lengths[axis.name] = None if length is None else length // given
    return lengths, sources


def _check_division(
    name: str, joined: str, is_joined: bool, length: int, given: int, free: list[str], sizes: dict[str, int]
) -> None:
    if not is_joined and not free and given != length:
        raise ValueError(f"the size {name}={sizes[name]} was given, but that dimension of the array has {length}")
    if not free and given != length:
        raise ValueError(f'the sizes given for "({joined})" make {given}, but that dimension has {length}')
    if free and (length % given or (length and length < given)):
        which = ", ".join(f"{n}={s}" for n, s in sizes.items() if n in joined.split())
        divisors = [d for d in range(1, min(length, 4096) + 1) if length % d == 0]
        raise ValueError(
            f'{length} channels cannot be split as "({joined})" with {which}: the number of channels must be a '
            f"multiple of the number of groups; {length} is divisible by {', '.join(map(str, divisors[:12]))}"
        )


def _affine_shape(spec: NormSpec, expanded: Pattern, lengths: dict[str, int | None]) -> Shape:
    if spec.affine is None:
        return ()
    dims: list[int | None] = []
    for dim in spec.affine.dims:
        if dim[0].name == "...":
            dims += [lengths[name] for name in affine_names(spec, expanded) if name.startswith("...")]
        else:
            dims.append(_product(lengths[axis.name] for axis in dim))
    return tuple(dims)


def _product(extents: Iterator[int | None]) -> int | None:
    total = 1
    for extent in extents:
        if extent is None:
            return None
        total *= extent
    return total


def blocks(plan: Plan, label: Callable[[Run], bool]) -> list[tuple[bool, list[int]]]:
    """Neighbouring runs with one answer to `label`, as (answer, run indices)."""
    return [(key, list(run)) for key, run in groupby(range(len(plan.runs)), key=lambda i: label(plan.runs[i]))]
