"""Resting gates, the gap and its parts, cures of collapse, and the curvature."""
import copy
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
import model_search
import train_search
from engine import batches, loop, texts
from engine.flags import UserError
from genotypes import PRIMITIVES
from spaces import s1, s2
from study import cures, curvature, gap, records, resting
from study.watch import Watch
from test_fair_darts import close
from tests.common import SMALL_SEARCH, TINY_SEARCH, call, cured, refused, table


# ---------------------------------------------------- resting gates, the parts of the gap

@pytest.mark.parametrize("penalty, w01, decay", [
    ("l2", 10.0, 1e-3), ("l2", 15.0, 1e-3), ("l2", 3.0, 1e-3), ("l1", 10.0, 1e-3),
    ("l2", 1.5, 1e-3), ("l2", 10.0, 1e-2)])
def test_resting_gate_is_where_a_long_descent_ends(penalty, w01, decay):
    alphas = torch.full((196,), 0.3, dtype=torch.float64)
    alphas[::2] *= -1
    alphas.requires_grad_()
    for rate, steps in ((0.05, 400), (0.005, 400), (0.0005, 400)):
        adam = torch.optim.Adam([alphas], rate, weight_decay=decay)
        for _ in range(steps):
            adam.zero_grad()
            (w01 * fair_darts.PENALTIES[penalty](torch.sigmoid(alphas))).backward()
            adam.step()
    rest = resting.resting_gate(w01, 196, decay, fair_darts.PENALTIES[penalty])
    gates = torch.sigmoid(alphas.detach())
    assert (gates[1::2] - rest).abs().max() < 1e-3 and (gates[::2] - (1 - rest)).abs().max() < 1e-3
    if rest > 0.5:  # the formula, literally
        slope = 2 * (rest - 0.5) if penalty == "l2" else 1
        assert w01 * slope * rest * (1 - rest) / 196 == pytest.approx(
            decay * math.log(rest / (1 - rest)), rel=1e-6)
        assert resting.needed_w01(rest, 196, decay, fair_darts.PENALTIES[penalty]
                                     ) == pytest.approx(w01, rel=1e-6)


def simulated_gate(optimizer, rate, steps, noise=0.0):
    """The median of gates above 1/2, of 2,000 that L01 and weight decay drive in the
    published setting, with noise on their gradients."""
    alphas = torch.full((2000,), 0.01, dtype=torch.float64, requires_grad=True)
    adam = optimizer([alphas], rate, weight_decay=1e-3, fused=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        z = torch.sigmoid(alphas.detach())
        alphas.grad = -10 * 2 * (z - 0.5) * z * (1 - z) / 196  # by hand
        if noise:
            alphas.grad += noise * torch.randn(2000, generator=generator, dtype=torch.float64)
        adam.step()
    z = torch.sigmoid(alphas.detach())
    return z[z > 0.5].median().item()


def test_resting_gates_are_of_adam_and_of_little_noise():
    rest, adam = resting.resting_gate(10, 196, 1e-3), torch.optim.Adam
    assert simulated_gate(adam, 3e-3, 6000) == pytest.approx(rest, abs=1e-6)
    assert simulated_gate(adam, 3e-3, 6000, 5e-3) == pytest.approx(rest, abs=4e-4)
    assert simulated_gate(adam, 0.05, 275, 2e-2) == pytest.approx(rest - 0.055, abs=0.005)
    assert simulated_gate(torch.optim.AdamW, 3e-3, 9750) == pytest.approx(0.9998, abs=1e-4)


@pytest.mark.parametrize("more, message", [
    (["--w01", 0.2], "settle at 0.500 and 0.500, short of --threshold 0.85; --w01 1.36"),
    (["--w01", 1], "short of"), (["--w01", 2], None), (["--threshold", 1], "lower --threshold"),
    (["--w01", 0, "--threshold", 0], None), (["--w01", 0, "--gate", "softmax"], None)])
def test_a_search_that_cannot_reach_its_threshold_says_so(more, message, tmp_path, monkeypatch,
                                                          capsys):
    monkeypatch.setattr(loop.Run, "epochs", lambda run: iter(()))  # 70 gates
    monkeypatch.setattr(train_search, "derive", lambda *_: 0)
    call(train_search, monkeypatch, *SMALL_SEARCH, *more, "--runs", tmp_path)
    out = capsys.readouterr().out
    assert (message in out) if message else "settle at" not in out


def test_encoding_gap():
    dice = torch.Generator().manual_seed(0)
    first = {kind: fair_darts.gates(torch.zeros(28, 7).double(), kind)
             for kind in ("sigmoid", "softmax")}
    g = torch.rand(28, 7, generator=dice, dtype=torch.float64)
    literal = sum(min(z, 1 - z) for z in g.flatten().tolist()) / 196
    assert gap.encoding_gap(g, first["sigmoid"]).item() == pytest.approx(literal / 0.5)
    assert literal == pytest.approx(0.5 + fair_darts.zero_one_loss_l1(g).item())
    w = torch.softmax(torch.randn(28, 7, generator=dice, dtype=torch.float64), 1)
    literal = sum((1 - max(row)) + sum(row) - max(row) for row in w.tolist()) / 196
    assert gap.encoding_gap(w, first["softmax"], "softmax").item() == pytest.approx(
        literal / (2 / 7 * (1 - 1 / 7)))
    one = torch.ones(28, 1)  # a softmax of one operation
    assert gap.encoding_gap(one, one, "softmax") == 0
    for kind, start in first.items():
        assert gap.encoding_gap(start, start, kind) == 1
        assert gap.encoding_gap(gap.rounded(start, kind), start, kind) == 0
        for space in "s1", "s2":  # some choices of a chain are not there
            s, network = cured(space, False, kind, nodes=4)
            assert gap.count_gates(network, s)["rho"] == pytest.approx(1, abs=0.01)
            with torch.no_grad():
                for alphas in network.alphas:
                    alphas.normal_(generator=dice)
            present = getattr(network, "present", torch.ones(28, 7, dtype=torch.bool))
            distance = first_distance = 0
            for row, there in zip(torch.cat(network.compute_gates()).tolist(), present.tolist()):
                row = [z for z, is_there in zip(row, there) if is_there]
                if kind == "sigmoid":
                    distance += sum(min(z, 1 - z) for z in row)
                    first_distance += 0.5 * len(row)
                else:
                    distance += (1 - max(row)) + sum(row) - max(row)
                    first_distance += 2 * (1 - 1 / len(row))
            assert gap.count_gates(network, s)["rho"] == pytest.approx(
                distance / first_distance)


def test_parts_of_the_gap_sum_up_to_it():
    for seed in range(50):
        dice = random.Random(seed)
        g, ge, gs, r, re, s = (dice.uniform(0, 100) for _ in range(6))
        parts = gap.split_gap(g, ge, gs, r, re, s)
        assert sum(parts) == pytest.approx(g - s, abs=1e-12)
    assert gap.split_gap(9, 9, 9, 4, 4, 4) == (5, 0, 0)  # rounding alone
    assert gap.split_gap(9, 4, 4, 9, 4, 4) == (0, 5, 0)  # the choice of edges alone
    assert gap.split_gap(9, 9, 4, 9, 9, 4) == (0, 0, 5)


def test_kept_edges():
    gates = torch.rand(14, 7, generator=torch.Generator().manual_seed(3))
    kept = s1.kept_edges(gates, 2, PRIMITIVES)
    pairs = [(node, source) for node in range(2, 6) for source in range(node)]
    wanted = {(edge.node, edge.source) for edge, _ in fair_darts.strongest(gates)}
    assert [pair for pair, k in zip(pairs, kept.flatten().tolist()) if k] == sorted(wanted)
    assert kept.shape == (14, 1) and kept.sum() == 8 == len(wanted)


# ---------------------------------------------------------------- other cures

def test_skips_are_disturbed_as_they_should_be():
    skip, x = cures.DisturbedSkip(), torch.full((20, 10, 20, 20), 2.0)
    skip.seed = 5
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
    assert dropped.mean().item() == pytest.approx(2, rel=0.02)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, rel=0.03)


def test_schedules_of_the_cures():
    skip = cures.DisturbedSkip()
    network = Namespace(skips=[skip])
    s = settings_of_cures(skip_dropout=0.6, skip_noise=2.0, noise_epochs=0, epochs=12)
    for epochs in (0, 4):
        s.noise_epochs = epochs
        for epoch in range(12):
            cures.set_rates(network, s, epoch)
            assert skip.dropout == pytest.approx(0.6 * (1 - epoch / 12))
            part = min(1, epoch / (epochs or 12))
            assert skip.noise == pytest.approx(2 * (1 + math.cos(math.pi * part)) / 2, abs=1e-12)
    assert skip.noise == 0
    cures.set_rates(network, s, 0)
    with cures.undisturbed(network):
        assert skip.dropout == skip.noise == 0
    assert (skip.dropout, skip.noise) == (0.6, 2.0)


@pytest.mark.parametrize("space, gate, shared", [
    ("s1", "sigmoid", ""), ("s1", "softmax", ""),
    ("s1", "sigmoid", "skip_connect,sep_conv_3x3"), ("s2", "sigmoid", "skip_connect,mb3_k3")])
def test_cures_are_the_same_in_both_forms(space, gate, shared):
    images, labels = torch.randn(6, 3, 16, 16).double(), torch.arange(6) % 4
    found = []
    for fast_form in (True, False):
        _, network = cured(space, fast_form, gate, shared_softmax=shared)
        torch.manual_seed(9)
        network(images)
        logits = network(images)  # disturbed otherwise than before
        F.cross_entropy(logits, labels).backward()
        found.append([logits, *(b for b in network.buffers() if b.is_floating_point()),
                      *(w.grad for w in network.parameters() if w.grad is not None)])
    assert all(close(a, b, 1e-8) for a, b in zip(*found, strict=True))
    torch.manual_seed(9)
    assert close(network(images), found[0][0], 1e-2) is False  # the first of the two passes


def test_only_skips_of_stride_1_are_disturbed():
    _, network = cured("s1", True)
    found = {name for name, module in network.named_modules()
             if isinstance(module, cures.DisturbedSkip)}
    column = PRIMITIVES.index("skip_connect")
    rows = range(9)  # of 3 nodes
    assert found == {
        f"cells.{cell}.edges.{row}.operations.{column}" for cell in range(3) for row in rows
        if cell == 0 or row not in (0, 1, 2, 3, 5, 6)}  # from the inputs of a reduction cell
    _, chain = cured("s2", True)
    assert len(chain.skips) == sum(s2.SAME_SHAPE)
    for net in network, chain:
        x = torch.randn(4, 3, 16, 16).double()
        with torch.no_grad(), gap.frozen_statistics(net):
            state = torch.get_rng_state()
            assert not torch.equal(net(x), net(x))
            with cures.undisturbed(net):
                torch.set_rng_state(state)
                assert torch.equal(net(x), net(x))
                assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn
            one, other = cures.step_of_same_draws(net, lambda x: (net(x), net(x)), x)
            assert torch.equal(one, other)
            assert torch.equal(net.eval()(x), net(x))


def test_unrolled_steps_compare_passes_that_are_disturbed_alike(tmp_path, monkeypatch):
    seeds, steps = [], []
    draw, step = cures.draw_seeds, fair_darts.Architect.step

    def watched_draw(network, inputs=None):
        draw(network, inputs)
        if inputs is not None:  # before a pass
            seeds.append(tuple(skip.seed for skip in network.skips))

    def watched_step(self, *batches):
        first = len(seeds)
        found = step(self, *batches)
        steps.append(seeds[first:])
        return found

    monkeypatch.setattr(cures, "draw_seeds", watched_draw)
    monkeypatch.setattr(fair_darts.Architect, "step", watched_step)
    assert call(train_search, monkeypatch, *TINY_SEARCH, "--unrolled", "--skip_noise", "1",
                "--runs", tmp_path) == 0
    assert len(steps) == 2 and all(len(found) == 4 and len(set(found)) == 1 for found in steps)
    assert len(set(seeds)) == 4  # two for the steps on alpha, two for those on the weights


def test_shared_softmax_competes_among_its_own():
    alphas = torch.randn(5, 7, dtype=torch.float64)
    names = "avg_pool_3x3,skip_connect,sep_conv_5x5"
    s = settings_of_cures(shared_softmax=names, init_channels=2, layers=3, nodes=2)
    mask = cures.shared_mask(s)
    assert mask.tolist() == [False, True, True, False, True, False, False]
    found = cures.gate_of(s)(alphas)
    rounded = gap.rounded(found, shared=mask)
    for row, values in enumerate(alphas.tolist()):
        total = sum(math.exp(values[i]) for i in (1, 2, 4))
        best = max((1, 2, 4), key=lambda i: values[i])
        for i, value in enumerate(values):
            expected = math.exp(value) / total if mask[i] else 1 / (1 + math.exp(-value))
            assert found[row, i].item() == pytest.approx(expected, rel=1e-12)
            assert rounded[row, i] == (i == best if mask[i] else value >= 0)
    network = s1.supernet(s, 4, (3, 8, 8), cures.gate_of(s))
    assert gap.count_gates(network, s)["rho"] == pytest.approx(1)
    assert gap.encoding_gap(rounded, cures.gate_of(s)(0 * alphas), shared=mask) == 0


def settings_of_cures(**others):
    return Namespace(**{**train_search.PARSER.defaults, **others})


def test_a_search_ends_with_the_epoch_before_the_skips():
    """DARTS+ allows N skips, and ends with more."""
    rows = [dict(epoch=e, derived_skips=n, skips_normal=9, curvature=None)
            for e, n in enumerate((0, 2, 3, 2), 1)]
    s = settings_of_cures(max_skips=2, epochs=10)
    assert cures.outcome(s, rows[:2]) is None
    epoch, why = cures.outcome(s, rows[:3])
    assert epoch == 2 and "3 skip connections after epoch 3, --max_skips 2" in why
    assert cures.outcome(s, rows)[0] == 2
    first = [dict(rows[2], epoch=1)]
    assert cures.outcome(s, first)[0] == 1  # there is none before
    assert cures.outcome(settings_of_cures(epochs=4), rows) == (4, None)
    assert cures.outcome(settings_of_cures(epochs=5), rows) is None


def test_skips_that_argmax_derives_are_counted():
    """Two edges a node, the best operation of each, whatever the threshold."""
    network = model_search.Network(2, 4, 3, nodes=2, primitives=("skip_connect", "sep_conv_3x3"))
    gates = torch.tensor([[0.3, 0.2], [0.1, 0.2], [0.9, 0.8], [0.1, 0.7], [0.6, 0.5]])
    s = settings_of_cures(threshold=0.85)
    assert cures.derived_skips(network, s, [gates, gates]) == 2  # of rows 0, 1, 2 and 3
    assert gap.count_gates(network, s)["derived_skips"] == 4  # all are equal: the first
    alone = model_search.Network(2, 4, 3, nodes=2, primitives=("sep_conv_3x3",))
    assert cures.derived_skips(alone, s, [gates[:, :1]] * 2) == 0
    chain = s2.SupernetS2(4, width=0.1, image_size=16)
    assert cures.derived_skips(chain, settings_of_cures(space="s2"), chain.compute_gates()) == 0


def stop_of_robust_darts(curvature, ratio, every, epochs):
    """The rule as its authors' scripts have it, in their terms, epochs from 0. -> the
    epoch of the genotype, or None."""
    eigenvalues, averages = [], []
    for epoch in range(epochs - 1):  # the last one's is measured, and ends nothing
        if epoch % every:
            continue
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
        rows = [dict(epoch=e + 1, derived_skips=0,
                     curvature=values[e] if e % every == 0 or e == epochs - 1 else None)
                for e in range(epochs)]
        s = settings_of_cures(epochs=epochs, curvature_every=every, max_curvature_ratio=ratio)
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


def test_ratios_that_could_end_no_search_are_known():
    for every in range(1, 12):
        shortest = next(epochs for epochs in range(1, 200) if stop_of_robust_darts(
            lambda epoch: 3.0 ** epoch, 1.3, every, epochs) is not None)
        assert cures.first_stop(every) == shortest
    assert cures.first_stop(2) == 24


def test_dropout_on_skips_falls_as_its_schedule_says():
    """P-DARTS: 25 epochs, of which alpha waits for 10; by hand."""
    s = settings_of_cures(epochs=25, arch_start=10, skip_dropout_schedule="pdarts")
    for epoch, share in ((0, 0.96), (4, 0.8), (9, 0.6), (10, 1), (11, 0.818730753),
                         (15, 0.367879441), (24, 0.060810063)):
        assert cures.dropout_rate(s, epoch) == pytest.approx(share, abs=1e-9)
    s = settings_of_cures(epochs=25)
    assert [cures.dropout_rate(s, epoch) for epoch in (0, 5, 24)] == pytest.approx([1, 0.8, 0.04])
    _, network = cured("s1", True)
    s = settings_of_cures(epochs=50, skip_dropout=0.4, skip_noise=2.0, noise_epochs=30)
    for epoch, noise in ((0, 2), (15, 1), (30, 0), (49, 0)):
        cures.set_rates(network, s, epoch)
        assert network.skips[0].noise == pytest.approx(noise, abs=1e-12)
        assert network.skips[0].dropout == pytest.approx(0.4 * (1 - epoch / 50))


def test_derived_cells_keep_few_skips():
    network = model_search.Network(2, 4, 3, nodes=2, primitives=("skip_connect", "sep_conv_3x3"))
    gates = torch.tensor([[0.95, 0.90], [0.99, 0.20], [0.97, 0.86], [0.91, 0.30], [0.1, 0.94]])
    reduce = torch.tensor([[0.95, 0.2]] * 5)

    def normal(keep, **others):
        s = settings_of_cures(keep_skips=keep, **others)
        found = cures.genotype(network, s, [gates, reduce])
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
    assert normal(0, threshold=0) == {(2, 0): "sep_", (2, 1): "sep_", (3, 0): "sep_",
                                      (3, 2): "sep_"}
    equal = [torch.full((5, 2), 0.9), reduce]
    found = cures.genotype(network, settings_of_cures(keep_skips=3), equal)
    assert [edge.op for edge in found.normal] == ["sep_conv_3x3"] + ["skip_connect"] * 3
    alone = model_search.Network(2, 4, 3, nodes=2, primitives=("skip_connect",))
    ones = [torch.full((5, 1), 0.9)] * 2
    found = cures.genotype(alone, settings_of_cures(keep_skips=1), ones)
    assert len(found.normal) == 1 and len(found.reduce) == 4

    chain = s2.SupernetS2(4, width=0.1, image_size=16)
    s = settings_of_cures(keep_skips=2, space="s2", threshold=0.85)
    gates = torch.full((19, 7), 0.1)
    found = cures.genotype(chain, s, [gates])  # where no gate is high, identities
    assert sum("skip_connect" in names for names in found.layers) == 2


def watch_of(s, network):
    """A Watch of a supernet that `cured` has made."""
    return Watch(Namespace(config=dict(classes=[*"abcd"], shape=[3, 16, 16])), s, network)


@pytest.fixture
def in_double():
    """Networks are built in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_curvature_is_that_of_the_whole_hessian(in_double):
    s, network = cured("s1", True, nodes=2)
    for alpha in network.alphas:
        alpha.data += torch.randn(alpha.shape, generator=torch.Generator().manual_seed(1))
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    before = copy.deepcopy(network.state_dict())
    classes = [type(module) for module in network.modules()]
    state = torch.get_rng_state()
    plain = watch_of(s, network).plain()
    found = curvature.hessian_eigenvalue(plain, images, labels, 1e-9)
    assert torch.equal(torch.get_rng_state(), state) and network.training
    assert [type(module) for module in network.modules()] == classes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for net in network, plain:
        assert all(w.requires_grad and w.grad is None for w in net.parameters())

    alphas = list(plain.alphas)
    assert all(torch.equal(a, b) for a, b in zip(alphas, network.alphas, strict=True))
    loss = F.cross_entropy(plain(images), labels)
    with gap.frozen_statistics(network), cures.undisturbed(network):
        assert close(loss, F.cross_entropy(network(images), labels))
    slopes = torch.autograd.grad(loss, alphas, create_graph=True)
    rows = [torch.autograd.grad(slope, alphas, retain_graph=True)
            for slope in torch.cat([slope.flatten() for slope in slopes])]
    hessian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    assert close(hessian, hessian.T, 1e-8)
    assert found == pytest.approx(torch.linalg.eigvalsh(hessian)[-1].item(), rel=1e-6)


def test_curvature_of_a_chain(in_double):
    s, network = cured("s2", True)
    images = torch.randn(2, 3, 8, 8)
    plain = watch_of(s, network).plain()
    assert curvature.hessian_eigenvalue(plain, images, torch.arange(2), 0.1) > 0
    assert network.training


def test_the_largest_eigenvalue_is_found():
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        a = torch.randn(40, 40, dtype=torch.float64, generator=g)
        a = a + a.T - 3 * torch.eye(40) * seed
        exact = torch.linalg.eigvalsh(a)[-1].item()
        for tolerance, within in ((1e-10, 1e-9), (1e-3, 1e-3)):
            found = curvature.largest_eigenvalue(lambda v: a.numpy() @ v, 40, tolerance)
            assert found == pytest.approx(exact, rel=within)
    assert curvature.largest_eigenvalue(lambda v: 0 * v, 40, 1e-3) == 0
    assert curvature.largest_eigenvalue(lambda v: 2 * v, 40, 1e-3) == pytest.approx(2)


ALL_CURES = ["--skip_dropout", "0.3", "--skip_noise", "1", "--keep_skips", "1", "--single_level",
             "--shared_softmax", "max_pool_3x3,skip_connect", "--curvature_every", "1",
             "--arch_learning_rate", "0.3"]


def test_cures_resume_bit_for_bit(tmp_path, monkeypatch, capsys):
    search = [*SMALL_SEARCH, *ALL_CURES, "--threshold", "0", "--batch_size", "200", "--nodes", "1",
              "--runs", tmp_path]
    assert call(train_search, monkeypatch, *search, "--name", "whole") == 0
    steps = []

    def stop_in_the_second_epoch(self, *others, add=loop.Run.add, **figures):
        add(self, *others, **figures)
        steps.append(1)
        if len(steps) == 5:
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
    found = texts.load(str(tmp_path / "whole" / "genotype.json"))
    assert [edge.op for edge in found.normal].count("skip_connect") <= 1


def test_a_search_that_ended_early_is_finished(tmp_path, monkeypatch, capsys):
    search = [*SMALL_SEARCH, "--epochs", "9", "--threshold", "0", "--primitives",
              "skip_connect,sep_conv_3x3", "--batch_size", "300", "--runs", tmp_path, "--name", "a"]
    assert call(train_search, monkeypatch, *search, "--max_skips", "1") == 0
    out = capsys.readouterr().out
    rows = table(tmp_path / "a")
    assert len(rows) < 9 and float(rows[-1]["derived_skips"]) > 1
    assert "--max_skips 1; the genotype is of epoch" in out
    record = records.read(str(tmp_path / "a"))
    assert record.epoch == max(1, len(rows) - 1)
    gates = [torch.from_numpy(record.gates[part][record.epoch - 1]) for part in record.gates]
    assert record.genotype == fair_darts.discretize(*gates, 0, primitives=record.primitives)
    assert (tmp_path / "a" / "report.md").exists()
    assert call(train_search, monkeypatch, "--resume", tmp_path / "a", "--keep_skips", "0") == 0
    assert len(table(tmp_path / "a")) == len(rows)
    found = texts.load(str(tmp_path / "a" / "genotype.json"))
    assert {edge.op for edge in found.normal} == {"sep_conv_3x3"}
    record = records.read(str(tmp_path / "a"))
    assert not records.kept_gates(record, "normal")[:, 0].any()


def test_two_layers_have_no_normal_cell(tmp_path, monkeypatch, capsys):
    """Both are reduction cells: the loss knows nothing of the normal alphas."""
    assert call(train_search, monkeypatch, *SMALL_SEARCH, "--runs", tmp_path, "--name", "a",
                "--layers", "2", "--epochs", "1", "--batch_size", "300", "--threshold", "0",
                "--unrolled", "--curvature_every", "1") == 0
    assert float(table(tmp_path / "a")[0]["curvature"]) > 0


def test_too_few_skips_kept_are_said(tmp_path, monkeypatch, capsys):
    assert call(train_search, monkeypatch, *SMALL_SEARCH, "--runs", tmp_path, "--name", "a",
                "--epochs", "1", "--batch_size", "300", "--threshold", "0", "--gap_every", "0",
                "--primitives", "skip_connect", "--keep_skips", "0") == 1
    out = capsys.readouterr().out.strip().split("\n")
    assert "--keep_skips 0 leaves it nothing" in out[-2]
    assert out[-1].endswith("--keep_skips 1")
    assert call(train_search, monkeypatch, *out[-1].split()[2:]) == 0


def test_cures_that_do_not_go_together_are_refused(tmp_path, monkeypatch, capsys):
    def message(**given):
        with pytest.raises(UserError) as error:
            cures.check(settings_of_cures(**given))
        return str(error.value)

    for names in ("skip_connect", "skip_connect,mb3_k3"):
        assert "two or more of max_pool" in message(shared_softmax=names)
    assert "sigmoid" in message(shared_softmax="skip_connect,sep_conv_3x3", gate="softmax")
    assert "requires --curvature_every" in message(max_curvature_ratio=1.3)
    assert "it takes 24 epochs" in message(max_curvature_ratio=1.3, curvature_every=2, epochs=23)
    cures.check(settings_of_cures(max_curvature_ratio=1.3, curvature_every=2, epochs=24))
    assert "no step in --epochs 5" in message(arch_start=5, epochs=5)
    assert cures.defaults({"max_curvature_ratio": 1.3}) == {"curvature_every": 2}
    for flags_given, text in ((["--arch_start", "30"], "--arch_start 30"),
                              (["--shared_softmax", "skip_connect,sep"], "unknown 'sep'")):
        assert text in refused(capsys, monkeypatch, train_search, "--dataset", "digits",
                               "--runs", tmp_path / "runs", *flags_given)
    assert not (tmp_path / "runs").exists()


def test_single_level_uses_one_batch_of_all_pictures_for_both(tmp_path, monkeypatch):
    stepped, step = [], fair_darts.Architect.step

    def watched(self, images, labels):
        stepped.append(images)
        return step(self, images, labels)

    taken, draw = [], batches.Batches.next

    def watched_next(self):
        taken.append(draw(self))
        return taken[-1]

    monkeypatch.setattr(fair_darts.Architect, "step", watched)
    monkeypatch.setattr(batches.Batches, "next", watched_next)
    assert call(train_search, monkeypatch, *TINY_SEARCH, "--single_level", "--runs", tmp_path) == 0
    assert len(taken) == len(stepped) and all(a[0] is b for a, b in zip(taken, stepped))
    assert sum(len(labels) for _, labels in taken) == 1437 // 300 * 300  # an epoch


def test_alpha_waits(tmp_path, monkeypatch):
    """Until --arch_start alphas and their Adam stay as they are; then they move."""
    assert call(train_search, monkeypatch, *SMALL_SEARCH, "--epochs", "3", "--arch_start", "2",
                "--batch_size", "300", "--threshold", "0", "--runs", tmp_path, "--name", "a") == 0
    gates = np.load(tmp_path / "a" / "gates.npz")["normal"]
    assert (gates[:2] == 0.5).all() and (gates[2] != 0.5).all()
    rows = table(tmp_path / "a")
    assert all(float(row["valid_loss"]) > 0 for row in rows) and float(rows[0]["penalty"]) == 0
    adam = torch.load(tmp_path / "a" / "checkpoint.pt", weights_only=True)["adam"]["state"]
    assert adam[0]["step"] == 2  # 718 pictures


def test_curvature_is_of_the_last_batch_of_alpha_with_its_decay(tmp_path, monkeypatch):
    seen, drawn, draw = [], [], batches.Batches.next
    monkeypatch.setattr(batches.Batches, "next", lambda self: drawn.append(draw(self)) or drawn[-1])
    monkeypatch.setattr(curvature, "hessian_eigenvalue",
                        lambda network, *batch: seen.append(batch) or 0.5)
    assert call(train_search, monkeypatch, *SMALL_SEARCH, "--epochs", "4", "--batch_size", "300",
                "--threshold", "0", "--curvature_every", "2", "--arch_weight_decay", "0.25",
                "--runs", tmp_path, "--name", "a") == 0
    assert [row["curvature"] for row in table(tmp_path / "a")] == ["0.75", "", "0.75", "0.75"]
    for (images, labels, _), epoch in zip(seen, (1, 3, 4), strict=True):
        last = drawn[4 * epoch - 1]  # two steps an epoch, of a validation and a training batch
        last = last if torch.equal(last[1], labels) else drawn[4 * epoch - 2]
        assert torch.equal(images, last[0]) and torch.equal(labels, last[1])
