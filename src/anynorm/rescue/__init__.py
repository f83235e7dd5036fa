"""Old Keras models, TensorFlow Addons' among them, as Keras 3 models.

    from anynorm import rescue
    model = rescue.load("old.h5")                         # or .keras of Keras 2, or a SavedModel folder
    model, report = rescue.load("old.h5", report=True)
    rescue.load_weights(model, "old_weights.h5")

On the command line: `anynorm rescue OLD -o NEW.keras`.
"""

from .errors import RescueError
from .load import convert, load, load_weights
from .report import Report, Row

__all__ = ["Report", "RescueError", "Row", "convert", "load", "load_weights"]
