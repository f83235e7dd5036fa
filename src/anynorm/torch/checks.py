"""What modules refuse that their parameters, which they may not have, would not tell."""

from __future__ import annotations

from torch import Tensor
from torch.nn import Module


def check_channels(module: Module, input: Tensor, channels: int, axis: int = 1) -> None:
    """Raise unless the input has so many channels; torch normalizes whatever comes where there is no weight."""
    if input.shape[axis] != channels:
        raise ValueError(
            f"{type(module).__name__} was made for {channels} channels, and an input of shape {tuple(input.shape)} has "
            f"{input.shape[axis]} on axis {axis}"
        )
