"""What every function of `functional` does besides normalizing: make way for others, and be written as ONNX's nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import handle_torch_function

from ..ops import torch as ops


def overridden(
    function: Callable[..., Any], tensors: tuple[Any, ...], given: tuple[Any, ...], how: Any, **rest: Any
) -> Any:
    """What a subclass of Tensor, or a mode, makes of a call."""
    fused = {} if how is ops else how._asdict()
    return handle_torch_function(function, tensors, *given, **rest, **fused)


def exported(how: Any, sentence: str, input: Tensor, norm: Callable[..., Tensor], *given: Any) -> Any:
    """What a function of torch's own gives, and around it what `how` has."""
    return norm(input, *given) if how is ops else how.around(lambda x: (norm(x, *given),), input, sentence)[0]
