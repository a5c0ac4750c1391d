"""What the command line prints: helps that explain, and tables that fit."""

import re

import pytest

from kfc_numba.cli import main
from kfc_numba.commands import options
from kfc_numba.commands.tables import fitted
from kfc_numba.optim import KFC, SGD, Adam


def test_help_says_what_each_number_does_and_its_usual_range(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")
    for command in ("train", "compare", "curvature", "info"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 100
        entries = re.split(r"\n  (?=-)", re.sub(r"\n {8,}", " ", text))
        numbers = [entry for entry in entries if re.match(r"--\S+ N ", entry)]
        assert len(numbers) == {"train": 6, "compare": 6, "curvature": 5, "info": 1}[command]
        for entry in numbers:
            if not entry.startswith(("--max-steps", "--seed")):  # nobody has a usual one
                assert "usually" in entry, entry
    kinds = {"adam": Adam, "kfc": KFC, "sgd": SGD}
    for optimizer, kind in kinds.items():
        for name, value in options.parameters(optimizer).items():
            text = options.explanation(name)
            assert len(text) > 20
            if name in kind.intervals or type(value) is int:
                assert re.search(r"usually [\de.-]+ to [\de.-]+\b", text), name


def test_explanations_have_the_values_that_are_not_given():
    assert options.explanation("averaging").endswith("usually 0.05 to 0.2 (0.1)")
    assert options.explanation("kl_bound").endswith("(kfc: none)")
    assert options.explanation("momentum").endswith("(kfc: 0.8, sgd: 0.9)")
    text = options.explanation("learning_rate")
    assert re.search(r"^adam: .* \(0\.001\); kfc: .* \(0\.1\); sgd: .* \(0\.03\)$", text)
    assert not any("`" in options.explanation(name) for name in options.parameters("kfc"))


def test_an_option_of_no_subject_is_listed_too(monkeypatch, capsys):
    class Other(SGD):
        """Other.

        Parameters
        ----------
        fudge : float
            A fudge factor. And more.
        """

        def __init__(self, *, fudge=1.5):
            super().__init__()

    monkeypatch.setitem(options.OPTIMIZERS, "other", Other)
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert re.search(
        r"optimizer: other:\n  --fudge VALUE +a fudge factor \(other: 1\.5\)",
        capsys.readouterr().out,
    )


def test_tables_fit_a_terminal():
    rows = [
        [f"run {n} {'with a long name ' * n}", *(f"{c}{n}" * 6 for c in "abcdefgh")] for n in (1, 5)
    ]
    headers = ["run", *(f"head {c}" for c in "ABCDEFGH")]
    text = fitted(rows, headers)
    parts = text.split("\n\n")
    assert len(parts) == 2
    assert max(map(len, text.splitlines())) <= 100
    for part in parts:
        assert part.splitlines()[0].startswith("run  ")
        assert "run 1 with a long name" in part
    heads = " ".join(part.splitlines()[0] for part in parts).split()
    assert [head for head in heads if len(head) == 1] == list("ABCDEFGH")
    for row in rows:
        for cell in row[1:]:
            assert text.count(cell) == 1
    narrow = fitted([["a", "1"]], ["run", "x"])
    assert [line.split() for line in narrow.splitlines()] == [
        ["run", "x"],
        ["-----", "---"],
        ["a", "1"],
    ]
