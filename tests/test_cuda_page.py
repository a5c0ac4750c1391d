"""What docs/cuda.md says of the cost model, beside the numbers that it is made of."""

import copy
import json
import re

import pytest

from benchmarks import cuda_cards, cuda_page
from benchmarks.marked import END

MODEL = json.loads(cuda_page.KEPT.read_text())
MEASURED = json.loads((cuda_page.ROOT / "docs" / "cuda_measured.json").read_text())


def test_the_page_is_that_of_the_model():
    page = cuda_page.PAGE.read_text()
    assert cuda_page.written(page, MODEL) == page, "run python -m benchmarks.cuda_page"


def test_the_model_knows_what_was_measured_last():
    times = {(row["kernel"], row["shape"]): row.get("seconds") for row in MEASURED["kernels"]}
    for row in MODEL["calls"]:
        assert row["measured"] == pytest.approx(times[row["kernel"], row["shape"]], rel=1e-4), (
            "run python -m benchmarks.cuda_model"
        )
    steps = {(row["network"], row["batch"]): row for row in MEASURED["steps"]}
    assert len(MODEL["measured steps"]) == 2 * len(steps)
    for row in MODEL["measured steps"]:
        measured = steps[row["network"], row["batch"]][row["optimizer"]]
        assert row["measured"] == pytest.approx(measured, rel=1e-4)


def test_all_cards_and_networks_are_there():
    names = list(cuda_cards.CARDS)
    assert list(MODEL["layers"]) == names
    assert len(MODEL["steps"]) == 6
    assert all(list(step["cards"]) == names for step in MODEL["steps"])
    assert all(name in cuda_page.text(MODEL) for name in names)


def numbers(value, path=()):
    """Where the numbers of the kept file are."""
    if isinstance(value, dict):
        value = value.items()
    elif isinstance(value, list):
        value = enumerate(value)
    else:
        if isinstance(value, float):
            yield path
        return
    for key, part in value:
        yield from numbers(part, (*path, key))


#: Numbers from which others were made that are on the page.
NOT_SHOWN = {"seconds", "factors", "calls", "most", "read"}


def test_a_number_that_is_changed_changes_the_page():
    before = cuda_page.text(MODEL)
    shown = [path for path in numbers(MODEL) if not NOT_SHOWN & set(path)]
    shown = [path for path in shown if "limits" not in path and "measured layers" not in path]
    # Of the networks that were not measured, how much they ask for stands in the file alone.
    counts = {"launches", "operations", "reads"}
    shown = [path for path in shown if path[0] != "steps" or path[-1] not in counts]
    # What memory allows is on the page where that is below the aim.
    shown = [path for path in shown if path[-1] != "memory's share"]
    # Nor do shares of steps that were measured.
    left = {"share of peak", "decompositions"}
    shown = [path for path in shown if path[0] != "measured steps" or path[-1] not in left]
    assert len(shown) > 300
    for path in shown[:: len(shown) // 60]:
        other = copy.deepcopy(MODEL)
        place = other
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = 3 * place[path[-1]] + 1
        assert cuda_page.text(other) != before, path


def row(layer, kernel, share, expected, memory=2.0):
    return {"layer": layer, "kernel": kernel, "share of peak": share, "expected share": expected,
            "memory's share": memory, "limit": "issue"}  # fmt: skip


def test_which_shapes_reach_the_aim():
    rows = [row("a", "f", 0.6, 0.5), row("a", "g", 0.59, 0.5), row("b", "f", 0.9, 0.7),
            row("b", "g", 0.3, 0.1)]  # fmt: skip
    assert cuda_page._reaching("T4", rows, "H200") == (
        "- T4: by the model 2 of 4 reach it. These do not: `g` of all. "
        "As much slower as on the H200, 1 of 4 do."
    )
    assert "`g` of b. " in cuda_page._reaching("T4", [*rows[2:], row("a", "g", 0.7, 0.6)], "H200")
    kept = cuda_page._reaching("T4", [*rows[:1], row("b", "g", 0.3, 0.1, 0.53)], "H200")
    assert "`g` of b (by its bytes 53% at most). " in kept
    line = cuda_page._reaching("T4", rows[2:3], "H200")
    assert line == "- T4: by the model 1 of 1 reach it. As much slower as on the H200, 1 of 1 do."


def test_what_limits_a_step():
    found = {"step": 2.0, "device": 1.0, "limits": {"issue": 0.7, "memory": 0.2, "start": 0.1}}
    assert cuda_page._limits(found) == "host"
    assert cuda_page._limits(found | {"step": 1.1}) == "issue 70%, memory 20%"


def test_only_its_part_of_the_page_is_written():
    page = f"before\n{cuda_page.BEGIN}\nold\n{END}\nafter\n"
    new = cuda_page.written(page, MODEL)
    assert new.startswith(f"before\n{cuda_page.BEGIN}\nAssumed: ")
    assert new.endswith(f"{END}\nafter\n")
    assert "old" not in new
    with pytest.raises(ValueError, match="has no line"):
        cuda_page.written("nothing", MODEL)


def test_what_is_prediction_is_called_so():
    parts = re.split(r"^### ", cuda_page.text(MODEL), flags=re.M)
    predicted = [part for part in parts if part.startswith(("Convolutions", "Steps"))]
    assert len(predicted) == 3  # convolutions in float32, and on tensor cores
    assert all("\nPredictions" in part for part in predicted)
