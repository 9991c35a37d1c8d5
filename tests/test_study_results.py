"""What searches have recorded: claims and their statistics, measures, the harness of
experiments, ties, random genotypes, figures."""
import argparse
import csv
import itertools
import json
import os
import random
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chisquare, ttest_1samp

import fair_darts
import genotypes
import spaces
import train_search
from engine import folders, recipes
from genotypes import PRIMITIVES, Edge
from spaces import SPACES, nasbench201
from study import (cures, draw_cells, experiments, figures, measures, records, reproduce,
                   ties, visualize)
from study.experiments import Arm, Claim, Experiment
from tests.common import (FIGURES, TINY_SEARCH, Malicious, assert_picture, call, refused,
                          table)

TWO = "skip_connect", "sep_conv_3x3"


def recorded_run(folder, primitives=PRIMITIVES, nodes=4, epochs=3, gap=True, seed=0, gates=None,
                 threshold=0.3, **settings):
    """A run's records, as a search leaves them."""
    folder.mkdir(parents=True)
    if gates is None:
        gates = np.random.default_rng(seed).random(
            (epochs, 2, nodes * (nodes + 3) // 2, len(primitives)), np.float32)
    np.savez(folder / "gates.npz", normal=gates[:, 0], reduce=gates[:, 1], primitives=primitives)
    s = {**train_search.PARSER.defaults, "dataset": "digits", "nodes": nodes,
         "primitives": ",".join(primitives), "threshold": threshold, **settings}
    config = dict(script="train_search", version=folders.VERSION, threads=1, processes=1,
                  commands=[], fingerprint="", classes=[], shape=[1, 8, 8], torch="",
                  python="", machine="", settings=s)
    (folder / "config.json").write_text(json.dumps(config))
    with open(folder / "metrics.csv", "w") as file:
        writer = csv.writer(file)
        writer.writerow(
            "epoch train_loss soft_accuracy discrete_accuracy rho gap_rounding gap_edges "
            "gap_operations skips_normal skips_reduce curvature seconds".split())
        for epoch in range(len(gates)):
            soft, *gaps = [90 + epoch, 50.5, 20, 25, epoch - 5.5] if gap else [None] * 5
            writer.writerow([epoch + 1, 1.0, soft, gaps[0], 0.5, *gaps[1:], 0, 0, None, 1.5])
    genotype = fair_darts.discretize(*torch.from_numpy(gates[-1]), threshold, primitives=primitives)
    if all(genotype):
        (folder / "genotype.json").write_text(spaces.to_json(genotype))
    return folder


# ---------------------------------------------------------------- statistics and verdicts

def test_intervals_and_the_sign_flip_test():
    values = [1.0, 2.0, 4.0, 4.5, 7.0]
    mean, half = reproduce.interval(values)
    low, high = ttest_1samp(values, 0).confidence_interval()
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert reproduce.interval([2.0]) == (2, np.inf) and reproduce.interval([2.0] * 3) == (2, 0)
    signs = [*itertools.product((1, -1), repeat=5)]
    values = [1.0, -2.0, 4.0, 4.5, 7.0]
    far = np.mean([abs(np.dot(sign, values)) >= sum(values) - 1e-12 for sign in signs])
    assert reproduce.sign_flip(values) == pytest.approx(far)  # both sides, exact
    assert reproduce.sign_flip([0.0] * 9) == reproduce.sign_flip([3.0]) == 1
    values = [1.0] * 26 + [-1.0] * 14  # of 40 values of 1 or -1, against the binomial
    assert reproduce.sign_flip(values) == reproduce.sign_flip(values) == pytest.approx(
        binomtest(26, 40).pvalue, abs=0.004)


@pytest.mark.parametrize("p_values, expected", [
    ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]), ([0.01, 0.005, 0.02, 0.02], [0.03, 0.02, 0.04, 0.04]),
    ([0.3, 0.6], [0.6, 0.6]), ([0.7, 0.8], [1, 1]), ([], [])])
def test_holm(p_values, expected):
    assert reproduce.holm(p_values) == pytest.approx(expected)


@pytest.mark.parametrize("values, expected", [
    ([1.0, 2, 3, 2, 2, 4], "held"), ([-1.0, -2, None, -2, -2, -3, -3], "not held"),
    ([1.0, 2, 3, None, 2, 2, 4], "undecided"), ([], "undecided"), ([5.0], "undecided"),
    ([0.1] * 9 + [30.0], "undecided")])  # the test rejects, but the interval holds 0
def test_verdicts(values, expected):
    assert reproduce.verdict(values, 0.049) == expected
    assert reproduce.verdict(values, 0.05) == "undecided"  # and the other way round


def test_claims_compare_the_same_seeds():
    def records_of(*values):
        return [argparse.Namespace(epoch=2, rows=[{"rho": 9.0}, {"rho": v}]) for v in values]

    arms = {"a": records_of(3.0, 4.5, None, 6.0), "b": records_of(1.0, 2.0, 3.0, 8.0)}
    assert reproduce.differences(Claim("", "rho", "a", "b"), arms) == [2.0, 2.5, None, -2.0]
    assert reproduce.differences(Claim("", "rho", "a"), arms) == [3.0, 4.5, None, 6.0]


# ---------------------------------------------------------------- measures

def record_of(tmp_path, gates, rows=(), **settings):
    """A Record of two operations: gates (epochs, edges, 2) of both cells; rows: what
    the last one has otherwise."""
    gates = np.stack([gates, gates], 1).astype(np.float32)
    folder = tmp_path / str(random.getrandbits(64))
    record = records.read(str(recorded_run(folder, TWO, gates=gates, **settings)))
    record.rows[-1].update(rows)
    return record


def test_what_is_measured(tmp_path):
    gates = np.stack([np.full(14, 0.3), np.linspace(0.2, 0.6, 14)], 1)
    gates[:3, 0] = 0.7
    record = record_of(tmp_path, gates[None], rows=dict(rho=0.25, gap_rounding=3.0,
                                                        soft_accuracy=95, discrete_accuracy=89.5))
    assert measures.value("rho", record) == 0.25 and measures.value("nothing", record) is None
    assert measures.value(measures.whole_gap, record) == 5.5
    later = record._replace(rows=[*record.rows, {**record.rows[0], "rho": 9.0}])
    assert measures.value("rho", later) == 0.25  # of the epoch that counts
    names = [edge.op for edge in record.genotype.normal]
    share = names.count("skip_connect") / len(names) - 1 / 2
    assert share < 0 and measures.skip_share(record) == share
    assert measures.skips_off_chance(record) == -share
    shared = record._replace(s=argparse.Namespace(shared_softmax="a,b"))
    assert measures.skip_share(shared) == share + 1 / 2 - measures.SHARED_CHANCE
    never = record_of(tmp_path, gates[None], threshold=0.99, gap=False)
    assert [measure(never) for measure in (
        measures.whole_gap, measures.skip_share, measures.skips_off_chance)] == [None] * 3


def test_gates_decide_and_skips_lead_over_epochs(tmp_path):
    """Gates that go from 0.5 in a straight line to (skip, sep_conv)."""
    line = np.linspace(0, 1, 20)[:, None, None]
    skips, saturated = (record_of(tmp_path, (0.5 + line * (np.array(ends) - 0.5))
                                  * np.ones((1, 14, 1))) for ends in ((0.6, 0.4), (0.05, 0.95)))
    # 0.45 * 11 / 19 is more than 0.25, 0.45 * 10 / 19 is not
    assert measures.decision_epoch(saturated) == 12 and measures.decision_epoch(skips) == 21
    assert measures.skips_beyond_chance(skips) == 8 - 4
    assert measures.skips_beyond_chance(saturated) == 0 - 4
    late = np.full((20, 14, 2), (0.4, 0.6))
    late[-2:] = 0.6, 0.4  # the last tenth
    assert measures.skips_beyond_chance(record_of(tmp_path, late)) == 8 - 4
    assert measures.decision_epoch(skips._replace(s=argparse.Namespace(gate="softmax"))) is None


def test_chance_where_two_of_three_share_a_softmax():
    """A node at a time: of its edges the two with the best gates, of each the best
    gate."""
    alphas = 0.1 * torch.randn(20000, 14, 3, generator=torch.Generator().manual_seed(0))
    best, op = cures.SharedSoftmax(torch.tensor([False, True, True]))(alphas).max(-1)
    found = [(op[:, first:first + n].gather(1, best[:, first:first + n].topk(2).indices) == 0)
             for first, n in ((0, 2), (2, 3), (5, 4), (9, 5))]
    assert torch.cat(found, 1).float().mean().item() == pytest.approx(
        measures.SHARED_CHANCE, abs=0.004)


NB201 = experiments.NB201
CONVOLUTIONS, SKIPS = ["nor_conv_3x3"] * 6, ["skip_connect"] * 6
THREE_SKIPS = [*["nor_conv_3x3"] * 3, *["skip_connect"] * 3]


def looked_up(*epochs, threshold=0.0, gates=None, **settings):
    """A Record in NAS-Bench-201's space whose epochs' best operations are named, six
    each; their gates are 0.9."""
    s = argparse.Namespace(**{
        **train_search.PARSER.defaults, "space": "nasbench201", "gate": "softmax",
        "primitives": ",".join(NB201), "threshold": threshold, "epochs": len(epochs), **settings})
    if gates is None:
        gates = np.float32([[[0.9 if op == name else 0.1 for op in NB201] for name in names]
                            for names in epochs])
    rows = [{"epoch": n, "derived_skips": names.count("skip_connect")}
            for n, names in enumerate(epochs, 1)]
    found = nasbench201.discretize_edges(gates[-1], threshold, NB201)
    return records.Record("a", s, SPACES["nasbench201"], NB201, {"normal": gates}, rows,
                          len(epochs), found if found.cell else None)


def test_what_is_looked_up():
    record = looked_up(CONVOLUTIONS, THREE_SKIPS, SKIPS)
    assert measures.accuracy(record) == measures.by_argmax(record) == 60.78
    assert measures.known("genotype_skips")(record) == 6
    longer = looked_up(*[CONVOLUTIONS] * 2, *[SKIPS] * 2, SKIPS, CONVOLUTIONS)
    assert measures.decline(record) == pytest.approx(93.24 - 60.78)
    assert measures.decline(longer) == pytest.approx((93.24 - 60.78) / 2)
    assert measures.known_curve("genotype_skips", record) == {1: 0, 2: 3, 3: 6}
    names = [*nasbench201.OPS]
    cells = [nasbench201.accuracies()[tuple(names.index(op) for op in cell)]
             for cell in itertools.product(NB201, repeat=6)]
    assert len(cells) == 4096 and round(sum(cells) / 4096, 2) == 89.21
    assert measures.over_random(record) == pytest.approx(60.78 - sum(cells) / 4096)
    gates = np.full((1, 6, 4), 0.2, np.float32)
    gates[0, :, 3] = 0.84
    nothing = looked_up(CONVOLUTIONS, gates=gates, threshold=0.85)
    assert measures.by_argmax(nothing) == 93.24
    assert measures.accuracy(nothing) is measures.over_random(nothing) is None


def test_searches_are_read_again(tmp_path):
    """As if they had ended at a number of skips, as the curvature grew, or with fewer
    skips kept."""
    gates = np.full((30, 14, 2), (0.4, 0.6))
    gates[9:, :, 0] = 0.9  # from the tenth epoch on skips lead
    record = record_of(tmp_path, gates, threshold=0, gate="softmax", w01=0.0, curvature_every=2)
    for row in record.rows:
        row["derived_skips"] = 8.0 if row["epoch"] >= 10 else 0.0
        row["curvature"] = 1.5 ** row["epoch"] if row["epoch"] % 2 else None
    record.s.epochs = 30
    ended = records.read_again(record, {"max_skips": 2})
    assert ended.epoch == 9 and {edge.op for edge in ended.genotype.normal} == {"sep_conv_3x3"}
    assert ended.rows == record.rows and ended.s.max_skips == 2
    stopped = records.read_again(record, {"max_curvature_ratio": 1.3})
    assert stopped.epoch == 11 and {e.op for e in stopped.genotype.normal} == {"skip_connect"}
    kept = records.read_again(record, {"keep_skips": 1})
    assert kept.epoch == 30
    assert [edge.op for edge in kept.genotype.normal].count("skip_connect") == 1
    record = looked_up(CONVOLUTIONS, THREE_SKIPS, SKIPS)
    limit = records.read_again(record, experiments.NASBENCH201.arms["limit"].flags)
    assert limit.epoch == 1 and measures.accuracy(limit) == 93.24
    assert measures.decline(limit) is None


def test_code_in_a_record_is_not_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = recorded_run(tmp_path / "run")
    np.savez(run / "gates.npz", normal=np.array([Malicious()], dtype=object))
    assert str(run) in refused(capsys, monkeypatch, visualize, run)
    assert not (run / "figures").exists() and not (tmp_path / "owned").exists()


# ---------------------------------------------------------------- the experiments, as data

def settings_of(experiment):
    """{arm: settings of its searches}, checked as train_search checks them."""
    parser, found = train_search.PARSER, {}
    for arm, a in experiment.arms.items():
        given = parser.parse_args(reproduce.words_of({**experiment.flags, **a.flags}))
        own = train_search.SOFTMAX if given.get("gate") == "softmax" else {}
        space = SPACES[given.get("space", "s1")]
        settings = {**parser.defaults, **space.SEARCH_DEFAULTS, **own,
                    **recipes.RECIPES["digits"].search, **given}
        found[arm] = {**found[a.of], **a.flags} if a.of in found else settings
        cures.check(argparse.Namespace(**found[arm]))
    return found


CURED = {**{(arm, "softmax"): {"curvature_every", *flags.split()} for arm, flags in {
    "late": "arch_start", "noise": "skip_noise noise_epochs", "sigmoid": "gate",
    "shared": "gate shared_softmax", "l01": "gate w01 threshold"}.items()},
    ("dropout", "late"): {"skip_dropout", "skip_dropout_schedule"},
    ("limit", "softmax"): {"max_skips"}, ("kept", "softmax"): {"keep_skips"},
    ("curvature", "softmax"): {"max_curvature_ratio"}}


@pytest.mark.parametrize("name, seeds, pairs", [
    ("digits", (31, 9), {("softmax", "sigmoid"): {"gate"}, ("l01", "l1"): {"zero_one_loss"},
                         ("sigmoid", "l01"): {"w01", "threshold"}}),
    ("cures", (51, 9), CURED), ("nasbench201", (71, 9), CURED),
    ("collapse", (201, 40), {("softmax", "sigmoid"): {"gate"}, ("l01", "l01_1.22"): {"w01"},
                             ("sigmoid", "l01"): {"w01", "threshold"}}),
    ("strength", (201, 40), {})])
def test_arms_differ_in_what_they_are_about(name, seeds, pairs):
    experiment = experiments.EXPERIMENTS[name]
    settings, arms, count = settings_of(experiment), experiment.arms, len(experiment.claims)
    for (one, other), names in pairs.items():
        assert {key for key in settings[one] if settings[one][key] != settings[other][key]} == names
    for arm, a in arms.items():
        if a.of and a.of not in arms:  # another experiment's searches, of the same seeds
            other, _, searched = a.of.partition("-")
            other = experiments.EXPERIMENTS[other]
            assert searched in other.arms and other.flags == experiment.flags
            assert (other.first, other.seeds) == seeds and not other.arms[searched].seeds
    if name == "cures":  # w01 is scaled by the number of gates
        s = settings["l01"]
        assert s["w01"] / len(s["primitives"].split(",")) == pytest.approx(10 / 7, rel=1e-4)
    assert {arm for claim in experiment.claims for arm in (claim.arm, claim.against)} <= {
        None, *arms}
    assert (experiment.first, experiment.seeds) == seeds
    # the least p-value, times the number of claims, of the claim of fewest seeds
    fewest = min(arms[claim.arm].seeds or seeds[1] for claim in experiment.claims)
    assert 2 / 2 ** fewest * count < reproduce.LEVEL


# ---------------------------------------------------------------- the harness

def tiny(monkeypatch):
    """An experiment of tiny searches, and an arm that is read again."""
    flags = dict(zip(*[iter(word.removeprefix("--") for word in TINY_SEARCH)] * 2))
    experiment = Experiment("Tiny", flags, {
        "softmax": Arm({"gate": "softmax", "w01": 0}), "kept": Arm({"keep_skips": 0}, "softmax"),
        "l01": Arm({"w01": 10})}, 7, 2, {"rho": "rho", "skips": measures.skip_share},
        [Claim("A", "rho", "softmax", "l01"), Claim("B", measures.skip_share, "kept")], "Notes.")
    monkeypatch.setitem(experiments.EXPERIMENTS, "tiny", experiment)
    return experiment


def record_commands(monkeypatch):
    """Commands are written down and not run."""
    commands = []
    monkeypatch.setattr(reproduce.subprocess, "run", lambda command, **_: (
        commands.append(command[2:]), argparse.Namespace(returncode=2, stderr="why", stdout=""))[1])
    return commands


def test_runs_are_started_resumed_or_refused(tmp_path, monkeypatch, capsys):
    commands, experiment = record_commands(monkeypatch), tiny(monkeypatch)
    words = [*reproduce.words_of(experiment.flags), "--gate", "softmax", "--w01", "0", "--nodes",
             "2", "--unrolled", "--seed", "7"]
    command = ["tiny", "--runs", tmp_path, "--jobs", 1, "--"]

    def first():
        commands.clear()
        assert "ended with 2: why" in refused(capsys, monkeypatch, reproduce, *command, "--nodes",
                                              2, "--unrolled")
        return commands[0]

    assert first() == ["train_search", *words, "--runs", str(tmp_path), "--name", "tiny-softmax-7"]
    run = recorded_run(tmp_path / "tiny-softmax-7")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "commands": [["x.py", *words]]}))
    assert first() == ["train_search", "--resume", str(run)]
    (run / "report.md").write_text("")  # finished
    assert first()[-1] == "tiny-softmax-8"
    commands.clear()
    assert f"'{run}' was started by other flags" in refused(
        capsys, monkeypatch, reproduce, *command, "--nodes", 3) and not commands


def test_genotypes_that_a_command_writes(tmp_path, monkeypatch):
    """An arm of so many seeds reads them in place of those of its searches, which may
    be another experiment's."""
    experiment, started, commands = tiny(monkeypatch), [], []
    for name in "tiny-softmax", "other-softmax":
        for seed in 7, 8:
            recorded_run(tmp_path / f"{name}-{seed}", TWO, seed=seed)
    written = genotypes.Genotype(*[[Edge("skip_connect", 2, 0)]] * 2)

    def run(command, **_):
        commands.append(command[2:])
        with open(os.path.join(command[-1], "other.json"), "w") as file:
            file.write(spaces.to_json(written))

    monkeypatch.setattr(reproduce.subprocess, "run", run)
    monkeypatch.setattr(reproduce, "run_all", lambda runs, jobs: started.extend(runs))
    experiment = experiment._replace(claims=[], arms={
        "softmax": experiment.arms["softmax"],
        "then": Arm({}, "softmax", ("other.json", "some.module", "--tune", "1"), 1),
        "others": Arm({}, "other-softmax", ("other.json", "some.module"))})
    for _ in range(2):  # the second time all is there
        found = reproduce.records_of("tiny", experiment,
                                     dict(runs=str(tmp_path), seeds=None, jobs=1), [])
    folders = [str(tmp_path / f"{name}-softmax-{seed}") for name in ("tiny", "other")
               for seed in (7, 8)]
    assert started == 2 * folders[:2]
    assert commands == [["some.module", "--tune", "1", folders[0]],
                        *(["some.module", folder] for folder in folders[2:])]
    assert {arm: [record.folder for record in own] for arm, own in found.items()} == {
        "softmax": folders[:2], "then": folders[:1], "others": folders[2:]}
    assert all((record.genotype == written) == (arm != "softmax")
               for arm, own in found.items() for record in own)
    assert ("- then: softmax's searches, read by `python -m some.module --tune 1 RUN`"
            in reproduce.page(experiment, found, ""))


@pytest.mark.slow
def test_an_experiment_runs_to_its_page(tmp_path, monkeypatch, capsys):
    """Real searches, the smallest there are; again, they are kept, and the page comes
    out the same, byte for byte."""
    tiny(monkeypatch)
    command = ["tiny", "--runs", tmp_path, "--jobs", 2, "--", "--epochs", 2]
    assert call(reproduce, monkeypatch, *command) == 0
    assert "4 of 4 runs to do" in capsys.readouterr().out
    text = (tmp_path / "tiny.md").read_text()
    assert f"`python -m study.reproduce {' '.join(map(str, command))}`: seeds from 7" in text
    assert "| A | 2 of 2 |" in text and "| B | 2 of 2 | -0.500 | -0.500 to -0.500 |" in text
    assert text.count("| undecided |") == 2
    assert "- kept: softmax's searches, read with `--keep_skips 0`" in text
    assert "| kept | " in text and "-0.50 ± 0.00 (2) |" in text
    commands = record_commands(monkeypatch)
    assert call(reproduce, monkeypatch, *command) == 0 and not commands  # all is there
    assert (tmp_path / "tiny.md").read_text() == text


# ---------------------------------------------------------------- random genotypes

@pytest.mark.parametrize("count", [3, 8])
def test_random_genotypes_are_uniform(count):
    """Over all cells of so many edges, found here by trying every set of edges."""
    edges = [(node, source) for node in range(2, 6) for source in range(node)]
    cells = [cell for cell in itertools.combinations(edges, count)
             if all(sum(node == j for node, _ in cell) <= 2 for j in range(2, 6))
             and all(source < 2 or any(node == source for node, _ in cell) for _, source in cell)]
    dice, primitives, draws = random.Random(count), ("a", "b", "c"), 20 * len(cells)
    drawn = [reproduce.random_cell(dice, count, primitives) for _ in range(draws)]
    kinds = Counter(tuple((edge.node, edge.source) for edge in cell) for cell in drawn)
    assert set(kinds) <= set(cells)
    assert chisquare([kinds[cell] for cell in cells]).pvalue > 1e-3
    for position in range(count):
        names = Counter(cell[position].op for cell in drawn)
        assert chisquare([names[op] for op in primitives]).pvalue > 1e-3


def test_random_genotypes_are_ranked(tmp_path, monkeypatch, capsys):
    def run(command, **_):  # in place of a training
        folder = tmp_path / command[-1]
        trained[str(folder)] = spaces.read(command[command.index("--arch") + 1])[1]
        folder.mkdir()
        (folder / "metrics.csv").write_text(f"epoch,test_accuracy\n1,97\n2,{94 + len(trained)}\n")
        (folder / "config.json").write_text(json.dumps({**config, "commands": [command[2:]]}))
        (folder / "report.md").write_text("")

    trained, config = {}, json.loads((recorded_run(tmp_path / "a") / "config.json").read_text())
    config["script"] = "train_eval"
    assert reproduce.macs_of(genotypes.FairDARTS_a) == pytest.approx(371.46, abs=0.01)
    monkeypatch.setattr(reproduce, "macs_of", lambda found: sum(map(ord, str(found))) % 9)
    monkeypatch.setattr(reproduce.subprocess, "run", run)
    command = ["--random", 4, "--skips", 3, "--macs", "5-6", "--jobs", 1, "--runs", tmp_path,
               "--", "--epochs", 2]
    assert call(reproduce, monkeypatch, *command) == 0
    text = (tmp_path / "random.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.split("\n")[4:-1]]
    assert [row[0] for row in rows] == ["98.00", "97.00", "96.00", "95.00"]
    assert len({arch for *_, arch in rows}) == 4
    for _, macs, folder, arch in rows:
        genotype = trained[folder.strip("`")]
        assert [*map(len, genotype)] == [8, 8] and str(genotype) == arch.strip("`")
        assert [edge.op for edge in genotype.normal].count("skip_connect") == 3
        assert float(macs) in (5, 6)
    assert not record_commands(monkeypatch) and call(reproduce, monkeypatch, *command) == 0
    monkeypatch.setattr(reproduce, "random_cell", lambda dice: genotypes.FairDARTS_a.normal)
    for wrong, message in ((["digits", "--random", 2], "give an experiment"),
                           ([], "give an experiment"), (["--random", 1, "--macs", "5"], "--macs"),
                           (["--random", 1, "--skips", 9], "none of 10,000")):
        assert message in refused(capsys, monkeypatch, reproduce, *wrong)


# ---------------------------------------------------------------- ties

def test_published_gates_are_kept_by_a_hair():
    """62 of the 64 kept gates of reduction cells, 5 of 31 of normal ones."""
    found = ties.published_ties()
    assert found["reduce"] == (62, 64, 50.75) and found["normal"][:2] == (5, 31)


# ---------------------------------------------------------------- figures

def test_figures_of_the_smallest_run(tmp_path, monkeypatch, capsys):
    folder = recorded_run(tmp_path / "run", ("dil_conv_5x5",), nodes=1, epochs=1, threshold=0)
    assert call(visualize, monkeypatch, folder) == 0
    assert capsys.readouterr().out.split() == [
        str(folder / "figures" / f"{name}.png") for name in FIGURES]
    for name in FIGURES:
        assert_picture(folder / "figures" / f"{name}.png")


def test_figures_of_several_runs_and_of_architectures(tmp_path, monkeypatch, capsys):
    folders = [recorded_run(tmp_path / "all" / str(seed), epochs=4, seed=seed, gate=gate,
                            zero_one_loss=loss) for seed, (gate, loss) in enumerate((
                                ("sigmoid", "l2"), ("sigmoid", "l1"), *[("softmax", "l2")] * 2))]
    assert call(visualize, monkeypatch, *folders) == 0
    assert call(visualize, monkeypatch, "FairDARTS_a", "--output",
                tmp_path / "all" / "comparison") == 0
    for name in "pair", "dominant", "heatmap", "gap", "FairDARTS_a_normal", "FairDARTS_a_reduce":
        assert_picture(tmp_path / "all" / "comparison" / f"{name}.png")
    for what, message in ((["FairDARTS_x"], "did you mean"), (["FairNAS_A"], "nothing to draw"),
                          ([tmp_path], "not the folder of a run")):
        assert message in refused(capsys, monkeypatch, visualize, *what)
    found = [records.read(str(folder)) for folder in folders]
    gap = figures.SIDE_BY_SIDE["gap"](*found)  # rounding, selection, both
    assert gap.axes[1].lines[0].get_ydata()[0] == 25 - 5.5
    found[2].rows[1]["skips_normal"], found[3].rows[1]["skips_normal"] = 4, 7
    normal, _ = figures.SIDE_BY_SIDE["dominant"](*found).axes  # each run, then their median
    assert [line.get_ydata()[1] for line in normal.lines[-3:]] == [4, 7, 5.5]
    assert figures.SIDE_BY_SIDE["derived"](*found) is None
    assert figures.SIDE_BY_SIDE["derived"](found[0], looked_up(CONVOLUTIONS)).axes
    smaller = recorded_run(tmp_path / "all" / "small", nodes=2)
    assert figures.draw_pair(found[0], records.read(str(smaller))) is None
    pair = figures.draw_pair(*found[1:3]).axes  # a row for each; the edge that skip leads most
    skips = found[1].gates["normal"][-1]
    others = np.delete(skips, PRIMITIVES.index("skip_connect"), 1).max(1)
    row = (skips[:, PRIMITIVES.index("skip_connect")] - others).argmax()
    for axes, record in zip(pair[1::2], found[1:3], strict=True):
        for line, path in zip(axes.lines, record.gates["normal"][:, row].T, strict=True):
            assert np.array_equal(line.get_ydata(), path)
    assert records.names_of(found) == [
        "Fair DARTS (L01), w01 10", "sigmoid, L'01, w01 10", "softmax", "softmax"]
    assert records.names_of(found[2:]) == ["2", "3"]  # alike: by their folders
    found[2].s.learning_rate, found[3].s.learning_rate, found[3].s.seed = 0.1, 0.2, 5
    assert records.names_of(found[2:]) == ["softmax, learning_rate 0.1",
                                           "softmax, learning_rate 0.2"]


def test_what_the_figures_show(tmp_path):
    gates = np.full((2, 2, 14, 7), 0.1, np.float32)
    skip, sep = PRIMITIVES.index("skip_connect"), PRIMITIVES.index("sep_conv_3x3")
    # first all skips, then all convolutions but for one, on the best edge of node 5
    gates[0, 0, :, skip] = gates[1, 0, :, sep] = 0.9
    gates[1, 0, -1, skip] = 0.95
    record = records.read(str(recorded_run(tmp_path / "run", gates=gates, threshold=0.85)))
    assert records.dominant_counts(record, "normal").tolist() == [
        [0, 0, 8, 0, 0, 0, 0], [0, 0, 1, 7, 0, 0, 0]]
    assert record.genotype is None  # the reduction cell has no edge
    assert not records.kept_gates(record, "normal").any()
    shares = figures.draw_penalty(record).axes[0].images[0].get_array()
    assert shares.shape == (40, 2) and np.allclose(shares.sum(0), 100)
    assert np.allclose(shares[36:].sum(0), [1400 / 196, 1500 / 196])
    gates[1, 1, 0, sep] = 0.9
    record = records.read(str(recorded_run(tmp_path / "other", gates=gates, threshold=0.85)))
    panels = figures.draw_heatmap(record).axes
    for axes, part, count in zip(panels, ("normal", "reduce"), (8, 1)):
        kept = records.kept_gates(record, part)
        assert kept.sum() == count and kept[0, sep] and kept[-1, skip] == (part == "normal")
        framed = [[round(frame.get_y()), round(frame.get_x())] for frame in axes.patches]
        assert sorted(framed) == np.argwhere(kept).tolist()


def test_medians_and_quartiles_of_what_is_derived():
    found = [looked_up(CONVOLUTIONS, names) for names in (CONVOLUTIONS, THREE_SKIPS, SKIPS)]
    accuracy, skips = figures.SIDE_BY_SIDE["derived"](*found).axes
    each = sorted([93.24, measures.accuracy(found[1]), 60.78])
    *thin, median, dashed = [line.get_ydata()[-1] for line in accuracy.lines]
    assert sorted(thin) == each and median == each[1] and dashed == measures.random_mean(found[0])
    band = accuracy.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(np.mean(each[:2]))  # of three, and 93.24 all at first
    assert [line.get_ydata()[-1] for line in skips.lines] == [0, 3, 6, 3]


def test_cells_are_drawn_without_overlap():
    full = [Edge(op, node, source)
            for node in range(2, 6) for source in range(node) for op in PRIMITIVES[:2]]
    for cell in [*genotypes.FairDARTS_a, *genotypes.DARTS_V2, full[:1], full]:
        figure = draw_cells.draw_cell(cell, "Normal cell")
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
        assert len(boxes) == len(cell) + 7
        names = [text.get_text() for text in figure.axes[0].texts]
        assert sorted(names[:len(cell)]) == sorted(edge.op for edge in cell)
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    grey = [c for c in draw_cells.draw_cell(genotypes.FairDARTS_a.normal, "").axes[0].patches
            if type(c).__name__ == "Circle" and c.get_facecolor()[0] < 0.9]
    assert len(grey) == 1  # nothing enters node 3


def test_search_draws_figures_and_survives_their_failure(tmp_path, monkeypatch, capsys):
    drawn, draw = [], visualize.draw_run
    monkeypatch.setattr(visualize, "draw_run",
                        lambda folder: drawn.append(1 / 0 if drawn else draw(folder)))
    assert call(train_search, monkeypatch, *TINY_SEARCH, "--epochs", 2, "--runs", tmp_path,
                "--name", "a", "--figures_every", 1, "--gap_every", 1) == 0
    assert [len(paths) for paths in drawn] == [5]
    assert "note: no figures: ZeroDivisionError" in capsys.readouterr().err
    assert len(table(tmp_path / "a")) == 2 and (tmp_path / "a" / "genotype.json").exists()
