"""What the commands share: how they read lengths, report errors and keep frameworks quiet."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import click

# What a framework is called when it is installed: TensorFlow comes under several names.
DISTRIBUTIONS = {
    "numpy": ("numpy",),
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-macos", "tensorflow-intel", "tf-nightly"),
    "jax": ("jax",),
    "torch": ("torch",),
    "keras": ("keras", "keras-nightly"),
    "flax": ("flax",),
}


@contextmanager
def reported() -> Iterator[None]:
    """Turn what is wrong with the input into a message and exit status 2, and what else fails into one and 1."""
    try:
        yield
    except (ValueError, TypeError) as wrong:
        raise click.UsageError(str(wrong)) from wrong
    except ModuleNotFoundError as missing:
        name = (missing.name or "").partition(".")[0]
        extra = {"rich": "cli", "matplotlib": "cli", "mlxtend": "demo"}.get(name)
        wanted = f"'anynorm[{extra}]'" if extra else name
        raise click.ClickException(f"{name} is not installed: pip install {wanted}") from missing
    except OSError as failed:
        raise click.ClickException(f"{failed.strerror or failed}: {failed.filename or ''}".rstrip(": ")) from failed


def choose_backend() -> None:
    """Keras computes by TensorFlow unless it is told otherwise: where that is missing, by one that is there.

    TensorFlow's C++ code, if it is the one, is not to talk.
    """
    there = [name for name in ("tensorflow", "jax", "torch") if find_spec(name) is not None]
    if there and there[0] != "tensorflow" and configured_backend() in (None, "tensorflow"):
        os.environ.setdefault("KERAS_BACKEND", there[0])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def keras_file() -> Path:
    """The configuration file that Keras reads, and writes where there is none."""
    home = os.path.expanduser("~")
    default = os.path.join(home if os.access(home, os.W_OK) else "/tmp", ".keras")
    return Path(os.path.expanduser(os.path.join(os.environ.get("KERAS_HOME", default), "keras.json")))


def configured_backend() -> str | None:
    """The backend that this file names; None without a readable one."""
    try:
        return str(json.loads(keras_file().read_text())["backend"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def hushed() -> Iterator[None]:
    """Without what C++ code writes to stderr before its log levels hold, as TensorFlow does while it is imported."""
    try:
        kept = os.dup(2)
    except OSError:  # closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def import_keras() -> None:
    """Keras before what needs it, so that its backend is chosen and its C++ code is not heard."""
    choose_backend()
    with hushed():
        import_module("keras")
        # Keras imports it to write a layer's configuration, on whatever backend, and does without where that fails.
        with suppress(ImportError):
            import_module("tensorflow")


def lengths(texts: tuple[str, ...], option: str) -> dict[str, int]:
    """Read `n=4,c=6` or several of it.

    >>> lengths(("n=4,c=6", "g=2"), "--shape")
    {'n': 4, 'c': 6, 'g': 2}
    """
    found: dict[str, int] = {}
    for word in ",".join(texts).replace(" ", "").split(","):
        name, equals, number = word.partition("=")
        if not word:
            continue
        if not equals or not name.isidentifier() or not number.isdecimal() or int(number) < 1:
            raise click.BadParameter(f'"{word}" is not an axis and its length, as in c=6', param_hint=option)
        if name in found:
            raise click.BadParameter(f"the axis {name} has two lengths", param_hint=option)
        found[name] = int(number)
    return found


def installed(distributions: tuple[str, ...]) -> str | None:
    """The version of the first of these distributions that is installed; nothing is imported."""
    for name in distributions:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
