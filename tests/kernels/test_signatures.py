"""One convention for all kernels: arrays, then named settings, then where results go."""

import inspect

import numpy as np
import pytest

from kfc_numba.kernels import cpu

KERNELS = {name: value for name, value in vars(cpu).items() if inspect.isfunction(value)}
RESULTS = {"out", "index", "denominator"}  # arrays that a caller may give for results


def named(function):
    return {
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


@pytest.mark.parametrize("name", KERNELS)
def test_settings_and_results_are_given_by_name(name):
    parameters = inspect.signature(KERNELS[name]).parameters
    settings = named(KERNELS[name])
    for parameter in parameters.values():
        optional = parameter.default is not inspect.Parameter.empty
        # What may be left out is given by name, but for arrays such as a bias.
        assert not optional or parameter.name in settings or parameter.name == "bias"
    if "out" in parameters:
        order = list(parameters)
        assert "out" in settings
        assert set(order[order.index("out") :]) <= RESULTS


# Names of first arguments.
ARRAYS = {"matrix", "x", "a", "dy", "dx", "u", "ds", "outputs", "probabilities"}


@pytest.mark.parametrize("name", KERNELS)
def test_the_first_array_is_checked(name):
    function = KERNELS[name]
    parameters = inspect.signature(function).parameters
    required = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty]
    first, *others = [n for n in required if n not in named(function)]
    if first not in ARRAYS:
        return  # takes no array, or several at once
    settings = {n: 1 for n in required if n in named(function)}
    for wrong in ([1.0, 2.0], np.ones((2, 2, 2, 2), int)):
        with pytest.raises(TypeError, match=f"^{first} "):
            function(wrong, *[np.ones((2, 2, 2, 2))] * len(others), **settings)
