"""The oracle: normalization and its gradients in float64, written from the equation on unmerged axes.

It is slow and plain on purpose and shares no code with what it checks: it reads the sentence by itself, and its
gradient is the chain rule through mean and variance rather than the projections that the kernels use.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def _axes(pattern: str, shape: tuple[int, ...], sizes: dict[str, int]) -> list[tuple[str, int, bool]]:
    """(name, length, shared) of every axis of the sentence, in order."""
    spread = len(shape) - len(re.sub(r"\([^)]*\)", "x", pattern.replace("[", " ").replace("]", " ")).split()) + 1
    text = pattern.replace("...", " ".join(f"_{i}" for i in range(spread)))
    axes: list[tuple[str, int, bool]] = []
    shared, dim, inside = False, 0, 0
    members: list[tuple[str, bool]] = []
    for token in re.findall(r"\w+|[\[\]()]", text):
        if token in "[]":
            shared = token == "["
        elif token == "(":
            inside = 1
        else:
            if token != ")":
                members.append((token, shared))
            if token == ")" or not inside:
                known = int(np.prod([sizes[name] for name, _ in members if name in sizes]))
                axes += [(name, sizes.get(name, shape[dim] // known), flag) for name, flag in members]
                members, inside, dim = [], 0, dim + 1
    return axes


class Reference:
    """One normalization of one array, every intermediate value kept in float64.

    Args:
        x: the array; any real type.
        pattern: the sentence.
        scale, offset: arrays whose elements follow the axes named in `affine`, in order.
        affine: the axes' names, such as `"g c"`; parentheses may stand or be left out.
        eps: added to the variance.
        remove: which moments are taken out.
        mask: true where an element counts; broadcasts against x.
        **sizes: lengths of axes.

    >>> Reference([[1.0, 3.0]], "n [c]", eps=0.0).y
    array([[-1.,  1.]])
    """

    def __init__(
        self,
        x: ArrayLike,
        pattern: str,
        scale: ArrayLike | None = None,
        offset: ArrayLike | None = None,
        affine: str = "",
        eps: float = 1e-5,
        remove: tuple[str, ...] = ("mean", "scale"),
        mask: ArrayLike | None = None,
        **sizes: int,
    ) -> None:
        given = np.asarray(x)
        self.shape = given.shape
        axes = _axes(pattern, given.shape, sizes)
        full = [length for _, length, _ in axes]
        self.x: Array = given.astype(np.float64).reshape(full)
        self.reduced = tuple(i for i, (_, _, shared) in enumerate(axes) if shared)
        carriers = set(re.findall(r"\w+|\.\.\.", affine))
        if "..." in carriers:
            carriers |= {name for name, *_ in axes if name.startswith("_")}
        self.affine = tuple(i for i, (name, *_) in enumerate(axes) if name in carriers)
        self.scale = self._spread(scale, 1.0)
        self.offset = self._spread(offset, 0.0)
        valid = np.ones(given.shape, bool) if mask is None else np.broadcast_to(np.asarray(mask, bool), given.shape)
        self.valid = valid.reshape(full)
        self.remove = remove
        count = self.valid.sum(self.reduced, keepdims=True)
        self.count = np.maximum(count, 1)
        seen = np.where(self.valid, self.x, 0.0)
        self.mean = seen.sum(self.reduced, keepdims=True) / self.count
        self.centre = self.mean if "mean" in remove else np.zeros_like(self.mean)
        self.d = self.x - self.centre
        self.variance = np.where(self.valid, self.d**2, 0.0).sum(self.reduced, keepdims=True) / self.count
        with np.errstate(divide="ignore"):
            self.std = np.sqrt(self.variance + eps) if "scale" in remove else np.ones_like(self.variance)
            self.inverse = np.where((count == 0) | (self.std == 0), 0.0, 1.0 / self.std)

    def _spread(self, values: ArrayLike | None, neutral: float) -> Array:
        lengths = [self.x.shape[i] if i in self.affine else 1 for i in range(self.x.ndim)]
        if values is None:
            return np.full(lengths, neutral)
        return np.asarray(values).astype(np.float64).reshape(lengths)

    @property
    def y(self) -> Array:
        """The normalized array, in the shape of x."""
        y: Array = self.d * self.inverse * self.scale + self.offset
        return y.reshape(self.shape)

    def backward(self, dy: ArrayLike) -> tuple[Array, Array, Array]:
        """Gradients of sum(y * dy): (dx in the shape of x, dscale and doffset flat), by the chain rule."""
        upstream = np.asarray(dy).astype(np.float64).reshape(self.x.shape)
        rest = tuple(i for i in range(self.x.ndim) if i not in self.affine)
        dscale = (upstream * self.d * self.inverse).sum(rest).ravel()
        doffset = upstream.sum(rest).ravel()
        dnormal = upstream * self.scale
        dx: Any = dnormal * self.inverse
        if "scale" in self.remove:
            dvariance = (dnormal * self.d * -0.5 * self.inverse**3).sum(self.reduced, keepdims=True)
            dx = dx + np.where(self.valid, dvariance * 2.0 * self.d / self.count, 0.0)
        if "mean" in self.remove:
            dmean = (-dnormal * self.inverse).sum(self.reduced, keepdims=True)
            dx = dx + np.where(self.valid, dmean / self.count, 0.0)
        return dx.reshape(self.shape), dscale, doffset
