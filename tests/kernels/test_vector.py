"""The kernels with the vectors of older processors than this one."""

import os
import subprocess
import sys

import numpy as np
import pytest

from kfc_numba.kernels.cpu import conv, dense, moment, pool, vector, winograd

# A processor, its features, and the bytes of its vectors.
PROCESSORS = {
    "AVX2": ("haswell", "+sse,+sse2,+sse4.2,+avx,+avx2,+fma", 32),
    "SSE": ("nehalem", "+sse,+sse2,+sse4.2", 16),
    "the least": ("generic", "", 16),
}


def narrower():
    """Those this processor can run: the first two, or where it has neither the last."""
    names = [
        name
        for name, (_, features, _) in PROCESSORS.items()
        if features and {feature[1:] for feature in features.split(",")} <= vector.FEATURES
    ]
    return names or ["the least"]


def results():
    """What the kernels compute from fixed numbers, with tails in every direction."""
    rng = np.random.default_rng(0)

    def array(*shape):
        return rng.normal(size=shape).astype(np.float32)

    x, weight, bias = array(3, 9, 7, 21), array(3, 2, 21, 37), array(37)
    y = conv.conv2d_forward(x, weight, bias, padding=1, stride=2)
    yield y
    yield conv.conv2d_grad_input(y, weight, x.shape, padding=1, stride=2)
    yield from conv.conv2d_grad_parameters(x, y, (3, 2), padding=1, stride=2)
    yield moment.patch_second_moment(x, 3, padding=1)
    yield dense.matmul(x.reshape(-1, 21), weight.reshape(-1, 37)[:21])
    yield from pool.max_pool_forward(x, 3, stride=2, padding=((1, 1), (1, 0)))
    yield pool.avg_pool_forward(x, 3, stride=2, padding=((1, 1), (1, 0)))
    winograd.pays = lambda rows, columns, images, depth, filters: winograd.possible(rows, images[1])
    y = conv.conv2d_forward(x, weight, bias, padding=1)
    yield y
    yield conv.conv2d_grad_input(y, weight, x.shape, padding=1)
    yield from conv.conv2d_grad_parameters(x, y, (3, 2), padding=1)


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    """For each processor a process that writes `results`: most of its time it compiles, alone."""
    started = {}
    for name in narrower():
        processor, features, _ = PROCESSORS[name]
        file = tmp_path_factory.mktemp("vector") / "results.npz"
        started[name] = (
            file,
            subprocess.Popen(
                [sys.executable, __file__, str(file)],
                env=os.environ | {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ),
        )
    yield started
    for _, process in started.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", narrower())
def test_narrower_vectors_give_the_same_results(name, children, monkeypatch):
    file, process = children[name]
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert int(out) == PROCESSORS[name][2]
    monkeypatch.setattr(winograd, "pays", winograd.pays)  # `results` puts another in its place
    with np.load(file) as arrays:
        for expected, key in zip(results(), arrays.files, strict=True):
            scale = np.abs(expected.astype(float)).max()
            np.testing.assert_allclose(arrays[key], expected, rtol=0, atol=1e-5 * scale)


if __name__ == "__main__":
    np.savez(sys.argv[1], *results())
    print(vector.VECTOR_BYTES)
