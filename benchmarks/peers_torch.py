"""torch's own functions, eager and compiled, and Keras on torch.

Arrays with the channels last become channels_last tensors, as torch's users hold them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import floors
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from measure import Contender, Timed
from shapes import BACKWARD, BOTH, EPS, FORWARD, Case

import anynorm
from anynorm.torch import functional as own

Tensor = Any
Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def start(threads: int) -> None:
    torch.set_num_threads(threads)


def copy(x: np.ndarray, dtype: str) -> Timed:
    """One copy of the tensor into memory in use."""
    tensor = torch.from_numpy(x).to(getattr(torch, dtype))
    out = torch.empty_like(tensor)
    return lambda: out.copy_(tensor)


def numpy(a: Tensor) -> np.ndarray:
    array: np.ndarray = a.detach().float().numpy()
    return array


def contenders(
    case: Case, mode: str, x: np.ndarray, dy: np.ndarray, scale: np.ndarray, offset: np.ndarray | None
) -> dict[str, Callable[[], Contender]]:
    dtype = getattr(torch, case.dtype)
    # In memory of torch's own: NumPy's begins between two of a processor's lines, where no tensor of a model does.
    x, dy, scale, offset = (None if a is None else torch.tensor(a, dtype=dtype) for a in (x, dy, scale, offset))
    if mode == "Keras/torch":
        # With the backend of this process, and not where Keras is not timed.
        import peers_keras

        return peers_keras.makers(case, scale, offset, lambda layer: _of_layer(case, layer, x, dy))
    if case.family.moved:
        x, dy = x.movedim(-1, 1), dy.movedim(-1, 1)
    functions = {"anynorm": _anynorm(case), **peers(case)}
    if mode == "torch.compile":
        # Each case compiles for its own shape, as a model does, and not for shapes in general.
        torch.compiler.reset()
        functions = {name: torch.compile(function) for name, function in functions.items()}
    return {name: _maker(f, x, dy, scale, offset) for name, f in functions.items()}


def _anynorm(case: Case) -> Function:
    """anynorm.torch's function of the same name, where there is one."""
    if (function := _function(own, case)) is not None:
        return function
    if case.family.entry == "layer_channels":
        return lambda x, w, b: own.layer_norm2d(x, w, b, EPS)
    arguments = case.arguments(torch=True)
    return lambda x, scale, offset: anynorm.normalize(x, scale=scale, offset=offset, **arguments)


def peers(case: Case) -> dict[str, Function]:
    c, axis = case.channels, case.family.channels
    if (function := _function(F, case)) is None:
        return {"torch": lambda x, w, b: F.layer_norm(x.movedim(axis, -1), (c,), w, b, EPS).movedim(-1, axis)}
    if case.family.entry == "instance":
        return {"torch": function, "F.group_norm(G=C)": lambda x, w, b: F.group_norm(x, c, w, b, EPS)}
    return {"torch": function}


def _function(module: Any, case: Case) -> Function | None:
    """That of torch.nn.functional, or of what has the same names; None where torch has none for the axes."""
    c, g = case.channels, case.groups
    match case.family.entry:
        case "group":
            return lambda x, w, b: module.group_norm(x, g, w, b, EPS)
        case "instance":
            return lambda x, w, b: module.instance_norm(x, weight=w, bias=b, eps=EPS)
        case "batch":
            return lambda x, w, b: module.batch_norm(x, None, None, w, b, training=True, eps=EPS)
        case "rms":
            return lambda x, w, b: module.rms_norm(x, (c,), w, EPS)
        case "layer_last":
            return lambda x, w, b: module.layer_norm(x, (c,), w, b, EPS)
        case _:
            return None


def _maker(function: Function, x: Tensor, dy: Tensor, scale: Tensor, offset: Tensor | None) -> Callable[[], Contender]:
    def make() -> Contender:
        leaf, w, b = (None if a is None else a.detach().requires_grad_() for a in (x, scale, offset))
        leaves = [a for a in (leaf, w, b) if a is not None]
        before: list[Tensor] = []

        def forward() -> Tensor:
            with torch.no_grad():
                return function(x, scale, offset)

        def backward() -> Any:
            if not before:
                before.append(function(leaf, w, b))
            return torch.autograd.grad(before[0], leaves, dy, retain_graph=True)

        def both() -> Any:
            y = function(leaf, w, b)
            return y, torch.autograd.grad(y, leaves, dy)

        passes = {FORWARD: forward, BACKWARD: backward, BOTH: both}
        return Contender(passes, lambda: _kept(lambda: function(leaf, w, b), leaves))

    return make


def through(mode: str, x: np.ndarray, dy: np.ndarray, scale: np.ndarray, offset: np.ndarray | None) -> dict[str, Timed]:
    """Each byte once as torch's users meet it: results made anew, an autograd function in Python, in Keras a layer."""
    if mode == "torch.compile":
        return {}
    leaf, w, b = (None if a is None else torch.tensor(a).requires_grad_() for a in (x, scale, offset))
    leaves, dy = [a for a in (leaf, w, b) if a is not None], torch.tensor(dy)
    sizes = ctypes.c_int64(leaf.numel()), ctypes.c_int64(0), ctypes.c_int(0)

    def moved(x: Tensor) -> Tensor:
        y = torch.empty_like(x)
        floors.loops().forward(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), *sizes)
        return y

    class Moving(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, *others: Tensor) -> Tensor:
            ctx.save_for_backward(x, *others)
            return moved(x)

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Any:
            x, *others = ctx.saved_tensors
            dx, *more = (torch.empty_like(a) for a in (x, *others))
            floors.loops().backward(*(ctypes.c_void_p(a.data_ptr()) for a in (x, dy, dx)), *sizes)
            return dx, *more

    def function(x: Tensor) -> Tensor:
        return Moving.apply(x, *leaves[1:]) if torch.is_grad_enabled() else moved(x)

    if mode == "Keras/torch":
        import peers_keras

        function = peers_keras.layer_of(function)

    def forward() -> Tensor:
        with torch.no_grad():
            return function(leaf)

    before = function(leaf)

    def backward() -> Any:
        return torch.autograd.grad(before, leaves, dy, retain_graph=True)

    def both() -> Any:
        y = function(leaf)
        return y, torch.autograd.grad(y, leaves, dy)

    return {FORWARD: forward, BACKWARD: backward, BOTH: both}


def _of_layer(case: Case, layer: Any, x: Tensor, dy: Tensor) -> Contender:
    leaf = x.detach().requires_grad_()
    weights = [v.value for v in layer.trainable_variables]
    import peers_keras

    training = peers_keras.training(case)

    def forward() -> Tensor:
        with torch.no_grad():
            return layer(x, **training)

    def both() -> Any:
        y = layer(leaf, **training)
        return y, torch.autograd.grad(y, [leaf, *weights], dy)

    return Contender({FORWARD: forward, BOTH: both}, lambda: _kept(lambda: layer(leaf, **training), [leaf, *weights]))


def _kept(forward: Callable[[], Tensor], leaves: list[Tensor]) -> int:
    """Bytes of the memory that autograd holds on to, each piece counted once."""
    given = {leaf.untyped_storage().data_ptr() for leaf in leaves}
    pieces = {}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in given:
            # Held, so that no later one can be at the same address.
            pieces[storage.data_ptr()] = storage
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        forward()
    return sum(storage.nbytes() for storage in pieces.values())
