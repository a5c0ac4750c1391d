"""The kernels for devices have the names, the signatures and the documentation of the CPU's."""

import inspect

import pytest

from kfc_numba.kernels import cpu, cuda

CPU, CUDA = (
    {name: value for name, value in vars(kernels).items() if inspect.isfunction(value)}
    for kernels in (cpu, cuda)
)


def test_no_kernel_is_without_a_twin_on_the_cpu():
    assert CUDA.keys() <= CPU.keys()


def test_they_are_exported_in_the_same_order():
    assert list(CUDA) == [name for name in CPU if name in CUDA]


@pytest.mark.parametrize("name", CUDA)
def test_signatures(name):
    theirs, ours = (inspect.signature(kernels[name]).parameters for kernels in (CPU, CUDA))
    assert list(ours) == list(theirs)
    for argument, parameter in ours.items():
        assert parameter.kind == theirs[argument].kind, argument
        assert parameter.default == theirs[argument].default, argument


@pytest.mark.parametrize("name", CUDA)
def test_they_lie_in_files_of_the_same_name(name):
    theirs, ours = (kernels[name].__module__.split(".")[-1] for kernels in (CPU, CUDA))
    assert ours == theirs


@pytest.mark.parametrize("name", CUDA)
def test_every_argument_is_documented(name):
    text = inspect.getdoc(CUDA[name])
    assert "numpy.ndarray" not in text
    for argument in inspect.signature(CUDA[name]).parameters:
        assert argument in text
