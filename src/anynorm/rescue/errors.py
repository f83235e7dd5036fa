"""The error that says why a file cannot be rescued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class RescueError(ValueError):
    """A file that cannot be rescued, and why.

    Attributes:
        report: what was found out about the model before, or None.

    >>> raise RescueError("model.h5: no such layer")
    Traceback (most recent call last):
    anynorm.rescue.errors.RescueError: model.h5: no such layer
    """

    report: Any = None


BROKEN: tuple[type[Exception], ...] = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip


@contextmanager
def blaming(what: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what a broken file makes the code that reads it raise into a `RescueError` about `what`."""
    try:
        yield
    except RescueError:
        raise
    except (*BROKEN, *more) as error:
        words = " ".join(str(error).split())
        raise RescueError(f"{what}: {words[:300] or type(error).__name__}") from error
