"""What docs/cuda.md says was measured on a card, beside the numbers that were kept."""

import json
import re

import pytest

from benchmarks import cuda_measured, cuda_page
from benchmarks.cuda_measured import joined, sentences, text

KEPT = cuda_page.ROOT / "docs" / "cuda_measured.json"
MEASURED = json.loads(KEPT.read_text())
H200 = {
    "name": "NVIDIA H200",
    "capability": "9.0",
    "tf32": False,
    "copy_bytes_per_second": 4.1e12,
    "cublas_operations_per_second": 50.25e12,
}


def test_the_page_is_that_of_the_measurements():
    page = cuda_page.PAGE.read_text()
    assert cuda_measured.written(page, MEASURED) == page, "run python -m benchmarks.cuda_measured"


def test_what_was_kept_can_be_joined_again():
    assert joined([KEPT]) == MEASURED


def kernel(name, shape, seconds, share=0.0):
    row = {"kernel": name, "shape": shape, "seconds": seconds, "bytes_per_second": 1e12}
    return row | ({"operations_per_second": 67e12 * share} if share else {})


def step(network, batch, **seconds):
    return {"network": network, "batch": batch} | {
        name.replace("_", " "): value for name, value in seconds.items()
    }


@pytest.fixture
def found():
    """Of each kind of shape and of number something, told by name."""
    kernels = [
        kernel("conv2d_forward", "resnet 64", 2e-4, 0.6),
        kernel("conv2d_grad_input", "imagenet 64", 3e-4, 0.9),
        kernel("conv2d_grad_weight", "resnet 512", 4e-4, 1.2),
        kernel("conv2d_forward", "quick 1", 5e-4, 0.1),
        kernel("conv2d_grad_weight", "quick 3", 6e-4, 0.3),
        {"kernel": "conv2d_grad_weight", "shape": "resnet 64", "error": "it failed"},
        kernel("matmul", "2 x 3 x 4", 7e-4, 0.4),
        kernel("relu_forward", "9 x 9", 8e-4),
    ]
    steps = [
        step("quick", 128, SGD=2e-3, KFC=6e-3, PyTorch_SGD=1e-3),
        step("small", 64, SGD=4e-3, KFC=8e-3, PyTorch_SGD=None),
    ]
    training = [{"right": True, "error": error} for error in (1e-16, 3e-15)]
    return {"card": H200, "results": [{"right": True}, {"right": False}], "training": training,
            "kernels": kernels, "steps": steps}  # fmt: skip


@pytest.fixture
def both(found):
    """The same, with TF32 beside it."""
    kernels = [
        kernel("conv2d_forward", "resnet 64", 1e-4, 1.2),
        kernel("conv2d_grad_weight", "resnet 512", 5e-4, 1.0),
        kernel("conv2d_grad_weight", "resnet 64", 5e-4, 1.0),
        {"kernel": "matmul", "shape": "2 x 3 x 4", "error": "it failed"},
        kernel("relu_forward", "9 x 9", 1e-6),
    ]
    steps = [step("quick", 128, SGD=1e-3, KFC=5e-3, PyTorch_SGD=1e-3)]
    return found | {"tf32": {"card": H200 | {"tf32": True}, "results": [], "training": [],
                             "kernels": kernels, "steps": steps}}  # fmt: skip


def test_shares_of_the_card(found):
    assert "consists of" not in text(found)
    quick, small = found["steps"]
    quick["card"] = {"SGD": {"kernels": 95.5, "seconds": 5e-4}, "KFC": None}
    small["card"] = {"SGD": None, "KFC": {"kernels": 194.0, "seconds": 6e-3}}
    written = text(found)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in written.splitlines()]
    assert ["quick", "128", "SGD", "96", "2.00", "0.50", "25%"] in lines
    assert ["small", "64", "KFC", "194", "8.00", "6.00", "75%"] in lines
    assert len([line for line in lines if len(line) == 7]) == 4  # head, rule, and these


def test_sentences(found):
    assert sentences(found) == (
        "Of the peak of 67 TFLOP/s, by useful operations (of which minimal filtering does fewer, "
        "and so may pass it), reach: outputs and input gradients of convolutions of 64 or more "
        "channels 60 to 90%; their weight gradients 120%; convolutions of fewer, and their "
        "gradients 10 to 30%; products of matrices 40%; cuBLAS's product of the largest matrices "
        "75%. A step of SGD takes 2.0 times as long as PyTorch's. A step of KFC takes 2.0 to 3.0 "
        "times as long as one of SGD."
    )


def test_sentences_on_tf32(found, both):
    assert sentences(both) == sentences(found) + (
        " With TF32 products are 0.8 to 2.0 times as fast as in float32; slower are "
        "`conv2d_grad_weight` of resnet 512."
    )
    both["tf32"]["kernels"] = both["tf32"]["kernels"][:1]
    assert sentences(both).endswith("products are 2.0 times as fast as in float32.")


def test_a_card_without_a_peak_and_parts_that_are_missing(found):
    found["card"] = H200 | {"name": "NVIDIA T4"}
    assert sentences(found).startswith("A step of SGD takes")
    assert "%" not in text(found)
    assert sentences(found | {"steps": [], "kernels": []}) == ""
    assert sentences(found | {"card": H200, "steps": [], "kernels": []}) == ""


def rows(page):
    return [[cell.strip() for cell in line.strip("|").split("|")]
            for line in page.splitlines() if line.startswith("|")]  # fmt: skip


def test_tables_of_tf32(found, both):
    new = [row for row in rows(text(both)) if row not in rows(text(found))]
    new = [row for row in new if not re.fullmatch("[-:]+", row[0])]
    assert new == [
        ["network", "batch", "optimizer", "float32, ms", "TF32, ms", "ratio"],
        ["quick", "128", "SGD", "2.00", "1.00", "2.00"],
        ["quick", "128", "KFC", "6.00", "5.00", "1.20"],
        ["quick", "128", "PyTorch SGD", "1.00", "1.00", "1.00"],
        ["kernel", "shape", "float32, µs", "TF32, µs", "ratio"],
        ["`conv2d_forward`", "resnet 64", "200", "100", "2.00"],
        ["`conv2d_grad_weight`", "resnet 512", "400", "500", "0.80"],
    ]


def test_results_that_differ_are_counted_and_errors_shown(found):
    assert (
        "4 results were compared with the processor's, 1 differ; among them trainings in float64, "
        "whose losses differ by 3e-15 at most."
    ) in text(found)
    assert "2 results were compared with the processor's, 1 differ." in text(
        found | {"training": []}
    )
    assert ["conv2d_grad_weight", "resnet 64", "it failed", "", "", ""] in rows(text(found))


def files_of(folder, *contents):
    found = []
    for i, content in enumerate(contents):
        found.append(folder / f"{i}.json")
        found[-1].write_text(json.dumps(content))
    return found


def test_files_are_joined_by_precision(tmp_path, both):
    tf32 = both["tf32"]
    parts = [
        {name: both[name] for name in ("card", "results", "training")} | {"kernels": []},
        tf32 | {"steps": []},
        {name: both[name] for name in ("card", "kernels", "steps")},
        {"card": tf32["card"], "steps": tf32["steps"]},
    ]
    assert joined(files_of(tmp_path, *parts)) == both
    assert joined(files_of(tmp_path, both)) == both


@pytest.mark.parametrize("order", [1, -1])
def test_files_of_two_cards_are_refused(tmp_path, found, order):
    """Also if they are of two precisions."""
    other = {"card": H200 | {"name": "NVIDIA T4", "tf32": True}}
    with pytest.raises(ValueError, match=r"is of an NVIDIA (T4|H200), another of an NVIDIA"):
        joined(files_of(tmp_path, *[found, other][::order]))


def test_a_part_that_is_given_twice_is_refused(tmp_path, both):
    with pytest.raises(ValueError, match=r"1.json has 'kernels', which was in a file before"):
        joined(files_of(tmp_path, both, {"card": H200, "kernels": both["kernels"]}))
    again = {"card": both["tf32"]["card"], "steps": both["tf32"]["steps"]}
    with pytest.raises(ValueError, match=r"1.json has 'steps', which was in a file before"):
        joined(files_of(tmp_path, both, again))


def test_tf32_alone_is_refused(tmp_path, both):
    with pytest.raises(ValueError, match="no file was measured in float32"):
        joined(files_of(tmp_path, both["tf32"]))


def test_only_its_part_of_the_page_is_written(found):
    begin, end = cuda_measured.BEGIN, cuda_measured.END
    new = cuda_measured.written(f"before\n{begin}\nold \\1\n{end}\nafter\n", found)
    assert new == f"before\n{begin}\n{text(found)}\n{end}\nafter\n"
    with pytest.raises(ValueError, match="has no line"):
        cuda_measured.written("nothing", found)
