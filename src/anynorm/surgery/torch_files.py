"""Files of tensors: what `torch.save` wrote of a state dictionary, and safetensors. Nothing in them is run."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from .receipt import first_line
from .torch_facts import facts_of_state

__all__ = ["facts_of_state", "read", "read_safetensors"]


def read(path: Path) -> Mapping[str, Any]:
    """A dictionary that `torch.save` wrote.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is none, or has objects whose loading would run code.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as refused:
        if "Unsupported global" in str(refused) or "Weights only load failed" in str(refused):
            raise ValueError(
                f"{path} is no file of tensors, or has objects whose loading would run code, such as a whole model; "
                "save model.state_dict() instead"
            ) from refused
        raise ValueError(f"{path} cannot be read: {refused}") from refused
    except Exception as damaged:  # whatever torch raises of a file that it does not understand
        # Of one that is cut short too, but without a name: that file was opened.
        if isinstance(damaged, OSError) and damaged.filename is not None:
            raise
        if "TorchScript" in str(damaged):
            raise ValueError(f"{path} is a scripted model, which has code; save its state_dict() instead") from damaged
        why = _why(path, damaged)
        raise ValueError(f"{path} is no file that torch.save wrote of a state_dict, or is damaged{why}") from damaged
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} has a {type(state).__name__}, and no dictionary of tensors")
    return state


def _why(path: Path, damaged: Exception) -> str:
    """More about a damaged file, where the error tells it; of most it tells where torch's reader stood."""
    if not path.stat().st_size:
        return ": it is empty"
    return f": {first_line(damaged)}" if isinstance(damaged, RuntimeError) else ""


def read_safetensors(path: Path) -> Mapping[str, Any]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: it is none, or the package for it is not installed.
    """
    if importlib.util.find_spec("safetensors") is None:
        raise ValueError(f"{path} needs the package safetensors: pip install safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: Mapping[str, Any] = load_file(path)
    except SafetensorError as damaged:
        raise ValueError(f"{path} is no safetensors file, or is damaged: {damaged}") from damaged
    return tensors
