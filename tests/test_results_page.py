"""docs/results.md beside the results that it is made of, and the list of experiments."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_results import ABOUT, keep, made

from benchmarks.experiments import __main__ as program
from benchmarks.experiments import page, race, registry
from benchmarks.experiments.claims import ABSTRACT, HOLDS, NOT, PART, Claim, verdict
from benchmarks.experiments.results import RESULTS, ROOT

DOCS = ROOT / "docs"


# The page that is kept.


def test_the_page_is_that_of_the_results():
    assert (DOCS / page.NAME).read_text() == page.text(RESULTS), (
        "run python -m benchmarks.experiments page"
    )


def test_its_figures_are_there():
    text = (DOCS / page.NAME).read_text()
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)}
    assert all((DOCS / link).is_file() for link in links if "://" not in link)
    shown = {Path(link) for link in links if link.startswith("figures/")}
    assert shown == {p.with_suffix(end) for p in shown for end in (".png", ".svg")}


def results_of_optimisation(folder, factor=1.0):
    runs = [made("KFC", 5e-3 * factor), made("SGD", 1e-3)]
    keep(folder / "optimisation", runs)
    return folder


def numbers(text):
    return re.findall(r"\d+\.\d+", text)


def test_other_results_give_another_page(tmp_path):
    one = page.text(results_of_optimisation(tmp_path / "one"))
    other = page.text(results_of_optimisation(tmp_path / "other", 1.02))
    assert one == page.text(tmp_path / "one")
    assert len(set(numbers(one)) - set(numbers(other))) > 10
    assert "KFC() takes 0.20 (`quick`, to a loss of 0.8) of SGD's seconds" in one


def test_a_number_that_is_changed_in_a_file_changes_the_page(tmp_path):
    before = page.text(results_of_optimisation(tmp_path))
    (path,) = (tmp_path / "optimisation").glob("*sgd*")
    content = json.loads(path.read_text())
    content["rows"]["validation_error"][-1] += 0.01
    path.write_text(json.dumps(content))
    assert page.text(tmp_path) != before


# The claims.


def test_a_verdict_is_one_of_three():
    found = [verdict(value, holds=0.1, part=0.3) for value in (0.1, 0.11, 0.3, 0.31)]
    assert found == [HOLDS, PART, PART, NOT]
    assert verdict(float("nan"), holds=0.1, part=0.3) == NOT
    with pytest.raises(ValueError, match="verdict is 'yes'; required: one of 'holds', "):
        Claim("a", "b", "yes")


def test_claims_of_the_abstract_come_first_and_none_is_left_out():
    found = [
        Claim("another", "1 in 2", PART, source="Others (2018)"),
        Claim(ABSTRACT["invariance"], "the same to 1e-12", HOLDS, "curves"),
        Claim(ABSTRACT["seconds"], "0.5", NOT),
        Claim(ABSTRACT["invariance"], "with a mask not", NOT),
    ]
    _, first, _, second = page.tables(found)
    lines = [re.sub(" +", " ", line) for line in first.splitlines()[2:]]
    assert lines == [
        f"| {ABSTRACT['seconds']} | 0.5 | {NOT} |",
        f"| {ABSTRACT['iterations']} | | not run |",
        f"| {ABSTRACT['cost']} | | not run |",
        f"| {ABSTRACT['curvature']} | | not run |",
        f"| {ABSTRACT['invariance']} | the same to 1e-12 ([figure](figures/curves.png)) | holds |",
        f"| {ABSTRACT['invariance']} | with a mask not | {NOT} |",
        f"| {ABSTRACT['batches']} | | not run |",
    ]
    assert "| another | Others (2018) | 1 in 2 | holds in part |" in second
    assert len(page.tables(found[1:])) == 2


def test_experiments_without_results_are_named(tmp_path):
    text = page.text(tmp_path)
    assert len(re.findall(r"\| not run +\|", text)) == len(ABSTRACT)
    for name in registry.SECTIONS:
        there = f"`python -m benchmarks.experiments {name}`:" in text
        # One that says itself why it was not run has a section.
        assert there == (registry.load(name).section(tmp_path) is None), name


def test_the_page_is_written_with_its_figures(tmp_path):
    results, output = results_of_optimisation(tmp_path / "results"), tmp_path / "docs"
    words = ["page", "--results", str(results), "--output", str(output)]
    assert program.main(words) == 0
    assert (output / "results.md").read_text() == page.text(results)
    names = {path.name for path in (output / "figures").iterdir()}
    assert {"optimisation-cifar-quick.png", "optimisation-cifar-quick.svg"} <= names


# The list.


def test_every_experiment_says_what_it_shows():
    for name in registry.names():
        module = registry.load(name)
        assert module.SHOWS.endswith("."), name
        assert module.TAKES.startswith("about "), name
        assert callable(module.main)
        if name in registry.SECTIONS:
            assert callable(module.section)
            assert callable(module.draw)
        else:
            assert callable(module.is_own)


def test_the_list_says_when_each_last_ran(tmp_path, capsys, monkeypatch):
    early, late = "2026-02-01T10:00:00", "2026-03-01T11:12:13"
    keep(
        tmp_path / "optimisation",
        [made("KFC", 1e-3, finished=late), made("SGD", 1e-3, finished=early)],
    )
    keep(tmp_path, [made("SGD", 1e-3, finished=early)])  # of no level: one of `defaults`
    assert registry.last_run("optimisation", tmp_path) == "2026-03-01 11:12, commit c0ffee"
    assert registry.last_run("defaults", tmp_path) == "2026-02-01 10:00, commit c0ffee"
    assert registry.last_run("race", tmp_path) is None
    listing = program.listing(tmp_path)
    entry = listing[listing.index("optimisation\n") :].splitlines()
    assert entry[1].strip() == registry.load("optimisation").SHOWS
    assert entry[2].endswith("; last run 2026-03-01 11:12, commit c0ffee")
    assert "not run here" in listing[listing.index("\nrace\n") :]
    assert ABOUT["finished"] not in listing
    for words in ([], ["--help"]):
        assert program.main(words) == 0
        assert capsys.readouterr().out == program.listing() + "\n"


def test_a_name_that_there_is_not(capsys):
    assert program.main(["optimization"]) == 2
    out, err = capsys.readouterr()
    assert not out
    names = ", ".join(registry.names())
    assert err == f"no experiment is named 'optimization'; there are: {names}, page, all\n"


def test_options_are_passed_on(monkeypatch):
    seen = []
    monkeypatch.setattr(race, "main", lambda words: seen.append(words) or 3)
    assert program.main(["race", "--fast", "--seeds", "1"]) == 3
    assert seen == [["--fast", "--seeds", "1"]]


def test_all_of_them_run_and_those_that_fail_are_named(monkeypatch, capsys):
    seen = []

    def load(name):
        def main(words):
            seen.append((name, *words))
            return int(name == "b")

        return SimpleNamespace(main=main)

    monkeypatch.setattr(registry, "names", lambda: ("a", "b", "c"))
    monkeypatch.setattr(registry, "load", load)
    assert program.main(["all", "--fast"]) == 1
    assert seen == [("a", "--fast"), ("b", "--fast"), ("c", "--fast")]
    assert capsys.readouterr().err == "failed: b\n"


def test_an_experiment_that_is_not_there_is_not_listed(monkeypatch):
    monkeypatch.setattr(registry, "SECTIONS", ("optimisation", "of_another_day"))
    assert registry.names() == ("optimisation", *registry.PAGES)
