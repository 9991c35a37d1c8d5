"""The candidate operations of a cell and their building blocks, for the supernet and for derived networks.

A convolution operation starts with a ReLU. Whoever calls it applies that ReLU, once for all operations that
leave the same state: `rectified` tells which operations expect it.

Search and evaluation share these classes. In the supernet (`edges` = k > 1) an operation serves the k edges
that leave one state at once: it holds the weights of all k edges, stacked along the channels, and its batch
norms have no affine parameters. In a derived network k = 1 and batch norm is affine.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


class BatchNorm(nn.BatchNorm2d):
    """Batch norm whose scale may be given: gate * BN(x) is BN with weight = gate, with no further pass."""

    def forward(self, x, gates=None):  # x: (B, k*C, H, W); gates: (k,), one factor for every C channels
        weight = self.weight
        if gates is not None:  # must be contiguous: with a strided one, channels_last gradients are wrong on CPU
            weight = gates.repeat_interleave(self.num_features // len(gates))
        return F.batch_norm(x, self.running_mean, self.running_var, weight, self.bias, self.training,
                            self.momentum, self.eps)


class SeparableConv(nn.Module):
    """Depthwise convolution, pointwise convolution, batch norm."""
    rectified = True

    def __init__(self, channels, kernel, stride, dilation=1, edges=1, affine=True):
        super().__init__()
        self.edges = edges
        padding = dilation * (kernel - 1) // 2
        self.depthwise = nn.Conv2d(edges * channels, edges * channels, kernel, stride, padding, dilation,
                                   groups=edges * channels, bias=False)
        self.pointwise = nn.Conv2d(edges * channels, edges * channels, 1, groups=edges, bias=False)
        self.bn = BatchNorm(edges * channels, affine=affine)

    def forward(self, x, gates=None):  # (B, C or k*C, H, W) -> (B, k*C, H', W')
        if x.shape[1] < self.depthwise.in_channels:
            x = x.repeat(1, self.edges, 1, 1)
        return self.bn(self.pointwise(self.depthwise(x)), gates)


class SepConv(nn.Module):
    """sep_conv: (ReLU, depthwise, pointwise, BN) twice, the first with the stride."""
    rectified = True

    def __init__(self, channels, kernel, stride, edges=1, affine=True):
        super().__init__()
        self.first = SeparableConv(channels, kernel, stride, edges=edges, affine=affine)
        self.second = SeparableConv(channels, kernel, 1, edges=edges, affine=affine)

    def forward(self, x, gates=None):
        return self.second(F.relu(self.first(x)), gates)


class ReLUConvBN(nn.Module):
    """1x1 convolution between ReLU and batch norm: gives a cell's input its number of channels."""

    def __init__(self, in_channels, out_channels, affine=True):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = BatchNorm(out_channels, affine=affine)

    def forward(self, x):
        return self.bn(self.conv(F.relu(x)))


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


def make(op, channels, stride, edges=1, affine=True):
    """The operation named `op` on `channels` channels; at stride 2 it halves height and width, rounded up."""
    if op == "skip_connect":
        return Identity() if stride == 1 else FactorizedReduce(channels, channels, edges, affine)
    if op in ("max_pool_3x3", "avg_pool_3x3"):
        return (MaxPool if op == "max_pool_3x3" else AvgPool)(stride)
    kernel = int(op[-1])
    if op.startswith("sep_conv"):
        return SepConv(channels, kernel, stride, edges, affine)
    return SeparableConv(channels, kernel, stride, 2, edges, affine)


def drop_path(x, probability):
    """`x` with whole samples of the batch set to zero at random, the others scaled so that the mean stays."""
    keep = 1 - probability
    return x * (torch.rand(len(x), 1, 1, 1, device=x.device, dtype=x.dtype) < keep).to(x.dtype) / keep


def channels_last(x):
    """`x` in the memory format in which convolutions are fastest (MPS: batch norm's gradient is wrong in it)."""
    return x if x.device.type == "mps" else x.contiguous(memory_format=torch.channels_last)
