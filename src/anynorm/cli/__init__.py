"""The command line: `anynorm figure | inspect | rescue | doctor | demo`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say how to install what it needs."""
    try:
        from .app import app
    except ModuleNotFoundError as missing:
        if missing.name not in ("click", "rich"):
            raise
        print(f"The command line needs {missing.name}: pip install 'anynorm[cli]'", file=sys.stderr)
        raise SystemExit(1) from None
    app(prog_name="anynorm")
