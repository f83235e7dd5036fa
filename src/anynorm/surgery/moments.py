"""Mean and variance of many batches together, in float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass
class Moments:
    """Of all elements added so far, whatever the sizes of the batches that they came in.

        n = na + nb;  d = mean_b - mean_a
        mean = mean_a + d * nb / n;  M2 = M2_a + M2_b + d^2 * na * nb / n;  variance = M2 / n

    The d^2 term is what batches differ by; an average of their variances lacks it. No sum of squares is taken, which
    would cancel where the mean is large.

    Source: Chan, Golub, LeVeque 1979, Updating formulae and a pairwise algorithm for computing sample variances.

    >>> both = Moments()
    >>> both.add(np.float64(3), np.array([2.0]), np.array([1.0]))
    >>> both.add(np.float64(1), np.array([6.0]), np.array([0.0]))
    >>> both.mean, both.variance()
    (array([3.]), array([3.75]))
    """

    count: Array = field(default_factory=lambda: np.zeros(()))
    mean: Array = field(default_factory=lambda: np.zeros(()))
    squares: Array = field(default_factory=lambda: np.zeros(()))

    def add(self, count: Array, mean: Array, variance: Array) -> None:
        """Take in a batch of `count` elements a statistic, a number or one for each, with biased variance."""
        total = self.count + count
        share = np.divide(count, total, out=np.zeros_like(total), where=total > 0)
        between = np.where(count > 0, mean - self.mean, 0.0)
        self.mean = self.mean + between * share
        self.squares = self.squares + variance * count + between**2 * self.count * share
        self.count = total

    def variance(self, correction: int = 0) -> Array:
        """M2 / (n - correction); 0 where that has nothing to divide by."""
        number = np.broadcast_to(self.count - correction, self.squares.shape)
        return np.divide(self.squares, number, out=np.zeros_like(self.squares), where=number > 0)


def check_range(name: str, values: Array, dtype: str, largest: float) -> None:
    """Raise where running statistics are beyond what their type holds.

    >>> check_range("bn1", np.array([7e4]), "float16", 65504.0)
    Traceback (most recent call last):
    ValueError: the statistics of bn1 are beyond 6.55e+04, the most that float16 holds; they stay as they were
    """
    if np.abs(values).max(initial=0) > largest:
        raise ValueError(
            f"the statistics of {name} are beyond {largest:.3g}, the most that {dtype} holds; they stay as they were"
        )
