"""Convolutions in device code against the loop references and the kernels of the CPU."""

import naive
import numpy as np
import pytest
from host_array import on_device, untouched
from machine_code import recorded

from kfc_numba.kernels import cpu, cuda
from kfc_numba.kernels.cuda import taps
from kfc_numba.kernels.geometry import Windows


def check(shape, filters, kernel, dtype=np.float32, *, ones=False, **window):
    """All kernels on one shape."""
    rng = np.random.default_rng(0)

    def array(*size):
        return np.ones(size, dtype) if ones else rng.normal(size=size).astype(dtype)

    kernel = naive.pair(kernel)
    x, bias = array(*shape), array(filters)
    weight = array(*kernel, shape[3] // window.get("groups", 1), filters)
    dy = array(*naive.conv2d(x, weight, **window).shape)
    cases = [
        (("conv2d_forward", naive.conv2d), (x, weight, bias), (), window),
        (("conv2d_grad_input", naive.conv2d_grad_input), (dy, weight), (shape,), window),
        (("conv2d_grad_weight", naive.conv2d_grad_weight), (x, dy), (kernel,), window),
        (("conv2d_grad_bias", naive.conv2d_grad_bias), (dy,), (), {}),
    ]
    for (name, reference), arrays, others, window in cases:
        expected = reference(*(a.astype(float) for a in arrays), *others, **window)
        actual = getattr(cuda, name)(*map(on_device, arrays), *others, **window).get()
        assert actual.dtype == dtype
        if ones:  # whole numbers: every partial sum is exact
            np.testing.assert_array_equal(actual, expected)
        else:
            magnitudes = reference(*(abs(a.astype(float)) for a in arrays), *others, **window)
            naive.assert_sums(actual, expected, magnitudes)
            twin = getattr(cpu, name)(*arrays, *others, **window)
            naive.assert_sums(actual, twin, magnitudes, 2 * naive.FLOAT32_UNITS)  # both round


PADDINGS = (0, "valid", "same", 2, ((1, 0), (2, 3)))


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("dilation", [1, 2, (1, 3)], ids=str)
@pytest.mark.parametrize("stride", [1, 2, (3, 1)], ids=str)
@pytest.mark.parametrize("kernel", [1, 3, (4, 1)], ids=str)
def test_grid(kernel, stride, dilation, padding):
    check((2, 7, 9, 3), 2, kernel, stride=stride, dilation=dilation, padding=padding)


@pytest.mark.parametrize(
    "window",
    [
        {"padding": "same", "stride": 2},
        {"padding": ((1, 0), (2, 3)), "dilation": (1, 3)},
        {"groups": 2, "padding": 1, "stride": (1, 2)},
        {"groups": 4},
        {"padding": 4, "dilation": 2, "stride": 3},
    ],
    ids=str,
)
def test_channels_that_are_read_at_once(window):
    check((2, 5, 6, 16), 16, (2, 3), **window)


@pytest.mark.parametrize("kernel", [1, 2, 3, 5, (4, 1)], ids=str)
@pytest.mark.parametrize("stride", [2, (2, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("dilation", [1, 2, (1, 3)], ids=str)
def test_classes_of_pixels_in_one_launch(kernel, stride, dilation):
    """Gradients by an input whose size the stride divides; some pixels no window reaches."""
    window = {"stride": stride, "padding": "same", "dilation": dilation}
    check((2, 6, 8, 3), 4, kernel, **window)
    rows, columns = naive.pair(stride)
    assert launches_of_grad_input((2, 6, 8, 3), 4, kernel, **window) == [rows * columns]
    assert len(launches_of_grad_input((2, 5, 7, 3), 4, kernel, **window)) == rows * columns


def test_classes_of_pixels_of_several_blocks():
    """The blocks of a class are every fourth one; in groups, and with channels read at once."""
    check((9, 12, 14, 8), 4, 3, stride=2, padding=1)
    check((5, 6, 8, 8), 12, 3, stride=2, padding=1, groups=4)
    check((5, 6, 8, 40), 36, (3, 2), np.float64, stride=2, padding=((1, 0), (0, 2)))
    check((3, 4, 6, 20), 16, 3, stride=2, padding=3, ones=True)


def launches_of_grad_input(shape, filters, kernel, **window):
    """How many classes of pixels each of its launches computes."""
    kernel = naive.pair(kernel)
    windows = Windows.of(shape[1:3], kernel, window["stride"], window["padding"],
                         window["dilation"])  # fmt: skip
    dy, weight = untouched((shape[0], *windows.output, filters)), untouched((*kernel, 3, filters))
    found = recorded(lambda: cuda.conv2d_grad_input(dy, weight, shape, **window))
    return [1 if isinstance(a[-1], taps.Taps) else taps.count(a[-1]) for *_, a in found]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("channels", "filters"), [(3, 8), (8, 3), (8, 36)])
def test_channels_read_at_once_on_one_side(channels, filters, dtype):
    check((3, 4, 5, channels), filters, 3, dtype, padding=1)
    check((1, 4, 5, channels), filters, (1, 2), dtype, stride=2, padding="same")


@pytest.mark.parametrize("channels", [1, 3, 37])
def test_depthwise(channels):
    check((1, 4, 5, channels), channels, 3, groups=channels, padding=1)
    check((2, 3, 4, channels), 2 * channels, 2, groups=channels)


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_ones_are_exact(padding):
    check((2, 7, 5, 3), 4, 3, stride=2, dilation=(1, 2), padding=padding, ones=True)


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
    check((67, 2, 3, 2), 3, (2, 1))
    check((9, 13, 14, 4), 8, 3, padding=1)  # weight gradients whose sum is cut into parts
    check((1, 3, 3, 300), 20, 3, padding=1)


def arrays(dtype=np.float32, groups=1):
    rng = np.random.default_rng(1)
    sizes = (2, 5, 7, 12), (3, 3, 12 // groups, 8), (8,)
    return [rng.normal(size=size).astype(dtype) for size in sizes]


def test_without_a_bias_and_into_out():
    x, weight, _ = arrays()
    window = {"stride": (1, 2), "padding": ((1, 0), (1, 1))}
    y = cpu.conv2d_forward(x, weight, **window)
    out = on_device(np.full_like(y, np.nan))
    assert cuda.conv2d_forward(on_device(x), on_device(weight), **window, out=out) is out
    magnitudes = naive.conv2d(abs(x), abs(weight), **window)
    naive.assert_sums(out.get(), y, magnitudes)
    dx = on_device(np.full_like(x, np.nan))
    found = cuda.conv2d_grad_input(on_device(y), on_device(weight), x.shape, **window, out=dx)
    assert found is dx
    magnitudes = naive.conv2d_grad_input(abs(y), abs(weight), x.shape, **window)
    naive.assert_sums(dx.get(), cpu.conv2d_grad_input(y, weight, x.shape, **window), magnitudes)


def test_both_gradients_at_once_are_those_of_the_single_calls():
    x, weight, _ = arrays(groups=2)
    dy = cpu.conv2d_forward(x, weight, groups=2)
    x, dy = on_device(x), on_device(dy)
    weight, bias = cuda.conv2d_grad_parameters(x, dy, 3, groups=2)
    single = cuda.conv2d_grad_weight(x, dy, 3, groups=2)
    np.testing.assert_array_equal(weight.get(), single.get())
    np.testing.assert_array_equal(bias.get(), cuda.conv2d_grad_bias(dy).get())


def test_first_example_does_not_depend_on_the_rest_of_the_batch():
    x, weight, bias = (on_device(a) for a in arrays())
    y = cuda.conv2d_forward(x, weight, bias, padding=1)
    first = cuda.conv2d_forward(x[:1], weight, bias, padding=1)
    np.testing.assert_array_equal(first.get(), y.get()[:1])


def test_arrays_that_begin_anywhere():
    """Not where several numbers can be read at once."""
    x, weight, bias = arrays()
    expected = cpu.conv2d_forward(x, weight, bias)
    shifted = []
    for array in (x, weight):
        flat = on_device(np.concatenate([[0], array.ravel()]).astype(np.float32))
        shifted.append(flat[1:].reshape(array.shape))
    y = cuda.conv2d_forward(*shifted, on_device(bias))
    naive.assert_sums(y.get(), expected, naive.conv2d(abs(x), abs(weight), abs(bias)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_values_stay_where_they_belong(value):
    x, weight, _ = arrays()
    x[1, 2, 6, 1] = value
    y = cuda.conv2d_forward(on_device(x), on_device(weight), padding=1).get()
    with np.errstate(invalid="ignore"):
        expected = naive.conv2d(x, weight, padding=1)
        np.testing.assert_array_equal(np.isfinite(y), np.isfinite(expected))
        dy = on_device(np.ones_like(y))
        dw = cuda.conv2d_grad_weight(on_device(x), dy, 3, padding=1).get()
        expected = naive.conv2d_grad_weight(x, np.ones_like(y), 3, padding=1)
        np.testing.assert_array_equal(np.isfinite(dw), np.isfinite(expected))


X, W, DY = np.ones((2, 5, 6, 4)), np.ones((3, 3, 4, 8)), np.ones((2, 3, 4, 8))


def forward(x=X, weight=W, bias=None, **window):
    return ("conv2d_forward", x, weight, bias), window


def grad_input(dy=DY, weight=W, input_shape=X.shape, **window):
    return ("conv2d_grad_input", dy, weight, input_shape), window


def grad_weight(x=X, dy=DY, kernel=(3, 3), **window):
    return ("conv2d_grad_weight", x, dy, kernel), window


def grad_bias(dy=DY):
    return ("conv2d_grad_bias", dy), {}


BAD = [
    (forward, "x", X[0]),
    (forward, "x", X.astype(int)),
    (forward, "x", X.astype(np.float16)),
    (forward, "x", X[..., :3]),
    (forward, "x", X[:0]),
    (forward, "weight", W[0]),
    (forward, "weight", W.astype(np.float32)),
    (forward, "bias", np.ones(7)),
    (forward, "bias", np.ones((8, 1))),
    (forward, "bias", np.ones(8, np.float32)),
    (forward, "stride", 0),
    (forward, "stride", (1, 2, 3)),
    (forward, "dilation", 3),
    (forward, "padding", "full"),
    (forward, "padding", ((1, 2), (3,))),
    (forward, "groups", 3),
    (forward, "groups", 0),
    (grad_input, "dy", DY[0]),
    (grad_input, "dy", DY[:, :2]),
    (grad_input, "dy", DY.astype(np.float32)),
    (grad_input, "weight", W[..., :3, :]),
    (grad_input, "input_shape", (2, 5, 6)),
    (grad_input, "input_shape", (2, 5, 6, 5)),
    (grad_weight, "x", X.astype(np.float32)),
    (grad_weight, "dy", DY[:1]),
    (grad_weight, "kernel", (3, 3, 3)),
    (grad_weight, "kernel", 7),
    (grad_weight, "groups", 1.5),
    (grad_weight, "groups", 3),
    (grad_bias, "dy", DY.astype(int)),
    (grad_bias, "dy", DY[:0]),
]


def error(package, call, convert):
    (name, *arguments), window = call
    given = [convert(a) if isinstance(a, np.ndarray) else a for a in arguments]
    with pytest.raises((ValueError, TypeError)) as caught:
        getattr(package, name)(*given, **window)
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("function", "name", "value"),
    BAD,
    ids=[f"{f.__name__}-{name}-{i}" for i, (f, name, _) in enumerate(BAD)],
)
def test_errors_are_those_of_the_cpu(function, name, value):
    call = function(**{name: value})
    assert error(cuda, call, on_device) == error(cpu, call, lambda array: array)


@pytest.mark.parametrize(
    "out",
    [np.ones((2, 3, 4, 7)), np.ones((2, 3, 4, 8), np.float32), X],
    ids=["shape", "dtype", "x"],
)
def test_out_that_does_not_fit(out):
    with pytest.raises((ValueError, TypeError), match=r"^out"):
        cuda.conv2d_forward(on_device(X), on_device(W), out=on_device(out))


def test_arrays_of_the_host_are_refused():
    with pytest.raises(TypeError, match=r"^x must be a device array"):
        cuda.conv2d_forward(X, on_device(W))
    with pytest.raises(TypeError, match=r"^weight must be a device array"):
        cuda.conv2d_forward(on_device(X), W)
