"""Running a torch model outside training, and leaving it as it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree

from .proving import apart
from .torch_norms import kind_of
from .torch_state import undisturbed

# Edges of the image that a probe is guessed to be: the first that runs through.
_EDGES = (32, 64, 128, 224)
See = Callable[[str, torch.Tensor], None]


class Probe:
    """An input and what the model makes of it.

    Attributes:
        inputs: the positional and named arguments of the forward, or None where there is no input.
        words: what the input is, or why there is none.
        shapes: of the inputs of each norm, by its name.
        outputs: the model's, or None where nothing could be run.
        repeated: by how much they differ when the same model is run again.
        partly: whether there are others that cannot be compared.
        calls: how often the model called each module, by its name.
        guessed_rank: whether how many dimensions the input has is a mere guess.
    """

    def __init__(self, model: nn.Module, given: Any) -> None:
        _check(model)
        self.shapes: dict[str, list[tuple[int, ...]]] = {}
        self.calls: Counter[str] = Counter()
        self.guessed_rank = False
        self.inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.outputs: list[np.ndarray] | None = None
        self.repeated = 0.0
        self.partly = False
        self._last_calls: Counter[str] = Counter()
        if given is False:
            self.words = "not wanted"
        elif given is not None:
            self.inputs = arguments(given, model)
            self.words = f"the given one, {_written(self.inputs)}"
            self.outputs = self._first_run(model)
        else:
            self.words = "none could be guessed; give probe="
            self._guess(model)
        if self.outputs is not None:
            self.repeated = apart(self.outputs, self.run(model) or [])

    def run(self, model: nn.Module, inputs: Any = None, see: See | None = None) -> list[np.ndarray] | None:
        """The model's outputs, flat, as wide as they come; None without an input.

        Args:
            inputs: others than the probe's own.
            see: what is called with the name and the input of each norm.
        """
        return None if self.inputs is None else self._run(model, inputs or self.inputs, see)

    def uncalled(self, name: str) -> bool:
        """Whether the last run did not call the module of this name."""
        return self.inputs is not None and not self._last_calls[name]

    def _run(self, model: nn.Module, inputs: Any, see: See | None) -> list[np.ndarray]:
        self._last_calls.clear()
        handles = []
        for name, module in model.named_modules():

            def look(module: nn.Module, positional: Any, named: dict[str, Any], name: str = name) -> None:
                self._last_calls[name] += 1
                x = positional[0] if positional else named.get("input")
                if see is not None and kind_of(module) is not None and isinstance(x, torch.Tensor):
                    see(name, x)

            handles.append(module.register_forward_pre_hook(look, with_kwargs=True))
        # Copies, for a forward may change its input.
        positional, named = _pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, inputs)
        try:
            with undisturbed(model), evaluating(model), torch.no_grad():
                leaves = _pytree.tree_leaves(model(*positional, **named))
        finally:
            for handle in handles:
                handle.remove()
        self.partly = any(not isinstance(leaf, torch.Tensor | int | float | str | None) for leaf in leaves)
        return [_wide(leaf.detach().cpu()) for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def _first_run(self, model: nn.Module) -> list[np.ndarray] | None:
        self._forget()
        outputs = self.run(model, see=lambda name, x: self.shapes.setdefault(name, []).append(tuple(x.shape)))
        self.calls = self._last_calls.copy()
        return outputs

    def _guess(self, model: nn.Module) -> None:
        for shape in _guesses(model):
            x = torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32))
            try:
                self.inputs = arguments(x, model)
                self.outputs = self._first_run(model)
            except Exception:  # whatever a model raises that an input does not fit
                self.inputs = None
                continue
            self.words = f"random, {_written(self.inputs)}, guessed from the first layer"
            self.guessed_rank = len(shape) == 2
            return
        self._forget()

    def _forget(self) -> None:
        self.shapes.clear()
        self.calls.clear()


def _wide(y: torch.Tensor) -> np.ndarray:
    if y.is_nested:
        y = torch.nested.to_padded_tensor(y, 0.0)
    elif y.layout != torch.strided:
        y = y.to_dense()
    return y.to(torch.complex128 if y.is_complex() else torch.float64).numpy()


def _check(model: nn.Module) -> None:
    """Raise for a model whose modules cannot be exchanged, or have no parameters yet: a run would give it some."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("a scripted model is fixed; change the model that it was made from")
    if any(isinstance(t, nn.parameter.UninitializedTensorMixin) for t in (*model.parameters(), *model.buffers())):
        raise ValueError("the model has lazy modules without parameters yet; run it once first")


def _guesses(model: nn.Module) -> Iterator[tuple[int, ...]]:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            yield (4, module.in_features)
            return
        if isinstance(module, nn.modules.conv._ConvNd):
            rank = len(module.kernel_size)
            yield from ((4, module.in_channels, *(edge,) * rank) for edge in _EDGES if edge < 128 or rank < 3)
            return


def _written(inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> str:
    leaves = _pytree.tree_leaves(inputs)
    return ", ".join(str(tuple(leaf.shape)) for leaf in leaves if isinstance(leaf, torch.Tensor)) or "no tensors"


def arguments(given: Any, model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """One array, a tuple of arguments or a dictionary of named ones, as tensors where the model is."""
    place = next((p for p in model.parameters() if p.is_floating_point()), None)

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            leaf = torch.from_numpy(leaf)
        if not isinstance(leaf, torch.Tensor) or place is None:
            return leaf
        return leaf.to(place.device, place.dtype if leaf.is_floating_point() else leaf.dtype)

    given = _pytree.tree_map(moved, given)
    if isinstance(given, dict):
        return (), given
    return (tuple(given) if isinstance(given, tuple | list) else (given,)), {}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Outside training; afterwards each module is in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
