"""Old files, made by the real libraries (tests/old_files/make.py), become Keras 3 models with the same outputs."""

from __future__ import annotations

import ast
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")

import anynorm.keras as K  # noqa: E402, N812
from anynorm import rescue  # noqa: E402
from anynorm.rescue.bundle import Bundle  # noqa: E402
from anynorm.rescue.checksum import crc32c  # noqa: E402
from anynorm.rescue.classes import ORDINARY  # noqa: E402
from anynorm.rescue.graph import Builder  # noqa: E402
from anynorm.rescue.report import Report  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_compilation")
FOLDER = Path(__file__).parent / "old_files"
# Those that make.py makes, but for the one that Keras 2 does not save in every format.
MODELS = sorted(
    key.value
    for node in ast.parse((FOLDER / "make.py").read_text(encoding="utf-8")).body
    if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "MODELS"
    for key in node.value.keys
    if key.value != "vocabulary"
)
FORMATS = ("model.h5", "model.keras", "saved")
WEIGHTS = ("old_weights.h5", "model.weights.h5")
# The old layer rounded its float32 input to float16 first; see the test that does so too.
TOLERANCE = {"batch_mixed": 2e-3}


def numpy(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def outputs(model: Any, name: str) -> list[np.ndarray]:
    with np.load(FOLDER / name / "expected.npz") as expected:
        x = [expected[key] for key in sorted(expected) if key[0] == "x"]
    x = x if len(x) > 1 else x[0]
    # JAX would compile each operation of each model by itself. Random layers draw unless told.
    y = model.predict_on_batch(x) if keras.backend.backend() == "jax" else model(x, training=False)
    return [numpy(one) for one in (y if isinstance(y, list | tuple) else [y])]


def assert_as_before(model: Any, name: str) -> None:
    with np.load(FOLDER / name / "expected.npz") as expected:
        wanted = [expected[key] for key in sorted(expected) if key[0] == "y"]
    for actual, y in zip(outputs(model, name), wanted, strict=True):
        tolerance = TOLERANCE.get(name, 1e-5)
        np.testing.assert_allclose(actual, y, rtol=0, atol=tolerance * max(1.0, np.abs(y).max()))


def cleared(model: Any) -> Any:
    for w in model.weights:
        w.assign(np.zeros(w.shape, w.dtype))
    return model


def test_half_precision_is_as_before_where_its_input_was_half() -> None:
    model, report = rescue.load(FOLDER / "batch_mixed" / "model.h5", report=True)
    assert "rounded it to float16 first" in str(report)
    with np.load(FOLDER / "batch_mixed" / "expected.npz") as expected:
        x, y = expected["x0"], expected["y0"]
    for layer in model.layers:
        x = layer(keras.ops.cast(x, "float16") if isinstance(layer, K.BatchNormalization) else x)
    np.testing.assert_allclose(numpy(x), y, rtol=0, atol=1e-5)


def test_there_are_enough_old_files() -> None:
    inside = ("saved/keras_metadata.pb", "saved/variables/variables.index", "expected.npz")
    paths = [FOLDER / name / file for name in MODELS for file in (*FORMATS, *WEIGHTS, *inside)]
    assert [str(path) for path in paths if not path.exists() or path.stat().st_size == 0] == []
    assert len(MODELS) * len(FORMATS) >= 24
    assert {path.parent.name for path in FOLDER.glob("*/expected.npz")} == {*MODELS, "vocabulary"}


def assert_same(model: Any, other: Any) -> None:
    """Equal configurations and weights, which give equal outputs."""
    assert model.get_config() == other.get_config()
    assert_same_weights(model, other.get_weights())


def assert_same_weights(model: Any, weights: list[np.ndarray]) -> None:
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), weights, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_the_old_model(name: str) -> None:
    models = []
    for file in FORMATS:
        model, report = rescue.load(FOLDER / name / file, report=True)
        models.append(model)
        assert len(report.rows) >= len(model.layers) - 1
        assert not report.refused
        assert all(row.name in str(report) and row.became for row in report.rows)
        assert len(json.loads(report.json())["rows"]) == len(report.rows)
    assert_as_before(models[0], name)
    assert_same(models[1], models[0])
    assert_same(models[2], models[0])
    wanted = models[0].get_weights()
    for file in WEIGHTS:
        rescue.load_weights(cleared(models[0]), FOLDER / name / file)
        assert_same_weights(models[0], wanted)


@pytest.mark.parametrize(
    "name",
    ["activations", "recurrent", "weight_data", "spectral", "contrib", "frozen", "tied", "moving", "preprocessing"],
)
def test_the_new_file_opens_with_keras(name: str, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    rescue.convert(FOLDER / name / "saved", tmp_path / "new.keras", progress=lambda *step: steps.append(step))
    assert os.listdir(tmp_path) == ["new.keras"]
    assert_as_before(keras.saving.load_model(tmp_path / "new.keras"), name)
    assert steps[-1][0] > 0
    assert all(done <= total for done, total in steps)


def test_what_was_frozen_is_frozen() -> None:
    model = rescue.load(FOLDER / "frozen" / "model.keras")
    assert not model.get_layer("inner").trainable_weights
    assert len(model.trainable_weights) == 4, "the first convolution and the last dense layer"


@pytest.mark.parametrize("file", FORMATS)
def test_what_was_one_layer_is_told(file: str) -> None:
    """Keras 3 does not open its own files of such models, so that the new one has a layer for each place."""
    report = rescue.load(FOLDER / "tied" / file, report=True)[1]
    sure = "have the same name and numbers: if they were" if file == "model.h5" else "were"
    places = ("one/time_distributed/tied", "two/tied", "tied")
    pairs = {*(("one/tied", place) for place in places), ("one/within", "two/within")}
    told = {note.partition(", they are two now")[0] for note in report.notes if "train apart" in note}
    assert told == {f"{first} and {place} {sure} one layer" for first, place in pairs}
    assert {"one/tied", "one/time_distributed/tied", "two/tied", "tied"} <= {row.name for row in report.rows}


def test_a_file_that_lacks_a_layer_is_no_file_of_a_layer_at_two_places(tmp_path: Path) -> None:
    """Of those that may be meant, only as many as are not there."""
    for place, words in (("one/layers/dense", "has 0 weights for"), ("last/layers/dense", "has 0 weights for")):
        path = tmp_path / "lacking.weights.h5"
        shutil.copy(FOLDER / "tied" / "model.weights.h5", path)
        with h5py.File(path, "r+") as file:
            inner = {"one": "layers/functional", "last": "layers/sequential"}[place.split("/")[0]]
            del file[f"{inner}/{place.partition('/')[2]}"]
        with pytest.raises(rescue.RescueError, match=words):
            rescue.load_weights(rescue.load(FOLDER / "tied" / "model.keras"), path)


def test_layers_of_one_name_are_not_taken_for_each_other(tmp_path: Path) -> None:
    """Two have it and a third, whose numbers the file lacks, may be either."""
    model = rescue.load(FOLDER / "tied" / "model.keras")
    x = keras.Input((3, 6))
    more = keras.Model(x, keras.layers.Dense(6, name="tied")(model(x)[0]))
    path = tmp_path / "two.weights.h5"
    with h5py.File(FOLDER / "tied" / "model.weights.h5") as old, h5py.File(path, "w") as new:
        new.create_group("layers/input_layer/vars")
        old.copy("/", new, "layers/functional")
    rescue.load_weights(more, path)
    with h5py.File(path, "r+") as file:
        second = "layers/functional/layers/functional_1/layers/dense"
        file.copy(second, f"{second}_1")
    with pytest.raises(rescue.RescueError, match="does not say which of several layers of one name"):
        rescue.load_weights(more, path)


def test_wide_numbers_of_a_vocabulary_are_kept(tmp_path: Path) -> None:
    def changed(layers: list[Any]) -> None:
        next(layer for layer in layers if layer["class_name"] == "IntegerLookup")["config"]["vocabulary"] = [
            2**40,
            1,
            3,
        ]

    model = rescue.load(rewritten(tmp_path, changed, "preprocessing"))
    assert any(2**40 in getattr(layer, "input_vocabulary", ()) for layer in model.layers)


def test_a_vocabulary_that_came_from_data_is_taken_from_the_file_that_has_it(tmp_path: Path) -> None:
    rescue.convert(FOLDER / "vocabulary" / "model.keras", tmp_path / "new.keras")
    assert_as_before(keras.saving.load_model(tmp_path / "new.keras"), "vocabulary")
    with pytest.raises(rescue.RescueError, match="integer_lookup: its vocabulary came from data and is not in"):
        rescue.load(FOLDER / "vocabulary" / "saved")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocabulary": "/etc/passwd"}, "should be a list of whole numbers"),
        ({"vocabulary": [7, "a"]}, "should be a list of whole numbers"),
        ({"output_mode": "tf_idf", "idf_weights": [1.0, 1.0, 1.0]}, "tf_idf"),
    ],
)
def test_vocabularies_that_are_none_are_refused(change: Any, words: str, tmp_path: Path) -> None:
    def changed(layers: list[Any]) -> None:
        next(layer for layer in layers if layer["class_name"] == "IntegerLookup")["config"].update(change)

    with pytest.raises(rescue.RescueError, match=words):
        rescue.load(rewritten(tmp_path, changed, "preprocessing"))


def test_activations_of_another_meaning_are_told() -> None:
    report = str(rescue.load(FOLDER / "activations" / "model.h5", report=True)[1])
    assert report.count("hard_sigmoid is Keras 2's") == 4
    assert "open the new file, import anynorm.keras" in report


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("Addons>gelu", lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))),
        ("Addons>mish", lambda x: x * np.tanh(np.log1p(np.exp(x)))),
        ("hard_sigmoid", lambda x: np.clip(0.2 * x + 0.5, 0, 1)),
    ],
)
def test_activations_are_the_old_functions(name: str, wanted: Any, tmp_path: Path) -> None:
    layer = {"class_name": "Activation", "config": {"name": "last", "activation": name}}
    model = rescue.load(rewritten(tmp_path, lambda layers: layers.append(layer)))
    x = np.linspace(-4, 4, 33)
    for one in (model, keras.models.clone_model(model)):
        np.testing.assert_allclose(numpy(one.layers[-1](x.astype("float32"))), wanted(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["lisht", "rrelu", "snake", "sparsemax"])
def test_activations_of_addons_that_keras_lacks_are_refused(name: str, tmp_path: Path) -> None:
    path = rewritten(tmp_path, lambda layers: layers[1]["config"].update(activation=f"Addons>{name}"))
    with pytest.raises(rescue.RescueError, match=f'activation "Addons>{name}" is none'):
        rescue.load(path)


CONFIGURATIONS = json.loads((FOLDER / "configurations.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("form", CONFIGURATIONS)
def test_every_ordinary_layer_is_made_from_what_keras_2_wrote_of_it(form: str) -> None:
    """Classes hand arguments on that a class made from them does not take, such as noise_shape."""
    builder = Builder(Report("", ""), None, False)
    for spec in CONFIGURATIONS[form]:
        assert builder.layer(spec).name.startswith(spec["config"]["name"])
    assert {spec["class_name"] for spec in CONFIGURATIONS[form]} >= ORDINARY


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_name": "RandomCrop", "config": {"height": 2, "width": 2}}, "use CenterCrop"),
        ({"class_name": "UpSampling2D", "config": {"interpolation": "gaussian"}}, "interpolate by gaussian"),
        ({"class_name": "Attention", "config": {"causal": True}}, "no argument causal=True"),
        ({"class_name": "SpatialDropout2D", "config": {"rate": 0.1, "noise_shape": [1, 1]}}, "no argument noise_shape"),
    ],
)
def test_layers_of_another_meaning_are_refused(change: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(rescue.RescueError, match=words):
        rescue.load(rewritten(tmp_path, lambda layers: layers.append(change)))


def test_a_gru_from_before_there_was_a_choice_resets_before() -> None:
    layer = Builder(Report("", ""), None, False).layer({"class_name": "GRU", "config": {"units": 3}})
    assert not layer.reset_after


@pytest.mark.parametrize("name", ["group", "instance", "filter_response", "filter_response_learned"])
def test_keras_itself_understands_the_names_in_hdf5(name: str) -> None:
    model = keras.saving.load_model(FOLDER / name / "model.h5", compile=False)
    assert_as_before(model, name)
    assert any(type(layer).__module__.startswith("anynorm") for layer in model.layers)


@pytest.mark.parametrize("name", ["weight", "weight_data", "spectral"])
def test_keras_itself_does_not_fill_wrappers_with_other_weights(name: str) -> None:
    """Addons stored flags and copies that the new layers do without: an error says who knows them."""
    with pytest.raises(ValueError, match=r"anynorm\.rescue\.load"):
        keras.saving.load_model(FOLDER / name / "model.h5", compile=False)


def test_keras_saves_the_layers_under_their_own_names() -> None:
    for layer in (K.TLU(), K.InstanceNormalization(), K.SpectralNormalization(keras.layers.Dense(2))):
        assert keras.saving.get_registered_name(type(layer)).startswith("anynorm>")
    old = {"layer": keras.saving.serialize_keras_object(keras.layers.Dense(2)), "name": "sn"}
    made = keras.saving.get_registered_object("Addons>SpectralNormalization").from_config(old)
    assert type(made) is K.SpectralNormalization
    assert made.converted


def test_a_layer_of_another_axis_says_so_in_numbers() -> None:
    """Addons divided along the last axis of a transposed kernel; the new layer does so along the outputs'."""
    model, report = rescue.load(FOLDER / "transposed" / "model.h5", report=True)
    assert str(report).count("took the kernel's inputs for its outputs") == 2
    layer = next(layer for layer in model.layers if isinstance(layer, K.WeightNormalization))
    assert tuple(layer.g.shape) == (6,)
    lengths = np.sqrt(np.square(numpy(layer.layer.kernel)).sum((0, 1, 3)))
    np.testing.assert_allclose(numpy(layer.g), lengths, rtol=1e-5, atol=1e-6)


def rewritten(tmp_path: Path, change: Any, name: str = "group") -> Path:
    """The model's HDF5 file with another configuration."""
    path = tmp_path / "changed.h5"
    shutil.copy(FOLDER / name / "model.h5", path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        change(config["config"]["layers"])
        file.attrs["model_config"] = json.dumps(config)
    return path


LAMBDA = {"class_name": "Lambda", "config": {"name": "code", "function": ["4wAAAAA=", None, None]}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda layers: layers.append(LAMBDA), "code: a Lambda layer is Python code.*--unsafe"),
        (lambda layers: layers[2].update(class_name="Addons>Maxout"), "Addons>Maxout is of TensorFlow Addons"),
        (lambda layers: layers[2].update(class_name="TFSMLayer"), "TFSMLayer is in Keras 3, but what of"),
        (lambda layers: layers[2].update(class_name="os>system"), "there is no os>system"),
        (lambda layers: layers[1]["config"].update(activation="get"), 'activation "get" is none'),
        (lambda layers: layers[1]["config"].update(kernel_initializer="Initializer"), 'initializer "Initializer"'),
        (lambda layers: layers[1]["config"].update(filters=10**9), "numbers, and the file only"),
        (lambda layers: layers[1]["config"].update(filters=10**12), "filters is 1e[+]12"),
        (lambda layers: layers[1]["config"].update(surprise=3), "no argument surprise=3"),
        (lambda layers: layers[1]["config"].update(filters=9), "has the shape .* and the layer needs"),
        (lambda layers: layers[0]["config"].update(batch_input_shape=[None, 10**9, 10**9, 3]), "numbers|damaged|shape"),
    ],
)
def test_what_cannot_be_taken_over_is_refused_with_the_reason(change: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(rescue.RescueError, match=words):
        rescue.convert(rewritten(tmp_path, change), tmp_path / "new.keras")
    assert not (tmp_path / "new.keras").exists()


def test_all_refusals_are_told_together(tmp_path: Path) -> None:
    path = rewritten(tmp_path, lambda layers: [layer.update(class_name="Mine") for layer in layers[2:4]])
    with pytest.raises(rescue.RescueError) as caught:
        rescue.load(path)
    assert len(caught.value.report.refused) == 2
    assert str(caught.value).count("there is no Mine") == 2


def test_links_out_of_the_file_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "linked.h5"
    shutil.copy(FOLDER / "group" / "model.h5", path)
    with h5py.File(path, "r+") as file:
        place = "model_weights/dense/dense/kernel:0"
        del file[place]
        file[place] = h5py.ExternalLink(str(FOLDER / "group" / "model.h5"), place)
    with pytest.raises(rescue.RescueError, match="only a link to somewhere else"):
        rescue.load(path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(b"nothing of the kind"), "neither an HDF5 file nor a zip"),
        (lambda path: h5py.File(path, "w").close(), "names no layers"),
        (lambda path: path.mkdir(), "no keras_metadata.pb"),
        (lambda path: zipfile.ZipFile(path, "w").writestr("a", "b"), "config.json"),
        (lambda path: shutil.copy(FOLDER / "group" / "old_weights.h5", path), "weights and no model"),
        (lambda path: None, "there is no"),
    ],
)
def test_other_files_are_told_apart(make: Any, words: str, tmp_path: Path) -> None:
    make(tmp_path / "file")
    with pytest.raises(rescue.RescueError, match=words):
        rescue.load(tmp_path / "file")


def test_a_new_file_is_told_so(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    for name in ("new.keras", "new.h5"):
        model.save(tmp_path / name)
        with pytest.raises(rescue.RescueError, match="needs no rescue"):
            rescue.load(tmp_path / name)


def test_weights_of_another_model_are_refused() -> None:
    model = rescue.load(FOLDER / "instance" / "model.h5")
    for file in WEIGHTS:
        with pytest.raises(rescue.RescueError):
            rescue.load_weights(model, FOLDER / "recurrent" / file)
    layer = K.SpectralNormalization(keras.layers.Dense(4))
    plain = keras.Sequential([keras.Input((6,)), layer])
    with pytest.raises(rescue.RescueError, match="converted=True"):
        rescue.load_weights(plain, FOLDER / "spectral" / "old_weights.h5")


def test_checksums_are_those_of_tensorflow() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    data = np.random.default_rng(0).integers(0, 256, 4096 * 300 + 17, dtype=np.uint8).tobytes()
    whole = crc32c(data)
    assert whole != crc32c(data[:-1] + bytes([data[-1] ^ 1]))
    # The CRC of a message followed by its own, last byte first, is a constant: an identity that lanes must keep.
    assert crc32c(data + whole.to_bytes(4, "little")) == crc32c(crc32c(b"").to_bytes(4, "little"))


def test_a_flipped_bit_in_the_variables_is_noticed(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "group" / "saved", tmp_path / "saved")
    shard = tmp_path / "saved" / "variables" / "variables.data-00000-of-00001"
    entry = next(iter(Bundle(tmp_path / "saved").entries.values()))
    data = bytearray(shard.read_bytes())
    data[entry.offset] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(rescue.RescueError, match="another checksum"):
        rescue.load(tmp_path / "saved")


def test_a_lambda_runs_where_that_was_asked_for(tmp_path: Path) -> None:
    def double(x: Any) -> Any:
        return x + x

    import base64
    import marshal

    code = base64.b64encode(marshal.dumps(double.__code__)).decode()
    inner = {"class_name": "Lambda", "config": {"name": "double", "function": [code, None, None]}}
    path = rewritten(tmp_path, lambda layers: layers.append(inner))
    model = rescue.load(path, unsafe=True)
    before = outputs(rescue.load(FOLDER / "group" / "model.h5"), "group")[0]
    np.testing.assert_allclose(outputs(model, "group")[0], 2 * before, rtol=1e-6)


def test_the_command_writes_the_file_and_reports(tmp_path: Path) -> None:
    runner = pytest.importorskip("click.testing").CliRunner()
    from anynorm.cli.app import app

    new, report = str(tmp_path / "new.keras"), str(tmp_path / "report.json")
    old = str(FOLDER / "group" / "model.h5")
    done = runner.invoke(app, ["rescue", old, "-o", new, "--report", report])
    assert done.exit_code == 0, done.output
    assert "Addons>GroupNormalization -> anynorm>GroupNormalization" in done.output
    assert json.loads(Path(report).read_text())["format"] == "HDF5"
    bad = [old, "-o", str(tmp_path / "new.h5")]
    for arguments, message in ((bad, "must end in .keras"), ([str(tmp_path), "-o", new], "keras_metadata")):
        done = runner.invoke(app, ["rescue", *arguments])
        assert done.exit_code == 2
        assert message in done.output


def test_a_file_is_not_written_over_itself(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    shutil.copy(FOLDER / "group" / "model.keras", path)
    (tmp_path / "folder").mkdir()
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is the old file, which would be lost"):
        rescue.convert(path, tmp_path / "folder" / ".." / "model.keras")
    assert path.read_bytes() == before
