"""The speed and memory of this code, as ratios to plain forms of the same mathematics, on this machine.

    python benchmark.py               # about ten minutes on two cores
    python benchmark.py --quick       # one minute: a smaller supernet, fewer repeats
    python benchmark.py --json FILE   # the same figures, to keep

The two sides run in turn in one process, and each figure is a median. The plain forms are those that the tests
compare with: every operation of every edge a module of its own, in NCHW, with full backward passes.
"""
import json
import platform
import statistics
import time

import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from torchvision import transforms

import data
import genotypes
from fair_darts import Architect, frozen
from flags import Parser, main
from model_eval import NetworkCIFAR
from model_search import Network, NetworkS2
from runs import choose_device
from test_fair_darts import OracleDerived, OracleNetwork, OracleS2

DEVICE = torch.device("cpu")


def in_turn(repeats, *sides):
    """The median seconds of each side, run one after the other `repeats` times after a warm-up."""
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


# operators that neither launch a kernel nor touch the data: views, allocations, wrappers of other operators
IDLE = {"view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "expand_as", "select", "slice", "split",
        "narrow", "chunk", "unflatten", "flatten", "unsqueeze", "squeeze", "as_strided", "detach", "alias", "empty",
        "empty_like", "empty_strided", "resize_", "to", "_to_copy", "contiguous", "clone", "conv2d", "convolution",
        "_convolution", "batch_norm", "_batch_norm_impl_index", "max_pool2d", "relu", "relu_", "pad", "constant_pad_nd",
        "stack", "linear", "matmul", "cross_entropy_loss", "nll_loss_nd", "nll_loss", "log_softmax", "zeros", "ones_like",
        "zeros_like", "new_zeros", "new_empty", "zero_", "repeat_interleave", "unbind", "result_type", "lift_fresh",
        "item", "is_nonzero", "_local_scalar_dense", "resolve_conj", "resolve_neg", "view_as", "split_with_sizes", "numpy_T",
        "select_backward", "slice_backward", "embedding", "mean_backward", "unsafe_chunk", "unsafe_split", "new_full", "full"}


def kernels(step):
    """How many operators that do work `step` calls."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        step()
    names = [event.name[6:] for event in record.events() if event.name.startswith("aten::")]
    return sum(name not in IDLE for name in names)


def search_steps(network, oracle, images, labels):
    """Two functions that do a two-level step: alpha, then the weights."""
    architect = Architect(network)
    sgd = torch.optim.SGD(network.weights(), 0.005, 0.9, weight_decay=3e-4)
    weights = [w for name, w in oracle.named_parameters() if not name.startswith("alphas.")]
    optimizers = [torch.optim.Adam(oracle.alphas, 3e-3), torch.optim.SGD(weights, 0.005, 0.9, weight_decay=3e-4)]

    def step():
        architect.step(images, labels)
        sgd.zero_grad()
        with frozen(network.alphas):
            F.cross_entropy(network(images), labels).backward()
        sgd.step()

    def plain_step():
        for optimizer in optimizers:
            oracle.zero_grad()
            F.cross_entropy(oracle(images), labels).backward()
            optimizer.step()

    return step, plain_step


def search_figures(repeats, channels, layers, size, batch):
    """Time, memory and kernels of the supernet against the oracle."""
    torch.manual_seed(0)
    network = Network(channels, layers=layers).to(DEVICE)
    oracle = OracleNetwork(network, channels, layers=layers).to(DEVICE)
    yield from step_figures(repeats, network, oracle, f"{channels} channels, {layers} cells", size, batch)
    images, labels = random_batch(size, batch)
    counts = [kernels(lambda: F.cross_entropy(net(images), labels).backward()) for net in (network, oracle)]
    yield "operators that do work, one forward and backward", "", *counts, counts[0] / counts[1]


def chain_figures(repeats, width, size, batch):
    """The same for the space S2."""
    torch.manual_seed(0)
    network = NetworkS2(10, 3, width=width, image_size=size).to(DEVICE)
    yield from step_figures(repeats, network, OracleS2(network).to(DEVICE), f"S2, width {width}", size, batch)


def random_batch(size, batch):
    return torch.randn(batch, 3, size, size, device=DEVICE), torch.randint(0, 10, (batch,), device=DEVICE)


def step_figures(repeats, network, oracle, name, size, batch):
    """Time and memory of a two-level step."""
    images, labels = random_batch(size, batch)
    step, plain_step = search_steps(network, oracle, images, labels)

    def again():
        network.recompute = True
        step()
        network.recompute = False

    ours, recomputed, plain = in_turn(repeats, step, again, plain_step)
    yield f"two-level step, {name}, {size}x{size}, batch {batch}", "s", ours, plain, plain / ours
    yield "the same with --recompute: time against without", "s", recomputed, ours, recomputed / ours
    plain_bytes = saved_bytes(lambda: F.cross_entropy(oracle(images), labels)) / 2 ** 20
    for recompute in (False, True):
        network.recompute = recompute
        kept = saved_bytes(lambda: F.cross_entropy(network(images), labels)) / 2 ** 20
        yield "kept for backward" + " with --recompute" * recompute, "MiB", kept, plain_bytes, kept / plain_bytes
    network.recompute = False


def training_figures(repeats, channels, layers, batch):
    """Time of a training step of a derived network against its plain form."""
    torch.manual_seed(0)
    genotype = genotypes.FairDARTS_a
    network = NetworkCIFAR(genotype, channels, 10, layers).to(DEVICE)
    oracle = OracleDerived(network, genotype, channels, 10, layers).to(DEVICE)
    images, labels = torch.randn(batch, 3, 32, 32, device=DEVICE), torch.randint(0, 10, (batch,), device=DEVICE)

    def step(net):
        net.zero_grad()
        logits, auxiliary = net(images)
        (F.cross_entropy(logits, labels) + 0.4 * F.cross_entropy(auxiliary, labels)).backward()

    ours, plain = in_turn(repeats, lambda: step(network), lambda: step(oracle))
    yield f"training step of FairDARTS_a, {channels} channels, {layers} cells, batch {batch}", "s", ours, plain, plain / ours


class Pictures(torch.utils.data.Dataset):
    """Pictures as a torchvision user keeps and augments them, one by one."""

    def __init__(self, images, mean, std):
        self.pictures = [transforms.functional.to_pil_image(image) for image in images]
        self.transform = transforms.Compose([
            transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
            transforms.Normalize(mean / 255, std / 255), transforms.RandomErasing(1.0, (0.25, 0.25), (1, 1))])

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.transform(self.pictures[index]), 0


def data_figures(repeats, count=5120, batch=128):
    """Augmented pictures a second against torchvision's transforms in a DataLoader with 2 workers."""
    torch.manual_seed(0)
    images, labels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8), torch.zeros(count, dtype=torch.long)
    mean, std = torch.full((3,), 125.0), torch.full((3,), 63.0)
    loader = torch.utils.data.DataLoader(Pictures(images, mean, std), batch, shuffle=True, num_workers=2,
                                         persistent_workers=True)
    ours = data.Batches(*(t.to(DEVICE) for t in (images, labels, mean, std)), batch, 4, True, 16, data.generator(0))

    def exhaust(batches):
        for _ in batches:
            pass

    seconds = in_turn(repeats, lambda: exhaust(ours.next() for _ in range(len(ours))), lambda: exhaust(loader))
    rates = [count / s for s in seconds]
    yield f"data with crop, flip and cutout, batch {batch}", "pictures/s", *rates, rates[0] / rates[1]


def benchmark():
    global DEVICE
    parser = Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller supernet, fewer repeats")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE as well")
    parser.add_argument("--device", help="auto, cpu, cuda, mps")
    given = parser.parse_args()
    DEVICE = choose_device(given.get("device", "auto"))
    quick = "quick" in given
    machine = dict(machine=platform.machine(), processor=processor(), device=str(DEVICE), threads=torch.get_num_threads(),
                   torch=torch.__version__, python=platform.python_version())
    print("  ".join(f"{key}: {value}" for key, value in machine.items()))
    print(f"{'':75} {'this code':>14} {'against':>14} {'ratio':>8}")
    rows = []
    for figures in (search_figures(*(2, 8, 4, 32, 16) if quick else (5, 16, 8, 32, 32)),
                    chain_figures(*(2, 0.25, 16, 8) if quick else (5, 0.5, 32, 16)),
                    training_figures(*(2, 16, 8, 16) if quick else (5, 36, 20, 32)), data_figures(2 if quick else 5)):
        for what, unit, ours, other, ratio in figures:
            print(f"{what:75} {ours:14,.4g} {other:14,.4g} {ratio:8.2f}  {unit}", flush=True)
            rows.append(dict(what=what, unit=unit, ours=ours, against=other, ratio=ratio))
    if "json" in given:
        with open(given["json"], "w") as file:
            json.dump(dict(machine, quick=quick, figures=rows), file, indent=1)


def processor():
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main(benchmark)
