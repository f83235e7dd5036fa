"""The model of TensorFlow Addons' tutorial on normalizations, and its training.

https://www.tensorflow.org/addons/tutorials/layers_normalizations
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from ..keras import BatchNormalization, GroupNormalization, InstanceNormalization, LayerNormalization
from .digits import Digits

BATCH = 32
# The first steps compile, and the next ones fill caches.
_WARM_UP = 20

OnStep = Callable[[int, float], None]


@dataclass(frozen=True)
class Outcome:
    """What came of training with one norm.

    Attributes:
        loss, accuracy: as Keras reports them: means over all steps, with dropout, while the weights still change.
        held_out_accuracy: of the trained model on digits that it has not seen.
        ms_a_step: the median, without the first steps.
        losses, accuracies: what Keras reported after each step.
    """

    loss: float
    accuracy: float
    held_out_accuracy: float
    ms_a_step: float
    losses: list[float] = field(repr=False)
    accuracies: list[float] = field(repr=False)


def layers(norm: str) -> list[Any]:
    """The layer of that name with the tutorial's arguments, or none."""
    if norm == "group":
        return [GroupNormalization(groups=5, axis=3)]
    if norm == "instance":
        random = "random_uniform"
        return [InstanceNormalization(3, center=True, scale=True, beta_initializer=random, gamma_initializer=random)]
    if norm == "layer":
        return [LayerNormalization(axis=1, center=True, scale=True)]
    if norm == "batch":
        return [BatchNormalization(axis=3)]
    return []


def network(norms: list[Any]) -> Any:
    """The tutorial's network, with these layers after the convolution."""
    made = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Reshape((28, 28, 1)),
            keras.layers.Conv2D(filters=10, kernel_size=(3, 3), data_format="channels_last"),
            *norms,
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    made.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return made


def order(count: int, steps: int, seed: int) -> NDArray[np.int64]:
    """Which of `count` digits the steps see: all in random order, then all in another, until the steps are filled."""
    generator = np.random.default_rng(seed)
    passes = -(-steps * BATCH // count)
    return np.concatenate([generator.permutation(count) for _ in range(passes)])[: steps * BATCH]


def train(norm: str, digits: Digits, steps: int, seed: int, on_step: OnStep) -> Outcome:
    """Train the tutorial's network once. The same seed gives every norm the same digits in the same order.

    Args:
        on_step: called after every step with the number of steps done and the loss that Keras reports.
    """
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    trained = network(layers(norm))
    seen = order(len(digits.y), steps, seed)
    watch = _Watch(on_step)
    trained.fit(digits.x[seen], digits.y[seen], batch_size=BATCH, shuffle=False, verbose=0, callbacks=[watch])
    _, held_out = trained.evaluate(digits.x_held, digits.y_held, batch_size=250, verbose=0)
    durations = np.diff(watch.times).tolist()
    return Outcome(
        loss=watch.losses[-1],
        accuracy=watch.accuracies[-1],
        held_out_accuracy=float(held_out),
        ms_a_step=1000 * statistics.median(durations[_WARM_UP:] or durations),
        losses=watch.losses,
        accuracies=watch.accuracies,
    )


class _Watch(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, on_step: OnStep) -> None:
        super().__init__()
        self.on_step = on_step
        self.losses: list[float] = []
        self.accuracies: list[float] = []
        self.times: list[float] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.times.append(time.perf_counter())

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        reported = logs or {}
        self.losses.append(float(reported["loss"]))
        self.accuracies.append(float(reported["accuracy"]))
        self.times.append(time.perf_counter())
        self.on_step(batch + 1, self.losses[-1])
