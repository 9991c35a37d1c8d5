"""The two scripts as a user starts them: search, training, resuming, refusals."""
import copy
import functools
import json
import math
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

import fair_darts
import model_search
import train_eval
import train_search
from engine import batches, data, loop, recipes, texts
from engine.advice import explain_empty_cell
from engine.precision import Precision
from genotypes import PRIMITIVES, Edge, Genotype
from spaces import SPACES, nasbench201, s2
from speed import accelerate
from speed.accelerate import SearchedCell
from study import gap, records, visualize, watch
from test_fair_darts import close, gates_with
from tests.common import (FIGURES, SMALL_SEARCH, TINY_EVAL, TINY_SEARCH, assert_picture, call,
                          refused, table)
from use import classifier

load_genotype = functools.partial(texts.load, spaces=SPACES.values())


# of the digits, 215 pictures for the weights and as many for alpha
FEW = ["--train_fraction", 0.15, "--valid_fraction", 0.15, "--batch_size", 100]


def weights(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["network"]


def test_search_says_and_keeps_what_it_found(tmp_path, monkeypatch, capsys):
    assert call(train_search, monkeypatch, *SMALL_SEARCH, "--runs", tmp_path, "--name", "a",
                *FEW, "--arch_learning_rate", 1, "--gap_every", 2) == 0
    out = capsys.readouterr().out
    lines = [f"epoch {epoch}/2  NUMBER s  train loss" for epoch in (1, 2)]
    assert re.findall(r"epoch ./2  .*train loss", re.sub(r"\d+\.\d", "NUMBER", out)) == lines
    genotype = load_genotype(str(tmp_path / "a" / "genotype.json"))
    assert (str(genotype) in out
            and f"train_eval.py --arch {tmp_path / 'a' / 'genotype.json'}" in out)
    gates = np.load(tmp_path / "a" / "gates.npz")
    assert gates["normal"].shape == gates["reduce"].shape == (2, 5, 7)
    assert fair_darts.discretize(gates["normal"][-1], gates["reduce"][-1]) == genotype


def test_runs_repeat_by_their_seed(finished):
    """Searches a and b, trainings d and e, are of one seed: bit for bit."""
    for one, other in "ab", "de":
        first, second = weights(finished / one), weights(finished / other)
        assert all(torch.equal(value, second[name]) for name, value in first.items())
        assert table(finished / one) == table(finished / other)
    first, third = weights(finished / "a"), weights(finished / "c")
    assert not any(torch.equal(first[name], third[name]) for name in first
                   if name.startswith("alphas"))
    assert table(finished / "a") != table(finished / "c")


def test_a_search_with_more_epochs_is_a_longer_search(finished, tmp_path, monkeypatch):
    """The first epoch is at the highest rate, whatever follows."""
    shutil.copytree(finished / "a", tmp_path / "a")
    more = "--epochs", 2, "--gap_every", 0
    assert call(train_search, monkeypatch, "--resume", tmp_path / "a", *more) == 0
    assert call(train_search, monkeypatch, *TINY_SEARCH, *more, "--runs", tmp_path,
                "--name", "b") == 0
    one, other = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
                  for name in "ab")
    assert all(str(one[name]) == str(other[name]) for name in (
        "network", "sgd", "adam", "train", "validation", "gates"))
    one, other = (table(tmp_path / name) for name in "ab")
    assert one[1] == other[1] and {name for name in one[0] if one[0][name] != other[0][name]} <= {
        *gap.GAP}  # which was measured in the former last epoch


def test_search_without_a_gate_at_the_threshold(tmp_path, monkeypatch, capsys):
    assert call(train_search, monkeypatch, *SMALL_SEARCH, "--runs", tmp_path, "--name", "a",
                "--epochs", 1, *FEW, "--gap_every", 0) == 1
    out = capsys.readouterr().out
    assert "no gate of a cell reaches --threshold 0.85; the nearest is, normal cell: 0.5" in out
    assert not (tmp_path / "a" / "genotype.json").exists()
    again = out.strip().split("\n")[-1].split()  # the command that it proposes
    assert again[:2] == ["python", "train_search.py"]
    monkeypatch.setattr(data, "load", None)  # derives without the pictures
    assert call(train_search, monkeypatch, *again[2:]) == 0
    assert call(train_search, monkeypatch, "--resume", tmp_path / "a", "--threshold", 0.4) == 0
    assert len(load_genotype(str(tmp_path / "a" / "genotype.json")).normal) == 4


def small_search():
    """The settings of a small search on digits, its network, and the validation
    half."""
    s = Namespace(**{**train_search.PARSER.defaults, **recipes.RECIPES["digits"].search,
                     "init_channels": 2, "layers": 3, "nodes": 2})
    dataset = data.load("digits")
    torch.manual_seed(0)
    run = SimpleNamespace(config=data.facts(dataset))
    network = train_search.supernet(run, s)
    return s, network, list(batches.halves(s, dataset, torch.device("cpu")))[1]


def test_steps_of_a_search(tmp_path, monkeypatch):
    """Eq. 4: alpha's are on the validation half, those of the weights on the training
    half, with gradients no longer than --grad_clip."""
    names = torch.arange(1, 61, dtype=torch.uint8)  # each picture is of one grey, its name
    images, labels = names.view(60, 1, 1, 1).repeat(1, 1, 8, 8), torch.arange(60) % 3
    made = data.Dataset("digits", images, labels, images, labels, [*"abc"], torch.zeros(1),
                        torch.ones(1))
    forward, step = model_search.Network.forward, Precision.step
    seen, norms = {"alpha": set(), "weights": set()}, []

    def seeing(network, images, *gates):
        if torch.is_grad_enabled():
            whose = "alpha" if network.alphas[0].requires_grad else "weights"
            seen[whose] |= set(images.amax((1, 2, 3)).tolist())
        return forward(network, images, *gates)

    def measuring(self, sgd):
        slopes = [w.grad for w in sgd.param_groups[0]["params"] if w.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(slopes).item())
        step(self, sgd)

    monkeypatch.setattr(data, "load", lambda *_, **__: made)
    monkeypatch.setattr(model_search.Network, "forward", seeing)
    monkeypatch.setattr(Precision, "step", measuring)
    assert call(train_search, monkeypatch, *TINY_SEARCH, "--batch_size", 10, "--grad_clip", 0.01,
                "--gap_every", 0, "--runs", tmp_path) == 0
    first, second = (set(names[part].tolist()) for part in batches.split(60, 0.5, seed=0))
    assert seen == {"weights": first, "alpha": second}
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


def test_discretisation_gap(monkeypatch):
    s, network, v = small_search()
    v.images, v.labels = v.images[:300], v.labels[:300]  # more than a batch of 256
    images, labels = v.next()
    F.cross_entropy(network(images), labels).backward()  # moves the running statistics
    with torch.no_grad():
        for alpha in network.alphas:
            alpha.copy_(3 * torch.randn(alpha.shape, generator=torch.Generator().manual_seed(0)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    run = SimpleNamespace(watched=lambda batches: batches)
    row = gap.gap(run, network, v, s)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()
               if not name.endswith("num_batches_tracked"))  # which nobody reads
    fast = accelerate(copy.deepcopy(network))
    before = copy.deepcopy(fast.state_dict())
    assert gap.gap(run, fast, v, s) == pytest.approx(row, abs=1)  # three pictures
    assert all(torch.equal(value, before[name]) for name, value in fast.state_dict().items())
    # the same by hand: a copy of the network whose gates are set, in one batch of
    # statistics at a time
    other = copy.deepcopy(network)
    genotype = fair_darts.discretize(*(torch.sigmoid(alpha) for alpha in network.alphas))
    assert genotype.normal and genotype.reduce
    pairs = [(node, source) for node in (2, 3) for source in range(node)]
    soft = [torch.sigmoid(alpha.detach()) for alpha in network.alphas]
    hard = [(gates >= 0.5).float() for gates in soft]
    discrete = [torch.tensor([[float(Edge(op, *pair) in cell) for op in PRIMITIVES]
                              for pair in pairs]) for cell in genotype]
    best = []  # the two edges of each node whose best gate is highest
    for gates in soft:
        highest, rows = gates.max(1).values.tolist(), [[0, 1], [2, 3, 4]]
        kept = [row for node in rows for row in sorted(node, key=lambda r: -highest[r])[:2]]
        best.append(torch.tensor([[float(row in kept)] for row in range(5)]))
    accuracies = []
    for gates, masks in ((soft, None), (soft, best), (soft, discrete), (hard, None), (hard, best),
                         (discrete, None)):
        hits = 0
        with torch.no_grad():
            for images, labels in zip(v.images.split(256), v.labels.split(256)):
                used = [g * m for g, m in zip(gates, masks)] if masks else gates
                hits += (other.train()(batches.normalize(images, v.mean, v.std), used).argmax(1)
                         == labels).sum().item()
        accuracies.append(100 * hits / len(v.labels))
    g, ge, gs, r, re, d = accuracies
    assert row["soft_accuracy"] == g != row["discrete_accuracy"] == d
    assert row["gap_rounding"] == ((g - r) + (gs - d)) / 2
    assert row["gap_edges"] + row["gap_operations"] == pytest.approx(
        g - d - row["gap_rounding"], abs=1e-12)  # all of the rest is selection
    assert row["gap_edges"] == ((g - ge) + (r - re)) / 2
    with monkeypatch.context() as patch:  # an empty cell gives no gap
        patch.setattr(model_search.Network, "genotype", lambda *_, **__: Genotype([], [1]))
        assert gap.gap(run, network, v, s) == {}
    # gates that are 0 and 1 already, and as a genotype has them: no gap at all
    with torch.no_grad():
        for alpha, matrix in zip(network.alphas, discrete):
            alpha.copy_(2000 * matrix - 1000)
    row = gap.gap(run, network, v, s)
    assert row["soft_accuracy"] == row["discrete_accuracy"]


def test_line_of_an_epoch():
    """Two accuracies of one supernet are told apart; argmax has no threshold to count
    by."""
    s, network, _ = small_search()
    s.threshold = 0.5
    row = dict(train_loss=1, train_accuracy=2, valid_loss=3, valid_accuracy=4, penalty=-0.1,
               soft_accuracy=5, discrete_accuracy=6, gap_rounding=-0.6, gap_edges=-1.6,
               gap_operations=1.2, **gap.count_gates(network, s))
    lines = watch.Watch(SimpleNamespace(), s, network).lines
    assert lines(row) == """train loss 1.0000 acc 2.00%  valid loss 3.0000 acc 4.00%
  l2 penalty -0.1000  gates 0.50 to 0.50, rho 1.00, 70 above, 70 below  dominant skips: \
normal 0, reduce 0
  gap, by batch statistics: 5.00% - 6.00%, rounding -1, selection -0"""
    row["curvature"] = 1234.5
    assert lines(row).endswith("selection -0\n  curvature 1.23e+03")
    s.threshold = 0
    row.update(gap.count_gates(network, s), soft_accuracy=None, curvature=None)
    assert row["gates_above"] is None and "above" not in lines(row)
    assert lines(row).count("\n") == 1


def test_lines_of_an_epoch_are_narrow():
    """Whatever their numbers: 110 columns at most, also in S2 and with the run's own
    prefix."""
    s = Namespace(**train_search.PARSER.defaults)
    row = dict(train_loss=10.12345, train_accuracy=100, valid_loss=10.12345, valid_accuracy=100,
               penalty=-0.25, soft_accuracy=100, discrete_accuracy=100, gap_rounding=-99,
               gap_edges=-99, gap_operations=0, curvature=-1.23e-10, gate_min=0, gate_max=1,
               rho=1, gates_above=98, gates_below=98)
    for skips in dict(skips_normal=14, skips_reduce=14), dict(skips_layers=19):
        text = watch.Watch(SimpleNamespace(), s, None).lines({**row, **skips})
        first, *others = text.split("\n")
        assert len(f"epoch 600/600  99999.9 s  {first}") <= 110
        assert len(others) == 3 and all(len(line) <= 110 for line in others)


def test_search_over_a_few_operations(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished / "a", tmp_path / "a")
    gates = np.load(tmp_path / "a" / "gates.npz")
    assert (gates["primitives"].tolist() == ["skip_connect", "sep_conv_3x3"]
            and gates["normal"].shape == (1, 2, 2))
    genotype = load_genotype(str(tmp_path / "a" / "genotype.json"))
    assert {edge.op for cell in genotype for edge in cell} <= {"skip_connect", "sep_conv_3x3"}
    assert call(train_search, monkeypatch, "--resume", tmp_path / "a",
                "--primitives", "sep_conv_3x3,skip_connect") == 0  # in any order
    assert "--primitives sep_conv_5x5 contradicts" in refused(
        capsys, monkeypatch, train_search, "--resume", tmp_path / "a",
        "--primitives", "sep_conv_5x5")
    chosen = gates_with(("sep_conv_5x5", 2, 1, 0.9))[:, [2, 4]]
    assert fair_darts.discretize(
        chosen, chosen, primitives=["skip_connect", "sep_conv_5x5"]).normal == [
            Edge("sep_conv_5x5", 2, 1)]


def test_own_operations_through_both_scripts(own_operations, tmp_path, monkeypatch, capsys):
    """Searched, resumed, drawn, discretised, read from JSON and from text, trained."""
    names = "skip_connect,sep_conv_3x3,none,conv_7x1_1x7"  # as OPS has them
    assert call(train_search, monkeypatch, *TINY_SEARCH, "--runs", tmp_path, "--name", "a",
                "--primitives", names, "--arch_learning_rate", 1, "--gap_every", 0) == 0
    assert call(train_search, monkeypatch, "--resume", tmp_path / "a", "--epochs", 2,
                "--figures_every", 1, "--gap_every", 1) == 0
    assert np.load(tmp_path / "a" / "gates.npz")["primitives"].tolist() == names.split(",")
    for name in FIGURES:
        assert_picture(tmp_path / "a" / "figures" / f"{name}.png")
    found = load_genotype(str(tmp_path / "a" / "genotype.json"))
    assert {edge.op for cell in found for edge in cell} & {"none", "conv_7x1_1x7"}
    assert classifier.genotype_of(str(found)) == found
    text = ("Genotype(normal=[('conv_7x1_1x7', 2, 0), ('none', 2, 1)], "
            "reduce=[('conv_7x1_1x7', 2, 0), ('none', 2, 1)])")
    assert call(train_eval, monkeypatch, *TINY_EVAL, "--runs", tmp_path, "--arch", text,
                "--name", "eval") == 0


def test_own_penalty(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(fair_darts.PENALTIES, "l4", lambda gates: -((gates - 0.5) ** 4).mean())
    assert call(train_search, monkeypatch, *TINY_SEARCH, "--runs", tmp_path, "--name", "a",
                "--zero_one_loss", "l4", "--gap_every", 0) == 0
    assert "  l4 penalty -0.0" in capsys.readouterr().out
    record = records.read(str(tmp_path / "a"))
    assert records.setting(record) == "sigmoid, w01 10, l4"
    [path] = visualize.save({"penalty": visualize.figures_of(record)["penalty"]}, str(tmp_path))
    assert_picture(path)


def test_plain_runs_and_goes_on_as_a_fast_one(tmp_path, monkeypatch):
    kinds = set()
    forwards = {kind: kind.forward for kind in (model_search.Cell, SearchedCell)}

    def watched(kind, self, *inputs):
        kinds.add(type(self))
        return forwards[kind](self, *inputs)

    for kind in forwards:
        monkeypatch.setattr(kind, "forward", functools.partialmethod(
            lambda self, *inputs, kind: watched(kind, self, *inputs), kind=kind))
    search = [*TINY_SEARCH, "--runs", tmp_path, "--name"]
    assert call(train_search, monkeypatch, *search, "a", "--plain") == 0
    assert kinds == {model_search.Cell}
    kinds.clear()
    assert call(train_search, monkeypatch, *search, "b") == 0
    assert kinds == {SearchedCell}
    # timed on a GPU alone, and of no use elsewhere
    rows = [{key: float(value) for key, value in table(tmp_path / name)[0].items() if value}
            for name in "ab"]
    assert rows[0] == pytest.approx(rows[1], rel=0.02, abs=0.6)  # the same search, but for rounding
    kinds.clear()
    assert call(train_search, monkeypatch, "--resume", tmp_path / "a", "--epochs", 2,
                "--no-plain") == 0
    assert kinds == {SearchedCell}


def test_search_in_the_space_of_the_benchmark(pictures, tmp_path, monkeypatch, capsys):
    """On digits: what an epoch says, figures, a cell that comes out empty and is
    derived again; training of what was found. With all flags that the space knows."""
    common = ["--space", "nasbench201", "--dataset", "digits", "--batch_size", 100, "--epochs", 2,
              "--runs", tmp_path, "--name"]
    assert call(train_search, monkeypatch, *common, "a", "--figures_every", 2,
                "--arch_learning_rate", 0.01) == 1
    out = capsys.readouterr().out
    assert "derived |none~0|+|none~0|none~1|+|none~0|none~1|none~2|: 10.00%, rank 15,285" in out
    assert "the nearest is, normal cell: 0." in out and " → " in out
    again = shlex.split(out.strip().split("\n")[-1])
    assert call(train_search, monkeypatch, *again[2:]) == 0
    path = tmp_path / "a" / "genotype.json"
    gates = np.load(tmp_path / "a" / "gates.npz")
    assert gates["normal"].shape == (2, 6, 4)
    assert gates["primitives"].tolist() == [*nasbench201.OPS][:4]
    found = nasbench201.discretize_edges(gates["normal"][-1], float(again[-1]))
    assert load_genotype(str(path)) == found and str(found) in capsys.readouterr().out
    names = sorted(file.stem for file in (tmp_path / "a" / "figures").iterdir())
    # an empty cell has no gap
    assert names == ["cell_normal", "dominant", "gates", "heatmap", "penalty"]
    for name in names:
        assert_picture(tmp_path / "a" / "figures" / f"{name}.png")
    assert call(train_search, monkeypatch, *common, "b", "--gate", "softmax", "--primitives",
                "none,skip_connect,nor_conv_3x3,nor_conv_1x1", "--unrolled", "--single_level",
                "--skip_dropout", 0.2, "--skip_noise", 1, "--keep_skips", 0, "--max_skips", 6,
                "--curvature_every", 1, "--gap_every", 1, "--recompute", "--figures_every", 0,
                "--init_channels", 4, "--stage_cells", 2, "--epochs", 1) == 0
    [row] = table(tmp_path / "b")
    kept = load_genotype(str(tmp_path / "b" / "genotype.json"))
    assert float(row["benchmark_accuracy"]) == nasbench201.known(kept)["benchmark_accuracy"]
    assert row["genotype_skips"] == "0" and float(row["curvature"]) != 0
    assert call(train_search, monkeypatch, *common, "c", "--shared_softmax",
                "nor_conv_1x1,nor_conv_3x3", "--arch_start", 1, "--threshold", 0, "--amp",
                "--figures_every", 0) == 0
    for extra in [], ["--plain"]:
        assert call(train_eval, monkeypatch, "--arch", kept, "--dataset", "digits", "--epochs", 1,
                    "--batch_size", 400, "--init_channels", 4, "--stage_cells", 1, "--runs",
                    tmp_path, "--name", f"d{len(extra)}", *extra) == 0
    assert call(train_eval, monkeypatch, "--evaluate", tmp_path / "d0") == 0
    assert call(visualize, monkeypatch, tmp_path / "a", tmp_path / "b", "--output",
                tmp_path / "both") == 0
    for name in "dominant", "derived":
        assert_picture(tmp_path / "both" / f"{name}.png")
    for name, old, new, message in (  # damaged
            ("metrics.csv", "benchmark_rank", "epoch", "metrics.csv cannot be read"),
            ("genotype.json", '"cell"', '"cell": [], "was"', "exactly two cells")):
        file = tmp_path / "a" / name
        whole = file.read_text()
        file.write_text(whole.replace(old, new))
        assert message in refused(capsys, monkeypatch, visualize, tmp_path / "a")
        file.write_text(whole)


def test_what_is_said_of_an_empty_cell():
    """The nearest gate, never one of none, and the highest threshold that gives a cell;
    where none is best, that no threshold does."""
    def said(gates):
        s = Namespace(keep_skips=-1, threshold=0.85, epochs=25)
        names = ["skip_connect", "nor_conv_3x3", "none"]

        def derive(threshold=0.85):
            return nasbench201.discretize_edges(gates, threshold, names)

        message, flag = explain_empty_cell(["normal"], names, nasbench201.row_names(6), s, [gates],
                                           derive)
        if flag.startswith("--threshold"):
            threshold = float(flag.split()[1])
            assert derive(threshold).cell and not derive(threshold + 0.0101).cell
        return message, flag

    gates = torch.full((6, 3), 0.4)
    gates[:, 2] = 0.7
    assert said(gates) == (
        "none is the best operation of so many edges that no threshold gives a cell. Search "
        "without it (--primitives), or go on:", "--epochs 50")
    gates[4, 1] = 0.95  # 1 to 3, where nothing enters 1
    assert "no threshold" in said(gates)[0]
    gates[3, 1], gates[4, 1], gates[5, 2] = 0.8055, 0.4, 0.84
    message, flag = said(gates)
    assert "the nearest is, normal cell: 0.8055, nor_conv_3x3, 0 → 3." in message
    assert flag == "--threshold 0.8"
    gates[:] = torch.tensor([0.1, 0.405, 0.1])
    gates[0] = torch.tensor([0.1, 0.605, 0.7])  # none is best on 0 to 1
    assert said(gates)[1] == "--threshold 0.4"
    gates[0], gates[2, 1] = gates[1], 0.905  # 1 to 2 leads nowhere
    message, flag = said(gates)
    assert "do not lead from an input to the output" in message and flag == "--threshold 0.4"


def test_search_in_chains(pictures, tmp_path, monkeypatch, capsys):
    """S2 on digits and on a picture folder, both gate kinds, figures, derived again,
    then the training of what was found."""
    common = ["--space", "s2", "--width", 0.1, "--epochs", 1, "--runs", tmp_path, "--name"]
    digits = ["--dataset", "digits", "--batch_size", 50, "--train_fraction", 0.08,
              "--valid_fraction", 0.08]
    assert call(train_search, monkeypatch, *common, "a", *digits, "--arch_learning_rate", 2,
                "--figures_every", 1) == 0
    gates = np.load(tmp_path / "a" / "gates.npz")
    assert gates["layers"].shape == (1, 19, 7) and np.isnan(gates["layers"]).sum() == 6
    assert gates["primitives"].tolist() == list(s2.CHOICES)
    names = sorted(path.stem for path in (tmp_path / "a" / "figures").iterdir())
    assert names == ["chain", "dominant", "gap", "gates", "heatmap", "penalty"]
    for name in names:
        assert_picture(tmp_path / "a" / "figures" / f"{name}.png")
    chain = load_genotype(str(tmp_path / "a" / "genotype.json"))
    assert (str(chain) in capsys.readouterr().out
            and chain == s2.discretize_chain(gates["layers"][-1]))
    assert table(tmp_path / "a")[0]["skips_layers"].isdigit()
    assert call(train_search, monkeypatch, "--resume", tmp_path / "a", "--ops_per_layer", 2,
                "--threshold", 0, "--figures_every", 0) == 0
    assert {len(names) for names in
            load_genotype(str(tmp_path / "a" / "genotype.json")).layers} == {2}
    folder = ["--dataset", "folder", "--data", pictures, "--image_size", 8, "--batch_size", 16]
    assert call(train_search, monkeypatch, *common, "b", *folder, "--gate", "softmax",
                "--figures_every", 0, "--gap_every", 0) == 0
    assert call(train_eval, monkeypatch, "--arch", tmp_path / "b" / "genotype.json", *folder,
                *common[2:], "c", "--squeeze") == 0
    assert call(train_eval, monkeypatch, "--evaluate", tmp_path / "c") == 0


def test_empty_cell_is_not_written(tmp_path, monkeypatch, capsys):
    """Gates above the threshold, but only on an edge that leaves a node
    which nothing enters.
    """
    run = loop.Run(str(tmp_path), {"script": "train_search"})
    s = Namespace(**{**train_search.PARSER.defaults, "epochs": 1})
    network = model_search.Network(2, layers=1)
    gates = torch.stack([gates_with(("sep_conv_3x3", 2, 0, 0.9)),
                         gates_with(("sep_conv_3x3", 5, 4, 0.9))])
    run.rows = [{"epoch": 1, "valid_accuracy": 1.0}]
    monkeypatch.setattr(train_search, "write_report", lambda *_: None)
    watching = watch.Watch(run, s, network)
    watching.epochs, watching.draw = [gates], lambda: None
    assert train_search.derive(run, s, network, watching) == 1
    out = capsys.readouterr().out
    assert "reduce cell is empty" in out and out.endswith("--threshold 0.1\n")
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]


def test_softmax_and_unrolled_search(tmp_path, monkeypatch):
    assert call(train_search, monkeypatch, *SMALL_SEARCH, "--runs", tmp_path, "--name", "a",
                "--gate", "softmax", "--epochs", 1, "--unrolled", *FEW, "--gap_every", 0) == 0
    settings = json.loads((tmp_path / "a" / "config.json").read_text())["settings"]
    assert (settings["learning_rate"], settings["arch_learning_rate"], settings["w01"]) == (
        0.025, 0.05, 0)  # digits's own rates, not DARTS's
    # argmax: two edges a node
    assert len(load_genotype(str(tmp_path / "a" / "genotype.json")).normal) == 4


class OneLayer(nn.Module):
    """A network of one layer, and a head of one, in float64."""

    def __init__(self):
        super().__init__()
        self.classifier, self.auxiliary = (nn.Linear(64, 10, dtype=torch.double) for _ in range(2))

    def forward(self, images):
        x = images.double().flatten(1)
        return self.classifier(x), self.auxiliary(x) if self.training else None


def test_steps_of_a_training_by_hand(tmp_path, monkeypatch):
    """Smoothed labels, the weighted head, clipped gradients, SGD, a cosine; two steps,
    an epoch each."""
    torch.manual_seed(0)
    network, given, following = OneLayer(), [], batches.Batches.next
    weights = [w.detach().clone().requires_grad_() for w in network.parameters()]
    monkeypatch.setattr(classifier, "build", lambda *_: network)
    monkeypatch.setattr(batches.Batches, "next",
                        lambda stream: given.append(following(stream)) or given[-1])
    assert call(train_eval, monkeypatch, *TINY_EVAL, "--plain", "--epochs", 2, "--batch_size", 1437,
                "--label_smooth", 0.2, "--auxiliary_weight", 0.7, "--grad_clip", 0.1,
                "--learning_rate", 0.5, "--momentum", 0.8, "--weight_decay", 0.03,
                "--drop_path_prob", 0.3, "--runs", tmp_path, "--name", "a") == 0
    velocities = [0] * 4
    for rate, (images, labels) in zip((0.5, 0.25), given, strict=True):
        total = 0
        for share, matrix, offset in ((1, *weights[:2]), (0.7, *weights[2:])):
            logs = (images.double().flatten(1) @ matrix.T + offset).log_softmax(1)
            targets = 0.8 * F.one_hot(labels, 10) + 0.2 / 10
            total = total - share * (targets * logs).sum(1).mean()
        slopes = torch.autograd.grad(total, weights)
        norm = sum((slope ** 2).sum() for slope in slopes).sqrt()
        assert norm > 0.2
        velocities = [0.8 * v + 0.1 / norm * slope + 0.03 * w.detach()
                      for v, slope, w in zip(velocities, slopes, weights)]
        weights = [(w.detach() - rate * v).requires_grad_() for w, v in zip(weights, velocities)]
    assert all(close(w, expected, 1e-6) for w, expected in zip(network.parameters(), weights))
    assert [float(row["drop_path_prob"]) for row in table(tmp_path / "a")] == [0, 0.15]


def test_figures_of_a_test():
    """The loss, the share of pictures whose label is the first, and among the first
    five."""
    network = OneLayer()
    network.forward = lambda images: (images, None)
    logits = torch.arange(7.0).flip(0).repeat(8, 1)
    labels = torch.tensor([0, 0, 1, 3, 4, 5, 6, 6])
    loss, first, five = train_eval.test(network, [(logits[:5], labels[:5]), (logits, labels)])
    logs = [math.log(math.exp(6 - label) / sum(map(math.exp, range(7))))
            for label in [*labels[:5].tolist(), *labels.tolist()]]
    assert loss == pytest.approx(-sum(logs) / 13)
    assert (first, five) == pytest.approx((100 * 4 / 13, 100 * 10 / 13))


def test_evaluation_runs_and_resumes(finished, tmp_path, monkeypatch, capsys):
    """Of accuracies that fall and rise again, best.pt has the first."""
    test, found, less = train_eval.test, [], iter([0, 2, 1])

    def falling(network, pairs):
        found.append(test(network, pairs))
        loss, accuracy, top5 = found[0]
        return loss, accuracy - next(less), top5

    monkeypatch.setattr(train_eval, "test", falling)
    assert call(train_eval, monkeypatch, *TINY_EVAL, "--epochs", 2, "--runs", tmp_path,
                "--arch", "FairDARTS_e", "--name", "a", "--seed", 1) == 0
    out = capsys.readouterr().out
    assert "parameters" in out and "M MACs" in out and out.count("test loss") == 2
    name = "classifier.weight"
    assert not torch.equal(weights(tmp_path / "a")[name], weights(finished / "d")[name])
    rows = table(tmp_path / "a")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(train_eval, "test", test)
        assert call(train_eval, patch, "--evaluate", tmp_path / "a") == 0
    assert (f"epoch 1  test loss {found[0][0]:.4f} acc {found[0][1]:.2f}%"
            in capsys.readouterr().out)
    assert call(train_eval, monkeypatch, "--resume", tmp_path / "a", "--epochs", 3) == 0
    assert len(table(tmp_path / "a")) == 3 and table(tmp_path / "a")[:2] == rows
    assert [torch.load(tmp_path / "a" / name, weights_only=True)["epoch"]
            for name in ("weights.pt", "best.pt")] == [3, 1]


def test_weights_are_tested_in_the_precision_of_their_run(tmp_path, monkeypatch, capsys):
    assert call(train_eval, monkeypatch, *TINY_EVAL, "--amp", "--runs", tmp_path, "--name",
                "a") == 0
    [row] = table(tmp_path / "a")
    capsys.readouterr()
    assert call(train_eval, monkeypatch, "--evaluate", tmp_path / "a") == 0
    assert f"test loss {float(row['test_loss']):.4f} acc" in capsys.readouterr().out
    dtypes = set()
    monkeypatch.setattr(train_eval, "test", lambda network, pairs: dtypes.add(
        network.cells[0].preprocess_1[1].register_forward_hook(
            lambda module, inputs, output: dtypes.add(output.dtype))) or network.eval()(
                next(iter(pairs))[0]) and (0, 0, 0))
    assert call(train_eval, monkeypatch, "--evaluate", tmp_path / "a") == 0
    assert torch.bfloat16 in dtypes


def test_scripts_on_a_picture_folder(pictures, tmp_path, monkeypatch, capsys):
    """As a user starts them: a search in a process of its own, then the command that it
    prints."""
    done = subprocess.run([sys.executable, *map(str, (
        "train_search.py", "--dataset", "folder", "--data", pictures, "--image_size", 16,
        "--init_channels", 2, "--layers", 3, "--batch_size", 8, "--epochs", 2, "--nodes", 2,
        "--arch_learning_rate", 0.5, "--figures_every", 0, "--runs", tmp_path,
        "--name", "search"))], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == ""
    command = done.stdout.strip().split("\n")[-1].split()
    assert command[:2] == ["python", "train_eval.py"]
    monkeypatch.setattr(sys, "argv", [*command[1:], *map(str, (
        "--init_channels", 4, "--layers", 3, "--batch_size", 8, "--epochs", 8, "--runs", tmp_path,
        "--name", "eval", "--drop_path_prob", 0, "--no-cutout"))])
    monkeypatch.setattr("warnings.showwarning", None)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path("train_eval.py", run_name="__main__")
    assert not stop.value.code and capsys.readouterr().err == ""
    rows = table(tmp_path / "eval")
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert max(float(row["test_accuracy"]) for row in rows) > 80


def test_refusals_of_folders_and_runs(finished, tmp_path, monkeypatch, capsys):
    def refusal(script, *arguments):
        return refused(capsys, monkeypatch, script, *arguments, "--runs", tmp_path / "runs")

    for part in ("train", "test"):
        (tmp_path / "one" / part / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "one" / part / "cat" / "a.png")
    folder = ["--dataset", "folder", "--data", tmp_path / "one"]
    assert "only one class, 'cat'" in refusal(train_search, *folder)
    (tmp_path / "one" / "train" / "dog").mkdir()
    assert "dog" in refusal(train_search, *folder)  # an empty class
    (tmp_path / "one" / "train" / "dog" / "a.png").write_text("no picture")
    assert "1 of 2 files cannot be used as pictures: dog/a.png (" in refusal(train_search, *folder)
    Image.new("RGB", (8, 8)).save(tmp_path / "one" / "train" / "dog" / "a.png")
    assert "one class" in refusal(train_search, *folder)  # test/ has cats only
    (tmp_path / "runs" / "old").mkdir(parents=True)
    assert "exists already" in refusal(train_eval, *TINY_EVAL, "--name", "old")
    run = finished / "d"
    assert "run of train_eval.py" in refusal(train_search, "--resume", run)
    assert "--layers 5 contradicts" in refusal(train_eval, "--resume", run, "--layers", 5)
    assert "--arch Genotype(" in refusal(train_eval, "--resume", run, "--arch", "FairDARTS_b")
    assert "--arch FairDARTS_a" not in refusal(train_eval, "--resume", run,
                                               "--arch", "FairDARTS_a", "--layers", 5)


def test_bad_pictures_are_named_counted_and_left_out_on_request(pictures, tmp_path, monkeypatch,
                                                                capsys):
    root = tmp_path / "pictures"
    shutil.copytree(pictures, root)
    (root / "train" / "red" / "text.png").write_text("no picture")
    (root / "train" / "red" / "empty.jpg").touch()
    whole = (root / "train" / "blue" / "1.png").read_bytes()
    (root / "train" / "blue" / "cut.png").write_bytes(whole[:len(whole) // 2])
    deep = Image.fromarray(np.full((9, 9), 0.5, np.float32))
    deep.save(root / "train" / "blue" / "deep.tif")
    search = ["--dataset", "folder", "--data", root, "--image_size", 8, "--init_channels", 2,
              "--layers", 3, "--nodes", 1, "--batch_size", 8, "--epochs", 1, "--threshold", 0,
              "--figures_every", 0, "--gap_every", 0, "--runs", tmp_path / "runs", "--name", "a"]
    assert call(train_search, monkeypatch, *search) == 2
    captured = capsys.readouterr()
    assert (captured.err.count("\n") == 1 and "4 of 36 files cannot be used" in captured.err
            and captured.out == "")
    for part in ("cut.png (", "deep.tif (mode F", "empty.jpg (", "text.png (",
                 "--skip_bad_images"):
        assert part in captured.err
    assert not (tmp_path / "runs").exists()
    assert call(train_search, monkeypatch, *search, "--skip_bad_images") == 0
    captured = capsys.readouterr()
    assert ("4 of 36 files" in captured.err and "16 + 16 pictures" in captured.out
            and "--skip_bad_images" in captured.out)
    for path in (root / "test" / "red").iterdir():
        path.write_text("no picture")
    assert call(train_search, monkeypatch, *search, "--skip_bad_images") == 2
    assert "class 'red' has no picture that can be used" in capsys.readouterr().err
