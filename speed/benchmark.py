"""The speed and memory of accelerated networks, as ratios to the same networks in plain
PyTorch.

    python -m speed.benchmark                # about ten minutes on two cores
    python -m speed.benchmark --quick        # a minute: smaller, fewer repeats
    python -m speed.benchmark --json FILE    # the same figures, to keep
    python -m speed.benchmark --device cuda  # also peak memory, and both memory formats

The plain side is a network that `accelerate` was not called for, in NCHW; in the
two-level step with a full backward pass for each optimiser. The two sides run in turn
in one process, and each time is a median.
"""
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import transforms

import genotypes
from engine import batches
from engine.devices import choose_device
from engine.flags import Parser, main
from engine.folders import read_metrics, write_whole
from fair_darts import Architect, frozen
from model_eval import NetworkCIFAR
from model_search import Network
from spaces.s2 import SupernetS2
from speed.accelerate import accelerate
from speed.formats import time_formats

DEVICE = torch.device("cpu")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# ---------------------------------------------------------------- what is measured

def in_turn(repeats, *sides):
    """The median seconds of each side, in turn `repeats` times after a warm-up."""
    times = [[] for _ in sides]
    for repeat in range(repeats + 1):
        for side, record in zip(sides, times):
            start = time.perf_counter()
            side()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            record.append(time.perf_counter() - start)
    return [statistics.median(record[1:]) for record in times]


def saved_bytes(forward):
    """The bytes of the distinct storages that `forward` keeps for a backward pass."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    del loss
    return sum(storages.values())


def peak_bytes(step):
    """The largest CUDA memory while `step` runs."""
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated()


class CountOperators(TorchDispatchMode):
    """Counts the operators that are called, but for views of tensors."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def count_operators(step):
    with CountOperators() as counter:
        step()
    return counter.count


# ---------------------------------------------------------------- the two sides

def random_batch(size, batch):
    images = torch.randn(batch, 3, size, size, device=DEVICE)
    return images, torch.randint(0, 10, (batch,), device=DEVICE)


def step_of(network, images, labels):
    """A function that does a two-level step: alpha, then the weights."""
    architect, weights = Architect(network), network.weights()
    sgd = torch.optim.SGD(weights, 0.005, 0.9, weight_decay=3e-4, fused=True)

    def step():
        architect.step(images, labels)
        sgd.zero_grad()
        with frozen(network.alphas):
            F.cross_entropy(network(images), labels).backward()
        sgd.step()

    return step


def plain_step_of(network, images, labels):
    """The same, each half as a full backward pass."""
    optimizers = [torch.optim.Adam(network.alphas, 3e-3),
                  torch.optim.SGD(network.weights(), 0.005, 0.9, weight_decay=3e-4)]

    def step():
        for optimizer in optimizers:
            network.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()

    return step


# ---------------------------------------------------------------- the figures: (what, unit, ...)

def search_figures(repeats, plain, name, size, batch):
    """Time, memory and operators of a supernet."""
    plain, (images, labels) = plain.to(DEVICE), random_batch(size, batch)
    fast = accelerate(copy.deepcopy(plain))
    recomputed = accelerate(copy.deepcopy(plain), recompute=True)

    def loss(network):
        network.zero_grad()  # or gradients would be added up, an operator each
        return F.cross_entropy(network(images), labels)

    steps = [step_of(fast, images, labels), step_of(recomputed, images, labels),
             plain_step_of(plain, images, labels)]
    ours, again, theirs = in_turn(repeats, *steps)
    yield f"two-level step, {name}, {size}x{size}, batch {batch}", "s", ours, theirs, theirs / ours
    yield "the same with --recompute: time against without", "s", again, ours, again / ours
    if DEVICE.type == "cuda":
        times = time_formats(plain, images)
        yield ("forward and backward, " + " against ".join(times), "s", *times.values(),
               times["contiguous"] / times["channels_last"])
        peaks = [peak_bytes(side) / 2 ** 20 for side in steps]
        yield "peak memory of the step", "MiB", peaks[0], peaks[2], peaks[0] / peaks[2]
        yield "the same with --recompute", "MiB", peaks[1], peaks[2], peaks[1] / peaks[2]
    ours, again, theirs = [saved_bytes(lambda: loss(network)) / 2 ** 20
                           for network in (fast, recomputed, plain)]
    yield "kept for backward", "MiB", ours, theirs, ours / theirs
    yield "kept for backward with --recompute", "MiB", again, theirs, again / theirs
    ours, theirs = [count_operators(lambda: loss(network).backward())
                    for network in (fast, plain)]
    yield "operators, one forward and backward", "", ours, theirs, ours / theirs


def training_figures(repeats, channels, layers, batch):
    """Time of a training step of a derived network."""
    plain = NetworkCIFAR(genotypes.FairDARTS_a, channels, 10, layers).to(DEVICE)
    fast, (images, labels) = accelerate(copy.deepcopy(plain)), random_batch(32, batch)

    def step(network):
        network.zero_grad()
        logits, auxiliary = network(images)
        loss = F.cross_entropy(logits, labels) + 0.4 * F.cross_entropy(auxiliary, labels)
        loss.backward()

    ours, theirs = in_turn(repeats, lambda: step(fast), lambda: step(plain))
    yield (f"training step of FairDARTS_a, {channels} channels, {layers} cells, batch {batch}", "s",
           ours, theirs, theirs / ours)


class Pictures(torch.utils.data.Dataset):
    """Pictures as a torchvision user keeps and augments them, one by one."""

    def __init__(self, images, mean, std):
        self.pictures = [transforms.functional.to_pil_image(image) for image in images]
        self.transform = transforms.Compose([
            transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(),
            transforms.ToTensor(), transforms.Normalize(mean / 255, std / 255),
            transforms.RandomErasing(1.0, (0.25, 0.25), (1, 1))])

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.transform(self.pictures[index]), 0


def data_figures(repeats, count=5120, batch=128):
    """Augmented pictures a second; those of torchvision in a DataLoader, 2 workers."""
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    labels = torch.zeros(count, dtype=torch.long)
    mean, std = torch.full((3,), 125.0), torch.full((3,), 63.0)
    loader = torch.utils.data.DataLoader(Pictures(images, mean, std), batch, shuffle=True,
                                         num_workers=2, persistent_workers=True)
    ours = batches.Batches(*(t.to(DEVICE) for t in (images, labels, mean, std)), batch, 4, True, 16,
                        batches.generator(0))

    def exhaust(iterable):
        for _ in iterable:
            pass

    seconds = in_turn(repeats, lambda: exhaust(ours.next() for _ in range(len(ours))),
                      lambda: exhaust(loader))
    rates = [count / s for s in seconds]
    yield (f"data with crop, flip and cutout, batch {batch}", "pictures/s", *rates,
           rates[0] / rates[1])


def process_figures(epochs):
    """Time of an epoch of digits' search, on one and two processes of one thread."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for processes in "12":
            command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", processes,
                       "train_search.py", "--dataset", "digits", "--device", "cpu", "--threshold",
                       "0", "--gap_every", "0", "--figures_every", "0", "--threads", "1",
                       "--epochs", str(epochs), "--runs", folder, "--name", processes]
            subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
            rows = read_metrics(os.path.join(folder, processes))
            seconds.append(statistics.median(row["seconds"] for row in rows[1:]))
    one, two = seconds
    yield "an epoch of digits, 2 processes of 1 thread against 1", "s", two, one, one / two


def all_figures(quick):
    """The figures, one after another."""
    torch.manual_seed(0)
    if quick:
        yield from search_figures(2, Network(8, layers=4), "8 channels, 4 cells", 32, 16)
        chain = SupernetS2(10, width=0.25, image_size=16)
        yield from search_figures(2, chain, "S2, width 0.25", 16, 8)
        yield from training_figures(2, 16, 8, 16)
        yield from data_figures(2)
        yield from process_figures(2)
    else:
        yield from search_figures(5, Network(16, layers=8), "16 channels, 8 cells", 32, 32)
        chain = SupernetS2(10, width=0.5, image_size=32)
        yield from search_figures(5, chain, "S2, width 0.5", 32, 16)
        yield from training_figures(5, 36, 20, 32)
        yield from data_figures(5)
        yield from process_figures(6)


def benchmark():
    global DEVICE
    parser = Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller supernet, fewer repeats")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE as well")
    parser.add_argument("--device", help="auto, cpu, cuda, mps")
    given = parser.parse_args()
    DEVICE = choose_device(given.get("device", "auto"))
    machine = dict(machine=platform.machine(), processor=processor(), device=str(DEVICE),
                   threads=torch.get_num_threads(), torch=torch.__version__,
                   python=platform.python_version())
    print("  ".join(f"{key}: {value}" for key, value in machine.items()))
    print(f"{'':65} {'this code':>12} {'against':>12} {'ratio':>8}")
    rows = []
    for what, unit, ours, other, ratio in all_figures("quick" in given):
        print(f"{what:65} {ours:12,.4g} {other:12,.4g} {ratio:8.2f}  {unit}", flush=True)
        rows.append(dict(what=what, unit=unit, ours=ours, against=other, ratio=ratio))
    if "json" in given:
        write_whole(given["json"], json.dumps(dict(machine, quick="quick" in given, figures=rows),
                                              indent=1))


def processor():
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file
                        if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main(benchmark)
