"""A Keras model from a file: the one place that knows which files those are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from .. import keras as anynorm_layers
from .. import rescue
from .receipt import first_line

__all__ = ["anynorm_layers", "load"]


def load(path: Path) -> Any:
    """A model, not compiled. Code in the file, such as Lambda layers, is not run.

    What Keras 3 cannot read is left to `anynorm.rescue`, which knows older files; where that fails too, both say why.

    Raises:
        ValueError: the file is no model that can be read.
    """
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as failed:  # whatever Keras raises of a file that it does not understand
        try:
            return rescue.load(path)
        except rescue.RescueError as refused:
            raise ValueError(f"{refused}; and Keras 3 says: {first_line(failed)}") from refused
