"""What people have as data, as one batch of inputs after the other, and a bar that shows how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

Advance = Callable[[int], None]


def batches(data: Any, size: int, limit: int | None) -> tuple[Iterator[Any], int | None]:
    """The inputs of each batch, and how many batches there are where the data says so.

    Args:
        data: an array of samples, which is cut into batches of `size`; or batches from any iterable, or from something
            with `num_batches` and an index, as Keras has it. Of a batch that is a tuple or list, such as (x, y), the
            first entry is the input.
        limit: take at most so many.
    """
    if isinstance(data, tuple):
        raise TypeError("data is one array of inputs, or an iterable of batches, each an input or (input, target)")
    if isinstance(data, Mapping):
        raise TypeError("data is a dictionary: put it into a list where it is one batch of named inputs")
    if size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"a batch has at least one sample, and one batch is needed: {size=}, {limit=}")
    made: Iterator[Any]
    total: int | None
    if hasattr(data, "shape"):
        starts = range(0, data.shape[0] if data.shape else 0, size)
        made, total = (data[start : start + size] for start in starts), len(starts)
    elif hasattr(data, "num_batches") and hasattr(data, "__getitem__"):
        made, total = (_input(data[i]) for i in range(data.num_batches)), data.num_batches
    else:
        made, total = (_input(batch) for batch in data), _length(data)
    if limit is not None:
        made, total = islice(made, limit), limit if total is None else min(limit, total)
    return made, total


def _input(batch: Any) -> Any:
    if isinstance(batch, tuple | list):
        if not len(batch):
            raise ValueError("a batch is empty; give inputs, or (inputs, targets)")
        return batch[0]
    return batch


def _length(data: Any) -> int | None:
    try:
        length = len(data)
    except TypeError:
        return None
    # Datasets of TensorFlow say a negative number where they do not know.
    return length if length >= 0 else None


@contextmanager
def shown(progress: bool | Callable[[int, int | None], None], total: int | None) -> Iterator[Advance]:
    """What to call with the number of batches done: a bar on a terminal where rich is installed, or the caller's."""
    if not isinstance(progress, bool):
        tell = progress
        yield lambda done: tell(done, total)
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ModuleNotFoundError:
        progress = False
    if not progress:
        yield lambda done: None
        return
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("statistics", total=total)
        yield lambda done: bar.update(task, completed=done)
