"""The grid of a collapsed normal cell on real pictures: what is trained, measured and
decided."""
import os
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import t as student

from genotypes import Edge, Genotype
from study import claims, pictures, reproduce
from study.claims import Result
from study.grids import THREE
from tests.common import assert_picture, call, forked_runs, refused


def cell(*names):
    places = [(node, source) for node in (2, 3, 4, 5) for source in (0, 1)]
    return [Edge(op, *place) for op, place in zip(names, places)]


def record_of(skips, edges=8):
    names = ["skip_connect"] * skips + ["sep_conv_3x3"] * (edges - skips)
    return SimpleNamespace(genotype=Genotype(cell(*names), cell("sep_conv_3x3")))


SEED = {"softmax": record_of(6), "l01": record_of(1, 5)}
MACS = {(6, None): 1.0, (1, None): 2.0}  # of softmax's and of Fair DARTS's


def size(genotype, flags):
    """MACs grow with the square of the width; at 8 channels they are those above."""
    width = int(flags[-1]) if flags else 8
    return 0.1, MACS[pictures.skips_of(genotype), None] * (width / 8) ** 2


def test_what_is_trained():
    nets = {arm: pictures.ARMS[arm].networks(SEED, 101, size) for arm in pictures.ARMS}
    shared = {arm for arm in nets if nets[arm][0][0].reduce == pictures.REDUCE}
    assert shared == set(nets) - {"softmax_own", "l01_own"}
    assert not any("conv" in edge.op for edge in pictures.REDUCE) and len(pictures.REDUCE) == 8
    skips = {arm: [pictures.skips_of(genotype) for genotype, _ in found]
             for arm, found in nets.items()}
    assert skips["two"] == [2, 2] and skips["same"] == [6, 6] and skips["skips"] == [8]
    assert (skips["softmax"], skips["l01"], skips["wide"]) == ([6], [1], [6])
    assert len(nets["chance"]) == 1 and nets["two"][0] != nets["two"][1]
    for arm in ("two", "same", "chance"):
        assert all(len(genotype.normal) == 8 and {edge.op for edge in genotype.normal} <= set(THREE)
                   for genotype, _ in nets[arm])
    assert [flags for _, flags in nets["wide"]] == [["--init_channels", "11"]]  # 8 * sqrt(2)
    assert nets["softmax_own"] == [(SEED["softmax"].genotype, [])]
    drawn = [str(genotype) for arm in ("two", "same", "chance")
             for genotype, _ in pictures.ARMS[arm].networks({"softmax": record_of(2)}, 101, size)]
    assert len(set(drawn)) == 5  # arms of as many skips have others
    collapsed = pictures.ARMS["same"].networks({"softmax": record_of(8)}, 106, size)
    assert [pictures.skips_of(genotype) for genotype, _ in collapsed] == [8, 8]
    nothing = {**SEED, "l01": SimpleNamespace(genotype=None)}
    assert [pictures.ARMS[arm].networks(nothing, 101, size) for arm in (
        "l01", "wide", "l01_own")] == [[], [], []]


def results_of(accuracies, skips):
    """{arm: Results}; accuracies, skips: {arm: [of each seed]}"""
    def result(value, count):
        names = ["skip_connect"] * count + ["sep_conv_3x3"] * (8 - count)
        return Result(None, [0.0, value], size=(0.1, 1.8 - 0.1 * count),
                      genotypes=[Genotype(cell(*names), pictures.REDUCE)])

    return {arm: [*map(result, accuracies[arm], skips[arm])] for arm in accuracies}


def made_results(seeds=6, skip=-0.5, fair=1.0, noise=0.2):
    dice = np.random.default_rng(0)
    skips = {arm: dice.integers(*span, seeds).tolist() for arm, span in (
        ("softmax", (5, 8)), ("l01", (0, 4)), ("two", (2, 3)), ("same", (5, 8)), ("chance", (0, 6)),
        ("skips", (8, 9)))}
    level = dice.normal(50, 2, seeds)
    accuracies = {arm: [level[seed] + skip * count + fair * (arm == "l01") + noise * dice.normal()
                        for seed, count in enumerate(found)] for arm, found in skips.items()}
    return results_of(accuracies, skips)


def test_regression_against_the_normal_equations():
    results = made_results()
    rows, y = [], []
    for arm in pictures.SAME_REDUCTION:
        for seed, result in enumerate(results[arm]):
            rows.append([pictures.skips(result), arm == "l01", *(seed == n for n in range(6))])
            y.append(result.trained[-1])
    x, y = np.array(rows, float), np.array(y)
    inverse = np.linalg.inv(x.T @ x)
    found = inverse @ x.T @ y
    error = y - x @ found
    half = student.ppf(0.975, len(y) - 8) * np.sqrt(
        np.diag(inverse) * (error @ error) / (len(y) - 8))
    assert np.allclose(pictures.regression(results), list(zip(found, half))[:2])
    (skip, skip_half), (fair, fair_half) = pictures.regression(results)
    # here a skip is 0.1 million less
    assert np.allclose(pictures.regression(results, claims.macs), [
        (-10 * skip, 10 * skip_half), (fair, fair_half)])
    assert abs(skip + 0.5) < skip_half < 0.2 and abs(fair - 1) < fair_half < 1
    assert {count: len(found) for count, found in pictures.by_skips(results).items()} == Counter(
        pictures.skips(result) for found in results.values() for result in found)
    assert np.mean(pictures.by_skips(results)[8]) == np.mean(
        [result.trained[-1] for result in results["skips"]])
    none = {**results, "l01": [Result(None)] * 6}
    assert pictures.regression(none) is None
    assert "too few networks" in " ".join(pictures.further(none))
    assert "nan" not in " ".join(pictures.further(made_results(1)))


def test_power_by_simulation():
    """So large a difference is found in about 80 of 100 experiments."""
    dice = np.random.default_rng(1)
    accuracies = {arm: dice.normal(50, 1.5, 12).tolist() for arm in ("softmax", "l01", "chance")}
    results = results_of(accuracies, {arm: [2] * 12 for arm in accuracies})
    values = np.array([found[:4] for found in accuracies.values()])
    spread, least = pictures.power(results)
    assert spread == pytest.approx(np.sqrt(values.var(1, ddof=1).mean()))
    differences = least + dice.normal(0, spread * np.sqrt(2), (4000, 12))
    t = differences.mean(1) / (differences.std(1, ddof=1) / np.sqrt(12))
    assert 0.76 < (t > student.ppf(0.975, 11)).mean() < 0.84


def test_the_conditions_of_validity():
    results = made_results(skip=-1.0)
    assert [met for _, met in pictures.valid(results)] == [True, True]
    same = made_results(skip=0.0, noise=2.0)
    assert [met for _, met in pictures.valid(same)] == [False, True]
    few = {**results, "softmax": results["two"]}
    assert [met for _, met in pictures.valid(few)] == [True, False]
    four = results_of({"softmax": [50.0] * 6}, {"softmax": [4] * 6})  # above chance, and too few
    assert [met for _, met in pictures.valid({**results, **four})] == [True, False]


def test_the_primary_claim_is_tested_alone():
    results = {**made_results(9), "wide": made_results(9)["softmax"],
               "l01_own": made_results(9)["l01"], "softmax_own": made_results(9)["softmax"]}
    findings = claims.find(pictures.CLAIMS, results)
    assert findings[0].corrected == findings[0].p == pytest.approx(2 / 2**9)
    assert findings[0].verdict == "held"
    assert max(finding.corrected / finding.p for finding in findings[1:]) == pytest.approx(4)


def test_a_folder_is_split_anew_by_links(request, tmp_path, monkeypatch, capsys):
    folder = request.getfixturevalue("pictures")
    prefix = str(tmp_path / "split-")
    [target] = {pictures.split_again(str(folder), prefix) for _ in range(2)}
    found = {(part, label): [os.path.realpath(path) for path in
                             sorted((tmp_path / target / part / label).iterdir())]
             for part in ("train", "test") for label in ("blue", "red")}
    assert {key: len(paths) for key, paths in found.items()} == {
        ("train", "blue"): 15, ("train", "red"): 15, ("test", "blue"): 7, ("test", "red"): 7}
    for label in ("blue", "red"):
        every = {str(path) for part in ("train", "test")
                 for path in (folder / part / label).iterdir()}
        assert set(found["train", label] + found["test", label]) == every
    more = tmp_path / "more"
    shutil.copytree(folder, more)
    other = pictures.split_again(str(more), prefix)
    assert other != target  # nothing of the other folder is in it
    shutil.copy(*sorted((more / "train" / "red").iterdir())[:1], more / "train" / "red" / "z.png")
    assert pictures.split_again(str(more), prefix) not in (target, other)
    shutil.rmtree(more / "train" / "red")
    shutil.rmtree(more / "test" / "red")
    assert "fewer than 2 classes" in refused(
        capsys, monkeypatch, reproduce, "--grid", "pictures", "--data", more)
    (more / "test" / "red").mkdir()
    assert "fewer than 3 pictures in class 'red'" in refused(
        capsys, monkeypatch, reproduce, "--grid", "pictures", "--data", more)
    assert "there is no folder" in refused(
        capsys, monkeypatch, reproduce, "--grid", "pictures", "--data", tmp_path)
    assert "needs --data DIR" in refused(capsys, monkeypatch, reproduce, "--grid", "pictures")
    assert "--scale paper is not of --grid pictures" in refused(
        capsys, monkeypatch, reproduce, "--grid", "pictures", "--scale", "paper")


@pytest.mark.slow
def test_the_grid_runs_to_its_page(request, tmp_path, monkeypatch):
    folder = request.getfixturevalue("pictures")
    small = pictures.GRID.scales["laptop"]
    monkeypatch.setitem(pictures.GRID.scales, "laptop", small._replace(
        search=[*small.search, "--init_channels", "2", "--layers", "3", "--batch_size", "300",
                "--epochs", "1", "--threshold", "0"],
        train=[*small.train, "--epochs", "1", "--init_channels", "4", "--layers", "3",
               "--batch_size", "15"]))
    forked_runs(tmp_path, monkeypatch)
    command = ["--grid", "pictures", "--data", folder, "--runs", tmp_path / "runs", "--output",
               tmp_path, "--jobs", 2, "--seeds", 2]
    assert call(reproduce, monkeypatch, *command) == 0
    page = (tmp_path / "pictures.md").read_text()
    assert page.count("| invalid |") == len(pictures.CLAIMS) and "**Not met**" in page
    assert "Beside the claims" in page and "test: 30 and 14" in page and "seeds 101 to 102" in page
    for name in ("accuracy", "skips"):
        assert_picture(tmp_path / "figures" / f"pictures_{name}.png")
