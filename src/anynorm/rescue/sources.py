"""The formats of old files: which one a path is, the configuration in it, and how its weights come into a model."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import fill
from .bundle import Bundle
from .errors import RescueError, blaming
from .fill import Filler, Stored
from .graph import DEEPEST
from .h5 import LARGEST_TEXT, MOST_COMPRESSED, Reader, parsed, reading
from .layout import snake
from .protobuf import fields, message, text


@dataclass
class Source:
    """An open old file.

    Attributes:
        format: its format in words.
        config: the model's configuration; None in a file of weights alone.
        count: how many numbers its weights have.
        notes: what it has besides that is not taken over.
        way, where: the function that puts its weights into a model, and what that needs.
        unread: says which of its arrays no layer has asked for.
    """

    format: str
    config: Any
    count: int
    notes: list[str]
    way: Any
    where: tuple[Any, ...]
    unread: Callable[[], list[str]]

    def fill(self, filler: Filler) -> None:
        self.way(filler, *self.where)
        filler.done()
        if left := self.unread():
            raise RescueError(f"the file has numbers that no layer of the model takes: {', '.join(left)[:300]}")


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """The file or folder at `path`, of whichever format."""
    if not path.exists():
        raise RescueError(f"there is no {path}")
    if not path.is_file() and not path.is_dir():
        raise RescueError(f"{path} is neither a file nor a folder")
    with blaming(str(path), MemoryError, zipfile.BadZipFile):
        if path.is_dir():
            yield _saved_model(path)
        elif zipfile.is_zipfile(path):
            with _archive(path) as source:
                yield source
        else:
            with reading(path) as reader:
                yield _hdf5(reader)


def _hdf5(reader: Reader) -> Source:
    _not_new(reader.attribute("", "keras_version"))
    group = "model_weights" if reader.is_group("model_weights") else ""
    prefix = f"{group}/" if group else ""
    config = reader.json("model_config")
    notes = []
    if reader.attribute("", "training_config") is not None or reader.is_group("optimizer_weights"):
        notes.append("how it was compiled, and the optimizer's state, are left out: compile it again")
    if any(reader.is_group(name) for name in fill.CONTAINERS) and config is None:
        return _numbered("weights of Keras 2.12 or later", None, reader, notes)
    names = reader.attributes(group, "layer_names")
    if not names:
        raise RescueError("an HDF5 file, but not one that Keras wrote: it names no layers")
    lists = {}
    for name in names:
        weights = reader.attributes(prefix + name, "weight_names")
        paths = [f"{prefix}{name}/{weight}" for weight in weights]
        lists[name] = [
            Stored(weight, reader.shape(path), partial(reader.array, path))
            for weight, path in zip(weights, paths, strict=True)
        ]
    top = reader.attributes(f"{prefix}top_level_model_weights", "weight_names") if reader.is_group(
        f"{prefix}top_level_model_weights"
    ) else []  # fmt: skip
    if top:
        raise RescueError(f"the model has weights outside its layers, {', '.join(top)[:80]}, which is not supported")
    kind = "weights in HDF5" if config is None else "HDF5"
    unread = partial(_unread, reader, [group])
    return Source(kind, config, reader.count(), notes, fill.from_lists, (lists,), unread)


def _numbered(kind: str, config: Any, reader: Reader, notes: list[str]) -> Source:
    unread = partial(_unread, reader, [name for name in fill.CONTAINERS if reader.is_group(name)])
    return Source(kind, config, reader.count(), notes, fill.from_numbers, (reader,), unread)


def _unread(reader: Reader, groups: list[str]) -> list[str]:
    return [path for group in groups for path, _ in reader.arrays(group) if path not in reader.seen]


def _not_new(version: Any) -> None:
    if isinstance(version, str) and version[:1].isdecimal() and int(version.partition(".")[0]) >= 3:
        raise RescueError(f"it was saved by Keras {version[:20]} and needs no rescue: use keras.saving.load_model")


@contextmanager
def _archive(path: Path) -> Iterator[Source]:
    """A `.keras` file: a zip archive with the configuration and the weights."""
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
        if "config.json" not in archive.namelist():
            raise RescueError(f"{path} is a zip archive without config.json, and so no model of Keras")
        config = parsed(_member(archive, "config.json", LARGEST_TEXT).read(), f"the config.json in {path}")
        _vocabularies(archive, config, "assets/")
        if "metadata.json" in archive.namelist():
            metadata = parsed(_member(archive, "metadata.json", LARGEST_TEXT).read(), f"the metadata.json in {path}")
            _not_new(metadata.get("keras_version") if isinstance(metadata, dict) else None)
        weights = Path(folder, "model.weights.h5")
        size = archive.getinfo("model.weights.h5").compress_size * MOST_COMPRESSED
        with _member(archive, "model.weights.h5", size) as member, weights.open("wb") as file:
            shutil.copyfileobj(member, file)
        with reading(weights, f"{path}: model.weights.h5") as reader:
            notes = []
            if isinstance(config, dict) and config.pop("compile_config", None):
                notes.append("how it was compiled, and the optimizer's state, are left out: compile it again")
            yield _numbered(".keras of Keras 2", config, reader, notes)


def _vocabularies(archive: zipfile.ZipFile, spec: Any, path: str, depth: int = 0) -> None:
    """Put the vocabularies that are files of their own into the configuration."""
    config = spec.get("config") if isinstance(spec, dict) else None
    inside = config.get("layers") if isinstance(config, dict) and depth < DEEPEST else None
    seen: Counter[str] = Counter()
    for one in inside if isinstance(inside, list) else []:
        if not isinstance(one, dict) or not isinstance(one.get("class_name"), str):
            continue
        name = snake(one["class_name"])
        place = f"{path}layers/{name}_{seen[name]}/" if seen[name] else f"{path}layers/{name}/"
        seen[name] += 1
        _vocabularies(archive, one, place, depth + 1)
        own, file = one.get("config"), f"{place}vocabulary.txt"
        if isinstance(own, dict) and own.get("vocabulary", "") is None and file in archive.namelist():
            own["vocabulary"] = [int(word) for word in _member(archive, file, LARGEST_TEXT).read().split()]


def _member(archive: zipfile.ZipFile, name: str, most: int) -> Any:
    if archive.getinfo(name).file_size > most:
        raise RescueError(f"{name} in the archive claims to be larger than it can be")
    return archive.open(name)


def _saved_model(folder: Path) -> Source:
    """A SavedModel, whose structure Keras wrote beside it."""
    path = folder / "keras_metadata.pb"
    if not path.is_file():
        raise RescueError(
            "no keras_metadata.pb in it: either no SavedModel, or saved without Keras or before TensorFlow 2.5"
        )
    if path.stat().st_size > LARGEST_TEXT:
        raise RescueError(f"{path} is larger than any model's structure")
    nodes = {}
    for field, value in fields(path.read_bytes()):
        node = dict(fields(message(value)))
        place = text(node.get(3, b""))
        if field != 1 or not place or place in nodes:
            raise RescueError(f"{path} has something else among the descriptions of layers; it is damaged")
        nodes[place] = text(node.get(5, b""))
    if "root" not in nodes:
        raise RescueError(f"{path} describes no model; it is cut off or damaged")
    found = {
        place: parsed(metadata, f"what {path} says of {place[:80]}") for place, metadata in nodes.items() if metadata
    }
    layers = {
        place.removeprefix("root.").replace(".", "/"): str(metadata.get("name"))
        for place, metadata in found.items()
        if isinstance(metadata, dict) and place.rpartition(".")[2].startswith("layer")
    }
    bundle = Bundle(folder)
    count = sum(entry.size for entry in bundle.entries.values())
    config = {"class_name": found["root"].get("class_name"), "config": found["root"].get("config")}
    notes = ["signatures, functions and the optimizer's state are left out"]
    return Source("SavedModel", config, count, notes, fill.from_names, (bundle, layers), bundle.unread)
