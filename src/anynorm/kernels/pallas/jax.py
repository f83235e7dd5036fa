"""The kernels as JAX's primitives call them, on arrays shaped as runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from ...plan import Plan, Run
from . import why_not_plan
from .jax_backward import backward
from .jax_forward import forward
from .jax_statistics import Words
from .jax_tiles import Array, Values
from .view import LANES, merged


class Problem(NamedTuple):
    """What the kernels are told besides arrays."""

    runs: tuple[Run, ...]
    words: Words
    interpret: bool


def problem(plan: Plan, eps: float, interpret: bool) -> Problem | None:
    """Of arrays of that plan; None where no kernel can run."""
    if why_not_plan(plan):
        return None
    return Problem(merged(plan.runs), Words(plan.removes_mean, plan.removes_scale, eps), interpret)


def _forward(problem: Problem, given: Values, wanted: Values) -> list[Array]:
    y = wanted["y"].dtype if "y" in wanted else None
    out = forward(problem.runs, problem.words, given, y, problem.interpret)
    saved = out["saved"].reshape(-1, len(LANES))
    power, shift, residual, variance, _ = (saved[:, i] for i in range(len(LANES)))
    # By the power twice: its square may be out of range.
    out |= {"mean": (shift + residual) / power, "variance": variance / power / power}
    return _shaped(out, wanted)


def _backward(problem: Problem, given: Values, wanted: Values) -> list[Array]:
    parameters = not {"dscale", "doffset"}.isdisjoint(wanted)
    return _shaped(
        backward(problem.runs, problem.words, given, wanted["dx"].dtype, parameters, problem.interpret), wanted
    )


def _push(problem: Problem, given: Values, wanted: Values) -> list[Array]:
    """The derivative of y along (t, t_scale, t_offset), by the symmetric projection that the gradient makes too.

    rstd * (t - mean(t) - h * mean(t * h)) * scale + h * t_scale + t_offset
    """
    x, saved = given["x"], given["saved"]
    along = {"x": x, "dy": given["t"], "saved": saved}
    out = backward(problem.runs, problem.words, along, jnp.float32, False, problem.interpret)["dx"].reshape(x.shape)
    if "scale" in given:
        out = out * given["scale"].astype(jnp.float32)
    if "t_scale" in given:
        power, shift, residual, _, rstd = (saved[..., i] for i in range(len(LANES)))
        h = ((x.astype(jnp.float32) * power - shift) - residual) * rstd
        out = out + h * given["t_scale"].astype(jnp.float32)
    if "t_offset" in given:
        out = out + given["t_offset"].astype(jnp.float32)
    return _shaped({"out": out}, wanted)


def _shaped(out: Values, wanted: Values) -> list[Array]:
    return [out[name].reshape(aval.shape).astype(aval.dtype) for name, aval in wanted.items()]


RUN: dict[str, Callable[[Problem, Values, Values], list[Array]]] = {
    "forward": _forward,
    "push": _push,
    "pull": _backward,
    "moments": _forward,
}
