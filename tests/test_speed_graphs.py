"""CUDA graphs, on a GPU (-m gpu), and without one: there a stand-in records the
operators of a pass, and replays them on the same memory with the same values."""
import contextlib
import copy
import gc
import pickle
import warnings
import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import genotypes
import model_eval
from engine.precision import Precision
from fair_darts import Architect, frozen
from spaces import nasbench201, s2
from speed import accelerate, graphs
from tests.common import shortened
from tests.test_speed import assert_close, batch, results, supernet


class Tape(TorchDispatchMode):
    """Records every operator that writes to memory, with the tensors that it reads."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.calls.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        with torch.no_grad():
            for function, args, kwargs, result in self.calls:
                written = {id(t) for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)}
                for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs))):
                    if torch.is_tensor(old) and id(old) not in written:
                        old.detach().copy_(new)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def gpu(request, monkeypatch):
    """A GPU, or the CPU as one. .captures: how many there were; .fail: raised by the
    next one; .modes: those of waiting for the host."""
    real, stream = request.param == "cuda", SimpleNamespace(wait_stream=lambda other: None)
    state = SimpleNamespace(captures=0, modes=[], fail=None, device=torch.device(request.param))
    capture, mode = graphs.capture, torch.cuda.set_sync_debug_mode

    def tape(function, owner):
        with Tape() as recorded:  # the real one computes nothing; what it moves is put back
            function()
        return recorded.replay

    def counted(function, owner):
        def failing():
            raise state.fail

        state.captures += 1
        return (capture if real else tape)(failing if state.fail else function, owner)

    stand_ins = {
        "get_rng_state": lambda device: torch.get_rng_state(),
        "set_rng_state": lambda values, device: torch.set_rng_state(values),
        "Stream": lambda: stream, "current_stream": lambda: stream,
        "stream": lambda given: contextlib.nullcontext(), "set_stream": lambda given: None,
        "graph_pool_handle": object}
    if real and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    for name, stand_in in {} if real else stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode",
                        lambda name: (state.modes.append(name), real and mode(name)))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(graphs, "DEVICE", request.param)
    monkeypatch.setattr(graphs, "capture", counted)
    state.random = lambda: torch.cuda.get_rng_state(state.device)
    state.batch = lambda: [t.to(state.device) for t in batch(8)]
    return state


NETWORKS = {
    "s1": lambda: supernet(2, 10, 3, 2),
    "s2": lambda: shortened(s2.SupernetS2(10, width=0.1, image_size=8)).double(),
    "nasbench201": lambda: nasbench201.SupernetNB201(
        4, 1, 10, 3, "sigmoid", [*nasbench201.OPS]).double(),
    "cells": lambda: model_eval.NetworkCIFAR(genotypes.FairDARTS_a, 4, 10, 3).double(),
    "no auxiliary head": lambda: model_eval.NetworkCIFAR(
        genotypes.FairDARTS_b, 4, 10, 3, auxiliary=False).double(),
    "chain": lambda: shortened(s2.NetworkS2(s2.FairNAS_A, 10, 0, 0.1, image_size=8)).double()}


def both(gpu, name, dtype=torch.float64):
    """The network `name`, with graphs and eager."""
    torch.manual_seed(2)
    network = NETWORKS[name]().to(gpu.device, dtype)
    other = copy.deepcopy(network)
    return accelerate(network, use_graphs=True).train(), accelerate(other).train()


@pytest.mark.parametrize("name", NETWORKS)
def test_graphs_give_what_eager_passes_give(name, gpu):
    """Logits, gradients and statistics of three passes, and logits in eval mode."""
    (network, eager), (images, labels) = both(gpu, name), gpu.batch()
    assert_close(results(network, images, labels, 3), results(eager, images, labels, 3), 1e-11)
    assert gpu.captures == 2  # one forward and one backward pass
    assert gpu.modes[0] == "error" and gpu.modes[-1] == "default"


def steps(network, gpu, count=3):
    """Steps of a search, with clipping; the losses, alphas and weights at the end."""
    architect, weights = Architect(network, 0.05), network.weights()
    sgd, found = torch.optim.SGD(weights, 0.1, 0.9, weight_decay=3e-4, fused=True), []
    for index in range(count):
        images, labels = gpu.batch()
        loss, _ = architect.step(images + index, labels)
        sgd.zero_grad()
        with frozen(network.alphas):
            F.cross_entropy(network(images - index), labels).backward()
        found += [loss, torch.nn.utils.clip_grad_norm_(weights, 1.0)]
        sgd.step()
        if index == 1:
            with torch.no_grad():
                found.append(network.eval()(images))
            network.train()
    return {str(i): t.detach().double()
            for i, t in enumerate([*found, *network.state_dict().values()])}


@pytest.mark.parametrize("name", [
    "s1", pytest.param("s2", marks=pytest.mark.slow), "nasbench201"])
def test_a_search_has_a_graph_for_alpha_and_one_for_the_weights(name, gpu):
    network, eager = both(gpu, name)
    assert_close(steps(network, gpu), steps(eager, gpu), 1e-10)
    assert gpu.captures == 4


def test_gradients_are_not_shared_with_the_graph(gpu):
    """Two passes accumulate; zeros stay apart; what autograd.grad gave stays."""
    (images, labels), found = gpu.batch(), []
    for tested in both(gpu, "cells"):
        def loss(scale):
            return sum(scale * F.cross_entropy(logits, labels) for logits in tested(images * scale))

        weights = [tested.stem_0[0].weight, tested.classifier.weight]
        loss(1).backward()
        loss(10).backward()
        values = [w.grad.clone() for w in weights]
        tested.zero_grad(set_to_none=False)
        loss(3).backward()
        values += [w.grad.clone() for w in weights] + list(torch.autograd.grad(loss(1), weights))
        kept = [value.clone() for value in values]
        torch.autograd.grad(loss(5), weights)
        assert all(torch.equal(a, b) for a, b in zip(values, kept))
        found.append({str(i): v for i, v in enumerate(values)})
    assert_close(*found, 1e-11)


@pytest.mark.parametrize("fail", [
    None, RuntimeError("operation not permitted when stream is capturing\nmore")])
def test_a_recording_is_put_back(fail, gpu):
    """Statistics and random numbers are those of one pass, not of four; also where the
    capture fails, which is said once."""
    images, gpu.fail, passes, said = gpu.batch()[0], fail, [], []
    for tested in both(gpu, "cells"):
        torch.manual_seed(5)
        tested.drop_path_prob = 0.3
        with warnings.catch_warnings(record=True) as messages:
            warnings.simplefilter("always")
            logits = [tested(images)[0].detach() for _ in range(3)]
        said += [str(warning.message) for warning in messages]
        passes.append({"logits": torch.stack(logits), "random": gpu.random().double(),
                       **{n: b.double() for n, b in tested.named_buffers() if "batches" not in n}})
    assert said == ["goes on without CUDA graphs: operation not permitted when stream is "
                    "capturing"] * bool(fail)
    assert_close(*passes, 1e-11)
    assert gc.isenabled() and torch.is_autocast_cache_enabled() and gpu.modes[-1] == "default"


def test_another_probability_is_another_graph(gpu):
    """Python values are baked into a graph: dropped paths change once an epoch."""
    (network, eager), images = both(gpu, "cells"), gpu.batch()[0]
    for probability, on, captures in ((0.0, "node", 2), (0.2, "node", 4), (0.2, "node", 4),
                                      (0.2, "edge", 6)):
        found = []
        for tested in (network, eager):
            torch.manual_seed(7)
            tested.drop_path_prob, tested.drop_path_on = probability, on
            found.append(tested(images)[0])
        assert torch.allclose(*found, 1e-11, 1e-11) and gpu.captures == captures


def test_what_a_graph_does_not_hold_for_is_eager_or_recorded_anew(gpu):
    (network, plain), (images, labels) = both(gpu, "s1"), gpu.batch()
    sgd = torch.optim.SGD(network.weights(), 0.1)  # whose step, unrolled, has other buffers
    Architect(network, 0).step(images, labels, images, labels, sgd)
    assert gpu.captures == 0

    def same(*arguments, **named):
        found, expected = network(*arguments, **named), plain(*arguments, **named)
        assert_close({"": found.detach()}, {"": expected.detach()}, 1e-9)
        return found

    same(images)
    assert gpu.captures == 2
    same(images[:1])  # not broadcast
    assert gpu.captures == 4
    same(images)
    given = [torch.rand(5, 7, dtype=torch.float64, device=gpu.device) for _ in range(2)]
    same(images, given), same(images, gates=given)
    with torch.no_grad():
        same(images)
    network.eval(), plain.eval()
    same(images)
    network.train(), plain.train()
    weights = {name: 2 * w.detach() for name, w in network.named_parameters()}
    found = [functional_call(tested, weights, (images,)) for tested in (network, plain)]
    assert_close({"": found[0].detach()}, {"": found[1].detach()}, 1e-9)
    same(images.clone().requires_grad_())
    assert gpu.captures == 4
    with frozen([network.classifier.weight]):
        same(images).sum().backward()
    assert gpu.captures == 6 and network.classifier.weight.grad is None
    same(images).sum().backward()  # thawed: it has a gradient again
    assert gpu.captures == 6 and network.classifier.weight.grad is not None
    network.cells[0].eval(), plain.cells[0].eval()
    same(images)
    assert gpu.captures == 8
    network.load_state_dict({n: 2 * t for n, t in network.state_dict().items()}, assign=True)
    plain.load_state_dict(network.state_dict())
    same(images)  # at other addresses
    assert gpu.captures == 8


def test_a_backward_pass_that_comes_too_late_is_refused(gpu):
    network, (images, labels) = both(gpu, "s1")[0], gpu.batch()
    first = F.cross_entropy(network(images), labels)
    network(images)
    with pytest.raises(RuntimeError, match="a later forward pass"):
        first.backward()
    again = F.cross_entropy(network(images), labels)
    again.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="or one before"):  # its memory was used again
        again.backward()


def test_copies_and_pickles_have_no_graphs_and_networks_are_freed(gpu):
    network, images = both(gpu, "s1")[0], gpu.batch()[0]
    network(images)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        with torch.no_grad():
            for w in other.parameters():
                w.mul_(2)
        assert not torch.equal(other(images), network(images)) and other not in graphs.GRAPHS
    assert gpu.captures == 2
    reference = weakref.ref(network)
    del network, other
    gc.collect()
    assert reference() is None and not graphs.GRAPHS
    network, eager = both(gpu, "cells")  # another one, in the memory of the first
    assert_close(results(network, *gpu.batch()), results(eager, *gpu.batch()), 1e-11)


@pytest.mark.parametrize("why", ["cpu", "recompute", "varies"])
def test_where_graphs_cannot_be_a_line_says_so(why, gpu, monkeypatch):
    network = NETWORKS["s1"]().to("cpu" if why == "cpu" else gpu.device)
    if why == "cpu":
        monkeypatch.setattr(graphs, "DEVICE", "cuda")
    network.cells[0].edges[0].operations[2].varies = why == "varies"
    with pytest.warns(UserWarning, match="^goes on without CUDA graphs: no GPU"):
        accelerate(network, recompute=why == "recompute", use_graphs=True)
    network.train()(batch(8)[0].to(network.alphas[0].device))
    assert gpu.captures == 0


def test_autocast_is_part_of_a_graph(gpu):
    images, found = gpu.batch()[0].float(), []
    for tested in both(gpu, "s1", torch.float32):
        Precision(gpu.device, True, tested)
        for _ in range(2):
            logits = tested(images)
            logits.sum().backward()
            with torch.no_grad():
                for w in tested.parameters():
                    w -= 0.01 * w.grad
                    w.grad = None
        assert logits.dtype == torch.float32
        found.append(logits.detach())
    assert gpu.captures == 2 and torch.allclose(*found, 0.05, 0.05)
