"""A Keras model from a file: the one place that knows which files those are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from .. import keras as anynorm_layers
from .. import rescue

__all__ = ["anynorm_layers", "load"]


def load(path: Path) -> Any:
    """A model, not compiled. Code in the file, such as Lambda layers, is not run.

    What Keras 3 cannot read is left to `anynorm.rescue`, which knows older files.

    Raises:
        ValueError: the file is no model that can be read.
    """
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception:  # whatever Keras raises of a file that it does not understand
        return rescue.load(path)
