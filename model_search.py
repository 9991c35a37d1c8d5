"""The supernet: all operations on every edge, gated by softmax or sigmoid (Eq. 2, 6).

    MixedOperation  one edge:  x -> sum over operations o of gate[o] * o(x)
    Cell            x_j = sum over edges (i, j) of its mixed operation of x_i (Eq. 1)
    Network         the stack of cells, normal and reduction, and their alphas

The scripts compute the same by speed.accelerate; with --plain as it stands here.
"""
import torch
import torch.nn as nn

import fair_darts
from genotypes import PRIMITIVES
from operations import OPS, FactorizedReduce, ReLUConvBN


class MixedOperation(nn.Module):
    """All candidate operations of one edge."""

    def __init__(self, operations):
        super().__init__()
        self.operations = nn.ModuleList(operations)

    def forward(self, x, gates):  # (B, C, H, W), (operations,) -> (B, C', H', W')
        return sum(gate * op(x) for gate, op in zip(gates, self.operations))  # Eq. 2, 6


def candidate(name, channels, stride):
    """An operation in the supernet: batch norm not affine, and one after pooling."""
    op = OPS[name](channels, stride, affine=False)
    return nn.Sequential(op, nn.BatchNorm2d(channels, affine=False)) if "pool" in name else op


class Cell(nn.Module):
    """A searched cell: states 0 and 1 are inputs, each node the sum of its edges."""

    def __init__(self, nodes, channels_0, channels_1, channels, reduction, after_reduction,
                 primitives):
        super().__init__()
        self.nodes, self.reduction = nodes, reduction
        preprocess = FactorizedReduce if after_reduction else ReLUConvBN  # state 0 is larger
        self.preprocess_0 = preprocess(channels_0, channels, affine=False)
        self.preprocess_1 = ReLUConvBN(channels_1, channels, affine=False)
        self.edges = nn.ModuleList()  # in the order of the rows of alpha
        for node in range(2, nodes + 2):
            for source in range(node):
                stride = 2 if reduction and source < 2 else 1
                self.edges.append(MixedOperation(
                    candidate(name, channels, stride) for name in primitives))

    def forward(self, state_0, state_1, gates):
        """(B, C0, H0, W0), (B, C1, H, W), (edges, ops) -> (B, nodes * C, H', W')"""
        states = [self.preprocess_0(state_0), self.preprocess_1(state_1)]
        for node in range(2, self.nodes + 2):  # Eq. 1
            rows = [fair_darts.edge_row(node, source) for source in range(node)]
            states.append(sum(self.edges[row](x, gates[row]) for row, x in zip(rows, states)))
        return torch.cat(states[2:], 1)


class Supernet(nn.Module):
    """What the supernets of all spaces have: .gate, .primitives and .alphas, a
    Parameter (rows, operations) for each of .parts."""

    def start(self, gate, primitives, rows):
        """Alphas: 0, so that every sigmoid is 0.5, or for softmax 0.001 * normal, as in
        DARTS; drawn for both, so that the weights are the same."""
        self.gate, self.primitives = gate, tuple(primitives)
        scale = 1e-3 if gate == "softmax" else 0
        self.alphas = nn.ParameterList(
            scale * torch.randn(rows, len(primitives)) for _ in self.parts)

    def weights(self):
        """All parameters but the alphas."""
        return [w for name, w in self.named_parameters() if not name.startswith("alphas.")]

    def gates_of(self, alphas):
        return self.gate(alphas) if callable(self.gate) else fair_darts.gates(alphas, self.gate)

    def compute_gates(self):
        """The gates of the alphas: a matrix (rows, operations) for each of .parts."""
        return [self.gates_of(alphas) for alphas in self.alphas]

    def all_gates(self):
        """The N gates that the zero-one loss counts: (N,)"""
        return torch.cat(self.compute_gates()).flatten()


class Network(Supernet):
    """The supernet. in: (B, in_channels, H, W); out: logits (B, num_classes).

    Cells layers // 3 and 2 * layers // 3 are reduction cells: half the size, twice the
    channels. primitives: names out of operations.OPS. gate: "sigmoid", "softmax", or a
    function from alphas to gates. .alphas: [normal, reduce], each (14, 7) for 4 nodes.
    """
    parts = "normal", "reduce"

    def __init__(self, init_channels=16, num_classes=10, layers=8, nodes=4, in_channels=3,
                 gate="sigmoid", primitives=PRIMITIVES):
        super().__init__()
        self.start(gate, primitives, nodes * (nodes + 3) // 2)  # 2 + 3 + ... edges of a cell
        channels = init_channels
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 3 * channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(3 * channels))
        widths = [3 * channels, 3 * channels]  # of the two states that enter the next cell
        self.cells, after_reduction = nn.ModuleList(), False
        for layer in range(layers):
            reduction = layer in (layers // 3, 2 * layers // 3)
            channels *= 2 if reduction else 1
            self.cells.append(
                Cell(nodes, *widths, channels, reduction, after_reduction, primitives))
            widths, after_reduction = [widths[1], nodes * channels], reduction
        self.classifier = nn.Linear(widths[1], num_classes)

    def forward(self, images, gates=None):
        """gates: [normal, reduce], others than those of the alphas."""
        gates = gates or self.compute_gates()
        states = [self.stem(images)] * 2
        for cell in self.cells:
            states = [states[1], cell(*states, gates[cell.reduction])]  # False: normal
        return self.classifier(states[1].mean((2, 3)))

    def genotype(self, threshold=0.85):
        """What its gates stand for (Sec. 4.2); softmax's with threshold=0."""
        return fair_darts.discretize(*self.compute_gates(), threshold, primitives=self.primitives)
