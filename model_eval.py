"""The networks that genotypes stand for, trained from scratch (DARTS's evaluation)."""
import torch
import torch.nn as nn
import torch.nn.functional as F

from operations import OPS, FactorizedReduce, ReLUConvBN, drop_path


class Cell(nn.Module):
    """A derived cell: a node is the sum of its edges; the output concatenates the nodes
    that are entered."""

    def __init__(self, edges, channels_0, channels_1, channels, reduction, after_reduction):
        super().__init__()
        preprocess = FactorizedReduce if after_reduction else ReLUConvBN
        self.preprocess_0 = preprocess(channels_0, channels)
        self.preprocess_1 = ReLUConvBN(channels_1, channels)
        self.edges = sorted(edges, key=lambda edge: edge.node)
        self.operations = nn.ModuleList(
            OPS[edge.op](channels, 2 if reduction and edge.source < 2 else 1, affine=True)
            for edge in self.edges)
        self.nodes = sorted({edge.node for edge in edges})
        self.out_channels = len(self.nodes) * channels

    def forward(self, state_0, state_1, drop_path_prob=0.0, drop_path_on="node"):
        """-> (B, out_channels, H, W)"""
        states = {0: self.preprocess_0(state_0), 1: self.preprocess_1(state_1)}
        for node in self.nodes:
            states[node] = self.sum_of_edges(node, states, drop_path_prob, drop_path_on)
        return torch.cat([states[node] for node in self.nodes], 1)

    def sum_of_edges(self, node, states, drop_path_prob, drop_path_on):
        """What enters a node: {state: (B, C, H', W')} -> (B, C, H, W)"""
        terms, drop = [], self.training and drop_path_prob > 0
        for edge, op in zip(self.edges, self.operations):
            if edge.node == node:
                y = op(states[edge.source])
                if drop and drop_path_on == "edge" and not isinstance(op, nn.Identity):
                    y = drop_path(y, drop_path_prob)
                terms.append(y)
        total = sum(terms[1:], terms[0])
        if drop and drop_path_on == "node":
            total = drop_path(total, drop_path_prob)
        return total


class AuxiliaryHead(nn.Module):
    """A second classifier at two thirds of the depth, for training only.

    pool_stride: 3 for the 8x8 features of CIFAR, 2 for the 7x7 ones of ImageNet, each
    pooled to 2x2; features of any other size are pooled to 2x2 adaptively. last_bn: not
    on ImageNet, as in DARTS, which left it out by mistake.
    """

    def __init__(self, channels, num_classes, pool_stride, last_bn):
        super().__init__()
        self.pool_stride, self.relu = pool_stride, nn.ReLU()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False), nn.BatchNorm2d(768) if last_bn else nn.Identity(),
            nn.ReLU())
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x):  # (B, C, H, W) -> (B, num_classes)
        x = self.relu(x)
        if x.shape[2] == x.shape[3] == 5 + self.pool_stride:
            x = F.avg_pool2d(x, 5, self.pool_stride)
        else:
            x = F.adaptive_avg_pool2d(x, 2)
        return self.classifier(self.features(x).flatten(1))


class CellNetwork(nn.Module):
    """The cells that NetworkCIFAR and NetworkImageNet share, after their stems.

    stem_1: halves what stem_0 made, or None. head: None, or the arguments of
    AuxiliaryHead after its number of channels. .drop_path_prob: share of paths dropped
    while training. .drop_path_on: what a path is, "node", the sum of a node's edges, as
    published, or "edge", as in DARTS, where identities are not dropped.
    """

    def __init__(self, genotype, stem_0, stem_1, stem_channels, init_channels, num_classes,
                 layers, head):
        super().__init__()
        self.drop_path_prob, self.drop_path_on = 0.0, "node"
        self.stem_0, self.stem_1 = stem_0, stem_1
        channels, widths, after_reduction = init_channels, [stem_channels] * 2, stem_1 is not None
        self.cells, self.auxiliary, self.auxiliary_layer = nn.ModuleList(), None, 2 * layers // 3
        for layer in range(layers):
            reduction = layer in (layers // 3, 2 * layers // 3)
            channels *= 2 if reduction else 1
            edges = genotype.reduce if reduction else genotype.normal
            self.cells.append(Cell(edges, *widths, channels, reduction, after_reduction))
            widths, after_reduction = [widths[1], self.cells[-1].out_channels], reduction
            if layer == self.auxiliary_layer and head is not None:
                self.auxiliary = AuxiliaryHead(widths[1], *head)
        self.classifier = nn.Linear(widths[1], num_classes)

    def forward(self, images):
        """(B, in_channels, H, W) -> logits (B, num_classes), and the auxiliary head's
        while training, or None."""
        states, auxiliary_logits = [self.stem_0(images)] * 2, None
        if self.stem_1 is not None:
            states[1] = self.stem_1(states[0])
        for layer, cell in enumerate(self.cells):
            states = [states[1], cell(*states, self.drop_path_prob, self.drop_path_on)]
            if layer == self.auxiliary_layer and self.auxiliary is not None and self.training:
                auxiliary_logits = self.auxiliary(states[1])
        return self.classifier(states[1].mean((2, 3))), auxiliary_logits


class NetworkCIFAR(CellNetwork):
    """For small pictures: halved twice, in cells layers // 3 and 2 * layers // 3."""

    def __init__(self, genotype, init_channels=36, num_classes=10, layers=20, auxiliary=True,
                 in_channels=3):
        stem = nn.Sequential(nn.Conv2d(in_channels, 3 * init_channels, 3, padding=1, bias=False),
                             nn.BatchNorm2d(3 * init_channels))
        super().__init__(genotype, stem, None, 3 * init_channels, init_channels, num_classes,
                         layers, (num_classes, 3, True) if auxiliary else None)


class NetworkImageNet(CellNetwork):
    """For pictures of 224x224: the stem brings them to 28x28, the cells to 7x7."""

    def __init__(self, genotype, init_channels=48, num_classes=1000, layers=14, auxiliary=True):
        def conv_bn(inputs, outputs):
            return (nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(outputs))

        half, full = init_channels // 2, init_channels
        super().__init__(
            genotype, nn.Sequential(*conv_bn(3, half), nn.ReLU(), *conv_bn(half, full)),
            nn.Sequential(nn.ReLU(), *conv_bn(full, full)), full, init_channels, num_classes,
            layers, (num_classes, 2, False) if auxiliary else None)
