"""Folding batch normalizations of a torch model into the layers in front of them."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from ..convert import torch as dialect
from .folding import Folded, Refused
from .folding import fold as folded
from .receipt import Receipt, Row, first_line
from .torch_holders import held_elsewhere
from .torch_norms import (
    check_same,
    describe,
    has_own_forward,
    hooks,
    is_unusual,
    kind_of,
    norms,
    numbers,
    place_of,
    put,
    shapes_of,
    shared,
    tensor_like,
    tensors_of,
    why_not,
)
from .torch_probe import Probe
from .torch_state import Ties, tie, ties_of
from .torch_swap import settled

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FOLDABLE = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)


class _Tracer(fx.Tracer):
    """A norm is one step, whoever made it, and who reads its statistics is seen."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return kind_of(m) is not None or super().is_leaf_module(m, module_qualified_name)


def fold(model: nn.Module, probe: Probe, receipt: Receipt) -> nn.Module:
    """Fold in the model itself."""
    held = held_elsewhere(model)
    graph = _Graph(model, probe)
    kept: dict[str, Any] = {}
    for name, norm, _ in list(norms(model, "batch")):
        try:
            if norm is model:
                raise Refused("it is the whole model, and no layer is in front of it")
            if id(norm) in held:
                raise Refused(f"{held[id(norm)]} holds it too, and would keep it")
            front_name, front = graph.front(norm)
            made, note = _folded(norm, front, probe.shapes.get(name, [])), graph.note(norm)
        except Refused as refused:
            receipt.refuse(name, norm, str(refused))
            continue
        was = (front.weight.detach().clone(), _clone(front.bias))
        before = numbers(front) + numbers(norm)
        _fill(front, made)
        kept[name] = (norm, front_name, was, describe(front), shapes_of(front), place_of(front))
        put(model, norm, nn.Identity().train(norm.training))
        if isinstance(front, nn.Linear) and probe.guessed_rank:
            note = "for inputs of shape (n, c); give probe= for others"
        seen = [
            f"{held[id(t)]} holds weights that change or go"
            for t in (*tensors_of(front).values(), *tensors_of(norm).values())
            if id(t) in held
        ]
        note = "; ".join(filter(None, dict.fromkeys((note, *seen))))
        became = f"in {front_name} ({describe(front)})"
        receipt.rows.append(Row(name, describe(norm), became, before, numbers(front), note))
    # Copies, since a module that shares a norm's parameters may train them.
    ties = ties_of(model, {name: norm for name, (norm, *_) in kept.items()})
    receipt.undo = partial(_undo, copy.deepcopy(kept), ties)
    return model


class _Graph:
    """Who feeds whom, and how often each module is called.

    Where the model as a whole cannot be traced, as with an `if` on a shape, the largest parts of it are that can. What
    calls the parts is unknown then, and a run on the probe input shows that nothing else calls what is in them.
    """

    def __init__(self, model: nn.Module, probe: Probe) -> None:
        self.model, self.probe = model, probe
        self.names = {id(module): name for name, module in model.named_modules()}
        self.shared = shared(model)
        self.modules: dict[fx.Node, Any] = {}
        self.part_of: dict[int, nn.Module] = {}
        self.calls: Counter[int] = Counter()
        # A parameter that a forward itself reads has another use, which folding would spoil.
        self.read: set[int] = set()
        self.why = ""
        self._trace(model)
        self.node_of = {id(module): node for node, module in self.modules.items()}

    def _trace(self, part: nn.Module) -> None:
        if kind_of(part) is not None or id(part) in self.part_of:
            return
        try:
            # A copy, since what a forward stores in itself is now one of fx's stand-ins; outside training, for which
            # folding is.
            graph = _Tracer().trace(copy.deepcopy(part).eval())
        except Exception as failed:  # whatever a model raises when it is run on fx's stand-ins
            self.why = self.why or first_line(failed)
            for child in part.children():
                self._trace(child)
            return
        self.part_of[id(part)] = part
        modules = dict(part.named_modules(remove_duplicate=False))
        for node in graph.nodes:
            if node.op == "call_module":
                module = self.modules[node] = modules[node.target]
                self.part_of[id(module)] = part
                self.calls[id(module)] += 1
            elif node.op == "get_attr":
                self.read.add(id(modules.get(node.target.rpartition(".")[0])))

    def _check_part(self, *modules: nn.Module) -> None:
        part = self.part_of.get(id(modules[0]))
        if part is self.model:
            return
        if part is None or self.probe.outputs is None:
            more = "" if part is None else "; with probe=, parts of it can be folded"
            raise Refused(f"torch.fx cannot trace the model, to see what feeds it ({self.why}){more}")
        calls = self.probe.calls
        if any(calls[self.names[id(module)]] != calls[self.names[id(part)]] for module in modules):
            raise Refused(f"it, or the layer in front of it, is called from outside of {self.names[id(part)]} too")

    def note(self, norm: nn.Module) -> str:
        """What the reader has to know of how the norm's neighbours were found."""
        whole = self.part_of[id(norm)] is self.model
        return "" if whole else f"by what the probe input shows; torch.fx cannot trace the model: {self.why}"

    def front(self, norm: nn.Module) -> tuple[str, Any]:
        """The layer in front of a norm, that it can be folded into."""
        if reason := why_not(norm):
            raise Refused(reason)
        if getattr(norm, "activation", None) is not None:
            raise Refused(f"activation={norm.activation!r} follows it; set it to None and put a layer for it behind")
        if id(norm) not in self.part_of and self.why:
            self._check_part(norm)
        if self.calls[id(norm)] != 1:
            raise Refused(f"it is used {self.calls[id(norm)]} times" if self.calls[id(norm)] else "it is never called")
        node = self.node_of[id(norm)]
        if len(node.args) != 1 or node.kwargs:
            raise Refused("it is called with more than its input")
        before = node.args[0]
        if before not in self.modules:
            raise Refused(f"no layer is in front of it, but {_what(before)}")
        front = self.modules[before]
        name = self.names[id(front)]
        if is_unusual(front) or hooks(front) or has_own_forward(front):
            raise Refused(f"{name}, in front of it, has hooks, parametrized weights or a forward of its own")
        if type(front) not in _FOLDABLE:
            raise Refused(f"{name} ({describe(front)}), in front of it, is no convolution or linear layer")
        if self.calls[id(front)] != 1:
            raise Refused(f"{name}, in front of it, is used {self.calls[id(front)]} times")
        if len(before.users) != 1:
            raise Refused(f"the output of {name}, in front of it, is used {len(before.users)} times")
        if self.shared & {id(p) for p in front.parameters()} or self.read & {id(front), id(norm)}:
            raise Refused(f"weights of {name} or of the norm are used elsewhere too")
        self._check_part(norm, front)
        return name, front


def _what(node: Any) -> str:
    if node.op == "placeholder":
        return "the model's input"
    return str(getattr(node.target, "__name__", node.target))


def _folded(norm: Any, front: Any, shapes: list[tuple[int, ...]]) -> Folded:
    if norm.running_mean is None:
        raise Refused("it has no running statistics")
    weight = front.weight
    if isinstance(front, nn.Linear) and any(len(shape) != 2 for shape in shapes):
        raise Refused("its channels are on axis 1, and those of the linear layer in front on the last one")
    channels, view = (-1, *(1,) * (weight.ndim - 1)), tuple(weight.shape)
    if isinstance(front, _TRANSPOSED):
        groups, (into, out, *kernel) = front.groups, weight.shape
        channels, view = (groups, 1, out, *(1,) * len(kernel)), (groups, into // groups, out, *kernel)
    # The statistics as they are: what moves them in training, such as momentum=None, does not matter here.
    values = dialect.read(norm, whole=False)
    values = replace(values, mean=dialect.numpy(norm.running_mean), variance=dialect.numpy(norm.running_var))
    return folded(values, dialect.numpy(weight), dialect.numpy(front.bias), channels, view)


def _fill(front: Any, made: Folded) -> None:
    with torch.no_grad():
        front.weight.copy_(tensor_like(made.kernel, front.weight))
        bias = tensor_like(made.bias, front.weight)
        if front.bias is None:
            front.bias = nn.Parameter(bias, requires_grad=front.weight.requires_grad)
        else:
            front.bias.copy_(bias)


def _clone(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach().clone()


def _undo(kept: dict[str, Any], ties: dict[str, Ties], model: nn.Module, inplace: bool) -> tuple[nn.Module, Receipt]:
    """The norms back in their places, and weight and bias in front as they were before folding."""
    receipt = Receipt("revert: fold")
    found: dict[str, Any] = dict(model.named_modules())
    for name, (_, front_name, _, front_was, shapes, _) in kept.items():
        check_same(front_name, found[front_name], front_was, shapes)
        check_same(name, found[name], "Identity", {})
    for name, (norm, front_name, (weight, bias), _, _, then) in copy.deepcopy(kept).items():
        front = found[front_name]
        settled(norm, then, front)
        norm.train(found[name].training)
        with torch.no_grad():
            front.weight.copy_(weight)
            if bias is None:
                front.bias = None
            else:
                front.bias.copy_(bias)
        put(model, found[name], norm)
        note = "; ".join(filter(None, (f"{front_name} as it was", tie(norm, ties[name], found, name))))
        receipt.rows.append(Row(name, "Identity", describe(norm), 0, numbers(norm), note))
    return model, receipt
