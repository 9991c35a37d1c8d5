"""The figures, what claims measure and judge, grids of runs and their pages."""
import itertools
import json
import math
import os
import random
import re
import secrets
import signal
from argparse import Namespace
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

import fair_darts
import genotypes
import train_search
from engine import flags, loop, recipes, texts
from genotypes import PRIMITIVES, Edge, Genotype
from spaces import s1
from study import (claims, compare, cures, draw_cells, figures, grids, interval, many_runs,
                   random_genotypes, records, reproduce, resting, visualize)
from tests.common import (CLAIMS, FIGURES, Malicious, SMALL_EVAL, SMALL_SEARCH, assert_picture,
                          call, ended, fork, recorded_run, refused, table)


@pytest.mark.parametrize("primitives, nodes, epochs", [
    (PRIMITIVES, 4, 50), (("skip_connect", "sep_conv_3x3"), 3, 1), (("dil_conv_5x5",), 1, 2),
    (PRIMITIVES, 3, 1)])
def test_figures_of_a_run(primitives, nodes, epochs, tmp_path, monkeypatch, capsys):
    folder = recorded_run(tmp_path / "run", primitives, nodes, epochs, threshold=0)
    assert call(visualize, monkeypatch, folder) == 0
    assert capsys.readouterr().out.split() == [
        str(folder / "figures" / f"{name}.png") for name in FIGURES]
    for name in FIGURES:
        assert_picture(folder / "figures" / f"{name}.png")


def test_figures_of_several_runs_and_of_architectures(tmp_path, monkeypatch, capsys):
    folders = [recorded_run(tmp_path / "all" / str(seed), epochs=4, seed=seed, gate=gate,
                            zero_one_loss=loss)
               for seed, gate, loss in ((0, "sigmoid", "l2"), (1, "sigmoid", "l1"),
                                        (2, "softmax", "l2"), (3, "softmax", "l2"))]
    assert call(visualize, monkeypatch, *folders) == 0
    for name in ("dominant", "heatmap", "gap"):
        assert_picture(tmp_path / "all" / "comparison" / f"{name}.png")
    found = [records.read(str(folder)) for folder in folders]
    assert [records.setting(record) for record in found] == [
        "sigmoid, w01 10, l2", "sigmoid, w01 10, l1", "softmax", "softmax"]
    assert records.names_of(found) == [records.setting(record) for record in found]
    for axes in compare.gap(found).axes:  # rounding, selection
        assert len(axes.lines) == len(axes.collections) == 3 and axes.get_ylim()[0] <= 0
    for axes in compare.dominant(found).axes:  # the mean of runs of one setting
        skip = PRIMITIVES.index("skip_connect")
        part = "normal" if "normal" in axes.get_title() else "reduce"
        counts = [records.dominant_counts(record, part)[:, skip] for record in found[2:]]
        assert np.array_equal(axes.lines[2].get_ydata(), np.mean(counts, 0))
        assert axes.get_ylim()[0] == 0
    other = [record._replace(settings={**record.settings, **more}) for record, more in zip(
        found[2:], ({"learning_rate": 0.1}, {"learning_rate": 0.2, "seed": 5}))]
    assert records.names_of(other) == ["softmax, learning_rate 0.1", "softmax, learning_rate 0.2"]
    assert records.names_of(found[2:]) == ["2", "3"]  # alike: by their folders
    for name in ("FairDARTS_a", "FairNAS_A", folders[0] / "genotype.json"):
        assert call(visualize, monkeypatch, name, "--output", tmp_path / "cells") == 0
    for name in ("FairDARTS_a_normal", "FairDARTS_a_reduce", "FairNAS_A_chain", "cell_normal",
                 "cell_reduce"):
        assert_picture(tmp_path / "cells" / f"{name}.png")
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    (folders[0] / "gates.npz").write_bytes(b"junk")
    np.savez(folders[1] / "gates.npz", normal=np.array([Malicious()], dtype=object))
    for what, message in (
            (["FairDARTS_x"], "did you mean"),
            ([tmp_path / "empty"], "not the folder of a run"),
            ([folders[0]], "cannot be read as a search"),
            ([folders[1], folders[2]], "cannot be read as a search"),
            ([], "required")):
        assert call(visualize, monkeypatch, *what) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error


def test_what_the_figures_show(tmp_path):
    gates = np.full((2, 2, 14, 7), 0.1, np.float32)
    skip, sep = PRIMITIVES.index("skip_connect"), PRIMITIVES.index("sep_conv_3x3")
    # first all skips, then all convolutions but for one, on the best edge of node 5
    gates[0, 0, :, skip] = 0.9
    gates[1, 0, :, sep] = 0.9
    gates[1, 0, -1, skip] = 0.95
    record = records.read(str(recorded_run(tmp_path / "run", gates=gates, threshold=0.85)))
    assert records.dominant_counts(record, "normal").tolist() == [
        [0, 0, 8, 0, 0, 0, 0], [0, 0, 1, 7, 0, 0, 0]]
    # the reduction cell has no edge
    assert (record.genotype is None
            and not records.kept_gates(record, "normal").any())
    histogram = records.gate_histogram(record, 10)
    assert (histogram.shape == (10, 2)
            and histogram[:, 0].sum() == pytest.approx(1) == histogram[:, 1].sum())
    assert (histogram[9, 0] == pytest.approx(14 / 196)
            and histogram[9, 1] == pytest.approx(15 / 196))
    gates[1, 1, 0, sep] = 0.9
    record = records.read(str(recorded_run(tmp_path / "other", gates=gates, threshold=0.85)))
    kept = records.kept_gates(record, "normal")
    assert (kept.sum() == 8 and kept[-1, skip] and kept[0, sep] and kept[1, sep]
            and not kept[-1, sep])
    assert records.kept_gates(record, "reduce").nonzero() == (np.array([0]), np.array([sep]))
    # rounding makes 14 + 1 gates 1, of which the best edges of each node and operations are kept
    marks = records.reasons(record, "normal")
    best = s1.kept_edges(torch.from_numpy(gates[1, 0]), 2, PRIMITIVES).flatten().bool().tolist()
    assert [marks[row, sep] for row in range(14)] == [
        "" if kept[row, sep] else "o" if row == 13 else "e" for row in range(14)]
    assert all((marks[row] == "e").any() != keep for row, keep in enumerate(best))
    low = record._replace(settings={**record.settings, "threshold": 0.99}, genotype=None)
    assert set(records.reasons(low, "normal")[:, sep]) == {"e", "t", "o"}
    # a skip of the reduction cell that leaves a node which nothing enters
    gates = np.full((1, 2, 14, 2), 0.1, np.float32)
    gates[0, :, fair_darts.edge_row(3, 2), 0] = gates[0, :, fair_darts.edge_row(4, 0), 1] = 0.9
    record = records.read(str(recorded_run(
        tmp_path / "limited", ("skip_connect", "sep_conv_3x3"), gates=gates, keep_skips=0)))
    assert set(records.reasons(record, "reduce")[:, 0]) == {"", "p"}
    assert figures.edge_names(5) == [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]


def test_cells_are_drawn_without_overlap():
    full = [Edge(op, node, source)
            for node in range(2, 6) for source in range(node) for op in PRIMITIVES[:2]]
    cells = [cell for genotype in genotypes.PUBLISHED.values() if isinstance(genotype, Genotype)
             for cell in genotype]
    for cell in cells + [full, full[:1]]:
        points, labels = draw_cells.cell_layout(cell)
        assert sorted(edge for edge, _, _ in labels) == sorted(cell)
        assert len({y for _, _, y in labels}) == len(labels)  # a lane each
        figure = draw_cells.draw_cell(cell, "Normal cell")
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
        assert len(boxes) == len(cell) + 7
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    grey = [c for c in draw_cells.draw_cell(genotypes.FairDARTS_a.normal, "").axes[0].patches
            if type(c).__name__ == "Circle" and c.get_facecolor()[0] < 0.9]
    assert len(grey) == 1  # nothing enters node 3


def test_search_draws_figures_and_survives_their_failure(tmp_path, monkeypatch, capsys):
    search = [*SMALL_SEARCH, "--threshold", 0, "--runs", tmp_path, "--figures_every", 1, "--name"]
    drawn, draw = [], visualize.draw_run
    monkeypatch.setattr(visualize, "draw_run", lambda folder: drawn.append(draw(folder)))
    assert call(train_search, monkeypatch, *search, "a", "--gap_every", 1) == 0
    assert ([len(paths) for paths in drawn] == [5, 7]
            and (tmp_path / "a" / "figures" / "cell_normal.png").exists())
    monkeypatch.setattr(visualize, "draw_run", lambda folder: 1 / 0)
    capsys.readouterr()
    assert call(train_search, monkeypatch, *search, "b") == 0
    assert ("note: no figures: ZeroDivisionError" in capsys.readouterr().err
            and len(table(tmp_path / "b")) == 2)


# ---------------------------------------------------------------- the claims

def path_of_gates(tmp_path, name, ends, epochs=10, **settings):
    """A record of two operations whose gates go from 0.5 in a straight line to `ends`,
    (skip, sep_conv), on all edges.
    """
    line = np.linspace(0, 1, epochs)[:, None, None, None]
    gates = (0.5 + line * (np.array(ends) - 0.5)).astype(np.float32) * np.ones(
        (1, 2, 14, 1), np.float32)
    return records.read(str(recorded_run(tmp_path / name, ("skip_connect", "sep_conv_3x3"),
                                           gates=gates, epochs=epochs, **settings)))


def result_of(tmp_path, normal, reduce=None, rows=(), trained=None, other=None, **settings):
    """A Result of two operations: gates of one epoch, (14, 2)."""
    gates = np.stack([normal, normal if reduce is None else reduce])[None].astype(np.float32)
    folder = recorded_run(tmp_path / secrets.token_hex(4), ("skip_connect", "sep_conv_3x3"),
                          gates=gates, **settings)
    record = records.read(str(folder))
    record.rows[-1].update(rows)
    return claims.Result(record, trained, other)


def test_what_claims_measure(tmp_path):
    skip, conv = np.full(14, 0.3), np.linspace(0.2, 0.6, 14)
    skip[:5] = 0.7  # leads on five edges
    result = result_of(tmp_path, np.stack([skip, conv], 1), trained=[50.0, 97.0, 95.0],
                       other=[60.0, 91.0, 93.0], w01=10.0,
                       rows=dict(rho=0.25, gap_rounding=3.0, gap_edges=4.0, gap_operations=-1.5))
    elsewhere = [g for s, g in zip(skip, conv) if g > s]
    assert all(s == 0.3 for s, g in zip(skip, conv) if g > s)
    led = [g for s, g in zip(skip, conv) if g < s]
    assert claims.suppression(result) == pytest.approx(
        sum(led) / len(led) - sum(elsewhere) / len(elsewhere), abs=1e-6)
    x, y = skip - skip.mean(), conv - conv.mean()
    assert claims.correlation(result) == pytest.approx(
        (x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()), abs=1e-6)
    assert (claims.rho(result), claims.rounding(result), claims.selection(result)) == (0.25, 3, 2.5)
    assert claims.last_accuracy(result) == 95 and claims.best_accuracy(result) == 97
    assert claims.last_over_random(result) == 2 and claims.best_over_random(result) == 4
    formula = resting.resting_gate(10, 56, 1e-3)
    opened = np.concatenate([skip[skip > 0.5], conv[conv > 0.5]])
    assert claims.off_rest(result) == pytest.approx(np.median(opened) - formula, abs=1e-6)

    softmax = result_of(tmp_path, np.stack([conv, 1 - conv], 1), w01=0.0, threshold=0)
    assert claims.correlation(softmax) == pytest.approx(-1)
    assert claims.suppression(softmax) < 0 and claims.off_rest(softmax) is None
    never = result_of(tmp_path, np.stack([conv * 0, conv], 1), threshold=0.99, gap=False)
    assert claims.suppression(never) is claims.last_over_random(never) is None
    assert claims.rounding(never) is claims.selection(never) is None
    assert claims.derived_skips(never) is claims.curvature(never) is None
    names = [edge.op for edge in result.record.genotype.normal]
    assert 0 < names.count("skip_connect") and claims.derived_skips(result) == pytest.approx(
        names.count("skip_connect") / len(names) - 1 / 2)
    assert claims.counted_epoch(result) == 1 and claims.counted_epoch(never) is None
    rivals = result_of(tmp_path, np.stack([skip, 0.5 + 1e-8 * conv], 1), threshold=0)
    assert claims.suppression(rivals) is claims.correlation(rivals) is None
    earlier = result._replace(record=result.record._replace(
        rows=[*result.record.rows, {**result.record.rows[0], "rho": 9.0, "gap_rounding": 9.0}]))
    assert (claims.rho(earlier), claims.rounding(earlier)) == (0.25, 3)  # of the epoch that counts
    without = claims.Result(result.record._replace(primitives=["sep_conv_3x3"]), None, None)
    assert claims.derived_skips(without) is claims.correlation(without) is None


def test_gates_decide_and_skips_lead_over_epochs(tmp_path):
    skips, saturated = (claims.Result(path_of_gates(tmp_path, name, ends, 20), None, None)
                        for name, ends in (("a", (0.6, 0.4)), ("b", (0.05, 0.95))))
    # 0.45 * 11 / 19 is more than 0.25, 0.45 * 10 / 19 is not
    assert claims.decision_epoch(saturated) == 12 and claims.decision_epoch(skips) == 21
    assert claims.skips_beyond_chance(skips) == 8 - 4
    assert claims.skips_beyond_chance(saturated) == 0 - 4


@pytest.mark.parametrize("values, margin, expected", [
    ([1.0, 2, 3, 2, 2], None, "held"), ([-1.0, -2, -3, -2, -2], None, "not held"),
    ([1.0, -2, 3, -2, 2], None, "undecided"), ([1.0, 2, 3, None, 2], None, "undecided"),
    ([-1.0, -2, None, -2, -2], None, "not held"), ([5.0], None, "undecided"),
    ([], None, "undecided"), ([None, None], None, "undecided"), ([0.0, 0, 0], None, "undecided"),
    ([2.0, 2, 2], None, "held"),
    ([0.001, 0.002, 0.001], 0.01, "held"), ([-0.003, 0.002, 0.001], 0.01, "held"),
    ([0.03, 0.031, 0.029], 0.01, "not held"), ([-0.03, -0.031, -0.029], 0.01, "not held"),
    ([0.03, -0.03, 0.0], 0.01, "undecided"), ([0.001, 0.002, None], 0.01, "undecided")])
def test_verdicts(values, margin, expected):
    assert claims.verdict(values, margin) == expected


def test_interval_is_of_students_t():
    values = [1.0, 2.0, 4.0, 4.5, 7.0]
    mean = sum(values) / 5
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / 4 / 5)
    found = interval.interval(values)
    assert found == pytest.approx((mean, 2.776445 * error), rel=1e-6)  # tables: t(0.975, 4)
    # 95 % of the intervals hold the mean that they are of
    draws = np.random.default_rng(0).normal(3, 2, (2000, 5)).tolist()
    held = [abs(mean - 3) <= half for mean, half in map(interval.interval, draws)]
    assert 0.93 < np.mean(held) < 0.97


def test_claims_compare_seeds(tmp_path):
    """Each claim can hold and fail, on results made for it."""
    dice = np.random.default_rng(3)

    def seeds(skip, conv, accuracies, count=5, **settings):
        found = []
        for seed in range(count):
            gates = np.clip(np.stack([skip, conv], 1) + dice.normal(0, 0.002, (14, 2)), 0, 1)
            rounding = settings["rho"] * 50 + seed
            found.append(result_of(
                tmp_path, gates, w01=settings.get("w01", 10.0), threshold=0,
                rows=dict(rho=settings["rho"] + seed / 100, gap_rounding=rounding, gap_edges=1.0,
                          gap_operations=1.0),
                trained=[accuracies[0] + seed], other=[accuracies[1] + seed]))
        return found

    low, high = np.linspace(0.1, 0.4, 14), np.linspace(0.4, 0.1, 14)
    rest = resting.resting_gate(10, 56, 1e-3)
    decided = np.where(np.arange(14) % 2, rest, 1 - rest)
    results = {"softmax": seeds(0.5 + low * 0, 0.5 + low * 0, (90, 80), rho=0.9, w01=0.0),
               "l01": seeds(decided, 1 - decided, (95, 80), rho=0.1),
               "l1": seeds(decided, 1 - decided, (95, 80), rho=0.1),
               "noskip": seeds(decided, 1 - decided, (85, 80), rho=0.1, count=3),
               "w5": seeds(decided, 1 - decided, (85, 80), rho=0.1, count=2),
               "w15": seeds(decided, 1 - decided, (85, 80), rho=0.1, count=2),
               "softmax2": seeds(low, high, (0, 0), rho=0.9, w01=0.0),
               "sigmoid2": seeds(low, low + np.resize([0.05, -0.05], 14), (0, 0), rho=0.9,
                                 w01=0.0)}

    def verdicts():
        return [claims.verdict(claims.differences(claim, results), claim.margin)
                for claim in CLAIMS.claims]

    assert [len(claims.differences(claim, results)) for claim in CLAIMS.claims] == [
        5, 5, 5, 5, 5, 5, 9, 3]
    expected = ["held"] * 8
    expected[2] = "undecided"  # all decide at the only epoch
    assert verdicts() == expected
    for one, other in (("softmax2", "sigmoid2"), ("softmax", "l01")):
        results[one], results[other] = results[other], results[one]
    found = verdicts()
    assert found[:2] == ["not held"] * 2 and found[3] == found[5] == "not held"
    assert found[4] == "held"  # softmax's are better than random ones, too
    results["l01"][2] = results["l01"][2]._replace(trained=None)
    assert verdicts()[4] == "undecided"


@pytest.mark.parametrize("count", [1, 3, 7, 8])
def test_random_genotypes_are_uniform(count):
    """Over all cells of so many edges, found here by trying every set of edges."""
    edges = [(node, source) for node in range(2, 6) for source in range(node)]
    cells = [cell for cell in itertools.combinations(edges, count)
             if all(sum(node == j for node, _ in cell) <= 2 for j in range(2, 6))
             and all(source < 2 or any(node == source for node, _ in cell) for _, source in cell)]
    dice, primitives, draws = random.Random(count), ("a", "b", "c"), 20 * len(cells)
    drawn = [random_genotypes.random_cell(count, primitives, dice) for _ in range(draws)]
    kinds = Counter(tuple((edge.node, edge.source) for edge in cell) for cell in drawn)
    assert set(kinds) <= set(cells)
    assert chisquare([kinds[cell] for cell in cells]).pvalue > 1e-3
    for position in range(count):
        names = Counter(cell[position].op for cell in drawn)
        assert chisquare([names[op] for op in primitives]).pvalue > 1e-3


def test_random_genotypes_are_seeded():
    drawn = [random_genotypes.random_genotype((8, 6), PRIMITIVES, seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(cell) for cell in drawn[0]] == [8, 6]
    assert texts.get(str(drawn[0])) == drawn[0]
    assert drawn[0].normal != random_genotypes.random_genotype((8, 8), PRIMITIVES, 1).reduce


def settings_of(grid, scale):
    """{arm: settings of its searches}, and a function that says in what two arms differ."""
    parser, settings = train_search.SCRIPT.parser(), {}
    for (arm, seed), task in reproduce.searches(grid, scale, "", 1).items():
        given = parser.parse_args(task.flags)
        own = train_search.SOFTMAX if given.get("gate") == "softmax" else {}
        settings[arm] = {**parser.defaults(), **own, **recipes.RECIPES[given["dataset"]].search,
                         **given}
        cures.check(Namespace(**settings[arm]))

    def differ(one, other):
        return {key for key in settings[one] if settings[one][key] != settings[other][key]}

    return settings, differ


@pytest.mark.parametrize("scale", CLAIMS.scales)
def test_arms_differ_in_what_they_are_about(scale):
    settings, differ = settings_of(CLAIMS, scale)
    assert differ("softmax", "sigmoid") == differ("softmax2", "sigmoid2") == {"gate"}
    assert differ("sigmoid", "l01") == {"w01", "threshold"} and differ("l01", "w5") == {"w01"}
    assert differ("l01", "l1") == {"zero_one_loss"}
    assert differ("l01", "noskip") == {"primitives", "w01"}
    assert settings["noskip"]["w01"] / (2 * 14 * 6) == pytest.approx(10 / 196, rel=1e-4)
    assert "darts" not in settings or differ("darts", "softmax") == {
        "learning_rate", "batch_size", "arch_learning_rate", "arch_beta1"}


@pytest.mark.parametrize("scale", CLAIMS.scales)
def test_cured_arms_differ_from_softmax_in_one_cure(scale):
    settings, differ = settings_of(grids.GRIDS["cures"], scale)
    assert settings["softmax"]["gate"] == "softmax" and settings["softmax"]["threshold"] == 0
    for arm, names in {
            "dropout": {"skip_dropout"}, "noise": {"skip_noise"}, "limit": {"max_skips"},
            "kept": {"keep_skips"}, "curvature": {"curvature_every", "max_curvature_ratio"},
            "sigmoid": {"gate"}, "shared": {"gate", "shared_softmax"},
            "l01": {"gate", "w01", "threshold"}}.items():
        assert differ(arm, "softmax") == names
    s = settings["l01"]
    operations = s["primitives"].split(",")
    assert s["w01"] / (2 * 14 * len(operations)) == pytest.approx(10 / 196, rel=1e-4)
    assert settings["limit"]["max_skips"] > 8 / len(operations)  # beyond chance
    others = settings["shared"]["shared_softmax"].split(",")
    assert {*others, "skip_connect"} == {*operations} and len(others) == len(operations) - 1
    assert s["curvature_every"] == {"laptop": 25, "paper": 50}[scale] == s["epochs"]
    steps = s["epochs"] * (1437 // 2 if scale == "laptop" else 25000) // s["batch_size"]
    reached = 1 / (1 + math.exp(-steps * s["arch_learning_rate"]))  # by Adam's longest steps
    assert reached > s["threshold"]


def test_page_of_the_cures(tmp_path):
    """Its claims can hold and fail, on results made for it: genotypes with so many skips."""
    made, grid_of_cures, dice = {}, grids.GRIDS["cures"], np.random.default_rng(0)

    def seeds(skips, accuracy, count=3):
        found = []
        for seed in range(count):
            gates = np.full((14, 2), 0.9)
            gates[skips:, 0] = 0.1
            gates[:skips, 1] = 0.1
            found.append(result_of(
                tmp_path, gates + dice.normal(0, 0.002, (14, 2)), threshold=0, trained=[accuracy],
                other=[85.0 + seed], rows=dict(curvature=1.0 + seed)))
        return found

    def verdicts():
        return [claims.verdict(claims.differences(claim, made)) for claim in grid_of_cures.claims]

    cured = len(grid_of_cures.arms) - 1
    made = {arm: seeds(0, 95.0) for arm in grid_of_cures.arms}
    made["softmax"] = seeds(14, 90.0)
    assert verdicts() == ["held"] * (1 + 2 * cured) and len(verdicts()) == 17
    drawings = grid_of_cures.figures(made)
    config = dict(torch="1", python="2", machine="3", threads=4)
    text = reproduce.page(grid_of_cures, "laptop", made, "the command", drawings, config, 1.5)
    assert text.count("| held |") == 17 and "seeds 21 to 23. What" in text
    assert "| softmax, no cure | 1.0 ± 0.0 (3) | 0.50 ± 0.00 (3) |" in text
    assert "| noise on skips | 95.00 ± 0.00 (3) | 9.00 ± 2.48 (3) |" in text
    assert all(f"(figures/{name}.png)" in text for name in drawings) and len(drawings) == 8
    for path in visualize.save({name: draw for name, (_, draw) in list(drawings.items())[:2]},
                               tmp_path):
        assert_picture(path)
    made["softmax"], made["noise"] = made["noise"], made["softmax"]
    found = dict(zip([claim.text for claim in grid_of_cures.claims], verdicts()))
    assert [text for text, verdict in found.items() if verdict == "not held"] == [
        "Softmax's genotypes have more skips than chance gives",
        "Fewer skips than softmax's: noise on skips",
        "Better networks than softmax's: noise on skips"]
    assert [*found.values()].count("undecided") == 2 * (cured - 1)


def test_one_picture_a_quantity():
    values = {"a": [1.0, 2.0, None], "b": [None], "c": [-3.0]}
    [axes] = compare.arms("something", values).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    dots = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert dots == [[[1, 0], [2, 0]], [], [[-3, 2]]]
    bars = [container.lines[2][0].get_segments() for container in axes.containers]
    mean, half = interval.interval([1.0, 2.0])
    assert np.allclose(bars[0], [[[mean - half, 0], [mean + half, 0]]])
    assert np.allclose(bars[2], [[[-3, 2], [-3, 2]]])


@pytest.mark.slow
def test_reproduce_runs_the_grid_once(tmp_path, monkeypatch, capsys):
    """Real searches and trainings, the smallest there are; a run that was stopped goes on, one
    that is complete is kept."""
    small = CLAIMS.scales["laptop"]._replace(
        search=[*SMALL_SEARCH, "--nodes", "1", "--batch_size", "300", "--arch_learning_rate", "1",
                "--epochs", "1"], more={"softmax2": grids.TWO, "sigmoid2": grids.TWO},
        train=[*SMALL_EVAL, "--epochs", "1"])
    monkeypatch.setitem(CLAIMS.scales, "laptop", small)

    def forked(command, **_):
        name, *arguments = command[1:]  # without that of Python
        code, out, err = ended(*fork(tmp_path, os.path.basename(name)[:-3], *arguments,
                                     memory=8 << 30))
        return Namespace(returncode=code, stdout=out, stderr=err)

    monkeypatch.setattr(many_runs.subprocess, "run", forked)
    tasks = reproduce.searches(CLAIMS, "laptop", str(tmp_path), 1)
    assert len(tasks) == 9
    assert len(reproduce.searches(CLAIMS, "laptop", "", 5)) == 6 * 5 + 2 + 2 + 3
    first, add = tasks["softmax", CLAIMS.first], loop.Run.add

    def add_and_stop(self, *others, **figures):
        add(self, *others, **figures)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "add", add_and_stop)
        assert call(train_search, patch, *first.flags, "--runs", tmp_path, "--name",
                    os.path.basename(first.folder)) == 130
    assert not many_runs.complete(*first)
    command = ["--runs", tmp_path, "--output", tmp_path / "out", "--jobs", 2, "--seeds", 1]
    assert call(reproduce, monkeypatch, *command) == 0
    out = capsys.readouterr().out
    assert "9 of 9 runs to do, then at most 10 others" in out and "0 of these left" in out
    text = (tmp_path / "out" / "reproduction.md").read_text()
    assert text.count("| undecided |") == len(CLAIMS.claims) - 1  # (f) has three runs
    assert "seeds 11 to 11" in text and "L01, w01 = 15" in text
    assert f"torch {torch.__version__}" in text
    for name in ("dominant", "heatmap", "gap"):
        assert f"figures/reproduction_{name}.png" in text
        assert_picture(tmp_path / "out" / "figures" / f"reproduction_{name}.png")
    others = [folder for folder in os.listdir(tmp_path) if "-random-" in folder]
    for folder in others:
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert len(texts.get(config["settings"]["arch"]).normal) == int(folder.split("-")[3])
    assert others
    (tmp_path / os.path.basename(first.folder) / "report.md").unlink()  # killed before its end
    assert not many_runs.complete(*first)
    assert call(reproduce, monkeypatch, *command) == 0 and many_runs.complete(*first)
    with monkeypatch.context() as patch:
        patch.setattr(many_runs.subprocess, "run", None)  # all is complete: nothing runs again
        assert call(reproduce, patch, *command) == 0
    assert (tmp_path / "out" / "reproduction.md").read_text() == text
    trained = reproduce.trainings(CLAIMS, "laptop", tasks)["l01", CLAIMS.first]
    other = tmp_path / "other.json"  # the search was done again, and has found another one
    other.write_text(texts.to_json(texts.get("FairDARTS_a")))
    with pytest.raises(flags.UserError, match="has --arch Genotype"):
        many_runs.complete(*trained._replace(flags=[*trained.flags, "--arch", str(other)]))
    monkeypatch.setitem(CLAIMS.scales, "laptop", small._replace(
        search=[*small.search, "--seed", "5", "--init_channels", "4"]))
    capsys.readouterr()
    assert call(reproduce, monkeypatch, *command) == 2
    assert ("laptop-softmax-11' has --init_channels 2, not 4: remove it, or give other --runs"
            in capsys.readouterr().err)


def test_random_search_ranks_what_it_draws(tmp_path, monkeypatch, capsys):
    small = CLAIMS.scales["laptop"]._replace(train=[*SMALL_EVAL, "--epochs", "1"])
    monkeypatch.setitem(CLAIMS.scales, "laptop", small)

    def forked(command, **_):
        code, out, err = ended(*fork(tmp_path, os.path.basename(command[1])[:-3], *command[2:],
                                     memory=8 << 30))
        return Namespace(returncode=code, stdout=out, stderr=err)

    monkeypatch.setattr(many_runs.subprocess, "run", forked)
    command = ["--random", 3, "--skips", 2, "--runs", tmp_path, "--output", tmp_path]
    assert call(reproduce, monkeypatch, *command) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "MACs" in line]
    accuracies = [float(line.split("%")[0]) for line in lines]
    assert len(lines) == 3 and accuracies == sorted(accuracies, reverse=True)
    text = (tmp_path / "random.md").read_text()
    sizes = []
    for folder in tmp_path.glob("laptop-drawn-*-eval"):
        settings = json.loads((folder / "config.json").read_text())["settings"]
        assert settings["arch"] in text and str(folder) in text
        genotype = texts.get(settings["arch"])
        assert [edge.op for edge in genotype.normal].count("skip_connect") == 2
        log = (folder / "log.txt").read_text()  # what the training counted
        sizes.append(float(re.search(r"([\d.]+) M MACs", log)[1]))
        assert reproduce.macs_of(CLAIMS, "laptop", genotype) == pytest.approx(sizes[-1], abs=0.006)
    assert len(sizes) == 3
    with monkeypatch.context() as patch:
        patch.setattr(many_runs.subprocess, "run", None)
        assert call(reproduce, patch, *command) == 0  # all is there
    for wrong, message in ((["--skips", 2], "--skips is of --random"),
                           (["--random", 1, "--grid", "cures"], "--grid is not of --random"),
                           (["--random", 1, "--macs", "5"], "LEAST-MOST"),
                           (["--random", 1, "--macs", "2-1"], "LEAST-MOST"),
                           (["--random", 1, "--output", os.devnull], os.devnull),
                           (["--seeds", 1, "--output", os.devnull], os.devnull),
                           (["--random", 1, "--macs", "900-901"], "none of 500")):
        with monkeypatch.context() as patch:
            patch.setattr(reproduce, "macs_of", lambda *_: 1.0)
            assert message in refused(capsys, patch, reproduce, *wrong)
