"""Rescue from end to end: a file in, a Keras 3 model out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from ..files import replacing
from .errors import RescueError, blaming
from .fill import Filler
from .graph import Builder, survey
from .layout import part_of
from .report import Report
from .sources import Source, opened

Progress = Callable[[int, int], None]
# Weights that a new layer has and the old one had not: a length or a vector for the outputs of a kernel.
SPARE = 4096


def load(
    path: str | os.PathLike[str], *, report: bool = False, unsafe: bool = False, progress: Progress | None = None
) -> Any:
    """A model that Keras 2 saved, as a Keras 3 model that gives the same outputs.

    Args:
        path: a `.h5`, `.hdf5` or `.keras` file or a SavedModel folder of a Sequential or functional model of ordinary
            Keras layers, normalizations of TensorFlow Addons and those of keras-contrib. What Keras 3 computes
            otherwise under the same name, such as `hard_sigmoid`, becomes the old function, or is refused. A layer that
            is in several models becomes one in each, since Keras 3 opens no file of the other; the report says so.
            TensorFlow is needed for `IntegerLookup` alone, as by Keras 3 itself.
        report: whether to return the `Report` too: what became of every layer.
        unsafe: whether code in the file may be run: Lambda layers.
        progress: is called with how many weights have been read and of how many.

    Returns:
        The model, not compiled; with `report`, model and report.

    Raises:
        RescueError: the file is none of these, is damaged, or has layers that cannot be taken over; it says which, and
            has what was found out until then as its `report`. Nothing of the file has been run.

    >>> load("missing.h5")
    Traceback (most recent call last):
    anynorm.rescue.errors.RescueError: there is no missing.h5
    """
    path = Path(path)
    with opened(path) as source:
        if source.config is None:
            raise RescueError("it has weights and no model; make the model and call load_weights(model, path)")
        made = Report(str(path), source.format, notes=source.notes)
        survey(source.config, made, unsafe)
        # The first build has no numbers to draw and takes no more memory than the file; if it fits, so does the second.
        _build(source, Builder(made, source.count + SPARE, unsafe), None)
        model = _build(source, Builder(made, None, unsafe), progress)
    return (model, made) if report else model


def _build(source: Source, builder: Builder, progress: Progress | None) -> Any:
    model = builder.model(source.config)
    with blaming("weights", MemoryError):
        filler = Filler(part_of(model, builder.old, builder.frozen), progress)
        source.fill(filler)
    builder.report.notes += [note for note in filler.shared if note not in builder.report.notes]
    for layer in builder.frozen:
        layer.trainable = False
    return model


def load_weights(model: Any, path: str | os.PathLike[str], *, progress: Progress | None = None) -> None:
    """Fill a Keras 3 model with the weights that Keras 2 saved of the same model.

    Args:
        model: a built model with the old one's layers, those of TensorFlow Addons from `anynorm.keras`.
        path: a file of weights, `.h5` of any age or `.weights.h5`, or one of those that `load` takes.
        progress: as for `load`.

    Raises:
        RescueError: the file is damaged, or its weights are not the model's; some of these may have changed by then.

    >>> load_weights(keras.Sequential(), "missing.weights.h5")
    Traceback (most recent call last):
    anynorm.rescue.errors.RescueError: there is no missing.weights.h5
    """
    with opened(Path(path)) as source:
        source.fill(Filler(part_of(model, {}, []), progress))


def convert(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    unsafe: bool = False,
    progress: Progress | None = None,
) -> Report:
    """`load` and save as a `.keras` file, which appears whole or not at all.

    Raises:
        RescueError: as `load`.
        ValueError: an output that does not end in `.keras`, or is the old file itself.
        OSError: an output that cannot be written.

    >>> convert("missing.h5", "new.keras")
    Traceback (most recent call last):
    anynorm.rescue.errors.RescueError: there is no missing.h5
    """
    output = Path(output)
    if output.suffix != ".keras":
        raise ValueError(f'"{output}" must end in .keras, the format of Keras 3')
    if output.exists() and os.path.exists(path) and output.samefile(path):
        raise ValueError(f"{output} is the old file, which would be lost; give the new one another name")
    # The folder is looked for first: reading may take long.
    with replacing(output) as temporary:
        model, report = load(path, report=True, unsafe=unsafe, progress=progress)
        keras.saving.save_model(model, temporary)
    return report
