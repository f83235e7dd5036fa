"""A pair of JAX primitives, each the other's transpose.

JAX derives reverse mode by transposing the forward derivative operation by operation. For a normalization that keeps
arrays of the tensor's size which the closed form of the gradient never needs. Here the forward derivative is one
primitive and its transpose, written out by hand, another, so that both modes run the closed form; `jax.linear_call`
would do it too, but cannot be mapped over a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Array = Any


def transposable(name: str, push: Callable[..., Array], pull: Callable[..., Any]) -> Callable[..., Array]:
    """`push(saved, tangents, static)`, linear in `tangents`, and its transpose `pull(saved, dy, likes, static)`.

    `saved` and `tangents` are pytrees, `static` hashable; `pull` gets in `likes` the shapes of all tangents but the
    first and returns the cotangents of all tangents.
    """
    there, back = Primitive(name), Primitive(name + "_transpose")
    back.multiple_results = True

    def run_there(*flat: Array, linear: Any, kept: Any, likes: Any, static: Any) -> Array:
        n = linear.num_leaves
        return push(kept.unflatten(flat[n:]), linear.unflatten(flat[:n]), static)

    def run_back(*flat: Array, linear: Any, kept: Any, likes: Any, static: Any) -> list[Array]:
        rest = linear.unflatten(likes)[1:]
        return jax.tree.leaves(pull(kept.unflatten(flat[1:]), flat[0], rest, static))

    def transpose_there(cotangent: Array, *flat: Any, linear: Any, **params: Any) -> list[Any]:
        n = linear.num_leaves
        out = back.bind(cotangent, *flat[n:], linear=linear, **params)
        asked = [c if ad.is_undefined_primal(f) else None for c, f in zip(out, flat[:n], strict=True)]
        return asked + [None] * (len(flat) - n)

    def transpose_back(cotangents: list[Any], first: Any, *saved: Any, **params: Any) -> list[Any]:
        filled = [ad.instantiate_zeros(c) for c in cotangents]
        return [there.bind(*filled, *saved, **params)] + [None] * len(saved)

    for primitive, run, linear_count, transpose in (
        (there, run_there, lambda params: params["linear"].num_leaves, transpose_there),
        (back, run_back, lambda params: 1, transpose_back),
    ):
        _register(primitive, run, linear_count, transpose)

    def bind(saved: Any, tangents: Any, static: Any) -> Array:
        kept, linear = jax.tree.flatten(saved), jax.tree.flatten(tangents)
        likes = tuple(jax.ShapeDtypeStruct(t.shape, t.dtype) for t in linear[0])
        return there.bind(*linear[0], *kept[0], linear=linear[1], kept=kept[1], likes=likes, static=static)

    return bind


def _register(
    primitive: Primitive,
    run: Callable[..., Any],
    linear_count: Callable[[dict[str, Any]], int],
    transpose: Callable[..., list[Any]],
) -> None:
    many = primitive.multiple_results

    def jvp(primals: Any, tangents: Any, **params: Any) -> Any:
        """Linear in the first arguments; the rest, which only second derivatives ask for, by JAX."""
        n = linear_count(params)
        out = primitive.bind(*primals, **params)
        parts = []
        if any(type(t) is not ad.Zero for t in tangents[:n]):
            moved = [ad.instantiate_zeros(t) for t in tangents[:n]]
            parts.append(primitive.bind(*moved, *primals[n:], **params))
        if any(type(t) is not ad.Zero for t in tangents[n:]):
            flow = [i for i in range(n, len(primals)) if type(tangents[i]) is not ad.Zero]

            def along(*values: Array) -> Any:
                args = list(primals)
                for i, value in zip(flow, values, strict=True):
                    args[i] = value
                return run(*args, **params)

            parts.append(jax.jvp(along, [primals[i] for i in flow], [tangents[i] for i in flow])[1])
        return out, jax.tree.map(lambda *t: sum(t[1:], t[0]), *parts)

    def batch(args: Any, dims: Any, **params: Any) -> Any:
        out = jax.vmap(lambda *a: run(*a, **params), in_axes=dims)(*args)
        return (out, [0] * len(out)) if many else (out, 0)

    def abstract(*avals: Any, **params: Any) -> Any:
        shapes = jax.eval_shape(lambda *a: run(*a, **params), *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals))
        as_aval = lambda s: jax.core.ShapedArray(s.shape, s.dtype)  # noqa: E731
        return [as_aval(s) for s in shapes] if many else as_aval(shapes)

    primitive.def_impl(jax.jit(run, static_argnames=("linear", "kept", "likes", "static")))
    primitive.def_abstract_eval(abstract)
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(run, multiple_results=many))
