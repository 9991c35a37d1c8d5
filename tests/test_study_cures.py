"""Resting gates, the gap and its parts, cures of collapse, and the curvature."""
import copy
import functools
import math
import os
import random
import signal
from argparse import Namespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fair_darts
import spaces
import train_search
from engine import batches, loop
from engine.flags import UserError
from genotypes import PRIMITIVES
from speed import accelerate
from study import cures, gap, records, resting
from study.watch import Watch
from test_fair_darts import close
from tests.common import TINY_SEARCH, call, refused, shortened, table

TWO = "skip_connect,sep_conv_3x3"


def settings(**others):
    return Namespace(**{**train_search.PARSER.defaults, **others})


def cured(space, fast_form, gate="sigmoid", **others):
    """Settings, a supernet, of S2 four layers, and its disturbed skips, in epoch 2."""
    s = settings(**{**dict(
        skip_dropout=0.3, skip_noise=1.0, epochs=10, space=space, plain=not fast_form, gate=gate,
        init_channels=4, layers=3, nodes=3, width=0.1), **others})
    torch.manual_seed(3)
    network = supernet(s, cures.gate_of(s))
    skips = cures.DisturbedSkips(network, s)
    if fast_form:
        accelerate(network)
    skips.begin_epoch(2)
    return s, network, skips


def supernet(s, gate):
    network = spaces.SPACES[s.space].supernet(s, 4, (3, 16, 16), gate).double()
    return shortened(network) if s.space == "s2" else network


# ---------------------------------------------------- resting gates, the parts of the gap

@pytest.mark.parametrize("penalty, w01, decay", [
    ("l2", 10.0, 1e-3), ("l2", 3.0, 1e-3), ("l1", 10.0, 1e-3), ("l2", 10.0, 1e-2)])
def test_resting_gate_is_where_a_long_descent_ends(penalty, w01, decay):
    alphas = torch.full((196,), 0.3, dtype=torch.float64)
    alphas[::2] *= -1
    alphas.requires_grad_()
    for rate in (0.05, 0.005, 0.0005):
        adam = torch.optim.Adam([alphas], rate, weight_decay=decay)
        for _ in range(400):
            adam.zero_grad()
            (w01 * fair_darts.PENALTIES[penalty](torch.sigmoid(alphas))).backward()
            adam.step()
    rest = resting.resting_gate(w01, 196, decay, fair_darts.PENALTIES[penalty])
    gates = torch.sigmoid(alphas.detach())
    assert (gates[1::2] - rest).abs().max() < 1e-3 and (gates[::2] - (1 - rest)).abs().max() < 1e-3
    if rest > 0.5:
        found = resting.needed_w01(rest, 196, decay, fair_darts.PENALTIES[penalty])
        assert found == pytest.approx(w01, rel=1e-6)


@pytest.mark.parametrize("more, message", [
    (dict(w01=0.2), "settle at 0.500 and 0.500, short of --threshold 0.85; --w01 1.36"),
    (dict(w01=1), "short of"), (dict(w01=2), None), (dict(threshold=1), "lower --threshold"),
    (dict(w01=0, threshold=0), None), (dict(w01=0, gate="softmax"), None)])
def test_a_search_that_cannot_reach_its_threshold_says_so(more, message):
    note = resting.note(settings(**more), 70)
    assert message in note if message else note is None


def distance_to_ends(row, kind):
    return sum(min(z, 1 - z) for z in row) if kind == "sigmoid" else 1 - 2 * max(row) + sum(row)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_encoding_gap(kind):
    dice = torch.Generator().manual_seed(0)
    one = torch.ones(28, 1)  # of one operation
    assert gap.encoding_gap(one, one, one > 0, torch.tensor([kind == "softmax"])) == 0
    for space in "s1", "s2":  # some choices of a chain are not there
        s, network, _ = cured(space, False, kind, nodes=4)
        assert gap.count_gates(network, s)["rho"] == pytest.approx(1, abs=0.01)
        with torch.no_grad():
            for alphas in network.alphas:
                alphas.normal_(generator=dice)
        present = getattr(network, "present", torch.ones(28, 7, dtype=torch.bool))
        distance = first_distance = 0
        for gates, there in zip(torch.cat(network.compute_gates()), present):
            gates = gates[there].tolist()
            distance += distance_to_ends(gates, kind)
            first_distance += len(gates) / 2 if kind == "sigmoid" else 2 * (1 - 1 / len(gates))
        assert gap.count_gates(network, s)["rho"] == pytest.approx(distance / first_distance)


# ---------------------------------------------------------------- skips, disturbed

def test_skips_are_disturbed_as_they_should_be():
    skip, x = cures.DisturbedSkip(), torch.full((20, 10, 20, 20), 2.0)
    assert torch.equal(skip(x), x)  # off
    skip.noise = 0.5
    noise = skip(x) - x
    assert abs(noise.mean()) < 5 * 0.5 / math.sqrt(x.numel())
    assert noise.std().item() == pytest.approx(0.5, rel=0.01)
    assert torch.equal(skip(x) - x, noise)  # the seed's
    skip.seed += 1
    assert not torch.equal(skip(x) - x, noise)
    assert torch.equal(skip.eval()(x), x)
    skip.train().noise, skip.dropout = 0.0, 0.3
    dropped = skip(x)
    assert dropped.unique().tolist() == [0, pytest.approx(2 / 0.7)]
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, rel=0.03)


def test_disturbances_fall_as_their_schedules_say():
    """P-DARTS: 25 epochs, of which alpha waits for 10; by hand."""
    s = settings(epochs=25, arch_start=10, skip_dropout_schedule="pdarts")
    for epoch, share in ((0, 0.96), (4, 0.8), (9, 0.6), (10, 1), (11, 0.818730753),
                         (15, 0.367879441), (24, 0.060810063)):
        assert cures.dropout_rate(s, epoch) == pytest.approx(share, abs=1e-9)
    for epochs, last in (0, 12), (4, 4):
        s, network, skips = cured("s1", False, epochs=12, skip_dropout=0.6, skip_noise=2.0,
                                  noise_epochs=epochs)
        for epoch in range(12):
            skips.begin_epoch(epoch)
            part = min(1, epoch / last)
            for skip in skips.skips:
                assert skip.dropout == pytest.approx(0.6 * (1 - epoch / 12))
                assert skip.noise == pytest.approx(1 + math.cos(math.pi * part), abs=1e-12)


@pytest.mark.parametrize("space, gate, shared", [
    ("s1", "sigmoid", ""), ("s1", "softmax", ""), ("s1", "sigmoid", TWO),
    ("s2", "sigmoid", "skip_connect,mb3_k3")])
def test_cures_are_the_same_in_both_forms(space, gate, shared):
    images, labels = torch.randn(6, 3, 16, 16).double(), torch.arange(6) % 4
    found = []
    for fast_form in (True, False):
        _, network, _ = cured(space, fast_form, gate, shared_softmax=shared)
        torch.manual_seed(9)
        first, logits = network(images), network(images)
        assert not close(first, logits, 1e-2)  # disturbed otherwise
        F.cross_entropy(logits, labels).backward()
        found.append([logits, *(b for b in network.buffers() if b.is_floating_point()),
                      *(w.grad for w in network.parameters() if w.grad is not None)])
    assert all(close(a, b, 1e-8) for a, b in zip(*found, strict=True))


def test_only_skips_of_stride_1_are_disturbed():
    _, network, skips = cured("s1", True)
    found = {name for name, module in network.named_modules()
             if isinstance(module, cures.DisturbedSkip)}
    column = PRIMITIVES.index("skip_connect")
    assert found == {
        f"cells.{cell}.edges.{row}.operations.{column}" for cell in range(3) for row in range(9)
        if cell == 0 or row not in (0, 1, 2, 3, 5, 6)}  # from the inputs of a reduction cell
    _, chain, chain_skips = cured("s2", True)
    assert len(chain_skips.skips) == chain.present[:, -1].sum() == 1
    for net, disturbed in (network, skips), (chain, chain_skips):
        x = torch.randn(4, 3, 8, 8).double()
        with torch.no_grad():
            state = torch.get_rng_state()
            assert not torch.equal(net(x), net(x))
            with cures.temporarily(disturbed.skips, noise=0.0, dropout=0.0):
                torch.set_rng_state(state)
                assert torch.equal(net(x), net(x))
                assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn
            with disturbed.same_draws():
                same = net(x)
                assert torch.equal(same, net(x))
            assert not torch.equal(same, net(x))  # as before
            assert torch.equal(net.eval()(x), net(x))


def test_unrolled_steps_compare_passes_that_are_disturbed_alike(tmp_path, monkeypatch):
    seeds, steps, step = [], [], fair_darts.Architect.step

    def watched_forward(self, x, forward=cures.DisturbedSkip.forward):
        if self.training:
            seeds.append(self.seed)
        return forward(self, x)

    def watched_step(self, *batch):
        first = len(seeds)
        found = step(self, *batch)
        steps.append(seeds[first:])
        return found

    monkeypatch.setattr(cures.DisturbedSkip, "forward", watched_forward)
    monkeypatch.setattr(fair_darts.Architect, "step", watched_step)
    assert call(train_search, monkeypatch, *TINY_SEARCH, "--unrolled", "--skip_noise", "1",
                "--gap_every", 0, "--runs", tmp_path) == 0
    count = len(steps[0]) // 4
    assert len(steps) == 2 and len(seeds) == 10 * count  # each and one pass for the weights
    assert all(found == 4 * found[:count] and len(set(found)) == count for found in steps)
    assert len({tuple(seeds[first * count:(first + 1) * count]) for first in (0, 4, 5, 9)}) == 4


def test_shared_softmax_competes_among_its_own():
    alphas = torch.randn(5, 7, dtype=torch.float64)
    s = settings(shared_softmax="avg_pool_3x3,skip_connect,sep_conv_5x5", nodes=2)
    mask = cures.sharing(s)
    assert mask.tolist() == [False, True, True, False, True, False, False]
    found = cures.gate_of(s)(alphas)
    rounded = gap.rounded(found, mask)
    for row, values in enumerate(alphas.tolist()):
        total = sum(math.exp(values[i]) for i in (1, 2, 4))
        best = max((1, 2, 4), key=lambda i: values[i])
        for i, value in enumerate(values):
            expected = math.exp(value) / total if mask[i] else 1 / (1 + math.exp(-value))
            assert found[row, i].item() == pytest.approx(expected, rel=1e-12)
            assert rounded[row, i] == (i == best if mask[i] else value >= 0)
    network = spaces.SPACES["s1"].supernet(s, 4, (3, 8, 8), cures.gate_of(s))
    assert gap.count_gates(network, s)["rho"] == pytest.approx(1)
    assert gap.encoding_gap(rounded, cures.gate_of(s)(0 * alphas), alphas > -9, mask) == 0


# ---------------------------------------------------------------- when a search ends

def test_a_search_ends_with_the_epoch_before_the_skips():
    """DARTS+ allows N skips, and ends with more."""
    rows = [dict(epoch=e, derived_skips=n, curvature=None) for e, n in enumerate((0, 2, 3, 2), 1)]
    s = settings(max_skips=2, epochs=10)
    assert cures.outcome(s, rows[:2]) is None
    epoch, why = cures.outcome(s, rows[:3])
    assert epoch == 2 and "3 skips after epoch 3, --max_skips 2" in why
    assert cures.outcome(s, rows)[0] == 2
    assert cures.outcome(s, [dict(rows[2], epoch=1)])[0] == 1  # there is none before
    assert cures.outcome(settings(epochs=4), rows) == (4, None)
    assert cures.outcome(settings(epochs=5), rows) is None


def stop_of_robust_darts(curvature, ratio, every, epochs):
    """The rule as its authors' scripts have it, in their terms, epochs from 0. -> the
    epoch of the genotype, or None."""
    eigenvalues, averages = [], []
    for epoch in range(0, epochs - 1, every):  # the last one's is measured, and ends nothing
        eigenvalues.append(curvature(epoch))
        if len(eigenvalues) < 3:  # half of the window
            continue
        averages.append(np.mean(eigenvalues[-5:]))
        of_average = epoch - 2 * every
        if of_average - 4 * every >= 10 and averages[-1] / averages[-5] > ratio:
            return of_average - 4 * every
    return None


def test_a_search_ends_when_the_curvature_has_grown():
    dice, ended = random.Random(0), 0
    for _ in range(400):
        every, ratio = dice.choice((1, 2, 3)), dice.choice((1.3, 1.1))
        epochs = dice.choice((25, 50))
        values = [math.exp(dice.gauss(0, 0.4) + 0.02 * e) for e in range(epochs)]
        rows = [dict(epoch=e + 1, curvature=value if e % every == 0 or e == epochs - 1 else None)
                for e, value in enumerate(values)]
        s = settings(epochs=epochs, curvature_every=every, max_curvature_ratio=ratio)
        expected = stop_of_robust_darts(values.__getitem__, ratio, every, epochs)
        found = cures.outcome(s, rows)
        if expected is None:
            assert found == (epochs, None) and cures.outcome(s, rows[:-1]) is None
        else:
            assert found[0] == expected + 1
            end = expected + 6 * every + 1  # the last of the measurements that are compared
            assert cures.outcome(s, rows[:end - 1]) is None and cures.outcome(s, rows[:end])
            ended += 1
    assert 100 < ended < 350
    rows = [dict(epoch=e, curvature=1.0 if e % 3 == 1 else None) for e in range(1, 35)]
    s = settings(epochs=40, curvature_every=3, max_curvature_ratio=1.3)
    rows[25]["curvature"] = 9.0  # it was the last epoch, before --epochs was raised
    assert cures.outcome(s, rows) is None
    rows[24]["curvature"] = 9.0
    assert cures.outcome(s, rows)
    for every in range(1, 12):  # searches that are too short for it are refused
        fewest = next(epochs for epochs in range(1, 200) if stop_of_robust_darts(
            lambda epoch: 3.0 ** epoch, 1.3, every, epochs) is not None)
        s = settings(epochs=fewest, curvature_every=every, max_curvature_ratio=1.3)
        cures.check(s)
        s.epochs -= 1
        with pytest.raises(UserError, match=f"every {every} and --epochs {fewest} or more"):
            cures.check(s)


def test_cures_that_do_not_go_together_are_refused(tmp_path, monkeypatch, capsys):
    for given in (dict(shared_softmax="skip_connect"), dict(shared_softmax="skip_connect,mb3_k3"),
                  dict(shared_softmax=TWO, gate="softmax"), dict(max_curvature_ratio=1.3),
                  dict(amp=True, curvature_every=2)):
        with pytest.raises(UserError, match=f"--{[*given][0]}"):
            cures.check(settings(**given))
    assert "--arch_start 30" in refused(capsys, monkeypatch, train_search, "--dataset", "digits",
                                        "--runs", tmp_path / "runs", "--arch_start", "30")
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- the genotype

def test_skips_that_argmax_derives_are_counted():
    """Two edges a node, the best operation of each, whatever the threshold."""
    s = settings(primitives=TWO, nodes=2, layers=3)
    gates = torch.tensor([[0.3, 0.2], [0.1, 0.2], [0.9, 0.8], [0.1, 0.7], [0.6, 0.5]])
    assert cures.derived_skips(s, [gates, gates]) == 2  # of rows 0, 1, 2 and 3
    network = spaces.SPACES["s1"].supernet(s, 4, (3, 8, 8), "sigmoid")
    assert gap.count_gates(network, s)["derived_skips"] == 4  # all are equal: the first
    assert cures.derived_skips(settings(primitives="sep_conv_3x3"), [gates[:, :1]] * 2) == 0
    assert cures.derived_skips(settings(space="s2"), [torch.full((19, 7), 0.5)]) == 0


def test_derived_cells_keep_few_skips():
    gates = torch.tensor([[0.95, 0.90], [0.99, 0.20], [0.97, 0.86], [0.91, 0.30], [0.1, 0.94]])
    reduce = torch.tensor([[0.95, 0.2]] * 5)

    def normal(keep, gates=gates, **others):
        s = settings(keep_skips=keep, **{"primitives": TWO, **others})
        found = cures.genotype(s, [gates, reduce[:, :gates.shape[1]]])
        assert [edge.op for edge in found.reduce] == ["skip_connect"] * 4  # the normal cell's alone
        return {(edge.node, edge.source): edge.op[:4] for edge in found.normal}

    full = {(2, 0): "skip", (2, 1): "skip", (3, 0): "skip", (3, 2): "sep_"}
    assert normal(-1) == normal(3) == full
    # the weakest skip, 0.95, gives way to the convolution of its edge
    assert normal(2) == {**full, (2, 0): "sep_"}
    # the next, 0.97: its edge has now 0.86, less than 0.91 of another, a skip, which goes as well
    assert normal(1) == {**full, (2, 0): "sep_", (3, 0): "sep_"}
    # too few others: below the threshold, an edge is left out
    assert normal(0) == {(2, 0): "sep_", (3, 0): "sep_", (3, 2): "sep_"}
    assert normal(0, threshold=0) == {**dict.fromkeys(full, "sep_")}
    equal = torch.full((5, 2), 0.9)
    assert [*normal(3, equal).values()] == ["sep_", "skip", "skip", "skip"]
    assert len(normal(1, equal[:, :1], primitives="skip_connect")) == 1
    s = settings(keep_skips=2, space="s2")
    found = cures.genotype(s, [torch.full((19, 7), 0.1)])  # where no gate is high, identities
    assert sum("skip_connect" in names for names in found.layers) == 2


# ---------------------------------------------------------------- the curvature

@pytest.fixture
def in_double():
    """Networks are built in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# of two layers both are reduction cells: the loss knows nothing of the normal alphas
@pytest.mark.parametrize("space, layers", [("s1", 3), ("s1", 2), ("s2", 0)])
def test_curvature_is_that_of_the_whole_hessian(space, layers, in_double):
    s, network, skips = cured(space, True, nodes=1, layers=layers)
    for alpha in network.alphas:
        alpha.data += torch.randn(alpha.shape, generator=torch.Generator().manual_seed(1))
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    run = Namespace(s=s, supernet=functools.partial(supernet, s), device=torch.device("cpu"))
    plain = Watch(run, network).plain()
    found = cures.hessian_eigenvalue(plain, images, labels, 1e-9)
    assert torch.equal(torch.get_rng_state(), state) and network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for net in network, plain:
        assert all(w.requires_grad and w.grad is None for w in net.parameters())
    loss, alphas = F.cross_entropy(plain(images), labels), list(plain.alphas)
    with cures.temporarily(skips.skips, noise=0.0, dropout=0.0):
        assert close(loss, F.cross_entropy(network(images), labels))
    more = dict(allow_unused=True, materialize_grads=True)
    slopes = torch.autograd.grad(loss, alphas, create_graph=True, **more)
    rows = [torch.autograd.grad(slope, alphas, retain_graph=True, **more) if slope.requires_grad
            else [torch.zeros_like(alpha) for alpha in alphas]
            for slope in torch.cat([slope.flatten() for slope in slopes])]
    hessian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    assert close(hessian, hessian.T, 1e-8)
    assert found == pytest.approx(torch.linalg.eigvalsh(hessian)[-1].item(), rel=1e-6)


def test_alpha_waits_and_the_curvature_is_of_its_last_batch(tmp_path, monkeypatch):
    """Until --arch_start alphas and their Adam stay as they are. The curvature has the
    weight decay of alpha."""
    seen, drawn, draw = [], [], batches.Batches.next
    monkeypatch.setattr(batches.Batches, "next", lambda self: drawn.append(draw(self)) or drawn[-1])
    monkeypatch.setattr(cures, "hessian_eigenvalue",
                        lambda network, *batch: seen.append(batch) or 0.5)
    assert call(train_search, monkeypatch, *TINY_SEARCH, "--epochs", 4, "--arch_start", 2,
                "--curvature_every", 2, "--arch_weight_decay", 0.25, "--gap_every", 0, "--runs",
                tmp_path, "--name", "a") == 0
    rows = table(tmp_path / "a")
    assert [row["curvature"] for row in rows] == ["0.75", "", "0.75", "0.75"]
    for (images, labels), epoch in zip(seen, (1, 3, 4), strict=True):
        last = drawn[4 * epoch - 1]  # two steps an epoch, of a training and a validation batch
        assert torch.equal(images, last[0]) and torch.equal(labels, last[1])
    gates = np.load(tmp_path / "a" / "gates.npz")["normal"]
    assert (gates[:2] == 0.5).all() and (gates[2:] != 0.5).all()
    assert all(float(row["valid_loss"]) > 0 for row in rows) and float(rows[0]["penalty"]) == 0
    adam = torch.load(tmp_path / "a" / "checkpoint.pt", weights_only=True)["adam"]["state"]
    assert adam[0]["step"] == 4


# ---------------------------------------------------------------- whole searches

def test_cures_resume_bit_for_bit(tmp_path, monkeypatch):
    search = [*TINY_SEARCH, "--skip_dropout", "0.3", "--skip_noise", "1", "--keep_skips", "1",
              "--single_level", "--primitives", "max_pool_3x3,skip_connect,sep_conv_3x3",
              "--shared_softmax", "max_pool_3x3,skip_connect", "--curvature_every", "1",
              "--arch_learning_rate", "0.3", "--epochs", "2", "--runs", tmp_path]
    assert call(train_search, monkeypatch, *search, "--name", "whole") == 0
    steps = []

    def stop_in_the_second_epoch(self, *others, add=loop.Run.add, **figures):
        add(self, *others, **figures)
        steps.append(1)
        if len(steps) == 6:  # of 4 an epoch
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "add", stop_in_the_second_epoch)
        assert call(train_search, patch, *search, "--name", "cut") == 130
    assert call(train_search, monkeypatch, "--resume", tmp_path / "cut") == 0
    assert table(tmp_path / "cut") == table(tmp_path / "whole")
    states = [torch.load(tmp_path / folder / "checkpoint.pt", weights_only=True)["network"]
              for folder in ("cut", "whole")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
    assert all(float(row["curvature"]) > 0 for row in table(tmp_path / "whole"))
    assert (tmp_path / "whole" / "log.txt").read_text().count("  curvature ") == 2


def test_a_search_that_ended_early_is_finished(tmp_path, monkeypatch, capsys):
    assert call(train_search, monkeypatch, *TINY_SEARCH, "--epochs", "9", "--nodes", "2",
                "--gap_every", 0, "--runs", tmp_path, "--name", "a", "--max_skips", "1") == 0
    rows, folder = table(tmp_path / "a"), str(tmp_path / "a")
    assert len(rows) < 9 and float(rows[-1]["derived_skips"]) > 1
    assert "--max_skips 1; the genotype is of epoch" in capsys.readouterr().out
    record = records.read(folder)
    assert record.epoch == max(1, len(rows) - 1)
    gates = [torch.from_numpy(record.gates[part][record.epoch - 1]) for part in record.gates]
    assert record.genotype == fair_darts.discretize(*gates, 0, primitives=record.primitives)
    assert (tmp_path / "a" / "report.md").exists()
    assert call(train_search, monkeypatch, "--resume", folder, "--keep_skips", "0") == 0
    assert len(table(tmp_path / "a")) == len(rows)
    record = records.read(folder)
    assert {edge.op for edge in record.genotype.normal} == {"sep_conv_3x3"}
    assert not records.kept_gates(record, "normal")[:, 0].any()


def test_too_few_skips_kept_are_said(tmp_path, monkeypatch, capsys):
    assert call(train_search, monkeypatch, *TINY_SEARCH, "--runs", tmp_path, "--name", "a",
                "--gap_every", "0", "--primitives", "skip_connect", "--keep_skips", "0") == 1
    out = capsys.readouterr().out.strip().split("\n")
    assert "--keep_skips 0 leaves it nothing" in out[-2] and out[-1].endswith("--keep_skips 1")
    assert call(train_search, monkeypatch, *out[-1].split()[2:]) == 0


def test_single_level_uses_one_batch_of_all_pictures_for_both(tmp_path, monkeypatch):
    stepped, step, taken, draw = [], fair_darts.Architect.step, [], batches.Batches.next
    monkeypatch.setattr(fair_darts.Architect, "step", lambda self, images, labels: (
        stepped.append(images), step(self, images, labels))[1])
    monkeypatch.setattr(batches.Batches, "next", lambda self: taken.append(draw(self)) or taken[-1])
    assert call(train_search, monkeypatch, *TINY_SEARCH, "--single_level", "--runs", tmp_path) == 0
    assert len(taken) == len(stepped) and all(a[0] is b for a, b in zip(taken, stepped))
    assert sum(len(labels) for _, labels in taken) == 1437 // 300 * 300  # an epoch
