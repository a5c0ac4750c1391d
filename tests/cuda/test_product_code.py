"""What the compilers made of the products under convolutions, matrix products and moments."""

import numpy as np
import pytest
from host_array import on_device
from kernel_calls import CONVOLUTIONS, calls
from machine_code import CAPABILITIES, recorded, report

from kfc_numba.kernels.cuda import gathered, outer_products, pixel_sums, taps
from kfc_numba.kernels.cuda.product import COPYING
from kfc_numba.kernels.cuda.tiles import TENSOR_TILES, tiles
from kfc_numba.kernels.cuda.vector import lanes

SINGLE = np.dtype(np.float32)
LARGEST = tiles(SINGLE)[0]
GATHERED = {
    "forward": gathered.Form(False, True, True, "bias"),
    "gradient by the input": gathered.Form(True, True, True, "zero"),
    "gradient by the input, of classes": gathered.Form(True, True, True, "zero", True),
}
PATCHES = {"gather_left": True, "wide_left": True, "wide_right": True, "wide_result": True}
PLAIN = dict.fromkeys(outer_products.Form._fields, False) | PATCHES
SUMS = {
    "gradient by the weight": PLAIN,
    "with the bias": PLAIN | dict.fromkeys(("ones_left", "ones_right"), True),
    "moment": PLAIN | dict.fromkeys(("gather_right", "ones_left", "ones_right", "symmetric"), True),
    "shared offsets": PLAIN | {"gather_right": True, "ones_right": True},
    "transposed product": PLAIN | {"gather_left": False},
}


def plans(form):
    """Arguments of a kernel that gathers, besides arrays."""
    which = taps.Classes if form.classes else taps.Taps
    return [kind(*[1] * len(kind._fields)) for kind in (gathered.Gathering, which)]


def kernels(tile):
    """Name, kernel and types of the wide forms of products."""
    dtype = SINGLE if tile in (*tiles(SINGLE), *TENSOR_TILES) else np.dtype(float)
    array = on_device(np.zeros(1, dtype))
    for name, form in GATHERED.items():
        kernel = gathered.kernel(dtype, tile, form)
        yield name, kernel, kernel.types((*[array] * 4, *plans(form)))
    for name, fields in SUMS.items():
        exact = fields["ones_right"] or fields["gather_right"]  # here without tensor cores
        if not (exact and tile.tensor) and (not fields["symmetric"] or tile.rows == tile.columns):
            plan = outer_products.Summing(*[1] * len(outer_products.Summing._fields))
            form = outer_products.Form(**fields)
            for copying in (False, True)[: 1 if tile.tensor else 2]:
                form = form._replace(copied=copying)
                kernel = outer_products.outer_products(dtype, tile, form)
                more = ", copied" * copying
                yield name + more, kernel, kernel.types((*[array] * 3, plan))


def reads(kernel):
    """Reads of a main loop by tile and form: wide ones of memory, all of it, of shared memory."""
    dtype, tile, form = kernel.settings
    many = lanes(dtype)
    if isinstance(form, gathered.Form):
        wide = form.wide_source, form.wide_source if form.flip else form.wide_target
    else:
        wide = form.wide_left, form.wide_right
    loads = [
        -(-size * tile.depth // ((many if w else 1) * tile.threads))
        for size, w in zip((tile.rows, tile.columns), wide, strict=True)
    ]
    halves = tile.step // tile.depth
    return (
        halves * sum(n for n, w in zip(loads, wide, strict=True) if w),
        halves * sum(loads),
        tile.step * (tile.thread_rows + tile.thread_columns) // many,
    )


def is_sum(kernel):
    return isinstance(kernel.settings[-1], outer_products.Form)


def copied(kernel):
    """Whether operands are copied to shared memory while others are multiplied."""
    return is_sum(kernel) and kernel.settings[-1].copied


def check_reads(kernel, loop):
    accesses = loop.accesses
    read = {name: n for name, n in accesses.items() if name.startswith("LDG")}
    wide, every, shared = reads(kernel)
    name = "LDGSTS.128" if copied(kernel) else "LDG.128"
    assert read.get(name, 0) == wide
    assert sum(read.values()) == every
    # What is copied passes through no register, but a column of ones is written.
    if copied(kernel) and not kernel.settings[-1].ones_right:
        assert not any(name.startswith("STS") for name in accesses)
    assert accesses["LDS.128"] == shared
    assert loop.wide("LDS")


def launched_products():
    """Kernels of products that are launched for the shapes of real networks, by (kernel, types)."""
    found = {}
    for name, cases in calls().items():
        for label, call in cases:
            for kernel, types, *_ in recorded(call):
                if kernel.__name__ in ("product_of_gathered", "sum_of_outer_products"):
                    found.setdefault((kernel, types), []).append((name, label))
    return found


@pytest.mark.parametrize(
    ("kernel", "types"),
    [pytest.param(*key, id=str(i)) for i, key in enumerate(launched_products())],
)
def test_main_loops_read_as_wide_as_their_form(kernel, types):
    loop = report(kernel, types, (9, 0)).main_loop
    check_reads(kernel, loop)
    tile = kernel.settings[1]
    assert loop.fused == tile.step * tile.thread_rows * tile.thread_columns


def test_forms_are_wide_where_shapes_allow():
    """Channels and filters that are multiples of four, of convolutions and of their moments."""
    even = {
        label for label, (_, _, channels, filters, *_) in CONVOLUTIONS.items()
        if channels % 4 == filters % 4 == 0
    }  # fmt: skip
    seen = set()
    for (kernel, _), launches in launched_products().items():
        for name, label in launches:
            if label in even and ("conv2d" in name or "moment" in name):
                wide, every, _ = reads(kernel)
                assert wide == every, (name, label)
                seen.add((name.partition("_")[0], label))
    assert seen == {(kind, label) for kind in ("conv2d", "patch", "output") for label in even}
    assert len(even) >= 4


@pytest.mark.parametrize(
    ("case", "capability"),
    [
        pytest.param(case, capability, id=f"{case[0]}-{capability}")
        for case in kernels(LARGEST)
        for capability in CAPABILITIES
        if not is_sum(case[1]) or copied(case[1]) == (capability >= COPYING)  # what is launched
    ],
)
def test_largest_tile(case, capability):
    """Two blocks a multiprocessor, and most of what the main loop does is to multiply and add."""
    _, kernel, types = case
    found = report(kernel, types, capability)
    loop = found.main_loop
    assert found.blocks(LARGEST.threads) >= 2
    assert loop.fused / loop.count > 0.8
    assert loop.fused / (loop.fused + loop.integer) > 0.9
    assert loop.fused == 2 * 8 * LARGEST.thread_rows * LARGEST.thread_columns
    check_reads(kernel, loop)
    assert loop.float64 == 0
    assert not found.problems(LARGEST.threads)


@pytest.mark.parametrize("capability", [(7, 5), (9, 0)], ids=str)
def test_a_first_layer_saves_no_registers(capability):
    """Few channels, read one by one, and many filters with a bias."""
    form = gathered.Form(False, False, True, "bias")
    kernel = gathered.kernel(SINGLE, LARGEST, form)
    types = kernel.types((*[on_device(np.zeros(1, SINGLE))] * 4, *plans(form)))
    assert not report(kernel, types, capability).problems(LARGEST.threads)


@pytest.mark.parametrize("tile", tiles(SINGLE)[1:], ids=str)
def test_other_tiles(tile):
    for _, kernel, types in kernels(tile):
        found = report(kernel, types, (9, 0))
        assert found.whole.local == found.stack == found.whole.float64 == 0
        assert found.blocks(tile.threads) * tile.threads >= 384
        check_reads(kernel, found.main_loop)
        assert found.main_loop.fused / found.main_loop.count > 0.45


@pytest.mark.parametrize("tile", TENSOR_TILES, ids=str)
def test_tensor_cores(tile):
    """They compute all products, and what they take of shared memory is read once, and at once."""
    products = tile.thread_rows // 2 * (tile.thread_columns // 2) * tile.step // 8
    reads = (tile.thread_rows // 2 + tile.thread_columns // 4) * tile.step // 8
    for name, kernel, types in kernels(tile):
        for capability in CAPABILITIES[1:] if tile == TENSOR_TILES[0] else [(9, 0)]:
            found = report(kernel, types, capability)
            loop = found.main_loop
            assert found.whole.tensor == loop.tensor == products, name
            assert loop.fused == found.whole.float64 == 0
            assert loop.accesses["LDS.128"] == reads
            assert loop.wide("LDS")
            assert loop.count < (6 if tile == TENSOR_TILES[0] else 15) * products
            assert not found.problems(tile.threads)


@pytest.mark.parametrize("processors", [40, 108, 128, 132])
@pytest.mark.parametrize("blocks", [1, 5, 18, 36])
def test_parts_keep_all_multiprocessors_busy_to_the_end(blocks, processors):
    pixels, step = 100352, 16
    part = pixel_sums._part(pixels, step, blocks, 10**6, 1e-4, processors)
    assert part % step == 0
    launched = blocks * -(-pixels // part)
    rounds = -(-launched // processors)
    assert 2 <= rounds <= 7
    assert launched > 0.85 * rounds * processors
    assert launched * part < 1.1 * blocks * pixels  # hardly any positions that are none


def test_parts_are_fewer_where_it_takes_long_to_add_them():
    def count(most, adding):
        return -(-100352 // pixel_sums._part(100352, 16, 9, most, adding, 132))

    assert count(10**6, 0.0) > count(10**6, 5e-3) > count(10**6, 5e-2) > 1
    assert count(7, 0.0) <= 7
    assert count(0, 0.0) == 1
