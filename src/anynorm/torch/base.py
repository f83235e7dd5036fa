"""What all modules do besides normalizing: have an activation, refuse, be found by tracers, read parameters quickly."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from ..ops.torch_fused import checked_activation


class Base(torch.nn.Module):
    """The first base class of every module; the second is torch.nn's, whose arguments go there as they are."""

    # On the class too: a module of torch.nn that becomes one of these by `replace_norms` has none of its own.
    activation: str | None = None

    def __init_subclass__(cls, **given: Any) -> None:
        """Show the arguments of torch.nn's class with `activation`, where they go there as they are."""
        super().__init_subclass__(**given)
        owner = next(c for c in cls.__mro__ if c is not Base and "__init__" in c.__dict__)
        shown = inspect.signature(owner.__init__)  # type: ignore[misc]
        _, *arguments = shown.parameters.values()
        if not issubclass(owner, Base):
            arguments.append(inspect.Parameter("activation", inspect.Parameter.KEYWORD_ONLY, default=None))
        cls.__signature__ = shown.replace(parameters=arguments)

    def __init__(self, *args: Any, activation: str | None = None, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.activation = checked_activation(activation)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.activation is None else f", activation={self.activation!r}")

    def check_channels(self, input: Tensor, channels: int, axis: int = 1) -> None:
        """Raise unless the input has so many channels; torch normalizes whatever comes where there is no weight."""
        try:
            found = input.shape[axis]
        except IndexError:
            found = None
        if found != channels:
            has = "is too few dimensions" if found is None else f"has {found} on axis {axis}"
            raise ValueError(
                f"{type(self).__name__} was made for {channels} channels, and an input of shape {tuple(input.shape)} "
                f"{has}"
            )

    def parameter(self, name: str) -> Any:
        """`self.weight` and the like, None where there is none.

        Module.__getattr__, to which those go, takes longer than to normalize a small array.
        """
        try:
            return self._parameters[name]
        except KeyError:
            # A parametrization, or a tool that makes the weight anew in each call, has taken it out.
            return getattr(self, name)

    def weight_and_bias(self) -> tuple[Any, Any]:
        """Both, as `parameter` gives them: one call less."""
        own = self._parameters
        try:
            return own["weight"], own["bias"]
        except KeyError:
            return self.weight, self.bias

    def as_leaf(self, input: torch.fx.Proxy, **given: Any) -> Any:
        """A call of this module in a graph of torch.fx, which takes for leaves only modules that lie in torch.nn.

        Traced into, its checks would be of what has no shape yet, and its statistics would not move.
        """
        given = {name: value for name, value in given.items() if value is not None}
        # The path to the root is empty.
        path = input.tracer.path_of_module(self) or "norm"
        return input.tracer.create_proxy("call_module", path, (input,), given)

    @property
    def norm(self) -> torch.nn.Module:
        """This module: under this name it is found by a graph of torch.fx that was made of it alone."""
        return self

    def __prepare_scriptable__(self) -> torch.nn.Module:
        # torch.jit.script calls this first. What it would say itself is about a line of code deep inside.
        raise TypeError(
            f"torch.jit.script cannot read {type(self).__name__}, whose kernels it does not know; use torch.export or "
            "torch.compile, or torch.jit.trace where it must be TorchScript"
        )
