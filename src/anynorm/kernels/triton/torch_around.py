"""What the Triton kernels compute along with a normalization, as torch tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..torch_memory import laid_as
from .views import Geometry

Array = Any


class Around(NamedTuple):
    """y = activation(norm(x + residual) * (1 + gain) + shift), of which what is None is left out.

    Attributes:
        residual: of x's shape.
        shift, gain: both or neither, each (n, c), a vector over the channels for each index of x's first dimension.
        activation: "relu", "silu", "gelu" or "gelu_tanh".
    """

    residual: Array = None
    shift: Array = None
    gain: Array = None
    activation: str | None = None


NOTHING = Around()


def checked(around: Around, x: Array) -> Around:
    """All on x's device and laid out for the kernels: the residual as a dense x, shift and gain in rows alike."""
    residual, shift, gain, activation = around
    for values in (residual, shift, gain):
        if values is not None and values.device != x.device:
            raise ValueError(
                f"x is on {x.device}, and the residual or the modulation on {values.device}: move them to one device"
            )
    if residual is not None:
        residual = laid_as(residual, x)
    # Halves of one tensor are taken as they lie.
    if gain is not None and (gain.stride() != shift.stride() or gain.stride(1) != 1):
        shift, gain = shift.contiguous(), gain.contiguous()
    return Around(residual, shift, gain, activation)


def modulation(around: Around, g: Geometry) -> tuple[int, int]:
    """How many outer indices a sample has, and how far apart the samples' rows of shift and gain lie."""
    return (1, 0) if around.gain is None else (g.outer // g.samples, around.gain.stride(0))
