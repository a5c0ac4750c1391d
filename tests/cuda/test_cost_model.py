"""The cost model of cards: what is recorded of a step, and what it is taken to cost."""

import functools
import json
from collections import Counter

import numpy as np
import pytest
from device_code import Processor
from host_array import HostArray, on_device, untouched
from machine_code import Instructions, Report
from stand_in import in_cupys_place

import kfc_numba as kfc
from benchmarks import cuda_calls, cuda_costs, cuda_model
from benchmarks.cuda_calls import Launch, Operation, recorded, recorded_steps
from benchmarks.cuda_cards import CARDS
from benchmarks.cuda_costs import Host, played
from kfc_numba.kernels import cuda
from kfc_numba.kernels.cuda import launch, winograd
from kfc_numba.random import generator

H200, T4 = CARDS["H200"], CARDS["T4"]
SHAPE = (6, 5, 3)


def small():
    layers = [
        *(kfc.Conv2d(4, 3, padding="same"), kfc.MaxPool2d(3, stride=2, ceil_mode=True)),
        *(kfc.BatchNorm(), kfc.ReLU(), kfc.Flatten(), kfc.Dense(10)),
    ]
    return kfc.Sequential(layers, input_shape=SHAPE)


# What is recorded.


class Noting(Processor):
    """Runs device code, and notes what was launched."""

    def __init__(self):
        super().__init__()
        self.launches = []

    def __call__(self, kernel, grid, block, arguments):
        self.launches.append((kernel.__name__, grid, block))
        super().__call__(kernel, grid, block, arguments)


@pytest.mark.parametrize(
    "optimizer",
    [kfc.SGD, functools.partial(kfc.KFC, curvature_update_period=2)],
    ids=["SGD", "KFC"],
)
def test_launches_are_those_of_a_training_that_computes(monkeypatch, optimizer):
    steps = recorded_steps(small, optimizer(), 10, batch=7, warm=1, steps=2)
    rng = np.random.default_rng(0)
    with in_cupys_place(monkeypatch):
        trainer = kfc.Trainer(small().to("cuda"), kfc.SoftmaxCrossEntropy(), optimizer(), seed=0)
        x = on_device(rng.normal(size=(7, *SHAPE)).astype(np.float32))
        y = rng.integers(0, 10, 7)
        for k in range(3):
            with launch.executed_by(Noting()) as ran:
                trainer.step(x, y)
            if k:
                asked = [part for _, part in steps[k - 1] if isinstance(part, Launch)]
                assert [(a.kernel.__name__, a.grid, a.block) for a in asked] == ran.launches


def test_launches_have_the_names_of_exported_kernels():
    (step,) = recorded_steps(small, kfc.SGD(averaging=None), 10, batch=7, warm=1, steps=1)
    names = {name for name, asked in step if isinstance(asked, Launch)}
    assert {"conv2d_forward", "conv2d_grad_parameters", "max_pool_backward", "copy"} <= names
    assert all(hasattr(cuda, name) or hasattr(cuda.many, name) for name in names)


def test_nothing_is_left_behind():
    before = launch._executor, HostArray.__add__, dict(cuda_calls.backend._packages)
    recorded(lambda: None)
    assert (launch._executor, HostArray.__add__, cuda_calls.backend._packages) == before


def operations_of(function):
    return [(name, asked) for name, asked in recorded(function) if isinstance(asked, Operation)]


def test_operations_are_counted_and_views_are_not():
    a, b = (on_device(np.ones((4, 6), np.float32)) for _ in range(2))
    assert operations_of(lambda: a[1:].T.reshape(3, 6)[::2]) == []
    assert operations_of(lambda: a + b) == [("cupy.add", Operation(3 * 96))]
    assert operations_of(lambda: 2 * a) == [("cupy.rmul", Operation(2 * 96))]
    assert [name for name, _ in operations_of(lambda: float(a.sum()))] == ["cupy.sum", "cupy.item"]
    xp = a.__array_namespace__()
    assert operations_of(lambda: xp.sqrt(a)) == [("cupy.sqrt", Operation(2 * 96))]
    assert [name for name, _ in operations_of(lambda: a.fill(0))] == ["cupy.fill"]


@pytest.mark.parametrize("how", ["operator", "function"])
def test_products_are_counted_and_not_computed(how):
    a, b = on_device(np.ones((5, 4, 6), np.float32)), on_device(np.ones((6, 7), np.float32))
    made = []

    def multiply():
        made.append(a @ b if how == "operator" else a.__array_namespace__().matmul(a, b))

    ((name, asked),) = operations_of(multiply)
    assert name == "cupy.matmul"
    assert asked.multiplications == 5 * 4 * 6 * 7
    assert asked.bytes == 4 * (120 + 42 + 140)
    assert made[0].shape == (5, 4, 7)
    assert not made[0].get().any()


def test_decompositions_are_counted_and_not_computed():
    matrix = on_device(np.eye(5, dtype=np.float32))
    found = operations_of(lambda: matrix.__array_namespace__().linalg.eigh(matrix))
    assert [(name, asked.matrices) for name, asked in found] == [("cupy.eigh", (5, 5))]


def test_inversions_are_counted_and_not_computed():
    matrix = on_device(np.eye(5, dtype=np.float32))
    found = operations_of(lambda: matrix.__array_namespace__().linalg.inv(matrix))
    assert [(name, asked.matrices, asked.multiplications) for name, asked in found] == [
        ("cupy.inv", (5, 5), 125)
    ]


def test_bytes_are_those_of_the_arrays_each_once():
    x = untouched((8, 4, 4, 4))
    ((_, one),) = recorded(lambda: cuda.add(x, x))
    assert one.bytes == 2 * x.nbytes
    ((_, other),) = recorded(lambda: cuda.add(x, untouched(x.shape)))
    assert other.bytes == 3 * x.nbytes


def test_bytes_between_steps_are_not_counted():
    x, dy = untouched((8, 6, 6, 4)), untouched((8, 3, 3, 16))
    one, nine = untouched((1, 1, 4, 16)), untouched((3, 3, 4, 16))
    quarter = x.nbytes // 4
    ((_, found),) = recorded(lambda: cuda.conv2d_forward(x, one, stride=2))
    assert found.bytes == quarter + one.nbytes + dy.nbytes
    ((_, found),) = recorded(lambda: cuda.conv2d_forward(x, nine, stride=2, padding=1))
    assert found.bytes == x.nbytes + nine.nbytes + dy.nbytes
    ((_, found),) = recorded(lambda: cuda.conv2d_grad_input(dy, nine, x.shape, stride=2, padding=1))
    assert found.bytes == x.nbytes + nine.nbytes + dy.nbytes
    assert found.trips == (1 + 2 + 2 + 4) / 4  # taps of 16 terms
    found = recorded(lambda: cuda.conv2d_grad_weight(x, dy, 1, stride=2))[0][1]
    assert found.bytes == quarter + one.nbytes + dy.nbytes


def test_the_least_bytes_are_those_of_one_launch():
    """More where sums are in parts, or the gradient by the input in launches for each step."""
    for label, name, _, least, found in cuda_model.layer_calls(CARDS["H100"]):
        parts = [part for _, part in found if isinstance(part, Launch)]
        assert sum(part.bytes for part in parts) >= least, (label, name)
        if name == "conv2d_forward" and "1x1" in label:
            assert [part.bytes for part in parts] == [least]


@pytest.mark.parametrize(
    ("kernel", "least", "most"),
    # Parts of sums are multiples of a step; of a moment only what is above the diagonal.
    [
        *(("forward", 1.0, 1.0), ("grad_input", 1.0, 1.0)),
        *(("grad_weight", 1.0, 1.05), ("moment", 0.75, 0.76)),
    ],
)
@pytest.mark.parametrize("filtering", [0, 2, 4])
def test_operations_of_shapes_without_tails_are_the_useful_ones(
    kernel, least, most, filtering, monkeypatch
):
    """So that the number of times that a main loop is gone through is right."""
    monkeypatch.setattr(winograd, "pays", lambda *shape, **which: filtering)
    x, w = untouched((64, 16, 16, 128)), untouched((3, 3, 128, 128))
    useful = 2 * x.size * 9 * 128
    calls = {
        "forward": lambda: cuda.conv2d_forward(x, w, padding=1),
        "grad_input": lambda: cuda.conv2d_grad_input(x, w, x.shape, padding=1),
        "grad_weight": lambda: cuda.conv2d_grad_weight(x, x, 3, padding=1),
        "moment": lambda: cuda.output_second_moment(x),
    }
    if kernel == "moment":
        useful = 2 * x.size * 128
    elif filtering:
        useful *= (filtering + 2) ** 2 / (3 * filtering) ** 2
    made = sum(cuda_costs.operations(asked, H200) for _, asked in recorded(calls[kernel]))
    assert least * useful <= made <= most * useful


# What it costs.


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_peaks_are_those_of_the_data_sheets(card):
    assert card.peak / 1000 == pytest.approx(card.teraflops, rel=0.01)


def report_of(loop, **changes):
    return Report("f", (9, 0), 64, 0, 0, Instructions(count=10), loop, [loop], **changes)


def test_a_launch_takes_the_longest_of_memory_and_units():
    loop = Instructions(count=100, float32=80, fused=80, accesses=Counter({"LDS.128": 4}))
    far = Launch(None, (), (132 * 8,), (256,), bytes=10**9, trips=1)
    cost = cuda_costs.of_launch(far, report_of(loop), H200)
    assert cost.limit == "memory"
    assert cost.seconds == pytest.approx(1e9 / (0.87 * 4.8e12) + 2e-6)
    long = Launch(None, (), (132 * 8,), (256,), bytes=1, trips=1001)
    cost = cuda_costs.of_launch(long, report_of(loop), H200)
    assert cost.limit == "issue"
    # 8 blocks of 8 warps a multiprocessor, 1000 trips of 100 instructions, 4 at once; 10 before.
    clocks = 64 * (1000 * 100 / 4 + 10 / 4)
    assert cost.seconds == pytest.approx(clocks / 1.98e9 + 2e-6)
    few = Launch(None, (), (1,), (32,), bytes=1, trips=1)
    assert cuda_costs.of_launch(few, report_of(loop), H200).limit == "start"


@pytest.mark.parametrize(
    ("limit", "changes"),
    [
        ("float32", {"float32": 500}),
        ("integers", {"integer": 300}),
        ("float64", {"float64": 300}),
        ("functions", {"special": 60}),
        ("shared memory", {"accesses": Counter({"LDS.128": 99})}),
    ],
)
def test_what_limits_a_launch(limit, changes):
    loop = Instructions(count=400, fused=1, **changes)
    launched = Launch(None, (), (132 * 8,), (256,), bytes=1, trips=1000)
    assert cuda_costs.of_launch(launched, report_of(loop), H200).limit == limit


def test_few_warps_hide_no_latency():
    loop = Instructions(count=100, fused=1)
    whole = Launch(None, (), (132,), (256,), bytes=1, trips=1000)
    quarter = Launch(None, (), (132,), (64,), bytes=1, trips=1000)
    full, slow = (cuda_costs.of_launch(part, report_of(loop), H200) for part in (whole, quarter))
    assert slow.units["issue"] == pytest.approx(full.units["issue"])


def test_operations_of_cupy():
    product = cuda_costs.cost(Operation(10, multiplications=10**12), H200)
    assert product.limit == "cuBLAS"
    assert product.seconds == pytest.approx(2e12 / (0.76 * H200.peak * 1e9) + 2e-6)
    assert cuda_costs.cost(Operation(10**9), T4).limit == "memory"
    one, eight = (cuda_costs.cost(Operation(1, matrices=(n, n)), H200) for n in (1000, 2000))
    assert one.limit == "decomposition"
    assert 2 < eight.seconds / one.seconds < 8


def asked(*names):
    kinds = {"launch": Launch(None, (), (1,), (1,), 0, None), "cupy": Operation(0)}
    return [(name, kinds["launch" if name == "launch" else "cupy"]) for name in names]


def test_a_step_is_played():
    host = Host(launch=1.0, cupy=2.0, read=0.5)

    def take(seconds):
        return lambda name, _: seconds

    quick = played(asked("launch", "cupy.add", "launch"), take(0.25), host)
    assert (quick.seconds, quick.host, quick.card) == (4.25, 4.0, 0.75)
    slow = played(asked("launch", "cupy.add", "launch"), take(10.0), host)
    assert (slow.seconds, slow.host, slow.card) == (31.0, 4.0, 30.0)
    waits = played(asked("launch", "cupy.get", "launch"), take(10.0), host)
    assert (waits.seconds, waits.host, waits.card) == (22.5, 2.5, 20.0)
    late = played(asked("launch"), take(0.25), Host(launch=1.0, cupy=2.0, step=3.0))
    assert (late.seconds, late.host, late.card) == (4.25, 4.0, 0.25)


def test_slower_kernels_make_a_step_longer():
    found = [(1.0, recorded(lambda: cuda.conv2d_forward(untouched((64, 16, 16, 64)),
                                                        untouched((3, 3, 64, 64)))))]  # fmt: skip
    host = Host(0.0, 0.0)
    once = cuda_model.mean_seconds(found, H200, {}, host)
    assert cuda_model.mean_seconds(found, H200, {"gathered": 2.0}, host) == pytest.approx(2 * once)
    assert cuda_model.mean_seconds(found, H200, {"pool": 2.0}, host) == once
    step = cuda_model.step_model(found, H200, {"gathered": 2.0}, host)
    assert step["expected"] == pytest.approx(2 * step["step"])
    assert 0 < step["share of peak"] < 1
    assert sum(step["limits"].values()) == pytest.approx(1)


def test_the_host_is_fitted():
    """From steps that a host of known times would make."""
    few, many = ((*run, "SGD") for run in cuda_model.FITTED)
    other = (*cuda_model.FITTED[0], "KFC")
    recorded_there = {
        few: [(1.0, asked(*["launch"] * 40))],
        many: [(1.0, asked(*["launch"] * 90))],
        other: [(1.0, asked(*["launch"] * 40, *["cupy.add"] * 80))],
    }
    true = Host(launch=50e-6, cupy=30e-6, step=2e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_model, "cost", lambda *_: cuda_costs.Cost(0.0, {"issue": 0.0}))
        patch.setattr(cuda_model, "kind", lambda _: "any")
        times = {
            key: cuda_model.mean_seconds(steps, H200, {}, true)
            for key, steps in recorded_there.items()
        }
        found = cuda_model.fitted_host(recorded_there, times, H200, {})
        times[few] = times[many]
        quick = cuda_model.fitted_host(recorded_there, times, H200, {})
    assert found.launch == pytest.approx(true.launch, abs=1e-7)
    assert found.cupy == pytest.approx(true.cupy, abs=1e-7)
    assert found.step == pytest.approx(true.step, abs=1e-6)
    assert quick.launch == 0


# Networks, and what is kept.


def test_steps_of_kfc_have_their_shares():
    steps = cuda_model.steps_by_weight(small, "KFC", 10, 8, H200)
    shares = [weight for weight, _ in steps]
    usual = kfc.KFC()
    assert sum(shares) == pytest.approx(1)
    assert shares[1] + shares[2] == pytest.approx(1 / usual.curvature_update_period)
    assert shares[2] == pytest.approx(1 / usual.inverse_update_period)
    names = [Counter(name for name, _ in found) for _, found in steps]
    moments = [n["patch_second_moment"] for n in names]
    assert moments[0] == 0 < moments[1] == moments[2]
    assert [n["cupy.inv"] for n in names] == [0, 0, 4]
    assert not any(n["cupy.eigh"] for n in names)


def test_calls_that_were_measured_are_found():
    calls = [(name, shape) for name, shape, found in cuda_model.measured_calls() if found]
    measured = json.loads(cuda_model.MEASURED.read_text())
    assert {(r["kernel"], r["shape"]) for r in measured["kernels"]} <= set(calls)


def test_numbers_are_rounded():
    assert cuda_model.rounded({"a": [1.234567e-5, 3, "x"], "b": (2.0,)}) == {
        "a": [1.2346e-5, 3, "x"],
        "b": [2.0],
    }


def test_generator_is_not_needed_for_shapes():
    """What stands for a generator gives arrays of the shapes that a generator gives."""
    zeros, rng = cuda_model._Zeros(), generator(0, "shapes")
    assert zeros.random(5).shape == rng.random(5).shape
    assert zeros.integers(0, 3, (2, 3)).dtype == rng.integers(0, 3, (2, 3)).dtype
    assert zeros.standard_normal((2,), np.float32).dtype == np.float32


def test_memory_counts_what_kernels_take():
    found = cuda_calls.memory_on_card(small, 7, kfc.KFC())
    here = small().memory(7, kfc.KFC())
    assert found["kernels"] > 0
    assert found["total"] == here["total"] + found["kernels"]


@pytest.mark.parametrize("card", CARDS)
def test_convolutions_of_64_channels_reach_the_aim(card):
    """60% of the peak by the model that docs/cuda.md shows, or as much as memory allows."""
    rows = json.loads(cuda_model.KEPT.read_text())["layers"][card]
    assert len(rows) == len(cuda_model.LAYERS) * len(cuda_model.KERNELS)
    for row in rows:
        possible = row["memory's share"]
        assert row["share of peak"] >= (0.6 if possible >= 0.6 else 0.8 * possible), row


def test_memory_that_is_kept_is_that_of_a_card():
    kept = json.loads(cuda_model.KEPT.read_text())["steps"]
    build, _, batch = cuda_model.NETWORKS["quick"]
    (step,) = (s for s in kept if (s["network"], s["optimizer"]) == ("quick", "KFC"))
    needed = cuda_calls.memory_on_card(build, batch, cuda_model.OPTIMIZERS["KFC"]())
    assert step["bytes"] == needed["total"]


# Tensor cores.


def test_instructions_of_tensor_cores():
    """At the peak of the data sheet, by the multiply-adds of each."""
    card = CARDS["A100"]
    clocks = cuda_costs.unit_clocks(Instructions(tensor=3), card)["tensor cores"]
    products = 3 * 16 * 8 * 8
    seconds = clocks / (card.clock * 1e9) / card.processors  # of a warp on each multiprocessor
    assert 2 * products / seconds == pytest.approx(156e12)
    assert cuda_costs.unit_clocks(Instructions(fused=1), T4)["tensor cores"] == 0
    assert [name for name, card in CARDS.items() if not card.tf32] == ["T4"]


def test_what_tensor_cores_change(monkeypatch):
    monkeypatch.setattr(cuda_model, "LAYERS", {"wide": (64, 28, 128, 128, 3, 2)})
    monkeypatch.setattr(cuda_model, "PRODUCTS", {"large": (4096, 4096, 4096), "thin": (64, 64, 8)})
    rows = cuda_model.tensor_model(H200)
    assert len(rows) == 9
    by_name = {(row["layer"], row["kernel"]): row for row in rows}
    large, thin = by_name["large", "matmul"], by_name["thin", "matmul"]
    assert large["floor"] == pytest.approx(2 * 4096**3 / 495e12)
    assert 1.5 < large["times float32"] < 495 / 66
    assert thin["times float32"] == 1  # fewer columns than they take
    assert all(row["floor"] < row["seconds"] for row in rows)
