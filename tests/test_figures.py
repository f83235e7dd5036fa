"""The picture shows what is computed: its blue cells are the paper's index sets, and those that the operation mixes."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest

import anynorm
from anynorm.catalogue import CATALOGUE
from anynorm.figures import curves, words
from anynorm.figures.cells import TUTORIAL, cube, cubes
from anynorm.figures.draw import draw
from anynorm.figures.save import save
from anynorm.figures.text import drawing, side_by_side
from anynorm.files import replacing

N, C, S, GROUPS = 4, 6, 9, 2

# Equations 2 to 5 and 7 of arXiv:1803.08494: whether cell k is in the set of cell i.
PAPER = {
    "batch": lambda i, k: k[1] == i[1],
    "layer": lambda i, k: k[0] == i[0],
    "instance": lambda i, k: k[1] == i[1] and k[0] == i[0],
    "group": lambda i, k: k[0] == i[0] and k[1] // (C / GROUPS) == i[1] // (C / GROUPS),
}


@pytest.mark.parametrize("norm", TUTORIAL)
def test_cells_are_the_papers_index_sets(norm):
    made = cube(norm)
    assert made.statistic.shape == (N, C, S)
    for i in itertools.product(range(N), range(C), (0, 4, 8)):
        blue = made.statistic == made.statistic[i]
        for k in np.ndindex(N, C, S):
            assert blue[k] == PAPER[norm](i, k), (norm, i, k)


def test_an_index_set_that_is_wrong_would_be_seen():
    made = cube("group")
    assert any(made.shared[k] != PAPER["layer"]((0, 0, 0), k) for k in np.ndindex(N, C, S))


@pytest.mark.parametrize(
    ("norm", "channel_axis"),
    [
        ("[...] c", 3),
        ("n [...] c", 3),
        ("n [...] (g [c]) g=3", 3),
        ("n (g [c]) [h w] g=2", 1),
        ("n [h] w c", 3),
        ("... [c]", 3),
    ],
)
def test_blue_cells_are_those_that_the_operation_mixes(norm, channel_axis):
    text, sizes = words.split(norm)
    impulse = np.zeros((N, 3, 3, C) if channel_axis == 3 else (N, C, 3, 3))
    impulse.flat[0] = 1.0
    touched = anynorm.normalize(impulse, text, **sizes) != 0
    assert np.array_equal(np.moveaxis(touched, channel_axis, 1).reshape(N, C, S), cube(norm).shared)


def test_every_name_of_the_catalogue_can_be_drawn():
    for made in cubes(CATALOGUE, {}, {}):
        assert made.shared[0, 0, 0]
        assert np.count_nonzero(made.shared) == made.plan.count
        assert np.unique(made.statistic).size == made.plan.groups


@pytest.mark.parametrize(
    ("norm", "labels", "extents"),
    [
        ("n [c] t", ("N", "C", "T"), (4, 6, 3)),
        ("[h w i] o", ("O", "I", "H, W"), (4, 6, 9)),
        ("a0 [a1] a2 a3", ("a0", "a3", "a1, a2"), (4, 6, 9)),
        ("n t (heads [d]) heads=3", ("N", "D", "T"), (4, 6, 3)),
        ("q [r]", ("Q", "R", ""), (4, 6, 1)),
        ("h [w]", ("", "", "H, W"), (1, 1, 9)),
    ],
)
def test_other_names_find_their_directions(norm, labels, extents):
    made = cube(norm)
    assert (made.labels, made.statistic.shape) == (labels, extents)


def test_shape_and_sizes():
    assert cube("group", {"c": 8, "h": 2}, {"g": 4}).statistic.shape == (4, 8, 6)
    assert cube("group g=4", {"c": 8}).plan.groups == N * 4
    assert cube("n [...] c", {"n": 2, "t": 5}).statistic.shape == (2, 6, 5), "other axes take the place of h and w"


@pytest.mark.parametrize(
    ("norms", "shape", "sizes", "message"),
    [
        (["bach"], {}, {}, 'no normalization is called "bach"; the names are batch'),
        (["group g=4"], {}, {}, "6 is divisible by 1, 2, 3, 6"),
        (["group g=x"], {}, {}, "must be a whole number, as in g=3"),
        (["n [h] c"], {"q": 2}, {}, "the shape q=2 names no axis"),
        (["batch"], {}, {"g": 2}, "the size g=2 names no axis"),
        (["batch"], {"c": 0}, {}, "c=0 must be a positive"),
        (["batch"], {"c": 1000}, {}, "too fine to see"),
    ],
)
def test_errors_say_what_to_do(norms, shape, sizes, message):
    with pytest.raises(ValueError, match=message):
        cubes(norms, shape, sizes)


def test_the_error_of_a_sentence_keeps_its_caret():
    with pytest.raises(anynorm.PatternError) as caught:
        cube("n [h w c")
    assert str(caught.value).splitlines()[1:] == ["    n [h w c", "      ^"]


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_pictures_are_written(tmp_path, suffix, start):
    file = tmp_path / f"norms{suffix}"
    save(draw(cubes(TUTORIAL, {}, {})), file)
    assert file.read_bytes().startswith(start)
    assert [f.name for f in tmp_path.iterdir()] == [file.name]


def test_an_svg_is_the_same_every_time(tmp_path):
    for name in ("a.svg", "b.svg"):
        save(draw([cube("batch")]), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_the_picture_has_as_many_blue_faces_as_the_cube(tmp_path):
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_hex

    blues = {"#3f88d0", "#2a68ad", "#86b9ea"}
    for norm, faces in (
        ("batch", S + N * S + N),
        ("layer", C * S + S + C),
        ("instance", S + S + 1),
        ("group", 3 * S + S + 3),
    ):
        sides = [part for part in draw([cube(norm)]).axes[0].collections if isinstance(part, PolyCollection)]
        drawn = [to_hex(colour) for side in sides for colour in side.get_facecolor()]
        assert sum(colour in blues for colour in drawn) == faces, norm


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"old")

    def write_half():
        with replacing(file) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("a.png", b"old")]


def test_text_has_every_visible_cell_once():
    for norm in TUTORIAL:
        seen = np.zeros((N, C, S), bool)
        seen[0] = seen[:, 0] = seen[:, :, 0] = True
        picture = drawing(cube(norm))
        assert picture.count("■") == np.count_nonzero(cube(norm).shared & seen), norm
        assert picture.count("■") + picture.count("·") == np.count_nonzero(seen), norm


def test_four_cubes_fit_an_ordinary_terminal():
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(side_by_side(cubes(TUTORIAL, {}, {}), 80))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert sum("H,W" in line for line in text.splitlines()) == 1, "all four stand beside each other"


def test_curves():
    figure = curves.draw(
        [curves.Curve("group", [2.0, 1.0], [0.1, 0.5], (2, 0.9, 0.6)), curves.Curve("none", [2.0], [0.2])]
    )
    assert [len(axes.lines) for axes in figure.axes] == [3, 4], "two curves and a ring, and the legend's ring"
