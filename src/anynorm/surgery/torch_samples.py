"""Where a torch model has its samples, found out by changing one of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree

from .torch_probe import Probe

# The indices along an axis that are changed, one after the other.
_TWO = (0, 1)
# By a norm's name and for each of its calls: what tells one index of axis 0 from another.
_Marks = dict[str, list[list[int]]]


def mixing(model: nn.Module, probe: Probe) -> dict[str, bool] | None:
    """Of each norm that a probe input reaches, whether statistics over all axes but the first would mix samples.

    An axis of the input has the samples if what depends on its index 0 and what depends on its index 1 are different
    parts of the outputs; of several such axes the first is taken. Where both reach one index of axis 0 of a norm's
    input, that axis is another one, as of the positions of (length, batch, channels).

    Returns:
        None where no axis keeps its indices apart: there is no input, or one of a single sample, the model is random,
        or it returns something of all samples, such as a loss.
    """
    if not probe.outputs or probe.repeated or probe.partly or probe.guessed_rank:
        return None
    outputs, marks = _seen(model, probe, probe.inputs)
    for inputs in _changed(probe.inputs):
        try:
            runs = [_seen(model, probe, one) for one in inputs]
        except Exception:  # whatever a model raises that such an input does not fit
            continue
        parts = [_differing(outputs, run) for run, _ in runs]
        if all(part.any() for part in parts) and not (parts[0] & parts[1]).any():
            return {name: _overlap(calls, *(of.get(name, []) for _, of in runs)) for name, calls in marks.items()}
    return None


def _seen(model: nn.Module, probe: Probe, inputs: Any) -> tuple[list[np.ndarray], _Marks]:
    marks: _Marks = {}
    outputs = probe.run(model, inputs, lambda name, x: marks.setdefault(name, []).append(_marked(x)))
    return outputs or [], marks


def _marked(x: torch.Tensor) -> list[int]:
    # Hashes, since the inputs of all norms of a large model would take much memory.
    if x.is_nested or not x.dim():
        return []
    return [hash(row.reshape(-1).view(torch.uint8).numpy().tobytes()) for row in x.detach().cpu()]


def _changed(inputs: Any) -> Iterator[list[Any]]:
    """For each axis two other inputs, each with one index of it changed: in all tensors, or in the first alone."""
    leaves, structure = _pytree.tree_flatten(inputs)
    tensors = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor) and x.dtype != torch.bool]
    for axis in range(max((leaves[i].dim() for i in tensors), default=0)):
        long = [i for i in tensors if leaves[i].dim() > axis and leaves[i].shape[axis] >= len(_TWO)]
        for which in (long, long[:1]) if len(long) > 1 else (long,) if long else ():
            yield [
                _pytree.tree_unflatten(
                    [_other(x, axis, index) if i in which else x for i, x in enumerate(leaves)], structure
                )
                for index in _TWO
            ]


def _other(x: torch.Tensor, axis: int, index: int) -> torch.Tensor:
    """The same but for one index: by noise, or integers by others that occur."""
    x = x.clone()
    part = x.select(axis, index)
    if x.is_floating_point() or x.is_complex():
        noise = np.random.default_rng(0).normal(size=part.shape) * (1 + float(x.abs().float().max()))
        part += torch.from_numpy(noise).to(x.device, x.dtype)
    else:
        low, high = x.min(), x.max()
        part.copy_(torch.where(part == low, high, low))
    return x


def _differing(one: list[np.ndarray], other: list[np.ndarray]) -> np.ndarray:
    """Where outputs differ, all in one row; everywhere if in shape."""
    if [y.shape for y in one] != [y.shape for y in other]:
        return np.ones(sum(y.size for y in one), bool)
    parts = [(a != b) & ~(np.isnan(a) & np.isnan(b)) for a, b in zip(one, other, strict=True)]
    return np.concatenate([part.ravel() for part in parts])


def _overlap(calls: list[list[int]], first: list[list[int]], second: list[list[int]]) -> bool:
    """Whether both changes reached an index of axis 0, in any call; also where the calls are others."""
    if len({tuple(map(len, one)) for one in (calls, first, second)}) > 1:
        return True
    return any(
        a != b and a != c for marks in zip(calls, first, second, strict=True) for a, b, c in zip(*marks, strict=True)
    )
