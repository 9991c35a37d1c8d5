"""The supernet: every operation on every edge, weighted by its gate (Eq. 2 with softmax, Eq. 6 with sigmoid).

Written edge by edge, a cell of 4 nodes is 14 edges of 7 operations. Here it is one module for each of the 5
states: the k edges that leave a state share their input, so their k copies of an operation are one operation on
k times the channels. ReLU, and pooling with its batch norm, have no parameters and are the same for all k.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

import fair_darts
from genotypes import PRIMITIVES
from operations import BatchNorm, FactorizedReduce, ReLUConvBN, channels_last, make


class MixedOperation(nn.Module):
    """Eq. 6 on all edges that leave one state: x -> sum over o of gate[e, o] * o_e(x), for each edge e."""

    def __init__(self, channels, stride, edges):
        super().__init__()
        self.ops = nn.ModuleDict({op: make(op, channels, stride, edges, affine=False) for op in PRIMITIVES})
        self.pool_bn = nn.ModuleDict({op: BatchNorm(channels, affine=False) for op in PRIMITIVES if "pool" in op})

    def forward(self, x, gates):  # (B, C, H, W), (k, 7) -> k times (B, C, H', W')
        rectified = F.relu(x)
        own, shared = 0, []  # operations with weights of each edge's own; those that are the same for every edge
        for index, (name, op) in enumerate(self.ops.items()):
            if op.rectified:
                own = own + op(rectified, gates[:, index])
            else:
                y = op(x)
                shared.append((index, self.pool_bn[name](y) if name in self.pool_bn else y))
        outputs = own.chunk(len(gates), 1)
        return [sum((row[index] * y for index, y in shared), out) for row, out in zip(gates, outputs)]


class Cell(nn.Module):
    """A searched cell: states 0 and 1 are its inputs, each node is the sum of all its incoming edges."""

    def __init__(self, nodes, channels_0, channels_1, channels, reduction, after_reduction):
        super().__init__()
        self.nodes = nodes
        preprocess = FactorizedReduce if after_reduction else ReLUConvBN
        self.preprocess_0 = preprocess(channels_0, channels, affine=False)
        self.preprocess_1 = ReLUConvBN(channels_1, channels, affine=False)
        self.mixed, self.rows = nn.ModuleList(), []
        for source in range(nodes + 1):
            targets = range(max(2, source + 1), nodes + 2)
            self.mixed.append(MixedOperation(channels, 2 if reduction and source < 2 else 1, len(targets)))
            self.rows.append([node * (node - 1) // 2 - 1 + source for node in targets])  # node n: n rows, after 2 + ...

    def forward(self, state_0, state_1, gates):  # gates: (14, 7) -> (B, nodes * channels, H, W)
        if isinstance(self.preprocess_0, FactorizedReduce):
            state_0 = F.relu(state_0)
        states = [self.preprocess_0(state_0), self.preprocess_1(state_1)] + [0] * self.nodes
        for source, mixed in enumerate(self.mixed):
            outputs = mixed(states[source], gates[self.rows[source]])
            for node, output in enumerate(outputs, max(2, source + 1)):
                states[node] = states[node] + output
        return torch.cat(states[2:], 1)


class Network(nn.Module):
    """The supernet. in: (B, in_channels, H, W); out: logits (B, num_classes).

    Cells layers // 3 and 2 * layers // 3 are reduction cells: half the size, twice the channels.
    .alphas: [normal, reduce], each a Parameter (14, 7) for 4 nodes; zero, so that every sigmoid is 0.5, or for
    softmax 0.001 * normal, as in DARTS.
    """

    def __init__(self, init_channels=16, num_classes=10, layers=8, nodes=4, in_channels=3, gate="sigmoid"):
        super().__init__()
        self.gate = gate
        edges = nodes * (nodes + 3) // 2
        scale = 1e-3 if gate == "softmax" else 0
        self.alphas = nn.ParameterList([scale * torch.randn(edges, len(PRIMITIVES)) for _ in range(2)])
        channels = init_channels
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 3 * channels, 3, padding=1, bias=False),
                                  BatchNorm(3 * channels))
        widths = [3 * channels, 3 * channels]  # of the two states that enter the next cell
        self.cells, after_reduction = nn.ModuleList(), False
        for layer in range(layers):
            reduction = layer in (layers // 3, 2 * layers // 3)
            channels *= 2 if reduction else 1
            self.cells.append(Cell(nodes, *widths, channels, reduction, after_reduction))
            self.cells[-1].kind = int(reduction)
            widths, after_reduction = [widths[1], nodes * channels], reduction
        self.classifier = nn.Linear(widths[1], num_classes)

    def weights(self):
        """All parameters but the alphas."""
        return [w for name, w in self.named_parameters() if not name.startswith("alphas.")]

    def gates(self):
        """[normal, reduce]: the gates of the alphas, each (edges, operations)."""
        return [fair_darts.gates(alpha, self.gate) for alpha in self.alphas]

    def forward(self, images):
        gates = self.gates()
        states = [channels_last(self.stem(images))] * 2
        for cell in self.cells:
            states = [states[1], cell(*states, gates[cell.kind])]
        return self.classifier(states[1].mean((2, 3)))
