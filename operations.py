"""The candidate operations of one edge, and the building blocks of the networks.

`OPS` is the vocabulary: to add an operation, add a line (README, "Change it"). Every
operation keeps the number of channels; with stride 2 it halves height and width,
rounded up. Convolutions begin with a ReLU, as in DARTS. `affine`: whether batch norm
has a scale and a shift; not while searching, where they would undo the gates.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

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


class DilConv(nn.Sequential):
    """dil_conv: ReLU, depthwise convolution (dilation 2), pointwise convolution, BN."""

    def __init__(self, channels, kernel, stride, affine, dilation=2):
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel, stride, dilation * (kernel // 2), dilation,
                      groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels, affine=affine))


class SepConv(nn.Sequential):
    """sep_conv: (ReLU, depthwise, pointwise, BN) twice, the first with the stride."""

    def __init__(self, channels, kernel, stride, affine):
        super().__init__(DilConv(channels, kernel, stride, affine, dilation=1),
                         DilConv(channels, kernel, 1, affine, dilation=1))


class ReLUConvBN(nn.Sequential):
    """Gives a cell's input the cell's number of channels: ReLU, 1x1 convolution, BN."""

    def __init__(self, in_channels, out_channels, affine=True):
        super().__init__(nn.ReLU(), nn.Conv2d(in_channels, out_channels, 1, bias=False),
                         nn.BatchNorm2d(out_channels, affine=affine))


class FactorizedReduce(nn.Module):
    """Halves height and width: ReLU, one 1x1 convolution of the even pixels and one of
    the odd ones, BN of both."""

    def __init__(self, in_channels, out_channels, affine=True):
        super().__init__()
        self.relu = nn.ReLU()
        self.even = nn.Conv2d(in_channels, out_channels // 2, 1, bias=False)
        self.odd = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, affine=affine)

    def forward(self, x):  # (B, C, H, W) -> (B, C', H/2, W/2)
        x = self.relu(x)
        # sliced, for a 1x1 convolution with stride 2 has crashed in its gradient on the CPU
        even, odd = x[:, :, ::2, ::2], F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))[
            :, :, 1::2, 1::2]
        return self.bn(torch.cat([self.even(even), self.odd(odd)], 1))


def drop_path(x, probability):
    """`x` with whole samples of the batch set to 0 at random, the others scaled so that
    the mean stays."""
    kept = torch.rand(len(x), 1, 1, 1, device=x.device) < 1 - probability
    return x * kept.to(x.dtype) / (1 - probability)
