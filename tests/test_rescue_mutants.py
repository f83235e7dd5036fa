"""Damaged and hostile files: each a clear error, soon and in little memory, and never half a new file.

What cannot be seen, and loads: a flipped bit of an HDF5 file, which has no checksums, in bytes that nothing reads
(padding, free space, links that Keras does not use) or in a number that stays one a weight may have; a description
without an entry that older Keras did not write either; a value that describes another valid model; and what a
SavedModel's metadata repeat of each layer, of which only the whole model's description is read. But for the other
numbers and the other valid model, all of these give the very weights and outputs of the whole file, as is tested.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")

from anynorm import rescue  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_compilation")
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
    where[key] = rng.choice([n for n in (10**6, 10**9, 10**15, 10**30, -1, 0) if n != where[key]])


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


def flipped_number(group: Any, rng: random.Random) -> None:
    """One bit of one weight."""
    names: list[str] = []
    group.visititems(lambda name, one: names.append(name) if isinstance(one, h5py.Dataset) and one.size else None)
    array = group[rng.choice(names)]
    numbers = array[()]
    if numbers.dtype != "f4":
        array[()] = ~numbers
        return
    bits = numbers.reshape(-1).view("u4")
    bits[rng.randrange(bits.size)] ^= 1 << rng.randrange(32)
    array[()] = numbers


def poisoned(group: Any, rng: random.Random) -> None:
    """Numbers that no weight has."""
    names: list[str] = []
    group.visititems(
        lambda name, one: names.append(name) if isinstance(one, h5py.Dataset) and one.dtype.kind == "f" else None
    )
    array = group[rng.choice(names)]
    numbers = array[()].reshape(-1)
    numbers[rng.randrange(numbers.size)] = rng.choice((float("nan"), float("inf"), -1e35))
    array[()] = numbers.reshape(array.shape)


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


# Which file is mutated, how, how many times (together 200), and how many of these cannot be seen, for which reason.
MUTATIONS: dict[str, tuple[str, Callable[[Path, random.Random], None], int, int, str]] = {
    "HDF5, cut off": ("model.h5", truncated, 20, 0, ""),
    "HDF5, bits flipped": ("model.h5", flipped, 20, 6, "in bytes that nothing reads"),
    "HDF5, bit of a number": ("model.h5", in_weights(flipped_number), 8, 8, "other numbers: no checksum tells"),
    "HDF5, numbers no weight has": ("model.h5", in_weights(poisoned), 8, 0, ""),
    "HDF5, keys renamed": ("model.h5", in_config(renamed), 12, 0, ""),
    "HDF5, parts dropped": ("model.h5", in_config(dropped), 12, 6, "entries that older files lack, at their default"),
    "HDF5, absurd numbers": ("model.h5", in_config(absurd), 20, 1, "other groups: -1, one a channel"),
    "HDF5, parts confused": ("model.h5", in_config(confused), 12, 0, ""),
    "HDF5, weights of wrong shape": ("model.h5", in_weights(reshaped), 15, 0, ""),
    "HDF5, weights renamed": ("model.h5", in_weights(moved), 9, 2, "empty groups"),
    ".keras, cut off": ("model.keras", truncated, 10, 0, ""),
    ".keras, bits flipped": ("model.keras", flipped, 12, 0, ""),
    ".keras, keys renamed": ("model.keras", in_config(renamed), 6, 0, ""),
    ".keras, absurd numbers": ("model.keras", in_config(absurd), 10, 0, ""),
    "SavedModel, cut off": ("saved", in_folder(truncated), 10, 0, ""),
    "SavedModel, bits flipped": ("saved", in_folder(flipped), 16, 1, "in what the metadata repeat of a layer"),
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
    except rescue.RescueError as error:
        said = str(error)
    assert time.perf_counter() - start < SECONDS
    assert most_memory() - before < BYTES
    assert os.listdir(new.parent) == (["new.keras"] if said == "loads" else [])
    new.unlink(missing_ok=True)
    assert said, "an error has to say something"
    return said


def weights_and_outputs(path: Path) -> tuple[list[np.ndarray], np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = rescue.load(path)
    x = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype("float32")
    return model.get_weights(), np.asarray(keras.ops.convert_to_numpy(model(x)))


def test_there_are_two_hundred() -> None:
    assert sum(count for _, _, count, _, _ in MUTATIONS.values()) == 200


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutants_are_refused(name: str, tmp_path: Path) -> None:
    file, mutate, count, unseen, reason = MUTATIONS[name]
    new = tmp_path / "new" / "new.keras"
    new.parent.mkdir()
    loaded = 0
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
        if outcome(path, new) == "loads":
            loaded += 1
            (numbers, y), (whole, expected) = weights_and_outputs(path), weights_and_outputs(source)
            same = all(np.array_equal(a, b) for a, b in zip(numbers, whole, strict=True))
            assert same or reason.startswith("other numbers"), f"{seed}: it loads, and its weights are other ones"
            # So that what was not seen did no harm: the file is as good as the whole one, or another valid one.
            same = np.array_equal(y, expected)
            assert same or reason.startswith("other"), f"{seed}: it loads, and gives other outputs"
    assert loaded <= unseen, reason
