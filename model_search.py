"""The supernet: every operation on every edge, weighted by its gate (Eq. 2 softmax, Eq. 6 sigmoid).

    MixedOperation  one edge:  x -> sum over operations o of gate[o] * o(x)
    Cell            state x_j = sum over the edges (i, j) of its mixed operation of x_i (Eq. 1)
    Network         the stack of cells, normal and reduction, and their alphas
    NetworkS2       the space S2: a chain of mixed operations

This is the mathematics. With `fast`, cells and layers are computed by fast.py: the same
function of the same modules, several times as fast.
"""
import torch
import torch.nn as nn

import fair_darts
import fast
from fair_darts import edge_row
from genotypes import CHAIN, CHOICES, IDENTITY, PRIMITIVES, SAME_SHAPE
from kernels import arranged, compile_forwards, drop_batch_counts, recompute, share_relu
from operations import (OPS, ChainHead, FactorizedReduce, ReLUConvBN, chain_operation,
                        chain_shapes, chain_stem)


class MixedOperation(nn.Module):
    """All candidate operations of one edge of a cell, or of one layer of S2."""

    def __init__(self, operations):
        super().__init__()
        self.operations = nn.ModuleList(operations)

    def forward(self, x, gates):  # (B, C, H, W), (operations,) -> (B, C', H', W')
        return sum(gate * op(x) for gate, op in zip(gates, self.operations))  # Eq. 2, 6


class MixedLayer(MixedOperation):
    """A layer of S2, whose operations are its choices."""

    def __init__(self, operations):
        super().__init__(operations)
        self.grouped = fast.Layer(self.operations)

    def forward(self, x, gates, use_fast):
        return self.grouped(x, gates) if use_fast else super().forward(x, gates)


def candidate(name, channels, stride, skip):
    """An operation as the supernet has it: batch norm not affine, and one after pooling, too."""
    op = OPS[name](channels, stride, affine=False)
    if isinstance(op, nn.Identity):
        return skip()
    return nn.Sequential(op, nn.BatchNorm2d(channels, affine=False)) if "pool" in name else op


class Cell(nn.Module):
    """A searched cell: states 0 and 1 are its inputs; each node is the sum of all its edges."""

    def __init__(self, nodes, channels_0, channels_1, channels, reduction, after_reduction,
                 primitives, skip=nn.Identity):
        super().__init__()
        self.nodes, self.reduction = nodes, reduction
        preprocess = FactorizedReduce if after_reduction else ReLUConvBN
        self.preprocess_0 = preprocess(channels_0, channels, affine=False)
        self.preprocess_1 = ReLUConvBN(channels_1, channels, affine=False)
        self.edges = nn.ModuleList()  # in the order of the rows of alpha
        for node in range(2, nodes + 2):
            for source in range(node):
                stride = 2 if reduction and source < 2 else 1
                self.edges.append(MixedOperation(
                    candidate(name, channels, stride, skip) for name in primitives))
        self.grouped = fast.Cell(self.edges, nodes, reduction)

    def forward(self, state_0, state_1, gates, use_fast):
        """(B, C0, H0, W0), (B, C1, H, W), (edges, operations) -> (B, nodes * C, H', W')"""
        states = [self.preprocess_0(state_0), self.preprocess_1(state_1)]
        if use_fast:
            return self.grouped(states, gates)
        for node in range(2, self.nodes + 2):  # Eq. 1
            rows = [edge_row(node, source) for source in range(node)]
            states.append(sum(self.edges[row](x, gates[row]) for row, x in zip(rows, states)))
        return torch.cat(states[2:], 1)


class Network(nn.Module):
    """The supernet. in: (B, in_channels, H, W); out: logits (B, num_classes).

    Cells layers // 3 and 2 * layers // 3 are reduction cells: half the size, twice the
    channels. primitives: names out of operations.OPS.
    .alphas: [normal, reduce], each a Parameter (14, 7) for 4 nodes; zero, so that every
    sigmoid is 0.5, or for softmax 0.001 * normal, as in DARTS.
    .fast: whether cells are computed by groups of edges, see fast.py.
    .recompute: whether cells compute their activations again in the backward pass.
    skip: makes the skip connections of stride 1, see cures.py; shared: see fair_darts.gates.
    """
    parts, present = ("normal", "reduce"), None  # every operation is present

    def __init__(self, init_channels=16, num_classes=10, layers=8, nodes=4, in_channels=3,
                 gate="sigmoid", primitives=PRIMITIVES, fast=True, skip=nn.Identity, shared=()):
        super().__init__()
        self.gate, self.primitives = gate, tuple(primitives)
        self.fast, self.recompute = fast, False
        self.register_buffer("shared", fair_darts.mask_of(shared, primitives), persistent=False)
        edges = nodes * (nodes + 3) // 2
        scale = 1e-3 if gate == "softmax" else 0
        self.alphas = nn.ParameterList(
            scale * torch.randn(edges, len(primitives)) for _ in self.parts)
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
                Cell(nodes, *widths, channels, reduction, after_reduction, primitives, skip))
            widths, after_reduction = [widths[1], nodes * channels], reduction
        self.classifier = nn.Linear(widths[1], num_classes)
        drop_batch_counts(self)

    def weights(self):
        """All parameters but the alphas."""
        modules = self.stem, self.cells, self.classifier
        return [w for module in modules for w in module.parameters()]

    def compute_gates(self):
        """[normal, reduce]: the gates of the alphas, each (edges, operations)."""
        return [fair_darts.gates(alphas, self.gate, shared=self.shared) for alphas in self.alphas]

    def all_gates(self):
        """The N gates that the zero-one loss counts: (N,)"""
        return torch.cat(self.compute_gates()).flatten()

    def forward(self, images, gates=None):
        """gates: [normal, reduce], others than those of the alphas."""
        gates = gates or self.compute_gates()
        states = [share_relu(arranged(self.stem(images)))] * 2
        for cell in self.cells:
            inputs = *states, gates[cell.reduction], self.fast
            output = recompute(cell, *inputs) if self.recompute and self.training else cell(*inputs)
            states = [states[1], share_relu(output)]
        return self.classifier(output.mean((2, 3))).to(images.dtype)  # float32 under autocast, too

    def compile_regions(self, **options):
        for cell in self.cells:
            cell.grouped.compile(**options)

    def genotype(self, threshold=0.85, edges_per_node=2, ops_per_edge=1, gates=None):
        """The Genotype of the gates, or of others, see fair_darts.discretize."""
        return fair_darts.discretize(*(gates or self.compute_gates()), threshold, edges_per_node,
                                     ops_per_edge, self.primitives)

    def discrete_gates(self, genotype):
        """[normal, reduce]: the gates as a genotype has them, 0 and 1."""
        return [fair_darts.discrete_gates(edges, alphas, self.primitives)
                for edges, alphas in zip(genotype, self.alphas)]

    def kept_edges(self, edges_per_node=2):
        """[normal, reduce]: 1 for each edge among the best of its node: (edges, 1)"""
        return [fair_darts.kept_edges(g, edges_per_node, self.primitives)
                for g in self.compute_gates()]

    def dominant_operations(self):
        """{cell: names of its dominant operations} (Fig. 1, 2)"""
        return {cell: [edge.op for edge in fair_darts.dominant_operations(g, self.primitives)]
                for cell, g in zip(self.parts, self.compute_gates())}


class NetworkS2(nn.Module):
    """The supernet of the space S2. in: (B, in_channels, H, W); out: logits (B, num_classes).

    .alphas: [one Parameter (19, 7)]; .present: (19, 7) of bool, which choices there are. The
    alphas of the others, where a layer has no identity, take no part in anything.
    image_size: see operations.chain_strides; otherwise as Network.
    """
    parts, primitives = ("layers",), CHOICES

    def __init__(self, num_classes=1000, in_channels=3, gate="sigmoid", width=1.0, image_size=224,
                 fast=True, skip=nn.Identity, shared=()):
        super().__init__()
        self.gate, self.fast, self.recompute = gate, fast, False
        self.register_buffer("shared", fair_darts.mask_of(shared, CHOICES), persistent=False)
        present = torch.ones(len(CHAIN), len(CHOICES), dtype=torch.bool)
        present[:, IDENTITY] = torch.tensor(SAME_SHAPE)
        self.register_buffer("present", present)
        scale = 1e-3 if gate == "softmax" else 0
        self.alphas = nn.ParameterList([scale * torch.randn(present.shape) * present])
        first, shapes = chain_shapes(image_size, width)
        self.stem = chain_stem(in_channels, width, first)
        self.layers = nn.ModuleList(
            MixedLayer(skip() if name == "skip_connect" else
                       chain_operation(name, *shape, affine=False)
                       for name in CHOICES if shape[3] or name != "skip_connect")
            for shape in shapes)  # (in_channels, out_channels, stride, same_shape)
        self.head = ChainHead(width, num_classes, dropout=0)
        drop_batch_counts(self)

    def weights(self):
        """All parameters but the alphas."""
        modules = self.stem, self.layers, self.head
        return [w for module in modules for w in module.parameters()]

    def compute_gates(self):
        """[the gates of the alphas, (19, 7); 0 where there is no such choice]"""
        return [fair_darts.gates(self.alphas[0], self.gate, self.present, self.shared)]

    def all_gates(self):
        """The N gates that the zero-one loss counts: (N,)"""
        return self.compute_gates()[0][self.present]

    def forward(self, images, gates=None):
        """gates: [(19, 7)], others than those of the alphas."""
        [gates] = gates or self.compute_gates()
        x = arranged(self.stem(images))
        for layer, row in zip(self.layers, gates):
            inputs = x, row, self.fast
            x = recompute(layer, *inputs) if self.recompute and self.training else layer(*inputs)
        return self.head(x).to(images.dtype)  # float32 under autocast, too

    def compile_regions(self, **options):
        compile_forwards(self.layers, **options)

    def genotype(self, threshold=0.85, ops_per_layer=1, gates=None):
        """The ChainGenotype of the gates, or of others, see fair_darts.discretize_chain."""
        [gates] = gates or self.compute_gates()
        return fair_darts.discretize_chain(gates, threshold, ops_per_layer)

    def discrete_gates(self, genotype):
        """[the gates as a genotype has them, 0 and 1]"""
        return [fair_darts.discrete_chain_gates(genotype).to(self.alphas[0])]

    def kept_edges(self, edges_per_node=1):
        """[(layers, 1) of ones: a chain has no edges to choose from]"""
        return [torch.ones_like(self.alphas[0][:, :1])]

    def dominant_operations(self):
        """{"layers": the dominant choice of each layer}"""
        return {"layers": fair_darts.dominant_choices(self.compute_gates()[0])}
