"""anynorm: normalization layers as sentences about axes, right, fast and the same in every framework.

    import anynorm
    y = anynorm.normalize(x, "n [...] (g [c])", g=8)     # NumPy, torch, JAX or TensorFlow

Layers are in `anynorm.keras`, `anynorm.torch` and `anynorm.nnx`. Importing `anynorm` imports NumPy and no framework.
"""

from .ops import moments, normalize
from .pattern import PatternError
from .spec import NormSpec

__version__ = "0.1.0"
__all__ = ["NormSpec", "PatternError", "moments", "normalize"]
