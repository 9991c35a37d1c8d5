"""The candidate operations of a cell and their building blocks, for the supernet and for derived networks.

A convolution operation starts with a ReLU. Whoever calls it applies that ReLU, once for all that take the same
input: `rectified` tells which operations expect it.

Search and evaluation share these classes. In the supernet (`edges` = k > 1) an operation serves the k edges
that leave one state at once: it holds the weights of all k edges, stacked along the channels, and its batch
norms have no affine parameters. In a derived network k = 1 and batch norm is affine.
"""
import math
from contextlib import contextmanager, nullcontext
from functools import reduce

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import SqueezeExcitation

from genotypes import CHAIN, CHAIN_INPUT, SAME_SHAPE


class BatchNorm(nn.BatchNorm2d):
    """Batch norm whose scale may be given: gate * BN(x) is BN with weight = gate, with no further pass."""
    frozen = False  # of the class: whether training passes leave the running statistics as they are

    def forward(self, x, gates=None):  # x: (B, k*C, H, W); gates: (k,), one factor for every C channels
        weight = self.weight
        if gates is not None:  # must be contiguous: with a strided one, channels_last gradients are wrong on CPU
            weight = gates.repeat_interleave(self.num_features // len(gates))
        return F.batch_norm(x, self.running_mean, self.running_var, weight, self.bias, self.training,
                            0.0 if BatchNorm.frozen else self.momentum, self.eps)


class Depthwise(torch.autograd.Function):
    """Depthwise convolution of x (B, C, H, W), which is first repeated until it has a channel for every filter.

    weight: (k*C, 1, K, K), K = 3, 5 or 7; the first `narrow` filters have an outer border of zeros, which needs no gradient.
    Only x itself is kept for the backward pass.
    """

    @staticmethod
    def forward(ctx, x, weight, stride, narrow):
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.narrow = stride, narrow
        return F.conv2d(repeat(x, len(weight)), weight, None, stride, weight.shape[2] // 2, 1, len(weight))

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            shape = (len(x), len(weight), *x.shape[2:])
            unread = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
            dx = convolution_backward(gradient, unread, weight, ctx.stride)[0]
            dx = reduce(torch.add, dx.split(x.shape[1], 1))
        if ctx.needs_input_grad[1]:
            dw = filter_gradient(gradient, x, weight, ctx.stride, ctx.narrow)
        return dx, dw, None, None


def depthwise(x, weight, stride, narrow=0):
    if torch.is_autocast_enabled(x.device.type):  # which does not look into Depthwise
        x, weight = (t.to(torch.get_autocast_dtype(x.device.type)) for t in (x, weight))
    return Depthwise.apply(x, weight, stride, narrow)


def convolution_backward(gradient, x, weight, stride, of_weight=False):
    """(dx, None) or (None, dweight) of a depthwise convolution that keeps the size at stride 1."""
    padding = [weight.shape[2] // 2, weight.shape[3] // 2]
    return torch.ops.aten.convolution_backward(gradient, x, weight, None, [stride] * 2, padding, [1, 1], False, [0, 0],
                                               len(weight), [not of_weight, of_weight, False])[:2]


def filter_gradient(gradient, x, weight, stride, narrow):
    """dweight of `Depthwise`. On the CPU it is ten times as fast for filters of at most 3 columns and of no more rows
    than the output: so rows of zeros are added, and the columns of a 5x5 (7x7) filter are computed apart, the first (two)
    from the input shifted right, the inner three from the input, the last (two) from the input shifted left."""
    count, kernel = len(weight), weight.shape[2]
    if x.device.type != "cpu":
        return convolution_backward(gradient, repeat(x, count), weight, stride, of_weight=True)[1]
    missing = max(0, kernel - gradient.shape[2])
    if missing:
        x, gradient = F.pad(x, (0, 0, 0, missing * stride)), F.pad(gradient, (0, 0, 0, missing))
    inner = convolution_backward(gradient, repeat(x, count), weight[..., kernel // 2 - 1:kernel // 2 + 2], stride, True)[1]
    if kernel == 3:
        return inner
    wide, gradient = weight[narrow:, :, :, :3], channels_last(gradient[:, narrow:])
    if x.shape[1] == count:
        x = x[:, narrow:]
    outer = kernel // 2 - 1  # columns on either side of the inner three
    first, last = [convolution_backward(gradient, repeat(F.pad(x, shift), len(wide)), wide, stride, True)[1]
                   for shift in ((outer, -outer), (-outer, outer))]
    return torch.cat([F.pad(first[..., :outer], [0] * 6 + [narrow, 0]), inner,
                      F.pad(last[..., 3 - outer:], [0] * 6 + [narrow, 0])], 3)


def repeat(x, channels):
    """x (B, C, H, W) repeated along its channels: (B, channels, H, W)."""
    b, c, h, w = x.shape
    if c == channels:
        return x
    copies = x.permute(0, 2, 3, 1)[:, :, :, None].expand(b, h, w, channels // c, c)
    return channels_last(copies.reshape(b, h, w, channels).permute(0, 3, 1, 2))


class SeparableConv(nn.Module):
    """Depthwise convolution, pointwise convolution, batch norm; for one kernel size or two, the smaller first.

    A 3x3 filter is a 5x5 one with a border of zeros: so both sizes are one depthwise convolution. The channels of
    the one follow those of the other, and for each size those of one edge follow those of another.
    """
    rectified = True

    def __init__(self, channels, kernels, stride, edges=1, affine=True):
        super().__init__()
        self.stride, self.kernels, width = stride, kernels, len(kernels) * edges * channels
        self.depthwise = nn.ModuleList(nn.Conv2d(edges * channels, edges * channels, kernel, groups=edges * channels,
                                                 bias=False) for kernel in kernels)
        self.pointwise = nn.Conv2d(width, width, 1, groups=len(kernels) * edges, bias=False)
        self.bn = BatchNorm(width, affine=affine)

    def forward(self, x, gates=None, dilation=1):  # (B, C or n*k*C, H, W) -> (B, n*k*C, H', W'), n kernel sizes
        weight, narrow, largest = self.depthwise[-1].weight, 0, self.kernels[-1]
        if len(self.kernels) == 2:
            border = [(largest - self.kernels[0]) // 2] * 4
            weight, narrow = torch.cat([F.pad(self.depthwise[0].weight, border), weight]), len(weight)
        if dilation == 1:
            y = depthwise(x, weight, self.stride, narrow)
        else:
            y = F.conv2d(repeat(x, len(weight)), weight, None, self.stride, dilation * (largest // 2), dilation,
                         len(weight))
        return self.bn(self.pointwise(y), gates)


class SepConv(nn.Module):
    """sep_conv: (ReLU, depthwise, pointwise, BN) twice, the first with the stride."""
    rectified = True

    def __init__(self, channels, kernels, stride, edges=1, affine=True):
        super().__init__()
        self.first = SeparableConv(channels, kernels, stride, edges, affine)
        self.second = SeparableConv(channels, kernels, 1, edges, affine)

    def forward(self, x, gates=None):
        return add_kernels(self.second(F.relu(self.first(x), inplace=True), gates), len(self.first.kernels))


class DilConv(nn.Module):
    """dil_conv: ReLU, depthwise with dilation 2, pointwise, BN.

    With dilation 2, the pixels of odd and of even rows and columns never meet: it is the plain convolution of these
    four phases, stacked in the batch, with a much faster gradient. With stride 2 only one phase is asked for.
    """
    rectified = True

    def __init__(self, channels, kernels, stride, edges=1, affine=True):
        super().__init__()
        self.stride = stride
        self.conv = SeparableConv(channels, kernels, 1, edges, affine)

    def forward(self, x, gates=None):
        count = len(self.conv.kernels)
        if self.stride == 2:
            return add_kernels(self.conv(channels_last(x[:, :, ::2, ::2]), gates), count)
        if x.shape[2] % 2 or x.shape[3] % 2:  # phases of different sizes: as it is written
            return add_kernels(self.conv(x, gates, dilation=2), count)
        return from_phases(add_kernels(self.conv(to_phases(x), gates), count))


def add_kernels(x, count):
    """The sum over the kernel sizes. (B, count*C, H, W) -> (B, C, H, W)"""
    return reduce(torch.add, x.chunk(count, 1))


def to_phases(x):
    """(B, C, 2*H, 2*W) -> (4*B, C, H, W), the pixels of odd and of even rows and columns apart."""
    b, c, h, w = x.shape
    phases = x.permute(0, 2, 3, 1).reshape(b, h // 2, 2, w // 2, 2, c).permute(2, 4, 0, 1, 3, 5)
    return channels_last(phases.reshape(4 * b, h // 2, w // 2, c).permute(0, 3, 1, 2))


def from_phases(x):
    """The inverse of to_phases."""
    b, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(2, 2, b // 4, h, w, c).permute(2, 3, 0, 4, 1, 5)
    return channels_last(pixels.reshape(b // 4, 2 * h, 2 * w, c).permute(0, 3, 1, 2))


class ConvBN(nn.Module):
    """1x1 convolution and batch norm, after a ReLU: gives a cell's input the cell's number of channels."""
    rectified = True

    def __init__(self, in_channels, out_channels, affine=True):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = BatchNorm(out_channels, affine=affine)

    def forward(self, x):
        return self.bn(self.conv(x))


class FactorizedReduce(nn.Module):
    """Halves height and width (rounded up) by two 1x1 convolutions, of the even and of the odd pixels."""
    rectified = True

    def __init__(self, in_channels, out_channels, edges=1, affine=True):
        super().__init__()
        self.edges = edges
        half = out_channels // 2
        self.even = nn.Conv2d(in_channels, edges * half, 1, bias=False)
        self.odd = nn.Conv2d(in_channels, edges * (out_channels - half), 1, bias=False)
        self.bn = BatchNorm(edges * out_channels, affine=affine)

    def forward(self, x, gates=None):  # (B, C, H, W) -> (B, k*C', H/2, W/2)
        # pixels are picked by slicing: with stride 2, the 1x1 convolution's gradient has crashed on the CPU
        padded = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        pairs = zip(self.even(x[:, :, ::2, ::2]).chunk(self.edges, 1),
                    self.odd(padded[:, :, 1::2, 1::2]).chunk(self.edges, 1))
        return self.bn(torch.cat([half for pair in pairs for half in pair], 1), gates)


class MaxPool(nn.Module):
    rectified = False

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return F.max_pool2d(x, 3, self.stride, 1)


class AvgPool(MaxPool):
    def forward(self, x):  # the mean of the pixels inside the picture: padding is not counted
        return F.avg_pool2d(x, 3, self.stride, 1, count_include_pad=False)


class Identity(nn.Identity):
    rectified = False


POOLINGS = {"max_pool_3x3": MaxPool, "avg_pool_3x3": AvgPool}
CONVOLUTIONS = {"sep_conv": SepConv, "dil_conv": DilConv}  # followed by _3x3 or _5x5


def make(op, channels, stride):
    """The operation named `op` of a derived network; at stride 2 it halves height and width, rounded up."""
    if op == "skip_connect":
        return Identity() if stride == 1 else FactorizedReduce(channels, channels)
    if op in POOLINGS:
        return POOLINGS[op](stride)
    return CONVOLUTIONS[op[:8]](channels, [int(op[-1])], stride)


class Bottlenecks(nn.Module):
    """Inverted bottlenecks of one kernel size on the same input, one for each of `expansions`: (1x1 to expansion * C
    channels, BN, activation), (depthwise, BN, activation), (1x1, BN). Their sum, each weighted by its gate.

    The expansions are one pointwise convolution, the depthwise ones another; the projections are one whose matrix has
    a block for each. With one expansion and affine batch norm it is the block of a derived network.
    """

    def __init__(self, in_channels, out_channels, stride, kernel, expansions, affine=True, activation=nn.ReLU6, squeeze=False):
        super().__init__()
        self.stride, width = stride, sum(expansions) * in_channels
        self.expand = nn.Sequential(nn.Conv2d(in_channels, width, 1, bias=False), BatchNorm(width, affine=affine),
                                    activation(inplace=True))
        self.depthwise = nn.Conv2d(width, width, kernel, groups=width, bias=False)
        self.after = nn.Sequential(BatchNorm(width, affine=affine), activation(inplace=True))
        self.squeeze = SqueezeExcitation(width, max(1, width // 4), scale_activation=nn.Hardsigmoid) if squeeze else None
        self.project = nn.ModuleList(nn.Conv2d(expansion * in_channels, out_channels, 1, bias=False)
                                     for expansion in expansions)
        self.bn = BatchNorm(len(expansions) * out_channels, affine=affine)

    def forward(self, x, gates=None):  # (B, C, H, W), gates (expansions,) -> (B, C', H', W')
        y = self.after(depthwise(self.expand(x), self.depthwise.weight, self.stride))
        if self.squeeze is not None:
            y = self.squeeze(y)
        weight = torch.block_diag(*(conv.weight.flatten(1) for conv in self.project))
        return add_kernels(self.bn(F.conv2d(y, weight[:, :, None, None]), gates), len(self.project))


def chain_stem(in_channels, width, stride, activation=nn.ReLU6):
    """The layers of S2 before those that are searched."""
    first, last = scaled(32, width), scaled(CHAIN_INPUT, width)
    return nn.Sequential(nn.Conv2d(in_channels, first, 3, stride, 1, bias=False), BatchNorm(first), activation(),
                         nn.Conv2d(first, first, 3, 1, 1, groups=first, bias=False), BatchNorm(first), activation(),
                         nn.Conv2d(first, last, 1, bias=False), BatchNorm(last))


class ChainHead(nn.Module):
    """The layers of S2 after those that are searched."""

    def __init__(self, width, num_classes, dropout, activation=nn.ReLU6):
        super().__init__()
        self.dropout, features = dropout, scaled(1280, width)
        self.features = nn.Sequential(nn.Conv2d(scaled(CHAIN[-1][0], width), features, 1, bias=False), BatchNorm(features),
                                      activation())
        self.classifier = nn.Linear(features, num_classes)

    def forward(self, x):  # (B, C, H, W) -> (B, num_classes)
        x = self.features(x).mean((2, 3))
        return self.classifier(drop(x, self.dropout, x.shape) if self.training and self.dropout else x)


def scaled(channels, width):
    """`channels` times `width`, rounded to a multiple of 8 and not below 8."""
    return max(8, int(channels * width + 4) // 8 * 8)


def chain_strides(size):
    """The strides of S2's stem and layers for pictures of `size` pixels a side. For 64 or fewer the first become 1, as many
    as it takes to bring 8x8 or more to the last layer."""
    strides = [2] + [stride for _, stride in CHAIN]
    halvings = max(0, int(math.log2(size / 8))) if size <= 64 else 5
    for index in [index for index, stride in enumerate(strides) if stride == 2][:5 - halvings]:
        strides[index] = 1
    return strides


def chain_shapes(size, width):
    """The stride of S2's stem, and (in_channels, out_channels, stride, same_shape) of each layer."""
    first, *strides = chain_strides(size)
    channels = [scaled(count, width) for count in (CHAIN_INPUT, *(count for count, _ in CHAIN))]
    return first, list(zip(channels, channels[1:], strides, SAME_SHAPE))


@contextmanager
def frozen_statistics():
    """Within it, batch norm normalises by the batch, and leaves its running statistics as they are."""
    BatchNorm.frozen = True
    try:
        yield
    finally:
        BatchNorm.frozen = False


def recompute(module, *inputs):
    """module(*inputs), whose activations are not kept but computed once more in the backward pass."""
    return checkpoint(module, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), frozen_statistics()))


def drop_path(x, probability):
    """`x` with whole samples of the batch set to zero at random, the others scaled so that the mean stays."""
    return drop(x, probability, (len(x), 1, 1, 1))


def drop(x, probability, shape):
    """Dropout by a mask of `shape`, drawn on the CPU, whose generator is part of every checkpoint."""
    keep = 1 - probability
    return x * (torch.rand(shape) < keep).to(x.device, x.dtype) / keep


def channels_last(x):
    """`x` in the memory format in which convolutions are fastest; on MPS, where batch norm's gradient is wrong in
    it, in the usual one."""
    return x.contiguous(memory_format=torch.contiguous_format if x.device.type == "mps" else torch.channels_last)
