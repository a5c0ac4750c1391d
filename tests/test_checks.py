"""Arguments: what passes, what does not, and the words of the errors."""

import numpy as np
import pytest

from kfc_numba import checks


class Odd:
    """Something with a repr that is easy to see."""

    def __repr__(self):
        return "<odd>"


@pytest.mark.parametrize("value", [1, 7, np.int64(7), np.uint8(3)])
def test_integers(value):
    found = checks.check_integer("count", value)
    assert type(found) is int
    assert found == value


@pytest.mark.parametrize("value", [True, np.True_, 1.0, "1", None, Odd(), np.ones(1, int)])
def test_what_is_no_integer(value):
    with pytest.raises(TypeError, match=r"^count \(=.*\) must be an integer of at least 0$"):
        checks.check_integer("count", value, least=0)


def test_integers_below_the_least():
    assert checks.check_integer("count", -3, least=-3) == -3
    with pytest.raises(ValueError, match=r"^count \(=-4\) must be an integer of at least -3$"):
        checks.check_integer("count", -4, least=-3)


@pytest.mark.parametrize(
    ("interval", "good", "bad"),
    [
        ("[0, 1)", (0, 0.5, np.float32(0.25), np.array(0.75)), (-1e-9, 1, np.nan, np.inf)),
        ("(0, 1]", (1, 1e-300), (0, 1.01, -np.inf)),
        ("(0, inf)", (1e300,), (np.inf, 0, np.array(0.0))),
        ("(0, inf]", (np.inf,), (np.nan,)),
        ("(-inf, inf)", (-1e300, 0), (np.inf, -np.inf, np.nan, 10**400)),
    ],
)
def test_numbers(interval, good, bad):
    for value in good:
        found = checks.check_number("rate", value, interval)
        assert type(found) is float
        assert found == value
    for value in bad:
        with pytest.raises(ValueError, match=r"^rate \(=.*\) must be a .*number.* or None$"):
            checks.check_number("rate", value, interval, " or None")


@pytest.mark.parametrize("value", [False, np.False_, "0.5", None, 1j, np.ones(1), np.array(True)])
def test_what_is_no_number(value):
    with pytest.raises(TypeError, match=r"^rate \(=.*\) must be a number in \[0, 1\)$"):
        checks.check_number("rate", value, "[0, 1)")


def test_flags():
    assert checks.check_flag("bias", np.True_) is True
    assert checks.check_flag("bias", False) is False
    for value in (0, 1, None, "yes", np.ones(1, bool)):
        with pytest.raises(TypeError, match=r"^bias \(=.*\) must be True or False$"):
            checks.check_flag("bias", value)


def test_choices():
    assert checks.check_choice("mode", "same", ("same", "valid")) == "same"
    assert checks.check_choice("order", 2, (1, 2)) == 2
    for value in ("SAME", None, 1, ["same"], np.array(["same", "valid"])):
        with pytest.raises(ValueError, match=r"^mode \(=.*\) must be one of \('same', 'v"):
            checks.check_choice("mode", value, ("same", "valid"))
    with pytest.raises(ValueError, match="order"):  # equal, but of another kind
        checks.check_choice("order", True, (1, 2))


def test_shapes():
    assert checks.check_shape("shape", [3, np.int64(4)]) == (3, 4)
    assert all(type(size) is int for size in checks.check_shape("shape", np.array([3, 4])))
    for value in ((), (3, 0), [-1]):
        with pytest.raises(ValueError, match=r"^shape \(=.*\) must be a sequence of integers"):
            checks.check_shape("shape", value)
    for value in (3, None, (3, 1.0), (True, 2), "34", (3, None)):
        with pytest.raises(TypeError, match=r"^shape \(=.*\) must be a sequence of integers"):
            checks.check_shape("shape", value)


def test_instances():
    checks.check_instance("odd", Odd(), Odd, "an odd thing")
    with pytest.raises(TypeError, match=r"^odd must be an odd thing, got the class Odd$"):
        checks.check_instance("odd", Odd, Odd, "an odd thing")
    with pytest.raises(TypeError, match=r"^odd must be an odd thing, got int$"):
        checks.check_instance("odd", 3, Odd, "an odd thing")


def test_real_numbers():
    for dtype in (np.float32, np.int8, np.uint64, bool):
        checks.check_real("x", np.zeros(2, dtype))
    for dtype in (complex, object, "U3", "datetime64[s]"):
        with pytest.raises(TypeError, match=r"^x must hold real numbers, got dtype "):
            checks.check_real("x", np.zeros(2, dtype))


@pytest.mark.parametrize(
    ("shape", "of_one", "message"),
    [
        ((5, 3, 8, 9), (8, 9, 3), r"takes \(examples, 8, 9, 3\); channels come last, see .transp"),
        ((5, 8, 9), (8, 9, 1), r"; one channel is an axis too, see \[..., None\]$"),
        ((8, 9, 3), (8, 9, 3), r"; one example is a batch of one, see \[None\]$"),
        ((0, 8, 9, 3), (8, 9, 3), r"^x has no examples, its shape is \(0, 8, 9, 3\)$"),
        ((5, 9, 8, 3), (8, 9, 3), r"^x has shape \(5, 9, 8, 3\), the .* \(examples, 8, 9, 3\)$"),
        ((3,), (8, 9, 3), r"takes \(examples, 8, 9, 3\)$"),
        ((), (4,), r"takes \(examples, 4\)$"),
    ],
)
def test_examples_of_another_shape(shape, of_one, message):
    with pytest.raises(ValueError, match=message):
        checks.check_examples("x", np.zeros(shape), of_one)


def test_examples_that_fit():
    checks.check_examples("x", np.zeros((2, 3, 3, 3)), (3, 3, 3))
    checks.check_examples("x", np.zeros((1, 4)), (4,))
