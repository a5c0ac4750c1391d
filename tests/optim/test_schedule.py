"""Schedules against numbers worked out by hand."""

import math

import pytest

from kfc_numba.optim.schedule import (
    CosineDecay,
    ExponentialDecay,
    LinearWarmup,
    PiecewiseConstant,
)

SCHEDULES = [
    ExponentialDecay(initial=0.1, rate=0.5, steps=10),
    CosineDecay(initial=1.0, final=0.2, steps=4),
    PiecewiseConstant(values=[0.1, 0.01, 0.001], boundaries=[5, 7]),
    LinearWarmup(after=CosineDecay(initial=1.0, steps=8), steps=3),
]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (SCHEDULES[0], {0: 0.1, 10: 0.05, 20: 0.025, 5: 0.1 * math.sqrt(0.5)}),
        (SCHEDULES[1], {0: 1.0, 1: 0.6 + 0.4 * math.sqrt(0.5), 2: 0.6, 4: 0.2, 9: 0.2}),
        (SCHEDULES[2], {0: 0.1, 4: 0.1, 5: 0.01, 6: 0.01, 7: 0.001, 99: 0.001}),
        (LinearWarmup(after=0.3, steps=3), {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.3, 50: 0.3}),
        (SCHEDULES[3], {0: 1 / 3, 2: 0.5 + 0.5 * math.sqrt(0.5), 4: 0.5, 8: 0.0}),
    ],
    ids=repr,
)
def test_values(schedule, expected):
    for step, value in expected.items():
        assert schedule(step) == pytest.approx(value, rel=1e-14, abs=1e-16)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_repr_says_all_and_equality_is_by_value(schedule):
    again = eval(repr(schedule))
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert again is not schedule
    assert [again(step) for step in range(12)] == [schedule(step) for step in range(12)]
    assert sum(schedule == other for other in SCHEDULES) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ExponentialDecay(initial=1, rate=0),
            r"rate \(=0\) must be a number in \(0",
        ),
        (lambda: CosineDecay(initial=1, steps=-2), r"steps \(=-2\) must be a number in \(0"),
        (
            lambda: LinearWarmup(after=1, steps=math.nan),
            r"steps \(=nan\) must be a number in \(0",
        ),
        (lambda: PiecewiseConstant(values=[1], boundaries=[2]), r"values \(=\(1,\)\) must be one"),
        (lambda: PiecewiseConstant(values=[1, 2, 3], boundaries=[2, 2]), "must be ascending"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_values_and_boundaries_are_numbers():
    with pytest.raises(TypeError, match=r"values \(=1\) must be a sequence of numbers"):
        PiecewiseConstant(values=1, boundaries=[])
    with pytest.raises(TypeError, match=r"an entry of boundaries \(='a'\) must be a finite number"):
        PiecewiseConstant(values=[1, 2], boundaries=["a"])


@pytest.mark.parametrize("wrong", [0, -1.5, math.inf])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda value: ExponentialDecay(initial=1, rate=value), "rate"),
        (lambda value: ExponentialDecay(initial=1, rate=0.5, steps=value), "steps"),
        (lambda value: CosineDecay(initial=1, steps=value), "steps"),
        (lambda value: LinearWarmup(after=1, steps=value), "steps"),
    ],
)
def test_messages_name_the_argument_and_its_range(make, name, wrong):
    with pytest.raises(ValueError, match=rf"^{name} \(={wrong}\) must be a number in \(0, inf\)"):
        make(wrong)


def test_lists_are_kept_as_tuples():
    made = PiecewiseConstant(values=[3, 2, 1], boundaries=[4, 6])
    again = PiecewiseConstant(values=(3, 2, 1), boundaries=(4, 6))
    assert made == again
    assert hash(made) == hash(again)
