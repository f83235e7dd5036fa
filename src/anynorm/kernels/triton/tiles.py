"""What the kernels do with a tile in registers: `kept` segments down, the elements that they sum across.

All arithmetic is float32 on differences that are small, scaled by a power of two into a range where nothing overflows
or vanishes; the mean and what chunks leave for one another are double.
"""

import triton
import triton.language as tl

# The largest finite factor: that of a constant group of large numbers, whose differences are exactly 0.
LARGEST = tl.constexpr(3.0e38)


@triton.jit
def exponent(values):
    """Of float32 from 0 on, as it stands in the bits: 127 for those in [1, 2)."""
    return values.to(tl.int32, bitcast=True) >> 23


@triton.jit
def powers(bits):
    """2^(bits - 127) and its inverse, both normal numbers."""
    bits = tl.minimum(tl.maximum(bits, 1), 253)
    return (bits << 23).to(tl.float32, bitcast=True), ((254 - bits) << 23).to(tl.float32, bitcast=True)


@triton.jit
def places(outer, segments_here, elements, segments, reduced, COLUMNS: tl.constexpr):
    """Where a tile's elements lie in the array; in 64 bits, which a large array needs."""
    if COLUMNS:
        matrix = (outer + tl.zeros([1, 1], tl.int64)) * reduced * segments
        return matrix + elements.to(tl.int64)[None, :] * segments + segments_here[:, None]
    else:
        row = (outer + tl.zeros_like(segments_here).to(tl.int64)) * segments + segments_here
        return row[:, None] * reduced + elements[None, :]


@triton.jit
def centred(xs, masks, count, top, REMOVES_MEAN: tl.constexpr):
    """The tile's differences from its mean, scaled.

    d = x * power - shift - residual, with a power of two that brings the largest element near 1, and at most 2^top;
    shift, the middle of the range, is what a constant is, so that its differences are exactly 0. The mean of the
    differences is taken off twice: the first time it may be as large as the range.

    Returns:
        d of each part, the sum of d * d, the mean in double, and the power with its inverse.
    """
    infinite = float("inf")
    low, lowest = tl.zeros_like(xs[0]) + infinite, infinite
    high, highest = tl.zeros_like(xs[0]) - infinite, -infinite
    for i in tl.static_range(len(xs)):
        if REMOVES_MEAN:
            below = tl.where(masks[i], xs[i], infinite)
            above = tl.where(masks[i], xs[i], -infinite)
        else:
            below = tl.where(masks[i], -tl.abs(xs[i]), 0.0)
            above = -below
        if xs[i].shape[1] == xs[0].shape[1]:
            low = tl.minimum(low, below)
            high = tl.maximum(high, above)
        else:
            lowest = tl.min(below, 1)
            highest = tl.max(above, 1)
    low = tl.minimum(tl.min(low, 1), lowest)
    high = tl.maximum(tl.max(high, 1), highest)
    power, inverse = powers(tl.minimum(254 - exponent(tl.maximum(-low, high)), 127 + top))
    ds = ()
    if REMOVES_MEAN:
        shift = low * power * 0.5 + high * power * 0.5
        total, rest = tl.zeros_like(xs[0]), 0.0
        for i in tl.static_range(len(xs)):
            d = tl.where(masks[i], xs[i] * power[:, None] - shift[:, None], 0.0)
            total, rest = added(total, rest, d)
        residual = tl.div_rn(tl.sum(total, 1) + rest, count + tl.zeros_like(shift))
        total, rest = tl.zeros_like(xs[0]), 0.0
        for i in tl.static_range(len(xs)):
            d = tl.where(masks[i], xs[i] * power[:, None] - shift[:, None] - residual[:, None], 0.0)
            total, rest = added(total, rest, d)
            ds = ds + (d,)
        last = tl.div_rn(tl.sum(total, 1) + rest, count + tl.zeros_like(shift))
        mean = (shift.to(tl.float64) + residual.to(tl.float64) + last.to(tl.float64)) * inverse.to(tl.float64)
        exact = ()
        for i in tl.static_range(len(xs)):
            exact = exact + (tl.where(masks[i], ds[i] - last[:, None], 0.0),)
        ds = exact
    else:
        mean = tl.zeros_like(power).to(tl.float64)
        for i in tl.static_range(len(xs)):
            ds = ds + (tl.where(masks[i], xs[i] * power[:, None], 0.0),)
    total, rest = tl.zeros_like(xs[0]), 0.0
    for i in tl.static_range(len(xs)):
        total, rest = added(total, rest, ds[i] * ds[i])
    return ds, tl.sum(total, 1) + rest, mean, power, inverse


@triton.jit
def added(total, rest, values):
    """The sum so far, with one more part: those as wide as the first element by element, so that few cross warps."""
    if values.shape[1] == total.shape[1]:
        return total + values, rest
    else:
        return total, rest + tl.sum(values, 1)


@triton.jit
def scaled(mean, rstd):
    """What h is made of: h = ((x * power - high) - low) * factor, no step of which leaves the range of float32.

    high + low is the mean: one float32 cannot carry it at offset 1e6.
    """
    size = tl.maximum(exponent(tl.abs(mean).to(tl.float32)), 254 - exponent(rstd.to(tl.float32)))
    power, inverse = powers(254 - size)
    centre = mean * power.to(tl.float64)
    high = centre.to(tl.float32)
    low = (centre - high.to(tl.float64)).to(tl.float32)
    factor = rstd * inverse.to(tl.float64)
    return power, high, low, tl.where(factor > LARGEST, LARGEST, factor).to(tl.float32)


@triton.jit
def normalized(x, power, high, low, factor):
    return (x * power[:, None] - high[:, None] - low[:, None]) * factor[:, None]


@triton.jit
def merged(values, owner, GROUPS: tl.constexpr, MERGES: tl.constexpr):
    """The sum over each group's segments."""
    if not MERGES:
        return values
    else:
        mine = owner[None, :] == tl.arange(0, GROUPS)[:, None]
        return tl.sum(tl.where(mine, values[None, :], 0.0), 1)


@triton.jit
def spread(values, owner, GROUPS: tl.constexpr, MERGES: tl.constexpr):
    """Each segment's from its group's."""
    if not MERGES:
        return values
    else:
        mine = owner[None, :] == tl.arange(0, GROUPS)[:, None]
        return tl.sum(tl.where(mine, values[:, None], 0.0), 0)
