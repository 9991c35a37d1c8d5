"""The speed and memory of accelerated networks against plain ones.

    python -m speed.benchmark                # minutes on two cores
    python -m speed.benchmark --device cuda  # of a GPU, also with --amp, --graphs

A row is a form of a network: the median time of a step of a search or of a training,
MiB that a forward pass keeps for a backward pass (on a GPU, at the peak), operators of
both; in brackets, as a share of the first row. On a CPU only these mean anything, so
there the forms run in turn, and plain has a full backward pass for each optimiser, as
in the published code.
"""
import copy
import statistics
import time

import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from engine.devices import choose_device, name_of, peak_memory, reset_peak_memory
from engine.flags import Parser, main
from engine.precision import Precision
from fair_darts import Architect, frozen
from genotypes import FairDARTS_a
from model_eval import NetworkCIFAR
from model_search import Network
from spaces.nasbench201 import OPS, SupernetNB201
from spaces.s2 import SupernetS2
from speed.accelerate import accelerate


def step_of(network, batch, precision, published=False):
    """A function that does a step of a search or of a training, as the scripts do, and
    returns its loss; `published`: with all gradients in both halves."""
    searched = hasattr(network, "alphas")
    weights = network.weights() if searched else list(network.parameters())
    sgd = torch.optim.SGD(weights, 0.005, 0.9, weight_decay=3e-4, fused=True)
    architect = searched and Architect(network, gradients=precision.gradients,
                                       update=precision.step)

    def step():
        if searched and published:
            loss_of(network, batch).backward()
            architect.optimizer.step()
            network.zero_grad()
        elif searched:
            architect.step(*batch)
        with frozen(network.alphas if searched and not published else []):
            loss = loss_of(network, batch)
            precision.backward(loss, sgd)
        torch.nn.utils.clip_grad_norm_(weights, 5.0)
        precision.step(sgd)
        network.zero_grad()
        return loss.detach()

    return step


def loss_of(network, batch):
    outputs = network(batch[0])
    losses = [F.cross_entropy(logits, batch[1])
              for logits in (outputs if isinstance(outputs, tuple) else [outputs])
              if logits is not None]
    return losses[0] + 0.4 * sum(losses[1:])


def in_turn(repeats, *sides):
    """The median seconds of each side, in turn `repeats` times after a warm-up."""
    times = [[] for _ in sides]
    for _ in range(repeats + 1):
        for side, record in zip(sides, times):
            start = time.perf_counter()
            side()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            record.append(time.perf_counter() - start)
    return [statistics.median(record[1:]) for record in times]


class CountOperators(TorchDispatchMode):
    """Counts the operators that are called, but for views of tensors."""
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def kept_bytes(forward):
    """Of the distinct storages that a forward pass keeps for a backward pass."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    del loss
    return sum(storages.values())


def rows(name, plain, forms, count, first, amp=False):
    """Prints a row for each of the forms. first: {name: the first row's values}"""
    networks, steps, device = [], [], next(plain.parameters()).device
    batch = [torch.randn(count, 3, 32, 32, device=device),
             torch.randint(0, 10, (count,), device=device)]
    for form in forms:
        network = copy.deepcopy(plain).train()
        if form != "plain":
            accelerate(network, form == "--recompute", form == "--graphs")
        networks.append(network)
        steps.append(step_of(network, batch, Precision(device, amp, network),
                             published=form == "plain" and device.type == "cpu"))
    reset_peak_memory(device)  # before graphs are recorded: their replays take no memory
    in_turn(2, *steps)
    for form, network, seconds in zip(forms, networks, in_turn(5, *steps)):
        values = [1e3 * seconds, peak_memory(device)]
        if device.type == "cpu":
            values[1] = kept_bytes(lambda: loss_of(network, batch)) / 2**20
            with CountOperators() as counter:
                loss_of(network, batch).backward()
            values.append(counter.count)
        units = zip(values, first.setdefault(name, values), ("ms", "MiB", "operators"))
        print(f"{name:12}{form:12}{'--amp' if amp else 'float32':8}", *(
            f"{value:9,.0f} {unit} ({value / one:.2f})" for value, one, unit in units), flush=True)


def benchmark():
    parser = Parser(__doc__)
    parser.add_argument("--device", help="cpu (the default), cuda, cuda:1")
    device, first = choose_device(parser.parse_args().get("device", "cpu")), {}
    print(f"{name_of(device)}  torch {torch.__version__}  threads: {torch.get_num_threads()}")
    torch.manual_seed(0)
    for name, plain, large, small in (
            ("S1", Network(16), 128, 32), ("FairDARTS_a", NetworkCIFAR(FairDARTS_a), 96, 32),
            ("NB201", SupernetNB201(16, 5, 10, 3, "softmax", [*OPS]), 64, 16),
            ("S2", SupernetS2(10, width=0.5, image_size=32), 64, 16)):
        if device.type == "cpu":
            rows(name, plain, ["plain", "accelerated", "--recompute"], small, first)
            continue
        for amp in (False, True):
            for form in ("plain", "accelerated", "--graphs"):  # one by one, for their memory
                rows(name, plain.to(device), [form], large, first, amp)


if __name__ == "__main__":
    main(benchmark)
