"""NormSpec: one normalization, as a sentence about axes."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .pattern import ELLIPSIS, Pattern, PatternError, parse, tokens

MOMENTS = ("mean", "scale")


@dataclass(frozen=True)
class NormSpec:
    """Which axes share one mean and variance, which carry scale and offset, and which moments are removed.

    With S the elements that share a statistic with x, and eps given at the call:

        y = (x - mean_S) / sqrt(var_S + eps) * scale + offset            remove = ("mean", "scale")
        y = x / sqrt(mean_S(x^2) + eps) * scale + offset                 remove = ("scale",)
        y = (x - mean_S) * scale + offset                                remove = ("mean",)

    Make one with `NormSpec.of`. It is frozen and hashable, and prints as the call that makes it.

    >>> NormSpec.of("n [...] (g [c])", g=8)
    NormSpec.of('n [...] (g [c])', affine='(g c)', g=8)
    """

    text: str
    affine_text: str | None
    remove: tuple[str, ...] = MOMENTS
    sizes: tuple[tuple[str, int], ...] = ()

    @staticmethod
    def of(
        pattern: str,
        *,
        affine: str | Iterable[str] | None = None,
        remove: str | Iterable[str] = MOMENTS,
        **sizes: int,
    ) -> NormSpec:
        """Read and check a sentence.

        Args:
            pattern: the axes, those that share a statistic in square brackets.
            affine: the axes that carry scale and offset, in the pattern's order: `"(g c)"`, `"h"`, `"..."`.
                None means the axes in parentheses where there are some, else the axis called `c`, else none.
            remove: "mean", "scale" or both.
            **sizes: the length of an axis, as in `g=8`; all but one of each parentheses are needed.

        Raises:
            PatternError: the sentence cannot be read.
            ValueError: a size that is not positive or names no axis, a moment that is not one, affine axes that
                the pattern lacks or has in another order.
        """
        return spec_of(pattern, affine, remove, tuple(sizes.items()))

    @property
    def pattern(self) -> Pattern:
        return parse(self.text)

    @property
    def affine(self) -> Pattern | None:
        """The axes that carry scale and offset."""
        return None if self.affine_text is None else parse(self.affine_text)

    def encode(self) -> str:
        """The whole specification in one string, for operators whose arguments must be plain.

        >>> NormSpec.of("n [...] (g [c])", g=8).encode()
        'n [...] (g [c])|(g c)|mean scale|g=8'
        """
        return _encoded(self)

    @staticmethod
    def decode(code: str) -> NormSpec:
        """The way back of `encode`."""
        text, affine, remove, sizes = code.split("|")
        pairs = (word.split("=") for word in sizes.split())
        return spec_of(text, affine, remove.split(), tuple((name, int(size)) for name, size in pairs))

    def __repr__(self) -> str:
        words = [repr(self.text)]
        if self.affine_text is not None or _default_affine(self.pattern) is not None:
            words.append(f"affine={self.affine_text or ''!r}")
        if self.remove != MOMENTS:
            words.append(f"remove={self.remove!r}")
        words += [f"{name}={size}" for name, size in self.sizes]
        return f"NormSpec.of({', '.join(words)})"


@lru_cache(maxsize=4096)
def _encoded(spec: NormSpec) -> str:
    sizes = " ".join(f"{name}={size}" for name, size in spec.sizes)
    return "|".join((spec.text, spec.affine_text or "", " ".join(spec.remove), sizes))


def spec_of(
    pattern: str,
    affine: str | Iterable[str] | None,
    remove: str | Iterable[str],
    sizes: tuple[tuple[str, int], ...],
) -> NormSpec:
    """`NormSpec.of` without keywords."""
    if affine is not None and not isinstance(affine, str):
        affine = " ".join(affine)
    remove = (remove,) if isinstance(remove, str) else tuple(remove)
    # Checked before the cache, for which 4, 4.0 and True would be as good as 4 and 1.
    if any(type(size) is not int or size < 1 for _, size in sizes):
        sizes = tuple((name, _length(name, size)) for name, size in sizes)
    return _spec(pattern, affine, remove, sizes)


def _length(name: str, size: Any) -> int:
    try:
        length = operator.index(size)
    except TypeError:
        length = 0
    if isinstance(size, bool) or length < 1:
        hint = "; what is added to the variance is eps" if name == "epsilon" else ""
        raise ValueError(f"the size {name}={size!r} must be a positive whole number{hint}")
    return length


@lru_cache(maxsize=4096)
def _spec(text: str, affine_text: str | None, remove: tuple[str, ...], sizes: tuple[tuple[str, int], ...]) -> NormSpec:
    pattern = parse(text)
    if not any(axis.shared for axis in pattern.axes):
        raise PatternError(
            'no axis stands in square brackets, so no elements share a statistic; mark some, as in "n [...] c"',
            text,
            0,
        )
    if not remove or set(remove) - set(MOMENTS):
        raise ValueError(f'remove takes "mean", "scale" or both, not {remove!r}')
    for name, size in sizes:
        if name not in pattern.names:
            raise ValueError(
                f'the size {name}={size} names no axis of "{text}"; its axes are {", ".join(pattern.names)}'
            )
    affine = _default_affine(pattern) if affine_text is None else _affine(affine_text, pattern, text)
    removed = tuple(m for m in MOMENTS if m in remove)
    return NormSpec(str(pattern), None if affine is None else str(affine), removed, tuple(sorted(sizes)))


def _default_affine(pattern: Pattern) -> Pattern | None:
    for dim in pattern.dims:
        if len(dim) > 1 or dim[0].name == "c":
            return parse(str(Pattern((dim,))).replace("[", "").replace("]", ""))
    return None


def _affine(affine_text: str, pattern: Pattern, text: str) -> Pattern | None:
    if not affine_text.strip():
        return None
    affine = parse(affine_text)
    if any(axis.shared for axis in affine.axes):
        raise PatternError("affine takes no square brackets", affine_text, affine_text.index("["))
    order = {name: i for i, name in enumerate(pattern.names)}
    last = -1
    places = dict(tokens(affine_text))
    for name in affine.names:
        at = places[name]
        if name not in order:
            raise PatternError(f'"{name}" is no axis of the pattern "{text}"', affine_text, at)
        if order[name] < last:
            raise PatternError(f'write the affine axes in the order of the pattern "{text}"', affine_text, at)
        last = order[name]
    return affine


def affine_names(spec: NormSpec, expanded: Pattern) -> tuple[str, ...]:
    """The affine axes with `...` written out, in the order in which scale and offset have them."""
    if spec.affine is None:
        return ()
    names: list[str] = []
    for name in spec.affine.names:
        if name == ELLIPSIS:
            names += [axis.name for axis in expanded.axes if axis.name.startswith(ELLIPSIS)]
        else:
            names.append(name)
    return tuple(names)
