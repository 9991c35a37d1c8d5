"""What a run computes on, and at what rate."""
import math
import os

import torch

from engine import processes
from engine.flags import UserError


def choose_device(name="auto"):
    """The torch.device `name`; "auto": CUDA, else MPS (Apple), else the CPU. Of several
    processes each has the GPU of its number. Raises UserError."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
                 "cpu": True}
    if name == "auto":
        name = next(option for option, there in available.items() if there)
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None and processes.size() > 1:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if not available[device.type]:
            raise KeyError
        torch.empty(0, device=device)
    except (RuntimeError, KeyError):
        there = ", ".join(option for option, there in available.items() if there)
        raise UserError(f"--device {name!r} is unavailable; this machine has: {there}") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    processes.join(device)
    return device


def set_learning_rate(optimizer, epoch, epochs, high, low=0.0, gamma=0.0):
    """Half a cosine from `high`, in epoch 0, down to `low`; or, with `gamma`, that
    factor for every epoch."""
    rate = low + (high - low) * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    for group in optimizer.param_groups:
        group["lr"] = high * gamma ** epoch if gamma else rate
