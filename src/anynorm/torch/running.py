"""Running statistics: how they move."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..ops import torch as ops


def is_repeated() -> bool:
    """Whether this forward pass runs inside a backward pass: activation checkpointing's second, of the same batch.

    torch's checkpointing runs it there in both of its variants, and so do all that recompute in a backward function.
    torch.compile around a checkpoint does not repeat what moves a buffer; a compiled program inside one asks when it
    runs, by `ops.is_first_pass`.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _asks_later() -> bool:
    # What is exported is not run inside a checkpoint, and other programs cannot read the operator.
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def is_captured(buffer: Tensor) -> bool:
    """Whether the transforms of torch.func that run here were not given this buffer, so that they forbid to move it."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None or ops.is_traced():
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(buffer)


def outside_transforms() -> AbstractContextManager[Any]:
    """As though no transform ran: what moves is no part of the function of which a derivative is taken."""
    return torch._functorch.pyfunctorch.temporarily_clear_interpreter_stack()


def _primal(value: Any) -> Any:
    """The value without the levels at which derivatives are taken; one that vmap made stays as it is."""
    while isinstance(value, Tensor) and torch._C._functorch.is_gradtrackingtensor(value):
        value = torch._C._functorch.get_unwrapped(value)
    return value


def move(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    variance: Tensor,
    count: int | Tensor,
    momentum: float | Tensor,
    correction: int = 1,
) -> None:
    """running += momentum * (batch - running), in place; of what is given for each sample, the average counts.

    Args:
        running_mean, running_var: (c,), of any floating-point type.
        mean, variance: the batch's, biased; (c,) or (n, c).
        count: how many elements each of them is over, one number or of their shape.
        momentum: between 0 and 1.
        correction: the variance is divided by count - correction. Where that is not positive it does not move, and
            where nothing was counted neither does the mean.
    """
    if is_repeated():
        return
    if is_captured(running_mean):
        mean, variance, count = (_primal(value) for value in (mean, variance, count))
        if not torch._C._functorch.is_batchedtensor(mean):
            with outside_transforms():
                count = count.detach() if isinstance(count, Tensor) else count
                move(running_mean, running_var, mean.detach(), variance.detach(), count, momentum, correction)
            return
    if _asks_later():
        momentum = momentum * ops.is_first_pass(mean)
    if isinstance(count, Tensor):
        _step(running_mean, *_average_of_some(mean, count > 0, momentum))
        variance = variance * (count / (count - correction).clamp_min(1))
        _step(running_var, *_average_of_some(variance, count > correction, momentum))
        return
    if mean.ndim == 2:
        mean, variance = mean.mean(0), variance.mean(0)
    if count > 0:
        _step(running_mean, mean, momentum)
    if count > correction:
        _step(running_var, variance, momentum, count / (count - correction))


def counted(input: Tensor, statistic: Tensor, mask: Tensor | None) -> int | Tensor:
    """How many elements of the input (n, c, ...) each statistic, (c,) or (n, c), is over."""
    if mask is not None:
        kept = (1,) if statistic.ndim == 1 else (0, 1)
        return mask.expand(input.shape).sum(dim=[d for d in range(input.ndim) if d not in kept])
    return input.numel() // statistic.numel() if statistic.numel() else 0


def _average_of_some(statistic: Tensor, some: Tensor, momentum: float | Tensor) -> tuple[Tensor, Tensor]:
    """The average where `some`, and the momentum, 0 where there is none."""
    statistic, some = torch.atleast_2d(statistic), torch.atleast_2d(some)
    number = some.sum(0)
    return torch.where(some, statistic, 0).sum(0) / number.clamp_min(1), momentum * (number > 0).to(statistic.dtype)


def _step(running: Tensor, batch: Tensor, momentum: float | Tensor, factor: float = 1.0) -> None:
    """running += momentum * (factor * batch - running)."""
    if type(momentum) is float and running.dtype == batch.dtype:
        # In this form no intermediate array is made, which for few channels is most of the time.
        try:
            running.lerp_(batch, momentum)
        except RuntimeError as error:
            if not torch._C._functorch.is_batchedtensor(batch):
                raise
            raise ValueError(
                "under vmap every batch would move the same running statistics: give each its own, as "
                "torch.func.stack_module_state does, or make the layers with track_running_stats=False"
            ) from error
        if factor != 1.0:
            running.add_(batch, alpha=momentum * (factor - 1.0))
        return
    if isinstance(momentum, Tensor):
        momentum = momentum.to(batch.dtype)
    running.copy_(running.to(batch.dtype).lerp(batch * factor, momentum))


def warn_of_one_value(input: Tensor) -> None:
    """Of a batch with at most one value a channel.

    Not an error: the last batch of an epoch may have one sample, and training is to go on.
    """
    if input.numel() and not torch.compiler.is_compiling():
        warnings.warn(
            f"a batch of shape {tuple(input.shape)} has one value a channel, so that nothing of it is left, and the "
            "running variance stays as it is; drop the last batch of an epoch, or make it larger",
            stacklevel=4,
        )


def check_length(input: Tensor, running_mean: Tensor, running_var: Tensor) -> None:
    """Raise unless both have one value a channel."""
    channels = input.shape[1:2]
    if running_mean.shape != channels or running_var.shape != channels:
        raise ValueError(
            f"running statistics must have one value for each of the {input.shape[1]} channels of an input of shape "
            f"{tuple(input.shape)}, and their shapes are {tuple(running_mean.shape)} and {tuple(running_var.shape)}"
        )


def momentum_of(module: Any) -> float | Tensor:
    """A module's momentum, and 1 / number of batches where it has none; the batch at hand is counted."""
    number, momentum = module._buffers["num_batches_tracked"], module.momentum
    if not is_repeated():
        with outside_transforms() if is_captured(number) else nullcontext():
            number.add_(ops.is_first_pass(number) if _asks_later() else 1)
    if momentum is not None:
        return momentum
    # A plain number makes the step of the statistics one operation; what is traced or batched has none to give.
    is_plain = number.is_cpu and not ops.is_traced() and torch._C._functorch.peek_interpreter_stack() is None
    return 1.0 / (number.item() if is_plain else number)
