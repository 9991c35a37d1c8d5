"""The speed and memory of accelerated networks against plain ones.

    python -m speed.benchmark                # ratios, minutes on two cores
    python -m speed.benchmark --quick        # a minute: smaller, fewer repeats
    python -m speed.benchmark --device cuda  # milliseconds and peak memory of a GPU

The sides run in turn in one process, and each time is a median. The plain side of a
ratio is a network that `accelerate` was not called for, with a full backward pass for
each optimiser, as in the published code.
"""
import copy
import statistics
import time

import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

import genotypes
from engine.devices import choose_device, name_of, peak_memory, reset_peak_memory
from engine.flags import Parser, main
from engine.precision import Precision
from fair_darts import Architect, frozen
from model_eval import NetworkCIFAR
from model_search import Network
from spaces.nasbench201 import OPS, SupernetNB201
from spaces.s2 import SupernetS2
from speed.accelerate import accelerate


# ---------------------------------------------------------------- steps

def step_of(network, batch, amp=False, frozen_halves=True):
    """A function that does a step of a search or of a training, as the scripts do;
    without `frozen_halves` with all gradients in both halves."""
    (images, labels), searched = batch, hasattr(network, "alphas")
    precision = Precision(images.device, amp, network)
    weights = network.weights() if searched else list(network.parameters())
    sgd = torch.optim.SGD(weights, 0.005, 0.9, weight_decay=3e-4, fused=True)
    architect = searched and Architect(network, gradients=precision.gradients,
                                       update=precision.step)

    def step():
        if searched and frozen_halves:
            architect.step(images, labels)
        elif searched:
            network.zero_grad()
            loss_of(network, images, labels).backward()
            architect.optimizer.step()
        network.zero_grad()
        with frozen(network.alphas if searched and frozen_halves else []):
            precision.backward(loss_of(network, images, labels), sgd)
        torch.nn.utils.clip_grad_norm_(weights, 5.0)
        precision.step(sgd)

    return step


def loss_of(network, images, labels):
    outputs = network(images)
    if torch.is_tensor(outputs):
        return F.cross_entropy(outputs, labels)
    return F.cross_entropy(outputs[0], labels) + 0.4 * F.cross_entropy(outputs[1], labels)


def random_batch(size, count, device):
    return (torch.randn(count, 3, size, size, device=device),
            torch.randint(0, 10, (count,), device=device))


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


# ---------------------------------------------------------------- on a CPU: ratios

class CountOperators(TorchDispatchMode):
    """Counts the operators that are called, but for views of tensors."""
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def kept_bytes(network, batch):
    """Of the distinct storages that a forward pass keeps for a backward pass."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(network, *batch)
    del loss
    return sum(storages.values())


def ratios(repeats, name, plain, size, count):
    """Prints how the accelerated network compares with the plain one."""
    batch, plain = random_batch(size, count, "cpu"), plain.train()
    fast, again = (accelerate(copy.deepcopy(plain), recompute) for recompute in (False, True))
    steps = [step_of(fast, batch), step_of(again, batch), step_of(plain, batch, False, False)]
    ours, recomputed, theirs = in_turn(repeats, *steps)
    print(f"{name}, {size}x{size}, batch {count}\n"
          f"  step             {ours:8.3f} s, plain {theirs:.3f} s: {theirs / ours:.2f} x as fast\n"
          f"  --recompute      {recomputed / ours:8.2f} x the time")
    kept = [kept_bytes(network, batch) for network in (fast, again, plain)]
    print(f"  kept, recomputed {kept[0] / kept[2]:8.2f}, {kept[1] / kept[2]:.2f} of plain's "
          f"{kept[2] / 2**20:.0f} MiB")
    counts = []
    for network in (fast, plain):
        network.zero_grad()  # or gradients would be added up, an operator each
        with CountOperators() as counter:
            loss_of(network, *batch).backward()
        counts.append(counter.count)
    print(f"  operators        {counts[0] / counts[1]:8.2f} of plain's {counts[1]:,}", flush=True)


# ---------------------------------------------------------------- on a GPU: milliseconds

def gpu_rows(device, repeats, name, make, size, count):
    """Prints the step in each form, float32 (TF32 in convolutions) and --amp."""
    for amp in (False, True):
        for form in ("plain", "accelerated", "with graphs"):
            network = make().to(device).train()
            if form != "plain":
                accelerate(network, use_graphs=form == "with graphs")
            step = step_of(network, random_batch(size, count, device), amp)
            for _ in range(3):
                step()
            reset_peak_memory(device)
            [seconds] = in_turn(repeats, step)
            print(f"{name:24} {form:12} {'--amp' if amp else 'float32':8} {1e3 * seconds:8.1f} ms  "
                  f"{peak_memory(device):6} MiB", flush=True)
            del network, step
            if device.type == "cuda":
                torch.cuda.empty_cache()


def benchmark():
    parser = Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller networks, fewer repeats")
    parser.add_argument("--device", help="cpu (the default), cuda, cuda:1")
    given = parser.parse_args()
    device, quick = choose_device(given.get("device", "cpu")), "quick" in given
    print(f"{name_of(device)}  torch {torch.__version__}  threads: {torch.get_num_threads()}")
    torch.manual_seed(0)
    width, cells, small = (8, 4, 16) if quick else (16, 8, 32)
    channels, layers = (16, 8) if quick else (36, 20)

    def derived():
        return NetworkCIFAR(genotypes.FairDARTS_a, channels, 10, layers)

    if device.type != "cpu":
        gpu_rows(device, 6, "S1", lambda: Network(width, layers=cells), 32, 128)
        gpu_rows(device, 6, "FairDARTS_a", derived, 32, 96)
        gpu_rows(device, 6, "NAS-Bench-201", lambda: SupernetNB201(
            16, 5, 10, 3, "softmax", [*OPS]), 32, 64)
        return
    repeats = 2 if quick else 5
    ratios(repeats, f"S1, {width} channels, {cells} cells", Network(width, layers=cells), 32, small)
    s2 = SupernetS2(10, width=0.25 if quick else 0.5, image_size=small)
    ratios(repeats, "S2", s2, small, 8 if quick else 16)
    ratios(repeats, f"FairDARTS_a, {channels} channels, {layers} cells", derived(), 32, small)


if __name__ == "__main__":
    main(benchmark)
