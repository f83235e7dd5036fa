"""From one kind of normalization to another, without a framework: what is kept, and how many groups there are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..convert.norm import Norm
from .folding import Refused

KINDS = ("batch", "group", "instance", "layer", "rms")
ANY = "any"
# As the paper has them.
GROUPS = 32
# Below so many elements a statistic follows each of them closely.
FEW = 16
# Groups have so many elements where they can. Of two, less their mean and over their deviation, only a sign is left.
ENOUGH, SIGNS = 8, 2


@dataclass(frozen=True)
class Wish:
    """What a norm is to become.

    Attributes:
        source: the kind of those that are swapped, or "any".
        target: the kind that they become.
        groups: how many groups are wanted; None for as many as there are, or 32.
    """

    source: str
    target: str
    groups: int | None = None

    def __post_init__(self) -> None:
        checked_kind(self.source)
        if self.target not in KINDS:
            raise ValueError(f'norms become one of {", ".join(KINDS)}, not "{self.target}"')
        if self.groups is not None and (type(self.groups) is not int or self.groups < 1):
            raise ValueError(f"groups must be a positive whole number, and it is {self.groups!r}")
        if self.groups is not None and self.target != "group":
            raise ValueError(f"groups={self.groups} is for norms that become group normalization, not {self.target}")


def checked_kind(kind: str) -> str:
    """A kind of norm, or "any"."""
    if kind not in (*KINDS, ANY):
        raise ValueError(f'there is no kind of norm called "{kind}"; there are {", ".join((*KINDS, ANY))}')
    return kind


def groups_for(channels: int, wanted: int, positions: int | None) -> int | None:
    """The divisor of `channels` nearest to `wanted` that leaves a statistic at least 8 elements, or 1 where none does.

    Args:
        positions: how many elements a channel has in one sample; None for a number of them that is unknown but not 1,
            so that two channels are enough.

    Returns:
        The number, the smaller one of two that are equally near; None where even one group has no more than 2 elements.

    >>> groups_for(48, 32, 49), groups_for(32, 32, 1), groups_for(32, 32, None), groups_for(6, 3, 1)
    (24, 4, 16, 1)
    """
    each, least = (1, 2) if positions is None else (positions, ENOUGH)
    divisors = [n for n in range(1, channels + 1) if channels % n == 0 and channels // n * each >= least]
    alone = 1 if channels * each > SIGNS else None
    return min(divisors, key=lambda n: (abs(n - wanted), n), default=alone)


def swapped(
    norm: Norm, wish: Wish, positions: int | None, *, alone: bool = False, **fresh: Any
) -> tuple[Norm, list[str]]:
    """The norm in its new kind, and what there is to say about it.

    Args:
        norm: as a dialect has read it.
        positions: how many elements a channel has in one sample, the least of all inputs; None where unknown.
        alone: whether an unknown number of them may be 1.
        **fresh: what a batch normalization without a past begins with: `keep` and `correction`.

    Raises:
        Refused: nothing of the input would be left, or the norm has no channels.
    """
    if norm.kind not in KINDS:
        raise Refused("a norm given as a sentence has no kind; put another layer in its place by hand")
    target = wish.target
    notes: list[str] = []
    axes, shape = norm.axes, norm.shape
    if len(axes) > 1 and not {norm.kind, target} <= {"layer", "rms"}:
        if norm.channels is None:
            raise Refused(f"it has parameters over the axes {axes}, and nothing says which one has the channels")
        axes, shape = (norm.position,), (shape[axes.index(norm.position)],)
    elif not axes:
        raise Refused("nothing says which axes have its channels")
    if norm.kind in ("layer", "rms") and target in ("group", "instance") and positions != 1:
        notes.append(
            "it saw each position by itself, and now all of a sample's (those behind axis 0) together: in a sequence "
            "later ones too"
        )
    known: dict[str, Any] = {"axes": axes, "shape": shape, "groups": None}
    if target == "group":
        channels = norm.features if shape == norm.shape else shape[0]
        wanted = wish.groups or (norm.groups if norm.kind == "group" else None) or GROUPS
        # Where nothing says the rank, there may be one position.
        known["groups"] = _groups(channels, wanted, positions, alone or norm.rank is None, notes)
    elif target == "instance":
        _enough(positions, "instance normalization has one statistic a channel and sample", notes)
    elif target in ("layer", "rms"):
        if (count := int(np.prod(shape))) <= (SIGNS if target == "layer" else 1):
            raise Refused(f"{target} normalization over {_channels(count)} would leave {_left(count)}")
    elif positions == 1:
        notes.append("each channel has one element a sample: in training, use batches of many samples")
    if target != norm.kind:
        known |= {"mean": None, "variance": None}
        if target == "batch":
            known |= {"mean": np.zeros(shape, np.float32), "variance": np.ones(shape, np.float32), **fresh}
            notes.append("new running statistics: reestimate them, or train")
    parameters = _parameters(norm, target, shape, notes)
    return replace(norm, kind=target, **known, **parameters), notes


def _groups(channels: int, wanted: int, positions: int | None, alone: bool, notes: list[str]) -> int:
    least = 1 if positions is None and alone else positions
    groups = groups_for(channels, wanted, least)
    if groups is None:
        raise Refused(
            f"{_channels(channels)} at one position, or at an unknown number of them, cannot be normalized in groups: "
            f"{_left(channels)} would be left{'; give probe=' * (positions is None)}"
        )
    count = None if least is None else channels // groups * least
    notes.append(f"{groups} group{'s' * (groups != 1)}" + (f" (asked: {wanted})" if groups != wanted else ""))
    if groups == channels > 1:
        notes.append("of one channel, an instance normalization")
    if positions is None:
        doubt = f"how many positions there are is unknown here: of one alone, a statistic is over {channels // groups}"
        notes.append(f"{doubt} elements" + "; a probe= that shows it may allow more groups" * (groups < wanted))
    elif count is not None and count < FEW:
        notes.append(f"each statistic is over {count} elements")
    return groups


def _channels(count: int) -> str:
    return "one channel" if count == 1 else f"{count} channels"


def _left(count: int) -> str:
    return "nothing of the input" if count == 1 else "nothing but the sign of a difference"


def _enough(positions: int | None, why: str, notes: list[str]) -> None:
    if positions is not None and positions <= SIGNS:
        raise Refused(f"{why}, over {positions} here: {_left(positions)} would be left")
    if positions is None:
        notes.append(f"{why}; how many elements those are is unknown here")
    elif positions < FEW:
        notes.append(f"each statistic is over {positions} elements")


def _parameters(norm: Norm, target: str, shape: tuple[int, ...], notes: list[str]) -> dict[str, Any]:
    """Scale and offset where they fit, else new ones."""
    found: dict[str, Any] = {"scale": norm.scale, "offset": norm.offset}
    if norm.kind == "rms" and target != "rms" and norm.scale is not None:
        found["offset"] = np.zeros(norm.scale.shape, norm.scale.dtype)
        notes.append("new offset")
    if target == "rms" and norm.kind != "rms" and norm.offset is not None:
        found["offset"] = None
        size = float(np.abs(norm.offset).max(initial=0))
        notes.append(f"its offset (largest {size:.2g}) is dropped" if size else "its offset, all zeros, is dropped")
    for name, start in (("scale", np.ones), ("offset", np.zeros)):
        values = found[name]
        if values is not None and values.shape != shape:
            notes.append(f"{name} of shape {values.shape} does not fit {shape}: new")
            found[name] = start(shape, values.dtype)
    return found
