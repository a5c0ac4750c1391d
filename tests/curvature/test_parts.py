"""Dense layers whose inputs are divided into parts, beside plain NumPy in float64."""

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.curvature import parts
from kfc_numba.curvature.inverses import DAMPING, STEPS, InverseBlocks, watch_products
from kfc_numba.curvature.operators import BlockOperator
from kfc_numba.curvature.parts import LayerInParts

LOSS = kfc.SoftmaxCrossEntropy()
GAMMA = 0.02


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Of 11 inputs and a one three parts are made, of four each; of 13 four, the last of two."""
    monkeypatch.setattr(parts, "WIDEST", 4)


def network(inputs, bias=True, units=3, before=()):
    shape = inputs if isinstance(inputs, tuple) else (inputs,)
    layers = [*before, kfc.Dense(units, bias=bias)]
    return kfc.Sequential(layers, input_shape=shape, dtype=np.float64, seed=3)


def batch(inputs, examples=20, seed=0):
    rng = np.random.default_rng(seed)
    shape = inputs if isinstance(inputs, tuple) else (inputs,)
    return rng.normal(size=(examples, *shape)), rng.integers(0, 3, examples)


def estimated(net, x, y, steps=0.0):
    curvature = InverseBlocks(net)
    state = curvature.initial_state()
    trace = net.forward(x, training=True)
    new = curvature.estimate(trace, LOSS, state, mode="fisher_exact", targets=y)
    state |= curvature.average(state, new, 0.0)
    state |= {DAMPING: np.array(GAMMA), STEPS: np.array(steps)}
    return curvature, state | curvature.decompose(state)


def rows_of(x, bias):
    return np.hstack([x, np.ones((len(x), 1))]) if bias else x


def expected(x, bias, gamma, gradient):
    """Part by part, by the definitions; the last has fewer inputs, and no zeros."""
    rows = rows_of(x, bias)
    count = -(-rows.shape[1] // 4)
    width = -(-rows.shape[1] // count)
    found = np.zeros_like(gradient)
    for start in range(0, rows.shape[1], width):
        part = rows[:, start : start + width]
        omega = part.T @ part / len(rows)
        # pi is of the mean over a whole part, zeros and all
        pi = np.sqrt(np.trace(omega) / width / (np.trace(gamma) / len(gamma)))
        left = gamma + np.sqrt(GAMMA) / pi * np.eye(len(gamma))
        right = omega + np.sqrt(GAMMA) * pi * np.eye(len(omega))
        solved = np.linalg.solve(left, gradient[:, start : start + width])
        found[:, start : start + width] = np.linalg.solve(right, solved.T).T
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inputs", [5, 11, 12, 13])
def test_rows_are_cut_and_joined(inputs, bias):
    net = network(inputs, bias)
    (block,) = InverseBlocks(net).blocks
    assert isinstance(block.layer, LayerInParts)
    matrix = block.layer.to_matrix({s: net.params[f"dense1.{s}"] for s in block.shapes})
    assert matrix.shape == block.matrix_shape
    assert matrix.flags["C_CONTIGUOUS"]
    for short, value in block.layer.from_matrix(matrix, block.like).items():
        np.testing.assert_array_equal(value, net.params[f"dense1.{short}"])
    whole = rows_of(net.params["dense1.weight"].T, False)
    beside = np.concatenate(list(matrix), axis=1)
    np.testing.assert_array_equal(beside[:, :inputs], whole)
    assert not beside[:, inputs + bias :].any()


@pytest.mark.parametrize("steps", [0.0, 1e-9], ids=["inverse", "factor"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inputs", [11, 13])
def test_parts_are_inverted_one_by_one(inputs, bias, steps):
    net, (x, y) = network(inputs, bias), batch(inputs)
    curvature, state = estimated(net, x, y, steps)
    z = x @ net.params["dense1.weight"] + (net.params["dense1.bias"] if bias else 0)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    gamma = np.mean([np.diag(row) - np.outer(row, row) for row in p], axis=0)
    _, gradients = net.value_and_grad(x, y, LOSS)
    found = curvature.precondition(state, gradients, GAMMA)
    matrix = gradients["dense1.weight"].T
    if bias:
        matrix = np.hstack([matrix, gradients["dense1.bias"][:, None]])
    wanted = expected(x, bias, gamma, matrix)
    np.testing.assert_allclose(found["dense1.weight"].T, wanted[:, :inputs], rtol=1e-9)
    if bias:
        np.testing.assert_allclose(found["dense1.bias"], wanted[:, -1], rtol=1e-9)


def test_gradients_as_products():
    net, (x, y) = network(40), batch(40, examples=2)
    curvature, state = estimated(net, x, y)
    trace = net.forward(x, training=True)
    _, dy = LOSS.value_and_derivative(trace.outputs, y)
    gradients = net.backward(trace, dy / len(x), capture=watch_products(trace))
    assert set(trace.outer) == {"dense1"}
    found = curvature.precondition(state, gradients, GAMMA, outer=trace.outer)
    for name, value in curvature.precondition(state, gradients, GAMMA).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9)


@pytest.mark.parametrize("approx", ["expand", "reduce"])
def test_moments_of_layers_that_see_several_locations(approx):
    net, (x, _) = network((3, 2, 9)), batch((3, 2, 9), examples=5)
    (block,) = InverseBlocks(net, approx=approx).blocks
    found = block.layer.input_moment((x,), approx)
    rows = x.reshape(5, 6, 9)
    rows = rows.mean(axis=1) if approx == "reduce" else rows.reshape(30, 9)
    rows = np.hstack([rows_of(rows, True), np.zeros((len(rows), 2))])
    for i, part in enumerate(np.split(rows, 3, axis=1)):
        np.testing.assert_allclose(found[i], part.T @ part, rtol=1e-12)


def test_inputs_that_never_meet_are_no_approximation(monkeypatch):
    """Each example has inputs of one part alone, so the moment of all is that of the parts."""
    net, (x, y) = network(12, bias=False), batch(12, examples=60)
    where = np.arange(60)[:, None] % 3 == np.arange(12) // 4
    x = np.where(where, x, 0)
    _, gradients = net.value_and_grad(x, y, LOSS)
    found, whole = [], []
    for results, widest in ((found, 4), (whole, 12)):
        monkeypatch.setattr(parts, "WIDEST", widest)
        curvature, state = estimated(net, x, y)
        state[DAMPING] = np.array(1e-13)  # which parts divide each in their own way
        state |= curvature.decompose(state)
        # The sum of all outputs changes nothing, and is damped alone.
        free = {"dense1.weight": gradients["dense1.weight"]}
        results.append(curvature.precondition(state, free, 1e-13)["dense1.weight"])
    assert np.abs(whole[0]).max() > 0.1
    spread = [value - value.mean(axis=1, keepdims=True) for value in (found[0], whole[0])]
    np.testing.assert_allclose(*spread, rtol=1e-4, atol=1e-5)


def test_the_matrix_in_full_is_what_is_applied():
    net, (x, y) = network(13), batch(13)
    curvature, state = estimated(net, x, y)
    _, gradients = net.value_and_grad(x, y, LOSS)
    dense = curvature.dense(state, GAMMA, "pi")["dense1"]
    assert dense.shape == (42, 42)
    flat = np.concatenate([gradients[name].reshape(-1) for name in net.params])
    solved = np.linalg.solve(dense, flat)
    found = curvature.precondition(state, gradients, GAMMA)
    found = np.concatenate([found[name].reshape(-1) for name in net.params])
    np.testing.assert_allclose(found, solved, rtol=1e-8, atol=1e-12)


def test_where_there_are_no_parts():
    shapes = {"omega/dense1": (3, 4, 4), "gamma/dense1": (3, 3, 3)}
    state = kfc.KFC().initial_state(network(11))
    assert {name: state[name].shape for name in shapes} == shapes
    for settings in ({"inversion": "eigen"}, {"structure": "ekfac"}, {"decomposition_lag": 2}):
        state = kfc.KFC(**settings).initial_state(network(11))
        assert state["omega/dense1"].shape == (12, 12)
    conv = [kfc.Conv2d(2, 3), kfc.Flatten()]
    state = kfc.KFC().initial_state(network((3, 3, 2), before=conv))
    assert state["omega/conv1"].shape == (19, 19)
    assert state["omega/dense1"].shape == (3, 3)


def test_training_goes_on_bit_for_bit(tmp_path):
    x, y = batch(13, examples=96)
    y = (x[:, :3] @ [[1, 0, 0], [0, 1, 0], [0, 0, 1]]).argmax(axis=1)

    def trainer():
        layers = [kfc.Dense(9), kfc.ReLU(), kfc.Dense(3)]
        net = kfc.Sequential(layers, input_shape=(13,), dtype=np.float64, seed=0)
        return kfc.Trainer(net, LOSS, kfc.KFC(), seed=0)

    whole, how = trainer(), {"batch_size": 32, "progress": False}
    history = whole.fit(x, y, total_epochs=20, **how)
    half = trainer()
    half.fit(x, y, total_epochs=9, **how)
    half.save(tmp_path / "half.safetensors")
    new = trainer()
    again = kfc.Trainer.load(tmp_path / "half.safetensors", new.net, LOSS, new.optimizer)
    again.fit(x, y, total_epochs=20, **how)
    for name, value in whole.raw_params.items():
        np.testing.assert_array_equal(again.raw_params[name], value)
    assert history.rows[-1]["training_loss"] < 0.01 * history.rows[0]["training_loss"]


@pytest.mark.parametrize("strategy", ["pi", "exact"])
def test_operators_have_as_many_eigenvalues_as_rows(strategy):
    net, (x, y) = network(13, units=2), batch(13, examples=40)
    net.params["dense1.weight"][...] *= 0.1
    curvature, state = estimated(net, x, y % 2)
    operator = BlockOperator(curvature, state, damping=GAMMA, strategy=strategy)
    dense = operator @ np.eye(28)
    expected = np.linalg.eigvalsh(dense)
    np.testing.assert_allclose(np.sort(operator.eigenvalues()), expected, rtol=1e-9)
    np.testing.assert_allclose(operator.trace(), np.trace(dense), rtol=1e-9)
    np.testing.assert_allclose(operator.logdet(), np.linalg.slogdet(dense)[1], rtol=1e-9)


def test_undamped_powers():
    """Zeros behind the inputs do not make a matrix singular that is not."""
    net, (x, y) = network(13, units=2), batch(13, examples=40)
    state = estimated(net, x, y % 2)[1]
    gamma = np.array([[2.0, 0.5], [0.5, 1.0]])
    state["gamma/dense1"] = np.stack([gamma] * 4)
    curvature = InverseBlocks(net)
    vector = {name: value + 1.0 for name, value in net.params.items()}
    halves = curvature.apply(state, vector, 0.0, "exact", power=-0.5)
    found = curvature.apply(state, halves, 0.0, "exact", power=-0.5)
    back = curvature.apply(state, found, 0.0, "exact", power=1.0)
    for name, value in vector.items():
        np.testing.assert_allclose(back[name], value, rtol=1e-8)
    state["gamma/dense1"][...] = 1.0
    with pytest.raises(ValueError, match="singular"):
        curvature.apply(state, vector, 0.0, "exact")


class OwnMoment(kfc.Dense):
    def input_moment(self, saved, approx):
        return 2 * super().input_moment(saved, approx)


def test_layers_that_stay_whole():
    for layer, outputs in ((OwnMoment(3), 3), (kfc.Dense(5), 5)):
        net = kfc.Sequential([layer], input_shape=(11,), dtype=np.float64)
        (block,) = InverseBlocks(net).blocks
        assert block.matrix_shape == (outputs, 12)
