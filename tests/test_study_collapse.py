"""What collapse costs: the measures of the grid in the space of NAS-Bench-201, and its
page."""
import itertools

import numpy as np
import pytest

import train_search
from spaces import nasbench201
from study import claims, collapse, pages, records, reproduce
from study.claims import Result
from tests.common import assert_picture, call, forked_runs, refused

FOUR = ["avg_pool_3x3", "skip_connect", "nor_conv_1x1", "nor_conv_3x3"]
COMMON = {**train_search.SCRIPT.parser().defaults(), "space": "nasbench201",
          "primitives": ",".join(FOUR)}


def record_of(*epochs, threshold=0.0, gates=None, **settings):
    """A Record whose epochs' best operations are named, six each; their gates are
    0.9."""
    s = {**COMMON, "threshold": threshold, "epochs": len(epochs), **settings}
    if gates is None:
        gates = np.full((len(epochs), 6, 4), 0.1, np.float32)
        for epoch, names in enumerate(epochs):
            for row, name in enumerate(names):
                gates[epoch, row, FOUR.index(name)] = 0.9
    rows = [{"epoch": n, "derived_skips": names.count("skip_connect")}
            for n, names in enumerate(epochs, 1)]
    found = nasbench201.discretize_edges(gates[-1], threshold, FOUR)
    return records.Record(s, nasbench201, FOUR, {"normal": gates}, rows, len(epochs),
                          found if found.cell else None, "a")


CONVOLUTIONS, SKIPS = ["nor_conv_3x3"] * 6, ["skip_connect"] * 6
THREE_SKIPS = ["nor_conv_3x3", "nor_conv_3x3", "nor_conv_3x3", *["skip_connect"] * 3]


def test_what_the_grid_measures():
    result = Result(record_of(CONVOLUTIONS, THREE_SKIPS, SKIPS))
    assert collapse.accuracy(result) == collapse.by_argmax(result) == 60.78
    assert (collapse.rank(result), collapse.skips(result)) == (15_145, 6)
    assert collapse.empty_edges(result) == 0
    assert collapse.decline(result) == pytest.approx(93.24 - 60.78)
    result.record.settings.pop("init_channels")  # an edited config.json; it changes nothing here
    curve = records.known_curve(result.record, "genotype_skips")
    assert curve == {1: 0, 2: 3, 3: 6}
    names = [*nasbench201.OPS]
    cells = [nasbench201.accuracies()[tuple(names.index(op) for op in cell)]
             for cell in itertools.product(FOUR, repeat=6)]
    assert len(cells) == 4096
    assert collapse.over_random(result) == pytest.approx(60.78 - sum(cells) / 4096)
    assert collapse.below_random(result) == -collapse.over_random(result)
    assert collapse.share_better(result) == pytest.approx(
        100 * sum(cell > 60.78 for cell in cells) / 4096)
    assert round(sum(cells) / 4096, 2) == 89.21  # as the page says


def test_searches_that_end_below_random_ones():
    below, above = (Result(record_of(cells)) for cells in (SKIPS, CONVOLUTIONS))
    assert (collapse.ends_below(below), collapse.ends_below(above)) == (1, 0)  # 60.78, 93.24 %
    nothing = Result(record_of(SKIPS, gates=np.full((1, 6, 4), 0.5, np.float32), threshold=0.85))
    assert collapse.ends_below(nothing) is None
    good, bad = [above] * 15, [below] * 10 + [above] * 5
    shares, means = claims.find(collapse.AGAIN_CLAIMS, {"softmax": bad, "l01": good})
    assert shares.mean == pytest.approx(10 / 15) and shares.verdict == "held"
    assert shares.p == pytest.approx(2 / 2**10)  # an exact sign test of those that differ
    assert means.mean == pytest.approx((93.24 - 60.78) * 10 / 15) and means.verdict == "held"
    [columns] = collapse.AGAIN.tables.values()
    *_, first, second = pages.table(collapse.AGAIN_ARMS, columns, {"softmax": bad, "l01": good})
    assert first.startswith("| softmax | 0.67 ± 0.27 (15) | 71.60 ± ")
    assert "| 0.00 ± 0.00 (15) | 93.24 ± 0.00 (15) | " in second
    [(_, draw)] = collapse.AGAIN.figures({"softmax": bad, "l01": good}).values()
    assert len(draw().axes[0].get_yticks()) == 2


def test_a_threshold_leaves_edges_empty():
    gates = np.full((1, 6, 4), 0.2, np.float32)
    gates[0, :, 3] = 0.84, 0.84, 0.84, 0.86, 0.84, 0.84  # 0 to 3 alone
    result = Result(record_of(CONVOLUTIONS, gates=gates, threshold=0.85))
    assert collapse.empty_edges(result) == 5 and collapse.by_argmax(result) == 93.24
    direct = nasbench201.from_text("|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|")
    assert collapse.accuracy(result) == nasbench201.known(direct)["benchmark_accuracy"]
    gates[0, 3, 3] = 0.84
    nothing = Result(record_of(CONVOLUTIONS, gates=gates, threshold=0.85))
    assert [measure(nothing) for measure in (
        collapse.accuracy, collapse.rank, collapse.skips, collapse.empty_edges,
        collapse.over_random, collapse.below_random, collapse.share_better)] == [None] * 7


def test_searches_that_are_read_again():
    """DARTS+ ends softmax's with the epoch before the third skip; P-DARTS's limit takes
    the weakest skips away."""
    grid = collapse.GRID
    record = record_of(CONVOLUTIONS, THREE_SKIPS, SKIPS, gate="softmax")
    limit = records.read_again(record, reproduce.mended(grid, "laptop", "limit"))
    assert limit.epoch == 1 and collapse.accuracy(Result(limit)) == 93.24
    assert collapse.decline(Result(limit)) is None
    record.gates["normal"][-1, :, 3] = 0.2  # next to the skips
    record.gates["normal"][-1, [0, 5], 1] = 0.95
    kept = records.read_again(record, reproduce.mended(grid, "laptop", "kept"))
    assert [edge.op for edge in kept.genotype.cell] == [
        "skip_connect", *["nor_conv_3x3"] * 4, "skip_connect"]


def test_the_runs_of_the_grid(monkeypatch, capsys):
    grid = collapse.GRID
    tasks = reproduce.searches(grid, "laptop", "runs", 9)
    assert len(tasks) == 9 * 9 + 3 * 3 and {seed for _, seed in tasks} == {*range(71, 80)}
    assert {arm for arm, seed in tasks if seed > 73} == {
        arm for arm in grid.arms if grid.arms[arm].of is None and grid.arms[arm].seeds is None}
    parser = train_search.SCRIPT.parser()
    flags = parser.parse_args(tasks["softmax", 71].flags)
    assert (flags["dataset"], flags["train_fraction"]) == ("cifar10", 0.05)
    folder = collapse.on_pictures(grid, "here", "runs").scales["laptop"]
    given = parser.parse_args(folder.search)
    assert (given["dataset"], given["data"], given["image_size"]) == ("folder", "here", 16)
    assert "train_fraction" not in given
    assert given.keys() - {"data", "image_size"} == parser.parse_args(
        grid.scales["laptop"].search).keys() - {"train_fraction", "valid_fraction"}
    again = reproduce.searches(collapse.AGAIN, "laptop", "runs", 15)
    assert len(again) == 30 and {seed for _, seed in again} == {*range(81, 96)}
    settings = parser.parse_args(again["softmax", 81].flags)  # but for the curvature, the same
    assert {**flags, "seed": 81} == {**settings, "curvature_every": 2}
    assert again["l01", 81].flags[:-1] == tasks["l01", 71].flags[:-1]
    assert "--data is not of --grid claims" in refused(
        capsys, monkeypatch, reproduce, "--data", "here")
    assert "--data is not of --grid nasbench201 --scale paper" in refused(
        capsys, monkeypatch, reproduce, "--grid", "nasbench201", "--scale", "paper", "--data", "x")


@pytest.mark.slow
def test_the_grid_runs_to_its_page(pictures, tmp_path, monkeypatch, capsys):
    """One seed on small pictures; softmax's curvature is measured, and all figures are
    drawn."""
    grid, small = collapse.GRID, collapse.GRID.scales["laptop"]
    search = [*small.search[:-len(collapse.SLICE)], "--init_channels", "2", "--batch_size", "8",
              "--epochs", "24", *collapse.SLICE]
    monkeypatch.setitem(grid.scales, "laptop", small._replace(search=search))
    forked_runs(tmp_path, monkeypatch)
    command = ["--grid", "nasbench201", "--data", pictures, "--runs", tmp_path / "runs",
               "--output", tmp_path, "--jobs", 2, "--seeds", 1]
    assert call(reproduce, monkeypatch, *command) == 0
    assert "12 of 12 runs to do" in capsys.readouterr().out
    page = (tmp_path / "nasbench201.md").read_text()
    assert "seeds 71 to 71" in page and f"--data {pictures}" in page and "89.21 %" in page
    assert page.count("| undecided |") == len(grid.claims)  # of one seed
    for name in ("derived", "sigmoid", "accuracy", "heatmap"):
        assert f"figures/nasbench201_{name}.png" in page
        assert_picture(tmp_path / "figures" / f"nasbench201_{name}.png")
    assert call(reproduce, monkeypatch, *command) == 0
    assert "0 of 12 runs to do" in capsys.readouterr().out
    assert (tmp_path / "nasbench201.md").read_text() == page
