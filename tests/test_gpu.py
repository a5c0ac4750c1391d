"""On a card: the same results as on the processor, and the same bits every time.

Without a card these tests are collected and not run; the end of the report counts them.
"""

import itertools
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba import devices, networks
from kfc_numba.commands import bench_cuda
from kfc_numba.commands.cuda_cases import cases
from kfc_numba.curvature import operators
from kfc_numba.kernels.backend import kernels as kernels_of
from kfc_numba.kernels.rates import H200
from kfc_numba.laplace import KroneckerPosterior
from kfc_numba.precision import tensor_cores

pytestmark = pytest.mark.gpu

SOFTMAX = kfc.SoftmaxCrossEntropy()
OPTIMIZERS = {
    "sgd": lambda: kfc.SGD(learning_rate=0.01),
    "adam": lambda: kfc.Adam(),
    "kfc": lambda: kfc.KFC(),
    "diagonal": lambda: kfc.KFC(structure="diagonal"),
    "lag": lambda: kfc.KFC(decomposition_lag=2, period_growth=0.0, inverse_update_period=1),
    "adaptive": lambda: kfc.KFC(use_adaptive_damping=True, use_adaptive_learning_rate=True),
}


def kernels():
    return sorted({case.kernel for case in cases(large=False)})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", kernels())
def test_kernels(kernel, dtype):
    rows = [row for row in bench_cuda.compared(kernel, (dtype,)) if row["kernel"] == kernel]
    assert rows
    assert all(row["right"] for row in rows), rows


@pytest.mark.parametrize("kernel", bench_cuda.PRODUCTS)
def test_kernels_in_tf32(kernel):
    with tensor_cores():
        rows = list(bench_cuda.compared(kernel, (np.float32,)))
    assert rows
    assert all(row["right"] for row in rows), rows


@pytest.mark.parametrize("shape", [(300, 200, 260), (130, 37, 66), (4000, 50, 36)], ids=str)
def test_whole_numbers_are_exact_in_tf32(shape):
    """Each number must come to its place in the registers of a warp."""
    rows, depth, columns = shape
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 9, s).astype(np.float32) for s in ((rows, depth), (depth, columns)))
    there = kernels_of(devices.upload(a))
    for left, right in itertools.product((False, True), repeat=2):
        given = (np.ascontiguousarray(m.T if t else m) for m, t in ((a, left), (b, right)))
        with tensor_cores():
            found = there.matmul(
                *map(devices.upload, given), transpose_a=left, transpose_b=right
            ).get()
        np.testing.assert_array_equal(found, a @ b)


def test_products_in_tf32_are_as_near_as_is_said():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=s).astype(np.float32) for s in ((500, 3000), (3000, 400)))
    there = kernels_of(devices.upload(a))
    with tensor_cores():
        found, again = (there.matmul(*map(devices.upload, (a, b))).get() for _ in range(2))
    np.testing.assert_array_equal(found, again)
    plain = there.matmul(*map(devices.upload, (a, b))).get()
    exact, magnitudes = a.astype(float) @ b, abs(a.astype(float)) @ abs(b)
    error = (abs(found - exact) / magnitudes).max()
    assert error < 2.0**-10
    if int(devices.cupy().cuda.Device().compute_capability) >= 80:
        assert error > 10 * (abs(plain - exact) / magnitudes).max()  # or they were not used


def test_the_driver_tells_what_choices_go_by():
    from kfc_numba.kernels.cuda import launch

    found = launch.rates()
    assert found != H200  # as where a number is left out: no clock is as round
    assert 1e11 < found.moved < found.products < 1e15


def data(shape, examples=48):
    rng = np.random.default_rng(0)
    return rng.normal(size=(examples, *shape)).astype(np.float32), rng.integers(0, 10, examples)


def trained(device, name, optimizer, steps=4, dtype=np.float32):
    shape = (12, 10, 3)
    net = networks.build(name, shape, 10, dtype=dtype).to(device)
    trainer = kfc.Trainer(net, SOFTMAX, OPTIMIZERS[optimizer]())
    x, y = data(shape)
    losses = [trainer.step(x, y) for _ in range(steps)]
    return trainer, losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["small", "quick-norm", "resnet-small"])
def test_training(name, optimizer):
    """In float64: rounding does not grow to be seen in a few steps."""
    there, losses = trained("cuda", name, optimizer, dtype=np.float64)
    here, expected = trained("cpu", name, optimizer, dtype=np.float64)
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    for key, value in here.net.params.items():
        np.testing.assert_allclose(there.net.params[key].get(), value, atol=1e-8)
    assert all(
        devices.device_of(value) == "cuda" for value in there.optimizer_state.values() if value.ndim
    )


@pytest.mark.parametrize("optimizer", ["sgd", "kfc", "lag"])
def test_bits_are_the_same_every_time(optimizer):
    first, second = (trained("cuda", "small", optimizer)[0].net.params for _ in range(2))
    for key, value in first.items():
        np.testing.assert_array_equal(value.get(), second[key].get())


def kfc_on_the_card():
    """Losses, and parameters, of a few steps in float32."""
    trainer, losses = trained("cuda", "small", "kfc")
    return losses, {key: value.get() for key, value in trainer.net.params.items()}


def test_a_stream_of_ones_own():
    losses, params = kfc_on_the_card()
    with devices.cupy().cuda.Stream(non_blocking=True):
        found, values = kfc_on_the_card()
    assert found == losses
    for key, value in params.items():
        np.testing.assert_array_equal(values[key], value)


def test_threads_at_once():
    """Each launches for the first time in its thread, and on a stream of its own."""

    def run(_):
        with devices.cupy().cuda.Stream(non_blocking=True):
            return kfc_on_the_card()

    losses, params = kfc_on_the_card()
    with ThreadPoolExecutor(4) as pool:
        for found, values in pool.map(run, range(4)):
            assert found == losses
            for key, value in params.items():
                np.testing.assert_array_equal(values[key], value)


@pytest.mark.parametrize("ways", [("cuda", "cpu"), ("cpu", "cuda")])
def test_saving_here_and_going_on_there(tmp_path, ways):
    trainer, _ = trained(ways[0], "small", "kfc", dtype=np.float64)
    trainer.save(tmp_path / "run.safetensors")
    net = networks.build("small", (12, 10, 3), 10, dtype=np.float64).to(ways[1])
    other = kfc.Trainer.load(tmp_path / "run.safetensors", net, SOFTMAX, kfc.KFC())
    x, y = data((12, 10, 3))
    assert other.net.device == ways[1]
    np.testing.assert_allclose(other.step(x, y), trainer.step(x, y), rtol=1e-9)
    for key, value in trainer.net.params.items():
        gap = devices.to_host(value) - devices.to_host(other.net.params[key])
        assert abs(gap).max() < 1e-8


def test_fit_and_predict():
    x, y = data((12, 10, 3), 200)
    histories, predictions = {}, {}
    for device in ("cpu", "cuda"):
        net = networks.build("small", (12, 10, 3), 10, dtype=np.float64).to(device)
        trainer = kfc.Trainer(net, SOFTMAX, kfc.KFC())
        history = trainer.fit(x, y, batch_size=64, epochs=2, validation=(x, y), progress=False)
        histories[device] = [row["training_loss"] for row in history.rows]
        predictions[device] = net.predict(x)
    np.testing.assert_allclose(histories["cuda"], histories["cpu"], rtol=1e-8)
    assert isinstance(predictions["cuda"], np.ndarray)
    np.testing.assert_allclose(predictions["cuda"], predictions["cpu"], atol=1e-7)


@pytest.mark.parametrize("part", [0.25, 0.0])
def test_data_on_the_card_and_in_pinned_memory(monkeypatch, part):
    monkeypatch.setattr("kfc_numba.feeding.RESIDENT_PART", part)
    x, y = data((12, 10, 3), 200)
    net = networks.build("small", (12, 10, 3), 10).to("cuda")
    trainer = kfc.Trainer(net, SOFTMAX, kfc.SGD(learning_rate=0.01))
    trainer.fit(x, y, batch_size=64, epochs=2, progress=False)
    usual = networks.build("small", (12, 10, 3), 10).to("cuda")
    other = kfc.Trainer(usual, SOFTMAX, kfc.SGD(learning_rate=0.01))
    other.fit(devices.upload(x), y, batch_size=64, epochs=2, progress=False)
    for key, value in net.params.items():
        np.testing.assert_array_equal(value.get(), usual.params[key].get())


def test_arrays_of_either_place_are_taken():
    net = networks.build("small", (12, 10, 3), 10).to("cuda")
    x, _ = data((12, 10, 3))
    there = net.predict(devices.upload(x))
    assert devices.device_of(there) == "cuda"
    np.testing.assert_array_equal(there.get(), net.predict(x))


def test_a_state_left_behind_is_told():
    net = networks.build("small", (12, 10, 3), 10)
    trainer = kfc.Trainer(net, SOFTMAX, kfc.SGD())
    net.to("cuda")
    with pytest.raises(ValueError, match=r"Trainer\.to"):
        trainer.step(*data((12, 10, 3)))
    trainer.to("cuda").step(*data((12, 10, 3)))


def looked_into(device):
    """What is found by everything that looks into a network; NumPy's arrays."""
    net = networks.build("quick-norm", (12, 10, 3), 10, dtype=np.float64).to(device)
    x, y = data((12, 10, 3), 8)
    size = sum(value.size for value in net.params.values())
    vector = np.random.default_rng(1).normal(size=size)
    posterior = KroneckerPosterior(net, SOFTMAX, 2.0).fit(x)
    blocks = operators.block_curvature(net, x, SOFTMAX, damping=0.1)
    report = kfc.check_curvature(net, x, SOFTMAX, largest=3000, repeats=1)
    errors = [row["relative_error"] for row in report.rows]
    return {
        "evidence": posterior.log_marginal_likelihood(x, y),
        "covariance": posterior.output_distribution(x[:2])[1],
        "product": operators.exact_fisher(net, x, SOFTMAX) @ vector,
        "inverse": blocks.inverse() @ vector,
        "eigenvalues": blocks.eigenvalues(),
        "expand": np.array([e["expand"] for e in errors if e and e["expand"] is not None]),
        "correlation": report.rows[0]["derivative_correlation"],
    }


def test_what_looks_into_a_network():
    found, expected = looked_into("cuda"), looked_into("cpu")
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-8, err_msg=name)


def test_too_little_memory_is_told():
    net = networks.build("quick", (32, 32, 3), 10).to("cuda")
    trainer = kfc.Trainer(net, SOFTMAX, kfc.KFC())
    x, y = data((32, 32, 3), 4000)
    trainer.step(x[:8], y[:8])
    pool = devices.cupy().get_default_memory_pool()
    pool.free_all_blocks()
    pool.set_limit(pool.used_bytes() + (400 << 20))
    try:
        with pytest.raises(MemoryError, match="a batch of 4,000 examples needs") as caught:
            trainer.step(x, y)
        most = int(re.search(r"at most ([\d,]+) fit", str(caught.value))[1].replace(",", ""))
        assert trainer.steps == 1
        trainer.step(x[:most], y[:most])
        assert most > 100
    finally:
        pool.set_limit(0)
