"""The notation: which axes an array has, and which of them share one mean and variance.

    "n [...] (g [c])"      group normalization, channels last

A name is an axis, `...` is any number of axes, parentheses join axes into one dimension of the array, and square
brackets mark the axes whose elements share a statistic. Names and parentheses are einops's, the brackets einx's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

ELLIPSIS = "..."
_TOKEN = re.compile(r"\s*(?:(\.\.\.|[A-Za-z_][A-Za-z0-9_]*|[\[\]()])|(\S))")


class PatternError(ValueError):
    """A sentence that cannot be read; the message shows the place with a caret. It is a ValueError.

    >>> parse("n [h] h")
    Traceback (most recent call last):
    anynorm.pattern.PatternError: the axis "h" stands twice; each axis has one name of its own
        n [h] h
              ^
    """

    def __init__(self, message: str, text: str, at: int) -> None:
        super().__init__(f"{message}\n    {text}\n    {' ' * at}^")


@dataclass(frozen=True)
class Axis:
    """One named axis; `shared` where its elements share a statistic (it stands in square brackets)."""

    name: str
    shared: bool


@dataclass(frozen=True)
class Pattern:
    """A parsed sentence: one tuple of axes for each dimension of the array, outermost first."""

    dims: tuple[tuple[Axis, ...], ...]

    @property
    def axes(self) -> tuple[Axis, ...]:
        return tuple(axis for dim in self.dims for axis in dim)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(axis.name for axis in self.axes)

    def expand(self, rank: int) -> Pattern:
        """The same sentence with `...` written out as axes `...0`, `...1`, … so that it has `rank` dimensions.

        >>> [axis.name for axis in parse("n [...] c").expand(4).axes]
        ['n', '...0', '...1', 'c']
        """
        dims: list[tuple[Axis, ...]] = []
        for dim in self.dims:
            if dim[0].name == ELLIPSIS:
                missing = rank - (len(self.dims) - 1)
                dims += [(Axis(f"{ELLIPSIS}{i}", dim[0].shared),) for i in range(missing)]
            else:
                dims.append(dim)
        if len(dims) != rank:
            fixed = len(self.dims) - (ELLIPSIS in self.names)
            need = f"at least {fixed}" if ELLIPSIS in self.names else f"{fixed}"
            raise ValueError(
                f'the pattern "{self}" describes an array of {need} dimension{"s" * (need != "1")}, '
                f"and this one has {rank}"
            )
        return Pattern(tuple(dims))

    def __str__(self) -> str:
        words = []
        for joined, dims in groupby(self.dims, key=lambda dim: len(dim) > 1):
            if joined:
                words += [f"({_bracketed(dim)})" for dim in dims]
            else:
                words.append(_bracketed([dim[0] for dim in dims]))
        return " ".join(words)


def _bracketed(axes: Iterable[Axis]) -> str:
    runs = ((shared, " ".join(axis.name for axis in run)) for shared, run in groupby(axes, key=lambda a: a.shared))
    return " ".join(f"[{names}]" if shared else names for shared, names in runs)


@lru_cache(maxsize=4096)
def parse(text: str) -> Pattern:
    """Read a sentence.

    Args:
        text: the sentence, such as `"n [...] (g [c])"`.

    Raises:
        PatternError: a sentence that cannot be read, with a caret under the place.

    >>> parse("n [...] (g [c])").names
    ('n', '...', 'g', 'c')
    >>> parse("n [h w c")
    Traceback (most recent call last):
    anynorm.pattern.PatternError: this "[" is never closed
        n [h w c
          ^
    """
    if not isinstance(text, str):
        raise TypeError(f'a pattern is a string such as "n [...] (g [c])", not {type(text).__name__}')
    dims: list[tuple[Axis, ...]] = []
    seen: set[str] = set()
    group: list[Axis] | None = None
    bracket = paren = -1
    bracket_in_paren = False
    bracket_filled = False
    for token, at in tokens(text):
        if token == "[":
            if bracket >= 0:
                raise PatternError("square brackets do not nest", text, at)
            bracket, bracket_in_paren, bracket_filled = at, group is not None, False
        elif token == "]":
            if bracket < 0:
                raise PatternError('this "]" closes no "["', text, at)
            if bracket_in_paren != (group is not None):
                raise PatternError("brackets and parentheses cross here; close the inner one first", text, at)
            if not bracket_filled:
                raise PatternError("there is no axis between these brackets", text, bracket)
            bracket = -1
        elif token == "(":
            if group is not None:
                raise PatternError("parentheses do not nest", text, at)
            group, paren = [], at
        elif token == ")":
            if group is None:
                raise PatternError('this ")" closes no "("', text, at)
            if bracket >= 0 and bracket_in_paren:
                raise PatternError("brackets and parentheses cross here; close the inner one first", text, at)
            if not group:
                raise PatternError("there is no axis between these parentheses", text, paren)
            dims.append(tuple(group))
            group = None
        else:
            if token == ELLIPSIS and group is not None:
                raise PatternError('"..." cannot stand inside parentheses', text, at)
            if token in seen:
                what = '"..." stands twice' if token == ELLIPSIS else f'the axis "{token}" stands twice'
                raise PatternError(f"{what}; each axis has one name of its own", text, at)
            seen.add(token)
            bracket_filled = True
            axis = Axis(token, bracket >= 0)
            if group is None:
                dims.append((axis,))
            else:
                group.append(axis)
    if group is not None:
        raise PatternError('this "(" is never closed', text, paren)
    if bracket >= 0:
        raise PatternError('this "[" is never closed', text, bracket)
    if not dims:
        raise PatternError("the pattern is empty; name the axes of the array", text, 0)
    return Pattern(tuple(dims))


def tokens(text: str) -> Iterator[tuple[str, int]]:
    """The words and brackets of a sentence, each with its place."""
    for match in _TOKEN.finditer(text):
        token, stray = match.groups()
        if stray is not None:
            hint = "; the ellipsis is three dots" if stray == "." else ""
            hint = "; sizes are given apart, as in g=8" if stray.isdigit() else hint
            raise PatternError(f'"{stray}" cannot stand in a pattern{hint}', text, match.start(2))
        yield token, match.start(1)
