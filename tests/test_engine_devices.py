"""Ready for a GPU: nothing stays on the CPU, no step waits, the faster memory format is kept."""
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
from spaces import s2
from speed import accelerate, fastest_format, formats
from tests.common import new_run


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
    "s2": lambda: accelerate(s2.SupernetS2(10, width=0.1, image_size=8)),
    "plain": lambda: model_search.Network(4, 10, 3, 2),
    "softmax": lambda: accelerate(model_search.Network(4, 10, 3, 2, gate="softmax")),
    "cifar": lambda: accelerate(model_eval.NetworkCIFAR(genotypes.FairDARTS_a, 4, 10, 3)),
    "imagenet": lambda: accelerate(model_eval.NetworkImageNet(genotypes.FairDARTS_b, 4, 10, 3)),
    "chain": lambda: accelerate(s2.NetworkS2(s2.FairNAS_A, 10, width=0.1, image_size=8))}


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_left_on_the_cpu(name):
    """By tensors that claim to be on a GPU: those on the CPU are refused beside them."""
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


@pytest.mark.parametrize("name", ["s1", "s2", "plain", "softmax", "cifar", "chain"])
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
    before, kinds = copy.deepcopy(network.state_dict()), [type(m) for m in network.modules()]
    images, state = torch.randn(2, 3, 8, 8), torch.get_rng_state()
    seconds = formats.time_formats(network, images)
    assert set(seconds) == set(formats.FORMATS) and min(seconds.values()) > 0
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in before)
    assert kinds == [type(m) for m in network.modules()]
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(formats, "time_formats", lambda *_: {"channels_last": 2.0,
                                                             "contiguous": 1.0})
    zeros = torch.zeros
    assert fastest_format(network, (2, 3, 8, 8)) != "contiguous"  # on the CPU it is not timed
    monkeypatch.setattr(torch, "zeros", lambda *_, device: SimpleNamespace(is_cuda=True))
    run = new_run(tmp_path)
    assert run.keep("memory_format", fastest_format, network, (2, 3, 8, 8)) == "contiguous"
    assert folders.read_config(run.folder)["memory_format"] == "contiguous"
    monkeypatch.setattr(formats, "time_formats", None)  # not timed a second time
    assert run.keep("memory_format", fastest_format, network, (2, 3, 8, 8)) == "contiguous"
    monkeypatch.setattr(torch, "zeros", zeros)
    for name, form in formats.FORMATS.items():
        states = []
        fast = accelerate(copy.deepcopy(network), memory_format=name)
        fast.cells[0].register_forward_hook(lambda _, inputs, __: states.append(inputs[0]))
        fast(images)
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
