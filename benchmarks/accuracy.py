"""Errors against float64 on inputs that normalization layers get wrong, for anynorm and for its peers.

    make accuracy                       # run, print, write benchmarks/results/accuracy.json and the READMEs' table

Every layer gets the same float32 input and the same eps, and is compared with the float64 reference on that very
input. Keras and anynorm run on each backend in a process of its own; torch and Flax beside them.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
from common import BACKENDS, markdown, put_into_readmes, run_worker, save
from rich.console import Console
from rich.table import Table

EPS = 1e-3
PEERS = ("Keras/TensorFlow", "Keras/JAX", "Keras/torch", "torch", "Flax")
KERAS = dict(zip(BACKENDS, PEERS, strict=False))


@dataclass(frozen=True)
class Input:
    """One input: how it is made, and the layer that meets it.

    Attributes:
        layer, arguments: a class of `keras.layers` and of `anynorm.keras`.
        pattern, sizes, remove: the same as a sentence, for the reference.
        policy: the layer's Keras dtype policy.
    """

    name: str
    make: Callable[[np.random.Generator], np.ndarray]
    layer: str
    arguments: dict[str, Any]
    pattern: str
    sizes: dict[str, int]
    remove: tuple[str, ...] = ("mean", "scale")
    policy: str = "float32"


def _noise(offset: float, std: float, shape: tuple[int, ...]) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda rng: (offset + std * rng.normal(size=shape)).astype(np.float32)


IMAGE, ROWS, SQUARE = (2, 28, 28, 32), (64, 512), (8, 8, 8, 8)
GROUP = ("GroupNormalization", {"groups": 8}, "n [...] (g [c])", {"g": 8})
BATCH = ("BatchNormalization", {}, "[...] c", {})
LAYER = ("LayerNormalization", {}, "... [c]", {})
RMS = ("RMSNormalization", {}, "... [c]", {})
INPUTS = (
    Input("constant 255.0, group norm", _noise(255.0, 0, IMAGE), *GROUP),
    Input("constant 1000.3, group norm", _noise(1000.3, 0, IMAGE), *GROUP),
    Input("constant 200.1, batch norm", _noise(200.1, 0, IMAGE), *BATCH),
    Input("255 ± 0.01, group norm", _noise(255.0, 0.01, IMAGE), *GROUP),
    Input("1e4 + N(0,1), group norm", _noise(1e4, 1, IMAGE), *GROUP),
    Input("1e6 + N(0,1), group norm", _noise(1e6, 1, IMAGE), *GROUP),
    Input("1e6 + N(0,1), batch norm", _noise(1e6, 1, IMAGE), *BATCH),
    Input("1e4 + N(0,1), layer norm", _noise(1e4, 1, ROWS), *LAYER),
    Input("1e6 + N(0,1), layer norm", _noise(1e6, 1, ROWS), *LAYER),
    Input("N(0,1) · 1e30, layer norm", _noise(0, 1e30, ROWS), *LAYER),
    Input("N(0,1) · 1e30, RMS norm", _noise(0, 1e30, ROWS), *RMS, remove=("scale",)),
    Input("std 1000, group norm, mixed_float16", _noise(0, 1000, IMAGE), *GROUP, policy="mixed_float16"),
    Input("7e4 · N(0,1), batch norm, mixed_float16", _noise(0, 7e4, IMAGE), *BATCH, policy="mixed_float16"),
    Input(
        "layer norm over axis 1 of 8×8×8×8", _noise(0, 1, SQUARE),
        "LayerNormalization", {"axis": 1}, "n [h] w c", {},
    ),
    Input(
        "RMS norm over axis 1 of 8×8×8×8", _noise(0, 1, SQUARE),
        "RMSNormalization", {"axis": 1}, "n [h] w c", {}, remove=("scale",),
    ),
)  # fmt: skip
# What the Korean table has for the words of the names above.
KOREAN = {
    "float32 input": "float32 입력",
    "constant": "상수",
    "std": "표준편차",
    "group norm": "그룹 정규화",
    "batch norm": "배치 정규화",
    "layer norm": "레이어 정규화",
    "RMS norm": "RMS 정규화",
    " over axis 1 of 8×8×8×8": ", 8×8×8×8의 축 1",
}
# Where an axis mix-up would hide behind scales of one, the parameters differ along the axis.
VARIED = ("layer norm over axis 1", "RMS norm over axis 1")


def worker() -> list[dict[str, Any]]:
    """All inputs on this process's Keras backend, and on torch and Flax where that is their own."""
    import keras

    import anynorm.keras

    backend = keras.backend.backend()
    rows = []
    for given in INPUTS:
        x = given.make(np.random.default_rng(0))
        columns = {
            KERAS[backend]: lambda x, g=given: _keras(keras.layers, g, x),
            f"anynorm/{backend}": lambda x, g=given: _keras(anynorm.keras, g, x),
        }
        if backend == "torch":
            columns["torch"] = lambda x, g=given: _torch(g, x)
        if backend == "jax":
            columns["Flax"] = lambda x, g=given: _flax(g, x)
        for column, run in columns.items():
            rows.append({"input": given.name, "column": column, **_error(given, x, run)})
    return rows


def _error(given: Input, x: np.ndarray, run: Callable[[np.ndarray], np.ndarray | None]) -> dict[str, Any]:
    from anynorm.reference import Reference

    carriers = "h" if "[h]" in given.pattern else "g c"
    scale = _scale(given, x)
    oracle = Reference(x, given.pattern, scale, affine=carriers, eps=EPS, remove=given.remove, **given.sizes).y
    try:
        y = run(x)
    except Exception as error:  # a peer may fail in any way; that it fails is the result
        return {"error": None, "nan": 0.0, "raises": type(error).__name__}
    if y is None:
        return {"error": None, "nan": 0.0, "raises": None}
    y = np.asarray(y, np.float64)
    bad = ~np.isfinite(y)
    error = None if bad.any() else float(np.abs(y - oracle).max())
    return {"error": error, "nan": float(bad.mean()), "raises": None}


def _scale(given: Input, x: np.ndarray) -> np.ndarray:
    axis = given.arguments.get("axis", -1)
    n = x.shape[axis]
    return np.linspace(1, 2, n, dtype=np.float32) if given.name.startswith(VARIED) else np.ones(n, np.float32)


def _keras(module: Any, given: Input, x: np.ndarray) -> np.ndarray:
    import keras

    layer = getattr(module, given.layer)(**given.arguments, epsilon=EPS, dtype=given.policy)
    layer.build(x.shape)
    weight = layer.scale if given.layer == "RMSNormalization" else layer.gamma
    weight.assign(_scale(given, x))
    training = {"training": True} if given.layer == "BatchNormalization" else {}
    y: np.ndarray = keras.ops.convert_to_numpy(keras.ops.cast(layer(x, **training), "float32"))
    return y


def _torch(given: Input, x: np.ndarray) -> np.ndarray | None:
    """torch's own functions on channels_last images, as vision models hold them."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    if given.policy != "float32" or "axis" in given.arguments:
        return None
    t = torch.tensor(x)
    if given.layer == "LayerNormalization":
        return F.layer_norm(t, t.shape[-1:], eps=EPS).numpy()
    if given.layer == "RMSNormalization":
        return F.rms_norm(t, t.shape[-1:], eps=EPS).numpy()
    t = t.permute(0, 3, 1, 2)
    if given.layer == "BatchNormalization":
        y = F.batch_norm(t, torch.zeros(t.shape[1]), torch.ones(t.shape[1]), training=True, eps=EPS)
    else:
        y = F.group_norm(t, given.sizes["g"], eps=EPS)
    return y.permute(0, 2, 3, 1).numpy()


def _flax(given: Input, x: np.ndarray) -> np.ndarray | None:
    """Flax's layers with their defaults, eps apart."""
    from flax import nnx

    if given.policy != "float32" or "axis" in given.arguments:
        return None
    c, rngs = x.shape[-1], nnx.Rngs(0)
    layer = {
        "GroupNormalization": lambda: nnx.GroupNorm(c, given.sizes.get("g", 1), epsilon=EPS, rngs=rngs),
        "BatchNormalization": lambda: nnx.BatchNorm(c, use_running_average=False, epsilon=EPS, rngs=rngs),
        "LayerNormalization": lambda: nnx.LayerNorm(c, epsilon=EPS, rngs=rngs),
        "RMSNormalization": lambda: nnx.RMSNorm(c, epsilon=EPS, rngs=rngs),
    }[given.layer]()
    return np.asarray(layer(x))


def cell(row: dict[str, Any] | None) -> str:
    if row is None or (row["error"] is None and not row["nan"] and not row["raises"]):
        return "–"
    if row["raises"]:
        return "raises"
    if row["nan"]:
        return f"NaN ({row['nan']:.0%})" if row["nan"] < 1 else "NaN"
    return "0" if row["error"] == 0 else f"{row['error']:.0e}".replace("e-0", "e-").replace("e+0", "e")


@click.command(help=__doc__)
@click.option("--worker", "is_worker", is_flag=True, hidden=True)
@click.option("--no-readme", is_flag=True, help="Leave the READMEs' table as it is.")
def main(is_worker: bool, no_readme: bool) -> None:
    if is_worker:
        warnings.simplefilter("ignore")
        for row in worker():
            print(json.dumps(row))
        return
    console = Console(width=max(110, Console().width))
    rows = []
    for backend in BACKENDS:
        with console.status(f"Keras on {backend}"):
            rows += run_worker(os.path.abspath(__file__), backend)
    path = save("accuracy", rows)
    table = Table(title="Largest error against float64", header_style="bold")
    header = ("float32 input", *PEERS, "anynorm")
    for name in header:
        table.add_column(name, justify="left" if name == header[0] else "right")
    lines = [[given.name, *_line([r for r in rows if r["input"] == given.name])] for given in INPUTS]
    for line in lines:
        table.add_row(*line)
    console.print(table)
    console.print(f"rows: {path}")
    if not no_readme:
        bold = [[*line[:-1], f"**{line[-1]}**"] for line in lines]
        korean = [[_korean(line[0]), *line[1:]] for line in (header, *bold)]
        put_into_readmes("accuracy", {"en": markdown(header, bold), "ko": markdown(korean[0], korean[1:])})


def _korean(name: str) -> str:
    for words, translated in KOREAN.items():
        name = name.replace(words, translated)
    return name


def _line(rows: list[dict[str, Any]]) -> list[str]:
    """A peer a column, and the worst of anynorm's backends in the last."""
    by_column = {row["column"]: row for row in rows}
    own = [row for column, row in by_column.items() if column.startswith("anynorm")]
    failed = [row for row in own if row["error"] is None]
    worst = failed[0] if failed else max(own, key=lambda row: row["error"])
    return [*(cell(by_column.get(peer)) for peer in PEERS), cell(worst)]


if __name__ == "__main__":
    sys.exit(main())
