"""Largest eigenvalues of the exact Fisher matrix of a network, by SciPy's eigsh.

``python examples/fisher_eigenvalues.py``: trains a small network on the bundled images for a few
steps, then asks for the largest eigenvalues of its exact Fisher matrix, of KFC's approximation and
of EKFAC's. The exact matrix is never laid out: eigsh needs products with it alone.
"""

import numpy as np
from scipy.sparse.linalg import eigsh
from tabulate import tabulate

import kfc_numba as kfc
from kfc_numba.curvature.operators import block_curvature, exact_fisher


def main(*, steps: int = 30, examples: int = 200, count: int = 6) -> dict[str, np.ndarray]:
    data = kfc.datasets.load("fashion-mnist-10k")
    x, _ = data.normalized()
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
    trainer = kfc.Trainer(net, loss, kfc.KFC(), seed=0)
    trainer.fit(x, data.y_train, batch_size=256, max_steps=steps, progress=False)

    x = x[:examples]
    start = np.random.default_rng(0).standard_normal(exact_fisher(net, x, loss).shape[0])
    exact = eigsh(
        exact_fisher(net, x, loss), count, v0=start.astype(net.dtype), return_eigenvectors=False
    )
    found = {
        "exact": np.sort(exact)[::-1],
        "KFC": block_curvature(net, x, loss).eigenvalues()[: -count - 1 : -1],
        "EKFAC": block_curvature(net, x, loss, structure="ekfac").eigenvalues()[: -count - 1 : -1],
    }
    print(f"largest eigenvalues of the Fisher matrix ({len(start)} parameters, {examples} images)")
    print(tabulate(found, headers="keys", floatfmt=".4g"))
    return found


if __name__ == "__main__":
    main()
