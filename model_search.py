"""The supernet: every operation on every edge, weighted by its gate (Eq. 2 with softmax, Eq. 6 with sigmoid).

Written edge by edge, a cell of 4 nodes is 14 edges of 7 operations. Here it is one module for each of the 5
states: the k edges that leave a state share their input, so their k copies of an operation are one operation on
k times the channels. ReLU, and pooling with its batch norm, have no parameters and are the same for all k.
"""
from functools import reduce

import torch
import torch.nn as nn
import torch.nn.functional as F

import fair_darts
from genotypes import CHAIN, CHOICES, IDENTITY, PRIMITIVES, SAME_SHAPE
from operations import (CONVOLUTIONS, POOLINGS, BatchNorm, Bottlenecks, ChainHead, ConvBN, FactorizedReduce, chain_shapes,
                        chain_stem, channels_last, recompute)


class MixedOperation(nn.Module):
    """Eq. 6 on all k edges that leave one state: x -> sum over o of gate[e, o] * o_e(x), for each edge e."""

    def __init__(self, channels, stride, edges, primitives):
        super().__init__()
        self.column = {op: index for index, op in enumerate(primitives)}
        self.pools = nn.ModuleDict({op: pool(stride) for op, pool in POOLINGS.items() if op in primitives})
        self.pool_bn = nn.ModuleDict({op: BatchNorm(channels, affine=False) for op in self.pools})
        self.kernels, self.convolutions = {}, nn.ModuleDict()
        for kind, conv in CONVOLUTIONS.items():
            self.kernels[kind] = [n for n in (3, 5) if f"{kind}_{n}x{n}" in primitives]
            if self.kernels[kind]:
                self.convolutions[kind] = conv(channels, self.kernels[kind], stride, edges, affine=False)
        reduced = stride == 2 and "skip_connect" in primitives
        self.reduce = FactorizedReduce(channels, channels, edges, affine=False) if reduced else None

    def forward(self, x, gates, sums, recomputed=False):
        """x: (B, C, H, W); gates: (k, operations); sums: (k, B, H', W', C), what the nodes that the k edges enter have
        received so far -> the same with the mixtures added. recomputed: the convolutions, which hold most activations,
        do not keep them for the backward pass."""
        rectified = F.relu(x)
        # the same for every edge: pooling and, at stride 1, the skip connection
        shared = {op: self.pool_bn[op](pool(x)) for op, pool in self.pools.items()}
        if "skip_connect" in self.column and self.reduce is None:
            shared["skip_connect"] = x
        if shared:
            maps = torch.stack([y.permute(0, 2, 3, 1) for y in shared.values()])  # (3, B, H', W', C)
            weights = gates[:, [self.column[op] for op in shared]]
            sums = torch.addmm(sums.flatten(1), weights, maps.flatten(1)).view_as(sums)
        # of each edge's own weights
        own = []
        for kind, conv in self.convolutions.items():
            columns = [self.column[f"{kind}_{n}x{n}"] for n in self.kernels[kind]]
            inputs = rectified, torch.cat([gates[:, column] for column in columns])
            own.append(recompute(conv, *inputs) if recomputed else conv(*inputs))
        if self.reduce is not None:
            own.append(self.reduce(rectified, gates[:, self.column["skip_connect"]]))
        if not own:
            return sums
        return sums + reduce(torch.add, own).permute(0, 2, 3, 1).unflatten(3, (len(gates), -1)).permute(3, 0, 1, 2, 4)


class Cell(nn.Module):
    """A searched cell: states 0 and 1 are its inputs, each node is the sum of all its incoming edges."""

    def __init__(self, nodes, channels_0, channels_1, channels, reduction, after_reduction, primitives):
        super().__init__()
        self.nodes, self.reduction = nodes, reduction
        preprocess = FactorizedReduce if after_reduction else ConvBN
        self.preprocess_0 = preprocess(channels_0, channels, affine=False)
        self.preprocess_1 = ConvBN(channels_1, channels, affine=False)
        self.mixed, self.rows = nn.ModuleList(), []
        for source in range(nodes + 1):
            targets = range(max(2, source + 1), nodes + 2)
            self.mixed.append(MixedOperation(channels, 2 if reduction and source < 2 else 1, len(targets), primitives))
            self.rows.append([fair_darts.edge_row(node, source) for node in targets])

    def forward(self, state_0, state_1, gates, recomputed=False):
        """Two rectified states, gates (14, 7) -> (B, nodes * C, H', W')"""
        states = [self.preprocess_0(state_0), self.preprocess_1(state_1)]
        b, c, h, w = states[1].shape
        if self.reduction:
            h, w = (h + 1) // 2, (w + 1) // 2
        sums = states[1].new_zeros(self.nodes, b, h, w, c)  # of the nodes that are not complete
        for source, (mixed, rows) in enumerate(zip(self.mixed, self.rows)):
            sums = mixed(states[source], gates[rows], sums, recomputed)
            if source > 0:  # the next node has all its edges
                states.append(channels_last(sums[0].permute(0, 3, 1, 2).clone()))  # a view would keep all sums alive
                sums = sums[1:]
        return torch.cat(states[2:], 1)


class Network(nn.Module):
    """The supernet. in: (B, in_channels, H, W); out: logits (B, num_classes).

    Cells layers // 3 and 2 * layers // 3 are reduction cells: half the size, twice the channels.
    .alphas: [normal, reduce], each a Parameter (14, 7) for 4 nodes; zero, so that every sigmoid is 0.5, or for
    softmax 0.001 * normal, as in DARTS. A column for each of `primitives`.
    .recompute: whether most activations are computed again in the backward pass rather than kept.
    """

    def __init__(self, init_channels=16, num_classes=10, layers=8, nodes=4, in_channels=3, gate="sigmoid",
                 primitives=PRIMITIVES):
        super().__init__()
        self.gate, self.recompute = gate, False
        edges = nodes * (nodes + 3) // 2
        scale = 1e-3 if gate == "softmax" else 0
        self.alphas = nn.ParameterList([scale * torch.randn(edges, len(primitives)) for _ in range(2)])
        channels = init_channels
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 3 * channels, 3, padding=1, bias=False),
                                  BatchNorm(3 * channels))
        widths = [3 * channels, 3 * channels]  # of the two states that enter the next cell
        self.cells, after_reduction = nn.ModuleList(), False
        for layer in range(layers):
            reduction = layer in (layers // 3, 2 * layers // 3)
            channels *= 2 if reduction else 1
            self.cells.append(Cell(nodes, *widths, channels, reduction, after_reduction, primitives))
            widths, after_reduction = [widths[1], nodes * channels], reduction
        self.classifier = nn.Linear(widths[1], num_classes)

    def weights(self):
        """All parameters but the alphas."""
        return [w for name, w in self.named_parameters() if not name.startswith("alphas.")]

    def gates(self):
        """[normal, reduce]: the gates of the alphas, each (edges, operations)."""
        return [fair_darts.gates(alpha, self.gate) for alpha in self.alphas]

    def all_gates(self):
        """The gates that a penalty counts, in one tensor."""
        return torch.cat(self.gates())

    def forward(self, images, gates=None):
        """gates: [normal, reduce], others than those of the alphas."""
        gates = gates or self.gates()
        states = [F.relu(channels_last(self.stem(images)))] * 2  # two cells take each state, and both start with a ReLU
        for cell in self.cells:
            output = cell(*states, gates[cell.reduction], self.recompute and self.training)
            states = [states[1], F.relu(output)]
        return self.classifier(output.mean((2, 3))).to(images.dtype)  # float32 under autocast, too


class MixedLayer(nn.Module):
    """A searched layer of S2, Eq. 6 on its choices; where the shape stays, each block adds its input, and the identity
    is one more choice."""

    def __init__(self, in_channels, out_channels, stride, same_shape):
        super().__init__()
        self.same_shape = same_shape
        self.blocks = nn.ModuleList(Bottlenecks(in_channels, out_channels, stride, kernel, [3, 6], affine=False)
                                    for kernel in (3, 5, 7))

    def forward(self, x, gates, recomputed=False):  # (B, C, H, W), (7,) -> (B, C', H', W')
        sums = []
        for index, blocks in enumerate(self.blocks):
            inputs = x, gates[index:6:3]  # expansions 3 and 6 of this kernel size
            sums.append(recompute(blocks, *inputs) if recomputed else blocks(*inputs))
        if self.same_shape:  # g (block(x) + x) of every block, and g x of the identity
            sums.append(gates.sum() * x)
        return reduce(torch.add, sums)


class NetworkS2(nn.Module):
    """The supernet of the space S2. in: (B, in_channels, H, W); out: logits (B, num_classes).

    .alphas: [one Parameter (19, 7)]; .present: (19, 7) of bool, which choices there are. The alphas of the others, where a
    layer has no identity, take no part in anything. image_size: see operations.chain_strides.
    """

    def __init__(self, num_classes=1000, in_channels=3, gate="sigmoid", width=1.0, image_size=224):
        super().__init__()
        self.gate, self.recompute = gate, False
        present = torch.ones(len(CHAIN), len(CHOICES), dtype=torch.bool)
        present[:, IDENTITY] = torch.tensor(SAME_SHAPE)
        self.register_buffer("present", present)
        scale = 1e-3 if gate == "softmax" else 0
        self.alphas = nn.ParameterList([scale * torch.randn(present.shape) * present])
        first, shapes = chain_shapes(image_size, width)
        self.stem = chain_stem(in_channels, width, first)
        self.layers = nn.ModuleList(MixedLayer(*shape) for shape in shapes)
        self.head = ChainHead(width, num_classes, dropout=0)

    weights = Network.weights

    def gates(self):
        """[the gates of the alphas, (19, 7); 0 where there is no such choice]"""
        return [fair_darts.gates(self.alphas[0], self.gate, self.present)]

    def all_gates(self):
        """The gates that a penalty counts, in one tensor."""
        return self.gates()[0][self.present]

    def forward(self, images, gates=None):
        """gates: [(19, 7)], others than those of the alphas."""
        [gates] = gates or self.gates()
        x = channels_last(self.stem(images))
        for layer, own in zip(self.layers, gates):
            x = layer(x, own, self.recompute and self.training)
        return self.head(x).to(images.dtype)  # float32 under autocast, too
