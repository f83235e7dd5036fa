"""What the kernels compute around a normalization: a residual added before it, modulation and activation behind it.

    y = activation((h * scale + offset) * (1 + gain) + shift)

h is x or x + residual, normalized. Shift and gain are vectors over the channels, one of each for each sample; in the
gradient all of this is computed anew from h.
"""

import triton
import triton.language as tl


@triton.jit
def read(x_at, residual_at, total_at, at, mask):
    """x in float32; with a residual their sum, as it is rounded where it is written."""
    x = tl.load(x_at + at, mask=mask, other=0.0).to(tl.float32)
    if residual_at is not None:
        total = x + tl.load(residual_at + at, mask=mask, other=0.0).to(tl.float32)
        total = total.to(total_at.dtype.element_ty)
        tl.store(total_at + at, total, mask=mask)
        x = total.to(tl.float32)
    return x


@triton.jit
def affine(scale_at, offset_at, shift_at, gain_at, channel, outer, span, row, known):
    """What h is multiplied by, and what is added to that, before the activation.

    A sample has `span` outer indices, and its shift and gain lie `row` elements behind those of the sample before it.
    """
    factor = tl.zeros_like(channel).to(tl.float32) + 1.0
    summand = tl.zeros_like(factor)
    if scale_at is not None:
        factor = tl.load(scale_at + channel, mask=known, other=0.0).to(tl.float32)
    if offset_at is not None:
        summand = tl.load(offset_at + channel, mask=known, other=0.0).to(tl.float32)
    if gain_at is not None:
        here = (outer // span).to(tl.int64) * row + channel
        gain = tl.load(gain_at + here, mask=known, other=0.0).to(tl.float32) + 1.0
        factor *= gain
        summand = summand * gain + tl.load(shift_at + here, mask=known, other=0.0).to(tl.float32)
    return factor, summand


@triton.jit
def activated(m, ACTIVATION: tl.constexpr):
    """NaN stays NaN."""
    if ACTIVATION == "relu":
        m = tl.where(m <= 0.0, 0.0, m)
    elif ACTIVATION == "silu":
        m = m * tl.sigmoid(m)
    elif ACTIVATION == "gelu":
        m = m * _below(m)
    elif ACTIVATION == "gelu_tanh":
        m = m * tl.sigmoid(_cubic(m)[0])
    return m


@triton.jit
def before_activation(dy, h, factor, summand, mask, ACTIVATION: tl.constexpr):
    """The gradient of what goes into the activation."""
    if ACTIVATION is None:
        return dy
    else:
        # Where there is no element h may be anything, and so may be what comes of it.
        return tl.where(mask, dy * derivative(h * factor + summand, ACTIVATION), 0.0)


@triton.jit
def derivative(m, ACTIVATION: tl.constexpr):
    """Of the activation, at m."""
    if ACTIVATION == "relu":
        return tl.where(m <= 0.0, 0.0, 1.0)
    elif ACTIVATION == "silu":
        s = tl.sigmoid(m)
        return s * (1.0 + m * (1.0 - s))
    elif ACTIVATION == "gelu":
        # The density of the normal distribution.
        return _below(m) + m * (tl.exp(-0.5 * m * m) * 0.3989422804014327)
    else:
        u, slope = _cubic(m)
        s = tl.sigmoid(u)
        return s + m * s * (1.0 - s) * slope


@triton.jit
def _below(m):
    """How much of a normal distribution lies below m."""
    return 0.5 + 0.5 * tl.erf(m * 0.7071067811865476)


@triton.jit
def _cubic(m):
    """2 sqrt(2/pi) (m + 0.044715 m^3), whose sigmoid GELU's approximation multiplies m with, and its derivative.

    Beyond 20 the sigmoid is 0 or 1, and m^3 may overflow.
    """
    m = tl.minimum(tl.maximum(m, -20.0), 20.0)
    return 1.5957691216057308 * m * (1.0 + 0.044715 * m * m), 1.5957691216057308 * (1.0 + 0.134145 * m * m)
