"""Files made to do harm: none reaches another file, runs code, or costs more than `test_rescue_mutants` allows."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")

from test_rescue import FOLDER, LAMBDA  # noqa: E402
from test_rescue_mutants import outcome  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_compilation")
KERNEL = "model_weights/dense/dense/kernel:0"


def replaced(file: Any, make: Callable[[Any, Any], None]) -> None:
    kernel = file[KERNEL][()]
    del file[KERNEL]
    make(file, kernel)


def linked(link: Any) -> Callable[[Any, Any], None]:
    return lambda file, _: file.__setitem__(KERNEL, link)


def outside(file: Any, kernel: np.ndarray) -> None:
    file.create_dataset(KERNEL, kernel.shape, "f4", external=[("/etc/passwd", 0, kernel.nbytes)])


def virtual(file: Any, kernel: np.ndarray) -> None:
    layout = h5py.VirtualLayout(kernel.shape, "f4")
    layout[...] = h5py.VirtualSource(str(FOLDER / "group" / "model.h5"), KERNEL, kernel.shape)
    file.create_virtual_dataset(KERNEL, layout)


def objects(file: Any, kernel: np.ndarray) -> None:
    """Objects as NumPy would pickle them."""
    data = np.frombuffer(pickle.dumps(print), "u1")
    file.create_dataset(KERNEL, kernel.shape, h5py.vlen_dtype("u1"))[0, 0] = data


def bomb(file: Any, kernel: np.ndarray) -> None:
    """Four megabytes of zeros, of which a file can hold as many as there are in a terabyte."""
    file.create_dataset(KERNEL, data=np.zeros((1 << 10, 1 << 10), "f4"), compression="gzip")


def cyclic(file: Any, kernel: np.ndarray) -> None:
    group = file["model_weights"]
    file[KERNEL] = kernel
    for name in ("one", "two", "three"):
        group[name] = group


def crowded(file: Any, kernel: np.ndarray) -> None:
    file[KERNEL] = kernel
    group = file.create_group("model_weights/more")
    for i in range(110):
        inner = group.create_group(str(i))
        # Links to one array, which cost the file little.
        for j in range(115):
            inner[str(j)] = file[KERNEL]


IN_WEIGHTS = {
    "soft link": (linked(h5py.SoftLink("/model_weights/conv2d/conv2d/kernel:0")), "only a link to somewhere else"),
    "external link": (linked(h5py.ExternalLink("/etc/passwd", "/")), "only a link to somewhere else"),
    "external numbers": (outside, "are outside"),
    "virtual numbers": (virtual, "are outside"),
    "objects": (objects, "no array of numbers"),
    "bomb": (bomb, "does not hold so much"),
    "groups in themselves": (cyclic, "more groups and arrays than any model"),
    "many groups": (crowded, "more groups and arrays than any model"),
}


@pytest.mark.parametrize("name", IN_WEIGHTS)
def test_hostile_weights(name: str, tmp_path: Path) -> None:
    make, words = IN_WEIGHTS[name]
    (tmp_path / "new").mkdir()
    shutil.copy(FOLDER / "group" / "model.h5", tmp_path)
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        replaced(file, make)
    assert words in outcome(tmp_path / "model.h5", tmp_path / "new" / "new.keras")


def nested(depth: int) -> Any:
    spec: dict[str, Any] = {"class_name": "Dense", "config": {"name": "dense", "units": 2}}
    for i in range(depth):
        spec = {"class_name": "Sequential", "config": {"name": f"model{i}", "layers": [spec]}}
    return spec


def chain(length: int) -> Any:
    """Layers in the worst order."""
    layers: list[Any] = [{"class_name": "InputLayer", "config": {"batch_input_shape": [None, 3], "name": "0"}}]
    for i in range(1, length):
        node = [[[str(i - 1), 0, 0, {}]]]
        layers.append({"class_name": "Flatten", "config": {"name": str(i)}, "name": str(i), "inbound_nodes": node})
    ends = {"input_layers": [["0", 0, 0]], "output_layers": [[str(length - 1), 0, 0]]}
    return {"class_name": "Functional", "config": {"name": "model", "layers": layers[::-1], **ends}}


def sequential(*specs: Any) -> Any:
    first = {"class_name": "InputLayer", "config": {"batch_input_shape": [None, 8, 8, 3], "name": "input"}}
    return {"class_name": "Sequential", "config": {"name": "model", "layers": [first, *specs]}}


def layer(kind: str, **config: Any) -> Any:
    return {"class_name": kind, "config": {"name": "layer", **config}}


RESOURCE = {"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "function"}
IN_CONFIG = {
    "nothing": ("", "no JSON"),
    "brackets": ("[" * 100_000, "no JSON"),
    "deep": ("[" * 900 + "]" * 900, "should be described"),
    "long": ('{"class_name": "' + "x" * (1 << 24) + '"}', "larger than it can be"),
    "models in models": (nested(300), "within 20 others"),
    "many layers": (chain(6_000), "more than 5,000 layers"),
    "code": (sequential(LAMBDA), "--unsafe"),
    "a function's name": (sequential(layer("Activation", activation=RESOURCE)), 'activation "eval" is none'),
    "another activation": (sequential(layer("Activation", activation="os.system")), "is none of Keras's"),
    "a module's class": (sequential(layer("Dense", units=2, kernel_initializer=RESOURCE)), "is "),
    "a class of a module": (sequential({**layer("Popen"), "module": "subprocess"}), "there is no Popen"),
    "a large image": (sequential(layer("UpSampling2D", size=[10**9, 10**9])), "which no model needs"),
    "a large kernel": (sequential(layer("Dense", units=10**9)), "numbers, and the file only"),
    "a large window": (sequential(layer("Conv2D", filters=4, kernel_size=[10**5, 10**5])), "zero or negative"),
}


@pytest.mark.parametrize("name", IN_CONFIG)
def test_hostile_configurations(name: str, tmp_path: Path) -> None:
    config, words = IN_CONFIG[name]
    (tmp_path / "new").mkdir()
    path = tmp_path / "model.keras"
    text = config if isinstance(config, str) else json.dumps(config)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", text)
        archive.writestr("model.weights.h5", weights_file())
        # A name that leaves the folder into which somebody might unpack it.
        archive.writestr("../../escaped.h5", b"x")
    assert words in outcome(path, tmp_path / "new" / "new.keras")
    assert not list(tmp_path.parent.rglob("escaped.h5"))


def weights_file() -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_group("_layer_checkpoint_dependencies")
    return buffer.getvalue()


def test_an_archive_of_zeros_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", json.dumps(sequential(layer("Flatten"))))
        with archive.open("model.weights.h5", "w", force_zip64=True) as member:
            for _ in range(300):
                member.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    assert "larger than it can be" in outcome(path, tmp_path / "new" / "new.keras")


def test_a_pipe_in_a_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    shutil.copytree(FOLDER / "group" / "saved", tmp_path / "saved")
    (tmp_path / "saved" / "variables" / "variables.data-00000-of-00001").unlink()
    os.mkfifo(tmp_path / "saved" / "variables" / "variables.data-00000-of-00001")
    assert "missing or cut off" in outcome(tmp_path / "saved", tmp_path / "new" / "new.keras")


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    os.mkfifo(tmp_path / "model.h5")
    assert "neither a file nor a folder" in outcome(tmp_path / "model.h5", tmp_path / "new" / "new.keras")
