"""Faster forms of what PyTorch computes. Nothing here knows of the paper; read it last.

Each function equals a stock one that its docstring names. Within `stock()` the stock ones
run instead, in the usual memory format: the form that the tests and benchmark.py compare with.
"""
import ctypes
import sys
import time
from contextlib import contextmanager, nullcontext
from functools import reduce

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

_stock = False  # whether stock functions compute everything


@contextmanager
def stock(wanted=True):
    """Within it, if `wanted`, this file uses stock PyTorch functions alone."""
    global _stock
    former, _stock = _stock, wanted
    try:
        yield
    finally:
        _stock = former


# ---------------------------------------------------------------- depthwise convolution

def depthwise(x, weight, stride=1, dilation=1, small=0):
    """F.conv2d with one filter a channel, padded so that stride 1 keeps the size.

    x: (B, C, H, W), first repeated to n*C channels; weight: (n*C, 1, K, K), K odd. The first
    `small` filters have an outer border of zeros, whose gradient nobody needs.

    With dilation 2, pixels of odd and of even rows and columns never meet: it is the plain
    convolution of these four phases, stacked in the batch. With stride 2 one phase is asked for.
    """
    kernel, count = weight.shape[2], len(weight)
    if dilation == 2 and stride == 2 and not _stock:
        return depthwise(arranged(x[:, :, ::2, ::2]), weight, small=small)
    if dilation == 2 and x.shape[2] % 2 == 0 == x.shape[3] % 2 and not _stock:
        return from_phases(depthwise(to_phases(x), weight, small=small))
    if dilation > 1 or kernel > 7 or _stock:
        x = repeat(x, count)
        return F.conv2d(x, weight, None, stride, dilation * (kernel // 2), dilation, count)
    if torch.is_autocast_enabled(x.device.type):  # which does not look into Depthwise
        x, weight = (t.to(torch.get_autocast_dtype(x.device.type)) for t in (x, weight))
    return Depthwise.apply(x, weight, stride, small)


class Depthwise(torch.autograd.Function):
    """See `depthwise`. Only x itself is kept for the backward pass, not its repetition."""

    @staticmethod
    def forward(ctx, x, weight, stride, small):
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.small = stride, small
        x = repeat(x, len(weight))
        return F.conv2d(x, weight, None, stride, weight.shape[2] // 2, 1, len(weight))

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            shape = (len(x), len(weight), *x.shape[2:])
            values = torch.empty(shape, dtype=x.dtype, device=x.device,  # they are not read
                                 memory_format=torch.channels_last)
            dx = convolution_backward(gradient, values, weight, ctx.stride)[0]
            dx = reduce(torch.add, dx.split(x.shape[1], 1))
        if ctx.needs_input_grad[1]:
            dweight = filter_gradient(gradient, x, weight, ctx.stride, ctx.small)
        return dx, dweight, None, None


def convolution_backward(gradient, x, weight, stride, of_weight=False):
    """(dx, None) or (None, dweight) of a depthwise convolution that keeps the size at stride 1."""
    padding = [weight.shape[2] // 2, weight.shape[3] // 2]
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [stride] * 2, padding, [1, 1], False, [0, 0], len(weight),
        [not of_weight, of_weight, False])[:2]


def filter_gradient(gradient, x, weight, stride, small):
    """dweight of `Depthwise`.

    The CPU is ten times as fast for filters of at most 3 columns and of no more rows than the
    output has. So rows of zeros are added, and the columns of a 5x5 (7x7) filter are computed
    apart: the first (two) from the input shifted right, the inner three from the input, the
    last (two) from the input shifted left.
    """
    count, kernel = len(weight), weight.shape[2]
    if x.device.type != "cpu":
        return convolution_backward(gradient, repeat(x, count), weight, stride, of_weight=True)[1]
    missing = max(0, kernel - gradient.shape[2])
    if missing:
        x, gradient = F.pad(x, (0, 0, 0, missing * stride)), F.pad(gradient, (0, 0, 0, missing))
    columns = weight[..., kernel // 2 - 1:kernel // 2 + 2]
    inner = convolution_backward(gradient, repeat(x, count), columns, stride, of_weight=True)[1]
    if kernel == 3:
        return inner
    columns, gradient = weight[small:, :, :, :3], arranged(gradient[:, small:])
    if x.shape[1] == count:
        x = x[:, small:]
    outer = kernel // 2 - 1  # columns on either side of the inner three
    first, last = [
        convolution_backward(gradient, repeat(F.pad(x, shift), len(columns)), columns, stride,
                             of_weight=True)[1]
        for shift in ((outer, -outer), (-outer, outer))]
    above = [0] * 6 + [small, 0]  # zeros for the small filters
    return torch.cat([F.pad(first[..., :outer], above), inner,
                      F.pad(last[..., 3 - outer:], above)], 3)


def repeat(x, channels):
    """x.repeat along the channels: (B, C, H, W) -> (B, channels, H, W)."""
    b, c, h, w = x.shape
    if c == channels:
        return x
    copies = x.permute(0, 2, 3, 1)[:, :, :, None].expand(b, h, w, channels // c, c)
    return arranged(copies.contiguous().view(b, h, w, channels).permute(0, 3, 1, 2))


def to_phases(x):
    """(B, C, 2*H, 2*W) -> (4*B, C, H, W), the pixels of odd and of even rows and columns apart."""
    b, c, h, w = x.shape
    phases = x.permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    phases = phases.permute(2, 4, 0, 1, 3, 5).contiguous().view(4 * b, h // 2, w // 2, c)
    return arranged(phases.permute(0, 3, 1, 2))


def from_phases(x):
    """The inverse of to_phases."""
    b, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1).unflatten(0, (2, 2, b // 4)).permute(2, 3, 0, 4, 1, 5)
    pixels = pixels.contiguous().view(b // 4, 2 * h, 2 * w, c)
    return arranged(pixels.permute(0, 3, 1, 2))


# ---------------------------------------------------------------- ReLU, statistics, memory

def share_relu(x):
    """Returns x, marked: the `ReLU`s that take it compute one result for all of them."""
    if not (_stock or torch.compiler.is_compiling() or hasattr(x, "shared_relu")):
        x.shared_relu = None
    return x


class ReLU(nn.ReLU):
    """nn.ReLU, see `share_relu`."""

    def forward(self, x):
        if not hasattr(x, "shared_relu"):
            return super().forward(x)
        if x.shared_relu is None:
            x.shared_relu = F.relu(x)
        return x.shared_relu


def dense_gradient(x):
    """Returns x, whose gradient will be dense, also where x is concatenated with others: then
    the backward pass of a batch norm is three times as fast."""
    if x.requires_grad and not (_stock or torch.compiler.is_compiling()):
        x.register_hook(arranged)
    return x


def batch_norms(network):
    return [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def drop_batch_counts(network):
    """Batch norms count their batches, which nothing here reads and which takes time and space."""
    for norm in batch_norms(network):
        norm.num_batches_tracked = None


@contextmanager
def frozen_statistics(network):
    """Within it, training passes leave the running statistics of batch norms as they are."""
    norms = batch_norms(network)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum


def recompute(module, *inputs):
    """module(*inputs), whose activations are not kept but computed again in the backward pass."""
    # a view has not the mark of share_relu
    inputs = [x.view_as(x) if torch.is_tensor(x) else x for x in inputs]
    return checkpoint(module, *inputs, use_reentrant=False,
                      context_fn=lambda: (nullcontext(), frozen_statistics(module)))


def compile_each(functions, **options):
    """Each of them by torch.compile, which else gives up on so many that share their code."""
    limit = max(torch._dynamo.config.recompile_limit, 4 * len(functions))
    torch._dynamo.config.recompile_limit = limit
    # not dynamic: other sizes of shared code would each time make it more general
    return [torch.compile(function, dynamic=False, **options) for function in functions]


def compile_forwards(modules, **options):
    """Let each module compute its forward pass by torch.compile."""
    for module, compiled in zip(modules, compile_each([m.forward for m in modules], **options)):
        module.forward = compiled


FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
# On MPS, batch norm's gradient is wrong in channels_last.
_formats = {"cpu": "channels_last", "cuda": "channels_last", "mps": "contiguous"}


def use_format(device_type, name):
    """Arrange all that is computed on such devices in a memory format, one of FORMATS."""
    _formats[device_type] = name


@contextmanager
def in_format(device_type, name):
    """Within it, the memory format `name`; then the former one."""
    former = _formats[device_type]
    use_format(device_type, name)
    try:
        yield
    finally:
        use_format(device_type, former)


def arranged(x):
    """`x` in the memory format in which convolutions are fastest; for stock functions in the
    usual one."""
    name = "contiguous" if _stock else _formats[x.device.type]
    return x.contiguous(memory_format=FORMATS[name])


def time_formats(network, images):
    """{memory format: seconds of a forward and backward pass, the second of two}. Leaves
    everything as it was."""
    kind, seconds = images.device.type, {}
    gpus = [images.device] if kind == "cuda" else []
    for name in FORMATS:
        with (in_format(kind, name), frozen_statistics(network), torch.random.fork_rng(gpus)):
            for _ in range(2):
                start = time.perf_counter()
                outputs = network(images)
                logits = outputs[0] if isinstance(outputs, tuple) else outputs
                torch.autograd.grad(logits.sum(), list(network.parameters()), allow_unused=True)
                if kind == "cuda":
                    torch.cuda.synchronize()
                seconds[name] = time.perf_counter() - start
    return seconds


def keep_freed_memory():
    """Have glibc keep freed memory, which it else gives back to the system at every step."""
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    mallopt = sys.platform == "linux" and getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(trim_threshold, 2 ** 31 - 1)
        mallopt(mmap_max, 0)
