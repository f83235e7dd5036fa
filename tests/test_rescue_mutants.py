"""Damaged and hostile files: each a clear error, soon and in little memory, and never half a new file.

A flipped bit among the numbers of an HDF5 file, which has no checksums, makes another valid file; it has to load.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")

from anynorm import rescue  # noqa: E402

FOLDER = Path(__file__).parent / "old_files"
MODELS = ("group", "filter_response_learned", "weight", "spectral")
# The most that a rescue may take, in seconds and bytes.
SECONDS, BYTES = 10.0, 1 << 30


def truncated(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def flipped(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value: a container and a key of it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from places(item)


def renamed(config: Any, rng: random.Random) -> None:
    where, key = rng.choice([(w, k) for w, k in places(config) if isinstance(w, dict)])
    where[f"{key}x"] = where.pop(key)


def dropped(config: Any, rng: random.Random) -> None:
    where, key = rng.choice(list(places(config)))
    del where[key]


def absurd(config: Any, rng: random.Random) -> None:
    numbers = [(w, k) for w, k in places(config) if type(w[k]) is int]
    where, key = rng.choice(numbers)
    where[key] = rng.choice((10**6, 10**9, 10**15, 10**30, -1, 0))


def confused(config: Any, rng: random.Random) -> None:
    where, key = rng.choice(list(places(config)))
    where[key] = rng.choice((None, [], {}, "x" * 1000, 3.5, {"class_name": "x", "config": {}}, [[[]]], True))


def reshaped(group: Any, rng: random.Random) -> None:
    """Another shape, or one that claims a terabyte and holds nothing."""
    names: list[str] = []
    group.visititems(lambda name, one: names.append(name) if isinstance(one, h5py.Dataset) else None)
    name = rng.choice(names)
    shape = rng.choice(((*group[name].shape, 2), (10**6, 10**6), (3,)))
    del group[name]
    group.create_dataset(name, shape, "f4", chunks=True if 10**6 in shape else None)


def moved(group: Any, rng: random.Random) -> None:
    names: list[str] = []
    group.visit(names.append)
    name = rng.choice(names)
    group.move(name, f"{name}x")


def in_config(change: Callable[[Any, random.Random], None]) -> Callable[[Path, random.Random], None]:
    """A mutation of the configuration, in whichever format."""

    def mutate(path: Path, rng: random.Random) -> None:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                parts = {name: archive.read(name) for name in archive.namelist()}
            config = json.loads(parts["config.json"])
            change(config, rng)
            parts["config.json"] = json.dumps(config).encode()
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in parts.items():
                    archive.writestr(name, data)
            return
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            change(config, rng)
            file.attrs["model_config"] = json.dumps(config)

    return mutate


def in_weights(change: Callable[[Any, random.Random], None]) -> Callable[[Path, random.Random], None]:
    def mutate(path: Path, rng: random.Random) -> None:
        with h5py.File(path, "r+") as file:
            change(file["model_weights"], rng)

    return mutate


def in_folder(change: Callable[[Path, random.Random], None]) -> Callable[[Path, random.Random], None]:
    """A mutation of one of the files that are read of a SavedModel."""

    def mutate(path: Path, rng: random.Random) -> None:
        names = ("keras_metadata.pb", "variables/variables.index", "variables/variables.data-00000-of-00001")
        change(path / rng.choice(names), rng)

    return mutate


# How a file is mutated, and how many times; together 200.
MUTATIONS: dict[str, tuple[str, Callable[[Path, random.Random], None], int]] = {
    "HDF5, cut off": ("model.h5", truncated, 20),
    "HDF5, bits flipped": ("model.h5", flipped, 30),
    "HDF5, keys renamed": ("model.h5", in_config(renamed), 12),
    "HDF5, parts dropped": ("model.h5", in_config(dropped), 12),
    "HDF5, absurd numbers": ("model.h5", in_config(absurd), 20),
    "HDF5, parts confused": ("model.h5", in_config(confused), 12),
    "HDF5, weights of wrong shape": ("model.h5", in_weights(reshaped), 15),
    "HDF5, weights renamed": ("model.h5", in_weights(moved), 9),
    ".keras, cut off": ("model.keras", truncated, 10),
    ".keras, bits flipped": ("model.keras", flipped, 12),
    ".keras, keys renamed": ("model.keras", in_config(renamed), 8),
    ".keras, absurd numbers": ("model.keras", in_config(absurd), 10),
    "SavedModel, cut off": ("saved", in_folder(truncated), 12),
    "SavedModel, bits flipped": ("saved", in_folder(flipped), 18),
}


def most_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def outcome(path: Path, new: Path) -> str:
    """What a rescue says; it has to be quick and small, and to leave the whole file or none."""
    before, start = most_memory(), time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rescue.convert(path, new)
        said = "loads"
    except rescue.RescueError:
        said = "refused"
    assert time.perf_counter() - start < SECONDS
    assert most_memory() - before < BYTES
    left = os.listdir(new.parent)
    assert left == (["new.keras"] if said == "loads" else [])
    new.unlink(missing_ok=True)
    return said


def test_there_are_two_hundred() -> None:
    assert sum(count for _, _, count in MUTATIONS.values()) == 200


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutants_are_refused(name: str, tmp_path: Path) -> None:
    file, mutate, count = MUTATIONS[name]
    new = tmp_path / "new" / "new.keras"
    new.parent.mkdir()
    found: Counter[str] = Counter()
    for seed in range(count):
        rng = random.Random(f"{name} {seed}")
        source = FOLDER / rng.choice(MODELS) / file
        path = tmp_path / file
        if source.is_dir():
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(source, path)
        else:
            shutil.copy(source, path)
        mutate(path, rng)
        found[outcome(path, new)] += 1
    print(f"{name}: {dict(found)}")
    if "cut off" in name:
        assert found["loads"] == 0
    assert found["refused"] > 0
