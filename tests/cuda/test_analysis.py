"""What looks into a network on a card: the same numbers as on the CPU, in the host's memory."""

import json

import numpy as np
import pytest
import scipy.sparse.linalg
from host_array import HostArray
from stand_in import in_cupys_place

import kfc_numba as kfc
from kfc_numba import cli, devices
from kfc_numba.commands.run import Images
from kfc_numba.curvature import fisher, operators
from kfc_numba.curvature.structures import curvature_of
from kfc_numba.laplace import KroneckerPosterior

SOFTMAX = kfc.SoftmaxCrossEntropy()
SHAPE = (4, 3, 2)


@pytest.fixture(autouse=True)
def card(monkeypatch):
    with in_cupys_place(monkeypatch):
        yield


def network(device):
    """A grouped convolution, a diagonal block, a convolution and a dense layer."""
    layers = [
        *(kfc.Conv2d(4, 3, padding=1, groups=2), kfc.BatchNorm(), kfc.Tanh(), kfc.Conv2d(2, 2)),
        *(kfc.Flatten(), kfc.Dense(3)),
    ]
    return kfc.Sequential(layers, input_shape=SHAPE, dtype=np.float64).to(device)


def data(examples=9):
    rng = np.random.default_rng(0)
    return rng.normal(size=(examples, *SHAPE)), rng.integers(0, 3, examples)


def images():
    x, y = data()
    normalization = kfc.Normalization((0.0, 0.0), (1.0, 1.0))
    return Images(
        x=x, y=y, x_test=x, y_test=y, classes=("a", "b", "c"), normalization=normalization,
        checksum=0,
    )  # fmt: skip


def on_both(what):
    """What is found with a network on a card, in the host's memory, and on the CPU."""
    there, here = what("cuda"), what("cpu")
    for value in there if isinstance(there, tuple) else (there,):
        assert isinstance(value, (np.ndarray, float))
    return there, here


def assert_close(found, expected, **how):
    for one, other in zip(np.atleast_1d(*found), np.atleast_1d(*expected), strict=True):
        np.testing.assert_allclose(one, other, **how)


class TestPosterior:
    def fitted(self, device, loss=SOFTMAX):
        posterior = KroneckerPosterior(network(device), loss, 2.0)
        return posterior.fit(data()[0], batch_size=5)

    def test_state_lies_with_the_network(self):
        found, expected = self.fitted("cuda"), self.fitted("cpu")
        for name, value in expected.state.items():
            assert isinstance(found.state[name], HostArray) == (value.ndim > 0), name
            if "vectors" not in name:  # those of equal eigenvalues are not unique
                np.testing.assert_allclose(
                    devices.to_host(found.state[name]), value, atol=1e-9, err_msg=name
                )
        found.net.params["dense1.bias"][...] = 1.0
        assert not found.mean["dense1.bias"].get().any()

    def test_evidence(self):
        def evidence(device):
            posterior = self.fitted(device)
            return posterior.log_marginal_likelihood(*data()), posterior.tune_prior()

        np.testing.assert_allclose(*on_both(evidence), rtol=1e-9)

    @pytest.mark.parametrize("place", ["cpu", "cuda"])
    @pytest.mark.parametrize("loss", [SOFTMAX, kfc.SquaredError()])
    def test_linearised(self, loss, place):
        x = devices.to_device(data(4)[0], place)
        for method in ("output_distribution", "predict"):
            how = {} if method != "predict" else {"samples": 5, "return_std": True}

            def found(device, method=method, how=how):
                return getattr(self.fitted(device, loss), method)(x, **how)

            if method == "predict" and loss is SOFTMAX:  # roots of covariances are not unique
                mean, std = found("cuda")
                assert isinstance(mean, np.ndarray)
                np.testing.assert_allclose(mean.sum(axis=1), 1)
                assert (std > 0).all()
                continue
            for one, other in zip(*on_both(found), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)

    def test_samples(self):
        """Their scale in the eigenbases: eigenvectors of equal eigenvalues are not unique."""
        posterior = self.fitted("cuda")
        (drawn,) = posterior.sample(1)
        assert all(isinstance(value, HostArray) for value in drawn.values())
        mean, std = posterior.predict(data(3)[0], method="monte_carlo", samples=3, return_std=True)
        assert isinstance(mean, np.ndarray)
        np.testing.assert_allclose(mean.sum(axis=1), 1)
        assert (std > 0).all()

    def test_samples_have_the_covariance_of_the_processor(self):
        """N F + tau I of what was drawn, whatever the basis."""
        for device in ("cpu", "cuda"):
            posterior = self.fitted(device)
            block = posterior._curvature.blocks[-1]
            drawn = [
                block.into_basis(
                    posterior.state,
                    {
                        short: sample[f"dense1.{short}"] - posterior.mean[f"dense1.{short}"]
                        for short in block.shapes
                    },
                )
                for sample in posterior.sample(2)
            ]
            found = np.array([devices.to_host(value) for value in drawn])
            if device == "cpu":
                expected = found
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


class TestOperators:
    def vector(self, device):
        net = network(device)
        size = sum(value.size for value in net.params.values())
        return net, np.random.default_rng(1).normal(size=size)

    def test_exact_fisher(self):
        def found(device):
            net, vector = self.vector(device)
            operator = operators.exact_fisher(net, data()[0], SOFTMAX, damping=0.1)
            parts = operators.exact_fisher(net, data()[0], SOFTMAX, batch_size=4)
            solution, _ = scipy.sparse.linalg.cg(operator, vector, rtol=1e-10)
            return operator @ vector, parts @ vector, operator.diagonal(), solution

        for one, other in zip(*on_both(found), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)

    def test_decomposed(self):
        def found(device):
            net, vector = self.vector(device)
            low = operators.exact_fisher(net, data(3)[0], SOFTMAX, damping=0.1).decompose()
            return low.inverse() @ vector, low.eigenvalues(), low.logdet()

        for one, other in zip(*on_both(found), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9)

    @pytest.mark.parametrize("structure", ["kronecker", "diagonal", "full"])
    def test_blocks(self, structure):
        def found(device):
            net, vector = self.vector(device)
            named = dict.fromkeys(("conv1", "conv2", "dense1"), structure)
            operator = operators.block_curvature(
                net, data()[0], SOFTMAX, structure=named, damping=0.1
            )
            return (
                *(operator @ vector, operator.inverse() @ vector, operator.eigenvalues()),
                *(operator.trace(), operator.logdet()),
            )

        for one, other in zip(*on_both(found), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-10)

    def test_samples(self):
        net, _ = self.vector("cuda")
        operator = operators.block_curvature(net, data()[0], SOFTMAX, damping=0.1)
        drawn = operator.inverse().sample(np.random.default_rng(0), 2)
        assert isinstance(drawn, np.ndarray)
        assert np.isfinite(drawn).all()

    def test_a_state_left_behind(self):
        net, _ = self.vector("cpu")
        curvature = curvature_of(net)
        state = curvature.compute(net.forward(data()[0]), SOFTMAX, mode="fisher_exact")
        net.to("cuda")
        with pytest.raises(ValueError, match=r"state\['omega/conv1'\] must lie on the device"):
            operators.BlockOperator(curvature, state, damping=0.1)


@pytest.mark.parametrize("structure", ["kronecker", "ekfac", "diagonal", "full"])
def test_dense_blocks(structure):
    def found(device):
        net = network(device)
        named = dict.fromkeys(("conv1", "conv2", "dense1"), structure)
        curvature = curvature_of(net, named)
        state = curvature.compute(net.forward(data(40)[0]), SOFTMAX, mode="fisher_exact")
        return tuple(curvature.dense(state, 0.1).values())

    for one, other in zip(*on_both(found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-10)


def test_exact_matrices():
    def found(device):
        net = network(device)
        trace = net.forward(data(3)[0])
        arrays = fisher.fisher_vector_product(net, trace, SOFTMAX, net.params)
        return (
            *(fisher.jacobian(net, trace), fisher.dense_fisher(net, trace, SOFTMAX)),
            *(fisher.flatten(net, arrays), *fisher.layer_blocks(net, trace, SOFTMAX).values()),
        )

    for one, other in zip(*on_both(found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    net = network("cuda")
    vector = np.arange(float(sum(value.size for value in net.params.values())))
    arrays = fisher.unflatten(net, vector)
    assert all(isinstance(value, HostArray) for value in arrays.values())
    np.testing.assert_array_equal(fisher.flatten(net, arrays), vector)


class TestReport:
    def numbers(self, device):
        report = kfc.check_curvature(network(device), data()[0], SOFTMAX, repeats=1, offsets=1)
        return json.loads(report.to_json())

    def test_all_but_times(self):
        there, here = self.numbers("cuda"), self.numbers("cpu")
        for one, other in zip(there["layers"], here["layers"], strict=True):
            assert one.keys() == other.keys()
            for name in ("relative_error", "cosine"):
                assert one[name].keys() == other[name].keys()
                for kind, value in other[name].items():
                    assert (one[name][kind] is None) == (value is None)
                    if value is not None:
                        assert one[name][kind] == pytest.approx(value, abs=1e-6)
            rounding = {"condition_omega", "condition_gamma"}  # over an eigenvalue that is zero
            for name in one.keys() - {"relative_error", "cosine", "seconds"} - rounding:
                if isinstance(other[name], list):
                    np.testing.assert_allclose(one[name], other[name], atol=1e-9)
                elif isinstance(other[name], float):
                    assert one[name] == pytest.approx(other[name], rel=1e-6)
                else:
                    assert one[name] == other[name]

    def test_times_wait_for_the_card(self, monkeypatch):
        waited = []
        monkeypatch.setattr(devices, "synchronize", waited.append)
        self.numbers("cuda")
        assert set(waited) == {"cuda"}
        assert len(waited) >= 2 * (2 + 4 * 3)  # before and after each of the calls that are timed

    def test_command(self, tmp_path, capsys, monkeypatch):
        """With a small network in place of those that have names."""
        built = []
        monkeypatch.setattr(cli.curvature, "load_images", lambda *name, **how: images())
        monkeypatch.setattr(
            cli.curvature,
            "build_network",
            lambda *name, **how: built.append(network("cpu")) or built[0],
        )
        folder = tmp_path / "report"
        options = ["--network", "small", "--batch-size", "4", "--exact-examples", "2"]
        asked = ["curvature", "--device", "cuda", *options, "--output", str(folder)]
        assert cli.main(asked) == 0, capsys.readouterr().err
        assert built[0].device == "cuda"
        content = json.loads((folder / "curvature.json").read_text())
        assert content["config"]["device"] == "cuda"
        assert "dense1" in capsys.readouterr().out


def test_models():
    x = np.random.default_rng(0).integers(0, 256, (3, *SHAPE)).astype(np.uint8)
    normalization = kfc.Normalization((1.0, 2.0), (3.0, 4.0))
    found = []
    for device in ("cuda", "cpu"):
        model = kfc.Model(
            network(device), SOFTMAX, normalization=normalization, classes=("a", "b", "c")
        )
        for place in dict.fromkeys(("cpu", device)):
            given = devices.to_device(x, place)
            outputs = model.predict(given, batch_size=2)
            assert devices.device_of(outputs) == place
            found.append((devices.to_host(outputs), model.predict_class(given)))
            assert devices.device_of(model.predict_proba(given)) == place
    for outputs, classes in found:
        np.testing.assert_allclose(outputs, found[-1][0], atol=1e-12)
        np.testing.assert_array_equal(classes, found[-1][1])
