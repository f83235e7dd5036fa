"""Groups that a program holds in registers: x is read once, and so is dy."""

import triton
import triton.language as tl

from .epilogue import activated, affine, before_activation, read
from .tiles import added, centred, normalized, places, scaled


@triton.jit
def _inside(s, segments, KEPT: tl.constexpr):
    """Which of a tile's segments there are; tiles of one are as many as segments."""
    if KEPT == 1:
        return tl.full([1], True, tl.int1)
    else:
        return s < segments


@triton.jit
def _there(inside, elements, reduced, FULL: tl.constexpr):
    """Which of a part's elements there are; where the parts hold no more than a group (FULL), all of it."""
    if FULL:
        return inside[:, None]
    else:
        return inside[:, None] & (elements < reduced)[None, :]


@triton.jit
def forward(
    x_at, residual_at, total_at, y_at, scale_at, offset_at, shift_at, gain_at, mean_at, variance_at, saved_at,
    segments, reduced, tiles, divisor, modulus, each, span, row, root, rstd_of_constant, top,
    PARTS: tl.constexpr, FULL: tl.constexpr, KEPT: tl.constexpr, COLUMNS: tl.constexpr, AFFINE: tl.constexpr,
    ACTIVATION: tl.constexpr, REMOVES_MEAN: tl.constexpr, REMOVES_SCALE: tl.constexpr,
):  # fmt: skip
    """y, mean, variance and saved, each where it is asked for; and x + residual, which then stands for x.

    A group is a segment of `reduced` elements, or in rows `each` stretches of reduced / each elements with one scale
    and one offset.
    """
    outer, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    s = tile * KEPT + tl.arange(0, KEPT)
    inside = _inside(s, segments, KEPT)
    xs = ()
    masks = ()
    for i in tl.static_range(len(PARTS)):
        q = i * PARTS[0] + tl.arange(0, PARTS[i])
        mask = _there(inside, q, reduced, FULL)
        at = places(outer, s, q, segments, reduced, COLUMNS)
        xs = xs + (read(x_at, residual_at, total_at, at, mask),)
        masks = masks + (mask,)
    ds, square, mean, power, inverse = centred(xs, masks, reduced * 1.0, top, REMOVES_MEAN)

    variance = tl.div_rn(square, reduced * 1.0 + tl.zeros_like(square))
    if REMOVES_SCALE:
        eps = power * root
        factor = tl.div_rn(tl.zeros_like(square) + 1.0, tl.sqrt_rn(variance + eps * eps))
        # Scaled, eps may vanish beside a constant; behind x that vanishes beside eps, so does the variance.
        constant = tl.minimum(rstd_of_constant * inverse.to(tl.float64), 3.0e38).to(tl.float32)
        factor = tl.where(square == 0.0, constant, factor)
        rstd = tl.where(square == 0.0, rstd_of_constant, factor.to(tl.float64) * power.to(tl.float64))
    else:
        factor = inverse
        rstd = tl.zeros_like(mean) + 1.0
    group = outer * segments + s
    if mean_at is not None:
        tl.store(mean_at + group, mean.to(tl.float32), mask=inside)
        tl.store(variance_at + group, variance * inverse * inverse, mask=inside)
    if saved_at is not None:
        tl.store(saved_at + group * 2, mean, mask=inside)
        tl.store(saved_at + group * 2 + 1, rstd, mask=inside)

    if y_at is not None:
        for i in tl.static_range(len(PARTS)):
            q = i * PARTS[0] + tl.arange(0, PARTS[i])
            if AFFINE == "kept":
                a, known = ((s // divisor) % modulus)[:, None], inside[:, None]
            elif AFFINE == "reduced":
                a, known = q[None, :], (q < reduced)[None, :]
            elif AFFINE == "stretches":
                # No integer division for each element: as far as a row is held, this one is exact.
                a = (q.to(tl.float32) + 0.5) * (each * 1.0 / reduced)
                a, known = ((s * each) % modulus)[:, None] + a.to(tl.int32)[None, :], masks[i]
            scale, offset = affine(scale_at, offset_at, shift_at, gain_at, a, outer, span, row, known)
            y = activated(ds[i] * factor[:, None] * scale + offset, ACTIVATION)
            at = places(outer, s, q, segments, reduced, COLUMNS)
            tl.store(y_at + at, y.to(y_at.dtype.element_ty), mask=masks[i])


@triton.jit
def backward(
    x_at, dy_at, dtotal_at, scale_at, offset_at, shift_at, gain_at, saved_at, dx_at, sums_at,
    segments, reduced, tiles, together, programs, length, divisor, modulus, span, row,
    PARTS: tl.constexpr, FULL: tl.constexpr, KEPT: tl.constexpr, COLUMNS: tl.constexpr, AFFINE: tl.constexpr,
    ACTIVATION: tl.constexpr, SHARED: tl.constexpr, REMOVES_MEAN: tl.constexpr, REMOVES_SCALE: tl.constexpr,
):  # fmt: skip
    """dx, and what the gradients of scale, offset, shift and gain are summed from.

    Those are `length` sums of h * dm and as many of dm, the gradient before the activation: a sum a group where scale
    and offset lie on what is kept, a row a program where they lie on what is reduced; then `programs` share the tiles,
    `together` of them (SHARED).
    """
    first = tl.program_id(0)
    if SHARED:
        dscales = ()
        doffsets = ()
        for i in tl.static_range(len(PARTS)):
            dscales = dscales + (tl.zeros([KEPT, PARTS[i]], tl.float32),)
            doffsets = doffsets + (tl.zeros([KEPT, PARTS[i]], tl.float32),)
        begin = first // programs * together
        for index in range(begin + first % programs, begin + together, programs):
            hs, dms = _gradient(
                x_at, dy_at, dtotal_at, scale_at, offset_at, shift_at, gain_at, saved_at, dx_at, sums_at, index,
                segments, reduced, tiles, length, divisor, modulus, span, row,
                PARTS, FULL, KEPT, COLUMNS, AFFINE, ACTIVATION, REMOVES_MEAN, REMOVES_SCALE,
            )  # fmt: skip
            more_scales = ()
            more_offsets = ()
            for i in tl.static_range(len(PARTS)):
                more_scales = more_scales + (dscales[i] + hs[i] * dms[i],)
                more_offsets = more_offsets + (doffsets[i] + dms[i],)
            dscales = more_scales
            doffsets = more_offsets
        for i in tl.static_range(len(PARTS)):
            q = i * PARTS[0] + tl.arange(0, PARTS[i])
            at = sums_at + first.to(tl.int64) * reduced + q
            tl.store(at, tl.sum(dscales[i], 0), mask=q < reduced)
            tl.store(at + length, tl.sum(doffsets[i], 0), mask=q < reduced)
    else:
        _gradient(
            x_at, dy_at, dtotal_at, scale_at, offset_at, shift_at, gain_at, saved_at, dx_at, sums_at, first,
            segments, reduced, tiles, length, divisor, modulus, span, row,
            PARTS, FULL, KEPT, COLUMNS, AFFINE, ACTIVATION, REMOVES_MEAN, REMOVES_SCALE,
        )  # fmt: skip


@triton.jit
def _gradient(
    x_at, dy_at, dtotal_at, scale_at, offset_at, shift_at, gain_at, saved_at, dx_at, sums_at, index,
    segments, reduced, tiles, length, divisor, modulus, span, row,
    PARTS: tl.constexpr, FULL: tl.constexpr, KEPT: tl.constexpr, COLUMNS: tl.constexpr, AFFINE: tl.constexpr,
    ACTIVATION: tl.constexpr, REMOVES_MEAN: tl.constexpr, REMOVES_SCALE: tl.constexpr,
):  # fmt: skip
    """dx of one tile; h and dm of its parts."""
    outer, tile = index // tiles, index % tiles
    s = tile * KEPT + tl.arange(0, KEPT)
    inside = _inside(s, segments, KEPT)
    group = outer * segments + s
    mean = tl.load(saved_at + group * 2, mask=inside, other=0.0)
    rstd = tl.load(saved_at + group * 2 + 1, mask=inside, other=0.0)
    power, high, low, factor = scaled(mean, rstd)
    hs = ()
    dms = ()
    dm_1, dm_1_rest = tl.zeros([KEPT, PARTS[0]], tl.float32), 0.0
    dm_h, dm_h_rest = tl.zeros([KEPT, PARTS[0]], tl.float32), 0.0
    if AFFINE == "kept":
        a, known = ((s // divisor) % modulus)[:, None], inside[:, None]
        scale, offset = affine(scale_at, offset_at, shift_at, gain_at, a, outer, span, row, known)
    for i in tl.static_range(len(PARTS)):
        q = i * PARTS[0] + tl.arange(0, PARTS[i])
        mask = _there(inside, q, reduced, FULL)
        at = places(outer, s, q, segments, reduced, COLUMNS)
        x = tl.load(x_at + at, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_at + at, mask=mask, other=0.0).to(tl.float32)
        h = normalized(x, power, high, low, factor)
        if AFFINE == "reduced":
            a, known = q[None, :], (q < reduced)[None, :]
            scale, offset = affine(scale_at, offset_at, shift_at, gain_at, a, outer, span, row, known)
        dm = before_activation(dy, h, scale, offset, mask, ACTIVATION)
        g = dm
        if AFFINE == "reduced":
            g = dm * scale
        dm_1, dm_1_rest = added(dm_1, dm_1_rest, g)
        dm_h, dm_h_rest = added(dm_h, dm_h_rest, g * h)
        hs = hs + (h,)
        dms = dms + (dm,)
    sum_dm = tl.sum(dm_1, 1) + dm_1_rest
    sum_dm_h = tl.sum(dm_h, 1) + dm_h_rest
    if AFFINE == "kept" and sums_at is not None:
        tl.store(sums_at + group, sum_dm_h, mask=inside)
        tl.store(sums_at + length + group, sum_dm, mask=inside)
    for i in tl.static_range(len(PARTS)):
        q = i * PARTS[0] + tl.arange(0, PARTS[i])
        taken = tl.zeros([KEPT, PARTS[i]], tl.float32)
        if REMOVES_MEAN:
            taken += (sum_dm / reduced)[:, None]
        if REMOVES_SCALE:
            taken += hs[i] * (sum_dm_h / reduced)[:, None]
        g = dms[i]
        if AFFINE == "reduced":
            a, known = q[None, :], (q < reduced)[None, :]
            scale, offset = affine(scale_at, offset_at, shift_at, gain_at, a, outer, span, row, known)
            g = g * scale
        dx = (g - taken) * factor[:, None] * power[:, None]
        if AFFINE == "kept":
            dx = dx * scale
        mask = _there(inside, q, reduced, FULL)
        at = places(outer, s, q, segments, reduced, COLUMNS)
        if dtotal_at is not None:
            dx += tl.load(dtotal_at + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_at + at, dx.to(dx_at.dtype.element_ty), mask=mask)
    return hs, dms
