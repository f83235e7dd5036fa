"""The Triton kernels for torch tensors: at most two launches forward and three backward, no autograd.

`around` are a residual, a modulation and an activation, which the same launches compute along with the normalization.
Nothing here waits for the device or depends on values, so that all of it can be captured in a CUDA graph.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from ...plan import Plan
from ..torch_memory import dense, laid_as, like, room_for_moments, room_for_saved, statistic
from . import held, split, split_gradient
from .table import Device, Held, gathered, shared
from .table import held as held_table
from .table import split as split_table
from .torch_around import NOTHING, Around, checked, modulation
from .torch_launch import nothing_of, of_chunks, of_parts, of_tile, on, scaling, small_pair
from .views import Geometry, geometry, modulated

Array = Any

# Triton is about to turn it off; on it is a rounding less, and nothing here counts on that rounding.
_OPTIONS = {"enable_fp_fusion": True}

# Programs for each processor, where each sums over many segments.
_PROGRAMS = 4


def forward(
    x: Array,
    scale: Array | None,
    offset: Array | None,
    plan: Plan,
    eps: float,
    out: Array | None = None,
    *,
    statistics: bool = True,
    gradient: bool = True,
) -> tuple[Array, Array | None, Array | None, Array | None]:
    """y (in `out`, if that is given), mean and variance over the kept runs, and what the gradient needs.

    What is not asked for is None.
    """
    y, _, *rest = fused_forward(x, scale, offset, plan, eps, NOTHING, out, statistics=statistics, gradient=gradient)
    return y, *rest


def fused_forward(
    x: Array,
    scale: Array | None,
    offset: Array | None,
    plan: Plan,
    eps: float,
    around: Around,
    out: Array | None = None,
    *,
    statistics: bool = True,
    gradient: bool = True,
) -> tuple[Array, Array | None, Array | None, Array | None, Array | None]:
    """y, x + residual (None without one), and then as `forward`."""
    x, (scale, offset) = dense(x, plan), small_pair(scale, offset, x, plan)
    around = checked(around, x)
    mean, variance = room_for_moments(x, plan) if statistics else (None, None)
    saved = room_for_saved(x, plan) if gradient else None
    y = torch.empty_like(x) if out is None else out
    total = (
        None
        if around.residual is None
        else torch.empty_like(x, dtype=torch.promote_types(x.dtype, around.residual.dtype))
    )
    _forward(x, total, y, scale, offset, mean, variance, saved, plan, eps, around)
    return y, total, mean, variance, saved


def moments(x: Array, plan: Plan) -> tuple[Array, Array]:
    """Mean and variance over the kept runs."""
    x = dense(x, plan)
    mean, variance = room_for_moments(x, plan)
    _forward(x, None, None, None, None, mean, variance, None, plan, 0.0, NOTHING)
    return mean, variance


def _forward(
    x: Array,
    total: Array | None,
    y: Array | None,
    scale: Array | None,
    offset: Array | None,
    mean: Array | None,
    variance: Array | None,
    saved: Array | None,
    plan: Plan,
    eps: float,
    around: Around,
) -> None:
    if plan.empty:
        nothing_of(mean, variance, saved)
        return
    g = _geometry(plan, around)
    removes = {"REMOVES_MEAN": plan.removes_mean, "REMOVES_SCALE": plan.removes_scale}
    top, root, constant = scaling(eps, plan.removes_scale)
    itemsize = max(x.element_size(), 0 if total is None else total.element_size())
    is_followed = around.activation is not None or around.gain is not None
    tiles = held_table(g, itemsize, False, _device(x.device), is_followed)
    residual, behind = around.residual, modulation(around, g)
    with on(x.device):
        if tiles is not None:
            segments = g.segments // g.each
            across = -(-segments // tiles.kept)
            held.forward[(g.outer * across,)](
                x, residual, total, y, scale, offset, around.shift, around.gain, mean, variance, saved,
                segments, g.count, across, g.divisor, g.modulus, g.each, *behind, root, constant, top,
                **of_parts(g, tiles), AFFINE="stretches" if g.each > 1 else g.affine, ACTIVATION=around.activation,
                num_warps=tiles.warps, **removes, **_OPTIONS,
            )  # fmt: skip
            return
        cut = split_table(g)
        length = g.groups * cut.chunks * cut.per_group
        work = x.new_empty(2 * length, dtype=torch.float64)
        split.statistics[(g.outer * cut.chunks * cut.tiles,)](
            x, residual, total, work, *of_chunks(g, cut), length, top, **of_tile(g, cut),
            REMOVES_MEAN=plan.removes_mean, num_warps=cut.warps, **_OPTIONS,
        )  # fmt: skip
        split.apply[(g.outer * (1 if y is None else cut.chunks) * cut.tiles,)](
            x if total is None else total, y, scale, offset, around.shift, around.gain, work, mean, variance, saved,
            *of_chunks(g, cut), length, g.divisor, g.modulus, *behind, root, **of_tile(g, cut), BLOCK=cut.block,
            AFFINE=g.affine, ACTIVATION=around.activation, num_warps=cut.warps, **removes, **_OPTIONS,
        )  # fmt: skip


def apply(
    x: Array,
    mean: Array,
    variance: Array,
    scale: Array | None,
    offset: Array | None,
    plan: Plan,
    eps: float,
    *,
    gradient: bool = False,
) -> tuple[Array, Array | None]:
    """y from statistics made elsewhere, over the kept axes as users have them, and what the gradient needs."""
    x, (scale, offset) = dense(x, plan), small_pair(scale, offset, x, plan)
    mean, variance = statistic(mean, x, plan), statistic(variance, x, plan)
    y, saved = torch.empty_like(x), room_for_saved(x, plan) if gradient else None
    if plan.empty:
        nothing_of(saved)
        return y, saved
    g = _geometry(plan, NOTHING)
    cut = split_table(g)
    with on(x.device):
        split.apply[(g.outer * cut.chunks * cut.tiles,)](
            x, y, scale, offset, None, None, None, mean, variance, saved, *of_chunks(g, cut), 0, g.divisor, g.modulus,
            *modulation(NOTHING, g), eps**0.5, **of_tile(g, cut), BLOCK=cut.block, AFFINE=g.affine, ACTIVATION=None,
            REMOVES_MEAN=True, REMOVES_SCALE=True, num_warps=cut.warps, **_OPTIONS,
        )  # fmt: skip
    return y, saved


def backward(
    x: Array, dy: Array, scale: Array | None, offset: Array | None, saved: Array, plan: Plan, eps: float
) -> tuple[Array, Array | None, Array | None]:
    """dx, dscale and doffset; None for what was not given."""
    dx, dscale, doffset, *_ = fused_backward(x, dy, None, scale, offset, saved, plan, eps, NOTHING)
    return dx, dscale, doffset


def fused_backward(
    x: Array,
    dy: Array,
    dtotal: Array | None,
    scale: Array | None,
    offset: Array | None,
    saved: Array,
    plan: Plan,
    eps: float,
    around: Around,
) -> tuple[Array, Array | None, Array | None, Array | None, Array | None]:
    """dx, dscale, doffset, dshift and dgain; None for what was not given.

    x: what was normalized, the sum if there was a residual, which counts no more; dtotal: the sum's own gradient.
    """
    x, like_scale, like_offset = dense(x, plan), scale, offset
    scale, offset = small_pair(scale, offset, x, plan)
    around = checked(around._replace(residual=None), x)
    dy, dtotal = laid_as(dy, x), None if dtotal is None else laid_as(dtotal, x)
    dscale, doffset = (None if a is None else torch.empty_like(a) for a in (scale, offset))
    dshift, dgain = (None if a is None else a.new_empty(a.shape) for a in (around.shift, around.gain))
    dx = torch.empty_like(x)
    if plan.empty:
        nothing_of(dscale, doffset, dshift, dgain)
        return dx, like(dscale, like_scale, plan.affine), like(doffset, like_offset, plan.affine), dshift, dgain
    g = _geometry(plan, around)
    smalls = (scale, offset if around.activation else None, around.shift, around.gain)
    removes = {"REMOVES_MEAN": plan.removes_mean, "REMOVES_SCALE": plan.removes_scale}
    how = {"ACTIVATION": around.activation, **removes}
    tiles = held_table(g, x.element_size(), True, _device(x.device))
    given = any(a is not None for a in (scale, offset, around.gain))
    behind = modulation(around, g)
    with on(x.device):
        if tiles is None:
            sums = _backward_split(x, dy, dtotal, smalls, saved, dx, g, behind, how, given)
        else:
            sums = _backward_held(x, dy, dtotal, smalls, saved, dx, g, behind, how, tiles)
        if sums is not None and given:
            length = sums.numel() // 2
            lengths, (wide, samples, block) = gathered(g, length)
            split_gradient.gather[(-(-lengths[3] // wide),)](
                sums, scale, offset, around.gain, dscale, doffset, dshift, dgain, *lengths, length, behind[1],
                WIDE=wide, SAMPLES=samples, BLOCK=block, num_warps=4, **_OPTIONS,
            )  # fmt: skip
    return dx, like(dscale, like_scale, plan.affine), like(doffset, like_offset, plan.affine), dshift, dgain


def _backward_held(
    x: Array,
    dy: Array,
    dtotal: Array | None,
    smalls: tuple[Array | None, ...],
    saved: Array,
    dx: Array,
    g: Geometry,
    behind: tuple[int, int],
    how: dict[str, Any],
    tiles: Held,
) -> Array:
    """dx; and the sums that the gradients of what is small are gathered from."""
    across = -(-g.segments // tiles.kept)
    programs, together, few = shared(g, across, tiles.programs) if tiles.programs else (g.outer * across, 0, 0)
    length = programs * g.reduced if tiles.programs else g.groups
    sums = x.new_empty(2 * length, dtype=torch.float32)
    held.backward[(programs,)](
        x, dy, dtotal, *smalls, saved, dx, sums, g.segments, g.reduced, across, together, few, length,
        g.divisor, g.modulus, *behind, **of_parts(g, tiles), AFFINE=g.affine, SHARED=tiles.programs > 0,
        num_warps=tiles.warps, **how, **_OPTIONS,
    )  # fmt: skip
    return sums


def _backward_split(
    x: Array,
    dy: Array,
    dtotal: Array | None,
    smalls: tuple[Array | None, ...],
    saved: Array,
    dx: Array,
    g: Geometry,
    behind: tuple[int, int],
    how: dict[str, Any],
    given: bool,
) -> Array | None:
    """dx; and the sums that the gradients of what is small are gathered from, if any of it is given."""
    cut = split_table(g)
    parts = cut.chunks * cut.per_group
    work = x.new_empty(2 * g.groups * parts, dtype=torch.float32)
    is_shared = given and g.affine == "reduced"
    sums = None
    if given and not is_shared:
        of_chunk = cut.per_group * g.groups if g.alike else g.outer * g.segments
        sums = x.new_empty(2 * cut.chunks * of_chunk, dtype=torch.float32)
    split_gradient.sums[(g.outer * cut.chunks * cut.tiles,)](
        x, dy, *smalls, saved, work, sums, *of_chunks(g, cut), g.outer, g.groups * parts,
        0 if sums is None else sums.numel() // 2, g.divisor, g.modulus, *behind, **of_tile(g, cut), AFFINE=g.affine,
        ACTIVATION=how["ACTIVATION"], PER_GROUP=g.alike, num_warps=cut.warps, **_OPTIONS,
    )  # fmt: skip
    if not is_shared:
        split_gradient.project[(g.outer * cut.chunks * cut.tiles,)](
            x, dy, dtotal, *smalls, saved, work, dx, *of_chunks(g, cut), g.groups * parts, g.divisor, g.modulus,
            *behind, **of_tile(g, cut), BLOCK=cut.block, num_warps=cut.warps, **how, **_OPTIONS,
        )  # fmt: skip
        return sums
    stretches = -(-g.reduced // cut.wide)
    programs, together, few = shared(g, cut.tiles, -(-_PROGRAMS * _device(x.device).processors // stretches))
    sums = x.new_empty(2 * programs * g.reduced, dtype=torch.float32)
    # Each column has six numbers of its own: with an activation's derivative beside them registers would be spilled.
    warps = cut.warps * 2 if g.columns and how["ACTIVATION"] else cut.warps
    split_gradient.project_shared[(stretches * programs,)](
        x, dy, dtotal, *smalls, saved, work, dx, sums, g.segments, g.reduced, cut.tiles, stretches, together, few,
        cut.chunks, g.groups * parts, programs * g.reduced, *behind, KEPT=cut.kept, WIDE=cut.wide, BLOCK=cut.block,
        COLUMNS=g.columns, num_warps=warps, **how, **_OPTIONS,
    )  # fmt: skip
    return sums


def _geometry(plan: Plan, around: Around) -> Geometry:
    found = geometry(plan)
    if found is None:
        raise ValueError(f"the Triton kernels have no loops for runs of this order, {plan}; select would have said so")
    return found if around.gain is None else modulated(found, around.gain.shape[0])


@lru_cache(maxsize=64)
def _device(device: torch.device) -> Device:
    if device.type != "cuda":
        return Device(2, 0)  # the interpreter's
    found = torch.cuda.get_device_properties(device)
    return Device(found.multi_processor_count, found.major)
