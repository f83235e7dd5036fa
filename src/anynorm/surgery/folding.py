"""The arithmetic of folding: a layer that is linear, and a normalization with fixed statistics behind it, are one.

    ((W x + b) - mean) / sqrt(variance + eps) * gamma + beta = (W s) x + (b - mean) s + beta
    s = gamma / sqrt(variance + eps)

Computed in float64 and rounded once, to the types that the layer has.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..convert.norm import Array, Norm


class Refused(Exception):  # noqa: N818 - no error, but an answer
    """A layer stays as it is, for this reason."""


class Folded(NamedTuple):
    """A kernel and a bias with the normalization in them."""

    kernel: Array
    bias: Array


def fold(
    norm: Norm, kernel: Array, bias: Array | None, channels: tuple[int, ...], view: tuple[int, ...] = ()
) -> Folded:
    """The layer's new kernel and bias.

    Args:
        norm: batch normalization with its running statistics.
        kernel, bias: of the layer in front; its bias may be None.
        channels: the shape in which one number for each output channel broadcasts to `view`.
        view: the kernel's shape with all output channels on axes of their own, where it has them otherwise.

    Raises:
        Refused: the running statistics or the result are not finite.

    >>> norm = Norm("batch", (-1,), (1,), 0.0, mean=np.array([1.0]), variance=np.array([4.0]))
    >>> fold(norm, np.array([[6.0]]), None, (-1,))
    Folded(kernel=array([[3.]]), bias=array([-0.5]))
    """
    variance, mean = np.asarray(norm.variance, np.float64), np.asarray(norm.mean, np.float64)
    if not (np.isfinite(variance).all() and np.isfinite(mean).all() and (variance + norm.eps > 0).all()):
        raise Refused("its running statistics are not finite, or a variance and eps together are not positive")
    scale = 1 / np.sqrt(variance + norm.eps)
    if norm.scale is not None:
        scale = scale * np.asarray(norm.scale, np.float64)
    offset = -mean if bias is None else np.asarray(bias, np.float64) - mean
    offset = offset * scale + (0.0 if norm.offset is None else np.asarray(norm.offset, np.float64))
    wide = np.asarray(kernel, np.float64).reshape(view or kernel.shape) * scale.reshape(channels)
    with np.errstate(over="ignore"):
        result = Folded(wide.reshape(kernel.shape).astype(kernel.dtype), offset.astype(kernel.dtype))
    if not all(np.isfinite(part).all() for part in result):
        raise Refused(f"the folded kernel or bias would not be finite in {kernel.dtype}")
    return result
