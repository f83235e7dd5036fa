"""Batch normalization whose statistics are those of all processes' batches together."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, distributed
from torch.fx import Proxy

from ..ops.torch_fused import Fused
from ..ops.torch_processes import normalize as together
from . import running
from .batch import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from .sentences import BATCH
from .turn import class_of, turn

_OURS = (BatchNorm1d, BatchNorm2d, BatchNorm3d)
_KNOWN = (*_OURS, *(getattr(torch.nn, kind.__name__) for kind in _OURS), torch.nn.SyncBatchNorm)


class SyncBatchNorm(BatchNorm):
    """Batch normalization over the batches of all processes of a group; on CPUs (gloo) too, unlike torch.nn's.

        y = (x - mean) / sqrt(variance + eps) * weight + bias

    Counts, means and variances of the processes are combined by count, so that their batches may have different sizes,
    or none. Where no process group was made, and outside training, it is `BatchNorm1d`, for an input of any rank.
    Means travel and are combined as float64, since float32 cannot carry one at offset 1e6. It is no subclass of
    `torch.nn.SyncBatchNorm`, which DistributedDataParallel refuses on CPUs, but of what all batch normalizations are.

    Source: Ioffe, Szegedy 2015, arXiv:1502.03167.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias, correction, activation: as
            for `BatchNorm1d`.
        process_group: whose processes share their statistics; None for all.

    Call arguments, result and errors: those of `BatchNorm1d`.

    >>> import torch
    >>> from anynorm.torch import SyncBatchNorm
    >>> SyncBatchNorm(6)(torch.randn(4, 6, 8, 8)).shape
    torch.Size([4, 6, 8, 8])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        correction: int = 1,
        activation: str | None = None,
    ) -> None:
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            device,
            dtype,
            bias=bias,
            correction=correction,
            activation=activation,
        )
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"the input must be (n, c, ...), and its shape is {tuple(input.shape)}")

    def forward(
        self,
        input: Tensor,
        mask: Tensor | None = None,
        residual: Tensor | None = None,
        modulation: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        group = self._processes() if self.training else None
        if group is None or isinstance(input, Proxy):
            return super().forward(input, mask, residual=residual, modulation=modulation)
        self._check_input_dim(input)
        self.check_channels(input, self.num_features)
        weight, bias = self.weight_and_bias()
        fused = Fused(residual, modulation, self.activation)
        y, mean, variance, count = fused.around(
            lambda x: together(x, weight, bias, mask, BATCH, self.eps, group), input, BATCH
        )
        running_mean, running_var, momentum = self.statistics()
        if running_mean is not None and running_var is not None:
            running.move(running_mean, running_var, mean, variance, count, momentum, self.correction)
        return y

    def _processes(self) -> Any:
        """The group, unless there is but one process in it."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return None
        group = self.process_group or distributed.group.WORLD
        return group if distributed.get_world_size(group) > 1 else None

    @classmethod
    def convert_sync_batchnorm(cls, module: torch.nn.Module, process_group: Any = None) -> torch.nn.Module:
        """Turn every batch normalization in a module, torch.nn's or anynorm's, into one of these, in place.

        A lazy one becomes it with its first input, a parametrized one stays parametrized. Subclasses, which may have a
        forward of their own, keep their class: those of synchronized ones get the process group, others are left alone,
        with a warning that names them.

        >>> import torch
        >>> from anynorm.torch import SyncBatchNorm
        >>> SyncBatchNorm.convert_sync_batchnorm(torch.nn.Sequential(torch.nn.BatchNorm2d(6)))[0]
        SyncBatchNorm(6, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
        """
        left = []
        for name, found in module.named_modules():
            if not isinstance(found, torch.nn.modules.batchnorm._BatchNorm):
                continue
            if class_of(found) in (*_KNOWN, SyncBatchNorm, cls):
                turn(found, cls)
            elif not isinstance(found, SyncBatchNorm | torch.nn.SyncBatchNorm):
                left.append(f"{name or 'the model'} ({class_of(found).__name__})")
                continue
            found.process_group = process_group
        if left:
            warnings.warn(
                f"not synchronized: {', '.join(left)}, of subclasses that may have a forward of their own; derive "
                "those classes from SyncBatchNorm",
                stacklevel=2,
            )
        return module
