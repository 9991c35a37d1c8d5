"""The spaces: what is published of them; S1 by its interface; S2: its blocks by hand, its shapes,
its discretisation."""
import hashlib
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F

import fair_darts
import genotypes
import model_eval
import train_eval
from spaces import SPACES, s1, s2
from spaces.s2 import ChainGenotype
from speed import accelerate
from test_fair_darts import batch, close, normal

# of the repr of each, taken when it was equal to the published one, but for what genotypes.py says
DIGESTS = {
    "FairDARTS_a": "3a0dfc3c5b71ba1a",
    "FairDARTS_b": "2308130890f01ca6",
    "FairDARTS_c": "504afe1887a9e62f",
    "FairDARTS_d": "38b41e949f2e970b",
    "FairDARTS_e": "d1c2197b78bcd461",
    "FairDARTS_f": "090e035d22058e6d",
    "FairDARTS_g": "79912049ccc90e18",
    "DARTS_V1": "36baa5dd841b7aaa",
    "DARTS_V2": "012db98f2f76d1bd",
    "P_DARTS": "b3ce39265b165bd0",
    "PC_DARTS": "9e43ad9bc8e92e4d",
    "SNAS": "25968c822a593c91",
    "GDAS": "f619fc9a947c7b46",
    "FairNAS_A": "6290258a8e156314"}


def test_published_genotypes_are_as_published():
    assert DIGESTS == {name: hashlib.sha256(repr(genotype).encode()).hexdigest()[:16]
                       for space in SPACES.values() for name, genotype in space.PUBLISHED.items()}


def test_pictures_of_more_than_64_pixels_have_the_network_for_imagenet():
    s = Namespace(init_channels=4, layers=3, auxiliary=False)
    with torch.device("meta"):
        kinds = [type(s1.derived(s, genotypes.FairDARTS_a, 10, (3, size, size)))
                 for size in (63, 64, 65)]
    assert kinds == [model_eval.NetworkCIFAR, model_eval.NetworkCIFAR, model_eval.NetworkImageNet]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_edges_that_are_kept_have_the_best_gates_of_their_node(count):
    gates = torch.rand(9, 7, generator=torch.Generator().manual_seed(0))
    expected = [float(row in sorted(rows, key=lambda row: -max(gates[row]))[:count])
                for rows in ((0, 1), (2, 3, 4), (5, 6, 7, 8)) for row in rows]
    assert s1.kept_edges(gates, count, genotypes.PRIMITIVES).flatten().tolist() == expected


def test_channels_are_scaled_to_the_nearest_multiple_of_8():
    """From the middle up, and not below 8."""
    assert [s2.scaled(channels, 0.5) for channels in (2, 16, 22, 24, 38, 40, 56, 1280)] == [
        8, 8, 8, 16, 16, 24, 32, 640]


@pytest.mark.parametrize("expansion, kernel, residual", [(3, 3, True), (6, 7, False)])
def test_inverted_bottleneck_by_hand(expansion, kernel, residual):
    torch.manual_seed(0)
    block = s2.chain_operation(f"mb{expansion}_k{kernel}", 8, 8, 1, residual).double()
    x, _ = batch(9, channels=8)
    expand, depthwise, project = [w for w in block.parameters() if w.ndim == 4]
    y = normal(F.conv2d(x, expand)).clamp(0, 6)
    y = normal(F.conv2d(y, depthwise, None, 1, kernel // 2, 1, 8 * expansion)).clamp(0, 6)
    y = normal(F.conv2d(y, project))
    assert len(depthwise) == 8 * expansion and depthwise.shape[2] == kernel
    assert close(block(x), y + x if residual else y)


def test_discretize_chain():
    gates = torch.full((19, 7), 0.1)
    chain = s2.discretize_chain(gates)
    assert (chain.layers[0] == ("mb3_k3",)
            and chain.layers[1] == ("skip_connect",))  # no gate at the threshold
    gates[0, 4], gates[1, 2], gates[3, [0, 5, 6]] = 0.7, 0.84, torch.tensor([0.85, 0.95, 0.9])
    chain = s2.discretize_chain(gates)
    assert chain.layers[:4] == [("mb6_k5",), ("skip_connect",), ("mb3_k3",), ("mb6_k7",)]
    assert s2.discretize_chain(gates, ops_per_layer=2).layers[3] == (
        "mb6_k7", "skip_connect")
    assert s2.discretize_chain(gates, ops_per_layer=9).layers[3] == (
        "mb3_k3", "mb6_k7", "skip_connect")
    gates[4, 2] = 0.75
    assert s2.discretize_chain(gates, threshold=0.75).layers[4] == ("mb3_k7",)
    gates[2, 6] = 0.99  # no choice there
    assert s2.discretize_chain(gates, ops_per_layer=9).layers[2] == ("mb3_k3",)
    weights = torch.softmax(torch.randn(19, 7, generator=torch.Generator().manual_seed(0)), 1)
    expected = [(s2.CHOICES[int(row[:7 if same else 6].argmax())],)
                for row, same in zip(weights, s2.SAME_SHAPE)]
    assert s2.discretize_chain(weights, threshold=0).layers == expected
    assert s2.dominant(weights) == [names[0] for names in expected]
    [discrete] = s2.discrete_gates(chain, [gates])
    assert discrete[3].tolist() == [0, 0, 0, 0, 0, 1, 0]


def test_published_chain():
    """FairNAS-A, counted with 1,000 classes at 224x224."""
    network = s2.NetworkS2(s2.FairNAS_A)
    assert train_eval.count(network, (3, 224, 224)) == (4_651_352, 0, 388_122_848)


def test_derived_chain_equals_the_supernet_with_its_gates():
    torch.manual_seed(0)
    supernet = s2.SupernetS2(10, 3, width=0.1, image_size=16).double()
    layers = [(("mb3_k3", "mb6_k7", "skip_connect") if same else ("mb6_k3", "mb3_k5"))
              if index % 3 else ("mb6_k5",)
              for index, same in enumerate(s2.SAME_SHAPE)]
    layers[1] = ("skip_connect",)
    genotype = ChainGenotype(layers)
    network = s2.NetworkS2(genotype, 10, 0, 0.1, image_size=16).double()
    network.stem.load_state_dict(supernet.stem.state_dict())
    network.head.load_state_dict(supernet.head.state_dict())
    for layer, names, searched in zip(network.layers, genotype.layers, supernet.layers):
        for op, name in zip(layer.operations, names):
            other = searched.operations[s2.CHOICES.index(name)]
            op.load_state_dict(other.state_dict(), strict=False)  # without affine batch norm
    images, labels = batch(8, 3)
    gates = s2.discrete_gates(genotype, supernet.compute_gates())
    assert close(network(images)[0], supernet(images, gates))
    accelerate(network, recompute=True)
    F.cross_entropy(network(images)[0], labels).backward()
    assert all(w.grad is not None for w in network.parameters())
    for options in (dict(squeeze=True), dict(h_swish=True),
                    dict(squeeze=True, h_swish=True, dropout=0.5)):
        other = s2.NetworkS2(genotype, 7, width=0.1, in_channels=1, image_size=8, **options)
        logits, auxiliary = other(torch.randn(4, 1, 8, 8))
        assert logits.shape == (4, 7) and auxiliary is None
        assert (any("squeeze" in name for name, _ in other.named_parameters())
                == options.get("squeeze", False))
    images = torch.randn(4, 1, 8, 8)
    assert not torch.equal(other(images)[0], other(images)[0])  # dropout
    other.eval()
    assert torch.equal(other(images)[0], other(images)[0])


def test_absent_choices_count_nowhere():
    network = s2.SupernetS2(10, 1, width=0.1, image_size=8)
    assert (~network.present).sum() == 6 and (network.present[:, :6]).all()
    assert network.all_gates().shape == (127,) and (network.all_gates() == 0.5).all()
    assert (network.compute_gates()[0][~network.present] == 0).all()
    architect = fair_darts.Architect(network, 0.1, w01=10.0)
    with torch.no_grad():
        network.alphas[0][network.present] = torch.linspace(-3, 3, 127)
    images, labels = batch(8, 6, 1)
    gates = network.all_gates().detach()
    _, penalty = architect.step(images.float(), labels)
    assert penalty.item() == pytest.approx(-((gates - 0.5) ** 2).sum().item() / 127,
                                           abs=1e-6)
    assert ((network.alphas[0][~network.present] == 0).all()
            and network.alphas[0][network.present].abs().min() > 0)
    softmax = s2.SupernetS2(10, 1, "softmax", 0.1, 8)
    [gates] = softmax.compute_gates()
    assert gates.sum(1).allclose(torch.ones(19)) and (gates[~softmax.present] == 0).all()


def test_strides_of_chains_for_small_pictures():
    for size, halvings in ((224, 5), (65, 5), (64, 3), (32, 2), (28, 1), (16, 1), (15, 0), (8, 0)):
        strides = s2.chain_strides(size)
        assert strides.count(2) == halvings
        side = size
        for stride in strides:
            side = -(-side // stride)
        assert side >= 8 or size > 64
    assert s2.chain_strides(224)[1:] == [stride for _, stride in s2.CHAIN]
    assert [i for i, stride in enumerate(s2.chain_strides(32))
            if stride == 2] == [7, 15]  # the last two of five
