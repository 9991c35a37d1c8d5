"""The two scripts as a user starts them: search, training, resuming, refusals."""
import copy
import functools
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
from engine import batches, data, recipes
from engine.advice import explain_empty_cell
from engine.precision import Precision
from genotypes import PRIMITIVES, Edge
from spaces import SPACES, nasbench201, read, s2
from speed import accelerate
from speed.accelerate import SearchedCell
from study import cures, gap, records
from test_fair_darts import close
from tests.common import (FIGURES, TINY_EVAL, TINY_SEARCH, assert_picture, call, refused,
                          table)
from use import classifier

def weights(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["network"]


def found(folder):
    return read(str(folder / "genotype.json"))[1]


# ---------------------------------------------------------------- search

def test_another_seed_is_another_search(finished, tmp_path, monkeypatch):
    """That the same one is the same search, the tests of killed runs see."""
    assert call(train_search, monkeypatch, *TINY_SEARCH, "--runs", tmp_path, "--name", "a",
                "--seed", 1) == 0
    first, other = weights(finished / "a"), weights(tmp_path / "a")
    assert not any(torch.equal(first[name], other[name]) for name in first if "alphas" in name)


def test_an_empty_cell_is_derived_again(tmp_path, monkeypatch, capsys):
    """By the command that the search ends with, without its pictures."""
    assert call(train_search, monkeypatch, *TINY_SEARCH, "--threshold", 0.85, "--gap_every", 0,
                "--runs", tmp_path, "--name", "a") == 1
    out = capsys.readouterr().out
    assert "normal cell is empty: too few gates reach --threshold 0.85" in out
    assert not (tmp_path / "a" / "genotype.json").exists()
    again = out.strip().split("\n")[-1].split()
    assert again[:2] == ["python", "train_search.py"]
    monkeypatch.setattr(data, "load", None)
    assert call(train_search, monkeypatch, *again[2:]) == 0
    assert call(train_search, monkeypatch, "--resume", tmp_path / "a", "--threshold", 0.4) == 0
    assert len(found(tmp_path / "a").normal) == 2
    assert call(train_search, monkeypatch, "--resume", tmp_path / "a", "--threshold", 0.9) == 1
    assert not (tmp_path / "a" / "genotype.json").exists()  # it was of another threshold


def test_what_is_said_of_an_empty_cell():
    """The highest threshold that gives a cell; where none is best, that there is
    none."""
    s, names = Namespace(keep_skips=-1, threshold=0.85, epochs=25), ["skip_connect", "none"]

    def said(gates):
        return explain_empty_cell(["normal"], s, [gates], lambda threshold=0.85:
                                  nasbench201.discretize_edges(gates, threshold, names))

    gates = torch.tensor([[0.4, 0.7]] * 6)
    gates[4, 0] = 0.95  # 1 to 3, where nothing enters 1
    assert said(gates) == (
        "the normal cell is empty, and no threshold gives one: none is the best operation of too "
        "many edges. Search without it (--primitives), or go on:", "--epochs 50")
    gates[3, 0], gates[5, 1] = 0.8055, 0.84  # 0 to 3
    message, flag = said(gates)
    assert "the normal cell is empty" in message and flag == "--threshold 0.8"
    gates[:] = torch.tensor([0.405, 0.1])
    gates[2, 0] = 0.905  # 1 to 2 leads nowhere
    assert said(gates)[1] == "--threshold 0.4"


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

    def measuring(self, optimizer):
        if isinstance(optimizer, torch.optim.SGD):
            slopes = [w.grad for w in optimizer.param_groups[0]["params"] if w.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(slopes).item())
        step(self, optimizer)

    monkeypatch.setattr(data, "load", lambda *_, **__: made)
    monkeypatch.setattr(model_search.Network, "forward", seeing)
    monkeypatch.setattr(Precision, "step", measuring)
    assert call(train_search, monkeypatch, *TINY_SEARCH, "--batch_size", 10, "--grad_clip", 0.01,
                "--gap_every", 0, "--runs", tmp_path) == 0
    first, second = (set(names[part].tolist()) for part in batches.parts(
        Namespace(train_portion=0.5, train_fraction=0, valid_fraction=0, seed=0), labels))
    assert seen == {"weights": first, "alpha": second}
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


def test_discretisation_gap():
    s = Namespace(**{**train_search.PARSER.defaults, **recipes.RECIPES["digits"].search,
                     "init_channels": 2, "layers": 3, "nodes": 2})
    run = SimpleNamespace(s=s, space=SPACES["s1"], dataset=data.load("digits"), device="cpu",
                          watched=iter)
    torch.manual_seed(0)
    network = run.space.supernet(s, 10, (1, 8, 8), "sigmoid")
    validation = list(batches.halves(run))[1]
    half = validation.pictures.part(torch.arange(300))  # more than a batch of 256
    images, labels = validation.next()
    F.cross_entropy(network(images), labels).backward()  # moves the running statistics
    with torch.no_grad():
        for alpha in network.alphas:
            alpha.copy_(3 * torch.randn(alpha.shape, generator=torch.Generator().manual_seed(0)))
    skips = cures.DisturbedSkips(network, run.s)
    before = copy.deepcopy(network.state_dict())
    row = gap.gap(run, network, half, skips)
    fast = accelerate(copy.deepcopy(network))
    assert gap.gap(run, fast, half, skips) == pytest.approx(row, abs=1)  # three pictures
    assert all(torch.equal(value, before[name]) for some in (network, fast)
               for name, value in some.state_dict().items()
               if not name.endswith("num_batches_tracked"))  # which nobody reads
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
        used = [g * m for g, m in zip(gates, masks)] if masks else gates
        with torch.no_grad():
            hits = sum((other.train()(half.normalize(images), used).argmax(1) == labels).sum()
                       for images, labels in zip(half.images.split(256), half.labels.split(256)))
        accuracies.append(100 * hits.item() / 300)
    g, ge, gs, r, re, d = accuracies
    assert row["soft_accuracy"] == g != row["discrete_accuracy"] == d
    assert row["gap_rounding"] == ((g - r) + (gs - d)) / 2
    assert row["gap_edges"] == ((g - ge) + (r - re)) / 2
    assert row["gap_operations"] == ((ge - gs) + (re - d)) / 2


def test_own_operations_and_penalties_through_both_scripts(own_operations, tmp_path, monkeypatch,
                                                           capsys):
    """Searched, resumed, drawn, discretised, read from JSON and from text, trained."""
    monkeypatch.setitem(fair_darts.PENALTIES, "l4", lambda gates: -((gates - 0.5) ** 4).mean())
    names = "skip_connect,sep_conv_3x3,none,conv_7x1_1x7"  # as OPS has them
    assert call(train_search, monkeypatch, *TINY_SEARCH, "--runs", tmp_path, "--name", "a",
                "--primitives", names, "--arch_learning_rate", 1, "--gap_every", 0,
                "--zero_one_loss", "l4") == 0
    assert call(train_search, monkeypatch, "--resume", tmp_path / "a", "--epochs", 2,
                "--figures_every", 1, "--gap_every", 1) == 0
    assert "  l4 penalty -0.0" in capsys.readouterr().out
    assert records.setting(records.read(str(tmp_path / "a"))) == "l4, w01 10"
    gates = np.load(tmp_path / "a" / "gates.npz")
    assert gates["primitives"].tolist() == names.split(",")
    assert gates["normal"].shape == gates["reduce"].shape == (2, 2, 4)
    assert_figures(tmp_path / "a", sorted(FIGURES))
    best = [names.split(",")[op] for op in gates["normal"][-1].argmax(1)]
    assert [edge.op for edge in found(tmp_path / "a").normal] == best
    text = ("Genotype(normal=[('conv_7x1_1x7', 2, 0), ('none', 2, 1)], "
            "reduce=[('conv_7x1_1x7', 2, 0), ('none', 2, 1)])")
    assert call(train_eval, monkeypatch, *TINY_EVAL, "--runs", tmp_path, "--arch", text,
                "--name", "eval") == 0


def test_plain_runs_and_goes_on_as_a_fast_one(tmp_path, monkeypatch):
    kinds = set()
    for kind in model_search.Cell, SearchedCell:
        monkeypatch.setattr(kind, "forward", functools.partialmethod(
            lambda self, *inputs, forward: kinds.add(type(self)) or forward(self, *inputs),
            forward=kind.forward))
    for arguments, kind in (
            ([*TINY_SEARCH, "--runs", tmp_path, "--name", "a", "--plain"], model_search.Cell),
            ([*TINY_SEARCH, "--runs", tmp_path, "--name", "b"], SearchedCell),
            (["--resume", tmp_path / "a", "--epochs", 2, "--no-plain"], SearchedCell)):
        kinds.clear()
        assert call(train_search, monkeypatch, *arguments) == 0 and kinds == {kind}
    rows = [{key: float(value) for key, value in table(tmp_path / name)[0].items() if value}
            for name in "ab"]
    assert rows[0] == pytest.approx(rows[1], rel=0.02, abs=0.6)  # the same search, but for rounding


def test_search_in_the_space_of_the_benchmark(tmp_path, monkeypatch, capsys):
    """On digits: what an epoch says, figures, a cell that comes out empty and is
    derived again; training of what was found. With all flags that the space knows."""
    common = ["--space", "nasbench201", "--dataset", "digits", "--batch_size", 25, "--epochs", 1,
              "--stage_cells", 1, "--init_channels", 2, "--runs", tmp_path, "--name"]
    few = ["--train_fraction", 0.04, "--valid_fraction", 0.04]
    assert call(train_search, monkeypatch, *common, "a", *few, "--figures_every", 0,
                "--arch_learning_rate", 0.01) == 1
    out = capsys.readouterr().out
    assert "derived |none~0|+|none~0|none~1|+|none~0|none~1|none~2|: 10.00%, rank 15,285" in out
    again = shlex.split(out.strip().split("\n")[-1])
    assert call(train_search, monkeypatch, "--figures_every", 1, *again[2:]) == 0
    gates = np.load(tmp_path / "a" / "gates.npz")
    assert gates["normal"].shape == (1, 6, 4)
    assert gates["primitives"].tolist() == [*nasbench201.OPS][:4]
    cell = nasbench201.discretize_edges(gates["normal"][-1], float(again[-1]))
    assert found(tmp_path / "a") == cell and str(cell) in capsys.readouterr().out
    assert_figures(tmp_path / "a", ["cell_normal", "dominant", "gates", "heatmap", "penalty"])
    assert call(train_search, monkeypatch, *common, "b", *few, "--gate", "softmax", "--primitives",
                "none,skip_connect,nor_conv_1x1", "--unrolled", "--single_level", "--seed", 1,
                "--skip_dropout", 0.2, "--skip_noise", 1, "--keep_skips", 0, "--max_skips", 6,
                "--curvature_every", 1, "--gap_every", 1, "--recompute", "--figures_every", 0) == 0
    [row], kept = table(tmp_path / "b"), found(tmp_path / "b")
    assert row["genotype_skips"] == "0" and float(row["curvature"]) != 0
    assert call(train_eval, monkeypatch, "--arch", kept, *common[2:], "c", "--batch_size", 500) == 0
    assert call(train_eval, monkeypatch, "--evaluate", tmp_path / "c") == 0


def assert_figures(folder, names):
    figures = sorted((folder / "figures").iterdir())
    assert [path.stem for path in figures] == names
    for path in figures:
        assert_picture(path)


def test_search_in_chains(pictures, tmp_path, monkeypatch, capsys):
    """S2 on digits, figures, derived again, then the training on a picture folder of
    what was found."""
    common = ["--width", 0.1, "--epochs", 1, "--runs", tmp_path, "--name"]
    digits = ["--dataset", "digits", "--batch_size", 50, "--train_fraction", 0.08,
              "--valid_fraction", 0.08]
    assert call(train_search, monkeypatch, "--space", "s2", *common, "a", *digits,
                "--arch_learning_rate", 2, "--figures_every", 1) == 0
    gates = np.load(tmp_path / "a" / "gates.npz")
    assert gates["layers"].shape == (1, 19, 7) and np.isnan(gates["layers"]).sum() == 6
    assert gates["primitives"].tolist() == list(s2.CHOICES)
    assert_figures(tmp_path / "a", ["dominant", "gap", "gates", "heatmap", "penalty"])
    chain = found(tmp_path / "a")
    assert chain == s2.discretize_chain(gates["layers"][-1])
    assert str(chain) in capsys.readouterr().out and table(tmp_path / "a")[0]["skips_layers"]
    assert call(train_search, monkeypatch, "--resume", tmp_path / "a", "--ops_per_layer", 2,
                "--threshold", 0, "--figures_every", 0) == 0
    assert {len(names) for names in found(tmp_path / "a").layers} == {2}
    assert call(train_eval, monkeypatch, "--arch", tmp_path / "a", "--dataset", "folder", "--data",
                pictures, "--image_size", 8, "--batch_size", 16, *common, "c", "--squeeze") == 0
    assert call(train_eval, monkeypatch, "--evaluate", tmp_path / "c") == 0


def test_softmax_has_the_recipe_of_darts(tmp_path, monkeypatch):
    monkeypatch.setattr(train_search, "search", lambda run: seen.append(vars(run.s)))
    seen = []
    for space in "s1", "nasbench201", "s2":
        assert call(train_search, monkeypatch, "--dataset", "digits", "--gate", "softmax",
                    "--space", space, "--runs", tmp_path) == 0
    assert [(s["learning_rate"], s["arch_learning_rate"], s["w01"], s["threshold"]) for s in seen
            ] == 3 * [(0.025, 0.05, 0, 0)]  # digits's own rates, not DARTS's


# ---------------------------------------------------------------- training

class OneLayer(nn.Module):
    """A network of one layer, and a head of one, in float64."""
    drop_path_prob = 0.0

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


def test_evaluation_runs_and_resumes(tmp_path, monkeypatch, capsys):
    """Of accuracies that fall and rise again, best.pt has the first."""
    test, tested, less = train_eval.test, [], iter([0, 2, 1])

    def falling(network, pairs):
        tested.append(test(network, pairs))
        loss, accuracy, top5 = tested[0]
        return loss, accuracy - next(less), top5

    monkeypatch.setattr(train_eval, "test", falling)
    assert call(train_eval, monkeypatch, *TINY_EVAL, "--epochs", 2, "--runs", tmp_path,
                "--name", "a") == 0
    out = capsys.readouterr().out
    assert "parameters" in out and "M MACs" in out and out.count("test loss") == 2
    rows = table(tmp_path / "a")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(train_eval, "test", test)
        assert call(train_eval, patch, "--evaluate", tmp_path / "a") == 0
    assert (f"epoch 1  test loss {tested[0][0]:.4f} acc {tested[0][1]:.2f}%"
            in capsys.readouterr().out)
    assert call(train_eval, monkeypatch, "--resume", tmp_path / "a", "--epochs", 3) == 0
    assert len(table(tmp_path / "a")) == 3 and table(tmp_path / "a")[:2] == rows
    assert [torch.load(tmp_path / "a" / name, weights_only=True)["epoch"]
            for name in ("weights.pt", "best.pt")] == [3, 1]


def test_weights_are_tested_in_the_precision_of_their_run(tmp_path, monkeypatch, capsys):
    evaluation = "--evaluate", tmp_path / "a"
    for flags in (*TINY_EVAL, "--amp", "--runs", tmp_path, "--name", "a"), evaluation, evaluation:
        assert call(train_eval, monkeypatch, *flags) == 0
        if flags == evaluation:
            monkeypatch.setattr(train_eval, "Precision", lambda *_: None)
    first, second, other = re.findall(r"test loss (.*) acc", capsys.readouterr().out)
    assert first == second != other


# ---------------------------------------------------------------- folders of pictures, refusals

def test_scripts_on_a_picture_folder(pictures, tmp_path, monkeypatch, capsys):
    """As a user starts them: a search in a process of its own, then the command that it
    prints."""
    done = subprocess.run([sys.executable, *map(str, (
        "train_search.py", "--dataset", "folder", "--data", pictures, "--image_size", 16,
        "--init_channels", 2, "--layers", 3, "--batch_size", 8, "--epochs", 2, "--nodes", 2,
        "--arch_learning_rate", 0.5, "--figures_every", 0, "--runs", tmp_path,
        "--name", "search"))], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == ""
    assert re.findall(r"epoch (./2)  \d+.\d s  train loss", done.stdout) == ["1/2", "2/2"]
    gates = np.load(tmp_path / "search" / "gates.npz")
    assert gates["normal"].shape == gates["reduce"].shape == (2, 5, 7)
    genotype = fair_darts.discretize(gates["normal"][-1], gates["reduce"][-1])
    assert genotype == found(tmp_path / "search") and str(genotype) in done.stdout
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


def test_refusals(finished, tmp_path, monkeypatch, capsys):
    (tmp_path / "old").mkdir()
    run, new = finished / "d", ["--runs", tmp_path, "--name"]
    for script, words, message in (
            (train_eval, [*TINY_EVAL, *new, "old"], "exists already"),
            (train_search, ["--resume", run], "run of train_eval.py"),
            (train_search, ["--resume", tmp_path], "is not the folder of a run"),
            (train_eval, ["--evaluate", tmp_path / "no"], "is not the folder of a run"),
            (train_eval, ["--evaluate", run, "--resume", run], "are two things"),
            (train_eval, ["--resume", run, "--layers", 5], "--layers 5 contradicts"),
            (train_eval, ["--resume", run, "--arch", "FairDARTS_b"], "--arch Genotype("),
            (train_eval, ["--resume", run, "--arch", "FairDARTS_a", "--layers", 5], "--layers 5"),
            (train_eval, new[:2], "--arch is missing"),
            (train_eval, ["--arch", "FairDARTS_z"], "did you mean 'FairDARTS_"),
            (train_eval, ["--arch", "FairDARTS_a", "--squeeze"], "--squeeze is for architectures"),
            (train_search, ["--space", "s2", "--layers", 3], "--layers belongs to --space s1"),
            (train_search, ["--primitives", "sep_conv_9x9"], "did you mean 'sep_conv_"),
            (train_search, ["--epoch", 3], "unknown argument '--epoch'; did you mean '--epochs'")):
        assert message in refused(capsys, monkeypatch, script, *words)
    assert [*tmp_path.iterdir()] == [tmp_path / "old"]


def test_bad_pictures_are_named_and_left_out_on_request(pictures, tmp_path, monkeypatch, capsys):
    root = shutil.copytree(pictures, tmp_path / "pictures")
    red, blue = root / "train" / "red", root / "train" / "blue"
    (red / "text.png").write_text("no picture")
    (red / "empty.jpg").touch()
    (blue / "cut.png").write_bytes((blue / "1.png").read_bytes()[:200])
    Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(blue / "deep.tif")
    search = [*TINY_SEARCH, "--dataset", "folder", "--data", root, "--image_size", 8,
              "--batch_size", 8, "--gap_every", 0, "--runs", tmp_path / "runs", "--name", "a"]

    def refusal(*more):
        return refused(capsys, monkeypatch, train_search, *search, *more)

    error = refusal()
    for part in ("4 of 36 files cannot be used", "cut.png (", "deep.tif (mode F", "empty.jpg (",
                 "text.png (", "--skip_bad_images"):
        assert part in error
    assert not (tmp_path / "runs").exists()
    assert call(train_search, monkeypatch, *search, "--skip_bad_images") == 0
    captured = capsys.readouterr()
    assert "4 of 36 files" in captured.err and "16 + 16 pictures" in captured.out
    assert "--skip_bad_images" in captured.out  # in the command of the training
    for path in (root / "test" / "red").iterdir():
        path.write_text("no picture")
    assert "class 'red' has no picture that can be used" in refusal("--skip_bad_images")
    shutil.rmtree(red)
    assert "only one class, 'blue'" in refusal()
