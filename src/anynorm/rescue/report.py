"""What became of each layer of an old model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field


@dataclass
class Row:
    """One layer.

    Attributes:
        name: the layer's name in the old model, behind those of the models and wrappers that it is in.
        was: its class there.
        became: its class in the new model; "" where there is none.
        changes: what is different about it now.
        refused: why it could not be taken over; "" where it was.

    >>> Row("norm", "Addons>TLU", "anynorm>TLU").refused
    ''
    """

    name: str
    was: str
    became: str = ""
    changes: list[str] = field(default_factory=list)
    refused: str = ""


@dataclass
class Report:
    """What became of an old model.

    Attributes:
        path: the file.
        format: its format in words.
        rows: the layers.
        notes: what concerns no single layer.

    >>> print(Report("old.h5", "HDF5", [Row("norm", "Addons>TLU", "anynorm>TLU", ["name"])], ["not compiled"]))
    old.h5 (HDF5)
      norm: Addons>TLU -> anynorm>TLU; name
      not compiled
    """

    path: str
    format: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def refused(self) -> list[Row]:
        """The layers that could not be taken over."""
        return [row for row in self.rows if row.refused]

    def json(self) -> str:
        """All of it as JSON."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        lines = [f"{self.path} ({self.format})"]
        for row in self.rows:
            end = f"could not be taken over: {row.refused}" if row.refused else f"-> {row.became}"
            lines.append("  " + "; ".join([f"{row.name}: {row.was} {end}", *row.changes]))
        return "\n".join(lines + [f"  {note}" for note in self.notes])
