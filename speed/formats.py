"""The memory format in which a network is fastest."""
import copy
import time

import torch

from speed.accelerate import FORMATS, accelerate


def memory_format(run, network, s):
    """For accelerate: on a GPU the faster of both formats, which the run keeps;
    depthwise convolutions are several times slower in one of them, and which one
    depends. Elsewhere None, the best that is known."""
    device = next(network.parameters()).device
    if device.type != "cuda":
        return None
    shape = s.batch_size // run.config["processes"], *run.config["shape"]
    return run.keep("memory_format", fastest_format, network, shape, s.recompute)


def fastest_format(network, shape, recompute=False):
    """"channels_last" or "contiguous", for batches of `shape`. Leaves the network and
    random generators as they were."""
    images = torch.zeros(shape, device=next(network.parameters()).device)
    seconds = time_formats(network, images, recompute)
    return min(seconds, key=seconds.get)


def time_formats(network, images, recompute=False):
    """{memory format: seconds of a forward and backward pass, the second of two}"""
    gpus, seconds = [images.device] if images.is_cuda else [], {}
    for name in FORMATS:
        fast = accelerate(copy.deepcopy(network).train(), recompute, name)
        weights = [w for w in fast.parameters() if w.requires_grad]
        with torch.random.fork_rng(gpus):
            for _ in range(2):
                start = time.perf_counter()
                outputs = fast(images)
                logits = outputs[0] if isinstance(outputs, tuple) else outputs
                torch.autograd.grad(logits.sum(), weights, allow_unused=True)
                if images.is_cuda:
                    torch.cuda.synchronize()
                seconds[name] = time.perf_counter() - start
    return seconds
