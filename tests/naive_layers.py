"""Loop references, in float64, for pooling and normalisation. Imports nothing from the package."""

import numpy as np


def starts(size, kernel, stride, before, after, ceil_mode=False):
    """Where windows start along an axis; a window may start in the padding, at -1 or less."""
    found, start, end = [], -before, size + after
    while start + kernel <= end:
        found.append(start)
        start += stride
    if not ceil_mode:
        return found
    if not found or found[-1] + kernel < end:
        found.append(start)
    return [start for start in found if start < size]


def windows(shape, kernel, stride, padding, ceil_mode=False):
    """For each window its output row and column, and its start row and column."""
    rows = starts(shape[1], kernel[0], stride[0], *padding[0], ceil_mode)
    columns = starts(shape[2], kernel[1], stride[1], *padding[1], ceil_mode)
    cells = [(i, j, h, w) for i, h in enumerate(rows) for j, w in enumerate(columns)]
    return len(rows), len(columns), cells


def cells_inside(shape, kernel, h, w):
    """Cells of a window that lie in the image: number in the window, row, column."""
    for p in range(kernel[0]):
        for q in range(kernel[1]):
            if 0 <= h + p < shape[1] and 0 <= w + q < shape[2]:
                yield p * kernel[1] + q, h + p, w + q


def max_pool(x, kernel, stride, padding, ceil_mode=False):
    """Largest values, the first among equals, and the number of their cells."""
    x = np.asarray(x, np.float64)
    rows, columns, places = windows(x.shape, kernel, stride, padding, ceil_mode)
    y = np.full((len(x), rows, columns, x.shape[3]), -np.inf)
    index = np.full(y.shape, -1)
    for n in range(len(x)):
        for c in range(x.shape[3]):
            for i, j, h, w in places:
                for cell, row, column in cells_inside(x.shape, kernel, h, w):
                    if index[n, i, j, c] < 0 or x[n, row, column, c] > y[n, i, j, c]:
                        y[n, i, j, c], index[n, i, j, c] = x[n, row, column, c], cell
    return y, index


def max_pool_matrix(x, kernel, stride, padding, ceil_mode=False):
    """Jacobian as (outputs, inputs), both in memory order."""
    y, index = max_pool(x, kernel, stride, padding, ceil_mode)
    matrix = np.zeros((*y.shape, *x.shape))
    for i, j, h, w in windows(x.shape, kernel, stride, padding, ceil_mode)[2]:
        for n in range(len(x)):
            for c in range(x.shape[3]):
                p, q = divmod(index[n, i, j, c], kernel[1])
                matrix[n, i, j, c, n, h + p, w + q, c] = 1
    return matrix.reshape(y.size, x.size)


def avg_pool_matrix(shape, kernel, stride, padding, ceil_mode=False, count_include_pad=False):
    """Jacobian of average pooling as (outputs, inputs), both in memory order."""
    rows, columns, places = windows(shape, kernel, stride, padding, ceil_mode)
    matrix = np.zeros((shape[0], rows, columns, shape[3], *shape))
    ends = shape[1] + padding[0][1], shape[2] + padding[1][1]
    for i, j, h, w in places:
        inside = list(cells_inside(shape, kernel, h, w))
        count = len(inside)
        if count_include_pad:
            count = sum(
                h + p < ends[0] and w + q < ends[1]
                for p in range(kernel[0])
                for q in range(kernel[1])
            )
        for n in range(shape[0]):
            for c in range(shape[3]):
                for _, row, column in inside:
                    matrix[n, i, j, c, n, row, column, c] = 1 / count
    return matrix.reshape(shape[0] * rows * columns * shape[3], -1)


def response_window(c, channels, size):
    """Channels whose squares are summed for channel `c`."""
    return [j for j in range(c - size // 2, c - size // 2 + size) if 0 <= j < channels]


def response_norm(x, size, alpha, beta, k):
    """Response normalisation of (rows, channels)."""
    x = np.asarray(x, np.float64)
    y = np.zeros_like(x)
    for r, row in enumerate(x):
        for c, value in enumerate(row):
            total = sum(row[j] ** 2 for j in response_window(c, len(row), size))
            y[r, c] = value * (k + alpha / size * total) ** -beta
    return y


def response_norm_matrices(x, size, alpha, beta, k):
    """Jacobian of each row, (rows, channels out, channels in)."""
    x = np.asarray(x, np.float64)
    matrices = np.zeros((*x.shape, x.shape[1]))
    for r, row in enumerate(x):
        for c, value in enumerate(row):
            members = response_window(c, len(row), size)
            d = k + alpha / size * sum(row[j] ** 2 for j in members)
            matrices[r, c, c] = d**-beta
            for j in members:
                matrices[r, c, j] -= value * beta * d ** (-beta - 1) * alpha / size * 2 * row[j]
    return matrices


def response_square(place, sides, size):
    """Pixels, as (row, column), whose squares are summed for the pixel at `place`."""
    rows, columns = (response_window(p, n, size) for p, n in zip(place, sides, strict=True))
    return [(i, j) for i in rows for j in columns]


def response_norm_within(x, size, alpha, beta, k):
    """Response normalisation of images over squares of pixels: cuda-convnet's layer rnorm."""
    x = np.asarray(x, np.float64)
    y = np.zeros_like(x)
    for n, i, j, c in np.ndindex(x.shape):
        total = sum(x[n, p, q, c] ** 2 for p, q in response_square((i, j), x.shape[1:3], size))
        y[n, i, j, c] = x[n, i, j, c] / (k + alpha / size**2 * total) ** beta
    return y


def response_norm_within_matrices(x, size, alpha, beta, k):
    """Jacobian of each map of each image, (examples, channels, pixels out, pixels in)."""
    x = np.asarray(x, np.float64)
    _, height, width, _ = x.shape
    matrices = np.zeros((len(x), x.shape[3], height * width, height * width))
    for n, i, j, c in np.ndindex(x.shape):
        members = response_square((i, j), (height, width), size)
        d = k + alpha / size**2 * sum(x[n, p, q, c] ** 2 for p, q in members)
        row = matrices[n, c, i * width + j]
        row[i * width + j] = d**-beta
        for p, q in members:
            slope = 2 * alpha / size**2 * x[n, p, q, c]
            row[p * width + q] -= x[n, i, j, c] * beta * d ** (-beta - 1) * slope
    return matrices


def batch_norm(x, weight, bias, epsilon):
    """Normalisation of (rows, channels) by the statistics of the rows."""
    x = np.asarray(x, np.float64)
    y = np.zeros_like(x)
    for c in range(x.shape[1]):
        mean = sum(x[:, c]) / len(x)
        variance = sum((value - mean) ** 2 for value in x[:, c]) / len(x)
        y[:, c] = weight[c] * (x[:, c] - mean) / np.sqrt(variance + epsilon) + bias[c]
    return y


def batch_norm_matrices(x, weight, epsilon):
    """Jacobian of each channel, (channels, rows out, rows in)."""
    x = np.asarray(x, np.float64)
    rows = len(x)
    matrices = np.zeros((x.shape[1], rows, rows))
    for c in range(x.shape[1]):
        centred = x[:, c] - x[:, c].mean()
        deviation = np.sqrt(np.mean(centred**2) + epsilon)
        for r in range(rows):
            for s in range(rows):
                same = (r == s) - 1 / rows
                through = centred[r] * centred[s] / (rows * deviation**2)
                matrices[c, r, s] = weight[c] / deviation * (same - through)
    return matrices
