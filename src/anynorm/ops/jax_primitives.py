"""JAX primitives of a normalization: forward, its derivative and that one's transpose, and moments.

JAX derives reverse mode by transposing the forward derivative operation by operation. For a normalization that keeps
arrays of the tensor's size which the closed form of the gradient never needs. Here the forward derivative is one
primitive and its transpose, written out by hand, another, so that both modes run the closed form.

All arrays are shaped as runs, but those of a CPU kernel's call, which makes one rule of batching serve every primitive:
a batch is one more kept run in front. Which kernel computes is decided where the program is lowered, by its platform
and its number of devices.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.interpreters import partial_eval as pe

from ..kernels.cpu import jax as cpu
from ..kernels.pallas import interpreted
from ..kernels.pallas import jax as pallas
from . import jax_formula as composed
from .jax_formula import Formula

Array = Any
Values = dict[str, Array]

# How each argument and result lies on the runs: over all, over the kept ones, or over the affine ones.
WHOLE = frozenset({"x", "y", "t", "out", "dy", "dx", "mask"})
KEPT = frozenset({"mean", "variance", "saved"})
AFFINE = frozenset({"scale", "offset", "t_scale", "t_offset", "dscale", "doffset"})

forward_p, push_p, pull_p, moments_p = (Primitive("anynorm_" + name) for name in ("forward", "push", "pull", "moments"))


def call(primitive: Primitive, formula: Formula, given: dict[str, Array | None], wanted: dict[str, Any]) -> Values:
    """Bind a primitive.

    Args:
        given: its arguments by name; None for one that is left out.
        wanted: the type of each result.
    """
    has = tuple(name for name, values in given.items() if values is not None)
    arrays = _alike([given[name] for name in has])
    out = primitive.bind(*arrays, formula=formula, has=has, wanted=tuple(wanted.items()))
    return dict(zip(wanted, out, strict=True))


def _alike(arrays: list[Array]) -> list[Array]:
    """Under shard_map, all varying over the axes over which any of them varies."""
    varying = [jax.typeof(a).manual_axis_type.varying for a in arrays]
    union = frozenset().union(*varying)
    lacking = [tuple(sorted(union - some, key=str)) for some in varying]
    return [jax.lax.pcast(a, axes, to="varying") if axes else a for a, axes in zip(arrays, lacking, strict=True)]


def _abstract(*avals: Any, formula: Formula, has: tuple[str, ...], wanted: tuple[tuple[str, Any], ...]) -> list[Any]:
    x = avals[has.index("x")]
    out = []
    for name, dtype in wanted:
        there = [name in WHOLE or (label in "kK" if name in KEPT else label in "KR") for label in formula.labels]
        shape = [n if here else 1 for n, here in zip(x.shape, there, strict=True)]
        spec = [axis if here else None for axis, here in zip(x.sharding.spec, there, strict=True)]
        if name == "saved":
            shape.append(formula.lanes("mask" in has))
            spec.append(None)
        sharding = x.sharding.update(spec=jax.P(*spec))
        out.append(x.update(shape=tuple(shape), dtype=jnp.dtype(dtype), weak_type=False, sharding=sharding))
    return out


def _batch(
    primitive: Primitive, args: Any, dims: Any, formula: Formula, has: tuple[str, ...], wanted: Any
) -> tuple[Any, Any]:
    """One call with one more run, which carries scale and offset if these, or their gradients, are one for each."""
    (size,) = {a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None}
    batched = [name for name, d in zip(has, dims, strict=True) if d is not None]
    affine = not AFFINE.isdisjoint([*batched, *(name for name, _ in wanted)])
    moved = []
    for name, a, d in zip(has, args, dims, strict=True):
        if d is not None:
            moved.append(jnp.moveaxis(a, d, 0))
        else:
            moved.append(jnp.broadcast_to(a, (1 if name in AFFINE and not affine else size, *a.shape)))
    out = primitive.bind(*moved, formula=formula.batched(affine, size), has=has, wanted=wanted)
    return out, [0] * len(out)


def _without_unused(used: list[bool], eqn: Any) -> tuple[list[bool], Any]:
    """Results that nobody reads are not computed, but for the first one."""
    if not any(used):
        return [False] * len(eqn.invars), None
    keep = [True, *used[1:]]
    wanted, out = ([a for a, k in zip(all_, keep, strict=True) if k] for all_ in (eqn.params["wanted"], eqn.outvars))
    return [True] * len(eqn.invars), eqn.replace(outvars=out, params={**eqn.params, "wanted": tuple(wanted)})


# Derivatives


def _forward_jvp(primals: Any, tangents: Any, *, formula: Formula, has: Any, wanted: Any) -> tuple[Any, Any]:
    given, moving = _named(has, primals, tangents)
    x, wanted = given["x"], dict(wanted)
    out = call(forward_p, formula, given, {**wanted, "saved": formula.saved_dtype(x.dtype)})
    t = moving["x"] if "x" in moving else jnp.zeros_like(x)
    along = {"t": t, "t_scale": moving.get("scale"), "t_offset": moving.get("offset")}
    rest = {"x": x, "saved": out["saved"], "scale": given.get("scale"), "mask": given.get("mask")}
    pushed = call(push_p, formula, {**along, **rest}, {"out": x.dtype})["out"]
    # Mean and variance are for running averages, which are not trained; `moments` has derivatives.
    still = [_still(out[name]) for name in wanted if name != "y"]
    return [out[name] for name in wanted], [pushed, *still]


def _jvp(
    primitive: Primitive, linear: frozenset[str], curved: frozenset[str], primals: Any, tangents: Any, **params: Any
) -> tuple[Any, Any]:
    """By the primitive itself along the arguments in which it is linear, by JAX along those in which it is not.

    `saved` follows from x: without it, composed has the whole derivative with respect to x.
    """
    formula, has, wanted = params["formula"], params["has"], params["wanted"]
    given, moving = _named(has, primals, tangents)
    out = primitive.bind(*primals, **params)
    parts = []
    if linear & set(moving):
        still = {name: jnp.zeros_like(given[name]) for name in linear.intersection(given) - set(moving)}
        along_linear = {name: moving[name] for name in linear & set(moving)}
        parts.append(list(call(primitive, formula, given | still | along_linear, dict(wanted)).values()))
    if names := sorted(curved & set(moving)):

        def along(*values: Array) -> list[Array]:
            whole = {**given, **dict(zip(names, values, strict=True))}
            return _composed(primitive, formula, whole | {"saved": None} if "saved" in whole else whole, wanted)

        parts.append(jax.jvp(along, [given[name] for name in names], [moving[name] for name in names])[1])
    return out, [sum(some[1:], some[0]) for some in zip(*parts, strict=True)] if parts else [_still(a) for a in out]


def _push_transpose(cotangents: Any, *args: Any, formula: Formula, has: Any, wanted: Any) -> list[Any]:
    if type(cotangents[0]) is ad.Zero:
        return [None] * len(args)
    given = {name: a for name, a in zip(has, args, strict=True) if name not in _GRADIENT}
    asked = {_GRADIENT[name]: a.aval.dtype for name, a in zip(has, args, strict=True) if ad.is_undefined_primal(a)}
    pulled = call(pull_p, formula, {"dy": cotangents[0], **given}, {"dx": given["x"].dtype, **asked})
    return [pulled[_GRADIENT[name]] if ad.is_undefined_primal(a) else None for name, a in zip(has, args, strict=True)]


def _pull_transpose(cotangents: Any, *args: Any, formula: Formula, has: Any, wanted: Any) -> list[Any]:
    back = {gradient: name for name, gradient in _GRADIENT.items()}
    along = {back[name]: c for (name, _), c in zip(wanted, cotangents, strict=True) if type(c) is not ad.Zero}
    given = {name: a for name, a in zip(has, args, strict=True) if name != "dy"}
    if not along:
        return [None] * len(args)
    still = {} if "t" in along else {"t": jnp.zeros_like(given["x"])}
    pushed = call(push_p, formula, {**still, **along, **given}, {"out": given["x"].dtype})["out"]
    return [pushed if name == "dy" else None for name in has]


# The gradient that belongs to each argument in which `push` is linear.
_GRADIENT = {"t": "dx", "t_scale": "dscale", "t_offset": "doffset"}


def _named(has: Any, primals: Any, tangents: Any) -> tuple[Values, Values]:
    moving = {name: t for name, t in zip(has, tangents, strict=True) if type(t) is not ad.Zero and name != "mask"}
    return dict(zip(has, primals, strict=True)), moving


def _still(values: Array) -> Any:
    return ad.Zero(jax.typeof(values).to_tangent_aval())


# Lowering


def _composed(primitive: Primitive, formula: Formula, given: Values, wanted: Any, **more: Any) -> list[Array]:
    out = _FORMULAS[primitive](formula, **given, **more)
    return [out[name].astype(dtype) for name, dtype in wanted]


def _lower(primitive: Primitive, platform: str, ctx: Any, *args: Any, formula: Formula, has: Any, wanted: Any) -> Any:
    # Decided here rather than where it was traced: JAX exports the program that it has, if it ran one before.
    is_exported = ctx.module_context.lowering_parameters.for_export and not formula.asked
    may_call = _on_one_device(ctx) and not is_exported
    if formula.asked and formula.kernel != "composed" and not may_call:
        raise ValueError(
            f"the {formula.kernel} kernel was asked for and cannot run here: the arrays lie on several devices, which "
            "would be gathered for it; call it under jax.shard_map, or ask for no kernel"
        )
    kernel = _kernel(primitive, platform, formula, ctx.avals_in[has.index("x")]) if may_call else None
    more = {"doubles": platform == "cpu" and not is_exported} if primitive is forward_p else {}

    def run(*arrays: Array) -> list[Array]:
        given = dict(zip(has, arrays, strict=True))
        if kernel is None:
            return _composed(primitive, formula, given, wanted, **more)
        out = (jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in ctx.avals_out)
        return kernel(given, {name: like for (name, _), like in zip(wanted, out, strict=True)})

    if kernel is not None:
        # What is here is whole, or one part under shard_map: to say which of its axes lie on a mesh, though on one
        # device of it, would forbid to reshape it, and the axes over which it varies make Pallas's interpreter stumble.
        ctx = ctx.replace(avals_in=[jax.core.ShapedArray(a.shape, a.dtype) for a in ctx.avals_in])
    return mlir.lower_fun(run)(ctx, *args)


def _kernel(primitive: Primitive, platform: str, formula: Formula, x: Any) -> Callable[..., list[Array]] | None:
    """The kernel that was chosen, told of arrays like x; None where it does not run on this platform."""
    plan, name = formula.plan(x.shape), primitive.name.removeprefix("anynorm_")
    if formula.kernel == "cpu" and platform == "cpu":
        told = cpu.told(plan, formula.eps, formula.shape)
        return None if told is None else partial(cpu.RUN[name], told)
    if formula.kernel == "pallas" and (platform == "cuda" or (platform == "cpu" and interpreted())):
        problem = pallas.problem(plan, formula.eps, interpret=platform == "cpu")
        return None if problem is None else partial(pallas.RUN[name], problem)
    return None


def _on_one_device(ctx: Any) -> bool:
    """Whether the arrays here lie whole on one device: XLA would gather those that do not, to call a kernel."""
    axes = ctx.module_context.axis_context
    if isinstance(axes, mlir.SPMDAxisContext):
        return axes.manual_axes == frozenset(axes.mesh.axis_names)
    return not isinstance(axes, mlir.ShardingContext) or axes.num_devices == 1


_FORMULAS: dict[Primitive, Callable[..., Values]] = {
    forward_p: composed.forward,
    push_p: composed.push,
    pull_p: composed.pull,
    moments_p: composed.moments,
}


def _compiled(bind: Callable[..., list[Array]], *args: Array, **params: Any) -> list[Array]:
    """A primitive's result by itself, compiled even under `jax.disable_jit()`, where the binding would call itself."""
    with jax.disable_jit(False):
        return bind(*args, **params)


def _register(primitive: Primitive, jvp: Callable[..., Any]) -> None:
    primitive.multiple_results = True
    primitive.def_abstract_eval(_abstract)
    bind = jax.jit(
        lambda *args, **params: primitive.bind(*args, **params), static_argnames=("formula", "has", "wanted")
    )
    primitive.def_impl(partial(_compiled, bind))
    ad.primitive_jvps[primitive] = jvp
    batching.primitive_batchers[primitive] = partial(_batch, primitive)
    mlir.register_lowering(primitive, partial(_lower, primitive, "any"))
    for platform in ("cpu", "cuda"):
        mlir.register_lowering(primitive, partial(_lower, primitive, platform), platform=platform)


_register(forward_p, _forward_jvp)
_register(push_p, partial(_jvp, push_p, frozenset(_GRADIENT), frozenset({"x", "scale"})))
_register(pull_p, partial(_jvp, pull_p, frozenset({"dy"}), frozenset({"x", "scale"})))
_register(moments_p, partial(_jvp, moments_p, frozenset(), frozenset({"x"})))
for _primitive in (forward_p, pull_p):
    pe.dce_rules[_primitive] = _without_unused
ad.primitive_transposes[push_p] = _push_transpose
ad.primitive_transposes[pull_p] = _pull_transpose
