"""A normalization as people write it on one line: a catalogue name or a sentence, with sizes behind it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..catalogue import CATALOGUE
from ..pattern import Pattern, parse
from ..spec import MOMENTS, NormSpec, spec_of

_SIZE = re.compile(r"\s+([A-Za-z_]\w*)=(\S*)$")


def split(words: str) -> tuple[str, dict[str, int]]:
    """The name or sentence, and the sizes behind it.

    >>> split("n [...] (g [c]) g=3")
    ('n [...] (g [c])', {'g': 3})
    """
    sizes: dict[str, int] = {}
    text = words.rstrip()
    while match := _SIZE.search(text):
        name, value = match.groups()
        if not value.isdecimal():
            raise ValueError(f'the size "{name}={value}" must be a whole number, as in {name}=3')
        sizes[name] = int(value)
        text = text[: match.start()].rstrip()
    return text, sizes


def pattern(text: str) -> Pattern:
    """The sentence of a name, or the sentence itself, as a pattern.

    Raises:
        ValueError: a single word that is no name.
        PatternError: a sentence that cannot be read.
    """
    if text in CATALOGUE:
        return parse(CATALOGUE[text].pattern)
    if text.isidentifier():
        raise ValueError(f'no normalization is called "{text}"; the names are {", ".join(CATALOGUE)}')
    return parse(text)


def spec(text: str, sizes: Mapping[str, int]) -> NormSpec:
    """The specification of a name or a sentence; a name brings its example's sizes, and `sizes` go before them.

    >>> spec("group", {"g": 8})
    NormSpec.of('n [...] (g [c])', affine='(g c)', g=8)
    """
    pattern(text)
    if text in CATALOGUE:
        entry = CATALOGUE[text]
        return spec_of(entry.pattern, entry.affine, entry.remove, tuple({**dict(entry.sizes), **sizes}.items()))
    return spec_of(text, None, MOMENTS, tuple(sizes.items()))
