"""The programs in examples/ with small settings, and the code of docs/curvature.md."""

import importlib.util
import re
import shlex
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from kfc_numba import cli
from kfc_numba.curvature import conventions

matplotlib.use("Agg")
ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "curvature.md").read_text(encoding="utf-8")


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_eigenvalues_of_the_fisher_matrix(capsys):
    found = example("fisher_eigenvalues").main(steps=2, examples=20, count=3)
    for values in found.values():
        assert (np.diff(values) < 0).all()
        assert values[-1] > 0
    # Of the matrices with these eigenvectors EKFAC is the diagonal of F in them: no eigenvalue of
    # its can be above the largest of F.
    assert found["EKFAC"][0] <= found["exact"][0] * (1 + 1e-5)
    assert f"{found['exact'][0]:.4g}" in capsys.readouterr().out


def test_error_bars(capsys):
    found = example("error_bars").main(examples=60, epochs=8, tests=30, samples=20)
    assert list(found) == ["network alone", "linearised", "monte_carlo"]
    # The posterior widens predictions: less confidence where the network has seen nothing.
    assert (
        found["linearised"]["confidence on noise"] < found["network alone"]["confidence on noise"]
    )
    assert "log evidence" in capsys.readouterr().out


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    code = blocks("python")
    assert len(code) == 6
    for block in code:
        exec(compile(block, "docs/curvature.md", "exec"), names)
    assert (tmp_path / "curvature.png").stat().st_size > 1000
    assert f"{names['report'].rows[0]['relative_error']['expand']:.3g}" in capsys.readouterr().out


def test_commands_of_the_page_are_understood(monkeypatch):
    seen = []
    monkeypatch.setattr(cli.curvature, "command", seen.append)
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert lines
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "kfc-numba"
        assert cli.main(words[1:]) == 0
    assert len(seen) == len(lines)


def test_the_table_of_conventions_is_that_of_the_module():
    """Scales and damping in each row of the page, by the functions that convert."""
    m, t = 7, 5
    layer = {"examples": m, "locations": t}
    expected = {
        "kfac-jax": (conventions.kfac_jax(locations=t), 1),
        "curvlinops, mean": (conventions.curvlinops(**layer), 1),
        "curvlinops, sum": (conventions.curvlinops(**layer, reduction="sum"), m),
        "kfac-pytorch, convolution": (conventions.kfac_pytorch(**layer), 1 / (m**2 * t**5)),
        "kfac-pytorch, dense": (
            conventions.kfac_pytorch(**layer, convolution=False),
            1 / (m**2 * t),
        ),
    }
    for line in PAGE.splitlines():
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if name not in expected or len(cells) != 4:
            continue
        convention, damping = expected.pop(name)
        assert convention.to_damping(1.0) == pytest.approx(damping)
        pair = convention.omega_scale, convention.gamma_scale
        for text, scale in zip(cells, pair, strict=False):
            code = text.replace("M T", "(M * T)").replace("((", "(").replace("))", ")")
            assert eval(code.replace("^", "**"), {"M": m, "T": t}) == pytest.approx(scale), line
    assert not expected
