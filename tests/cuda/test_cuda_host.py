"""What a step takes of the host, by counts that have no noise (benchmarks/cuda_host.py)."""

import pytest
from host_array import untouched

import kfc_numba as kfc
from benchmarks import cuda_host
from kfc_numba.kernels.cuda import conv2d_grad_parameters, conv2d_grad_weight
from kfc_numba.kernels.cuda.launch import executed_by
from kfc_numba.kernels.rates import H200

#: Launches of a step, and at most so many calls of our functions for each. Who needs more of them
#: says why; who needs fewer writes that down.
MOST = {
    ("quick", "SGD"): (42, 34),
    ("quick", "KFC"): (77, 39),
    ("resnet-small", "SGD"): (171, 31),
    # Two for what predictions leave open, also where examples are coupled and none is chosen:
    # a loss far above it says that predictions are sure and wrong. And one, or two where there are
    # many parameters, for by how much momentum raises the loss, and for the scales of layers, which
    # some of the steps find by a pass backwards.
    ("resnet-small", "KFC"): (268, 34),
}


@pytest.mark.parametrize(("network", "optimizer"), MOST)
def test_calls_of_functions(network, optimizer):
    found = cuda_host.share(network, optimizer)
    launches, most = MOST[network, optimizer]
    assert found.launches <= launches
    assert found.calls / found.launches <= most


@pytest.mark.parametrize("network", cuda_host.NETWORKS)
def test_steps_alike_prepare_nothing_anew(monkeypatch, network):
    prepared = []
    usual = cuda_host.Prepared.__init__

    def counted(self, name, *rest):
        prepared.append(name)
        usual(self, name, *rest)

    monkeypatch.setattr(cuda_host.Prepared, "__init__", counted)
    with cuda_host.null_driver():
        step = cuda_host.stepping(network, "SGD")
        assert prepared
        del prepared[:]
        step()
    assert not prepared


def launched(function, *arguments):
    names = []
    with executed_by(lambda kernel, *rest: names.append(kernel.__name__)) as executor:
        executor.capability, executor.rates = lambda: (9, 0), lambda: H200
        result = function(*arguments)
    return names, result


def test_a_weight_gradient_alone_sums_no_bias():
    x, dy = untouched((4, 6, 6, 8)), untouched((4, 4, 4, 8))
    alone, _ = launched(conv2d_grad_weight, x, dy, 3)
    both, _ = launched(conv2d_grad_parameters, x, dy, 3)
    assert both[: len(alone)] == alone
    assert len(both) == len(alone) + 1


@pytest.mark.parametrize("bias", [False, True])
def test_neither_does_a_convolution_without_one(bias):
    with cuda_host.null_driver():
        net = kfc.Sequential([kfc.Conv2d(8, 3, bias=bias)], input_shape=(6, 6, 8)).to("cuda")
        trace = net.forward(untouched((4, 6, 6, 8)))
        names, gradients = launched(net.backward, trace, trace.outputs)
    assert ("sum_parts" in names) == bias
    assert list(gradients) == ["conv1.weight", "conv1.bias"][: 1 + bias]
