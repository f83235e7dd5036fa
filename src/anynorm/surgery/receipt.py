"""What an operation on a model did: for people as a table, for programs as JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..files import replacing


@dataclass(frozen=True)
class Row:
    """A layer that was changed.

    Attributes:
        name: where it is in the model, as the framework writes it.
        was, became: what it was before and after.
        before, after: its numbers: parameters, running statistics among them.
        note: what else there is to know.

    >>> Row("bn1", "BatchNorm2d", "GroupNorm(8 groups)", 256, 128).after
    128
    """

    name: str
    was: str
    became: str
    before: int
    after: int
    note: str = ""


@dataclass(frozen=True)
class Refusal:
    """A layer that was left as it is, and why.

    >>> Refusal("bn1", "BatchNorm2d", "it is used twice").reason
    'it is used twice'
    """

    name: str
    was: str
    reason: str


@dataclass
class Receipt:
    """What was done to a model.

    `print` shows it as a table, `to_dict` gives it as plain numbers and strings, `save` writes those as JSON.

    Attributes:
        operation: which, in words.
        rows: the layers that were changed.
        refused: those that were not, and why.
        before, after: numbers in the whole model: parameters, running statistics among them; what several layers share
            counts once.
        difference: the largest difference between the model's outputs before and after, on the probe input, outside
            training; None where nothing could be run or compared, and a note says why.
        largest: the largest output before, which `difference` is to be seen against.
        probe: what the probe input was, or why there was none.
        notes: what concerns no single layer.

    >>> receipt = Receipt("swap: batch to group")
    >>> receipt.rows.append(Row("bn1", "BatchNorm2d", "GroupNorm", 256, 128, "8 groups"))
    >>> print(receipt)
    swap: batch to group
    layer  was          became     before  after
    bn1    BatchNorm2d  GroupNorm     256    128  8 groups
    1 layer changed, 0 refused; parameters and statistics: 0 before, 0 after
    """

    operation: str
    rows: list[Row] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    before: int = 0
    after: int = 0
    difference: float | None = None
    largest: float | None = None
    probe: str = ""
    notes: list[str] = field(default_factory=list)
    # How to give back what was changed; not part of what is saved.
    undo: Callable[[Any, bool], tuple[Any, Receipt]] | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The receipt without what `revert` needs.

        >>> Receipt("freeze").to_dict()["rows"]
        []
        """
        plain = {name: value for name, value in vars(self).items() if name not in ("undo", "rows", "refused")}
        rows, refused = ([asdict(row) for row in part] for part in (self.rows, self.refused))
        return {**plain, "rows": rows, "refused": refused}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as JSON; the file appears whole, or not at all, and an old one stays until then.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Receipt("freeze").save(Path(folder, "receipt.json"))
        ...     json.loads(Path(folder, "receipt.json").read_text())["operation"]
        'freeze'
        """
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def refuse(self, name: str, layer: object, reason: str) -> None:
        """Note that a layer stays as it is."""
        self.refused.append(Refusal(name, type(layer).__name__, reason))

    def __str__(self) -> str:
        lines = [self.operation]
        if self.rows:
            heads = ("layer", "was", "became", "before", "after")
            cells = [(row.name, row.was, row.became, f"{row.before:,}", f"{row.after:,}") for row in self.rows]
            widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
            for line, note in zip((heads, *cells), ("", *(row.note for row in self.rows)), strict=True):
                words = [word.ljust(width) for word, width in zip(line[:3], widths[:3], strict=True)]
                words += [word.rjust(width) for word, width in zip(line[3:], widths[3:], strict=True)]
                lines.append("  ".join([*words, note]).rstrip())
        lines += [f"refused: {one.name} ({one.was}): {one.reason}" for one in self.refused]
        changed = f"{len(self.rows)} layer{'s' * (len(self.rows) != 1)} changed, {len(self.refused)} refused"
        lines.append(f"{changed}; parameters and statistics: {self.before:,} before, {self.after:,} after")
        if self.difference is not None:
            lines.append(
                f"largest output difference {self.difference:.1e}, where the largest output is {self.largest:.1e}"
            )
        return "\n".join([*lines, *([f"probe: {self.probe}"] if self.probe else []), *self.notes])


def first_line(error: BaseException) -> str:
    """What an error says, without what some frameworks put around it.

    >>> first_line(ValueError("Exception encountered when calling Dense.call().\\n\\n\\x1b[1mno such key\\x1b[0m"))
    'no such key'
    """
    lines = [line for line in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Exception encountered when calling"):
        lines = lines[1:]
    return lines[0].strip() if lines else type(error).__name__
