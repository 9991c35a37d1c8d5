"""The memory format in which a network is fastest."""
import copy
import time

import torch

from speed.accelerate import FORMATS, accelerate


def fastest_format(network, shape):
    """"channels_last" or "contiguous", for accelerate(network, ..., memory_format) and batches of
    `shape`. On a GPU both are timed, for depthwise convolutions are several times slower in one
    of them, and which one depends. Leaves the network and random generators as they were."""
    images = torch.zeros(shape, device=next(network.parameters()).device)
    if images.is_cuda:
        seconds = time_formats(network, images)
        return min(seconds, key=seconds.get)
    return "contiguous" if images.device.type == "mps" else "channels_last"


def time_formats(network, images):
    """{memory format: seconds of an accelerated forward and backward pass, the second of two}"""
    gpus, seconds = [images.device] if images.is_cuda else [], {}
    for name in FORMATS:
        fast = accelerate(copy.deepcopy(network).train(), memory_format=name)
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
