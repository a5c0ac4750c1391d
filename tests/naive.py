"""Loop references in float64. Imports nothing from the package, so it shares no bug with it.

Images are (examples, height, width, channels), weights (kernel rows, kernel columns, channels of a
group, filters). A padding is ``((top, bottom), (left, right))``, ``"same"``, ``"valid"``, an
integer, or a pair (vertical, horizontal).
"""

import math

import numpy as np


def pair(value):
    """(vertical, horizontal) from one integer or from a pair."""
    return (value, value) if isinstance(value, int) else tuple(value)


def padding_of(padding, size, kernel, stride, dilation):
    """``((top, bottom), (left, right))`` for an image of (height, width)."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        sides = []
        for n, k, s, d in zip(size, pair(kernel), pair(stride), pair(dilation), strict=True):
            cells = (math.ceil(n / s) - 1) * s + d * (k - 1) + 1
            missing = max(cells - n, 0)
            sides.append((missing // 2, missing - missing // 2))
        return tuple(sides)
    vertical, horizontal = pair(padding)
    return pair(vertical), pair(horizontal)


def padded(x, padding):
    """`x` with zeros around each image."""
    (top, bottom), (left, right) = padding
    count, height, width, channels = x.shape
    result = np.zeros((count, top + height + bottom, left + width + right, channels))
    result[:, top : top + height, left : left + width] = x
    return result


def windows(size, kernel, stride, padding, dilation):
    """Rows and columns of the output: as many windows as fit into the padded image."""
    counts = []
    for n, k, s, d, (before, after) in zip(
        size, pair(kernel), pair(stride), pair(dilation), padding, strict=True
    ):
        counts.append((before + n + after - (d * (k - 1) + 1)) // s + 1)
    return tuple(counts)


def taps(shape, kernel, stride, padding, dilation):
    """Every (example, output row and column, kernel row and column, padded row and column)."""
    (s1, s2), (d1, d2) = pair(stride), pair(dilation)
    rows, columns = windows(shape[1:3], kernel, stride, padding, dilation)
    for n in range(shape[0]):
        for y in range(rows):
            for x in range(columns):
                for ky in range(pair(kernel)[0]):
                    for kx in range(pair(kernel)[1]):
                        yield n, y, x, ky, kx, y * s1 + ky * d1, x * s2 + kx * d2


def group_slices(channels, filters, groups):
    """Input channels and filters of each group."""
    c, f = channels // groups, filters // groups
    return [(slice(g * c, g * c + c), slice(g * f, g * f + f)) for g in range(groups)]


def conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Cross-correlation, (examples, rows, columns, filters)."""
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    kernel, filters = weight.shape[:2], weight.shape[3]
    padding = padding_of(padding, x.shape[1:3], kernel, stride, dilation)
    image = padded(x, padding)
    size = windows(x.shape[1:3], kernel, stride, padding, dilation)
    result = np.zeros((len(x), *size, filters))
    if bias is not None:
        result += bias
    for n, y, z, ky, kx, row, column in taps(x.shape, kernel, stride, padding, dilation):
        for c, f in group_slices(x.shape[3], filters, groups):
            result[n, y, z, f] += image[n, row, column, c] @ weight[ky, kx, :, f]
    return result


def conv2d_grad_input(dy, weight, input_shape, stride=1, padding=0, dilation=1, groups=1):
    """Derivative of ``sum(dy * conv2d(x, weight))`` by x."""
    dy, weight = np.asarray(dy, np.float64), np.asarray(weight, np.float64)
    kernel, filters = weight.shape[:2], weight.shape[3]
    padding = padding_of(padding, input_shape[1:3], kernel, stride, dilation)
    result = padded(np.zeros(input_shape), padding)
    for n, y, z, ky, kx, row, column in taps(input_shape, kernel, stride, padding, dilation):
        for c, f in group_slices(input_shape[3], filters, groups):
            result[n, row, column, c] += weight[ky, kx, :, f] @ dy[n, y, z, f]
    (top, _), (left, _) = padding
    return result[:, top : top + input_shape[1], left : left + input_shape[2]]


def conv2d_grad_weight(x, dy, kernel, stride=1, padding=0, dilation=1, groups=1):
    """Derivative of ``sum(dy * conv2d(x, weight))`` by the weight."""
    x, dy = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    kernel, filters = pair(kernel), dy.shape[3]
    padding = padding_of(padding, x.shape[1:3], kernel, stride, dilation)
    image = padded(x, padding)
    result = np.zeros((*kernel, x.shape[3] // groups, filters))
    for n, y, z, ky, kx, row, column in taps(x.shape, kernel, stride, padding, dilation):
        for c, f in group_slices(x.shape[3], filters, groups):
            result[ky, kx, :, f] += np.outer(image[n, row, column, c], dy[n, y, z, f])
    return result


def conv2d_grad_bias(dy):
    """Derivative of ``sum(dy * (y + bias))`` by the bias."""
    result = np.zeros(dy.shape[3])
    for row in np.asarray(dy, np.float64).reshape(-1, dy.shape[3]):
        result += row
    return result


def patches(x, kernel, stride=1, padding=0, dilation=1):
    """The matrix [[A]]: a row for each (example, location), columns (KH, KW, C), then ones."""
    x, kernel = np.asarray(x, np.float64), pair(kernel)
    padding = padding_of(padding, x.shape[1:3], kernel, stride, dilation)
    image = padded(x, padding)
    size = windows(x.shape[1:3], kernel, stride, padding, dilation)
    result = np.zeros((len(x), *size, *kernel, x.shape[3]))
    for n, y, z, ky, kx, row, column in taps(x.shape, kernel, stride, padding, dilation):
        result[n, y, z, ky, kx] = image[n, row, column]
    result = result.reshape(len(x) * size[0] * size[1], -1)
    return np.hstack([result, np.ones((len(result), 1))])


def patch_second_moment(x, kernel, stride=1, padding=0, dilation=1, groups=1):
    """Sum of the outer products of the rows of [[A]]; with groups, of each group's channels."""
    if groups > 1:
        parts = [c for c, _ in group_slices(x.shape[3], groups, groups)]
        return np.stack(
            [patch_second_moment(x[..., c], kernel, stride, padding, dilation) for c in parts]
        )
    rows = patches(x, kernel, stride, padding, dilation)
    result = np.zeros((rows.shape[1], rows.shape[1]))
    for row in rows:
        result += np.outer(row, row)
    return result


def output_second_moment(ds, groups=1):
    """Sum of the outer products of the last axis; with groups, of each group's outputs."""
    if groups > 1:
        parts = [f for _, f in group_slices(groups, ds.shape[-1], groups)]
        return np.stack([output_second_moment(ds[..., f]) for f in parts])
    result = np.zeros((ds.shape[-1], ds.shape[-1]))
    for row in np.asarray(ds, np.float64).reshape(-1, ds.shape[-1]):
        result += np.outer(row, row)
    return result


def matmul(a, b):
    """Matrix product, one scalar product at a time."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    result = np.zeros((a.shape[0], b.shape[1]))
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            result[i, j] = np.sum(a[i] * b[:, j])
    return result


def pi(omega, gamma):
    """Share of the damping that goes to omega; 1 if a trace is 0."""
    left, right = np.trace(omega) / len(omega), np.trace(gamma) / len(gamma)
    return math.sqrt(left / right) if left > 0 and right > 0 else 1.0


def kronecker_block(omega, gamma):
    """Fisher block of (outputs, inputs) matrices flattened in C order: gamma (x) omega."""
    outputs, inputs = len(gamma), len(omega)
    result = np.zeros((outputs * inputs, outputs * inputs))
    for i in range(outputs):
        for k in range(outputs):
            rows = slice(i * inputs, (i + 1) * inputs)
            columns = slice(k * inputs, (k + 1) * inputs)
            result[rows, columns] = gamma[i, k] * omega
    return result


def damped_inverse(omega, gamma, matrix, damping, factored=True):
    """Solution U of the damped block applied to U = `matrix`, by a dense solve.

    Factored Tikhonov: (gamma + sqrt(damping) / pi I) (x) (omega + pi sqrt(damping) I). Otherwise
    `damping` is added to the diagonal of the block.
    """
    if factored:
        share = pi(omega, gamma)
        omega = omega + share * math.sqrt(damping) * np.eye(len(omega))
        gamma = gamma + math.sqrt(damping) / share * np.eye(len(gamma))
        block = kronecker_block(omega, gamma)
    else:
        block = kronecker_block(omega, gamma)
        block += damping * np.eye(len(block))
    return np.linalg.solve(block, np.ravel(matrix)).reshape(matrix.shape)


# Rounding error of a sum of products, in units of rounding and relative to the sum of magnitudes.
# Terms of random sign: partial sums grow like the square root of the number of terms, so the
# errors made at them add up to about one unit at any length; the largest of some thousand entries
# lies a few times above that. A convolution whose taps are added one by one rounds once more for
# each of them, which shows in sums of few terms. Terms of one sign, for which the error could grow
# with the length, are tested with ones, where every partial sum is exact. For float64 the
# references themselves round, so the bound is a fixed one that both meet with ease.
FLOAT32_UNITS = 6
FLOAT64_BOUND = 1e-12


def assert_sums(actual, expected, magnitudes, units=FLOAT32_UNITS):
    """Compare sums of products with a reference.

    `magnitudes` is the same reference applied to the absolute values of the operands.
    """
    assert actual.shape == expected.shape == magnitudes.shape
    bound = units * 2.0**-24 if actual.dtype == np.float32 else FLOAT64_BOUND
    excess = np.abs(actual - expected) - bound * magnitudes
    assert np.all(excess <= 0), (
        f"error of {np.max(np.abs(actual - expected) / np.maximum(magnitudes, 1e-300)):.3g} of the "
        f"sum of magnitudes at {np.unravel_index(np.argmax(excess), excess.shape)}, "
        f"allowed {bound:.3g}"
    )


def sample_by_weight(weights, wanted):
    """Of a systematic sample the number of examples that each example stands for, 0 if not taken.

    By walking through the examples from the heaviest on, equal ones in their order.
    """
    left = sorted(range(len(weights)), key=lambda i: -weights[i])
    factors = np.zeros(len(weights))
    while wanted and weights[left[0]] * wanted > sum(weights[left]):
        factors[left.pop(0)], wanted = 1.0, wanted - 1
    distance = sum(weights[left]) / wanted if wanted else math.inf
    passed, mark = 0.0, distance / 2
    for i in left:
        passed += weights[i]
        if passed >= mark and weights[i]:
            factors[i], mark = distance / weights[i], mark + distance
    return factors
