"""The candidate operations of one edge, and the building blocks of the networks.

`OPS` is the vocabulary: to add an operation, add a line (README, "Your own operation").
Every operation keeps the number of channels; with stride 2 it halves height and width,
rounded up. Convolutions begin with a ReLU, as in DARTS. `affine`: whether batch norm has
a scale and a shift of its own; not while searching, where they would undo the gates.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.ops import SqueezeExcitation

import kernels
import parallel
from genotypes import CHAIN, CHAIN_INPUT, SAME_SHAPE
from kernels import ReLU

OPS = {
    "max_pool_3x3": lambda channels, stride, affine: nn.MaxPool2d(3, stride, 1),
    "avg_pool_3x3": lambda channels, stride, affine:
        nn.AvgPool2d(3, stride, 1, count_include_pad=False),
    "skip_connect": lambda channels, stride, affine:
        nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine),
    "sep_conv_3x3": lambda channels, stride, affine: SepConv(channels, 3, stride, affine),
    "sep_conv_5x5": lambda channels, stride, affine: SepConv(channels, 5, stride, affine),
    "dil_conv_3x3": lambda channels, stride, affine: DilConv(channels, 3, stride, affine),
    "dil_conv_5x5": lambda channels, stride, affine: DilConv(channels, 5, stride, affine),
}


class DepthwiseConv(nn.Conv2d):
    """nn.Conv2d with one filter a channel: the same function, with a faster gradient."""

    def __init__(self, channels, kernel, stride=1, dilation=1):
        super().__init__(channels, channels, kernel, stride, dilation * (kernel // 2), dilation,
                         groups=channels, bias=False)

    def forward(self, x):
        return kernels.depthwise(x, self.weight, self.stride[0], self.dilation[0])


class DilConv(nn.Sequential):
    """dil_conv: ReLU, depthwise convolution with dilation 2, pointwise convolution, BN."""

    def __init__(self, channels, kernel, stride, affine, dilation=2):
        super().__init__(ReLU(), DepthwiseConv(channels, kernel, stride, dilation),
                         nn.Conv2d(channels, channels, 1, bias=False),
                         nn.BatchNorm2d(channels, affine=affine))


class SepConv(nn.Sequential):
    """sep_conv: (ReLU, depthwise, pointwise, BN) twice, the first with the stride."""

    def __init__(self, channels, kernel, stride, affine):
        super().__init__(DilConv(channels, kernel, stride, affine, dilation=1),
                         DilConv(channels, kernel, 1, affine, dilation=1))
        self[1][0].inplace = True  # what the first half made is read once


class ReLUConvBN(nn.Sequential):
    """Gives a cell's input the cell's number of channels: ReLU, 1x1 convolution, BN."""

    def __init__(self, in_channels, out_channels, affine=True):
        super().__init__(ReLU(), nn.Conv2d(in_channels, out_channels, 1, bias=False),
                         nn.BatchNorm2d(out_channels, affine=affine))


class FactorizedReduce(nn.Module):
    """Halves height and width: ReLU, one 1x1 convolution of the even pixels and one of the
    odd ones, BN of both."""

    def __init__(self, in_channels, out_channels, affine=True):
        super().__init__()
        self.relu = ReLU()
        self.even = nn.Conv2d(in_channels, out_channels // 2, 1, bias=False)
        self.odd = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, affine=affine)

    def forward(self, x):  # (B, C, H, W) -> (B, C', H/2, W/2)
        even, odd = even_and_odd(self.relu(x))
        return self.bn(torch.cat([self.even(even), self.odd(odd)], 1))


def even_and_odd(x):
    """The pixels of even rows and columns, and those of odd ones, zero beyond the border."""
    padded = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    # sliced, for a 1x1 convolution with stride 2 has crashed in its gradient on the CPU
    return x[:, :, ::2, ::2], padded[:, :, 1::2, 1::2]


def drop_path(x, probability):
    """`x` with whole samples of the batch set to 0 at random, the others scaled so that the
    mean stays."""
    return drop(x, probability, (1, 1, 1))


def drop(x, probability, shape):
    """Dropout by a mask of `shape` for each sample. Drawn by a generator of the checkpoints."""
    keep = 1 - probability
    mask = torch.rand((len(x) * parallel.size(), *shape), device=x.device if x.is_cuda else "cpu")
    return x * (parallel.mine(mask) < keep).to(x.device, x.dtype) / keep


# ---------------------------------------------------------------- the space S2

class InvertedBottleneck(nn.Module):
    """mbN_kK of S2: 1x1 to N times the channels, BN, activation; depthwise KxK, BN, activation;
    1x1, BN; plus its input where the layer keeps the shape (`residual`)."""

    def __init__(self, in_channels, out_channels, stride, kernel, expansion, residual,
                 affine=True, activation=nn.ReLU6, squeeze=False):
        super().__init__()
        self.residual, width = residual, expansion * in_channels
        self.expand = nn.Sequential(
            nn.Conv2d(in_channels, width, 1, bias=False), nn.BatchNorm2d(width, affine=affine),
            activation(inplace=True))
        self.depthwise = nn.Sequential(
            DepthwiseConv(width, kernel, stride), nn.BatchNorm2d(width, affine=affine),
            activation(inplace=True))
        self.squeeze = SqueezeExcitation(
            width, max(1, width // 4),
            scale_activation=nn.Hardsigmoid) if squeeze else nn.Identity()
        self.project = nn.Sequential(nn.Conv2d(width, out_channels, 1, bias=False),
                                     nn.BatchNorm2d(out_channels, affine=affine))

    def forward(self, x):  # (B, C, H, W) -> (B, C', H', W')
        y = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


def chain_operation(name, in_channels, out_channels, stride, same_shape, **options):
    """The choice `name` of a layer of S2: mbN_kK, or the identity."""
    if name == "skip_connect":
        return nn.Identity()
    return InvertedBottleneck(in_channels, out_channels, stride, int(name[-1]), int(name[2]),
                              same_shape, **options)


def chain_stem(in_channels, width, stride, activation=nn.ReLU6):
    """The layers of S2 before those that are searched."""
    first, last = scaled(32, width), scaled(CHAIN_INPUT, width)
    return nn.Sequential(
        nn.Conv2d(in_channels, first, 3, stride, 1, bias=False), nn.BatchNorm2d(first),
        activation(), nn.Conv2d(first, first, 3, 1, 1, groups=first, bias=False),
        nn.BatchNorm2d(first), activation(),
        nn.Conv2d(first, last, 1, bias=False), nn.BatchNorm2d(last))


class ChainHead(nn.Module):
    """The layers of S2 after those that are searched."""

    def __init__(self, width, num_classes, dropout, activation=nn.ReLU6):
        super().__init__()
        self.dropout, features = dropout, scaled(1280, width)
        self.features = nn.Sequential(
            nn.Conv2d(scaled(CHAIN[-1][0], width), features, 1, bias=False),
            nn.BatchNorm2d(features), activation())
        self.classifier = nn.Linear(features, num_classes)

    def forward(self, x):  # (B, C, H, W) -> (B, num_classes)
        x = self.features(x).mean((2, 3))
        if self.training and self.dropout:
            x = drop(x, self.dropout, x.shape[1:])
        return self.classifier(x)


def scaled(channels, width):
    """`channels` times `width`, rounded to a multiple of 8 and not below 8."""
    return max(8, int(channels * width + 4) // 8 * 8)


def chain_strides(size):
    """The strides of S2's stem and layers for pictures of `size` pixels a side. For 64 or
    fewer the first become 1, as many as it takes to bring 8x8 or more to the last layer."""
    strides = [2] + [stride for _, stride in CHAIN]
    halvings = max(0, int(math.log2(size / 8))) if size <= 64 else 5
    for index in [index for index, stride in enumerate(strides) if stride == 2][:5 - halvings]:
        strides[index] = 1
    return strides


def chain_shapes(size, width):
    """The stride of S2's stem; of each layer (in_channels, out_channels, stride, same_shape)."""
    first, *strides = chain_strides(size)
    channels = [scaled(count, width) for count in (CHAIN_INPUT, *(count for count, _ in CHAIN))]
    return first, list(zip(channels, channels[1:], strides, SAME_SHAPE))
