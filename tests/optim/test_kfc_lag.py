"""Decompositions that are computed while steps go on: the same bits whatever the thread does."""

import copy
import pickle
import threading
from concurrent.futures import Future

import numpy as np
import pytest
from threadpoolctl import threadpool_info

import kfc_numba as kfc
from kfc_numba.curvature.blockdiagonal import BlockDiagonal
from kfc_numba.curvature.eigen import ONE_THREAD
from kfc_numba.optim import lag

LOSS = kfc.SoftmaxCrossEntropy()
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(24, 5)), RNG.integers(0, 3, 24)
STEPS = 12  # decompositions begin at 0, 3, 6, 9 and are used at 0, 5, 8, 11


def network():
    layers = [kfc.Dense(6), kfc.BatchNorm(), kfc.Tanh(), kfc.Dense(3)]
    return kfc.Sequential(layers, input_shape=(5,), dtype=np.float64)


def optimizer(**settings):
    usual = {"period_growth": 0.0, "curvature_update_period": 1, "inverse_update_period": 3}
    return kfc.KFC(**usual | {"decomposition_lag": 2} | settings)


def trainer(**settings):
    return kfc.Trainer(network(), LOSS, optimizer(**settings), seed=4)


def batch(step):
    chosen = (np.arange(8) + 5 * step) % len(X)
    return X[chosen], Y[chosen]


def go_on(found, steps=STEPS):
    while found.steps < steps:
        found.step(*batch(found.steps))
    return found


def assert_same_bits(one, other):
    """Parameters, and all of the state."""
    for found, expected in ((one.raw_params, other.raw_params),):
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert one.optimizer_state.keys() == other.optimizer_state.keys()
    for name, value in other.optimizer_state.items():
        np.testing.assert_array_equal(one.optimizer_state[name], value, err_msg=name)


@pytest.fixture
def threads(monkeypatch):
    """Names of the threads that decomposed, and an event that they wait for."""
    names, usual = [], BlockDiagonal.bases

    def bases(*arguments):
        names.append(threading.current_thread().name)
        return usual(*arguments)

    monkeypatch.setattr(BlockDiagonal, "bases", bases)
    return names


def test_another_thread_decomposes(threads):
    go_on(trainer())
    main = threading.main_thread().name
    # That of step 0 here, the three that follow elsewhere.
    assert threads[0] == main
    assert len(threads) == 4
    assert main not in threads[1:]


def test_it_makes_a_difference():
    """Not the thread: the lag."""
    late, soon = go_on(trainer()), go_on(trainer(decomposition_lag=0))
    assert "begun_step" not in soon.optimizer_state
    assert abs(late.raw_params["dense1.weight"] - soon.raw_params["dense1.weight"]).max() > 1e-6


@pytest.mark.parametrize("structure", ["kronecker", "ekfac", {"dense1": "full"}])
def test_a_thread_makes_no_difference(structure, monkeypatch):
    found = go_on(trainer(structure=structure))

    class AtOnce:
        def __init__(self, *arguments):
            pass

        def submit(self, function, *arguments):
            future = Future()
            future.set_result(function(*arguments))
            return future

        def shutdown(self, wait):
            pass

    monkeypatch.setattr(lag, "ThreadPoolExecutor", AtOnce)
    assert_same_bits(go_on(trainer(structure=structure)), found)


@pytest.mark.parametrize("structure", ["kronecker", "ekfac"])
def test_going_on_from_a_checkpoint(structure, tmp_path):
    """At every step, with one under way or none."""
    whole = go_on(trainer(structure=structure))
    found, pending = trainer(structure=structure), []
    while found.steps < STEPS:
        go_on(found, found.steps + 1)
        pending.append(int(found.optimizer_state["begun_step"]))
        found.save(tmp_path / "run.safetensors")
        again = kfc.Trainer.load(
            tmp_path / "run.safetensors", network(), LOSS, optimizer(structure=structure)
        )
        found = again
    assert pending == [-1, -1, -1, 3, 3, -1, 6, 6, -1, 9, 9, -1]
    assert_same_bits(found, whole)


def test_a_loaded_run_decomposes_elsewhere_too(threads, tmp_path):
    go_on(trainer(), 4).save(tmp_path / "run.safetensors")
    found = kfc.Trainer.load(tmp_path / "run.safetensors", network(), LOSS, optimizer())
    threads.clear()
    go_on(found, 6)
    assert len(threads) == 1
    assert threading.main_thread().name not in threads


@pytest.mark.parametrize("step", range(1, 7))
def test_a_step_that_fails(step):
    """Before one begins, when it begins, while it is under way, and when it is used."""
    found = go_on(trainer(), step)
    before = dict(found.optimizer_state)
    x, y = batch(step)
    with pytest.raises(ValueError, match="not finite"):
        found.step(np.where(x > 1, np.nan, x), y)
    with np.errstate(over="ignore"), pytest.raises(FloatingPointError):
        found.step(1e300 * x, y)
    assert found.optimizer_state.keys() == before.keys()
    assert all(found.optimizer_state[name] is value for name, value in before.items())
    assert_same_bits(go_on(found), go_on(trainer()))


def test_a_step_that_fails_after_the_bases_were_used(monkeypatch):
    found = go_on(trainer(), 5)
    assert int(found.optimizer_state["begun_step"]) == 3
    with monkeypatch.context() as patch:
        patch.setattr("kfc_numba.optim.kfc.propose", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            found.step(*batch(5))
    assert int(found.optimizer_state["begun_step"]) == 3
    assert_same_bits(go_on(found), go_on(trainer()))


def test_an_error_is_told_at_the_step_that_uses_it(monkeypatch):
    found = go_on(trainer(), 3)

    def bases(*arguments):
        raise np.linalg.LinAlgError("factor omega/dense1 of shape (6, 6) has no decomposition")

    monkeypatch.setattr(BlockDiagonal, "bases", bases)
    found.step(*batch(3))
    found.step(*batch(4))
    before = dict(found.optimizer_state)
    with pytest.raises(np.linalg.LinAlgError, match=r"omega/dense1 .* at step 5"):
        found.step(*batch(5))
    assert all(found.optimizer_state[name] is value for name, value in before.items())


def test_threads_of_a_parent_are_not_waited_for(monkeypatch):
    """As in the child of a fork, where nobody ends what the parent began."""
    found = go_on(trainer(), 4)
    task = found.optimizer._lagged._task
    never = lag._Task(task.process - 1, task.factors, Future())
    found.optimizer._lagged._task = never
    assert_same_bits(go_on(found), go_on(trainer()))


def test_optimizers_can_be_shared_and_copied():
    expected = go_on(trainer())
    shared = optimizer()
    one = kfc.Trainer(network(), LOSS, shared, seed=4)
    other = kfc.Trainer(network(), LOSS, shared, seed=4)
    for step in range(1, STEPS + 1):
        go_on(one, step)
        go_on(other, step)
    for found in (one, other):
        assert_same_bits(found, expected)
    for again in (copy.deepcopy(shared), pickle.loads(pickle.dumps(shared))):
        assert_same_bits(go_on(kfc.Trainer(network(), LOSS, again, seed=4)), expected)
    assert "lagged" not in repr(shared)
    assert shared.config()["decomposition_lag"] == 2


def test_memory_counts_what_is_under_way():
    with_lag = network().memory(8, optimizer())["optimizer_state"]
    same = optimizer(decomposition_lag=0, inversion="eigen")
    without = network().memory(8, same)["optimizer_state"]
    factors = 8 * (6**2 + 6**2 + 7**2 + 3**2)
    assert with_lag - without == factors + 8  # and the step


@pytest.mark.parametrize("value", [-1, 1.5, "2", True])
def test_bad_values(value):
    with pytest.raises((TypeError, ValueError), match="decomposition_lag"):
        kfc.KFC(decomposition_lag=value)


def test_a_structure_that_cannot_have_it():
    with pytest.raises(ValueError, match=r"decomposition_lag \(=3\) must be 0 .*'tridiagonal'"):
        kfc.KFC(structure="tridiagonal", decomposition_lag=3)


def blas_threads():
    return {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}


def test_blas_is_on_one_thread_while_anybody_is_inside():
    before = blas_threads()
    inside, leave = threading.Event(), threading.Event()

    def other():
        with ONE_THREAD:
            inside.set()
            assert leave.wait(60)

    thread = threading.Thread(target=other)
    with ONE_THREAD:
        thread.start()
        assert inside.wait(60)
        assert blas_threads() == {1}
    assert blas_threads() == {1}  # the other is inside still
    leave.set()
    thread.join()
    assert blas_threads() == before


def test_nobody_is_inside_in_the_child_of_a_fork():
    before = blas_threads()
    ONE_THREAD.__enter__()
    ONE_THREAD.after_fork()
    assert blas_threads() == before
    with ONE_THREAD:
        assert blas_threads() == {1}
    assert blas_threads() == before
