"""A figure into a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")


def checked_suffix(path: Path) -> str:
    """The suffix of a picture's file, or an error that says which there are."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f'"{path}" must end in {", ".join(FORMATS[:-1])} or {FORMATS[-1]}, which says the format')
    return path.suffix.lower()


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the file's suffix says; on failure no file is left and an old one stays.

    Raises:
        ValueError: a suffix that is no format.
        OSError: the place cannot be written to.
    """
    from matplotlib import rc_context

    # An SVG without a date and with fixed identifiers is the same file every time it is drawn.
    metadata = {"Date": None} if checked_suffix(path) == ".svg" else {}
    with replacing(path) as temporary, rc_context({"svg.hashsalt": "anynorm"}):
        figure.savefig(temporary, dpi=200, facecolor="white", bbox_inches="tight", pad_inches=0.1, metadata=metadata)
