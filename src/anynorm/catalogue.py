"""Every named normalization: its sentence, and the paper that it comes from.

Adding a norm that fits the sentence is one entry here. The functions below write the sentence of a layer that is
described by axis numbers, as Keras and TensorFlow Addons do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from .spec import MOMENTS, NormSpec


@dataclass(frozen=True)
class Entry:
    """A named normalization.

    Attributes:
        pattern: the sentence, channels last.
        pattern_first: the sentence, channels first, where it differs.
        affine: the axes with scale and offset; None as `NormSpec.of` chooses, "" for none.
        remove: the moments taken out.
        title: its name in words.
        paper: authors, year and arXiv number.
        sizes: lengths without which it cannot be drawn, as an example.
    """

    pattern: str
    title: str
    paper: str
    pattern_first: str | None = None
    affine: str | None = None
    remove: tuple[str, ...] = MOMENTS
    sizes: tuple[tuple[str, int], ...] = ()

    def spec(self, channels_first: bool = False, **sizes: int) -> NormSpec:
        pattern = self.pattern_first if channels_first and self.pattern_first else self.pattern
        return NormSpec.of(pattern, affine=self.affine, remove=self.remove, **sizes)


CATALOGUE: dict[str, Entry] = {
    "batch": Entry("[...] c", "batch normalization", "Ioffe, Szegedy 2015, arXiv:1502.03167", "[n] c [...]"),
    "layer": Entry("n [...]", "layer normalization", "Ba et al. 2016, arXiv:1607.06450", affine=""),
    "layer_last": Entry("... [c]", "layer normalization, last axis", "Ba et al. 2016, arXiv:1607.06450"),
    "layer_channels": Entry(
        "... [c]", "layer normalization, channels", "Liu et al. 2022, arXiv:2201.03545", "n [c] ..."
    ),
    "instance": Entry("n [...] c", "instance normalization", "Ulyanov et al. 2016, arXiv:1607.08022", "n c [...]"),
    "group": Entry(
        "n [...] (g [c])",
        "group normalization",
        "Wu, He 2018, arXiv:1803.08494",
        "n (g [c]) [...]",
        sizes=(("g", 2),),
    ),
    "rms": Entry("... [c]", "RMS normalization", "Zhang, Sennrich 2019, arXiv:1910.07467", remove=("scale",)),
    "rms_channels": Entry(
        "... [c]",
        "RMS normalization, channels",
        "Zhang, Sennrich 2019, arXiv:1910.07467",
        "n [c] ...",
        remove=("scale",),
    ),
    "filter_response": Entry(
        "n [...] c",
        "filter response normalization",
        "Singh, Krishnan 2019, arXiv:1911.09737",
        "n c [...]",
        remove=("scale",),
    ),
    "positional": Entry(
        "... [c]", "positional normalization", "Li et al. 2019, arXiv:1907.04312", "n [c] ...", affine=""
    ),
    "mean_only_batch": Entry(
        "[...] c",
        "mean-only batch normalization",
        "Salimans, Kingma 2016, arXiv:1602.07868",
        "[n] c [...]",
        remove=("mean",),
    ),
    "weight": Entry(
        "[h w i] o",
        "weight normalization of a kernel",
        "Salimans, Kingma 2016, arXiv:1602.07868",
        affine="o",
        remove=("scale",),
    ),
    "weight_standardization": Entry(
        "[h w i] o", "weight standardization of a kernel", "Qiao et al. 2019, arXiv:1903.10520", affine=""
    ),
    "tutorial_layer": Entry(
        "n [h] w c", "the tutorial's LayerNormalization(axis=1)", "Ba et al. 2016, arXiv:1607.06450", affine="h"
    ),
}


def normalized_axes(axis: int | Iterable[int], rank: int) -> tuple[int, ...]:
    """Axis numbers, negative ones counted from the end, as sorted positive ones.

    Raises:
        ValueError: an axis out of range or named twice.
    """
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if not axes:
        raise ValueError("axis is empty; name at least one axis")
    for a in axes:
        if isinstance(a, bool) or not isinstance(a, int):
            raise TypeError(f"an axis is a whole number, and one of {list(axes)} is {a!r}")
        if not -rank <= a < rank:
            raise ValueError(f"axis {a} is out of range for an input with {rank} dimensions: {-rank} to {rank - 1}")
    positive = sorted(a % rank for a in axes)
    if len(set(positive)) < len(positive):
        raise ValueError(f"axis {list(axes)} names one axis of an input with {rank} dimensions twice")
    return tuple(positive)


def over(
    reduced: int | Iterable[int], carriers: int | Iterable[int], rank: int, remove: Iterable[str] = MOMENTS
) -> NormSpec:
    """Normalize over the axes `reduced`; the axes `carriers` have scale and offset.

    >>> over((1, 2), -1, rank=4)
    NormSpec.of('a0 [a1 a2] a3', affine='a3')
    """
    return _over(normalized_axes(reduced, rank), normalized_axes(carriers, rank), rank, remove)


def layer(axis: int | Iterable[int], rank: int, remove: Iterable[str] = MOMENTS) -> NormSpec:
    """Normalize over the given axes, which carry scale and offset.

    >>> layer(1, rank=4)
    NormSpec.of('a0 [a1] a2 a3', affine='a1')
    """
    axes = normalized_axes(axis, rank)
    return _over(axes, axes, rank, remove)


def last(lengths: Iterable[int], remove: Iterable[str] = MOMENTS) -> NormSpec:
    """Normalize over the last axes, which have the given lengths and carry scale and offset.

    >>> last((8, 5))
    NormSpec.of('... [a0 a1]', affine='a0 a1', a0=8, a1=5)
    """
    sizes = {f"a{i}": length for i, length in enumerate(lengths)}
    if not sizes:
        raise ValueError("the normalized shape is empty; name the length of at least one axis")
    names = " ".join(sizes)
    return NormSpec.of(f"... [{names}]", affine=names, remove=remove, **sizes)


def batch(axis: int | Iterable[int], rank: int, remove: Iterable[str] = MOMENTS) -> NormSpec:
    """Normalize over all axes but the given ones, which carry scale and offset.

    >>> batch(-1, rank=3)
    NormSpec.of('[a0 a1] a2', affine='a2')
    """
    axes = normalized_axes(axis, rank)
    return _over(tuple(i for i in range(rank) if i not in axes), axes, rank, remove)


def _over(reduced: tuple[int, ...], carriers: tuple[int, ...], rank: int, remove: Iterable[str] = MOMENTS) -> NormSpec:
    return _of_axes(reduced, carriers, rank, remove if isinstance(remove, str) else tuple(remove))


# Layers ask at every call.
@lru_cache(maxsize=1024)
def _of_axes(reduced: tuple[int, ...], carriers: tuple[int, ...], rank: int, remove: str | tuple[str, ...]) -> NormSpec:
    pattern = " ".join(f"[a{i}]" if i in reduced else f"a{i}" for i in range(rank))
    return NormSpec.of(pattern, affine=" ".join(f"a{i}" for i in carriers), remove=remove)


def filter_response(axis: Iterable[int] | None, rank: int) -> NormSpec:
    """Divide by the root mean square over the given spatial axes of each sample; None means all between first and last.

    The last axis that is not given carries scale and offset.

    >>> filter_response([2, 3], rank=4)
    NormSpec.of('a0 a1 [a2 a3]', affine='a1', remove=('scale',))
    """
    if axis is None and rank < 3:
        raise ValueError(f"an input of {rank} dimensions has no spatial axes between the batch and the channels")
    axes = normalized_axes(range(1, rank - 1) if axis is None else axis, rank)
    if axes[0] == 0:
        raise ValueError("axis 0 is the batch, and the filter response is one of a sample; name spatial axes")
    kept = [i for i in range(1, rank) if i not in axes]
    if not kept:
        raise ValueError(f"axis {list(axes)} leaves no channels in an input of {rank} dimensions; name spatial axes")
    return _over(axes, (kept[-1],), rank, remove=("scale",))


def group(axis: int | Iterable[int], rank: int, groups: int | None, kept: tuple[int, ...] = (0,)) -> NormSpec:
    """Normalize each sample over groups of channels and everything that is no channel.

    Args:
        axis: the channels. Of several axes the first is the one split into groups.
        rank: number of dimensions, the batch in front.
        groups: into how many; None makes every channel its own (instance normalization).
        kept: the axes besides the channels that have statistics of their own: the batch.

    >>> group(-1, rank=4, groups=8)
    NormSpec.of('n [a1 a2] (g [a3])', affine='(g a3)', g=8)
    >>> group(-1, rank=4, groups=None)
    NormSpec.of('n [a1 a2] a3', affine='a3')
    >>> group(-1, rank=4, groups=8, kept=(0, 1))
    NormSpec.of('n a1 [a2] (g [a3])', affine='(g a3)', g=8)
    """
    axes = normalized_axes(axis, rank)
    batch_axes = normalized_axes(kept, rank) if kept else ()
    if both := set(axes).intersection(batch_axes):
        raise ValueError(
            f"axis {min(both)} is the batch, and group normalization works within a sample; name the channel axis"
        )
    return _of_groups(axes, batch_axes, rank, groups)


# By types too: True groups are refused, whatever 1 group was before.
@lru_cache(maxsize=1024, typed=True)
def _of_groups(axes: tuple[int, ...], batch_axes: tuple[int, ...], rank: int, groups: int | None) -> NormSpec:
    split = axes[0]
    names = [f"a{i}" if i in axes + batch_axes else f"[a{i}]" for i in range(rank)]
    if 0 in batch_axes:
        names[0] = "n"
    carriers = [f"a{i}" for i in axes]
    if groups is None:
        return NormSpec.of(" ".join(names), affine=" ".join(carriers))
    names[split], carriers[0] = f"(g [a{split}])", f"(g a{split})"
    for i in axes[1:]:
        names[i] = f"[a{i}]"
    return NormSpec.of(" ".join(names), affine=" ".join(carriers), g=groups)
