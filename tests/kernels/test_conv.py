"""Convolutions against the loop references, in float32 and float64."""

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfc_numba.kernels.cpu import conv

DTYPES = (np.float32, np.float64)
CHANNELS = (1, 3, 15, 16, 17, 31, 32, 33, 48, 64)


def check(shape, filters, kernel, *, groups=1, ones=False, **window):
    """All kernels on one shape; the references are computed once for both dtypes."""
    rng = np.random.default_rng(0)

    def array(*size):
        # Values of float32, so that both dtypes start from the same numbers.
        return np.ones(size) if ones else rng.normal(size=size).astype(np.float32).astype(float)

    window["groups"] = groups
    kernel = naive.pair(kernel)
    x = array(*shape)
    weight = array(*kernel, shape[3] // groups, filters)
    bias = array(filters)
    expected = naive.conv2d(x, weight, bias, **window)
    dy = array(*expected.shape)
    cases = [
        (
            lambda x, w, b, dy: conv.conv2d_forward(x, w, b, **window),
            lambda x, w, b, dy: naive.conv2d(x, w, b, **window),
        ),
        (
            lambda x, w, b, dy: conv.conv2d_grad_input(dy, w, shape, **window),
            lambda x, w, b, dy: naive.conv2d_grad_input(dy, w, shape, **window),
        ),
        (
            lambda x, w, b, dy: conv.conv2d_grad_weight(x, dy, kernel, **window),
            lambda x, w, b, dy: naive.conv2d_grad_weight(x, dy, kernel, **window),
        ),
        (
            lambda x, w, b, dy: conv.conv2d_grad_bias(dy),
            lambda x, w, b, dy: naive.conv2d_grad_bias(dy),
        ),
        (
            lambda x, w, b, dy: conv.conv2d_grad_parameters(x, dy, kernel, **window)[1],
            lambda x, w, b, dy: naive.conv2d_grad_bias(dy),
        ),
    ]
    for function, reference in cases:
        arrays = (x, weight, bias, dy)
        expected = reference(*arrays)
        magnitudes = expected if ones else reference(*map(np.abs, arrays))
        for dtype in DTYPES:
            actual = function(*(a.astype(dtype) for a in arrays))
            assert actual.dtype == dtype
            if ones:  # whole numbers: every partial sum is exact
                np.testing.assert_array_equal(actual, expected)
            else:
                naive.assert_sums(actual, expected, magnitudes)


PADDINGS = (0, "valid", "same", 2, ((1, 0), (2, 3)))


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("dilation", [1, 2, (1, 3)], ids=str)
@pytest.mark.parametrize("stride", [1, 2, (3, 1)], ids=str)
@pytest.mark.parametrize("kernel", [1, 3, (2, 3), (4, 1)], ids=str)
def test_grid(kernel, stride, dilation, padding):
    window = {"stride": stride, "dilation": dilation, "padding": padding}
    check((2, 7, 9, 3), 2, kernel, **window)
    check((1, 7, 9, 18), 9, kernel, **window)  # many channels are read without margins


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("stride", [1, (2, 3)], ids=str)
@pytest.mark.parametrize("dilation", [1, 2], ids=str)
def test_ones_are_exact(stride, dilation, padding):
    check((1, 7, 5, 3), 4, 3, stride=stride, dilation=dilation, padding=padding, ones=True)


@pytest.mark.parametrize("groups", [2, 4, 8])
@pytest.mark.parametrize(
    "window", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": "same"}], ids=str
)
def test_groups(groups, window):
    check((2, 5, 6, 8), 16, 3, groups=groups, **window)  # 8 groups: depthwise, 2 filters a channel


@pytest.mark.parametrize("channels", [1, 17, 40])
def test_depthwise(channels):
    check((1, 4, 5, channels), channels, 3, groups=channels, padding=1)


@pytest.mark.parametrize(("channels", "filters"), [*zip(CHANNELS, CHANNELS[::-1], strict=True)])
def test_channel_tails(channels, filters):
    check((2, 3, 4, channels), filters, 3, padding=1)
    check((2, 3, 4, channels), channels, (1, 2), stride=2, padding="same")


@pytest.mark.parametrize("width", range(1, 18))
def test_widths(width):
    check((1, 2, width, 5), 3, 3, padding="same")
    check((1, 2, width, 2), 18, 3, padding="same", stride=2)


def test_one_pixel_and_one_channel():
    for kernel, padding in [(1, 0), (3, 1), (5, 2), ((1, 4), "same")]:
        check((1, 1, 1, 1), 1, kernel, padding=padding)
        check((3, 1, 1, 7), 1, kernel, padding=padding)
        check((1, 6, 1, 1), 20, kernel, padding=padding)
    # Windows that lie in the padding alone: some, all in one direction, all.
    check((1, 1, 1, 2), 3, 2, padding=((3, 0), (0, 4)))
    check((1, 2, 3, 9), 3, 1, padding=((1, 0), (1, 2)), stride=(4, 1))
    check((2, 2, 1, 2), 3, 1, padding=((1, 0), (1, 0)), stride=4)


def test_many_examples_and_long_sums():
    check((67, 2, 3, 2), 3, (2, 1))  # more examples than any division of the work into chunks
    check((33, 3, 5, 4), 18, 1)  # images as rows of pixels
    check((33, 3, 5, 4), 18, 1, groups=2)
    check((2, 13, 14, 4), 3, 3, padding=1)  # weight gradients that sum over many locations
    check((1, 3, 3, 300), 20, 3, padding=1)  # outputs that sum over many channels
    # Kernels whose weights are taken some rows at a time, some of them outside the image.
    for stride in (1, 2):
        check((1, 2, 3, 170), 17, (5, 3), padding=3, stride=stride)
        check((1, 2, 3, 17), 170, (5, 3), padding=3, stride=stride)


def test_both_gradients_at_once_are_those_of_the_single_calls():
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(3, 5, 4, 6)), rng.normal(size=(3, 3, 2, 8))
    weight, bias = conv.conv2d_grad_parameters(x, dy, 3, groups=2)
    np.testing.assert_array_equal(weight, conv.conv2d_grad_weight(x, dy, 3, groups=2))
    np.testing.assert_allclose(bias, conv.conv2d_grad_bias(dy), rtol=0, atol=1e-13)


@given(data=st.data())
@settings(deadline=None, max_examples=40, derandomize=True, database=None)
def test_any_shape(data):
    draw = data.draw
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)), "kernel")
    stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)), "stride")
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)), "dilation")
    side = st.tuples(st.integers(0, 4), st.integers(0, 4))
    padding = draw(st.one_of(st.just("same"), st.tuples(side, side)), "padding")
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if padding == "same":
        least = [1, 1]
    else:
        least = [max(n - sum(p), 1) for n, p in zip(span, padding, strict=True)]
    size = draw(st.tuples(*(st.integers(n, n + 5) for n in least)), "size")
    groups = draw(st.integers(1, 3), "groups")
    channels, filters = (groups * draw(st.integers(1, 6), name) for name in ("c/g", "f/g"))
    shape = (draw(st.integers(1, 3), "examples"), *size, channels)
    window = {"stride": stride, "dilation": dilation, "padding": padding}
    check(shape, filters, kernel, groups=groups, **window)


def guarded(shape, dtype):
    """An array of NaN inside a larger one, and the larger one, to see what is written where."""
    outer = np.full((shape[0] + 2, *shape[1:]), np.nan, dtype)
    outer[0] = outer[-1] = 7
    return outer[1:-1], outer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 3])
def test_writes_into_out_and_nowhere_else(dtype, groups):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 5, 7, 3)).astype(dtype)
    weight = rng.normal(size=(3, 3, 3 // groups, 9)).astype(dtype)
    window = {"stride": (1, 2), "padding": ((1, 0), (1, 1)), "groups": groups}
    y = conv.conv2d_forward(x, weight, **window)
    out, outer = guarded(y.shape, dtype)
    assert conv.conv2d_forward(x, weight, **window, out=out) is out
    np.testing.assert_array_equal(out, y)
    assert (outer[0] == 7).all()
    assert (outer[-1] == 7).all()

    before = x.copy(), weight.copy(), y.copy()
    dx = conv.conv2d_grad_input(y, weight, x.shape, **window)
    out, outer = guarded(x.shape, dtype)
    assert conv.conv2d_grad_input(y, weight, x.shape, **window, out=out) is out
    np.testing.assert_array_equal(out, dx)
    assert (outer[0] == 7).all()
    assert (outer[-1] == 7).all()

    conv.conv2d_grad_weight(x, y, (3, 3), **window)
    for array, copy in zip((x, weight, y), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_values_stay_where_they_belong(value):
    x = np.random.default_rng(2).normal(size=(2, 6, 7, 3)).astype(np.float32)
    weight = np.random.default_rng(3).normal(size=(3, 3, 3, 5)).astype(np.float32)
    x[1, 2, 6, 1] = value
    y = conv.conv2d_forward(x, weight, padding=1)
    dx = conv.conv2d_grad_input(y, weight, x.shape, padding=1)
    dw = conv.conv2d_grad_weight(x, np.ones_like(y), 3, padding=1)
    with np.errstate(invalid="ignore"):
        expected = naive.conv2d(x, weight, padding=1)
        np.testing.assert_array_equal(np.isfinite(y), np.isfinite(expected))
        expected = naive.conv2d_grad_input(y, weight, x.shape, padding=1)
        np.testing.assert_array_equal(np.isfinite(dx), np.isfinite(expected))
        expected = naive.conv2d_grad_weight(x, np.ones_like(y), 3, padding=1)
        np.testing.assert_array_equal(np.isfinite(dw), np.isfinite(expected))


def test_views_with_strides_are_not_misread():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2, 5, 4, 6))[:, ::2, ::-1, 1::2]
    weight = rng.normal(size=(5, 3, 2, 2)).transpose(3, 2, 1, 0)
    expected = naive.conv2d(x, weight)
    magnitudes = naive.conv2d(np.abs(x), np.abs(weight))
    naive.assert_sums(conv.conv2d_forward(x, weight), expected, magnitudes)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def test_inputs_may_be_read_only():
    """As those mapped from a file are."""
    rng = np.random.default_rng(5)
    x, weight = rng.normal(size=(2, 5, 6, 4)), rng.normal(size=(3, 3, 4, 8))
    for window in ({"padding": 1}, {"stride": 2}):
        y = conv.conv2d_forward(x, weight, **window)
        dx = conv.conv2d_grad_input(y, weight, x.shape, **window)
        dw = conv.conv2d_grad_weight(x, y, 3, **window)
        x_, weight_, y_ = map(read_only, (x, weight, y))
        np.testing.assert_array_equal(conv.conv2d_forward(x_, weight_, **window), y)
        actual = conv.conv2d_grad_input(y_, weight_, x.shape, **window)
        np.testing.assert_array_equal(actual, dx)
        np.testing.assert_array_equal(conv.conv2d_grad_weight(x_, y_, 3, **window), dw)
        np.testing.assert_array_equal(conv.conv2d_grad_bias(y_), conv.conv2d_grad_bias(y))


X, W = np.ones((2, 5, 6, 4)), np.ones((3, 3, 4, 8))
DY = np.ones((2, 3, 4, 8))


def forward(x=X, weight=W, bias=None, **window):
    return conv.conv2d_forward(x, weight, bias, **window)


def grad_input(dy=DY, weight=W, input_shape=X.shape, **window):
    return conv.conv2d_grad_input(dy, weight, input_shape, **window)


def grad_weight(x=X, dy=DY, kernel=(3, 3), **window):
    return conv.conv2d_grad_weight(x, dy, kernel, **window)


BAD = [
    (forward, "x", X[0]),
    (forward, "x", X.astype(int)),
    (forward, "x", X.astype(np.float16)),
    (forward, "x", X[..., :3]),
    (forward, "weight", W[0]),
    (forward, "weight", W.astype(np.float32)),
    (forward, "bias", np.ones(7)),
    (forward, "bias", np.ones((8, 1))),
    (forward, "bias", np.ones(8, np.float32)),
    (forward, "stride", 0),
    (forward, "stride", (1, 2, 3)),
    (forward, "stride", 1.5),
    (forward, "dilation", -1),
    (forward, "dilation", 3),
    (forward, "padding", "full"),
    (forward, "padding", -1),
    (forward, "padding", ((1, 2), (3,))),
    (forward, "groups", 3),
    (forward, "groups", 0),
    (forward, "out", np.ones((2, 3, 4, 7))),
    (forward, "out", np.ones((2, 3, 4, 8), np.float32)),
    (forward, "out", np.ones((2, 3, 4, 16))[..., ::2]),
    (forward, "out", read_only(np.ones((2, 3, 4, 8)))),
    (forward, "x", X[:0]),
    (forward, "x", X.tolist()),
    (forward, "weight", W[..., :0]),
    (grad_input, "dy", DY[0]),
    (grad_input, "dy", DY[:, :2]),
    (grad_input, "dy", DY[..., :7]),
    (grad_input, "dy", DY.astype(np.float32)),
    (grad_input, "weight", W[..., :3, :]),
    (grad_input, "input_shape", (2, 5, 6)),
    (grad_input, "input_shape", (2, 5, 6, 5)),
    (grad_input, "out", np.ones((2, 5, 6, 3))),
    (grad_weight, "x", X[0]),
    (grad_weight, "x", X.astype(np.float32)),
    (grad_weight, "dy", DY[:1]),
    (grad_weight, "dy", DY[:, :, 1:]),
    (grad_weight, "kernel", (3, 3, 3)),
    (grad_weight, "kernel", 0),
    (grad_weight, "kernel", 7),
    (grad_weight, "groups", 0),
    (grad_weight, "groups", 1.5),
    (grad_weight, "groups", 3),
    (grad_weight, "x", X[:0]),
]


@pytest.mark.parametrize(
    ("function", "name", "value"),
    BAD,
    ids=[f"{f.__name__}-{name}-{i}" for i, (f, name, _) in enumerate(BAD)],
)
def test_bad_arguments_are_named(function, name, value):
    function()  # the others are good
    # Where two arguments do not fit each other the message may name the other one.
    other = {"x": "weight|dy", "dy": "weight|x", "input_shape": "weight", "dilation": "kernel"}
    other = other.get(name, name)
    with pytest.raises((ValueError, TypeError), match=rf"^({name}|{other})"):
        function(**{name: value})


@pytest.mark.parametrize("dy", [DY.astype(int), DY[:0], DY.tolist()])
def test_bad_output_derivative_for_the_bias(dy):
    with pytest.raises((ValueError, TypeError), match=r"^dy"):
        conv.conv2d_grad_bias(dy)


def test_first_example_does_not_depend_on_the_rest_of_the_batch():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(9, 5, 7, 6)).astype(np.float32)
    weight = rng.normal(size=(3, 3, 6, 7)).astype(np.float32)
    y = conv.conv2d_forward(x, weight, padding=1)
    dx = conv.conv2d_grad_input(y, weight, x.shape, padding=1)
    for count in (1, 4):
        np.testing.assert_array_equal(conv.conv2d_forward(x[:count], weight, padding=1), y[:count])
        np.testing.assert_array_equal(
            conv.conv2d_grad_input(y[:count], weight, (count, 5, 7, 6), padding=1), dx[:count]
        )
