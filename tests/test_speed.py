"""TODO"""
import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import fair_darts
import genotypes
import model_eval
import model_search
import operations
from engine import precision
from genotypes import PRIMITIVES
from spaces import s2
from speed import benchmark, groups, kernels
from tests.common import (all_close, batch, close, results, small_network)


# ---------------------------------------------------------------- the supernet: Eq. 2, 6

ALL, FEW = PRIMITIVES, ("skip_connect", "sep_conv_3x3")  # RobustDARTS's S3 has such small sets


def assert_fast_is_literal(network, images, labels):
    with torch.no_grad():
        for alphas in network.alphas:
            alphas.normal_()
    expected = results(benchmark.plain(network), images, labels, stock=True)
    for recompute in (False, True):
        other = copy.deepcopy(network)
        assert other.fast
        assert all_close(results(other, images, labels, recompute=recompute), expected)
    literal = benchmark.plain(network)  # with the faster convolutions
    assert all_close(results(literal, images, labels, recompute=True), expected)
    assert all(w.grad is None or w.grad.abs().max() > 0 for w in other.weights())
    return other


@pytest.mark.parametrize("gate, size, nodes, layers, memory_format, primitives", [
    ("sigmoid", 8, 4, 3, "channels_last", ALL), ("softmax", 8, 4, 3, "channels_last", ALL),
    ("sigmoid", 7, 4, 3, "channels_last", ALL),
    ("softmax", 15, 2, 4, "channels_last", ALL), ("sigmoid", 7, 1, 2, "contiguous", ALL),
    ("sigmoid", 16, 3, 4, "channels_last", ALL), ("sigmoid", 7, 2, 3, "channels_last", FEW),
    ("softmax", 8, 2, 3, "channels_last", ("avg_pool_3x3", "dil_conv_5x5")),
    ("sigmoid", 8, 2, 3, "channels_last", ("max_pool_3x3", "sep_conv_5x5", "dil_conv_3x3")),
    ("sigmoid", 8, 2, 3, "channels_last", ("dil_conv_3x3",)),
    ("sigmoid", 8, 2, 3, "channels_last", ("skip_connect",)),
    ("sigmoid", 8, 2, 3, "channels_last", ("max_pool_3x3",))])
def test_fast_supernet_equals_the_literal_one(gate, size, nodes, layers, memory_format, primitives,
                                              monkeypatch):
    monkeypatch.setitem(kernels._formats, "cpu", memory_format)
    torch.manual_seed(1)
    network = model_search.Network(4, 10, layers, nodes, 3, gate, primitives).double()
    network = assert_fast_is_literal(network, *batch(size))
    reached = max(a.grad.abs().max().item() for a in network.alphas if a.grad is not None)
    assert reached > (1e-6 if gate == "sigmoid" or len(primitives) > 1 else 0)


@pytest.mark.parametrize("gate, size, width", [("sigmoid", 9, 0.1),
                                               ("softmax", 65, 0.1)])
def test_fast_chain_supernet_equals_the_literal_one(gate, size, width):
    torch.manual_seed(1)
    network = s2.SupernetS2(10, 3, gate, width, size).double()
    network = assert_fast_is_literal(network, *batch(size, 3))
    [alphas] = network.alphas
    assert alphas.grad[network.present].abs().max() > 1e-5
    assert (alphas.grad[~network.present] == 0).all()


def test_own_operations_in_both_forms(own_operations, monkeypatch):
    # two that are nearly what the fast form knows
    monkeypatch.setitem(operations.OPS, "dil_conv_3", lambda c, stride, affine: operations.DilConv(
        c, 3, stride, affine, dilation=3))
    monkeypatch.setitem(operations.OPS, "mean_conv", lambda c, stride, affine: nn.Sequential(
        nn.AvgPool2d(3, stride, 1), nn.Conv2d(c, c, 1)))
    torch.manual_seed(0)
    primitives = ("skip_connect", "conv_7x1_1x7", "sep_conv_5x5", "none", "dil_conv_3", "mean_conv",
                  "dil_conv_5x5", "max_pool_3x3")
    network = model_search.Network(4, 10, 3, 2, 3, "sigmoid", primitives).double()
    assert_fast_is_literal(network, *batch(8))
    with pytest.raises(KeyError, match="conv_9x1"):  # no name without an operation
        model_search.Network(4, primitives=("conv_9x1",))


def test_one_checkpoint_for_both_forms():
    one, other = [model_search.Network(2, layers=3, fast=form) for form in (True, False)]
    other.load_state_dict(one.state_dict())
    images, _ = batch(8)
    assert close(one.eval()(images.float()), other.eval()(images.float()), 1e-4)
    assert not hasattr(groups.Cell, "parameters")


def test_oracle_uses_stock_functions_in_nchw(monkeypatch):
    for name in ("to_phases", "filter_gradient", "Depthwise"):
        monkeypatch.setattr(kernels, name, None)
    network = benchmark.plain(model_search.Network(2, layers=3))
    formats = []
    network.cells[0].register_forward_pre_hook(lambda module, args: formats.append(
        args[0].is_contiguous() and not hasattr(args[0], "shared_relu")))
    with kernels.stock():
        F.cross_entropy(network(batch(8)[0].float()), batch(8)[1]).backward()
    assert formats == [True]


@pytest.mark.parametrize("kernel, stride, size, small, copies, dilation", [
    (3, 1, 8, 0, 1, 1), (3, 2, 7, 0, 2, 1), (5, 1, 9, 0, 1, 1), (5, 2, 8, 0, 3, 1),
    (5, 1, 7, 6, 2, 1), (5, 2, 15, 6, 2, 1), (5, 1, 2, 0, 1, 1), (5, 2, 3, 3, 2, 1),
    (3, 1, 1, 0, 2, 1), (5, 1, 1, 6, 2, 1), (7, 1, 9, 0, 1, 1), (7, 2, 8, 0, 1, 1),
    (7, 1, 3, 0, 2, 1), (7, 2, 15, 0, 1, 1), (9, 1, 9, 0, 1, 1), (3, 1, 8, 0, 1, 2),
    (5, 1, 8, 0, 2, 2), (5, 1, 7, 0, 1, 2), (5, 2, 8, 0, 1, 2), (3, 2, 7, 0, 1, 2),
    (3, 1, 9, 0, 1, 3)])
def test_depthwise_equals_conv2d(kernel, stride, size, small, copies, dilation):
    torch.manual_seed(0)
    x = torch.randn(3, 6 if copies == 1 or small == 6 else 3, size, size, dtype=torch.float64,
                    requires_grad=True)
    count = copies * x.shape[1]
    weight = torch.randn(count, 1, kernel, kernel, dtype=torch.float64)
    if small:
        weight[:small] = F.pad(weight[:small, :, 1:-1, 1:-1], [1] * 4)
    weight.requires_grad_()
    padding = dilation * (kernel // 2)
    expected = F.conv2d(torch.cat([x] * copies, 1), weight, None, stride, padding, dilation, count)
    got = kernels.depthwise(x, weight, stride, dilation, small)
    target = torch.randn_like(expected)
    dx, dw = torch.autograd.grad((expected * target).sum(), (x, weight))
    own_dx, own_dw = torch.autograd.grad((got * target).sum(), (x, weight))
    assert close(got, expected) and close(own_dx, dx)
    assert close(own_dw[small:], dw[small:])
    if small:
        assert close(own_dw[:small, :, 1:-1, 1:-1], dw[:small, :, 1:-1, 1:-1])


def test_shared_relu_is_computed_once():
    relu, x = operations.ReLU(), torch.randn(3, requires_grad=True)
    assert relu(x) is not relu(x)
    shared = kernels.share_relu(x * 1)
    assert relu(shared) is relu(shared) is kernels.ReLU()(kernels.share_relu(shared))
    assert torch.equal(relu(shared), x.clamp(min=0))
    (relu(shared).sum() + relu(shared).sum()).backward()
    assert torch.equal(x.grad, 2.0 * (x > 0))
    with kernels.stock():
        assert not hasattr(kernels.share_relu(x * 1), "shared_relu")


def test_absent_choices_count_nowhere():
    network = s2.SupernetS2(10, 1, width=0.1, image_size=8)
    assert (~network.present).sum() == 6 and (network.present[:, :6]).all()
    assert network.all_gates().shape == (127,) and (network.all_gates() == 0.5).all()
    assert (network.compute_gates()[0][~network.present] == 0).all()
    architect = fair_darts.Architect(network, 0.1, w01=10.0)
    with torch.no_grad():
        network.alphas[0][network.present] = torch.linspace(-3, 3, 127)
    images, labels = batch(8, 6, 1)
    gates = network.all_gates().detach()
    _, penalty = architect.step(images.float(), labels)
    assert penalty.item() == pytest.approx(-((gates - 0.5) ** 2).sum().item() / 127,
                                           abs=1e-6)
    assert ((network.alphas[0][~network.present] == 0).all()
            and network.alphas[0][network.present].abs().min() > 0)
    softmax = s2.SupernetS2(10, 1, "softmax", 0.1, 8)
    [gates] = softmax.compute_gates()
    assert gates.sum(1).allclose(torch.ones(19)) and (gates[~softmax.present] == 0).all()


def test_strides_of_chains_for_small_pictures():
    for size, halvings in ((224, 5), (65, 5), (64, 3), (32, 2), (28, 1), (16, 1), (15, 0), (8, 0)):
        strides = s2.chain_strides(size)
        assert strides.count(2) == halvings
        side = size
        for stride in strides:
            side = -(-side // stride)
        assert side >= 8 or size > 64
    assert s2.chain_strides(224)[1:] == [stride for _, stride in s2.CHAIN]
    assert [i for i, stride in enumerate(s2.chain_strides(32))
            if stride == 2] == [7, 15]  # the last two of five


def test_phases_and_their_inverse():
    x = torch.randn(2, 3, 6, 8)
    phases = kernels.to_phases(x)
    assert torch.equal(phases[2 * 2:2 * 3], x[:, :, 1::2, ::2])  # phase (1, 0) of both pictures
    assert torch.equal(kernels.from_phases(phases), x)


@pytest.mark.parametrize("unrolled", [False, True])
def test_recompute_changes_nothing(unrolled):
    """Losses, alphas, weights and batch-norm statistics, bit for bit, over several
    two-level steps.
    """
    results = []
    for recompute in (False, True):
        network = small_network()
        network.recompute = recompute
        sgd = torch.optim.SGD(network.weights(), 0.1, momentum=0.9)
        architect = fair_darts.Architect(network, 0.1)
        losses = []
        for step in range(3):
            (images, labels), (train_images, train_labels) = (
                batch(8, 6, 1, 3, step), batch(8, 6, 1, 3, 10 + step))
            if unrolled:
                losses += architect.step(images, labels, train_images, train_labels, sgd)
            else:
                losses += architect.step(images, labels)
            sgd.zero_grad()
            with fair_darts.frozen(network.alphas):
                loss = F.cross_entropy(network(train_images), train_labels)
                loss.backward()
            sgd.step()
            losses.append(loss.detach())
        results.append((torch.stack(losses), network.state_dict()))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(value, results[1][1][name]) for name, value in results[0][1].items())
    assert any("running_var" in name and not torch.equal(value, small_network().state_dict()[name])
               for name, value in results[0][1].items())


def test_recompute_repeats_drop_path():
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = model_eval.NetworkCIFAR(genotypes.FairDARTS_a, 4, 10, 3)
        network.recompute, network.drop_path_prob = recompute, 0.5
        images, labels = batch(32)
        logits, auxiliary = network(images.float())
        (F.cross_entropy(logits, labels) + F.cross_entropy(auxiliary, labels)).backward()
        results.append([logits, *(w.grad for w in network.parameters()), *network.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_recompute_keeps_less():
    torch.manual_seed(0)
    network, (images, labels) = model_search.Network(4, layers=3), batch(16)
    literal, kept = benchmark.plain(network), {}
    for name, net in (("plain", literal), ("ours", network), ("recompute", network)):
        network.recompute = name == "recompute"
        with kernels.stock(name == "plain"):
            kept[name] = benchmark.saved_bytes(lambda: F.cross_entropy(net(images.float()), labels))
    assert kept["ours"] < 0.7 * kept["plain"] and kept["recompute"] < 0.25 * kept["plain"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_steps_stay_near_float32(dtype):
    results = []
    for amp in (False, True):
        network = small_network().float()
        precision = precision.Precision(torch.device("cpu"), amp)
        if amp and dtype == torch.float16:  # what a GPU without bfloat16 gets
            precision.dtype, precision.scaler = dtype, torch.amp.GradScaler("cpu", init_scale=128.0)
            precision.loss_scale = precision.scaler.get_scale
        sgd = torch.optim.SGD(network.weights(), 0.01, momentum=0.9)
        architect = fair_darts.Architect(network, 0.02, autocast=precision.autocast,
                                         loss_scale=precision.loss_scale)
        losses = []
        for step in range(5):
            images, labels = batch(8, 32, 1, 3, step)
            loss, penalty = architect.step(images.float(), labels)
            with fair_darts.frozen(network.alphas):
                sgd.zero_grad()
                with precision.autocast():
                    logits, gates = network(images.float()), network.all_gates()
                train_loss = F.cross_entropy(logits, labels)
                precision.scaler.scale(train_loss).backward()
            precision.scaler.unscale_(sgd)
            nn.utils.clip_grad_norm_(network.weights(), 5.0)
            precision.scaler.step(sgd)
            precision.scaler.update()
            assert {t.dtype for t in (loss, penalty, logits, gates, train_loss,
                                      *network.parameters())} == {torch.float32}
            losses += [loss, train_loss.detach()]
        results.append((torch.stack(losses), network.all_gates().detach()))
    assert results[1][0].isfinite().all() and not torch.equal(results[0][0], results[1][0])
    assert (results[0][0] - results[1][0]).abs().max() < 0.1
    assert (results[0][1] - results[1][1]).abs().mean() < 0.01


def test_gate_gradient_with_channels_last_input():
    """A strided scale makes batch norm's channels_last gradient wrong on the CPU; the
    gates come from a column.
    """
    torch.manual_seed(0)
    gates = torch.rand(3, 7, dtype=torch.float64, requires_grad=True)
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64).contiguous(
        memory_format=torch.channels_last).requires_grad_()
    norms = [nn.BatchNorm2d(2, affine=False).double() for _ in range(3)]
    target = torch.randn(4, 6, 5, 5, dtype=torch.float64)
    y = groups.BatchNorms(norms)(x, gates[:, 2])
    got = torch.autograd.grad((y * target).sum(), (x, gates))
    y = (x - x.mean((0, 2, 3), keepdim=True)) / (
        x.var((0, 2, 3), unbiased=False, keepdim=True) + norms[0].eps).sqrt()
    scale = gates[:, 2].repeat_interleave(2)[:, None, None]
    for a, b in zip(got, torch.autograd.grad((y * scale * target).sum(), (x, gates))):
        assert close(a, b)


def test_alphas_and_weights_of_the_supernet():
    network = model_search.Network(init_channels=4, layers=3)
    assert [tuple(a.shape) for a in network.alphas] == [(14, 7), (14, 7)]
    assert (network.all_gates() == 0.5).all()  # sigmoid(0): no operation starts ahead
    names = {id(a) for a in network.alphas} | {id(w) for w in network.weights()}
    assert len(names) == len(list(network.parameters())) == len(network.weights()) + 2
    softmax = model_search.Network(init_channels=4, layers=3, gate="softmax")
    assert all(0 < a.abs().max() < 0.01 for a in softmax.alphas)
    assert torch.cat(softmax.compute_gates()).sum(1).allclose(torch.ones(28))


def test_published_size_of_the_supernet():
    """DARTS prints 1.93 M parameters for its search network
    of 16 channels and 8 cells.
    """
    assert sum(w.numel() for w in model_search.Network().weights()) == 1_930_618
