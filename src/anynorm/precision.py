"""The one rule for statistics: in which type they are computed, and how their range is kept.

Half-precision and float32 input have float32 statistics, float64 input float64 ones. What float32 alone would lose is
kept by working on differences x * power - shift, where `power` is a power of two, so that the product is exact, and
`shift` comes from inside the group's range, so that the differences are small and their rounding negligible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

STATISTICS = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}


@dataclass(frozen=True)
class Format:
    """A binary floating-point type.

    Attributes:
        bits: the integer type of its size.
        mantissa, bias: where its exponent lies, and what is added to it.
        tiny: the smallest normal number.
        low, high: variances between these were computed without harm from underflow or overflow.
    """

    bits: str
    mantissa: int
    bias: int
    tiny: float
    low: float
    high: float


FORMATS = {
    "float32": Format("int32", 23, 127, 2.0**-126, 2.0**-80, 2.0**100),
    "float64": Format("int64", 52, 1023, 2.0**-1022, 2.0**-800, 2.0**900),
}

# Statistics about 0 are good when the mean lies within this many standard deviations of it: the rounding of the mean
# is then 4 * 2^-24 = 2.4e-7 standard deviations in float32, within the 1e-6 that is promised.
GOOD_SHIFT = 4.0


def statistics_dtype(dtype: str) -> str:
    """The type of the statistics of an array of type `dtype`.

    Raises:
        TypeError: `dtype` is not a floating-point type that can be normalized.

    >>> statistics_dtype("bfloat16")
    'float32'
    """
    if dtype not in STATISTICS:
        raise TypeError(f"cannot normalize an array of type {dtype}: cast it first, to one of {', '.join(STATISTICS)}")
    return STATISTICS[dtype]


def checked_eps(eps: float) -> float:
    """`eps` as a float, or an error that says what is wrong with it."""
    try:
        if isinstance(eps, bool | str):
            raise TypeError
        value = float(eps)
    except (TypeError, ValueError):
        raise TypeError(f"eps must be a number, not {eps!r}") from None
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"eps must be finite and not negative, and it is {eps!r}; 1e-5 is usual")
    return value


def largest_exponent(eps: float, fmt: Format) -> int:
    """The exponent that `power` may not exceed, so that eps * power^2 stays near 1 and cannot overflow."""
    limit = fmt.bias - 1
    return limit if eps == 0 else max(-limit, min(limit, math.floor(-math.log2(eps) / 2)))
