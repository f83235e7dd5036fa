"""Normalization modules for PyTorch: torch.nn's under the same names, for a change of the import.

Each is a subclass of torch.nn's class with its constructor, parameters, buffers and `state_dict`, so that checkpoints
move both ways and `isinstance` keeps working. What is new: `mask` in every call, statistics that are right at any
offset and size of the input, and errors where torch goes on with a wrong number of channels or with statistics over
one element. Importing this module imports torch and no other framework.
"""

from . import functional
from .batch import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .filter_response import TLU, FilterResponseNorm
from .group import GroupNorm
from .instance import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from .layer import LayerNorm, LayerNorm2d, RMSNorm, RMSNorm2d
from .replace import replace_norms
from .sentence import Norm
from .sync import SyncBatchNorm

__all__ = [  # noqa: RUF022 - in the alphabet's order, TLU too, which is no constant
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "FilterResponseNorm",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LayerNorm2d",
    "Norm",
    "RMSNorm",
    "RMSNorm2d",
    "SyncBatchNorm",
    "TLU",
    "functional",
    "replace_norms",
]
