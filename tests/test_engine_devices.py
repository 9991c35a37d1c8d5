"""Ready for a GPU: nothing stays on the CPU, no step waits, the faster memory format is
kept."""
import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fair_darts
import genotypes
import model_eval
import model_search
from engine import batches, devices, folders, loop
from engine.flags import UserError
from engine.precision import Precision, enter_autocast
from fair_darts import Architect, frozen
from spaces import s2
from speed import accelerate, formats
from test_fair_darts import batch, small_network
from tests.common import new_run
from tests.test_speed import shortened


class CountWaits(TorchDispatchMode):
    """Counts what makes the host wait for a GPU, or moves tensors to or from it."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        aten, result = torch.ops.aten, function(*args, **(kwargs or {}))
        tensors = [t for t in (result, *args) if torch.is_tensor(t)]
        if len({t.device for t in tensors}) > 1 or function.overloadpacket in (
                aten._local_scalar_dense, aten.is_nonzero, aten.nonzero):
            self.found.append(str(function))
        return result


def fake_batches(device, size=8, count=40):
    return batches.Batches(
        torch.zeros(count, 3, size, size, dtype=torch.uint8, device=device),
        torch.zeros(count, dtype=torch.long, device=device), torch.zeros(3, device=device),
        torch.ones(3, device=device), 4, 1, True, 2, batches.generator(0))


NETWORKS = {
    "s1": lambda: accelerate(model_search.Network(4, 10, 3, 2)),
    "s2": lambda: accelerate(shortened(s2.SupernetS2(10, width=0.1, image_size=16))),
    "plain": lambda: model_search.Network(4, 10, 3, 2, gate="softmax"),
    "cifar": lambda: accelerate(model_eval.NetworkCIFAR(genotypes.FairDARTS_a, 4, 10, 3)),
    "imagenet": lambda: accelerate(model_eval.NetworkImageNet(genotypes.FairDARTS_b, 4, 10, 3)),
    "chain": lambda: accelerate(shortened(s2.NetworkS2(s2.FairNAS_A, 10, 0.2, 0.1,
                                                       image_size=16)))}


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_left_on_the_cpu(name):
    """By tensors that claim to be on a GPU: those on the CPU are refused beside
    them."""
    run = loop.Run("nowhere", {"settings": {"epochs": 1, "log_every": 25}})
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
            run.add(loss.detach(), loss=loss)
        assert waits.found == [] and run.totals.is_cuda and loss.is_cuda
        with CountWaits() as waits:
            loss.cpu()
        assert waits.found  # it does find one


@pytest.mark.parametrize("name", ["s1", "s2", "plain", "cifar", "chain"])
def test_a_step_never_waits(name):
    run = loop.Run("nowhere", {"settings": {"epochs": 1, "log_every": 25}})
    network, train = NETWORKS[name]().train(), fake_batches("cpu")
    searched = hasattr(network, "alphas")
    weights = network.weights() if searched else list(network.parameters())
    sgd = torch.optim.SGD(weights, 0.1, 0.9, weight_decay=3e-4, fused=True)
    architect = fair_darts.Architect(network) if searched else None

    def step():
        images, labels = train.next()
        figures = {}
        if searched:
            valid_loss, penalty = architect.step(*train.next())
            figures.update(valid_loss=valid_loss, penalty=penalty)
        sgd.zero_grad()
        with fair_darts.frozen(network.alphas if searched else []):
            outputs = network(images)
            loss = F.cross_entropy(outputs if searched else outputs[0], labels)
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, 5.0)
        sgd.step()
        run.add(norm, loss=loss.detach(), **figures)

    step()  # which begins a pass, and makes what the optimisers keep
    with CountWaits() as waits:
        step()
    assert waits.found == []
    with CountWaits() as waits:
        float(run.totals.sum())
    assert waits.found  # it does find one


def test_the_faster_memory_format_is_taken_and_kept(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = model_search.Network(2, 10, 3, 2).train()
    settings = SimpleNamespace(batch_size=2, recompute=False)
    run = new_run(tmp_path)
    assert formats.memory_format(run, network, settings) is None  # on the CPU it is not timed
    for seconds in (dict(channels_last=2.0, contiguous=1.0), dict(channels_last=1, contiguous=2)):
        monkeypatch.setattr(formats, "time_formats", lambda *_: seconds)
        assert seconds[formats.fastest_format(network, (2, 3, 8, 8))] == 1
    calls = []
    monkeypatch.setattr(formats, "fastest_format", lambda *_: calls.append(_) or "contiguous")
    gpu = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(
        device=torch.device("cuda", 0))]))
    for _ in range(2):  # and not timed a second time
        assert formats.memory_format(run, gpu, settings) == "contiguous"
    assert len(calls) == 1 and folders.read_config(run.folder)["memory_format"] == "contiguous"
    for name, form in formats.FORMATS.items():
        states = []
        fast = accelerate(copy.deepcopy(network), memory_format=name)
        fast.cells[0].register_forward_hook(lambda _, inputs, __: states.append(inputs[0]))
        fast(torch.randn(2, 3, 8, 8))
        assert states[0].is_contiguous(memory_format=form)


@pytest.mark.parametrize("name", ["gpu", "cuda", "cuda:99", "mps", "tpu", "meta", ""])
def test_a_device_that_is_unavailable_is_named(name):
    """Where this machine has it, it is chosen."""
    try:
        assert devices.choose_device(name).type == name
    except UserError as error:
        there = f"--device {name!r} is unavailable; this machine has: "
        assert str(error).startswith(there) and str(error).endswith("cpu")
    assert devices.choose_device("cpu").type == "cpu"


def test_sixteen_bit_steps_stay_near_float32():
    results = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        network = accelerate(small_network().float())
        precision = Precision(torch.device("cpu"), dtype == torch.bfloat16, network)
        if dtype == torch.float16:  # what a GPU without bfloat16 gets
            enter_autocast(network, "cpu", dtype)
            precision.scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
        sgd = torch.optim.SGD(network.weights(), 0.01, momentum=0.9)
        architect = precision.guard(Architect(network, 0.02, gradients=precision.gradients))
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
        [slopes] = precision.gradients(3 * network.alphas[0].sum(), list(network.alphas)[:1])
        assert (slopes == 3).all()  # though they were scaled, which Adam does not see
        assert dtype in inside
        assert not torch.is_autocast_enabled("cpu")
        results.append((torch.stack(losses), network.all_gates().detach()))
    (expected, expected_gates), *others = results
    for losses, gates in others:
        assert losses.isfinite().all() and not torch.equal(losses, expected)
        assert (losses - expected).abs().max() < 0.1
        assert (gates - expected_gates).abs().mean() < 0.01


def test_a_step_that_overflows_is_left_out():
    """float16: neither alpha nor the weights move where a gradient is not finite."""
    network = small_network().float()
    precision = Precision(torch.device("cpu"), False, network)
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 127)
    architect = precision.guard(Architect(network, 0.1, gradients=precision.gradients))
    sgd = torch.optim.SGD(network.weights(), 0.1)
    before = [w.detach().clone() for w in network.parameters()]
    images, labels = batch(8, 4, 1, 3)
    architect.step(1e4 * images.float(), labels)
    sgd.zero_grad()
    precision.backward(1e4 * F.cross_entropy(network(images.float()), labels), sgd)
    precision.step(sgd)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before))
    assert precision.scaler.get_scale() < 2.0 ** 127


def test_an_error_in_a_forward_pass_leaves_autocast():
    network = small_network()
    enter_autocast(network, "cpu", torch.bfloat16)
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 2, 3))
    assert not torch.is_autocast_enabled("cpu")
