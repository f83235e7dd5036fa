"""What torch.compile takes as a constant, marked without its compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable[..., object])


def constant(function: Function) -> Function:
    """`torch.compiler.assume_constant_result`: the compiler calls the function, and does not read it.

    torch's own imports the whole compiler, and Triton with it, as soon as it decorates: seconds for everybody, and the
    end of a process in which TensorFlow was imported before, since both bring LLVM.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
