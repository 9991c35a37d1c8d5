"""What a run computes on and with: the device, the precision, the memory format, the rate."""
import math
import os
import warnings

import torch

import kernels
import parallel
from flags import UserError


def choose_device(name="auto"):
    """The torch.device `name`; "auto": CUDA, else MPS (Apple), else the CPU. Of several processes
    each has the GPU of its number. Raises UserError."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
                 "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None and parallel.size() > 1:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if available[device.type]:
            torch.empty(0, device=device)
            if device.type == "cpu":
                kernels.keep_freed_memory()
            elif device.type == "cuda":
                torch.cuda.set_device(device)
                torch.backends.cudnn.benchmark = True
                torch.set_float32_matmul_precision("high")
        else:
            device = None
    except (RuntimeError, KeyError):
        device = None
    if device is None:
        there = ", ".join(kind for kind, there in available.items() if there)
        raise UserError(f"--device {name!r} is not there; this machine has: {there}")
    parallel.join(device)
    return device


class Precision:
    """Where the forward pass computes in 16 bits (`amp`): in bfloat16, or where there is none in
    float16, whose small gradients .scaler keeps above zero. All else stays float32."""

    def __init__(self, device, amp):
        self.device, self.amp = device, amp
        half = amp and device.type == "cuda" and not torch.cuda.is_bf16_supported()
        self.dtype = torch.float16 if half else torch.bfloat16
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        self.loss_scale = self.scaler.get_scale if half else None

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.amp)


def prepare_network(run, network, device, shape):
    """Do what --sync_bn and --compile ask for; on CUDA, take the memory format in which
    batches of `shape` pass faster, which config.json keeps. Raises UserError."""
    settings = run.config["settings"]
    if settings["sync_bn"]:
        parallel.synchronize(network)
    if device.type == "cuda":
        images = torch.zeros(shape[0] // parallel.size(), *shape[1:], device=device)
        if "memory_format" not in run.config:
            with Precision(device, settings["amp"]).autocast():
                seconds = parallel.shared(kernels.time_formats(network.train(), images))
            run.config["memory_format"] = min(seconds, key=seconds.get)
            run.write_config()
            run.log("memory format: " + ", ".join(f"{name} {value:.4f} s a pass"
                                                   for name, value in seconds.items()))
        if run.config["memory_format"] not in kernels.FORMATS:
            raise UserError(f"{run.path('config.json')}: unknown memory_format")
        kernels.use_format(device.type, run.config["memory_format"])
    if settings["compile"] and device.type == "cpu":
        warnings.warn("--compile is left out: on a CPU the step is no faster after it, and it "
                      "takes minutes")
    elif settings["compile"]:
        network.compile_regions()


def set_learning_rate(optimizer, epoch, epochs, high, low=0.0, gamma=0.0):
    """Half a cosine from `high`, in epoch 0, down to `low`; or, with `gamma`, that factor for
    every epoch."""
    rate = low + (high - low) * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    for group in optimizer.param_groups:
        group["lr"] = high * gamma ** epoch if gamma else rate
