"""The norms of a model, in memory or in a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .facts import Facts
from .sides import side_of

_KERAS = (".keras", ".h5", ".hdf5")
_TENSORS = (".safetensors",)


def inspect(model: Any, *, batch: int | None = None, probe: Any = None) -> list[Facts]:
    """What there is to know about each norm of a model, and to doubt.

    Args:
        model: of torch or Keras; or the path of a file that `keras.saving.load_model` reads, of a torch state
            dictionary, or of a `.safetensors` file where that package is installed. A file of tensors has no classes:
            its norms are found by their names and shapes, and there is less to say about them.
        batch: the size of the batches that the model is trained with.
        probe: an input, as for `swap`, that shows how large the norms' inputs are.

    Returns:
        The norms' facts, in the model's order.

    Raises:
        TypeError: no model of Keras or torch.
        ValueError: a file that is none of these, is damaged, or would run code when loaded.
        OSError: there is no such file.

    Doubts are: statistics over few elements, or over one; groups of one channel; an eps that is large for the running
    variance; a running variance of zero, or one that was never updated; batch normalization with a batch below 8;
    numbers that are not finite.

    >>> import torch
    >>> (facts,) = inspect(torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6)), batch=2)
    >>> facts.sentence, facts.doubts[0]
    ('[n] c [...]', 'a batch of 2: below 8 batch statistics are too noisy; freeze or swap it')
    """
    if isinstance(model, str | os.PathLike):
        return _of_file(Path(model), batch)
    side = side_of(model)
    found: list[Facts] = side.facts(model, side.Probe(model, probe), batch)
    return found


def _of_file(path: Path, batch: int | None) -> list[Facts]:
    if not path.exists():
        raise FileNotFoundError(2, "no such file", str(path))
    if path.is_dir() or path.suffix.lower() in _KERAS:
        from . import keras_files

        return inspect(keras_files.load(path), batch=batch)
    from . import torch_files

    read = torch_files.read_safetensors if path.suffix.lower() in _TENSORS else torch_files.read
    return torch_files.facts_of_state(read(path), batch)
