"""Small networks and losses in NumPy, for the reference of KFC: nothing here is of the package.

Networks are lists of the layers below. Gradients are backward passes written out; products with
the exact Jacobian are complex steps through the forward pass, exact to rounding.
"""

import numpy as np
from scipy.special import entr

# Layers: `forward` gives outputs and what `backward` needs; arrays have the examples first.


class Linear:
    """What convolutions and dense layers share: outputs are patches times a matrix."""

    def __init__(self, name, bias=True):
        self.name = name
        self.names = [f"{name}.weight"] + [f"{name}.bias"] * bias

    def matrix(self, arrays):
        """(outputs, columns): kernel rows, kernel columns, channels, and then the bias."""
        weight = arrays[self.names[0]]
        rows = weight.reshape(-1, weight.shape[-1]).T
        bias = [arrays[name][:, None] for name in self.names[1:]]
        return np.concatenate([rows, *bias], axis=1)

    def arrays(self, matrix, like):
        """Inverse of `matrix`."""
        weight = like[self.names[0]]
        columns = weight.size // weight.shape[-1]
        found = {self.names[0]: matrix[:, :columns].T.reshape(weight.shape)}
        if len(self.names) == 2:
            found[self.names[1]] = matrix[:, columns]
        return found

    def forward(self, params, x):
        patches = self.patches(params, x)
        if len(self.names) == 2:
            ones = np.ones((*patches.shape[:2], 1))
            patches = np.concatenate([patches, ones], axis=2)
        y = patches @ self.matrix(params).T
        return y.reshape(len(x), *self.places(params, x), -1), (patches, x.shape)

    def backward(self, params, kept, dy):
        """Derivative by the inputs, and the gradient of each example's own part."""
        patches, shape = kept
        rows = dy.reshape(len(dy), patches.shape[1], -1)
        each = np.einsum("nti,ntd->nid", rows, patches)
        return self.scattered(params, rows @ self.matrix(params), shape), each


class Dense(Linear):
    def patches(self, params, x):
        return x[:, None, :]

    def places(self, params, x):
        return ()

    def scattered(self, params, dpatches, shape):
        return dpatches[:, 0, : shape[1]]


class Conv(Linear):
    def __init__(self, name, stride, padding, bias=True):
        super().__init__(name, bias)
        self.stride, self.padding = stride, padding

    def places(self, params, x):
        kernel = params[self.names[0]].shape
        return tuple(
            (x.shape[1 + i] + 2 * self.padding - kernel[i]) // self.stride[i] + 1 for i in range(2)
        )

    def windows(self, params, shape):
        """Slices of the padded image under the kernel, location by location."""
        kh, kw = params[self.names[0]].shape[:2]
        height, width = self.places(params, np.empty(shape))
        for row in range(height):
            for column in range(width):
                top, left = row * self.stride[0], column * self.stride[1]
                yield slice(top, top + kh), slice(left, left + kw)

    def patches(self, params, x):
        p = self.padding
        padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
        found = [padded[:, r, c].reshape(len(x), -1) for r, c in self.windows(params, x.shape)]
        return np.stack(found, axis=1)

    def scattered(self, params, dpatches, shape):
        kh, kw, channels = params[self.names[0]].shape[:3]
        p = self.padding
        padded = np.zeros((shape[0], shape[1] + 2 * p, shape[2] + 2 * p, channels))
        for t, (r, c) in enumerate(self.windows(params, shape)):
            part = dpatches[:, t, : kh * kw * channels]
            padded[:, r, c] += part.reshape(-1, kh, kw, channels)
        return padded[:, p : p + shape[1], p : p + shape[2]]


class Tanh:
    names = ()

    def forward(self, params, x):
        y = np.tanh(x)
        return y, y

    def backward(self, params, y, dy):
        return dy * (1 - y**2), None


class Flatten:
    names = ()

    def forward(self, params, x):
        return x.reshape(len(x), -1), x.shape

    def backward(self, params, shape, dy):
        return dy.reshape(shape), None


class BatchNorm:
    """With the statistics of the batch, which derivatives go through."""

    def __init__(self, name, momentum=0.9, epsilon=1e-5):
        self.name, self.momentum, self.epsilon = name, momentum, epsilon
        self.names = [f"{name}.weight", f"{name}.bias"]

    def forward(self, params, x):
        axes = tuple(range(x.ndim - 1))
        mean = x.mean(axis=axes)
        variance = ((x - mean) ** 2).mean(axis=axes)  # no absolute values: complex steps pass
        h = (x - mean) / np.sqrt(variance + self.epsilon)
        y = params[self.names[0]] * h + params[self.names[1]]
        return y, (h, mean, variance)

    def backward(self, params, kept, dy):
        h, _, variance = kept
        axes = tuple(range(h.ndim - 1))
        inner = tuple(range(1, h.ndim - 1))
        each = np.stack([(dy * h).sum(axis=inner), dy.sum(axis=inner)], axis=1)
        dh = dy * params[self.names[0]]
        dx = dh - dh.mean(axis=axes) - h * (dh * h).mean(axis=axes)
        return dx / np.sqrt(variance + self.epsilon), each

    def arrays(self, matrix, like):
        return dict(zip(self.names, matrix, strict=True))

    def matrix(self, arrays):
        return np.stack([arrays[name] for name in self.names])

    def running(self, buffers, kept):
        h, mean, variance = kept
        count = h.size // h.shape[-1]
        new = {"mean": mean, "variance": variance * count / (count - 1)}
        return {
            f"{self.name}.{short}": self.momentum * buffers[f"{self.name}.{short}"]
            + (1 - self.momentum) * value
            for short, value in new.items()
        }


def forward(layers, params, x):
    kept = []
    for layer in layers:
        x, what = layer.forward(params, x)
        kept.append(what)
    return x, kept


def backward(layers, params, kept, dy):
    """By layer with parameters: the derivative of its outputs, and each example's gradient."""
    found = {}
    for layer, what in zip(reversed(layers), reversed(kept), strict=True):
        dx, each = layer.backward(params, what, dy)
        if each is not None:
            found[layer.name] = dy, each
        dy = dx
    return found


def tangent(layers, params, x, direction):
    """J v, by a complex step: no difference is taken, so no digit is lost."""
    step = 1e-30
    moved = {name: value + 1j * step * direction[name] for name, value in params.items()}
    return forward(layers, moved, x)[0].imag / step


# Losses: negative log-likelihoods; `value` is the mean over examples, the rest of each example.


class Softmax:
    @staticmethod
    def probabilities(z):
        e = np.exp(z - z.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    def value(self, z, targets):
        return -np.mean(np.log(self.probabilities(z)[np.arange(len(z)), targets]))

    def derivative(self, z, targets):
        return self.probabilities(z) - np.eye(z.shape[-1])[targets]

    def sample(self, z, rng):
        """The first class at which the running sum of probabilities is above the number."""
        p, uniform, found = self.probabilities(z), rng.random(len(z)), []
        for row, u in zip(p, uniform, strict=True):
            total, place = 0.0, 0
            for index, value in enumerate(row[:-1]):
                total += value
                if total <= u * row.sum():
                    place = index + 1
            found.append(place)
        return np.array(found)

    def fisher(self, z):
        """Fisher matrix of the predictive distribution of one example."""
        p = self.probabilities(z)
        return np.diag(p) - np.outer(p, p)

    def root(self, z):
        """R with R R^T that matrix; batch normalisation makes the choice of R matter."""
        p = self.probabilities(z)
        return (np.eye(len(p)) - p[:, None]) * np.sqrt(p)


class Squared:
    def value(self, z, targets):
        return np.mean(np.sum((z - targets) ** 2, axis=1)) / 2

    def derivative(self, z, targets):
        return z - targets

    def sample(self, z, rng):
        return z + rng.standard_normal(z.shape)

    def fisher(self, z):
        return np.eye(len(z))

    root = fisher


class Bernoulli:
    @staticmethod
    def probabilities(z):
        return 1 / (1 + np.exp(-z))

    def value(self, z, targets):
        return np.mean(np.sum(np.log1p(np.exp(z)) - targets * z, axis=1))

    @staticmethod
    def least(targets):
        return np.mean(np.sum(entr(targets) + entr(1 - targets), axis=1))

    def derivative(self, z, targets):
        return self.probabilities(z) - targets

    def sample(self, z, rng):
        return (rng.random(z.shape) < self.probabilities(z)).astype(float)

    def fisher(self, z):
        p = self.probabilities(z)
        return np.diag(p * (1 - p))

    def root(self, z):
        return np.sqrt(self.fisher(z))
