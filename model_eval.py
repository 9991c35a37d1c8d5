"""The networks that genotypes stand for, to be trained from scratch (DARTS's evaluation), and
`load`, to use what was trained."""
import argparse
import os
from functools import reduce

import torch
import torch.nn as nn
import torch.nn.functional as F

import genotypes
from flags import UserError, check_settings
from folders import read_sealed
from kernels import (ReLU, arranged, compile_forwards, dense_gradient, drop_batch_counts, recompute,
                     share_relu)
from operations import (OPS, ChainHead, FactorizedReduce, ReLUConvBN, chain_operation, chain_shapes,
                        chain_stem, drop_path)
from pictures import LARGE

# What a file of weights holds: where they were tested, and what pictures they are for
WEIGHTS = ("network", "epoch", "accuracy", "classes", "mean", "std", "shape")


class Cell(nn.Module):
    """A derived cell: a node is the sum of its edges; the output concatenates the nodes that
    are entered."""

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

    def forward(self, state_0, state_1, drop_path_prob, drop_path_on="node"):
        """-> (B, out_channels, H, W)"""
        states = {0: self.preprocess_0(state_0), 1: self.preprocess_1(state_1)}
        drop = self.training and drop_path_prob > 0
        for node in self.nodes:
            inputs = []
            for edge, op in zip(self.edges, self.operations):
                if edge.node == node:
                    y = op(share_relu(states[edge.source]))
                    if drop and drop_path_on == "edge" and not isinstance(op, nn.Identity):
                        y = drop_path(y, drop_path_prob)
                    inputs.append(y)
            states[node] = reduce(torch.add, inputs)
            if drop and drop_path_on == "node":
                states[node] = drop_path(states[node], drop_path_prob)
        return torch.cat([dense_gradient(states[node]) for node in self.nodes], 1)


class AuxiliaryHead(nn.Module):
    """A second classifier at two thirds of the depth, for training only.

    pool_stride: 3 for the 8x8 features of CIFAR, 2 for the 7x7 ones of ImageNet, each pooled to
    2x2; features of any other size are pooled to 2x2 adaptively.
    """

    def __init__(self, channels, num_classes, pool_stride, last_bn):
        super().__init__()
        self.pool_stride, self.relu = pool_stride, ReLU()
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
    """The stack of cells that NetworkCIFAR and NetworkImageNet share, after their stems.

    stem_1: halves what stem_0 made, or None. head: None, or the arguments of AuxiliaryHead
    after its number of channels. .drop_path_prob: share of paths dropped while training, each
    .drop_path_on "node", the sum of a node's edges, as published, or "edge", as in DARTS, where
    identities are not dropped.
    .recompute: whether cells compute their activations again in the backward pass.
    """

    def __init__(self, genotype, stem_0, stem_1, stem_channels, init_channels, num_classes,
                 layers, head):
        super().__init__()
        self.drop_path_prob, self.drop_path_on, self.recompute = 0.0, "node", False
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
        drop_batch_counts(self)

    def compile_regions(self, **options):
        compile_forwards(self.cells, **options)

    def forward(self, images):
        """(B, in_channels, H, W) -> logits (B, num_classes), and the auxiliary head's while
        training, or None."""
        states = [share_relu(arranged(self.stem_0(images)))] * 2  # shared by two cells
        if self.stem_1 is not None:
            states[1] = share_relu(self.stem_1(states[0]))
        auxiliary_logits = None
        for layer, cell in enumerate(self.cells):
            inputs = *states, self.drop_path_prob, self.drop_path_on
            output = recompute(cell, *inputs) if self.recompute and self.training else cell(*inputs)
            states = [states[1], share_relu(output)]
            if layer == self.auxiliary_layer and self.auxiliary is not None and self.training:
                auxiliary_logits = self.auxiliary(output).to(images.dtype)
        logits = self.classifier(output.mean((2, 3)))
        return logits.to(images.dtype), auxiliary_logits  # float32 under autocast, too


class NetworkCIFAR(CellNetwork):
    """For small pictures: the size is halved twice, in cells layers // 3 and 2 * layers // 3."""

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
            nn.Sequential(ReLU(), *conv_bn(full, full)), full, init_channels, num_classes,
            layers, (num_classes, 2, False) if auxiliary else None)


class ChainLayer(nn.Module):
    """A layer of S2: the sum of the choices that its genotype names."""

    def __init__(self, operations):
        super().__init__()
        self.operations = nn.ModuleList(operations)

    def forward(self, x):
        return reduce(torch.add, [op(x) for op in self.operations])


class NetworkS2(nn.Module):
    """The network of a ChainGenotype. in: (B, in_channels, H, W); out: logits (B, num_classes),
    and None, there being no auxiliary head.

    width: factor of all channels; squeeze: squeeze-and-excitation in every block; h_swish: in
    place of ReLU6; image_size: see operations.chain_strides.
    """

    def __init__(self, genotype, num_classes=1000, dropout=0.2, width=1.0, squeeze=False,
                 h_swish=False, in_channels=3, image_size=224):
        super().__init__()
        self.auxiliary, self.recompute = None, False
        self.drop_path_prob = 0.0  # without effect: paths of a chain are never dropped
        activation = nn.Hardswish if h_swish else nn.ReLU6
        first, shapes = chain_shapes(image_size, width)
        self.stem = chain_stem(in_channels, width, first, activation)
        self.layers = nn.ModuleList(
            ChainLayer(chain_operation(name, *shape, activation=activation, squeeze=squeeze)
                       for name in names) for names, shape in zip(genotype.layers, shapes))
        self.head = ChainHead(width, num_classes, dropout, activation)
        drop_batch_counts(self)

    def compile_regions(self, **options):
        compile_forwards(self.layers, **options)

    def forward(self, images):
        x = arranged(self.stem(images))
        for layer in self.layers:
            x = recompute(layer, x) if self.recompute and self.training else layer(x)
        return self.head(x).to(images.dtype), None


# ---------------------------------------------------------------- trained networks

def build(s, num_classes, shape):
    """The network of the settings `s` of train_eval.py for pictures of `shape` (C, H, W); of
    cells, for more than 64 pixels the one that DARTS has for ImageNet."""
    genotype, (channels, size, _) = genotypes.get(s.arch), shape
    if isinstance(genotype, genotypes.ChainGenotype):
        return NetworkS2(genotype, num_classes, s.dropout, s.width, s.squeeze, s.h_swish, channels,
                         size)
    if size > LARGE:
        return NetworkImageNet(genotype, s.init_channels, num_classes, s.layers, s.auxiliary)
    return NetworkCIFAR(genotype, s.init_channels, num_classes, s.layers, s.auxiliary, channels)


class Classifier(nn.Module):
    """A trained network, in use. in: pictures (B, C, H, W), uint8 from 0 to 255 or float from 0
    to 1; out: probabilities (B, classes). .classes: their names; .shape: (C, H, W) of training.
    """

    def __init__(self, network, classes, mean, std, shape):
        super().__init__()
        self.network, self.classes, self.shape = network, classes, shape
        self.register_buffer("mean", mean[:, None, None])  # of values from 0 to 255
        self.register_buffer("std", std[:, None, None])

    def forward(self, pictures):
        values = pictures.float() * (1 if pictures.dtype == torch.uint8 else 255)
        logits, _ = self.network((values - self.mean) / self.std)
        return logits.softmax(1)


def load(path):
    """The Classifier in a file of weights, on the CPU, in eval mode, without its auxiliary head.

    path: RUN/weights.pt, of the last epoch, RUN/best.pt, of the one that was best on the test
    set, or RUN, which is the former. Raises UserError.
    """
    state, s = read_weights(path)
    s.auxiliary = False
    weights = state["network"]  # not a copy: it holds the versions of its modules, too
    for name in [name for name in weights if name.startswith("auxiliary.")]:
        del weights[name]
    with torch.device("meta"):  # no memory before the weights are seen to fit
        network = build(s, len(state["classes"]), state["shape"])
    try:
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read: its weights are not of its architecture: "
                        f"{' '.join(str(error).split())[:200]}") from None
    classifier = Classifier(network, *(state[key] for key in ("classes", "mean", "std", "shape")))
    return classifier.requires_grad_(False).eval()


def read_weights(path):
    """What train_eval.py has written to such a path, and its settings. Raises UserError."""
    from train_eval import flags  # not at the top, since it imports this file
    if os.path.isdir(path):
        path = os.path.join(path, "weights.pt")
    try:
        state = read_sealed(path, "train_eval", WEIGHTS)
    except FileNotFoundError:
        raise UserError(f"there is no file {path!r}: give the folder of a training that has done "
                        "an epoch, or its weights.pt or best.pt") from None
    network, classes, shape = (state[key] for key in ("network", "classes", "shape"))
    sound = (
        isinstance(network, dict) and all(type(name) is str for name in network)
        and all(map(is_plain, network.values()))
        and isinstance(classes, list) and classes and all(type(name) is str for name in classes)
        and isinstance(shape, list) and [*map(type, shape)] == [int] * 3
        and shape[0] in (1, 3) and 8 <= shape[1] == shape[2] <= 10**4
        and all(is_plain(state[key]) and state[key].shape == (shape[0],) for key in ("mean", "std"))
        and (state["std"] > 0).all() and type(state["epoch"]) is int
        and type(state["accuracy"]) is float and 0 <= state["accuracy"] <= 100)
    if not sound:
        raise UserError(f"{path} cannot be read: what it holds are no weights of train_eval.py")
    s = argparse.Namespace(**check_settings(state["settings"], path, flags()))
    try:
        genotypes.get(s.arch)
    except genotypes.GenotypeError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return state, s


def is_plain(value):
    """Whether it is a dense tensor of finite float32 numbers."""
    return (torch.is_tensor(value) and value.layout == torch.strided
            and value.dtype == torch.float32 and bool(value.isfinite().all()))
