"""What a run computes on, and at what rate."""
import math
import os
import platform
import sys

import torch

from engine import processes
from engine.flags import UserError


def choose_device(name="auto"):
    """The torch.device `name`; "auto": CUDA, else MPS (Apple), else the CPU. On CUDA it
    has an index: of several processes each has the GPU of its number. Convolutions are
    tuned there and in TF32, as is PyTorch's default, products are not. Raises
    UserError."""
    there = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    there.append("cpu")
    try:
        device = torch.device(there[0] if name == "auto" else name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if device.type not in there:
            raise RuntimeError
        torch.empty(0, device=device)
    except RuntimeError:
        raise UserError(f"--device {name!r} is unavailable; this machine has: "
                        f"{', '.join(there)}") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    processes.join(device)
    return device


def name_of(device):
    """The device, and what it is."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.platform()
    return f"{device}, {name}"


def reset_peak_memory(device):
    """From here on `peak_memory` counts, on a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device):
    """MiB, of its GPU or of this process; 0 where it is not known."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return round(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def set_learning_rate(optimizer, epoch, epochs, high, low=0.0, gamma=0.0):
    """Half a cosine from `high`, in epoch 0, down to `low`; or, with `gamma`, that
    factor for every epoch."""
    rate = low + (high - low) * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    for group in optimizer.param_groups:
        group["lr"] = high * gamma ** epoch if gamma else rate
