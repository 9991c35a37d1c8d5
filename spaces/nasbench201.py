"""The space of NAS-Bench-201 (Dong & Yang, ICLR 2020), whose answers are known: each of
its 15,625 cells has been trained, so a genotype's accuracy is looked up. The figures
here are not those of its authors but of AnalogNAS-Bench, which trained all cells again,
see nasbench201_cifar10.md.

A cell has four states: 0 is its input, 3 its output. Each of its six edges applies one
operation to the state that it leaves; a state is the sum of the edges that enter it. An
edge keeps one operation, or none. All cells are normal cells; residual blocks reduce
the size.
"""
import functools
import os
import re
from collections import namedtuple

import numpy as np
import torch
import torch.nn as nn

from genotypes import Edge
from model_search import MixedOperation, Supernet
from spaces import s1
from spaces.space import Space
from spaces.texts import GenotypeError, checked_edges, short

EDGES = [(node, source) for node in (1, 2, 3) for source in range(node)]  # the rows of gates


class CellGenotype(namedtuple("CellGenotype", "cell")):
    """cell: a list of Edge, in the order of EDGES; what is not named is none. str() is
    the benchmark's text,
    |nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"""

    def names(self):
        """The operation of each of EDGES, or none."""
        ops = {(node, source): op for op, node, source in self.cell}
        return [ops.get(place, "none") for place in EDGES]

    def __str__(self):
        return "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*self.names())


class Zero(nn.Module):
    """none."""

    def forward(self, x):
        return torch.zeros_like(x)


def nor_conv(channels, kernel, affine, in_channels=None, stride=1):
    """ReLU, convolution, BN."""
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(in_channels or channels, channels, kernel, stride, kernel // 2,
                             bias=False), nn.BatchNorm2d(channels, affine=affine))


OPS = {
    "avg_pool_3x3": lambda channels, affine: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "skip_connect": lambda channels, affine: nn.Identity(),
    "nor_conv_1x1": lambda channels, affine: nor_conv(channels, 1, affine),
    "nor_conv_3x3": lambda channels, affine: nor_conv(channels, 3, affine),
    "none": lambda channels, affine: Zero()}


class SearchedCell(nn.Module):
    """All operations on all edges."""

    def __init__(self, channels, primitives):
        super().__init__()
        self.edges = nn.ModuleList(
            MixedOperation(OPS[name](channels, affine=False) for name in primitives)
            for _ in EDGES)

    def forward(self, x, gates):  # (B, C, H, W), (edges, operations) -> (B, C, H, W)
        states = [x]
        for node in (1, 2, 3):
            rows = [EDGES.index((node, source)) for source in range(node)]
            states.append(sum(self.edges[row](state, gates[row])
                              for row, state in zip(rows, states)))
        return states[3]


class DerivedCell(nn.Module):
    """The operations of a genotype. A state that no edge enters is 0."""

    def __init__(self, edges, channels):
        super().__init__()
        self.edges = edges
        self.operations = nn.ModuleList(OPS[edge.op](channels, affine=True) for edge in edges)

    def forward(self, x):  # (B, C, H, W) -> the same
        states = [x] + [torch.zeros_like(x)] * 3
        for edge, op in zip(self.edges, self.operations):  # a state's edges before those it feeds
            states[edge.node] = states[edge.node] + op(states[edge.source])
        return states[3]


class ResidualBlock(nn.Module):
    """Halves height and width, rounded up, and doubles the channels."""

    def __init__(self, channels):
        super().__init__()
        self.convolutions = nn.Sequential(
            nor_conv(2 * channels, 3, True, channels, stride=2), nor_conv(2 * channels, 3, True))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True),
                                      nn.Conv2d(channels, 2 * channels, 1, bias=False))

    def forward(self, x):  # (B, C, H, W) -> (B, 2 * C, H / 2, W / 2)
        return self.shortcut(x) + self.convolutions(x)


class Stages(nn.Module):
    """A stem, three stages of cells with a residual block between them, a classifier.

    make: from a number of channels to a cell; stage_cells: how many in a stage.
    """

    def __init__(self, make, channels, stage_cells, num_classes, in_channels):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
                                  nn.BatchNorm2d(channels))
        self.cells = nn.ModuleList()
        for stage in range(3):
            if stage > 0:
                self.cells.append(ResidualBlock(channels))
                channels *= 2
            self.cells.extend(make(channels) for _ in range(stage_cells))
        self.last = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = nn.Linear(channels, num_classes)

    def logits(self, images, *gates):
        """gates: those of the cells, if these are searched."""
        x = self.stem(images)
        for part in self.cells:
            x = part(x) if isinstance(part, ResidualBlock) else part(x, *gates)
        return self.classifier(self.last(x).mean((2, 3)))


class SupernetNB201(Stages, Supernet):
    """The supernet. in: (B, in_channels, H, W); out: logits (B, num_classes).

    .alphas: [one Parameter (6, operations)]; otherwise as model_search.Network.
    """
    parts = ("normal",)

    def __init__(self, init_channels, stage_cells, num_classes, in_channels, gate, primitives):
        super().__init__(functools.partial(SearchedCell, primitives=primitives), init_channels,
                         stage_cells, num_classes, in_channels)
        self.start(gate, primitives, len(EDGES))

    def forward(self, images, gates=None):
        """gates: [(6, operations)], others than those of the alphas."""
        return self.logits(images, *(gates or self.compute_gates()))


class NetworkNB201(Stages):
    """The network of a CellGenotype. in: (B, in_channels, H, W); out: logits (B,
    num_classes), and None, there being no auxiliary head."""

    def __init__(self, genotype, init_channels=16, stage_cells=5, num_classes=10, in_channels=3):
        super().__init__(functools.partial(DerivedCell, genotype.cell), init_channels,
                         stage_cells, num_classes, in_channels)
        self.auxiliary = self.drop_path_prob = None  # paths are never dropped

    def forward(self, images):
        return self.logits(images), None


def discretize_edges(gates, threshold=0.85, primitives=tuple(OPS)):
    """The CellGenotype of the gates (6, operations).

    Each edge keeps its best operation, the first of equals, if its gate is at least
    `threshold`; threshold=0 is argmax (Eq. 3). A cell through which nothing passes
    keeps nothing.
    """
    edges = []
    for (node, source), values in zip(EDGES, torch.as_tensor(gates).tolist()):
        best = values.index(max(values))
        if values[best] >= threshold and primitives[best] != "none":
            edges.append(Edge(primitives[best], node, source))
    return CellGenotype(edges if is_connected(edges) else [])


def is_connected(edges):
    """Whether some path leads from the input to the output."""
    reached = {0}
    for edge in edges:  # in the order of the nodes that they enter
        reached |= {edge.node} if edge.source in reached else set()
    return 3 in reached


@functools.cache
def accuracies():
    """Test accuracies on CIFAR-10 in percent, an axis for each edge, along it OPS: (5,
    5, 5, 5, 5, 5). See nasbench201_cifar10.md."""
    path = os.path.join(os.path.dirname(__file__), "nasbench201_cifar10.npz")
    with np.load(path, allow_pickle=False) as file:
        return file["accuracy"] / 100


class NB201(s1.S1):
    PARTS, GENOTYPE, PUBLISHED, CANDIDATES = ("normal",), CellGenotype, globals(), OPS
    SEARCH_FLAGS = {"primitives", "init_channels", "stage_cells"}
    EVAL_FLAGS = {"init_channels", "stage_cells"}
    # of the flags that other spaces have as well
    SEARCH_DEFAULTS = {"primitives": ",".join(op for op in OPS if op != "none")}
    EVAL_DEFAULTS = {"init_channels": 16}
    dominant, kept_edges = Space.dominant, Space.kept_edges

    def supernet(self, s, num_classes, shape, gate):
        return SupernetNB201(s.init_channels, s.stage_cells, num_classes, shape[0], gate,
                             self.primitives(s))

    def derived(self, s, genotype, num_classes, shape):
        return NetworkNB201(genotype, s.init_channels, s.stage_cells, num_classes, shape[0])

    def genotype(self, s, gates):
        return discretize_edges(gates[0], s.threshold, self.primitives(s))

    def edges(self, count):
        return EDGES

    def checked(self, fields):
        edges = text = fields["cell"]
        if isinstance(text, str):  # of the benchmark
            edges = [Edge(op, *edge) for op, edge in zip(re.findall(r"\|([^|~+]*)~", text), EDGES)]
            if str(CellGenotype(edges)) != text:
                raise GenotypeError(f"cannot read {short(text)}: expected {CellGenotype([])}, with "
                                    f"operations out of {', '.join(OPS)}")
        edges = sorted(checked_edges("cell", edges, OPS, range(1, 4)), key=lambda edge: edge[1:])
        for edge, following in zip(edges, edges[1:]):
            if edge[1:] == following[1:]:
                raise GenotypeError(f"cell, edge {tuple(edge)}: the edge has two operations")
        genotype = CellGenotype([edge for edge in edges if edge.op != "none"])
        if not is_connected(genotype.cell):
            raise GenotypeError(f"nothing passes through the cell {genotype} to its output")
        return genotype

    def known(self, genotype):
        """Its accuracy and its rank in the benchmark (1 is the best), and its skips."""
        names = genotype.names()
        accuracy = accuracies()[tuple([*OPS].index(name) for name in names)]
        return {"benchmark_accuracy": float(accuracy),
                "benchmark_rank": 1 + int((accuracies() > accuracy).sum()),
                "genotype_skips": names.count("skip_connect")}
