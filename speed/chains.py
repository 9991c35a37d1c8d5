"""A layer of the supernet of S2, by groups of its choices, as groups.py of edges."""
from functools import reduce

import torch
import torch.nn as nn
import torch.nn.functional as F

from model_search import MixedOperation
from spaces.s2 import InvertedBottleneck
from speed.groups import BatchNorms, Separate, sum_of_chunks, weights
from speed.kernels import depthwise
from speed.layers import is_depthwise, is_layer, is_plain_norm, is_pointwise, is_sequence


class GroupedLayer(MixedOperation):
    """After `group`, a layer of S2 computes bottlenecks of one kernel size as one."""

    def group(self):
        self.straight, self.groups, by_kernel = [], [], {}
        for column, op in enumerate(self.operations):
            if is_bottleneck(op):
                norms = [(norm.eps, norm.momentum) for norm in norms_of(op)]
                key = (*op.depthwise[0].kernel_size, *op.depthwise[0].stride, *norms)
                by_kernel.setdefault(key, []).append((column, op))
                if op.residual:  # g * (block(x) + x)
                    self.straight.append(column)
            elif is_layer(op, nn.Identity):  # g * x
                self.straight.append(column)
            else:
                self.groups.append(([column], Separate([op])))
        for pairs in by_kernel.values():
            columns, copies = zip(*pairs)
            self.groups.append((columns, Bottlenecks(copies)))

    def forward(self, x, gates):  # (B, C, H, W), (choices,) -> (B, C', H', W')
        gates = gates.unbind()
        y = [operation(x, torch.stack([gates[column] for column in columns]))
             for columns, operation in self.groups]
        if self.straight:
            y.append(sum(gates[column] for column in self.straight) * x)
        return reduce(torch.add, y)


def is_bottleneck(op):
    """Whether it is the bottleneck of a supernet: ReLU6, batch norms without affine."""
    return (is_layer(op, InvertedBottleneck) and is_layer(op.squeeze, nn.Identity)
            and is_sequence(op.expand, 3) and is_pointwise(op.expand[0])
            and is_sequence(op.depthwise, 3) and is_depthwise(op.depthwise[0])
            and op.depthwise[0].dilation == (1, 1)
            and is_sequence(op.project, 2) and is_pointwise(op.project[0])
            and all(is_layer(stage[2], nn.ReLU6) for stage in (op.expand, op.depthwise))
            and all(is_plain_norm(norm) for norm in norms_of(op)))


def norms_of(bottleneck):
    return bottleneck.expand[1], bottleneck.depthwise[1], bottleneck.project[1]


class Bottlenecks:
    """The sum of bottlenecks of one kernel size and several expansions, each without
    its input.

    The 1x1 convolutions that expand are one, the depthwise ones are one, and those that
    project are one whose matrix has a block for each.
    """

    def __init__(self, copies):
        stages = [[getattr(op, stage) for op in copies]
                  for stage in ("expand", "depthwise", "project")]
        self.convolutions = [[stage[0] for stage in ops] for ops in stages]
        self.norms = [BatchNorms([stage[1] for stage in ops]) for ops in stages]
        self.stride, self.count = copies[0].depthwise[0].stride[0], len(copies)

    def __call__(self, x, gates):
        expand, filters, project = self.convolutions
        y = F.relu6(self.norms[0](F.conv2d(x, weights(expand))), inplace=True)
        y = F.relu6(self.norms[1](depthwise(y, weights(filters), self.stride)), inplace=True)
        matrix = torch.block_diag(*(convolution.weight.flatten(1) for convolution in project))
        y = self.norms[2](F.conv2d(y, matrix[:, :, None, None]), gates)
        return sum_of_chunks(y, self.count)
