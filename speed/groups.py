"""The supernet computed by groups of edges: 3 to 4 times as fast, the same function.

Read model_search.py first. The k edges that leave a state have the same input. So the k
copies of an operation are computed as one:

- what has no weights (the identity, pooling with its batch norm) is the same for all k;
- of SepConv and DilConv the weights are concatenated, those of all kernel sizes, too (a
  3x3 filter is a 5x5 one with a border of zeros): one depthwise convolution on n*k*C
  channels, one pointwise convolution with a group for each copy;
- gate * BN(x) is batch norm whose scale is the gate.

The classes below hold lists of the modules of a supernet, made once, and concatenate
their weights and running statistics for each call. An operation that is not recognised
is computed as it is.
"""
from functools import reduce

import torch
import torch.nn as nn
import torch.nn.functional as F

import model_search
from fair_darts import edge_row
from model_search import MixedOperation
from operations import FactorizedReduce
from speed.kernels import arranged, depthwise, from_phases, rectified, repeat, to_phases
from speed.layers import is_depthwise, is_layer, is_plain_norm, is_pointwise, is_sequence


class GroupedCell(model_search.Cell):
    """After `group`, a cell computes its edges by the states that they leave."""

    def group(self):
        """Finds the groups, if all edges are what model_search.py says."""
        self.groups = []
        if all(is_layer(edge, MixedOperation) for edge in self.edges):
            rows = [[edge_row(node, source) for node in range(max(2, source + 1), self.nodes + 2)]
                    for source in range(self.nodes + 1)]
            self.groups = [EdgesOfState([self.edges[row] for row in group]) for group in rows]
            self.order = torch.tensor(sum(rows, []), device=next(self.parameters()).device)
            self.counts = [len(group) for group in rows]

    def forward(self, state_0, state_1, gates):
        if not self.groups:
            return super().forward(state_0, state_1, gates)
        states = [self.preprocess_0(state_0), self.preprocess_1(state_1)]
        b, c, h, w = states[1].shape
        if self.reduction:
            h, w = (h + 1) // 2, (w + 1) // 2
        sums = states[1].new_zeros(self.nodes, b, h, w, c)  # of the nodes that are not complete
        self.order = self.order.to(gates.device)
        gates = gates.index_select(0, self.order).split_with_sizes(self.counts)
        for source, group in enumerate(self.groups):
            sums = group(states[source], gates[source], sums)
            if source > 0:  # the next node has all its edges; a view would keep all sums alive
                states.append(arranged(sums[0].permute(0, 3, 1, 2).clone(), states[1]))
                sums = sums[1:]
        return torch.cat(states[2:], 1)


class EdgesOfState:
    """The k MixedOperation modules on the edges that leave one state."""

    def __init__(self, edges):
        self.shared, self.different, separable = {}, [], {}
        for column, copies in enumerate(zip(*(edge.operations for edge in edges))):
            found = {describe(op) for op in copies}
            kind, *details = found.pop() if len(found) == 1 else [Separate]
            if kind is Separables:
                kernel, *others = details
                separable.setdefault(tuple(others), []).append((kernel, column, copies))
            elif kind in (Identities, Pools):
                self.shared[column] = kind(copies)
            else:
                self.different.append(([column], kind(copies)))
        for items in separable.values():
            _, columns, sizes = zip(*sorted(items, key=lambda item: item[0]))
            self.different.append((columns, Separables(sizes)))

    def __call__(self, x, gates, sums):
        """x: (B, C, H, W); gates: (k, operations); sums: (k, B, H', W', C), of the
        nodes that the edges enter -> sums with the k mixtures added"""
        gates = gates.unbind(1)
        rectified(x)  # kept with x; first, so that its gradient is always added last
        maps, outputs = {}, []
        for column, operation in self.shared.items():
            y = operation.once(x)
            if y is None:
                outputs.append(operation(x, gates[column]))
            else:
                maps[column] = y.permute(0, 2, 3, 1)
        if maps:
            weights = torch.stack([gates[column] for column in maps], 1)
            maps = torch.stack(list(maps.values())).flatten(1)
            sums = torch.addmm(sums.flatten(1), weights, maps).view_as(sums)
        outputs += [operation(x, torch.cat([gates[column] for column in columns]))
                    for columns, operation in self.different]
        if outputs:
            y = reduce(torch.add, outputs).permute(0, 2, 3, 1)  # (B, H', W', k*C)
            sums = sums + y.unflatten(3, (len(sums), -1)).permute(3, 0, 1, 2, 4)
        return sums


# ---------------------------------------------------------------- what an operation is

def describe(op):
    """(class, details): operations of which these are equal can be computed as one;
    those that differ in the first detail of Separables, the kernel size, too."""
    if is_layer(op, nn.Identity):
        return (Identities,)
    if (is_sequence(op, 2) and is_plain_norm(op[1])
            and (is_layer(op[0], nn.MaxPool2d) or is_layer(op[0], nn.AvgPool2d))):
        settings = [item for item in vars(op[0]).items() if not item[0].startswith("_")]
        return Pools, type(op[0]), str(settings), str(op[1])
    first, *second = halves(op)
    if (all(is_separable(half) for half in (first, *second))
            and all(half[1].kernel_size == first[1].kernel_size and half[1].stride == (1, 1)
                    for half in second)):
        details = [(half[1].stride, half[1].dilation, str(half[3])) for half in (first, *second)]
        return Separables, first[1].kernel_size[0], *details
    if (is_layer(op, FactorizedReduce) and is_layer(op.relu, nn.ReLU) and is_plain_norm(op.bn)
            and is_pointwise(op.even) and is_pointwise(op.odd)):
        return Reductions, str(op.bn)
    return (Separate,)


def halves(op):
    """The two DilConv of a SepConv; of a DilConv itself."""
    return list(op) if is_sequence(op, 2) else [op]


def is_separable(op):
    """Whether it is ReLU, depthwise and pointwise convolution, BN of one width."""
    return (is_sequence(op, 4) and is_layer(op[0], nn.ReLU) and is_depthwise(op[1])
            and is_pointwise(op[2]) and is_plain_norm(op[3])
            and op[1].in_channels == op[2].in_channels == op[2].out_channels)


# Below, an object stands for k copies of an operation and is called with (x, gates):
# (B, C, H, W) and a gate for each copy -> (B, k*C, H', W')

class Separate:
    """Operations that are not recognised, one by one."""

    def __init__(self, copies):
        self.copies = copies

    def __call__(self, x, gates):
        return torch.cat([gate * op(x) for gate, op in zip(gates, self.copies)], 1)


class Identities(Separate):
    def once(self, x):
        """What all copies give, without gates: (B, C, H', W')"""
        return x


class Pools:
    """Pooling and its batch norm."""

    def __init__(self, copies):
        self.pool, self.norms = copies[0][0], BatchNorms([copy[1] for copy in copies])

    def once(self, x):
        """As of Identities while training; else None, for the statistics differ."""
        return self.norms.once(self.pool(x)) if self.norms.norms[0].training else None

    def __call__(self, x, gates):
        y = self.pool(x)
        return self.norms(repeat(y, len(gates) * y.shape[1]), gates)


class Separables:
    """The sum over kernel sizes of k SepConv or DilConv each. sizes: [the copies of one
    size], in the order of the sizes"""

    def __init__(self, sizes):
        self.halves = [Halves([[halves(op)[index] for op in copies] for copies in sizes])
                       for index in range(len(halves(sizes[0][0])))]
        self.count = len(sizes)

    def __call__(self, x, gates):
        x, (*before, last) = rectified(x), self.halves
        for half in before:
            x = F.relu(half(x), inplace=True)
        # phases, see kernels.depthwise, stay apart until the sum
        apart = last.dilation == 2 and last.stride == 1 and x.shape[2] % 2 == 0 == x.shape[3] % 2
        y = last(to_phases(x), gates, dilation=1) if apart else last(x, gates)
        y = reduce(torch.add, y.chunk(self.count, 1))
        return from_phases(y) if apart else y


class Halves:
    """Depthwise convolution, pointwise convolution and BN of the modules in `sizes`."""

    def __init__(self, sizes):
        every = [half for copies in sizes for half in copies]
        self.depthwise = [[half[1] for half in copies] for copies in sizes]
        self.pointwise = [half[2] for half in every]
        self.norms = BatchNorms([half[3] for half in every])
        self.stride, self.dilation = every[0][1].stride[0], every[0][1].dilation[0]

    def __call__(self, x, gates=None, dilation=None):
        filters = [weights(convolutions) for convolutions in self.depthwise]
        largest = filters[-1].shape[2]
        small = sum(len(weight) for weight in filters if weight.shape[2] <= 3 < largest)
        filters = [F.pad(weight, [(largest - weight.shape[2]) // 2] * 4)
                   if weight.shape[2] < largest else weight for weight in filters]
        y = depthwise(x, torch.cat(filters), self.stride, dilation or self.dilation, small)
        y = F.conv2d(y, weights(self.pointwise), groups=len(self.pointwise))
        return self.norms(y, gates)


class Reductions:
    """FactorizedReduce."""

    def __init__(self, copies):
        self.even, self.odd = [op.even for op in copies], [op.odd for op in copies]
        self.norms = BatchNorms([op.bn for op in copies])

    def __call__(self, x, gates):
        x = rectified(x)
        padded = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        halves = [F.conv2d(pixels, weights(convolutions)).chunk(len(convolutions), 1)
                  for pixels, convolutions in ((x[:, :, ::2, ::2], self.even),
                                               (padded[:, :, 1::2, 1::2], self.odd))]
        return self.norms(torch.cat([half for pair in zip(*halves) for half in pair], 1), gates)


class BatchNorms:
    """Batch norms as one, each of its own channels, each times its gate."""

    def __init__(self, norms):
        self.norms, self.sizes = norms, [norm.num_features for norm in norms] * 2

    def statistics(self):
        return [n.running_mean for n in self.norms] + [n.running_var for n in self.norms]

    def __call__(self, x, gates=None):
        first, statistics = self.norms[0], self.statistics()
        every = torch.cat(statistics)
        mean, var = every.chunk(2)
        # must be contiguous: with a strided scale channels_last gradients are wrong on the CPU
        scale = None if gates is None else gates.repeat_interleave(first.num_features)
        y = F.batch_norm(x, mean, var, scale, None, first.training, first.momentum, first.eps)
        if first.training and first.momentum:
            torch._foreach_copy_(statistics, every.split_with_sizes(self.sizes))
        return y

    def once(self, x):
        """While training: of x, which all of them take, without gates."""
        first = self.norms[0]
        mean, var = first.running_mean.new_zeros(2, first.num_features)
        y = F.batch_norm(x, mean, var, None, None, True, 1.0, first.eps)
        if first.momentum:
            count, statistics = len(self.norms), self.statistics()
            torch._foreach_mul_(statistics, 1 - first.momentum)
            torch._foreach_add_(statistics, [mean] * count + [var] * count, alpha=first.momentum)
        return y


def weights(convolutions):
    """The weights of convolutions, one after the other."""
    return torch.cat([convolution.weight for convolution in convolutions])
