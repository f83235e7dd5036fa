"""What the GPU benchmark times: the goals, their arrays, and every peer that is installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import shapes
import torch
import torch.nn.functional as F  # noqa: N812
from peers_torch import peers as torch_peers
from shapes import BACKWARD, BOTH, EPS, FORWARD, Case

import anynorm
import anynorm.torch.functional as AF  # noqa: N812

Tensor = Any
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Goal:
    """A number to reach, and the arrays for which.

    Attributes:
        which: the pass that is timed.
        passes: how often the tensor's bytes cross the memory in what the share refers to; a copy is two.
        share: of the copy's rate, at least; None where the time alone counts.
        ahead: times faster than torch's own functions, at least.
        most: ms, at most; None where those two count.
        wall: whether the time of a call counts, launch and all, and not the GPU's.
        around: "silu" behind the normalization, "add" before it, or nothing.
    """

    text: str
    which: str
    passes: int
    share: float | None
    ahead: float
    cases: tuple[Case, ...]
    wall: bool = False
    around: str = ""
    most: float | None = None

    def is_met(self, row: dict[str, Any]) -> bool:
        """Whether a measured row keeps within all of it; where torch has no such function, within the rest."""
        return (
            (self.share is None or row["share"] >= self.share)
            and (row["ahead"] is None or row["ahead"] >= self.ahead)
            and (self.most is None or row["ms"]["anynorm"] <= self.most)
        )


def _both(*shape: int, **rest: Any) -> Iterator[Case]:
    for family in (shapes.LAYER, shapes.RMS):
        yield Case(family, shape, **rest)


def _rows(*lengths: tuple[int, int]) -> tuple[Case, ...]:
    return tuple(case for shape in lengths for dtype in ("float32", "bfloat16") for case in _both(*shape, dtype=dtype))


_FIRST, _LAST = shapes.GROUP_FIRST, shapes.GROUP
_NHWC = (Case(_LAST, (16, 128, 128, 128), 32), Case(_LAST, (8, 64, 64, 1280), 32, dtype="bfloat16"))
_INSTANCE = (Case(shapes.INSTANCE, (16, 128, 128, 128)), Case(shapes.INSTANCE, (4, 48, 96, 96, 64)))
_MEDIUM = _rows((65536, 1024), (16384, 4096), (8192, 8192))
GOALS = (
    Goal("layer, RMS forward, rows of 1K to 32K", FORWARD, 2, 0.95, 1.3, _MEDIUM + _rows((2048, 32768), (65536, 1152))),
    Goal("layer, RMS forward, rows of 256", FORWARD, 2, 0.65, 1.3, _rows((262144, 256))),
    Goal("layer, RMS forward, rows of 64K and more", FORWARD, 2, 0.80, 1.3, _rows((1024, 65536), (256, 262144))),
    Goal("layer, RMS backward, rows of 1K to 8K", BACKWARD, 3, 0.80, 1.6, _MEDIUM),
    Goal("group NCHW forward, few groups", FORWARD, 3, 0.90, 8, (
        Case(_FIRST, (1, 512, 256, 256), 32), Case(_FIRST, (2, 256, 256, 256), 32, dtype="bfloat16"))),
    Goal("group NCHW forward, groups up to 100 KB", FORWARD, 2, 0.85, 3, (
        Case(_FIRST, (128, 512, 16, 16), 32), Case(_FIRST, (64, 320, 32, 32), 32), Case(_FIRST, (64, 640, 32, 32), 32),
        Case(_FIRST, (64, 1280, 32, 32), 32, dtype="bfloat16"))),
    Goal("group NHWC forward", FORWARD, 3, 0.85, 3, _NHWC),
    Goal("group NHWC backward", BACKWARD, 5, 0.75, 3, _NHWC),
    Goal("instance NHWC forward", FORWARD, 3, 0.85, 3, _INSTANCE),
    Goal("instance NHWC backward", BACKWARD, 5, 0.75, 3, _INSTANCE),
    Goal("instance NCHW forward, groups up to 100 KB", FORWARD, 2, 0.85, 3, (
        Case(shapes.INSTANCE_FIRST, (16, 128, 128, 128)),)),
    Goal("instance NCHW forward, larger groups", FORWARD, 3, 0.90, 3, (
        Case(shapes.INSTANCE_FIRST, (4, 64, 48, 96, 96)),)),
    Goal("group + SiLU, 260 µs at most", FORWARD, 3, None, 15, (
        Case(_FIRST, (1, 128, 20, 256, 256), 32, dtype="bfloat16"),), around="silu", most=0.26),
    Goal("add + RMS, add + layer", FORWARD, 4, 0.90, 2.5, tuple(_both(16384, 4096, dtype="bfloat16")), around="add"),
    Goal("1 MB and less, time of a call", BOTH, 5, None, 1 / 1.2, (
        *_both(256, 1024), Case(_FIRST, (4, 64, 16, 16), 32), Case(_LAST, (4, 16, 16, 64), 32)), wall=True),
)  # fmt: skip


def contenders(goal: Goal, case: Case) -> dict[str, Callable[[], Function]]:
    """By name what makes a function of x, scale and offset (and the residual); making it may fail, as peers do."""
    plain = torch_peers(case)
    own = _anynorm(goal, case)
    made: dict[str, Callable[[], Function]] = {"anynorm": lambda: own}
    if goal.around:
        made["anynorm, apart"] = lambda: _around(goal, _anynorm(replace(goal, around=""), case))
    for name, function in plain.items():
        made[name] = lambda function=function: _around(goal, function)
        made[f"{name}, compiled"] = lambda function=function: torch.compile(_around(goal, function))
    for package, make in _INSTALLED.items():
        if importlib.util.find_spec(package) is not None:
            made[package] = lambda make=make: _around(goal, make(case))
    return made


def _around(goal: Goal, function: Function) -> Function:
    """The pair of operations that anynorm makes one of."""
    if goal.around == "silu":
        return lambda x, w, b: F.silu(function(x, w, b))
    if goal.around == "add":
        return lambda x, w, b, r: (lambda s: (function(s, w, b), s))(x + r)
    return function


def _anynorm(goal: Goal, case: Case) -> Function:
    if goal.around == "silu":
        return lambda x, w, b: AF.group_norm(x, case.groups, w, b, EPS, activation="silu")
    if goal.around == "add" and case.family is shapes.RMS:
        return lambda x, w, b, r: AF.rms_norm(x, (case.channels,), w, EPS, residual=r)
    if goal.around == "add":
        return lambda x, w, b, r: AF.layer_norm(x, (case.channels,), w, b, EPS, residual=r)
    arguments = case.arguments(torch=True)
    return lambda x, w, b: anynorm.normalize(x, scale=w, offset=b, **arguments)


def _liger(case: Case) -> Function:
    functional = importlib.import_module("liger_kernel.transformers.functional")
    if case.family is shapes.LAYER:
        return lambda x, w, b: functional.liger_layer_norm(x, w, b, EPS)
    if case.family is shapes.RMS:
        return lambda x, w, b: functional.liger_rms_norm(x, w, EPS)
    if case.family is _FIRST:
        c, g = case.channels, case.groups
        return lambda x, w, b: functional.liger_group_norm(x.flatten(2), w, b, c, g, EPS).view_as(x)
    raise ValueError("Liger has no such normalization")


def _quack(case: Case) -> Function:
    quack = importlib.import_module("quack")
    if case.family is shapes.RMS:
        return lambda x, w, b: quack.rmsnorm(x, w, eps=EPS)
    if case.family is shapes.LAYER:
        return lambda x, w, b: importlib.import_module("quack.rmsnorm").layernorm_fwd(x, w, b, EPS)
    raise ValueError("QuACK has no such normalization")


def _apex(case: Case) -> Function:
    if case.family is shapes.LAYER:
        fused = importlib.import_module("apex.normalization.fused_layer_norm")
        return lambda x, w, b: fused.fused_layer_norm_affine(x, w, b, (case.channels,), EPS)
    if case.family is shapes.RMS:
        fused = importlib.import_module("apex.normalization.fused_layer_norm")
        return lambda x, w, b: fused.fused_rms_norm_affine(x, w, (case.channels,), EPS)
    if case.family is _LAST:
        group = importlib.import_module("apex.contrib.group_norm")
        return lambda x, w, b: group.cuda_group_norm_nhwc_one_pass(x, case.groups, w, b, EPS)
    raise ValueError("Apex has no such normalization")


def _torchnorm(case: Case) -> Function:
    package = importlib.import_module("torchnorm")
    name = {shapes.LAYER: "layer_norm", shapes.RMS: "rms_norm", _FIRST: "group_norm"}.get(case.family)
    if name is None or not hasattr(package, name):
        raise ValueError("torchnorm has no such normalization")
    function = getattr(package, name)
    if name == "group_norm":
        return lambda x, w, b: function(x, case.groups, w, b, EPS)
    if name == "layer_norm":
        return lambda x, w, b: function(x, (case.channels,), w, b, EPS)
    return lambda x, w, b: function(x, w, EPS)


_INSTALLED = {"liger_kernel": _liger, "quack": _quack, "apex": _apex, "torchnorm": _torchnorm}
