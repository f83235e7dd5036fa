"""The Triton kernels' launch table, which is integers, and what `select` says of them; Triton is not imported."""

from __future__ import annotations

import math

import pytest
from cases import CASES, Case

from anynorm.kernels import triton
from anynorm.kernels.select import _select, select
from anynorm.kernels.triton import table
from anynorm.kernels.triton.views import modulated

H200 = table.Device(132, 9)
LAYER = Case("layer", "... [c]", (4096, 1024))
# Sentences of the catalogue at sizes of real networks, with a batch that may vary in front.
NETWORKS = [
    Case("group, channels last", "n [...] (g [c])", (16, 56, 56, 320), sizes={"g": 32}),
    Case("group, channels first", "n (g [c]) [...]", (16, 320, 64, 64), sizes={"g": 32}),
    Case("group, few large", "n (g [c]) [...]", (1, 128, 20, 256, 256), sizes={"g": 32}),
    Case("instance, channels last", "n [...] c", (16, 128, 128, 33)),
    Case("layer, long rows", "n [c]", (64, 65536)),
    Case("layer, channels first", "n [c] ...", (8, 4096, 14, 14)),
]
names = [case.name for case in NETWORKS]


def test_every_length_of_a_row_is_held_by_two_parts_or_by_whole_tiles_and_one():
    for length in range(1, table.HELD + 1):
        parts = table.parts(length, table.TILE)
        assert all(part == table.padded(part) for part in parts)
        assert len(parts) <= max(2, -(-length // table.TILE))
        assert set(parts[:-1]) <= {parts[0]}
        assert sum(parts) >= length
        assert length <= 16 or 1 - length / sum(parts) <= table.WASTE


@pytest.mark.parametrize("case", [*CASES, *NETWORKS], ids=lambda case: case.name)
def test_chunks_and_tiles_cover_every_group_once(case):
    g = triton.geometry(case.plan)
    if g is None:
        pytest.skip("no loops")
    cut = table.split(g)
    assert (cut.chunks - 1) * cut.chunk < g.reduced <= cut.chunks * cut.chunk
    assert cut.chunk % cut.wide == 0
    assert cut.kept * cut.wide <= table.TILE
    assert cut.chunks * cut.per_group <= table.MOST_CHUNKS or cut.chunks == 1
    if g.columns:
        assert (cut.tiles - 1) * cut.kept < g.segments <= cut.tiles * cut.kept
        on_tiles = [
            (group * g.each + g.each - 1) // cut.kept - group * g.each // cut.kept + 1
            for group in range(g.segments // g.each)
        ]
        assert max(on_tiles) <= cut.per_group <= max(on_tiles) + 1
        on_tile = max(
            min((t * cut.kept + cut.kept - 1) // g.each, g.segments // g.each - 1) - t * cut.kept // g.each + 1
            for t in range(cut.tiles)
        )
        assert on_tile <= cut.groups
    elif cut.step:
        assert (cut.tiles - 1) * cut.step < g.segments <= cut.tiles * cut.step
        assert cut.step % g.each == 0
        assert cut.step // g.each <= cut.groups
    else:
        assert cut.tiles == g.segments // g.each * cut.per_group
        assert (cut.per_group - 1) * cut.kept < g.each <= cut.per_group * cut.kept


@pytest.mark.parametrize("case", NETWORKS, ids=names)
@pytest.mark.parametrize("gradient", [False, True])
def test_how_a_group_is_cut_does_not_depend_on_how_many_there_are(case, gradient):
    def cut(batch):
        g = triton.geometry(Case("", case.pattern, (batch, *case.shape[1:]), sizes=case.sizes).plan)
        held, split = table.held(g, 4, gradient, H200), table.split(g)
        return held, [getattr(split, name) for name in ("kept", "wide", "step", "per_group", "chunk", "chunks")]

    assert cut(1) == cut(16) == cut(1000)


def test_few_large_groups_keep_all_processors_busy():
    g = triton.geometry(NETWORKS[2].plan)
    assert g.groups == 32
    cut = table.split(g)
    assert cut.tiles * cut.chunks * g.outer >= 4 * H200.processors


def test_no_row_of_64_thousand_elements_is_held():
    for itemsize in (2, 4):
        for gradient in (False, True):
            assert table.held(triton.geometry(NETWORKS[4].plan), itemsize, gradient, H200) is None


def test_sums_are_gathered_over_everything_but_the_channels():
    for case in CASES:
        g = triton.geometry(case.plan)
        if g is None or case.spec.affine is None:
            continue
        length = 6 * (g.reduced if g.affine == "reduced" else g.outer * g.segments // (g.each if g.alike else 1))
        (lead, samples, within, channels, behind), _ = table.gathered(g, length)
        assert lead * samples * within * channels * behind == length
        assert samples == 1
        assert channels == math.prod(case.plan.affine.shape)


@pytest.fixture
def driver(monkeypatch):
    """Sets what the driver says."""
    yield lambda reason: (_select.cache_clear(), monkeypatch.setattr(triton, "why_not", lambda: reason))
    _select.cache_clear()


def test_select_chooses_triton_on_a_device_that_can(driver):
    driver("")
    for dtype in ("float32", "float16", "bfloat16"):
        choice = select(LAYER.plan, "torch", "cuda", dtype, "triton")
        assert choice.kernel == "triton"
        assert "GPU" in choice.why
    assert select(LAYER.plan, "torch", "cuda", "float64", "composed").kernel == "composed"
    for arguments, reason in (
        (("torch", "cuda", "float64"), "float64"),
        (("torch", "cpu", "float32"), "for CUDA devices"),
        (("jax", "cuda", "float32"), "for torch"),
    ):
        with pytest.raises(ValueError, match=f"triton kernel was asked for.*{reason}"):
            select(LAYER.plan, *arguments, "triton")


def test_unasked_triton_is_not_chosen_before_it_ran_somewhere(driver, monkeypatch):
    monkeypatch.delenv("ANYNORM_KERNEL", raising=False)
    driver("")
    choice = _select(LAYER.plan, "torch", "cuda", "float32", None, False)
    assert choice.kernel == "composed"
    assert "ANYNORM_KERNEL=triton takes them" in choice.why


def test_a_missing_driver_gives_composed_and_says_so(driver, monkeypatch):
    monkeypatch.delenv("ANYNORM_KERNEL", raising=False)
    driver("there is no NVIDIA driver")
    choice = _select(LAYER.plan, "torch", "cuda", "float32", None, False)
    assert choice.kernel == "composed"
    assert "there is no NVIDIA driver" in choice.why


def test_on_a_cpu_nothing_is_said_of_gpus():
    assert "Triton" not in _select(LAYER.plan, "torch", "cpu", "float32", None, True).why


@pytest.mark.parametrize(
    ("devices", "reason"),
    [
        ([], "the NVIDIA driver finds no device"),
        ([(9, 0)], ""),
        ([(9, 0), (7, 5)], "device 1 has compute capability 7.5"),
    ],
)
def test_what_the_driver_says(devices, reason, monkeypatch):
    class Driver:
        @staticmethod
        def cuInit(flags):  # noqa: N802
            return 0

        @staticmethod
        def cuDeviceGetCount(count):  # noqa: N802
            count._obj.value = len(devices)
            return 0

        @staticmethod
        def cuDeviceGetAttribute(value, which, device):  # noqa: N802
            value._obj.value = devices[device][which != 75]
            return 0

    monkeypatch.setattr(triton.ctypes, "CDLL", lambda name: Driver)
    assert triton._why_no_device().startswith(reason)
    assert bool(triton._why_no_device()) == bool(reason)


def test_after_tensorflow_triton_is_not_imported(monkeypatch):
    """It would end the process."""
    import sys

    monkeypatch.setitem(sys.modules, "tensorflow", sys)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "import triton first" in triton._why_no_import()


def test_the_longest_rows_are_held_with_nothing_behind_alone():
    """What an activation takes would be spilled; a residual takes nothing."""
    row = table_of(32768)
    assert table.held(row, 2, False, H200) is not None
    assert table.held(row, 2, False, H200, behind=True) is None
    assert table.held(table_of(24576), 2, False, H200, behind=True) is not None


def test_groups_of_80_kb_are_read_once():
    """In tiles no larger than those of short rows, one after the other; the longest in tiles all alike."""
    for channels, parts in ((320, (4096, 4096, 2048)), (512, (4096,) * 4), (608, (4096,) * 5), (640, (4096,) * 5)):
        g = triton.geometry(Case("", "n (g [c]) [...]", (64, channels, 32, 32), sizes={"g": 32}).plan)
        assert table.held(g, 4, False, H200).parts == parts
        assert (table.held(modulated(g, 64), 4, False, H200) is None) == (channels > 512)


@pytest.mark.parametrize("rows", [1, 7, 4096])
def test_no_tile_and_no_sum_is_of_two_samples(rows):
    """And how many programs share a sample's rows does not depend on how many samples there are."""
    found = set()
    for samples in (1, 3, 1000):
        case = Case("", "... [c]", (samples, rows, 1024))
        g = modulated(triton.geometry(case.plan), samples)
        assert (g.outer, g.segments, g.groups) == (samples, rows, samples * rows)
        tiles = -(-rows // table.held(g, 4, True, H200).kept)
        programs, together, few = table.shared(g, tiles, 528)
        assert together == tiles
        assert programs == samples * few
        length = programs * g.reduced
        (lead, n, within, channels, behind), tile = table.gathered(g, length)
        assert (lead, n, within, channels, behind) == (1, samples, few, 1024, 1)
        assert math.prod(tile) <= 1024
        found.add((few, table.held(g, 4, True, H200)))
    assert len(found) == 1


def table_of(length):
    return triton.geometry(Case("", "... [c]", (4096, length)).plan)
