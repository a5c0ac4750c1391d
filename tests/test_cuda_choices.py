"""Two ways to one result on a card: what docs/cuda.md says, beside the numbers that were kept."""

import json

import pytest

from benchmarks import cuda_choices, cuda_page

MEASURED = json.loads((cuda_page.ROOT / "docs" / "cuda_choices.json").read_text())


def test_the_page_is_that_of_the_measurements():
    page = cuda_page.PAGE.read_text()
    assert cuda_choices.written(page, MEASURED) == page, "run python -m benchmarks.cuda_choices"
    with pytest.raises(ValueError, match="has no line '<!-- choices"):
        cuda_choices.written("nothing", MEASURED)


def test_what_is_said():
    sums = [
        {"kernel": "matmul", "shape": shape, "registers": before, "copies": after, "same": True}
        for shape, before, after in (("9 x 9", 2e-4, 1e-4), ("8 x 8", 1e-4, 2e-4))
    ]
    squares = [
        {"kernel": "f", "images": [1, 2, 3, 4], "chosen": 4, "seconds": [3e-4, 2e-4, 1e-4]},
        {"kernel": "f", "images": [4, 3, 2, 1], "chosen": 0, "seconds": [4e-4, 2e-4, 1e-4]},
    ]
    found = {"card": "NVIDIA H200", "copies": sums, "filtering": squares}
    said = cuda_choices.text(found)
    assert "take 0.50 to 2.00 of the time of those through registers, 1.00 in the" in said
    assert "have the same bits" in said
    assert "takes 4.00 of the time of the best way at most, 2.000 in the geometric mean" in said
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines()]
    assert ["`matmul`", "9 x 9", "200", "100", "0.50"] in rows
    assert ["`f`", "4 x 3 x 2 x 1", "400", "200", "100", "definition"] in rows
    sums[0]["same"] = False
    assert "OTHER BITS" in cuda_choices.text(found)
