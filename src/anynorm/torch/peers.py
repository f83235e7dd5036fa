"""The one list of torch.nn's norms: each one's counterpart here, and those that are made for inputs of one rank."""

from __future__ import annotations

import torch

from .batch import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .filter_response import FilterResponseNorm
from .group import GroupNorm
from .instance import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from .layer import LayerNorm, LayerNorm2d, RMSNorm, RMSNorm2d
from .sentence import Norm
from .sync import SyncBatchNorm

# By the rank of the input; BatchNorm1d takes (n, c) too.
BATCH = {2: BatchNorm1d, 3: BatchNorm1d, 4: BatchNorm2d, 5: BatchNorm3d}
INSTANCE = {3: InstanceNorm1d, 4: InstanceNorm2d, 5: InstanceNorm3d}
_NAMED = (*BATCH.values(), *INSTANCE.values(), GroupNorm, LayerNorm, RMSNorm, SyncBatchNorm)
BY_PEER = {getattr(torch.nn, kind.__name__): kind for kind in _NAMED}
# Every norm whose forward is known: a subclass of one of these may do something else.
KNOWN = frozenset((*BY_PEER, *_NAMED, LayerNorm2d, RMSNorm2d, FilterResponseNorm, Norm))
