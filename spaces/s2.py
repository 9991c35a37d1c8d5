"""The space S2 (Sec. 4.1): a chain of 19 layers in the manner of MobileNetV2.

Each layer is an inverted bottleneck of expansion 3 or 6 and kernel 3, 5 or 7, or, where
the layer keeps its input's shape, the identity. A genotype names for each layer one of
these CHOICES, or several, whose outputs are added.
"""
import functools
import math
from collections import namedtuple

import torch
import torch.nn as nn
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from model_search import MixedOperation, Supernet
from spaces.space import Space
from spaces.texts import GenotypeError, short

CHOICES = ("mb3_k3", "mb3_k5", "mb3_k7", "mb6_k3", "mb6_k5", "mb6_k7", "skip_connect")
IDENTITY = CHOICES.index("skip_connect")
ChainGenotype = namedtuple("ChainGenotype", "layers")  # a list: for each layer a tuple of names
CHAIN_INPUT = 16  # channels
CHAIN = [  # output channels and stride of each layer
    (32, 2), (32, 1), (40, 2), (40, 1), (40, 1), (40, 1), (80, 2), (80, 1), (80, 1), (80, 1),
    (96, 1), (96, 1), (96, 1), (96, 1), (192, 2), (192, 1), (192, 1), (192, 1), (320, 1)]
# whether a layer keeps its input's shape: then it may be the identity, and blocks add their input
SAME_SHAPE = [stride == 1 and channels == before
              for (channels, stride), (before, _) in zip(CHAIN, [(CHAIN_INPUT, 1), *CHAIN])]
# the choices of each layer
OFFERED = [CHOICES if same_shape else CHOICES[:IDENTITY] for same_shape in SAME_SHAPE]
FairNAS_A = ChainGenotype(layers=[(name,) for name in (
    "mb3_k7 mb3_k3 mb3_k7 mb6_k3 mb6_k7 mb3_k3 mb3_k3 mb6_k7 mb6_k7 mb3_k5 mb6_k3 mb3_k5 mb3_k5 "
    "mb6_k3 mb6_k3 mb6_k7 mb6_k3 mb6_k7 mb6_k5").split()])


class InvertedBottleneck(nn.Module):
    """mbN_kK: 1x1 to N times the channels, BN, activation; depthwise KxK, BN,
    activation; 1x1, BN; plus its input where the layer keeps the shape (`residual`)."""

    def __init__(self, in_channels, out_channels, stride, kernel, expansion, residual,
                 affine=True, activation=nn.ReLU6, squeeze=False):
        super().__init__()
        self.residual, width = residual, expansion * in_channels
        conv = functools.partial(Conv2dNormActivation, activation_layer=activation,
                                 norm_layer=functools.partial(nn.BatchNorm2d, affine=affine))
        self.expand = conv(in_channels, width, 1)
        self.depthwise = conv(width, width, kernel, stride, groups=width)
        self.squeeze = nn.Identity() if not squeeze else SqueezeExcitation(
            width, max(1, width // 4), scale_activation=nn.Hardsigmoid)
        self.project = conv(width, out_channels, 1, activation_layer=None)

    def forward(self, x):  # (B, C, H, W) -> (B, C', H', W')
        y = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


def chain_operation(name, in_channels, out_channels, stride, same_shape, **options):
    """The choice `name` of a layer: mbN_kK, or the identity."""
    if name == "skip_connect":
        return nn.Identity()
    return InvertedBottleneck(in_channels, out_channels, stride, int(name[-1]), int(name[2]),
                              same_shape, **options)


def chain_stem(in_channels, width, stride, activation=nn.ReLU6):
    """The layers before those that are searched."""
    first, last = scaled(32, width), scaled(CHAIN_INPUT, width)
    return nn.Sequential(
        nn.Conv2d(in_channels, first, 3, stride, 1, bias=False), nn.BatchNorm2d(first),
        activation(), nn.Conv2d(first, first, 3, 1, 1, groups=first, bias=False),
        nn.BatchNorm2d(first), activation(),
        nn.Conv2d(first, last, 1, bias=False), nn.BatchNorm2d(last))


class ChainHead(nn.Module):
    """The layers after those that are searched."""

    def __init__(self, width, num_classes, dropout, activation=nn.ReLU6):
        super().__init__()
        features = scaled(1280, width)
        self.features = Conv2dNormActivation(scaled(CHAIN[-1][0], width), features, 1,
                                             activation_layer=activation)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(features, num_classes)

    def forward(self, x):  # (B, C, H, W) -> (B, num_classes)
        return self.classifier(self.dropout(self.features(x).mean((2, 3))))


def scaled(channels, width):
    """`channels` times `width`, rounded to a multiple of 8 and not below 8."""
    return max(8, int(channels * width + 4) // 8 * 8)


def chain_strides(size):
    """The strides of the stem and the layers for pictures of `size` pixels a side. For
    64 or fewer the first become 1, as many as it takes to bring 8x8 or more to the last
    layer."""
    strides = [2] + [stride for _, stride in CHAIN]
    halvings = max(0, int(math.log2(size / 8))) if size <= 64 else 5
    for index in [index for index, stride in enumerate(strides) if stride == 2][:5 - halvings]:
        strides[index] = 1
    return strides


def chain_shapes(size, width):
    """The stem's stride; for layers (in_channels, out_channels, stride, same_shape)."""
    first, *strides = chain_strides(size)
    channels = [scaled(count, width) for count in (CHAIN_INPUT, *(count for count, _ in CHAIN))]
    return first, list(zip(channels, channels[1:], strides, SAME_SHAPE))


class SupernetS2(Supernet):
    """The supernet. in: (B, in_channels, H, W); out: logits (B, num_classes).

    .alphas: [one Parameter (19, 7)]; .present: (19, 7) of bool, which choices there
    are. The alphas of the others, where a layer has no identity, take no part in
    anything.
    width: factor of all channels; image_size: see `chain_strides`; otherwise as
    model_search.Network.
    """
    parts = ("layers",)

    def __init__(self, num_classes=1000, in_channels=3, gate="sigmoid", width=1.0, image_size=224):
        super().__init__()
        present = [name in names for names in OFFERED for name in CHOICES]
        self.register_buffer("present", torch.tensor(present).view(len(CHAIN), -1))
        # the places of those: to index by `present` itself would wait for a GPU
        places = torch.tensor([place for place, there in enumerate(present) if there])
        self.register_buffer("places", places, persistent=False)
        self.start(gate, CHOICES, len(CHAIN))
        self.alphas[0].data *= self.present
        first, shapes = chain_shapes(image_size, width)
        self.stem = chain_stem(in_channels, width, first)
        self.layers = nn.ModuleList(
            MixedOperation(chain_operation(name, *shape, affine=False) for name in names)
            for names, shape in zip(OFFERED, shapes))
        self.head = ChainHead(width, num_classes, dropout=0)

    def compute_gates(self):
        """[the gates of the alphas, (19, 7); 0 where there is no such choice]"""
        return [self.gates_of(self.alphas[0].masked_fill(~self.present, -torch.inf))]

    def all_gates(self):
        """The N gates that the zero-one loss counts: (N,)"""
        return self.compute_gates()[0].flatten().index_select(0, self.places)

    def forward(self, images, gates=None):
        """gates: [(19, 7)], others than those of the alphas."""
        [gates] = gates or self.compute_gates()
        x = self.stem(images)
        for layer, row in zip(self.layers, gates):
            x = layer(x, row)
        return self.head(x)


class ChainLayer(nn.Module):
    """A layer of a derived network: the sum of the choices that its genotype names."""

    def __init__(self, operations):
        super().__init__()
        self.operations = nn.ModuleList(operations)

    def forward(self, x):
        first, *others = [op(x) for op in self.operations]
        return sum(others, first)


class NetworkS2(nn.Module):
    """The network of a ChainGenotype. in: (B, in_channels, H, W); out: logits (B,
    num_classes), and None, there being no auxiliary head.

    width: factor of all channels; squeeze: squeeze-and-excitation in every block;
    h_swish: in place of ReLU6; image_size: see `chain_strides`.
    """

    def __init__(self, genotype, num_classes=1000, dropout=0.2, width=1.0, squeeze=False,
                 h_swish=False, in_channels=3, image_size=224):
        super().__init__()
        self.auxiliary = self.drop_path_prob = None  # paths of a chain are never dropped
        activation = nn.Hardswish if h_swish else nn.ReLU6
        first, shapes = chain_shapes(image_size, width)
        self.stem = chain_stem(in_channels, width, first, activation)
        self.layers = nn.ModuleList(
            ChainLayer(chain_operation(name, *shape, activation=activation, squeeze=squeeze)
                       for name in names) for names, shape in zip(genotype.layers, shapes))
        self.head = ChainHead(width, num_classes, dropout, activation)

    def forward(self, images):
        x = self.stem(images)
        for layer in self.layers:
            x = layer(x)
        return self.head(x), None


def discretize_chain(gates, threshold=0.85, ops_per_layer=1):
    """The ChainGenotype of the gates (layers, choices).

    Each layer keeps the choices whose gate is at least `threshold`, the best
    `ops_per_layer` of them; where there is none, the identity if it is a choice, else
    the best. threshold=0 is argmax (Eq. 3). What has a gate below 0 is no choice.
    """
    layers = []
    for values, names in zip(torch.as_tensor(gates).tolist(), OFFERED):
        choices = [choice for choice in range(len(names)) if values[choice] >= 0]
        order = sorted(choices, key=lambda choice: -values[choice])
        kept = [choice for choice in order[:ops_per_layer] if values[choice] >= threshold]
        kept = kept or [IDENTITY if IDENTITY in choices else order[0]]
        layers.append(tuple(CHOICES[choice] for choice in sorted(kept)))
    return ChainGenotype(layers)


class S2(Space):
    PARTS, GENOTYPE, PUBLISHED = ("layers",), ChainGenotype, globals()
    CANDIDATES = dict.fromkeys(CHOICES)
    SEARCH_FLAGS = {"width", "ops_per_layer"}
    EVAL_FLAGS = {"width", "dropout", "squeeze", "h_swish"}

    def supernet(self, s, num_classes, shape, gate):
        return SupernetS2(num_classes, shape[0], gate, s.width, shape[1])

    def derived(self, s, genotype, num_classes, shape):
        return NetworkS2(genotype, num_classes, s.dropout, s.width, s.squeeze, s.h_swish, shape[0],
                         shape[1])

    def primitives(self, s):
        return list(CHOICES)

    def genotype(self, s, gates):
        return discretize_chain(gates[0], s.threshold, s.ops_per_layer)

    def row_names(self, count):
        return [f"layer {layer}" for layer in range(count)]

    def discrete_gates(self, genotype, gates, primitives):
        return [torch.tensor([[float(name in names) for name in CHOICES]
                              for names in genotype.layers]).to(gates[0])]

    def checked(self, fields):
        layers = fields["layers"]
        count = len(layers) if isinstance(layers, list) else type(layers).__name__
        if count != len(CHAIN):
            raise GenotypeError(f"a chain has {len(CHAIN)} layers, got {count}")
        for layer, (names, choices) in enumerate(zip(layers, OFFERED)):
            known = isinstance(names, (list, tuple)) and all(name in choices for name in names)
            if not known or not 0 < len(names) == len({*names}):
                why = "" if choices == CHOICES else "; no identity, for it changes the shape"
                raise GenotypeError(f"layer {layer}, {short(names)}: expected different ones of "
                                    f"{', '.join(choices)}{why}")
        return ChainGenotype([tuple(names) for names in layers])
