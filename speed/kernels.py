"""Faster forms of what PyTorch computes. Nothing here knows of the paper; read it last.

Each function equals one of PyTorch's own, which its docstring names. Results come in
the memory format of the input: NCHW, or else channels_last.
"""
import ctypes
import sys
from functools import reduce

import torch
import torch.nn.functional as F


# ---------------------------------------------------------------- depthwise convolution

def depthwise(x, weight, stride=1, dilation=1, small=0):
    """F.conv2d with one filter a channel, padded so that stride 1 keeps the size.

    x: (B, C, H, W), first repeated to n*C channels; weight: (n*C, 1, K, K), K odd. The
    first `small` filters are zero but for the inner 3x3, and need no gradient outside
    of it.

    With dilation 2, pixels of odd and of even rows and columns never meet: it is the
    plain convolution of these four phases, stacked in the batch. With stride 2 one
    phase is asked for.
    """
    kernel, count = weight.shape[2], len(weight)
    if dilation == 2 and stride == 2:
        return depthwise(arranged(x[:, :, ::2, ::2], x), weight, small=small)
    if dilation == 2 and x.shape[2] % 2 == 0 == x.shape[3] % 2:
        return from_phases(depthwise(to_phases(x), weight, small=small))
    if dilation > 1 or not 3 <= kernel <= 7:
        x = repeat(x, count)
        return F.conv2d(x, weight, None, stride, dilation * (kernel // 2), dilation, count)
    if torch.is_autocast_enabled(x.device.type):  # which does not look into Depthwise
        x, weight = (t.to(torch.get_autocast_dtype(x.device.type)) for t in (x, weight))
    return Depthwise.apply(x, weight, stride, small)


class Depthwise(torch.autograd.Function):
    """See `depthwise`. The backward pass keeps x itself, not its repetition."""

    @staticmethod
    def forward(ctx, x, weight, stride, small):
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.small = stride, small
        x = repeat(x, len(weight))
        return F.conv2d(x, weight, None, stride, weight.shape[2] // 2, 1, len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            shape = (len(x), len(weight), *x.shape[2:])
            values = torch.empty(shape, dtype=x.dtype, device=x.device,  # they are not read
                                 memory_format=torch.channels_last)
            dx = convolution_backward(gradient, values, weight, ctx.stride, of_weight=False)
            dx = reduce(torch.add, dx.split(x.shape[1], 1))
        if ctx.needs_input_grad[1]:
            dweight = filter_gradient(gradient, x, weight, ctx.stride, ctx.small)
        return dx, dweight, None, None


def convolution_backward(gradient, x, weight, stride, of_weight=True):
    """dweight, or dx, of a depthwise convolution, padded by half."""
    padding = [weight.shape[2] // 2, weight.shape[3] // 2]
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [stride] * 2, padding, [1, 1], False, [0, 0], len(weight),
        [not of_weight, of_weight, False])[of_weight]


def filter_gradient(gradient, x, weight, stride, small):
    """dweight of `Depthwise`.

    The CPU is ten times as fast for filters of at most 3 columns and of no more rows
    than the output has. So rows of zeros are added (and a column to one, which cannot
    be shifted by two), and the columns of a 5x5 (7x7) filter are computed apart: the
    first (two) from the input shifted right, the inner three from the input, the last
    (two) from the input shifted left.
    """
    count, kernel = len(weight), weight.shape[2]
    if x.device.type != "cpu":
        return convolution_backward(gradient, repeat(x, count), weight, stride)
    rows, narrow = max(0, kernel - gradient.shape[2]), int(x.shape[3] == 1)
    if rows or narrow:
        x = F.pad(x, (0, narrow * stride, 0, rows * stride))
        gradient = F.pad(gradient, (0, narrow, 0, rows))
    columns = weight[..., kernel // 2 - 1:kernel // 2 + 2]
    inner = convolution_backward(gradient, repeat(x, count), columns, stride)
    if kernel == 3:
        return inner
    columns, gradient = weight[small:, :, :, :3], arranged(gradient[:, small:], x)
    if x.shape[1] == count:
        x = x[:, small:]
    outer = kernel // 2 - 1  # columns on either side of the inner three
    first, last = [
        convolution_backward(gradient, repeat(F.pad(x, shift), len(columns)), columns, stride)
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
    return arranged(copies.reshape(b, h, w, channels).permute(0, 3, 1, 2), x)


def to_phases(x):
    """(B, C, 2*H, 2*W) -> (4*B, C, H, W), odd and even rows and columns apart."""
    b, c, h, w = x.shape
    phases = x.permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    phases = phases.permute(2, 4, 0, 1, 3, 5).reshape(4 * b, h // 2, w // 2, c)
    return arranged(phases.permute(0, 3, 1, 2), x)


def from_phases(x):
    """The inverse of to_phases."""
    b, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1).unflatten(0, (2, 2, b // 4)).permute(2, 3, 0, 4, 1, 5)
    return arranged(pixels.reshape(b // 4, 2 * h, 2 * w, c).permute(0, 3, 1, 2), x)


# ---------------------------------------------------------------- memory

def format_of(x):
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def arranged(x, like):
    """`x` in the memory format of `like`."""
    return x.contiguous(memory_format=format_of(like))


def rectified(x):
    """F.relu(x), computed once for all who take the same x: kept on it with the
    versions of both, which change when they are written to."""
    if (torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or x.is_inference()
            or x.is_leaf and x.requires_grad):  # it would keep its own graph alive
        return F.relu(x)
    y, *versions = getattr(x, "rectified", (None,))
    differentiable = x.requires_grad and torch.is_grad_enabled()
    if y is None or versions != [x._version, y._version] or y.requires_grad != differentiable:
        y = F.relu(x)
        x.rectified = y, x._version, y._version
    return y


def keep_freed_memory():
    """Have glibc keep freed memory, which it else gives back at every step."""
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    mallopt = sys.platform == "linux" and getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(trim_threshold, 2 ** 31 - 1)
        mallopt(mmap_max, 0)
