"""What claims measure and judge, grids of runs and their pages."""
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
import train_search
from engine import flags, loop, recipes, texts
from genotypes import PRIMITIVES
from study import (chance, claims, compare, cures, grids, hold, interval, many_runs,
                   pages, random_genotypes, records, reproduce, resting, ties)
from tests.common import (CLAIMS, SMALL_EVAL, SMALL_SEARCH, assert_picture, call, forked_runs,
                          recorded_run, refused)

CURES = grids.GRIDS["cures"]


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
    return claims.Result(record, trained, other, (1.5, 20.0) if trained else None)


def test_what_claims_measure(tmp_path):
    skip, conv = np.full(14, 0.3), np.linspace(0.2, 0.6, 14)
    skip[:3] = 0.7
    result = result_of(tmp_path, np.stack([skip, conv], 1), trained=[50.0, 97.0, 95.0],
                       other=[60.0, 91.0, 93.0], w01=10.0,
                       rows=dict(rho=0.25, gap_rounding=3.0, gap_edges=4.0, gap_operations=-1.5))
    assert (claims.rho(result), claims.rounding(result), claims.selection(result)) == (0.25, 3, 2.5)
    assert claims.whole_gap(result) == 5.5
    assert claims.last_accuracy(result) == 95 and claims.best_accuracy(result) == 97
    assert claims.last_over_random(result) == 2 and claims.best_over_random(result) == 4
    assert (claims.parameters(result), claims.macs(result)) == (1.5, 20)
    formula = resting.resting_gate(10, 56, 1e-3)
    opened = np.concatenate([skip[skip > 0.5], conv[conv > 0.5]])
    assert claims.off_rest(result) == pytest.approx(np.median(opened) - formula, abs=1e-6)
    assert claims.by_learning(result) is claims.by_arithmetic(result) is None
    held = result._replace(held={"arithmetic": -0.3, "learning": 0.1})
    assert (claims.by_learning(held), claims.by_arithmetic(held)) == (-0.1, 0.3)

    softmax = result_of(tmp_path, np.stack([conv, 1 - conv], 1), w01=0.0, threshold=0)
    assert claims.off_rest(softmax) is None
    never = result_of(tmp_path, np.stack([conv * 0, conv], 1), threshold=0.99, gap=False)
    assert claims.last_over_random(never) is claims.rounding(never) is None
    assert claims.selection(never) is claims.whole_gap(never) is claims.derived_skips(never) is None
    assert claims.ties_of("normal")(never) is claims.skips_off_chance(never) is None
    names = [edge.op for edge in result.record.genotype.normal]
    share = names.count("skip_connect") / len(names) - 1 / 2
    assert share and claims.derived_skips(result) == pytest.approx(share)
    assert claims.skips_off_chance(result) == abs(claims.derived_skips(result))
    assert claims.counted_epoch(result) == 1 and claims.counted_epoch(never) is None
    earlier = result._replace(record=result.record._replace(
        rows=[*result.record.rows, {**result.record.rows[0], "rho": 9.0, "gap_rounding": 9.0}]))
    assert (claims.rho(earlier), claims.rounding(earlier)) == (0.25, 3)  # of the epoch that counts
    without = claims.Result(result.record._replace(primitives=["sep_conv_3x3"]))
    assert claims.derived_skips(without) is claims.skips_beyond_chance(without) is None


def test_gates_decide_and_skips_lead_over_epochs(tmp_path):
    skips, saturated = (claims.Result(path_of_gates(tmp_path, name, ends, 20))
                        for name, ends in (("a", (0.6, 0.4)), ("b", (0.05, 0.95))))
    # 0.45 * 11 / 19 is more than 0.25, 0.45 * 10 / 19 is not
    assert claims.decision_epoch(saturated) == 12 and claims.decision_epoch(skips) == 21
    assert claims.skips_beyond_chance(skips) == 8 - 4
    assert claims.skips_beyond_chance(saturated) == 0 - 4


# ---------------------------------------------------------------- verdicts

@pytest.mark.parametrize("values, margin, expected", [
    ([1.0, 2, 3, 2, 2, 4], None, "held"), ([-1.0, -2, -3, -2, -2, -4], None, "not held"),
    ([1.0, -2, 3, -2, 2, 1], None, "undecided"), ([1.0, 2, 3, None, 2, 2, 4], None, "undecided"),
    ([-1.0, -2, None, -2, -2, -3, -3], None, "not held"), ([5.0], None, "undecided"),
    ([2.0, 2.1, 2.2, 2.1, 2.0], None, "undecided"),  # five seeds cannot reach 5 %
    ([], None, "undecided"), ([None, None], None, "undecided"), ([0.0] * 8, None, "undecided"),
    ([0.001, 0.002, 0.001, 0.003, 0.002], 0.01, "held"),
    ([-0.003, 0.002, 0.001, 0.0, 0.004], 0.01, "held"),
    ([0.03, 0.031, 0.029, 0.03, 0.03], 0.01, "not held"),
    ([-0.03, -0.031, -0.029, -0.03, -0.03], 0.01, "not held"),
    ([0.03, -0.03, 0.0, 0.0, 0.0], 0.01, "undecided"),
    ([0.001, 0.002, None, 0.001, 0.001, 0.001], 0.01, "undecided"),
    ([0.001, 0.002, 0.001], 0.01, "undecided")])
def test_verdicts(values, margin, expected):
    found = [value for value in values if value is not None]
    assert claims.verdict(values, claims.p_value(found, margin), margin) == expected
    assert claims.verdict(values, 0.051, margin) in ("undecided", expected)


def test_a_verdict_needs_the_interval_and_the_test():
    skewed = [0.1] * 9 + [30.0]  # all above 0: the test rejects, the interval holds 0
    assert claims.p_value(skewed) < 0.05 and claims.verdict(skewed, claims.p_value(skewed)) == (
        "undecided")
    sure = [1.0, 1.1, 1.2, 1.0, 1.1]
    assert claims.verdict(sure, 0.049) == "held" and claims.verdict(sure, 0.05) == "undecided"


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


@pytest.mark.parametrize("count", [2, 5, 8, 9])
def test_the_sign_flip_test_is_exact(count):
    """Against all signs, one by one."""
    dice = np.random.default_rng(count)
    for shift in (0.0, 0.7, 3.0):
        values = dice.normal(shift, 1, count)
        means = [np.mean(np.multiply(signs, values))
                 for signs in itertools.product((1, -1), repeat=count)]
        far = np.mean([abs(mean) >= abs(values.mean()) - 1e-12 for mean in means])
        above = np.mean([mean >= values.mean() - 1e-12 for mean in means])
        assert interval.sign_flip([*values]) == pytest.approx(far)
        assert interval.sign_flip([*values], "greater") == pytest.approx(above)
    assert interval.sign_flip([1.0] * count) == pytest.approx(2 / 2 ** count)
    assert interval.sign_flip([0.0] * count) == interval.sign_flip([3.0]) == 1


def test_holm_rejects_what_its_steps_do():
    """Step by step: the smallest p-value against level / m, the next against level / (m
    - 1), ... until one is not rejected."""
    dice = random.Random(0)
    for _ in range(50):
        p_values = [round(dice.random() ** 3, 3) for _ in range(dice.randrange(1, 9))]
        corrected = interval.holm(p_values)
        for level in (0.01, 0.0503, 0.2, 0.7):
            rejected = set()
            for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
                if p_values[index] > level / (len(p_values) - rank):
                    break
                rejected.add(index)
            assert {i for i, p in enumerate(corrected) if p <= level + 1e-12} == rejected
    assert interval.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert interval.holm([]) == []


# ---------------------------------------------------------------- chance, ties, skip held

def test_chance_of_a_skip():
    """Of two edges into one node, both are kept: then there is a closed form. A sigmoid
    is above both shares of a softmax of two if its alpha is above the distance of
    theirs, whatever the deviation: for normal ones atan(1 / sqrt(2)) / pi."""
    three = "skip_connect", "sep_conv_3x3", "dil_conv_3x3"
    found = chance.simulate(three, "sigmoid", "sep_conv_3x3,dil_conv_3x3", 1, draws=6000)
    assert found == pytest.approx(math.atan(1 / math.sqrt(2)) / math.pi, abs=0.01)
    assert chance.simulate(three, "sigmoid", "sep_conv_3x3,dil_conv_3x3", 4) == pytest.approx(
        0.2, abs=0.02)
    for gate in "sigmoid", "softmax":  # by symmetry
        assert chance.simulate(three, gate, "", 4) == pytest.approx(1 / 3, abs=0.01)
    others = ",".join(op for op in PRIMITIVES if op != "skip_connect")
    found = chance.simulate(PRIMITIVES, "sigmoid", others, 4, draws=200)
    assert found == pytest.approx(1, abs=1e-3)


def test_published_gates_are_kept_by_a_hair():
    """62 of the 64 kept gates of reduction cells, 5 of 31 of normal ones; anew, by
    loops."""
    found = ties.published_ties()
    assert found["reduce"][:2] == (62, 64) and found["normal"][:2] == (5, 31)
    assert found["reduce"][2] == 50.75
    searches = ties.published_gates()
    assert len(searches) == 8
    for part in "normal", "reduce":
        near = kept = 0
        for search in searches:
            rows, first = search[part].tolist(), 0
            for node in range(2, 6):
                edges = rows[first:first + node]
                first += node
                best = sorted(range(node), key=lambda i: -max(edges[i]))[:2]
                for i in best:
                    gate = max(edges[i])
                    others = sorted(edges[i])[:-1] + [
                        max(edges[j]) for j in range(node) if j not in best]
                    kept += gate >= 0.85
                    near += gate >= 0.85 and any(gate - other <= 0.005 for other in others)
        assert (near, kept) == found[part][:2]


def test_published_gates_settle_as_computed():
    """w01 = 10 in the first four searches, 15 in the others."""
    for index, search in enumerate(ties.published_gates()):
        rest = resting.resting_gate(10 if index < 4 else 15, 196, 1e-3)
        gates = search["reduce"]
        assert gates[gates > 0.5].median().item() == pytest.approx(rest, abs=6e-4)
        assert gates[gates < 0.5].median().item() == pytest.approx(1 - rest, abs=1.1e-3)
    assert {round(resting.resting_gate(w01, 196, 1e-3), 4) for w01 in (10, 15)} == {0.9356, 0.9542}


def test_ties_of_several_operations_an_edge():
    gates = torch.tensor([[0.9, 0.899, 0.5], [0.95, 0.2, 0.1]])
    assert ties.leads(gates, 0.85, 2, 1) == pytest.approx([0.001, 0.75], rel=1e-4)
    assert ties.leads(gates, 0.85, 2, 2) == pytest.approx(
        [0.4, 0.399, 0.85], rel=1e-4)
    assert ties.leads(gates, 0.85, 1, 1) == pytest.approx([0.05], rel=1e-4)
    assert ties.leads(torch.tensor([[0.9], [0.99]]), 0.85, 2, 1) == [math.inf] * 2
    assert ties.near_ties(gates, 0.85, 2, 1) == (1, 2)


def test_skip_is_held(tmp_path, monkeypatch, capsys):
    """Under softmax skip held high lowers the others by arithmetic, with sigmoid by
    nothing but learning; the run itself stays as it is."""
    monkeypatch.setattr(hold, "STEPS", 2)
    for gate in "softmax", "sigmoid":
        assert call(train_search, monkeypatch, *SMALL_SEARCH, "--nodes", "1", "--batch_size", "300",
                    "--epochs", "1", "--threshold", "0", "--gate", gate, "--runs", tmp_path,
                    "--arch_learning_rate", "0.3", "--gap_every", "0", "--name", gate) == 0
        folder = tmp_path / gate
        before = (folder / "checkpoint.pt").read_bytes()
        after, start = hold.hold(str(folder), 2.0, 2)
        column = PRIMITIVES.index("skip_connect")
        state = torch.load(folder / "checkpoint.pt", weights_only=True)["network"]["alphas.0"]
        state[:, column] = 2.0
        assert torch.equal(start, fair_darts.gates(state, gate))
        if gate == "sigmoid":
            assert torch.allclose(after[:, column], torch.sigmoid(torch.tensor(2.0)))
        assert not torch.equal(after, start)
        assert hold.read(str(folder)) is None
        assert call(hold, monkeypatch, folder) == 0
        found = hold.read(str(folder))
        assert (folder / "checkpoint.pt").read_bytes() == before
        # seven operations, of alphas near 0: the share of the six others, by hand
        high, low = (6 / (6 + math.exp(value)) / 6 for value in (2, -2))
        expected = high - low if gate == "softmax" else 0
        assert found["arithmetic"] == pytest.approx(expected, abs=0.02) and found["learning"]
        assert hold.effect(str(folder), steps=2) == pytest.approx(found, abs=1e-6)
    assert many_runs.complete(str(folder), "study.hold", [])
    (folder / "held.json").write_text('{"id": "another"}')
    capsys.readouterr()
    with pytest.raises(flags.UserError, match="remove it"):
        hold.read(str(folder))
    other = recorded_run(tmp_path / "other", ("sep_conv_3x3", "dil_conv_3x3"))
    assert "--primitives have skip_connect" in refused(capsys, monkeypatch, hold, other)


# ---------------------------------------------------------------- random genotypes

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


# ---------------------------------------------------------------- grids and pages

def settings_of(grid, scale):
    """{arm: settings of its searches}, and a function that says in what two arms
    differ."""
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
    assert differ("softmax", "sigmoid") == {"gate"}
    assert differ("sigmoid", "l01") == {"w01", "threshold"}
    assert differ("l01", "l1") == {"zero_one_loss"}
    if scale == "paper":
        assert differ("l01", "noskip") == {"primitives", "w01"}
        assert settings["noskip"]["w01"] / (2 * 14 * 6) == pytest.approx(10 / 196, rel=1e-4)
        assert differ("darts", "softmax") == {
            "learning_rate", "batch_size", "arch_learning_rate", "arch_beta1"}


@pytest.mark.parametrize("scale", CLAIMS.scales)
def test_cured_arms_differ_from_softmax_in_one_cure(scale):
    settings, differ = settings_of(CURES, scale)
    assert settings["softmax"]["gate"] == "softmax" and settings["softmax"]["threshold"] == 0
    for arm, names in {
            "late": {"arch_start"}, "noise": {"skip_noise", "noise_epochs"}, "sigmoid": {"gate"},
            "shared": {"gate", "shared_softmax"}, "l01": {"gate", "w01", "threshold"}}.items():
        assert differ(arm, "softmax") == names | {"curvature_every"}  # a measurement alone
    assert differ("dropout", "late") == {"skip_dropout", "skip_dropout_schedule"}
    s = settings["l01"]
    operations = s["primitives"].split(",")
    assert s["w01"] / (2 * 14 * len(operations)) == pytest.approx(10 / 196, rel=1e-4)
    assert settings["noise"]["noise_epochs"] / s["epochs"] == 0.6  # 30 of 50
    others = settings["shared"]["shared_softmax"].split(",")
    assert {*others, "skip_connect"} == {*operations} and len(others) == len(operations) - 1
    for arm in "limit", "kept", "curvature":  # of softmax's searches, at another end
        again = {**settings["softmax"], **reproduce.mended(CURES, scale, arm)}
        cures.check(Namespace(**again))
        assert again != settings["softmax"] and again.keys() == settings["softmax"].keys()
    steps = s["epochs"] * (1437 // 2 if scale == "laptop" else 25000) // s["batch_size"]
    reached = 1 / (1 + math.exp(-steps * s["arch_learning_rate"]))  # by Adam's longest steps
    assert reached > s["threshold"]


def test_laptops_claim_nothing_of_networks():
    """On digits they cannot be told apart."""
    for grid, count in (CLAIMS, 10), (CURES, 6):
        found = grids.claims_of(grid, "laptop")
        assert len(found) == count and len(grids.claims_of(grid, "paper")) > count
        assert not claims.OF_NETWORKS & {claim.measure for claim in found}
        for claim in grids.claims_of(grid, "paper"):  # no claim between two ends of one search
            assert claim.against is None or grid.arms[claim.arm].of is (
                grid.arms[claim.against].of) is None or claim.measure in claims.OF_NETWORKS
        # nine seeds: the least p-value, times the number of claims
        assert 2 / 2 ** 9 * count < claims.LEVEL


def seeds_of(tmp_path, skips, count=9, held=None, **settings):
    """Results whose normal cells have a skip on so many edges, at the end of the
    rows."""
    found, dice = [], np.random.default_rng(skips)
    for seed in range(count):
        gates = np.full((14, 2), settings.pop("height", 0.9) if seed == 0 else found[0][1])
        height = gates[0, 0]
        gates[:14 - skips, 0] = 1 - height
        gates[14 - skips:, 1] = 1 - height
        rows = {name: value + seed / 100 for name, value in settings.items()}
        result = result_of(tmp_path, gates + dice.normal(0, 1e-4, (14, 2)), threshold=0, w01=10.0,
                           rows=dict(gap_edges=1.0, gap_operations=1.0, **rows))
        found.append((result._replace(held=held), height))
    return [result for result, _ in found]


def test_claims_can_hold_and_fail(tmp_path):
    rest = resting.resting_gate(10, 56, 1e-3)
    results = {
        "softmax": seeds_of(tmp_path, 14, held={"learning": -0.1, "arithmetic": -0.3}, rho=0.9,
                            gap_rounding=50),
        "sigmoid": seeds_of(tmp_path, 0, held={"learning": 0.1, "arithmetic": 0.0}, rho=0.8,
                            gap_rounding=50),
        "l01": seeds_of(tmp_path, 0, rho=0.1, gap_rounding=10, height=rest),
        "l1": seeds_of(tmp_path, 0, rho=0.1, gap_rounding=10, height=0.8)}
    listed = grids.claims_of(CLAIMS, "laptop")
    found = claims.find(listed, results)
    assert [finding.verdict for finding in found] == [
        "held", "held", "held", "not held", "held", "undecided", "held", "held", "held", "not held"]
    assert found[5].mean == 0  # all decide at the only epoch
    assert found[0].corrected == pytest.approx(9 * 2 / 2 ** 9) and found[0].p == 2 / 2 ** 9
    parts, results["l01"][3].record.rows[-1]["gap_rounding"] = [
        row["gap_rounding"] for row in results["l01"][3].record.rows], None
    assert claims.find(listed, results)[6].verdict == "undecided"  # a seed has no value
    results["l01"][3].record.rows[-1]["gap_rounding"] = parts[-1]
    results["softmax"], results["l01"] = results["l01"], results["softmax"]
    results["softmax"] = [result._replace(held={"learning": 0.0}) for result in results["softmax"]]
    swapped = [finding.verdict for finding in claims.find(listed, results)]
    assert swapped[4] == swapped[6] == swapped[7] == swapped[8] == "not held"
    assert swapped[0] == "not held" and swapped[2] == "undecided"


def test_searches_are_read_again(tmp_path):
    """As if they had ended at a number of skips, as the curvature grew, or with fewer
    kept."""
    gates = np.full((30, 2, 14, 2), 0.4, np.float32)
    gates[:, :, :, 1] = 0.6
    gates[9:, 0, :, 0] = 0.9  # from the tenth epoch on skips lead
    record = records.read(str(recorded_run(
        tmp_path / "a", ("skip_connect", "sep_conv_3x3"), gates=gates, threshold=0,
        gate="softmax", w01=0.0, curvature_every=2)))
    for row in record.rows:
        row["derived_skips"] = 8.0 if row["epoch"] >= 10 else 0.0
        row["curvature"] = 1.5 ** row["epoch"] if row["epoch"] % 2 else None
    record = record._replace(settings={**record.settings, "epochs": 30})
    ended = records.read_again(record, {"max_skips": 2})
    assert ended.epoch == 9 and {edge.op for edge in ended.genotype.normal} == {"sep_conv_3x3"}
    assert ended.rows == record.rows and ended.settings["max_skips"] == 2
    stopped = records.read_again(record, {"max_curvature_ratio": 1.3})
    assert stopped.epoch == 11 and {e.op for e in stopped.genotype.normal} == {"skip_connect"}
    kept = records.read_again(record, {"keep_skips": 1})
    assert kept.epoch == 30 and kept.rows[-1]["gap_rounding"] is None
    assert [edge.op for edge in kept.genotype.normal].count("skip_connect") == 1
    assert record.rows[-1]["gap_rounding"] is not None


def test_pages_say_what_was_found(tmp_path):
    skips = dict.fromkeys(CURES.arms, 0)
    made = {arm: seeds_of(tmp_path, count, rho=0.5, gap_rounding=5) for arm, count in {
        **skips, "softmax": 14, "late": 14, "dropout": 7, "noise": 7, "shared": 7,
        "sigmoid": 7}.items()}
    drawings = CURES.figures(made)
    config = dict(torch="1", python="2", machine="3", threads=4)
    text = pages.page(CURES, "laptop", made, "the command", drawings, config, 1.5)
    rows = [line.split(" | ") for line in text.splitlines() if line.count("|") == 8]
    assert len(rows) == 2 + 6 and "seeds 51 to 59. What" in text
    assert [row[-1].strip(" |") for row in rows[2:]] == ["held"] * 4 + ["held", "undecided"]
    assert rows[2][1:] == ["9 of 9", rows[2][2], rows[2][3], "0.0039", "0.0234", "held |"]
    assert "sigmoid, 2 operations: 0.50" in text and "{" not in text
    assert "| softmax, no cure | 1.0 ± 0.0 (9) | 0.50 ± 0.00 (9) |" in text
    assert "## Networks" not in text and "as if with `--max_skips 3`" in text
    assert all(f"(figures/{name}.png)" in text for name in drawings)
    paths = [tmp_path / "figures" / f"{name}.png" for name in drawings]
    from study import visualize
    visualize.save({name: draw for name, (_, draw) in drawings.items()}, tmp_path / "figures")
    for path in paths:
        assert_picture(path)
    assert_picture_of(tmp_path, compare.ties([result.record for result in made["softmax"]]))


def assert_picture_of(tmp_path, figure):
    figure.savefig(tmp_path / "one.png")
    assert_picture(tmp_path / "one.png")
    kept = [len(line.get_xdata()) for axes in figure.axes[::2] for line in axes.lines[1::2]]
    assert sum(kept[:8]) == 31 and sum(kept[8:]) == 64  # of the published gates


@pytest.mark.slow
def test_reproduce_runs_the_grid_once(tmp_path, monkeypatch, capsys):
    """Real searches and trainings, the smallest there are; a run that was stopped goes
    on, one that is complete is kept, and the page comes out the same, byte for byte."""
    small = CLAIMS.scales["laptop"]._replace(
        search=[*SMALL_SEARCH, "--nodes", "1", "--batch_size", "300", "--arch_learning_rate", "1",
                "--epochs", "1"], train=[*SMALL_EVAL, "--epochs", "1"], networks=True)
    monkeypatch.setitem(CLAIMS.scales, "laptop", small)
    forked_runs(tmp_path, monkeypatch)
    tasks = reproduce.searches(CLAIMS, "laptop", str(tmp_path), 1)
    assert len(tasks) == 4 and len(reproduce.searches(CLAIMS, "laptop", "", 5)) == 20
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
    assert "4 of 4 runs to do, then at most 10 others" in out and "0 of these left" in out
    assert "2 of 2 runs to do, then at most 8 others" in out  # skip is held
    page = tmp_path / "out" / "reproduction.md"
    text = page.read_text()
    assert text.count("| undecided |") + text.count("| not held |") == len(
        grids.claims_of(CLAIMS, "laptop"))  # of one seed
    assert "seeds 31 to 31" in text and f"torch {torch.__version__}" in text
    for name in ("dominant", "heatmap", "gap", "ties"):
        assert f"figures/reproduction_{name}.png" in text
        assert_picture(tmp_path / "out" / "figures" / f"reproduction_{name}.png")
    others = [folder for folder in os.listdir(tmp_path) if "-random-" in folder]
    for folder in others:
        config = json.loads((tmp_path / folder / "config.json").read_text())
        genotype = texts.get(config["settings"]["arch"])
        assert len(genotype.normal) == int(folder.split("-")[4])
    assert others
    (tmp_path / os.path.basename(first.folder) / "report.md").unlink()  # killed before its end
    assert not many_runs.complete(*first)
    assert call(reproduce, monkeypatch, *command) == 0 and many_runs.complete(*first)
    with monkeypatch.context() as patch:
        patch.setattr(many_runs, "subprocess", None)  # all is complete: nothing runs again
        page.unlink()
        assert call(reproduce, patch, *command) == 0
    assert page.read_text() == text
    found = records.read(tasks["l01", CLAIMS.first].folder).genotype
    if found:  # the search was done again, and has found another one
        trained = reproduce.training(CLAIMS, "laptop", tasks["l01", CLAIMS.first].folder,
                                     CLAIMS.first, "FairDARTS_a")
        with pytest.raises(flags.UserError, match="has --arch Genotype"):
            many_runs.complete(*trained)
    monkeypatch.setitem(CLAIMS.scales, "laptop", small._replace(
        search=[*small.search, "--seed", "5", "--init_channels", "4"]))
    capsys.readouterr()
    assert call(reproduce, monkeypatch, *command) == 2
    assert ("laptop-softmax-31' has --init_channels 2, not 4: remove it, or give other --runs"
            in capsys.readouterr().err)


def test_random_search_ranks_what_it_draws(tmp_path, monkeypatch, capsys):
    small = CLAIMS.scales["laptop"]._replace(train=[*SMALL_EVAL, "--epochs", "1"])
    monkeypatch.setitem(CLAIMS.scales, "laptop", small)

    forked_runs(tmp_path, monkeypatch)
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
        _, macs = reproduce.size_of(CLAIMS, "laptop", genotype)
        assert macs == pytest.approx(sizes[-1], abs=0.006)
    assert len(sizes) == 3
    with monkeypatch.context() as patch:
        patch.setattr(many_runs, "subprocess", None)
        assert call(reproduce, patch, *command) == 0  # all is there
    for wrong, message in ((["--skips", 2], "--skips is of --random"),
                           (["--random", 1, "--grid", "cures"], "--grid is not of --random"),
                           (["--random", 1, "--macs", "5"], "LEAST-MOST"),
                           (["--random", 1, "--macs", "2-1"], "LEAST-MOST"),
                           (["--random", 1, "--output", os.devnull], os.devnull),
                           (["--seeds", 1, "--output", os.devnull], os.devnull),
                           (["--random", 1, "--macs", "900-901"], "none of 500")):
        with monkeypatch.context() as patch:
            patch.setattr(reproduce, "size_of", lambda *_: (1.0, 1.0))
            assert message in refused(capsys, patch, reproduce, *wrong)
