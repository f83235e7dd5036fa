"""What a torch model was before something was done to it, and which of its modules share tensors."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .torch_norms import tensors_of

# The containers whose contents a forward or an operation may change.
_CONTAINERS = (dict, OrderedDict, defaultdict, Counter, list, set, deque)
# For each tensor of a norm, where else in the model it is: the module and its name there.
Ties = dict[str, list[tuple[str, str]]]


class State:
    """The attributes of each module, what containers among them hold, and the numbers of tensors.

    Args:
        parameters: whether parameters' numbers are kept too, and not those of buffers alone.
    """

    def __init__(self, model: nn.Module, parameters: bool) -> None:
        self._modules = [(module, dict(vars(module))) for module in model.modules()]
        found = {id(v): v for _, attributes in self._modules for v in attributes.values() if type(v) in _CONTAINERS}
        self._contents = [(container, container.copy()) for container in found.values()]
        self._flags = [(p, p.requires_grad) for p in model.parameters()]
        tensors = [*model.buffers(), *(model.parameters() if parameters else ())]
        self._numbers = [(t, t.detach().clone()) for t in tensors]

    def restore(self) -> None:
        """Give it all back, in the very objects that had it."""
        for module, attributes in self._modules:
            vars(module).clear()
            vars(module).update(attributes)
        for container, contents in self._contents:
            container.clear()
            (container.update if hasattr(container, "update") else container.extend)(contents)
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        with torch.no_grad():
            for tensor, numbers in self._numbers:
                if not torch.equal(tensor, numbers):
                    tensor.copy_(numbers)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Afterwards each module has the attributes and buffers that it had: a forward may count, or keep what it saw."""
    state = State(model, parameters=False)
    try:
        yield
    finally:
        state.restore()


def ties_of(model: nn.Module, norms: dict[str, nn.Module]) -> dict[str, Ties]:
    """Where in a model the tensors are that norms have which are no longer in it.

    Args:
        norms: by the names that they had.
    """
    places: dict[int, list[tuple[str, str]]] = {}
    for name, module in model.named_modules():
        for key, tensor in tensors_of(module).items():
            places.setdefault(id(tensor), []).append((name, key))
    return {
        # What has the norm's place comes first.
        name: {
            key: sorted(places[id(tensor)], key=lambda place: place[0] != name)
            for key, tensor in tensors_of(norm).items()
            if id(tensor) in places
        }
        for name, norm in norms.items()
    }


def tie(norm: nn.Module, ties: Ties, found: dict[str, nn.Module], own: str) -> str:
    """Let a norm that comes back have the tensors that its place, `own`, and other modules have, with its own numbers.

    Returns:
        A note of the other modules, whose tensors have those numbers too now; "" where there are none.
    """
    others: dict[str, None] = {}
    for key, places in ties.items():
        kept = getattr(norm, key)
        tensors = [(name, tensors_of(found[name]).get(there)) for name, there in places if name in found]
        same = [(name, tensor) for name, tensor in tensors if tensor is not None and tensor.shape == kept.shape]
        if not same:
            continue
        tensor = same[0][1]
        with torch.no_grad():
            tensor.copy_(kept)
        tensor.requires_grad_(kept.requires_grad)
        (norm._parameters if key in norm._parameters else norm._buffers)[key] = tensor
        others |= {name: None for name, one in same if one is tensor and name != own}
    return f"shared with {', '.join(others)}, which has its numbers too" if others else ""
