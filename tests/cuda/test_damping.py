"""Damped eigenvalues on a card: as on the CPU, and computed once."""

import gc

import numpy as np
import pytest
from host_array import on_device

from kfc_numba.curvature import damping
from kfc_numba.curvature.damping import damped_eigenvalues


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(damping, "_last", {})


def eigenvalues(seed=0, groups=()):
    rng = np.random.default_rng(seed)
    return [rng.random((*groups, size)).astype(np.float32) for size in (5, 3)]


@pytest.mark.parametrize("groups", [(), (2,)])
@pytest.mark.parametrize("strategy", damping.DAMPING_STRATEGIES)
def test_they_are_those_of_the_cpu(strategy, groups):
    given = eigenvalues(groups=groups)
    found = damped_eigenvalues(*map(on_device, given), 0.1, strategy)
    expected = damped_eigenvalues(*given, 0.1, strategy)
    np.testing.assert_allclose(found.get(), expected, rtol=1e-6)


def test_they_are_computed_once():
    omega, gamma = map(on_device, eigenvalues())
    first = damped_eigenvalues(omega, gamma, 0.1)
    assert damped_eigenvalues(omega, gamma, 0.1) is first


@pytest.mark.parametrize("what", ["omega", "gamma", "damping", "strategy"])
def test_and_again_where_something_differs(what):
    given = dict(zip(("omega", "gamma"), eigenvalues(), strict=True))
    other = dict(zip(("omega", "gamma"), eigenvalues(1), strict=True))
    given |= {"damping": 0.1, "strategy": "pi"}
    other |= {"damping": 0.2, "strategy": "exact"}
    there = {k: on_device(v) if isinstance(v, np.ndarray) else v for k, v in given.items()}
    damped_eigenvalues(*there.values())
    given[what] = other[what]
    new = other[what]
    there[what] = on_device(new) if isinstance(new, np.ndarray) else new
    found, expected = damped_eigenvalues(*there.values()), damped_eigenvalues(*given.values())
    np.testing.assert_allclose(found.get(), expected, rtol=1e-6)


def test_what_takes_the_place_of_products_is_not_remembered():
    omega, gamma = map(on_device, eigenvalues())
    products = [on_device(np.full((3, 5), value, np.float32)) for value in (1, 2)]
    one, two = (damped_eigenvalues(omega, gamma, 0.1, "exact", products=p).get() for p in products)
    np.testing.assert_allclose(two - one, 1, rtol=1e-6)


def test_arrays_that_are_gone_are_forgotten():
    omega, gamma = map(on_device, eigenvalues())
    for value in (0.1, 0.2):
        damped_eigenvalues(omega, gamma, value)
    assert len(damping._last) == 1
    del omega
    gc.collect()
    assert not damping._last
