"""The references against SciPy and against cases computed by hand."""

import itertools

import naive
import numpy as np
import pytest
import scipy.signal


def by_scipy(x, weight, stride, padding, dilation, groups):
    """Convolution by `scipy.signal.correlate`, image by image and channel by channel."""
    kh, kw, _, filters = weight.shape
    (s1, s2), (d1, d2) = naive.pair(stride), naive.pair(dilation)
    spread = np.zeros(((kh - 1) * d1 + 1, (kw - 1) * d2 + 1, *weight.shape[2:]))
    spread[::d1, ::d2] = weight
    image = np.pad(x, ((0, 0), *padding, (0, 0)))
    per_group, per_filter = x.shape[3] // groups, filters // groups
    maps = []
    for f in range(filters):
        first = f // per_filter * per_group
        maps.append(
            sum(
                np.stack(
                    [
                        scipy.signal.correlate(
                            one[..., first + c], spread[..., c, f], "valid", "direct"
                        )
                        for one in image
                    ]
                )
                for c in range(per_group)
            )
        )
    return np.stack(maps, axis=-1)[:, ::s1, ::s2]


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 3)])
@pytest.mark.parametrize("stride", [1, (2, 3)])
@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((2, 0), (1, 3))])
@pytest.mark.parametrize("dilation", [1, (2, 1)])
@pytest.mark.parametrize("groups", [1, 2])
def test_conv2d_agrees_with_scipy(kernel, stride, padding, dilation, groups):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 6, 4))
    weight = rng.normal(size=(*kernel, 4 // groups, 6))
    expected = by_scipy(x, weight, stride, padding, dilation, groups)
    actual = naive.conv2d(x, weight, None, stride, padding, dilation, groups)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13)
    bias = rng.normal(size=6)
    actual = naive.conv2d(x, weight, bias, stride, padding, dilation, groups)
    np.testing.assert_allclose(actual, expected + bias, rtol=0, atol=1e-13)


def test_conv2d_by_hand():
    x = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], float).reshape(1, 3, 3, 1)
    weight = np.array([[1, 10], [100, 1000]], float).reshape(2, 2, 1, 1)
    assert naive.conv2d(x, weight)[0, :, :, 0].tolist() == [[5421, 6532], [8754, 9865]]
    # One row above and one column to the left.
    explicit = naive.conv2d(x, weight, padding=((1, 0), (1, 0)))[0, :, :, 0]
    assert explicit.tolist() == [[1000, 2100, 3200], [4010, 5421, 6532], [7040, 8754, 9865]]
    # "same" with an even kernel: the extra cell lies at the bottom and at the right.
    same = naive.conv2d(x, weight, padding="same")[0, :, :, 0]
    assert same.tolist() == [[5421, 6532, 603], [8754, 9865, 906], [87, 98, 9]]
    assert naive.conv2d(x, weight, dilation=2)[0, :, :, 0].tolist() == [[9731]]
    assert naive.conv2d(x, weight, stride=2, padding=((0, 1), (0, 1)))[0, :, :, 0].tolist() == [
        [5421, 603],
        [87, 9],
    ]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "expected"),
    [
        (5, 3, 1, 1, (1, 1)),
        (5, 2, 1, 1, (0, 1)),
        (6, 3, 2, 1, (0, 1)),
        (7, 3, 2, 1, (1, 1)),
        (7, 3, 1, 2, (2, 2)),
        (5, 1, 3, 1, (0, 0)),
        (1, 5, 1, 1, (2, 2)),
    ],
)
def test_same_padding_by_hand(size, kernel, stride, dilation, expected):
    vertical, horizontal = naive.padding_of("same", (size, 1), (kernel, 1), stride, dilation)
    assert vertical == expected
    assert horizontal == (0, 0)


SETTINGS = [
    {},
    {"stride": (2, 1), "padding": ((1, 0), (2, 1))},
    {"dilation": (1, 2), "padding": 2},
    {"groups": 2, "padding": "same"},
    {"groups": 4, "stride": 2, "padding": (0, 1)},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_gradients_are_the_derivatives(settings):
    """The output is linear in x and in the weight: a derivative is the output of a unit array."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 4, 5, 4))
    weight = rng.normal(size=(2, 3, 4 // settings.get("groups", 1), 4))
    dy = rng.normal(size=naive.conv2d(x, weight, **settings).shape)

    expected = np.empty_like(x)
    for index in itertools.product(*map(range, x.shape)):
        unit = np.zeros_like(x)
        unit[index] = 1
        expected[index] = np.sum(dy * naive.conv2d(unit, weight, **settings))
    actual = naive.conv2d_grad_input(dy, weight, x.shape, **settings)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13)

    expected = np.empty_like(weight)
    for index in itertools.product(*map(range, weight.shape)):
        unit = np.zeros_like(weight)
        unit[index] = 1
        expected[index] = np.sum(dy * naive.conv2d(x, unit, **settings))
    actual = naive.conv2d_grad_weight(x, dy, (2, 3), **settings)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13)

    np.testing.assert_allclose(naive.conv2d_grad_bias(dy), dy.sum((0, 1, 2)), rtol=0, atol=1e-13)


def test_patches_by_hand():
    x = np.array([[1, 2, 3], [4, 5, 6]], float).reshape(1, 2, 3, 1)
    assert naive.patches(x, 2).tolist() == [[1, 2, 4, 5, 1], [2, 3, 5, 6, 1]]
    two = np.concatenate([x, -x], axis=3)  # channels run fastest
    assert naive.patches(two, (1, 2), stride=(1, 2), padding=((0, 0), (1, 0))).tolist() == [
        [0, 0, 1, -1, 1],
        [2, -2, 3, -3, 1],
        [0, 0, 4, -4, 1],
        [5, -5, 6, -6, 1],
    ]
    assert naive.patch_second_moment(x[:, :1], (1, 2)).tolist() == [
        [1 + 4, 2 + 6, 1 + 2],
        [2 + 6, 4 + 9, 2 + 3],
        [1 + 2, 2 + 3, 2],
    ]


@pytest.mark.parametrize("settings", SETTINGS[:3])
def test_patches_times_weights_is_the_convolution(settings):
    rng = np.random.default_rng(2)
    x, weight, bias = rng.normal(size=(2, 4, 5, 2)), rng.normal(size=(2, 3, 2, 3)), np.arange(3.0)
    matrix = np.hstack([weight.reshape(-1, 3).T, bias[:, None]])
    y = naive.conv2d(x, weight, bias, **settings)
    product = naive.patches(x, (2, 3), **settings) @ matrix.T
    np.testing.assert_allclose(product.reshape(y.shape), y, rtol=0, atol=1e-13)
    rows = naive.patches(x, (2, 3), **settings)
    moment = naive.patch_second_moment(x, (2, 3), **settings)
    np.testing.assert_allclose(moment, rows.T @ rows, rtol=0, atol=1e-12)


def test_grouped_moments_are_those_of_the_parts():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, 4, 3, 6))
    moment = naive.patch_second_moment(x, (2, 1), groups=3)
    assert moment.shape == (3, 5, 5)
    for g in range(3):
        rows = naive.patches(x[..., 2 * g : 2 * g + 2], (2, 1))
        np.testing.assert_allclose(moment[g], rows.T @ rows, rtol=0, atol=1e-13)
    moment = naive.output_second_moment(x, groups=2)
    for g in range(2):
        rows = x[..., 3 * g : 3 * g + 3].reshape(-1, 3)
        np.testing.assert_allclose(moment[g], rows.T @ rows, rtol=0, atol=1e-13)
    rows = x.reshape(-1, 6)
    np.testing.assert_allclose(naive.output_second_moment(x), rows.T @ rows, rtol=0, atol=1e-13)


def test_matmul():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(3, 5)), rng.normal(size=(5, 4))
    np.testing.assert_allclose(naive.matmul(a, b), a @ b, rtol=0, atol=1e-14)


def test_damped_inverse_by_hand():
    one = np.ones((1, 1))
    assert naive.pi(4 * one, one) == 2
    assert naive.pi(0 * one, one) == naive.pi(one, 0 * one) == 1
    assert naive.pi(np.diag([1.0, 2.0, 6.0]), np.diag([1.0, 0.5])) == 2
    # (4 + 2 * 0.5) (1 + 0.5 / 2) = 6.25
    assert naive.damped_inverse(4 * one, one, 12.5 * one, 0.25)[0, 0] == pytest.approx(2, rel=1e-15)
    actual = naive.damped_inverse(4 * one, one, 12.5 * one, 1.0, factored=False)
    assert actual[0, 0] == pytest.approx(2.5, rel=1e-15)


def test_kronecker_block_acts_on_matrices_in_c_order():
    rng = np.random.default_rng(5)
    omega, gamma = (m @ m.T for m in (rng.normal(size=(3, 3)), rng.normal(size=(2, 2))))
    matrix = rng.normal(size=(2, 3))
    block = naive.kronecker_block(omega, gamma)
    np.testing.assert_allclose(block, np.kron(gamma, omega), rtol=1e-15)
    np.testing.assert_allclose(
        (block @ matrix.ravel()).reshape(2, 3), gamma @ matrix @ omega, rtol=1e-13
    )
    share = naive.pi(omega, gamma)
    left = np.linalg.inv(gamma + np.sqrt(0.01) / share * np.eye(2))
    right = np.linalg.inv(omega + np.sqrt(0.01) * share * np.eye(3))
    actual = naive.damped_inverse(omega, gamma, matrix, 0.01)
    np.testing.assert_allclose(actual, left @ matrix @ right, rtol=1e-11)


def test_comparison_of_sums_has_teeth():
    exact, magnitudes = np.array([1.0, -3.0]), np.array([2.0, 3.0])
    for dtype, bound in ((np.float32, naive.FLOAT32_UNITS * 2.0**-24), (np.float64, 1e-12)):
        naive.assert_sums(exact.astype(dtype), exact, magnitudes)
        for entry in range(2):
            wrong = exact.copy()
            wrong[entry] += 1.5 * bound * magnitudes[entry]
            with pytest.raises(AssertionError, match="of magnitudes"):
                naive.assert_sums(wrong.astype(dtype), exact, magnitudes)
    wrong = exact.copy()
    wrong[0] = np.nan
    with pytest.raises(AssertionError):
        naive.assert_sums(wrong, exact, magnitudes)
