"""Error bars of a network that was trained on few images, by its Laplace posterior.

``python examples/error_bars.py``: trains on a part of the bundled images, fits the Kronecker
posterior, tunes its prior on the training data alone, and compares the log-likelihood of test
images, and the confidence in images of noise, with and without the posterior.
"""

import numpy as np
from tabulate import tabulate

import kfc_numba as kfc


def main(
    *, examples: int = 500, epochs: int = 20, tests: int = 500, samples: int = 100
) -> dict[str, dict[str, float]]:
    data = kfc.datasets.load("fashion-mnist-10k")
    x, x_test = data.normalized()
    # Images in official order: every class is in the first few hundred of each set.
    x, y = x[:examples], data.y_train[:examples]
    x_test, y_test = x_test[:tests], data.y_test[:tests]
    net = kfc.Sequential(
        [
            kfc.Conv2d(8, 5, stride=2),
            kfc.ReLU(),
            kfc.MaxPool2d(2),
            kfc.Flatten(),
            kfc.Dense(10),
        ],
        input_shape=(28, 28, 1),
        seed=0,
    )
    loss = kfc.SoftmaxCrossEntropy()
    trainer = kfc.Trainer(net, loss, kfc.KFC(l2_reg=0.01, weight_decay=0), seed=0)
    trainer.fit(x, y, batch_size=min(100, examples), epochs=epochs, progress=False)

    posterior = kfc.laplace.KroneckerPosterior(net, loss).fit(x)
    before = posterior.log_marginal_likelihood(x, y)
    prior = posterior.tune_prior()
    after = posterior.log_marginal_likelihood(x, y)
    print(f"prior precision 1: log evidence {before:.1f}; tuned to {prior:.3g}: {after:.1f}")

    noise = np.random.default_rng(0).standard_normal(x_test.shape)
    plain, plain_noise = (probabilities(net.predict(images)) for images in (x_test, noise))
    results = {"network alone": figures(plain, plain_noise, y_test)}
    for method in ("linearised", "monte_carlo"):
        found = [posterior.predict(i, method=method, samples=samples) for i in (x_test, noise)]
        results[method] = figures(*found, y_test)
    rows = [[name, *values.values()] for name, values in results.items()]
    print(tabulate(rows, ["", *results["linearised"]], floatfmt=".3f"))

    mean, std = posterior.predict(x_test[:5], samples=samples, return_std=True)
    for image, (m, s) in enumerate(zip(mean, std, strict=True)):
        best = int(m.argmax())
        print(f"test image {image}: {data.classes[best]}, {m[best]:.2f} +- {s[best]:.2f}")
    return results


def probabilities(outputs: np.ndarray) -> np.ndarray:
    exponentials = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def figures(test: np.ndarray, noise: np.ndarray, y: np.ndarray) -> dict[str, float]:
    right = test[np.arange(len(y)), y]
    return {
        "test error": float(np.mean(test.argmax(axis=1) != y)),
        "test loss (nats)": float(-np.log(np.maximum(right, 1e-30)).mean()),
        "confidence on test": float(test.max(axis=1).mean()),
        "confidence on noise": float(noise.max(axis=1).mean()),
    }


if __name__ == "__main__":
    main()
