"""Random numbers depend on their key and on nothing else."""

import itertools

import numpy as np

from kfc_numba.random import generator


def test_the_same_key_gives_the_same_numbers_whatever_was_drawn_before():
    first = generator(3, "shuffle", 5).random(100)
    generator(3, "shuffle", 4).random(7)
    np.random.default_rng().random(3)
    np.testing.assert_array_equal(first, generator(3, "shuffle", 5).random(100))


def test_every_part_of_the_key_counts():
    keys = [
        (0, "shuffle"),
        (1, "shuffle"),
        (0, "dropout"),
        (0, "shuffle", 1),
        (0, "shuffle", 0, 1),
        (0, "shuffle", 1, 0, 2),
        (2**40, "shuffle"),
        (2**40 + 1, "shuffle"),
    ]
    draws = [generator(*key).random(1000) for key in keys]
    for one, other in itertools.combinations(draws, 2):
        # Independent streams correlate by about 1 / sqrt(1000).
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.15


def test_streams_stay_what_they_are():
    # A run is repeated with its seed on another machine and with another NumPy: were the key to
    # change its meaning, this would be the only sign of it.
    found = generator(7, "shuffle", 2).bit_generator.random_raw(2)
    assert found.tolist() == [4510864326020703076, 6948051202070566807]
