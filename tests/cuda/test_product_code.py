"""What the compilers made of the products under convolutions, matrix products and moments."""

import numpy as np
import pytest
from host_array import on_device
from machine_code import report

from kfc_numba.kernels.cuda import gathered, outer_products
from kfc_numba.kernels.cuda.tiles import tiles

SINGLE = np.dtype(np.float32)
LARGEST = tiles(SINGLE)[0]
GATHERED = {
    "forward": gathered.Form(False, True, True, "bias"),
    "gradient by the input": gathered.Form(True, True, True, "zero"),
}
PATCHES = {"gather_left": True, "wide_left": True, "wide_right": True, "wide_result": True}
PLAIN = dict.fromkeys(outer_products.Form._fields, False) | PATCHES
SUMS = {
    "gradient by the weight": PLAIN,
    "moment": PLAIN | dict.fromkeys(("gather_right", "ones_left", "ones_right", "symmetric"), True),
    "shared offsets": PLAIN | {"gather_right": True, "ones_right": True},
    "transposed product": PLAIN | {"gather_left": False},
}


def kernels(tile):
    """Name, kernel and types of the wide forms of products."""
    dtype = SINGLE if tile in tiles(SINGLE) else np.dtype(float)
    array = on_device(np.zeros(1, dtype))
    for name, form in GATHERED.items():
        kernel = gathered.kernel(dtype, tile, form)
        plan = gathered.Gathering(*[1] * len(gathered.Gathering._fields))
        yield name, kernel, kernel.types((*[array] * 4, plan))
    for name, fields in SUMS.items():
        if not fields["symmetric"] or tile.rows == tile.columns:
            kernel = outer_products.outer_products(dtype, tile, outer_products.Form(**fields))
            plan = outer_products.Summing(*[1] * len(outer_products.Summing._fields))
            yield name, kernel, kernel.types((*[array] * 3, plan))


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)], ids=str)
@pytest.mark.parametrize("case", list(kernels(LARGEST)), ids=lambda case: case[0])
def test_largest_tile(case, capability):
    """Two blocks a multiprocessor, and most of what the main loop does is to multiply and add."""
    _, kernel, types = case
    found = report(kernel, types, capability)
    loop = found.main_loop
    assert found.blocks(LARGEST.threads) >= 2
    assert loop.fused / loop.count > 0.8
    assert loop.fused / (loop.fused + loop.integer) > 0.9
    assert loop.fused == 2 * 8 * LARGEST.thread_rows * LARGEST.thread_columns
    assert loop.wide("LDS")
    assert loop.wide("LDG")
    assert loop.float64 == 0
    assert loop.local <= 2  # registers that were spilled


@pytest.mark.parametrize("tile", tiles(SINGLE)[1:], ids=str)
def test_other_tiles(tile):
    for _, kernel, types in kernels(tile):
        found = report(kernel, types, (9, 0))
        assert found.whole.local == found.stack == found.whole.float64 == 0
        assert found.blocks(tile.threads) * tile.threads >= 384
        assert found.main_loop.wide("LDS")
        assert found.main_loop.fused / found.main_loop.count > 0.45
