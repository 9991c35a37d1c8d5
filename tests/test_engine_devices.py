"""Ready for a GPU: nothing stays on the CPU, no step waits, 16 bits and TF32 are where
they may be. tests/test_gpu.py is what runs on one."""
import copy
from argparse import Namespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import fair_darts
import genotypes
import model_eval
import model_search
import train_search
from engine import batches, devices, loop
from engine.precision import Precision, enter_autocast
from fair_darts import Architect, frozen
from spaces import nasbench201, s2
from speed import accelerate, layers
from speed.benchmark import step_of
from study import cures
from test_fair_darts import batch, small_network
from tests.common import TINY_SEARCH, call, new_run, pictures_of, refused, shortened


class CountWaits(TorchDispatchMode):
    """Counts what makes the host wait for a GPU, or moves tensors to or from it."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        aten, result = torch.ops.aten, function(*args, **(kwargs or {}))
        tensors = [t for t in (result, *args) if torch.is_tensor(t)]
        masks = [t for t in pytree.tree_leaves(args[1:]) if torch.is_tensor(t)
                 and t.dtype == torch.bool and function.overloadpacket in (
                     aten.index, aten.index_put, aten.index_put_)]  # nonzero inside of them
        if masks or len({t.device for t in tensors}) > 1 or function.overloadpacket in (
                aten._local_scalar_dense, aten.is_nonzero, aten.nonzero, aten.masked_select):
            self.found.append(str(function))
        return result


def fake_batches(device, size=8, count=40):
    pictures = pictures_of(torch.zeros(count, 3, size, size, dtype=torch.uint8, device=device),
                           torch.zeros(count, dtype=torch.long, device=device))
    return batches.Batches(pictures, 4, 1, True, 2, batches.generator(0))


NETWORKS = {
    "s1": lambda: accelerate(model_search.Network(4, 10, 3, 2)),
    "s2": lambda: accelerate(shortened(s2.SupernetS2(10, width=0.1, image_size=16))),
    "shared softmax": lambda: accelerate(model_search.Network(
        4, 10, 3, 2, gate=cures.SharedSoftmax(torch.arange(7) < 3))),
    "nasbench201": lambda: accelerate(nasbench201.SupernetNB201(
        4, 1, 10, 3, "sigmoid", [*nasbench201.OPS])),
    "plain": lambda: model_search.Network(4, 10, 3, 2, gate="softmax"),
    "cifar": lambda: accelerate(model_eval.NetworkCIFAR(genotypes.FairDARTS_a, 4, 10, 3)),
    "plain cifar": lambda: model_eval.NetworkCIFAR(genotypes.FairDARTS_a, 4, 10, 3),
    "imagenet": lambda: accelerate(model_eval.NetworkImageNet(genotypes.FairDARTS_b, 4, 10, 3)),
    "chain": lambda: accelerate(shortened(s2.NetworkS2(s2.FairNAS_A, 10, 0.2, 0.1,
                                                       image_size=16)))}


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_left_on_the_cpu(name):
    """By tensors that claim to be on a GPU: those on the CPU are refused beside
    them."""
    run = loop.Run("nowhere", Namespace(epochs=1, log_every=25), {})
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            try:
                nn.Conv2d(1, 1, 1)
            except RuntimeError as error:  # 2.9.1 does; 2.15.0 does not
                pytest.skip(f"this PyTorch asks for a driver even so: {str(error)[:60]}")
            network = NETWORKS[name]().train()
        network.drop_path_prob = 0.2
        assert all(t.is_cuda for t in network.state_dict().values())
        train = fake_batches("cuda", 64 if name == "imagenet" else 8)
        train.next()  # which begins a pass
        with CountWaits() as waits:
            images, labels = train.next()
            outputs = network(images)
            loss = F.cross_entropy(outputs[0] if isinstance(outputs, tuple) else outputs, labels)
            if hasattr(network, "alphas"):
                loss = loss + fair_darts.zero_one_loss(network.all_gates())
            run.add(loss.detach(), loss=loss)
        assert waits.found == [] and run.totals.is_cuda and loss.is_cuda
        with CountWaits() as waits:
            loss.cpu()
        assert waits.found  # it does find one


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "imagenet"])
def test_a_step_never_waits(name):
    network, train = NETWORKS[name]().train(), fake_batches("cpu")
    take = step_of(network, train.next(), Precision(torch.device("cpu"), False, network))
    take()  # which makes what the optimisers keep
    with CountWaits() as waits:
        loss = take()
    assert waits.found == []
    for wait in loss.item, lambda: loss[loss > 0]:
        with CountWaits() as waits:
            wait()
        assert waits.found  # it does find one


@pytest.mark.parametrize("name, rank, expected", [
    ("auto", None, 0), ("cuda:1", None, 1), ("cuda", "3", 3)])
def test_a_gpu_has_an_index(name, rank, expected, monkeypatch):
    """torch.cuda as it is, but for what asks the driver: it refuses a device without
    an index."""
    chosen, made = [], torch.empty
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)
    monkeypatch.setattr(devices.torch, "empty", lambda *size, device: made(*size))
    monkeypatch.setattr(devices.torch.backends.cudnn, "benchmark", False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert devices.choose_device(name) == torch.device("cuda", expected)
    assert chosen == [expected] and torch.backends.cudnn.benchmark
    with pytest.raises(ValueError):
        torch.cuda.set_device(torch.device("cuda"))


def test_without_graphs_a_derived_network_on_a_gpu_has_what_saves_launches():
    """There eager passes wait for launches; own gradients and phases add some."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        network = accelerate(NETWORKS["plain cifar"]())
        searched = accelerate(NETWORKS["plain"]())
    kinds = {type(module) for module in network.modules()}
    assert {layers.ReLU, layers.BatchNorm2d, nn.Conv2d, model_eval.Cell} <= kinds
    assert layers.DepthwiseConv2d not in kinds and not network.stem_0._forward_hooks
    assert layers.DepthwiseConv2d in {type(module) for module in searched.modules()}
    assert layers.DepthwiseConv2d in {type(module) for module in NETWORKS["cifar"]().modules()}


def in_float16(network, scale):
    """What a GPU without bfloat16 gets by --amp."""
    precision = Precision(torch.device("cpu"), False, network)
    enter_autocast(network, "cpu", torch.float16)
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return precision


def test_sixteen_bit_steps_stay_near_float32():
    results = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        network = accelerate(small_network().float())
        precision = Precision(torch.device("cpu"), dtype == torch.bfloat16, network)
        if dtype == torch.float16:
            precision = in_float16(network, 128.0)
        sgd = torch.optim.SGD(network.weights(), 0.01, momentum=0.9, fused=True)
        architect = Architect(network, 0.02, gradients=precision.gradients, update=precision.step)
        inside, losses = [], []
        for module in network.stem, network.cells[0].preprocess_0[1]:
            module.register_forward_hook(lambda *arguments: inside.append(arguments[2].dtype))
        for step in range(5):
            images, labels = batch(8, 32, 1, 3, step)
            loss, penalty = architect.step(images.float(), labels)
            sgd.zero_grad()
            with frozen(network.alphas):
                logits, gates = network(images.float()), network.all_gates()
                train_loss = F.cross_entropy(logits, labels)
                precision.backward(train_loss, sgd)
            nn.utils.clip_grad_norm_(network.weights(), 5.0)
            precision.step(sgd)
            assert {t.dtype for t in (loss, penalty, logits, gates, train_loss,
                                      *network.parameters())} == {torch.float32}
            losses += [loss, train_loss.detach()]
        assert dtype in inside and not torch.is_autocast_enabled("cpu")
        results.append((torch.stack(losses), network.all_gates().detach()))
    (expected, expected_gates), *others = results
    for losses, gates in others:
        assert losses.isfinite().all() and not torch.equal(losses, expected)
        assert (losses - expected).abs().max() < 0.1
        assert (gates - expected_gates).abs().mean() < 0.01


@pytest.fixture
def memory_of_nan():
    """Memory that was never written is not a number."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_a_step_that_overflows_is_left_out(memory_of_nan):
    """float16: neither alpha nor the weights move where a gradient is not finite; each
    lowers the scale, until the steps are those that float32 takes, momentum and all."""
    network = small_network().float()
    plain = copy.deepcopy(network)
    precision = Precision(torch.device("cpu"), False, network)
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 127)
    images, labels = batch(8, 4, 1, 3)
    images = images.float()
    networks = ((network, dict(gradients=precision.gradients, update=precision.step)), (plain, {}))
    architects = [Architect(tested, 0.1, **others) for tested, others in networks]
    sgds = [torch.optim.SGD(tested.weights(), 0.1, 0.9, fused=True) for tested, _ in networks]
    before, scales = [w.detach().clone() for w in network.parameters()], [2.0 ** 127]
    for _ in range(2):
        architects[0].step(1e4 * images, labels)
        scales.append(precision.scaler.get_scale())
        sgds[0].zero_grad()
        precision.backward(1e4 * F.cross_entropy(network(images), labels), sgds[0])
        precision.step(sgds[0])
        scales.append(precision.scaler.get_scale())
    assert scales == [2.0 ** (127 - index) for index in range(5)]
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before))
    for buffer, other in zip(network.buffers(), plain.buffers()):
        buffer.copy_(other)
    precision.scaler.update(1024.0)
    for _ in range(3):
        for architect, sgd in zip(architects, sgds):
            architect.step(images, labels)
            sgd.zero_grad()
            loss = F.cross_entropy(architect.network(images), labels)
            if architect.network is network:
                precision.backward(loss, sgd)
                precision.step(sgd)
            else:
                loss.backward()
                sgd.step()
    for ours, expected in zip(network.parameters(), plain.parameters()):
        assert torch.allclose(ours, expected, 1e-4, 1e-6)
    assert precision.trouble() is None


def test_twenty_steps_left_out_in_a_row_are_said_once(tmp_path, capsys):
    """Though the steps of the other optimiser are not left out."""
    network = small_network().float()
    precision = in_float16(network, 2.0 ** 10)
    adam, sgd = torch.optim.Adam(network.alphas, fused=True), torch.optim.SGD(
        network.weights(), 0.1, 0.9, fused=True)
    run = new_run(tmp_path, epochs=1)
    with run:
        run.track(network=network, precision=precision)
        for step in range(41):
            for alphas in network.alphas:
                alphas.grad = torch.full_like(alphas, float("nan"))
            precision.backward(sum(w.sum() for w in network.weights()) * 0, sgd)
            precision.step(adam)
            precision.step(sgd)
            run.add(torch.tensor(float("inf")), loss=torch.tensor(1.0))
            run.done += 1
            run.read_figures()
            said = capsys.readouterr().out
            assert ("note: the last 20 steps or more were left out" in said) == (
                step == 19), step


def test_a_run_in_the_other_16_bits_goes_on_and_says_so():
    network = small_network().float()
    half, brain = in_float16(network, 8.0), Precision(torch.device("cpu"), True, network)
    with pytest.warns(UserWarning, match="began with --amp in bfloat16, this device has float16"):
        half.load_state_dict(brain.state_dict())
    again = in_float16(network, 2.0)
    again.load_state_dict(half.state_dict())
    assert again.scaler.get_scale() == 8.0
    network = small_network()
    enter_autocast(network, "cpu", torch.bfloat16)
    with pytest.raises(RuntimeError):
        network(torch.zeros(2))
    assert not torch.is_autocast_enabled("cpu")  # though the pass has failed


def test_steps_are_in_full_float32_where_they_must_be(tmp_path, monkeypatch, capsys):
    seen, forward = [], model_search.Network.forward

    def watched(self, *arguments):
        seen.append((torch.backends.cudnn.allow_tf32, self.training))
        return forward(self, *arguments)

    monkeypatch.setattr(model_search.Network, "forward", watched)
    search = [*TINY_SEARCH, "--runs", tmp_path, "--gap_every", "0"]
    assert call(train_search, monkeypatch, *search, "--unrolled", "--curvature_every", "1") == 0
    kinds = [tf32 for tf32, training in seen if training]
    assert kinds == 2 * [False, False, False, False, True] + [False]  # unrolled, weights; curvature
    assert torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "highest"
    for flags in (["--unrolled"], ["--curvature_every", "1"]):
        line = refused(capsys, monkeypatch, train_search, *search, "--amp", *flags)
        assert "--unrolled and --curvature_every" in line and "leave one of the two out" in line
