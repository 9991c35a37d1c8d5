"""The supernet computed by groups of edges: 3 to 4 times as fast, the same function.

Read model_search.py first; nothing here is needed to understand the paper. The k edges that
leave a state have the same input. So the k copies of an operation are computed as one:

- what has no weights (the identity, pooling with its batch norm) is the same for all k edges;
- of SepConv and DilConv the weights are concatenated, those of both kernel sizes, too (a 3x3
  filter is a 5x5 one with a border of zeros): one depthwise convolution on 2*k*C channels,
  one pointwise convolution with a group for each copy;
- gate * BN(x) is batch norm whose scale is the gate.

There are no parameters here. The classes below hold lists of the modules of model_search.py,
made once, and concatenate their weights for each call; running statistics as well, which are
then put back in place. An operation that this file does not know is computed literally.
"""
from functools import reduce

import torch
import torch.nn as nn
import torch.nn.functional as F

import parallel
from fair_darts import edge_row
from kernels import arranged, compile_each, depthwise, from_phases, to_phases
from operations import DilConv, FactorizedReduce, InvertedBottleneck, SepConv, even_and_odd


class Cell:
    """model_search.Cell after its preprocessing. edges: its MixedOperation modules."""

    def __init__(self, edges, nodes, reduction):
        self.nodes, self.reduction = nodes, reduction
        rows = [[edge_row(node, source) for node in range(max(2, source + 1), nodes + 2)]
                for source in range(nodes + 1)]
        self.groups = [EdgesOfState([edges[row] for row in group]) for group in rows]
        self.order, self.counts = torch.tensor(sum(rows, [])), [len(group) for group in rows]

    def compile(self, **options):
        """Each group by torch.compile: they have few shapes, and the whole takes longer."""
        self.groups = compile_each([group.__call__ for group in self.groups], **options)

    def __call__(self, states, gates):
        """Two states (B, C, H, W), gates (edges, operations) -> (B, nodes * C, H', W')"""
        states, (b, c, h, w) = list(states), states[1].shape
        if self.reduction:
            h, w = (h + 1) // 2, (w + 1) // 2
        sums = states[1].new_zeros(self.nodes, b, h, w, c)  # of the nodes that are not complete
        self.order = self.order.to(gates.device)
        gates = gates.index_select(0, self.order).split_with_sizes(self.counts)
        for source, group in enumerate(self.groups):
            sums = group(states[source], gates[source], sums)
            if source > 0:  # the next node has all its edges; a view would keep all sums alive
                states.append(arranged(sums[0].permute(0, 3, 1, 2).clone()))
                sums = sums[1:]
        return torch.cat(states[2:], 1)


class EdgesOfState:
    """The k MixedOperation modules on the edges that leave one state."""

    def __init__(self, edges):
        self.same, self.different, convolutions = {}, [], {}
        for column, copies in enumerate(zip(*(edge.operations for edge in edges))):
            op, kind = copies[0], type(copies[0])
            if is_same_for_all(op):
                self.same[column] = copies
            elif kind is SepConv or kind is DilConv and op[1].dilation == (2, 2):
                convolutions.setdefault(kind, []).append((kernel_size(op), column, copies))
            elif kind is FactorizedReduce:
                self.different.append(([column], Reductions(copies)))
            else:
                self.different.append(([column], Literal(copies)))
        for kind, found in convolutions.items():
            _, columns, sizes = zip(*sorted(found, key=lambda item: item[0]))
            self.different.append((columns, (SepConvs if kind is SepConv else DilConvs)(sizes)))

    def __call__(self, x, gates, sums):
        """x: (B, C, H, W); gates: (k, operations); sums: (k, B, H', W', C), of the nodes that
        the edges enter -> sums with the k mixtures added"""
        gates, rectified = gates.unbind(1), F.relu(x)
        if self.same:
            maps = [compute_once(copies, x).permute(0, 2, 3, 1) for copies in self.same.values()]
            weights = torch.stack([gates[column] for column in self.same], 1)
            maps = torch.stack(maps).flatten(1)
            sums = torch.addmm(sums.flatten(1), weights, maps).view_as(sums)
        if self.different:
            y = [operation(x if type(operation) is Literal else rectified,
                           torch.cat([gates[column] for column in columns]))
                 for columns, operation in self.different]
            y = reduce(torch.add, y).permute(0, 2, 3, 1)  # (B, H', W', k*C)
            sums = sums + y.unflatten(3, (len(sums), -1)).permute(3, 0, 1, 2, 4)
        return sums


def is_same_for_all(op):
    """Whether it is the identity, or pooling and its batch norm, both without weights."""
    return type(op) is nn.Identity or type(op) is nn.Sequential and isinstance(
        op[0], (nn.MaxPool2d, nn.AvgPool2d)) and not list(op.parameters())


def kernel_size(op):
    """Of a SepConv or DilConv."""
    return (op[0] if isinstance(op, SepConv) else op)[1].kernel_size[0]


def compute_once(copies, x):
    """The first of k modules without weights; all get its running statistics."""
    y = copies[0](x)
    statistics, *others = [list(copy.buffers()) for copy in copies]
    if statistics and others:
        torch._foreach_copy_(sum(others, []), statistics * len(others))
    return y


# Below, an object stands for k copies of an operation and is called with (x, gates):
# (B, C, H, W), after its ReLU, and a gate for each copy -> (B, k*C, H', W')

class Literal:
    """Operations that this file does not know, one by one; x is before any ReLU."""

    def __init__(self, copies):
        self.copies = copies

    def __call__(self, x, gates):
        return torch.cat([gate * op(x) for gate, op in zip(gates, self.copies)], 1)


class SepConvs:
    """The sum over kernel sizes of k SepConv each. sizes: [the copies of one size]"""

    def __init__(self, sizes):
        self.first, self.second = [Separables([[op[half] for op in copies] for copies in sizes])
                                   for half in (0, 1)]
        self.count, self.stride = len(sizes), sizes[0][0][0][1].stride[0]

    def __call__(self, x, gates):
        y = F.relu(self.first(x, None, self.stride), inplace=True)
        return sum_of_chunks(self.second(y, gates), self.count)


class DilConvs:
    """The same of DilConv. Phases, see kernels.depthwise, stay apart until the sum."""

    def __init__(self, sizes):
        self.separables = Separables(sizes)
        self.count, self.stride = len(sizes), sizes[0][0][1].stride[0]

    def __call__(self, x, gates):
        if self.stride == 2:
            y = self.separables(arranged(x[:, :, ::2, ::2]), gates)
        elif x.shape[2] % 2 or x.shape[3] % 2:
            y = self.separables(x, gates, dilation=2)
        else:
            y = self.separables(to_phases(x), gates)
            return from_phases(sum_of_chunks(y, self.count))
        return sum_of_chunks(y, self.count)


class Separables:
    """Depthwise convolution, pointwise convolution and BN of the DilConv modules in sizes."""

    def __init__(self, sizes):
        every = [op for copies in sizes for op in copies]
        self.depthwise = [[op[1] for op in copies] for copies in sizes]
        self.pointwise, self.norms = [op[2] for op in every], BatchNorms([op[3] for op in every])

    def __call__(self, x, gates, stride=1, dilation=1):
        filters = [weights(convolutions) for convolutions in self.depthwise]
        borders = [(filters[-1].shape[2] - weight.shape[2]) // 2 for weight in filters]
        small = sum(len(weight) for weight, border in zip(filters, borders) if border)
        if small:
            filters = [F.pad(weight, [border] * 4) if border else weight
                       for weight, border in zip(filters, borders)]
        y = depthwise(x, torch.cat(filters), stride, dilation, small)
        y = F.conv2d(y, weights(self.pointwise), groups=len(self.pointwise))
        return self.norms(y, gates)


class Reductions:
    """k FactorizedReduce."""

    def __init__(self, copies):
        self.even, self.odd = [op.even for op in copies], [op.odd for op in copies]
        self.norms = BatchNorms([op.bn for op in copies])

    def __call__(self, x, gates):
        halves = [F.conv2d(pixels, weights(convolutions)).chunk(len(convolutions), 1)
                  for pixels, convolutions in zip(even_and_odd(x), (self.even, self.odd))]
        y = torch.cat([half for pair in zip(*halves) for half in pair], 1)
        return self.norms(y, gates)


class BatchNorms:
    """Batch norms as one, each of its own channels, each times its gate."""

    def __init__(self, norms):
        self.norms, self.sizes = norms, [norm.num_features for norm in norms] * 2

    def __call__(self, x, gates=None):
        first = self.norms[0]
        statistics = [norm.running_mean for norm in self.norms]
        statistics += [norm.running_var for norm in self.norms]
        every = torch.cat(statistics)
        mean, var = every.chunk(2)
        # must be contiguous: with a strided scale channels_last gradients are wrong on the CPU
        scale = None if gates is None else gates.repeat_interleave(first.num_features)
        normalize = (parallel.batch_norm if isinstance(first, parallel.SyncBatchNorm)
                     else F.batch_norm)
        y = normalize(x, mean, var, scale, None, first.training, first.momentum, first.eps)
        if first.training and first.momentum:
            torch._foreach_copy_(statistics, every.split_with_sizes(self.sizes))
        return y


def weights(convolutions):
    """The weights of convolutions, one after the other."""
    return torch.cat([convolution.weight for convolution in convolutions])


def sum_of_chunks(x, count):
    """(B, count*C, H, W) -> (B, C, H, W)"""
    return reduce(torch.add, x.chunk(count, 1))


# ---------------------------------------------------------------- the space S2

class Layer:
    """model_search.MixedLayer: the bottlenecks of one kernel size are one."""

    def __init__(self, operations):
        self.straight, self.groups, by_kernel = [], [], {}
        for column, op in enumerate(operations):
            if isinstance(op, InvertedBottleneck):
                by_kernel.setdefault(op.depthwise[0].kernel_size, []).append((column, op))
                if op.residual:  # g * (block(x) + x)
                    self.straight.append(column)
            elif type(op) is nn.Identity:  # g * x
                self.straight.append(column)
            else:
                self.groups.append(([column], Literal([op])))
        for pairs in by_kernel.values():
            columns, copies = zip(*pairs)
            self.groups.append((columns, Bottlenecks(copies)))

    def __call__(self, x, gates):  # (B, C, H, W), (choices,) -> (B, C', H', W')
        gates = gates.unbind()
        y = [operation(x, torch.stack([gates[column] for column in columns]))
             for columns, operation in self.groups]
        if self.straight:
            y.append(sum(gates[column] for column in self.straight) * x)
        return reduce(torch.add, y)


class Bottlenecks:
    """The sum of bottlenecks of one kernel size and several expansions, each without its input.

    The 1x1 convolutions that expand are one, the depthwise ones are one, and those that
    project are one whose matrix has a block for each.
    """

    def __init__(self, copies):
        self.stages = [[getattr(op, stage)[0] for op in copies]
                       for stage in ("expand", "depthwise", "project")]
        self.norms = [BatchNorms([getattr(op, stage)[1] for op in copies])
                      for stage in ("expand", "depthwise", "project")]
        self.stride, self.count = copies[0].depthwise[0].stride[0], len(copies)

    def __call__(self, x, gates):
        expand, filters, project = self.stages
        y = F.relu6(self.norms[0](F.conv2d(x, weights(expand))), inplace=True)
        y = F.relu6(self.norms[1](depthwise(y, weights(filters), self.stride)), inplace=True)
        matrix = torch.block_diag(*(convolution.weight.flatten(1) for convolution in project))
        y = self.norms[2](F.conv2d(y, matrix[:, :, None, None]), gates)
        return sum_of_chunks(y, self.count)
